package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A follower that has heard of the leader of a stream elects no other one for 4 s
// (nats-server, raft.go: minElectionTimeoutDefault). So for that long after a
// majority has followed a leader nothing is stored that this leader does not know.
// A leader that nobody follows any more notices it within 20 s (lostQuorumCheck and
// lostQuorumInterval there), and until then two servers may answer.
const (
	reign      = 3 * time.Second         // how long the leader is trusted after a majority followed it; the rest is for answers of followers that were on their way
	reignRenew = 1500 * time.Millisecond // after so long the leader is asked before a read, not after it
	newReign   = 25 * time.Second        // how long the leader before this one may still answer
)

// errUncertain says that nobody who is known to lead the log has answered.
var errUncertain = errors.New("jetstream: the leader of the log is unknown")

// leadership is when a majority was last known to follow the leader of the log.
type leadership struct {
	asking chan struct{} // holds one token while the leader is asked

	mu    sync.Mutex
	at    time.Time
	alone bool // nobody else can take itself for the leader
}

func newLeadership() *leadership { return &leadership{asking: make(chan struct{}, 1)} }

// followed notes that a majority followed the leader at a time or after it.
func (l *leadership) followed(at time.Time, alone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.After(l.at) {
		l.at, l.alone = at, alone
	}
}

// within reports whether a majority followed the leader that recently, and whether
// only this leader can answer.
func (l *leadership) within(d time.Duration) (known, alone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.at) < d, l.alone
}

// question names one message of the log: the last one on a subject, or the one at a sequence.
type question struct {
	Subject string `json:"last_by_subj,omitzero"`
	Seq     uint64 `json:"seq,omitzero"`
}

// certain reads a message of the log as its leader knows it; nil when there is
// none. A server that is cut off from the others, or was stopped for a while, goes on
// as the leader it was, and a server that cannot read its files answers that there is
// no such message: neither is believed.
func (s *Store) certain(ctx context.Context, q question) (*message, error) {
	if s.cfg.Replicas == 1 {
		return s.fromLeader(ctx, Stream, q)
	}
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for p := newPacer(); ; {
		m, err := s.certainOnce(bounded, q)
		if !errors.Is(err, errUncertain) {
			return m, err
		}
		if !p.pause(bounded) {
			return nil, unavailable("reading the log", err)
		}
	}
}

func (s *Store) certainOnce(ctx context.Context, q question) (*message, error) {
	if err := s.confirmLeader(ctx); err != nil {
		return nil, err
	}
	m, err := s.fromLeader(ctx, Stream, q)
	if err != nil {
		return nil, err
	}
	known, alone := s.leadership.within(reign)
	switch {
	case m == nil, !alone:
		return m, s.confirm(ctx, q, m)
	case !known:
		return nil, errUncertain
	}
	return m, nil
}

// confirmLeader asks who leads the log, unless that is known for a while.
func (s *Store) confirmLeader(ctx context.Context) error {
	if known, _ := s.leadership.within(reignRenew); known {
		return nil
	}
	select {
	case s.leadership.asking <- struct{}{}:
		defer func() { <-s.leadership.asking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if known, _ := s.leadership.within(reignRenew); known { // somebody else has asked meanwhile
		return nil
	}
	_, err := s.stateOnce(ctx, stateQuestion{}, s.durable.end())
	return err
}

// confirm returns errUncertain unless the count of messages that the leader gives
// bears out the answer to a question, which another server may have given.
func (s *Store) confirm(ctx context.Context, q question, m *message) error {
	at, err := s.stateOnce(ctx, stateQuestion{Subject: q.Subject}, s.durable.end())
	if err != nil {
		return err
	}
	count := at.Subjects[q.Subject]
	switch {
	case q.Seq != 0 && m != nil: // nothing is ever changed
	case q.Seq != 0 && q.Seq > at.LastSeq, q.Seq == 0 && m == nil && count == 0:
	case q.Seq == 0 && m != nil && count == uint64(len(m.prev))+1:
	case q.Seq == 0 && m != nil && len(m.prev) == maxPrev && count > maxPrev: // it is not counted further than that
	default:
		return fmt.Errorf("%w: the answer contradicts the leader's message count", errUncertain)
	}
	return nil
}

// streamState is what the leader says of the log.
type streamState struct {
	Messages uint64            `json:"messages"`
	FirstSeq uint64            `json:"first_seq"`
	LastSeq  uint64            `json:"last_seq"`
	Deleted  []uint64          `json:"deleted"`  // sequences that are missing between others; only when asked for
	Subjects map[string]uint64 `json:"subjects"` // messages by subject, of those that were asked for
	Total    int               `json:"-"`        // subjects in all; an answer holds so many of them
}

type stateQuestion struct {
	Subject string `json:"subjects_filter,omitzero"`
	Offset  int    `json:"offset,omitzero"`
	Deleted bool   `json:"deleted_details,omitzero"`
}

// state asks the leader of the log, which holds commit known, how far the log is.
func (s *Store) state(ctx context.Context, q stateQuestion, known uint64) (streamState, error) {
	for p := newPacer(); ; {
		at, err := s.stateOnce(ctx, q, known)
		switch {
		case !errors.Is(err, errUncertain):
			return at, err
		case !p.pause(ctx):
			return at, unavailable("reading the state of the log", err)
		}
	}
}

// stateOnce is state but for the patience: it returns errUncertain when who answers
// is not followed by a majority, or does not hold commit known.
func (s *Store) stateOnce(ctx context.Context, q stateQuestion, known uint64) (streamState, error) {
	var info struct {
		apiAnswer
		Total   int         `json:"total"`
		State   streamState `json:"state"`
		Cluster struct {
			Leader   string    `json:"leader"`
			Since    time.Time `json:"leader_since"`
			Replicas []struct {
				Active int64 `json:"active"` // nanoseconds since the leader heard of it; 0: never
			} `json:"replicas"`
		} `json:"cluster"`
		Time time.Time `json:"ts"` // of the server that answers
	}
	begun := time.Now()
	if err := s.mux.api(ctx, "$JS.API.STREAM.INFO."+Stream, q, &info); err != nil {
		return streamState{}, err
	}
	if info.Error != nil {
		return streamState{}, unavailable("reading the state of the log", info.Error)
	}
	if s.cfg.Replicas > 1 {
		var heard []int64 // since when the leader has not heard of each of the others
		for _, r := range info.Cluster.Replicas {
			if r.Active > 0 {
				heard = append(heard, r.Active)
			}
		}
		slices.Sort(heard)
		others := s.cfg.Replicas / 2 // that make a majority with the leader
		if info.Cluster.Leader == "" || len(heard) < others || info.State.LastSeq < known {
			return streamState{}, errUncertain
		}
		led := info.Time.Sub(info.Cluster.Since)
		s.leadership.followed(begun.Add(-time.Duration(heard[others-1])), !info.Cluster.Since.IsZero() && led > newReign)
		if known, _ := s.leadership.within(reign); !known {
			return streamState{}, errUncertain
		}
	}
	s.durable.saw(info.State.LastSeq)
	info.State.Total = info.Total
	return info.State, nil
}
