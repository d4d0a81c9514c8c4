package aggregates_test

import (
	"slices"
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

func TestAuthClient(t *testing.T) {
	type (
		facts = []events.AuthClient
		tc    = aggregatetest.Case[commands.AuthClient, events.AuthClient]
		list  = []events.AuthClientComponent
	)
	sheets, docs := events.AuthClientComponent{Component: "sheets", OAuthClient: "o1"}, events.AuthClientComponent{Component: "docs", OAuthClient: "o2"}
	created := events.AuthClientCreated{Name: "N", Type: "oauth2", Scope: "tenant", Components: list{sheets, docs}, Fields: []string{"client_id"}, ClientID: "c", SecretID: "s1"}
	idle := created
	idle.Type, idle.Components = "basic", list{{Component: "sheets"}}
	other := created
	other.Name = "M"
	settled, deleted := events.AuthClientSettled{}, events.AuthClientDeleted{}
	less := events.AuthClientChanged{Name: "N", Components: list{docs}, Fields: []string{"client_id"}, ClientID: "c", SecretID: "s1"}
	none := less
	none.Components = list{}
	renewed := less
	renewed.Components, renewed.SecretID = list{sheets, docs}, "s2"
	renamed := events.AuthClientChanged{Name: "M", Components: idle.Components, Fields: idle.Fields, ClientID: "c", SecretID: "s1"}
	change := func(expected int, to events.AuthClientChanged) commands.ChangeAuthClient {
		return commands.ChangeAuthClient{ID: "a", Expected: expected, Changed: to}
	}
	abandon := func(id string) commands.AbandonAuthClientSecret {
		return commands.AbandonAuthClientSecret{ID: "a", SecretID: id}
	}
	revised := less
	revised.Revisions = []int{4}
	aggregatetest.Run(t, aggregates.AuthClient,
		tc{Name: "create", When: commands.CreateAuthClient{Created: created}, Then: facts{created}},
		tc{Name: "create one that nothing follows", When: commands.CreateAuthClient{Created: idle}, Then: facts{idle, settled}},
		tc{Name: "create again", Given: facts{created, settled}, When: commands.CreateAuthClient{Created: created}},
		tc{Name: "create another one of the same id", Given: facts{created}, When: commands.CreateAuthClient{Created: other}, Err: aggregates.ErrAuthClientExists},
		tc{Name: "create anew what was taken back", Given: facts{created, none, settled, deleted}, When: commands.CreateAuthClient{Created: created}, Then: facts{created}},
		tc{Name: "create with a collected secret", Given: facts{events.SecretAbandoned{SecretID: "s1"}}, When: commands.CreateAuthClient{Created: created}, Err: aggregates.ErrSecretAbandoned},
		tc{Name: "settle", Given: facts{created}, When: commands.SettleAuthClient{Expected: 1}, Then: facts{settled}},
		tc{Name: "settle what was changed since", Given: facts{created, less}, When: commands.SettleAuthClient{Expected: 1}, Err: aggregates.ErrAuthClientChanged},
		tc{Name: "settle nothing", When: commands.SettleAuthClient{Expected: 1}, Err: aggregates.ErrAuthClientNotFound},
		tc{Name: "change", Given: facts{created, settled}, When: change(1, less), Then: facts{less}},
		tc{Name: "change nothing", Given: facts{created, settled, less, settled}, When: change(2, less)},
		tc{Name: "give the secret for a later revision", Given: facts{created, settled, less, settled}, When: change(2, revised), Then: facts{revised}},
		tc{Name: "give it for the same", Given: facts{created, settled, revised, settled}, When: change(2, revised)},
		tc{Name: "change nothing of which the revision is known", Given: facts{created, settled, revised, settled}, When: change(2, less)},
		tc{Name: "change back before it is settled", Given: facts{created, settled, less}, When: change(2, renewed), Then: facts{renewed}},
		tc{Name: "change one that nothing follows", Given: facts{idle, settled}, When: change(1, renamed), Then: facts{renamed, settled}},
		tc{Name: "change what was changed since", Given: facts{created, settled, less}, When: change(1, renewed), Err: aggregates.ErrAuthClientChanged},
		tc{Name: "change nobody's", When: change(1, less), Err: aggregates.ErrAuthClientNotFound},
		tc{Name: "change to a collected secret", Given: facts{created, settled, events.SecretAbandoned{SecretID: "s2"}}, When: change(1, renewed), Err: aggregates.ErrSecretAbandoned},
		tc{Name: "delete", Given: facts{created, settled, none, settled}, When: commands.DeleteAuthClient{}, Then: facts{deleted}},
		tc{Name: "delete one that nothing follows", Given: facts{idle, settled}, When: commands.DeleteAuthClient{}, Then: facts{deleted}},
		tc{Name: "delete before its OAuth clients", Given: facts{created, settled}, When: commands.DeleteAuthClient{}, Err: aggregates.ErrAuthClientUnsettled},
		tc{Name: "delete while they may be there", Given: facts{created, settled, none}, When: commands.DeleteAuthClient{}, Err: aggregates.ErrAuthClientUnsettled},
		tc{Name: "delete nothing", When: commands.DeleteAuthClient{}, Err: aggregates.ErrAuthClientNotFound},
		tc{Name: "reveal", Given: facts{created}, When: commands.RevealAuthClient{SecretID: "s1"}, Then: facts{events.AuthClientRevealed{SecretID: "s1"}}, Again: true},
		tc{Name: "reveal what was changed", Given: facts{created}, When: commands.RevealAuthClient{SecretID: "s0"}, Err: aggregates.ErrAuthClientChanged},
		tc{Name: "abandon", When: abandon("s1"), Then: facts{events.SecretAbandoned{SecretID: "s1"}}},
		tc{Name: "abandon what is in force", Given: facts{created}, When: abandon("s1")},
		tc{Name: "abandon what it may go back to", Given: facts{created, settled, renewed}, When: abandon("s1")},
		tc{Name: "abandon what it had", Given: facts{created, settled, renewed, settled}, When: abandon("s1"), Then: facts{events.SecretAbandoned{SecretID: "s1"}}},
	)
}

// An auth client remembers for which descriptors its secret was given, also of
// components that it may go back to.
func TestAuthClientRevisions(t *testing.T) {
	sheets, docs := events.AuthClientComponent{Component: "sheets", OAuthClient: "o1"}, events.AuthClientComponent{Component: "docs", OAuthClient: "o2"}
	both := []events.AuthClientComponent{sheets, docs}
	created := events.AuthClientCreated{Components: both, Revisions: []int{3, 5}}
	less := events.AuthClientChanged{Components: both[1:], Revisions: []int{6}}
	for name, c := range map[string]struct {
		facts []events.AuthClient
		want  []int
	}{
		"created":                 {[]events.AuthClient{created}, []int{3, 5}},
		"not known":               {[]events.AuthClient{events.AuthClientCreated{Components: both}}, []int{0, 0}},
		"not said":                {[]events.AuthClient{created, events.AuthClientChanged{Components: both}}, []int{3, 5}},
		"left, and may come back": {[]events.AuthClient{created, less}, []int{3, 6}},
		"left":                    {[]events.AuthClient{created, less, events.AuthClientSettled{}}, []int{0, 6}},
		"deleted":                 {[]events.AuthClient{created, events.AuthClientDeleted{}}, []int{0, 0}},
	} {
		var s aggregates.AuthClientState
		for _, e := range c.facts {
			s = aggregates.AuthClient.Evolve(s, e)
		}
		if got := s.RevisionsOf(both); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
