package commands

// Component is the set of commands on one component.
//
//sumtype:decl
type Component interface {
	Command
	component()
}

// RegisterComponent registers a component.
type RegisterComponent struct {
	ID, Owner, Title string
	Descriptor       string // the unchanged component.json, which ParseDescriptor has checked
}

// UpdateComponent activates a new descriptor.
type UpdateComponent struct {
	ID, Owner, Title string
	Descriptor       string
	Expected         int // revision that it replaces; 0: any
}

// ShareComponent makes it visible to every tenant.
type ShareComponent struct{ ID, Owner string }

// UnshareComponent makes it visible only to its owner.
type UnshareComponent struct{ ID, Owner string }

// SetComponentEnv sets the values of the descriptor's variables.
type SetComponentEnv struct {
	ID, Owner string
	Names     []string
	SecretID  string
	Revision  int // of the current descriptor, for which they were entered
}

// AbandonEnvSecret forbids references to a secret that no event references, so that it can be
// erased.
type AbandonEnvSecret struct{ ID, SecretID string }

// DeleteComponent deletes the component; its credentials remain.
type DeleteComponent struct{ ID, Owner string }

// Target implements Command.
func (c RegisterComponent) Target() string { return c.ID }
func (c UpdateComponent) Target() string   { return c.ID }
func (c ShareComponent) Target() string    { return c.ID }
func (c UnshareComponent) Target() string  { return c.ID }
func (c DeleteComponent) Target() string   { return c.ID }
func (c SetComponentEnv) Target() string   { return c.ID }
func (c AbandonEnvSecret) Target() string  { return c.ID }

func (RegisterComponent) component() {}
func (UpdateComponent) component()   {}
func (ShareComponent) component()    {}
func (UnshareComponent) component()  {}
func (DeleteComponent) component()   {}
func (SetComponentEnv) component()   {}
func (AbandonEnvSecret) component()  {}
