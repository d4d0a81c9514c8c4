package aggregates_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

var until = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func step(id, component string) events.FlowStep {
	return events.FlowStep{ID: id, Component: component, Credential: "c"}
}

func TestUseOfCredential(t *testing.T) {
	type (
		facts = []events.Credential
		tc    = aggregatetest.Case[commands.Credential, events.Credential]
	)
	created := events.CredentialCreated{Component: "petstore", Name: "Pets", Keys: version(1, "s1")}
	steps := []events.FlowStep{step("s2", "petstore"), step("s1", "petstore")}
	use := func(revision uint64, active bool) commands.UseCredential {
		return commands.UseCredential{ID: "c", Flow: "f", Revision: revision, Active: active, Steps: steps}
	}
	used := func(revision uint64, active bool) events.CredentialUsed {
		return events.CredentialUsed{Flow: "f", Revision: revision, Named: true, Active: active, Steps: []string{"s1", "s2"}}
	}
	reserve := commands.ReserveCredential{ID: "c", Flow: "f", Binding: "b1", Steps: steps, Until: until}
	reserved := events.CredentialUsed{Flow: "f", Steps: []string{"s1", "s2"}, Binding: "b1", Until: until}
	both := events.CredentialUsed{Flow: "f", Revision: 3, Named: true, Steps: []string{"s1", "s2"}, Binding: "b1", Until: until}
	released := events.CredentialReleased{Flow: "f", Revision: 4}
	gone := facts{created, used(3, false), events.CredentialDeleted{}}

	aggregatetest.Run(t, aggregates.Credential,
		tc{Name: "use", Given: facts{created}, When: use(3, false), Then: facts{used(3, false)}},
		tc{Name: "use again", Given: facts{created, used(3, false)}, When: use(3, false)},
		tc{Name: "a late use", Given: facts{created, used(3, true)}, When: use(2, false)},
		tc{Name: "a start", Given: facts{created, used(3, false)}, When: use(4, true), Then: facts{used(4, true)}},
		tc{Name: "a use by a later revision", Given: facts{created, used(3, true)}, When: use(4, true), Then: facts{used(4, true)}},
		tc{Name: "use of nothing", When: use(3, true), Err: aggregates.ErrCredentialNotFound},
		tc{Name: "use of what was deleted", Given: gone, When: use(4, true), Err: aggregates.ErrCredentialNotFound},
		tc{
			Name: "use by another component", Given: facts{created}, Err: aggregates.ErrCredentialComponentMismatch,
			When: commands.UseCredential{ID: "c", Flow: "f", Revision: 1, Steps: []events.FlowStep{step("s1", "sheets")}},
		},
		tc{
			Name: "use by steps of which one is another component's", Given: facts{created},
			When: commands.UseCredential{ID: "c", Flow: "f", Revision: 1, Steps: []events.FlowStep{step("s1", "sheets"), step("s2", "petstore")}},
			Then: facts{events.CredentialUsed{Flow: "f", Revision: 1, Named: true, Steps: []string{"s2"}}},
		},
		tc{Name: "delete what a running flow uses", Given: facts{created, used(3, true)}, When: commands.DeleteCredential{}, Err: aggregates.ErrCredentialInUse},
		tc{
			Name: "delete what a stopped flow uses", Given: facts{created, used(3, true), used(4, false)},
			When: commands.DeleteCredential{}, Then: facts{events.CredentialDeleted{}},
		},
		tc{Name: "delete what is reserved", Given: facts{created, reserved}, When: commands.DeleteCredential{}, Err: aggregates.ErrCredentialInUse},
		tc{Name: "reserve", Given: facts{created}, When: reserve, Then: facts{reserved}},
		tc{Name: "reserve again", Given: facts{created, reserved}, When: reserve},
		tc{Name: "reserve what was deleted", Given: gone, When: reserve, Err: aggregates.ErrCredentialNotFound},
		tc{Name: "reserve what is used", Given: facts{created, used(3, false)}, When: reserve, Then: facts{both}},
		tc{Name: "a start confirms a reservation", Given: facts{created, both}, When: use(4, true), Then: facts{used(4, true)}},
		tc{
			Name: "an update keeps a reservation", Given: facts{created, both}, When: use(4, false),
			Then: facts{events.CredentialUsed{Flow: "f", Revision: 4, Named: true, Steps: []string{"s1", "s2"}, Binding: "b1", Until: until}},
		},
		tc{Name: "expiry", Given: facts{created, reserved}, When: commands.ReleaseCredential{Flow: "f", Binding: "b1"}, Then: facts{events.CredentialReleased{Flow: "f"}}},
		tc{Name: "expiry of another reservation", Given: facts{created, reserved}, When: commands.ReleaseCredential{Flow: "f", Binding: "b0"}},
		tc{Name: "expiry of what a start confirmed", Given: facts{created, both, used(4, true)}, When: commands.ReleaseCredential{Flow: "f", Binding: "b1"}},
		tc{
			Name: "expiry beside a use", Given: facts{created, both}, When: commands.ReleaseCredential{Flow: "f", Binding: "b1"},
			Then: facts{events.CredentialUsed{Flow: "f", Revision: 3, Named: true, Steps: []string{}}},
		},
		tc{Name: "release", Given: facts{created, used(3, true)}, When: commands.ReleaseCredential{Flow: "f", Revision: 4}, Then: facts{released}},
		tc{Name: "a late release", Given: facts{created, used(5, true)}, When: commands.ReleaseCredential{Flow: "f", Revision: 4}},
		tc{Name: "release by a flow that does not use it", Given: facts{created, used(3, true)}, When: commands.ReleaseCredential{Flow: "g", Revision: 9}},
		tc{
			Name: "release beside a reservation", Given: facts{created, both}, When: commands.ReleaseCredential{Flow: "f", Revision: 4},
			Then: facts{events.CredentialUsed{Flow: "f", Steps: []string{}, Binding: "b1", Until: until}},
		},
		tc{
			Name: "release of both", Given: facts{created, both}, When: commands.ReleaseCredential{Flow: "f", Revision: 4, Binding: "b1"},
			Then: facts{released},
		},
		tc{Name: "release of what was deleted", Given: gone, When: commands.ReleaseCredential{Flow: "f", Revision: 9}},
		tc{
			Name: "create for a step", When: commands.CreateCredential{
				Component: "petstore", Name: "Pets", Keys: keys("s1"), For: &commands.StepOfFlow{Flow: "f", Step: "s1"},
			},
			Then: facts{created, events.CredentialUsed{Flow: "f", Named: true, Steps: []string{"s1"}}},
		},
		tc{
			Name: "the flow engine tells of the step", Given: facts{created, events.CredentialUsed{Flow: "f", Named: true, Steps: []string{"s1"}}},
			When: use(1, true), Then: facts{used(1, true)},
		},
	)
}

func TestFlow(t *testing.T) {
	type (
		facts = []events.Flow
		tc    = aggregatetest.Case[commands.Flow, events.Flow]
	)
	steps := []events.FlowStep{step("s1", "petstore")}
	observed := func(change events.FlowChange, revision uint64, active bool) events.FlowObserved {
		return events.FlowObserved{Change: change, Name: "Orders", Revision: revision, Active: active, Steps: steps}
	}
	ended := events.FlowObserved{Change: events.FlowWasDeleted, Name: "Orders", Revision: 9, Steps: []events.FlowStep{}}
	say := func(change events.FlowChange, revision uint64) commands.ObserveFlow {
		return commands.ObserveFlow{ID: "f", Change: change, Name: "Orders", Revision: revision, Steps: steps}
	}
	bound := events.FlowBound{Binding: "b1", Name: "Orders", Steps: steps, Until: until}
	refused := events.FlowUseRefused{Revision: 3, Step: "s1", Component: "petstore", Credential: "c", Reason: "credential_not_found"}
	running := observed(events.FlowWasStarted, 3, true)

	aggregatetest.Run(t, aggregates.Flow,
		tc{Name: "created", When: say(events.FlowWasCreated, 1), Then: facts{observed(events.FlowWasCreated, 1, false)}},
		tc{Name: "the same again", Given: facts{running}, When: say(events.FlowWasStarted, 3)},
		tc{Name: "late", Given: facts{running}, When: say(events.FlowWasStopped, 2)},
		tc{Name: "a start that says nothing of the steps", Given: facts{observed(events.FlowWasCreated, 1, false)}, When: commands.ObserveFlow{Change: events.FlowWasStarted, Revision: 3}, Then: facts{running}},
		tc{Name: "an update of a running flow", Given: facts{running}, When: say(events.FlowWasUpdated, 4), Then: facts{observed(events.FlowWasUpdated, 4, true)}},
		tc{Name: "stopped", Given: facts{running}, When: say(events.FlowWasStopped, 4), Then: facts{observed(events.FlowWasStopped, 4, false)}},
		tc{Name: "deleted", Given: facts{running}, When: say(events.FlowWasDeleted, 9), Then: facts{ended}},
		tc{Name: "started after its end, late", Given: facts{running, ended}, When: say(events.FlowWasStarted, 8)},
		tc{Name: "created anew", Given: facts{running, ended}, When: say(events.FlowWasCreated, 10), Then: facts{observed(events.FlowWasCreated, 10, false)}},
		tc{Name: "bind", When: commands.BindFlow{Binding: "b1", Name: "Orders", Steps: steps, Until: until}, Then: facts{bound}},
		tc{Name: "bind again", Given: facts{bound}, When: commands.BindFlow{Binding: "b1", Name: "Orders", Steps: steps, Until: until}},
		tc{Name: "release", Given: facts{bound}, When: commands.ReleaseFlow{Reason: "released"}, Then: facts{events.FlowReleased{Binding: "b1", Reason: "released"}}},
		tc{Name: "release of another", Given: facts{bound}, When: commands.ReleaseFlow{Binding: "b0"}},
		tc{Name: "expiry of what a start confirmed", Given: facts{bound, running}, When: commands.ReleaseFlow{Binding: "b1", Reason: "expired"}},
		tc{Name: "expiry beside a change", Given: facts{bound, observed(events.FlowWasUpdated, 3, false)}, When: commands.ReleaseFlow{Binding: "b1", Reason: "expired"}, Then: facts{events.FlowReleased{Binding: "b1", Reason: "expired"}}},
		tc{Name: "refuse", Given: facts{running}, When: commands.RefuseUse{Revision: 3, Refused: []events.FlowUseRefused{refused}}, Then: facts{refused}},
		tc{Name: "refuse again", Given: facts{running, refused}, When: commands.RefuseUse{Revision: 3, Refused: []events.FlowUseRefused{refused}}},
		tc{Name: "refuse, late", Given: facts{running, observed(events.FlowWasStopped, 4, false)}, When: commands.RefuseUse{Revision: 3, Refused: []events.FlowUseRefused{refused}}},
	)
}

func TestOAuthClient(t *testing.T) {
	type (
		facts = []events.OAuthClient
		tc    = aggregatetest.Case[commands.OAuthClient, events.OAuthClient]
	)
	used := events.OAuthClientUsed{Flow: "f", Revision: 3}
	define := commands.DefineOAuthClient{Component: "sheets", ID: "o", ClientID: "id", SecretID: "s1"}
	defined := events.OAuthClientDefined{ID: "o", ClientID: "id", SecretID: "s1"}
	marked := events.OAuthClientMarkedUnusable{Reason: "component_deleted"}
	defineAt := func(revision int) commands.DefineOAuthClient {
		return commands.DefineOAuthClient{Component: "sheets", ID: "o", ClientID: "id", SecretID: "s1", Revision: revision}
	}
	definedAt := func(revision int) events.OAuthClientDefined {
		return events.OAuthClientDefined{ID: "o", ClientID: "id", SecretID: "s1", Revision: revision}
	}
	changedAt := func(secret string, revision int) events.OAuthClientChanged {
		return events.OAuthClientChanged{ClientID: "id", SecretID: secret, Revision: revision}
	}
	again := func(revision int) commands.ChangeOAuthClient {
		return commands.ChangeOAuthClient{Component: "sheets", ID: "o", ClientID: "id", ReenteredSecretID: "s1", Revision: revision}
	}
	aggregatetest.Run(t, aggregates.OAuthClient,
		tc{Name: "define", When: define, Then: facts{defined}},
		tc{Name: "define for a component that flows include", Given: facts{used}, When: define, Then: facts{defined}},
		tc{Name: "define a second", Given: facts{defined}, When: define, Err: aggregates.ErrOAuthClientExists},
		tc{Name: "define after a delete", Given: facts{defined, events.OAuthClientDeleted{}}, When: define, Then: facts{defined}},
		tc{Name: "define with a collected secret", Given: facts{events.SecretAbandoned{SecretID: "s1"}}, When: define, Err: aggregates.ErrSecretAbandoned},
		tc{Name: "change the id", Given: facts{defined}, When: commands.ChangeOAuthClient{ID: "o", ClientID: "id2"}, Then: facts{events.OAuthClientChanged{ClientID: "id2", SecretID: "s1"}}},
		tc{Name: "change the secret", Given: facts{defined}, When: commands.ChangeOAuthClient{ID: "o", SecretID: "s2"}, Then: facts{events.OAuthClientChanged{ClientID: "id", SecretID: "s2"}}},
		tc{Name: "change nothing", Given: facts{defined}, When: commands.ChangeOAuthClient{ID: "o", ClientID: "id"}},
		tc{Name: "define for a revision", When: defineAt(3), Then: facts{definedAt(3)}},
		tc{Name: "give the secret again for a later revision", Given: facts{definedAt(3)}, When: again(4), Then: facts{changedAt("s1", 4)}},
		tc{Name: "give it again for the same", Given: facts{definedAt(3), changedAt("s1", 4)}, When: again(4)},
		tc{Name: "give it again for an earlier one", Given: facts{definedAt(3), changedAt("s1", 4)}, When: again(3), Then: facts{changedAt("s1", 3)}},
		tc{Name: "give it again for what was not known", Given: facts{defined}, When: again(2), Then: facts{changedAt("s1", 2)}},
		tc{Name: "give again what it was", Given: facts{definedAt(3), changedAt("s2", 3)}, When: again(4), Err: aggregates.ErrOAuthClientMoved},
		tc{Name: "a later revision without the secret", Given: facts{definedAt(3)}, When: commands.ChangeOAuthClient{ID: "o", Revision: 4}},
		tc{
			Name: "change the id without the secret", Given: facts{definedAt(3)}, When: commands.ChangeOAuthClient{ID: "o", ClientID: "id2", Revision: 4},
			Then: facts{events.OAuthClientChanged{ClientID: "id2", SecretID: "s1", Revision: 3}},
		},
		tc{
			Name: "change the secret", Given: facts{definedAt(3), changedAt("s1", 4)}, When: commands.ChangeOAuthClient{ID: "o", SecretID: "s2", Revision: 5},
			Then: facts{changedAt("s2", 5)},
		},
		tc{
			Name: "change the secret of a component that is not seen", Given: facts{definedAt(3)}, When: commands.ChangeOAuthClient{ID: "o", SecretID: "s2"},
			Then: facts{changedAt("s2", 3)},
		},
		tc{Name: "change another", Given: facts{defined}, When: commands.ChangeOAuthClient{ID: "p", ClientID: "x"}, Err: aggregates.ErrOAuthClientNotFound},
		tc{Name: "change an unusable one", Given: facts{defined, marked}, When: commands.ChangeOAuthClient{ID: "o", ClientID: "x"}, Err: aggregates.ErrOAuthClientUnusable},
		tc{Name: "delete", Given: facts{defined}, When: commands.DeleteOAuthClient{ID: "o"}, Then: facts{events.OAuthClientDeleted{}}},
		tc{Name: "delete what a flow uses", Given: facts{used, defined}, When: commands.DeleteOAuthClient{ID: "o"}, Err: aggregates.ErrOAuthClientInUse},
		tc{Name: "delete what a flow used", Given: facts{used, defined, events.OAuthClientReleased{Flow: "f", Revision: 4}}, When: commands.DeleteOAuthClient{ID: "o"}, Then: facts{events.OAuthClientDeleted{}}},
		tc{Name: "delete an unusable one", Given: facts{used, defined, marked}, When: commands.DeleteOAuthClient{ID: "o"}, Then: facts{events.OAuthClientDeleted{}}},
		tc{Name: "delete nothing", When: commands.DeleteOAuthClient{ID: "o"}, Err: aggregates.ErrOAuthClientNotFound},
		tc{Name: "mark", Given: facts{defined}, When: commands.MarkOAuthClientUnusable{Reason: "component_deleted"}, Then: facts{marked}},
		tc{Name: "mark nothing", When: commands.MarkOAuthClientUnusable{Reason: "component_deleted"}},
		tc{Name: "reveal", Given: facts{defined}, When: commands.RevealOAuthClient{ID: "o", SecretID: "s1"}, Then: facts{events.OAuthClientRevealed{SecretID: "s1"}}, Again: true},
		tc{Name: "reveal what was changed", Given: facts{defined}, When: commands.RevealOAuthClient{ID: "o", SecretID: "s0"}, Err: aggregates.ErrOAuthClientMoved},
		tc{Name: "abandon", When: commands.AbandonClientSecret{SecretID: "s1"}, Then: facts{events.SecretAbandoned{SecretID: "s1"}}},
		tc{Name: "abandon what is in force", Given: facts{defined}, When: commands.AbandonClientSecret{SecretID: "s1"}},
		tc{Name: "use", When: commands.UseOAuthClient{Flow: "f", Revision: 3}, Then: facts{used}},
		tc{Name: "use by a later revision", Given: facts{used}, When: commands.UseOAuthClient{Flow: "f", Revision: 4}},
		tc{Name: "release", Given: facts{used}, When: commands.ReleaseOAuthClient{Flow: "f", Revision: 4}, Then: facts{events.OAuthClientReleased{Flow: "f", Revision: 4}}},
		tc{Name: "a late release", Given: facts{used}, When: commands.ReleaseOAuthClient{Flow: "f", Revision: 2}},
		tc{Name: "release of nothing", When: commands.ReleaseOAuthClient{Flow: "f", Revision: 2}},
	)
}

// The revisions for which a secret was given are remembered; those of
// another secret say nothing of it.
func TestOAuthClientRevisions(t *testing.T) {
	defined := func(revision int) events.OAuthClient {
		return events.OAuthClientDefined{ID: "o", SecretID: "s1", Revision: revision}
	}
	changed := func(secret string, revision int) events.OAuthClient {
		return events.OAuthClientChanged{SecretID: secret, Revision: revision}
	}
	for name, c := range map[string]struct {
		facts []events.OAuthClient
		want  []int
	}{
		"none":               {nil, nil},
		"defined":            {[]events.OAuthClient{defined(3)}, []int{3}},
		"not known":          {[]events.OAuthClient{defined(0)}, []int{0}},
		"given again":        {[]events.OAuthClient{defined(3), changed("s1", 5)}, []int{3, 5}},
		"for an earlier one": {[]events.OAuthClient{defined(3), changed("s1", 5), changed("s1", 3)}, []int{5, 3}},
		"known since":        {[]events.OAuthClient{defined(0), changed("s1", 2)}, []int{2}},
		"another secret":     {[]events.OAuthClient{defined(3), changed("s1", 5), changed("s2", 6)}, []int{6}},
		"deleted":            {[]events.OAuthClient{defined(3), events.OAuthClientDeleted{}}, nil},
		"defined once more":  {[]events.OAuthClient{defined(3), events.OAuthClientDeleted{}, defined(4)}, []int{4}},
		"marked, not erased": {[]events.OAuthClient{defined(3), events.OAuthClientMarkedUnusable{}}, []int{3}},
	} {
		var s aggregates.OAuthClientState
		for _, e := range c.facts {
			s = aggregates.OAuthClient.Evolve(s, e)
		}
		if !slices.Equal(s.Revisions, c.want) {
			t.Errorf("%s: %v, want %v", name, s.Revisions, c.want)
		}
		if len(c.want) > 0 && s.Revision() != c.want[len(c.want)-1] {
			t.Errorf("%s: the last one is %d", name, s.Revision())
		}
	}
}

func TestInstallation(t *testing.T) {
	type tc = aggregatetest.Case[commands.Installation, events.Installation]
	attested := events.DurabilityAttested{Replicas: 3, Why: "not seen"}
	aggregatetest.Run(t, aggregates.Installation,
		tc{Name: "attest", When: commands.AttestDurability(attested), Then: []events.Installation{attested}},
		tc{Name: "attest again", Given: []events.Installation{attested}, When: commands.AttestDurability(attested)},
		tc{
			Name: "attest something else", Given: []events.Installation{attested}, When: commands.AttestDurability{Replicas: 1, Why: "one replica"},
			Then: []events.Installation{events.DurabilityAttested{Replicas: 1, Why: "one replica"}},
		},
	)
}

// A set of uses tells what a plain map tells, an earlier value stays as it was,
// and a snapshot gives it back.
func TestUsesAreAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := aggregates.Credential
		s := d.Evolve(aggregates.CredentialState{}, events.CredentialCreated{Component: "petstore", Keys: version(1, "s1")})
		want := map[string]bool{} // by flow: whether it holds
		var earlier []aggregates.CredentialState
		var then []map[string]bool
		for range rapid.IntRange(1, 80).Draw(t, "events") {
			flow := fmt.Sprint("f", rapid.IntRange(0, 9).Draw(t, "flow"))
			if rapid.Bool().Draw(t, "release") {
				s = d.Evolve(s, events.CredentialReleased{Flow: flow})
				delete(want, flow)
			} else {
				e := events.CredentialUsed{Flow: flow, Active: rapid.Bool().Draw(t, "active"), Named: true}
				s, want[flow] = d.Evolve(s, e), e.Active
			}
			earlier, then = append(earlier, s), append(then, maps.Clone(want))
		}
		for i, s := range earlier {
			held := 0
			for flow, holds := range then[i] {
				if use, ok := s.Uses.Of(flow); !ok || use.BlocksDelete() != holds {
					t.Fatalf("after %d events %s is %+v, %v", i+1, flow, use, ok)
				}
				if holds {
					held++
				}
			}
			first, total := s.Uses.Blockers(3)
			if s.Uses.Len() != len(then[i]) || s.Uses.Blocked() != (held > 0) || total != held || len(first) != min(held, 3) || !slices.IsSorted(first) {
				t.Fatalf("after %d events: %d uses of which %d hold, first %v, want %v", i+1, s.Uses.Len(), total, first, then[i])
			}
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var back aggregates.CredentialState
		if err := json.Unmarshal(b, &back); err != nil || !back.Uses.Equal(s.Uses) || back.Uses.Blocked() != s.Uses.Blocked() {
			t.Fatalf("a snapshot gives back %s: %v", b, err)
		}
	})
}

// Folding a use costs the same with many flows as with few.
func BenchmarkFoldUse(b *testing.B) {
	for _, flows := range []int{10, 10_000} {
		b.Run(fmt.Sprint(flows), func(b *testing.B) {
			var s aggregates.CredentialState
			for n := range flows {
				s = aggregates.Credential.Evolve(s, events.CredentialUsed{Flow: fmt.Sprint("flow-", n), Revision: 1, Named: true, Active: true})
			}
			n := 0
			for b.Loop() {
				n++
				s = aggregates.Credential.Evolve(s, events.CredentialUsed{Flow: fmt.Sprint("flow-", n%flows), Revision: uint64(n), Named: true, Active: n%2 == 0})
			}
		})
	}
}
