package commands

import "time"

// OAuthClient is the set of commands on the OAuth client of one component in a tenant.
//
//sumtype:decl
type OAuthClient interface {
	Command
	oauthClient()
}

// DefineOAuthClient defines the client of the component.
type DefineOAuthClient struct {
	Component, ID, ClientID, SecretID string
	Revision                          int       // of the component's current descriptor
	Expires                           time.Time // of the secret; zero: unknown
	Endpoints                         Endpoints
}

// ChangeOAuthClient changes the members that are not "". Entering a secret, even the current one
// again, approves it for the hosts of Revision.
type ChangeOAuthClient struct {
	Component, ID, ClientID, SecretID string
	ReenteredSecretID                 string     // instead of SecretID: id of the current secret, which was entered again
	Revision                          int        // of the descriptor that the secret was entered for; 0: unchanged
	Expires                           *time.Time // of the secret, zero: unknown; nil: unchanged, or unknown for another secret
	Endpoints                         *Endpoints // nil: unchanged. Other endpoints require SecretID or ReenteredSecretID
}

// DeleteOAuthClient deletes the client.
type DeleteOAuthClient struct{ Component, ID string }

// MarkOAuthClientUnusable records that the client can no longer be used.
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

// AbandonClientSecret forbids references to a secret that no event references, so that it can be
// erased.
type AbandonClientSecret struct{ Component, SecretID string }

// WarnOAuthClient records that the client secret expires soon.
type WarnOAuthClient struct {
	Component string
	Expires   time.Time // another expiry needs no warning now
	Days      int       // the threshold, at least 1
}

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

func (c WarnOAuthClient) Target() string { return c.Component }
func (WarnOAuthClient) oauthClient()     {}
