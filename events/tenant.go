package events

// Tenant is the sum of the facts about one tenant, stream "tenant.<id>" under System.
//
//sumtype:decl
type Tenant interface{ tenant() }

// TenantRegistered brings a tenant in.
type TenantRegistered struct {
	Name string `json:"name" feed:"name"` // for people; may be ""
}

func (TenantRegistered) tenant() {}

var tenantTypes = []Type{
	Define[TenantRegistered]("tenant.registered", Audit),
}
