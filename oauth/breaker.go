package oauth

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"
)

const (
	maxFailures = 5                // in a row, until an endpoint is left alone
	firstRest   = 10 * time.Second // then twice as long each time
	longestRest = 5 * time.Minute
	trying      = time.Second      // to come again while another tries
	perHost     = 8                // requests under way to one host
	patience    = 10 * time.Second // for one of these
	maxIdle     = 1000             // lines kept that nobody uses
	manyTenants = 2                // for whom an endpoint fails, until all leave it alone
	failingFor  = 2 * longestRest  // that a tenant's failures count for the others
)

// breaker leaves endpoints alone that are in trouble, and keeps the requests to
// one host few.
//
// Trouble is known by endpoint and tenant. By the host, a tenant could stop the
// others, since it can have a component name any path of a host; by the endpoint
// alone, too, since it can have one send what the endpoint stumbles over. Only what
// keeps failing for several tenants is the endpoint's own trouble. A demand for
// fewer requests counts for the tenant's client that it was made to.
type breaker struct {
	mu    sync.Mutex
	lines map[string]*line // by the keys of place
	hosts map[string]*host
}

// breakerKey names what a request has to do with, from all to few.
type breakerKey struct{ endpoint, tenant, client string }

func breakerKeyOf(hostname, path, tenant, client string) breakerKey {
	endpoint := hostname + path // no URL and no tenant holds a line break
	return breakerKey{endpoint, endpoint + "\n" + tenant, endpoint + "\n" + tenant + "\n" + client}
}

func (p breakerKey) keys() []string { return []string{p.endpoint, p.tenant, p.client} }

// line is what is known of a place. The zero line is in order.
type line struct {
	failed  int                  // times in a row
	until   time.Time            // left alone so long; zero when in order
	trying  bool                 // somebody finds out whether it is well again
	failing map[string]time.Time // of an endpoint: the tenants for whom it keeps failing, by their key, and when last
}

// host bounds the requests to one host.
type host struct {
	slots chan struct{}
	users int // that hold or wait
}

func newBreaker() *breaker {
	return &breaker{lines: map[string]*line{}, hosts: map[string]*host{}}
}

// enter waits until a request may go to the host, and reports how it went by
// leave. It returns an *Error while the endpoint rests or shall not be asked by the
// tenant or its client, or ctx's own when that ended.
func (b *breaker) enter(ctx context.Context, hostname, path, tenant, client string) (leave func(*Error), err error) {
	at := breakerKeyOf(hostname, path, tenant, client)
	if err := b.resting(at, false); err != nil {
		return nil, err
	}
	release, err := b.slot(ctx, hostname)
	if err != nil {
		return nil, err
	}
	if err = ctx.Err(); err == nil {
		err = b.resting(at, true)
	}
	if err != nil {
		release()
		return nil, err
	}
	return func(e *Error) {
		defer release()
		b.leave(at, e)
	}, nil
}

// resting tells whether one of the lines is left alone; if not and try is set,
// the caller is the one who tries those that were.
func (b *breaker) resting(at breakerKey, try bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, key := range at.keys() {
		l := b.lines[key]
		switch {
		case l == nil || l.until.IsZero():
		case now.Before(l.until):
			return &Error{Outcome: Transient, RetryAfter: l.until.Sub(now), cause: resting}
		case l.trying:
			return &Error{Outcome: Transient, RetryAfter: trying, cause: resting}
		}
	}
	if try {
		for _, key := range at.keys() {
			if l := b.lines[key]; l != nil {
				l.trying = !l.until.IsZero()
			}
		}
	}
	return nil
}

// slot waits for one of the places of a host.
func (b *breaker) slot(ctx context.Context, hostname string) (release func(), err error) {
	b.mu.Lock()
	h := b.hosts[hostname]
	if h == nil {
		h = &host{slots: make(chan struct{}, perHost)}
		b.hosts[hostname] = h
	}
	h.users++
	b.mu.Unlock()
	gone := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(b.hosts, hostname)
		}
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, fmt.Errorf("waiting for the other requests to the provider: %w", ctx.Err())
	case <-timer.C:
		gone()
		return nil, &Error{Outcome: Transient, Busy: true, RetryAfter: trying, cause: busy}
	}
}

// leave notes how a request went: e is nil when it succeeded.
func (b *breaker) leave(at breakerKey, e *Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case e == nil || e.Outcome != Transient && e.Outcome != Malformed:
		b.well(at.endpoint)
		b.well(at.tenant)
		b.well(at.client)
	case e.Status == http.StatusTooManyRequests, e.limited:
		b.well(at.endpoint)
		b.well(at.tenant)
		b.ill(at.client, e.RetryAfter)
	default:
		if l := b.lines[at.client]; l != nil {
			l.trying = false
		}
		b.ill(at.tenant, e.RetryAfter)
		b.illForAll(at)
	}
}

// well notes that all is in order. A line that rests is not believed to be so:
// what was under way when the rest began says nothing about its end.
func (b *breaker) well(key string) {
	if l := b.lines[key]; l != nil && !time.Now().Before(l.until) {
		delete(b.lines, key)
	}
}

// ill notes a failure, after which the provider wants to be left alone for the
// time it asked for. What fails while the line rests already counts no more.
func (b *breaker) ill(key string, asked time.Duration) {
	l, now := b.line(key), time.Now()
	rest := asked
	if !now.Before(l.until) {
		l.trying = false
		l.failed++
		if l.failed >= maxFailures {
			rest = max(rest, min(firstRest<<min(l.failed-maxFailures, 10), longestRest))
		}
	}
	if until := now.Add(rest); rest > 0 && until.After(l.until) {
		l.until = until
	}
}

// illForAll notes a failure after that of the tenant. The endpoint rests when it
// keeps failing for several tenants, each time twice as long; for how long one of
// them was told to stay away is no matter of the others.
func (b *breaker) illForAll(at breakerKey) {
	now, l := time.Now(), b.lines[at.endpoint]
	if b.lines[at.tenant].failed >= maxFailures {
		l = b.line(at.endpoint)
		if l.failing == nil {
			l.failing = map[string]time.Time{}
		}
		l.failing[at.tenant] = now
	}
	if l == nil || now.Before(l.until) {
		return
	}
	l.trying = false
	maps.DeleteFunc(l.failing, func(_ string, last time.Time) bool { return now.Sub(last) > failingFor })
	if len(l.failing) < manyTenants {
		l.failed, l.until = 0, time.Time{}
		return
	}
	l.until = now.Add(min(firstRest<<min(l.failed, 10), longestRest))
	l.failed++
}

// line returns a line, new where there is none.
func (b *breaker) line(key string) *line {
	l := b.lines[key]
	if l == nil {
		b.sweep()
		l = &line{}
		b.lines[key] = l
	}
	return l
}

// sweep forgets the lines that need not be known any more, once they are many.
func (b *breaker) sweep() {
	if len(b.lines) < maxIdle {
		return
	}
	now := time.Now()
	for key, l := range b.lines {
		if !l.trying && now.After(l.until) {
			delete(b.lines, key)
		}
	}
}
