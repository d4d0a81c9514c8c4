// Package component manages the components and their descriptors, which define
// the keys of a credential and how they are verified.
package component

import (
	"context"
	"fmt"
	"log/slog"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/secrets"
)

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel  *service.Kernel
	Secrets *secrets.Service
	Log     *aggregates.Log
	Views   *projections.Views
	Logger  *slog.Logger
	Flows   Flows
	Clients Clients
}

// Flows provides the uses of a component.
type Flows interface {
	Impact(ctx context.Context, call *service.Call, kind, id string) (*flow.Impact, error)
}

// Clients are the OAuth clients of components.
type Clients interface {
	// MarkClients marks the OAuth clients of deleted components unusable.
	MarkClients(ctx context.Context) error
}

// Service implements the routes of components. Its methods may be called from many
// goroutines.
type Service struct {
	Deps
	descriptors *lru.Cache[descriptorKey, commands.Descriptor]
	wants       *lru.Cache[descriptorKey, bool] // whether the descriptor wants an OAuth client
}

// The bounds of the caches.
const (
	maxDescriptors = 256
	maxWants       = 1 << 16
)

// New creates a Service.
func New(deps Deps) (*Service, error) {
	s := &Service{Deps: deps}
	var err error
	if s.descriptors, err = lru.New[descriptorKey, commands.Descriptor](maxDescriptors); err != nil {
		return nil, fmt.Errorf("cache of descriptors: %w", err)
	}
	if s.wants, err = lru.New[descriptorKey, bool](maxWants); err != nil {
		return nil, fmt.Errorf("cache of wanted clients: %w", err)
	}
	return s, nil
}

// Answers builds the responses to commands on components.
func (s *Service) Answers() []service.Answer {
	return []service.Answer{service.AnswerOf(aggregates.Component, func(done *service.Done, _, after aggregates.ComponentState) {
		done.Revision = after.Revision
	})}
}
