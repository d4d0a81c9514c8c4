package logcopy_test

import (
	"context"
	"errors"
	"fmt"
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
	_, err := logcopy.Run(ctx, source, there, func(_, appended uint64) {
		if appended == 25 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("an interrupted copy returns %v", err)
	}
	fill(t, source, 60, 5)
	appended := uint64(0)
	got, err := logcopy.Run(t.Context(), source, there, func(_, n uint64) { appended = n })
	if err != nil {
		t.Fatal(err)
	}
	if want := sum(t, source); got != want || got.Commits != 65 {
		t.Errorf("the copy is %+v, want %+v", got, want)
	}
	if appended == 0 || appended > 65-25 {
		t.Errorf("the resumed copy appended %d commits", appended)
	}
	if got, err = logcopy.Run(t.Context(), there, back, func(uint64, uint64) {}); err != nil || got != sum(t, source) {
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
	if _, err := logcopy.Run(t.Context(), source, target, func(uint64, uint64) {}); !errors.Is(err, logcopy.ErrDiffers) {
		t.Errorf("got %v", err)
	}
	if after := sum(t, target); after != before {
		t.Errorf("the target was changed: %+v, before %+v", after, before)
	}
	longer := openNATS(t)
	fill(t, longer, 0, 1)
	if _, err := logcopy.Run(t.Context(), openNATS(t), longer, func(uint64, uint64) {}); !errors.Is(err, logcopy.ErrDiffers) {
		t.Errorf("a target that is longer: %v", err)
	}
}
