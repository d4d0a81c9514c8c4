package aggregates_test

import (
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// A warning is decided by what the log says of the expiry, never by a clock.
func TestWarnings(t *testing.T) {
	type (
		tc    = aggregatetest.Case[commands.Credential, events.Credential]
		facts = []events.Credential
	)
	soon := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	late := soon.AddDate(0, 1, 0)
	keys := func(n int) events.KeysVersion { return events.KeysVersion{Version: n, SecretID: "s"} }
	created := events.CredentialCreated{Component: "p", Name: "n", Keys: keys(1)}
	expires := events.CredentialExpirySet{Version: 1, Expires: soon}
	warned := func(days int) events.CredentialExpiring {
		return events.CredentialExpiring{Version: 1, What: "keys", Expires: soon, Days: days}
	}
	token := func(renewable bool, at time.Time) events.CredentialAuthorized {
		return events.CredentialAuthorized{Grant: 1, Version: 1, Field: "oauth", Renewable: renewable, Expires: at}
	}
	ask := func(at time.Time, days int) commands.WarnCredential {
		return commands.WarnCredential{ID: "c", Expires: at, Days: days}
	}
	refresh := func(renewal string) events.CredentialRefreshTokenExpirySet {
		return events.CredentialRefreshTokenExpirySet{Expires: soon, Lifetime: 31536000, Renewal: renewal}
	}
	ofRefresh := warned(7)
	ofRefresh.What = "refresh_token"
	broken := events.CredentialReauthorizationRequired{Grant: 1, Says: "Connect it again."}
	ofToken := warned(7)
	ofToken.What = "access_token"
	aggregatetest.Run(t, aggregates.Credential,
		tc{Name: "warn", Given: facts{created, expires}, When: ask(soon, 30), Then: facts{warned(30)}},
		tc{Name: "warn twice", Given: facts{created, expires, warned(30)}, When: ask(soon, 30)},
		tc{Name: "a smaller threshold", Given: facts{created, expires, warned(30)}, When: ask(soon, 7), Then: facts{warned(7)}},
		tc{Name: "a larger threshold, by a clock that is behind", Given: facts{created, expires, warned(7)}, When: ask(soon, 30)},
		tc{Name: "an expiry that the process does not know yet", Given: facts{created, expires}, When: ask(late, 30)},
		tc{Name: "no expiry", Given: facts{created}, When: ask(soon, 30)},
		tc{Name: "no expiry, asked for none", Given: facts{created}, When: ask(time.Time{}, 30)},
		tc{Name: "other keys", Given: facts{created, expires, events.CredentialKeysReplaced{Keys: keys(2)}}, When: ask(soon, 30)},
		tc{Name: "deleted", Given: facts{created, expires, events.CredentialDeleted{}}, When: ask(soon, 30)},
		tc{Name: "nothing", When: ask(soon, 30)},
		tc{Name: "tokens that are renewed", Given: facts{created, token(true, soon)}, When: ask(soon, 7)},
		tc{Name: "tokens that cannot be renewed", Given: facts{created, token(false, soon)}, When: ask(soon, 7), Then: facts{ofToken}},
		tc{Name: "tokens that expire before the keys", Given: facts{created, events.CredentialExpirySet{Version: 1, Expires: late}, token(false, soon)}, When: ask(soon, 7), Then: facts{ofToken}},
		tc{
			Name: "tokens that no longer work", When: ask(soon, 7),
			Given: facts{created, token(false, soon), broken},
		},
		tc{Name: "a refresh token that renewals do not extend", Given: facts{created, token(true, late), refresh("fixed")}, When: ask(soon, 7), Then: facts{ofRefresh}},
		tc{Name: "one that they extend", Given: facts{created, token(true, late), refresh("fixed"), refresh("extended")}, When: ask(soon, 7)},
		tc{Name: "one before its first renewal", Given: facts{created, token(true, late), refresh("unknown")}, When: ask(soon, 7)},
		tc{Name: "one that no longer works", Given: facts{created, token(true, late), refresh("fixed"), broken}, When: ask(soon, 7)},
		tc{Name: "another grant", Given: facts{created, token(true, late), refresh("fixed"), token(true, late)}, When: ask(soon, 7)},
		tc{Name: "keys that expire before it", Given: facts{created, expires, token(true, late), events.CredentialRefreshTokenExpirySet{Expires: late, Renewal: "fixed"}}, When: ask(soon, 7), Then: facts{warned(7)}},
	)
}

// Whether renewals extend a refresh token follows from two statements of the provider.
func TestRefreshTokenExpiry(t *testing.T) {
	type (
		tc    = aggregatetest.Case[commands.Credential, events.Credential]
		facts = []events.Credential
	)
	const year = 365 * 24 * time.Hour
	granted := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	keys := events.KeysVersion{Version: 1, SecretID: "s"}
	token := events.CredentialAuthorized{Grant: 1, Version: 1, Field: "oauth", Renewable: true, Expires: granted.Add(time.Hour), Lifetime: 3600}
	stated := func(at time.Time, life time.Duration, renewal string) events.CredentialRefreshTokenExpirySet {
		return events.CredentialRefreshTokenExpirySet{Expires: at.Add(life), Lifetime: int64(life / time.Second), Renewal: renewal}
	}
	started := events.CredentialRefreshStarted{Epoch: 1, Grant: 1, SecretID: "t1", Holder: "p"}
	given := func(more ...events.Credential) facts {
		return append(facts{events.CredentialCreated{Component: "p", Name: "n", Keys: keys}, token}, append(more, started)...)
	}
	renew := func(at time.Time, life time.Duration) commands.CompleteRefresh {
		c := commands.CompleteRefresh{ID: "c", Epoch: 1, Grant: 1, SecretID: "t1", Expires: at.Add(time.Hour), Lifetime: time.Hour}
		if life > 0 {
			c.RefreshToken = commands.RefreshTokenLife{Expires: at.Add(life), Lifetime: life}
		}
		return c
	}
	then := func(at time.Time, more ...events.Credential) facts {
		return append(facts{events.CredentialRefreshed{Epoch: 1, Grant: 1, SecretID: "t1", Expires: at.Add(time.Hour), Lifetime: 3600}}, more...)
	}
	after := granted.Add(45 * time.Minute)
	left := year - 45*time.Minute
	first := stated(granted, year, "unknown")
	aggregatetest.Run(t, aggregates.Credential,
		tc{Name: "not stated", Given: given(), When: renew(after, 0), Then: then(after)},
		tc{Name: "stated for the first time", Given: given(), When: renew(after, year), Then: then(after, stated(after, year, "unknown"))},
		tc{Name: "not stated again", Given: given(first), When: renew(after, 0), Then: then(after)},
		tc{Name: "the same end", Given: given(first), When: renew(after, left), Then: then(after, stated(after, left, "fixed"))},
		tc{Name: "the same end, known to be fixed", Given: given(stated(granted, year, "fixed")), When: renew(after, left), Then: then(after)},
		tc{Name: "an earlier end, known to be fixed", Given: given(stated(granted, year, "fixed")), When: renew(after, year/2), Then: then(after, stated(after, year/2, "fixed"))},
		tc{Name: "a later end", Given: given(first), When: renew(after, year), Then: then(after, stated(after, year, "extended"))},
		tc{Name: "a later end, declared to be fixed", Given: given(stated(granted, year, "fixed")), When: renew(after, year), Then: then(after, stated(after, year, "extended"))},
		tc{Name: "a later end again", Given: given(stated(granted, year, "extended")), When: renew(after, year), Then: then(after)},
		tc{Name: "too early to tell", Given: given(first), When: renew(granted.Add(time.Second), year), Then: then(granted.Add(time.Second))},
		tc{Name: "half an hour, extended", Given: given(stated(granted, 30*time.Minute, "unknown")), When: renew(granted.Add(4*time.Minute), 30*time.Minute), Then: then(granted.Add(4*time.Minute), stated(granted.Add(4*time.Minute), 30*time.Minute, "extended"))},
		tc{
			Name: "granted",
			When: commands.CreateCredential{ID: "c", Component: "p", Name: "n", Keys: commands.NewKeys{SecretID: "s", Tokens: &commands.Tokens{
				Field: "oauth", Renewable: true, Expires: token.Expires, Lifetime: time.Hour, RefreshToken: commands.RefreshTokenLife{Expires: granted.Add(year), Lifetime: year, Fixed: true},
			}}},
			Then: facts{events.CredentialCreated{Component: "p", Name: "n", Keys: keys}, token, stated(granted, year, "fixed")},
		},
	)
}
