package flow

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Errors of flow events.
var (
	ErrFlowEventType = fault.New(fault.Invalid, "flow_event_type_unknown",
		"The type of a flow event must be flow.created, flow.updated, flow.started, flow.stopped or flow.deleted.")
	ErrFlowEventData = fault.New(fault.Invalid, "flow_event_data_invalid",
		"The data of the flow event is not valid.")
	ErrFlowEventSubject = fault.New(fault.Invalid, "flow_event_subject_mismatch",
		"The data of the flow event names another flow than its subject.")
	ErrFlowRefused = fault.New(fault.Unprocessable, "flow_use_refused",
		"Some steps of the flow cannot use the credential or component that they name. The uses of the other steps are recorded.")
	ErrCredentialRequired = fault.New(fault.Unprocessable, "credential_required", "The step's component requires a credential, and the step names none.")
	ErrTTL                = fault.New(fault.Invalid, "flow_ttl_invalid", "The ttl of a reservation must be between 1s and 24h, such as \"10m\".")
	ErrFlowSteps          = fault.New(fault.Invalid, "flow_steps_invalid", "A flow has at most 1000 steps, each with a unique id and a component.")
	ErrFlowCannotBind     = fault.New(fault.Unprocessable, "flow_cannot_bind", "Nothing was reserved: some steps cannot use the credential or component that they name.")
)

// The bounds of a flow.
const (
	maxSteps        = 1000
	defaultTTL      = 10 * time.Minute
	shortestTTL     = time.Second
	longestTTL      = 24 * time.Hour
	reconcileAtOnce = 8   // concurrent streams on which a flow is reconciled
	FlowsInDetail   = 100 // flows that a refusal lists
)

// Event is what a flow engine reports about a flow: the data of a CloudEvent of
// type flow.created, flow.updated, flow.started, flow.stopped or flow.deleted.
type Event struct {
	Change   events.FlowChange `json:"-"`
	ID       string            `json:"id"`
	Name     string            `json:"name,omitzero"`  // display name
	Revision uint64            `json:"revision"`       // rises with every event of the flow
	Steps    []events.FlowStep `json:"steps,omitzero"` // nil: unchanged
}

// Type is the CloudEvents type of the event.
func (e Event) Type() string { return "flow." + string(e.Change) }

// Data is the event's data with the members that are understood, and no others.
func (e Event) Data() ([]byte, error) { return json.Marshal(e) }

// ParseFlowEvent parses a flow event. ceType and ceSubject are its CloudEvents
// attributes, flow the id in the subject to which it was published. Unknown members of the
// data are ignored, because engines differ. It returns
// ErrFlowEventType, ErrFlowEventData, ErrFlowEventSubject or ErrFlowSteps.
func ParseFlowEvent(ceType, ceSubject, flow string, data []byte) (Event, error) {
	var e Event
	switch ceType {
	case "flow.created":
		e.Change = events.FlowWasCreated
	case "flow.updated":
		e.Change = events.FlowWasUpdated
	case "flow.started":
		e.Change = events.FlowWasStarted
	case "flow.stopped":
		e.Change = events.FlowWasStopped
	case "flow.deleted":
		e.Change = events.FlowWasDeleted
	default:
		return e, ErrFlowEventType
	}
	if err := service.CheckForm(data); err != nil {
		return e, ErrFlowEventData.Withf("%s", fault.Of(err).Msg)
	}
	if err := service.DecodeWith(data, &e, json.RejectUnknownMembers(false)); err != nil {
		return e, ErrFlowEventData.Withf("%s", fault.Of(err).Msg).At(fault.Of(err).Pointer)
	}
	switch {
	case events.CheckID(e.ID) != nil:
		return e, ErrFlowEventData.Withf("The flow's id is missing or invalid.").At("/id")
	case e.Change == events.FlowWasCreated && events.CheckNewID(e.ID) != nil:
		return e, ErrFlowEventData.Withf("%s", fault.Of(events.CheckNewID(e.ID)).Msg).At("/id")
	case e.ID != flow || ceSubject != "" && ceSubject != e.ID:
		return e, ErrFlowEventSubject
	case e.Revision > math.MaxInt64: // the read models keep signed integers
		return e, ErrFlowEventData.Withf("The revision is greater than 2^63-1.").At("/revision")
	case e.Revision == 0:
		return e, ErrFlowEventData.Withf("The revision is missing. It must be at least 1 and rise with every event of the flow.").At("/revision")
	case e.Name != "" && service.CheckName("/name", e.Name) != nil:
		return e, ErrFlowEventData.Withf("%s", service.ErrName.Msg).At("/name")
	case e.Steps == nil && (e.Change == events.FlowWasCreated || e.Change == events.FlowWasUpdated):
		return e, ErrFlowEventData.Withf("The steps are missing.").At("/steps")
	}
	return e, checkSteps(e.Steps)
}

// checkSteps bounds the steps of a flow.
func checkSteps(steps []events.FlowStep) error {
	if len(steps) > maxSteps {
		return ErrFlowSteps.At("/steps")
	}
	seen := make(map[string]bool, len(steps))
	for i, s := range steps {
		at := func(member string) string { return fmt.Sprintf("/steps/%d/%s", i, member) }
		switch {
		case events.CheckID(s.ID) != nil:
			return ErrFlowSteps.Withf("A step's id is missing or invalid.").At(at("id"))
		case seen[s.ID]:
			return ErrFlowSteps.Withf("Two steps have the same id.").At(at("id"))
		case s.Name != "" && service.CheckName("", s.Name) != nil:
			return service.ErrName.At(at("name"))
		case events.CheckName(s.Component) != nil:
			return ErrFlowSteps.Withf("A step's component is missing or is not a valid component id.").At(at("component"))
		case s.Credential != "" && events.CheckID(s.Credential) != nil:
			return events.ErrID.At(at("credential"))
		}
		seen[s.ID] = true
	}
	return nil
}

// flowEvent is the route name in denials of flow events.
const flowEvent = "flow.event"

// AdmitFlowEvent returns nil if the caller may publish a flow event of the call's
// tenant now, else the error of the authorization or the rate limits.
func (s *Service) AdmitFlowEvent(ctx context.Context, call service.Call) error {
	call.Route = flowEvent
	return s.Access.Admit(ctx, &call, permission.FlowsEdit, service.QueuedMessage)
}

// onlyReached returns the credentials that a change of a flow concerns, for a key that is
// restricted to some credentials: those of its new steps and those that it uses already. The
// scope must include all of them: else it returns aggregates.ErrCredentialNotFound for a new
// step, as for a credential that does not exist, and service.ErrScopeExceeded for the flow. It
// returns nil for other callers.
func (s *Service) onlyReached(ctx context.Context, call *service.Call, flow string, steps []events.FlowStep) ([]string, error) {
	if !call.Principal.Scope.Narrow() {
		return nil, nil
	}
	only := []string{}
	for i, step := range steps {
		if step.Credential == "" {
			continue
		}
		if err := s.Kernel.CheckReached(ctx, call, step.Credential); err != nil {
			return nil, service.PointAt(err, fmt.Sprintf("/steps/%d/credential", i))
		}
		only = append(only, step.Credential)
	}
	state, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(call.Tenant, flow))
	if err != nil {
		return nil, err
	}
	used := state.Value.Credentials()
	reached, err := service.Reached(ctx, s.Kernel, call, used, func(id string) string { return id })
	switch {
	case err != nil:
		return nil, err
	case len(reached) < len(used):
		return nil, aggregates.ErrFlowBeyondScope
	}
	return append(only, used...), nil
}

// CheckReached returns nil if the scope of the caller includes what the event concerns, else
// the error of ObserveFlow.
func (s *Service) CheckReached(ctx context.Context, call service.Call, ev Event) error {
	call.Route = flowEvent
	_, err := s.onlyReached(ctx, &call, ev.ID, ev.Steps)
	return err
}

// ObserveFlow processes a flow event: it records it on the flow's stream, and then every
// resulting use on the stream of the credential or OAuth client. It is idempotent: called again
// with the same event, by this process or another, it completes what is missing. A late event
// changes nothing. It returns ErrFlowRefused, with the steps, if some cannot use their
// credential or component.
func (s *Service) ObserveFlow(ctx context.Context, call service.Call, ev Event) error {
	ctx, cancel := context.WithTimeout(ctx, service.MaxCall)
	defer cancel()
	call.Route = flowEvent
	ctx, leave, err := s.Kernel.Enter(ctx, &call, admission.Request, 0)
	if err != nil {
		return err
	}
	defer leave()
	if err := s.Access.Authorize(ctx, &call, permission.FlowsEdit); err != nil {
		return err
	}
	if err := s.Kernel.WritesAllowed(); err != nil {
		return err
	}
	_, err = s.observe(ctx, &call, ev)
	return err
}

// observe is ObserveFlow for an admitted call.
func (s *Service) observe(ctx context.Context, call *service.Call, ev Event) (service.Done, error) {
	only, err := s.onlyReached(ctx, call, ev.ID, ev.Steps)
	if err != nil {
		return service.Done{}, err
	}
	begin := s.Kernel.Now()
	was, now, err := service.Execute(ctx, s.Kernel, call, aggregates.Flow, call.Tenant, commands.Flow(commands.ObserveFlow{
		ID: ev.ID, Change: ev.Change, Name: ev.Name, Revision: ev.Revision, Steps: ev.Steps, AllowedCredentials: only,
	}))
	done := s.Kernel.Answered(aggregates.Flow.Stream(call.Tenant, ev.ID), was, now.Value, now.Seq)
	if err != nil || ev.Revision < now.Value.Revision {
		return done, err
	}
	refused, err := s.reconcileUses(ctx, call, ev.ID, was, now.Value)
	s.settled.Observe(s.Kernel.Now().Sub(begin).Seconds())
	if err != nil {
		return done, err
	}
	if len(refused) > 0 {
		return done, ErrFlowRefused.Withf("%s", refusedSentence(refused)).With(stepFaults(refused))
	}
	return done, nil
}

// Report is a flow event as a command.
type Report struct {
	Change   events.FlowChange `json:"change"` // created, updated, started, stopped or deleted
	ID       string            `json:"id"`
	Name     string            `json:"name,omitzero"`  // display name
	Revision uint64            `json:"revision"`       // rises with every report of the flow; a lower one changes nothing
	Steps    []events.FlowStep `json:"steps,omitzero"` // required with created and updated; unchanged when absent
}

func (s *Service) reportFlow(ctx context.Context, call *service.Call, in Report) (service.Done, error) {
	data, err := Event{ID: in.ID, Name: in.Name, Revision: in.Revision, Steps: in.Steps}.Data()
	if err != nil {
		return service.Done{}, fmt.Errorf("write a flow event: %w", err)
	}
	ev, err := ParseFlowEvent("flow."+string(in.Change), "", in.ID, data)
	if err != nil {
		return service.Done{}, err
	}
	return s.observe(ctx, call, ev)
}

// StepFault is the reason why a step of a flow cannot use its credential or component.
type StepFault struct {
	Step       string `json:"step"`
	Component  string `json:"component"`
	Credential string `json:"credential,omitzero"`
	Reason     string `json:"reason"` // "credential_not_found", "credential_component_mismatch", "credential_required", "component_not_found"
}

// Faults are the details of ErrFlowRefused and ErrFlowCannotBind.
type Faults struct {
	Steps []StepFault `json:"steps"`
}

func stepFaults(refused []events.FlowUseRefused) Faults {
	faults := Faults{Steps: make([]StepFault, len(refused))}
	for i, r := range refused {
		faults.Steps[i] = StepFault{Step: r.Step, Component: r.Component, Credential: r.Credential, Reason: r.Reason}
	}
	return faults
}

// refusedSentence describes the first refused step, and counts the others.
func refusedSentence(refused []events.FlowUseRefused) string {
	first := refused[0]
	var why string
	switch first.Reason {
	case ErrCredentialRequired.Code:
		why = fmt.Sprintf("uses no credential, but the component %s requires one", first.Component)
	case aggregates.ErrCredentialComponentMismatch.Code:
		why = fmt.Sprintf("uses the credential %s, which does not belong to the component %s", first.Credential, first.Component)
	case aggregates.ErrComponentNotFound.Code:
		why = fmt.Sprintf("uses the component %s, which does not exist", first.Component)
	default:
		why = fmt.Sprintf("uses the credential %s, which does not exist", first.Credential)
	}
	more := ""
	if n := len(refused) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Sprintf("Step %q %s%s.", first.Step, why, more)
}

// reconcileUses updates the streams of what the flow uses: it records the uses of now, and
// releases those of was. Each stream decides for itself, so it can run repeatedly and in any
// order. It returns the recorded steps that cannot use their credential or component.
func (s *Service) reconcileUses(ctx context.Context, call *service.Call, flow string, was, now aggregates.FlowState) ([]events.FlowUseRefused, error) {
	steps := byCredential(now.Steps)
	var all errgroup.Group
	all.SetLimit(reconcileAtOnce)
	found := make(chan []events.FlowUseRefused, len(steps)+1)
	ended := ""
	if was.Binding.ID != now.Binding.ID {
		ended = was.Binding.ID
	}
	for credential, its := range steps {
		all.Go(func() error {
			r, err := s.useCredential(ctx, call, flow, credential, now, its)
			found <- r
			if err == nil && ended != "" { // not earlier: in between, nothing would prevent its deletion
				err = s.changeUse(ctx, call, commands.ReleaseCredential{ID: credential, Flow: flow, Binding: ended})
			}
			return err
		})
	}
	for credential := range byCredential(slices.Concat(was.Steps, was.Binding.Steps)) {
		if _, named := steps[credential]; named {
			continue
		}
		release := commands.ReleaseCredential{ID: credential, Flow: flow, Revision: now.Revision, Binding: ended}
		all.Go(func() error { return s.changeUse(ctx, call, release) })
	}
	components := componentsOf(now.Steps)
	for component := range componentsOf(was.Steps) {
		if !components[component] {
			all.Go(func() error {
				return s.changeClientUse(ctx, call, commands.ReleaseOAuthClient{Component: component, Flow: flow, Revision: now.Revision})
			})
		}
	}
	all.Go(func() error {
		r, err := s.useComponents(ctx, call, flow, now)
		found <- r
		return err
	})
	err := all.Wait()
	close(found)
	var refused []events.FlowUseRefused
	for r := range found {
		refused = append(refused, r...)
	}
	if err != nil || len(refused) == 0 {
		return nil, err
	}
	refused = inOrder(now.Steps, refused)
	_, _, err = service.Execute(ctx, s.Kernel, call, aggregates.Flow, call.Tenant, commands.Flow(commands.RefuseUse{ID: flow, Revision: now.Revision, Refused: refused}))
	return refused, err
}

// inOrder returns one refusal for each refused step, in the order of the steps. A
// missing component takes precedence over a fault of the credential.
func inOrder(steps []events.FlowStep, refused []events.FlowUseRefused) []events.FlowUseRefused {
	byStep := map[string]events.FlowUseRefused{}
	for _, r := range refused {
		if _, has := byStep[r.Step]; !has || r.Reason == aggregates.ErrComponentNotFound.Code {
			byStep[r.Step] = r
		}
	}
	var list []events.FlowUseRefused
	for _, step := range steps {
		if r, ok := byStep[step.ID]; ok {
			list = append(list, r)
		}
	}
	return list
}

// useCredential records the use of one credential by the steps that name it.
func (s *Service) useCredential(ctx context.Context, call *service.Call, flow, credential string, now aggregates.FlowState, steps []events.FlowStep) ([]events.FlowUseRefused, error) {
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.Credential, call.Tenant, commands.Credential(commands.UseCredential{
		ID: credential, Flow: flow, Revision: now.Revision, Active: now.Active, Steps: steps,
	}))
	if errors.Is(err, aggregates.ErrCredentialComponentMismatch) { // an earlier revision used it, this one does not
		release := commands.ReleaseCredential{ID: credential, Flow: flow, Revision: now.Revision}
		if err := s.changeUse(ctx, call, release); err != nil {
			return nil, err
		}
	}
	return mismatched(now.Revision, steps, state.Value, err)
}

// mismatched lists the steps that the credential cannot serve. err is the result of the
// credential's stream; other errors are returned.
func mismatched(revision uint64, steps []events.FlowStep, state aggregates.CredentialState, err error) ([]events.FlowUseRefused, error) {
	reason := ""
	switch {
	case errors.Is(err, aggregates.ErrCredentialNotFound):
		reason = aggregates.ErrCredentialNotFound.Code
	case err != nil && !errors.Is(err, aggregates.ErrCredentialComponentMismatch):
		return nil, err
	}
	var refused []events.FlowUseRefused
	for _, step := range steps {
		if reason == "" && state.Serves(step.Component) {
			continue
		}
		r := refusal(revision, step, reason)
		if reason == "" {
			r.Reason = aggregates.ErrCredentialComponentMismatch.Code
		}
		refused = append(refused, r)
	}
	return refused, nil
}

func refusal(revision uint64, step events.FlowStep, reason string) events.FlowUseRefused {
	return events.FlowUseRefused{Revision: revision, Step: step.ID, Component: step.Component, Credential: step.Credential, Reason: reason}
}

// useComponents records that the flow includes its components, if they use OAuth, and returns
// the steps whose component is missing or requires a credential that they do not name. It reads
// the current components, after the flow's own event: RecordUses finds what it misses.
func (s *Service) useComponents(ctx context.Context, call *service.Call, flow string, now aggregates.FlowState) ([]events.FlowUseRefused, error) {
	needs := map[string]need{}
	var all errgroup.Group
	all.SetLimit(reconcileAtOnce)
	for component := range componentsOf(now.Steps) {
		n, err := s.componentNeed(ctx, call.Tenant, component)
		if err != nil {
			return nil, err
		}
		needs[component] = n
		if n.oauth {
			all.Go(func() error {
				return s.changeClientUse(ctx, call, commands.UseOAuthClient{Component: component, Flow: flow, Revision: now.Revision})
			})
		}
	}
	free, err := s.freeTypes(ctx, call.Tenant, now.Steps, needs)
	return componentFaults(now.Revision, now.Steps, needs, free), errors.Join(err, all.Wait())
}

// freeTypes returns the free types of credentials in steps whose component the tenant does not
// have: such a step may name a free type.
func (s *Service) freeTypes(ctx context.Context, tenant string, steps []events.FlowStep, needs map[string]need) (map[string]string, error) {
	free := map[string]string{}
	for _, step := range steps {
		if step.Credential == "" || !needs[step.Component].missing {
			continue
		}
		state, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(tenant, step.Credential))
		if err != nil {
			return nil, err
		}
		free[step.Credential] = state.Value.Type
	}
	return free, nil
}

// RecordUses records the use of a component by every flow that was reported
// before the component used OAuth.
func (s *Service) RecordUses(ctx context.Context, call *service.Call, component string) error {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return err
	}
	if err := s.Projector.Wait(ctx, end); err != nil {
		return err
	}
	for after := ""; ; {
		page, next, err := s.Views.Flows(ctx, projections.FlowFilter{Tenant: call.Tenant, Component: component, Limit: 200, After: after})
		if err != nil {
			return err
		}
		for _, f := range page {
			if f.Revision == 0 {
				continue // only reserved: its first event will record the use
			}
			err := s.changeClientUse(ctx, call.Step(0), commands.UseOAuthClient{Component: component, Flow: f.ID, Revision: f.Revision})
			if err != nil {
				return err
			}
		}
		if after = next; next == "" {
			return nil
		}
	}
}

// need is what a component requires of a step.
type need struct {
	missing    bool // the tenant has no such component
	credential bool // a step must name one
	oauth      bool // it uses OAuth, so a flow uses its client
}

// componentFaults lists the steps whose component does not exist in the tenant, and
// those that require a credential and name none. free has the free types of credentials.
func componentFaults(revision uint64, steps []events.FlowStep, needs map[string]need, free map[string]string) (refused []events.FlowUseRefused) {
	for _, step := range steps {
		switch n := needs[step.Component]; {
		case n.missing && free[step.Credential] == step.Component:
		case n.missing:
			refused = append(refused, refusal(revision, step, aggregates.ErrComponentNotFound.Code))
		case n.credential && step.Credential == "":
			refused = append(refused, refusal(revision, step, ErrCredentialRequired.Code))
		}
	}
	return refused
}

// componentNeed reads the current requirements of a component.
func (s *Service) componentNeed(ctx context.Context, tenant, component string) (need, error) {
	state, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, component))
	switch {
	case err != nil:
		return need{}, err
	case !state.Value.VisibleTo(tenant):
		return need{missing: true}, nil
	case state.Value.Deleted:
		return need{}, nil // existing uses keep working; its client is unusable
	}
	d, err := s.Components.Descriptor(ctx, component, state.Value.Revision)
	return need{credential: d.NeedsCredential(), oauth: d.DeclaresOAuth}, err
}

// changeUse executes a release. The credential may have been deleted.
func (s *Service) changeUse(ctx context.Context, call *service.Call, cmd commands.ReleaseCredential) error {
	_, err := s.release(ctx, call, cmd)
	return err
}

// release is changeUse that also returns the sequence of the credential's stream.
func (s *Service) release(ctx context.Context, call *service.Call, cmd commands.ReleaseCredential) (uint64, error) {
	_, after, err := service.Execute(ctx, s.Kernel, call, aggregates.Credential, call.Tenant, commands.Credential(cmd))
	return after.Seq, err
}

func (s *Service) changeClientUse(ctx context.Context, call *service.Call, cmd commands.OAuthClient) error {
	_, _, err := service.Execute(ctx, s.Kernel, call, aggregates.OAuthClient, call.Tenant, cmd)
	return err
}

// byCredential groups the steps that name a credential.
func byCredential(steps []events.FlowStep) map[string][]events.FlowStep {
	m := map[string][]events.FlowStep{}
	for _, s := range steps {
		if s.Credential != "" {
			m[s.Credential] = append(m[s.Credential], s)
		}
	}
	return m
}

func componentsOf(steps []events.FlowStep) map[string]bool {
	m := map[string]bool{}
	for _, s := range steps {
		m[s.Component] = true
	}
	return m
}
