// Package logcopy copies a log from one store to another and compares them.
package logcopy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"iter"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

var (
	// ErrDiffers refuses a target that holds another log.
	ErrDiffers = fault.New(fault.Precondition, "log_copy_differs",
		"The target has a commit that the source does not have at this place, so it is not a copy of it. Choose an empty target.")
	// ErrNotEqual means that the logs differ after the copy.
	ErrNotEqual = fault.New(fault.Unavailable, "log_copy_unequal",
		"The target is not equal to the source after the copy. Do not use it.")
)

// Source is a log to read.
type Source interface {
	Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error]
	End(ctx context.Context) (uint64, error)
	// Body returns the stored form of the commit at seq.
	Body(ctx context.Context, seq uint64) ([]byte, error)
}

// Target is a log to which commits are appended unchanged.
type Target interface {
	Source
	Copy(ctx context.Context, stream events.StreamID, expected uint64, body []byte) (uint64, error)
	WaitDurable(ctx context.Context, seq uint64) error
}

// Sum is the number of commits in a log and the SHA-256 over them: over the stream and the stored
// form of each, in log order, length-prefixed. It does not depend on the store.
type Sum struct {
	Commits uint64 `json:"commits"`
	SHA256  string `json:"sha256"`
}

type summer struct {
	n uint64
	h hash.Hash
}

func newSummer() *summer { return &summer{h: sha256.New()} }

func (s *summer) add(stream events.StreamID, body []byte) {
	s.n++
	_, _ = s.h.Write(events.LengthPrefixed(stream.Tenant, stream.Category, stream.ID, string(body))) // never fails
}

func (s *summer) sum() Sum { return Sum{s.n, hex.EncodeToString(s.h.Sum(nil))} }

// commit is a stored commit.
type commit struct {
	stream events.StreamID
	seq    uint64
	body   []byte
}

var errLost = errors.New("logcopy: a commit that the log delivered cannot be read")

// commits yields the commits of a log above after up to end, and ends.
func commits(ctx context.Context, s Source, after, end uint64) iter.Seq2[commit, error] {
	return func(yield func(commit, error) bool) {
		if end <= after {
			return
		}
		for r, err := range s.Follow(ctx, after) {
			if err != nil {
				yield(commit{}, err)
				return
			}
			if !r.Last() {
				continue
			}
			body, err := s.Body(ctx, r.Seq)
			if err == nil && body == nil {
				err = fmt.Errorf("commit %d: %w", r.Seq, errLost)
			}
			if !yield(commit{r.Stream, r.Seq, body}, err) || err != nil || r.Seq >= end {
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(commit{}, err)
		}
	}
}

// SumOf reads a log from its start to its end.
func SumOf(ctx context.Context, s Source) (Sum, error) {
	end, err := s.End(ctx)
	if err != nil {
		return Sum{}, err
	}
	all := newSummer()
	for c, err := range commits(ctx, s, 0, end) {
		if err != nil {
			return Sum{}, err
		}
		all.add(c.stream, c.body)
	}
	return all.sum(), nil
}

// lookEvery is the time between two looks for new commits of the source.
const lookEvery = 200 * time.Millisecond

// Run appends to the target the commits that it does not have, and compares the two logs: each commit
// of the target is compared with that of the source, or read back after it was appended. It can be
// interrupted and run again: the target must hold the first commits of the source, or nothing.
// Nobody else may append to the target.
//
// Without finish it ends where the source ended when it began. With finish it follows the source
// until finish is closed, and ends where the source ends then: only what was added since the last
// look is left to do, so a service that uses the source need not be stopped for longer.
//
// progress is called after each commit with the numbers of compared and of appended ones.
func Run(ctx context.Context, from Source, to Target, finish <-chan struct{}, progress func(compared, appended uint64)) (Sum, error) {
	have, err := to.End(ctx)
	if err != nil {
		return Sum{}, err
	}
	existing, stop := iter.Pull2(commits(ctx, to, 0, have))
	defer stop()
	r := run{
		from: from, to: to, existing: existing, progress: progress,
		source: newSummer(), target: newSummer(), last: map[events.StreamID]uint64{},
	}
	for finishing := false; !finishing; {
		select {
		case <-finish:
			finishing = true
		default:
			finishing = finish == nil
		}
		if err := r.round(ctx); err != nil {
			return Sum{}, err
		}
		if finishing {
			break
		}
		select {
		case <-finish:
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return Sum{}, ctx.Err()
		}
	}
	end, err := to.End(ctx)
	if err != nil {
		return Sum{}, err
	}
	if source, target := r.source.sum(), r.target.sum(); target != source || end != r.verified {
		return Sum{}, ErrNotEqual.Withf("After the copy the source has %d commits with hash %s, and the target %d with hash %s; it ends at sequence %d, and the copy at %d. Do not use the target.",
			source.Commits, source.SHA256, target.Commits, target.SHA256, end, r.verified)
	}
	return r.target.sum(), nil
}

// run is a copy in progress.
type run struct {
	from     Source
	to       Target
	existing func() (commit, error, bool) // what the target held when the run began
	progress func(compared, appended uint64)

	source, target *summer
	read           uint64                     // sequence in the source that was read last
	written        uint64                     // sequence in the target that belongs to it
	verified       uint64                     // sequence in the target up to which target has read it
	last           map[events.StreamID]uint64 // last sequences of the target's streams
	appended       uint64
}

// round copies up to the end that the source has now, and reads back what was appended.
func (r *run) round(ctx context.Context) error {
	end, err := r.from.End(ctx)
	if err != nil {
		return err
	}
	for c, err := range commits(ctx, r.from, r.read, end) {
		if err != nil {
			return err
		}
		if err := r.take(ctx, c); err != nil {
			return err
		}
	}
	if r.appended == 0 {
		_, err, longer := r.existing()
		if err != nil {
			return err
		}
		if longer {
			return ErrDiffers
		}
	}
	if r.written == 0 {
		return nil
	}
	if err := r.to.WaitDurable(ctx, r.written); err != nil {
		return err
	}
	for c, err := range commits(ctx, r.to, r.verified, r.written) {
		if err != nil {
			return err
		}
		r.target.add(c.stream, c.body)
		r.verified = c.seq
	}
	return nil
}

// take compares a commit of the source with that of the target in its place, or appends it.
func (r *run) take(ctx context.Context, c commit) error {
	present, err, ok := r.existing()
	switch {
	case err != nil:
		return err
	case ok && (present.stream != c.stream || !bytes.Equal(present.body, c.body)):
		return ErrDiffers
	case ok:
		r.written, r.verified = present.seq, present.seq
		r.target.add(present.stream, present.body)
	default:
		r.written, err = r.to.Copy(ctx, c.stream, r.last[c.stream], c.body)
		if errors.Is(err, events.ErrConflict) {
			return fmt.Errorf("%w (%w)", ErrDiffers, err)
		}
		if err != nil {
			return err
		}
		r.appended++
	}
	r.source.add(c.stream, c.body)
	r.read, r.last[c.stream] = c.seq, r.written
	r.progress(r.source.n, r.appended)
	return nil
}
