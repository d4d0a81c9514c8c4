package jetstream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strconv"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/jsapi"
)

// errChain means that the log is inconsistent: the predecessor of a commit is missing, or
// belongs to another stream.
var errChain = errors.New("jetstream: a stream's chain of commits is broken")

// Stream implements events.Store. It reads the last message, which has the sequences of its
// predecessors, and then these in order, up to maxPrev in flight. It uses no consumer and no
// filter.
func (s *Store) Stream(ctx context.Context, stream events.StreamID, after uint64) iter.Seq2[events.Record, error] {
	return s.walk(stream, slices.Values[[]events.Record], func(subj string) iter.Seq2[*message, error] { return s.chain(ctx, subj, after) })
}

// Back implements events.Store. The first reads are small, for readers that find what they need
// near the end.
func (s *Store) Back(ctx context.Context, stream events.StreamID, upTo uint64) iter.Seq2[events.Record, error] {
	newestFirst := func(recs []events.Record) iter.Seq[events.Record] {
		slices.Reverse(recs)
		return slices.Values(recs)
	}
	return s.walk(stream, newestFirst, func(subj string) iter.Seq2[*message, error] { return s.back(ctx, subj, upTo) })
}

// walk yields the records of a stream's commits, in order.
func (s *Store) walk(stream events.StreamID, order func([]events.Record) iter.Seq[events.Record],
	commits func(subj string) iter.Seq2[*message, error],
) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		subj, err := subject(Prefix, stream)
		if err != nil {
			yield(events.Record{}, err)
			return
		}
		for m, err := range commits(subj) {
			var recs []events.Record
			if err == nil {
				recs, err = m.records(s.cfg.Registry)
			}
			if err != nil {
				yield(events.Record{}, fmt.Errorf("loading %s: %w", stream, err))
				return
			}
			for r := range order(recs) {
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

func (s *Store) Last(ctx context.Context, stream events.StreamID) (uint64, error) {
	subj, err := subject(Prefix, stream)
	if err != nil {
		return 0, err
	}
	if seq, known := s.recent.last(subj); known {
		return seq, nil
	}
	m, err := s.lastCommit(ctx, subj)
	if err != nil || m == nil {
		return 0, err
	}
	return m.seq, nil
}

func (s *Store) Commit(ctx context.Context, seq uint64) ([]events.Record, error) {
	m, err := s.get(ctx, seq)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, events.ErrNoSuchCommit
	}
	return m.records(s.cfg.Registry)
}

func (s *Store) Meta(ctx context.Context, seq uint64) (events.StreamID, events.Meta, error) {
	m, err := s.get(ctx, seq)
	switch {
	case err != nil:
		return events.StreamID{}, events.Meta{}, err
	case m == nil:
		return events.StreamID{}, events.Meta{}, events.ErrNoSuchCommit
	}
	stream, err := events.ParseSubject(Prefix, m.subject)
	if err != nil {
		return stream, events.Meta{}, fmt.Errorf("commit %d: %w", m.seq, err)
	}
	if m.format != events.CommitFormat {
		return stream, events.Meta{}, fmt.Errorf("commit %d on %s: %w: %q", m.seq, m.subject, events.ErrCommitFormat, m.format)
	}
	meta, err := events.DecodeMeta(m.body)
	return stream, meta, err
}

// End implements events.Store. It reads from the leader.
func (s *Store) End(ctx context.Context) (uint64, error) {
	at, err := s.state(ctx, stateQuestion{}, s.durable.end())
	return at.LastSeq, err
}

// Before implements events.Store.
func (s *Store) Before(ctx context.Context, n int) (uint64, error) {
	end, err := s.End(ctx)
	return end - min(end, uint64(n)), err
}

// IDs returns the ids of all streams of a category under tenant that have a commit, as the
// leader has them.
func (s *Store) IDs(ctx context.Context, tenant, category string) ([]string, error) {
	var ids []string
	q := stateQuestion{Subject: Prefix + "." + tenant + "." + category + ".*"}
	for {
		at, err := s.state(ctx, q, s.durable.end())
		if err != nil {
			return nil, err
		}
		for subject := range at.Subjects {
			stream, err := events.ParseSubject(Prefix, subject)
			if err != nil {
				return nil, err
			}
			ids = append(ids, stream.ID)
		}
		if q.Offset += len(at.Subjects); len(at.Subjects) == 0 || q.Offset >= at.Total {
			return ids, nil
		}
	}
}

// WaitDurable implements events.Store. It returns events.ErrNoSuchCommit for a sequence beyond
// the end of the log.
func (s *Store) WaitDurable(ctx context.Context, seq uint64) error {
	if !s.durable.knows(seq) {
		end, err := s.End(ctx)
		if err != nil {
			return err
		}
		if seq > end {
			return fmt.Errorf("waiting for commit %d where the log ends at %d: %w", seq, end, events.ErrNoSuchCommit)
		}
	}
	return s.durable.wait(ctx, seq)
}

// chain yields the commits on subj above after, oldest first. It holds maxPrev of them at a
// time, and the sequences of all.
func (s *Store) chain(ctx context.Context, subj string, after uint64) iter.Seq2[*message, error] {
	return func(yield func(*message, error) bool) {
		last, err := s.lastCommit(ctx, subj)
		if err != nil {
			yield(nil, err)
			return
		}
		if last == nil || last.seq <= after {
			return
		}
		seqs, prior, err := s.before(ctx, last, after)
		if err != nil {
			yield(nil, err)
			return
		}
		slices.Reverse(seqs)
		for window := range slices.Chunk(seqs, maxPrev) {
			msgs, err := s.gets(ctx, window)
			for i, m := range msgs {
				if err == nil {
					err = follows(m, window[i], subj, prior)
				}
				if !yield(m, err) || err != nil {
					return
				}
				prior = m.seq
			}
		}
		yield(last, follows(last, last.seq, subj, prior))
	}
}

// before returns the sequences of the commits between after and m, newest first, and start, the
// sequence at or below after that precedes them; 0 if there is none. It reads every maxPrev-th
// commit.
func (s *Store) before(ctx context.Context, m *message, after uint64) (seqs []uint64, start uint64, err error) {
	subj := m.subject
	for {
		for _, seq := range m.prev {
			if seq <= after {
				return seqs, seq, nil
			}
			seqs = append(seqs, seq)
		}
		if len(m.prev) < maxPrev { // it lists all of them
			return seqs, 0, nil
		}
		if m, err = s.member(ctx, seqs[len(seqs)-1], subj); err != nil {
			return nil, 0, err
		}
	}
}

// back yields the commits on subj up to upTo, newest first; all if upTo is 0. It holds maxPrev
// of them at a time.
func (s *Store) back(ctx context.Context, subj string, upTo uint64) iter.Seq2[*message, error] {
	return func(yield func(*message, error) bool) {
		m, err := s.lastCommit(ctx, subj)
		if err == nil && m != nil && upTo != 0 && m.seq > upTo {
			m, err = s.lastUpTo(ctx, m, upTo)
		}
		if err == nil && m == nil || !yield(m, err) || err != nil {
			return
		}
		for window := 1; len(m.prev) > 0; window = min(2*window, maxPrev) {
			named := m.prev
			msgs, err := s.gets(ctx, named[:min(len(named), window)])
			for i := range msgs {
				m = msgs[i]
				switch {
				case err != nil:
				case i+1 < len(named):
					err = follows(m, named[i], subj, named[i+1])
				case len(named) < maxPrev: // it lists all of them
					err = follows(m, named[i], subj, 0)
				case m == nil || m.subject != subj:
					err = fmt.Errorf("commit %d of %s: %w", named[i], subj, errChain)
				}
				if !yield(m, err) || err != nil {
					return
				}
			}
		}
	}
}

// lastUpTo reads the last commit up to upTo of the stream of m, which is above it; nil if there
// is none.
func (s *Store) lastUpTo(ctx context.Context, m *message, upTo uint64) (*message, error) {
	_, seq, err := s.before(ctx, m, upTo)
	if err != nil || seq == 0 {
		return nil, err
	}
	return s.member(ctx, seq, m.subject)
}

// member reads the commit at seq, which must be on subj.
func (s *Store) member(ctx context.Context, seq uint64, subj string) (*message, error) {
	m, err := s.get(ctx, seq)
	if err == nil && (m == nil || m.subject != subj) {
		return nil, fmt.Errorf("commit %d of %s: %w", seq, subj, errChain)
	}
	return m, err
}

// follows returns errChain unless m, read at seq, is a commit on subj whose predecessor is
// prior; 0: none.
func follows(m *message, seq uint64, subj string, prior uint64) error {
	if m == nil || m.subject != subj || m.previous() != prior {
		return fmt.Errorf("commit %d of %s, after %d: %w", seq, subj, prior, errChain)
	}
	return nil
}

// lastCommit reads the last commit on subj, nil if there is none, and caches its sequence for
// the next Append or Last.
func (s *Store) lastCommit(ctx context.Context, subj string) (*message, error) {
	s.recent.beginRead(subj)
	var m *message
	var err error
	if s.cfg.LeaderReads {
		m, err = s.certain(ctx, question{Subject: subj})
	} else {
		m, err = s.direct(ctx, Stream, subj)
	}
	if err != nil || m == nil {
		s.recent.read(subj, nil)
		return nil, err
	}
	s.durable.saw(m.seq)
	s.recent.read(subj, following(m.seq, m.prev))
	return m, nil
}

// direct reads the last message on subj from any replica; nil if there is none.
func (s *Store) direct(ctx context.Context, stream, subj string) (*message, error) {
	msg, err := s.mux.request(ctx, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + stream + "." + subj})
	if err != nil {
		return nil, unavailable("reading "+subj, err)
	}
	return readDirect(msg)
}

// get reads the message of the log at seq; nil if there is none.
func (s *Store) get(ctx context.Context, seq uint64) (*message, error) {
	msgs, err := s.gets(ctx, []uint64{seq})
	if err != nil {
		return nil, err
	}
	return msgs[0], nil
}

// gets reads the messages at seqs concurrently; nil for missing ones.
func (s *Store) gets(ctx context.Context, seqs []uint64) ([]*message, error) {
	type flight struct {
		req *nats.Msg
		c   call
		err error
	}
	flights := make([]flight, len(seqs))
	for i, seq := range seqs {
		if seq == 0 {
			continue
		}
		f := &flights[i]
		f.req = &nats.Msg{Subject: "$JS.API.DIRECT.GET." + Stream, Data: fmt.Appendf(nil, `{"seq":%d}`, seq)}
		f.c, f.err = s.mux.send(f.req)
	}
	msgs := make([]*message, len(seqs))
	var failed error
	for i, f := range flights {
		if f.req == nil {
			continue
		}
		if failed != nil {
			if f.err == nil {
				f.c.forget()
			}
			continue
		}
		answer, err := s.mux.answer(ctx, f.req, f.c, f.err)
		if err != nil {
			failed = unavailable(fmt.Sprintf("reading commit %d", seqs[i]), err)
			continue
		}
		m, err := readDirect(answer)
		if err == nil && m == nil && s.cfg.LeaderReads { // the replica that answered may be behind
			m, err = s.certain(ctx, question{Seq: seqs[i]})
		}
		if err != nil {
			failed = err
			continue
		}
		if m != nil {
			s.durable.saw(m.seq)
		}
		msgs[i] = m
	}
	return msgs, failed
}

// readDirect parses the response to a direct get; nil if there is no such message.
func readDirect(answer *nats.Msg) (*message, error) {
	if status := answer.Header.Get("Status"); status == "404" {
		return nil, nil
	} else if status != "" {
		return nil, fmt.Errorf("reading a message: the server answers %s %s", status, answer.Header.Get("Description"))
	}
	seq, err := strconv.ParseUint(answer.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("reading a message: its sequence: %w", err)
	}
	return readMessage(answer.Header.Get("Nats-Subject"), seq, answer.Header, answer.Data)
}

// fromLeader reads one message from the stream's leader; nil if there is none.
func (s *Store) fromLeader(ctx context.Context, stream string, q question) (*message, error) {
	var answer struct {
		apiAnswer
		Message jsapi.Stored `json:"message"`
	}
	if err := s.mux.api(ctx, "$JS.API.STREAM.MSG.GET."+stream, q, &answer); err != nil {
		return nil, err
	}
	switch {
	case answer.Error != nil && jsapi.NotFound(answer.Error):
		return nil, nil
	case answer.Error != nil:
		return nil, unavailable("reading a message of "+stream, answer.Error)
	}
	m, err := answer.Message.Message()
	if err != nil {
		return nil, fmt.Errorf("reading a message of %s: %w", stream, err)
	}
	return readMessage(m.Subject, m.Seq, m.Header, m.Data)
}
