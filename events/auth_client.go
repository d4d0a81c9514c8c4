package events

import "encoding/json"

// AuthClient is the set of events about one auth client, stream
// "auth_client.<id>" within its tenant.
//
//sumtype:decl
type AuthClient interface{ authClient() }

// AuthClientComponent is a component that an auth client is for.
type AuthClientComponent struct {
	Component   string `json:"component" feed:"component"`
	OAuthClient string `json:"oauth_client" feed:"oauth_client"` // id of the OAuth client that the auth client manages for the component; "" if there is none
}

// AuthClientCreated records: An auth client was created. Its credentials are only in the vault.
type AuthClientCreated struct {
	Name       string                `json:"name"`
	Type       string                `json:"type"`     // "oauth2", "basic", "api_key" or "noauth"
	Scope      string                `json:"scope"`    // "workspace", "contract", "tenant" or "global"
	ScopeID    string                `json:"scope_id"` // of the workspace or contract, assigned by the caller; else ""
	Components []AuthClientComponent `json:"components"`
	Fields     []string              `json:"fields"`    // names of the credentials that have a value, sorted
	ClientID   string                `json:"client_id"` // of type oauth2: assigned by the provider; else ""
	SecretID   string                `json:"secret_id"` // where the vault keeps the credentials; "" if there are none
	Revisions  []int                 `json:"revisions"` // descriptor revisions of the components, in their order, that the client secret is approved for; 0: unknown; none if no OAuth client is managed
}

// PublicAuthClientCreated is the public form of AuthClientCreated.
type PublicAuthClientCreated struct {
	ID         string                `json:"id"`
	Type       string                `json:"type"`
	Scope      string                `json:"scope"`
	ScopeID    string                `json:"scope_id"`
	Name       string                `json:"name"`
	Components []AuthClientComponent `json:"components"`
	ClientID   string                `json:"client_id"`
}

// Public omits the secret id.
func (e AuthClientCreated) Public(id string) any {
	return PublicAuthClientCreated{
		ID: id, Type: e.Type, Scope: e.Scope, ScopeID: e.ScopeID, Name: e.Name, Components: e.Components, ClientID: e.ClientID,
	}
}

// AuthClientChanged records: The auth client was changed. The event holds its complete new form.
type AuthClientChanged struct {
	Name       string                `json:"name" feed:"name"`
	Components []AuthClientComponent `json:"components" feed:"components"`
	Fields     []string              `json:"fields" feed:"-"`            // as in AuthClientCreated
	ClientID   string                `json:"client_id" feed:"client_id"` // as in AuthClientCreated
	SecretID   string                `json:"secret_id" feed:"-"`         // the previous one if the credentials are unchanged
	Revisions  []int                 `json:"revisions" feed:"-"`         // as in AuthClientCreated
}

// AuthClientSettled records: The OAuth clients of the auth client's components were updated to the
// auth client, and those of removed components were deleted.
type AuthClientSettled struct{}

// AuthClientRevealed records: The credentials of the auth client were revealed to a person.
type AuthClientRevealed struct {
	SecretID string `json:"secret_id" feed:"-"`
}

// AuthClientDeleted records: The auth client was deleted; its credentials are erased from the
// vault.
type AuthClientDeleted struct{}

func (AuthClientCreated) authClient()  {}
func (AuthClientChanged) authClient()  {}
func (AuthClientSettled) authClient()  {}
func (AuthClientRevealed) authClient() {}
func (AuthClientDeleted) authClient()  {}
func (SecretAbandoned) authClient()    {}

var authClientTypes = []Type{
	Define[AuthClientCreated]("auth_client.created", Changes, withoutRevisions).KeepingSecrets(),
	Define[AuthClientChanged]("auth_client.changed", Changes, withoutRevisions),
	Define[AuthClientSettled]("auth_client.settled", Changes),
	Define[AuthClientRevealed]("auth_client.revealed", Audit).KeepingSecrets(),
	Define[AuthClientDeleted]("auth_client.deleted", Changes),
}

// withoutRevisions upcasts to version 2: for an auth client of version 1 it is unknown for which
// descriptors its secret was entered.
func withoutRevisions(data json.RawMessage) (json.RawMessage, error) {
	return withMember(data, "revisions", "[]")
}
