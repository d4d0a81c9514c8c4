package access_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/stage"
)

// A key revokes what it could have issued, and itself, and nothing that is stronger.
func TestRevokeIsBoundByRights(t *testing.T) {
	s := stage.New(t)
	revoke := func(by service.Principal, id string) string {
		t.Helper()
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: by, Via: "http"}, "api_key.revoke", fmt.Appendf(nil, `{"id":%q}`, id))
		return stage.CodeOf(err)
	}
	manager := s.Issue("default", `{"role":"OPERATOR","permissions":["keys.manage"],"expires":"1h"}`)
	admin := s.Issue("default", `{"role":"ADMINISTRATOR"}`)
	revealer := s.Issue("default", `{"role":"OPERATOR","permissions":["credentials.reveal"]}`)
	operator := s.Issue("default", `{"role":"OPERATOR"}`)
	for name, stronger := range map[string]service.Principal{"an administrator": admin, "a flow engine": s.Engine, "who may reveal": revealer} {
		if got := revoke(manager, stronger.Actor.ID); got != "api_key_exceeds_issuer" {
			t.Errorf("a manager of keys revokes %s: %q", name, got)
		}
	}
	if got := revoke(manager, operator.Actor.ID); got != "" {
		t.Errorf("a manager of keys revokes an operator that lasts longer: %q", got)
	}
	if got := revoke(manager, manager.Actor.ID); got != "" {
		t.Errorf("a manager of keys revokes itself: %q", got)
	}
	if got := revoke(admin, revealer.Actor.ID); got != "" {
		t.Errorf("an administrator revokes who may reveal: %q", got)
	}
}

// Keys are listed page by page, those of the tenant alone.
func TestKeyPages(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "tenant.register", `{"id":"other"}`)
	want := []string{s.Admin.Actor.ID, s.Engine.Actor.ID}
	for range 5 {
		want = append(want, s.Issue("default", `{"role":"OPERATOR"}`).Actor.ID)
		s.Issue("other", `{"role":"OPERATOR"}`)
	}
	slices.Sort(want)
	var got []string
	pages := 0
	for after := ""; ; pages++ {
		answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"},
			"api_key.list", fmt.Appendf(nil, `{"limit":2,"after":%q}`, after)))(t)
		list := answer.(access.APIKeyList)
		for _, k := range list.Keys {
			got = append(got, k.ID)
		}
		if after = list.Next; after == "" {
			break
		}
		if len(list.Keys) != 2 {
			t.Errorf("a page holds %d keys and has a next one", len(list.Keys))
		}
	}
	if !slices.Equal(got, want) || pages != 3 {
		t.Errorf("%d pages hold %q, want %q", pages+1, got, want)
	}
}

// A caller that ends, by a key or a token, issues nothing that lasts longer.
func TestIssuedKeysEndWithTheirIssuer(t *testing.T) {
	s := stage.New(t)
	user := s.Admin
	user.Actor.Kind, user.Expires = "user", time.Now().Add(time.Hour) // as AuthenticateToken makes it
	for body, want := range map[string]string{
		`{"role":"OPERATOR"}`:                 "api_key_exceeds_issuer",
		`{"role":"OPERATOR","expires":"2h"}`:  "api_key_exceeds_issuer",
		`{"role":"OPERATOR","expires":"30m"}`: "",
	} {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: user, Via: "http"}, "api_key.issue", []byte(body))
		if stage.CodeOf(err) != want {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// Whatever bounds a key bounds the keys that it issues, and those that they issue: its life, its
// networks, its scope, its tenants, and its permissions, by itself or by a role of the tenant.
func TestIssuedKeysAreWithinTheirIssuer(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "tenant.register", `{"id":"other"}`)
	s.Do("default", "role.define", `{"name":"SMALL","permissions":["credentials.get"]}`)
	s.Do("default", "role.define", `{"name":"LARGE","permissions":["credentials.get","credentials.reveal"]}`)
	bound := `"permissions":["keys.manage","credentials.get"],"expires":"1h","addresses":["192.0.2.0/24"],"components":["c"],"workspaces":["w"],"credentials":["x","y"]`
	first := s.Issue("default", `{"permissions":["keys.manage","credentials.get"],"expires":"2h","components":["c"],"workspaces":["w"],"credentials":["x","y","z"]}`)
	issue := func(by service.Principal, body string) (service.Principal, string) {
		t.Helper()
		answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: by, Via: "http"}, "api_key.issue", []byte(body))
		if err != nil {
			return service.Principal{}, stage.CodeOf(err)
		}
		return stage.Must(s.Service.Access.FreshPrincipal(t.Context(), answer.(access.IssuedAPIKey).ID))(t), ""
	}
	second, code := issue(first, "{"+bound+"}")
	if code != "" {
		t.Fatal(code)
	}
	within := `"expires":"30m","addresses":["192.0.2.7"]`
	for body, want := range map[string]string{
		`{"role":"SMALL",` + within + `}`:                                        "",
		`{"permissions":["credentials.get"],` + within + `,"credentials":["y"]}`: "",
		`{"role":"SMALL","addresses":["192.0.2.7"]}`:                             "api_key_exceeds_issuer", // it would never expire
		`{"role":"SMALL","expires":"90m","addresses":["192.0.2.7"]}`:             "api_key_exceeds_issuer",
		`{"role":"SMALL","expires":"30m"}`:                                       "api_key_exceeds_issuer", // from everywhere
		`{"role":"SMALL","expires":"30m","addresses":["192.0.0.0/16"]}`:          "api_key_exceeds_issuer",
		`{"role":"SMALL",` + within + `,"tenants":["other"]}`:                    "api_key_exceeds_issuer",
		`{"role":"SMALL",` + within + `,"tenants":["*"]}`:                        "api_key_exceeds_issuer",
		`{"role":"SMALL",` + within + `,"components":["c","d"]}`:                 "api_key_exceeds_issuer",
		`{"role":"SMALL",` + within + `,"workspaces":["v"]}`:                     "api_key_exceeds_issuer",
		`{"role":"SMALL",` + within + `,"credentials":["z"]}`:                    "api_key_exceeds_issuer", // of the first key alone
		`{"role":"LARGE",` + within + `}`:                                        "api_key_exceeds_issuer",
		`{"role":"OPERATOR",` + within + `}`:                                     "api_key_exceeds_issuer",
		`{"role":"SMALL","permissions":["credentials.edit"],` + within + `}`:     "api_key_exceeds_issuer",
	} {
		third, code := issue(second, body)
		if code != want {
			t.Errorf("%s: %q, want %q", body, code, want)
		}
		if code == "" && (!third.Scope.Within(second.Scope) || third.Expires.After(second.Expires) || third.Expires.IsZero() || third.May("credentials.reveal")) {
			t.Errorf("%s: %+v exceeds %+v", body, third, second)
		}
	}
}
