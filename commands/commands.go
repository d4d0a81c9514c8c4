// Package commands holds every intent: what an aggregate may be asked to do.
// A command is plain and checked in shape; it names secrets by their id in the
// vault and never holds one.
package commands

// Command asks one aggregate to change.
type Command interface {
	Target() string // id of the aggregate within its category
}
