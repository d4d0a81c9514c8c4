package projections

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"
	"time"

	jsonv2 "github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
)

const (
	apiKeyTable = `
CREATE TABLE api_keys (id TEXT PRIMARY KEY, sha256 TEXT NOT NULL, name TEXT NOT NULL, home TEXT NOT NULL, tenants TEXT NOT NULL,
	role TEXT NOT NULL, permissions TEXT NOT NULL, addresses TEXT NOT NULL, expires INTEGER NOT NULL, scope TEXT NOT NULL, certificate TEXT NOT NULL,
	revoked INTEGER NOT NULL, seq INTEGER NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
`
	apiKeyIndexes = `
CREATE INDEX api_keys_sha256 ON api_keys (sha256, revoked, id);
`
)

// APIKey is one API key, without the key.
type APIKey struct {
	ID          string
	Name        string    // display name; may be ""
	Home        string    // tenant used where a request names none
	Tenants     []string  // tenants it may access; "*" is every tenant
	Role        string    // may be ""
	Permissions []string  // granted in addition to those of the role; nil when there are none
	Addresses   []string  // networks it may be used from, as CIDR; nil: from everywhere
	Expires     time.Time // zero: never
	Scope       events.Scope
	Certificate string // name in the client certificate that stands for the key; "" for a secret key
	Revoked     bool
	CreatedAt   time.Time
	Seq         uint64 // its last commit
}

func (b *batch) apiKey(r events.Record, e events.APIKey) error {
	seq := int64(r.Seq)
	switch e := e.(type) {
	case events.APIKeyIssued:
		var expires int64
		if !e.Expires.IsZero() {
			expires = e.Expires.UnixMicro()
		}
		scope, err := jsonv2.Marshal(e.Scope)
		if err != nil {
			return fmt.Errorf("writing the scope of a key: %w", err)
		}
		if err := b.expiry(Expiry{Tenant: e.Home, Kind: kindAPIKey, ID: r.Stream.ID, Expires: e.Expires}); err != nil {
			return err
		}
		return b.w.exec("INSERT OR REPLACE INTO api_keys VALUES (?,?,?,?,?,?,?,?,?,?,?,0,?,?)",
			r.Stream.ID, e.SHA256, e.Name, e.Home, strings.Join(e.Tenants, " "), e.Role,
			strings.Join(e.Permissions, " "), strings.Join(e.Addresses, " "), expires, string(scope), e.Certificate, seq, r.Meta.Time.UnixMicro())
	case events.APIKeyExpiring:
		return b.expiry(Expiry{Tenant: r.Meta.Tenant, Kind: kindAPIKey, ID: r.Stream.ID, Expires: e.Expires, Warned: e.Days})
	case events.APIKeyRevoked:
		if err := b.w.exec("DELETE FROM expiries WHERE kind = ? AND id = ?", kindAPIKey, r.Stream.ID); err != nil {
			return err
		}
		return b.w.update("UPDATE api_keys SET revoked = 1, seq = ? WHERE id = ?", seq, r.Stream.ID)
	}
	return errUnknownEvent
}

const (
	apiKeyColumns = "SELECT id, name, home, tenants, role, permissions, addresses, expires, scope, certificate, revoked, seq, created FROM api_keys"
	apiKeyByHash  = apiKeyColumns + " INDEXED BY api_keys_sha256 WHERE sha256 = ? ORDER BY revoked, id LIMIT 1"
)

func scanAPIKey(row []driver.Value) (APIKey, error) {
	k := APIKey{
		ID: str(row[0]), Name: str(row[1]), Home: str(row[2]), Tenants: strings.Fields(str(row[3])), Role: str(row[4]),
		Certificate: str(row[9]), Revoked: num(row[10]) != 0, Seq: uint64(num(row[11])), CreatedAt: micros(row[12]),
	}
	if permissions := strings.Fields(str(row[5])); len(permissions) > 0 {
		k.Permissions = permissions
	}
	if addresses := strings.Fields(str(row[6])); len(addresses) > 0 {
		k.Addresses = addresses
	}
	if num(row[7]) != 0 {
		k.Expires = micros(row[7])
	}
	return k, unmarshalText(str(row[8]), &k.Scope)
}

// APIKey finds a key by its hex SHA-256. If two records have the same key, one
// that is not revoked is preferred.
func (v *Views) APIKey(ctx context.Context, sha256 string) (k APIKey, found bool, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query(apiKeyByHash, func(row []driver.Value) (err error) {
			found = true
			k, err = scanAPIKey(row)
			return err
		}, sha256)
	})
	if err != nil {
		return APIKey{}, false, fmt.Errorf("reading an API key: %w", err)
	}
	return k, found, nil
}

// APIKeys lists up to limit keys of a home tenant by id, starting after an id; next is
// "" at the end. Of a scope that narrows, it lists the keys that reach nothing outside it.
func (v *Views) APIKeys(ctx context.Context, home string, scope events.Scope, after string, limit int) (page []APIKey, next string, err error) {
	limit = bounded(limit)
	inside := keysWithin(scope)
	args := append(append([]driver.Value{home, after}, inside.args...), int64(limit)+1)
	err = v.read(ctx, func(c *conn) error {
		return c.query(apiKeyColumns+" WHERE home = ? AND id > ?"+inside.sql+" ORDER BY id LIMIT ?", func(row []driver.Value) error {
			k, err := scanAPIKey(row)
			page = append(page, k)
			return err
		}, args...)
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing API keys: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		next = page[limit-1].ID
	}
	return page, next, nil
}
