package client

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/fault"
)

// ErrFeedRefused is returned by Follow if the key may not follow the feed.
var ErrFeedRefused = fault.New(fault.Denied, "feed_refused", "The key may not subscribe to the changes of this tenant.")

// Follow yields every change of the tenant after the log sequence, in log
// order, exactly once and without gaps, and waits for more until ctx ends;
// then it ends without an error. After 0 it begins with the first. To resume
// later, remember the LogSeq of an event once the next one has another LogSeq: events
// of one commit share it.
//
// It subscribes to the feed first, then queries events.changes for earlier events,
// and does so again after each reconnect and whenever the caller was too slow for
// the incoming messages. The key needs the permission credentials.get.
func (c *Conn) Follow(ctx context.Context, after uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		c.follow(ctx, after, yield)
	}
}

// Tail yields the changes from now on, as Follow does.
func (c *Conn) Tail(ctx context.Context) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		after, err := c.end(ctx)
		if err != nil {
			if ctx.Err() == nil {
				yield(Event{}, err)
			}
			return
		}
		c.follow(ctx, after, yield)
	}
}

// end is the log's last sequence.
func (c *Conn) end(ctx context.Context) (uint64, error) {
	page, err := c.changes(ctx, math.MaxInt64, 1)
	if err != nil || page.End > 0 {
		return page.End, err
	}
	status, err := c.ViewsStatus(ctx)
	return status.End, err
}

// followBuffer is the number of messages that are buffered for a slow caller; beyond it
// they are dropped and read from the log.
const followBuffer = 4096

// follower is one subscriber to the feed.
type follower struct {
	subject string
	losses  func() uint64 // increases before the first message after a gap
	known   uint64        // value of losses at the last query of the log
	live    chan *nats.Msg
	gap     chan struct{} // holds one token when live messages were lost
	refused chan struct{} // holds one token when the server refused the subscription
	locked  chan struct{} // holds one token when the server no longer accepts the key
}

func (f *follower) missed() { raise(f.gap) }
func (f *follower) refuse() { raise(f.refused) }

func raise(flag chan struct{}) {
	select {
	case flag <- struct{}{}:
	default:
	}
}

// receive takes a message from the feed. If earlier messages were lost it
// signals the gap first.
func (f *follower) receive(m *nats.Msg) {
	if n := f.losses(); n != f.known {
		f.known = n
		f.missed()
	}
	select {
	case f.live <- m:
	default:
		f.missed()
	}
}

// errStopped ends listen after the caller has stopped the iteration.
var errStopped = errors.New("the caller stopped the iteration")

// listen subscribes to a subject until ctx ends; then it returns nil. First, and whenever messages
// may have been lost, it calls catchUp, which reads the missed ones; otherwise it calls take with
// each message. An error of either ends it. It survives times when the service is unreachable. It
// returns refused if the key may not subscribe to the subject, and ErrRefused if the key is no
// longer known.
func (c *Conn) listen(ctx context.Context, subject string, refused error, catchUp func() error, take func(*nats.Msg) error) error {
	nc, err := c.listening(ctx)
	if err != nil {
		return unlessDone(ctx, err)
	}
	f := &follower{
		subject: subject, losses: func() uint64 { return nc.Stats().Reconnects },
		live: make(chan *nats.Msg, followBuffer), gap: make(chan struct{}, 1), refused: make(chan struct{}, 1),
		locked: make(chan struct{}, 1),
	}
	c.mu.Lock()
	c.followers[f] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.followers, f)
	}()
	if c.requestLogins.refused() || c.feedLogins.refused() {
		return unlessDone(ctx, ErrRefused)
	}
	sub, err := nc.Subscribe(f.subject, f.receive)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrUnreachable, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails when the connection is closed already
	closed := nc.StatusChanged(nats.CLOSED)
	defer nc.RemoveStatusListener(closed)

	begun := false
	f.missed() // the earlier events
	for ctx.Err() == nil {
		if len(f.locked) > 0 {
			return ErrRefused
		}
		// A gap is handled before the messages in live, which may come after it.
		select {
		case <-f.gap:
			// catchUp also covers the waiting messages. They are dropped here, so
			// that they do not fill the buffer meanwhile.
			for len(f.live) > 0 {
				<-f.live
			}
			// The server must know the subscription before the query, which uses
			// another connection.
			err := flush(ctx, nc)
			if err == nil {
				err = catchUp()
			}
			switch {
			case err == nil:
				begun = true
			case begun && retryable(err) && !nc.IsClosed():
				f.missed() // each query was already retried with pauses
			default:
				return unlessDone(ctx, err)
			}
			continue
		default:
		}
		select {
		case <-ctx.Done():
		case <-closed:
			return fmt.Errorf("%w (%w)", ErrUnreachable, nats.ErrConnectionClosed)
		case <-f.refused:
			return refused
		case <-f.locked:
			return ErrRefused
		case <-f.gap:
			f.missed()
		case m := <-f.live:
			if len(f.gap) > 0 {
				continue // m may come after the gap; catchUp reads it
			}
			if err := take(m); err != nil {
				return unlessDone(ctx, err)
			}
		}
	}
	return nil
}

const flushPause = 100 * time.Millisecond // after a flush that failed

// flush returns when the server has received everything that was sent.
func flush(ctx context.Context, nc *nats.Conn) error {
	bounded, cancel := context.WithTimeout(ctx, natsCallTime)
	defer cancel()
	err := nc.FlushWithContext(bounded)
	if err == nil {
		return nil
	}
	select {
	case <-time.After(flushPause):
	case <-ctx.Done():
	}
	return fmt.Errorf("%w (%w)", ErrUnreachable, err)
}

// unlessDone returns err, or nil if the caller has cancelled.
func unlessDone(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, errStopped) {
		return nil
	}
	return err
}

func (c *Conn) follow(ctx context.Context, after uint64, yield func(Event, error) bool) {
	last := position{after, math.MaxInt}
	yieldNew := func(e Event) error {
		if !e.position().after(last) {
			return nil
		}
		last = e.position()
		if !yield(e, nil) {
			return errStopped
		}
		return nil
	}
	catchUp := func() error {
		// The commit of last may have more events than were yielded.
		page := func(from uint64) (replayPage, error) { return c.changes(ctx, from, replayLimit) }
		for e, err := range pages(max(last.seq, 1), page) {
			if err != nil {
				return err
			}
			if err := yieldNew(e); err != nil {
				return err
			}
		}
		return nil
	}
	take := func(m *nats.Msg) error {
		e, err := readEvent(m)
		if err != nil {
			return err
		}
		return yieldNew(e)
	}
	if err := c.listen(ctx, "credstream.events."+c.tenant+".>", ErrFeedRefused, catchUp, take); err != nil {
		yield(Event{}, err)
	}
}
