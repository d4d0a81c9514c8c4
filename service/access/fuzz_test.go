package access_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/stage"
)

// FuzzKeyRequests sends any request for a key or a role, by a caller that is bound and has few
// permissions. None fails inside, and no key that is issued has more than its issuer.
func FuzzKeyRequests(f *testing.F) {
	s := stage.New(f)
	answer := stage.Must(s.Service.Serve(f.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "api_key.issue", []byte(`{"permissions":["keys.manage","flows.get","credentials.get"],"expires":"1000h","addresses":["10.0.0.0/8"],"components":["a","b"],"workspaces":["w"],"credentials":["x=","y"]}`)))(f)
	issuer := stage.Must(s.Service.Access.FreshPrincipal(f.Context(), answer.(access.IssuedAPIKey).ID))(f)
	free := s.Issue("default", `{"permissions":["keys.manage","flows.get","credentials.get"]}`)
	s.Do("default", "role.define", `{"name":"BILLING","permissions":["flows.get"]}`)
	s.Do("default", "role.define", `{"name":"SEEING","permissions":["credentials.reveal"]}`)
	for _, body := range []string{
		`{"role":"BILLING","name":"n","expires":"1h","addresses":["10.1.0.0/16"]}`, `{"role":"SEEING","expires":"1h","addresses":["10.1.2.3"]}`, `{"role":"OPERATOR"}`,
		`{"permissions":["flows.get"],"expires":"2031-01-31T00:00:00Z","addresses":["10.0.0.1"],"components":["a"],"workspaces":["w"],"credentials":["x="]}`,
		`{"permissions":["flows.get","keys.manage"],"tenants":["*","default"],"expires":"1h","addresses":["::ffff:10.0.0.1","10.0.0.0/7"],"components":["c"]}`,
		`{"name":"A_1","title":"t","permissions":["flows.get"]}`, `{"name":"default/BILLING","permissions":["credentials.get"]}`, `{"name":"BILLING","title":null,"permissions":null}`,
	} {
		for which := range byte(3) {
			f.Add(which, body)
		}
	}
	f.Fuzz(func(t *testing.T, which byte, body string) {
		who, route := issuer, "api_key.issue"
		if which %= 3; which > 0 {
			who, route = free, []string{"role.define", "role.change"}[which-1]
		}
		answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: who, Via: "http", Confidential: true}, route, []byte(body))
		if err != nil {
			if code := stage.CodeOf(err); code == "internal" {
				t.Errorf("%s %q: %v", route, body, err)
			}
			return
		}
		if which > 0 {
			var role struct {
				Permissions []string `json:"permissions"`
			}
			if json.Unmarshal([]byte(body), &role) == nil && slices.Contains(role.Permissions, "credentials.reveal") {
				t.Errorf("%s %q is done", route, body)
			}
			return
		}
		p := stage.Must(s.Service.Access.FreshPrincipal(t.Context(), answer.(access.IssuedAPIKey).ID))(t)
		exceeds := !p.Scope.Within(who.Scope) || p.Expires.IsZero() || p.Expires.After(who.Expires) || len(p.Addresses) == 0 || !slices.Equal(p.Tenants, []string{"default"})
		for _, perm := range p.Permissions {
			exceeds = exceeds || !who.May(perm)
		}
		for _, network := range p.Addresses {
			exceeds = exceeds || !who.Addresses[0].Contains(network.Addr()) || network.Bits() < who.Addresses[0].Bits()
		}
		if exceeds || p.Role == "ADMINISTRATOR" {
			t.Errorf("%q issues %+v", body, p)
		}
	})
}
