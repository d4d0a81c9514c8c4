package commands

import "time"

// Access is the set of commands on the record of one caller's denials and aborted connections.
//
//sumtype:decl
type Access interface {
	Command
	access()
}

// RecordDenials records denials of a caller.
type RecordDenials struct {
	Principal string // id of the caller
	Denials   []Denial
}

// Denial is one denial, or several of the same kind.
type Denial struct {
	Principal  string // "key:<id>" or "user:<id>"
	Tenant     string // the tenant that was named; "" if it is not a valid name, or if there were several
	Route      string
	Permission string
	Count      int
	Since      time.Time
}

// RecordConnectAborted records that a connection ended without a credential.
type RecordConnectAborted struct {
	Starter                                                    string // id of the caller who had started it
	Principal, Connection, Component, Credential, User, Reason string // as in events.AccessConnectAborted
}

// Target implements Command.
func (c RecordDenials) Target() string        { return c.Principal }
func (c RecordConnectAborted) Target() string { return c.Starter }

func (RecordDenials) access()        {}
func (RecordConnectAborted) access() {}
