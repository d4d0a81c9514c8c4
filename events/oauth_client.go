package events

// OAuthClient is the sum of the facts about the OAuth client of one component in
// one tenant, stream "oauth_client.<component>". The use by flows is recorded
// whether a client is defined or not, so that none is defined into a gap.
//
//sumtype:decl
type OAuthClient interface{ oauthClient() }

// OAuthClientDefined gives the component a client in the tenant. The client's
// secret lives in the vault alone.
type OAuthClientDefined struct {
	ID       string `json:"id"`        // of the client, for callers
	ClientID string `json:"client_id"` // as the provider gave it (RFC 6749, 2.2)
	SecretID string `json:"secret_id"` // where the vault keeps the client secret
}

// OAuthClientChanged is the client as it is from here on.
type OAuthClientChanged struct {
	ClientID string `json:"client_id"`
	SecretID string `json:"secret_id"` // the same one when only the client id changed
}

// OAuthClientMarkedUnusable says that the client cannot be used any more.
type OAuthClientMarkedUnusable struct {
	Reason string `json:"reason"` // a fault code: "component_deleted"
}

// OAuthClientRevealed says that the client's secret was shown to a person.
type OAuthClientRevealed struct {
	SecretID string `json:"secret_id"`
}

// OAuthClientDeleted ends the client; its secret is erased from the vault.
type OAuthClientDeleted struct{}

// OAuthClientUsed says that a flow, active or not, includes the component.
type OAuthClientUsed struct {
	Flow     string `json:"flow"`
	Revision uint64 `json:"revision"` // of the flow
}

// OAuthClientReleased says that a flow no longer includes the component.
type OAuthClientReleased struct {
	Flow     string `json:"flow"`
	Revision uint64 `json:"revision"` // of the flow
}

func (OAuthClientDefined) oauthClient()        {}
func (OAuthClientChanged) oauthClient()        {}
func (OAuthClientMarkedUnusable) oauthClient() {}
func (OAuthClientRevealed) oauthClient()       {}
func (OAuthClientDeleted) oauthClient()        {}
func (OAuthClientUsed) oauthClient()           {}
func (OAuthClientReleased) oauthClient()       {}
func (SecretAbandoned) oauthClient()           {}

var oauthClientTypes = []Type{
	Define[OAuthClientDefined]("oauth_client.defined"),
	Define[OAuthClientChanged]("oauth_client.changed"),
	Define[OAuthClientMarkedUnusable]("oauth_client.marked_unusable"),
	Define[OAuthClientRevealed]("oauth_client.revealed"),
	Define[OAuthClientDeleted]("oauth_client.deleted"),
	Define[OAuthClientUsed]("oauth_client.used"),
	Define[OAuthClientReleased]("oauth_client.released"),
}
