package client

import "context"

// Tenant is one tenant of the installation.
type Tenant struct {
	ID   string `json:"id"`
	Name string `json:"name,omitzero"` // display name
}

// RegisterTenant registers a tenant.
func (a *API) RegisterTenant(ctx context.Context, t Tenant, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "tenant.register", t, &done, opts...)
	return done, err
}

// ListTenants returns the tenants that the key may access.
func (a *API) ListTenants(ctx context.Context) ([]Tenant, error) {
	var list struct {
		Tenants []Tenant `json:"tenants"`
	}
	err := a.Query(ctx, "tenant.list", nil, &list)
	return list.Tenants, err
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

// RebuildViews starts a rebuild of the read models and returns at once: ViewsStatus
// reports the progress (views_rebuild_running).
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

// RotateEncryptionKey starts the rotation of the tenant's encryption key and returns at once:
// EncryptionKeys reports the progress (key_rotation_in_progress).
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
