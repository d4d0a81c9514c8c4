package jetstream_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
)

// Many write and read few streams: Last never says less than what an Append has
// returned before, to anybody.
func TestLastOfTheOnlyWriter(t *testing.T) {
	n := startNode(t, t.TempDir())
	s := openStore(t, jetstream.Config{Conn: n.connect(t), OnlyWriter: true})
	const streams, writers, commits = 3, 4, 60
	var acked [streams]struct {
		sync.Mutex
		seq uint64
	}
	var work sync.WaitGroup
	for i := range streams {
		stream := storetest.Credential("acme", fmt.Sprint(i))
		least := func() uint64 {
			acked[i].Lock()
			defer acked[i].Unlock()
			return acked[i].seq
		}
		for range writers {
			work.Go(func() {
				for done := 0; done < commits; {
					before := least()
					last, err := s.Last(t.Context(), stream)
					if err != nil || last < before {
						t.Errorf("last is %d, %v, after %d was acknowledged", last, err, before)
						return
					}
					seq, err := s.Append(t.Context(), stream, last, storetest.Meta("acme", "c"), renamed("n"))
					if errors.Is(err, events.ErrConflict) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
					acked[i].Lock()
					acked[i].seq = max(acked[i].seq, seq)
					acked[i].Unlock()
					done++
				}
			})
		}
		work.Go(func() { // who loads a stream asks the server for its last commit
			for range commits {
				before := least()
				var last uint64
				for rec, err := range s.Stream(t.Context(), stream, before) {
					if err != nil {
						t.Error(err)
						return
					}
					last = rec.Seq
				}
				if now, err := s.Last(t.Context(), stream); err != nil || now < max(last, before) {
					t.Errorf("last is %d, %v, after %d was read", now, err, max(last, before))
					return
				}
			}
		})
	}
	work.Wait()
}

// After an append of which nobody knows whether it was stored, the server is asked.
func TestLastAfterAnUnknownOutcome(t *testing.T) {
	n := startNode(t, t.TempDir())
	w := &wire{}
	s := openStore(t, jetstream.Config{Conn: n.connectWire(t, w), OnlyWriter: true})
	stream := storetest.Credential("acme", "a")
	first := appendTo(t, s, stream, 0, "1")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.cutAt(`"stream":"CREDSTREAM_LOG"`, "", cancel) // it is stored, and the answer is lost
	_, err := s.Append(ctx, stream, first, storetest.Meta("acme", "c"), renamed("2"))
	if !errors.Is(err, events.ErrUnknownOutcome) {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
	last, err := s.Last(t.Context(), stream)
	if err != nil || last != first+1 {
		t.Fatalf("last is %d, %v, want %d", last, err, first+1)
	}
	if next := appendTo(t, s, stream, last, "3"); next != last+1 {
		t.Errorf("the next commit is %d", next)
	}
	if last, err := s.Last(t.Context(), stream); err != nil || last != first+2 {
		t.Errorf("last is %d, %v, want %d", last, err, first+2)
	}
}

// A store that is the only writer keeps the contract too.
func TestStoreOnlyWriter(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		n := startNode(t, t.TempDir())
		return storetest.Harness{Store: openStore(t, jetstream.Config{Conn: n.connect(t), OnlyWriter: true})}
	})
}

// Who is told of a commit by Follow and then asks for the last one is never told of
// an older one, though the writer may not have heard of its own yet.
func TestLastAfterFollow(t *testing.T) {
	n := startNode(t, t.TempDir())
	s := openStore(t, jetstream.Config{Conn: n.connect(t), OnlyWriter: true})
	const streams, commits = 8, 50
	var writers sync.WaitGroup
	for i := range streams {
		stream := storetest.Credential("acme", fmt.Sprint(i))
		writers.Go(func() {
			for last := uint64(0); ; {
				seq, err := s.Append(t.Context(), stream, last, storetest.Meta("acme", "c"), renamed("n"))
				if err != nil {
					t.Error(err)
					return
				}
				if last = seq; last > streams*commits {
					return
				}
			}
		})
	}
	defer writers.Wait()
	for rec, err := range s.Follow(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		last, err := s.Last(t.Context(), rec.Stream)
		if err != nil || last < rec.Seq {
			t.Fatalf("last of %s is %d, %v, after %d was followed", rec.Stream, last, err, rec.Seq)
		}
		if rec.Seq == streams*commits {
			return
		}
	}
}
