package client

import (
	"context"
	"iter"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// OAuthClient is what the service shows of an OAuth client.
type OAuthClient struct {
	ID           string    `json:"id"`
	Component    string    `json:"component"`
	ClientID     string    `json:"client_id"`
	ClientSecret string    `json:"client_secret"` // "********"
	Unusable     bool      `json:"unusable"`      // the component was deleted: the client can only be deleted
	Used         bool      `json:"used"`          // a flow of the tenant includes the component, active or not
	CreatedAt    time.Time `json:"created_at"`
	CreatedBy    string    `json:"created_by"` // "key:<id>"
	UpdatedAt    time.Time `json:"updated_at"`
	Seq          uint64    `json:"seq"` // log sequence of the last change

	SecretExpiresAt time.Time `json:"secret_expires_at,omitzero"` // as declared; zero: never
	Supplies        Endpoints `json:"endpoints,omitzero"`         // that the client supplies; only of one client, not in lists
}

// Endpoints are the endpoints of the provider, for a component.json without usable ones.
type Endpoints struct {
	AuthURI       string `json:"auth_uri,omitzero"`       // without it, the client requests tokens for itself (client credentials)
	TokenURI      string `json:"token_uri,omitzero"`      // needed if the component.json has no usable endpoints, else refused
	RefreshURI    string `json:"refresh_uri,omitzero"`    // if tokens are renewed elsewhere
	RevocationURI string `json:"revocation_uri,omitzero"` // RFC 7009
	Scopes        string `json:"scopes,omitzero"`         // separated by spaces; those of the component.json when absent
}

// WithEndpoints supplies the endpoints of the provider. DefineOAuthClient and ChangeOAuthClient, which
// then needs the secret, support it (oauth_client_endpoints_declared, oauth_client_endpoints_secret).
func WithEndpoints(e Endpoints) CommandOption {
	return func(o *commandOptions) { o.endpoints = e }
}

// OAuthSecret is the secret of an OAuth client. It is never printed or encoded;
// only a command that takes it sends it.
type OAuthSecret struct{ clear func() string }

// NewOAuthSecret wraps the secret that the provider issued.
func NewOAuthSecret(s string) OAuthSecret { return OAuthSecret{func() string { return s }} }

// String implements fmt.Stringer.
func (OAuthSecret) String() string { return hidden }

// GoString implements fmt.GoStringer.
func (OAuthSecret) GoString() string { return hidden }

// MarshalText implements encoding.TextMarshaler, so that an encoder writes no value.
func (OAuthSecret) MarshalText() ([]byte, error) { return []byte(hidden), nil }

func (s OAuthSecret) reveal() string {
	if s.clear == nil {
		return ""
	}
	return s.clear()
}

// clientChange is the body of define and change.
type clientChange struct {
	ID           string `json:"id,omitzero"`
	Component    string `json:"component,omitzero"`
	ClientID     string `json:"client_id,omitzero"`
	ClientSecret string `json:"client_secret,omitzero"`
	Revision     int    `json:"expected_revision,omitzero"`

	Expires time.Time `json:"secret_expires_at,omitzero"`
	Endpoints
}

// DefineOAuthClient defines the tenant's OAuth client of a component
// (oauth_client_exists, oauth_not_declared, oauth_client_component_invalid).
func (a *API) DefineOAuthClient(ctx context.Context, component, clientID string, secret OAuthSecret, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "oauth_client.define", clientChange{
		Component: component, ClientID: clientID, ClientSecret: secret.reveal(), Revision: revisionOf(opts), Expires: optionsOf(opts).expires, Endpoints: optionsOf(opts).endpoints,
	}, &done, opts...)
	return done, err
}

// ChangeOAuthClient changes the client id, the secret, or both; an empty one is unchanged. Entering
// a secret, even an unchanged one, approves it for the component's current hosts.
func (a *API) ChangeOAuthClient(ctx context.Context, id, clientID string, secret OAuthSecret, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "oauth_client.change", clientChange{
		ID: id, ClientID: clientID, ClientSecret: secret.reveal(), Revision: revisionOf(opts), Expires: optionsOf(opts).expires, Endpoints: optionsOf(opts).endpoints,
	}, &done, opts...)
	return done, err
}

// DeleteOAuthClient deletes a client. It is refused while a flow, active or not,
// includes the component (oauth_client_in_use, see FlowsOf).
func (a *API) DeleteOAuthClient(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "oauth_client.delete", clientChange{ID: id}, &done, opts...)
	return done, err
}

// GetOAuthClient returns one client, no older than the log sequence minSeq.
func (a *API) GetOAuthClient(ctx context.Context, id string, minSeq uint64) (OAuthClient, error) {
	var c OAuthClient
	err := a.Query(ctx, "oauth_client.get", struct {
		ID     string `json:"id"`
		MinSeq uint64 `json:"min_seq,omitzero"`
	}{id, minSeq}, &c)
	return c, err
}

// OAuthClients yields the tenant's clients by component; only that of component unless it is "".
func (a *API) OAuthClients(ctx context.Context, component string) iter.Seq2[OAuthClient, error] {
	return func(yield func(OAuthClient, error) bool) {
		for after := ""; ; {
			var page struct {
				Clients []OAuthClient `json:"clients"`
				Next    string        `json:"next"`
			}
			err := a.Query(ctx, "oauth_client.list", struct {
				Component string `json:"component,omitzero"`
				After     string `json:"after,omitzero"`
				Limit     int    `json:"limit"`
			}{component, after, 200}, &page)
			if err != nil {
				yield(OAuthClient{}, err)
				return
			}
			for _, c := range page.Clients {
				if !yield(c, nil) {
					return
				}
			}
			if after = page.Next; after == "" {
				return
			}
		}
	}
}

// RevealOAuthClient returns the secret of one client. The key needs the
// permission credentials.reveal. The access is audited first.
func (a *API) RevealOAuthClient(ctx context.Context, id string, opts ...CommandOption) (string, error) {
	var shown struct {
		ClientSecret string `json:"client_secret"`
	}
	err := a.Command(ctx, "oauth_client.reveal", clientChange{ID: id}, &shown, opts...)
	return shown.ClientSecret, err
}

// RevealCredential returns the clear values of a credential as a JSON object. The
// key needs the permission credentials.reveal. The access is audited first.
func (a *API) RevealCredential(ctx context.Context, id string, opts ...CommandOption) (jsontext.Value, error) {
	var shown struct {
		Keys jsontext.Value `json:"keys"`
	}
	err := a.Command(ctx, "credential.reveal", change{ID: id}, &shown, opts...)
	return shown.Keys, err
}

// SetComponentEnv sets the variables that a component's descriptor
// declares; the values replace all previous ones (component_env_unknown).
func (a *API) SetComponentEnv(ctx context.Context, id string, values Keys, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "component.set-env", struct {
		ID       string         `json:"id"`
		Values   jsontext.Value `json:"values"`
		Revision int            `json:"expected_revision,omitzero"`
	}{id, values.reveal(), revisionOf(opts)}, &done, opts...)
	return done, err
}
