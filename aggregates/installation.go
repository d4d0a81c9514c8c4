package aggregates

import (
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// Installation is the aggregate of the installation itself.
var Installation = Decider[InstallationState, commands.Installation, events.Installation]{
	Category: "installation", Fold: 1, Decide: InstallationState.decide, Evolve: InstallationState.evolve,
}

// InstallationState is the last recorded state.
type InstallationState struct {
	Attested *events.DurabilityAttested
}

func (s InstallationState) decide(cmd commands.Installation) ([]events.Installation, error) {
	switch c := cmd.(type) {
	case commands.AttestDurability:
		now := events.DurabilityAttested(c)
		if s.Attested != nil && *s.Attested == now {
			return nil, nil
		}
		return []events.Installation{now}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s InstallationState) evolve(e events.Installation) InstallationState {
	switch e := e.(type) {
	case events.DurabilityAttested:
		s.Attested = &e
	}
	return s
}
