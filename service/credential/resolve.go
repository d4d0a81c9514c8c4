package credential

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// The bounds of Config.Lease, and its default.
const (
	MinLease     = time.Minute
	MaxLease     = 15 * time.Minute
	DefaultLease = 10 * time.Minute
)

const (
	resolveLife     = time.Minute // minimum remaining lifetime of a returned access token
	resolveRounds   = 4           // retries while the credential keeps changing
	maxLeases       = 1 << 14     // cached leases
	tenantLeases    = 1 << 12     // cached leases of one tenant
	maxCachedSealed = 8 << 10     // bytes of an encrypted response that is cached
)

// Errors of a resolve.
var (
	// ErrCleartext refuses clear secrets on connections that others could read.
	ErrCleartext = fault.New(fault.Denied, "cleartext_refused",
		"Send secrets over TLS, or over plain HTTP from the same machine.")
	ErrRecipient = fault.New(fault.Invalid, "recipient_invalid",
		"Give either public_key, an X25519 key as the base64url of its 32 bytes or in nkeys form (\"X\" and 55 more characters), or cleartext.")
)

// Resolve requests the values of a credential for a flow. An identical request of the same
// caller gets the same lease while at least a tenth of it is left.
type Resolve struct {
	ID        string `json:"id"`
	Flow      string `json:"flow,omitzero"`       // id of the flow that needs it, for the access log
	Step      string `json:"step,omitzero"`       // id of the step, for the access log
	PublicKey string `json:"public_key,omitzero"` // to which the values are encrypted: X25519, as the base64url of its 32 bytes or in the form of nkeys ("X" and 55 more characters)
	Cleartext bool   `json:"cleartext,omitzero"`  // in place of public_key: return clear values; over TLS, or HTTP on the same machine, never over NATS
}

// Resolved is a resolved credential. It has sealed or keys, as requested.
type Resolved struct {
	Lease          string         `json:"lease"`
	Expires        time.Time      `json:"expires"`                  // end of the lease: seconds, UTC; no later than the access token's expiry
	Version        int            `json:"version"`                  // of the keys
	ThrottlePolicy string         `json:"throttle_policy,omitzero"` // id of the throttle policy that limits its use
	Hosts          []string       `json:"hosts"`                    // the only hosts to which the values may be sent, as the component declares them
	Sealed         string         `json:"sealed,omitzero"`          // unpadded base64url of HPKE (RFC 9180, base mode; DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM): the encapsulated key and the ciphertext of {"keys":{...}}. Its info is credstream/resolved/1, tenant, id, lease, version and expires, joined by line feeds
	Keys           map[string]any `json:"keys,omitzero"`            // the clear values, by field; of an OAuth field the provider's response, without the refresh token
}

// resolveInfo binds an encrypted response to its request. It is the info of HPKE.
func resolveInfo(tenant, id, lease string, version int, expires time.Time) []byte {
	return []byte(strings.Join([]string{
		"credstream/resolved/1", tenant, id, lease, strconv.Itoa(version), expires.UTC().Format(time.RFC3339),
	}, "\n"))
}

const nkeyLength = 56 // of a public key in nkeys form; base64url of 32 bytes has 43

// recipient is the public key for the values; nil for clear text.
func (in Resolve) recipient() ([]byte, error) {
	if in.Cleartext == (in.PublicKey != "") {
		return nil, ErrRecipient
	}
	if in.Cleartext {
		return nil, nil
	}
	key, err := base64.RawURLEncoding.Strict().DecodeString(strings.TrimSuffix(in.PublicKey, "="))
	if len(in.PublicKey) == nkeyLength {
		key, err = nkeys.Decode(nkeys.PrefixByteCurve, []byte(in.PublicKey))
	}
	if err != nil || len(key) != 32 {
		return nil, ErrRecipient.At("/public_key")
	}
	return key, nil
}

func (in Resolve) check() error {
	if err := service.CheckTarget(in.ID, 0); err != nil {
		return err
	}
	if in.Flow != "" && events.CheckID(in.Flow) != nil {
		return events.ErrID.At("/flow")
	}
	if in.Step != "" && events.CheckID(in.Step) != nil {
		return events.ErrID.At("/step")
	}
	return nil
}

// resolveCredential returns the values of a credential. It records the access durably first,
// and then checks that the credential has not changed meanwhile and that the caller still has
// access: once a caller knows that a credential was deleted or has other keys, no later resolve
// returns the old values.
func (s *Service) resolveCredential(ctx context.Context, call *service.Call, in Resolve) (answer Resolved, err error) {
	defer func() { s.leases.countResult(err) }()
	public, err := in.recipient()
	if err == nil {
		err = in.check()
	}
	switch {
	case err != nil:
		return answer, err
	case in.Cleartext && !call.Confidential:
		s.Access.Denied(ctx, call, permission.CredentialsResolve)
		return answer, ErrCleartext.Withf("Clear values are only returned over TLS, or over plain HTTP on the same machine, and never over NATS. Give a public_key to get them encrypted.")
	}
	key := leaseKey{tenant: call.Tenant, actor: call.Principal.Actor, id: in.ID, flow: in.Flow, step: in.Step}
	if public != nil {
		sum := sha256.Sum256(public)
		key.recipient = hex.EncodeToString(sum[:])
	}
	if answer, found, err := s.reuseLease(ctx, call, key); found || err != nil {
		return answer, err
	}
	if err := s.Kernel.Charge(ctx, call); err != nil {
		return answer, err
	}
	answer, err = s.grantLease(ctx, call, key, public)
	if errors.Is(err, aggregates.ErrCredentialNotFound) {
		s.Access.Denied(ctx, call, permission.CredentialsResolve) // a mistake, or a caller who guesses ids
	}
	return answer, err
}

// reuseLease returns a cached lease that is still valid.
func (s *Service) reuseLease(ctx context.Context, call *service.Call, key leaseKey) (answer Resolved, found bool, err error) {
	l, ok := s.leases.cache.get(key)
	if !ok || !l.reusable(s.Kernel.Now()) {
		return answer, false, nil
	}
	state, err := s.recheckGrant(ctx, call, key.id)
	if err != nil {
		return answer, false, err
	}
	if resolvedRevision(state) != l.revision || state.IsOAuth() && !state.Tokens.Token.ValidFor(s.Kernel.Now(), resolveLife) {
		return answer, false, nil
	}
	answer = l.answer
	if key.recipient != "" {
		return answer, true, nil
	}
	keys, _, err := s.Tokens.Values(ctx, key.tenant, key.id, state)
	if err == nil {
		state, err = s.recheckGrant(ctx, call, key.id)
	}
	switch {
	case errors.Is(err, aggregates.ErrCredentialVersionStale), err == nil && resolvedRevision(state) != l.revision:
		return answer, false, nil
	case err != nil:
		return answer, false, err
	}
	answer.Keys = clearKeys(keys)
	return answer, true, nil
}

// resolvedRevision identifies what a response contains: it changes with the values and the throttle policy.
func resolvedRevision(s aggregates.CredentialState) string {
	return s.ValuesTag() + " " + s.ThrottlePolicy
}

// recheckGrant returns the state of a credential from the leader of its stream,
// if the caller may still resolve it. The caller's key may have been revoked since
// the call was authorized.
func (s *Service) recheckGrant(ctx context.Context, call *service.Call, id string) (aggregates.CredentialState, error) {
	if who := call.Principal.Actor; who.Kind == "key" {
		p, err := s.Access.FreshPrincipal(ctx, who.ID)
		switch {
		case err != nil:
			return aggregates.CredentialState{}, err
		case p.Expired(s.Kernel.Now()):
			return aggregates.CredentialState{}, service.ErrKeyUnknown
		}
	}
	state, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, id))
	return state.Value, err
}

// grantLease creates a new lease.
func (s *Service) grantLease(ctx context.Context, call *service.Call, key leaseKey, public []byte) (Resolved, error) {
	for range resolveRounds {
		state, err := s.Tokens.TokenGoodFor(ctx, call, key.id, resolveLife)
		if err != nil {
			return Resolved{}, err
		}
		keys, tokenEnds, err := s.Tokens.Values(ctx, key.tenant, key.id, state.Value)
		if errors.Is(err, aggregates.ErrCredentialVersionStale) {
			continue
		}
		if err != nil {
			return Resolved{}, err
		}
		now := s.Kernel.Now().UTC().Truncate(time.Microsecond)
		fact := AccessFact{
			Lease: events.NewID(), Credential: key.id, Version: state.Value.Current().Version, Grant: grantOf(state.Value),
			Actor: key.actor, Flow: key.flow, Step: key.step, Via: call.Via, Cleartext: public == nil, Recipient: key.recipient,
			Time: now, Expires: s.leaseEnd(now, tokenEnds), Kind: AccessGiven,
		}
		answer := Resolved{
			Lease: fact.Lease, Expires: fact.Expires, Version: fact.Version, ThrottlePolicy: state.Value.ThrottlePolicy, Hosts: append([]string{}, state.Value.Current().Hosts...),
		}
		if public != nil {
			text := append(append([]byte(`{"keys":`), keys.Marshal().Reveal()...), '}')
			sealed, err := seal.To(public, resolveInfo(key.tenant, key.id, answer.Lease, answer.Version, answer.Expires), seal.NewSecret(text))
			if err != nil { // the key is an invalid point
				return Resolved{}, ErrRecipient.At("/public_key")
			}
			answer.Sealed = base64.RawURLEncoding.EncodeToString(sealed)
		}
		confirmed, err := s.recordAndConfirm(ctx, call, fact, resolvedRevision(state.Value))
		if err != nil {
			return Resolved{}, err
		}
		if confirmed {
			s.leases.add(key, &lease{revision: resolvedRevision(state.Value), granted: now, answer: answer})
			if public == nil {
				answer.Keys = clearKeys(keys)
			}
			return answer, nil
		}
	}
	return Resolved{}, fault.ErrConflict
}

// recordAndConfirm records the access, and then reports whether the credential still has the
// revision. If it has not, or that is unknown, it records the access as withdrawn.
func (s *Service) recordAndConfirm(ctx context.Context, call *service.Call, fact AccessFact, revision string) (bool, error) {
	if s.AccessLog == nil {
		return false, ErrAccessLog
	}
	if err := s.AccessLog.Append(ctx, call.Tenant, fact); err != nil {
		return false, fmt.Errorf("%w: credential %s: %w", ErrAccessLog, fact.Credential, err)
	}
	state, err := s.recheckGrant(ctx, call, fact.Credential)
	if err == nil && resolvedRevision(state) == revision {
		return true, nil
	}
	s.leases.results.WithLabelValues("withdrawn").Inc()
	fact.Kind, fact.Time = AccessWithdrawn, s.Kernel.Now().UTC().Truncate(time.Microsecond)
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	if err := s.AccessLog.Append(last, call.Tenant, fact); err != nil { // then the log shows an access that did not happen
		s.Logger.WarnContext(ctx, "failed to record withdrawn lease",
			"tenant", call.Tenant, "credential", fact.Credential, "lease", fact.Lease, "err", err)
	}
	return false, err
}

const withdrawTime = 5 * time.Second

// leaseEnd is the end of a lease that begins now, in whole seconds.
func (s *Service) leaseEnd(now, tokenEnds time.Time) time.Time {
	end := now.Add(s.Lease)
	if !tokenEnds.IsZero() && tokenEnds.Before(end) {
		end = tokenEnds
	}
	return end.UTC().Truncate(time.Second)
}

// clearKeys are the values of a response in clear text.
func clearKeys(keys seal.Fields) map[string]any {
	shown := map[string]any{}
	for _, name := range keys.Names() {
		if v, ok := keys.Get(name); ok {
			shown[name] = jsontext.Value(v.Reveal())
		}
	}
	return shown
}

// leases caches the leases, so that a repeated request needs no new entry in the access log.
// It holds no clear text: of a lease with clear values it caches everything but the values,
// and reads those from the vault each time. That costs a read, but keeps the
// values of all used credentials out of a memory dump.
type leases struct {
	results *prometheus.CounterVec
	cache   *leaseCache
	now     func() time.Time

	mu    sync.Mutex
	ends  map[int64]int // leases granted by this process, by the second in which they expire
	swept int64         // second of the last sweep
}

// leaseKey identifies a lease: the caller, the credential and the purpose.
type leaseKey struct {
	tenant         string
	actor          events.Actor
	id, flow, step string
	recipient      string // SHA-256 of the public key in hex; "" for clear text
}

// lease is a granted lease. It is immutable.
type lease struct {
	revision string // of the credential
	granted  time.Time
	answer   Resolved // without clear values
}

// leaseCache are the most recently used leases, in total and per tenant: a tenant
// with many requests evicts its own leases before those of others.
type leaseCache struct {
	ofTenant int // maximum per tenant

	mu      sync.Mutex
	all     *simplelru.LRU[leaseKey, *lease]
	tenants map[string]*simplelru.LRU[leaseKey, struct{}] // the keys of all, by tenant; never empty
}

func newLeaseCache(size, ofTenant int) (cache *leaseCache, err error) {
	cache = &leaseCache{ofTenant: ofTenant, tenants: map[string]*simplelru.LRU[leaseKey, struct{}]{}}
	cache.all, err = simplelru.NewLRU(size, func(key leaseKey, _ *lease) {
		own := cache.tenants[key.tenant]
		if own.Remove(key); own.Len() == 0 {
			delete(cache.tenants, key.tenant)
		}
	})
	return cache, err
}

func (h *leaseCache) get(key leaseKey) (l *lease, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if l, ok = h.all.Get(key); ok {
		h.tenants[key.tenant].Get(key)
	}
	return l, ok
}

func (h *leaseCache) add(key leaseKey, l *lease) {
	h.mu.Lock()
	defer h.mu.Unlock()
	own := h.tenants[key.tenant]
	if own == nil {
		own, _ = simplelru.NewLRU[leaseKey, struct{}](h.ofTenant+1, nil) // the size is valid
		h.tenants[key.tenant] = own
	}
	own.Add(key, struct{}{})
	h.all.Add(key, l)
	if own.Len() > h.ofTenant {
		oldest, _, _ := own.GetOldest()
		h.all.Remove(oldest)
	}
}

// reusable reports whether at least a tenth of the lease is left. A lease that was granted in
// the future is not: the clock was ahead.
func (l *lease) reusable(now time.Time) bool {
	left, whole := l.answer.Expires.Sub(now), l.answer.Expires.Sub(l.granted)
	return 10*left >= whole && left <= whole
}

func newLeases(reg prometheus.Registerer, now func() time.Time) (*leases, error) {
	cache, err := newLeaseCache(maxLeases, tenantLeases)
	if err != nil {
		return nil, fmt.Errorf("cache of leases: %w", err)
	}
	l := &leases{
		cache: cache, now: now, ends: map[int64]int{},
		results: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_resolves_total",
			Help: "Requests for the values of a credential: answered (given), refused, unavailable or failed; new " +
				"leases (leased) and leases withdrawn before the values left (withdrawn).",
		}, []string{"result"}),
	}
	service.FromZero(l.results, "given", "refused", "unavailable", "failed", "leased", "withdrawn")
	if reg != nil {
		reg.MustRegister(l.results, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_leases_outstanding", Help: "Leases granted by this process that have not expired.",
		}, func() float64 { return float64(l.outstanding()) }))
	}
	return l, nil
}

// countResult counts a response by its result.
func (l *leases) countResult(err error) {
	result := "given"
	if err != nil {
		switch fault.Of(err).Kind {
		case fault.Unavailable:
			result = "unavailable"
		case fault.Internal:
			result = "failed"
		default:
			result = "refused"
		}
	}
	l.results.WithLabelValues(result).Inc()
}

func (l *leases) add(key leaseKey, granted *lease) {
	l.results.WithLabelValues("leased").Inc()
	if len(granted.answer.Sealed) <= maxCachedSealed {
		l.cache.add(key, granted)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep()
	l.ends[granted.answer.Expires.Unix()]++
}

// outstanding is the number of leases that have not expired.
func (l *leases) outstanding() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sweep()
	for _, count := range l.ends {
		n += count
	}
	return n
}

// sweep removes the expired leases. ends has no more entries than the
// longest lease has seconds.
func (l *leases) sweep() {
	now := l.now().Unix()
	if now == l.swept {
		return
	}
	l.swept = now
	for second := range l.ends {
		if second <= now {
			delete(l.ends, second)
		}
	}
}
