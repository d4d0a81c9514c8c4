package aggregates

import (
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// Warning is the last early warning of an expiry; the zero value is none.
type Warning struct {
	Expires time.Time
	Days    int // the threshold
}

// Due reports whether a threshold of an expiry needs an event: none of it, or of a smaller one, was
// recorded for this expiry. The log decides this, so that each event occurs once, whatever process
// asks, and whatever its clock says.
func (w Warning) Due(expires time.Time, days int) bool {
	return !expires.IsZero() && (!w.Expires.Equal(expires) || w.Days > days)
}

// What expires first of a credential.
const (
	ExpiringKeys    = "keys"
	ExpiringToken   = "access_token"
	ExpiringRefresh = "refresh_token"
)

// Expiry returns what expires first of a live credential, and when; the zero time if nothing does,
// or if it is renewed before. Tokens that no longer work have already expired.
func (s CredentialState) Expiry() (what string, at time.Time) {
	if !s.Live() || s.Current().SecretID == "" {
		return "", at
	}
	if at = s.declaredExpiry(s.Current().Version); !at.IsZero() {
		what = ExpiringKeys
	}
	t := s.Tokens
	if t.Field == "" || t.ReauthReason != "" {
		return what, at
	}
	if !t.Renewable {
		return sooner(what, at, ExpiringToken, t.Token.Expires)
	}
	if t.RefreshToken.Renewal == events.RefreshFixed {
		return sooner(what, at, ExpiringRefresh, t.RefreshToken.Expires)
	}
	return what, at
}

// sooner returns the earlier of two expiries; the zero time is none.
func sooner(what string, at time.Time, other string, end time.Time) (string, time.Time) {
	if end.IsZero() || !at.IsZero() && !end.Before(at) {
		return what, at
	}
	return other, end
}

// declaredExpiry is the declared expiry of a version of the keys; zero if there is none.
func (s CredentialState) declaredExpiry(version int) time.Time {
	for _, e := range s.Expiries {
		if e.Version == version {
			return e.Expires
		}
	}
	return time.Time{}
}

// expires declares the expiry of new keys; no event if there is none.
func expires(k events.KeysVersion, at time.Time) []events.Credential {
	if at.IsZero() {
		return nil
	}
	return []events.Credential{events.CredentialExpirySet{Version: k.Version, Expires: at}}
}

func (s CredentialState) warn(c commands.WarnCredential) []events.Credential {
	what, at := s.Expiry()
	if !at.Equal(c.Expires) || !s.Warned.Due(at, c.Days) {
		return nil
	}
	flows, total := s.Uses.NamedFlows(maxListedFlows)
	return []events.Credential{events.CredentialExpiring{
		Version: s.Current().Version, What: what, Expires: at, Days: c.Days, Flows: flows, Total: total,
	}}
}

func (s OAuthClientState) warn(c commands.WarnOAuthClient) []events.OAuthClient {
	if s.ID == "" || s.Unusable || !s.SecretExpires.Equal(c.Expires) || !s.Warned.Due(s.SecretExpires, c.Days) {
		return nil
	}
	flows, total := s.Uses.NamedFlows(maxListedFlows)
	return []events.OAuthClient{events.OAuthClientExpiring{ID: s.ID, Expires: s.SecretExpires, Days: c.Days, Flows: flows, Total: total}}
}

func (s APIKeyState) warn(c commands.WarnAPIKey) []events.APIKey {
	if !s.Exists || s.Revoked || !s.Warned.Due(s.Expires, c.Days) {
		return nil
	}
	return []events.APIKey{events.APIKeyExpiring{Name: s.Name, Expires: s.Expires, Days: c.Days}}
}
