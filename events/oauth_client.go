package events

import (
	"encoding/json"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// OAuthClient is the set of events about the OAuth client of one component in one tenant, stream
// "oauth_client.<component>". The use by flows is recorded even if no client is defined, so that
// it is complete when one is defined later.
//
//sumtype:decl
type OAuthClient interface{ oauthClient() }

// OAuthEndpoints are the endpoints of the provider that an OAuth client supplies for a
// component.json without usable ones; zero if it supplies none.
type OAuthEndpoints struct {
	AuthURI       string `json:"auth_uri"` // "" for client credentials
	TokenURI      string `json:"token_uri"`
	RefreshURI    string `json:"refresh_uri"`    // "": TokenURI
	RevocationURI string `json:"revocation_uri"` // "" if there is none
	Scopes        string `json:"scopes"`         // separated by spaces; "": those of the component.json
	Lifetime      int    `json:"token_lifetime"` // of access tokens in seconds; 0: as the component.json or the provider says
}

// OAuthClientDefined records: The OAuth client of a component in the tenant was defined. Its secret
// is only in the vault.
type OAuthClientDefined struct {
	ID       string `json:"id"`        // of the client, for callers
	ClientID string `json:"client_id"` // assigned by the provider (RFC 6749, 2.2)
	SecretID string `json:"secret_id"` // where the vault keeps the client secret
	Revision int    `json:"revision"`  // of the component's descriptor, whose hosts the secret is approved for; 0: unknown

	Endpoints OAuthEndpoints `json:"endpoints"`
}

// PublicOAuthClientDefined is the public form of OAuthClientDefined.
type PublicOAuthClientDefined struct {
	ID        string `json:"id"`
	Component string `json:"component"`
	ClientID  string `json:"client_id"`
}

// Public omits the secret id.
func (e OAuthClientDefined) Public(component string) any {
	return PublicOAuthClientDefined{ID: e.ID, Component: component, ClientID: e.ClientID}
}

// OAuthClientChanged records: The OAuth client was changed. If only the revision differs, the
// unchanged secret was entered again, which approves it for the hosts of that revision.
type OAuthClientChanged struct {
	ClientID string `json:"client_id" feed:"client_id"`
	SecretID string `json:"secret_id" feed:"-"` // the previous one if no other secret was entered
	Revision int    `json:"revision" feed:"-"`  // as in OAuthClientDefined

	Endpoints OAuthEndpoints `json:"endpoints" feed:"-"`
}

// OAuthClientExpirySet records: The client secret has a declared expiry. Another secret has
// none until it is declared again.
type OAuthClientExpirySet struct {
	Expires time.Time `json:"expires,omitzero" feed:"expires,omitzero"` // absent: none
}

// OAuthClientExpiring records: The client secret expires soon. There is one event per warning
// threshold and expiry.
type OAuthClientExpiring struct {
	ID      string    `json:"id" feed:"id"` // of the client
	Expires time.Time `json:"expires" feed:"expires"`
	Days    int       `json:"days" feed:"days"`   // the threshold: it expires in at most this many days
	Flows   []string  `json:"flows" feed:"flows"` // ids of flows that include the component, sorted: the first 100
	Total   int       `json:"total" feed:"total"` // how many flows include it
}

// OAuthClientMarkedUnusable records: The OAuth client can no longer be used.
type OAuthClientMarkedUnusable struct {
	Reason string `json:"reason" feed:"reason"` // an error code: "component_deleted"
}

// OAuthClientRevealed records: The secret of the OAuth client was revealed to a person.
type OAuthClientRevealed struct {
	SecretID string `json:"secret_id" feed:"-"`
}

// OAuthClientDeleted records: The OAuth client was deleted; its secret is erased from the vault.
type OAuthClientDeleted struct{}

// OAuthClientUsed records: A flow, active or not, includes the component.
type OAuthClientUsed struct {
	Flow     string `json:"flow" feed:"flow"`
	Revision uint64 `json:"revision" feed:"revision"` // of the flow
}

// OAuthClientReleased records: A flow no longer includes the component.
type OAuthClientReleased struct {
	Flow     string `json:"flow" feed:"flow"`
	Revision uint64 `json:"revision" feed:"revision"` // of the flow
}

func (OAuthClientDefined) oauthClient()        {}
func (OAuthClientChanged) oauthClient()        {}
func (OAuthClientMarkedUnusable) oauthClient() {}
func (OAuthClientRevealed) oauthClient()       {}
func (OAuthClientDeleted) oauthClient()        {}
func (OAuthClientUsed) oauthClient()           {}
func (OAuthClientReleased) oauthClient()       {}
func (SecretAbandoned) oauthClient()           {}

func (OAuthClientExpirySet) oauthClient() {}
func (OAuthClientExpiring) oauthClient()  {}

var oauthClientTypes = []Type{
	Define[OAuthClientDefined]("oauth_client.defined", Changes, withoutRevision, withoutEndpoints).KeepingSecrets(),
	Define[OAuthClientChanged]("oauth_client.changed", Changes, withoutRevision, withoutEndpoints).WithID("component"),
	Define[OAuthClientMarkedUnusable]("oauth_client.marked_unusable", Changes).WithID("component").KeepingSecrets(),
	Define[OAuthClientRevealed]("oauth_client.revealed", Audit).WithID("component").KeepingSecrets(),
	Define[OAuthClientDeleted]("oauth_client.deleted", Changes).WithID("component"),
	Define[OAuthClientUsed]("oauth_client.used", Changes).KeepingSecrets(),
	Define[OAuthClientReleased]("oauth_client.released", Changes).KeepingSecrets(),
	Define[OAuthClientExpirySet]("oauth_client.expiry_set", Changes).WithID("component").KeepingSecrets(),
	Define[OAuthClientExpiring]("oauth_client.expiring", Changes).WithID("component").KeepingSecrets(),
}

// withoutRevision upcasts to version 2: for a client of version 1 it is unknown for which
// descriptor its secret was entered.
func withoutRevision(data json.RawMessage) (json.RawMessage, error) {
	return withMember(data, "revision", "0")
}

// withoutEndpoints upcasts to version 3: clients of earlier versions supply no endpoints.
func withoutEndpoints(data json.RawMessage) (json.RawMessage, error) {
	return withMember(data, "endpoints", `{"auth_uri":"","token_uri":"","refresh_uri":"","revocation_uri":"","scopes":"","token_lifetime":0}`)
}

// withMember adds a member to the data of an event.
func withMember(data json.RawMessage, name, value string) (json.RawMessage, error) {
	var members map[string]jsontext.Value
	if err := jsonv2.Unmarshal(data, &members); err != nil {
		return nil, err
	}
	members[name] = jsontext.Value(value)
	return jsonv2.Marshal(members, jsonv2.Deterministic(true))
}
