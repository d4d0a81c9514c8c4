package client

import (
	"context"
	"time"
)

// RevokedCredential is the response of RevokeCredential. The tokens are revoked locally in any case;
// Says is the reason if the provider did not confirm the revocation.
type RevokedCredential struct {
	Done
	Outcome string `json:"outcome,omitzero"` // "revoked", "not_offered" where the component names no revocation_uri, "transient", ...; "" when no tokens were held
}

// RevokeCredential revokes the tokens of an OAuth credential locally and at its
// provider (credential_not_oauth). The credential remains and can be connected again.
func (a *API) RevokeCredential(ctx context.Context, id string, opts ...CommandOption) (RevokedCredential, error) {
	var done RevokedCredential
	err := a.Command(ctx, "credential.revoke", change{ID: id}, &done, opts...)
	return done, err
}

// RevocationScope selects the tokens of a bulk revocation: one of its members is set.
type RevocationScope struct {
	All         bool   `json:"all,omitzero"`          // every OAuth credential of the tenant
	Component   string `json:"component,omitzero"`    // those of this component
	OAuthClient string `json:"oauth_client,omitzero"` // those of the component of the OAuth client with this id
}

type RevocationStarted struct {
	Done
	Total int `json:"total"` // credentials that hold tokens
}

// RevokeOAuth starts to revoke the tokens of many credentials, and returns at once:
// OAuthRevocation reports the progress (revocation_under_way). If it is interrupted,
// repeat the call to revoke the remaining tokens.
func (a *API) RevokeOAuth(ctx context.Context, scope RevocationScope, opts ...CommandOption) (RevocationStarted, error) {
	return a.revokeOAuth(ctx, scope, false, opts)
}

// RevokeOAuthDryRun returns the number of credentials that RevokeOAuth would affect.
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

// RevocationProgress is the progress of a bulk revocation. Its numbers count
// credentials.
type RevocationProgress struct {
	ID         string              `json:"id,omitzero"` // of the revocation
	Here       bool                `json:"here"`        // the responding process ran it; else only Left is known
	Running    bool                `json:"running"`
	Total      int                 `json:"total"`       // with tokens when it began
	Done       int                 `json:"done"`        // whose tokens are revoked locally
	AtProvider int                 `json:"at_provider"` // of these, confirmed by the provider
	NotOffered int                 `json:"not_offered"` // of these, without a revocation_uri in the component
	Erased     int                 `json:"erased"`      // secrets erased from the vault, after all tokens are revoked
	Failed     int                 `json:"failed"`      // not confirmed by the provider, or not revoked
	Failures   []RevocationFailure `json:"failures"`    // the first 20 failures
	StartedAt  time.Time           `json:"started_at,omitzero"`
	EndedAt    time.Time           `json:"ended_at,omitzero"` // zero while it runs
	Left       int                 `json:"left"`              // of the tenant with tokens now
}

// RevocationFailure is the reason why a revocation was not confirmed.
type RevocationFailure struct {
	Credential string `json:"credential"`
	Outcome    string `json:"outcome,omitzero"` // at the provider; "" when the tokens were not revoked
	Says       string `json:"says"`             // a sentence
}

// OAuthRevocation returns the progress of a bulk revocation: the one with this id,
// or the tenant's last one when it is "".
func (a *API) OAuthRevocation(ctx context.Context, id string) (RevocationProgress, error) {
	var p RevocationProgress
	err := a.Query(ctx, "oauth.revocation", struct {
		ID string `json:"id,omitzero"`
	}{id}, &p)
	return p, err
}
