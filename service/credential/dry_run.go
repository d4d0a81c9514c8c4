package credential

import (
	"context"
	"errors"
	"fmt"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
)

// tryDelete is the dry run of a delete.
func (s *Service) tryDelete(ctx context.Context, call *service.Call, in Delete) (flow.Tried, error) {
	if _, err := s.Secrets.Live(ctx, call.Tenant, in.ID, in.Expected); err != nil {
		return flow.Tried{}, err
	}
	state, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, in.ID))
	if err != nil {
		return flow.Tried{}, err
	}
	i, err := s.Flows.Impact(ctx, call, aggregates.Credential.Category, in.ID)
	if err != nil {
		return flow.Tried{}, err
	}
	if expired, err := s.Flows.ExpireHolders(ctx, call, in.ID, state.Value); err != nil {
		return flow.Tried{}, err
	} else if expired { // as the delete itself would do
		return s.tryDelete(ctx, call, in)
	}
	_, refusal := aggregates.Credential.Decide(state.Value, commands.DeleteCredential{ID: in.ID, Expected: in.Expected})
	switch {
	case errors.Is(refusal, aggregates.ErrCredentialInUse):
		err = i.RefusedBy(s.Flows.InUse(ctx, call, state.Value))
	case refusal != nil:
		err = i.RefusedBy(refusal)
	case i.TotalFlows > 0:
		i.Says = fmt.Sprintf("The credential would be deleted. %s could not start again.", countFlows(i.TotalFlows))
	default:
		i.Says = "The credential would be deleted. No flow uses it."
	}
	return flow.Tried{Done: service.Done{Seq: state.Seq, ID: in.ID}, DryRun: i}, err
}

func countFlows(n int) string {
	if n == 1 {
		return "1 inactive flow that uses it"
	}
	return fmt.Sprintf("%d inactive flows that use it", n)
}

// tryReplaceKeys is the dry run of replacing keys: the dry request is made, and
// nothing is saved.
func (s *Service) tryReplaceKeys(ctx context.Context, call *service.Call, in ReplaceKeys, state aggregates.CredentialState, verified events.Verification, refusal error) (flow.Tried, error) {
	i, err := s.Flows.Impact(ctx, call, aggregates.Credential.Category, in.ID)
	if err != nil {
		return flow.Tried{}, err
	}
	if verified.Status != "" {
		i.Verified = &verified
	}
	switch {
	case refusal != nil:
		err = i.RefusedBy(refusal)
	case i.TotalFlows > 0:
		i.Says = fmt.Sprintf("The keys would become version %d, and the flows that use the credential would get them.", state.Current().Version+1)
	default:
		i.Says = fmt.Sprintf("The keys would become version %d. No flow uses the credential.", state.Current().Version+1)
	}
	return flow.Tried{Done: service.Done{Seq: s.Views.Position(), ID: in.ID}, DryRun: i}, err
}
