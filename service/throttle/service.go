// Package throttle keeps throttle policies, which limit how often flows use a credential, and
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

// Deps is what a Service is made of.
type Deps struct {
	Kernel *service.Kernel
	Log    *aggregates.Log
	Views  *projections.Views
	Logger *slog.Logger

	// Buckets stores the tokens taken; without it nothing is granted that a policy limits.
	Buckets Buckets
}

// Service answers the routes of throttle policies. Its methods may be called from many
// goroutines.
type Service struct {
	Deps
	taker *Taker
}

// New makes a Service.
func New(deps Deps) (*Service, error) {
	taker, err := NewTaker(deps.Buckets)
	return &Service{deps, taker}, err
}

// Answers are none beside what every command answers.
func (s *Service) Answers() []service.Answer { return nil }

// Routes is what can be asked of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("throttle_policy.define", permission.ThrottlePoliciesEdit, s.define,
			"Define a throttle policy: how many tokens all flows of a credential are granted in any period."),
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

// policy is the newest state of a policy, or ErrThrottlePolicyNotFound.
func (s *Service) policy(ctx context.Context, tenant, id string) (aggregates.ThrottlePolicyState, error) {
	state, err := aggregates.ThrottlePolicy.Fresh(ctx, s.Log, aggregates.ThrottlePolicy.Stream(tenant, id))
	if err == nil && !state.Value.Live {
		err = aggregates.ErrThrottlePolicyNotFound
	}
	return state.Value, err
}
