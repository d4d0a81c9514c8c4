package admission

import "time"

// SetWait changes how long a call may wait for its turn.
func (a *Admission) SetWait(d time.Duration) { a.wait = d }

// Held is what is held of all that is shared; all of it is 0 when nothing is under way.
func (a *Admission) Held() (used, tenants, waiting int, bytes int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.used, len(a.tenants), a.waiters.len(), a.bytes
}

// The bounds that a test reaches.
const (
	PerCore  = perCore
	MaxLine  = maxKeyWaiting
	MaxLines = maxTenantWaiting
	MaxBytes = maxBytes
)
