package service

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"github.com/credstream/credstream/fault"
)

// Rate bounds calls by number in a second; 0 is no bound. Two seconds' worth may
// come at once. A query that makes a new lease counts as a command, too. Flow
// events and commands for the queue have the rate of commands, counted apart.
type Rate struct {
	Commands, Queries int
}

// RateOf allows so many commands a second and ten times as many queries, which
// cost about a tenth. 0 allows any number of both.
func RateOf(commands int) Rate { return Rate{Commands: commands, Queries: 10 * commands} }

// Limits bounds what callers may ask of one process; each process counts by
// itself. The zero Limits bound nothing.
type Limits struct {
	PerKey    Rate // of one identity
	PerTenant Rate // of one tenant, whoever asks
	WrongKeys int  // from one address in a minute; 0 is no bound
}

// The refusals of who asks too much. Both say when to come again.
var (
	ErrRateLimited = fault.New(fault.Throttled, "rate_limited", "Too many requests. Slow down and retry.")
	ErrWrongKeys   = fault.New(fault.Throttled, "too_many_wrong_keys",
		"Too many invalid API keys from this address. Wait a minute. Valid keys are still accepted.")
)

// limiter holds a bucket of tokens for each identity and tenant that was seen
// lately. Forgetting one fills its bucket, so it takes more callers than are
// remembered at once, all of them with good keys, to get past it.
type limiter struct {
	limits  Limits
	buckets *lru.Cache[bucket, *rate.Limiter]
}

// bucket names what is counted together.
type bucket struct {
	of, id string // perTenant and its id, or the kind of an identity and its id
	kind   kind
}

// kind is what is counted apart.
type kind string

const (
	commandCall kind = "command"
	queryCall   kind = "query"
	message     kind = "message" // to be stored in a queue
)

func kindOf(r *Route) kind {
	if r.Command {
		return commandCall
	}
	return queryCall
}

// Beside the kinds of identities, these are counted together.
const (
	perTenant  = "tenant"
	connecting = "connecting" // a tenant that starts connections, which take room until they expire
)

// maxUnderWay is how many connections of a tenant may be under way in a process.
const maxUnderWay = 1000

// ErrConnectionsLimit refuses to start more connections.
var ErrConnectionsLimit = fault.New(fault.Throttled, "connections_limit",
	"Too many connections of this tenant are pending. Complete some, or wait until they expire.")

// underWay holds a place for each connection under way that the process has started
// or moved on, so that one tenant cannot take all the room there is for them.
type underWay struct {
	mu sync.Mutex
	by map[string]map[string]time.Time // by tenant and connection: until when; no tenant is empty
}

// start takes a place until a time, or refuses with ErrConnectionsLimit and the time
// until there is one.
func (u *underWay) start(tenant, connection string, now, until time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	own, first := u.by[tenant], until
	for id, end := range own {
		if now.After(end) {
			delete(own, id)
		} else if end.Before(first) {
			first = end
		}
	}
	if len(own) >= maxUnderWay {
		return ErrConnectionsLimit.After(max(first.Sub(now), time.Second))
	}
	u.hold(tenant, connection, until)
	return nil
}

// hold is for who holds mu.
func (u *underWay) hold(tenant, connection string, until time.Time) {
	if u.by[tenant] == nil {
		u.by[tenant] = map[string]time.Time{}
	}
	u.by[tenant][connection] = until
}

// moved notes that a connection is under way for longer, or no more.
func (u *underWay) moved(c *connection) {
	if c.Stage == stageDone || c.Stage == stageFailed {
		u.leave(c.Tenant, c.id)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hold(c.Tenant, c.id, c.Expires)
}

// leave gives the place of a connection back.
func (u *underWay) leave(tenant, connection string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if delete(u.by[tenant], connection); len(u.by[tenant]) == 0 {
		delete(u.by, tenant)
	}
}

// maxConnects is how many connections a tenant may start in a second, whatever the limits.
const maxConnects = 20

// maxBuckets is one of each kind for each key and each tenant that is remembered.
const maxBuckets = 3 * (maxKeys + maxTenants)

func newLimiter(limits Limits) (*limiter, error) {
	buckets, err := lru.New[bucket, *rate.Limiter](maxBuckets)
	if err != nil {
		return nil, fmt.Errorf("cache of rates: %w", err)
	}
	return &limiter{limits, buckets}, nil
}

// take takes one token, or refuses with ErrRateLimited and the time until there
// is one.
func (l *limiter) take(b bucket, now time.Time) error {
	bound := l.limits.PerKey
	switch b.of {
	case perTenant:
		bound = l.limits.PerTenant
	case connecting:
		bound = Rate{Commands: maxConnects}
	}
	most := bound.Commands
	if b.kind == queryCall {
		most = bound.Queries
	}
	if most <= 0 {
		return nil
	}
	tokens, ok := l.buckets.Get(b)
	if !ok {
		tokens = rate.NewLimiter(rate.Limit(most), 2*most)
		if earlier, ok, _ := l.buckets.PeekOrAdd(b, tokens); ok {
			tokens = earlier
		}
	}
	if tokens.AllowN(now, 1) {
		return nil
	}
	missing := 1 - tokens.TokensAt(now)
	return ErrRateLimited.After(time.Duration(missing / float64(most) * float64(time.Second)))
}

// admit lets a call through that is authorized and within the limits. What a
// caller is refused counts against itself, never against the tenant it names.
func (s *Service) admit(ctx context.Context, call *Call, perm Permission, what kind) error {
	now := s.now()
	if who := call.Principal.Actor; who.ID != "" {
		if err := s.limiter.take(bucket{who.Kind, who.ID, what}, now); err != nil {
			return err
		}
	}
	if err := s.authorize(ctx, call, perm); err != nil {
		return err
	}
	return s.limiter.take(bucket{perTenant, call.Tenant, what}, now)
}

// admitLease lets a query through that makes a lease. It costs as much as a command,
// since it leaves a fact that is kept for long.
func (s *Service) admitLease(call *Call) error {
	now := s.now()
	if who := call.Principal.Actor; who.ID != "" {
		if err := s.limiter.take(bucket{who.Kind, who.ID, commandCall}, now); err != nil {
			return err
		}
	}
	return s.limiter.take(bucket{perTenant, call.Tenant, commandCall}, now)
}

// admitConnect lets a tenant start one more connection this second.
func (s *Service) admitConnect(tenant string) error {
	return s.limiter.take(bucket{of: connecting, id: tenant, kind: commandCall}, s.now())
}

// wrongKeys counts the wrong keys of each address. Only requests that are
// refused anyway are counted or look here.
type wrongKeys struct {
	most int // 0: none are counted
	now  func() time.Time

	mu sync.Mutex
	by *simplelru.LRU[netip.Addr, *wrong]
}

// wrong is how many keys an address got wrong until the end of its minute.
type wrong struct {
	keys int
	end  time.Time
}

const (
	maxAddresses = 10_000
	wrongTime    = time.Minute
)

func newWrongKeys(most int, now func() time.Time) (*wrongKeys, error) {
	by, err := simplelru.NewLRU[netip.Addr, *wrong](maxAddresses, nil)
	if err != nil {
		return nil, fmt.Errorf("cache of addresses: %w", err)
	}
	return &wrongKeys{most: most, now: now, by: by}, nil
}

// refuse returns the refusal that a caller from the address gets in place of
// err: ErrWrongKeys once it got too many keys wrong in a minute that began with
// the first, else err itself. A caller without a key is none who guesses, but is
// refused alike.
func (w *wrongKeys) refuse(from netip.Addr, err error) error {
	if w.most <= 0 || !from.IsValid() || err == nil || fault.Of(err).Kind != fault.Unauthenticated {
		return err
	}
	from, now := network(from), w.now()
	guess := !errors.Is(err, ErrUnauthenticated)
	w.mu.Lock()
	defer w.mu.Unlock()
	seen, ok := w.by.Get(from)
	if ok && !now.Before(seen.end) {
		w.by.Remove(from)
		ok = false
	}
	switch {
	case !ok && guess:
		w.by.Add(from, &wrong{keys: 1, end: now.Add(wrongTime)})
		return err
	case !ok:
		return err
	case seen.keys >= w.most:
		return ErrWrongKeys.After(seen.end.Sub(now))
	case guess:
		seen.keys++
	}
	return err
}

// network is what one caller can have addresses of: an IPv4 address, or the /64
// of an IPv6 address.
func network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, _ := a.Prefix(64) // never more bits than it has
	return p.Addr()
}
