package aggregates

import (
	"slices"
	"strconv"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of a credential's tokens.
var (
	ErrNotOAuth = fault.New(fault.Precondition, "credential_not_oauth", "The credential has no OAuth tokens.")
	// ErrReauthorizationRequired refuses tokens that the authorization server no longer accepts.
	ErrReauthorizationRequired = fault.New(fault.Precondition, "reauthorization_required",
		"The credential must be connected again: the provider no longer accepts its tokens.")
	ErrRevertOAuth = fault.New(fault.Precondition, "credential_revert_oauth",
		"Tokens of an earlier version are no longer valid. Connect the credential again instead.")
	// ErrRefreshUnderWay, ErrRefreshNeedless and ErrRefreshSuperseded are for the
	// processes that renew tokens. Callers never see them.
	ErrRefreshUnderWay   = fault.New(fault.Conflict, "refresh_under_way", "The tokens are being renewed.")
	ErrRefreshNeedless   = fault.New(fault.Conflict, "refresh_needless", "The tokens were already renewed.")
	ErrRefreshSuperseded = fault.New(fault.Conflict, "refresh_superseded", "Newer tokens are active.")
)

// RevokedHere is the problem that a credential shows after its tokens were revoked on
// request, and ReasonRevokedHere the reason in the event.
const (
	RevokedHere       = "The tokens were revoked on request. Connect the credential again."
	ReasonRevokedHere = "revoked_here"
)

// OutcomeBusy is the outcome of a refresh that did not call the provider, because no slot was
// free.
const OutcomeBusy = "busy"

// Limits: flows in an event, and superseded refreshes in a state whose late responses are still
// accepted.
const (
	maxListedFlows   = 100
	maxLateRefreshes = 8
)

// Tokens is the state of a credential's OAuth tokens. The zero value means that it has
// none and never had any.
type Tokens struct {
	Grant          int    // number of the last authorization; 0 if there was none
	Field          string // field of the keys with the current tokens; "" if there are none
	Token          Token  // current
	Renewable      bool
	Epoch          int           // number of the last refresh started
	Refresh        Refresh       // in progress; Epoch 0 if there is none
	Late           []Refresh     // refreshes of this grant that were taken over without a response, which may still arrive
	Failures       int           // consecutive failures
	RetryAt        time.Time     // after the last failure; zero after a success
	ReauthReason   string        `json:"Broken"`   // sentence why re-authorization is required; "" if it is not
	StatusBefore   events.Status `json:"Before"`   // status of the credential before ReauthReason was set
	RevokedLocally bool          `json:"Cut"`      // revoked on request: no renewal may restore them
	Unverified     bool          `json:"Unproved"` // the current token arrived late: its next renewal shows whether it is valid
	Refusals       int           // consecutive refusals by the provider to renew the current token
	RefusedLeft    time.Duration // remaining validity of the current token at the last refusal; 0: it had expired
	Ahead          time.Duration // how long before the expiry of an access token the provider renews it, learned from refusals; 0: unknown
	Scope          string        // as the provider stated it, "" if it did not
	Odd            string        // a sentence about an implausible lifetime in the provider's response; "" for none

	RefreshToken events.CredentialRefreshTokenExpirySet // the zero value if nothing is known of its lifetime
}

// Token is one access token.
type Token struct {
	Epoch    int    // refresh that produced it; after a new grant, the last refresh of the previous grant
	SecretID string // in the vault; the secret of the keys if they hold the token
	Expires  time.Time
	Lifetime time.Duration // full lifetime at the time of issue
	Due      time.Time     // for renewal; zero: derived from Lifetime
	Endless  bool          // valid until it is revoked
}

// Refresh is a refresh in progress.
type Refresh struct {
	Epoch    int
	From     int    // epoch of the token it renews
	SecretID string // where the response will be stored
	Holder   string // id of the process
}

// ValidFor reports whether the token stays valid for life, or for half of its lifetime if that
// is shorter.
func (t Token) ValidFor(now time.Time, life time.Duration) bool {
	return t.Endless || t.Expires.Sub(now) >= min(life, t.Lifetime/2) && t.Plausible(now)
}

// leastLeft is the minimum remaining validity of a token that callers get.
const leastLeft = 2 * time.Second

// Serves reports whether the token is still valid at all. Callers get such a token if the provider
// does not renew it yet.
func (t Token) Serves(now time.Time) bool { return t.ValidFor(now, leastLeft) }

// clockDrift is the tolerated difference between the clocks of the processes.
const clockDrift = time.Minute

// Plausible reports whether the token expires no later than its lifetime allows. A later
// expiry was written by a clock that was ahead.
func (t Token) Plausible(now time.Time) bool {
	return t.Lifetime == 0 || t.Expires.Sub(now) <= t.Lifetime+clockDrift
}

// IsOAuth reports whether the credential has a token field. It is also true after the tokens
// were revoked.
func (s CredentialState) IsOAuth() bool { return s.Live() && s.Tokens.Field != "" }

// ValuesTag identifies the current values, like an ETag: it changes when keys or tokens change
// or become invalid. It is "" if there are none.
func (s CredentialState) ValuesTag() string {
	switch {
	case !s.Live():
		return ""
	case s.Tokens.ReauthReason != "":
		return "broken"
	}
	return strconv.Itoa(s.Current().Version) + "." + strconv.Itoa(s.Tokens.Token.Epoch)
}

// referencesToken reports whether the secret is a current token, or may become one.
func (t Tokens) referencesToken(secretID string) bool {
	is := func(r Refresh) bool { return r.SecretID == secretID }
	return t.Token.SecretID == secretID || is(t.Refresh) || slices.ContainsFunc(t.Late, is)
}

// TokenSecrets returns the secrets of the current tokens and of the refreshes that may still
// produce some.
func (t Tokens) TokenSecrets() (ids []string) {
	for _, id := range []string{t.Token.SecretID, t.Refresh.SecretID} {
		if id != "" {
			ids = append(ids, id)
		}
	}
	for _, r := range t.Late {
		ids = append(ids, r.SecretID)
	}
	return ids
}

// authorized returns the events for keys whose field holds tokens; none if t is nil.
func (s CredentialState) authorized(keys events.KeysVersion, t *commands.Tokens) []events.Credential {
	if t == nil {
		return nil
	}
	grant := s.Tokens.Grant + 1
	facts := []events.Credential{events.CredentialAuthorized{
		Grant: grant, Version: keys.Version, Field: t.Field, By: t.By, User: t.User, Connection: t.Connection,
		Expires: t.Expires.UTC(), Lifetime: int64(t.Lifetime / time.Second), Renewable: t.Renewable, Scope: t.Scope,
		Due: t.Due.UTC(), Odd: t.Odd,
	}}
	if life := t.RefreshToken; !life.Expires.IsZero() {
		fact := refreshTokenStated(life, events.RefreshUnknown)
		if life.Fixed {
			fact.Renewal = events.RefreshFixed
		}
		facts = append(facts, fact)
	}
	if s.Tokens.ReauthReason != "" {
		facts = append(facts, events.CredentialRecovered{Grant: grant, Status: keys.Verification.Status})
	}
	return facts
}

func refreshTokenStated(life commands.RefreshTokenLife, renewal string) events.CredentialRefreshTokenExpirySet {
	return events.CredentialRefreshTokenExpirySet{Expires: life.Expires.UTC(), Lifetime: int64(life.Lifetime / time.Second), Renewal: renewal}
}

// refreshTokenLife compares what the provider states of the refresh token after a renewal with what it
// stated before: if the expiry moved about as much as time has passed, renewals extend it. It returns no
// event if nothing new is known, so that renewals in general have none.
func (t Tokens) refreshTokenLife(life commands.RefreshTokenLife) []events.Credential {
	const (
		leastApart = 30 * time.Second // between two statements, or rounding hides the difference
		differs    = time.Hour        // a fixed expiry that is stated earlier by at least this much is another one
	)
	known := t.RefreshToken
	stated := life.Expires.Add(-life.Lifetime)
	passed := stated.Sub(known.Expires.Add(-time.Duration(known.Lifetime) * time.Second))
	moved := life.Expires.Sub(known.Expires)
	switch {
	case life.Expires.IsZero(), known.Renewal == events.RefreshExtended:
		return nil
	case known.Expires.IsZero():
		return []events.Credential{refreshTokenStated(life, events.RefreshUnknown)}
	case passed < leastApart:
		return nil
	case moved > passed/2:
		return []events.Credential{refreshTokenStated(life, events.RefreshExtended)}
	case known.Renewal == events.RefreshUnknown, moved < -differs:
		return []events.Credential{refreshTokenStated(life, events.RefreshFixed)}
	}
	return nil
}

func (s CredentialState) mayRenew() error {
	switch {
	case !s.Live():
		return ErrCredentialNotFound
	case s.Tokens.Field == "":
		return ErrNotOAuth
	}
	return nil
}

func (s CredentialState) startRefresh(c commands.StartRefresh) ([]events.Credential, error) {
	t := s.Tokens
	switch err := s.mayRenew(); {
	case err != nil:
		return nil, err
	case t.ReauthReason != "" && (!c.RetryRejected || !t.Renewable || t.RevokedLocally):
		return nil, ErrReauthorizationRequired.Withf("%s", t.ReauthReason)
	case !t.Renewable:
		return nil, ErrReauthorizationRequired
	case t.Token.Epoch != c.Epoch:
		return nil, ErrRefreshNeedless
	case t.Refresh.Epoch != c.TakesOver:
		return nil, ErrRefreshUnderWay
	case slices.Contains(s.Abandoned, c.SecretID):
		return nil, ErrSecretAbandoned
	}
	var facts []events.Credential
	if c.TakesOver != 0 {
		facts = append(facts, events.CredentialRefreshFailed{Epoch: c.TakesOver, Grant: t.Grant, Outcome: "unknown"})
	}
	return append(facts, events.CredentialRefreshStarted{
		Epoch: t.Epoch + 1, Grant: t.Grant, SecretID: c.SecretID, Holder: c.InstanceID, Over: c.TakesOver,
	}), nil
}

// completeRefresh accepts a response of the current grant that is newer than the current token,
// even a late one: the provider may have invalidated all older tokens. If another process has
// started a refresh meanwhile, it may have used the same refresh token, and some providers
// react by revoking the whole grant. So a late token is renewed before any caller gets it.
func (s CredentialState) completeRefresh(c commands.CompleteRefresh) ([]events.Credential, error) {
	t := s.Tokens
	switch err := s.mayRenew(); {
	case err != nil:
		return nil, err
	case t.Token.SecretID == c.SecretID:
		return nil, nil
	case t.Grant != c.Grant, t.Token.Epoch >= c.Epoch, t.RevokedLocally:
		return nil, ErrRefreshSuperseded
	case slices.Contains(s.Abandoned, c.SecretID):
		return nil, ErrSecretAbandoned
	}
	fact := events.CredentialRefreshed{
		Epoch: c.Epoch, Grant: c.Grant, SecretID: c.SecretID, Expires: c.Expires.UTC(), Lifetime: int64(c.Lifetime / time.Second),
		Rotated: c.Rotated, Scope: c.Scope, Late: t.Refresh.Epoch != c.Epoch, Due: c.Due.UTC(), Odd: c.Odd,
	}
	if t.Epoch > c.Epoch {
		fact.Expires, fact.Due = time.Time{}, time.Time{}
		return []events.Credential{fact}, nil
	}
	facts := append([]events.Credential{fact}, t.refreshTokenLife(c.RefreshToken)...)
	if t.ReauthReason != "" {
		facts = append(facts, events.CredentialRecovered{Grant: c.Grant, Status: t.StatusBefore})
	}
	return facts, nil
}

func (s CredentialState) failRefresh(c commands.FailRefresh) ([]events.Credential, error) {
	t := s.Tokens
	switch err := s.mayRenew(); {
	case err != nil:
		return nil, err
	case t.Grant != c.Grant || t.Refresh.Epoch != c.Epoch:
		return nil, nil // it has ended already
	}
	facts := []events.Credential{events.CredentialRefreshFailed{
		Epoch: c.Epoch, Grant: c.Grant, Outcome: c.Outcome, Status: c.Status, RetryAt: c.RetryAt.UTC(),
		Left: int64(c.Left / time.Second),
	}}
	// Only a refusal of the current token counts, and a retry after ReauthReason was set changes nothing.
	if c.ReauthReason != "" && t.Token.Epoch == t.Refresh.From && (t.ReauthReason == "" || t.Unverified) {
		fact := s.broken(c.Grant, c.Outcome, c.ReauthReason)
		fact.RetryAt = c.RetryAt.UTC()
		facts = append(facts, fact)
	}
	return facts, nil
}

func (s CredentialState) requireReauthorization(c commands.RequireReauthorization) ([]events.Credential, error) {
	switch err := s.mayRenew(); {
	case err != nil:
		return nil, err
	case s.Tokens.Grant != c.Grant || s.Tokens.RevokedLocally || s.Tokens.ReauthReason != "" && c.Reason != ReasonRevokedHere:
		return nil, nil
	}
	return []events.Credential{s.broken(c.Grant, c.Reason, c.Says)}, nil
}

func (s CredentialState) broken(grant int, reason, says string) events.CredentialReauthorizationRequired {
	flows, total := s.Uses.NamedFlows(maxListedFlows)
	return events.CredentialReauthorizationRequired{Grant: grant, Reason: reason, Says: says, Flows: flows, Total: total}
}

func (s CredentialState) revokeTokens(c commands.RevokeTokens) ([]events.Credential, error) {
	if err := s.mayRenew(); err != nil {
		return nil, err
	}
	if s.Tokens.Grant != c.Grant || s.Current().SecretID == "" { // the grant has ended, and another one may be current
		return nil, nil
	}
	facts := []events.Credential{events.CredentialTokensRevoked{Grant: s.Tokens.Grant}}
	if !s.Tokens.RevokedLocally {
		facts = append(facts, s.broken(s.Tokens.Grant, ReasonRevokedHere, RevokedHere))
	}
	return facts, nil
}

func (s CredentialState) evolveTokens(e events.CredentialToken) CredentialState {
	t := &s.Tokens
	switch e := e.(type) {
	case events.CredentialAuthorized:
		*t = Tokens{
			Grant: e.Grant, Field: e.Field, Renewable: e.Renewable, Epoch: t.Epoch,
			Token: Token{
				Epoch: t.Epoch, SecretID: s.Current().SecretID, Expires: e.Expires, Lifetime: time.Duration(e.Lifetime) * time.Second,
				Due: e.Due, Endless: !e.Renewable && e.Expires.IsZero() && e.Lifetime == 0,
			},
			Scope: e.Scope, Odd: e.Odd,
		}
		s.Versions = slices.Clone(s.Versions[len(s.Versions)-1:]) // earlier tokens cannot be restored
	case events.CredentialRefreshStarted:
		if t.Refresh.Epoch != 0 {
			t.Late = append(slices.Clip(t.Late), t.Refresh)
			t.Late = t.Late[max(0, len(t.Late)-maxLateRefreshes):]
		}
		t.Epoch = e.Epoch
		t.Refresh = Refresh{Epoch: e.Epoch, From: t.Token.Epoch, SecretID: e.SecretID, Holder: e.Holder}
	case events.CredentialRefreshed:
		t.Token = Token{
			Epoch: e.Epoch, SecretID: e.SecretID, Expires: e.Expires, Lifetime: time.Duration(e.Lifetime) * time.Second, Due: e.Due,
		}
		if t.RefusedLeft > 0 { // by half of it the provider renewed it
			t.Ahead = t.RefusedLeft / 2
		}
		if t.Odd = e.Odd; e.Scope != "" {
			t.Scope = e.Scope
		}
		t.Refusals, t.RefusedLeft = 0, 0
		t.Late = slices.DeleteFunc(slices.Clone(t.Late), func(r Refresh) bool { return r.Epoch <= e.Epoch })
		if t.Refresh.Epoch <= e.Epoch {
			t.Refresh = Refresh{}
		}
		t.Failures, t.RetryAt, t.Unverified = 0, time.Time{}, e.Expires.IsZero()
	case events.CredentialRefreshFailed:
		if e.Outcome == "unknown" { // taken over: RefreshStarted follows and keeps it in Late
			return s
		}
		t.Refresh, t.RetryAt = Refresh{}, e.RetryAt
		if e.Outcome != OutcomeBusy {
			t.Failures++
		}
		switch e.Outcome {
		case "revoked", "refused", "too_early":
			t.Refusals++
			t.RefusedLeft = time.Duration(e.Left) * time.Second
		}
	case events.CredentialReauthorizationRequired:
		if t.ReauthReason == "" {
			t.StatusBefore = s.Status
		}
		t.ReauthReason, t.Unverified, s.Status = e.Says, false, events.ReauthorizationRequired
		t.RevokedLocally = t.RevokedLocally || e.Reason == ReasonRevokedHere
	case events.CredentialRecovered:
		t.ReauthReason, s.Status = "", e.Status
	case events.CredentialTokensRevoked:
		// The grant has ended: no response in flight may restore it.
		t.Grant, t.Token, t.Refresh, t.Late, t.Renewable = e.Grant+1, Token{Epoch: t.Epoch}, Refresh{}, nil, false
		s.Versions = slices.Clone(s.Versions)
		s.Versions[len(s.Versions)-1].SecretID = ""
	case events.CredentialRefreshTokenExpirySet:
		t.RefreshToken = e
	case events.CredentialRevokedAtProvider:
	}
	return s
}
