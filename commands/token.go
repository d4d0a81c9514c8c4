package commands

import "time"

// Tokens describes the tokens in a field of new keys.
type Tokens struct {
	Field, By, User, Connection string
	Expires                     time.Time
	Lifetime                    time.Duration
	Renewable                   bool
	Scope                       string
	Due                         time.Time // when they are due for renewal; zero: derived from Lifetime
	Odd                         string    // a sentence about an implausible lifetime in the provider's response; "" for none
	RefreshToken                RefreshTokenLife
}

// RefreshTokenLife is what is known of the lifetime of a refresh token; the zero value is nothing.
type RefreshTokenLife struct {
	Expires  time.Time
	Lifetime time.Duration // from the time at which it was stated
	Fixed    bool          // declared by the component: renewals do not extend it
}

// StartRefresh claims the next renewal of a credential's tokens for one process.
type StartRefresh struct {
	ID            string
	InstanceID    string // id of the process
	SecretID      string // under which it will store the response
	Epoch         int    // of the token to replace: if a newer one is current, no refresh is needed
	TakesOver     int    // epoch in flight that is taken over; 0: none
	RetryRejected bool   // even if re-authorization is required
}

// CompleteRefresh activates renewed tokens, which are in the vault.
type CompleteRefresh struct {
	ID           string
	Epoch, Grant int
	SecretID     string
	Expires      time.Time
	Lifetime     time.Duration
	Rotated      bool
	Scope        string
	Due          time.Time // as in Tokens
	Odd          string
	RefreshToken RefreshTokenLife // as the provider stated it with these tokens
}

// FailRefresh ends an epoch without new tokens.
type FailRefresh struct {
	ID           string
	Epoch, Grant int
	Outcome      string
	Status       int
	RetryAt      time.Time     // next automatic attempt; zero: none
	Left         time.Duration // remaining validity of the access token when the provider refused; 0: it had expired
	ReauthReason string        // why the tokens no longer work, a sentence; "" if they may still work
}

// RequireReauthorization records that the tokens no longer work.
type RequireReauthorization struct {
	ID           string
	Grant        int
	Reason, Says string
}

// RevokeTokens revokes the tokens of a grant locally.
type RevokeTokens struct {
	ID    string
	Grant int
}

// RecordProviderRevocation records the result of a revocation at the authorization server.
type RecordProviderRevocation struct{ ID, Outcome string }

// Target implements Command.
func (c StartRefresh) Target() string             { return c.ID }
func (c CompleteRefresh) Target() string          { return c.ID }
func (c FailRefresh) Target() string              { return c.ID }
func (c RequireReauthorization) Target() string   { return c.ID }
func (c RevokeTokens) Target() string             { return c.ID }
func (c RecordProviderRevocation) Target() string { return c.ID }

func (StartRefresh) credential()             {}
func (CompleteRefresh) credential()          {}
func (FailRefresh) credential()              {}
func (RequireReauthorization) credential()   {}
func (RevokeTokens) credential()             {}
func (RecordProviderRevocation) credential() {}
