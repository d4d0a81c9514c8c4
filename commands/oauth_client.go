package commands

// OAuthClient is the sum of the intents about the OAuth client of one component in a tenant.
//
//sumtype:decl
type OAuthClient interface {
	Command
	oauthClient()
}

// DefineOAuthClient gives the component a client.
type DefineOAuthClient struct {
	Component, ID, ClientID, SecretID string
	Revision                          int // of the component's current descriptor
}

// ChangeOAuthClient changes what is not "". A secret that is given, be it the one
// that the client has, may go where a revision of the component's descriptor sends it.
type ChangeOAuthClient struct {
	Component, ID, ClientID, SecretID string
	Again                             string // in place of SecretID: the one that it has, and that was given again
	Revision                          int    // of the descriptor that the secret was given for; 0: as before
}

// DeleteOAuthClient ends the client.
type DeleteOAuthClient struct{ Component, ID string }

// MarkOAuthClientUnusable records that it cannot be used any more.
type MarkOAuthClientUnusable struct{ Component, Reason string }

// RevealOAuthClient records that its secret is about to be shown.
type RevealOAuthClient struct{ Component, ID, SecretID string }

// UseOAuthClient records that a flow includes the component.
type UseOAuthClient struct {
	Component, Flow string
	Revision        uint64 // of the flow
}

// ReleaseOAuthClient records that a flow of this revision no longer includes the component.
type ReleaseOAuthClient struct {
	Component, Flow string
	Revision        uint64
}

// AbandonClientSecret forbids a secret that no event names, so that it can be erased.
type AbandonClientSecret struct{ Component, SecretID string }

// Target implements Command.
func (c DefineOAuthClient) Target() string       { return c.Component }
func (c ChangeOAuthClient) Target() string       { return c.Component }
func (c DeleteOAuthClient) Target() string       { return c.Component }
func (c MarkOAuthClientUnusable) Target() string { return c.Component }
func (c RevealOAuthClient) Target() string       { return c.Component }
func (c UseOAuthClient) Target() string          { return c.Component }
func (c ReleaseOAuthClient) Target() string      { return c.Component }
func (c AbandonClientSecret) Target() string     { return c.Component }

func (DefineOAuthClient) oauthClient()       {}
func (ChangeOAuthClient) oauthClient()       {}
func (DeleteOAuthClient) oauthClient()       {}
func (MarkOAuthClientUnusable) oauthClient() {}
func (RevealOAuthClient) oauthClient()       {}
func (UseOAuthClient) oauthClient()          {}
func (ReleaseOAuthClient) oauthClient()      {}
func (AbandonClientSecret) oauthClient()     {}
