// Package admission limits the concurrent work of a process, and shares its capacity fairly
// between tenants and their keys. Every edge acquires a pass before it reads or decodes input:
// requests over HTTP and NATS, flow events, queued commands, replays.
//
// A tenant may use no more units than the other tenants leave free, and a key no more than its
// tenant then has left, so a new tenant or key always finds capacity. Calls that do not fit wait
// in a queue for each key; the queues are served round-robin. A call is refused if its queue is
// full or it waits too long.
package admission

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/fault"
)

// The costs of work, in units.
const (
	Message = 1        // a message that is enqueued
	Request = 16       // a command, or a query of one resource
	Scan    = 128      // a query of many: a list, a replay
	perCore = 2 * Scan // units for each core: one tenant alone keeps half of the cores busy with scans
	perUnit = 4 << 10  // bytes of a body that cost one unit

	diskPart = 16 // a call that waits for an fsync holds its units divided by this
)

// The limits of waiting calls.
const (
	maxKeyWaiting    = 256      // calls of one key that wait or are idle
	maxTenantWaiting = 512      // calls of one tenant that wait or are idle
	maxBytes         = 64 << 20 // bytes of the bodies of all calls; a tenant may use what the others leave free
	maxWait          = 5 * time.Second
	retryAfter       = time.Second
)

// ErrBusy refuses a call while too many calls of its key or tenant are in flight.
var ErrBusy = fault.New(fault.Throttled, "too_many_requests",
	"Too many requests of this key or tenant are in flight. Wait for some responses, then retry.").WithRetryAfter(retryAfter)

// Caller identifies whose capacity a call uses.
type Caller struct {
	Tenant string
	Key    string
}

// Admission admits calls. It is safe for concurrent use.
type Admission struct {
	capacity int
	wait     time.Duration

	mu      sync.Mutex
	used    int   // units in use
	bytes   int64 // of the bodies of all calls
	tenants map[string]*tenant
	waiters ring[*tenant] // tenants with waiting calls

	refused *prometheus.CounterVec
}

// tenant is the state of a tenant that has calls.
type tenant struct {
	name string
	share
	bytes   int64 // of the bodies of its calls
	keys    map[string]*key
	waiters ring[*key] // keys with waiting calls
}

type key struct {
	name string
	share
	queue []*Pass
}

// share counts the calls of a tenant or a key.
type share struct {
	used    int // units in use
	waiting int // calls that wait to be admitted
	idle    int // calls that are reading their body, or were admitted and wait for something else
	passes  int // all calls
}

// New returns an Admission with the capacity of this number of cores. metrics may be nil.
func New(cores int, metrics prometheus.Registerer) *Admission {
	a := &Admission{
		capacity: cores * perCore, wait: maxWait, tenants: map[string]*tenant{},
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_admission_refused_total",
			Help: "Calls refused because too many calls of their key or tenant were in flight: the queue was full, or they waited too long.",
		}, []string{"reason"}),
	}
	for _, reason := range []string{"line", "time"} { // from zero on, so that a rate sees the first one
		a.refused.WithLabelValues(reason)
	}
	if metrics != nil {
		metrics.MustRegister(a.refused,
			a.gauge("credstream_admission_used", "Used share of the capacity, from 0 to 1.",
				func() float64 { return float64(a.used) / float64(a.capacity) }),
			a.gauge("credstream_admission_waiting", "Calls that wait to be admitted.", func() float64 {
				n := 0
				for _, t := range a.tenants {
					n += t.waiting
				}
				return float64(n)
			}))
	}
	return a
}

func (a *Admission) gauge(name, help string, read func() float64) prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
		a.mu.Lock()
		defer a.mu.Unlock()
		return read()
	})
}

// Pass is the admission of one call, which Leave ends. It is safe for concurrent use.
type Pass struct {
	a        *Admission
	t        *tenant
	k        *key
	cost     int
	held     int // units that it holds now, at most cost
	size     int64
	admitted chan struct{} // closed when the call is admitted
	idle     int           // calls of Idle that were not resumed
	left     bool
}

// Reserve returns a pass for a call whose body of size bytes is about to be read; it uses no
// units before Enter. It returns ErrBusy if too many calls of the caller wait, or their bodies are
// too large. The caller must call Leave.
func (a *Admission) Reserve(who Caller, cost int, size int64) (*Pass, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.tenants[who.Tenant]
	if t == nil {
		t = &tenant{name: who.Tenant, keys: map[string]*key{}}
		a.tenants[who.Tenant] = t
	}
	k := t.keys[who.Key]
	if k == nil {
		k = &key{name: who.Key}
		t.keys[who.Key] = k
	}
	p := &Pass{a: a, t: t, k: k, cost: min(cost+int(size/perUnit), a.capacity/2), size: size, admitted: make(chan struct{}), idle: 1}
	full := k.waiting+k.idle >= maxKeyWaiting || t.waiting+t.idle >= maxTenantWaiting || t.bytes+size > maxBytes-a.bytes
	t.idle++
	k.idle++
	t.passes++
	k.passes++
	t.bytes += size
	a.bytes += size
	if full {
		a.refused.WithLabelValues("line").Inc()
		a.leave(p)
		return nil, ErrBusy
	}
	return p, nil
}

// Enter waits until the call is admitted. It returns ErrBusy after maxWait, or the error of ctx;
// then it has called Leave.
func (p *Pass) Enter(ctx context.Context) error {
	p.a.request(p)
	select {
	case <-p.admitted:
		return nil
	default:
	}
	timer := time.NewTimer(p.a.wait)
	defer timer.Stop()
	select {
	case <-p.admitted:
		return nil
	case <-ctx.Done():
		p.Leave()
		return ctx.Err()
	case <-timer.C:
		p.a.refused.WithLabelValues("time").Inc()
		p.Leave()
		return ErrBusy
	}
}

// request admits a call, or adds it to the queue of its key.
func (a *Admission) request(p *Pass) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p.idle = 0
	p.t.idle--
	p.k.idle--
	if p.t.waiting == 0 && a.fits(p.t, p.cost) && a.fitsKey(p) {
		a.acquire(p)
		close(p.admitted)
		return
	}
	if p.t.waiting == 0 {
		a.waiters.add(p.t)
	}
	if p.k.waiting == 0 {
		p.t.waiters.add(p.k)
	}
	p.t.waiting++
	p.k.waiting++
	p.k.queue = append(p.k.queue, p)
}

// unqueue removes the i-th call from the queue of a key.
func (a *Admission) unqueue(k *key, i int) {
	t := k.queue[i].t
	k.queue = slices.Delete(k.queue, i, i+1)
	t.waiting--
	k.waiting--
	if k.waiting == 0 {
		t.waiters.remove(k)
	}
	if t.waiting == 0 {
		a.waiters.remove(t)
	}
}

// fits reports whether a tenant may use cost more units. It may always have one call in flight,
// so that no tenant starves.
func (a *Admission) fits(t *tenant, cost int) bool {
	return t.used == 0 || t.used+cost <= a.capacity-a.used
}

// fitsKey reports whether a call fits into the units that its tenant leaves to its key.
func (a *Admission) fitsKey(p *Pass) bool {
	return p.k.used == 0 || p.k.used+p.cost <= a.capacity-a.used-p.t.used
}

func (a *Admission) acquire(p *Pass) {
	a.hold(p, p.cost)
}

// hold sets the number of units that a call holds.
func (a *Admission) hold(p *Pass, units int) {
	more := units - p.held
	p.held = units
	a.used += more
	p.t.used += more
	p.k.used += more
}

// release reduces the units of a call and admits waiting calls, round-robin.
func (a *Admission) release(p *Pass, units int) {
	a.hold(p, units)
	for skipped := 0; skipped < a.waiters.len(); skipped++ {
		if a.admitNext(a.waiters.next()) {
			skipped = -1
		}
	}
}

// admitNext admits the next waiting call of a tenant. A call that does not fit into the tenant's
// share blocks its other calls: small ones would overtake it forever.
func (a *Admission) admitNext(t *tenant) bool {
	for range t.waiters.len() {
		p := t.waiters.next().queue[0]
		if !a.fits(t, p.cost) {
			return false
		}
		if a.fitsKey(p) {
			a.unqueue(p.k, 0)
			a.acquire(p)
			close(p.admitted)
			return true
		}
	}
	return false
}

// Leave ends the call and releases its units. Further calls have no effect.
func (p *Pass) Leave() {
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	p.a.leave(p)
}

func (a *Admission) leave(p *Pass) {
	if p.left {
		return
	}
	p.left = true
	if i := slices.Index(p.k.queue, p); i >= 0 {
		a.unqueue(p.k, i)
	} else {
		if p.idle > 0 {
			p.t.idle--
			p.k.idle--
		}
		a.release(p, 0)
	}
	a.bytes -= p.size
	p.t.bytes -= p.size
	p.k.passes--
	p.t.passes--
	if p.k.passes == 0 {
		delete(p.t.keys, p.k.name)
	}
	if p.t.passes == 0 {
		delete(a.tenants, p.t.name)
	}
}

type passKey struct{}

// With returns a context that carries the pass, for Idle.
func (p *Pass) With(ctx context.Context) context.Context { return context.WithValue(ctx, passKey{}, p) }

// Idle releases the units of the pass in ctx, if any, while the call waits for something else, such
// as another service. resume acquires them again without waiting.
func Idle(ctx context.Context) (resume func()) { return idle(ctx, func(*Pass) int { return 0 }) }

// IdleForDisk is Idle for a call that waits for an fsync. One fsync completes many calls, which
// then resume at once, beyond the capacity. So each keeps a part of its units, which limits their
// number.
func IdleForDisk(ctx context.Context) (resume func()) {
	return idle(ctx, func(p *Pass) int { return p.cost / diskPart })
}

func idle(ctx context.Context, holds func(*Pass) int) (resume func()) {
	p, ok := ctx.Value(passKey{}).(*Pass)
	if !ok {
		return func() {}
	}
	p.a.mu.Lock()
	defer p.a.mu.Unlock()
	if p.left { // work that outlives the call
		return func() {}
	}
	if p.idle++; p.idle == 1 {
		p.t.idle++
		p.k.idle++
		p.a.release(p, holds(p))
	}
	return func() {
		p.a.mu.Lock()
		defer p.a.mu.Unlock()
		if p.idle--; p.idle > 0 || p.left {
			return
		}
		p.t.idle--
		p.k.idle--
		p.a.acquire(p) // even beyond the capacity: an admitted call must complete
	}
}

// ring returns its elements round-robin.
type ring[T comparable] struct {
	all []T
	at  int
}

func (r *ring[T]) len() int { return len(r.all) }

func (r *ring[T]) add(v T) { r.all = append(r.all, v) }

func (r *ring[T]) next() T {
	r.at = (r.at + 1) % len(r.all)
	return r.all[r.at]
}

func (r *ring[T]) remove(v T) {
	for i, w := range r.all {
		if w == v {
			r.all = append(r.all[:i], r.all[i+1:]...)
			if i <= r.at && r.at > 0 {
				r.at--
			}
			return
		}
	}
}
