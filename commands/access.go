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

// Target implements Command.
func (c RecordDenials) Target() string { return c.Principal }

func (RecordDenials) access() {}
