package connect

import (
	"sync"
	"time"

	"github.com/credstream/credstream/fault"
)

// maxPending is the maximum number of a tenant's pending connections in a process.
const maxPending = 1000

// ErrConnectionsLimit refuses to start more connections.
var ErrConnectionsLimit = fault.New(fault.Throttled, "connections_limit",
	"Too many connections of this tenant are pending. Complete some, or wait until they expire.")

// pendingConnections counts the pending connections that the process has started
// or changed, so that one tenant cannot use all the memory.
type pendingConnections struct {
	mu sync.Mutex
	by map[string]map[string]time.Time // expiry by tenant and connection; a tenant without connections is removed
}

// start counts a connection until it expires, or returns ErrConnectionsLimit with the time
// of the next retry.
func (u *pendingConnections) start(tenant, connection string, now, until time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	own, first := u.by[tenant], until
	for id, end := range own {
		if now.After(end) {
			delete(own, id)
		} else if end.Before(first) {
			first = end
		}
	}
	if len(own) >= maxPending {
		return ErrConnectionsLimit.WithRetryAfter(max(first.Sub(now), time.Second))
	}
	u.set(tenant, connection, until)
	return nil
}

// set requires mu.
func (u *pendingConnections) set(tenant, connection string, until time.Time) {
	if u.by[tenant] == nil {
		u.by[tenant] = map[string]time.Time{}
	}
	u.by[tenant][connection] = until
}

// update records the new expiry of a connection, or removes it at a final stage.
func (u *pendingConnections) update(c *connection) {
	if c.Stage == stageDone || c.Stage == stageFailed {
		u.remove(c.Tenant, c.id)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.set(c.Tenant, c.id, c.Expires)
}

// remove stops counting a connection.
func (u *pendingConnections) remove(tenant, connection string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if delete(u.by[tenant], connection); len(u.by[tenant]) == 0 {
		delete(u.by, tenant)
	}
}
