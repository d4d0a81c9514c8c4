package aggregates

import (
	"fmt"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// CommandRecord is the aggregate of the record of one command id, in addition to the commit
// of the command. There is one stream for each command id of a caller.
var CommandRecord = Decider[CommandRecordState, commands.CommandRecord, events.CommandRecord]{
	Category: "command", Fold: 2, Decide: CommandRecordState.decide, Evolve: CommandRecordState.evolve,
}

// CommandRecordState is how the command began to act outside the log, and its result;
// nil while not recorded.
type CommandRecordState struct {
	Started   *events.CommandStarted
	Completed *events.CommandCompleted
}

func (s CommandRecordState) decide(cmd commands.CommandRecord) ([]events.CommandRecord, error) {
	switch c := cmd.(type) {
	case commands.StartCommand:
		if s.Started != nil || s.Completed != nil {
			return nil, nil
		}
		return []events.CommandRecord{c.Started}, nil
	case commands.CompleteCommand:
		if s.Completed != nil { // the first result is final
			return nil, nil
		}
		return []events.CommandRecord{c.Completed}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s CommandRecordState) evolve(e events.CommandRecord) CommandRecordState {
	switch e := e.(type) {
	case events.CommandStarted:
		s.Started = &e
	case events.CommandCompleted:
		s.Completed = &e
	}
	return s
}

// unknownCommand is the default of every decide: a missing case must not count as "nothing to change".
func unknownCommand(cmd commands.Command) error {
	return fmt.Errorf("aggregates: no rule decides %T", cmd)
}
