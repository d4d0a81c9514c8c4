// Package service is the application: it authorizes, verifies, seals, executes
// commands and answers queries. The edges (NATS, HTTP) call its one route table
// and own no rules.
package service

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// Config is what a Service is made of. Every field without "optional" is needed.
type Config struct {
	Log       *aggregates.Log
	Views     *projections.Views
	Projector *projections.Projector
	Vault     *vault.Vault
	Keyring   *seal.Keyring
	Verify    *verify.Client
	Metrics   prometheus.Registerer
	Logger    *slog.Logger

	// WritesAllowed refuses commands while it returns an error, such as too little
	// free space; optional.
	WritesAllowed func() error
	// Intact returns why the log cannot be believed, nil while it can: one that has lost
	// commits cannot say that something is not there. Optional.
	Intact func() error
	// CheckStored proves, before anything is collected, that the log is whole; nil:
	// nothing to prove.
	CheckStored func(context.Context) error
	// KeyRevoked is told the id of a key when it was revoked, to end its
	// connections; optional.
	KeyRevoked func(id string)
	// Rewind starts the tenant's audit consumer over at a log sequence; optional.
	Rewind func(ctx context.Context, tenant string, seq uint64) error
	// Poison holds the messages that failed for good; optional.
	Poison PoisonQueue
	// Claims keeps a command id to one command between processes; optional where
	// one process alone serves the log.
	Claims Claims
	// FollowedUp keeps how far RunFollowUps has come; needed to run it.
	FollowedUp Checkpoint
	// RebuildViews builds the views anew from the log; optional.
	RebuildViews func(ctx context.Context, progress func(done, end uint64)) error
	// LastUse remembers when keys were used last; optional.
	LastUse LastUse
	// Tokens checks the tokens of an OpenID Connect issuer; without it none is taken.
	Tokens *Tokens
	// OAuth talks to authorization servers.
	OAuth *oauth.Exchanger
	// Holder names this process among those that renew tokens; a random name when "".
	Holder string
	// Alone says that no other process serves the log while this one lives.
	Alone bool
	// RefreshPatience is how long a renewal that another process has begun may stay
	// without progress before this one takes it over; 30 s when 0.
	RefreshPatience time.Duration
	// AccessLog records who is given which credential; without it nobody is given any.
	AccessLog AccessLog
	// Lease is for how long a flow engine may keep what it was given; DefaultLease when 0.
	Lease time.Duration
	// Connections keeps the connections to providers under way; without it none can
	// be made.
	Connections Connections
	// PublicURL is where browsers reach the service, as PublicURL checks it; without
	// it no account can be connected.
	PublicURL string
	// ReturnTo are the origins that a browser may be sent back to when an account was
	// connected, as ReturnOrigin checks them; optional.
	ReturnTo []string
	// RenewalStep is called between the steps of a renewal ("started", "answered",
	// "stored") and when one waits for that of another process ("waiting"), so that a
	// test can stop it there; optional.
	RenewalStep func(step string)
	// ClocksAgree returns why the clocks of the processes are not known to agree: then no
	// reservation is ended because its time is over; optional.
	ClocksAgree func() error
	// Limits bounds what callers may ask; none when zero.
	Limits Limits
	// Admission shares the work of the process between callers; one of its own when nil.
	Admission *admission.Admission
	// Now is the clock, with a monotonic reading; time.Now when nil.
	Now func() time.Time
}

// Service answers the route table. Its methods may be called from many goroutines.
type Service struct {
	cfg               Config
	now               func() time.Time
	keys              *lru.Cache[[sha256.Size]byte, knownKey]
	keyIDs            *lru.Cache[string, knownKey]
	descriptors       *lru.Cache[descriptorKey, commands.Descriptor]
	wants             *lru.Cache[descriptorKey, bool] // whether the descriptor wants an OAuth client
	pageEnds          *lru.Cache[pageEnd, int]        // version of the keys where a page of a history ended
	tenants           *lru.Cache[string, struct{}]
	completedCommands *lru.Cache[commandKey, uint64] // log sequence of the named commands completed lately
	beyondViews       beyondViews
	inFlight          sync.Map // commandKey of each named command under way, to a channel closed at its end
	routes            map[string]*Route
	metrics           *metrics
	denials           *denials
	limiter           *limiter
	underWay          underWay
	wrongKeys         *wrongKeys
	rebuild           rebuild
	renewals          renewals
	redeemings        redeemings
	revocations       revocations
	followUps         *followUps
	leases            *leases
	settling          settling
	secretsLeft       atomic.Bool     // the next round of the collector has to look at all secrets
	life              context.Context // ends at Close; what outlives a request hangs on it
	end               context.CancelFunc
}

// The bounds of what is kept in memory.
const (
	maxKeys        = 10_000
	maxDescriptors = 256
	maxWants       = 1 << 16
	maxPageEnds    = 1024
	maxTenants     = 10_000
	maxCompleted   = 10_000 // far more than the views are ever behind
)

// New makes a Service. Close ends it.
func New(cfg Config) (*Service, error) {
	s := &Service{cfg: cfg, now: cfg.Now, metrics: newMetrics(cfg.Metrics), denials: newDenials(cfg.Metrics), routes: map[string]*Route{}}
	if s.now == nil {
		s.now = time.Now
	}
	if err := s.checkConnect(); err != nil {
		return nil, err
	}
	if s.cfg.RefreshPatience == 0 {
		s.cfg.RefreshPatience = defaultPatience
	}
	if s.cfg.Holder == "" {
		s.cfg.Holder = events.NewID()
	}
	if s.cfg.Claims == nil {
		s.cfg.Claims = &localClaims{by: map[[sha256.Size]byte]*localClaim{}}
	}
	s.revocations.jobs = map[string][]*revocation{}
	s.underWay.by = map[string]map[string]time.Time{}
	s.renewals.by = map[credentialKey]*renewal{}
	s.redeemings = redeemings{mine: map[string]struct{}{}, met: map[string]meeting{}}
	s.life, s.end = context.WithCancel(context.Background())
	var err error
	if s.keys, err = lru.New[[sha256.Size]byte, knownKey](maxKeys); err != nil {
		return nil, fmt.Errorf("cache of keys: %w", err)
	}
	if s.keyIDs, err = lru.New[string, knownKey](maxKeys); err != nil {
		return nil, fmt.Errorf("cache of keys: %w", err)
	}
	if s.descriptors, err = lru.New[descriptorKey, commands.Descriptor](maxDescriptors); err != nil {
		return nil, fmt.Errorf("cache of descriptors: %w", err)
	}
	if s.pageEnds, err = lru.New[pageEnd, int](maxPageEnds); err != nil {
		return nil, fmt.Errorf("cache of pages: %w", err)
	}
	if s.wants, err = lru.New[descriptorKey, bool](maxWants); err != nil {
		return nil, fmt.Errorf("cache of wanted clients: %w", err)
	}
	if s.completedCommands, err = lru.New[commandKey, uint64](maxCompleted); err != nil {
		return nil, fmt.Errorf("cache of commands: %w", err)
	}
	if s.followUps, err = newFollowUps(); err != nil {
		return nil, err
	}
	if s.tenants, err = lru.New[string, struct{}](maxTenants); err != nil {
		return nil, fmt.Errorf("cache of tenants: %w", err)
	}
	if s.cfg.Admission == nil {
		s.cfg.Admission = admission.New(runtime.GOMAXPROCS(0), cfg.Metrics)
	}
	if s.cfg.Lease == 0 {
		s.cfg.Lease = DefaultLease
	}
	if s.leases, err = newLeases(cfg.Metrics, s.now); err != nil {
		return nil, err
	}
	if s.limiter, err = newLimiter(cfg.Limits); err != nil {
		return nil, err
	}
	if s.wrongKeys, err = newWrongKeys(cfg.Limits.WrongKeys, s.now); err != nil {
		return nil, err
	}
	for _, r := range Routes() {
		s.routes[r.Name] = &r
	}
	return s, nil
}

// Close ends what outlives a request, and waits for it.
func (s *Service) Close() {
	s.settling.mu.Lock() // none begins afterwards
	s.end()
	s.settling.mu.Unlock()
	s.rebuild.wait.Wait()
	s.renewals.finish()
	s.revocations.finish()
	waitFor(&s.settling.group)
}

// system is the actor of what the service does on its own account.
func system(tenant string, what string) *Call {
	return &Call{
		Tenant: tenant, Principal: Principal{Actor: events.Actor{Kind: "system", ID: what}}, Via: "system",
		CommandID: events.NewID(),
	}
}
