package commands

import "github.com/credstream/credstream/events"

// AuthClient is the sum of the intents about one auth client.
//
//sumtype:decl
type AuthClient interface {
	Command
	authClient()
}

// CreateAuthClient begins an auth client.
type CreateAuthClient struct {
	ID      string
	Created events.AuthClientCreated
}

// ChangeAuthClient puts another form of it in force. Expected is the number of its
// changes that the new form was made from (AuthClientState.Changes).
type ChangeAuthClient struct {
	ID       string
	Expected int
	Changed  events.AuthClientChanged
}

// SettleAuthClient records that its OAuth clients follow the change of this number.
type SettleAuthClient struct {
	ID       string
	Expected int
}

// RevealAuthClient records that its credentials are about to be shown.
type RevealAuthClient struct{ ID, SecretID string }

// DeleteAuthClient ends it.
type DeleteAuthClient struct{ ID string }

// AbandonAuthClientSecret forbids a secret that no event names, so that it can be erased.
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
