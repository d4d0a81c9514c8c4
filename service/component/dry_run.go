package component

import (
	"context"
	"errors"
	"fmt"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
)

// tryDeleteComponent is the dry run of deleting a component.
func (s *Service) tryDeleteComponent(ctx context.Context, call *service.Call, id string) (flow.Tried, error) {
	if events.CheckName(id) != nil {
		return flow.Tried{}, aggregates.ErrComponentNotFound.At("/id")
	}
	state, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, id))
	if err != nil {
		return flow.Tried{}, err
	}
	i, err := s.Flows.Impact(ctx, call, aggregates.OAuthClient.Category, id)
	if err != nil {
		return flow.Tried{}, err
	}
	counts, err := s.Views.CredentialCounts(ctx, call.Tenant, projections.CredentialFilter{Component: id})
	if err != nil {
		return flow.Tried{}, err
	}
	i.Credentials = perComponent(counts)[id]
	done := flow.Tried{Done: service.Done{Seq: state.Seq, ID: id}, DryRun: i}
	if _, refusal := aggregates.Component.Decide(state.Value, commands.DeleteComponent{ID: id, Owner: call.Tenant}); refusal != nil {
		if errors.Is(refusal, aggregates.ErrComponentNotFound) {
			return flow.Tried{}, refusal
		}
		return done, i.RefusedBy(refusal)
	}
	i.Says = fmt.Sprintf("The component would be deleted. Its credentials in your tenant (%d) would keep working, with the hosts and "+
		"the dry request of the component revision that they were saved with. New credentials, new keys and reverts would be refused, and an OAuth client "+
		"of the component would become unusable. Flows in your tenant that include it: %d.", i.Credentials, i.TotalFlows)
	return done, nil
}
