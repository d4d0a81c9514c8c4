package aggregates

import (
	"slices"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// Access records what one caller was refused. The same again, told twice because
// the first outcome was not known, is recorded once.
var Access = Decider[AccessState, commands.Access, events.Access]{
	Category: "access", Fold: 1, Decide: AccessState.decide, Evolve: AccessState.evolve,
}

// AccessState is the last fact of each route.
type AccessState struct{ Last []events.AccessDenied }

func (s AccessState) decide(cmd commands.Access) ([]events.Access, error) {
	switch c := cmd.(type) {
	case commands.RecordDenials:
		var facts []events.Access
		for _, d := range c.Denials {
			if fact := events.AccessDenied(d); !slices.ContainsFunc(s.Last, func(l events.AccessDenied) bool { return same(l, fact) }) {
				facts = append(facts, fact)
			}
		}
		return facts, nil
	}
	return nil, nil
}

func (s AccessState) evolve(e events.Access) AccessState {
	switch e := e.(type) {
	case events.AccessDenied:
		last := slices.DeleteFunc(slices.Clone(s.Last), func(d events.AccessDenied) bool { return d.Route == e.Route })
		s.Last = append(last, e)
	}
	return s
}

func same(a, b events.AccessDenied) bool {
	sinceA, sinceB := a.Since, b.Since
	a.Since, b.Since = time.Time{}, time.Time{}
	return a == b && sinceA.Equal(sinceB)
}
