package aggregates

import (
	"slices"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// Access is the aggregate of one caller's denials and of the caller's failed connections. An
// event that is sent again after an unknown outcome is recorded only once.
var Access = Decider[AccessState, commands.Access, events.Access]{
	Category: "access", Fold: 2, Decide: AccessState.decide, Evolve: AccessState.evolve,
}

// AccessState has the last denial of each route, and the most recently aborted connections.
type AccessState struct {
	Last    []events.AccessDenied
	Aborted []string
}

// maxAborted is the maximum number of aborted connections in a state. A repeat arrives soon
// after the first attempt.
const maxAborted = 16

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
	case commands.RecordConnectAborted:
		if slices.Contains(s.Aborted, c.Connection) {
			return nil, nil
		}
		return []events.Access{events.AccessConnectAborted{
			Principal: c.Principal, Connection: c.Connection, Component: c.Component, Credential: c.Credential, User: c.User, Reason: c.Reason,
		}}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s AccessState) evolve(e events.Access) AccessState {
	switch e := e.(type) {
	case events.AccessDenied:
		last := slices.DeleteFunc(slices.Clone(s.Last), func(d events.AccessDenied) bool { return d.Route == e.Route })
		s.Last = append(last, e)
	case events.AccessConnectAborted:
		s.Aborted = append(slices.Clone(s.Aborted), e.Connection)
		s.Aborted = s.Aborted[max(0, len(s.Aborted)-maxAborted):]
	}
	return s
}

func same(a, b events.AccessDenied) bool {
	sinceA, sinceB := a.Since, b.Since
	a.Since, b.Since = time.Time{}, time.Time{}
	return a == b && sinceA.Equal(sinceB)
}
