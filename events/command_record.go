package events

import "time"

// CommandRecord is the set of events about one named command, stream
// "command.<id derived from the caller and the command id>".
//
//sumtype:decl
type CommandRecord interface{ commandRecord() }

// CommandStarted records: A command is about to act outside the log. The event holds what a repeat
// needs to act only once: after a crash it continues from here.
type CommandStarted struct {
	Route  string    `json:"route"`  // "credential.refresh"
	Epoch  int       `json:"epoch"`  // of the tokens that a renewal replaces
	Before time.Time `json:"before"` // messages that a bulk change of the queue affects: those before this time
}

// CommandCompleted records: The outcome of a command that its commit does not describe completely:
// it changed nothing, took several commits, or acted outside the log. The event holds the response
// to the caller, and no secret.
type CommandCompleted struct {
	Route    string         `json:"route"`    // "credential.refresh"
	Seq      uint64         `json:"seq"`      // log sequence in the response
	ID       string         `json:"id"`       // id of the changed resource
	Version  int            `json:"version"`  // of a credential's keys
	Status   Status         `json:"status"`   // of a credential
	Revision int            `json:"revision"` // of a component's descriptor
	Says     string         `json:"says"`     // a sentence
	Binding  string         `json:"binding"`  // id of a flow's reservation
	Until    time.Time      `json:"until"`    // expiry of the reservation
	Outcome  string         `json:"outcome"`  // result of a revocation at the provider
	Total    int            `json:"total"`    // items of a bulk command
	Skipped  int            `json:"skipped"`  // items that a bulk command could not change
	Before   time.Time      `json:"before"`   // as in CommandStarted
	Next     string         `json:"next"`     // cursor after them
	Expires  time.Time      `json:"expires"`  // of a key or a link
	Refusal  CommandRefusal `json:"refusal"`  // of a command that was refused after its first commit, which was undone; zero if it was not
}

// CommandRefusal is the error of a refused command, as returned to the caller.
type CommandRefusal struct {
	Kind    string `json:"kind"` // of the error; "" for no refusal
	Code    string `json:"code"`
	Says    string `json:"says"`    // a sentence
	Pointer string `json:"pointer"` // to the input at fault
}

func (CommandStarted) commandRecord()   {}
func (CommandCompleted) commandRecord() {}

var commandRecordTypes = []Type{
	Define[CommandStarted]("command.started", Internal),
	Define[CommandCompleted]("command.completed", Internal),
}
