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
	maxFailures   = 5                // consecutive failures that open the circuit
	minCoolDown   = 10 * time.Second // doubles with each further failure
	maxCoolDown   = 5 * time.Minute
	retryDelay    = time.Second      // Retry-After of a caller that found no free slot, or a half-open circuit with its probe in flight
	slotsPerHost  = 8                // requests in flight to one host
	slotTimeout   = 10 * time.Second // for acquiring a slot
	maxCircuits   = 1000             // beyond it, idle circuits are removed
	minTenants    = 2                // tenants whose requests keep failing, to open the circuit of an endpoint
	failureWindow = 2 * maxCoolDown  // how long a tenant's last failure counts for the endpoint
)

// breaker is a circuit breaker for endpoints, and limits the requests in flight to one host.
//
// Each request passes three circuits: of the endpoint, of the tenant at the endpoint, and of
// the tenant's client there. A circuit by host, or one by endpoint that a single tenant could
// open, would let a tenant block the others: its components choose the path and the content
// of requests. So the endpoint's circuit opens only when requests keep failing for several
// tenants. A rate limit opens only the circuit of the client that hit it.
type breaker struct {
	mu       sync.Mutex
	circuits map[string]*circuit // by breakerKey
	hosts    map[string]*host
}

// breakerKey holds the keys of a request's three circuits, from the widest to the narrowest.
type breakerKey struct{ endpoint, tenant, client string }

func breakerKeyOf(hostname, path, tenant, client string) breakerKey {
	endpoint := hostname + path // a URL or a tenant contains no line break
	return breakerKey{endpoint, endpoint + "\n" + tenant, endpoint + "\n" + tenant + "\n" + client}
}

func (k breakerKey) all() []string { return []string{k.endpoint, k.tenant, k.client} }

// circuit is the state of one circuit. It is closed while openUntil is zero, open until that
// time, and then half-open: one request probes the endpoint. The zero circuit is closed.
type circuit struct {
	failures  int                  // consecutive
	openUntil time.Time            // end of the cool-down
	probing   bool                 // half-open, and the probe is in flight
	failing   map[string]time.Time // of an endpoint: the last failure of each tenant with maxFailures, by tenant key
}

// host limits the requests in flight to one host.
type host struct {
	slots chan struct{}
	users int // that hold a slot or wait for one
}

func newBreaker() *breaker {
	return &breaker{circuits: map[string]*circuit{}, hosts: map[string]*host{}}
}

// acquire waits for a slot of the host; the caller must call release with the request's
// outcome, nil for success. It returns an *Error if one of the circuits is open or no slot
// became free in time, or ctx's own error.
func (b *breaker) acquire(ctx context.Context, hostname, path, tenant, client string) (release func(*Error), err error) {
	key := breakerKeyOf(hostname, path, tenant, client)
	if err := b.checkOpen(key, false); err != nil {
		return nil, err
	}
	releaseSlot, err := b.acquireSlot(ctx, hostname)
	if err != nil {
		return nil, err
	}
	if err = ctx.Err(); err == nil {
		err = b.checkOpen(key, true)
	}
	if err != nil {
		releaseSlot()
		return nil, err
	}
	return func(e *Error) {
		defer releaseSlot()
		b.record(key, e)
	}, nil
}

// checkOpen returns an *Error if one of the circuits is open, or half-open with its probe in
// flight. Otherwise, if probe is set, the caller's request becomes the probe of those that are
// half-open.
func (b *breaker) checkOpen(key breakerKey, probe bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for _, k := range key.all() {
		c := b.circuits[k]
		switch {
		case c == nil || c.openUntil.IsZero():
		case now.Before(c.openUntil):
			return &Error{Outcome: Transient, RetryAfter: c.openUntil.Sub(now), cause: circuitOpen}
		case c.probing:
			return &Error{Outcome: Transient, RetryAfter: retryDelay, cause: circuitOpen}
		}
	}
	if probe {
		for _, k := range key.all() {
			if c := b.circuits[k]; c != nil {
				c.probing = !c.openUntil.IsZero()
			}
		}
	}
	return nil
}

func (b *breaker) acquireSlot(ctx context.Context, hostname string) (release func(), err error) {
	b.mu.Lock()
	h := b.hosts[hostname]
	if h == nil {
		h = &host{slots: make(chan struct{}, slotsPerHost)}
		b.hosts[hostname] = h
	}
	h.users++
	b.mu.Unlock()
	removeUser := func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(b.hosts, hostname)
		}
	}
	timer := time.NewTimer(slotTimeout)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
		return func() { <-h.slots; removeUser() }, nil
	case <-ctx.Done():
		removeUser()
		return nil, fmt.Errorf("waiting for the other requests to the provider: %w", ctx.Err())
	case <-timer.C:
		removeUser()
		return nil, &Error{Outcome: Transient, Busy: true, RetryAfter: retryDelay, cause: busy}
	}
}

// record updates the circuits with the outcome of a request; e is nil if it succeeded.
func (b *breaker) record(key breakerKey, e *Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case e == nil || e.Outcome != Transient && e.Outcome != Malformed:
		b.recordSuccess(key.endpoint)
		b.recordSuccess(key.tenant)
		b.recordSuccess(key.client)
	case e.Status == http.StatusTooManyRequests, e.limited:
		b.recordSuccess(key.endpoint)
		b.recordSuccess(key.tenant)
		b.recordFailure(key.client, e.RetryAfter)
	default:
		if c := b.circuits[key.client]; c != nil {
			c.probing = false
		}
		b.recordFailure(key.tenant, e.RetryAfter)
		b.recordEndpointFailure(key)
	}
}

// recordSuccess closes a circuit unless it is open: the request began before it opened and
// says nothing about the endpoint since.
func (b *breaker) recordSuccess(key string) {
	if c := b.circuits[key]; c != nil && !time.Now().Before(c.openUntil) {
		delete(b.circuits, key)
	}
}

// recordFailure counts a failure, and keeps the circuit open for at least the provider's
// retryAfter. Failures while the circuit is open do not count.
func (b *breaker) recordFailure(key string, retryAfter time.Duration) {
	c, now := b.circuit(key), time.Now()
	coolDown := retryAfter
	if !now.Before(c.openUntil) {
		c.probing = false
		c.failures++
		if c.failures >= maxFailures {
			coolDown = max(coolDown, min(minCoolDown<<min(c.failures-maxFailures, 10), maxCoolDown))
		}
	}
	if until := now.Add(coolDown); coolDown > 0 && until.After(c.openUntil) {
		c.openUntil = until
	}
}

// recordEndpointFailure opens the circuit of the endpoint if requests keep failing for several
// tenants. Call it after recordFailure for the tenant. A Retry-After is ignored, because it was
// sent to one tenant.
func (b *breaker) recordEndpointFailure(key breakerKey) {
	now, c := time.Now(), b.circuits[key.endpoint]
	if b.circuits[key.tenant].failures >= maxFailures {
		c = b.circuit(key.endpoint)
		if c.failing == nil {
			c.failing = map[string]time.Time{}
		}
		c.failing[key.tenant] = now
	}
	if c == nil || now.Before(c.openUntil) {
		return
	}
	c.probing = false
	maps.DeleteFunc(c.failing, func(_ string, last time.Time) bool { return now.Sub(last) > failureWindow })
	if len(c.failing) < minTenants {
		c.failures, c.openUntil = 0, time.Time{}
		return
	}
	c.openUntil = now.Add(min(minCoolDown<<min(c.failures, 10), maxCoolDown))
	c.failures++
}

// circuit returns the circuit with this key, and creates it if there is none.
func (b *breaker) circuit(key string) *circuit {
	c := b.circuits[key]
	if c == nil {
		b.removeIdle()
		c = &circuit{}
		b.circuits[key] = c
	}
	return c
}

// removeIdle bounds memory: beyond maxCircuits, it removes every circuit that is not open.
func (b *breaker) removeIdle() {
	if len(b.circuits) < maxCircuits {
		return
	}
	now := time.Now()
	for key, c := range b.circuits {
		if !c.probing && now.After(c.openUntil) {
			delete(b.circuits, key)
		}
	}
}
