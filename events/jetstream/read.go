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
)

// errChain says that the log contradicts itself: a commit names a predecessor
// that is not there, or not of its stream.
var errChain = errors.New("jetstream: a stream's chain of commits is broken")

// Stream implements events.Store. It reads the last message, then the missing
// ones by their sequences, all in flight at once: never a consumer, never a filter.
func (s *Store) Stream(ctx context.Context, stream events.StreamID, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		subj, err := subject(Prefix, stream)
		if err != nil {
			yield(events.Record{}, err)
			return
		}
		msgs, err := s.chain(ctx, subj, after)
		if err != nil {
			yield(events.Record{}, fmt.Errorf("loading %s: %w", stream, err))
			return
		}
		for _, m := range msgs {
			recs, err := m.records(s.cfg.Registry)
			if err != nil {
				yield(events.Record{}, err)
				return
			}
			for _, r := range recs {
				if !yield(r, nil) {
					return
				}
			}
		}
	}
}

// Last implements events.Store.
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

// Commit implements events.Store.
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

// End implements events.Store; it asks the leader.
func (s *Store) End(ctx context.Context) (uint64, error) {
	at, err := s.state(ctx, stateQuestion{}, s.durable.end())
	return at.LastSeq, err
}

// IDs lists the ids of the streams of a category under tenant that have a commit, as the
// leader knows them.
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

// WaitDurable implements events.Store. A sequence beyond the end of the log is
// answered with events.ErrNoSuchCommit.
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

// chain reads the commits on subj above after, oldest first.
func (s *Store) chain(ctx context.Context, subj string, after uint64) ([]*message, error) {
	last, err := s.lastCommit(ctx, subj)
	if err != nil || last == nil || last.seq <= after {
		return nil, err
	}
	msgs := []*message{last} // newest first until the end
	for oldest := last; len(oldest.prev) > 0 && oldest.prev[0] > after; oldest = msgs[len(msgs)-1] {
		want := oldest.prev
		if i := slices.IndexFunc(want, func(seq uint64) bool { return seq <= after }); i >= 0 {
			want = want[:i]
		}
		got, err := s.gets(ctx, want)
		if err != nil {
			return nil, err
		}
		for i, m := range got {
			newer := msgs[len(msgs)-1]
			if m == nil || m.subject != subj || newer.prev[0] != m.seq {
				return nil, fmt.Errorf("commit %d of %s, before %d: %w", want[i], subj, newer.seq, errChain)
			}
			msgs = append(msgs, m)
			if len(m.prev) == 0 && i < len(got)-1 {
				return nil, fmt.Errorf("commit %d of %s has none before it: %w", m.seq, subj, errChain)
			}
		}
	}
	slices.Reverse(msgs)
	return msgs, nil
}

// lastCommit reads the last commit on subj, nil when there is none, and keeps its
// place for the next Append or Last.
func (s *Store) lastCommit(ctx context.Context, subj string) (*message, error) {
	s.recent.ask(subj)
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

// direct reads the last message on subj, nil when there is none, from any replica.
func (s *Store) direct(ctx context.Context, stream, subj string) (*message, error) {
	msg, err := s.mux.ask(ctx, &nats.Msg{Subject: "$JS.API.DIRECT.GET." + stream + "." + subj})
	if err != nil {
		return nil, unavailable("reading "+subj, err)
	}
	return readDirect(msg)
}

// get reads the message at seq of the log, nil when there is none.
func (s *Store) get(ctx context.Context, seq uint64) (*message, error) {
	msgs, err := s.gets(ctx, []uint64{seq})
	if err != nil {
		return nil, err
	}
	return msgs[0], nil
}

// gets reads the messages at seqs, all in flight at once; nil stands for one that is not there.
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

// readDirect reads the answer to a direct get; nil says that there is no such message.
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

// codeNoMessage is the server's code for a message that is not there.
const codeNoMessage = 10037

// fromLeader reads one message from the stream's leader; nil says that there is no such message.
func (s *Store) fromLeader(ctx context.Context, stream string, q question) (*message, error) {
	var answer struct {
		apiAnswer
		Message struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Header  []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := s.mux.api(ctx, "$JS.API.STREAM.MSG.GET."+stream, q, &answer); err != nil {
		return nil, err
	}
	switch m := answer.Message; {
	case answer.Error != nil && answer.Error.ErrCode == codeNoMessage:
		return nil, nil
	case answer.Error != nil:
		return nil, unavailable("reading a message of "+stream, answer.Error)
	default:
		h, err := nats.DecodeHeadersMsg(m.Header)
		if err != nil {
			return nil, fmt.Errorf("reading message %d of %s: %w", m.Seq, stream, err)
		}
		return readMessage(m.Subject, m.Seq, h, m.Data)
	}
}
