package app

import (
	"context"
	"sync"
)

// endedKeys are keys that were revoked by any process according to the log, and
// whose connections to this process are still to be closed.
type endedKeys struct {
	mu   sync.Mutex
	ids  []string
	some chan struct{}
}

func newEndedKeys() *endedKeys { return &endedKeys{some: make(chan struct{}, 1)} }

// add does not block, because its caller follows the log.
func (e *endedKeys) add(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ids = append(e.ids, id)
	select {
	case e.some <- struct{}{}:
	default:
	}
}

// run closes the connections of each key until ctx ends; then it returns nil.
func (e *endedKeys) run(ctx context.Context, disconnect func(id string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.some:
		}
		e.mu.Lock()
		ids := e.ids
		e.ids = nil
		e.mu.Unlock()
		for _, id := range ids {
			disconnect(id)
		}
	}
}
