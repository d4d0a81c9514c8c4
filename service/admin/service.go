// Package admin is for the operators of an installation: the dead-letter queue, the history
// of a tenant and the read models.
package admin

import (
	"context"
	"log/slog"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
)

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel    *service.Kernel
	Secrets   *secrets.Service
	Log       *aggregates.Log
	Views     *projections.Views
	Projector *projections.Projector
	Keyring   *seal.Keyring
	Logger    *slog.Logger

	// Rewind starts the tenant's audit consumer over at a log sequence; optional.
	Rewind func(ctx context.Context, tenant string, seq uint64) error
	// DeadLetters is the dead-letter queue; optional.
	DeadLetters DeadLetterQueue
	// Live has the latest events for callers that wait for them; optional.
	Live *Live
	// RebuildViews rebuilds the views from the log; optional.
	RebuildViews func(ctx context.Context, progress func(done, end uint64)) error
}

// Service implements the routes of administration. Its methods may be called from many
// goroutines.
type Service struct {
	Deps
	rebuild rebuild
}

// New creates a Service. Close ends it.
func New(deps Deps) *Service { return &Service{Deps: deps} }

// Close waits for a running rebuild, which ends with the kernel's background context.
func (s *Service) Close() { s.rebuild.wait.Wait() }

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Remember implements service.Result.
func (q QueuedChanged) Remember(c *events.CommandCompleted) (service.Done, bool) {
	c.Total, c.Skipped, c.Before, c.Next = q.Done, q.Skipped, q.Before, q.Next
	return service.Done{}, true
}

func recallQueued(_ context.Context, _ *service.Call, _ service.Done, c events.CommandCompleted) (any, error) {
	return QueuedChanged{Done: c.Total, Skipped: c.Skipped, Before: c.Before, Next: c.Next}, nil
}
