package oauth

import (
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/seal"
)

// Lifetimes configures how the lifetime of a provider's access tokens is determined.
type Lifetimes struct {
	Declared     time.Duration // by the component; 0: not declared
	Override     bool          // Declared takes precedence over the response
	Milliseconds bool          // expires_in is in milliseconds
	Last         time.Duration // of the previous token, if the provider stated it; 0: unknown
}

// The members that hold a duration, and those that hold a point in time.
var (
	lifetimeMembers = []string{"expires_in_sec", "expires_in"}
	expiryMembers   = []string{"expires_at", "expires_on", "expiry_date", "expiry"}
)

// LifetimeOf returns the remaining lifetime of the access token in an object in the form of a
// provider's response. given means that a person entered the object, which may be old:
// the earlier of a duration and a point in time applies, and the result is 0 if the token has
// expired. Otherwise the result is positive. odd is a sentence about an implausible value, ""
// for none.
func LifetimeOf(object seal.Fields, known Lifetimes, now time.Time, given bool) (life time.Duration, odd string) {
	a := response{members: map[string]jsontext.Value{}}
	for _, name := range slices.Concat(lifetimeMembers, expiryMembers) {
		if v, ok := object.Get(name); ok {
			a.members[name] = jsontext.Value(v.Reveal())
		}
	}
	return a.lifetime(known, now, given)
}

// lifetime is LifetimeOf for a response. The order of precedence is: a duration, a point in
// time, the previous token's lifetime, the one that the component declares, DefaultLifetime.
func (a response) lifetime(known Lifetimes, now time.Time, given bool) (life time.Duration, odd string) {
	until, hasTime := a.expiry(now)
	if known.Override && known.Declared > 0 && (!given || !hasTime) {
		return min(known.Declared, MaxLifetime), ""
	}
	in, hasLife, odd := a.expiresIn(known, until, hasTime)
	switch {
	case given && hasTime && (!hasLife || until < in):
		return min(max(until, 0), MaxLifetime), oddExpiry(odd, until, true)
	case hasLife:
		return in, odd
	case hasTime && until >= time.Second:
		return min(until, MaxLifetime), oddExpiry(odd, until, false)
	case hasTime:
		odd = oddExpiry(odd, until, false)
	}
	for _, life := range []time.Duration{known.Last, known.Declared} {
		if life >= time.Second {
			return min(life, MaxLifetime), odd
		}
	}
	return DefaultLifetime, odd
}

func oddExpiry(odd string, until time.Duration, given bool) string {
	switch {
	case until > MaxLifetime:
		return "The provider's expires_at is more than 366 days away."
	case until < time.Second && !given:
		return "The provider's expires_at is in the past, so it is ignored. Check the clocks and the time zone."
	}
	return odd
}

// expiresIn returns the duration in the response. It ignores zero and negative values, with
// which the token would be useless.
func (a response) expiresIn(known Lifetimes, until time.Duration, hasTime bool) (life time.Duration, ok bool, odd string) {
	for _, name := range lifetimeMembers {
		f, isNumber := number(a.text(name))
		if !isNumber || f <= 0 {
			continue
		}
		if known.Milliseconds || inMilliseconds(f, until, hasTime) {
			if f /= 1000; !known.Milliseconds {
				odd = "The provider's expires_in is implausible in seconds and is taken as milliseconds. Declare expires_in_unit in the component.json."
			}
		}
		if f > MaxLifetime.Seconds() {
			odd = "The provider's expires_in is more than 366 days."
		}
		if life = time.Duration(min(f, MaxLifetime.Seconds()) * float64(time.Second)).Truncate(time.Second); life >= time.Second {
			return life, true, odd
		}
	}
	return 0, false, odd
}

// inMilliseconds reports whether a lifetime is plausible only in milliseconds: it exceeds the
// point in time in the response a hundredfold, or the lifetime of any token, or is whole
// minutes in milliseconds and not whole days in seconds. A false positive renews a token too
// early; a false negative returns an expired token to callers.
func inMilliseconds(f float64, until time.Duration, hasTime bool) bool {
	const minute, day = 60e3, 86400
	switch {
	case f < 10*minute:
		return false
	case hasTime && until >= time.Second:
		return f > 100*until.Seconds()
	case f > MaxLifetime.Seconds():
		return f/1000 <= MaxLifetime.Seconds()
	}
	n := int64(f)
	return float64(n) == f && n%minute == 0 && n%day != 0
}

// expiry returns the time from now to the point in time in the response.
func (a response) expiry(now time.Time) (until time.Duration, ok bool) {
	for _, name := range expiryMembers {
		text := strings.TrimSpace(a.text(name))
		if f, isNumber := number(text); isNumber && f > 1e8 { // less, before 1973, is not a point in time
			if f > 1e11 {
				f /= 1000
			}
			if f > 1e10 {
				return MaxLifetime + time.Second, true
			}
			return time.Unix(int64(f), 0).Sub(now), true
		}
		// Without a zone it is taken as UTC.
		for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", time.DateTime, "2006-01-02 15:04:05Z07:00"} {
			if t, err := time.Parse(layout, text); err == nil {
				return t.Sub(now), true
			}
		}
	}
	return 0, false
}

// refreshLifetimeMembers hold the lifetime of a refresh token, as LinkedIn and eBay, Keycloak and
// Intuit name it.
var refreshLifetimeMembers = []string{"refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in"}

// maxRefreshLifetime is the longest plausible lifetime of a refresh token: larger values mean that the
// token does not expire.
const maxRefreshLifetime = 20 * 366 * 24 * time.Hour

// refreshLifetime is RefreshLifetimeOf for a response.
func (a response) refreshLifetime() time.Duration {
	for _, name := range refreshLifetimeMembers {
		f, isNumber := number(a.text(name))
		if isNumber && f >= 1 && f <= maxRefreshLifetime.Seconds() {
			return time.Duration(f) * time.Second
		}
	}
	return 0
}

// RefreshLifetimeOf returns the lifetime of the refresh token in an object in the form of a
// provider's response, 0 if it states none: Keycloak's 0 means that the token does not expire.
func RefreshLifetimeOf(object seal.Fields) time.Duration {
	a := response{members: map[string]jsontext.Value{}}
	for _, name := range refreshLifetimeMembers {
		if v, ok := object.Get(name); ok {
			a.members[name] = jsontext.Value(v.Reveal())
		}
	}
	return a.refreshLifetime()
}

// StatesLifetime reports whether an object has a member that LifetimeOf reads.
func StatesLifetime(object seal.Fields) bool {
	return slices.ContainsFunc(slices.Concat(lifetimeMembers, expiryMembers), func(name string) bool {
		v, ok := object.Text(name)
		return ok && len(v.Reveal()) > 0 && string(v.Reveal()) != "null" && string(v.Reveal()) != "0"
	})
}

// WithoutLifetime removes every member that LifetimeOf reads.
func WithoutLifetime(object seal.Fields) seal.Fields {
	return object.Without(slices.Concat(lifetimeMembers, expiryMembers)...)
}
