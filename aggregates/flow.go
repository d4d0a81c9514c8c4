package aggregates

import (
	"slices"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of a flow.
var (
	ErrFlowNotFound = fault.New(fault.NotFound, "flow_not_found", "Flow not found.")
	// ErrFlowBeyondScope refuses a change of a flow that uses credentials to which the caller's
	// key is not bound.
	ErrFlowBeyondScope = ErrScopeExceeded.Withf("The flow uses credentials that your key does not reach. Use a key that reaches all of them.")
	ErrFlowNotBound    = fault.New(fault.Precondition, "flow_not_bound", "The flow has no such reservation.")
)

// Flow is the aggregate of one flow. The flow engine's revision decides
// what is new: an equal one is a repeat, a lower one is late.
var Flow = Decider[FlowState, commands.Flow, events.Flow]{
	Category: "flow", Fold: 1, Decide: FlowState.decide, Evolve: FlowState.evolve,
}

// FlowState is the last known state of a flow.
type FlowState struct {
	Revision uint64 // 0: the flow engine has reported nothing yet
	Deleted  bool
	Active   bool
	Name     string
	Steps    []events.FlowStep
	Refused  []string // ids of the steps of this revision that cannot use what they name
	Binding  Binding
}

// Binding is a reservation of the credentials of a flow; the zero value is none.
type Binding struct {
	ID    string
	Steps []events.FlowStep
	Until time.Time
}

func (s FlowState) decide(cmd commands.Flow) ([]events.Flow, error) {
	switch c := cmd.(type) {
	case commands.ObserveFlow:
		return s.observe(c), s.uses(c.AllowedCredentials)
	case commands.BindFlow:
		if s.Binding.ID == c.Binding {
			return nil, nil
		}
		return []events.Flow{events.FlowBound{Binding: c.Binding, Name: c.Name, Steps: c.Steps, Until: c.Until}}, s.uses(c.AllowedCredentials)
	case commands.ReleaseFlow:
		if s.Binding.ID == "" || c.Binding != "" && s.Binding.ID != c.Binding {
			return nil, nil
		}
		return []events.Flow{events.FlowReleased{Binding: s.Binding.ID, Reason: c.Reason}}, s.uses(c.AllowedCredentials)
	case commands.RefuseUse:
		return s.refuse(c), nil
	}
	return nil, unknownCommand(cmd)
}

// Credentials are the ids of the credentials that the flow's steps and reservation name.
func (s FlowState) Credentials() (ids []string) {
	for _, step := range slices.Concat(s.Steps, s.Binding.Steps) {
		if step.Credential != "" {
			ids = append(ids, step.Credential)
		}
	}
	return ids
}

// uses returns ErrScopeExceeded when the flow uses another credential than only these.
func (s FlowState) uses(only []string) error {
	if only != nil && slices.ContainsFunc(s.Credentials(), func(id string) bool { return !slices.Contains(only, id) }) {
		return ErrFlowBeyondScope
	}
	return nil
}

func (s FlowState) observe(c commands.ObserveFlow) []events.Flow {
	if c.Revision <= s.Revision {
		return nil
	}
	e := events.FlowObserved{Change: c.Change, Name: c.Name, Revision: c.Revision, Active: s.Active, Steps: c.Steps}
	if e.Steps == nil {
		e.Steps = s.Steps
	}
	if e.Name == "" {
		e.Name = s.Name
	}
	switch c.Change {
	case events.FlowWasStarted:
		e.Active = true
	case events.FlowWasStopped:
		e.Active = false
	case events.FlowWasDeleted:
		e.Active, e.Steps = false, nil
	case events.FlowWasCreated, events.FlowWasUpdated:
	}
	if e.Steps == nil {
		e.Steps = []events.FlowStep{}
	}
	return []events.Flow{e}
}

// refuse records each refusal of the current revision once.
func (s FlowState) refuse(c commands.RefuseUse) []events.Flow {
	if c.Revision != s.Revision {
		return nil
	}
	var facts []events.Flow
	for _, r := range c.Refused {
		if !slices.Contains(s.Refused, r.Step) {
			facts = append(facts, r)
		}
	}
	return facts
}

func (s FlowState) evolve(e events.Flow) FlowState {
	switch e := e.(type) {
	case events.FlowObserved:
		s.Revision, s.Active, s.Name, s.Steps, s.Refused = e.Revision, e.Active, e.Name, e.Steps, nil
		s.Deleted = e.Change == events.FlowWasDeleted
		if s.Active || s.Deleted { // a start confirms the reservation, a deletion ends it
			s.Binding = Binding{}
		}
	case events.FlowBound:
		s.Binding = Binding{ID: e.Binding, Steps: e.Steps, Until: e.Until}
		if s.Name == "" {
			s.Name = e.Name
		}
	case events.FlowReleased:
		s.Binding = Binding{}
	case events.FlowUseRefused:
		s.Refused = append(slices.Clip(s.Refused), e.Step)
	}
	return s
}
