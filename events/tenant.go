package events

// Tenant is the set of events about one tenant, stream "tenant.<id>" under System.
//
//sumtype:decl
type Tenant interface{ tenant() }

// TenantRegistered records: A tenant was registered.
type TenantRegistered struct {
	Name string `json:"name" feed:"name"` // display name; may be ""
}

// TenantKeyRotationStarted records: A new encryption key was requested for a tenant. Its secrets
// are re-encrypted with it, then the earlier keys are destroyed.
type TenantKeyRotationStarted struct {
	Rotation uint64 `json:"rotation" feed:"rotation"` // number of the rotation; increases with each
}

// TenantKeyRotationCompleted records: All secrets of a tenant are encrypted with its new key, and
// the earlier keys were destroyed.
type TenantKeyRotationCompleted struct {
	Key string `json:"key" feed:"key"` // id of the new key, 8 hexadecimal digits
}

// TenantKeysRewrapped records: The encryption keys of a tenant are wrapped with the current KMS key.
type TenantKeysRewrapped struct{}

// TenantErasureStarted records: The erasure of a tenant was requested. Its calls are refused from
// then on; the service deletes what the tenant has and erases its secrets and keys.
type TenantErasureStarted struct{}

// TenantErased records: All secrets and encryption keys of a tenant were erased. Its facts stay in
// the log.
type TenantErased struct{}

func (TenantRegistered) tenant()           {}
func (TenantErasureStarted) tenant()       {}
func (TenantErased) tenant()               {}
func (TenantKeysRewrapped) tenant()        {}
func (TenantKeyRotationStarted) tenant()   {}
func (TenantKeyRotationCompleted) tenant() {}

var tenantTypes = []Type{
	Define[TenantRegistered]("tenant.registered", Audit),
	Define[TenantKeysRewrapped]("tenant.keys_rewrapped", Audit),
	Define[TenantErasureStarted]("tenant.erasure_started", Audit),
	Define[TenantErased]("tenant.erased", Audit),
	Define[TenantKeyRotationStarted]("tenant.key_rotation_started", Audit),
	Define[TenantKeyRotationCompleted]("tenant.key_rotation_completed", Audit),
}
