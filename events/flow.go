package events

import "time"

// Flow is the set of events about one flow of a flow engine, stream "flow.<id>" within its
// tenant: what the engine reported about it, and the result of its use of credentials.
//
//sumtype:decl
type Flow interface{ flow() }

// FlowStep is one step of a flow.
type FlowStep struct {
	ID         string `json:"id" feed:"id"`                 // unique within the flow
	Name       string `json:"name" feed:"name"`             // display name, or ""
	Component  string `json:"component" feed:"component"`   // id of the component it runs
	Credential string `json:"credential" feed:"credential"` // id of the credential it uses, "" for none
}

// FlowChange is the kind of a flow engine's event.
type FlowChange string

// The changes of a flow. A started flow is active until it is stopped or deleted.
const (
	FlowWasCreated FlowChange = "created"
	FlowWasUpdated FlowChange = "updated"
	FlowWasStarted FlowChange = "started"
	FlowWasStopped FlowChange = "stopped"
	FlowWasDeleted FlowChange = "deleted"
)

// FlowObserved records: The flow engine reported a flow: its state from this revision on.
type FlowObserved struct {
	Change   FlowChange `json:"change" feed:"change"`
	Name     string     `json:"name" feed:"name"`         // display name, or ""
	Revision uint64     `json:"revision" feed:"revision"` // increases with every event of the flow, including start and stop
	Active   bool       `json:"active" feed:"active"`
	Steps    []FlowStep `json:"steps" feed:"steps"` // none once it is deleted
}

// FlowBound records: The credentials of a flow that is about to start were reserved.
type FlowBound struct {
	Binding string     `json:"binding" feed:"binding"` // id of the reservation
	Name    string     `json:"name" feed:"name"`       // of the flow, or ""
	Steps   []FlowStep `json:"steps" feed:"steps"`
	Until   time.Time  `json:"until" feed:"until"` // expiry of the reservation
}

// FlowReleased records: A reservation ended without a start.
type FlowReleased struct {
	Binding string `json:"binding" feed:"binding"`
	Reason  string `json:"reason" feed:"reason"` // ReleasedOnRequest, ReleasedByExpiry
}

// The reasons of a FlowReleased.
const (
	ReleasedOnRequest = "released"
	ReleasedByExpiry  = "expired"
)

// FlowUseRefused records: A step cannot use the credential or component that it names: the flow is
// broken.
type FlowUseRefused struct {
	Revision   uint64 `json:"revision" feed:"revision"` // of the flow
	Step       string `json:"step" feed:"step"`
	Component  string `json:"component" feed:"component"`
	Credential string `json:"credential" feed:"credential"` // "" if the step names none
	Reason     string `json:"reason" feed:"reason"`         // an error code: "credential_not_found", ...
}

func (FlowObserved) flow()   {}
func (FlowBound) flow()      {}
func (FlowReleased) flow()   {}
func (FlowUseRefused) flow() {}

var flowTypes = []Type{
	Define[FlowObserved]("flow.observed", Changes),
	Define[FlowBound]("flow.bound", Changes),
	Define[FlowReleased]("flow.released", Changes),
	Define[FlowUseRefused]("flow.use_refused", Changes).WithID("flow"),
}
