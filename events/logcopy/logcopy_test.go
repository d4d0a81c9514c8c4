package logcopy_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/eventstoredb"
	"github.com/credstream/credstream/events/eventstoredb/esdbtest"
	"github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/logcopy"
	"github.com/credstream/credstream/events/storetest"
)

func openNATS(t *testing.T) *jetstream.Store {
	t.Helper()
	srv, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server does not start")
	}
	conn, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	s, err := jetstream.Open(t.Context(), jetstream.Config{Conn: conn, Registry: events.All()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func openESDB(t *testing.T) *eventstoredb.Store {
	t.Helper()
	s, err := eventstoredb.Open(t.Context(), eventstoredb.Config{URL: esdbtest.Start(t, esdbtest.Options{}).URL(), Registry: events.All()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func fill(t *testing.T, s events.Store, from, n int) {
	t.Helper()
	for i := from; i < from+n; i++ {
		stream := storetest.Credential("acme", fmt.Sprintf("c=%d", i%7))
		last, err := s.Last(t.Context(), stream)
		if err == nil {
			_, err = s.Append(t.Context(), stream, last, storetest.Meta("acme", fmt.Sprint(i)), events.CredentialRenamed{Name: fmt.Sprint(i)}, events.CredentialRenamed{Name: "again"})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func sum(t *testing.T, s logcopy.Source) logcopy.Sum {
	t.Helper()
	got, err := logcopy.SumOf(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// A log that goes from JetStream to EventStoreDB and back has the same hash, also when the copy is
// interrupted and the source has grown before it is resumed.
func TestRoundTrip(t *testing.T) {
	source, there, back := openNATS(t), openESDB(t), openNATS(t)
	fill(t, source, 0, 60)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := logcopy.Run(ctx, source, there, nil, func(_, appended uint64) {
		if appended == 25 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("an interrupted copy returns %v", err)
	}
	fill(t, source, 60, 5)
	appended := uint64(0)
	got, err := logcopy.Run(t.Context(), source, there, nil, func(_, n uint64) { appended = n })
	if err != nil {
		t.Fatal(err)
	}
	if want := sum(t, source); got != want || got.Commits != 65 {
		t.Errorf("the copy is %+v, want %+v", got, want)
	}
	if appended == 0 || appended > 65-25 {
		t.Errorf("the resumed copy appended %d commits", appended)
	}
	if got, err = logcopy.Run(t.Context(), there, back, nil, func(uint64, uint64) {}); err != nil || got != sum(t, source) {
		t.Errorf("the log that came back is %+v, %v", got, err)
	}
	// What came back continues as if it had never left.
	fill(t, back, 65, 7)
	if err := back.CheckWhole(t.Context()); err != nil {
		t.Error(err)
	}
}

// A target with another log is refused and stays as it is.
func TestOtherTarget(t *testing.T) {
	source, target := openNATS(t), openESDB(t)
	fill(t, source, 0, 3)
	fill(t, target, 0, 1)
	before := sum(t, target)
	if _, err := logcopy.Run(t.Context(), source, target, nil, func(uint64, uint64) {}); !errors.Is(err, logcopy.ErrDiffers) {
		t.Errorf("got %v", err)
	}
	if after := sum(t, target); after != before {
		t.Errorf("the target was changed: %+v, before %+v", after, before)
	}
	longer := openNATS(t)
	fill(t, longer, 0, 1)
	if _, err := logcopy.Run(t.Context(), openNATS(t), longer, nil, func(uint64, uint64) {}); !errors.Is(err, logcopy.ErrDiffers) {
		t.Errorf("a target that is longer: %v", err)
	}
}

// counted counts the commits that are read from a log.
type counted struct {
	logcopy.Target
	reads atomic.Int64
}

func (c *counted) Body(ctx context.Context, seq uint64) ([]byte, error) {
	c.reads.Add(1)
	return c.Target.Body(ctx, seq)
}

// A copy follows a source that is in use. When it is to finish, it reads only what was added since.
func TestFollow(t *testing.T) {
	from, to := openNATS(t), openESDB(t)
	fill(t, from, 0, 40)
	source, target := &counted{Target: from}, &counted{Target: to}
	finish, copied := make(chan struct{}), make(chan uint64, 100)
	type result struct {
		sum logcopy.Sum
		err error
	}
	done := make(chan result, 1)
	go func() {
		sum, err := logcopy.Run(t.Context(), source, target, finish, func(_, appended uint64) { copied <- appended })
		done <- result{sum, err}
	}()
	until := func(n uint64) {
		for n > 0 {
			select {
			case at := <-copied:
				if at == n {
					return
				}
			case r := <-done:
				t.Fatalf("the copy ended before it was to finish: %+v", r)
			}
		}
	}
	until(40)
	fill(t, from, 40, 5)
	until(45)
	close(finish)
	r := <-done
	if want := sum(t, from); r.err != nil || r.sum != want || want.Commits != 45 {
		t.Errorf("the copy is %+v, %v; want %+v", r.sum, r.err, want)
	}
	if got := sum(t, to); got != r.sum {
		t.Errorf("the target is %+v", got)
	}
	if s, tg := source.reads.Load(), target.reads.Load(); s != 45 || tg != 45 {
		t.Errorf("%d commits of the source and %d of the target were read, of 45", s, tg)
	}
}

// A commit that somebody else appends to the target, at any moment, is noticed.
func TestAnotherWriter(t *testing.T) {
	from, to := openNATS(t), openESDB(t)
	fill(t, from, 0, 20)
	_, err := logcopy.Run(t.Context(), from, to, nil, func(_, appended uint64) {
		if appended == 20 {
			fill(t, to, 100, 1)
		}
	})
	if !errors.Is(err, logcopy.ErrNotEqual) && !errors.Is(err, logcopy.ErrDiffers) {
		t.Errorf("got %v", err)
	}
}
