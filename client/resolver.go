package client

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/fault"
)

// ErrResolverClosed is returned by a Resolver after Close.
var ErrResolverClosed = fault.New(fault.Precondition, "resolver_closed", "The resolver is closed.")

// Bounds and intervals of a Resolver.
const (
	longestLease      = 15 * time.Minute // the longest that the service grants; also applies when clocks differ
	resolveTimeout    = 40 * time.Second // of one request, above the service's own limit
	pollInterval      = time.Second      // over HTTP, between two queries for changes
	heartbeatInterval = time.Second      // over NATS, between two checks that the server responds
	heartbeatTimeout  = 2 * time.Second  // for its response
	maxSilence        = 4 * time.Second  // without a response, after which cached values may be stale
	resubscribePause  = time.Second
	maxResolved       = 10_000        // cached values
	credentialPrefix  = "credential." // subject prefix of a credential's event
)

// Resolver resolves credentials for a flow engine and caches the values within
// their leases, so that most calls need no request. Conn.NewResolver and
// Client.NewResolver create one. It drops the cached values of a credential as soon as
// the feed reports that it was deleted, has other keys or tokens, or must be
// connected again, and all values while it is disconnected from the feed: then each call
// is a request to the service. Over NATS it learns of a change within
// milliseconds; over HTTP it polls once a second.
//
// It creates its own key pair, in memory. Its methods may be called from
// many goroutines. Close ends it. Besides credentials.resolve, the API key needs the
// permission credentials.get, to follow the feed; without it nothing is cached.
type Resolver struct {
	api        *API
	key        ResolveKey
	background context.Context
	end        context.CancelFunc
	work       sync.WaitGroup

	mu            sync.Mutex
	closed        bool
	feedConnected func() bool // whether the feed is connected; nil: it is not
	cached        map[string]map[ResolveOptions]cachedValues
	size          int // total size of cached
	flights       map[cacheKey]*flight
}

// cacheKey is the key of a cached value.
type cacheKey struct {
	id string
	ResolveOptions
}

type cachedValues struct {
	Resolved
	until time.Time // with a monotonic reading
}

// flight is a request in flight. Its result may be read when done is closed.
type flight struct {
	done      chan struct{}
	connected bool // the feed was connected when the request was sent
	stale     bool // the credential may have changed since
	value     Resolved
	err       error
}

// NewResolver creates a Resolver that follows the feed over NATS.
func (c *Conn) NewResolver() (*Resolver, error) { return newResolver(&c.API, c.followCredentials) }

// NewResolver creates a Resolver that polls for changes over HTTP.
func (c *Client) NewResolver() (*Resolver, error) { return newResolver(&c.API, c.pollCredentials) }

func newResolver(api *API, follow func(context.Context, *Resolver)) (*Resolver, error) {
	key, err := NewResolveKey()
	if err != nil {
		return nil, err
	}
	r := &Resolver{api: api, key: key, cached: map[string]map[ResolveOptions]cachedValues{}, flights: map[cacheKey]*flight{}}
	r.background, r.end = context.WithCancel(context.Background())
	r.work.Go(func() { follow(r.background, r) })
	return r, nil
}

// Close drops the cached values and waits for the requests in flight. The connection
// stays open.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.work.Wait()
	r.unsubscribed()
}

// Resolve returns the values of a credential. Concurrent calls for the same credential
// share one request to the service. Do not use the values after Expires: call Resolve
// again.
func (r *Resolver) Resolve(ctx context.Context, id string, opts ResolveOptions) (Resolved, error) {
	q := cacheKey{id, opts}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return Resolved{}, ErrResolverClosed
	}
	hears := r.feedConnected != nil && r.feedConnected()
	if v, ok := r.cached[id][opts]; ok && hears && time.Now().Before(v.until) {
		r.mu.Unlock()
		return v.Resolved, nil
	}
	f := r.flights[q]
	if f == nil || f.stale {
		f = &flight{done: make(chan struct{}), connected: hears}
		r.flights[q] = f
		r.work.Go(func() { r.fetch(q, f) })
	}
	r.mu.Unlock()
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		return Resolved{}, fmt.Errorf("%w (%w)", fault.ErrTimeout, context.Cause(ctx))
	}
}

// fetch sends the request to the service.
func (r *Resolver) fetch(q cacheKey, f *flight) {
	ctx, cancel := context.WithTimeout(r.background, resolveTimeout)
	defer cancel()
	sentAt := time.Now()
	value, err := r.api.Resolve(ctx, r.key, q.id, q.ResolveOptions)
	r.mu.Lock()
	defer r.mu.Unlock()
	f.value, f.err = value, err
	if r.flights[q] == f {
		delete(r.flights, q)
	}
	if err == nil && f.connected && !f.stale && !r.closed {
		r.cache(q, value, sentAt)
	}
	close(f.done)
}

// cache caches values until shortly before their lease expires.
func (r *Resolver) cache(q cacheKey, v Resolved, sentAt time.Time) {
	left := min(v.Expires.Sub(sentAt), longestLease) * 9 / 10
	if left <= 0 {
		return
	}
	for id := range r.cached { // evict any one
		if r.size < maxResolved {
			break
		}
		r.forget(id)
	}
	if r.cached[q.id] == nil {
		r.cached[q.id] = map[ResolveOptions]cachedValues{}
	}
	if _, exists := r.cached[q.id][q.ResolveOptions]; !exists {
		r.size++
	}
	r.cached[q.id][q.ResolveOptions] = cachedValues{v, sentAt.Add(left)}
}

func (r *Resolver) forget(id string) {
	r.size -= len(r.cached[id])
	delete(r.cached, id)
}

// subscribed means that every change from now on is passed to changed. Earlier values
// are dropped, because a change of them may have been missed.
func (r *Resolver) subscribed(connected func() bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drop()
	r.feedConnected = connected
}

// unsubscribed means that changes are not received.
func (r *Resolver) unsubscribed() { r.subscribed(nil) }

func (r *Resolver) drop() {
	clear(r.cached)
	r.size = 0
	for _, f := range r.flights {
		f.stale = true
	}
}

// changed drops the cached values of the credential of an event.
func (r *Resolver) changed(e Event) {
	id, ok := strings.CutPrefix(e.Subject, credentialPrefix)
	what := strings.TrimPrefix(e.Type, "credstream.")
	if i := strings.LastIndex(what, ".v"); i > 0 {
		what = what[:i]
	}
	if !ok || keepsValues[what] {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.forget(id)
	for q, f := range r.flights {
		if q.id == id {
			f.stale = true
		}
	}
}

// followCredentials passes the events of the feed to the Resolver until ctx ends.
func (c *Conn) followCredentials(ctx context.Context, r *Resolver) {
	for ctx.Err() == nil {
		c.followCredentialsOnce(ctx, r)
		r.unsubscribed()
		pause(ctx, resubscribePause)
	}
}

// followCredentialsOnce subscribes until that fails. The heartbeats detect a silent server
// and a network that drops everything: the server
// responds to each one after everything it has sent before.
func (c *Conn) followCredentialsOnce(ctx context.Context, r *Resolver) {
	nc, err := c.listening(ctx)
	if err != nil {
		return
	}
	var beat heartbeats
	ctx, stop := context.WithCancel(ctx)
	var beating sync.WaitGroup
	defer beating.Wait()
	defer stop()
	beating.Go(func() {
		for ctx.Err() == nil {
			beat.send(ctx, nc)
			pause(ctx, heartbeatInterval)
		}
	})
	catchUp := func() error {
		lives := nc.Stats().Reconnects
		beat.record(time.Now()) // listen has just had a response
		r.subscribed(func() bool { return nc.IsConnected() && nc.Stats().Reconnects == lives && beat.recent() })
		return nil
	}
	take := func(m *nats.Msg) error {
		e, err := readEvent(m)
		if err == nil {
			r.changed(e)
		}
		return err
	}
	// The error is not needed: each call sends a request to the service, which
	// returns the reason when it refuses.
	_ = c.listen(ctx, "credstream.events."+c.tenant+".credential.>", ErrFeedRefused, catchUp, take)
}

// heartbeats records when the server last responded.
type heartbeats struct {
	mu   sync.Mutex
	last time.Time
}

func (b *heartbeats) send(ctx context.Context, nc *nats.Conn) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	sentAt := time.Now()
	if nc.FlushWithContext(ctx) == nil {
		b.record(sentAt)
	}
}

func (b *heartbeats) record(at time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = at
}

func (b *heartbeats) recent() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Since(b.last) < maxSilence
}

// pollCredentials polls for changes until ctx ends, and passes them to the Resolver.
func (c *Client) pollCredentials(ctx context.Context, r *Resolver) {
	var beat heartbeats
	next := uint64(math.MaxInt64) // the first query only reads the end of the log
	following := false
	for ; ctx.Err() == nil; pause(ctx, pollInterval) {
		sentAt := time.Now()
		page, err := c.changes(ctx, next, replayLimit)
		switch {
		case err != nil:
			following, next = false, math.MaxInt64
			r.unsubscribed()
			continue
		case !following:
			following, next = true, page.End+1
			beat.record(sentAt)
			r.subscribed(beat.recent)
			continue
		}
		for _, e := range page.Events {
			r.changed(e)
		}
		if page.Next != 0 { // there are more pages: the changes up to now are not known yet
			next = page.Next
			continue
		}
		next = page.End + 1
		beat.record(sentAt)
	}
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
