// Package aggregates holds the business rules: which changes of each aggregate are
// allowed. A rule is a pure function, without clock, id source or I/O.
package aggregates

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Decider is one kind of aggregate: two pure functions over a state whose zero
// value means "nothing yet". A state is a value: neither function changes its
// arguments, so a state may be shared and cached.
type Decider[S any, C commands.Command, E any] struct {
	Category string                  // first word of its streams
	Fold     int                     // raised whenever Evolve or S changes, which invalidates older snapshots
	Decide   func(S, C) ([]E, error) // no events and no error: nothing to change
	Evolve   func(S, E) S            // cannot fail: the event has happened
	New      func(C) bool            // the command begins a stream, so there is nothing to load; nil if no command does
	Weight   func(S) int             // number of entries that make the state large; nil if it is always small
}

// State is a folded stream.
type State[S any] struct {
	Value  S
	Seq    uint64 // revision: log sequence of the stream's last commit, 0 when it has none
	commit string // id of that commit
	tail   int    // commits folded since the last snapshot
}

// Log is the store behind a bounded cache of folded
// states. A cached state may be stale; the check of the append detects that.
type Log struct {
	Store  events.Store
	states *lru.Cache[events.StreamID, any]

	mu    sync.Mutex
	turns map[events.StreamID]*turn // streams with a command in progress
}

// turn is the lock of a stream: this process decides one command at a time on it, so
// that concurrent commands wait for each other instead of losing races.
type turn struct {
	token chan struct{} // held by the owner of the lock
	users int           // the owner and the waiting callers
}

// lockStream acquires the stream's lock; give releases it.
func (l *Log) lockStream(ctx context.Context, stream events.StreamID) (give func(), err error) {
	l.mu.Lock()
	t := l.turns[stream]
	if t == nil {
		t = &turn{token: make(chan struct{}, 1)}
		l.turns[stream] = t
	}
	t.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(l.turns, stream)
		}
	}
	select {
	case t.token <- struct{}{}:
		return func() { <-t.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// NewLog keeps the states of up to size streams in memory.
func NewLog(store events.Store, size int) (*Log, error) {
	states, err := lru.New[events.StreamID, any](size)
	if err != nil {
		return nil, fmt.Errorf("cache of states: %w", err)
	}
	return &Log{Store: store, states: states, turns: map[events.StreamID]*turn{}}, nil
}

// Invalidate drops the cached state of a stream that has a commit at seq that this
// process did not append itself.
func (l *Log) Invalidate(stream events.StreamID, seq uint64) {
	if s, ok := l.states.Peek(stream); ok && s.(revisioned).revision() < seq {
		l.states.Remove(stream)
	}
}

// revisioned is any State.
type revisioned interface{ revision() uint64 }

func (s State[S]) revision() uint64 { return s.Seq }

// Forget drops every cached state: the log may have been truncated below them.
func (l *Log) Forget() { l.states.Purge() }

// snapshotEvery is the number of commits after which a load is slow
// enough to justify a snapshot. A large state takes longer to write, so it is
// written less often: entriesPerCommit entries count as one more commit.
const (
	snapshotEvery    = 32
	entriesPerCommit = 64
)

func (d Decider[S, C, E]) snapshotDue(s State[S]) bool {
	every := snapshotEvery
	if d.Weight != nil {
		every += d.Weight(s.Value) / entriesPerCommit
	}
	return s.tail >= every
}

// maxAttempts bounds the attempts of one command that keeps losing races.
const maxAttempts = 32

// Stream is the stream of the aggregate with this id, under tenant.
func (d Decider[S, C, E]) Stream(tenant, id string) events.StreamID {
	return events.StreamID{Tenant: tenant, Category: d.Category, ID: id}
}

// Load returns the state of a stream, possibly a stale one from the cache: sufficient
// for a decision that ends in an append.
func (d Decider[S, C, E]) Load(ctx context.Context, log *Log, stream events.StreamID) (State[S], error) {
	if s, ok := log.states.Get(stream); ok {
		return s.(State[S]), nil
	}
	return d.reload(ctx, log, stream, State[S]{})
}

// Fresh returns the newest, durable state: required for a refusal or a read.
func (d Decider[S, C, E]) Fresh(ctx context.Context, log *Log, stream events.StreamID) (State[S], error) {
	s, err := d.Load(ctx, log, stream)
	if err != nil {
		return s, err
	}
	return d.refresh(ctx, log, stream, s)
}

// refresh brings s up to the stream's last commit as the leader knows it, and
// waits until that is durable.
func (d Decider[S, C, E]) refresh(ctx context.Context, log *Log, stream events.StreamID, s State[S]) (State[S], error) {
	last, err := log.Store.Last(ctx, stream)
	if err != nil {
		return s, fmt.Errorf("last of %s: %w", stream, err)
	}
	switch {
	case last < s.Seq: // the answer is older than the cache, or the log was truncated below it
		log.states.Remove(stream)
		return s, fmt.Errorf("last of %s is %d, expected %d: %w", stream, last, s.Seq, fault.ErrUnavailable)
	case last > s.Seq:
		if s, err = d.reload(ctx, log, stream, s); err != nil {
			return s, err
		}
	}
	if err := log.Store.WaitDurable(ctx, s.Seq); err != nil {
		return s, fmt.Errorf("wait for %s: %w", stream, err)
	}
	return s, nil
}

// reload folds the commits of the stream after s, starting from a snapshot if
// s is empty.
func (d Decider[S, C, E]) reload(ctx context.Context, log *Log, stream events.StreamID, s State[S]) (State[S], error) {
	if s.Seq == 0 {
		s = d.fromSnapshot(ctx, log, stream)
	}
	for rec, err := range log.Store.Stream(ctx, stream, s.Seq) {
		if err != nil {
			return s, fmt.Errorf("load %s: %w", stream, err)
		}
		e, ok := rec.Event.(E)
		if !ok {
			return s, fmt.Errorf("load %s: unexpected event %T at %d", stream, rec.Event, rec.Seq)
		}
		s.Value, s.Seq, s.commit = d.Evolve(s.Value, e), rec.Seq, rec.Meta.Commit
		if rec.Last() {
			s.tail++
		}
	}
	log.states.Add(stream, s)
	return s, nil
}

// Around returns the states of a stream before and after one of its commits.
func (d Decider[S, C, E]) Around(ctx context.Context, log *Log, commit []events.Record) (before, after S, err error) {
	stream, seq := commit[0].Stream, commit[0].Seq
	start := d.fromSnapshot(ctx, log, stream)
	if start.Seq >= seq {
		start = State[S]{}
	}
	before, after = start.Value, start.Value
	for rec, err := range log.Store.Stream(ctx, stream, start.Seq) {
		if err != nil {
			return before, after, fmt.Errorf("load %s: %w", stream, err)
		}
		e, ok := rec.Event.(E)
		switch {
		case !ok:
			return before, after, fmt.Errorf("load %s: unexpected event %T at %d", stream, rec.Event, rec.Seq)
		case rec.Seq > seq:
			return before, after, nil
		case rec.Seq < seq:
			before = d.Evolve(before, e)
			after = before
		default:
			after = d.Evolve(after, e)
		}
	}
	return before, after, nil
}

// Execute decides cmd on the stream of its target under tenant and appends the
// resulting events. It starts over when it loses a race. look, when not nil, is called
// in every round with the revision that the round decides on; its error ends the
// execution. That is how a repeated command is detected. Execute returns the
// state before the command and the state after it, whose Seq is the
// revision the caller may rely on; if nothing was appended they are equal. If
// they differ beside an error, a commit was stored but is not known to be durable.
func (d Decider[S, C, E]) Execute(ctx context.Context, log *Log, tenant string, cmd C, meta events.Meta,
	look func(context.Context, uint64) error,
) (before, after State[S], err error) {
	stream := d.Stream(tenant, cmd.Target())
	before, after, err = d.stage(ctx, log, stream, cmd, meta, look)
	if err != nil || after.Seq == before.Seq {
		return before, after, err
	}
	if err := log.Store.WaitDurable(ctx, after.Seq); err != nil {
		log.states.Remove(stream)
		return before, after, fmt.Errorf("commit %d of %s is stored, but its durability is unknown: %w: %w", after.Seq, stream, events.ErrUnknownOutcome, err)
	}
	if d.snapshotDue(after) {
		d.snapshot(ctx, log, stream, after)
	}
	return before, after, nil
}

// stage is Execute without waiting for durability: the stream's next command may be decided
// on what was staged, since it cannot become durable earlier.
func (d Decider[S, C, E]) stage(ctx context.Context, log *Log, stream events.StreamID, cmd C, meta events.Meta,
	look func(context.Context, uint64) error,
) (before, after State[S], err error) {
	var s State[S]
	if d.New == nil || !d.New(cmd) { // else the append detects whether the stream exists already
		give, err := log.lockStream(ctx, stream)
		if err != nil {
			return s, s, err
		}
		defer give()
		if s, err = d.Load(ctx, log, stream); err != nil {
			return s, s, err
		}
	}
	for lost := range maxAttempts {
		if err := pause(ctx, lost); err != nil {
			return s, s, err
		}
		if look != nil {
			if err := look(ctx, s.Seq); err != nil {
				return s, s, err
			}
		}
		facts, refusal := d.Decide(s.Value, cmd)
		if refusal != nil || len(facts) == 0 {
			// A result that appends nothing must be based on the newest, durable state.
			fresh, err := d.refresh(ctx, log, stream, s)
			if err != nil {
				return s, s, err
			}
			if fresh.Seq != s.Seq {
				s = fresh
				continue
			}
			return s, s, refusal
		}
		if end, bounded := ctx.Deadline(); bounded && !time.Now().Before(end) {
			return s, s, context.DeadlineExceeded // the process was suspended, and no timer has fired yet
		}
		evs := make([]events.Event, len(facts))
		for i, f := range facts {
			evs[i] = f
		}
		seq, err := log.Store.Stage(ctx, stream, s.Seq, meta, evs...)
		switch {
		case errors.Is(err, events.ErrConflict):
			if s, err = d.reload(ctx, log, stream, s); err != nil {
				return s, s, err
			}
			continue
		case err != nil:
			// The outcome may be unknown, and the cached state may be stale.
			log.states.Remove(stream)
			return s, s, fmt.Errorf("append to %s: %w", stream, err)
		}
		after := State[S]{Value: s.Value, Seq: seq, tail: s.tail + 1}
		for _, f := range facts {
			after.Value = d.Evolve(after.Value, f)
		}
		kept := after
		if d.snapshotDue(after) {
			kept.tail = 0 // one snapshot is enough; a missing one only costs time
		}
		log.states.Add(stream, kept)
		return s, after, nil
	}
	return s, s, fault.ErrConflict
}

// pause gives way to another process on the same stream, the longer the
// more races were lost.
func pause(ctx context.Context, lost int) error {
	if lost < 2 {
		return ctx.Err()
	}
	wait := time.NewTimer(rand.N(time.Duration(lost) * time.Millisecond)) //nolint:gosec // only spreads the attempts
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// fromSnapshot returns the state in the stream's snapshot. A snapshot that cannot be
// read or decoded is a miss and yields the zero state: the stream itself holds everything.
func (d Decider[S, C, E]) fromSnapshot(ctx context.Context, log *Log, stream events.StreamID) State[S] {
	snap, err := log.Store.Snapshot(ctx, stream, d.Fold)
	if err != nil || snap.Seq == 0 {
		return State[S]{}
	}
	var value S
	if err := json.Unmarshal(snap.State, &value); err != nil {
		return State[S]{}
	}
	return State[S]{Value: value, Seq: snap.Seq, commit: snap.Commit}
}

// snapshot stores s, which is durable, so that a later load is
// short. It is an optimization: a failure only costs time.
func (d Decider[S, C, E]) snapshot(ctx context.Context, log *Log, stream events.StreamID, s State[S]) {
	recs, err := log.Store.Commit(ctx, s.Seq)
	if err != nil {
		return
	}
	state, err := json.Marshal(s.Value)
	if err != nil {
		return
	}
	_ = log.Store.SaveSnapshot(ctx, stream, events.Snapshot{Seq: s.Seq, Commit: recs[0].Meta.Commit, Fold: d.Fold, State: state})
}
