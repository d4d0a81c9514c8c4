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
}

// FailRefresh ends an epoch without new tokens.
type FailRefresh struct {
	ID           string
	Epoch, Grant int
	Outcome      string
	Status       int
	RetryAt      time.Time
	Lost         string // why the tokens are of no use any more, a sentence; "": they may still be
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
