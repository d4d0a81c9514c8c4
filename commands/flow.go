package commands

import (
	"time"

	"github.com/credstream/credstream/events"
)

// Flow is the sum of the intents about what is known of one flow.
//
//sumtype:decl
type Flow interface {
	Command
	flow()
}

// ObserveFlow records what the flow engine said of a flow.
type ObserveFlow struct {
	ID       string
	Change   events.FlowChange
	Name     string
	Revision uint64
	Steps    []events.FlowStep // nil: as they were
	Only     []string          // refuse if the flow uses another credential; nil: any
}

// BindFlow records on the flow a reservation that its credentials hold already.
type BindFlow struct {
	ID, Binding, Name string
	Steps             []events.FlowStep
	Until             time.Time
	Only              []string // as in ObserveFlow
}

// ReleaseFlow ends a reservation.
type ReleaseFlow struct {
	ID      string
	Binding string   // "": the one that stands
	Reason  string   // events.ReleasedOnRequest, events.ReleasedByExpiry
	Only    []string // as in ObserveFlow
}

// RefuseUse records which steps of a revision cannot use what they name.
type RefuseUse struct {
	ID       string
	Revision uint64
	Refused  []events.FlowUseRefused // of that revision
}

// Target implements Command.
func (c ObserveFlow) Target() string { return c.ID }
func (c BindFlow) Target() string    { return c.ID }
func (c ReleaseFlow) Target() string { return c.ID }
func (c RefuseUse) Target() string   { return c.ID }

func (ObserveFlow) flow() {}
func (BindFlow) flow()    {}
func (ReleaseFlow) flow() {}
func (RefuseUse) flow()   {}
