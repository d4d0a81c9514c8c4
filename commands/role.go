package commands

// Role is the sum of the intents about one role of a tenant.
//
//sumtype:decl
type Role interface {
	Command
	role()
}

// DefineRole makes a role of a name that no role has.
type DefineRole struct {
	Name        string
	Title       string
	Permissions []string // sorted, without repetitions
}

// ChangeRole changes what is given.
type ChangeRole struct {
	Name        string
	Title       *string  // nil: unchanged
	Permissions []string // sorted, without repetitions; nil: unchanged
}

// GrantRole records that an API key is about to be issued with these permissions of the role.
type GrantRole struct {
	Name        string
	Permissions []string
}

// DeleteRole ends a role.
type DeleteRole struct{ Name string }

// Target implements Command.
func (c DefineRole) Target() string { return c.Name }
func (c ChangeRole) Target() string { return c.Name }
func (c GrantRole) Target() string  { return c.Name }
func (c DeleteRole) Target() string { return c.Name }

func (DefineRole) role() {}
func (ChangeRole) role() {}
func (GrantRole) role()  {}
func (DeleteRole) role() {}
