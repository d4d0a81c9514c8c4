package commands

import (
	"time"

	"github.com/credstream/credstream/events"
)

// Flow is the set of commands on the record of one flow.
//
//sumtype:decl
type Flow interface {
	Command
	flow()
}

// ObserveFlow records an event of the flow engine about a flow.
type ObserveFlow struct {
	ID                 string
	Change             events.FlowChange
	Name               string
	Revision           uint64
	Steps              []events.FlowStep // nil: unchanged
	AllowedCredentials []string          // refuse if the flow uses another credential; nil: any
}

// BindFlow records a reservation on the flow, after it was recorded on its credentials.
type BindFlow struct {
	ID, Binding, Name  string
	Steps              []events.FlowStep
	Until              time.Time
	AllowedCredentials []string // as in ObserveFlow
}

// ReleaseFlow ends a reservation.
type ReleaseFlow struct {
	ID                 string
	Binding            string   // "": the current one
	Reason             string   // events.ReleasedOnRequest, events.ReleasedByExpiry
	AllowedCredentials []string // as in ObserveFlow
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
