package commands

// Tenant is the set of commands on one tenant.
//
//sumtype:decl
type Tenant interface {
	Command
	tenant()
}

// RegisterTenant registers a tenant.
type RegisterTenant struct{ ID, Name string }

// Target implements Command.
func (c RegisterTenant) Target() string { return c.ID }

// StartKeyRotation requests a new encryption key for a tenant. After is the number of the last
// rotation in its keyset.
type StartKeyRotation struct {
	ID    string
	After uint64
}

// CompleteKeyRotation records that a rotation is complete, with Key as the only encryption key.
type CompleteKeyRotation struct {
	ID       string
	Rotation uint64
	Key      string
}

// RecordRewrap records that a tenant's encryption keys are wrapped with the current KMS key.
type RecordRewrap struct{ ID string }

// StartTenantErasure ends a tenant for good: everything that it has is deleted and erased.
type StartTenantErasure struct{ ID string }

// CompleteTenantErasure records that the secrets and encryption keys of a tenant are erased.
type CompleteTenantErasure struct{ ID string }

// Target implements Command.
func (c RecordRewrap) Target() string { return c.ID }

// Target implements Command.
func (c StartTenantErasure) Target() string { return c.ID }

// Target implements Command.
func (c CompleteTenantErasure) Target() string { return c.ID }

// Target implements Command.
func (c StartKeyRotation) Target() string { return c.ID }

// Target implements Command.
func (c CompleteKeyRotation) Target() string { return c.ID }

func (RegisterTenant) tenant()      {}
func (StartKeyRotation) tenant()    {}
func (CompleteKeyRotation) tenant() {}
func (RecordRewrap) tenant()        {}

func (StartTenantErasure) tenant()    {}
func (CompleteTenantErasure) tenant() {}
