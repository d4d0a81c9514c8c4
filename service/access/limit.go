package access

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

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Rate is a limit of calls per second; 0 means no limit. Bursts of up to twice the rate
// are allowed. A query that creates a new lease also counts as a command. Flow
// events and queued commands have the same rate as commands, counted separately.
type Rate struct {
	Commands, Queries int
}

// RateOf returns the Rate with this number of commands per second and ten times as many queries,
// because a query costs about a tenth of a command. 0 means no limit.
func RateOf(commands int) Rate { return Rate{Commands: commands, Queries: 10 * commands} }

// Limits are the rate limits of one process; each process counts
// separately. The zero Limits are unlimited.
type Limits struct {
	PerKey    Rate // of one identity
	PerTenant Rate // of one tenant, for all callers together
	WrongKeys int  // invalid keys per minute from one address; 0 means no limit
}

// Rate limit errors. Both include when to retry.
var (
	ErrRateLimited = fault.New(fault.Throttled, "rate_limited", "Too many requests. Slow down and retry.")
	ErrWrongKeys   = fault.New(fault.Throttled, "too_many_wrong_keys",
		"Too many invalid API keys from this address. Wait a minute. Valid keys are still accepted.")
)

// limiter has a token bucket for each recently seen identity and tenant. An evicted bucket
// is full again when it is next used: to exceed a limit this way, a caller needs more valid
// keys than the cache holds.
type limiter struct {
	limits  Limits
	buckets *lru.Cache[bucket, *rate.Limiter]
}

// bucket identifies a token bucket.
type bucket struct {
	of, id string // perTenant or connecting and the tenant's id, or the kind of an identity and its id
	kind   service.Kind
}

// Values of bucket.of, besides the kinds of identities.
const (
	perTenant  = "tenant"
	connecting = "connecting" // connections that a tenant starts, which use memory until they expire
)

// maxConnects is the number of account connections that a tenant may start per second, regardless
// of Limits.
const maxConnects = 20

// maxBuckets allows three buckets for each cached key and tenant.
const maxBuckets = 3 * (maxKeys + maxTenants)

func newLimiter(limits Limits) (*limiter, error) {
	buckets, err := lru.New[bucket, *rate.Limiter](maxBuckets)
	if err != nil {
		return nil, fmt.Errorf("cache of rates: %w", err)
	}
	return &limiter{limits, buckets}, nil
}

// take takes one token, or returns ErrRateLimited with the time until the next
// one.
func (l *limiter) take(b bucket, now time.Time) error {
	bound := l.limits.PerKey
	switch b.of {
	case perTenant:
		bound = l.limits.PerTenant
	case connecting:
		bound = Rate{Commands: maxConnects}
	}
	perSecond := bound.Commands
	if b.kind == service.QueryCall {
		perSecond = bound.Queries
	}
	if perSecond <= 0 {
		return nil
	}
	tokens, ok := l.buckets.Get(b)
	if !ok {
		tokens = rate.NewLimiter(rate.Limit(perSecond), 2*perSecond)
		if earlier, ok, _ := l.buckets.PeekOrAdd(b, tokens); ok {
			tokens = earlier
		}
	}
	if tokens.AllowN(now, 1) {
		return nil
	}
	missing := 1 - tokens.TokensAt(now)
	return ErrRateLimited.WithRetryAfter(time.Duration(missing / float64(perSecond) * float64(time.Second)))
}

// Admit admits a call that is authorized and within the limits. A denied
// call counts against the caller, never against the tenant that it names.
func (s *Service) Admit(ctx context.Context, call *service.Call, perm permission.Permission, what service.Kind) error {
	now := s.Kernel.Now()
	if who := call.Principal.Actor; who.ID != "" {
		if err := s.limiter.take(bucket{who.Kind, who.ID, what}, now); err != nil {
			return err
		}
	}
	if err := s.Authorize(ctx, call, perm); err != nil {
		return err
	}
	return s.limiter.take(bucket{perTenant, call.Tenant, what}, now)
}

// Charge implements service.Gate.
func (s *Service) Charge(_ context.Context, call *service.Call, what service.Kind) error {
	now := s.Kernel.Now()
	if who := call.Principal.Actor; who.ID != "" {
		if err := s.limiter.take(bucket{who.Kind, who.ID, what}, now); err != nil {
			return err
		}
	}
	return s.limiter.take(bucket{perTenant, call.Tenant, what}, now)
}

// AdmitConnect counts an account connection that a tenant starts, or returns ErrRateLimited.
func (s *Service) AdmitConnect(tenant string) error {
	return s.limiter.take(bucket{of: connecting, id: tenant, kind: service.CommandCall}, s.Kernel.Now())
}

// wrongKeys counts the invalid keys of each address. Requests with a valid key are neither
// counted nor refused.
type wrongKeys struct {
	most int // per minute; 0: no limit
	now  func() time.Time

	mu sync.Mutex
	by *simplelru.LRU[netip.Addr, *wrong]
}

// wrong is the number of invalid keys of an address until the end of its minute.
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

// check returns ErrWrongKeys if the address has sent too many invalid keys. Call it before work
// that costs more than a rejection.
func (w *wrongKeys) check(from netip.Addr) error {
	if w.most <= 0 || !from.IsValid() {
		return nil
	}
	now := w.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if seen, ok := w.by.Get(admission.Network(from)); ok && seen.keys >= w.most && now.Before(seen.end) {
		return ErrWrongKeys.WithRetryAfter(seen.end.Sub(now))
	}
	return nil
}

// refuse returns the error for an unauthenticated caller from the address: ErrWrongKeys after too
// many invalid keys within a minute of the first one, else err. A request without a key is not
// counted, but also gets ErrWrongKeys.
func (w *wrongKeys) refuse(from netip.Addr, err error) error {
	if w.most <= 0 || !from.IsValid() || err == nil || fault.Of(err).Kind != fault.Unauthenticated {
		return err
	}
	from, now := admission.Network(from), w.now()
	guess := !errors.Is(err, service.ErrUnauthenticated)
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
		return ErrWrongKeys.WithRetryAfter(seen.end.Sub(now))
	case guess:
		seen.keys++
	}
	return err
}
