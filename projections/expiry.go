package projections

import (
	"context"
	"database/sql/driver"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/credstream/credstream/events"
)

// A row of expiries is something that stops working at a known time unless somebody acts: a
// credential (its keys, or tokens that cannot be renewed), an OAuth client, by its component, or an
// API key, in its home tenant. warned is the threshold of the last early warning about this
// expiry, in days; 0 if there was none.
const (
	expiryTable = `
CREATE TABLE expiries (tenant TEXT, kind TEXT, id TEXT, expires INTEGER NOT NULL, warned INTEGER NOT NULL, PRIMARY KEY (tenant, kind, id)) WITHOUT ROWID;
`
	expiryIndexes = `
CREATE INDEX expiries_due ON expiries (expires, warned);
CREATE INDEX expiries_tenant ON expiries (tenant, expires);
`
)

const kindAPIKey = "api_key"

// Expiry is something that expires.
type Expiry struct {
	Tenant  string
	Kind    string // category of the aggregate: "credential", "oauth_client" or "api_key"
	ID      string // of an OAuth client: its component
	Expires time.Time
	Warned  int // threshold of the last warning, in days; 0: none

	Name       string // of a credential or API key; may be ""
	Credential *Credential
}

// expiry sets what is known about an expiry; the zero time removes it.
func (b *batch) expiry(x Expiry) error {
	if x.Expires.IsZero() {
		return b.w.exec("DELETE FROM expiries WHERE tenant = ? AND kind = ? AND id = ?", x.Tenant, x.Kind, x.ID)
	}
	return b.w.exec("INSERT INTO expiries VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET expires = excluded.expires, warned = excluded.warned",
		x.Tenant, x.Kind, x.ID, x.Expires.UnixMicro(), int64(x.Warned))
}

// credentialExpiry updates the expiry of a credential that a batch has changed.
func (b *batch) credentialExpiry(old, now *Credential) error {
	was, is := old.expiry(), now.expiry()
	switch {
	case was == is, was.Expires.IsZero() && is.Expires.IsZero():
		return nil
	case now == nil:
		is.Tenant, is.ID = old.Tenant, old.ID
	}
	is.Kind = kindCredential
	return b.expiry(is)
}

// expiry is what expires first, as aggregates.CredentialState.Expiry decides it; the zero value if
// nothing does.
func (c *Credential) expiry() Expiry {
	if c == nil {
		return Expiry{}
	}
	_, at := c.Expiry()
	x := Expiry{Tenant: c.Tenant, ID: c.ID, Expires: at}
	if c.Warned.Equal(at) {
		x.Warned = c.WarnedDays
	}
	return x
}

// Expiry returns what expires first, "keys", "access_token" or "refresh_token", and when; the zero
// time if nothing does.
func (c *Credential) Expiry() (what string, at time.Time) {
	if c.SecretID == "" {
		return "", at
	}
	consider := func(other string, end time.Time) {
		if !end.IsZero() && (at.IsZero() || end.Before(at)) {
			what, at = other, end
		}
	}
	consider("keys", c.KeysExpire)
	consider("access_token", c.TokenExpires)
	if c.Status != events.ReauthorizationRequired {
		consider("refresh_token", c.RefreshExpires)
	}
	return what, at
}

// The position of a row in the order of the expiries.
const afterExpiry = " AND (e.expires, e.tenant, e.kind, e.id) > (?, ?, ?, ?)"

func (x Expiry) position() []driver.Value {
	if x.ID == "" {
		return []driver.Value{int64(-1 << 62), "", "", ""}
	}
	return []driver.Value{x.Expires.UnixMicro(), x.Tenant, x.Kind, x.ID}
}

// UnwarnedExpiries lists, earliest first, up to limit expiries of all tenants with from < expires <=
// to that have no recorded warning at this threshold or a smaller one. after is the last row of the
// previous page.
func (v *Views) UnwarnedExpiries(ctx context.Context, from, to time.Time, days int, after Expiry, limit int) (list []Expiry, err error) {
	err = v.read(ctx, func(c *conn) error {
		return c.query("SELECT tenant, kind, id, expires, warned FROM expiries e INDEXED BY expiries_due WHERE expires > ? AND expires <= ?"+
			" AND (warned = 0 OR warned > ?)"+afterExpiry+" ORDER BY expires, tenant, kind, id LIMIT ?", func(row []driver.Value) error {
			list = append(list, scanExpiry(row))
			return nil
		}, append(append([]driver.Value{from.UnixMicro(), to.UnixMicro(), int64(days)}, after.position()...), int64(limit))...)
	})
	if err != nil {
		return nil, fmt.Errorf("listing expiries: %w", err)
	}
	return list, nil
}

func scanExpiry(row []driver.Value) Expiry {
	return Expiry{Tenant: str(row[0]), Kind: str(row[1]), ID: str(row[2]), Expires: micros(row[3]), Warned: int(num(row[4]))}
}

// Expiries lists, earliest first, up to limit expiries of a tenant with since < expires <= until, of
// these kinds. A bound scope returns credentials only. next is the cursor of the next page, "" at
// the end. It returns ErrCursorInvalid.
func (v *Views) Expiries(ctx context.Context, tenant string, kinds []string, scope events.Scope, since, until time.Time, after string, limit int) (page []Expiry, next string, err error) {
	limit = bounded(limit)
	from, err := parseExpiry(tenant, after)
	if err != nil {
		return nil, "", err
	}
	is := within(scope, "c.")
	args := []driver.Value{tenant, since.UnixMicro(), until.UnixMicro()}
	for _, kind := range kinds {
		args = append(args, kind)
	}
	args = append(append(args, from.position()...), is.args...)
	err = v.read(ctx, func(c *conn) error {
		return c.query("SELECT e.tenant, e.kind, e.id, e.expires, e.warned, c.doc, k.name FROM expiries e INDEXED BY expiries_tenant"+
			" LEFT JOIN credentials c ON e.kind = '"+kindCredential+"' AND c.tenant = e.tenant AND c.id = e.id"+
			" LEFT JOIN api_keys k ON e.kind = '"+kindAPIKey+"' AND k.id = e.id"+
			" WHERE e.tenant = ? AND e.expires > ? AND e.expires <= ? AND e.kind IN (?"+strings.Repeat(",?", len(kinds)-1)+")"+afterExpiry+is.sql+
			" ORDER BY e.expires, e.tenant, e.kind, e.id LIMIT ?", func(row []driver.Value) (err error) {
			x := scanExpiry(row)
			if row[5] != nil {
				if x.Credential, err = c.recent.scan(row[5]); err != nil {
					return err
				}
				x.Name = x.Credential.Name
			}
			if row[6] != nil {
				x.Name = str(row[6])
			}
			page = append(page, x)
			return nil
		}, append(args, int64(limit)+1)...)
	})
	if err != nil {
		return nil, "", fmt.Errorf("listing expiries: %w", err)
	}
	if len(page) > limit {
		page = page[:limit]
		last := page[limit-1]
		raw := binary.BigEndian.AppendUint64(nil, uint64(last.Expires.UnixMicro()))
		next = base64.RawURLEncoding.EncodeToString(append(raw, last.Kind+" "+last.ID...))
	}
	return page, next, nil
}

// parseExpiry parses a cursor, which may name any place of the caller's own list.
func parseExpiry(tenant, cursor string) (Expiry, error) {
	if cursor == "" {
		return Expiry{}, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) < 8 {
		return Expiry{}, ErrCursorInvalid
	}
	kind, id, found := strings.Cut(string(raw[8:]), " ")
	if !found || id == "" {
		return Expiry{}, ErrCursorInvalid
	}
	return Expiry{Tenant: tenant, Kind: kind, ID: id, Expires: time.UnixMicro(int64(binary.BigEndian.Uint64(raw)))}, nil
}
