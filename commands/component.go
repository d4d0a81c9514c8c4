package commands

// Component is the sum of the intents about one component.
//
//sumtype:decl
type Component interface {
	Command
	component()
}

// RegisterComponent brings a component in.
type RegisterComponent struct {
	ID, Owner, Title string
	Descriptor       string // the component.json, to the byte, already checked by ParseDescriptor
}

// UpdateComponent gives it a new descriptor.
type UpdateComponent struct {
	ID, Owner, Title string
	Descriptor       string
}

// ShareComponent makes it visible to every tenant.
type ShareComponent struct{ ID, Owner string }

// UnshareComponent makes it visible to its owner alone.
type UnshareComponent struct{ ID, Owner string }

// SetComponentEnv gives values to the descriptor's variables.
type SetComponentEnv struct {
	ID, Owner string
	Names     []string
	SecretID  string
	Revision  int // of the descriptor that they are given for: the one in force
}

// AbandonEnvSecret forbids a secret that no event names, so that it can be erased.
type AbandonEnvSecret struct{ ID, SecretID string }

// DeleteComponent ends it; credentials made for it remain.
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
