package oauth

import (
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/seal"
)

// Lifetimes is what is known of the lifetime of a provider's access tokens.
type Lifetimes struct {
	Declared     time.Duration // by the component; 0: not declared
	Override     bool          // Declared counts, whatever the provider says
	Milliseconds bool          // expires_in is in milliseconds
	Last         time.Duration // of the token before, where the provider said it; 0: not known
}

// The members that hold a lifetime, and those that hold a point in time.
var (
	lifetimeMembers = []string{"expires_in_sec", "expires_in"}
	expiryMembers   = []string{"expires_at", "expires_on", "expiry_date", "expiry"}
)

// LifetimeOf reads the remaining lifetime of the access token in an object in the form
// of a provider's answer. given means that a person entered the object: it may be old,
// so that what it says of a point in time counts more than a lifetime, and a token may
// have expired (0). Otherwise the lifetime is positive. odd says in a sentence what is
// implausible, "" for nothing.
func LifetimeOf(object seal.Fields, known Lifetimes, now time.Time, given bool) (life time.Duration, odd string) {
	a := answer{members: map[string]jsontext.Value{}}
	for _, name := range slices.Concat(lifetimeMembers, expiryMembers) {
		if v, ok := object.Get(name); ok {
			a.members[name] = jsontext.Value(v.Reveal())
		}
	}
	return a.lifetime(known, now, given)
}

// lifetime is LifetimeOf an answer. The order is: a lifetime, a point in time, what the
// token before had, what the component declares, DefaultLifetime.
func (a answer) lifetime(known Lifetimes, now time.Time, given bool) (life time.Duration, odd string) {
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
		return "The provider's expires_at has passed already, so it is ignored. Compare the clocks and the time zone."
	}
	return odd
}

// expiresIn is the lifetime the answer names. Zero and less are taken as not said: such
// a token would be of no use to anybody.
func (a answer) expiresIn(known Lifetimes, until time.Duration, hasTime bool) (life time.Duration, ok bool, odd string) {
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

// inMilliseconds reports whether a lifetime makes sense in milliseconds only: it fits
// the point in time that the answer names, or is longer than any token lives, or is whole
// minutes in milliseconds, but no whole days in seconds. To err by that
// renews a token too early, and to err otherwise hands a dead token out.
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

// expiry is how far away the point in time is that the answer names.
func (a answer) expiry(now time.Time) (until time.Duration, ok bool) {
	for _, name := range expiryMembers {
		text := strings.TrimSpace(a.text(name))
		if f, isNumber := number(text); isNumber && f > 1e8 { // before 1973 it is no point in time
			if f > 1e11 {
				f /= 1000
			}
			if f > 1e10 {
				return MaxLifetime + time.Second, true
			}
			return time.Unix(int64(f), 0).Sub(now), true
		}
		// Without a zone it is UTC, as for all who leave it out and are right everywhere.
		for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", time.DateTime, "2006-01-02 15:04:05Z07:00"} {
			if t, err := time.Parse(layout, text); err == nil {
				return t.Sub(now), true
			}
		}
	}
	return 0, false
}

// WithoutLifetime removes the members of an object that name a lifetime or a point in time.
func WithoutLifetime(object seal.Fields) seal.Fields {
	return object.Without(slices.Concat(lifetimeMembers, expiryMembers)...)
}
