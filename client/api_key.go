package client

import (
	"context"
	"time"
)

// IssueAPIKey asks for a new API key.
type IssueAPIKey struct {
	Role    string   `json:"role"`             // "ADMINISTRATOR", "OPERATOR", "FLOW_ENGINE" or "AUDITOR"
	Name    string   `json:"name,omitzero"`    // for people
	Tenants []string `json:"tenants,omitzero"` // tenants it may name, "*" is every one; the caller's when empty
}

// IssuedAPIKey answers IssueAPIKey.
type IssuedAPIKey struct {
	Done
	Key string `json:"key,omitzero"` // shown once: a repeated command answers without it
}

// IssueAPIKey issues an API key. The key is in this answer and nowhere else.
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
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Role     string    `json:"role"`
	Tenants  []string  `json:"tenants"`
	Revoked  bool      `json:"revoked"`
	IssuedAt time.Time `json:"issued_at"`
}

// ListAPIKeys returns the keys whose home is the tenant.
func (a *API) ListAPIKeys(ctx context.Context, minSeq uint64) ([]APIKey, error) {
	var list struct {
		Keys []APIKey `json:"keys"`
	}
	err := a.Query(ctx, "api_key.list", struct {
		MinSeq uint64 `json:"min_seq,omitzero"`
	}{minSeq}, &list)
	return list.Keys, err
}
