package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"slices"
	"strconv"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
)

// Auth clients are listed in the order of their creation: begun is the sequence of
// the commit that created them. follow is the id of the component's OAuth client that
// the auth client manages, "" when there is none.
const (
	authClientTable = `
CREATE TABLE auth_clients (begun INTEGER PRIMARY KEY, tenant TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, scope TEXT NOT NULL,
	scope_id TEXT NOT NULL, components TEXT NOT NULL, fields TEXT NOT NULL, client_id TEXT NOT NULL, secret_id TEXT NOT NULL, settled INTEGER NOT NULL,
	seq INTEGER NOT NULL, created INTEGER NOT NULL, updated INTEGER NOT NULL, created_by TEXT NOT NULL);
CREATE UNIQUE INDEX auth_clients_id ON auth_clients (id, tenant);
CREATE TABLE auth_client_components (tenant TEXT NOT NULL, id TEXT NOT NULL, component TEXT NOT NULL, follow TEXT NOT NULL,
	PRIMARY KEY (tenant, id, component)) WITHOUT ROWID;
`
	authClientIndexes = `
CREATE INDEX auth_clients_tenant ON auth_clients (tenant);
CREATE INDEX auth_clients_global ON auth_clients (scope) WHERE scope = 'global';
CREATE INDEX auth_clients_unsettled ON auth_clients (updated) WHERE settled = 0;
CREATE INDEX auth_client_components_followed ON auth_client_components (tenant, component) WHERE follow <> '';
`
)

// The scopes of an auth client: where it is visible.
const (
	ScopeWorkspace = "workspace"
	ScopeContract  = "contract"
	ScopeTenant    = "tenant"
	ScopeGlobal    = "global" // in every tenant
)

// AuthClient is an auth client without its credentials.
type AuthClient struct {
	Tenant     string // owner
	ID         string
	Name       string
	Type       string
	Scope      string
	ScopeID    string // of the workspace or contract
	Components []events.AuthClientComponent
	Fields     []string // names of the credentials that have a value, sorted
	ClientID   string   // of type oauth2
	SecretID   string   // where the vault keeps the credentials; not for callers
	Settled    bool     // the OAuth clients of its components have been updated
	CreatedAt  time.Time
	UpdatedAt  time.Time
	CreatedBy  string // "key:<id>"
	Seq        uint64 // the last commit that changed it
}

func (b *batch) authClient(r events.Record, e events.AuthClient) error {
	tenant, id, seq, now := r.Stream.Tenant, r.Stream.ID, int64(r.Seq), r.Meta.Time.UnixMicro()
	switch e := e.(type) {
	case events.AuthClientCreated:
		components, fields, err := authClientLists(e.Components, e.Fields)
		if err != nil {
			return err
		}
		err = b.w.exec("INSERT INTO auth_clients VALUES (?,?,?,?,?,?,?,?,?,?,?,0,?,?,?,?)", seq, tenant, id, e.Name, e.Type, e.Scope, e.ScopeID,
			components, fields, e.ClientID, e.SecretID, seq, now, now, r.Meta.Actor.Kind+":"+r.Meta.Actor.ID)
		if err != nil {
			return err
		}
		return b.authClientComponents(tenant, id, e.Components)
	case events.AuthClientChanged:
		components, fields, err := authClientLists(e.Components, e.Fields)
		if err != nil {
			return err
		}
		err = b.w.update("UPDATE auth_clients SET name = ?, components = ?, fields = ?, client_id = ?, secret_id = ?, settled = 0, seq = ?, updated = ? WHERE id = ? AND tenant = ?",
			e.Name, components, fields, e.ClientID, e.SecretID, seq, now, id, tenant)
		if err != nil {
			return err
		}
		return b.authClientComponents(tenant, id, e.Components)
	case events.AuthClientSettled:
		return b.w.update("UPDATE auth_clients SET settled = 1, seq = ? WHERE id = ? AND tenant = ?", seq, id, tenant)
	case events.AuthClientDeleted:
		if err := b.w.update("DELETE FROM auth_clients WHERE id = ? AND tenant = ?", id, tenant); err != nil {
			return err
		}
		return b.authClientComponents(tenant, id, nil)
	case events.AuthClientRevealed, events.SecretAbandoned: // not shown here
	}
	return nil
}

func authClientLists(components []events.AuthClientComponent, fields []string) (c, f string, err error) {
	forComponents, err := jsonv2.Marshal(components)
	if err != nil {
		return "", "", err
	}
	forFields, err := jsonv2.Marshal(fields)
	return string(forComponents), string(forFields), err
}

func (b *batch) authClientComponents(tenant, id string, components []events.AuthClientComponent) error {
	if err := b.w.exec("DELETE FROM auth_client_components WHERE tenant = ? AND id = ?", tenant, id); err != nil {
		return err
	}
	for _, c := range components {
		if err := b.w.exec("INSERT OR REPLACE INTO auth_client_components VALUES (?,?,?,?)", tenant, id, c.Component, c.OAuthClient); err != nil {
			return err
		}
	}
	return nil
}

const authClientColumns = "SELECT begun, tenant, id, name, type, scope, scope_id, components, fields, client_id, secret_id, settled, seq, created, updated, created_by FROM auth_clients"

func scanAuthClient(row []driver.Value) (k AuthClient, begun int64, err error) {
	k = AuthClient{
		Tenant: str(row[1]), ID: str(row[2]), Name: str(row[3]), Type: str(row[4]), Scope: str(row[5]), ScopeID: str(row[6]),
		ClientID: str(row[9]), SecretID: str(row[10]), Settled: num(row[11]) != 0,
		Seq: uint64(num(row[12])), CreatedAt: micros(row[13]), UpdatedAt: micros(row[14]), CreatedBy: str(row[15]),
	}
	if err := jsonv2.Unmarshal([]byte(str(row[7])), &k.Components); err != nil {
		return k, 0, err
	}
	return k, num(row[0]), jsonv2.Unmarshal([]byte(str(row[8])), &k.Fields)
}

const (
	authClientByID     = authClientColumns + " INDEXED BY auth_clients_id WHERE id = ? AND (tenant = ? OR scope = 'global')"
	authClientFollowed = authClientColumns + " INDEXED BY auth_clients_id WHERE tenant = ? AND id = (SELECT id FROM auth_client_components" +
		" INDEXED BY auth_client_components_followed WHERE tenant = ? AND component = ? AND follow <> '')"
	authClientsUnsettled = authClientColumns + " INDEXED BY auth_clients_unsettled WHERE settled = 0 AND updated < ? ORDER BY updated LIMIT ?"

	// '' selects everything; a scope selects what is visible in it, including wider scopes.
	authClientsSeen = " AND (? = '' OR scope = 'global' OR scope = 'tenant' AND ? <> 'global' OR scope = ? AND scope_id = ?)" +
		" AND (? = '' OR EXISTS (SELECT 1 FROM auth_client_components c WHERE c.tenant = auth_clients.tenant AND c.id = auth_clients.id AND c.component = ?))"
	authClientsOwn    = " INDEXED BY auth_clients_tenant WHERE tenant = ? AND begun > ?" + authClientsSeen
	authClientsOthers = " INDEXED BY auth_clients_global WHERE scope = 'global' AND tenant <> ? AND begun > ?" + authClientsSeen
	authClientsListed = authClientColumns + authClientsOwn + " UNION ALL " + authClientColumns + authClientsOthers + " ORDER BY begun LIMIT ?"
	ownAuthClients    = "SELECT count(*) FROM auth_clients" + authClientsOwn
	otherAuthClients  = "SELECT count(*) FROM auth_clients" + authClientsOthers
)

// AuthClient finds an auth client by its id: the tenant's own, or else a global one.
func (v *Views) AuthClient(ctx context.Context, tenant, id string) (k AuthClient, found bool, err error) {
	list, _, err := v.authClients(ctx, authClientByID, id, tenant)
	for _, one := range list {
		if !found || one.Tenant == tenant { // ids that were given may be those of another tenant's global one
			k, found = one, true
		}
	}
	return k, found && err == nil, err
}

// AuthClientFollowed finds the auth client that manages the tenant's OAuth client of a component.
func (v *Views) AuthClientFollowed(ctx context.Context, tenant, component string) (k AuthClient, found bool, err error) {
	return v.authClient(ctx, authClientFollowed, tenant, tenant, component)
}

func (v *Views) authClient(ctx context.Context, sql string, args ...driver.Value) (AuthClient, bool, error) {
	list, _, err := v.authClients(ctx, sql, args...)
	if err != nil || len(list) == 0 {
		return AuthClient{}, false, err
	}
	return list[0], true, nil
}

// AuthClientFilter selects among the auth clients that are visible to a tenant: its
// own and the global ones.
type AuthClientFilter struct {
	Tenant    string
	Component string // only those for this component
	Scope     string // only those visible in this scope: in a workspace or contract also those of the tenant, in a tenant none of a workspace; "" for all
	ScopeID   string // of the workspace or contract
	Limit     int    // 1 to 1000; 0 means 50
	After     string // cursor of the previous page, or ""
}

// args are the arguments of authClientsOwn and of authClientsOthers.
func (f AuthClientFilter) args(after int64) []driver.Value {
	return []driver.Value{f.Tenant, after, f.Scope, f.Scope, f.Scope, f.ScopeID, f.Component, f.Component}
}

// AuthClients returns a page of auth clients, oldest first, and the total number that
// the filter selects; next is "" at the end. It returns ErrCursorInvalid.
func (v *Views) AuthClients(ctx context.Context, f AuthClientFilter) (page []AuthClient, next string, total int, err error) {
	var after int64
	if f.After != "" {
		if after, err = strconv.ParseInt(f.After, 10, 64); err != nil || after < 1 {
			return nil, "", 0, ErrCursorInvalid
		}
	}
	limit := bounded(f.Limit)
	page, begun, err := v.authClients(ctx, authClientsListed, append(slices.Concat(f.args(after), f.args(after)), int64(limit)+1)...)
	if err != nil {
		return nil, "", 0, err
	}
	if len(page) > limit {
		page, next = page[:limit], strconv.FormatInt(begun[limit-1], 10)
	}
	var own, others int64
	err = v.snapshot(ctx, func(c *conn) (err error) {
		if own, err = count(c, ownAuthClients, f.args(0)...); err == nil {
			others, err = count(c, otherAuthClients, f.args(0)...)
		}
		return err
	})
	if err != nil {
		return nil, "", 0, fmt.Errorf("counting auth clients: %w", err)
	}
	return page, next, int(own + others), nil
}

// UnsettledAuthClients lists up to limit auth clients that were changed before a
// time and whose OAuth clients are not updated yet.
func (v *Views) UnsettledAuthClients(ctx context.Context, before time.Time, limit int) ([]AuthClient, error) {
	list, _, err := v.authClients(ctx, authClientsUnsettled, before.UnixMicro(), int64(limit))
	return list, err
}

func (v *Views) authClients(ctx context.Context, sql string, args ...driver.Value) (list []AuthClient, begun []int64, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(sql, func(row []driver.Value) error {
			k, at, err := scanAuthClient(row)
			list, begun = append(list, k), append(begun, at)
			return err
		}, args...)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading auth clients: %w", err)
	}
	return list, begun, nil
}
