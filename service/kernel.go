// Package service is the kernel: one route table, and the one way from a call to the log.
// It authorizes a call, checks its form, remembers commands by their ids, and executes
// them. What the routes do is for the features, in the packages below it; the edges
// (NATS, HTTP) call the table and own no rules.
package service

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/permission"
)

// Config is what a Kernel is made of. Every field without "optional" is needed.
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
	// Intact returns why the log cannot be believed, nil while it can: one that has lost
	// commits cannot say that something is not there. Optional.
	Intact func() error
	// Claims keeps a command id to one command between processes; optional where
	// one process alone serves the log.
	Claims Claims
	// Admission shares the work of the process between callers; one of its own when nil.
	Admission *admission.Admission
	// Now is the clock; time.Now when nil.
	Now func() time.Time
}

// Gate lets calls through or refuses them: the one place that decides who may do what.
type Gate interface {
	// Admit authorizes a call and takes it from the caller's rate.
	Admit(ctx context.Context, call *Call, perm permission.Permission, what Kind) error
	// Charge takes a call that is authorized already from the caller's rate.
	Charge(ctx context.Context, call *Call, what Kind) error
	// Knows reports whether a tenant is known to exist. It does not wait.
	Knows(tenant string) bool
}

// Feature is what a package of the service adds to the table.
type Feature interface {
	Routes() []Route
	// Answers says how the commits to the feature's aggregates are answered.
	Answers() []Answer
}

// Kernel answers the route table. Its methods may be called from many goroutines.
type Kernel struct {
	cfg               Config
	gate              Gate
	routes            map[string]*Route
	answers           map[string]Answer              // by category of the aggregate
	completedCommands *lru.Cache[commandKey, uint64] // log sequence of the named commands completed lately
	beyondViews       beyondViews
	inFlight          sync.Map // commandKey of each named command under way, to a channel closed at its end
	settling          settling
	metrics           *metrics
	background        context.Context // ends at Close; what outlives a request hangs on it
	end               context.CancelFunc
}

// maxCompleted is the number of completed commands in memory: far more than the views
// are ever behind.
const maxCompleted = 10_000

// New makes a Kernel without routes: Open gives it those. Close ends it.
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
	var err error
	if k.completedCommands, err = lru.New[commandKey, uint64](maxCompleted); err != nil {
		return nil, fmt.Errorf("cache of commands: %w", err)
	}
	return k, nil
}

// Open makes the table, before the first call.
func (k *Kernel) Open(gate Gate, features ...Feature) {
	k.gate = gate
	for _, f := range features {
		for _, r := range f.Routes() {
			k.routes[r.Name] = &r
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

// Claims are the attempts at commands under way, shared by every process of the log.
func (k *Kernel) Claims() Claims { return k.cfg.Claims }

// Now is the time by the service's clock.
func (k *Kernel) Now() time.Time { return k.cfg.Now() }

// Background ends at Close: what outlives a request hangs on it.
func (k *Kernel) Background() context.Context { return k.background }

// Close ends what outlives a request, and waits for it.
func (k *Kernel) Close() {
	k.settling.mu.Lock() // none begins afterwards
	k.end()
	k.settling.mu.Unlock()
	WaitFor(&k.settling.group)
}

// StopFor is how long the end of the process waits for what is under way.
const StopFor = 5 * time.Second

// System is the actor of what the service does on its own account.
func System(tenant string, what string) *Call {
	return &Call{
		Tenant: tenant, Principal: Principal{Actor: events.Actor{Kind: "system", ID: what}}, Via: "system",
		CommandID: events.NewID(),
	}
}

// WaitFor waits a while for what is under way at the end.
func WaitFor(group *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(StopFor):
	}
}
