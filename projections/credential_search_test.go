package projections_test

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// typed are n commits of the tenants acme and other that each create a credential: of a
// component or of the free type of the same name.
func typed(n int) (recs []events.Record) {
	for i := range n {
		tenant := "acme"
		if i%10 == 9 {
			tenant = "other"
		}
		id := fmt.Sprintf("id-%06d", (i*7919)%n)
		if i%3 == 0 {
			id += "="
		}
		facts := []events.Event{
			events.CredentialCreated{Component: "crm", Name: id, Workspace: []string{"", "sales", "support"}[i%3], Keys: keys(1, unverified)},
			events.CredentialThrottlePolicyAssigned{Policy: []string{"", "p1", "p2"}[i%3], Use: id},
			events.CredentialDescriptionSet{Description: fmt.Sprintf("%s ACCOUNT %d", words[i%len(words)], i)},
		}
		if i%2 == 0 {
			facts[0] = events.CredentialCreated{Name: id, Keys: keys(1, unverified)}
			facts = slices.Insert(facts, 1, events.Event(events.CredentialTyped{Version: 1, Type: []string{"crm", "file system"}[i/2%2]}))
		}
		for j, e := range facts {
			recs = append(recs, events.Record{
				Stream: events.StreamID{Tenant: tenant, Category: "credential", ID: id}, Seq: uint64(i + 1), Index: j, Of: len(facts),
				Meta: events.Meta{Tenant: tenant, Actor: events.Actor{Kind: "key", ID: "k"}, Time: time.Unix(int64(i), 0).UTC()}, Event: e,
			})
		}
	}
	return recs
}

// Whatever is searched for in whatever order is what a look at every row finds, at every
// place of the list.
func TestSearchCredentials(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	if err := v.Apply(t.Context(), typed(300)); err != nil {
		t.Fatal(err)
	}
	all, total, err := v.SearchCredentials(t.Context(), projections.CredentialSearch{Tenant: "acme", Limit: 1000})
	if err != nil || total != 270 || len(all) != 270 {
		t.Fatalf("%d of %d: %v", len(all), total, err)
	}
	typeOf := func(c projections.Credential) string { return c.Component + c.Type }
	some := []string{all[3].ID, all[200].ID, all[3].ID, "none", strings.TrimSuffix(all[0].ID, "=") + "=="}
	for _, f := range []projections.CredentialSearch{
		{},
		{Type: "crm"},
		{Type: "file system"},
		{Type: "none"},
		{Description: "account 1"},
		{Description: "ORDERS"},
		{Description: "%"},
		{Type: "crm", Description: "sales"},
		{IDs: some},
		{IDs: []string{}},
		{IDs: some, Type: "crm"},
		{IDs: some, Description: "account"},
		{Tenant: "other", IDs: some},
		{Policy: "p1"},
		{Policy: "none"},
		{Policy: "p2", Type: "crm", Description: "account 1"},
		{Policy: "p1", IDs: some},
		{Scope: events.Scope{Components: []string{"crm"}}},
		{Scope: events.Scope{Components: []string{"none", "crm", "crm"}}, Description: "account 1"},
		{Scope: events.Scope{Components: []string{"crm"}}, Policy: "p1"},
		{Scope: events.Scope{Components: []string{"none"}}, Type: "crm"},
		{Scope: events.Scope{Workspaces: []string{"sales"}}},
		{Scope: events.Scope{Workspaces: []string{"sales", "support"}, Components: []string{"crm"}}, Description: "account 1"},
	} {
		for _, sort := range []string{"", "id", "type", "description", "throttle_policy"} {
			for _, desc := range []bool{false, true} {
				f := f
				f.Sort, f.Desc, f.Limit = sort, desc, 7
				f.Tenant = cmp.Or(f.Tenant, "acme")
				var want []projections.Credential
				for _, c := range all {
					if (f.IDs == nil || slices.Contains(f.IDs, c.ID)) && (f.Type == "" || f.Type == typeOf(c)) && (f.Policy == "" || f.Policy == c.ThrottlePolicy) && c.Tenant == f.Tenant &&
						f.Scope.Reaches(c.ID, c.Component, c.Workspace) &&
						strings.Contains(strings.ToLower(c.Description), strings.ToLower(f.Description)) {
						want = append(want, c)
					}
				}
				// A free type stands behind the component of its name.
				slices.SortFunc(want, func(a, b projections.Credential) int {
					by := map[string]int{
						"type":            cmp.Or(cmp.Compare(typeOf(a), typeOf(b)), cmp.Compare(a.Type, b.Type)),
						"throttle_policy": cmp.Compare(a.ThrottlePolicy, b.ThrottlePolicy),
						"description":     byName(a.Description, b.Description),
					}[sort]
					if by = cmp.Or(by, cmp.Compare(a.ID, b.ID)); desc {
						return -by
					}
					return by
				})
				var got []projections.Credential
				for f.From = 0; ; f.From += 7 {
					page, total, err := v.SearchCredentials(t.Context(), f)
					if err != nil || total != len(want) {
						t.Fatalf("%+v: a total of %d, not %d: %v", f, total, len(want), err)
					}
					if got = append(got, page...); len(page) < 7 {
						break
					}
				}
				ids := func(list []projections.Credential) (ids []string) {
					for _, c := range list {
						ids = append(ids, c.ID)
					}
					return ids
				}
				if !slices.Equal(ids(got), ids(want)) {
					t.Fatalf("%+v finds\n%v\nnot\n%v", f, ids(got), ids(want))
				}
			}
		}
	}
	after, _, err := v.SearchCredentials(t.Context(), projections.CredentialSearch{Tenant: "acme", After: all[100].ID, Limit: 5})
	if err != nil || len(after) != 5 || after[0].ID != all[101].ID {
		t.Errorf("after %s comes %v: %v", all[100].ID, after, err)
	}
	for _, from := range []int{len(all), len(all) + 1, len(all) + 1000} {
		beyond, total, err := v.SearchCredentials(t.Context(), projections.CredentialSearch{Tenant: "acme", From: from, Limit: 5})
		if err != nil || len(beyond) != 0 || total != len(all) {
			t.Errorf("from %d: %v of %d: %v", from, beyond, total, err)
		}
	}
	for _, f := range []projections.CredentialSearch{{Sort: "name"}, {Sort: "type", After: "x"}, {Desc: true, After: "x"}} {
		if _, _, err := v.SearchCredentials(t.Context(), f); !errors.Is(err, projections.ErrSearchSort) {
			t.Errorf("%+v: %v", f, err)
		}
	}
}

// BenchmarkSearch reads a page of 25 in the middle of up to 100,000, which takes longest: a page is
// read from the nearer end.
func BenchmarkSearch(b *testing.B) {
	v := open(b, filepath.Join(b.TempDir(), "views.db"))
	if err := v.Rebuild(b.Context(), tape{recs: typed(benchRows * 10 / 9)}, nil); err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string]projections.CredentialSearch{
		"id":          {From: 50_000},
		"id-end":      {From: 99_900},
		"id-desc":     {From: 50_000, Desc: true},
		"type":        {Sort: "type", From: 50_000},
		"description": {Sort: "description", From: 50_000},
		"policy":      {Sort: "throttle_policy", From: 50_000},
		"of-policy":   {Policy: "p1", From: 15_000},
		"components":  {Scope: events.Scope{Components: []string{"crm"}}, From: 20_000},
		"workspaces":  {Scope: events.Scope{Workspaces: []string{"sales"}}, From: 7_500},
		"of-one-kind": {Type: "file system", From: 10_000},
		"of-type":     {Type: "crm", From: 37_000},
		"of-type-end": {Type: "crm", From: 74_000},
		"contains":    {Description: "account", From: 50_000},
		"contains-1":  {Description: "account 77777"},
		"ids":         {IDs: []string{"id-000001", "id-050000="}},
	} {
		f.Tenant, f.Limit = "acme", 25
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := v.SearchCredentials(b.Context(), f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
