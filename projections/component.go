package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/credstream/credstream/events"
)

const (
	componentTable = `
CREATE TABLE components (id TEXT PRIMARY KEY, owner TEXT NOT NULL, title TEXT NOT NULL, shared INTEGER NOT NULL, deleted INTEGER NOT NULL,
	revision INTEGER NOT NULL, env INTEGER NOT NULL, sha256 TEXT NOT NULL, seq INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE component_revisions (component TEXT NOT NULL, revision INTEGER NOT NULL, seq INTEGER NOT NULL,
	PRIMARY KEY (component, revision)) WITHOUT ROWID;
`
	componentIndexes = `
CREATE INDEX components_owned ON components (owner, id) WHERE deleted = 0;
CREATE INDEX components_deleted ON components (id) WHERE deleted = 1;
CREATE INDEX components_shared ON components (id) WHERE deleted = 0 AND shared = 1;
`
)

// Component is one component without its descriptor, which is in the log.
type Component struct {
	ID        string
	Owner     string // tenant that registered it
	Title     string
	Shared    bool // visible to every tenant
	Deleted   bool
	Revision  int    // of the descriptor: 1, 2, ...
	Env       bool   // variables of the descriptor have values
	SHA256    string // of the descriptor, hex
	CreatedAt time.Time
	UpdatedAt time.Time
	Seq       uint64 // its last commit
}

func (b *batch) component(r events.Record, e events.Component) error {
	id, seq, now := r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	set := func(columns string, args ...driver.Value) error {
		return b.w.update("UPDATE components SET seq = ?, updated = ?, "+columns+" WHERE id = ?", append(append([]driver.Value{seq, now}, args...), id)...)
	}
	revised := func(revision int) error {
		return b.w.exec("INSERT OR REPLACE INTO component_revisions VALUES (?,?,?)", id, int64(revision), seq)
	}
	switch e := e.(type) {
	case events.ComponentRegistered:
		if err := revised(1); err != nil {
			return err
		}
		return b.w.exec("INSERT OR REPLACE INTO components VALUES (?,?,?,0,0,1,0,?,?,?,?)", id, e.Owner, e.Title, events.DescriptorHash(e.Descriptor), seq, now, now)
	case events.ComponentUpdated:
		if err := revised(e.Revision); err != nil {
			return err
		}
		return set("title = ?, revision = ?, sha256 = ?", e.Title, int64(e.Revision), events.DescriptorHash(e.Descriptor))
	case events.ComponentShared:
		return set("shared = 1")
	case events.ComponentUnshared:
		return set("shared = 0")
	case events.ComponentEnvSet:
		return set("env = 1")
	case events.ComponentDeleted:
		return set("deleted = 1, env = 0")
	case events.SecretAbandoned:
		return nil
	}
	return errUnknownEvent
}

const componentColumns = "SELECT id, owner, title, shared, deleted, revision, sha256, seq, created, updated, env FROM components"

func scanComponent(row []driver.Value) Component {
	return Component{
		ID: str(row[0]), Owner: str(row[1]), Title: str(row[2]), Shared: num(row[3]) != 0, Deleted: num(row[4]) != 0,
		Revision: int(num(row[5])), SHA256: str(row[6]), Seq: uint64(num(row[7])),
		CreatedAt: micros(row[8]), UpdatedAt: micros(row[9]), Env: num(row[10]) != 0,
	}
}

// Component finds a component by its id, including a deleted one. The caller must check
// whether it may be shown.
func (v *Views) Component(ctx context.Context, id string) (k Component, found bool, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(componentColumns+" WHERE id = ?", func(row []driver.Value) error {
			k, found = scanComponent(row), true
			return nil
		}, id)
	})
	if err != nil {
		return Component{}, false, fmt.Errorf("reading a component: %w", err)
	}
	return k, found, nil
}

// Revision finds the commit of a revision of a component's descriptor; seq is 0 if no
// commit up to position, the position of the views, has it.
func (v *Views) Revision(ctx context.Context, component string, revision int) (seq, position uint64, err error) {
	err = v.snapshot(ctx, func(c *conn) error {
		m, err := readMeta(c)
		if err != nil {
			return err
		}
		position = m.seq
		return c.query("SELECT seq FROM component_revisions WHERE component = ? AND revision = ?", func(row []driver.Value) error {
			seq = uint64(num(row[0]))
			return nil
		}, component, int64(revision))
	})
	if err != nil {
		return 0, 0, fmt.Errorf("reading a revision of a component: %w", err)
	}
	return seq, position, nil
}

// ComponentLike finds a component of any tenant, deleted or not, whose id differs
// from this one only in case.
func (v *Views) ComponentLike(ctx context.Context, id string) (other string, found bool, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query("SELECT id FROM components WHERE lower(id) = lower(?) AND id <> ?", func(row []driver.Value) error {
			other, found = str(row[0]), true
			return nil
		}, id, id)
	})
	if err != nil {
		return "", false, fmt.Errorf("reading a component: %w", err)
	}
	return other, found, nil
}

const componentsVisible = componentColumns + " INDEXED BY components_owned WHERE owner = ? AND deleted = 0 AND id > ?" +
	" UNION ALL " + componentColumns + " INDEXED BY components_shared WHERE deleted = 0 AND shared = 1 AND id > ? AND owner <> ?" +
	" ORDER BY id LIMIT ?"

const (
	componentsOwnedCount = "SELECT count(*) FROM components INDEXED BY components_owned WHERE owner = ? AND deleted = 0"
	// Every id is more than ''; stating it makes SQLite search the index, which a test checks.
	componentsSharedCount = "SELECT count(*) FROM components INDEXED BY components_shared WHERE deleted = 0 AND shared = 1 AND id > '' AND owner <> ?"
)

// ComponentCount is the number of components that Components lists.
func (v *Views) ComponentCount(ctx context.Context, tenant string) (int, error) {
	var owned, shared int64
	err := v.snapshot(ctx, func(c *conn) (err error) {
		if owned, err = count(c, componentsOwnedCount, tenant); err == nil {
			shared, err = count(c, componentsSharedCount, tenant)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("counting components: %w", err)
	}
	return int(owned + shared), nil
}

// Components lists up to limit components by id, starting after an id, that are visible
// to the tenant: its own and the shared ones, without deleted ones; next is "" at the end.
func (v *Views) Components(ctx context.Context, tenant, after string, limit int) (page []Component, next string, err error) {
	limit = bounded(limit)
	err = v.read(ctx, func(c *conn) error {
		return c.query(componentsVisible, func(row []driver.Value) error {
			page = append(page, scanComponent(row))
			return nil
		}, tenant, after, after, tenant, int64(limit)+1)
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing components: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, nil
}
