package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/credstream/credstream/events"
)

const (
	oauthClientTable = `
CREATE TABLE oauth_clients (tenant TEXT NOT NULL, component TEXT NOT NULL, id TEXT NOT NULL, client_id TEXT NOT NULL, secret_id TEXT NOT NULL,
	unusable INTEGER NOT NULL, seq INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, created_by TEXT NOT NULL,
	PRIMARY KEY (tenant, component)) WITHOUT ROWID;
`
	oauthClientIndexes = `
CREATE INDEX oauth_clients_id ON oauth_clients (tenant, id);
CREATE INDEX oauth_clients_component ON oauth_clients (component, tenant);
`
)

// OAuthClient is the OAuth client of one component in one tenant, without its secret.
type OAuthClient struct {
	Tenant    string
	Component string
	ID        string
	ClientID  string
	SecretID  string // where the vault keeps the client secret; not for callers
	Unusable  bool   // the component was deleted
	Used      bool   // by a flow of the tenant, active or not
	CreatedAt time.Time
	UpdatedAt time.Time
	CreatedBy string // "key:<id>"
	Seq       uint64 // the last commit that changed it

	SecretExpires time.Time // as declared; zero: unknown
}

func (b *batch) client(r events.Record, e events.OAuthClient) error {
	tenant, component, seq, now := r.Stream.Tenant, r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	set := func(columns string, args ...driver.Value) error {
		return b.w.update("UPDATE oauth_clients SET seq = ?, updated = ?, "+columns+" WHERE tenant = ? AND component = ?",
			append(append([]driver.Value{seq, now}, args...), tenant, component)...)
	}
	switch e := e.(type) {
	case events.OAuthClientDefined:
		return b.w.exec("INSERT INTO oauth_clients VALUES (?,?,?,?,?,0,?,?,?,?)",
			tenant, component, e.ID, e.ClientID, e.SecretID, seq, now, now, r.Meta.Actor.Kind+":"+r.Meta.Actor.ID)
	case events.OAuthClientChanged: // another secret has no declared expiry yet
		err := b.w.exec("DELETE FROM expiries WHERE tenant = ? AND kind = ? AND id = ? AND NOT EXISTS"+
			" (SELECT 1 FROM oauth_clients o WHERE o.tenant = ? AND o.component = ? AND o.secret_id = ?)",
			tenant, kindOAuthClient, component, tenant, component, e.SecretID)
		if err != nil {
			return err
		}
		return set("client_id = ?, secret_id = ?", e.ClientID, e.SecretID)
	case events.OAuthClientExpirySet:
		if err := b.expiry(Expiry{Tenant: tenant, Kind: kindOAuthClient, ID: component, Expires: e.Expires}); err != nil {
			return err
		}
		return set("unusable = unusable")
	case events.OAuthClientExpiring:
		return b.expiry(Expiry{Tenant: tenant, Kind: kindOAuthClient, ID: component, Expires: e.Expires, Warned: e.Days})
	case events.OAuthClientMarkedUnusable:
		if err := b.expiry(Expiry{Tenant: tenant, Kind: kindOAuthClient, ID: component}); err != nil {
			return err
		}
		return set("unusable = 1")
	case events.OAuthClientDeleted:
		if err := b.expiry(Expiry{Tenant: tenant, Kind: kindOAuthClient, ID: component}); err != nil {
			return err
		}
		return b.w.update("DELETE FROM oauth_clients WHERE tenant = ? AND component = ?", tenant, component)
	case events.OAuthClientRevealed, events.OAuthClientUsed, events.OAuthClientReleased, events.SecretAbandoned: // not shown here
	}
	return nil
}

const oauthClientColumns = "SELECT tenant, component, id, client_id, secret_id, unusable, seq, created, updated, created_by," +
	" EXISTS (SELECT 1 FROM uses u INDEXED BY uses_recorded WHERE u.tenant = oauth_clients.tenant AND u.thing = '" + kindOAuthClient + ".' || component AND u.recorded = 1)," +
	" (SELECT expires FROM expiries x WHERE x.tenant = oauth_clients.tenant AND x.kind = '" + kindOAuthClient + "' AND x.id = component)" +
	" FROM oauth_clients"

func scanOAuthClient(row []driver.Value) OAuthClient {
	k := OAuthClient{
		Tenant: str(row[0]), Component: str(row[1]), ID: str(row[2]), ClientID: str(row[3]), SecretID: str(row[4]), Unusable: num(row[5]) != 0,
		Seq: uint64(num(row[6])), CreatedAt: micros(row[7]), UpdatedAt: micros(row[8]), CreatedBy: str(row[9]),
		Used: num(row[10]) != 0,
	}
	if row[11] != nil {
		k.SecretExpires = micros(row[11])
	}
	return k
}

// OAuthClient finds a tenant's client by its id, or by its component when id is "".
func (v *Views) OAuthClient(ctx context.Context, tenant, id, component string) (k OAuthClient, found bool, err error) {
	sql, key := oauthClientColumns+" INDEXED BY oauth_clients_id WHERE tenant = ? AND id = ?", id
	if id == "" {
		sql, key = oauthClientColumns+" WHERE tenant = ? AND component = ?", component
	}
	list, err := v.oauthClients(ctx, sql, tenant, key)
	if err != nil || len(list) == 0 {
		return k, false, err
	}
	return list[0], true, nil
}

// OAuthClients lists up to limit clients of a tenant by component, starting after a
// component; next is "" at the end.
func (v *Views) OAuthClients(ctx context.Context, tenant, after string, limit int) (page []OAuthClient, next string, err error) {
	limit = bounded(limit)
	page, err = v.oauthClients(ctx, oauthClientColumns+" WHERE tenant = ? AND component > ? ORDER BY component LIMIT ?", tenant, after, int64(limit)+1)
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].Component
	}
	return page, next, err
}

const oauthClientCount = "SELECT count(*) FROM oauth_clients WHERE tenant = ?"

// OAuthClientCount is the number of a tenant's clients. There is at most one per
// component, so they are few enough to be counted.
func (v *Views) OAuthClientCount(ctx context.Context, tenant string) (int, error) {
	var n int64
	err := v.read(ctx, func(c *conn) (err error) {
		n, err = count(c, oauthClientCount, tenant)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("counting OAuth clients: %w", err)
	}
	return int(n), nil
}

// ClientsOfDeletedComponents lists up to limit clients whose component was deleted
// and that are not marked unusable yet.
func (v *Views) ClientsOfDeletedComponents(ctx context.Context, limit int) ([]OAuthClient, error) {
	return v.oauthClients(ctx, oauthClientColumns+" INDEXED BY oauth_clients_component WHERE unusable = 0 AND component IN"+
		" (SELECT id FROM components INDEXED BY components_deleted WHERE deleted = 1) LIMIT ?", int64(limit))
}

func (v *Views) oauthClients(ctx context.Context, sql string, args ...driver.Value) (list []OAuthClient, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(sql, func(row []driver.Value) error {
			list = append(list, scanOAuthClient(row))
			return nil
		}, args...)
	})
	if err != nil {
		return nil, fmt.Errorf("reading OAuth clients: %w", err)
	}
	return list, nil
}
