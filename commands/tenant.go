package commands

// Tenant is the sum of the intents about one tenant.
//
//sumtype:decl
type Tenant interface {
	Command
	tenant()
}

// RegisterTenant brings a tenant in.
type RegisterTenant struct{ ID, Name string }

// Target implements Command.
func (c RegisterTenant) Target() string { return c.ID }

func (RegisterTenant) tenant() {}
