package aggregates

import (
	"slices"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of a role.
var (
	ErrRoleNotFound = fault.New(fault.NotFound, "role_not_found", "Role not found.")
	ErrRoleExists   = fault.New(fault.Exists, "role_exists", "A role with this name already exists.")
	// ErrRoleGranted refuses to change the permissions of a role after a key was issued with it.
	ErrRoleGranted = fault.New(fault.Precondition, "role_granted",
		"API keys were issued with this role, so its permissions cannot be changed. Define a role with another name, issue keys with it and revoke the current ones.")
	// ErrRoleNameGranted refuses to define a deleted role again with other permissions.
	ErrRoleNameGranted = fault.New(fault.Precondition, "role_name_granted",
		"API keys were issued with a deleted role of this name and other permissions. Choose another name.")
)

// Role is the aggregate of one role of a tenant. After a key was issued with a role, the
// permissions of its name can never be changed, not even by deleting and defining it again.
var Role = Decider[RoleState, commands.Role, events.Role]{
	Category: "role", Fold: 1, Decide: RoleState.decide, Evolve: RoleState.evolve,
}

// RoleState is the state of a role.
type RoleState struct {
	Live        bool
	Granted     bool // keys were issued with it, or with a deleted role of the same name
	Title       string
	Permissions []string // kept when the role is deleted
}

func (s RoleState) decide(cmd commands.Role) ([]events.Role, error) {
	switch c := cmd.(type) {
	case commands.DefineRole:
		switch {
		case s.Live:
			return nil, ErrRoleExists
		case s.Granted && !slices.Equal(s.Permissions, c.Permissions):
			return nil, ErrRoleNameGranted
		}
		return []events.Role{events.RoleDefined{Title: c.Title, Permissions: listed(c.Permissions)}}, nil
	case commands.ChangeRole:
		next := events.RoleChanged{Title: s.Title, Permissions: s.Permissions}
		if c.Title != nil {
			next.Title = *c.Title
		}
		if c.Permissions != nil {
			next.Permissions = c.Permissions
		}
		kept := slices.Equal(next.Permissions, s.Permissions)
		switch {
		case !s.Live:
			return nil, ErrRoleNotFound
		case s.Granted && !kept:
			return nil, ErrRoleGranted
		case kept && next.Title == s.Title:
			return nil, nil
		}
		return []events.Role{next}, nil
	case commands.GrantRole:
		switch {
		case !s.Live:
			return nil, ErrRoleNotFound
		case !slices.Equal(s.Permissions, c.Permissions): // they have changed since the service read them
			return nil, fault.ErrConflict
		case s.Granted:
			return nil, nil
		}
		return []events.Role{events.RoleGranted{}}, nil
	case commands.DeleteRole:
		if !s.Live {
			return nil, ErrRoleNotFound
		}
		return []events.Role{events.RoleDeleted{}}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s RoleState) evolve(e events.Role) RoleState {
	switch e := e.(type) {
	case events.RoleDefined:
		s.Live, s.Title, s.Permissions = true, e.Title, e.Permissions
	case events.RoleChanged:
		s.Title, s.Permissions = e.Title, e.Permissions
	case events.RoleGranted:
		s.Granted = true
	case events.RoleDeleted:
		s.Live = false
	}
	return s
}
