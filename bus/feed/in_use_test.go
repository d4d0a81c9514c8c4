package feed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/projections"
)

// usage writes uses into a log, by hand.
type usage struct {
	tb    testing.TB
	store events.Store
}

func (u usage) append(category, id string, e events.Event) uint64 {
	u.tb.Helper()
	stream := events.StreamID{Tenant: "acme", Category: category, ID: id}
	last, err := u.store.Last(context.Background(), stream)
	if err != nil {
		u.tb.Fatal(err)
	}
	meta := events.Meta{Tenant: "acme", Actor: events.Actor{Kind: "system", ID: "x"}, Command: events.NewID(), Time: time.Unix(1, 0), Via: "system"}
	seq, err := u.store.Append(context.Background(), stream, last, meta, e)
	if err != nil {
		u.tb.Fatal(err)
	}
	return seq
}

func (u usage) create(credential string) {
	u.tb.Helper()
	u.append("credential", credential, events.CredentialCreated{Component: "petstore", Keys: events.KeysVersion{Version: 1, Verification: events.Verification{Status: events.Verified}}})
}

func (u usage) use(credential, flow string, active bool) uint64 {
	u.tb.Helper()
	return u.append("credential", credential, events.CredentialUsed{Flow: flow, Revision: 1, Named: true, Active: active, Steps: []string{"s"}})
}

func (u usage) release(credential, flow string) uint64 {
	u.tb.Helper()
	return u.append("credential", credential, events.CredentialReleased{Flow: flow, Revision: 2})
}

// gate lets a follower of the log come only so far.
type gate struct {
	events.Store
	mu    sync.Mutex
	upTo  uint64
	moved chan struct{}
}

func newGate(store events.Store) *gate { return &gate{Store: store, moved: make(chan struct{})} }

func (g *gate) open(upTo uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.upTo = upTo
	close(g.moved)
	g.moved = make(chan struct{})
}

func (g *gate) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		for r, err := range g.Store.Follow(ctx, after) {
			for err == nil {
				g.mu.Lock()
				upTo, moved := g.upTo, g.moved
				g.mu.Unlock()
				if r.Seq <= upTo {
					break
				}
				select {
				case <-moved:
				case <-ctx.Done():
					return
				}
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// replica is the views of a log, their projector and the writer of the bucket.
type replica struct {
	tb    testing.TB
	views *projections.Views
	proj  *projections.Projector
	inUse *feed.InUse
	said  *bustest.LogBuffer
	path  string // of the views
}

func newReplica(tb testing.TB, js jetstream.JetStream, store events.Store) *replica {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "views.db")
	views, err := projections.OpenViews(path, projections.ViewsOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := views.Close(); err != nil {
			tb.Error(err)
		}
	})
	proj := projections.NewProjector(store, views, slog.New(slog.DiscardHandler))
	said := &bustest.LogBuffer{}
	return &replica{tb, views, proj, feed.NewInUse(js, views, proj, said.Logger()), said, path}
}

// run starts the parts; stop ends them.
func (r *replica) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	for _, part := range []func(context.Context) error{r.proj.Run, r.inUse.Run} {
		parts.Go(func() {
			if err := part(ctx); err != nil {
				r.tb.Error(err)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		parts.Wait()
	})
	r.tb.Cleanup(stop)
	return stop
}

// reached waits until the writer says that the bucket reflects the log up to seq.
func (r *replica) reached(seq uint64) {
	r.tb.Helper()
	bustest.Eventually(r.tb, fmt.Sprintf("the bucket to reflect %d", seq), func() bool { return r.inUse.Position() >= seq })
}

// wanted is what the bucket must hold.
func (r *replica) wanted() map[string]projections.InUse {
	r.tb.Helper()
	all := map[string]projections.InUse{}
	for after := uint64(0); ; {
		page, err := r.views.InUseChanges(context.Background(), after, 100)
		if err != nil {
			r.tb.Fatal(err)
		}
		if len(page) == 0 {
			return all
		}
		for _, e := range page {
			all[feed.InUseKey(e.Tenant, e.Kind, e.ID)] = e.Value
			after = e.Value.Seq
		}
	}
}

func held(tb testing.TB, js jetstream.JetStream) map[string]projections.InUse {
	tb.Helper()
	kv, err := js.KeyValue(context.Background(), streams.InUseBucket)
	if err != nil {
		tb.Fatal(err)
	}
	watcher, err := kv.WatchAll(context.Background())
	if err != nil {
		tb.Fatal(err)
	}
	defer watcher.Stop()
	all := map[string]projections.InUse{}
	for e := range watcher.Updates() {
		if e == nil {
			break
		}
		var value projections.InUse
		if err := jsonv2.Unmarshal(e.Value(), &value, jsonv2.RejectUnknownMembers(true)); err != nil || e.Operation() != jetstream.KeyValuePut {
			tb.Errorf("%s holds %s %q", e.Key(), e.Operation(), e.Value())
		}
		all[e.Key()] = value
	}
	return all
}

func inUseBucket(tb testing.TB, node *natsserver.Node) (jetstream.JetStream, jetstream.KeyValue) {
	tb.Helper()
	conn, err := node.Conn("in use")
	if err != nil {
		tb.Fatal(err)
	}
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncTimeout(streams.AckTimeout))
	if err != nil {
		tb.Fatal(err)
	}
	kv, err := js.CreateKeyValue(tb.Context(), feed.InUseConfig(1))
	if err != nil {
		tb.Fatal(err)
	}
	return js, kv
}

func TestInUseIndex(t *testing.T) {
	js, kv := inUseBucket(t, bustest.StartNode(t))
	store := memory.New(events.All())
	u := usage{t, store}
	u.create("c1")
	u.create("AAABcID5GBc= ü")
	r := newReplica(t, js, store)
	stop := r.run()
	r.reached(2)
	u.use("c1", "f1", false)
	last := u.use("c1", "f2", true)
	r.reached(last)
	entry, err := kv.Get(t.Context(), "acme.credential.c1")
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"seq":4,"total":2,"active":1,"flows":[{"id":"f2","active":true},{"id":"f1","active":false}]}`; string(entry.Value()) != want {
		t.Errorf("the value is %s, want %s", entry.Value(), want)
	}
	u.append("credential", "AAABcID5GBc= ü", events.CredentialUsed{Flow: "f1", Steps: []string{"s"}, Binding: "b", Until: time.Unix(1, 0)})
	u.append("oauth_client", "petstore", events.OAuthClientUsed{Flow: "f1", Revision: 1})
	u.release("c1", "f1")
	last = u.release("c1", "f2")
	r.reached(last)
	want := map[string]projections.InUse{
		"acme.credential.c1":                    {Seq: 8, Flows: []projections.InUseFlow{}},
		"acme.credential.=QUFBQmNJRDVHQmM9IMO8": {Seq: 5, Total: 1, Flows: []projections.InUseFlow{{ID: "f1", Reserved: true}}},
		"acme.oauth_client.petstore":            {Seq: 6, Total: 1, Flows: []projections.InUseFlow{{ID: "f1"}}},
	}
	if diff := cmp.Diff(want, held(t, js)); diff != "" {
		t.Error(diff)
	}

	// Another run on the same bucket writes nothing that is there.
	stop()
	before, err := kv.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh := newReplica(t, js, store)
	fresh.run()
	fresh.reached(last)
	info, err := js.Stream(t.Context(), "KV_"+streams.InUseBucket)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := info.CachedInfo().State.LastSeq, before.(*jetstream.KeyValueBucketStatus).StreamInfo().State.LastSeq; got != want {
		t.Errorf("the bucket was written up to %d, and then up to %d", want, got)
	}
}

// Whatever is found in the bucket at the start, it is as the views say then.
func TestInUseIsMended(t *testing.T) {
	js, kv := inUseBucket(t, bustest.StartNode(t))
	store := memory.New(events.All())
	u := usage{t, store}
	put := func(key, value string) {
		if _, err := kv.PutString(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	const other = `"total":1,"active":0,"flows":[{"id":"lost","active":false}]}`
	var last uint64
	for i := range 700 { // more than one page
		id := fmt.Sprint("c", i)
		u.create(id)
		last = u.use(id, "f", i%2 == 0)
		key := "acme.credential." + id
		switch i % 7 {
		case 0: // missing
		case 1:
			put(key, `{"seq":1,`+other)
		case 2:
			put(key, fmt.Sprintf(`{"seq":%d,`, last)+other) // of a commit that the log has lost and given to another
		case 3:
			put(key, `{"seq":99999,`+other) // ahead of the log
		case 4:
			put(key, "garbage")
		case 5:
			put(key, "x")
			if err := kv.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		case 6:
			put(key, fmt.Sprintf(`{"seq":%d,"total":1,"active":%d,"flows":[{"id":"f","active":%t}]}`, last, 1-i%2, i%2 == 0))
		}
	}
	put("acme.credential.unknown", `{"seq":3,`+other)
	put("acme.credential.unknown2", `{"seq":99999,"total":0,"active":0,"flows":[]}`)
	put("acme.credential.unknown3", `{}`)
	put("acme.credential.empty", `{"seq":2,"total":0,"active":0,"flows":[]}`)
	r := newReplica(t, js, store)
	r.run()
	r.reached(last)
	want := r.wanted()
	for _, id := range []string{"unknown", "unknown2", "unknown3"} {
		want["acme.credential."+id] = projections.InUse{Seq: last, Flows: []projections.InUseFlow{}}
	}
	want["acme.credential.empty"] = projections.InUse{Seq: 2, Flows: []projections.InUseFlow{}}
	if diff := cmp.Diff(want, held(t, js)); diff != "" || len(want) != 704 {
		t.Errorf("%d keys: %s", len(want), diff)
	}
	// What was emptied takes its first use.
	u.create("unknown2")
	last = u.use("unknown2", "f", true)
	r.reached(last)
	if got := held(t, js)["acme.credential.unknown2"]; got.Seq != last || got.Total != 1 {
		t.Errorf("%+v", got)
	}
}

// Two writers, one behind the other by any distance: no key ever goes backwards.
func TestTwoWritersOfOneBucket(t *testing.T) {
	js, _ := inUseBucket(t, bustest.StartNode(t))
	store := memory.New(events.All())
	u := usage{t, store}
	for c := range 5 {
		u.create(fmt.Sprint("c", c))
	}
	late := newGate(store)
	late.open(5)
	ahead, behind := newReplica(t, js, store), newReplica(t, js, late)
	ahead.run()
	behind.run()
	ahead.reached(5)
	behind.reached(5)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	consumer, err := js.OrderedConsumer(ctx, "KV_"+streams.InUseBucket, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan int, 1)
	go func() {
		at, n := map[string]uint64{}, 0
		for {
			m, err := messages.Next(jetstream.NextContext(ctx))
			if err != nil {
				seen <- n
				return
			}
			var value projections.InUse
			if err := jsonv2.Unmarshal(m.Data(), &value); err != nil || value.Seq <= at[m.Subject()] {
				t.Errorf("%s goes from %d to %s, %v", m.Subject(), at[m.Subject()], m.Data(), err)
			}
			at[m.Subject()] = value.Seq
			n++
		}
	}()
	var last uint64
	for i := range 600 {
		last = u.use(fmt.Sprint("c", i%5), fmt.Sprint("f", i%11), i%3 == 0)
		switch {
		case i%50 == 0:
			ahead.reached(last)
		case i%20 == 0:
			late.open(last - uint64(i%40)) // it overtakes, or stays behind
		}
	}
	ahead.reached(last)
	if diff := cmp.Diff(ahead.wanted(), held(t, js)); diff != "" {
		t.Error(diff)
	}
	late.open(last)
	behind.reached(last)
	if diff := cmp.Diff(behind.wanted(), held(t, js)); diff != "" {
		t.Error(diff)
	}
	cancel()
	messages.Stop()
	if n := <-seen; n < 20 {
		t.Errorf("saw %d writes only", n)
	}
}

// A bucket that is gone, and a server that starts again, cost time and no key.
func TestInUseGoesOn(t *testing.T) {
	node := bustest.StartNode(t)
	js, _ := inUseBucket(t, node)
	store := memory.New(events.All())
	u := usage{t, store}
	u.create("c1")
	u.create("c2")
	r := newReplica(t, js, store)
	r.run()
	r.reached(u.use("c1", "f", true))
	if err := js.DeleteKeyValue(t.Context(), streams.InUseBucket); err != nil {
		t.Fatal(err)
	}
	last := u.use("c2", "f", true)
	bustest.Eventually(t, "the writer to notice", func() bool { return strings.Contains(r.said.String(), "level=WARN") })
	if _, err := js.CreateKeyValue(t.Context(), feed.InUseConfig(1)); err != nil {
		t.Fatal(err)
	}
	r.reached(last)
	if diff := cmp.Diff(r.wanted(), held(t, js)); diff != "" {
		t.Error(diff)
	}
	stream, err := js.Stream(t.Context(), "KV_"+streams.InUseBucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context()); err != nil { // as a failed disk may do to what is not synced
		t.Fatal(err)
	}
	if err := node.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	bustest.Eventually(t, "the index to be whole again", func() bool {
		kv, err := js.KeyValue(t.Context(), streams.InUseBucket)
		if err != nil {
			return false
		}
		keys, err := kv.Keys(t.Context())
		return err == nil && len(keys) == 2
	})
	if err := r.inUse.Err(); err != nil {
		t.Errorf("the writer stands still: %v", err)
	}
}

// From an applied batch to the key that everybody sees.
func BenchmarkInUse(b *testing.B) {
	node, err := natsserver.StartNode(b.Context(), natsserver.NodeConfig{Dir: b.TempDir(), MinFree: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = node.Shutdown(context.Background()) })
	for _, flows := range []int{1, 1000} {
		b.Run(fmt.Sprint(flows, " flows"), func(b *testing.B) {
			js, kv := inUseBucket(b, node)
			defer js.DeleteKeyValue(context.Background(), streams.InUseBucket)
			store := memory.New(events.All())
			u := usage{b, store}
			u.create("c")
			for i := range flows {
				u.use("c", fmt.Sprint("f", i), false)
			}
			r := newReplica(b, js, store)
			applied := make(chan time.Time, 1)
			r.proj.OnApplied(func([]events.Record) {
				select {
				case applied <- time.Now():
				default:
				}
			})
			stop := r.run()
			defer stop()
			end, _ := store.End(b.Context())
			r.reached(end)
			watcher, err := kv.Watch(b.Context(), "acme.credential.c", jetstream.UpdatesOnly())
			if err != nil {
				b.Fatal(err)
			}
			defer watcher.Stop()
			select {
			case <-applied:
			default:
			}
			var sum, slowest time.Duration
			n := 0
			for b.Loop() {
				u.use("c", "f0", n%2 == 0)
				at := <-applied
				<-watcher.Updates()
				d := time.Since(at)
				sum += d
				slowest = max(slowest, d)
				n++
			}
			b.ReportMetric(float64(sum.Microseconds())/float64(n), "us-visible")
			b.ReportMetric(float64(slowest.Microseconds()), "us-slowest")
		})
	}
}

// A writer whose views cannot be read says so, and goes on once they were rebuilt.
func TestInUseGoesOnAfterDamagedViews(t *testing.T) {
	js, _ := inUseBucket(t, bustest.StartNode(t))
	u := usage{t, memory.New(events.All())}
	r := newReplica(t, js, u.store)
	u.create("c")
	first := u.use("c", "f1", true)
	if err := r.views.Rebuild(t.Context(), u.store, nil); err != nil { // into a file without a write-ahead log
		t.Fatal(err)
	}
	f, err := os.OpenFile(r.path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, 500_000), 4096)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	r.run()
	bustest.Eventually(t, "the writer to say what is wrong", func() bool { return r.inUse.Err() != nil })
	if err := r.views.Rebuild(t.Context(), u.store, nil); err != nil {
		t.Fatal(err)
	}
	r.reached(first)
	bustest.Eventually(t, "the writer to be well", func() bool { return r.inUse.Err() == nil })
	if diff := cmp.Diff(r.wanted(), held(t, js)); diff != "" {
		t.Error(diff)
	}
}
