package connect

import "time"

// UnderWay is underWay.
type UnderWay struct{ u pendingConnections }

// NewUnderWay returns one without connections.
func NewUnderWay() *UnderWay {
	return &UnderWay{pendingConnections{by: map[string]map[string]time.Time{}}}
}

// Start is start.
func (u *UnderWay) Start(tenant, id string, now, until time.Time) error {
	return u.u.start(tenant, id, now, until)
}

// Moved is moved.
func (u *UnderWay) Moved(tenant, id, to string, until time.Time) {
	u.u.update(&connection{Tenant: tenant, id: id, Stage: stage(to), Expires: until})
}

// Len is how many are known, and of how many tenants.
func (u *UnderWay) Len() (connections, tenants int) {
	for _, own := range u.u.by {
		connections += len(own)
	}
	return connections, len(u.u.by)
}
