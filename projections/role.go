package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	"github.com/credstream/credstream/events"
)

const roleTable = `
CREATE TABLE roles (tenant TEXT NOT NULL, name TEXT NOT NULL, title TEXT NOT NULL, permissions TEXT NOT NULL, granted INTEGER NOT NULL, live INTEGER NOT NULL,
	seq INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, created_by TEXT NOT NULL, PRIMARY KEY (tenant, name)) WITHOUT ROWID;
`

// Role is one role of a tenant.
type Role struct {
	Name        string
	Title       string
	Permissions []string
	Granted     bool // keys were issued with it, or with a deleted one of its name
	CreatedAt   time.Time
	UpdatedAt   time.Time
	CreatedBy   string // "key:<id>"
	Seq         uint64 // the last commit that changed it
}

func (b *batch) role(r events.Record, e events.Role) error {
	tenant, name, seq, now := r.Stream.Tenant, r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	switch e := e.(type) {
	case events.RoleDefined: // the row of a deleted role stays, since its name stays granted
		return b.w.exec("INSERT INTO roles VALUES (?,?,?,?,0,1,?,?,?,?) ON CONFLICT DO UPDATE SET live = 1, title = excluded.title, "+
			"permissions = excluded.permissions, seq = excluded.seq, created = excluded.created, updated = excluded.updated, created_by = excluded.created_by",
			tenant, name, e.Title, strings.Join(e.Permissions, " "), seq, now, now, r.Meta.Actor.Kind+":"+r.Meta.Actor.ID)
	case events.RoleChanged:
		return b.w.update("UPDATE roles SET title = ?, permissions = ?, seq = ?, updated = ? WHERE tenant = ? AND name = ?",
			e.Title, strings.Join(e.Permissions, " "), seq, now, tenant, name)
	case events.RoleGranted:
		return b.w.update("UPDATE roles SET granted = 1 WHERE tenant = ? AND name = ?", tenant, name)
	case events.RoleDeleted:
		return b.w.update("UPDATE roles SET live = 0 WHERE tenant = ? AND name = ?", tenant, name)
	}
	return errUnknownEvent
}

// Roles lists up to limit roles of a tenant by name, starting after a name; next is "" at
// the end.
func (v *Views) Roles(ctx context.Context, tenant, after string, limit int) (page []Role, next string, err error) {
	limit = bounded(limit)
	err = v.read(ctx, func(c *conn) error {
		return c.query("SELECT name, title, permissions, granted, seq, created, updated, created_by FROM roles "+
			"WHERE tenant = ? AND name > ? AND live = 1 ORDER BY name LIMIT ?", func(row []driver.Value) error {
			page = append(page, Role{
				Name: str(row[0]), Title: str(row[1]), Permissions: strings.Fields(str(row[2])), Granted: num(row[3]) != 0,
				Seq: uint64(num(row[4])), CreatedAt: micros(row[5]), UpdatedAt: micros(row[6]), CreatedBy: str(row[7]),
			})
			return nil
		}, tenant, after, int64(limit)+1)
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing roles: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].Name
	}
	return page, next, nil
}

// KeysOfRole returns up to limit ids of the keys of a home tenant that have the stored role
// and are neither revoked nor expired at the time.
func (v *Views) KeysOfRole(ctx context.Context, home, role string, at time.Time, limit int) (ids []string, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query("SELECT id FROM api_keys WHERE home = ? AND role = ? AND revoked = 0 AND (expires = 0 OR expires > ?) ORDER BY id LIMIT ?",
			func(row []driver.Value) error {
				ids = append(ids, str(row[0]))
				return nil
			}, home, role, at.UnixMicro(), int64(limit))
	})
	if err != nil {
		return nil, fmt.Errorf("listing the keys of a role: %w", err)
	}
	return ids, nil
}
