package projections_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// Which auth clients a tenant sees, from where, page by page.
func TestAuthClients(t *testing.T) {
	v := open(t, filepath.Join(t.TempDir(), "views.db"))
	var recs []events.Record
	seq := uint64(0)
	add := func(tenant, id string, e events.Event) {
		seq++
		for _, r := range commits(events.StreamID{Tenant: tenant, Category: "auth_client", ID: id}, seq, []events.Event{e}) {
			r.Meta.Tenant = tenant
			recs = append(recs, r)
		}
	}
	create := func(tenant, id, scope, scopeID string, components ...string) {
		e := events.AuthClientCreated{Name: "N " + id, Type: "oauth2", Scope: scope, ScopeID: scopeID, ClientID: "client", SecretID: "s", Fields: []string{"client_id"}}
		for _, c := range components {
			k := events.AuthClientComponent{Component: c}
			if scope == projections.ScopeTenant {
				k.OAuthClient = "o-" + id
			}
			e.Components = append(e.Components, k)
		}
		add(tenant, id, e)
	}
	create("acme", "w1", "workspace", "sales", "sheets")
	create("acme", "w2", "workspace", "support", "sheets", "docs")
	create("acme", "c1", "contract", "k1", "docs")
	create("acme", "t1", "tenant", "", "sheets", "docs")
	create("other", "t2", "tenant", "", "sheets")
	create("other", "g1", "global", "", "docs")
	add("acme", "w1", events.AuthClientSettled{})
	if err := v.Apply(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	type filter = projections.AuthClientFilter
	for _, c := range []struct {
		filter
		want string
	}{
		{filter{Tenant: "acme"}, "w1 w2 c1 t1 g1"},
		{filter{Tenant: "other"}, "t2 g1"},
		{filter{Tenant: "third"}, "g1"},
		{filter{Tenant: "acme", Scope: "workspace", ScopeID: "sales"}, "w1 t1 g1"},
		{filter{Tenant: "acme", Scope: "contract", ScopeID: "k1"}, "c1 t1 g1"},
		{filter{Tenant: "acme", Scope: "tenant"}, "t1 g1"},
		{filter{Tenant: "acme", Scope: "global"}, "g1"},
		{filter{Tenant: "acme", Component: "docs"}, "w2 c1 t1 g1"},
		{filter{Tenant: "acme", Component: "docs", Scope: "workspace", ScopeID: "support"}, "w2 t1 g1"},
		{filter{Tenant: "acme", Component: "none"}, ""},
	} {
		for limit := 1; limit <= 6; limit++ {
			f, got := c.filter, []string{}
			f.Limit = limit
			for more := true; more; more = f.After != "" {
				page, next, total, err := v.AuthClients(t.Context(), f)
				if err != nil || total != len(strings.Fields(c.want)) {
					t.Fatalf("%+v: %d in all, %v", f, total, err)
				}
				for _, k := range page {
					got = append(got, k.ID)
				}
				f.After = next
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%+v: %v, want %s", c.filter, got, c.want)
			}
		}
	}
	for _, cursor := range []string{"x", "-1", "0"} {
		if _, _, _, err := v.AuthClients(t.Context(), filter{Tenant: "acme", After: cursor}); !errors.Is(err, projections.ErrCursorInvalid) {
			t.Errorf("the cursor %s: %v", cursor, err)
		}
	}
	for id, want := range map[string]string{"acme w1": "w1", "acme g1": "g1", "acme t2": "", "other t1": "", "third g1": "g1"} {
		tenant, id, _ := strings.Cut(id, " ")
		if k, found, err := v.AuthClient(t.Context(), tenant, id); err != nil || k.ID != want || found != (want != "") {
			t.Errorf("%s of %s: %+v, %v", id, tenant, k, err)
		}
	}
	followed := func() (ids string) {
		for _, of := range []string{"acme sheets", "acme docs", "other sheets", "other docs"} {
			tenant, component, _ := strings.Cut(of, " ")
			k, _, err := v.AuthClientFollowed(t.Context(), tenant, component)
			if err != nil {
				t.Fatal(err)
			}
			ids += "/" + k.ID
		}
		return ids
	}
	if got := followed(); got != "/t1/t1/t2/" {
		t.Errorf("followed are %s", got)
	}
	unsettled := func(before time.Time) (ids string) {
		list, err := v.UnsettledAuthClients(t.Context(), before, 9)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range list {
			ids += " " + k.ID
		}
		return ids
	}
	last := recs[len(recs)-1].Meta.Time.Add(time.Hour)
	if got := unsettled(last); got != " w2 c1 t1 t2 g1" {
		t.Errorf("unsettled are%s", got)
	}
	if got := unsettled(recs[1].Meta.Time); got != "" {
		t.Errorf("unsettled since long are%s", got)
	}
	rest := len(recs)
	add("acme", "t1", events.AuthClientChanged{Name: "Docs", Components: []events.AuthClientComponent{{Component: "docs", OAuthClient: "o-t1"}}, Fields: []string{}, ClientID: "c2", SecretID: "s2"})
	add("other", "t2", events.AuthClientDeleted{})
	if err := v.Apply(t.Context(), recs[rest:]); err != nil {
		t.Fatal(err)
	}
	if got := followed(); got != "//t1//" {
		t.Errorf("after a change, followed are %s", got)
	}
	k, _, err := v.AuthClient(t.Context(), "acme", "t1")
	if got := fmt.Sprint(k.Name, k.Components, k.Fields, k.ClientID, k.SecretID, k.Settled, k.Seq); err != nil || got != "Docs[{docs o-t1}] []c2s2false 8" {
		t.Errorf("it is %s, %v", got, err)
	}
}
