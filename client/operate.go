package client

import "context"

// Tenant is one tenant of the installation.
type Tenant struct {
	ID   string `json:"id"`
	Name string `json:"name,omitzero"` // display name
	// State is "" for a tenant in use, "erasing" or "erased". RegisterTenant ignores it.
	State string `json:"state,omitzero"`
}

// RegisterTenant registers a tenant.
func (a *API) RegisterTenant(ctx context.Context, t Tenant, opts ...CommandOption) (Done, error) {
	var done Done
	t.State = ""
	err := a.Command(ctx, "tenant.register", t, &done, opts...)
	return done, err
}

// ListTenants returns all tenants. The key must be granted every tenant.
func (a *API) ListTenants(ctx context.Context) ([]Tenant, error) {
	var list struct {
		Tenants []Tenant `json:"tenants"`
	}
	err := a.Query(ctx, "tenant.list", nil, &list)
	return list.Tenants, err
}

// Erasure lists what a tenant still has: what EraseTenant would delete or, after it, what is left.
type Erasure struct {
	ID           string        `json:"id"`
	State        string        `json:"state"`         // active, erasing or erased
	RunningFlows int           `json:"running_flows"` // EraseTenant is refused while there are any, unless stopFlows is true
	Left         []ErasureLeft `json:"left"`
	Secrets      int           `json:"secrets"` // in the vault
	Keys         bool          `json:"keys"`    // the encryption keys exist
}

// ErasureLeft is how many things of one kind a tenant still has.
type ErasureLeft struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`
}

// EraseTenant starts the erasure of a tenant, for good, and returns at once: TenantErasure reports
// the progress. If flows of the tenant run, it is refused (tenant_flows_run), unless stopFlows is true.
func (a *API) EraseTenant(ctx context.Context, id string, stopFlows bool, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "tenant.erase", struct {
		ID        string `json:"id"`
		StopFlows bool   `json:"stop_flows,omitzero"`
	}{id, stopFlows}, &done, opts...)
	return done, err
}

// TenantErasure returns what a tenant still has. The service reads all secrets of the tenant.
func (a *API) TenantErasure(ctx context.Context, id string) (Erasure, error) {
	var e Erasure
	err := a.Query(ctx, "tenant.erasure", byID{id, 0}, &e)
	return e, err
}

// ViewsStatus is the progress of the read models. Positions are log sequences.
type ViewsStatus struct {
	Position   uint64 `json:"position"` // position of the read models
	End        uint64 `json:"end"`      // last commit of the log
	Rebuilding bool   `json:"rebuilding"`
	Rebuilt    uint64 `json:"rebuilt"`          // position of the running or last rebuild
	RebuildEnd uint64 `json:"rebuild_end"`      // position that it must reach
	Error      string `json:"error,omitzero"`   // why the last rebuild failed
	Stopped    string `json:"stopped,omitzero"` // why the read models have stopped
}

// ViewsStatus returns the position of the read models and of a rebuild.
func (a *API) ViewsStatus(ctx context.Context) (ViewsStatus, error) {
	var s ViewsStatus
	err := a.Query(ctx, "views.status", nil, &s)
	return s, err
}

// RebuildViews starts a rebuild of the read models and returns at once; ViewsStatus
// reports the progress. Error code: views_rebuild_running, if a rebuild is in progress.
func (a *API) RebuildViews(ctx context.Context, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "views.rebuild", nil, &done, opts...)
	return done, err
}

// RewindAudit restarts the tenant's audit consumer at a log sequence; 1 is
// the beginning.
func (a *API) RewindAudit(ctx context.Context, seq uint64, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "audit.rewind", struct {
		Seq uint64 `json:"seq"`
	}{seq}, &done, opts...)
	return done, err
}

// EncryptionKeys are the keys that encrypt the secrets of a tenant.
type EncryptionKeys struct {
	Rotating    bool            `json:"rotating"`     // a rotation is in progress
	PreviousKMS bool            `json:"previous_kms"` // they are wrapped by the previous KMS key
	Keys        []EncryptionKey `json:"keys"`         // the one that encrypts new secrets first
}

// EncryptionKey is one of them.
type EncryptionKey struct {
	ID      string `json:"id"`      // 8 hexadecimal digits
	Secrets int    `json:"secrets"` // secrets that it encrypts
	State   string `json:"state"`   // active, retiring or missing
}

// RotateEncryptionKey starts the rotation of the tenant's encryption key and returns at once;
// EncryptionKeys reports the progress. Error code: key_rotation_in_progress.
func (a *API) RotateEncryptionKey(ctx context.Context, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "encryption_key.rotate", nil, &done, opts...)
	return done, err
}

// RewrapEncryptionKeys wraps the tenant's encryption keys with the current KMS key.
func (a *API) RewrapEncryptionKeys(ctx context.Context, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "encryption_key.rewrap", nil, &done, opts...)
	return done, err
}

// EncryptionKeys returns the tenant's encryption keys. The service reads all secrets of the tenant.
func (a *API) EncryptionKeys(ctx context.Context) (EncryptionKeys, error) {
	var k EncryptionKeys
	err := a.Query(ctx, "encryption_key.status", nil, &k)
	return k, err
}
