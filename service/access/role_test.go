package access_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
)

// What a role of a tenant may be named and hold, and who may define, change, delete and give it.
func TestRoles(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "tenant.register", `{"id":"other"}`)
	manager := s.Issue("default", `{"permissions":["keys.manage","flows.get","credentials.get"]}`)
	bound := s.Issue("default", `{"permissions":["keys.manage","flows.get","credentials.get"],"workspaces":["sales"]}`)
	keys := map[string]string{} // ids of keys by their names
	for _, step := range []struct {
		who         service.Principal
		route, body string
		want        string
	}{
		{manager, "role.define", `{"name":"ADMINISTRATOR","permissions":["flows.get"]}`, "role_name_invalid"},
		{manager, "role.define", `{"name":"billing","permissions":["flows.get"]}`, "role_name_invalid"},
		{manager, "role.define", `{"name":"B","permissions":["flows.get"]}`, "role_name_invalid"},
		{manager, "role.define", `{"name":"A/B","permissions":["flows.get"]}`, "role_name_invalid"},
		{manager, "role.define", `{"permissions":["flows.get"]}`, "member_missing"},
		{manager, "role.define", `{"name":"BILLING","permissions":[]}`, "role_permissions_missing"},
		{manager, "role.define", `{"name":"BILLING","permissions":["flows.get","flows.look"]}`, "permission_invalid"},
		{manager, "role.define", `{"name":"BILLING","permissions":["flows.get","credentials.reveal"]}`, "api_key_exceeds_issuer"},
		{manager, "role.define", `{"name":"BILLING","title":"a\u0007","permissions":["flows.get"]}`, "name_invalid"},
		{bound, "role.define", `{"name":"BILLING","permissions":["flows.get"]}`, "key_scope_tenantwide"},
		{manager, "role.define", `{"name":"BILLING","title":"Billing","permissions":["flows.get","flows.get"]}`, ""},
		{manager, "role.define", `{"name":"BILLING","permissions":["flows.get"]}`, "role_exists"},
		{manager, "role.change", `{"name":"BILLING","permissions":["flows.get","credentials.get"]}`, ""},
		{manager, "role.change", `{"name":"BILLING","permissions":["flows.get","credentials.reveal"]}`, "api_key_exceeds_issuer"},
		{manager, "role.change", `{"name":"BILLING","permissions":[]}`, "role_permissions_missing"},
		{manager, "role.change", `{"name":"NOBODY","title":"x"}`, "role_not_found"},
		{s.Admin, "role.define", `{"name":"SEEING","permissions":["credentials.reveal"]}`, ""},
		{manager, "role.change", `{"name":"SEEING","permissions":["flows.get"]}`, "api_key_exceeds_issuer"},
		{manager, "role.delete", `{"name":"SEEING"}`, "api_key_exceeds_issuer"},
		{manager, "api_key.issue", `{"role":"SEEING"}`, "api_key_exceeds_issuer"},
		{manager, "api_key.issue", `{"role":"NOBODY"}`, "role_invalid"},
		{manager, "api_key.issue", `{"role":"default/BILLING"}`, "role_invalid"},
		{manager, "api_key.issue", `{"role":"BILLING","name":"one"}`, ""},
		{bound, "api_key.issue", `{"role":"BILLING","name":"two"}`, ""},
		{manager, "role.change", `{"name":"BILLING","permissions":["flows.get"]}`, "role_granted"},
		{manager, "role.change", `{"name":"BILLING","title":"The team"}`, ""},
		{manager, "role.delete", `{"name":"BILLING"}`, "role_in_use"},
		{manager, "api_key.revoke", "one", ""},
		{manager, "role.delete", `{"name":"BILLING"}`, "role_in_use"},
		{manager, "api_key.revoke", "two", ""},
		{manager, "role.delete", `{"name":"BILLING"}`, ""},
		{manager, "api_key.issue", `{"role":"BILLING"}`, "role_invalid"},
		{manager, "role.define", `{"name":"BILLING","permissions":["flows.get"]}`, "role_name_granted"},
		{manager, "role.define", `{"name":"BILLING","permissions":["credentials.get","flows.get"]}`, ""},
	} {
		if id, named := keys[step.body]; named {
			step.body = fmt.Sprintf(`{"id":%q}`, id)
		}
		answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: step.who, Via: "http"}, step.route, []byte(step.body))
		if got := stage.CodeOf(err); got != step.want {
			t.Errorf("%s %s: %q, want %q", step.route, step.body, got, step.want)
		}
		if issued, ok := answer.(access.IssuedAPIKey); ok {
			var named struct{ Name string }
			stage.OK(t, json.Unmarshal([]byte(step.body), &named))
			keys[named.Name] = issued.ID
		}
	}
	s.CaughtUp()
	answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: bound, Via: "http"}, "role.list", []byte(`{"limit":1}`)))(t).(access.RoleList)
	if len(answer.Roles) != 1 || answer.Next != "BILLING" || !answer.Roles[0].Granted || answer.Roles[0].CreatedBy != "key:"+manager.Actor.ID {
		t.Errorf("the first page of roles is %+v", answer)
	}
}

// A key has the permissions that its role had when it was issued, whatever becomes of the role,
// and those alone: not those of a role of the same name of another tenant or built in.
func TestRoleOfAKey(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "tenant.register", `{"id":"other"}`)
	s.Do("default", "role.define", `{"name":"BILLING","permissions":["flows.get"]}`)
	s.Do("other", "role.define", `{"name":"BILLING","permissions":["credentials.get","credentials.reveal"]}`)
	key := s.Issue("default", `{"role":"BILLING","permissions":["components.get","flows.get"]}`)
	want := service.Principal{
		Actor: key.Actor, Home: "default", Tenants: []string{"default"}, Role: "default/BILLING",
		Permissions: []permission.Permission{"components.get", "flows.get"}, Scope: key.Scope,
	}
	fresh := stage.Must(s.Service.Access.FreshPrincipal(t.Context(), key.Actor.ID))(t)
	for name, p := range map[string]service.Principal{"by the views": key, "by the log": fresh} {
		p.Scope = want.Scope
		if !reflect.DeepEqual(p, want) {
			t.Errorf("%s: %+v, want %+v", name, p, want)
		}
	}
	for _, info := range permission.Permissions() {
		if got := key.May(info.Permission); got != slices.Contains(want.Permissions, info.Permission) {
			t.Errorf("may %s: %t", info.Permission, got)
		}
	}
	list := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "api_key.list", []byte(`{}`)))(t).(access.APIKeyList)
	i := slices.IndexFunc(list.Keys, func(k access.APIKeyInfo) bool { return k.ID == key.Actor.ID })
	if k := list.Keys[i]; k.Role != "BILLING" || !slices.Equal(k.Permissions, want.Permissions) {
		t.Errorf("the list of keys has %+v", k)
	}
	role := stage.Must(aggregates.Role.Fresh(t.Context(), s.Service.Access.Log, aggregates.Role.Stream("default", "BILLING")))(t)
	if !role.Value.Granted {
		t.Error("the role does not record that a key has it")
	}
	if role := stage.Must(aggregates.Role.Fresh(t.Context(), s.Service.Access.Log, events.StreamID{Tenant: "other", Category: "role", ID: "BILLING"}))(t); role.Value.Granted {
		t.Error("the role of another tenant has become granted")
	}
}
