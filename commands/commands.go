// Package commands defines the commands of the aggregates, and parses the component.json. A
// command is a plain struct that refers to secrets by their id in the vault and never contains
// one.
package commands

// Command requests a change of one aggregate.
type Command interface {
	Target() string // id of the aggregate within its category
}
