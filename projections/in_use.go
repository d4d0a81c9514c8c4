package projections

import (
	"context"
	"database/sql/driver"
	"fmt"

	"github.com/credstream/credstream/events"
)

// One row for each resource that a flow ever used: seq is the sequence of the
// commit that last changed its entry in the in-use index. The same transaction
// maintains the counts, so that no query counts rows.
const (
	inUseTable = `
CREATE TABLE in_use (tenant TEXT, thing TEXT, seq INTEGER NOT NULL, total INTEGER NOT NULL, active INTEGER NOT NULL,
	PRIMARY KEY (tenant, thing)) WITHOUT ROWID;
`
	inUseIndexes = `
CREATE INDEX in_use_seq ON in_use (seq, tenant, thing);
`
)

// maxInUse is the maximum number of flows in a value.
const maxInUse = 1000

// InUse is a value of the in-use index: the flows whose use of a resource is
// recorded on its stream. It is a pure function of the log up to Seq, and does
// not change until the log has a commit that changes it.
type InUse struct {
	Seq       uint64      `json:"seq"`                // log sequence of the commit that set it
	Total     int         `json:"total"`              // number of flows
	Active    int         `json:"active"`             // number of active flows
	Flows     []InUseFlow `json:"flows"`              // active ones first, then by id; the first 1,000
	Truncated bool        `json:"truncated,omitzero"` // there are more
}

// InUseFlow is one flow in a value of the in-use index.
type InUseFlow struct {
	ID       string `json:"id"`
	Active   bool   `json:"active"`
	Reserved bool   `json:"reserved,omitzero"` // has a reservation
}

// InUseEntry is a value and the resource it belongs to.
type InUseEntry struct {
	Tenant, Kind, ID string // Kind is "credential" or "oauth_client", whose ID is the component's
	Value            InUse
}

// inUseChange is the change that a batch makes to a row of in_use.
type inUseChange struct {
	seq           uint64
	total, active int64
}

type inUseKey struct{ tenant, resource string }

// noteInUse records the change of one flow's use, if it is visible in the index.
func (b *batch) noteInUse(tenant, resource string, seq uint64, before, now useRow) {
	if before.recorded == now.recorded && before.active == now.active && (before.binding == "") == (now.binding == "") {
		return
	}
	key := inUseKey{tenant, resource}
	ch := b.inUse[key]
	ch.seq = seq
	ch.total += flag(now.recorded) - flag(before.recorded)
	ch.active += flag(now.active) - flag(before.active)
	b.inUse[key] = ch
}

func (b *batch) flushInUse() error {
	for key, ch := range b.inUse {
		err := b.w.exec("INSERT INTO in_use VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET seq = excluded.seq, total = total + excluded.total, active = active + excluded.active",
			key.tenant, key.resource, int64(ch.seq), ch.total, ch.active)
		if err != nil {
			return err
		}
	}
	clear(b.inUse)
	return nil
}

const (
	inUseByThing = "SELECT seq, total, active FROM in_use WHERE tenant = ? AND thing = ?"
	inUseColumns = "SELECT tenant, thing, seq, total, active FROM in_use"
	inUseChanges = inUseColumns + " INDEXED BY in_use_seq WHERE seq > ? ORDER BY seq, tenant, thing LIMIT ?"
	inUseAt      = inUseColumns + " INDEXED BY in_use_seq WHERE seq = ? ORDER BY tenant, thing"
	inUseList    = inUseColumns + " WHERE tenant = ? AND thing > ?"
	inUseOrder   = " ORDER BY thing LIMIT ?"
	inUseFlows   = "SELECT flow, active, binding <> '' FROM uses INDEXED BY uses_recorded WHERE tenant = ? AND thing = ? AND recorded = 1" +
		" ORDER BY active DESC, flow LIMIT ?"
)

// InUseChanges lists the changes after a log sequence, in log order:
// about limit entries, including all of the last sequence, so that a
// caller can continue after the sequence of the last entry. A value that changed several
// times is listed once. All values are from one state of the views.
func (v *Views) InUseChanges(ctx context.Context, after uint64, limit int) (entries []InUseEntry, err error) {
	limit = bounded(limit)
	err = v.snapshot(ctx, func(c *conn) (err error) {
		if entries, err = inUseEntries(c, inUseChanges, int64(after), int64(limit)); err != nil {
			return err
		}
		if len(entries) == limit { // more of the last sequence may follow
			last := entries[limit-1].Value.Seq
			for len(entries) > 0 && entries[len(entries)-1].Value.Seq == last {
				entries = entries[:len(entries)-1]
			}
			rest, err := inUseEntries(c, inUseAt, int64(last))
			if err != nil {
				return err
			}
			entries = append(entries, rest...)
		}
		return addFlows(c, entries)
	})
	if err != nil {
		return nil, fmt.Errorf("reading changes of the in-use index: %w", err)
	}
	return entries, nil
}

// InUseList lists the values of a tenant, starting after a cursor, including those that
// have become empty; next is "" at the end. Of a scope that narrows, it lists the values of
// the credentials in it.
func (v *Views) InUseList(ctx context.Context, tenant string, scope events.Scope, after string, limit int) (entries []InUseEntry, next string, err error) {
	limit = bounded(limit)
	used := usedIn(scope, "in_use.")
	args := append(append([]driver.Value{tenant, after}, used.args...), int64(limit)+1)
	err = v.snapshot(ctx, func(c *conn) (err error) {
		if entries, err = inUseEntries(c, inUseList+used.sql+inUseOrder, args...); err != nil {
			return err
		}
		if len(entries) > limit {
			entries = entries[:limit]
			next = resourceName(entries[limit-1].Kind, entries[limit-1].ID)
		}
		return addFlows(c, entries)
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing the in-use index: %w", err)
	}
	return entries, next, nil
}

func inUseEntries(c *conn, sql string, args ...driver.Value) (entries []InUseEntry, err error) {
	err = c.query(sql, func(row []driver.Value) error {
		kind, id := kindAndID(str(row[1]))
		entries = append(entries, InUseEntry{Tenant: str(row[0]), Kind: kind, ID: id, Value: scanInUse(row[2:])})
		return nil
	}, args...)
	return entries, err
}

func scanInUse(row []driver.Value) InUse {
	return InUse{Seq: uint64(num(row[0])), Total: int(num(row[1])), Active: int(num(row[2])), Flows: []InUseFlow{}}
}

// addFlows fills in the flows of each entry.
func addFlows(c *conn, entries []InUseEntry) error {
	for i := range entries {
		e := &entries[i]
		if e.Value.Total == 0 {
			continue
		}
		err := c.query(inUseFlows, func(row []driver.Value) error {
			e.Value.Flows = append(e.Value.Flows, InUseFlow{ID: str(row[0]), Active: num(row[1]) != 0, Reserved: num(row[2]) != 0})
			return nil
		}, e.Tenant, resourceName(e.Kind, e.ID), int64(maxInUse))
		if err != nil {
			return err
		}
		e.Value.Truncated = e.Value.Total > len(e.Value.Flows)
	}
	return nil
}
