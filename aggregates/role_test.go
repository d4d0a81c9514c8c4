package aggregates_test

import (
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

func TestRole(t *testing.T) {
	type (
		facts = []events.Role
		tc    = aggregatetest.Case[commands.Role, events.Role]
	)
	few, more, title, none := []string{"flows.get"}, []string{"credentials.get", "flows.get"}, "Billing", ""
	define := commands.DefineRole{Name: "BILLING", Title: title, Permissions: few}
	defined, granted, deleted := events.RoleDefined{Title: title, Permissions: few}, events.RoleGranted{}, events.RoleDeleted{}
	change := commands.ChangeRole{Name: "BILLING", Permissions: more}
	changed := events.RoleChanged{Title: title, Permissions: more}
	grant, remove := commands.GrantRole{Name: "BILLING", Permissions: few}, commands.DeleteRole{Name: "BILLING"}
	aggregatetest.Run(t, aggregates.Role,
		tc{Name: "define", When: define, Then: facts{defined}, Again: true},
		tc{Name: "define a taken name", Given: facts{defined}, When: define, Err: aggregates.ErrRoleExists},
		tc{Name: "define anew, with other permissions", Given: facts{defined, deleted}, When: commands.DefineRole{Name: "BILLING", Permissions: more}, Then: facts{events.RoleDefined{Permissions: more}}, Again: true},
		tc{Name: "define a name anew that keys have", Given: facts{defined, granted, deleted}, When: define, Then: facts{defined}, Again: true},
		tc{Name: "define a name anew that keys have with other permissions", Given: facts{defined, granted, deleted}, When: commands.DefineRole{Name: "BILLING", Permissions: more}, Err: aggregates.ErrRoleNameGranted},
		tc{Name: "change the permissions", Given: facts{defined}, When: change, Then: facts{changed}},
		tc{Name: "change the permissions once keys have it", Given: facts{defined, granted}, When: change, Err: aggregates.ErrRoleGranted},
		tc{Name: "change the permissions once keys have it, deleted and defined again", Given: facts{defined, granted, deleted, defined}, When: change, Err: aggregates.ErrRoleGranted},
		tc{Name: "change the title to none", Given: facts{defined, granted}, When: commands.ChangeRole{Name: "BILLING", Title: &none}, Then: facts{events.RoleChanged{Permissions: few}}},
		tc{Name: "change nothing", Given: facts{defined, granted}, When: commands.ChangeRole{Name: "BILLING", Title: &title, Permissions: few}},
		tc{Name: "change what is gone", Given: facts{defined, deleted}, When: change, Err: aggregates.ErrRoleNotFound},
		tc{Name: "grant", Given: facts{defined}, When: grant, Then: facts{granted}},
		tc{Name: "grant again", Given: facts{defined, granted}, When: grant},
		tc{Name: "grant what has changed meanwhile", Given: facts{defined, changed}, When: grant, Err: fault.ErrConflict},
		tc{Name: "grant what is not there", When: grant, Err: aggregates.ErrRoleNotFound},
		tc{Name: "grant what is gone", Given: facts{defined, granted, deleted}, When: grant, Err: aggregates.ErrRoleNotFound},
		tc{Name: "delete", Given: facts{defined, granted}, When: remove, Then: facts{deleted}},
		tc{Name: "delete what is gone", Given: facts{defined, deleted}, When: remove, Err: aggregates.ErrRoleNotFound},
	)
}
