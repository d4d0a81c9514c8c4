package app

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/eventstoredb/esdbtest"
)

// onEventStoreDB begins the names of the tests that run a second time, with the log in a server
// that speaks the protocol of EventStoreDB. CREDSTREAM_TEST_EVENT_STORE=esdb has every test of this
// package use one.
const onEventStoreDB = "TestOnEventStoreDB/"

var eventStores struct {
	sync.Mutex
	urls map[string]string // by data folder
}

// eventStoreOf is the URL of the event store that belongs to a data folder; "" is JetStream.
func eventStoreOf(t testing.TB, data string) string {
	t.Helper()
	if !strings.HasPrefix(t.Name(), onEventStoreDB) && os.Getenv("CREDSTREAM_TEST_EVENT_STORE") != "esdb" {
		return ""
	}
	eventStores.Lock()
	defer eventStores.Unlock()
	if eventStores.urls == nil {
		eventStores.urls = map[string]string{}
	}
	url := eventStores.urls[data]
	if url == "" {
		url = esdbtest.Start(t, esdbtest.Options{}).URL()
		eventStores.urls[data] = url
	}
	return url
}

// commitSeqs lists the sequences of the commits in the log.
func commitSeqs(t testing.TB, s events.Store) (seqs []uint64) {
	t.Helper()
	end, err := s.End(t.Context())
	must(t, err)
	for r, err := range s.Follow(t.Context(), 0) {
		must(t, err)
		if r.Last() {
			seqs = append(seqs, r.Seq)
		}
		if r.Last() && r.Seq == end {
			break
		}
	}
	return seqs
}

func listedSeqs(seqs []uint64) string { return strings.Trim(fmt.Sprint(seqs), "[]") }

// The whole service, with every change of its log in the event store. The server outlives the
// processes that are killed.
func TestOnEventStoreDB(t *testing.T) {
	t.Run("life of a credential", TestLifeOfACredential)
	t.Run("killed", TestKillLoop) // make test-esdb: more tests, and 20 kills
}

// A service whose log is in JetStream does not begin a second one in an empty event store.
func TestLogElsewhere(t *testing.T) {
	data := t.TempDir()
	bring(t, data).stop()
	cfg := Config{
		Data: data, HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", AdminKey: adminKey, Durability: "group", LogFormat: "json", LogLevel: "info",
		EventStore: esdbtest.Start(t, esdbtest.Options{}).URL(),
	}
	p, err := start(t.Context(), cfg, os.Stderr)
	if err == nil {
		p.close()
	}
	if !errors.Is(err, errLogElsewhere) {
		t.Errorf("the start ended with %v", err)
	}
}

// The log moves from JetStream to the event store: the credentials are there, and the feed goes on
// without a gap or a repetition. The read models are rebuilt.
func TestMoveLog(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	var before, after idSeq
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "name": "before", "keys": map[string]string{"apiKey": "k"}}, &before))
	within(t, "the feed has it", func() bool { return u.feed.Position() >= before.Seq })
	fed := feedIDs(t, u)
	u.stop()
	url := esdbtest.Start(t, esdbtest.Options{}).URL()
	sum, err := CopyLog(t.Context(), LogLocation{URL: data}, LogLocation{URL: url}, nil, func(uint64, uint64) {})
	must(t, err)
	if again, err := SumLog(t.Context(), LogLocation{URL: data}); err != nil || again != sum {
		t.Fatalf("the source is %+v, %v; the copy %+v", again, err, sum)
	}
	for _, file := range []string{"views.db", "views.db-wal", "views.db-shm", "high-water.json"} {
		_ = os.Remove(filepath.Join(data, file))
	}
	u = bring(t, data, func(cfg *Config) { cfg.EventStore = url })
	must(t, u.command("credential.rename", "", map[string]any{"id": before.ID, "name": "after"}, &after))
	within(t, "the feed has it", func() bool { return u.feed.Position() >= after.Seq })
	if err := u.integrity.Err(); err != nil {
		t.Error(err)
	}
	now := feedIDs(t, u)
	if len(now) != len(fed)+1 || !slices.Equal(now[:len(fed)], fed) {
		t.Errorf("the feed was %v and is %v", fed, now)
	}
	u.stop()
	back := t.TempDir()
	if returned, err := CopyLog(t.Context(), LogLocation{URL: url}, LogLocation{URL: back}, nil, func(uint64, uint64) {}); err != nil || returned.Commits != sum.Commits+1 {
		t.Errorf("the log that came back is %+v, %v", returned, err)
	}
}

type idSeq struct {
	ID  string `json:"id"`
	Seq uint64 `json:"seq"`
}

// feedIDs lists the ids of the events in the feed.
func feedIDs(t *testing.T, u *up) (ids []string) {
	t.Helper()
	conn, err := u.nats.Conn("test")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	stream, err := js.Stream(t.Context(), streams.FeedStream)
	must(t, err)
	info, err := stream.Info(t.Context())
	must(t, err)
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		must(t, err)
		ids = append(ids, m.Header.Get("ce-id"))
	}
	return ids
}
