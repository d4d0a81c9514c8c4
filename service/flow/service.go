// Package flow records which flows use which credentials and components, reserves them
// for a flow that is about to start, and reconciles the two sides of a use.
package flow

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel     *service.Kernel
	Access     Access
	Components Components
	Clients    Clients
	Log        *aggregates.Log
	Views      *projections.Views
	Projector  *projections.Projector
	Metrics    prometheus.Registerer // optional
	Logger     *slog.Logger

	// ClocksAgree returns an error unless the clocks of the processes are known to agree.
	// After an error, no reservation is expired; optional.
	ClocksAgree func() error
}

// Access authorizes flow events and changes.
type Access interface {
	Admit(ctx context.Context, call *service.Call, perm permission.Permission, what service.Kind) error
	Authorize(ctx context.Context, call *service.Call, perm permission.Permission) error
}

// Components provides the descriptors of components.
type Components interface {
	Descriptor(ctx context.Context, component string, revision int) (commands.Descriptor, error)
}

// Clients are the OAuth clients and auth clients, which RunFlowReconciler reconciles.
type Clients interface {
	MarkClients(ctx context.Context) error
	ReconcileAuthClients(ctx context.Context) error
}

// Service implements the routes of flows. It is safe for concurrent use.
type Service struct {
	Deps
	settled prometheus.Histogram
}

// New creates a Service.
func New(deps Deps) *Service {
	s := &Service{Deps: deps, settled: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "credstream_flow_settle_seconds", Help: "Time to record a flow event and every resulting use, in seconds.", Buckets: service.Buckets,
	})}
	if deps.Metrics != nil {
		deps.Metrics.MustRegister(s.settled)
	}
	return s
}

// Answers builds the responses to commands on flows. All commits but those that end a reservation are
// the last step of their command.
func (s *Service) Answers() []service.Answer {
	return []service.Answer{service.AnswerOf(aggregates.Flow, func(done *service.Done, before, after aggregates.FlowState) {
		done.Binding, done.Until = after.Binding.ID, after.Binding.Until
		if done.Binding == "" { // it was released
			done.Binding = before.Binding.ID
		}
	}).Last(func(recs []events.Record) bool { return !releases(recs) })}
}
