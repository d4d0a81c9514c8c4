package jetstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A follower that has heard from the leader of a stream elects no other one for 4 s
// (nats-server, raft.go: minElectionTimeoutDefault). So for that long after a majority has
// followed a leader, nothing is stored that this leader does not have. A leader that lost its
// followers notices it within 20 s (lostQuorumCheck and lostQuorumInterval there); until then
// two servers may answer.
const (
	reign      = 3 * time.Second         // how long the leader is trusted after a majority followed it; the difference to 4 s covers responses of followers in flight
	reignRenew = 1500 * time.Millisecond // after this time, the leader is confirmed before a read instead of after it
	newReign   = 25 * time.Second        // how long the previous leader may still answer
)

// errUncertain means that no confirmed leader of the log has answered.
var errUncertain = errors.New("jetstream: the leader of the log is unknown")

// leadership records when a majority was last known to follow the leader of the log.
type leadership struct {
	asking chan struct{} // has a token while the leader is being confirmed

	mu    sync.Mutex
	at    time.Time
	alone bool // no other server can believe that it is the leader
}

func newLeadership() *leadership { return &leadership{asking: make(chan struct{}, 1)} }

// followed records that a majority followed the leader at the given time or later.
func (l *leadership) followed(at time.Time, alone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.After(l.at) {
		l.at, l.alone = at, alone
	}
}

// within reports whether a majority followed the leader within the last d, and whether no other
// server can answer as the leader.
func (l *leadership) within(d time.Duration) (known, alone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Since(l.at) < d, l.alone
}

// question identifies a message of the log: the last one on a subject, or the one at a
// sequence.
type question struct {
	Subject string `json:"last_by_subj,omitzero"`
	Seq     uint64 `json:"seq,omitzero"`
}

// certain reads a message of the log as its leader has it; nil if there is none. Two servers
// are not trusted: one that is cut off or was suspended and still acts as the leader, and one
// that cannot read its files and reports that there is no such message.
func (s *Store) certain(ctx context.Context, q question) (*message, error) {
	if s.cfg.Replicas == 1 {
		return s.fromLeader(ctx, Stream, q)
	}
	bounded, cancel := context.WithTimeout(ctx, exchangeTimeout)
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

// confirmLeader confirms the leader of the log, unless that was done recently.
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
	if known, _ := s.leadership.within(reignRenew); known { // another caller has confirmed it meanwhile
		return nil
	}
	_, err := s.stateOnce(ctx, stateQuestion{}, s.durable.end())
	return err
}

// confirm compares the response to a question, which another server may have given, with the
// message counts of the leader. It returns errUncertain if they differ.
func (s *Store) confirm(ctx context.Context, q question, m *message) error {
	at, err := s.stateOnce(ctx, stateQuestion{Subject: q.Subject}, s.durable.end())
	if err != nil {
		return err
	}
	count := at.Subjects[q.Subject]
	switch {
	case q.Seq != 0 && m != nil: // a stored commit never changes
	case q.Seq != 0 && q.Seq > at.LastSeq, q.Seq == 0 && m == nil && count == 0:
	case q.Seq == 0 && m != nil && count == uint64(len(m.prev))+1:
	case q.Seq == 0 && m != nil && len(m.prev) == maxPrev && count > maxPrev: // longer lists of predecessors are not counted
	default:
		return fmt.Errorf("%w: the answer contradicts the leader's message count", errUncertain)
	}
	return nil
}

// streamState is the leader's state of the log.
type streamState struct {
	Messages uint64            `json:"messages"`
	FirstSeq uint64            `json:"first_seq"`
	LastSeq  uint64            `json:"last_seq"`
	Deleted  []uint64          `json:"deleted"`  // missing sequences between others; only if requested
	Subjects map[string]uint64 `json:"subjects"` // messages by subject, if requested
	Total    int               `json:"-"`        // number of subjects; a response has fewer
}

type stateQuestion struct {
	Subject string `json:"subjects_filter,omitzero"`
	Offset  int    `json:"offset,omitzero"`
	Deleted bool   `json:"deleted_details,omitzero"`
}

// state returns the leader's state of the log. The leader must have the commit at known.
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

// stateOnce is state without retries: it returns errUncertain if the server that answers is not
// followed by a majority, or does not have the commit at known.
func (s *Store) stateOnce(ctx context.Context, q stateQuestion, known uint64) (streamState, error) {
	var info struct {
		apiAnswer
		Total   int         `json:"total"`
		State   streamState `json:"state"`
		Cluster struct {
			Leader   string    `json:"leader"`
			Since    time.Time `json:"leader_since"`
			Replicas []struct {
				Active int64 `json:"active"` // nanoseconds since the leader heard from it; 0: never
			} `json:"replicas"`
		} `json:"cluster"`
		Time time.Time `json:"ts"` // clock of the server that answers
	}
	begun := time.Now()
	if err := s.mux.api(ctx, "$JS.API.STREAM.INFO."+Stream, q, &info); err != nil {
		return streamState{}, err
	}
	if info.Error != nil {
		return streamState{}, unavailable("reading the state of the log", info.Error)
	}
	if s.cfg.Replicas > 1 {
		var heard []int64 // time since the leader heard from each of the others
		for _, r := range info.Cluster.Replicas {
			if r.Active > 0 {
				heard = append(heard, r.Active)
			}
		}
		slices.Sort(heard)
		others := s.cfg.Replicas / 2 // number of followers that form a majority with the leader
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
