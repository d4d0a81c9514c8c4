package eventstoredb_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/eventstoredb"
	"github.com/credstream/credstream/events/eventstoredb/esdbtest"
	"github.com/credstream/credstream/events/storetest"
)

func open(t testing.TB, url string) *eventstoredb.Store {
	t.Helper()
	s, err := eventstoredb.Open(t.Context(), eventstoredb.Config{URL: url, Registry: events.All()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		db := esdbtest.Start(t, esdbtest.Options{})
		return storetest.Harness{Sparse: true, Store: open(t, db.URL()), Restart: func(t *testing.T) events.Store {
			db.Stop()
			if err := db.Resume(); err != nil {
				t.Fatal(err)
			}
			return open(t, db.URL())
		}}
	})
}

// What a server stored in its file is there after it was started again.
func TestFile(t *testing.T) {
	opts := esdbtest.Options{File: filepath.Join(t.TempDir(), "log")}
	db := esdbtest.Start(t, opts)
	stream := storetest.Credential("acme", "c")
	last := put(t, open(t, db.URL()), stream, 0, "1")
	db.Stop()
	s := open(t, esdbtest.Start(t, opts).URL())
	put(t, s, stream, last, "2")
	if got := follow(t, s, 0, 2); fmt.Sprint(got) != "[1 2]" {
		t.Errorf("the file holds %v", got)
	}
}

func put(t testing.TB, s events.Store, stream events.StreamID, expected uint64, name string) uint64 {
	t.Helper()
	seq, err := s.Append(t.Context(), stream, expected, storetest.Meta(stream.Tenant, name), events.CredentialRenamed{Name: name})
	if err != nil {
		t.Fatalf("append %s: %v", name, err)
	}
	return seq
}

// follow returns the names of the n commits after a sequence.
func follow(t testing.TB, s events.Store, after uint64, n int) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var names []string
	for r, err := range s.Follow(ctx, after) {
		if err != nil {
			t.Fatal(err)
		}
		if names = append(names, r.Event.(events.CredentialRenamed).Name); len(names) == n {
			break
		}
	}
	return names
}

// A server that is gone and comes back at its address is used again, even though the client
// closes for good when it finds no node.
func TestServerGoneAndBack(t *testing.T) {
	db := esdbtest.Start(t, esdbtest.Options{})
	s := open(t, db.URL())
	stream := storetest.Credential("acme", "c")
	first := put(t, s, stream, 0, "1")
	var got []string
	var following sync.WaitGroup
	ready := make(chan struct{})
	following.Go(func() {
		for r, err := range s.Follow(t.Context(), 0) {
			if err != nil {
				t.Error(err)
				return
			}
			got = append(got, r.Event.(events.CredentialRenamed).Name)
			if len(got) == 1 {
				close(ready)
			}
			if len(got) == 2 {
				return
			}
		}
	})
	<-ready
	db.Stop()
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := s.Append(short, stream, first, storetest.Meta("acme", "lost"), events.CredentialRenamed{Name: "lost"})
	if err == nil || errors.Is(err, events.ErrConflict) {
		t.Errorf("without a server an append returns %v", err)
	}
	var calls sync.WaitGroup
	for range 8 { // a client without a node ignores the context: the store does not
		calls.Go(func() {
			short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, err := s.Last(short, stream); err == nil {
				t.Error("a read without a server succeeds")
			}
		})
	}
	calls.Wait()
	if err := db.Resume(); err != nil {
		t.Fatal(err)
	}
	put(t, s, stream, first, "2")
	following.Wait()
	if fmt.Sprint(got) != "[1 2]" {
		t.Errorf("followed %v", got)
	}
}

// After the leader has changed, appends and reads go to the new one.
func TestLeaderChange(t *testing.T) {
	db := esdbtest.Start(t, esdbtest.Options{Nodes: 3})
	s := open(t, db.URL())
	stream := storetest.Credential("acme", "c")
	last := put(t, s, stream, 0, "0")
	for i := 1; i <= 4; i++ {
		db.Lead(i % 3)
		if seq, err := s.Last(t.Context(), stream); err != nil || seq != last {
			t.Fatalf("Last is %d, %v; want %d", seq, err, last)
		}
		last = put(t, s, stream, last, fmt.Sprint(i))
	}
	if got := follow(t, s, 0, 5); fmt.Sprint(got) != "[0 1 2 3 4]" {
		t.Errorf("followed %v", got)
	}
}

// An append whose answer is lost is stored once, and its caller gets its sequence.
func TestLostAnswers(t *testing.T) {
	db := esdbtest.Start(t, esdbtest.Options{})
	s := open(t, db.URL())
	stream := storetest.Credential("acme", "c")
	last := uint64(0)
	for i := range 3 {
		db.LoseAnswers(1, nil)
		seq := put(t, s, stream, last, fmt.Sprint(i))
		if at, err := s.Last(t.Context(), stream); err != nil || at != seq {
			t.Fatalf("append returned %d, the stream ends at %d, %v", seq, at, err)
		}
		last = seq
	}
	if n := len(db.Events()); n != 3 {
		t.Errorf("%d events are stored, want 3", n)
	}
}

// Another process appends after an append whose answer is lost, or in the place of one that never
// arrived. Each caller gets what became of its own commit.
func TestLostAnswerAndAnotherWriter(t *testing.T) {
	db := esdbtest.Start(t, esdbtest.Options{})
	s, other := open(t, db.URL()), open(t, db.URL())
	stream := storetest.Credential("acme", "c")
	first := put(t, s, stream, 0, "1")
	var second, third uint64
	db.LoseAnswers(1, func() {
		var err error
		if second, err = other.Last(t.Context(), stream); err == nil {
			third, err = other.Append(t.Context(), stream, second, storetest.Meta("acme", "3"), events.CredentialRenamed{Name: "3"})
		}
		if err != nil {
			t.Error(err)
		}
	})
	if seq := put(t, s, stream, first, "2"); seq != second || third <= second {
		t.Errorf("the append returns %d; it is stored as %d, and the other one as %d", seq, second, third)
	}
	db.LoseRequests(1, func() {
		if _, err := other.Append(t.Context(), stream, third, storetest.Meta("acme", "4"), events.CredentialRenamed{Name: "4"}); err != nil {
			t.Error(err)
		}
	})
	if _, err := s.Append(t.Context(), stream, third, storetest.Meta("acme", "5"), events.CredentialRenamed{Name: "5"}); !errors.Is(err, events.ErrConflict) {
		t.Errorf("an append that lost its place returns %v", err)
	}
	if got := follow(t, s, 0, 4); fmt.Sprint(got) != "[1 2 3 4]" {
		t.Errorf("followed %v", got)
	}
}

// A caller that does not wait for a slow append learns later that it is stored.
func TestSlowAppend(t *testing.T) {
	db := esdbtest.Start(t, esdbtest.Options{})
	s := open(t, db.URL())
	db.SlowAppends(time.Minute)
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := s.Append(short, storetest.Credential("acme", "c"), 0, storetest.Meta("acme", "c"), events.CredentialRenamed{Name: "n"})
	unsettled, ok := errors.AsType[*events.UnsettledError](err)
	if !ok || !errors.Is(err, events.ErrUnknownOutcome) {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
	db.SlowAppends(0)
	if stored, err := unsettled.Settle(t.Context()); err != nil || !stored {
		t.Errorf("settled as %v, %v", stored, err)
	}
	if n := len(db.Events()); n != 1 {
		t.Errorf("%d events are stored, want 1", n)
	}
}

// A dropped subscription resumes without a gap or a repetition.
func TestDroppedSubscription(t *testing.T) {
	db := esdbtest.Start(t, esdbtest.Options{})
	s := open(t, db.URL())
	stream := storetest.Credential("acme", "c")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	last, n := put(t, s, stream, 0, "0"), 0
	for r, err := range s.Follow(ctx, 0) {
		if err != nil || r.Event.(events.CredentialRenamed).Name != fmt.Sprint(n) {
			t.Fatalf("got %v, %v; want %d", r.Event, err, n)
		}
		if n++; n == 6 {
			break
		}
		db.DropSubscriptions()
		last = put(t, s, stream, last, fmt.Sprint(n))
	}
	if n != 6 {
		t.Errorf("followed %d commits", n)
	}
}

// A stream that somebody deletes, truncates or limits is damage: the log never drops a commit.
func TestDeletedStreams(t *testing.T) {
	for name, harm := range map[string]func(*esdb.Client, string) error{
		"deleted": func(c *esdb.Client, stream string) error {
			_, err := c.DeleteStream(t.Context(), stream, esdb.DeleteStreamOptions{ExpectedRevision: esdb.Any{}})
			return err
		},
		"tombstoned": func(c *esdb.Client, stream string) error {
			_, err := c.TombstoneStream(t.Context(), stream, esdb.TombstoneStreamOptions{ExpectedRevision: esdb.Any{}})
			return err
		},
		"truncated": func(c *esdb.Client, stream string) error {
			var m esdb.StreamMetadata
			m.SetTruncateBefore(1)
			_, err := c.SetStreamMetadata(t.Context(), stream, esdb.AppendToStreamOptions{ExpectedRevision: esdb.Any{}}, m)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := esdbtest.Start(t, esdbtest.Options{})
			s := open(t, db.URL())
			stream := storetest.Credential("acme", "a-b")
			last := put(t, s, stream, 0, "1")
			last = put(t, s, stream, last, "2")
			if err := s.CheckWhole(t.Context()); err != nil {
				t.Fatal(err)
			}
			c := client(t, db)
			if err := harm(c, "credstream-acme.credential.a-b"); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var followed error
			for _, err := range s.Follow(ctx, last) {
				followed = err
			}
			_, appended := s.Append(t.Context(), stream, 0, storetest.Meta("acme", "c"), events.CredentialRenamed{Name: "n"})
			for what, err := range map[string]error{"follow": followed, "check": s.CheckWhole(t.Context())} {
				if !errors.Is(err, events.ErrLogIncomplete) {
					t.Errorf("%s: %v", what, err)
				}
			}
			if appended == nil {
				t.Error("the stream begins again")
			}
		})
	}
}

// A log that lost its end is damage.
func TestLostEnd(t *testing.T) {
	db := esdbtest.Start(t, esdbtest.Options{})
	s := open(t, db.URL())
	stream := storetest.Credential("acme", "c")
	put(t, s, stream, put(t, s, stream, 0, "1"), "2")
	db.Forget(1)
	if err := s.CheckWhole(t.Context()); !errors.Is(err, events.ErrLogCutShort) {
		t.Errorf("CheckWhole: %v", err)
	}
	if err := s.Reload(t.Context()); !errors.Is(err, events.ErrLogCutShort) {
		t.Errorf("Reload: %v", err)
	}
}

// A position between commits, which the server refuses, is as good as any.
func TestPositionBetweenCommits(t *testing.T) {
	s := open(t, esdbtest.Start(t, esdbtest.Options{}).URL())
	stream := storetest.Credential("acme", "c")
	first := put(t, s, stream, 0, "1")
	second := put(t, s, stream, first, "2")
	put(t, s, stream, second, "3")
	for after, want := range map[uint64]string{7: "[1 2]", first + 2: "[2 3]", second - 3: "[2 3]"} {
		if got := follow(t, s, after, 2); fmt.Sprint(got) != want {
			t.Errorf("after %d came %v, want %s", after, got, want)
		}
	}
}

func TestIDs(t *testing.T) {
	s := open(t, esdbtest.Start(t, esdbtest.Options{}).URL())
	put(t, s, storetest.Credential("acme", "c"), 0, "1")
	for _, id := range []string{"a", "b-c"} {
		if _, err := s.Append(t.Context(), events.StreamID{Tenant: events.System, Category: "tenant", ID: id}, 0, storetest.Meta("acme", "c"), events.TenantRegistered{Name: id}); err != nil {
			t.Fatal(err)
		}
		if ids, err := s.IDs(t.Context(), events.System, "tenant"); err != nil || len(ids) == 0 {
			t.Fatalf("tenants %v, %v", ids, err)
		}
	}
	if ids, err := s.IDs(t.Context(), events.System, "tenant"); err != nil || len(ids) != 2 {
		t.Errorf("tenants %v, %v", ids, err)
	}
}

func TestURL(t *testing.T) {
	for _, url := range []string{"", "nats://localhost", "esdb://", "esdb://admin:secret-7@localhost?tls=false", "esdb://admin:secret-7@localhost?tls=maybe"} {
		_, err := eventstoredb.Open(t.Context(), eventstoredb.Config{URL: url, Registry: events.All()})
		if !errors.Is(err, eventstoredb.ErrURL) {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func client(t testing.TB, db *esdbtest.Server) *esdb.Client {
	t.Helper()
	cfg, err := esdb.ParseConnectionString(db.URL())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Logger = esdb.NoopLogging()
	c, err := esdb.NewClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
