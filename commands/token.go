package commands

import "time"

// Tokens describes what an authorization server granted, beside the keys whose
// field holds it.
type Tokens struct {
	Field, By, User, Connection string
	Expires                     time.Time
	Lifetime                    time.Duration
	Renewable                   bool
	Scope                       string
	Due                         time.Time // when they are due for renewal; zero: as Lifetime has it
	Odd                         string    // what is implausible about the lifetime that the provider named; "" for nothing
}

// StartRefresh requests the right to renew the tokens of a credential.
type StartRefresh struct {
	ID       string
	Holder   string // the process that asks
	SecretID string // where it will put the answer
	Epoch    int    // of the token that is no longer good enough: another one in force makes the refresh needless
	Over     int    // the epoch under way that is taken over; 0: none
	Insist   bool   // also when re-authorization is required
}

// CompleteRefresh puts renewed tokens in force, which the vault holds.
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
}

// FailRefresh ends an epoch without new tokens.
type FailRefresh struct {
	ID           string
	Epoch, Grant int
	Outcome      string
	Status       int
	RetryAt      time.Time     // zero: never by itself
	Left         time.Duration // that the access token was still valid for when the provider refused; 0: it had expired
	Lost         string        // why the tokens are of no use any more, a sentence; "": they may still be
}

// RequireReauthorization says that the tokens are of no use any more.
type RequireReauthorization struct {
	ID           string
	Grant        int
	Reason, Says string
}

// RevokeTokens gives the tokens of a grant up.
type RevokeTokens struct {
	ID    string
	Grant int
}

// RecordProviderRevocation records what the authorization server answered.
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
