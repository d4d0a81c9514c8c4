package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/credstream/credstream/events"
)

const throttlePolicyTable = `
CREATE TABLE throttle_policies (tenant TEXT NOT NULL, id TEXT NOT NULL, description TEXT NOT NULL, tokens INTEGER NOT NULL, per TEXT NOT NULL,
	seq INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, created_by TEXT NOT NULL, PRIMARY KEY (tenant, id)) WITHOUT ROWID;
`

// ThrottlePolicy is one throttle policy.
type ThrottlePolicy struct {
	ID        string
	Settings  events.ThrottleSettings
	CreatedAt time.Time
	UpdatedAt time.Time
	CreatedBy string // "key:<id>"
	Seq       uint64 // the last commit that changed it
}

func (b *batch) throttlePolicy(r events.Record, e events.ThrottlePolicy) error {
	tenant, id, seq, now := r.Stream.Tenant, r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	switch e := e.(type) {
	case events.ThrottlePolicyDefined:
		return b.w.exec("INSERT INTO throttle_policies VALUES (?,?,?,?,?,?,?,?,?)", tenant, id, e.Policy.Description, e.Policy.Tokens, string(e.Policy.Per),
			seq, now, now, r.Meta.Actor.Kind+":"+r.Meta.Actor.ID)
	case events.ThrottlePolicyChanged:
		return b.w.update("UPDATE throttle_policies SET seq = ?, updated = ?, description = ?, tokens = ?, per = ? WHERE tenant = ? AND id = ?",
			seq, now, e.Policy.Description, e.Policy.Tokens, string(e.Policy.Per), tenant, id)
	case events.ThrottlePolicyDeleted:
		return b.w.update("DELETE FROM throttle_policies WHERE tenant = ? AND id = ?", tenant, id)
	case events.ThrottlePolicyUsed, events.ThrottlePolicyReleased: // the credential shows it
		return nil
	}
	return errUnknownEvent
}

const (
	throttlePolicyColumns = "SELECT id, description, tokens, per, seq, created, updated, created_by FROM throttle_policies WHERE tenant = ?"
	throttlePolicyCount   = "SELECT count(*) FROM throttle_policies WHERE tenant = ?"
	throttlePolicyPage    = " AND id > ? ORDER BY id LIMIT ?"
)

func scanThrottlePolicy(row []driver.Value) ThrottlePolicy {
	return ThrottlePolicy{
		ID: str(row[0]), Settings: events.ThrottleSettings{Description: str(row[1]), Tokens: num(row[2]), Per: events.TimeUnit(str(row[3]))},
		Seq: uint64(num(row[4])), CreatedAt: micros(row[5]), UpdatedAt: micros(row[6]), CreatedBy: str(row[7]),
	}
}

// ThrottlePolicy finds a throttle policy of a tenant by its id.
func (v *Views) ThrottlePolicy(ctx context.Context, tenant, id string) (found ThrottlePolicy, ok bool, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(throttlePolicyColumns+" AND id = ?", func(row []driver.Value) error {
			found, ok = scanThrottlePolicy(row), true
			return nil
		}, tenant, id)
	})
	if err != nil {
		return found, false, fmt.Errorf("reading a throttle policy: %w", err)
	}
	return found, ok, nil
}

// ThrottlePolicies lists a page of a tenant's throttle policies by id, those after one, and
// how many there are on all pages; next is "" at the end.
func (v *Views) ThrottlePolicies(ctx context.Context, tenant, after string, limit int) (page []ThrottlePolicy, next string, total int, err error) {
	limit = bounded(limit)
	err = v.snapshot(ctx, func(c *conn) error {
		n, err := count(c, throttlePolicyCount, tenant)
		if err != nil {
			return err
		}
		total = int(n)
		return c.query(throttlePolicyColumns+throttlePolicyPage, func(row []driver.Value) error {
			page = append(page, scanThrottlePolicy(row))
			return nil
		}, tenant, after, int64(limit)+1)
	})
	if err != nil {
		return nil, "", 0, fmt.Errorf("reading throttle policies: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, total, nil
}
