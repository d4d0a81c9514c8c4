// Package service is the kernel: one route table, and the one way from a call to the log.
// It authorizes a call, validates it, deduplicates commands by their ids, and executes
// them. The routes are implemented by the features, in the packages below it; the edges
// (NATS, HTTP) call the table and contain no rules.
package service

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/permission"
)

// Config is the configuration of a Kernel. Fields are required unless marked as optional.
type Config struct {
	Log       *aggregates.Log
	Views     *projections.Views
	Projector *projections.Projector
	Keyring   *seal.Keyring
	Metrics   prometheus.Registerer // optional
	Logger    *slog.Logger

	// WritesAllowed refuses commands while it returns an error, such as too little
	// free space; optional.
	WritesAllowed func() error
	// Intact returns why the log cannot be trusted, nil while it can: a log that has lost
	// commits cannot prove that something does not exist. Optional.
	Intact func() error
	// Claims makes command ids unique across processes; optional if
	// a single process serves the log.
	Claims Claims
	// Admission shares the capacity of the process among callers; a new one when nil.
	Admission *admission.Admission
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Gate admits or refuses calls: the one place that authorizes them.
type Gate interface {
	// Admit authorizes a call and counts it against the caller's rate limit.
	Admit(ctx context.Context, call *Call, perm permission.Permission, what Kind) error
	// Charge counts an authorized call against the caller's rate limit.
	Charge(ctx context.Context, call *Call, what Kind) error
	// CheckCurrent returns ErrKeyEnded if the caller's key was revoked or has expired since the
	// caller was authenticated. It reads memory alone unless keys have changed.
	CheckCurrent(ctx context.Context, who Principal) error
	// Denied records that a call was denied for want of a permission, or by the scope of its key.
	Denied(ctx context.Context, call *Call, perm permission.Permission)
	// Knows reports whether a tenant is known to exist. It does not block.
	Knows(tenant string) bool
}

// Feature is a package that adds routes to the table.
type Feature interface {
	Routes() []Route
	// Answers builds the responses to commands on the feature's aggregates.
	Answers() []Answer
}

// Kernel serves the route table. It is safe for concurrent use.
type Kernel struct {
	cfg               Config
	gate              Gate
	routes            map[string]*Route
	answers           map[string]Answer              // by category of the aggregate
	completedCommands *lru.Cache[commandKey, uint64] // log sequence of recently completed named commands
	beyondViews       beyondViews
	inFlight          sync.Map // commandKey of each named command in progress, to a channel closed at its end
	settling          settling
	metrics           *metrics
	background        context.Context // parent context of background work; ends at Close
	end               context.CancelFunc
}

// maxCompleted is the number of completed commands in memory, far more than the lag of the
// views.
const maxCompleted = 10_000

// New creates a Kernel without routes, which Open adds. Close ends it.
func New(cfg Config) (*Kernel, error) {
	k := &Kernel{cfg: cfg, metrics: newMetrics(cfg.Metrics), routes: map[string]*Route{}, answers: map[string]Answer{}}
	if k.cfg.Now == nil {
		k.cfg.Now = time.Now
	}
	if k.cfg.Claims == nil {
		k.cfg.Claims = &localClaims{by: map[[sha256.Size]byte]*localClaim{}}
	}
	if k.cfg.Admission == nil {
		k.cfg.Admission = admission.New(runtime.GOMAXPROCS(0), cfg.Metrics)
	}
	k.background, k.end = context.WithCancel(context.Background())
	k.settling.ctx, k.settling.end = context.WithCancel(context.Background())
	var err error
	if k.completedCommands, err = lru.New[commandKey, uint64](maxCompleted); err != nil {
		return nil, fmt.Errorf("cache of commands: %w", err)
	}
	return k, nil
}

// Open builds the table, before the first call.
func (k *Kernel) Open(gate Gate, features ...Feature) {
	k.gate = gate
	for _, f := range features {
		for _, r := range f.Routes() {
			k.routes[r.Name] = &r
			k.metrics.fromZero(&r)
		}
		for _, a := range f.Answers() {
			k.answers[a.category] = a
		}
	}
}

// Route finds a route of the table.
func (k *Kernel) Route(name string) (*Route, bool) {
	r, ok := k.routes[name]
	return r, ok
}

// Claims are the claims of command ids, shared by all processes of the log.
func (k *Kernel) Claims() Claims { return k.cfg.Claims }

// Now is the current time of the service's clock.
func (k *Kernel) Now() time.Time { return k.cfg.Now() }

// Background is the parent context of background work; it ends at Close.
func (k *Kernel) Background() context.Context { return k.background }

// settleFor is how long Close lets attempts settle, so that a repeat in another process does not have
// to wait until their claims expire.
const settleFor = 2 * time.Second

// Close ends the background work, and waits for it.
func (k *Kernel) Close() {
	k.settling.mu.Lock() // nothing starts afterwards
	k.end()
	k.settling.mu.Unlock()
	late := time.AfterFunc(settleFor, func() { k.settling.end() })
	defer late.Stop()
	WaitFor(&k.settling.group)
}

// StopFor is how long the shutdown waits for work in progress.
const StopFor = 5 * time.Second

// System is a call of the service itself.
func System(tenant string, what string) *Call {
	return &Call{
		Tenant: tenant, Principal: Principal{Actor: events.Actor{Kind: "system", ID: what}}, Via: "system",
		CommandID: events.NewID(),
	}
}

// Run executes a command of the service itself in a tenant: in the name of what, with every
// permission, and also in a tenant that is being erased.
func (k *Kernel) Run(ctx context.Context, tenant, what, name string, in any) error {
	route, ok := k.routes[name]
	if !ok || !route.Command {
		return fmt.Errorf("service: %s is not a command", name)
	}
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("service: command %s: %w", name, err)
	}
	if err := k.WritesAllowed(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, MaxCall)
	defer cancel()
	call := System(tenant, what)
	call.Principal.Tenants, call.Principal.Role = []string{AllTenants}, permission.Administrator
	call.Route, call.kernel = name, k
	_, err = k.execute(ctx, call, route, body)
	return err
}

// WaitFor waits up to StopFor for the group.
func WaitFor(group *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(StopFor):
	}
}
