package credential

import (
	"context"
	"errors"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// policyRounds bounds the rounds of a command that another one gets ahead of.
const policyRounds = 10

// AssignThrottlePolicy asks for another throttle policy of a credential, or none.
type AssignThrottlePolicy struct {
	ID             string `json:"id"`
	ThrottlePolicy string `json:"throttle_policy,omitzero"` // id of the policy; none when absent
}

func (s *Service) assignThrottlePolicy(ctx context.Context, call *service.Call, in AssignThrottlePolicy) (service.Done, error) {
	for range policyRounds {
		now, err := s.Secrets.Live(ctx, call.Tenant, in.ID, 0)
		if err != nil {
			return service.Done{}, err
		}
		use := commands.PolicyUse{Policy: in.ThrottlePolicy}
		if in.ThrottlePolicy != now.ThrottlePolicy {
			if use, err = s.Policies.Use(ctx, call, in.ThrottlePolicy, in.ID); err != nil {
				return service.Done{}, err
			}
		}
		stream := aggregates.Credential.Stream(call.Tenant, in.ID)
		before, after, err := service.Execute(ctx, s.Kernel, call, aggregates.Credential, call.Tenant,
			commands.Credential(commands.AssignThrottlePolicy{ID: in.ID, Policy: use}))
		s.settleUse(ctx, call, use, after.Value, err)
		switch {
		case errors.Is(err, aggregates.ErrPolicyUseMoved):
			continue
		case err != nil:
			return service.Done{}, err
		case before.PolicyUse != after.Value.PolicyUse:
			s.releasePolicy(ctx, call, before)
		}
		return s.Kernel.Answered(stream, before, after.Value, after.Seq), nil
	}
	return service.Done{}, fault.ErrConflict
}

// settleUse releases a use that came to nothing. One whose command may yet have been stored
// stays: the deletion of the policy finds out.
func (s *Service) settleUse(ctx context.Context, call *service.Call, use commands.PolicyUse, now aggregates.CredentialState, err error) {
	if err == nil && now.PolicyUse != use.Use || err != nil && service.IsRejected(err) {
		s.Policies.Release(ctx, call, use)
	}
}

// releasePolicy ends the use of the policy that a credential had.
func (s *Service) releasePolicy(ctx context.Context, call *service.Call, had aggregates.CredentialState) {
	s.Policies.Release(ctx, call, commands.PolicyUse{Policy: had.ThrottlePolicy, Use: had.PolicyUse})
}

// saveWithPolicy runs save, which creates a credential, with the use of its policy.
func (s *Service) saveWithPolicy(ctx context.Context, call *service.Call, policy, id string, save func(commands.PolicyUse) (service.Done, error)) (service.Done, error) {
	for range policyRounds {
		use, err := s.Policies.Use(ctx, call, policy, id)
		if err != nil {
			return service.Done{}, err
		}
		done, err := save(use)
		if err != nil && service.IsRejected(err) {
			s.Policies.Release(ctx, call, use)
		}
		if !errors.Is(err, aggregates.ErrPolicyUseMoved) {
			return done, err
		}
	}
	return service.Done{}, fault.ErrConflict
}
