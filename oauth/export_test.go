package oauth

import (
	"context"
	"net/http"
	"time"

	"github.com/credstream/credstream/seal"
)

// Breaker is breaker.
type Breaker struct{ b *breaker }

// NewBreaker is newBreaker.
func NewBreaker() Breaker { return Breaker{newBreaker()} }

// Acquire is acquire.
func (b Breaker) Acquire(ctx context.Context, host, path, tenant, client string) (release func(*Error), err error) {
	return b.b.acquire(ctx, host, path, tenant, client)
}

// Size is the number of circuits and hosts that are kept.
func (b Breaker) Size() int { return len(b.b.circuits) + len(b.b.hosts) }

// RetryAfter is retryAfter.
func RetryAfter(h http.Header, now time.Time) time.Duration { return retryAfter(h, now) }

// Parse parses a response. complete means that it was parsed to its end, granted that it
// holds an access token.
func Parse(body []byte, p Provider, secrets ...seal.Secret) (t Token, refresh seal.Secret, complete, granted bool) {
	r := parse(body)
	t, granted = r.token(p, secrets...)
	return t, r.refresh(), r.complete, granted
}

// Errors are errors of every combination of step, outcome, status, cause and code.
func Errors() []*Error {
	var all []*Error
	for _, s := range []step{"", redeeming, refreshing, acquiring, revoking} {
		for _, o := range []Outcome{Transient, Malformed, Revoked, ClientRefused, Refused} {
			for _, status := range []int{0, 200, 302, 400, 429, 503} {
				all = append(all, &Error{Outcome: o, Status: status, step: s})
			}
			for c := range causeSentences {
				all = append(all, &Error{Outcome: o, Status: 302, step: s, cause: c})
			}
			for _, known := range knownCodes {
				all = append(all, &Error{Outcome: o, Status: 400, Code: known.standard, step: s})
			}
		}
	}
	return all
}
