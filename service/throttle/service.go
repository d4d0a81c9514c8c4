// Package throttle manages throttle policies, which limit how often flows use a credential, and
// grants the tokens that they allow.
package throttle

import (
	"context"
	"log/slog"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel *service.Kernel
	Log    *aggregates.Log
	Views  *projections.Views
	Logger *slog.Logger

	// Buckets stores the tokens taken; without it, a credential with a policy gets no tokens.
	Buckets Buckets
}

// Service implements the routes of throttle policies. Its methods may be called from many
// goroutines.
type Service struct {
	Deps
	taker *Taker
}

// New creates a Service.
func New(deps Deps) (*Service, error) {
	taker, err := NewTaker(deps.Buckets)
	return &Service{deps, taker}, err
}

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("throttle_policy.define", permission.ThrottlePoliciesEdit, s.define,
			"Define a throttle policy: the maximum number of tokens for all flows of a credential together, in any period."),
		service.Command("throttle_policy.change", permission.ThrottlePoliciesEdit, s.change,
			"Change a throttle policy, for all credentials that it is assigned to."),
		service.Command("throttle_policy.delete", permission.ThrottlePoliciesEdit, s.delete,
			"Delete a throttle policy. Refused while it is assigned to a credential."),
		service.Query("throttle_policy.get", permission.ThrottlePoliciesGet, s.get, "One throttle policy.").Open(),
		service.Query("throttle_policy.list", permission.ThrottlePoliciesGet, s.list, "The throttle policies of the tenant by id, page by page.").Scan().Open(),
		service.AuditedQuery("throttle.take", permission.CredentialsResolve, s.take,
			"Take tokens from the limit of a credential before a call to its API. They are granted, or denied with the time to wait.").OfCredential("credential"),
	}
}

// policy returns the newest state of a policy, or ErrThrottlePolicyNotFound.
func (s *Service) policy(ctx context.Context, tenant, id string) (aggregates.ThrottlePolicyState, error) {
	state, err := aggregates.ThrottlePolicy.Fresh(ctx, s.Log, aggregates.ThrottlePolicy.Stream(tenant, id))
	if err == nil && !state.Value.Live {
		err = aggregates.ErrThrottlePolicyNotFound
	}
	return state.Value, err
}
