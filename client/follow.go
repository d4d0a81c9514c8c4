package client

import (
	"context"
	"fmt"
	"iter"
	"math"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/fault"
)

// ErrFeedRefused is returned by Follow for a key that may not follow the feed.
var ErrFeedRefused = fault.New(fault.Denied, "feed_refused", "The key may not follow the changes of this tenant.")

// Follow yields every change of the tenant after the log sequence, in the order
// of the log, each once and none left out, and waits for more until ctx ends;
// then it ends without an error. After 0 it begins with the first. To go on
// later, remember the LogSeq of an event when the next one has another: events
// of one commit share it.
//
// It listens to the feed first, then asks events.replay for what came before,
// and does so again whenever the connection was away or the caller too slow for
// what came in. The key needs the permission audit.read.
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
	page, err := c.replay(ctx, ReplayFilter{From: math.MaxInt64}, 1)
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

func (c *Conn) follow(ctx context.Context, after uint64, yield func(Event, error) bool) {
	f := &follower{
		subject: "credstream.events." + c.tenant + ".>",
		live:    make(chan *nats.Msg, followBuffer), gap: make(chan struct{}, 1), refused: make(chan struct{}, 1),
	}
	c.mu.Lock()
	c.followers[f] = struct{}{}
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.followers, f)
	}()
	f.losses = func() uint64 { return c.nc.Stats().Reconnects }
	sub, err := c.nc.Subscribe(f.subject, f.receive)
	if err != nil {
		yield(Event{}, fmt.Errorf("%w (%w)", ErrUnreachable, err))
		return
	}
	defer func() { _ = sub.Unsubscribe() }() // fails when the connection is closed already
	closed := c.nc.StatusChanged(nats.CLOSED)
	defer c.nc.RemoveStatusListener(closed)

	last, begun := place{after, math.MaxInt}, false
	f.missed() // what came before
	for {
		// A gap goes first: what waits in live may lie behind it.
		select {
		case <-f.gap:
			if !c.catchUp(ctx, f, &last, begun, yield) {
				return
			}
			begun = true
			continue
		default:
		}
		select {
		case <-ctx.Done():
			return
		case <-closed:
			yield(Event{}, fmt.Errorf("%w (%w)", ErrUnreachable, nats.ErrConnectionClosed))
			return
		case <-f.refused:
			yield(Event{}, ErrFeedRefused)
			return
		case <-f.gap:
			f.missed()
		case m := <-f.live:
			if len(f.gap) > 0 {
				continue // m may lie behind the gap; the log has it
			}
			e, err := readEvent(m)
			if err != nil {
				yield(Event{}, err)
				return
			}
			if !e.place().after(last) {
				continue
			}
			last = e.place()
			if !yield(e, nil) {
				return
			}
		}
	}
}

// catchUp yields what the log has after last, and reports whether to go on. Once
// begun, it waits for a service that is away.
func (c *Conn) catchUp(ctx context.Context, f *follower, last *place, begun bool, yield func(Event, error) bool) bool {
	// Messages that wait are in the log too. They are dropped here, so that they
	// do not fill the buffer meanwhile.
	for len(f.live) > 0 {
		<-f.live
	}
	// The commit of last may have more events than were yielded.
	for e, err := range c.Replay(ctx, ReplayFilter{From: max(last.seq, 1)}) {
		switch {
		case err != nil && ctx.Err() != nil:
			return false
		case begun && again(err) && !c.nc.IsClosed():
			f.missed() // each question came with pauses already
			return true
		case err != nil:
			yield(Event{}, err)
			return false
		case !e.place().after(*last):
			continue
		}
		*last = e.place()
		if !yield(e, nil) {
			return false
		}
	}
	return ctx.Err() == nil
}
