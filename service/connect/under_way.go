package connect

import (
	"sync"
	"time"

	"github.com/credstream/credstream/fault"
)

// maxUnderWay is the maximum number of a tenant's pending connections in a process.
const maxUnderWay = 1000

// ErrConnectionsLimit refuses to start more connections.
var ErrConnectionsLimit = fault.New(fault.Throttled, "connections_limit",
	"Too many connections of this tenant are pending. Complete some, or wait until they expire.")

// underWay counts the pending connections that the process has started
// or changed, so that one tenant cannot use all the memory.
type underWay struct {
	mu sync.Mutex
	by map[string]map[string]time.Time // by tenant and connection: until when; no tenant is empty
}

// start counts a connection until a time, or returns ErrConnectionsLimit with the time
// of the next retry.
func (u *underWay) start(tenant, connection string, now, until time.Time) error {
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
	if len(own) >= maxUnderWay {
		return ErrConnectionsLimit.WithRetryAfter(max(first.Sub(now), time.Second))
	}
	u.hold(tenant, connection, until)
	return nil
}

// hold requires mu.
func (u *underWay) hold(tenant, connection string, until time.Time) {
	if u.by[tenant] == nil {
		u.by[tenant] = map[string]time.Time{}
	}
	u.by[tenant][connection] = until
}

// moved records that a connection is pending for longer, or no longer.
func (u *underWay) moved(c *connection) {
	if c.Stage == stageDone || c.Stage == stageFailed {
		u.leave(c.Tenant, c.id)
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.hold(c.Tenant, c.id, c.Expires)
}

// leave removes a connection.
func (u *underWay) leave(tenant, connection string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if delete(u.by[tenant], connection); len(u.by[tenant]) == 0 {
		delete(u.by, tenant)
	}
}
