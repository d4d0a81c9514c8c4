package jetstream

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/jsapi"
)

// maxRefusals is how often the server may refuse a commit, for a reason other than an expected
// sequence that has changed, before Append returns an error.
const maxRefusals = 4

// Append implements events.Store. Errors: events.ErrConflict, events.ErrTooLarge, events.ErrID,
// events.ErrUnknownOutcome if the commit may be stored, fault.ErrUnavailable if it is not.
func (s *Store) Append(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	seq, err := s.Stage(ctx, stream, expected, meta, evs...)
	if err != nil {
		return 0, err
	}
	if err := s.durable.wait(ctx, seq); err != nil {
		return 0, fmt.Errorf("commit %d is stored, but its durability is unknown: %w: %w", seq, events.ErrUnknownOutcome, err)
	}
	return seq, nil
}

// Stage implements events.Store, with the errors of Append.
func (s *Store) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	if s.cfg.Intact != nil {
		if err := s.cfg.Intact(); err != nil {
			return 0, err
		}
	}
	subj, err := subject(Prefix, stream)
	if err != nil {
		return 0, err
	}
	if err := events.CheckWriter(stream, meta); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	meta.Commit = events.NewID()
	body, err := s.cfg.Registry.EncodeCommit(meta, evs)
	if err != nil {
		return 0, err
	}
	prev, err := s.previous(ctx, subj, expected)
	if err != nil {
		return 0, err
	}
	a := attempt{subject: subj, expected: expected, commit: meta.Commit, msg: commitMessage(subj, meta, prev, body)}
	seq, err := s.publish(ctx, a, false)
	switch {
	case errors.Is(err, events.ErrConflict):
		s.recent.moved(subj)
		return 0, err
	case errors.Is(err, events.ErrUnknownOutcome):
		s.recent.markUncertain(subj)
		return 0, &events.UnsettledError{Err: err, Settle: func(ctx context.Context) (bool, error) { return s.settle(ctx, a) }}
	case err != nil:
		s.recent.markUncertain(subj)
		return 0, err
	}
	s.recent.appended(subj, following(seq, prev))
	s.durable.saw(seq)
	return seq, nil
}

// previous returns the stream's last sequences, newest first, which start with expected.
func (s *Store) previous(ctx context.Context, subj string, expected uint64) ([]uint64, error) {
	if expected == 0 {
		return nil, nil
	}
	if seqs, ok := s.recent.get(subj); ok {
		switch {
		case seqs[0] == expected:
			return seqs, nil
		case seqs[0] > expected:
			return nil, events.ErrConflict // the server would refuse it too
		}
	}
	m, err := s.get(ctx, expected)
	if err != nil {
		return nil, err
	}
	if m == nil || m.subject != subj {
		return nil, events.ErrConflict // expected is not the sequence of a commit of this stream
	}
	return following(expected, m.prev), nil
}

// attempt is a commit in flight.
type attempt struct {
	subject  string
	expected uint64
	commit   string
	msg      *nats.Msg
}

// pubAck is the server's response to a publish.
type pubAck struct {
	apiAnswer
	Seq uint64 `json:"seq"`
}

// settlePause is the time between two rounds of settle.
const settlePause = time.Second

// settle resolves an attempt whose outcome publish could not determine. A server that hangs may
// hold a copy of it, so the outcome is final only when the commit is stored or its stream has
// another commit.
func (s *Store) settle(ctx context.Context, a attempt) (stored bool, err error) {
	for {
		seq, err := s.publish(ctx, a, true)
		switch {
		case err == nil:
			s.recent.markUncertain(a.subject)
			s.durable.saw(seq)
			return true, nil
		case errors.Is(err, events.ErrConflict):
			return false, nil
		case errors.Is(err, nats.ErrConnectionClosed):
			return false, err
		}
		select {
		case <-ctx.Done():
			return false, errors.Join(err, ctx.Err())
		case <-time.After(settlePause):
		}
	}
}

// publish sends the commit until its outcome is known. It repeats the same bytes with the same
// expected sequence, so at most one of them is stored. doubt means that an earlier message may
// have been stored, or may still be.
func (s *Store) publish(ctx context.Context, a attempt, doubt bool) (uint64, error) {
	refusals := 0
	for p := newPacer(); ; {
		ack, err := s.publishOnce(ctx, a.msg)
		switch {
		case err == nil && ack.Error == nil:
			return ack.Seq, nil
		case err == nil && jsapi.WrongLast(ack.Error) && !doubt:
			return 0, events.ErrConflict
		case err == nil: // another commit was stored, perhaps our own; or the server refused it, for example after a failed write
			err = ack.Error
			refusals++
			doubt = true
		case errors.Is(err, nats.ErrMaxPayload):
			return 0, events.ErrTooLarge
		case errors.Is(err, errNoAnswer), ctx.Err() != nil:
			doubt = true
		}
		if doubt {
			seq, found, lookErr := s.findCommit(ctx, a)
			if found || errors.Is(lookErr, events.ErrConflict) {
				return seq, lookErr
			}
		}
		if refusals > maxRefusals || errors.Is(err, nats.ErrConnectionClosed) || !p.pause(ctx) {
			err = errors.Join(err, ctx.Err())
			if doubt {
				return 0, fmt.Errorf("appending to %s: %w: %w", a.subject, events.ErrUnknownOutcome, err)
			}
			return 0, unavailable("appending to "+a.subject, err)
		}
	}
}

func (s *Store) publishOnce(ctx context.Context, msg *nats.Msg) (ack pubAck, err error) {
	c, err := s.mux.send(msg)
	if err != nil {
		return ack, err
	}
	answer, err := c.await(ctx)
	if err != nil {
		return ack, err
	}
	if err := jsonv2.Unmarshal(answer.Data, &ack); err != nil || ack.Error == nil && ack.Seq == 0 {
		return ack, errNoAnswer // no JetStream answered: the outcome is unknown
	}
	return ack, nil
}

// findCommit reads, from the leader, the commit that follows the expected one. It returns the
// sequence of ours, events.ErrConflict if it is another one, or found false if there is none:
// an earlier message may still arrive.
func (s *Store) findCommit(ctx context.Context, a attempt) (seq uint64, found bool, err error) {
	for next, err := range s.chain(ctx, a.subject, a.expected) {
		switch {
		case err != nil:
			return 0, false, err
		case next.commit != a.commit:
			return 0, false, events.ErrConflict
		case sha256.Sum256(next.body) != sha256.Sum256(a.msg.Data):
			return 0, false, fmt.Errorf("commit %d has our id and another content: %w", next.seq, events.ErrConflict)
		}
		return next.seq, true, nil
	}
	return 0, false, nil
}

// Copy appends a commit of another log, unchanged, with the errors of Append. Its id is in body.
func (s *Store) Copy(ctx context.Context, stream events.StreamID, expected uint64, body []byte) (uint64, error) {
	subj, err := subject(Prefix, stream)
	if err != nil {
		return 0, err
	}
	meta, err := events.DecodeMeta(body)
	if err != nil {
		return 0, err
	}
	prev, err := s.previous(ctx, subj, expected)
	if err != nil {
		return 0, err
	}
	seq, err := s.publish(ctx, attempt{subject: subj, expected: expected, commit: meta.Commit, msg: commitMessage(subj, meta, prev, body)}, false)
	if err != nil {
		s.recent.markUncertain(subj)
		return 0, err
	}
	s.recent.appended(subj, following(seq, prev))
	s.durable.saw(seq)
	return seq, nil
}
