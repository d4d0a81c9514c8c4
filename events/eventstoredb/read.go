package eventstoredb

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"github.com/credstream/credstream/events"
)

// The number of events in one read.
const (
	pageSize = 50 // of a stream
	maxPage  = 32 // of $all, which has other events too
)

// Stream implements events.Store. With a position it reads back from the end, since the rest is
// short as a rule; if it is longer than a page, it reads the stream from its start.
func (s *Store) Stream(ctx context.Context, stream events.StreamID, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		name, err := streamName(Prefix, stream)
		if err != nil {
			yield(events.Record{}, err)
			return
		}
		next := uint64(0)
		if after > 0 {
			var done bool
			if next, done, err = s.after(ctx, name, after); err != nil {
				yield(events.Record{}, err)
				return
			}
			if done {
				return
			}
		}
		for {
			page, err := s.links.readStream(ctx, name, esdb.Forwards, esdb.Revision(next), pageSize)
			if err != nil {
				yield(events.Record{}, s.failed("reading "+name, name, err))
				return
			}
			for _, e := range page {
				if e.EventNumber != next {
					yield(events.Record{}, s.deleted(name, "was truncated"))
					return
				}
				next++
				if e.Position.Commit > after && !s.yieldCommit(e, yield) {
					return
				}
			}
			if len(page) < pageSize {
				return
			}
		}
	}
}

// after returns the revision from which a reader must start that wants the commits above a
// sequence. done: there are none.
func (s *Store) after(ctx context.Context, name string, seq uint64) (revision uint64, done bool, err error) {
	if h, ok := s.recent.Get(name); ok && h.seq <= seq {
		return h.revision + 1, false, nil
	}
	page, err := s.links.readStream(ctx, name, esdb.Backwards, esdb.End{}, pageSize)
	if err != nil {
		return 0, false, s.failed("reading "+name, name, err)
	}
	if len(page) == 0 {
		return 0, true, nil
	}
	for _, e := range page {
		if e.Position.Commit <= seq {
			return e.EventNumber + 1, false, nil
		}
	}
	return 0, false, nil
}

// Back implements events.Store. The first reads are small, for readers that find what they need
// near the end.
func (s *Store) Back(ctx context.Context, stream events.StreamID, upTo uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		name, err := streamName(Prefix, stream)
		if err != nil {
			yield(events.Record{}, err)
			return
		}
		var from esdb.StreamPosition = esdb.End{}
		for window, first, next := uint64(2), true, uint64(0); ; window = min(2*window, pageSize) {
			page, err := s.links.readStream(ctx, name, esdb.Backwards, from, window)
			if err != nil {
				yield(events.Record{}, s.failed("reading "+name, name, err))
				return
			}
			for _, e := range page {
				if !first && e.EventNumber != next {
					yield(events.Record{}, s.deleted(name, "was truncated"))
					return
				}
				first, next = false, e.EventNumber-1
				if (upTo == 0 || e.Position.Commit <= upTo) && !s.yieldBack(e, yield) {
					return
				}
				if e.EventNumber == 0 {
					return
				}
			}
			if uint64(len(page)) < window {
				if !first { // the first commit is missing
					yield(events.Record{}, s.deleted(name, "was truncated"))
				}
				return
			}
			from = esdb.Revision(next)
		}
	}
}

func (s *Store) yieldCommit(e *esdb.RecordedEvent, yield func(events.Record, error) bool) bool {
	recs, err := s.decode(e)
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

func (s *Store) yieldBack(e *esdb.RecordedEvent, yield func(events.Record, error) bool) bool {
	recs, err := s.decode(e)
	if err != nil {
		yield(events.Record{}, err)
		return false
	}
	for _, r := range slices.Backward(recs) {
		if !yield(r, nil) {
			return false
		}
	}
	return true
}

// Last implements events.Store. It reads from the leader.
func (s *Store) Last(ctx context.Context, stream events.StreamID) (uint64, error) {
	name, err := streamName(Prefix, stream)
	if err != nil {
		return 0, err
	}
	h, err := s.last(ctx, name)
	return h.seq, err
}

func (s *Store) last(ctx context.Context, name string) (head, error) {
	page, err := s.links.readStream(ctx, name, esdb.Backwards, esdb.End{}, 1)
	if err != nil {
		return head{}, s.failed("reading "+name, name, err)
	}
	if len(page) == 0 {
		return head{}, nil
	}
	seq, err := seqOf(page[0])
	if err != nil {
		return head{}, err
	}
	h := head{seq, page[0].EventNumber}
	s.learn(name, h)
	return h, nil
}

// at reads the commit at seq; nil if there is none.
func (s *Store) at(ctx context.Context, seq uint64) (*esdb.RecordedEvent, error) {
	if seq == 0 || seq >= 1<<62 {
		return nil, nil
	}
	all, err := s.links.readAll(ctx, esdb.Forwards, esdb.Position{Commit: seq, Prepare: seq}, 1)
	switch {
	case err != nil && strings.Contains(strings.ToLower(err.Error()), "position"): // between two records of the server's file
		return nil, nil
	case err != nil:
		return nil, s.failed(fmt.Sprintf("reading commit %d", seq), "", err)
	case len(all) == 0 || all[0].Position.Commit != seq || !strings.HasPrefix(all[0].StreamID, Prefix):
		return nil, nil
	}
	s.saw(seq)
	return all[0], nil
}

// Commit implements events.Store.
func (s *Store) Commit(ctx context.Context, seq uint64) ([]events.Record, error) {
	e, err := s.at(ctx, seq)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, events.ErrNoSuchCommit
	}
	return s.decode(e)
}

// Body returns the stored form of the commit at seq; nil if there is none.
func (s *Store) Body(ctx context.Context, seq uint64) ([]byte, error) {
	e, err := s.at(ctx, seq)
	if err != nil || e == nil {
		return nil, err
	}
	return e.Data, nil
}

// Meta implements events.Store.
func (s *Store) Meta(ctx context.Context, seq uint64) (events.StreamID, events.Meta, error) {
	e, err := s.at(ctx, seq)
	if err != nil {
		return events.StreamID{}, events.Meta{}, err
	}
	if e == nil {
		return events.StreamID{}, events.Meta{}, events.ErrNoSuchCommit
	}
	stream, err := checkType(e)
	if err != nil {
		return stream, events.Meta{}, err
	}
	meta, err := events.DecodeMeta(e.Data)
	return stream, meta, err
}

// End implements events.Store. It reads $all backwards from the leader, to the last commit or to
// where the previous call has read.
func (s *Store) End(ctx context.Context) (uint64, error) {
	s.endMu.Lock()
	known, read := s.endSeq, s.endRead
	s.endMu.Unlock()
	var from esdb.AllPosition = esdb.End{}
	newest, end := uint64(0), known
	for window, found := uint64(1), false; !found; window = min(4*window, maxPage) {
		page, err := s.links.readAll(ctx, esdb.Backwards, from, window)
		if err != nil {
			return 0, s.failed("reading the end of the log", "", err)
		}
		for _, e := range page {
			newest = max(newest, e.Position.Commit)
			if e.Position.Commit <= read {
				found = true
				break
			}
			if strings.HasPrefix(e.StreamID, Prefix) && e.EventType == CommitType {
				end, found = e.Position.Commit, true
				break
			}
			from = e.Position
		}
		if uint64(len(page)) < window {
			break
		}
	}
	if newest < read { // the log lost its end: what was known is void
		s.endMu.Lock()
		s.endSeq, s.endRead = 0, 0
		s.endMu.Unlock()
		if newest == 0 {
			return 0, nil
		}
		return s.End(ctx)
	}
	s.endMu.Lock()
	if newest > s.endRead {
		s.endSeq, s.endRead = end, newest
	}
	s.endMu.Unlock()
	s.saw(end)
	return end, nil
}

// Before implements events.Store. It reads $all backwards.
func (s *Store) Before(ctx context.Context, n int) (uint64, error) {
	var from esdb.AllPosition = esdb.End{}
	for {
		page, err := s.links.readAll(ctx, esdb.Backwards, from, maxPage)
		if err != nil {
			return 0, s.failed("reading the log backwards", "", err)
		}
		for _, e := range page {
			from = e.Position
			if !strings.HasPrefix(e.StreamID, Prefix) || e.EventType != CommitType {
				continue
			}
			if n == 0 {
				return e.Position.Commit, nil
			}
			n--
		}
		if len(page) < maxPage {
			return 0, nil
		}
	}
}

// WaitDurable implements events.Store. It returns events.ErrNoSuchCommit for a sequence beyond the
// end of the log.
func (s *Store) WaitDurable(ctx context.Context, seq uint64) error {
	if seq <= s.durable.Load() {
		return nil
	}
	end, err := s.End(ctx)
	if err != nil {
		return err
	}
	if seq > end {
		return fmt.Errorf("waiting for commit %d where the log ends at %d: %w", seq, end, events.ErrNoSuchCommit)
	}
	return nil
}

var errIDs = errors.New("eventstoredb: only the streams of the installation can be listed")

// IDs returns the ids of all streams of a category that belong to the installation.
func (s *Store) IDs(ctx context.Context, tenant, category string) ([]string, error) {
	if tenant != events.System {
		return nil, errIDs
	}
	if err := s.rescan(ctx); err != nil {
		return nil, err
	}
	s.scanMu.Lock()
	defer s.scanMu.Unlock()
	var ids []string
	for stream := range s.scan.system {
		if stream.Category == category {
			ids = append(ids, stream.ID)
		}
	}
	return ids, nil
}

// CheckWhole returns events.ErrLogIncomplete if somebody deleted or truncated a stream of the log,
// and events.ErrLogCutShort if the log ends before a commit that it held.
func (s *Store) CheckWhole(ctx context.Context) error {
	durable := s.durable.Load()
	end, err := s.End(ctx)
	switch {
	case err != nil:
		return err
	case end < durable:
		return events.CutShort(durable)
	}
	if err := s.rescan(ctx); err != nil && !errors.Is(err, events.ErrLogIncomplete) {
		return err
	}
	s.damageMu.Lock()
	names := make([]string, 0, len(s.damage))
	for name := range s.damage {
		names = append(names, name)
	}
	s.damageMu.Unlock()
	slices.Sort(names)
	for _, name := range names { // the operator may have undone it
		if err := s.checkStream(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// checkStream returns events.ErrLogIncomplete if the stream misses its first commits.
func (s *Store) checkStream(ctx context.Context, name string) error {
	page, err := s.links.readStream(ctx, name, esdb.Forwards, esdb.Start{}, 1)
	if err == nil {
		var limits []*esdb.RecordedEvent
		if limits, err = s.links.readStream(ctx, "$$"+name, esdb.Backwards, esdb.End{}, 1); err == nil {
			if len(limits) > 0 && limited(limits[0].Data) || len(page) == 0 || page[0].EventNumber != 0 {
				return s.deleted(name, "was deleted or truncated")
			}
			s.damageMu.Lock()
			delete(s.damage, name)
			s.damageMu.Unlock()
			return nil
		}
	}
	return s.failed("reading "+name, name, err)
}
