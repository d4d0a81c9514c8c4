package edge

import (
	"time"
)

// SetBacklog changes how many messages may wait of one tenant in each stream.
func (q *Queues) SetBacklog(most int) {
	for _, b := range q.backlog {
		b.limit = most
	}
}

// ForgetBacklog has the streams looked at anew, as a process does that has just started.
func (q *Queues) ForgetBacklog() {
	for _, b := range q.backlog {
		b.tenants.Purge()
	}
}

// SetRefusalDelay changes how long a publisher that sends too much waits for a refusal.
func (in *Intake) SetRefusalDelay(d time.Duration) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.delay = d
}

// MaxInbound is how many messages of a key may wait in a line.
const MaxInbound = maxInbound
