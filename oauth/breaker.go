package oauth

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

const (
	maxFailures = 5                // in a row, until an endpoint is left alone
	firstRest   = 10 * time.Second // then twice as long each time
	longestRest = 5 * time.Minute  //
	trying      = time.Second      // to come again while another tries
	perHost     = 8                // requests under way to one host
	patience    = 10 * time.Second // for one of these
	maxIdle     = 1000             // lines kept that nobody uses
)

// breaker leaves endpoints alone that are in trouble, and keeps the requests to
// one host few.
//
// Trouble is known by endpoint and not by host: a tenant can have a component
// name any path of a host, and must not be able to stop the others by one that
// fails. For the same reason a demand for fewer requests counts for the client
// it was made to.
type breaker struct {
	mu    sync.Mutex
	lines map[string]*line // by endpoint, or endpoint and client
	hosts map[string]*host
}

// line is what is known of an endpoint. The zero line is in order.
type line struct {
	failed int       // times in a row
	until  time.Time // left alone so long; zero when in order
	trying bool      // somebody finds out whether it is well again
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
// leave. It returns an *Error while the endpoint rests or the client shall rest
// there, or ctx's own when that ended.
func (b *breaker) enter(ctx context.Context, hostname, path, client string) (leave func(*Error), err error) {
	endpoint := hostname + path
	forClient := endpoint + "\n" + client // no URL holds a line break
	if err := b.resting(endpoint, forClient, false); err != nil {
		return nil, err
	}
	release, err := b.slot(ctx, hostname)
	if err != nil {
		return nil, err
	}
	if err = ctx.Err(); err == nil {
		err = b.resting(endpoint, forClient, true)
	}
	if err != nil {
		release()
		return nil, err
	}
	return func(e *Error) {
		defer release()
		b.leave(endpoint, forClient, e)
	}, nil
}

// resting tells whether one of the lines is left alone; if not and try is set,
// the caller is the one who tries those that were.
func (b *breaker) resting(endpoint, client string, try bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, key := range []string{endpoint, client} {
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
		for _, key := range []string{endpoint, client} {
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
		return nil, &Error{Outcome: Transient, RetryAfter: trying, cause: busy}
	}
}

// leave notes how a request went: e is nil when it succeeded.
func (b *breaker) leave(endpoint, client string, e *Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case e == nil || e.Outcome != Transient && e.Outcome != Malformed:
		b.well(endpoint)
		b.well(client)
	case e.Status == http.StatusTooManyRequests:
		b.well(endpoint)
		b.ill(client, e.RetryAfter)
	default:
		if l := b.lines[client]; l != nil {
			l.trying = false
		}
		b.ill(endpoint, e.RetryAfter)
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
	l, now := b.lines[key], time.Now()
	if l == nil {
		b.sweep()
		l = &line{}
		b.lines[key] = l
	}
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
