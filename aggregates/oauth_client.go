package aggregates

import (
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// OAuthClient decides what may happen to the OAuth client of one component in a
// tenant. A flow that includes the component uses it, active or not.
var OAuthClient = Decider[OAuthClientState, commands.OAuthClient, events.OAuthClient]{
	Category: "oauth_client", Fold: 1, Decide: OAuthClientState.decide, Evolve: OAuthClientState.evolve,
	Weight: func(s OAuthClientState) int { return s.Uses.Len() },
}

// OAuthClientState is what decisions about an OAuth client rest on.
type OAuthClientState struct {
	Uses Uses
}

func (s OAuthClientState) decide(cmd commands.OAuthClient) ([]events.OAuthClient, error) {
	switch c := cmd.(type) {
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
	}
	return nil, nil
}

func (s OAuthClientState) evolve(e events.OAuthClient) OAuthClientState {
	switch e := e.(type) {
	case events.OAuthClientUsed:
		s.Uses = s.Uses.with(e.Flow, Use{Revision: e.Revision, Named: true})
	case events.OAuthClientReleased:
		s.Uses = s.Uses.without(e.Flow)
	}
	return s
}
