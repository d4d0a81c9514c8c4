package aggregates

import (
	"maps"
	"slices"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of an auth client.
var (
	ErrAuthClientNotFound = fault.New(fault.NotFound, "auth_client_not_found", "Auth client not found.")
	ErrAuthClientExists   = fault.New(fault.Exists, "auth_client_exists", "An auth client with this id already exists.")
	ErrAuthClientChanged  = fault.New(fault.Conflict, "auth_client_changed", "The auth client was changed concurrently. Try again.")
	// ErrAuthClientUnsettled refuses a change while an earlier one is not complete.
	ErrAuthClientUnsettled = fault.New(fault.Conflict, "auth_client_unsettled",
		"The auth client was just changed, and the OAuth clients of its components are not updated yet. Try again in a minute.")
)

// AuthClient is the aggregate of one auth client. If it manages OAuth clients,
// a change is complete when they are updated. That is recorded as well, so that
// a change that a crash interrupted can be completed.
var AuthClient = Decider[AuthClientState, commands.AuthClient, events.AuthClient]{
	Category: "auth_client", Fold: 2, Decide: AuthClientState.decide, Evolve: AuthClientState.evolve,
}

// AuthClientState is the state of an auth client.
type AuthClientState struct {
	Exists     bool
	Name       string
	Type       string
	Scope      string
	ScopeID    string
	Components []events.AuthClientComponent
	Fields     []string
	ClientID   string
	SecretID   string
	Revisions  map[string]int // by component: revision of the descriptor for which the client secret was last given; absent or 0: unknown
	Changes    int            // number of creations and changes
	Settled    bool           // its OAuth clients reflect the last change

	// Remaining work of the changes that are not settled.
	Leaving  []events.AuthClientComponent // components that were removed, whose OAuth clients may still exist
	Renew    bool                         // its OAuth clients do not have its credentials yet
	Previous []string                     // previous secrets, to which it may be rolled back

	Abandoned []string // secret ids that no event may name from now on
}

// References reports whether the auth client has this secret, or may be rolled back to it.
func (s AuthClientState) References(secretID string) bool {
	return s.Exists && secretID != "" && (s.SecretID == secretID || slices.Contains(s.Previous, secretID))
}

// Secrets are the ids of all secrets that the auth client has, or may be rolled back to.
func (s AuthClientState) Secrets() []string { return append(slices.Clone(s.Previous), s.SecretID) }

// Terminal reports whether no further event can name a secret.
func (s AuthClientState) Terminal() bool { return false }

// RevisionsOf are the Revisions of components, in the order of components.
func (s AuthClientState) RevisionsOf(components []events.AuthClientComponent) []int {
	revisions := make([]int, len(components))
	for i, c := range components {
		revisions[i] = s.Revisions[c.Component]
	}
	return revisions
}

// given adds the revisions of components to the known ones.
func given(known map[string]int, components []events.AuthClientComponent, revisions []int) map[string]int {
	all := maps.Clone(known)
	for i, c := range components {
		if i >= len(revisions) || revisions[i] == 0 {
			continue
		}
		if all == nil {
			all = map[string]int{}
		}
		all[c.Component] = revisions[i]
	}
	return all
}

func followed(components []events.AuthClientComponent) bool {
	return slices.ContainsFunc(components, func(c events.AuthClientComponent) bool { return c.OAuthClient != "" })
}

func (s AuthClientState) decide(cmd commands.AuthClient) ([]events.AuthClient, error) {
	switch c := cmd.(type) {
	case commands.CreateAuthClient:
		return s.create(c.Created)
	case commands.ChangeAuthClient:
		return s.change(c)
	case commands.SettleAuthClient:
		switch {
		case !s.Exists:
			return nil, ErrAuthClientNotFound
		case s.Changes != c.Expected:
			return nil, ErrAuthClientChanged
		case s.Settled:
			return nil, nil
		}
		return []events.AuthClient{events.AuthClientSettled{}}, nil
	case commands.RevealAuthClient:
		switch {
		case !s.Exists:
			return nil, ErrAuthClientNotFound
		case s.SecretID != c.SecretID:
			return nil, ErrAuthClientChanged
		}
		return []events.AuthClient{events.AuthClientRevealed{SecretID: c.SecretID}}, nil
	case commands.DeleteAuthClient:
		switch {
		case !s.Exists:
			return nil, ErrAuthClientNotFound
		case !s.Settled || followed(s.Components): // they are updated first
			return nil, ErrAuthClientUnsettled
		}
		return []events.AuthClient{events.AuthClientDeleted{}}, nil
	case commands.AbandonAuthClientSecret:
		if s.References(c.SecretID) || slices.Contains(s.Abandoned, c.SecretID) {
			return nil, nil
		}
		return []events.AuthClient{events.SecretAbandoned{SecretID: c.SecretID}}, nil
	}
	return nil, unknownCommand(cmd)
}

// settled adds the settled event if no OAuth client has to be updated.
func settled(change events.AuthClient, follow bool) []events.AuthClient {
	if follow {
		return []events.AuthClient{change}
	}
	return []events.AuthClient{change, events.AuthClientSettled{}}
}

func (s AuthClientState) create(c events.AuthClientCreated) ([]events.AuthClient, error) {
	switch {
	case s.Exists && s.is(c):
		return nil, nil
	case s.Exists:
		return nil, ErrAuthClientExists
	case slices.Contains(s.Abandoned, c.SecretID):
		return nil, ErrSecretAbandoned
	}
	return settled(c, followed(c.Components)), nil
}

// is reports whether the auth client equals the created one, or the one to create. The
// secret is not compared, because it is unknown here.
func (s AuthClientState) is(c events.AuthClientCreated) bool {
	return s.Changes == 1 && s.Name == c.Name && s.Type == c.Type && s.Scope == c.Scope && s.ScopeID == c.ScopeID &&
		slices.Equal(s.Components, c.Components) && slices.Equal(s.Fields, c.Fields) && s.ClientID == c.ClientID
}

func (s AuthClientState) change(c commands.ChangeAuthClient) ([]events.AuthClient, error) {
	next := c.Changed
	switch {
	case !s.Exists:
		return nil, ErrAuthClientNotFound
	case s.Changes != c.Expected:
		return nil, ErrAuthClientChanged
	case slices.Contains(s.Abandoned, next.SecretID):
		return nil, ErrSecretAbandoned
	case s.Settled && s.Name == next.Name && slices.Equal(s.Components, next.Components) && slices.Equal(s.Fields, next.Fields) &&
		s.ClientID == next.ClientID && s.SecretID == next.SecretID && maps.Equal(s.Revisions, given(s.Revisions, next.Components, next.Revisions)):
		return nil, nil
	}
	return settled(next, followed(next.Components) || followed(s.Components) || followed(s.Leaving)), nil
}

func (s AuthClientState) evolve(e events.AuthClient) AuthClientState {
	switch e := e.(type) {
	case events.AuthClientCreated:
		s = AuthClientState{
			Exists: true, Name: e.Name, Type: e.Type, Scope: e.Scope, ScopeID: e.ScopeID, Components: e.Components, Fields: e.Fields,
			ClientID: e.ClientID, SecretID: e.SecretID, Revisions: given(nil, e.Components, e.Revisions), Changes: 1, Abandoned: s.Abandoned,
		}
	case events.AuthClientChanged:
		s.Leaving = leaving(slices.Concat(s.Leaving, s.Components), e.Components)
		if e.SecretID != s.SecretID {
			s.Renew, s.Previous = true, append(slices.Clip(s.Previous), s.SecretID)
		}
		s.Name, s.Components, s.Fields, s.ClientID, s.SecretID = e.Name, e.Components, e.Fields, e.ClientID, e.SecretID
		s.Revisions = given(s.Revisions, e.Components, e.Revisions)
		s.Changes, s.Settled = s.Changes+1, false
	case events.AuthClientSettled:
		s.Settled, s.Leaving, s.Renew, s.Previous = true, nil, false, nil
		s.Revisions = given(nil, s.Components, s.RevisionsOf(s.Components))
	case events.AuthClientRevealed:
	case events.AuthClientDeleted:
		s = AuthClientState{Abandoned: s.Abandoned}
	case events.SecretAbandoned:
		s.Abandoned = append(slices.Clip(s.Abandoned), e.SecretID)
	}
	return s
}

// leaving are the components of before whose OAuth clients are not among those of now.
func leaving(before, now []events.AuthClientComponent) []events.AuthClientComponent {
	return slices.DeleteFunc(before, func(c events.AuthClientComponent) bool {
		return c.OAuthClient == "" || slices.Contains(now, c)
	})
}
