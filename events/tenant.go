package events

// Tenant is the set of events about one tenant, stream "tenant.<id>" under System.
//
//sumtype:decl
type Tenant interface{ tenant() }

// TenantRegistered records: A tenant was registered.
type TenantRegistered struct {
	Name string `json:"name" feed:"name"` // display name; may be ""
}

func (TenantRegistered) tenant() {}

var tenantTypes = []Type{
	Define[TenantRegistered]("tenant.registered", Audit),
}
