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

// Enter is enter.
func (b Breaker) Enter(ctx context.Context, host, path, tenant, client string) (leave func(*Error), err error) {
	return b.b.enter(ctx, host, path, tenant, client)
}

// Lines is how many endpoints and clients are known to be or have been in trouble.
func (b Breaker) Lines() int { return len(b.b.lines) + len(b.b.hosts) }

// RetryAfter is retryAfter.
func RetryAfter(h http.Header, now time.Time) time.Duration { return retryAfter(h, now) }

// Parse reads an answer; whole and granted tell whether it was read to its end and
// holds an access token.
func Parse(body []byte, p Provider, secrets ...seal.Secret) (t Token, refresh seal.Secret, whole, granted bool) {
	a := read(body)
	t, granted = a.token(p, secrets...)
	return t, a.refresh(), a.whole, granted
}

// Errors are errors of every kind there is.
func Errors() []*Error {
	var all []*Error
	for _, s := range []step{"", redeeming, refreshing, acquiring, revoking} {
		for _, o := range []Outcome{Transient, Malformed, Revoked, ClientRefused, Refused} {
			for _, status := range []int{0, 200, 302, 400, 429, 503} {
				all = append(all, &Error{Outcome: o, Status: status, step: s})
			}
			for c := range says {
				all = append(all, &Error{Outcome: o, Status: 302, step: s, cause: c})
			}
			for code := range verdicts {
				all = append(all, &Error{Outcome: o, Status: 400, Code: verdicts[code].code, step: s})
			}
		}
	}
	return all
}
