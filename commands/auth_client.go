package commands

import "github.com/credstream/credstream/events"

// AuthClient is the set of commands on one auth client.
//
//sumtype:decl
type AuthClient interface {
	Command
	authClient()
}

// CreateAuthClient creates an auth client.
type CreateAuthClient struct {
	ID      string
	Created events.AuthClientCreated
}

// ChangeAuthClient changes the auth client. Expected is AuthClientState.Changes of the state
// that the change is based on.
type ChangeAuthClient struct {
	ID       string
	Expected int
	Changed  events.AuthClientChanged
}

// SettleAuthClient records that its OAuth clients were updated to the change with this number.
type SettleAuthClient struct {
	ID       string
	Expected int
}

// RevealAuthClient records that its credentials are about to be shown.
type RevealAuthClient struct{ ID, SecretID string }

// DeleteAuthClient deletes the auth client.
type DeleteAuthClient struct{ ID string }

// AbandonAuthClientSecret forbids references to a secret that no event references, so that it
// can be erased.
type AbandonAuthClientSecret struct{ ID, SecretID string }

// Target implements Command.
func (c CreateAuthClient) Target() string        { return c.ID }
func (c ChangeAuthClient) Target() string        { return c.ID }
func (c SettleAuthClient) Target() string        { return c.ID }
func (c RevealAuthClient) Target() string        { return c.ID }
func (c DeleteAuthClient) Target() string        { return c.ID }
func (c AbandonAuthClientSecret) Target() string { return c.ID }

func (CreateAuthClient) authClient()        {}
func (ChangeAuthClient) authClient()        {}
func (SettleAuthClient) authClient()        {}
func (RevealAuthClient) authClient()        {}
func (DeleteAuthClient) authClient()        {}
func (AbandonAuthClientSecret) authClient() {}
