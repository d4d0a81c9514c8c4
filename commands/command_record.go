package commands

import "github.com/credstream/credstream/events"

// CommandRecord is the set of commands on the record of one named command.
//
//sumtype:decl
type CommandRecord interface {
	Command
	commandRecord()
}

// StartCommand records that the command is about to act outside the log.
type StartCommand struct {
	ID      string // derived from the caller and the command id
	Started events.CommandStarted
}

// Target implements Command.
func (c StartCommand) Target() string { return c.ID }

// CompleteCommand records how the command ended.
type CompleteCommand struct {
	ID        string // derived from the caller and the command id
	Completed events.CommandCompleted
}

// Target implements Command.
func (c CompleteCommand) Target() string { return c.ID }

func (StartCommand) commandRecord()    {}
func (CompleteCommand) commandRecord() {}
