package projections_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/projections"
)

var bindUntil = time.Date(2026, 5, 6, 8, 0, 0, 0, time.UTC)

// story writes a log by hand: each call is one commit of tenant acme.
type story struct {
	recs []events.Record
}

func (s *story) tell(category, id string, evs ...events.Event) *story {
	s.recs = append(s.recs, commits(events.StreamID{Tenant: "acme", Category: category, ID: id}, uint64(len(s.recs)+1), evs)...)
	for i := range s.recs { // a commit is one sequence, however many events
		if s.recs[i].Stream.ID == id && s.recs[i].Seq > uint64(i+1) {
			panic("one event a commit here")
		}
	}
	return s
}

func (s *story) credential(ids ...string) *story {
	for _, id := range ids {
		s.tell("credential", id, events.CredentialCreated{Component: "petstore", Name: id, Keys: keys(1, verified)})
	}
	return s
}

// at is a step that runs petstore with a credential.
func at(id, credential string) events.FlowStep {
	return events.FlowStep{ID: id, Component: "petstore", Credential: credential}
}

func (s *story) observed(flow string, revision uint64, change events.FlowChange, active bool, steps ...events.FlowStep) *story {
	if steps == nil {
		steps = []events.FlowStep{}
	}
	return s.tell("flow", flow, events.FlowObserved{Change: change, Name: "Flow " + flow, Revision: revision, Active: active, Steps: steps})
}

func (s *story) used(credential, flow string, revision uint64, active bool) *story {
	return s.tell("credential", credential, events.CredentialUsed{Flow: flow, Revision: revision, Named: true, Active: active, Steps: []string{"s"}})
}

func (s *story) reserved(credential, flow, binding string) *story {
	return s.tell("credential", credential, events.CredentialUsed{Flow: flow, Steps: []string{"s"}, Binding: binding, Until: bindUntil})
}

func (s *story) released(credential, flow string, revision uint64) *story {
	return s.tell("credential", credential, events.CredentialReleased{Flow: flow, Revision: revision})
}

func (s *story) clientUsed(flow string, revision uint64) *story {
	return s.tell("oauth_client", "petstore", events.OAuthClientUsed{Flow: flow, Revision: revision})
}

func (s *story) clientReleased(flow string, revision uint64) *story {
	return s.tell("oauth_client", "petstore", events.OAuthClientReleased{Flow: flow, Revision: revision})
}

func (s *story) refused(flow string, revision uint64, step, credential, reason string) *story {
	return s.tell("flow", flow, events.FlowUseRefused{Revision: revision, Step: step, Component: "petstore", Credential: credential, Reason: reason})
}

// What is known of f1 and c1 after a story.
type outcome struct {
	Where     []string // flows of credential c1
	Includes  []string // flows of component petstore
	Active    []string // active ones of all
	Broken    []string // broken ones of all
	Faults    []string // of f1: step:reason
	Uses      string   // of c1: total/active, with the log sequence of its value
	Client    string   // of petstore
	Stale     []string // thing of flow, at revision
	Unsettled []string // flow, at revision
}

func outcomeOf(t *testing.T, v *projections.Views) (o outcome) {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	list := func(f projections.FlowFilter) (ids []string) {
		f.Tenant = "acme"
		page, _, err := v.Flows(ctx, f)
		must(err)
		for _, flow := range page {
			ids = append(ids, flow.ID)
		}
		return ids
	}
	o.Where, o.Includes = list(projections.FlowFilter{Credential: "c1"}), list(projections.FlowFilter{Component: "petstore"})
	o.Active, o.Broken = list(projections.FlowFilter{Active: true}), list(projections.FlowFilter{Broken: true})
	f, _, err := v.Flow(ctx, "acme", "f1")
	must(err)
	for _, fault := range f.Faults {
		o.Faults = append(o.Faults, fault.Step+":"+fault.Reason)
	}
	uses := func(kind, id string) string {
		value, found, err := v.InUseOf(ctx, "acme", kind, id)
		must(err)
		if value.Total != len(value.Flows) {
			t.Errorf("%s %s: %d in all, listed %+v", kind, id, value.Total, value)
		}
		if !found {
			return ""
		}
		s := fmt.Sprintf("%d/%d@%d", value.Total, value.Active, value.Seq)
		for _, u := range value.Flows {
			s += " " + u.ID
			if u.Active {
				s += "+"
			}
			if u.Reserved {
				s += "?"
			}
		}
		return s
	}
	o.Uses, o.Client = uses("credential", "c1"), uses("oauth_client", "petstore")
	stale, err := v.StaleUses(ctx, 10)
	must(err)
	for _, u := range stale {
		o.Stale = append(o.Stale, fmt.Sprintf("%s.%s of %s@%d", u.Kind, u.ID, u.Flow, u.Revision))
	}
	unsettled, err := v.UnsettledFlows(ctx, 10)
	must(err)
	for _, u := range unsettled {
		o.Unsettled = append(o.Unsettled, fmt.Sprintf("%s@%d", u.Flow, u.Revision))
	}
	return o
}

func TestFlowsAndUses(t *testing.T) {
	start, stop, update, del := events.FlowWasStarted, events.FlowWasStopped, events.FlowWasUpdated, events.FlowWasDeleted
	f1 := []string{"f1"}
	base := func() *story { return new(story).credential("c1", "c2") } // sequences 1 and 2
	for name, c := range map[string]struct {
		story *story
		want  outcome
	}{
		"nothing": {base(), outcome{}},
		"told of, nothing recorded yet": {
			base().observed("f1", 1, start, true, at("s", "c1")),
			outcome{Where: f1, Includes: f1, Active: f1, Unsettled: []string{"f1@1"}},
		},
		"recorded": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1),
			outcome{Where: f1, Includes: f1, Active: f1, Uses: "1/1@4 f1+", Client: "1/1@5 f1+"},
		},
		"recorded by the credential alone": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true),
			outcome{Where: f1, Includes: f1, Active: f1, Uses: "1/1@4 f1+"}, // the component may not work with OAuth
		},
		"two steps, one use": {
			base().observed("f1", 1, start, true, at("s", "c1"), at("t", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1),
			outcome{Where: f1, Includes: f1, Active: f1, Uses: "1/1@4 f1+", Client: "1/1@5 f1+"},
		},
		"stopped: the credential lags, its client is told by the flow": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).observed("f1", 2, stop, false, at("s", "c1")),
			outcome{Where: f1, Includes: f1, Uses: "1/1@4 f1+", Client: "1/0@6 f1", Unsettled: []string{"f1@2"}},
		},
		"stopped and recorded": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).observed("f1", 2, stop, false, at("s", "c1")).used("c1", "f1", 2, false),
			outcome{Where: f1, Includes: f1, Uses: "1/0@7 f1", Client: "1/0@6 f1"},
		},
		"a later revision that changes nothing leaves the value": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).observed("f1", 2, update, true, at("s", "c1")).used("c1", "f1", 2, true),
			outcome{Where: f1, Includes: f1, Active: f1, Uses: "1/1@4 f1+", Client: "1/1@5 f1+"},
		},
		"swapped, the old one not yet released": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).observed("f1", 2, update, true, at("s", "c2")).used("c2", "f1", 2, true),
			outcome{Where: f1, Includes: f1, Active: f1, Uses: "1/1@4 f1+", Client: "1/1@5 f1+", Stale: []string{"credential.c1 of f1@2"}},
		},
		"swapped and released": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).observed("f1", 2, update, true, at("s", "c2")).released("c1", "f1", 2).used("c2", "f1", 2, true),
			outcome{Includes: f1, Active: f1, Uses: "0/0@7", Client: "1/1@5 f1+"},
		},
		"a use of an earlier revision comes after the later one was told": {
			base().observed("f1", 1, start, true, at("s", "c1")).observed("f1", 2, update, true).used("c1", "f1", 1, true),
			outcome{Where: f1, Active: f1, Uses: "1/1@5 f1+", Stale: []string{"credential.c1 of f1@2"}},
		},
		"a release of an earlier revision comes after a later use": {
			base().observed("f1", 1, start, true, at("s", "c1")).clientUsed("f1", 1).observed("f1", 2, update, true).observed("f1", 3, update, true, at("s", "c1")).
				used("c1", "f1", 3, true).clientReleased("f1", 2),
			outcome{Where: f1, Includes: f1, Active: f1, Uses: "1/1@7 f1+", Client: "0/0@8", Unsettled: []string{"f1@3"}},
		},
		"a credential that serves the flow no more": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).
				observed("f1", 2, update, true, at("s", "c1")).refused("f1", 2, "s", "c1", "credential_component_mismatch"),
			outcome{Where: f1, Includes: f1, Active: f1, Broken: f1, Faults: []string{"s:credential_component_mismatch"}, Uses: "1/1@4 f1+", Client: "1/1@5 f1+", Stale: []string{"credential.c1 of f1@2"}},
		},
		"deleted: what is left over shows": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).observed("f1", 2, del, false),
			outcome{Where: f1, Includes: f1, Uses: "1/1@4 f1+", Client: "1/0@6 f1", Stale: []string{"credential.c1 of f1@2", "oauth_client.petstore of f1@2"}},
		},
		"deleted and released": {
			base().observed("f1", 1, start, true, at("s", "c1")).used("c1", "f1", 1, true).clientUsed("f1", 1).observed("f1", 2, del, false).released("c1", "f1", 2).clientReleased("f1", 2),
			outcome{Uses: "0/0@7", Client: "0/0@8"},
		},
		"a credential that never was": {
			base().observed("f1", 1, start, true, at("s", "c1"), at("t", "no")).used("c1", "f1", 1, true).clientUsed("f1", 1).refused("f1", 1, "t", "no", "credential_not_found"),
			outcome{Where: f1, Includes: f1, Active: f1, Broken: f1, Faults: []string{"t:credential_not_found"}, Uses: "1/1@4 f1+", Client: "1/1@5 f1+"},
		},
		"a step without what it needs": {
			base().observed("f1", 1, start, true, at("s", "")).clientUsed("f1", 1).refused("f1", 1, "s", "", "credential_required"),
			outcome{Includes: f1, Active: f1, Broken: f1, Faults: []string{"s:credential_required"}, Client: "1/1@4 f1+"},
		},
		"an unknown component is settled by its refusal": {
			base().observed("f1", 1, start, true, at("s", "")).refused("f1", 1, "s", "", "component_not_found"),
			outcome{Includes: f1, Active: f1, Broken: f1, Faults: []string{"s:component_not_found"}},
		},
		"a later revision without the fault mends the flow": {
			base().observed("f1", 1, start, true, at("s", "no")).clientUsed("f1", 1).refused("f1", 1, "s", "no", "credential_not_found").
				observed("f1", 2, update, true, at("s", "c1")).used("c1", "f1", 2, true),
			outcome{Where: f1, Includes: f1, Active: f1, Uses: "1/1@7 f1+", Client: "1/1@4 f1+"},
		},
		"a later revision with the fault must be refused again": {
			base().observed("f1", 1, start, true, at("s", "no")).clientUsed("f1", 1).refused("f1", 1, "s", "no", "credential_not_found").observed("f1", 2, update, true, at("s", "no")),
			outcome{Includes: f1, Active: f1, Client: "1/1@4 f1+", Unsettled: []string{"f1@2"}},
		},
		"a credential deleted under a stopped flow": {
			base().observed("f1", 1, stop, false, at("s", "c1"), at("t", "c2")).used("c1", "f1", 1, false).used("c2", "f1", 1, false).clientUsed("f1", 1).
				tell("credential", "c1", events.CredentialDeleted{}),
			outcome{Where: f1, Includes: f1, Broken: f1, Faults: []string{"s:credential_deleted"}, Uses: "0/0@7", Client: "1/0@6 f1"},
		},
		"and told of again, still naming it": {
			base().observed("f1", 1, stop, false, at("s", "c1")).used("c1", "f1", 1, false).clientUsed("f1", 1).tell("credential", "c1", events.CredentialDeleted{}).
				observed("f1", 2, start, true, at("s", "c1")),
			outcome{Where: f1, Includes: f1, Active: f1, Broken: f1, Faults: []string{"s:credential_deleted"}, Uses: "0/0@6", Client: "1/1@7 f1+", Unsettled: []string{"f1@2"}},
		},
		"and refused": {
			base().observed("f1", 1, stop, false, at("s", "c1")).used("c1", "f1", 1, false).clientUsed("f1", 1).tell("credential", "c1", events.CredentialDeleted{}).
				observed("f1", 2, start, true, at("s", "c1")).refused("f1", 2, "s", "c1", "credential_not_found"),
			outcome{Where: f1, Includes: f1, Active: f1, Broken: f1, Faults: []string{"s:credential_not_found"}, Uses: "0/0@6", Client: "1/1@7 f1+"},
		},
		"and given another one": {
			base().observed("f1", 1, stop, false, at("s", "c1")).used("c1", "f1", 1, false).clientUsed("f1", 1).tell("credential", "c1", events.CredentialDeleted{}).
				observed("f1", 2, start, true, at("s", "c2")).used("c2", "f1", 2, true),
			outcome{Includes: f1, Active: f1, Uses: "0/0@6", Client: "1/1@7 f1+"},
		},
		"deleted before the start was recorded": {
			base().observed("f1", 1, stop, false, at("s", "c1")).used("c1", "f1", 1, false).clientUsed("f1", 1).observed("f1", 2, start, true, at("s", "c1")).
				tell("credential", "c1", events.CredentialDeleted{}),
			outcome{Where: f1, Includes: f1, Active: f1, Broken: f1, Faults: []string{"s:credential_deleted"}, Uses: "0/0@7", Client: "1/1@6 f1+", Unsettled: []string{"f1@2"}},
		},
		"deleted where only a link was": {
			base().used("c1", "f1", 0, false).tell("credential", "c1", events.CredentialDeleted{}),
			outcome{Uses: "0/0@4"},
		},
		"linked before the flow was told of": {
			base().used("c1", "f1", 0, false),
			outcome{Where: f1, Uses: "1/0@3 f1"},
		},
		"a link that the flow then does not name is left over": {
			base().used("c1", "f1", 0, false).observed("f1", 1, update, false, at("s", "c2")).used("c2", "f1", 1, false).clientUsed("f1", 1),
			outcome{Where: f1, Includes: f1, Uses: "1/0@3 f1", Client: "1/0@6 f1", Stale: []string{"credential.c1 of f1@1"}},
		},
		"a link made after the flow was told of waits for its next revision": {
			base().observed("f1", 1, update, false, at("s", "")).clientUsed("f1", 1).refused("f1", 1, "s", "", "credential_required").used("c1", "f1", 0, false),
			outcome{Where: f1, Includes: f1, Broken: f1, Faults: []string{"s:credential_required"}, Uses: "1/0@6 f1", Client: "1/0@4 f1"},
		},
		"reserved": {
			base().reserved("c1", "f1", "b1").tell("flow", "f1", events.FlowBound{Binding: "b1", Name: "x", Steps: []events.FlowStep{at("s", "c1")}, Until: bindUntil}),
			outcome{Where: f1, Uses: "1/0@3 f1?"},
		},
		"a reservation is no left-over": {
			base().reserved("c1", "f1", "b1").observed("f1", 1, update, false),
			outcome{Where: f1, Uses: "1/0@3 f1?"},
		},
		"a reservation given back": {
			base().reserved("c1", "f1", "b1").released("c1", "f1", 0),
			outcome{Uses: "0/0@4"},
		},
		"active ones stand first": {
			base().used("c1", "f2", 1, true).used("c1", "f0", 1, false).used("c1", "f1", 1, false).reserved("c1", "f3", "b"),
			outcome{Where: []string{"f0", "f1", "f2", "f3"}, Uses: "4/1@6 f2+ f0 f1 f3?"},
		},
		"another tenant sees nothing": {
			&story{recs: []events.Record{func() events.Record {
				r := base().observed("f1", 1, start, true, at("s", "c1")).recs[2]
				r.Stream.Tenant, r.Meta.Tenant, r.Seq = "other", "other", 1
				return r
			}()}},
			outcome{Unsettled: []string{"f1@1"}}, // which the keeper of all tenants sees
		},
	} {
		t.Run(name, func(t *testing.T) {
			whole := open(t, filepath.Join(t.TempDir(), "whole.db"))
			if err := whole.Apply(t.Context(), c.story.recs); err != nil {
				t.Fatal(err)
			}
			if diff := gocmp.Diff(c.want, outcomeOf(t, whole), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			single := open(t, filepath.Join(t.TempDir(), "single.db"))
			for i := range c.story.recs {
				if err := single.Apply(t.Context(), c.story.recs[i:i+1]); err != nil {
					t.Fatal(err)
				}
			}
			if diff := gocmp.Diff(dump(t, whole), dump(t, single)); diff != "" {
				t.Errorf("applied one by one it is another: %s", diff)
			}
		})
	}
}

func TestReservationsExpire(t *testing.T) {
	s := new(story).credential("c1", "c2").reserved("c1", "f1", "b1").reserved("c2", "f1", "b1").reserved("c1", "f2", "b2").used("c2", "f1", 3, true)
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := v.Apply(t.Context(), s.recs); err != nil {
		t.Fatal(err)
	}
	got, err := v.ExpiredBindings(t.Context(), bindUntil, 10)
	if len(got) > 0 || err != nil {
		t.Errorf("ended too early: %+v, %v", got, err)
	}
	got, err = v.ExpiredBindings(t.Context(), bindUntil.Add(time.Microsecond), 10)
	want := []projections.FlowUse{
		{Tenant: "acme", Kind: "credential", ID: "c1", Flow: "f1", Binding: "b1"},
		{Tenant: "acme", Kind: "credential", ID: "c1", Flow: "f2", Binding: "b2"},
	}
	if diff := gocmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
	got, err = v.ExpiredBindings(t.Context(), bindUntil.Add(time.Hour), 1)
	if len(got) != 1 || err != nil {
		t.Errorf("asked for one: %+v, %v", got, err)
	}
}

func TestFlowPages(t *testing.T) {
	s := new(story).credential("c1", "c2")
	want := map[string][]string{}
	for i := range 25 {
		id, steps := fmt.Sprintf("f%02d", i), []events.FlowStep{at("s", "c1")}
		in := []string{"all", "c1", "petstore"}
		if i%3 == 0 {
			steps = append(steps, events.FlowStep{ID: "t", Component: "sheets", Credential: "c2"})
			in = append(in, "c1 and sheets")
		}
		if i%2 == 0 {
			in = append(in, "active", "c1 active")
		}
		s.observed(id, 1, events.FlowWasCreated, i%2 == 0, steps...)
		if i%4 == 0 {
			s.refused(id, 1, "s", "c1", "credential_component_mismatch")
			in = append(in, "broken")
		}
		if i%7 == 0 { // gone for good
			s.observed(id, 2, events.FlowWasDeleted, false)
			in = nil
		}
		for _, list := range in {
			want[list] = append(want[list], id)
		}
	}
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := v.Apply(t.Context(), s.recs); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]projections.FlowFilter{
		"all": {}, "c1": {Credential: "c1"}, "petstore": {Component: "petstore"}, "c1 and sheets": {Credential: "c1", Component: "sheets"},
		"active": {Active: true}, "c1 active": {Credential: "c1", Active: true}, "broken": {Broken: true},
	} {
		f.Tenant, f.Limit = "acme", 4
		var got []string
		for pages := 0; pages == 0 || f.After != ""; pages++ {
			page, next, err := v.Flows(t.Context(), f)
			if err != nil || len(page) > 4 || pages > 25 {
				t.Fatal(name, len(page), err)
			}
			for _, flow := range page {
				got = append(got, flow.ID)
				if flow.Name != "Flow "+flow.ID || flow.Tenant != "acme" || len(flow.Steps) == 0 || flow.Active != (len(flow.ID) == 3 && (flow.ID[2]-'0')%2 == 0) {
					t.Errorf("%s: %+v", name, flow)
				}
			}
			f.After = next
		}
		if diff := gocmp.Diff(want[name], got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	names, err := v.FlowNames(t.Context(), "acme", []string{"f01", "nobody", "f24"})
	if diff := gocmp.Diff(map[string]string{"f01": "Flow f01", "f24": "Flow f24"}, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// Entries of one sequence are never torn apart, and the values list a thousand flows.
func TestInUsePages(t *testing.T) {
	var recs []events.Record
	add := func(seq uint64, category, id string, e events.Event) {
		recs = append(recs, commits(events.StreamID{Tenant: "acme", Category: category, ID: id}, seq, []events.Event{e})...)
	}
	add(1, "credential", "c1", events.CredentialCreated{Component: "k0", Keys: keys(1, verified)})
	var steps []events.FlowStep
	for i := range 7 {
		k := fmt.Sprint("k", i)
		steps = append(steps, events.FlowStep{ID: k, Component: k})
		add(uint64(2+i), "oauth_client", k, events.OAuthClientUsed{Flow: "f", Revision: 1})
	}
	const flows = 1203
	for i := range flows {
		add(uint64(9+i), "credential", "c1", events.CredentialUsed{Flow: fmt.Sprintf("f%04d", i), Revision: 1, Named: true, Active: i%200 == 0})
	}
	end := uint64(9 + flows)
	add(end, "flow", "f", events.FlowObserved{Change: events.FlowWasStarted, Revision: 2, Active: true, Steps: steps})
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := v.Apply(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for after, pages := uint64(0), 0; ; pages++ {
		page, err := v.InUseChanges(t.Context(), after, 3)
		if err != nil || pages > 8 {
			t.Fatal(pages, err)
		}
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			keys = append(keys, e.ID)
			after = e.Value.Seq
		}
	}
	if diff := gocmp.Diff([]string{"c1", "k0", "k1", "k2", "k3", "k4", "k5", "k6"}, keys); diff != "" {
		t.Error(diff)
	}
	value, found, err := v.InUseOf(t.Context(), "acme", "credential", "c1")
	if !found || err != nil {
		t.Fatal(found, err)
	}
	if value.Total != flows || value.Active != 7 || len(value.Flows) != 1000 || !value.Truncated || value.Seq != end-1 {
		t.Errorf("total %d, active %d, listed %d, truncated %t, at %d", value.Total, value.Active, len(value.Flows), value.Truncated, value.Seq)
	}
	if value.Flows[6].ID != "f1200" || !value.Flows[6].Active || value.Flows[7].ID != "f0001" || value.Flows[7].Active {
		t.Errorf("the order is %+v", value.Flows[5:9])
	}
	var listed []string
	for after, pages := "", 0; pages == 0 || after != ""; pages++ {
		page, next, err := v.InUseList(t.Context(), "acme", events.Scope{}, after, 3)
		if err != nil || len(page) > 3 || pages > 3 {
			t.Fatal(len(page), pages, err)
		}
		for _, e := range page {
			listed = append(listed, e.Kind+"."+e.ID)
			if whole, _, _ := v.InUseOf(t.Context(), e.Tenant, e.Kind, e.ID); !gocmp.Equal(whole, e.Value) {
				t.Errorf("%s.%s: listed as %+v", e.Kind, e.ID, e.Value)
			}
		}
		after = next
	}
	want := []string{"credential.c1"}
	for i := range 7 {
		want = append(want, fmt.Sprint("oauth_client.k", i))
	}
	if diff := gocmp.Diff(want, listed); diff != "" {
		t.Error(diff)
	}
	if page, _, err := v.InUseList(t.Context(), "acm", events.Scope{}, "", 0); len(page) > 0 || err != nil {
		t.Errorf("another tenant: %+v, %v", page, err)
	}
}

// world is the service in small: flow events come in, the aggregates decide, and
// what follows is settled as far as a crash lets it.
type world struct {
	t     *rapid.T
	log   *aggregates.Log
	views *projections.Views
	seen  uint64
}

func run1[S any, C commands.Command, E any](w *world, d aggregates.Decider[S, C, E], cmd C) (was, now S, err error) {
	meta := events.Meta{Tenant: "acme", Actor: events.Actor{Kind: "system", ID: "x"}, Command: events.NewID(), Request: "r", Time: bindUntil, Via: "system"}
	before, after, err := d.Execute(context.Background(), w.log, "acme", cmd, meta, nil)
	return before.Value, after.Value, err
}

// settle makes credentials and clients agree with a flow, as far as the fuse
// reaches: each thing on its way costs one.
func (w *world) settle(flow string, was, now aggregates.FlowState, fuse int) {
	burnt := func() bool { fuse--; return fuse < 0 }
	by := func(steps []events.FlowStep) map[string][]events.FlowStep {
		m := map[string][]events.FlowStep{}
		for _, s := range steps {
			if s.Credential != "" {
				m[s.Credential] = append(m[s.Credential], s)
			}
		}
		return m
	}
	components := func(steps []events.FlowStep) (ids []string) {
		for _, s := range steps {
			ids = append(ids, s.Component)
		}
		slices.Sort(ids)
		return slices.Compact(ids)
	}
	var refused []events.FlowUseRefused
	uses := by(now.Steps)
	for _, c := range slices.Sorted(maps.Keys(uses)) {
		if burnt() {
			return
		}
		_, state, err := run1(w, aggregates.Credential, commands.Credential(commands.UseCredential{ID: c, Flow: flow, Revision: now.Revision, Active: now.Active, Steps: uses[c]}))
		for _, s := range uses[c] {
			r := events.FlowUseRefused{Revision: now.Revision, Step: s.ID, Component: s.Component, Credential: c}
			switch {
			case errors.Is(err, aggregates.ErrCredentialNotFound):
				r.Reason = "credential_not_found"
			case s.Component != state.Component:
				r.Reason = "credential_component_mismatch"
			default:
				continue
			}
			refused = append(refused, r)
		}
	}
	for _, c := range slices.Sorted(maps.Keys(by(slices.Concat(was.Steps, was.Binding.Steps)))) {
		release := commands.ReleaseCredential{ID: c, Flow: flow}
		if _, named := uses[c]; !named {
			release.Revision = now.Revision
		}
		if was.Binding.ID != now.Binding.ID {
			release.Binding = was.Binding.ID
		}
		if burnt() {
			return
		}
		if _, _, err := run1(w, aggregates.Credential, commands.Credential(release)); err != nil {
			w.t.Fatal(err)
		}
	}
	for _, k := range components(slices.Concat(was.Steps, now.Steps)) {
		if burnt() {
			return
		}
		cmd := commands.OAuthClient(commands.ReleaseOAuthClient{Component: k, Flow: flow, Revision: now.Revision})
		if slices.Contains(components(now.Steps), k) {
			cmd = commands.UseOAuthClient{Component: k, Flow: flow, Revision: now.Revision}
		}
		if _, _, err := run1(w, aggregates.OAuthClient, cmd); err != nil {
			w.t.Fatal(err)
		}
	}
	if len(refused) > 0 && !burnt() {
		if _, _, err := run1(w, aggregates.Flow, commands.Flow(commands.RefuseUse{ID: flow, Revision: now.Revision, Refused: refused})); err != nil {
			w.t.Fatal(err)
		}
	}
}

// project brings the views up to the log, in batches of any size.
func (w *world) project(batch func(n int) int) {
	end, _ := w.log.Store.End(context.Background())
	for w.seen < end {
		var recs []events.Record
		for range batch(int(end - w.seen)) {
			w.seen++
			of, err := w.log.Store.Commit(context.Background(), w.seen)
			if err != nil {
				w.t.Fatal(err)
			}
			recs = append(recs, of...)
		}
		if err := w.views.Apply(context.Background(), recs); err != nil {
			w.t.Fatal(err)
		}
	}
}

// keep does what the keeper of flows does, until nothing is left to do.
func (w *world) keep() {
	for range 20 {
		w.project(func(n int) int { return n })
		ctx := context.Background()
		expired, err1 := w.views.ExpiredBindings(ctx, bindUntil.Add(time.Hour), 100)
		stale, err2 := w.views.StaleUses(ctx, 100)
		unsettled, err3 := w.views.UnsettledFlows(ctx, 100)
		if err := errors.Join(err1, err2, err3); err != nil {
			w.t.Fatal(err)
		}
		if len(expired)+len(stale)+len(unsettled) == 0 {
			return
		}
		for _, u := range expired {
			_, _, err := run1(w, aggregates.Flow, commands.Flow(commands.ReleaseFlow{ID: u.Flow, Binding: u.Binding, Reason: events.ReleasedByExpiry}))
			_, _, err2 := run1(w, aggregates.Credential, commands.Credential(commands.ReleaseCredential{ID: u.ID, Flow: u.Flow, Binding: u.Binding}))
			if err := errors.Join(err, err2); err != nil {
				w.t.Fatal(err)
			}
		}
		for _, u := range stale {
			var err error
			if u.Kind == "credential" {
				_, _, err = run1(w, aggregates.Credential, commands.Credential(commands.ReleaseCredential{ID: u.ID, Flow: u.Flow, Revision: u.Revision}))
			} else {
				_, _, err = run1(w, aggregates.OAuthClient, commands.OAuthClient(commands.ReleaseOAuthClient{Component: u.ID, Flow: u.Flow, Revision: u.Revision}))
			}
			if err != nil {
				w.t.Fatal(err)
			}
		}
		for _, u := range unsettled {
			state, err := aggregates.Flow.Fresh(ctx, w.log, aggregates.Flow.Stream("acme", u.Flow))
			if err != nil {
				w.t.Fatal(err)
			}
			if state.Value.Revision != u.Revision {
				w.t.Fatalf("%s is unsettled at %d, and has revision %d", u.Flow, u.Revision, state.Value.Revision)
			}
			w.settle(u.Flow, state.Value, state.Value, 1000)
		}
	}
	w.t.Fatal("what is left over does not become less")
}

// said is a flow event as its engine sends it.
type said struct {
	flow     string
	revision uint64
	change   events.FlowChange
	steps    []events.FlowStep
}

// For flow events in any order and duplication, with crashes and deletes
// between, what the in-use index says in the end is what each flow's highest
// revision says of what is there.
func TestInUseEqualsAFoldOfTheFlowEvents(t *testing.T) {
	dir, runs := t.TempDir(), 0
	credentials := map[string]string{"a1": "a", "a2": "a", "b1": "b"} // with their component
	rapid.Check(t, func(t *rapid.T) {
		runs++
		v, err := projections.OpenViews(filepath.Join(dir, fmt.Sprint(runs)), projections.ViewsOptions{Readers: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		store := memory.New(events.All())
		log, err := aggregates.NewLog(store, 100)
		if err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, log: log, views: v}
		for _, id := range slices.Sorted(maps.Keys(credentials)) {
			_, _, err := run1(w, aggregates.Credential, commands.Credential(commands.CreateCredential{ID: id, Component: credentials[id], Keys: commands.NewKeys{SecretID: "s" + id, Verification: verified}}))
			if err != nil {
				t.Fatal(err)
			}
		}
		step := rapid.Custom(func(t *rapid.T) events.FlowStep {
			return events.FlowStep{
				Component:  rapid.SampledFrom([]string{"a", "b"}).Draw(t, "component"),
				Credential: rapid.SampledFrom([]string{"", "a1", "a1", "a2", "b1", "b1", "none"}).Draw(t, "credential"),
			}
		})
		var all []said
		for _, flow := range []string{"f1", "f2", "f 3"} {
			for revision := range rapid.IntRange(0, 5).Draw(t, "revisions") {
				e := said{flow: flow, revision: uint64(revision + 1), change: rapid.SampledFrom([]events.FlowChange{
					events.FlowWasCreated, events.FlowWasUpdated, events.FlowWasStarted, events.FlowWasStarted, events.FlowWasStopped, events.FlowWasDeleted,
				}).Draw(t, "change")}
				e.steps = rapid.SliceOfN(step, 0, 3).Draw(t, "steps")
				for i := range e.steps {
					e.steps[i].ID = fmt.Sprint("s", i)
				}
				all = append(all, e)
			}
		}
		order := rapid.Permutation(append(all, all...)).Draw(t, "order") // each twice
		active := map[string]aggregates.FlowState{}
		gone := map[string]bool{}
		for i, e := range order {
			if rapid.IntRange(0, 9).Draw(t, "bind") == 0 {
				c := rapid.SampledFrom(slices.Sorted(maps.Keys(credentials))).Draw(t, "bound")
				steps := []events.FlowStep{{ID: "s0", Component: credentials[c], Credential: c}}
				binding := fmt.Sprint("b", i)
				_, _, err := run1(w, aggregates.Credential, commands.Credential(commands.ReserveCredential{ID: c, Flow: e.flow, Binding: binding, Steps: steps, Until: bindUntil}))
				if err == nil && rapid.Bool().Draw(t, "bound whole") {
					_, _, err = run1(w, aggregates.Flow, commands.Flow(commands.BindFlow{ID: e.flow, Binding: binding, Steps: steps, Until: bindUntil}))
				}
				if err != nil && !errors.Is(err, aggregates.ErrCredentialNotFound) {
					t.Fatal(err)
				}
			}
			was, now, err := run1(w, aggregates.Flow, commands.Flow(commands.ObserveFlow{ID: e.flow, Change: e.change, Revision: e.revision, Steps: e.steps}))
			if err != nil {
				t.Fatal(err)
			}
			active[e.flow] = now
			w.settle(e.flow, was, now, rapid.SampledFrom([]int{0, 1, 2, 3, 1000, 1000, 1000}).Draw(t, "crash"))
			if rapid.IntRange(0, 9).Draw(t, "delete") == 0 {
				c := rapid.SampledFrom(slices.Sorted(maps.Keys(credentials))).Draw(t, "deleted")
				_, _, err := run1(w, aggregates.Credential, commands.Credential(commands.DeleteCredential{ID: c}))
				switch {
				case err == nil:
					gone[c] = true
				case !errors.Is(err, aggregates.ErrCredentialInUse) && !errors.Is(err, aggregates.ErrCredentialNotFound):
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "project") == 0 {
				w.project(func(n int) int { return rapid.IntRange(1, n).Draw(t, "batch") })
			}
		}
		w.keep()
		// What a crash took of the components' use the keeper does not know of: it comes
		// with the event, which is delivered until it is settled.
		for _, flow := range slices.Sorted(maps.Keys(active)) {
			for _, s := range active[flow].Steps {
				_, _, err := run1(w, aggregates.OAuthClient, commands.OAuthClient(commands.UseOAuthClient{Component: s.Component, Flow: flow, Revision: active[flow].Revision}))
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		w.project(func(n int) int { return n })

		type key struct{ kind, id string }
		want := map[key][]projections.InUseFlow{}
		broken := map[string]bool{}
		for _, flow := range slices.Sorted(maps.Keys(active)) {
			now := active[flow]
			uses := map[key]bool{}
			for _, s := range now.Steps {
				uses[key{"oauth_client", s.Component}] = true
				switch {
				case s.Credential == "":
				case credentials[s.Credential] == s.Component && !gone[s.Credential]:
					uses[key{"credential", s.Credential}] = true
				default:
					broken[flow] = true
				}
			}
			for k := range uses {
				want[k] = append(want[k], projections.InUseFlow{ID: flow, Active: now.Active})
			}
		}
		for k := range want {
			slices.SortStableFunc(want[k], func(a, b projections.InUseFlow) int {
				switch {
				case a.Active == b.Active:
					return 0
				case a.Active:
					return -1
				}
				return 1
			})
		}
		got := map[key][]projections.InUseFlow{}
		entries, err := v.InUseChanges(t.Context(), 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			counted := 0
			for _, f := range e.Value.Flows {
				if f.Active {
					counted++
				}
			}
			if e.Value.Total != len(e.Value.Flows) || e.Value.Active != counted {
				t.Fatalf("wrong counts: %+v", e)
			}
			if len(e.Value.Flows) > 0 {
				got[key{e.Kind, e.ID}] = e.Value.Flows
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		// What a crash took of the refusals comes with the event, which is delivered
		// until it is settled. Nothing else changes then.
		for _, flow := range slices.Sorted(maps.Keys(active)) {
			w.settle(flow, active[flow], active[flow], 1000)
		}
		w.project(func(n int) int { return n })
		if again, err := v.InUseChanges(t.Context(), 0, 0); err != nil || !gocmp.Equal(entries, again) {
			t.Fatalf("settled again: %s, %v", gocmp.Diff(entries, again), err)
		}
		listed, _, err := v.Flows(t.Context(), projections.FlowFilter{Tenant: "acme", Broken: true})
		if err != nil {
			t.Fatal(err)
		}
		said := map[string]bool{}
		for _, f := range listed {
			said[f.ID] = true
			if len(f.Faults) == 0 {
				t.Fatalf("%s is broken for no reason", f.ID)
			}
		}
		if diff := gocmp.Diff(broken, said); diff != "" {
			t.Fatal(diff)
		}
		if runs%4 > 0 { // a rebuild takes longer than the rest
			return
		}
		before := dump(t, v)
		end, _ := store.End(t.Context())
		var last uint64
		if err := v.Rebuild(t.Context(), store, func(done, _ uint64) { last = done }); err != nil || last != end {
			t.Fatal(last, end, err)
		}
		if diff := gocmp.Diff(before, dump(t, v)); diff != "" {
			t.Fatal(diff)
		}
	})
}
