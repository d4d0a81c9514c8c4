package aggregates

import (
	"slices"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of an OAuth client.
var (
	ErrOAuthClientNotFound = fault.New(fault.NotFound, "oauth_client_not_found", "OAuth client not found.")
	ErrOAuthClientExists   = fault.New(fault.Exists, "oauth_client_exists",
		"The component already has an OAuth client in this tenant. Change it, or delete it first.")
	// ErrOAuthClientInUse refuses to delete the client of a component that a flow includes. Its
	// details list the flows.
	ErrOAuthClientInUse = fault.New(fault.Precondition, "oauth_client_in_use",
		"The OAuth client is in use. Delete the flows that include its component first.")
	ErrOAuthClientUnusable = fault.New(fault.Precondition, "oauth_client_unusable",
		"The component was deleted: its OAuth client can only be deleted.")
	// ErrOAuthClientHostsChanged refuses to send the secret, or users, to hosts that are not
	// approved. The message has the hosts.
	ErrOAuthClientHostsChanged = fault.New(fault.Precondition, "oauth_client_hosts_changed",
		"The component now sends the client secret, or users who connect an account, to another host. If that host is correct, enter "+
			"the client secret again with oauth_client.change, or with auth_client.change if an auth client manages it.")
	// ErrOAuthEndpointsSecret keeps the stored secret from the hosts of other endpoints.
	ErrOAuthEndpointsSecret = fault.New(fault.Unprocessable, "oauth_client_endpoints_secret",
		"Other endpoints get the client secret. Enter the secret together with them.")
	ErrOAuthClientMoved = fault.New(fault.Conflict, "oauth_client_changed", "The OAuth client was changed concurrently. Try again.")
)

// OAuthClient is the aggregate of the OAuth client of one component in a tenant: there is at
// most one, because the stream is named by the component. Every flow that includes the
// component uses the client, active or not.
var OAuthClient = Decider[OAuthClientState, commands.OAuthClient, events.OAuthClient]{
	Category: "oauth_client", Fold: 4, Decide: OAuthClientState.decide, Evolve: OAuthClientState.evolve,
	Weight: func(s OAuthClientState) int { return s.Uses.Len() },
}

// OAuthClientState is the state of an OAuth client.
type OAuthClientState struct {
	ID        string // id of the client; "" if there is none
	ClientID  string
	SecretID  string
	Revisions []int // descriptor revisions that the secret is approved for, newest last; 0: unknown
	Endpoints commands.Endpoints
	Unusable  bool
	Uses      Uses     // by flows of the tenant that include the component
	Abandoned []string // secret ids that no event may reference any more

	SecretExpires time.Time // as declared; zero: unknown
	Warned        Warning
}

// References reports whether the defined client has this secret.
func (s OAuthClientState) References(secretID string) bool {
	return s.ID != "" && s.SecretID == secretID
}

// Secrets returns the id of the client's secret.
func (s OAuthClientState) Secrets() []string { return []string{s.SecretID} }

// confirmedKept is the maximum number of approved revisions of a secret.
const confirmedKept = 16

// Revision returns the newest approved revision; 0 if there is none, or it is unknown.
func (s OAuthClientState) Revision() int {
	if len(s.Revisions) == 0 {
		return 0
	}
	return s.Revisions[len(s.Revisions)-1]
}

// Terminal reports whether no further event can reference a secret.
func (s OAuthClientState) Terminal() bool { return false }

func (s OAuthClientState) decide(cmd commands.OAuthClient) ([]events.OAuthClient, error) {
	switch c := cmd.(type) {
	case commands.DefineOAuthClient:
		switch {
		case s.ID != "":
			return nil, ErrOAuthClientExists
		case slices.Contains(s.Abandoned, c.SecretID):
			return nil, ErrSecretAbandoned
		}
		facts := []events.OAuthClient{events.OAuthClientDefined{ID: c.ID, ClientID: c.ClientID, SecretID: c.SecretID, Revision: c.Revision, Endpoints: c.Endpoints}}
		if !c.Expires.IsZero() {
			facts = append(facts, events.OAuthClientExpirySet{Expires: c.Expires})
		}
		return facts, nil
	case commands.ChangeOAuthClient:
		return s.change(c)
	case commands.DeleteOAuthClient:
		switch {
		case s.ID == "" || s.ID != c.ID:
			return nil, ErrOAuthClientNotFound
		case s.Uses.Len() > 0 && !s.Unusable:
			return nil, ErrOAuthClientInUse
		}
		return []events.OAuthClient{events.OAuthClientDeleted{}}, nil
	case commands.MarkOAuthClientUnusable:
		if s.ID == "" || s.Unusable {
			return nil, nil
		}
		return []events.OAuthClient{events.OAuthClientMarkedUnusable{Reason: c.Reason}}, nil
	case commands.RevealOAuthClient:
		switch {
		case s.ID == "" || s.ID != c.ID:
			return nil, ErrOAuthClientNotFound
		case s.SecretID != c.SecretID:
			return nil, ErrOAuthClientMoved
		}
		return []events.OAuthClient{events.OAuthClientRevealed{SecretID: c.SecretID}}, nil
	case commands.UseOAuthClient:
		if _, uses := s.Uses.Of(c.Flow); uses {
			return nil, nil
		}
		return []events.OAuthClient{events.OAuthClientUsed{Flow: c.Flow, Revision: c.Revision}}, nil
	case commands.ReleaseOAuthClient:
		if use, uses := s.Uses.Of(c.Flow); !uses || use.Revision > c.Revision {
			return nil, nil
		}
		return []events.OAuthClient{events.OAuthClientReleased{Flow: c.Flow, Revision: c.Revision}}, nil
	case commands.WarnOAuthClient:
		return s.warn(c), nil
	case commands.AbandonClientSecret:
		if s.References(c.SecretID) || slices.Contains(s.Abandoned, c.SecretID) {
			return nil, nil
		}
		return []events.OAuthClient{events.SecretAbandoned{SecretID: c.SecretID}}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s OAuthClientState) change(c commands.ChangeOAuthClient) ([]events.OAuthClient, error) {
	now := events.OAuthClientChanged{ClientID: s.ClientID, SecretID: s.SecretID, Revision: s.Revision(), Endpoints: s.Endpoints}
	next := now
	if c.ClientID != "" {
		next.ClientID = c.ClientID
	}
	if c.SecretID != "" {
		next.SecretID = c.SecretID
	}
	// Only entering the secret again approves new hosts: a caller who can change a client need
	// not know its secret.
	if c.Revision != 0 && (c.SecretID != "" || c.ReenteredSecretID != "") {
		next.Revision = c.Revision
	}
	if c.Endpoints != nil {
		next.Endpoints = *c.Endpoints
	}
	switch {
	case s.ID == "" || s.ID != c.ID:
		return nil, ErrOAuthClientNotFound
	case s.Unusable:
		return nil, ErrOAuthClientUnusable
	case slices.Contains(s.Abandoned, c.SecretID):
		return nil, ErrSecretAbandoned
	case c.ReenteredSecretID != "" && c.ReenteredSecretID != s.SecretID:
		return nil, ErrOAuthClientMoved
	case next.Endpoints != now.Endpoints && c.SecretID == "" && c.ReenteredSecretID == "":
		return nil, ErrOAuthEndpointsSecret
	}
	var facts []events.OAuthClient
	expires := s.SecretExpires
	if next != now {
		facts = append(facts, next)
		if next.SecretID != now.SecretID {
			expires = time.Time{}
		}
	}
	if c.Expires != nil && !c.Expires.Equal(expires) {
		facts = append(facts, events.OAuthClientExpirySet{Expires: *c.Expires})
	}
	return facts, nil
}

func (s OAuthClientState) evolve(e events.OAuthClient) OAuthClientState {
	switch e := e.(type) {
	case events.OAuthClientDefined:
		s.ID, s.ClientID, s.SecretID, s.Unusable, s.Revisions = e.ID, e.ClientID, e.SecretID, false, []int{e.Revision}
		s.Endpoints = e.Endpoints
	case events.OAuthClientChanged:
		if s.SecretID != e.SecretID { // approvals of the old secret do not apply to the new one
			s.Revisions, s.SecretExpires = nil, time.Time{}
		}
		s.ClientID, s.SecretID, s.Revisions = e.ClientID, e.SecretID, confirmed(s.Revisions, e.Revision)
		s.Endpoints = e.Endpoints
	case events.OAuthClientMarkedUnusable:
		s.Unusable = true
	case events.OAuthClientExpirySet:
		s.SecretExpires = e.Expires
	case events.OAuthClientExpiring:
		s.Warned = Warning{Expires: e.Expires, Days: e.Days}
	case events.OAuthClientRevealed:
	case events.OAuthClientDeleted:
		s.ID, s.ClientID, s.SecretID, s.Unusable, s.Revisions = "", "", "", false, nil
		s.SecretExpires, s.Warned = time.Time{}, Warning{}
		s.Endpoints = commands.Endpoints{}
	case events.OAuthClientUsed:
		s.Uses = s.Uses.with(e.Flow, Use{Revision: e.Revision, Named: true})
	case events.OAuthClientReleased:
		s.Uses = s.Uses.without(e.Flow)
	case events.SecretAbandoned:
		s.Abandoned = append(slices.Clip(s.Abandoned), e.SecretID)
	}
	return s
}

// confirmed appends a revision, and removes an unknown one.
func confirmed(revisions []int, revision int) []int {
	kept := slices.DeleteFunc(slices.Clone(revisions), func(r int) bool { return r == revision || r == 0 })
	kept = append(kept, revision)
	return kept[max(0, len(kept)-confirmedKept):]
}
