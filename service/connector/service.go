// Package connector manages connectors, which fill search indexes, and their secrets.
package connector

import (
	"context"
	"log/slog"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel  *service.Kernel
	Secrets *secrets.Service
	Log     *aggregates.Log
	Views   *projections.Views
	Vault   *vault.Vault
	Logger  *slog.Logger
}

// Service implements the routes of connectors and their secrets. Its methods may be called
// from many goroutines.
type Service struct{ Deps }

// New creates a Service.
func New(deps Deps) *Service { return &Service{deps} }

// The effects of a command, as reported in its response.
const (
	Created events.Status = "created"
	Updated events.Status = "updated"
	Noop    events.Status = "noop" // nothing had to change
	Deleted events.Status = "deleted"
)

// Answers builds the responses to commands on connectors and their secrets.
func (s *Service) Answers() []service.Answer {
	return []service.Answer{
		service.AnswerOf(aggregates.Connector, func(done *service.Done, before, after aggregates.ConnectorState) {
			done.Status = effect(before.Live, after.Live, before.Settings != after.Settings || before.APIKeyID != after.APIKeyID || before.SecretID != after.SecretID)
		}),
		service.AnswerOf(aggregates.ConnectorSecret, func(done *service.Done, before, after aggregates.ConnectorSecretState) {
			done.Version = after.Current().Version
			done.Status = effect(before.Live(), after.Live(), before.Current() != after.Current())
		}),
	}
}

func effect(was, is, changed bool) events.Status {
	switch {
	case !was && is:
		return Created
	case was && !is:
		return Deleted
	case changed:
		return Updated
	}
	return Noop
}

// newest waits until the views reflect the log sequence and everything that any process has
// acknowledged: so a caller reads its own writes without min_seq.
func (s *Service) newest(ctx context.Context, minSeq uint64) error {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return err
	}
	return s.Kernel.AtLeast(ctx, max(end, minSeq))
}
