package jetstream

import (
	"context"
	"fmt"
	"sync"

	"github.com/credstream/credstream/admission"
)

// durable knows how far the log is durable and moves that position on, by one
// fsync for all that wait.
type durable struct {
	sync func(context.Context) error // nil: what is written is durable
	kick chan struct{}               // holds one token while somebody waits

	mu       sync.Mutex
	written  uint64 // highest commit that is known to be written
	position uint64 // every commit up to here is durable
	err      error  // an fsync failed: nothing becomes durable any more
	waiting  []waiter
}

type waiter struct {
	seq  uint64
	done chan error // buffered: its owner may have gone
}

func newDurable(sync func(context.Context) error) *durable {
	return &durable{sync: sync, kick: make(chan struct{}, 1)}
}

// run syncs while somebody waits, until ctx ends.
func (d *durable) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			d.release(0, ctx.Err())
			return
		case <-d.kick:
		}
		d.mu.Lock()
		target := d.written // who comes from now on may be too late for this fsync
		d.mu.Unlock()
		if err := d.sync(ctx); err != nil {
			d.release(0, fmt.Errorf("syncing the log: %w", err))
			return
		}
		d.release(target, nil)
	}
}

// release moves the position to seq and answers those who waited for it, or
// everybody when err is not nil.
func (d *durable) release(seq uint64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
	d.position = max(d.position, seq)
	left := d.waiting[:0]
	for _, w := range d.waiting {
		if err == nil && w.seq > d.position {
			left = append(left, w)
			continue
		}
		w.done <- err
	}
	clear(d.waiting[len(left):])
	d.waiting = left
}

// saw notes that the commit at seq is written.
func (d *durable) saw(seq uint64) {
	d.mu.Lock()
	d.written = max(d.written, seq)
	if d.sync == nil {
		d.position = d.written
	}
	d.mu.Unlock()
}

// knows reports whether the commit at seq is known to be written.
func (d *durable) knows(seq uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return seq <= d.written
}

// end is the highest commit that is known to be written.
func (d *durable) end() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

// wait returns when the commit at seq, which is known to be written, is durable.
func (d *durable) wait(ctx context.Context, seq uint64) error {
	if d.sync == nil {
		d.saw(seq)
		return nil
	}
	d.mu.Lock()
	if d.err != nil || seq <= d.position {
		defer d.mu.Unlock()
		return d.err
	}
	d.written = max(d.written, seq)
	done := make(chan error, 1)
	d.waiting = append(d.waiting, waiter{seq, done})
	d.mu.Unlock()
	defer admission.IdleForDisk(ctx)()
	select {
	case d.kick <- struct{}{}:
	default: // the next fsync is called for already
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *durable) at() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.position
}

// reset says that the log ends at seq and is durable up to there.
func (d *durable) reset(seq uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written, d.position = seq, seq
}
