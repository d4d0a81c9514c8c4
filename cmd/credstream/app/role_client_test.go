package app

import (
	"reflect"
	"testing"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

// A role over the Go client, from its definition to its end.
func TestRoleClient(t *testing.T) {
	u := bring(t, t.TempDir())
	api, err := client.New(client.Config{URL: u.base, Key: adminKey})
	must(t, err)
	ctx := t.Context()
	refused := func(what, code string, err error) {
		t.Helper()
		if f := fault.Of(err); err == nil || f.Code != code {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
	shows := func(seq uint64, title string, granted bool, permissions ...string) {
		t.Helper()
		var names []string
		for role, err := range api.RolesAt(ctx, seq) {
			must(t, err)
			names = append(names, role.Name)
			if role.Title != title || role.Granted != granted || !reflect.DeepEqual(role.Permissions, permissions) {
				t.Errorf("the role is %+v", role)
			}
		}
		if !reflect.DeepEqual(names, []string{"BILLING"}) {
			t.Errorf("the roles are %q", names)
		}
	}
	done, err := api.DefineRole(ctx, "BILLING", "Billing", []string{"flows.get"})
	must(t, err)
	shows(done.Seq, "Billing", false, "flows.get")
	done, err = api.ChangeRole(ctx, "BILLING", nil, []string{"credentials.get", "flows.get"})
	must(t, err)
	shows(done.Seq, "Billing", false, "credentials.get", "flows.get")
	title := "The team"
	_, err = api.ChangeRole(ctx, "BILLING", &title, nil)
	must(t, err)
	key, err := api.IssueAPIKey(ctx, client.IssueAPIKey{Role: "BILLING"})
	must(t, err)
	shows(key.Seq, "The team", true, "credentials.get", "flows.get")
	_, err = api.ChangeRole(ctx, "BILLING", nil, []string{"flows.get"})
	refused("permissions of a granted role", "role_granted", err)
	_, err = api.DeleteRole(ctx, "BILLING")
	refused("delete while a key has it", "role_in_use", err)
	_, err = api.RevokeAPIKey(ctx, key.ID)
	must(t, err)
	done, err = api.DeleteRole(ctx, "BILLING")
	must(t, err)
	for role, err := range api.RolesAt(ctx, done.Seq) {
		t.Errorf("after the delete there is %+v, %v", role, err)
	}
	_, err = api.DeleteRole(ctx, "BILLING")
	refused("delete again", "role_not_found", err)
}
