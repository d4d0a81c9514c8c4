// Package projections derives the read models from the log, from which they can be rebuilt: the
// views that answer queries, the Projector that updates them, and the public form of every event.
package projections

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ErrViewsBehind is returned by Wait when the projector stopped before the
// requested position: reads may be stale.
var ErrViewsBehind = fault.New(fault.Unavailable, "views_behind", "The read models are not up to date. Try again shortly.")

// maxBatch is the approximate number of records applied in one transaction. A larger
// batch would make a caller that reads its own write wait for others.
const maxBatch = 1000

// After a batch the projector waits for more records, gatherFactor times as long as the batch
// took to apply, within these bounds: a transaction writes the same few pages for one record as
// for fifty, and the views should take a fifth of a processor at most.
const (
	gatherFactor = 4
	minGather    = 5 * time.Millisecond
	maxGather    = 50 * time.Millisecond
)

// Model is a read model that follows the log.
type Model interface {
	// Position is the sequence of the last commit applied, 0 for none. It may be
	// called from any goroutine and does no I/O.
	Position() uint64
	// Apply applies whole commits, in log order, in one transaction
	// with the new position. It skips commits at or before Position. When it
	// fails, nothing has changed.
	Apply(ctx context.Context, batch []events.Record) error
}

// Projector applies the durable records of the log to one model, in log order,
// each exactly once.
type Projector struct {
	store events.Store
	model Model
	log   *slog.Logger

	flushNow chan struct{}         // holds one token if a caller started to wait
	applied  func([]events.Record) // see OnApplied

	followed uint64 // the last commit for which applied was called

	mu      sync.Mutex
	moved   chan struct{} // closed at the next change; nil while nobody waits
	stopped bool
	err     error
}

// NewProjector returns a projector that does nothing until Run.
func NewProjector(store events.Store, model Model, log *slog.Logger) *Projector {
	return &Projector{
		store: store, model: model, log: log, flushNow: make(chan struct{}, 1), applied: func([]events.Record) {},
		followed: math.MaxUint64, // no commit yet: the first Run starts at the model's position
	}
}

// OnApplied sets f, which the projector calls with every batch, in log order, after it is applied and
// before any waiting caller returns; also with the commits that a rebuild of the model
// applied between two runs. f must be quick and must not keep the slice. Set it
// before Run.
func (p *Projector) OnApplied(f func([]events.Record)) { p.applied = f }

// Run follows the log from the model's position until ctx ends; then it returns
// nil. It applies the available records in one batch. A record that closely follows another
// may wait for more, 50 ms at most, unless a caller waits for it. An
// event that cannot be applied, or a log that cannot be read, stops the projector: it
// logs an error and returns it. It may be run again, one run at a time, and
// then resumes with the same event.
func (p *Projector) Run(ctx context.Context) (err error) {
	p.note(false, p.Err())
	defer func() {
		if err != nil {
			p.log.ErrorContext(ctx, "projector stopped; read models are out of date from here on",
				"position", p.model.Position(), "error", err)
		}
		p.note(true, err)
	}()
	p.followed = min(p.model.Position(), p.followed)
	if p.Err() != nil { // the error of the last run is cleared when nothing is left to apply
		if end, err := p.End(ctx); err == nil && p.followed >= end {
			p.note(false, nil)
		}
	}
	for batch, err := range follow(ctx, p.store, p.followed, maxBatch) {
		if err != nil {
			return fmt.Errorf("following the log: %w", err)
		}
		begun := time.Now()
		if err := p.model.Apply(ctx, batch); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("applying the log: %w", err)
		}
		p.applied(batch)
		p.followed = batch[len(batch)-1].Seq
		p.note(false, nil)
		if len(batch) < maxBatch/2 {
			p.pause(ctx, min(max(gatherFactor*time.Since(begun), minGather), maxGather))
		}
	}
	return nil
}

// pause lets records accumulate until a caller waits for one.
func (p *Projector) pause(ctx context.Context, gather time.Duration) {
	enough := time.NewTimer(gather)
	defer enough.Stop()
	select {
	case <-enough.C:
	case <-p.flushNow:
	case <-ctx.Done():
	}
}

// note wakes the waiting callers after a change.
func (p *Projector) note(stopped bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped, p.err = stopped, err
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// Wait returns when the commit at seq has been applied, so that a caller reads
// its own write. It returns ErrViewsBehind when the projector stops first, and
// the context's error when ctx ends first.
func (p *Projector) Wait(ctx context.Context, seq uint64) error { return p.reach(ctx, seq, true) }

// Next returns when a commit after the position has been applied. It is for
// followers of the model: unlike Wait it does not make the projector flush early, so
// records keep accumulating. It returns what Wait returns.
func (p *Projector) Next(ctx context.Context, after uint64) error {
	return p.reach(ctx, after+1, false)
}

func (p *Projector) reach(ctx context.Context, seq uint64, flush bool) error {
	if p.model.Position() < seq {
		defer admission.Idle(ctx)()
	}
	for p.model.Position() < seq {
		p.mu.Lock()
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		moved, stopped := p.moved, p.stopped
		p.mu.Unlock()
		switch {
		case p.model.Position() >= seq:
			return nil
		case stopped:
			return ErrViewsBehind
		}
		if flush {
			select {
			case p.flushNow <- struct{}{}:
			default:
			}
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Position is the sequence of the last commit applied, 0 for none.
func (p *Projector) Position() uint64 { return p.model.Position() }

// End is the sequence of the log's last commit, 0 when it is empty.
func (p *Projector) End(ctx context.Context) (uint64, error) {
	end, err := p.store.End(ctx)
	if err != nil {
		return 0, fmt.Errorf("reading the end of the log: %w", err)
	}
	return end, nil
}

// Err is why the projector has stopped, nil while it runs or when its context
// ended. After a restart it remains the old error until something was
// applied or there is nothing to apply.
func (p *Projector) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

var errTorn = errors.New("the log ended within a commit")

// follow yields the records after a sequence in batches of whole commits: all
// available records, up to about limit, waiting only for the
// first. A separate goroutine reads the log and has ended when follow
// returns. It ends without an error when ctx ends.
func follow(ctx context.Context, store events.Store, after uint64, limit int) iter.Seq2[[]events.Record, error] {
	return func(yield func([]events.Record, error) bool) {
		ctx, stop := context.WithCancel(ctx)
		records := make(chan events.Record, limit)
		var failed error // written before records is closed
		go func() {
			defer close(records)
			for r, err := range store.Follow(ctx, after) {
				if err != nil {
					failed = err
					return
				}
				select {
				case records <- r:
				case <-ctx.Done():
					return
				}
			}
		}()
		defer func() {
			stop()
			for range records { // until the reader has ended
			}
		}()
		for {
			var batch []events.Record
			for len(batch) == 0 || !batch[len(batch)-1].Last() || len(batch) < limit && len(records) > 0 {
				r, ok := <-records
				if ok {
					batch = append(batch, r)
					continue
				}
				switch {
				case ctx.Err() != nil: // cancelled, perhaps within a commit
				case failed != nil:
					yield(nil, failed)
				case len(batch) > 0:
					yield(nil, errTorn)
				}
				return
			}
			if !yield(batch, nil) {
				return
			}
		}
	}
}
