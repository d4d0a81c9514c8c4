package jetstream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
)

// ErrGap ends a Follow that misses a sequence: the log never deletes a commit, so one is lost.
var ErrGap = errors.New("jetstream: the log has a gap")

// The buffers of a Follow.
const (
	pullMessages = 4096     // messages per pull
	pullBytes    = 16 << 20 // bytes per pull
	rawBuffer    = 1024     // messages waiting to be decoded
	chunkCommits = 256      // maximum number of commits per fsync and chunk
	chunkBuffer  = 4        // chunks waiting for the reader
	orphanLife   = time.Minute
	followPause  = 2 * time.Second // maximum pause between two attempts to start
	followStill  = 5 * time.Second // without a commit for this long, Follow compares the end of the log
)

// errWithheld ends a Follow if the server does not deliver a commit that the log has.
var errWithheld = errors.New("jetstream: the server does not send the commits that it holds")

// commit is a decoded commit. Its records are shared by all followers, who must not change them.
type commit struct {
	seq  uint64
	recs []events.Record
	size int // bytes of the message
}

// chunk is a run of commits, or the error that ends it.
type chunk struct {
	commits []commit
	err     error
}

// Follow implements events.Store. It ends with an error if a commit cannot be decoded, or
// exists but is not delivered; with ErrGap if one is missing or cannot be read; and with
// ErrLogCutShort if the log ends before a durable commit. It survives lost connections and
// servers that refuse for a while. If after is beyond the end of the log, it waits for the log
// to get there: compare a checkpoint with End first.
//
// All followers near the end of the log share one reader, and therefore its records, which they
// must not change.
func (s *Store) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		t := s.joinTail()
		defer s.leaveTail(t)
		deliver := func(c commit) bool {
			for _, r := range c.recs {
				if r.Index == 0 && ctx.Err() != nil || !yield(r, nil) {
					return false
				}
			}
			after = c.seq
			return true
		}
		for {
			commits, err := t.after(ctx, after)
			switch {
			case errors.Is(err, errBehindTail):
				for c, err := range s.read(ctx, after) {
					if err != nil {
						yield(events.Record{}, err)
						return
					}
					if !deliver(c) {
						return
					}
					if t.holds(after) {
						break
					}
				}
				if ctx.Err() != nil {
					return
				}
			case ctx.Err() != nil:
				return
			case err != nil:
				yield(events.Record{}, err)
				return
			}
			for _, c := range commits {
				if !deliver(c) {
					return
				}
			}
		}
	}
}

// read yields the durable commits after a sequence, with a consumer of its own, until ctx ends.
// Follow says how it fails.
func (s *Store) read(ctx context.Context, after uint64) iter.Seq2[commit, error] {
	return func(yield func(commit, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		raw := make(chan natsjs.Msg, rawBuffer)
		chunks := make(chan chunk, chunkBuffer)
		stop, err := s.consume(ctx, after, raw)
		for wait := minBackOff; err != nil && !errors.Is(err, nats.ErrConnectionClosed) && ctx.Err() == nil; wait = min(2*wait, followPause) {
			s.log.Warn("cannot follow the log yet; will retry", "after", after, "error", err)
			select {
			case <-time.After(wait):
				stop, err = s.consume(ctx, after, raw)
			case <-ctx.Done():
			}
		}
		if err != nil {
			over := ctx.Err() != nil
			cancel()
			if !over {
				yield(commit{}, unavailable(fmt.Sprintf("following the log after %d", after), err))
			}
			return
		}
		var decoding sync.WaitGroup
		decoding.Go(func() { s.decode(ctx, after, raw, chunks) })
		defer func() {
			cancel()
			stop()
			decoding.Wait()
		}()
		still := time.NewTicker(followStill)
		defer still.Stop()
		withheld := uint64(0) // a commit that exists but was not delivered
		for last := after; ; {
			var c chunk
			select {
			case c = <-chunks:
				still.Reset(followStill)
			case <-still.C:
				missed, err := s.missed(ctx, last)
				if err == nil && missed != 0 && missed == withheld {
					err = fmt.Errorf("following the log after %d: %w", last, errWithheld)
				}
				if err != nil && ctx.Err() == nil {
					yield(commit{}, err)
					return
				}
				withheld = missed
				continue
			case <-ctx.Done():
				return
			}
			if n := len(c.commits); n > 0 {
				last = c.commits[n-1].seq
				s.durable.saw(last) // so that the next fsync includes all of them
			}
			for _, done := range c.commits {
				if ctx.Err() != nil {
					return
				}
				if err := s.durable.wait(ctx, done.seq); err != nil {
					if ctx.Err() == nil {
						yield(commit{}, err)
					}
					return
				}
				if !yield(done, nil) {
					return
				}
			}
			if c.err != nil {
				yield(commit{}, c.err)
				return
			}
		}
	}
}

// missed returns the commit after last if the log has one that was not delivered, otherwise 0.
// It returns ErrGap if that commit is missing or cannot be read, and ErrLogCutShort if the log
// lost its end: the server then delivers nothing, without an error.
func (s *Store) missed(ctx context.Context, last uint64) (uint64, error) {
	durable := s.Durable()
	at, err := s.state(ctx, stateQuestion{}, 0)
	switch {
	case err != nil: // unreachable, or electing a leader; Follow continues when it is back
		return 0, nil //nolint:nilerr // see above
	case at.LastSeq < durable:
		return 0, CutShort(durable)
	case at.LastSeq <= last:
		return 0, nil
	}
	m, err := s.get(ctx, last+1)
	switch {
	case err != nil:
		return 0, nil //nolint:nilerr // see above
	case m == nil:
		return 0, fmt.Errorf("%w: commit %d of %d is missing or cannot be read", ErrGap, last+1, at.LastSeq)
	}
	return m.seq, nil
}

// consume makes the server deliver the log above after into raw. stop ends that and returns
// after the last delivery; cancel ctx before calling it.
func (s *Store) consume(ctx context.Context, after uint64, raw chan<- natsjs.Msg) (stop func(), err error) {
	consumer, err := s.follow.OrderedConsumer(ctx, Stream, natsjs.OrderedConsumerConfig{
		DeliverPolicy:     natsjs.DeliverByStartSequencePolicy,
		OptStartSeq:       after + 1,
		InactiveThreshold: orphanLife,
	})
	if err != nil {
		return nil, err
	}
	messages, err := consumer.Consume(func(m natsjs.Msg) {
		select {
		case raw <- m:
		case <-ctx.Done():
		}
	}, natsjs.PullMaxMessagesWithBytesLimit(pullMessages, pullBytes),
		natsjs.PullExpiry(10*time.Second),
		natsjs.PullHeartbeat(time.Second),
		natsjs.ConsumeErrHandler(func(_ natsjs.ConsumeContext, err error) {
			s.log.Debug("log follower interrupted; it resumes by itself", "error", err)
		}))
	if err != nil {
		return nil, err
	}
	return func() {
		messages.Stop()
		<-messages.Closed()
		if info := consumer.CachedInfo(); info != nil && s.cfg.Follow.IsConnected() { // otherwise the server deletes it after orphanLife
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerTimeout)
			defer cancel()
			if err := s.follow.DeleteConsumer(clean, Stream, info.Name); err != nil && !errors.Is(err, natsjs.ErrConsumerNotFound) {
				s.log.Debug("finished consumer not deleted", "consumer", info.Name, "error", err)
			}
		}
	}, nil
}

// decode converts messages to chunks until ctx is done or one is invalid. A chunk has all
// messages that arrived while the one before it was delivered.
func (s *Store) decode(ctx context.Context, after uint64, raw <-chan natsjs.Msg, chunks chan<- chunk) {
	next := after + 1
	for {
		var c chunk
		var m natsjs.Msg
		select {
		case m = <-raw:
		case <-ctx.Done():
			return
		}
	fill:
		for n := 1; ; n++ {
			var recs []events.Record
			if recs, c.err = s.decodeOne(m, after, next); c.err != nil {
				break
			}
			if len(recs) > 0 {
				c.commits = append(c.commits, commit{seq: next, recs: recs, size: len(m.Data())})
				next++
			}
			if n == chunkCommits {
				break
			}
			select {
			case m = <-raw:
			default:
				break fill
			}
		}
		select {
		case chunks <- c:
		case <-ctx.Done():
			return
		}
		if c.err != nil {
			return
		}
	}
}

// decodeOne decodes the commit whose sequence must be want. It skips commits up to after: if
// asked to start beyond the end of the stream, the server starts at the end.
func (s *Store) decodeOne(m natsjs.Msg, after, want uint64) ([]events.Record, error) {
	meta, err := m.Metadata()
	if err != nil {
		return nil, fmt.Errorf("reading commit %d: %w", want, err)
	}
	seq := meta.Sequence.Stream
	if seq <= after {
		return nil, nil
	}
	if seq != want {
		return nil, fmt.Errorf("%w: %d where %d belongs", ErrGap, seq, want)
	}
	msg, err := readMessage(m.Subject(), seq, m.Headers(), m.Data())
	if err != nil {
		return nil, err
	}
	s.recent.followed(msg.subject, seq, msg.prev)
	return msg.records(s.cfg.Registry)
}
