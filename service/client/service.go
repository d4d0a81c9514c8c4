// Package client manages the OAuth clients of components and the auth clients that manage
// several of them.
package client

import (
	"context"
	"log/slog"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel     *service.Kernel
	Secrets    *secrets.Service
	Access     Access
	Components Components
	Flows      Flows
	Log        *aggregates.Log
	Views      *projections.Views
	Vault      *vault.Vault
	Logger     *slog.Logger
}

// Access records denials.
type Access interface {
	Denied(ctx context.Context, call *service.Call, perm permission.Permission)
}

// Components provides the components of clients.
type Components interface {
	Descriptor(ctx context.Context, component string, revision int) (commands.Descriptor, error)
	UsableAt(ctx context.Context, tenant, component, pointer string, expected int) (commands.Descriptor, int, error)
}

// Flows records the uses of a client.
type Flows interface {
	RecordUses(ctx context.Context, call *service.Call, component string) error
}

// Service implements the routes of clients. It is safe for concurrent use.
type Service struct{ Deps }

// New creates a Service.
func New(deps Deps) *Service { return &Service{deps} }

// Answers builds the responses to commands on OAuth clients.
func (s *Service) Answers() []service.Answer {
	return []service.Answer{service.AnswerOf(aggregates.OAuthClient, func(done *service.Done, before, after aggregates.OAuthClientState) {
		if done.ID = after.ID; done.ID == "" {
			done.ID = before.ID
		}
	})}
}

// Remember implements service.Result. The secrets are shown once.
func (r RevealedClient) Remember(*events.CommandCompleted) (service.Done, bool) { return r.Done, true }

// Remember implements service.Result. The secrets are shown once.
func (r RevealedAuthClient) Remember(*events.CommandCompleted) (service.Done, bool) {
	return r.Done, true
}
