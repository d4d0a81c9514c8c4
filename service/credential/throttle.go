package credential

import (
	"context"
	"errors"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// policyRounds bounds the retries of a command that loses races.
const policyRounds = 10

// AssignThrottlePolicy sets or clears the throttle policy of a credential.
type AssignThrottlePolicy struct {
	ID             string `json:"id"`
	ThrottlePolicy string `json:"throttle_policy,omitzero"` // id of the policy; none when absent
}

func (s *Service) assignThrottlePolicy(ctx context.Context, call *service.Call, in AssignThrottlePolicy) (service.Done, error) {
	return s.withPolicy(ctx, call, in.ID, in.ThrottlePolicy, func(use commands.PolicyUse) (service.Done, error) {
		return s.Secrets.ChangeCredential(ctx, call, commands.UpdateCredential{ID: in.ID, CredentialSettings: commands.CredentialSettings{Policy: &use}})
	})
}

// withPolicy runs change, which commits to a credential, with a recorded use of the policy that
// the commit assigns. It releases a use that the credential did not take up, or no longer has.
// If the outcome of change is unknown, the use stays: the deletion of the policy checks it.
func (s *Service) withPolicy(ctx context.Context, call *service.Call, id, policy string, change func(commands.PolicyUse) (service.Done, error)) (service.Done, error) {
	for range policyRounds {
		before, err := s.Secrets.Live(ctx, call.Tenant, id, 0)
		if err != nil {
			return service.Done{}, err
		}
		use := commands.PolicyUse{Policy: policy}
		if policy != before.ThrottlePolicy {
			if use, err = s.Policies.Use(ctx, call, policy, id); err != nil {
				return service.Done{}, err
			}
		}
		done, err := change(use)
		switch {
		case err == nil:
			after, err := aggregates.Credential.Load(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, id))
			if err != nil {
				return done, nil //nolint:nilerr // a use that is left is found when the policy is deleted
			}
			if after.Value.PolicyUse != use.Use {
				s.Policies.Release(ctx, call, use)
			}
			if after.Value.PolicyUse != before.PolicyUse {
				s.releasePolicy(ctx, call, before)
			}
			return done, nil
		case service.IsRejected(err):
			s.Policies.Release(ctx, call, use)
		}
		if !errors.Is(err, aggregates.ErrPolicyUseStale) {
			return service.Done{}, err
		}
	}
	return service.Done{}, fault.ErrConflict
}

// releasePolicy releases the use of the policy that a credential had.
func (s *Service) releasePolicy(ctx context.Context, call *service.Call, had aggregates.CredentialState) {
	s.Policies.Release(ctx, call, commands.PolicyUse{Policy: had.ThrottlePolicy, Use: had.PolicyUse})
}

// saveWithPolicy is withPolicy for save, which creates a credential.
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
		if !errors.Is(err, aggregates.ErrPolicyUseStale) {
			return done, err
		}
	}
	return service.Done{}, fault.ErrConflict
}
