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

// ErrGap ends a Follow that did not find the next sequence: nothing is ever
// deleted from the log, so a commit is lost.
var ErrGap = errors.New("jetstream: the log has a gap")

// How much a Follow takes at once.
const (
	pullMessages = 4096     // messages asked for ahead
	pullBytes    = 16 << 20 // and their size in bytes at most
	rawBuffer    = 1024     // messages waiting to be decoded
	chunkCommits = 256      // commits that wait for one fsync and travel together at most
	chunkBuffer  = 4        // chunks waiting for the reader
	orphanLife   = time.Minute
	followPause  = 2 * time.Second // between two attempts to begin, at most
	followStill  = 5 * time.Second // without a commit, after which the log is asked whether there is one
)

// errWithheld ends a Follow that is not sent what the log holds.
var errWithheld = errors.New("jetstream: the server does not send the commits that it holds")

// chunk is a run of whole commits, or the error that ends it.
type chunk struct {
	recs []events.Record
	last uint64 // sequence of the last commit
	err  error
}

// Follow implements events.Store. It ends with an error when a commit is not
// understood, or is held and not sent, with ErrGap when one is missing or cannot be
// read, and with ErrLogCutShort when the log ends before what was durable; it survives
// lost connections and servers that refuse for a while.
// An after beyond the end of the log waits for the log to get there: compare a
// checkpoint with End before trusting it.
func (s *Store) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		raw := make(chan natsjs.Msg, rawBuffer)
		chunks := make(chan chunk, chunkBuffer)
		stop, err := s.consume(ctx, after, raw)
		for wait := firstPause; err != nil && !errors.Is(err, nats.ErrConnectionClosed) && ctx.Err() == nil; wait = min(2*wait, followPause) {
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
				yield(events.Record{}, unavailable(fmt.Sprintf("following the log after %d", after), err))
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
		withheld := uint64(0) // the commit that did not come though it is there
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
					yield(events.Record{}, err)
					return
				}
				withheld = missed
				continue
			case <-ctx.Done():
				return
			}
			last = max(last, c.last)
			s.durable.saw(c.last) // so that the next fsync serves them all
			for _, r := range c.recs {
				if r.Index == 0 {
					if ctx.Err() != nil {
						return
					}
					if err := s.durable.wait(ctx, r.Seq); err != nil {
						if ctx.Err() == nil {
							yield(events.Record{}, err)
						}
						return
					}
				}
				if !yield(r, nil) {
					return
				}
			}
			if c.err != nil {
				yield(events.Record{}, c.err)
				return
			}
		}
	}
}

// missed is the commit after last where the log holds one that has not come, else 0. It
// returns ErrGap when that commit is gone or cannot be read, and ErrLogCutShort when the
// log has lost its end: the server sends nothing then, and says nothing either.
func (s *Store) missed(ctx context.Context, last uint64) (uint64, error) {
	durable := s.Durable()
	at, err := s.state(ctx, stateQuestion{}, 0)
	switch {
	case err != nil: // it is away, or chooses a leader; Follow continues when it is back
		return 0, nil //nolint:nilerr // see there
	case at.LastSeq < durable:
		return 0, CutShort(durable)
	case at.LastSeq <= last:
		return 0, nil
	}
	m, err := s.get(ctx, last+1)
	switch {
	case err != nil:
		return 0, nil //nolint:nilerr // as above
	case m == nil:
		return 0, fmt.Errorf("%w: commit %d of %d is missing or cannot be read", ErrGap, last+1, at.LastSeq)
	}
	return m.seq, nil
}

// consume has the server send the log above after into raw. stop ends that and
// returns when nothing comes any more; ctx must be done by then.
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
		if info := consumer.CachedInfo(); info != nil && s.cfg.Follow.IsConnected() { // else it dies after orphanLife
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWait)
			defer cancel()
			if err := s.follow.DeleteConsumer(clean, Stream, info.Name); err != nil && !errors.Is(err, natsjs.ErrConsumerNotFound) {
				s.log.Debug("finished consumer not deleted", "consumer", info.Name, "error", err)
			}
		}
	}, nil
}

// decode turns messages into chunks of records until ctx ends or one is not as
// it must be. A chunk is what has come when the one before it is on its way.
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
				c.recs, c.last = append(c.recs, recs...), next
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

// decodeOne reads the commit whose sequence must be want. It passes over what is
// not above after: the server starts at the end when it is asked to start beyond it.
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
