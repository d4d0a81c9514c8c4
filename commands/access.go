package commands

import "time"

// Access is the sum of the intents about what one caller tried.
//
//sumtype:decl
type Access interface {
	Command
	access()
}

// RecordDenials records what a caller was refused.
type RecordDenials struct {
	Principal string // id of the caller
	Denials   []Denial
}

// Denial is one refusal, or several of the same kind.
type Denial struct {
	Principal  string // "key:<id>" or "user:<id>"
	Tenant     string // the tenant that was named; "" when that is no tenant's name, or when they were several
	Route      string
	Permission string
	Count      int
	Since      time.Time
}

// RecordConnectAborted records that a connection ended without a credential.
type RecordConnectAborted struct {
	Starter                                                    string // id of the caller who had started it
	Principal, Connection, Component, Credential, User, Reason string // as the fact has them
}

// Target implements Command.
func (c RecordDenials) Target() string        { return c.Principal }
func (c RecordConnectAborted) Target() string { return c.Starter }

func (RecordDenials) access()        {}
func (RecordConnectAborted) access() {}
