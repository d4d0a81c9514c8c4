package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/credstream/credstream/events"
)

const (
	connectorTable = `
CREATE TABLE connectors (tenant TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, description TEXT NOT NULL, index_name TEXT NOT NULL,
	service_type TEXT NOT NULL, language TEXT NOT NULL, native INTEGER NOT NULL, api_key_id TEXT NOT NULL, secret TEXT NOT NULL,
	seq INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, created_by TEXT NOT NULL, PRIMARY KEY (tenant, id)) WITHOUT ROWID;
CREATE TABLE connector_secrets (tenant TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, first INTEGER NOT NULL,
	seq INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, created_by TEXT NOT NULL, PRIMARY KEY (tenant, id)) WITHOUT ROWID;
`
	connectorIndexes = `
CREATE INDEX connectors_secret ON connectors (tenant, secret, id);
`
)

// Connector is one connector.
type Connector struct {
	Tenant    string
	ID        string
	Settings  events.ConnectorSettings
	APIKeyID  string // "" when it has none
	SecretID  string // id of its connector secret, or ""
	CreatedAt time.Time
	UpdatedAt time.Time
	CreatedBy string // "key:<id>"
	Seq       uint64 // the last commit that changed it
}

// ConnectorSecret is one secret of connectors, without its value.
type ConnectorSecret struct {
	Tenant    string
	ID        string
	Version   int // current
	First     int // the version it was created with
	CreatedAt time.Time
	UpdatedAt time.Time
	CreatedBy string // "key:<id>"
	Seq       uint64 // the last commit that changed its value
}

func (b *batch) connector(r events.Record, e events.Connector) error {
	tenant, id, seq, now := r.Stream.Tenant, r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	set := func(columns string, args ...driver.Value) error {
		return b.w.update("UPDATE connectors SET seq = ?, updated = ?, "+columns+" WHERE tenant = ? AND id = ?",
			append(append([]driver.Value{seq, now}, args...), tenant, id)...)
	}
	switch e := e.(type) {
	case events.ConnectorCreated:
		c := e.Connector
		return b.w.exec("INSERT INTO connectors VALUES (?,?,?,?,?,?,?,?,'','',?,?,?,?)", tenant, id, c.Name, c.Description, c.IndexName, c.ServiceType, c.Language,
			c.Native, seq, now, now, r.Meta.Actor.Kind+":"+r.Meta.Actor.ID)
	case events.ConnectorChanged:
		c := e.Connector
		return set("name = ?, description = ?, index_name = ?, service_type = ?, language = ?, native = ?", c.Name, c.Description, c.IndexName, c.ServiceType, c.Language, c.Native)
	case events.ConnectorAPIKeySet:
		return set("api_key_id = ?, secret = ?", e.APIKeyID, e.SecretID)
	case events.ConnectorDeleted:
		return b.w.update("DELETE FROM connectors WHERE tenant = ? AND id = ?", tenant, id)
	case events.ConnectorUseAbandoned: // not shown here
		return nil
	}
	return errUnknownEvent
}

func (b *batch) connectorSecret(r events.Record, e events.ConnectorSecret) error {
	tenant, id, seq, now := r.Stream.Tenant, r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	set := func(version int) error {
		return b.w.update("UPDATE connector_secrets SET seq = ?, updated = ?, version = ? WHERE tenant = ? AND id = ?", seq, now, int64(version), tenant, id)
	}
	switch e := e.(type) {
	case events.ConnectorSecretCreated:
		return b.w.exec("INSERT INTO connector_secrets VALUES (?,?,?,?,?,?,?,?)", tenant, id, int64(e.Version), int64(e.Version), seq, now, now,
			r.Meta.Actor.Kind+":"+r.Meta.Actor.ID)
	case events.ConnectorSecretReplaced:
		return set(e.Version)
	case events.ConnectorSecretReverted:
		return set(e.Version)
	case events.ConnectorSecretDeleted:
		return b.w.update("DELETE FROM connector_secrets WHERE tenant = ? AND id = ?", tenant, id)
	case events.ConnectorSecretRevealed, events.ConnectorSecretUsed, events.ConnectorSecretReleased, events.SecretAbandoned: // not shown here
		return nil
	}
	return errUnknownEvent
}

const connectorColumns = "SELECT tenant, id, name, description, index_name, service_type, language, native, api_key_id, secret, seq, created, updated, created_by FROM connectors"

func scanConnector(row []driver.Value) Connector {
	return Connector{
		Tenant: str(row[0]), ID: str(row[1]),
		Settings: events.ConnectorSettings{
			Name: str(row[2]), Description: str(row[3]), IndexName: str(row[4]), ServiceType: str(row[5]), Language: str(row[6]), Native: num(row[7]) != 0,
		},
		APIKeyID: str(row[8]), SecretID: str(row[9]), Seq: uint64(num(row[10])), CreatedAt: micros(row[11]), UpdatedAt: micros(row[12]), CreatedBy: str(row[13]),
	}
}

// ConnectorFilter selects connectors of a tenant. Empty fields select all.
type ConnectorFilter struct {
	Tenant      string
	ID          string
	Name        string
	IndexName   string
	ServiceType string
	Secret      string // id of their connector secret
	Limit       int    // 1 to 1000; 0 means 50
	After       string // last id of the previous page, or ""
}

// where is the condition of a filter.
func (f ConnectorFilter) where() (sql string, args []driver.Value) {
	sql, args = " WHERE tenant = ?", []driver.Value{f.Tenant}
	for _, by := range [][2]string{{"id", f.ID}, {"secret", f.Secret}, {"name", f.Name}, {"index_name", f.IndexName}, {"service_type", f.ServiceType}} {
		if by[1] != "" {
			sql, args = sql+" AND "+by[0]+" = ?", append(args, by[1])
		}
	}
	return sql, args
}

const (
	connectorCount = "SELECT count(*) FROM connectors"
	connectorPage  = " AND id > ? ORDER BY id LIMIT ?"

	connectorSecretColumns = "SELECT tenant, id, version, first, seq, created, updated, created_by FROM connector_secrets"
	connectorSecretCount   = "SELECT count(*) FROM connector_secrets"
)

// Connectors returns a page of connectors by id, and the total on all pages; next
// is "" at the end.
func (v *Views) Connectors(ctx context.Context, f ConnectorFilter) (page []Connector, next string, total int, err error) {
	where, args := f.where()
	limit := bounded(f.Limit)
	err = v.snapshot(ctx, func(c *conn) error {
		n, err := count(c, connectorCount+where, args...)
		if err != nil {
			return err
		}
		total = int(n)
		return c.query(connectorColumns+where+connectorPage, func(row []driver.Value) error {
			page = append(page, scanConnector(row))
			return nil
		}, append(args, f.After, int64(limit)+1)...)
	})
	if err != nil {
		return nil, "", 0, fmt.Errorf("reading connectors: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, total, nil
}

// ConnectorSecrets returns a page of a tenant's connector secrets by id, starting after an id,
// and the total; next is "" at the end. With an id it returns only that secret.
func (v *Views) ConnectorSecrets(ctx context.Context, tenant, id, after string, limit int) (page []ConnectorSecret, next string, total int, err error) {
	where, args := " WHERE tenant = ?", []driver.Value{tenant}
	if id != "" {
		where, args = where+" AND id = ?", append(args, id)
	}
	limit = bounded(limit)
	err = v.snapshot(ctx, func(c *conn) error {
		n, err := count(c, connectorSecretCount+where, args...)
		if err != nil {
			return err
		}
		total = int(n)
		return c.query(connectorSecretColumns+where+connectorPage,
			func(row []driver.Value) error {
				page = append(page, ConnectorSecret{
					Tenant: str(row[0]), ID: str(row[1]), Version: int(num(row[2])), First: int(num(row[3])), Seq: uint64(num(row[4])),
					CreatedAt: micros(row[5]), UpdatedAt: micros(row[6]), CreatedBy: str(row[7]),
				})
				return nil
			}, append(args, after, int64(limit)+1)...)
	})
	if err != nil {
		return nil, "", 0, fmt.Errorf("reading connector secrets: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, total, nil
}
