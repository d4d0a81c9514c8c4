package events

import (
	"encoding/json"
	"time"
)

// ReauthorizationRequired is the status of a credential whose grant the provider no longer
// accepts: a person must connect it again.
const ReauthorizationRequired Status = "reauthorization_required"

// CredentialAuthorized records: A field of the newest keys has tokens of an OAuth authorization
// server. The event is in the same commit as the keys.
type CredentialAuthorized struct {
	Grant      int       `json:"grant" feed:"-"`               // 1, 2, 3, ...: increases with every authorization of the credential
	Version    int       `json:"version" feed:"version"`       // of the keys
	Field      string    `json:"field" feed:"field"`           // that holds the tokens
	By         string    `json:"by" feed:"by"`                 // "keys" given by the caller, "connect" or "client_credentials"
	User       string    `json:"user" feed:"user"`             // id of the caller's user who connected, or ""
	Expires    time.Time `json:"expires" feed:"expires"`       // of the access token
	Lifetime   int64     `json:"lifetime" feed:"-"`            // full lifetime of the access token at the time of issue, in seconds
	Renewable  bool      `json:"renewable" feed:"-"`           // there is a refresh token, or the grant is client credentials
	Scope      string    `json:"scope" feed:"scope"`           // as the provider stated it, "" if it did not
	Connection string    `json:"connection" feed:"connection"` // id of the connect link, or ""
	Due        time.Time `json:"due,omitzero" feed:"-"`        // when they are due for renewal; zero: derived from Lifetime
	Odd        string    `json:"odd" feed:"-"`                 // a sentence about an implausible lifetime in the provider's response, or ""
}

// CredentialRefreshStarted records: One process started to renew the tokens: an epoch. It
// stores the provider's response in the vault under SecretID first, so that a process that
// takes over the epoch finds it there.
type CredentialRefreshStarted struct {
	Epoch    int    `json:"epoch"`     // number of the refresh of the credential: 1, 2, 3, ...
	Grant    int    `json:"grant"`     // grant whose tokens are renewed
	SecretID string `json:"secret_id"` // id of the secret under which the response will be stored
	Holder   string `json:"holder"`    // id of the process
	Over     int    `json:"over"`      // the epoch that was taken over without a response; 0: none
}

// CredentialRefreshed records: Renewed tokens, which are durable in the vault, were activated.
type CredentialRefreshed struct {
	Epoch    int       `json:"epoch" feed:"-"`
	Grant    int       `json:"grant" feed:"-"`
	SecretID string    `json:"secret_id" feed:"-"`
	Expires  time.Time `json:"expires" feed:"expires"` // expiry of the access token; zero: it must be renewed before any caller gets it
	Lifetime int64     `json:"lifetime" feed:"-"`      // full lifetime of the access token at the time of issue, in seconds
	Rotated  bool      `json:"rotated" feed:"rotated"` // the provider rotated the refresh token
	Scope    string    `json:"scope" feed:"scope"`     // as the provider stated it, "" if it did not
	Late     bool      `json:"late" feed:"-"`          // the epoch had been taken over or had ended before the response was found
	Due      time.Time `json:"due,omitzero" feed:"-"`  // as in CredentialAuthorized
	Odd      string    `json:"odd" feed:"-"`           // as in CredentialAuthorized
}

// CredentialRefreshFailed records: An epoch ended without new tokens.
type CredentialRefreshFailed struct {
	Epoch   int       `json:"epoch" feed:"-"`
	Grant   int       `json:"grant" feed:"-"`
	Outcome string    `json:"outcome" feed:"outcome"`                     // "transient", "malformed", "client_refused", "refused", "too_early", "revoked", "busy" (nothing was sent) or "unknown"
	Status  int       `json:"status" feed:"status"`                       // of the HTTP response; 0: there was none
	RetryAt time.Time `json:"retry_at,omitzero" feed:"retry_at,omitzero"` // next automatic attempt; zero: none
	Left    int64     `json:"left" feed:"-"`                              // remaining validity of the access token when the provider refused, in seconds
}

// CredentialReauthorizationRequired records: The tokens no longer work; the account must be
// connected again.
type CredentialReauthorizationRequired struct {
	Grant  int      `json:"grant" feed:"-"`
	Reason string   `json:"reason" feed:"reason"` // "revoked" at the provider, "refused" by it for another reason until the token had expired, or "revoked_here"
	Says   string   `json:"says" feed:"says"`     // why, in a plain sentence
	Flows  []string `json:"flows" feed:"flows"`   // ids of flows that name the credential, sorted: the first 100
	Total  int      `json:"total" feed:"total"`   // how many flows name it

	RetryAt time.Time `json:"retry_at,omitzero" feed:"retry_at,omitzero"` // next attempt to renew them nevertheless; zero: none
}

// CredentialRecovered records: The tokens work again.
type CredentialRecovered struct {
	Grant  int    `json:"grant" feed:"-"`
	Status Status `json:"status" feed:"status"` // of the credential from now on
}

// CredentialTokensRevoked records: The tokens were revoked on request: they are erased from the
// vault, with the keys that contained them.
type CredentialTokensRevoked struct {
	Grant int `json:"grant" feed:"-"`
}

// CredentialRevokedAtProvider records: The result of revoking a token at the authorization server
// (RFC 7009). It may follow the credential's deletion.
type CredentialRevokedAtProvider struct {
	Outcome string `json:"outcome" feed:"outcome"` // "revoked", or as CredentialRefreshFailed has it
}

// Whether renewals extend the lifetime of a refresh token.
const (
	RefreshUnknown  = "unknown"  // there was no renewal yet
	RefreshFixed    = "fixed"    // they do not: the account must be connected again before the token expires
	RefreshExtended = "extended" // they do: the token expires only if nothing renews it
)

// CredentialRefreshTokenExpirySet records: The provider stated, or the component declares, when the
// refresh token expires, or a renewal showed whether it extends that. The event is in the same commit
// as the tokens.
type CredentialRefreshTokenExpirySet struct {
	Expires  time.Time `json:"expires" feed:"expires"`
	Lifetime int64     `json:"lifetime" feed:"-"`      // in seconds, when it was stated
	Renewal  string    `json:"renewal" feed:"renewal"` // "unknown", "fixed" or "extended"
}

// CredentialToken is the set of events about the tokens of a credential.
//
//sumtype:decl
type CredentialToken interface {
	Credential
	credentialToken()
}

func (CredentialAuthorized) credentialToken()              {}
func (CredentialRefreshStarted) credentialToken()          {}
func (CredentialRefreshed) credentialToken()               {}
func (CredentialRefreshFailed) credentialToken()           {}
func (CredentialReauthorizationRequired) credentialToken() {}
func (CredentialRecovered) credentialToken()               {}
func (CredentialTokensRevoked) credentialToken()           {}
func (CredentialRevokedAtProvider) credentialToken()       {}
func (CredentialRefreshTokenExpirySet) credentialToken()   {}

func (CredentialAuthorized) credential()              {}
func (CredentialRefreshStarted) credential()          {}
func (CredentialRefreshed) credential()               {}
func (CredentialRefreshFailed) credential()           {}
func (CredentialReauthorizationRequired) credential() {}
func (CredentialRecovered) credential()               {}
func (CredentialTokensRevoked) credential()           {}
func (CredentialRevokedAtProvider) credential()       {}
func (CredentialRefreshTokenExpirySet) credential()   {}

var tokenTypes = []Type{
	Define[CredentialAuthorized]("credential.authorized", Changes, withoutOdd).KeepingSecrets(),
	Define[CredentialRefreshStarted]("credential.refresh_started", Internal).KeepingValues(),
	Define[CredentialRefreshed]("credential.refreshed", Changes, withoutOdd),
	Define[CredentialRefreshFailed]("credential.refresh_failed", Changes, withoutLeft).KeepingValues(),
	Define[CredentialReauthorizationRequired]("credential.reauthorization_required", Changes, withoutRetry),
	Define[CredentialRecovered]("credential.recovered", Changes).KeepingSecrets(),
	Define[CredentialTokensRevoked]("credential.tokens_revoked", Changes),
	Define[CredentialRevokedAtProvider]("credential.revoked_at_provider", Changes).KeepingSecrets(),
	Define[CredentialRefreshTokenExpirySet]("credential.refresh_token_expiry_set", Changes).KeepingValues(),
}

// Version 2 adds due and odd.
func withoutOdd(data json.RawMessage) (json.RawMessage, error) { return withMember(data, "odd", `""`) }

// Version 2 adds left.
func withoutLeft(data json.RawMessage) (json.RawMessage, error) { return withMember(data, "left", "0") }

// Version 2 adds retry_at: the service did not retry before.
func withoutRetry(data json.RawMessage) (json.RawMessage, error) { return data, nil }
