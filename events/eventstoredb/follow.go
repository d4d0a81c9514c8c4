package eventstoredb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"github.com/credstream/credstream/events"
)

// The times and buffers of a subscription.
const (
	followBuffer = 256
	followPause  = 2 * time.Second // maximum pause between two subscriptions
	followStill  = 5 * time.Second // without a commit for this long, Follow compares the end of the log
	searchWindow = 512             // events that the server looks at between two checkpoints
	searchBack   = 256             // pages that are searched for a position that is not that of an event
)

// errStill means that the server does not send a commit that the log has.
var errStill = errors.New("the subscription does not deliver")

// Follow implements events.Store, by a subscription that the server filters. It survives lost
// connections and dropped subscriptions. It ends with events.ErrLogIncomplete if somebody deleted
// or truncated a stream of the log.
func (s *Store) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for wait := minBackOff; ctx.Err() == nil; wait = min(2*wait, followPause) {
			first, from, err := s.start(ctx, after)
			switch {
			case ctx.Err() != nil:
				return
			case err != nil && !isTransient(err):
				yield(events.Record{}, err)
				return
			case err != nil:
				s.log.Warn("cannot follow the log yet; will retry", "after", after, "error", err)
				_ = sleep(ctx, wait)
				continue
			}
			if first != nil && !s.yieldCommit(first, yield) {
				return
			}
			s.follow(ctx, from, max(after, from.at()), yield)
			return
		}
	}
}

// place is where a subscription begins: after an event, or at the start if it is zero.
type place esdb.Position

func (p place) at() uint64 { return p.Commit }

func (p place) position() esdb.AllPosition {
	if p.Commit == 0 {
		return esdb.Start{}
	}
	return esdb.Position(p)
}

// start finds where to subscribe for the commits above after. first is a commit that must come
// before.
func (s *Store) start(ctx context.Context, after uint64) (first *esdb.RecordedEvent, from place, err error) {
	if after == 0 {
		return nil, place{}, nil
	}
	e, err := s.at(ctx, after)
	if err != nil {
		return nil, place{}, err
	}
	if e != nil {
		return nil, place(e.Position), nil
	}
	if e, err = s.at(ctx, after+1); err != nil {
		return nil, place{}, err
	}
	if e != nil {
		return e, place(e.Position), nil
	}
	// The server refuses a position between two events: take the last one before it, if that is
	// near the end, and else the start.
	at := esdb.AllPosition(esdb.End{})
	for range searchBack {
		page, err := s.links.readAll(ctx, esdb.Backwards, at, maxPage)
		if err != nil {
			return nil, place{}, s.failed("following the log", "", err)
		}
		for _, e := range page {
			if at = e.Position; e.Position.Commit <= after {
				return nil, place(e.Position), nil
			}
		}
		if len(page) < maxPage {
			break
		}
	}
	return nil, place{}, nil
}

// follow yields the commits above after, from a position on, until ctx ends.
func (s *Store) follow(ctx context.Context, from place, after uint64, yield func(events.Record, error) bool) {
	for wait := minBackOff; ctx.Err() == nil; wait = min(2*wait, followPause) {
		for e, err := range s.subscribe(ctx, from, []string{Prefix, metaPrefix}, true) {
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.log.Debug("log follower interrupted; it resumes by itself", "error", err)
				break
			}
			wait = minBackOff
			if e.event == nil {
				from = e.reached(from)
				continue
			}
			from = place(e.event.Position)
			if err := s.checkEvent(ctx, e.event); err != nil {
				yield(events.Record{}, err)
				return
			}
			if strings.HasPrefix(e.event.StreamID, Prefix) && e.event.Position.Commit > after && !s.yieldCommit(e.event, yield) {
				return
			}
		}
		_ = sleep(ctx, wait)
	}
}

// checkEvent returns events.ErrLogIncomplete if e deletes or truncates a stream of the log, and
// this was not undone.
func (s *Store) checkEvent(ctx context.Context, e *esdb.RecordedEvent) error {
	switch name, meta := strings.CutPrefix(e.StreamID, "$$"); {
	case e.EventType == "$streamDeleted":
		return s.deleted(name, "was deleted")
	case meta && limited(e.Data):
		return s.checkStream(ctx, name)
	}
	return nil
}

// limited reports whether a stream's metadata lets the server remove its events.
func limited(metadata []byte) bool {
	var m struct {
		TruncateBefore uint64 `json:"$tb"`
		MaxAge         uint64 `json:"$maxAge"`
		MaxCount       uint64 `json:"$maxCount"`
	}
	return json.Unmarshal(metadata, &m) != nil || m.TruncateBefore > 0 || m.MaxAge > 0 || m.MaxCount > 0
}

// delivery is what a subscription delivers: an event, a checkpoint, or that it has caught up.
type delivery struct {
	event      *esdb.RecordedEvent
	checkpoint *esdb.Position
	live       bool
}

func (d delivery) reached(from place) place {
	if d.checkpoint != nil && d.checkpoint.Commit > from.Commit {
		return place(*d.checkpoint)
	}
	return from
}

// subscribe yields what $all has in streams with one of the prefixes, until ctx ends, or the
// subscription fails, which is its last element. watch compares it with the end of the log while
// nothing comes.
func (s *Store) subscribe(ctx context.Context, from place, prefixes []string, watch bool) iter.Seq2[delivery, error] {
	return func(yield func(delivery, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		deliveries := make(chan delivery, followBuffer)
		failed := make(chan error, 1)
		defer cancel()
		k, err := s.links.acquire(ctx)
		if err != nil {
			yield(delivery{}, err)
			return
		}
		go func() { // may outlive the subscription while the client connects, which ignores ctx
			err := pump(ctx, k.client, from, prefixes, deliveries)
			s.links.release(k, isLost(err))
			failed <- err
		}()
		still := time.NewTicker(followStill)
		defer still.Stop()
		withheld := uint64(0)
		for last := from.Commit; ; {
			select {
			case d := <-deliveries:
				still.Reset(followStill)
				if d.event != nil {
					last = d.event.Position.Commit
				}
				if !yield(d, nil) {
					return
				}
			case err := <-failed:
				for len(deliveries) > 0 {
					if !yield(<-deliveries, nil) {
						return
					}
				}
				yield(delivery{}, err)
				return
			case <-still.C:
				if !watch {
					continue
				}
				end, err := s.End(ctx)
				if err == nil && end > last && withheld == end {
					yield(delivery{}, errStill)
					return
				}
				withheld = 0
				if err == nil && end > last {
					withheld = end
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// pump receives from one subscription until it fails or ctx ends.
func pump(ctx context.Context, c *esdb.Client, from place, prefixes []string, to chan<- delivery) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errClient, p)
		}
	}()
	sub, err := c.SubscribeToAll(ctx, esdb.SubscribeToAllOptions{
		From: from.position(), MaxSearchWindow: searchWindow,
		Filter: &esdb.SubscriptionFilter{Type: esdb.StreamFilterType, Prefixes: prefixes},
	})
	if err != nil {
		return err
	}
	defer func() { _ = sub.Close() }()
	for {
		e := sub.Recv()
		var d delivery
		switch {
		case e.SubscriptionDropped != nil:
			return e.SubscriptionDropped.Error
		case e.EventAppeared != nil && e.EventAppeared.OriginalEvent() != nil:
			d.event = e.EventAppeared.OriginalEvent()
		case e.CheckPointReached != nil:
			d.checkpoint = e.CheckPointReached
		case e.CaughtUp != nil:
			d.live = true
		default:
			continue
		}
		select {
		case to <- d:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// scan is what the store knows of the installation's streams and of streams' metadata.
type scan struct {
	from   place
	system map[events.StreamID]struct{}
}

// rescan reads what was added to these streams since the last call. It returns
// events.ErrLogIncomplete if a stream was deleted or truncated.
func (s *Store) rescan(ctx context.Context) error {
	s.scanMu.Lock()
	defer s.scanMu.Unlock()
	if s.scan.system == nil {
		s.scan.system = map[events.StreamID]struct{}{}
	}
	ctx, cancel := context.WithTimeout(ctx, 3*exchangeTimeout)
	defer cancel()
	for p := newPacer(); ; {
		err := s.scanOnce(ctx)
		if err == nil || errors.Is(err, events.ErrLogIncomplete) || !p.pause(ctx) {
			if err != nil && !errors.Is(err, events.ErrLogIncomplete) {
				err = s.failed("reading the streams of the log", "", err)
			}
			return err
		}
	}
}

// scanOnce reads until the subscription has caught up. scanMu must be held.
func (s *Store) scanOnce(ctx context.Context) (damage error) {
	for d, err := range s.subscribe(ctx, s.scan.from, []string{Prefix + events.System + ".", metaPrefix}, false) {
		switch {
		case err != nil:
			return err
		case d.live:
			return damage
		case d.event == nil:
			s.scan.from = d.reached(s.scan.from)
			continue
		}
		if err := s.checkEvent(ctx, d.event); err != nil {
			if !errors.Is(err, events.ErrLogIncomplete) {
				return err
			}
			damage = err
		}
		if stream, err := parseStream(d.event.StreamID); err == nil {
			s.scan.system[stream] = struct{}{}
		}
		s.scan.from = place(d.event.Position)
	}
	return ctx.Err()
}
