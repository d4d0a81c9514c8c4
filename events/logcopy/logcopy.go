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

// commits yields the commits of a log from its start up to end, and ends.
func commits(ctx context.Context, s Source, end uint64) iter.Seq2[commit, error] {
	return func(yield func(commit, error) bool) {
		if end == 0 {
			return
		}
		for r, err := range s.Follow(ctx, 0) {
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
	for c, err := range commits(ctx, s, end) {
		if err != nil {
			return Sum{}, err
		}
		all.add(c.stream, c.body)
	}
	return all.sum(), nil
}

// Run appends to the target the commits that it does not have, up to the end that the source has
// now, and compares the two logs. It can be interrupted and run again: the target must hold the
// first commits of the source, or nothing. Nobody else may append to the target. progress is called
// after each commit with the numbers of compared and of appended ones.
func Run(ctx context.Context, from Source, to Target, progress func(compared, appended uint64)) (Sum, error) {
	end, err := from.End(ctx)
	if err != nil {
		return Sum{}, err
	}
	have, err := to.End(ctx)
	if err != nil {
		return Sum{}, err
	}
	existing, stop := iter.Pull2(commits(ctx, to, have))
	defer stop()
	source, last := newSummer(), map[events.StreamID]uint64{}
	var seq, appended uint64
	for c, err := range commits(ctx, from, end) {
		if err != nil {
			return Sum{}, err
		}
		source.add(c.stream, c.body)
		present, err, ok := existing()
		switch {
		case ok && err != nil:
			return Sum{}, err
		case ok && (present.stream != c.stream || !bytes.Equal(present.body, c.body)):
			return Sum{}, ErrDiffers
		case ok:
			seq = present.seq
		default:
			if seq, err = to.Copy(ctx, c.stream, last[c.stream], c.body); errors.Is(err, events.ErrConflict) {
				return Sum{}, fmt.Errorf("%w (%w)", ErrDiffers, err)
			} else if err != nil {
				return Sum{}, err
			}
			appended++
		}
		last[c.stream] = seq
		progress(source.n, appended)
	}
	if _, _, more := existing(); more {
		return Sum{}, ErrDiffers
	}
	if err := to.WaitDurable(ctx, seq); err != nil {
		return Sum{}, err
	}
	target, err := SumOf(ctx, to)
	if err != nil {
		return Sum{}, err
	}
	if want := source.sum(); target != want {
		return Sum{}, ErrNotEqual.Withf("After the copy the source has %d commits with hash %s, and the target %d with hash %s. Do not use the target.",
			want.Commits, want.SHA256, target.Commits, target.SHA256)
	}
	return target, nil
}
