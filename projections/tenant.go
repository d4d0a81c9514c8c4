package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/credstream/credstream/events"
)

const tenantTable = `
CREATE TABLE tenants (id TEXT PRIMARY KEY, name TEXT NOT NULL, seq INTEGER NOT NULL, created INTEGER NOT NULL,
	rotation INTEGER NOT NULL DEFAULT 0, erasure INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
`

// Erasure is the progress of the erasure of a tenant.
type Erasure int

// The steps of an erasure.
const (
	NotErased Erasure = iota
	Erasing
	Erased
)

// String is "", "erasing" or "erased".
func (e Erasure) String() string {
	switch e {
	case NotErased:
	case Erasing:
		return "erasing"
	case Erased:
		return "erased"
	}
	return ""
}

// Tenant is one tenant.
type Tenant struct {
	ID        string
	Name      string // display name; may be ""
	CreatedAt time.Time
	Seq       uint64 // its last commit
	Rotation  uint64 // number of the key rotation in progress; 0 when there is none
	Erasure   Erasure
}

func (b *batch) tenant(r events.Record, e events.Tenant) error {
	switch e := e.(type) {
	case events.TenantRegistered:
		return b.w.exec("INSERT OR REPLACE INTO tenants VALUES (?,?,?,?,0,0)", r.Stream.ID, e.Name, int64(r.Seq), r.Meta.Time.UnixMicro())
	case events.TenantKeysRewrapped:
		return b.w.exec("UPDATE tenants SET seq = ? WHERE id = ?", int64(r.Seq), r.Stream.ID)
	case events.TenantKeyRotationStarted:
		return b.rotation(r, e.Rotation)
	case events.TenantKeyRotationCompleted:
		return b.rotation(r, 0)
	case events.TenantErasureStarted:
		return b.erasure(r, Erasing)
	case events.TenantErased:
		return b.erasure(r, Erased)
	}
	return errUnknownEvent
}

func (b *batch) rotation(r events.Record, rotation uint64) error {
	return b.w.exec("UPDATE tenants SET seq = ?, rotation = ? WHERE id = ?", int64(r.Seq), int64(rotation), r.Stream.ID)
}

// erasure also ends a rotation, whose keys will be destroyed.
func (b *batch) erasure(r events.Record, step Erasure) error {
	return b.w.exec("UPDATE tenants SET seq = ?, rotation = 0, erasure = ? WHERE id = ?", int64(r.Seq), int64(step), r.Stream.ID)
}

const tenantColumns = "SELECT id, name, seq, created, rotation, erasure FROM tenants"

func scanTenant(row []driver.Value) Tenant {
	return Tenant{ID: str(row[0]), Name: str(row[1]), Seq: uint64(num(row[2])), CreatedAt: micros(row[3]), Rotation: uint64(num(row[4])), Erasure: Erasure(num(row[5]))}
}

// Tenant finds a tenant by its id.
func (v *Views) Tenant(ctx context.Context, id string) (t Tenant, found bool, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(tenantColumns+" WHERE id = ?", func(row []driver.Value) error {
			t, found = scanTenant(row), true
			return nil
		}, id)
	})
	if err != nil {
		return Tenant{}, false, fmt.Errorf("reading a tenant: %w", err)
	}
	return t, found, nil
}

// Tenants lists all tenants by id.
func (v *Views) Tenants(ctx context.Context) ([]Tenant, error) { return v.tenants(ctx, "") }

// RotatingTenants lists the tenants whose encryption key is being rotated.
func (v *Views) RotatingTenants(ctx context.Context) ([]Tenant, error) {
	return v.tenants(ctx, " WHERE rotation > 0")
}

// ErasingTenants lists the tenants whose erasure is not complete.
func (v *Views) ErasingTenants(ctx context.Context) ([]Tenant, error) {
	return v.tenants(ctx, " WHERE erasure = 1")
}

func (v *Views) tenants(ctx context.Context, where string) (all []Tenant, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(tenantColumns+where+" ORDER BY id", func(row []driver.Value) error {
			all = append(all, scanTenant(row))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("listing tenants: %w", err)
	}
	return all, nil
}

// micros reads a time that is stored in microseconds.
func micros(v driver.Value) time.Time { return time.UnixMicro(num(v)).UTC() }
