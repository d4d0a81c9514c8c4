package connect

import "time"

// Pending is pendingConnections.
type Pending struct{ u pendingConnections }

// NewPending returns one without connections.
func NewPending() *Pending {
	return &Pending{pendingConnections{by: map[string]map[string]time.Time{}}}
}

// Start is start.
func (u *Pending) Start(tenant, id string, now, until time.Time) error {
	return u.u.start(tenant, id, now, until)
}

// Update is update.
func (u *Pending) Update(tenant, id, to string, until time.Time) {
	u.u.update(&connection{Tenant: tenant, id: id, Stage: stage(to), Expires: until})
}

// Len is how many are known, and of how many tenants.
func (u *Pending) Len() (connections, tenants int) {
	for _, own := range u.u.by {
		connections += len(own)
	}
	return connections, len(u.u.by)
}
