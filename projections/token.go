package projections

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"strings"
	"time"

	"github.com/credstream/credstream/events"
)

// A row of tokens means that a credential holds tokens. due is when to check them next:
// to renew them before they expire, after a failure, or because the outcome of a
// renewal is unknown. A renewal changes nothing else in the views.
const (
	tokenTable = `
CREATE TABLE tokens (tenant TEXT, id TEXT, due INTEGER NOT NULL, PRIMARY KEY (tenant, id)) WITHOUT ROWID;
`
	tokenIndexes = `
CREATE INDEX tokens_due ON tokens (due);
`
)

// never is the due time of tokens that cannot be renewed.
const never = math.MaxInt64

// refreshCheck is how long after its start a renewal is checked.
const refreshCheck = 45 * time.Second

// RenewEvery is the shortest time between two automatic renewals, so that a
// provider that grants tokens of one second does not fill the log.
const RenewEvery = 5 * time.Minute

// RenewedDue is when renewed tokens are due again: TokenDue,
// but at least RenewEvery from now.
func RenewedDue(id string, expires, by time.Time, life time.Duration) time.Time {
	due, soonest := TokenDue(id, expires, by, life), expires.Add(RenewEvery-life)
	if expires.IsZero() || due.After(soonest) { // the zero time means at once
		return due
	}
	return soonest
}

// TokenDue is when tokens are due for renewal: after about two
// thirds of their lifetime, but not earlier than one and a half hours before they expire.
// The id adds a spread, so that credentials created together are not renewed
// together. A due time other than zero takes precedence.
func TokenDue(id string, expires, by time.Time, life time.Duration) time.Time {
	if !by.IsZero() {
		return by
	}
	ahead := min(life/4, time.Hour)
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(id)) // never fails
	spread := time.Duration(float64(ahead/2) * float64(hash.Sum32()) / (1 << 32))
	return expires.Add(-ahead - spread)
}

// token applies an event of a credential's tokens. only reports that
// it changes nothing else in the views.
func (b *batch) token(r events.Record, e events.Credential) (only bool, err error) {
	key := []driver.Value{r.Stream.Tenant, r.Stream.ID}
	due := func(at time.Time) error {
		return b.w.exec("INSERT INTO tokens VALUES (?,?,?) ON CONFLICT DO UPDATE SET due = excluded.due", key[0], key[1], at.UnixMilli())
	}
	end := func() error { return b.w.exec("DELETE FROM tokens WHERE tenant = ? AND id = ?", key...) }
	switch events.Event(e).(type) {
	case events.CredentialKeysReplaced, events.CredentialDeleted:
		return false, end()
	}
	token, ok := e.(events.CredentialToken)
	if !ok {
		return false, nil
	}
	switch e := token.(type) {
	case events.CredentialAuthorized:
		if e.Renewable {
			return false, due(TokenDue(r.Stream.ID, e.Expires, e.Due, time.Duration(e.Lifetime)*time.Second))
		}
		return false, due(time.UnixMilli(never))
	case events.CredentialRefreshStarted:
		return true, due(r.Meta.Time.Add(refreshCheck))
	case events.CredentialRefreshed:
		return true, due(RenewedDue(r.Stream.ID, e.Expires, e.Due, time.Duration(e.Lifetime)*time.Second))
	case events.CredentialRefreshFailed:
		if e.Outcome == "unknown" { // the epoch that takes it over follows
			return true, nil
		}
		return true, due(atOrNever(e.RetryAt))
	case events.CredentialReauthorizationRequired: // held, and tried again now and then, or not at all
		return false, b.w.exec("UPDATE tokens SET due = ? WHERE tenant = ? AND id = ?", atOrNever(e.RetryAt).UnixMilli(), key[0], key[1])
	case events.CredentialTokensRevoked:
		return false, end()
	case events.CredentialRevokedAtProvider:
		return true, nil
	case events.CredentialRecovered, events.CredentialRefreshTokenExpirySet:
	}
	return false, nil
}

func atOrNever(at time.Time) time.Time {
	if at.IsZero() {
		return time.UnixMilli(never)
	}
	return at
}

// CredentialName names a credential within its tenant.
type CredentialName struct{ Tenant, ID string }

const (
	dueTokens      = "SELECT tenant, id FROM tokens INDEXED BY tokens_due WHERE due <= ?"
	dueTokensOrder = " ORDER BY due LIMIT ?"
)

// DueTokens lists up to limit credentials whose tokens are due by now,
// the longest overdue first, excluding some tenants.
func (v *Views) DueTokens(ctx context.Context, now time.Time, without []string, limit int) (due []CredentialName, err error) {
	sql, args := dueTokens+strings.Repeat(" AND tenant <> ?", len(without))+dueTokensOrder, []driver.Value{now.UnixMilli()}
	for _, tenant := range without {
		args = append(args, tenant)
	}
	err = v.read(ctx, func(c *conn) error {
		return c.query(sql, func(row []driver.Value) error {
			due = append(due, CredentialName{str(row[0]), str(row[1])})
			return nil
		}, append(args, int64(limit))...)
	})
	if err != nil {
		return nil, fmt.Errorf("listing tokens that are due: %w", err)
	}
	return due, nil
}

const (
	tokenHolders = "SELECT id FROM tokens WHERE tenant = ? AND id > ? ORDER BY id LIMIT ?"
	// A tenant has no more tokens than credentials: scan the tokens and look up their
	// credentials.
	tokenHoldersOf = "SELECT t.id FROM tokens t CROSS JOIN credentials c INDEXED BY credentials_id ON c.tenant = t.tenant AND c.id = t.id" +
		" WHERE t.tenant = ? AND t.id > ? AND c.component = ? ORDER BY t.id LIMIT ?"
	tokenHolderCount = "SELECT count(*) FROM tokens WHERE tenant = ?"
)

// TokenHolders lists up to limit credentials of a tenant that hold tokens, valid or
// not, by id, starting after an id; only those of component unless it is "".
func (v *Views) TokenHolders(ctx context.Context, tenant, component, after string, limit int) (ids []string, err error) {
	sql, args := tokenHolders, []driver.Value{tenant, after}
	if component != "" {
		sql, args = tokenHoldersOf, append(args, component)
	}
	err = v.read(ctx, func(c *conn) error {
		return c.query(sql, func(row []driver.Value) error {
			ids = append(ids, str(row[0]))
			return nil
		}, append(args, int64(limit))...)
	})
	if err != nil {
		return nil, errors.Join(errors.New("listing credentials with tokens"), err)
	}
	return ids, nil
}

// TokenHolderCount is the number of a tenant's credentials that hold tokens.
func (v *Views) TokenHolderCount(ctx context.Context, tenant string) (int, error) {
	var n int64
	err := v.read(ctx, func(c *conn) (err error) {
		n, err = count(c, tokenHolderCount, tenant)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("counting credentials with tokens: %w", err)
	}
	return int(n), nil
}
