package client

import (
	"context"
	"time"
)

// IssueAPIKey is a new API key. It has a role, permissions, or both.
type IssueAPIKey struct {
	Role        string   `json:"role,omitzero"`        // "ADMINISTRATOR", "OPERATOR", "FLOW_ENGINE", "AUDITOR", or a role of the tenant
	Permissions []string `json:"permissions,omitzero"` // in addition to those of the role, such as "credentials.reveal"
	Name        string   `json:"name,omitzero"`        // display name
	Tenants     []string `json:"tenants,omitzero"`     // tenants it may access, "*" is every one; the caller's when empty
	Expires     string   `json:"expires,omitzero"`     // a time (RFC 3339), or a duration such as "720h"; never when empty
	Addresses   []string `json:"addresses,omitzero"`   // networks (CIDR) it may be used from; from everywhere when empty
	Components  []string `json:"components,omitzero"`  // ids: only credentials of these components; all when empty
	Workspaces  []string `json:"workspaces,omitzero"`  // only credentials created with these workspace ids; all when empty
	Credentials []string `json:"credentials,omitzero"` // only the credentials with these ids; all when empty
	Certificate string   `json:"certificate,omitzero"` // name in a client certificate that stands for the key, such as "dns:engine.example.org"; a secret key when empty
}

type IssuedAPIKey struct {
	Done
	Key     string    `json:"key,omitzero"`     // shown once: the response to a repeated command lacks it, and so does a key that a certificate stands for
	Expires time.Time `json:"expires,omitzero"` // when it expires
}

// IssueAPIKey issues an API key. The key is in this response and nowhere else.
func (a *API) IssueAPIKey(ctx context.Context, in IssueAPIKey, opts ...CommandOption) (IssuedAPIKey, error) {
	var issued IssuedAPIKey
	err := a.Command(ctx, "api_key.issue", in, &issued, opts...)
	return issued, err
}

// RevokeAPIKey revokes an API key.
func (a *API) RevokeAPIKey(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "api_key.revoke", byID{ID: id}, &done, opts...)
	return done, err
}

// APIKey is what the service shows of an API key.
type APIKey struct {
	ID          string    `json:"id"`
	Name        string    `json:"name"`
	Role        string    `json:"role"`                 // built in, or a role of the tenant; "" when it has only single permissions
	Permissions []string  `json:"permissions,omitzero"` // held by name: those of a role of the tenant too, but not those of a built-in role
	Tenants     []string  `json:"tenants"`
	Addresses   []string  `json:"addresses,omitzero"`   // networks it may be used from; empty: from everywhere
	Components  []string  `json:"components,omitzero"`  // the components of the credentials that it reaches; empty: any
	Workspaces  []string  `json:"workspaces,omitzero"`  // the workspaces of the credentials that it reaches; empty: any
	Credentials []string  `json:"credentials,omitzero"` // the credentials that it reaches; empty: any
	Certificate string    `json:"certificate,omitzero"` // name in the client certificate that stands for the key; empty: a secret key
	Expires     time.Time `json:"expires,omitzero"`     // zero: never
	Expired     bool      `json:"expired,omitzero"`
	Revoked     bool      `json:"revoked"`
	IssuedAt    time.Time `json:"issued_at"`
	LastUsedAt  time.Time `json:"last_used_at,omitzero"` // to the minute; zero when unknown
}

// ListAPIKeys returns every key whose home is the tenant, page by page.
func (a *API) ListAPIKeys(ctx context.Context, minSeq uint64) ([]APIKey, error) {
	var keys []APIKey
	ask := struct {
		Limit  int    `json:"limit"`
		After  string `json:"after,omitzero"`
		MinSeq uint64 `json:"min_seq,omitzero"`
	}{Limit: 200, MinSeq: minSeq}
	for {
		var page struct {
			Keys []APIKey `json:"keys"`
			Next string   `json:"next"`
		}
		if err := a.Query(ctx, "api_key.list", ask, &page); err != nil {
			return nil, err
		}
		keys = append(keys, page.Keys...)
		if page.Next == "" {
			return keys, nil
		}
		ask.After = page.Next
	}
}
