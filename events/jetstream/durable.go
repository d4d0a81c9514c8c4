package jetstream

import (
	"context"
	"fmt"
	"sync"

	"github.com/credstream/credstream/admission"
)

// durable tracks up to which commit the log is durable. One fsync serves all waiters.
type durable struct {
	sync func(context.Context) error // nil: written commits are durable
	kick chan struct{}               // has a token while somebody waits

	mu       sync.Mutex
	written  uint64 // highest commit known to be written
	position uint64 // all commits up to this one are durable
	err      error  // an fsync failed: nothing becomes durable any more
	waiting  []waiter
}

type waiter struct {
	seq  uint64
	done chan error // buffered: the waiter may be gone
}

func newDurable(sync func(context.Context) error) *durable {
	return &durable{sync: sync, kick: make(chan struct{}, 1)}
}

// run fsyncs while somebody waits, until ctx is done.
func (d *durable) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			d.release(0, ctx.Err())
			return
		case <-d.kick:
		}
		d.mu.Lock()
		target := d.written // commits written from now on may be too late for this fsync
		waiting := len(d.waiting)
		d.mu.Unlock()
		if waiting == 0 { // the fsync before this one was begun late enough for all
			continue
		}
		if err := d.sync(ctx); err != nil {
			d.release(0, fmt.Errorf("syncing the log: %w", err))
			return
		}
		d.release(target, nil)
	}
}

// release advances the position to seq and wakes up the waiters up to it; with an error, all
// waiters.
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

// saw records that the commit at seq is written.
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

// end returns the highest commit known to be written.
func (d *durable) end() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.written
}

// wait returns when the commit at seq is durable. It must be known to be written.
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
	default: // the next fsync is already requested
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

// reset sets the end of the log, which is durable.
func (d *durable) reset(seq uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written, d.position = seq, seq
}
