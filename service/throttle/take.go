package throttle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// Errors of a take.
var (
	// ErrTakeTokens rejects an invalid number of tokens.
	ErrTakeTokens = fault.New(fault.Invalid, "throttle_take_invalid", "tokens must be a whole number from 1 to 1000000000.")
	// ErrTakeTooMany rejects more tokens than a period has.
	ErrTakeTooMany = fault.New(fault.Unprocessable, "throttle_take_too_many",
		"The throttle policy never grants that many tokens. Ask for fewer at a time.")
	// ErrUnavailable is returned while the remaining tokens are unknown: nothing is granted.
	ErrUnavailable = fault.New(fault.Unavailable, "throttle_unavailable",
		"The state of the throttle cannot be read or stored, so no tokens were granted. Try again shortly.")
)

// ErrMoved is returned by Buckets.Store if another process was faster.
var ErrMoved = errors.New("throttle: the bucket was changed concurrently")

// Buckets stores the buckets, shared by all processes. A Store that failed may have stored.
type Buckets interface {
	// Load returns the value under a key and its revision, 0 if there is none.
	Load(ctx context.Context, tenant, credential string) (value []byte, revision uint64, err error)
	// Store replaces the value that has this revision, or returns ErrMoved.
	Store(ctx context.Context, tenant, credential string, value []byte, revision uint64) (uint64, error)
	// Now is the time of a clock that all processes share.
	Now(ctx context.Context) (time.Time, error)
}

// Take requests tokens before a call to a credential's API.
type Take struct {
	Credential string `json:"credential"`
	Tokens     *int64 `json:"tokens,omitzero"` // that the call costs; 1 when absent
	Flow       string `json:"flow,omitzero"`   // id of the requesting flow; the flows of a credential have equal shares
}

// Check validates the request.
func (in Take) Check() error {
	err := service.Required("/credential", in.Credential)
	if in.Tokens != nil && (*in.Tokens < 1 || *in.Tokens > MaxTokens) {
		err = cmp.Or(err, error(ErrTakeTokens.At("/tokens")))
	}
	if in.Flow != "" && events.CheckID(in.Flow) != nil {
		err = cmp.Or(err, error(events.ErrID.At("/flow")))
	}
	return err
}

// Taken is the response to Take.
type Taken struct {
	Granted        bool   `json:"granted"`                  // make the call; when false, take again after retry_after_ms
	RetryAfter     int64  `json:"retry_after_ms,omitzero"`  // milliseconds until the tokens may be free
	Remaining      int64  `json:"remaining,omitzero"`       // tokens that are left now, for all flows of the credential
	ThrottlePolicy string `json:"throttle_policy,omitzero"` // id of the policy that applies; absent when the credential has none: then nothing is counted
}

func (s *Service) take(ctx context.Context, call *service.Call, in Take) (Taken, error) {
	policy, limit, err := s.limitOf(ctx, call.Tenant, in.Credential)
	if err != nil || policy == "" {
		return Taken{Granted: err == nil}, err
	}
	n := int64(1)
	if in.Tokens != nil {
		n = *in.Tokens
	}
	if n > limit.Tokens {
		return Taken{}, ErrTakeTooMany.Withf("The throttle policy %s grants %d tokens in a period, never %d. Ask for fewer at a time.", policy, limit.Tokens, n).At("/tokens")
	}
	if s.Buckets == nil {
		return Taken{}, ErrUnavailable
	}
	taken, err := s.taker.Take(ctx, call.Tenant, in.Credential, limit, in.Flow, n)
	taken.ThrottlePolicy = policy
	return taken, err
}

// limitOf returns the policy of a credential, "" for none, and its limit. Both may be cached: a
// change reaches this process when its projector sees it.
func (s *Service) limitOf(ctx context.Context, tenant, credential string) (policy string, limit Limit, err error) {
	if events.CheckID(credential) != nil {
		return "", limit, aggregates.ErrCredentialNotFound
	}
	stream := aggregates.Credential.Stream(tenant, credential)
	for load, last := aggregates.Credential.Load, false; ; load, last = aggregates.Credential.Fresh, true {
		of, err := load(ctx, s.Log, stream)
		if err != nil {
			return "", limit, err
		}
		if !of.Value.Live() {
			if !last {
				continue
			}
			return "", limit, aggregates.ErrCredentialNotFound
		}
		if policy = of.Value.ThrottlePolicy; policy == "" {
			return "", limit, nil
		}
		p, err := aggregates.ThrottlePolicy.Load(ctx, s.Log, aggregates.ThrottlePolicy.Stream(tenant, policy))
		if err != nil {
			return "", limit, err
		}
		if p.Value.Live {
			return policy, Limit{Tokens: p.Value.Settings.Tokens, Per: p.Value.Settings.Per.Duration()}, nil
		}
		if last { // a policy in use cannot be deleted
			return "", limit, fmt.Errorf("the throttle policy %s of credential %s is not there: %w", policy, credential, ErrUnavailable)
		}
	}
}

type bucketKey struct{ tenant, credential string }

// takeCall is one pending take.
type takeCall struct {
	limit Limit
	flow  string
	n     int64

	done  chan struct{} // closed when taken and err are set
	taken Taken
	err   error
}

// Taker takes tokens from buckets. All calls for one bucket of this process that arrive while
// it is being stored are served together by the next store. Its methods may be called from many
// goroutines.
type Taker struct {
	of Buckets

	mu   sync.Mutex
	open *simplelru.LRU[bucketKey, *bucket]
}

// NewTaker returns a Taker.
func NewTaker(of Buckets) (*Taker, error) {
	open, err := simplelru.NewLRU[bucketKey, *bucket](maxBuckets, nil)
	if err != nil {
		return nil, fmt.Errorf("cache of buckets: %w", err)
	}
	return &Taker{of: of, open: open}, nil
}

// maxBuckets bounds the buckets that are cached.
const maxBuckets = 1 << 14

// bucket is the cached state of a bucket.
type bucket struct {
	waiting  []*takeCall // guarded by Taker.mu
	busy     bool        // guarded by Taker.mu: one goroutine serves the waiting calls
	known    bool        // only that goroutine uses the rest
	stored   Bucket
	revision uint64
}

const (
	takeTime  = 5 * time.Second // for a store and its retries
	takeRaces = 1000            // lost to other processes, before it gives up
)

// Take grants n tokens, at most those of the limit, to a flow, or denies them. It grants
// nothing when the bucket cannot be stored (ErrUnavailable).
func (b *Taker) Take(ctx context.Context, tenant, credential string, limit Limit, flow string, n int64) (Taken, error) {
	key := bucketKey{tenant, credential}
	a := &takeCall{limit: limit, flow: flowID(flow), n: n, done: make(chan struct{})}
	b.mu.Lock()
	own, ok := b.open.Get(key)
	if !ok {
		own = &bucket{}
		b.open.Add(key, own)
	}
	own.waiting = append(own.waiting, a)
	serve := !own.busy
	own.busy = true
	b.mu.Unlock()
	if serve {
		go b.serve(context.WithoutCancel(ctx), key, own)
	}
	select {
	case <-a.done:
		return a.taken, a.err
	case <-ctx.Done():
		return Taken{}, ctx.Err()
	}
}

// serve serves the calls that wait for a bucket until there are none.
func (b *Taker) serve(ctx context.Context, key bucketKey, own *bucket) {
	for {
		b.mu.Lock()
		all := own.waiting
		own.waiting = nil
		if own.busy = len(all) > 0; !own.busy {
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
		err := b.decide(ctx, key, own, all)
		for _, a := range all {
			if err != nil {
				a.taken, a.err = Taken{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
			close(a.done)
		}
	}
}

// decide decides all takes with the stored bucket, and stores the new one.
func (b *Taker) decide(ctx context.Context, key bucketKey, own *bucket, all []*takeCall) error {
	ctx, cancel := context.WithTimeout(ctx, takeTime)
	defer cancel()
	store := b.of
	for range takeRaces {
		now, err := store.Now(ctx)
		if err == nil && !own.known {
			err = own.load(ctx, store, key)
		}
		if err != nil {
			return err
		}
		next := own.stored.clone()
		changed := false
		for _, a := range all {
			granted, wait, free, write := next.take(a.limit, a.flow, a.n, now)
			a.taken = Taken{Granted: granted, Remaining: free, RetryAfter: int64((wait + time.Millisecond - 1) / time.Millisecond)}
			changed = changed || write
		}
		if !changed {
			return nil
		}
		value, err := json.Marshal(next)
		if err != nil {
			return err
		}
		own.known = false
		revision, err := store.Store(ctx, key.tenant, key.credential, value, own.revision)
		switch {
		case err == nil:
			own.stored, own.revision, own.known = next, revision, true
			return nil
		case !errors.Is(err, ErrMoved):
			return err
		}
	}
	return fault.ErrConflict
}

func (own *bucket) load(ctx context.Context, store Buckets, key bucketKey) error {
	value, revision, err := store.Load(ctx, key.tenant, key.credential)
	if err != nil {
		return err
	}
	own.stored = Bucket{}
	if revision != 0 {
		if err := json.Unmarshal(value, &own.stored); err != nil {
			return fmt.Errorf("reading the bucket of %s: %w", key.credential, err)
		}
	}
	own.revision, own.known = revision, true
	return nil
}
