package events

// Role is the set of events about one role of a tenant, stream "role.<name>".
//
//sumtype:decl
type Role interface{ role() }

// RoleDefined records: A role was defined, for the first time or after it was deleted.
type RoleDefined struct {
	Title       string   `json:"title" feed:"title"` // for people; may be ""
	Permissions []string `json:"permissions" feed:"permissions"`
}

// RoleChanged records the title and the permissions from here on.
type RoleChanged struct {
	Title       string   `json:"title" feed:"title"`
	Permissions []string `json:"permissions" feed:"permissions"`
}

// RoleGranted records: The first API key is about to be issued with the role. From here on
// the permissions of its name never change.
type RoleGranted struct{}

// RoleDeleted records: No further key is issued with the role.
type RoleDeleted struct{}

func (RoleDefined) role() {}
func (RoleChanged) role() {}
func (RoleGranted) role() {}
func (RoleDeleted) role() {}

var roleTypes = []Type{
	Define[RoleDefined]("role.defined", Audit),
	Define[RoleChanged]("role.changed", Audit),
	Define[RoleGranted]("role.granted", Audit),
	Define[RoleDeleted]("role.deleted", Audit),
}
