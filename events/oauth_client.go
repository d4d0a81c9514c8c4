package events

// OAuthClient is the sum of the facts about the OAuth client of one component in
// one tenant, stream "oauth_client.<component>". The use by flows is recorded
// whether a client is defined or not, so that none is defined into a gap.
//
//sumtype:decl
type OAuthClient interface{ oauthClient() }

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

func (OAuthClientUsed) oauthClient()     {}
func (OAuthClientReleased) oauthClient() {}

var oauthClientTypes = []Type{
	Define[OAuthClientUsed]("oauth_client.used"),
	Define[OAuthClientReleased]("oauth_client.released"),
}
