package commands

import "github.com/credstream/credstream/events"

// Credential is the sum of the intents about one credential.
//
//sumtype:decl
type Credential interface {
	Command
	credential()
}

// NewKeys describes verified keys whose values the vault already holds. The
// aggregate gives them their version number.
type NewKeys struct {
	SecretID     string
	Fields       []string
	Revision     int
	Hosts        []string
	HostMAC      string
	Verification events.Verification
}

// CreateCredential saves a credential whose keys were verified.
type CreateCredential struct {
	ID, Component, Name, Workspace string
	Keys                           NewKeys
}

// RenameCredential gives it another name.
type RenameCredential struct {
	ID, Name string
	Expected int // version of the keys the caller has seen; 0: any
}

// ReplaceKeys gives it new, verified keys.
type ReplaceKeys struct {
	ID       string
	Expected int
	Keys     NewKeys
}

// RevertCredential makes the keys of version To, verified again, the newest version.
type RevertCredential struct {
	ID       string
	Expected int
	To       int
	Keys     NewKeys // SecretID names the same secret as version To
}

// RecordVerification records the outcome of a dry request with the keys of Version.
type RecordVerification struct {
	ID           string
	Version      int
	Verification events.Verification
}

// DeleteCredential ends it.
type DeleteCredential struct {
	ID       string
	Expected int
}

// AbandonSecret forbids a secret that no event names, so that it can be erased.
type AbandonSecret struct{ ID, SecretID string }

// Target implements Command.
func (c CreateCredential) Target() string   { return c.ID }
func (c RenameCredential) Target() string   { return c.ID }
func (c ReplaceKeys) Target() string        { return c.ID }
func (c RevertCredential) Target() string   { return c.ID }
func (c RecordVerification) Target() string { return c.ID }
func (c DeleteCredential) Target() string   { return c.ID }
func (c AbandonSecret) Target() string      { return c.ID }

func (CreateCredential) credential()   {}
func (RenameCredential) credential()   {}
func (ReplaceKeys) credential()        {}
func (RevertCredential) credential()   {}
func (RecordVerification) credential() {}
func (DeleteCredential) credential()   {}
func (AbandonSecret) credential()      {}
