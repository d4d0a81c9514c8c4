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

// ErrFeedRefused is returned by Follow for a key that may not follow the feed.
var ErrFeedRefused = fault.New(fault.Denied, "feed_refused", "The key may not subscribe to the changes of this tenant.")

// Follow yields every change of the tenant after the log sequence, in the order
// of the log, each once and none left out, and waits for more until ctx ends;
// then it ends without an error. After 0 it begins with the first. To go on
// later, remember the LogSeq of an event when the next one has another: events
// of one commit share it.
//
// It listens to the feed first, then asks events.changes for what came before,
// and does so again whenever the connection was away or the caller too slow for
// what came in. The key needs the permission credentials.get.
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

// followBuffer is the number of messages that wait for a slow caller; with more
// the log is asked instead.
const followBuffer = 4096

// follower is one listener to the feed.
type follower struct {
	subject string
	losses  func() uint64 // rises before the first message that comes after lost ones
	known   uint64        // losses the log was asked about
	live    chan *nats.Msg
	gap     chan struct{} // holds one when live messages were lost
	refused chan struct{} // holds one when the port refused the subscription
	locked  chan struct{} // holds one when the port does not let the key in any more
}

func (f *follower) missed() { raise(f.gap) }
func (f *follower) refuse() { raise(f.refused) }

func raise(flag chan struct{}) {
	select {
	case flag <- struct{}{}:
	default:
	}
}

// receive takes a message from the feed. When others before it were lost it
// says so first.
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

// errEnough ends attend for a caller who wants no more.
var errEnough = errors.New("the caller wants no more")

// listen listens to a subject until ctx ends, and returns nil then. First, and
// whenever messages may have been lost, it calls catchUp, which finds out what
// they said; between these it calls take with each message. An error of either
// ends it, but it waits for a service that is away once it has begun. It returns
// refused when the key may not listen to the subject, and ErrRefused when it is
// not known any more.
func (c *Conn) listen(ctx context.Context, subject string, refused error, catchUp func() error, take func(*nats.Msg) error) error {
	nc, err := c.listening(ctx)
	if err != nil {
		return unlessOver(ctx, err)
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
	if c.asking.refused() || c.hearing.refused() {
		return unlessOver(ctx, ErrRefused)
	}
	sub, err := nc.Subscribe(f.subject, f.receive)
	if err != nil {
		return fmt.Errorf("%w (%w)", ErrUnreachable, err)
	}
	defer func() { _ = sub.Unsubscribe() }() // fails when the connection is closed already
	closed := nc.StatusChanged(nats.CLOSED)
	defer nc.RemoveStatusListener(closed)

	begun := false
	f.missed() // what came before
	for ctx.Err() == nil {
		if len(f.locked) > 0 {
			return ErrRefused
		}
		// A gap goes before what waits in live, which may lie behind it.
		select {
		case <-f.gap:
			// Messages that wait are found out about too. They are dropped here, so
			// that they do not fill the buffer meanwhile.
			for len(f.live) > 0 {
				<-f.live
			}
			// The server knows of the subscription before it is asked for what came
			// before: the question goes another way.
			err := flush(ctx, nc)
			if err == nil {
				err = catchUp()
			}
			switch {
			case err == nil:
				begun = true
			case begun && retryable(err) && !nc.IsClosed():
				f.missed() // each question came with pauses already
			default:
				return unlessOver(ctx, err)
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
				continue // m may lie behind the gap; catchUp finds it
			}
			if err := take(m); err != nil {
				return unlessOver(ctx, err)
			}
		}
	}
	return nil
}

const flushPause = 100 * time.Millisecond // after a flush that failed

// flush returns when the server has heard everything that was sent.
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

// unlessOver is err, unless the caller has ended the listening.
func unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func (c *Conn) follow(ctx context.Context, after uint64, yield func(Event, error) bool) {
	last := place{after, math.MaxInt}
	give := func(e Event) error {
		if !e.place().after(last) {
			return nil
		}
		last = e.place()
		if !yield(e, nil) {
			return errEnough
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
			if err := give(e); err != nil {
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
		return give(e)
	}
	if err := c.listen(ctx, "credstream.events."+c.tenant+".>", ErrFeedRefused, catchUp, take); err != nil {
		yield(Event{}, err)
	}
}
