package commands

import "github.com/credstream/credstream/events"

// Connector is the set of commands on one connector.
//
//sumtype:decl
type Connector interface {
	Command
	connector()
}

// PutConnector creates the connector, or changes the existing one to these settings and this
// change of its API key.
type PutConnector struct {
	ID       string
	Settings events.ConnectorSettings
	Key      ConnectorKey
}

// SetConnectorKey changes the API key.
type SetConnectorKey struct {
	ID  string
	Key ConnectorKey
}

// ConnectorKey is a change of the API key of a connector; "": unchanged.
type ConnectorKey struct {
	APIKeyID, SecretID string
	Use                string // id of the use that the secret records; "" if the connector points to the secret already
}

// AbandonConnectorUse cancels a use of a secret, unless the connector already points to it.
type AbandonConnectorUse struct{ ID, Use string }

// DeleteConnector deletes the connector.
type DeleteConnector struct{ ID string }

// Target implements Command.
func (c PutConnector) Target() string        { return c.ID }
func (c SetConnectorKey) Target() string     { return c.ID }
func (c AbandonConnectorUse) Target() string { return c.ID }
func (c DeleteConnector) Target() string     { return c.ID }

func (PutConnector) connector()        {}
func (SetConnectorKey) connector()     {}
func (AbandonConnectorUse) connector() {}
func (DeleteConnector) connector()     {}

// ConnectorSecret is the set of commands on one connector secret.
//
//sumtype:decl
type ConnectorSecret interface {
	Command
	connectorSecret()
}

// PutConnectorSecret creates the secret, or replaces its value.
type PutConnectorSecret struct {
	ID, SecretID string
	Expected     int // version; 0: any
}

// RevertConnectorSecret activates the value of an earlier version.
type RevertConnectorSecret struct {
	ID       string
	To       int
	Expected int // version; 0: any
}

// RevealConnectorSecret records that the value of a version is about to be revealed.
type RevealConnectorSecret struct {
	ID      string
	Version int
}

// UseConnectorSecret records that a connector is about to point to the secret.
type UseConnectorSecret struct{ ID, Connector, Use string }

// ReleaseConnectorSecret ends one use.
type ReleaseConnectorSecret struct{ ID, Connector, Use string }

// DeleteConnectorSecret deletes the secret.
type DeleteConnectorSecret struct{ ID string }

// AbandonConnectorSecret forbids references to a value in the vault that no event references, so
// that it can be erased.
type AbandonConnectorSecret struct{ ID, SecretID string }

// Target implements Command.
func (c PutConnectorSecret) Target() string     { return c.ID }
func (c RevertConnectorSecret) Target() string  { return c.ID }
func (c RevealConnectorSecret) Target() string  { return c.ID }
func (c UseConnectorSecret) Target() string     { return c.ID }
func (c ReleaseConnectorSecret) Target() string { return c.ID }
func (c DeleteConnectorSecret) Target() string  { return c.ID }
func (c AbandonConnectorSecret) Target() string { return c.ID }

func (PutConnectorSecret) connectorSecret()     {}
func (RevertConnectorSecret) connectorSecret()  {}
func (RevealConnectorSecret) connectorSecret()  {}
func (UseConnectorSecret) connectorSecret()     {}
func (ReleaseConnectorSecret) connectorSecret() {}
func (DeleteConnectorSecret) connectorSecret()  {}
func (AbandonConnectorSecret) connectorSecret() {}
