package client

import "context"

// Tenant is one tenant of the installation.
type Tenant struct {
	ID   string `json:"id"`
	Name string `json:"name,omitzero"` // display name
}

// RegisterTenant brings a tenant in.
func (a *API) RegisterTenant(ctx context.Context, t Tenant, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "tenant.register", t, &done, opts...)
	return done, err
}

// ListTenants returns the tenants that the key may name.
func (a *API) ListTenants(ctx context.Context) ([]Tenant, error) {
	var list struct {
		Tenants []Tenant `json:"tenants"`
	}
	err := a.Query(ctx, "tenant.list", nil, &list)
	return list.Tenants, err
}

// ViewsStatus says how far the views are. Places are log sequences.
type ViewsStatus struct {
	Position   uint64 `json:"position"` // what the views reflect
	End        uint64 `json:"end"`      // the last commit of the log
	Rebuilding bool   `json:"rebuilding"`
	Rebuilt    uint64 `json:"rebuilt"`          // how far the running or last rebuild came
	RebuildEnd uint64 `json:"rebuild_end"`      // how far it has to come
	Error      string `json:"error,omitzero"`   // why the last rebuild ended early
	Stopped    string `json:"stopped,omitzero"` // why the views stand still
}

// ViewsStatus returns how far the views are, and how far a rebuild has come.
func (a *API) ViewsStatus(ctx context.Context) (ViewsStatus, error) {
	var s ViewsStatus
	err := a.Query(ctx, "views.status", nil, &s)
	return s, err
}

// RebuildViews starts to build the views anew and returns at once: ViewsStatus
// tells of the progress (views_rebuild_running).
func (a *API) RebuildViews(ctx context.Context, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "views.rebuild", nil, &done, opts...)
	return done, err
}

// RewindAudit starts the tenant's audit consumer over at a log sequence; 1 is
// the beginning.
func (a *API) RewindAudit(ctx context.Context, seq uint64, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "audit.rewind", struct {
		Seq uint64 `json:"seq"`
	}{seq}, &done, opts...)
	return done, err
}
