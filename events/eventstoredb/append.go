package eventstoredb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	"github.com/google/uuid"

	"github.com/credstream/credstream/events"
)

// settlePause is the time between two rounds of settle.
const settlePause = time.Second

// attempt is a commit in flight.
type attempt struct {
	stream string
	want   esdb.ExpectedRevision
	at     uint64 // revision that it gets
	event  esdb.EventData
}

// Append implements events.Store. Errors: events.ErrConflict, events.ErrTooLarge, events.ErrID,
// events.ErrUnknownOutcome if the commit may be stored, fault.ErrUnavailable if it is not.
func (s *Store) Append(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	if s.cfg.Intact != nil {
		if err := s.cfg.Intact(); err != nil {
			return 0, err
		}
	}
	name, err := streamName(Prefix, stream)
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
	return s.put(ctx, name, expected, meta.Commit, body)
}

// Stage implements events.Store; it is Append.
func (s *Store) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	return s.Append(ctx, stream, expected, meta, evs...)
}

// put appends an encoded commit.
func (s *Store) put(ctx context.Context, name string, expected uint64, commit string, body []byte) (uint64, error) {
	id, err := uuid.Parse(commit)
	if err != nil {
		return 0, fmt.Errorf("appending to %s: %w", name, err)
	}
	a := attempt{stream: name, want: esdb.NoStream{}, event: esdb.EventData{EventID: id, EventType: CommitType, ContentType: esdb.ContentTypeJson, Data: body}}
	if expected != 0 {
		revision, err := s.revision(ctx, name, expected)
		if err != nil {
			return 0, err
		}
		a.want, a.at = esdb.Revision(revision), revision+1
	}
	seq, err := s.publish(ctx, a, false)
	switch {
	case errors.Is(err, events.ErrConflict):
		s.recent.Remove(name)
		return 0, err
	case errors.Is(err, events.ErrUnknownOutcome):
		s.recent.Remove(name)
		return 0, &events.UnsettledError{Err: err, Settle: func(ctx context.Context) (bool, error) { return s.settle(ctx, a) }}
	case err != nil:
		return 0, err
	}
	s.learn(name, head{seq, a.at})
	return seq, nil
}

// revision returns the revision of the stream's last commit, which must be the expected one.
func (s *Store) revision(ctx context.Context, name string, expected uint64) (uint64, error) {
	if h, ok := s.recent.Get(name); ok {
		switch {
		case h.seq == expected:
			return h.revision, nil
		case h.seq > expected:
			return 0, events.ErrConflict
		}
	}
	h, err := s.last(ctx, name)
	if err == nil && h.seq != expected {
		err = events.ErrConflict
	}
	return h.revision, err
}

// settle resolves an attempt whose outcome publish could not determine.
func (s *Store) settle(ctx context.Context, a attempt) (stored bool, err error) {
	for {
		_, err := s.publish(ctx, a, true)
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, events.ErrConflict):
			return false, nil
		case errors.Is(err, events.ErrLogIncomplete):
			return false, err
		}
		if !sleep(ctx, settlePause) {
			return false, errors.Join(err, ctx.Err())
		}
	}
}

// publish sends the commit until its outcome is known. It repeats the same event id with the same
// expected revision, so it is stored at most once. doubt means that an earlier request may have
// been stored, or may still be.
func (s *Store) publish(ctx context.Context, a attempt, doubt bool) (uint64, error) {
	doing := "appending to " + a.stream
	for p := newPacer(); ; {
		r, err := call(ctx, s.links, func(ctx context.Context, c *esdb.Client) (*esdb.WriteResult, error) {
			return c.AppendToStream(ctx, a.stream, esdb.AppendToStreamOptions{ExpectedRevision: a.want}, a.event)
		})
		switch code := codeOf(err); {
		case err == nil && !doubt && r.CommitPosition != 0 && r.NextExpectedVersion != a.at:
			return 0, s.deleted(a.stream, "was deleted")
		case err == nil && !doubt && r.CommitPosition != 0:
			return r.CommitPosition, nil
		case err == nil: // the server tells no position of a write that it had stored before
			doubt, err = true, errors.New("the position of the commit is not known")
		case code == esdb.ErrorCodeWrongExpectedVersion && !doubt:
			return 0, events.ErrConflict
		case code == esdb.ErrorCodeStreamDeleted, code == esdb.ErrorCodeUnauthenticated, code == esdb.ErrorCodeAccessDenied:
			return 0, s.failed(doing, a.stream, err)
		case strings.Contains(err.Error(), "Append Size"):
			return 0, events.ErrTooLarge
		case errors.Is(err, errNotSent), code == esdb.ErrorCodeNotLeader: // certainly not stored by this request
		default:
			doubt = true
		}
		if doubt {
			if seq, found, lookErr := s.find(ctx, a); found || errors.Is(lookErr, events.ErrConflict) || errors.Is(lookErr, events.ErrLogIncomplete) {
				return seq, lookErr
			}
		}
		if !p.pause(ctx) {
			err = errors.Join(err, ctx.Err())
			if doubt {
				return 0, fmt.Errorf("%s: %w: %w", doing, events.ErrUnknownOutcome, err)
			}
			return 0, s.failed(doing, a.stream, err)
		}
	}
}

// find reads the commit that follows the expected one. It returns the sequence of ours,
// events.ErrConflict if it is another one, or found false if there is none: an earlier request may
// still arrive.
func (s *Store) find(ctx context.Context, a attempt) (seq uint64, found bool, err error) {
	all, err := call(ctx, s.links, func(ctx context.Context, c *esdb.Client) ([]*esdb.RecordedEvent, error) {
		return drain(c.ReadStream(ctx, a.stream, esdb.ReadStreamOptions{Direction: esdb.Forwards, From: esdb.Revision(a.at)}, 1))
	})
	switch {
	case codeOf(err) == esdb.ErrorCodeResourceNotFound:
		return 0, false, nil
	case err != nil:
		return 0, false, s.failed("looking for a commit", a.stream, err)
	case len(all) == 0:
		return 0, false, nil
	case all[0].EventNumber != a.at:
		return 0, false, s.deleted(a.stream, "was truncated")
	case all[0].EventID != a.event.EventID:
		return 0, false, events.ErrConflict
	case !bytes.Equal(all[0].Data, a.event.Data):
		return 0, false, fmt.Errorf("a commit has our id and another content: %w", events.ErrConflict)
	}
	seq, err = seqOf(all[0])
	return seq, err == nil, err
}

// Copy appends a commit of another log, unchanged, with the errors of Append. Its id is in body.
func (s *Store) Copy(ctx context.Context, stream events.StreamID, expected uint64, body []byte) (uint64, error) {
	name, err := streamName(Prefix, stream)
	if err != nil {
		return 0, err
	}
	meta, err := events.DecodeMeta(body)
	if err != nil {
		return 0, err
	}
	return s.put(ctx, name, expected, meta.Commit, body)
}
