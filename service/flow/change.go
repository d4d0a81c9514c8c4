package flow

import (
	"context"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// ErrFlowExists refuses a new flow with the id of another.
var ErrFlowExists = fault.New(fault.Exists, "flow_exists", "A flow with this id already exists.")

// flowRaces bounds the retries of a change after concurrent changes.
const flowRaces = 10

// ChangeFlow changes a flow for a caller that does not keep its own revision for flow events:
// the change gets the revision after the last one, and produces the same events. ceType and
// data are those of a flow event, without the revision; unknown members are ignored. Unlike a
// flow event, which is recorded as far as possible, it neither creates nor starts a flow with a
// step that cannot use its credential or component. It then records nothing and returns
// ErrCredentialRequired, aggregates.ErrCredentialComponentMismatch or ErrFlowCannotBind, with
// the steps. Starting a started flow or stopping a stopped one changes nothing. Other errors:
// ErrFlowExists, aggregates.ErrFlowNotFound.
func (s *Service) ChangeFlow(ctx context.Context, call service.Call, ceType string, data []byte) (Flow, error) {
	ctx, cancel := context.WithTimeout(ctx, service.MaxCall)
	defer cancel()
	call.Route = flowEvent
	ctx, leave, err := s.Kernel.Enter(ctx, &call, admission.Request, int64(len(data)))
	if err != nil {
		return Flow{}, err
	}
	defer leave()
	if err := s.Access.Admit(ctx, &call, permission.FlowsEdit, service.CommandCall); err != nil {
		return Flow{}, err
	}
	if err := s.Kernel.WritesAllowed(); err != nil {
		return Flow{}, err
	}
	ev, err := flowChange(ceType, data)
	if err != nil {
		return Flow{}, err
	}
	call.CommandID = events.NewID()
	for range flowRaces {
		flow, done, err := s.tryFlow(ctx, &call, ev)
		if ev.Change != events.FlowWasCreated {
			err = hideFlow(err, "")
		}
		if done || err != nil {
			return flow, err
		}
	}
	return Flow{}, fault.ErrConflict
}

// flowChange parses a flow event that has no revision yet.
func flowChange(ceType string, data []byte) (Event, error) {
	if err := service.CheckForm(data); err != nil {
		return Event{}, err
	}
	var ev Event
	if err := service.DecodeWith(data, &ev, json.RejectUnknownMembers(false)); err != nil {
		return Event{}, err
	}
	ev.Revision = 1 // ignored: tryFlow sets it
	whole, err := ev.Data()
	if err != nil {
		return Event{}, fmt.Errorf("write a flow event: %w", err)
	}
	return ParseFlowEvent(ceType, "", ev.ID, whole)
}

// tryFlow makes the change on the current flow. It returns false if a
// concurrent change was faster.
func (s *Service) tryFlow(ctx context.Context, call *service.Call, ev Event) (Flow, bool, error) {
	state, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(call.Tenant, ev.ID))
	if err != nil {
		return Flow{}, false, err
	}
	only, err := s.onlyReached(ctx, call, ev.ID, ev.Steps)
	if err != nil {
		return Flow{}, false, err
	}
	current := state.Value
	switch exists := current.Revision > 0 && !current.Deleted; {
	case exists && ev.Change == events.FlowWasCreated:
		return Flow{}, false, ErrFlowExists.At("/id")
	case !exists && ev.Change != events.FlowWasCreated:
		return Flow{}, false, aggregates.ErrFlowNotFound
	case ev.Change == events.FlowWasStarted && current.Active, ev.Change == events.FlowWasStopped && !current.Active:
		return flowAnswer(ev.ID, state), true, nil
	}
	if err := s.flowCanRun(ctx, call.Tenant, ev, current); err != nil {
		return Flow{}, false, err
	}
	begin := s.Kernel.Now()
	was, now, err := service.Execute(ctx, s.Kernel, call, aggregates.Flow, call.Tenant, commands.Flow(commands.ObserveFlow{
		ID: ev.ID, Change: ev.Change, Name: ev.Name, Revision: current.Revision + 1, Steps: ev.Steps, AllowedCredentials: only,
	}))
	if err != nil || was.Revision != current.Revision {
		return Flow{}, false, err
	}
	refused, err := s.reconcileUses(ctx, call, ev.ID, was, now.Value)
	s.settled.Observe(s.Kernel.Now().Sub(begin).Seconds())
	switch {
	case err != nil:
		return Flow{}, false, err
	case len(refused) > 0: // it was deleted after the check
		return Flow{}, false, ErrFlowRefused.Withf("%s", refusedSentence(refused)).With(stepFaults(refused))
	}
	return flowAnswer(ev.ID, now), true, nil
}

// flowCanRun returns an error if a flow is created or started with a step that cannot use its
// credential or component.
func (s *Service) flowCanRun(ctx context.Context, tenant string, ev Event, current aggregates.FlowState) error {
	steps := ev.Steps
	switch {
	case ev.Change != events.FlowWasCreated && ev.Change != events.FlowWasStarted:
		return nil
	case steps == nil:
		steps = current.Steps
	}
	refused, err := s.bindFaults(ctx, tenant, steps)
	if err != nil || len(refused) == 0 {
		return err
	}
	return fault.Of(cannotBind(steps, refused)).Withf("Nothing was recorded. %s", refusedSentence(refused))
}

// flowAnswer is the response to a change of a flow.
func flowAnswer(id string, state aggregates.State[aggregates.FlowState]) Flow {
	f := Flow{
		ID: id, Name: state.Value.Name, Revision: state.Value.Revision, Active: state.Value.Active,
		Steps: slices.Clone(state.Value.Steps), Seq: state.Seq,
	}
	if f.Steps == nil {
		f.Steps = []events.FlowStep{}
	}
	return f
}
