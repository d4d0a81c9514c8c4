package aggregates

import (
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// The errors of a tenant.
var (
	// ErrTenantExists refuses a tenant id that exists with another name.
	ErrTenantExists = fault.New(fault.Exists, "tenant_exists", "A tenant with this id already exists.")
	// ErrTenantNotFound refuses a command on a tenant that is not registered.
	ErrTenantNotFound = fault.New(fault.NotFound, "tenant_not_found", "Tenant not found.")
	// ErrTenantErased refuses everything on a tenant that is erased or being erased.
	ErrTenantErased = fault.New(fault.NotFound, "tenant_erased",
		"The tenant was erased. Its id cannot be used again; what happened in it is in the log of the installation.")
	// ErrKeyRotating refuses a second rotation beside one that is in progress.
	ErrKeyRotating = fault.New(fault.Precondition, "key_rotation_in_progress",
		"The encryption key of the tenant is already being rotated. Wait until that is complete: credstream keys status shows the progress.")
)

// Tenant is the aggregate of one tenant.
var Tenant = Decider[TenantState, commands.Tenant, events.Tenant]{
	Category: "tenant", Fold: 3, Decide: TenantState.decide, Evolve: TenantState.evolve,
}

// TenantState is the state of a tenant.
type TenantState struct {
	Exists   bool
	Name     string
	Rotation uint64 // number of the last rotation of the encryption key
	Rotating bool   // it is in progress
	Erasing  bool   // its erasure was requested; never reset
	Erased   bool   // and is complete
}

func (s TenantState) decide(cmd commands.Tenant) ([]events.Tenant, error) {
	switch c := cmd.(type) {
	case commands.RegisterTenant:
		switch {
		case s.Erasing:
			return nil, ErrTenantErased
		case s.Exists && s.Name == c.Name:
			return nil, nil
		case s.Exists:
			return nil, ErrTenantExists
		}
		return []events.Tenant{events.TenantRegistered{Name: c.Name}}, nil
	case commands.StartKeyRotation:
		switch {
		case !s.Exists:
			return nil, ErrTenantNotFound
		case s.Erasing:
			return nil, ErrTenantErased
		case s.Rotating:
			return nil, ErrKeyRotating
		}
		return []events.Tenant{events.TenantKeyRotationStarted{Rotation: max(s.Rotation, c.After) + 1}}, nil
	case commands.RecordRewrap:
		switch {
		case !s.Exists:
			return nil, ErrTenantNotFound
		case s.Erasing:
			return nil, ErrTenantErased
		}
		return []events.Tenant{events.TenantKeysRewrapped{}}, nil
	case commands.CompleteKeyRotation:
		if !s.Rotating || s.Rotation != c.Rotation {
			return nil, nil
		}
		return []events.Tenant{events.TenantKeyRotationCompleted{Key: c.Key}}, nil
	case commands.StartTenantErasure:
		switch {
		case !s.Exists:
			return nil, ErrTenantNotFound
		case s.Erasing:
			return nil, nil
		}
		return []events.Tenant{events.TenantErasureStarted{}}, nil
	case commands.CompleteTenantErasure:
		if !s.Erasing || s.Erased {
			return nil, nil
		}
		return []events.Tenant{events.TenantErased{}}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s TenantState) evolve(e events.Tenant) TenantState {
	switch e := e.(type) {
	case events.TenantRegistered:
		s.Exists, s.Name = true, e.Name
	case events.TenantKeysRewrapped:
	case events.TenantKeyRotationStarted:
		s.Rotation, s.Rotating = e.Rotation, true
	case events.TenantKeyRotationCompleted:
		s.Rotating = false
	case events.TenantErasureStarted:
		s.Erasing, s.Rotating = true, false
	case events.TenantErased:
		s.Erased = true
	}
	return s
}
