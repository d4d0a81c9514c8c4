package aggregates

import (
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ErrTenantExists refuses a tenant id that exists with another name.
var ErrTenantExists = fault.New(fault.Exists, "tenant_exists", "A tenant with this id already exists.")

// Tenant is the aggregate of one tenant.
var Tenant = Decider[TenantState, commands.Tenant, events.Tenant]{
	Category: "tenant", Fold: 1, Decide: TenantState.decide, Evolve: TenantState.evolve,
}

// TenantState is the state of a tenant.
type TenantState struct {
	Exists bool
	Name   string
}

func (s TenantState) decide(cmd commands.Tenant) ([]events.Tenant, error) {
	switch c := cmd.(type) {
	case commands.RegisterTenant:
		switch {
		case s.Exists && s.Name == c.Name:
			return nil, nil
		case s.Exists:
			return nil, ErrTenantExists
		}
		return []events.Tenant{events.TenantRegistered{Name: c.Name}}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s TenantState) evolve(e events.Tenant) TenantState {
	switch e := e.(type) {
	case events.TenantRegistered:
		return TenantState{Exists: true, Name: e.Name}
	}
	return s
}
