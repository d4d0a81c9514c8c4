// Package memory keeps the log in memory, for tests. It holds the stored bytes,
// so that every event passes through its encoding.
package memory

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/credstream/credstream/events"
)

// Store is an events.Store in memory; what is appended is durable at once.
type Store struct {
	registry *events.Registry

	mu        sync.Mutex
	commits   []commit // commits[i] has sequence i+1
	streams   map[events.StreamID][]uint64
	snapshots map[events.StreamID]events.Snapshot
	grown     chan struct{} // closed and replaced by each Append
}

type commit struct {
	stream events.StreamID
	id     string
	body   []byte
}

var _ events.Store = (*Store)(nil)

// New returns an empty log of what registry defines.
func New(registry *events.Registry) *Store {
	return &Store{
		registry:  registry,
		streams:   map[events.StreamID][]uint64{},
		snapshots: map[events.StreamID]events.Snapshot{},
		grown:     make(chan struct{}),
	}
}

// Append implements events.Store.
func (s *Store) Append(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	if err := check(stream); err != nil {
		return 0, err
	}
	if err := events.CheckWriter(stream, meta); err != nil {
		return 0, err
	}
	meta.Commit = events.NewID()
	body, err := s.registry.EncodeCommit(meta, evs)
	if err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last(stream) != expected {
		return 0, events.ErrConflict
	}
	s.commits = append(s.commits, commit{stream, meta.Commit, body})
	seq := uint64(len(s.commits))
	s.streams[stream] = append(s.streams[stream], seq)
	close(s.grown)
	s.grown = make(chan struct{})
	return seq, nil
}

// Stage implements events.Store; it is Append.
func (s *Store) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	return s.Append(ctx, stream, expected, meta, evs...)
}

// Stream implements events.Store.
func (s *Store) Stream(ctx context.Context, stream events.StreamID, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		if err := check(stream); err != nil {
			yield(events.Record{}, err)
			return
		}
		s.mu.Lock()
		seqs := slices.Clone(s.streams[stream])
		s.mu.Unlock()
		for _, seq := range seqs {
			if seq > after && !s.yieldCommit(ctx, seq, yield) {
				return
			}
		}
	}
}

// Back implements events.Store.
func (s *Store) Back(ctx context.Context, stream events.StreamID, upTo uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		var recs []events.Record
		for r, err := range s.Stream(ctx, stream, 0) {
			if err != nil {
				yield(r, err)
				return
			}
			recs = append(recs, r)
		}
		for _, r := range slices.Backward(recs) {
			if (upTo == 0 || r.Seq <= upTo) && !yield(r, nil) {
				return
			}
		}
	}
}

// Last implements events.Store.
func (s *Store) Last(_ context.Context, stream events.StreamID) (uint64, error) {
	if err := check(stream); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last(stream), nil
}

// Follow implements events.Store.
func (s *Store) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for seq := after + 1; ; {
			s.mu.Lock()
			end, grown := uint64(len(s.commits)), s.grown
			s.mu.Unlock()
			for ; seq <= end; seq++ {
				if ctx.Err() != nil || !s.yieldCommit(ctx, seq, yield) {
					return
				}
			}
			select {
			case <-grown:
			case <-ctx.Done():
				return
			}
		}
	}
}

// Commit implements events.Store.
func (s *Store) Commit(_ context.Context, seq uint64) ([]events.Record, error) {
	s.mu.Lock()
	if seq == 0 || seq > uint64(len(s.commits)) {
		s.mu.Unlock()
		return nil, events.ErrNoSuchCommit
	}
	c := s.commits[seq-1]
	s.mu.Unlock()
	return s.registry.DecodeCommit(c.stream, seq, c.body)
}

// Meta implements events.Store.
func (s *Store) Meta(_ context.Context, seq uint64) (events.StreamID, events.Meta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seq == 0 || seq > uint64(len(s.commits)) {
		return events.StreamID{}, events.Meta{}, events.ErrNoSuchCommit
	}
	c := s.commits[seq-1]
	m, err := events.DecodeMeta(c.body)
	return c.stream, m, err
}

// End implements events.Store.
func (s *Store) End(context.Context) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return uint64(len(s.commits)), nil
}

// Before implements events.Store.
func (s *Store) Before(ctx context.Context, n int) (uint64, error) {
	end, err := s.End(ctx)
	return end - min(end, uint64(n)), err
}

// WaitDurable implements events.Store. A sequence beyond the end of the log is
// answered with events.ErrNoSuchCommit.
func (s *Store) WaitDurable(ctx context.Context, seq uint64) error {
	end, _ := s.End(ctx)
	if seq > end {
		return fmt.Errorf("waiting for commit %d where the log ends at %d: %w", seq, end, events.ErrNoSuchCommit)
	}
	return nil
}

// Snapshot implements events.Store.
func (s *Store) Snapshot(_ context.Context, stream events.StreamID, fold int) (events.Snapshot, error) {
	if err := check(stream); err != nil {
		return events.Snapshot{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	snap := s.snapshots[stream]
	if snap.Seq == 0 || snap.Fold != fold {
		return events.Snapshot{}, nil
	}
	if c := s.commits[snap.Seq-1]; c.stream != stream || c.id != snap.Commit {
		return events.Snapshot{}, nil
	}
	snap.State = slices.Clone(snap.State)
	return snap, nil
}

// SaveSnapshot implements events.Store.
func (s *Store) SaveSnapshot(ctx context.Context, stream events.StreamID, snap events.Snapshot) error {
	if err := check(stream); err != nil {
		return err
	}
	if err := s.WaitDurable(ctx, snap.Seq); err != nil {
		return err
	}
	if len(snap.State) > events.MaxCommit {
		return events.ErrTooLarge
	}
	snap.State = slices.Clone(snap.State)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snapshots[stream] = snap
	return nil
}

// Bytes returns a copy of every stored commit, in log order, for tests that
// search them.
func (s *Store) Bytes() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([][]byte, len(s.commits))
	for i, c := range s.commits {
		all[i] = slices.Clone(c.body)
	}
	return all
}

// last is the sequence of the stream's last commit. mu must be held.
func (s *Store) last(stream events.StreamID) uint64 {
	seqs := s.streams[stream]
	if len(seqs) == 0 {
		return 0
	}
	return seqs[len(seqs)-1]
}

func (s *Store) yieldCommit(ctx context.Context, seq uint64, yield func(events.Record, error) bool) bool {
	recs, err := s.Commit(ctx, seq)
	if err != nil {
		yield(events.Record{}, err)
		return false
	}
	for _, r := range recs {
		if !yield(r, nil) {
			return false
		}
	}
	return true
}

func check(stream events.StreamID) error {
	if !events.Plain(stream.Tenant) || !events.Plain(stream.Category) {
		return events.ErrID
	}
	return events.CheckID(stream.ID)
}
