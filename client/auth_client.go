package client

import (
	"context"
	"iter"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// The scopes of an auth client.
const (
	ScopeWorkspace = "workspace"
	ScopeContract  = "contract"
	ScopeTenant    = "tenant"
	ScopeGlobal    = "global" // every tenant
)

// AuthClient is what the service shows of an auth client.
type AuthClient struct {
	ID          string                `json:"id"`
	Name        string                `json:"name"`
	Type        string                `json:"type"`  // oauth2, basic, api_key or noauth
	Scope       string                `json:"scope"` // ScopeWorkspace, ...
	ScopeID     string                `json:"scope_id,omitzero"`
	Components  []AuthClientComponent `json:"components"`
	Credentials map[string]any        `json:"credentials"` // by member, "********" for a secret
	Settled     bool                  `json:"settled"`     // the OAuth clients of its components have been updated after the last change
	CreatedAt   time.Time             `json:"created_at"`
	CreatedBy   string                `json:"created_by,omitzero"` // "key:<id>"
	UpdatedAt   time.Time             `json:"updated_at"`
	Seq         uint64                `json:"seq"` // log sequence of the last change
}

// AuthClientComponent is a component of an auth client.
type AuthClientComponent struct {
	Component   string `json:"component"`
	OAuthClient string `json:"oauth_client,omitzero"` // id of its OAuth client that the auth client manages
}

// NewAuthClient is a new auth client.
type NewAuthClient struct {
	Name        string
	Type        string   // oauth2, basic, api_key or noauth
	Scope       string   // ScopeTenant when empty
	ScopeID     string   // of the workspace or contract
	Components  []string // ids
	Credentials Keys     // of oauth2: client_id, client_secret, ...

	ExpectRevisions map[string]int // by component: refuse unless its current descriptor has this revision (component_changed); may be nil
	ID              string         // of an auth client that another system knows; generated when empty
}

// CreateAuthClient creates an auth client. One of type oauth2 and scope tenant
// also defines the OAuth clients of its components, all or none
// (oauth_client_exists, oauth_not_declared).
func (a *API) CreateAuthClient(ctx context.Context, in NewAuthClient, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "auth_client.create", struct {
		Name        string         `json:"name"`
		Type        string         `json:"type"`
		Scope       string         `json:"scope,omitzero"`
		ScopeID     string         `json:"scope_id,omitzero"`
		Components  []string       `json:"components"`
		Credentials jsontext.Value `json:"credentials"`
		Revisions   map[string]int `json:"expected_revisions,omitzero"`
		ID          string         `json:"id,omitzero"`
	}{in.Name, in.Type, in.Scope, in.ScopeID, in.Components, in.Credentials.reveal(), in.ExpectRevisions, in.ID}, &done, opts...)
	return done, err
}

// AuthClientChange is a change of an auth client: empty members are unchanged.
type AuthClientChange struct {
	Name        string
	Components  []string // replace all components
	Credentials Keys     // replace the members of the same name

	ExpectRevisions map[string]int // as in NewAuthClient
}

// ChangeAuthClient changes an auth client and the OAuth clients of its components
// (oauth_client_in_use, see FlowsOf).
func (a *API) ChangeAuthClient(ctx context.Context, id string, in AuthClientChange, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "auth_client.change", struct {
		ID          string         `json:"id"`
		Name        string         `json:"name,omitzero"`
		Components  []string       `json:"components,omitzero"`
		Credentials jsontext.Value `json:"credentials"`
		Revisions   map[string]int `json:"expected_revisions,omitzero"`
	}{id, in.Name, in.Components, in.Credentials.reveal(), in.ExpectRevisions}, &done, opts...)
	return done, err
}

// DeleteAuthClient deletes an auth client and the OAuth clients that it manages. It is
// refused while a flow, active or not, includes one of its components
// (oauth_client_in_use, see FlowsOf).
func (a *API) DeleteAuthClient(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "auth_client.delete", byID{ID: id}, &done, opts...)
	return done, err
}

// GetAuthClient returns one auth client, no older than the log sequence minSeq.
func (a *API) GetAuthClient(ctx context.Context, id string, minSeq uint64) (AuthClient, error) {
	var c AuthClient
	err := a.Query(ctx, "auth_client.get", byID{id, minSeq}, &c)
	return c, err
}

// AuthClientFilter selects auth clients; its members combine by AND.
type AuthClientFilter struct {
	Component string // only those for this component
	Scope     string // only those visible in this scope; all when empty
	ScopeID   string // of the workspace or contract
}

// AuthClients yields the auth clients that are visible to the tenant, oldest first.
func (a *API) AuthClients(ctx context.Context, filter AuthClientFilter) iter.Seq2[AuthClient, error] {
	return func(yield func(AuthClient, error) bool) {
		for after := ""; ; {
			var page struct {
				AuthClients []AuthClient `json:"auth_clients"`
				Next        string       `json:"next"`
			}
			err := a.Query(ctx, "auth_client.list", struct {
				Component string `json:"component,omitzero"`
				Scope     string `json:"scope,omitzero"`
				ScopeID   string `json:"scope_id,omitzero"`
				After     string `json:"after,omitzero"`
				Limit     int    `json:"limit"`
			}{filter.Component, filter.Scope, filter.ScopeID, after, 200}, &page)
			if err != nil {
				yield(AuthClient{}, err)
				return
			}
			for _, c := range page.AuthClients {
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

// RevealAuthClient returns the clear credentials of one auth client as a JSON object.
// The key needs the permission credentials.reveal. The access is audited first.
func (a *API) RevealAuthClient(ctx context.Context, id string, opts ...CommandOption) (jsontext.Value, error) {
	var shown struct {
		Credentials jsontext.Value `json:"credentials"`
	}
	err := a.Command(ctx, "auth_client.reveal", byID{ID: id}, &shown, opts...)
	return shown.Credentials, err
}
