package client

import (
	"context"
	"time"
)

// RevokedCredential answers RevokeCredential. The tokens are given up, whatever the
// provider said; Says tells why it did not confirm that it has forgotten them.
type RevokedCredential struct {
	Done
	Outcome string `json:"outcome,omitzero"` // "revoked", "not_offered" where the component names no revocation_uri, "transient", ...; "" when no tokens were held
}

// RevokeCredential gives up the tokens of an OAuth credential, here and at its
// provider (credential_not_oauth). The credential remains, to be connected again.
func (a *API) RevokeCredential(ctx context.Context, id string, opts ...CommandOption) (RevokedCredential, error) {
	var done RevokedCredential
	err := a.Command(ctx, "credential.revoke", change{ID: id}, &done, opts...)
	return done, err
}

// RevocationScope says whose tokens are revoked in bulk: one of its members is set.
type RevocationScope struct {
	All         bool   `json:"all,omitzero"`          // every OAuth credential of the tenant
	Component   string `json:"component,omitzero"`    // those of this component
	OAuthClient string `json:"oauth_client,omitzero"` // those of the component of the OAuth client with this id
}

type RevocationStarted struct {
	Done
	Total int `json:"total"` // credentials that hold tokens
}

// RevokeOAuth begins to give up the tokens of many credentials, and returns at once:
// OAuthRevocation tells of the progress (revocation_under_way). When it breaks off,
// the same again continues with those that still hold tokens.
func (a *API) RevokeOAuth(ctx context.Context, scope RevocationScope, opts ...CommandOption) (RevocationStarted, error) {
	return a.revokeOAuth(ctx, scope, false, opts)
}

// RevokeOAuthDryRun says how many credentials RevokeOAuth would concern.
func (a *API) RevokeOAuthDryRun(ctx context.Context, scope RevocationScope) (total int, err error) {
	started, err := a.revokeOAuth(ctx, scope, true, nil)
	return started.Total, err
}

func (a *API) revokeOAuth(ctx context.Context, scope RevocationScope, dry bool, opts []CommandOption) (RevocationStarted, error) {
	var started RevocationStarted
	err := a.Command(ctx, "oauth.revoke", struct {
		RevocationScope
		DryRun bool `json:"dry_run,omitzero"`
	}{scope, dry}, &started, opts...)
	return started, err
}

// RevocationProgress says how far a revocation in bulk has come. Its numbers are of
// credentials.
type RevocationProgress struct {
	ID         string              `json:"id,omitzero"` // of the revocation
	Here       bool                `json:"here"`        // the process that answered ran it; else all it can tell is Left
	Running    bool                `json:"running"`
	Total      int                 `json:"total"`       // that held tokens when it began
	Done       int                 `json:"done"`        // whose tokens are given up
	AtProvider int                 `json:"at_provider"` // of these, where the provider confirmed that it has forgotten them
	NotOffered int                 `json:"not_offered"` // of these, where the component names no address to tell the provider
	Erased     int                 `json:"erased"`      // secrets erased from the vault, after all are given up
	Failed     int                 `json:"failed"`      // where the provider did not confirm it, or the tokens could not be given up
	Failures   []RevocationFailure `json:"failures"`    // the first 20 of these
	StartedAt  time.Time           `json:"started_at,omitzero"`
	EndedAt    time.Time           `json:"ended_at,omitzero"` // zero while it runs
	Left       int                 `json:"left"`              // of the tenant that hold tokens now
}

// RevocationFailure says why a revocation was not confirmed.
type RevocationFailure struct {
	Credential string `json:"credential"`
	Outcome    string `json:"outcome,omitzero"` // of telling the provider; "" when the tokens are not given up
	Says       string `json:"says"`             // a sentence
}

// OAuthRevocation returns how far a revocation in bulk has come: that with this id,
// or the tenant's last one when it is "".
func (a *API) OAuthRevocation(ctx context.Context, id string) (RevocationProgress, error) {
	var p RevocationProgress
	err := a.Query(ctx, "oauth.revocation", struct {
		ID string `json:"id,omitzero"`
	}{id}, &p)
	return p, err
}
