// Package admission bounds the work that a process does at one time, and shares
// it between tenants and their keys. Every edge asks it before it reads or
// decodes what a caller sent: requests over HTTP and NATS, flow events, queued
// commands, replays.
//
// A tenant may hold as much as the others leave free, and a key as much as is
// then left to its tenant, so there is always room for one who comes new. What
// has no room waits in a line of its own key, and the lines have their turn one
// after the other. What finds its line full, or waits for too long, is refused.
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
	Message = 1        // a message on its way into a queue
	Request = 16       // a command, or a query of one thing
	Scan    = 128      // a query that looks at many: a list, a replay
	perCore = 2 * Scan // units for each core: one tenant alone keeps half of the cores busy with scans
	perUnit = 4 << 10  // bytes of a body that cost as much as a unit

	diskPart = 16 // a call that waits for the disk holds this part of its units
)

// The bounds of what waits.
const (
	maxLine  = 256      // calls of one key that wait, for their turn or for something else
	maxLines = 512      // calls of one tenant that wait
	maxBytes = 64 << 20 // bytes of the bodies of all calls: a tenant's part follows the rule of the units
	maxWait  = 5 * time.Second
	again    = time.Second // after which a refused caller may try again
)

// ErrBusy refuses a call while too many of its key or tenant are under way.
var ErrBusy = fault.New(fault.Throttled, "too_many_requests",
	"Too many requests of this key or tenant are in flight. Wait for some responses, then retry.").WithRetryAfter(again)

// Caller is whose work it is.
type Caller struct {
	Tenant string
	Key    string
}

// Admission admits work. Its methods may be called from many goroutines.
type Admission struct {
	capacity int
	wait     time.Duration

	mu      sync.Mutex
	used    int   // units of the work under way
	bytes   int64 // of the bodies of all calls
	tenants map[string]*tenant
	turns   ring[*tenant] // tenants with calls that wait

	refused *prometheus.CounterVec
}

// tenant is what is known of a tenant with calls under way or waiting.
type tenant struct {
	name string
	share
	bytes int64 // of the bodies of its calls
	keys  map[string]*key
	turns ring[*key] // keys with calls that wait
}

type key struct {
	name string
	share
	line []*Pass
}

// share counts the calls of a tenant or a key.
type share struct {
	used    int // units of the work under way
	waiting int // calls that wait to be admitted
	idle    int // calls that were admitted and wait for something else
	passes  int // calls altogether
}

// New makes an Admission for so many cores. metrics may be nil.
func New(cores int, metrics prometheus.Registerer) *Admission {
	a := &Admission{
		capacity: cores * perCore, wait: maxWait, tenants: map[string]*tenant{},
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_admission_refused_total",
			Help: "Calls refused because too many calls of their key or tenant were in flight: the line was full, or they waited too long.",
		}, []string{"reason"}),
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

// Pass is a call that has its place. Leave ends it.
type Pass struct {
	a        *Admission
	t        *tenant
	k        *key
	cost     int
	held     int // units of the cost that it holds now
	size     int64
	admitted chan struct{} // closed when the call is admitted
	idle     int           // how often it became idle without a resume
	left     bool
}

// Reserve gives a call a place, while its body of a size in bytes is read. It
// returns ErrBusy when the caller has no more places. Leave gives it back.
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
	full := k.waiting+k.idle >= maxLine || t.waiting+t.idle >= maxLines || t.bytes+size > maxBytes-a.bytes
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

// Enter returns when it is the turn of the call. It returns ErrBusy when that
// takes too long, or the error of ctx; the pass is then left.
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

// request admits a call that has a place, or puts it into the line of its key.
func (a *Admission) request(p *Pass) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p.idle = 0
	p.t.idle--
	p.k.idle--
	if p.t.waiting == 0 && a.fits(p.t, p.cost) && a.fitsKey(p) {
		a.take(p)
		close(p.admitted)
		return
	}
	if p.t.waiting == 0 {
		a.turns.add(p.t)
	}
	if p.k.waiting == 0 {
		p.t.turns.add(p.k)
	}
	p.t.waiting++
	p.k.waiting++
	p.k.line = append(p.k.line, p)
}

// unqueue takes the i-th call out of the line of a key.
func (a *Admission) unqueue(k *key, i int) {
	t := k.line[i].t
	k.line = slices.Delete(k.line, i, i+1)
	t.waiting--
	k.waiting--
	if k.waiting == 0 {
		t.turns.remove(k)
	}
	if t.waiting == 0 {
		a.turns.remove(t)
	}
}

// fits reports whether a tenant has room for so many units more. It may have one
// call under way whatever the others hold, so that none starves.
func (a *Admission) fits(t *tenant, cost int) bool {
	return t.used == 0 || t.used+cost <= a.capacity-a.used
}

// fitsKey reports whether the key of a call has room for it in what is left to
// its tenant.
func (a *Admission) fitsKey(p *Pass) bool {
	return p.k.used == 0 || p.k.used+p.cost <= a.capacity-a.used-p.t.used
}

func (a *Admission) take(p *Pass) {
	a.hold(p, p.cost)
}

// hold changes how many units a call holds.
func (a *Admission) hold(p *Pass, units int) {
	more := units - p.held
	p.held = units
	a.used += more
	p.t.used += more
	p.k.used += more
}

// release leaves a call so many units and admits whose turn it is.
func (a *Admission) release(p *Pass, units int) {
	a.hold(p, units)
	for passed := 0; passed < a.turns.len(); passed++ {
		if a.admitNext(a.turns.next()) {
			passed = -1
		}
	}
}

// admitNext admits the call of the tenant whose turn it is. A call for which the
// tenant has no room holds back the others, else small calls would pass it forever.
func (a *Admission) admitNext(t *tenant) bool {
	for range t.turns.len() {
		p := t.turns.next().line[0]
		if !a.fits(t, p.cost) {
			return false
		}
		if a.fitsKey(p) {
			a.unqueue(p.k, 0)
			a.take(p)
			close(p.admitted)
			return true
		}
	}
	return false
}

// Leave ends the call. It may be called again.
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
	if i := slices.Index(p.k.line, p); i >= 0 {
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

// With returns a context for what is done under the pass.
func (p *Pass) With(ctx context.Context) context.Context { return context.WithValue(ctx, passKey{}, p) }

// Idle says that the call of ctx, if it was admitted, waits for something that
// others do, such as another service. It holds no units until resume is called.
func Idle(ctx context.Context) (resume func()) { return idle(ctx, func(*Pass) int { return 0 }) }

// IdleForDisk is Idle for a call that waits until the disk has what it wrote. One fsync
// serves many calls, which then resume all at once, whatever room there is: so each of
// them holds a part of its units, and a tenant has only so many of them.
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
	if p.left { // this outlives the call
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
		p.a.take(p) // room or not: what was begun is completed
	}
}

// ring hands out its elements in turn.
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
