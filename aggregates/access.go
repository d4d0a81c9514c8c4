package aggregates

import (
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// Access records what one caller was refused. No rule rests on it.
var Access = Decider[AccessState, commands.Access, events.Access]{
	Category: "access", Fold: 1, Decide: AccessState.decide, Evolve: AccessState.evolve,
}

// AccessState is what is known of a caller's refusals.
type AccessState struct{ Denials int }

func (s AccessState) decide(cmd commands.Access) ([]events.Access, error) {
	switch c := cmd.(type) {
	case commands.RecordDenials:
		facts := make([]events.Access, len(c.Denials))
		for i, d := range c.Denials {
			facts[i] = events.AccessDenied(d)
		}
		return facts, nil
	}
	return nil, nil
}

func (s AccessState) evolve(e events.Access) AccessState {
	switch e := e.(type) {
	case events.AccessDenied:
		s.Denials += e.Count
	}
	return s
}
