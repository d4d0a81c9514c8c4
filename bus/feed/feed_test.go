package feed_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/projections"
)

// fill appends n commits of one or two events, some of them not public.
func fill(t *testing.T, store events.Store, n int) (public []string) {
	t.Helper()
	for i := range n {
		stream := events.StreamID{Tenant: "acme", Category: "credential", ID: events.NewID()}
		evs := []events.Event{events.CredentialRenamed{Name: fmt.Sprint(i)}}
		switch i % 3 {
		case 1:
			evs = append(evs, events.CredentialRenamed{Name: fmt.Sprint(i, " again")})
		case 2:
			evs = append(evs, events.SecretAbandoned{SecretID: "s"})
		}
		meta := events.Meta{Tenant: "acme", Actor: events.Actor{Kind: "key", ID: "k"}, Command: events.NewID(), Time: time.Unix(1, 0), Via: "http"}
		seq, err := store.Append(t.Context(), stream, 0, meta, evs...)
		if err != nil {
			t.Fatal(err)
		}
		recs, err := store.Commit(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range recs {
			if m, ok := projections.Public(r); ok {
				public = append(public, m.ID)
			}
		}
	}
	return public
}

// told runs the feed until it has told n events and lists them all.
func told(t *testing.T, js jetstream.JetStream, store events.Store, n int) (ids []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	writer := feed.NewFeed(js, store, 1, slog.New(slog.DiscardHandler))
	ran := make(chan error, 1)
	go func() { ran <- writer.Run(ctx) }()
	stream, err := js.Stream(ctx, streams.FeedStream)
	if err != nil {
		t.Fatal(err)
	}
	// By their sequences, as they stand: a consumer that starts over may tell of some again.
	for seq, end := uint64(0), time.Now().Add(20*time.Second); len(ids) < n; {
		info, err := stream.Info(ctx)
		if err != nil || time.Now().After(end) {
			t.Fatalf("after %d of %d messages: %v", len(ids), n, err)
		}
		for seq = max(seq+1, info.State.FirstSeq) - 1; seq < info.State.LastSeq && len(ids) < n; {
			seq++
			m, err := stream.GetMsg(ctx, seq)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue // taken away
			}
			if err != nil {
				t.Fatalf("message %d: %v", seq, err)
			}
			ids = append(ids, m.Header.Get("ce-id"))
		}
	}
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestFeedWriter(t *testing.T) {
	node := bustest.StartNode(t)
	conn, err := node.Conn("feed")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	cfg := feed.Config(1)
	cfg.DenyDelete = false // the test tears messages out
	stream, err := js.CreateStream(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(events.All())
	want := fill(t, store, 50)
	if diff := cmp.Diff(want, told(t, js, store, len(want))); diff != "" {
		t.Fatalf("the feed (-want +got):\n%s", diff)
	}

	// It goes on where it stopped.
	want = append(want, fill(t, store, 50)...)
	if diff := cmp.Diff(want, told(t, js, store, len(want))); diff != "" {
		t.Fatalf("the feed, resumed (-want +got):\n%s", diff)
	}

	remove := func(seqs ...uint64) {
		for _, seq := range seqs {
			if err := stream.DeleteMsg(t.Context(), seq); err != nil {
				t.Fatal(err)
			}
		}
	}
	last := uint64(len(want))
	// What is missing at the end is told again.
	remove(last, last-1)
	if diff := cmp.Diff(want, told(t, js, store, len(want))); diff != "" {
		t.Fatalf("the feed after its end was lost (-want +got):\n%s", diff)
	}
	// That leaves a gap in the sequences, which is no gap in the events.
	if info, err := stream.Info(t.Context()); err != nil || info.State.FirstSeq != 1 || info.State.NumDeleted != 2 {
		t.Fatalf("the feed was written anew without need: %+v, %v", info.State, err)
	}
	if diff := cmp.Diff(want, told(t, js, store, len(want))); diff != "" {
		t.Fatalf("the feed with a gap of sequences (-want +got):\n%s", diff)
	}
	// An event missing between others, or at the start, has it written anew.
	for _, seqs := range [][]uint64{{7, 8, 9}, nil} {
		if seqs == nil {
			info, err := stream.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			seqs = []uint64{info.State.FirstSeq}
		}
		remove(seqs...)
		var got []string
		for deadline := time.Now().Add(20 * time.Second); ; {
			if got = told(t, js, store, len(want)-len(seqs)); cmp.Equal(want[:len(got)], got) || time.Now().After(deadline) {
				break
			}
		}
		if diff := cmp.Diff(want, told(t, js, store, len(want))); diff != "" {
			t.Fatalf("the feed after it was torn (-want +got):\n%s", diff)
		}
	}
}

// Two writers at once: one is refused each time, and every event stands once.
func TestFeedWithTwoWriters(t *testing.T) {
	node := bustest.StartNode(t)
	conn, err := node.Conn("feed")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), feed.Config(1))
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(events.All())
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ran := make(chan error, 2)
	for range 2 {
		go func() { ran <- feed.NewFeed(js, store, 1, slog.New(slog.DiscardHandler)).Run(ctx) }()
	}
	want := fill(t, store, 300)
	got := told(t, js, store, len(want))
	cancel()
	for range 2 {
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the feed (-want +got):\n%s", diff)
	}
	// From the first message on: what one of them had told twice would have been written anew.
	if info, err := stream.Info(t.Context()); err != nil || info.State.Msgs != uint64(len(want)) || info.State.FirstSeq != 1 {
		t.Errorf("the feed holds %d messages of %d events, from %d on: %v", info.State.Msgs, len(want), info.State.FirstSeq, err)
	}
}

// Another writer has told an event once more, behind the back of one that has nothing to
// write. The next event finds the feed longer than it was left, and the feed is mended.
func TestFeedWithAForeignMessage(t *testing.T) {
	node := bustest.StartNode(t)
	conn, err := node.Conn("feed")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), feed.Config(1))
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(events.All())
	ctx, cancel := context.WithCancel(t.Context())
	writer, ran := feed.NewFeed(js, store, 1, slog.New(slog.DiscardHandler)), make(chan error, 1)
	go func() { ran <- writer.Run(ctx) }()
	want := fill(t, store, 3)
	ids := func() (ids []string) {
		info, err := stream.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
			if m, err := stream.GetMsg(t.Context(), seq); err == nil { // else it is purged
				ids = append(ids, m.Header.Get("ce-id"))
			}
		}
		return ids
	}
	bustest.Eventually(t, "the feed to be written", func() bool { return cmp.Equal(want, ids()) })
	m, err := stream.GetMsg(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	again := &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}
	again.Header.Del(nats.MsgIdHdr)
	again.Header.Del(nats.ExpectedLastSeqHdr)
	if _, err := js.PublishMsg(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	want = append(want, fill(t, store, 3)...)
	bustest.Eventually(t, "the feed to be mended", func() bool { return cmp.Equal(want, ids()) })
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

// tell appends one commit of every type of event there is and returns the ids of
// those that an audience reads, with their types, in the order of the log.
func tell(t *testing.T, store events.Store) (changes, audit []string) {
	t.Helper()
	for _, typ := range events.All().Types() {
		category, _, _ := strings.Cut(typ.Name, ".")
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "key", ID: "k"}, Command: events.NewID(), Time: time.Unix(1, 0), Via: "http"}
		stream := events.StreamID{Tenant: "default", Category: category, ID: events.NewID()}
		seq, err := store.Append(t.Context(), stream, 0, meta, reflect.Zero(typ.GoType()).Interface())
		if err != nil {
			t.Fatal(err)
		}
		recs, err := store.Commit(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		m, public := projections.Public(recs[0])
		if !public {
			continue
		}
		audit = append(audit, m.Type+" "+m.ID)
		if typ.Audience == events.Changes {
			changes = append(changes, m.Type+" "+m.ID)
		}
	}
	return changes, audit
}

// pullAll reads what a tenant's consumer holds, as a client does.
func pullAll(t *testing.T, nc *nats.Conn, stream, name string, n int) (got []string) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := js.Consumer(t.Context(), stream, name)
	if err != nil {
		t.Fatal(err)
	}
	for len(got) < n {
		m, err := consumer.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil {
			t.Fatalf("%s after %d of %d: %v", name, len(got), n, err)
		}
		if err := m.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
		got = append(got, m.Headers().Get("ce-type")+" "+m.Headers().Get("ce-id"))
	}
	if info, err := consumer.Info(t.Context()); err != nil || info.NumPending > 0 {
		t.Errorf("%s holds %d more: %v", name, info.NumPending, err)
	}
	return got
}

// Every type of event reaches its audience and nobody else, by plain subscription
// and by consumer, also from the feed of a version that told everybody everything.
func TestAudiences(t *testing.T) {
	node := bustest.StartNode(t)
	js := bustest.ServiceJS(t, node)
	store := memory.New(events.All())
	changes, audit := tell(t, store)

	old, err := js.CreateStream(t.Context(), feed.Config(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), feed.AuditConfig(1)); err != nil {
		t.Fatal(err)
	}
	bustest.ServePulls(t, node)
	// As an earlier version wrote it.
	if _, err := old.CreateConsumer(t.Context(), jetstream.ConsumerConfig{Durable: "audit-default", AckPolicy: jetstream.AckExplicitPolicy}); err != nil {
		t.Fatal(err)
	}
	end, err := store.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= end; seq++ {
		recs, err := store.Commit(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		m, public := projections.Public(recs[0])
		if !public {
			continue
		}
		msg := nats.NewMsg("credstream.events" + strings.TrimPrefix(m.AuditSubject, "credstream.audit"))
		for _, h := range m.Headers() {
			msg.Header[h[0]] = []string{h[1]}
		}
		msg.Data = m.Data
		if _, err := js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}

	plain := map[string]*nats.Subscription{}
	for _, key := range []string{"engine-key", "auditor-key"} {
		nc, _ := bustest.Connect(t, node, key)
		sub, err := nc.SubscribeSync(map[string]string{"engine-key": "credstream.events.default.>", "auditor-key": "credstream.audit.default.>"}[key])
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		plain[key] = sub
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, writer := range []*feed.Feed{
		feed.NewFeed(js, store, 1, slog.New(slog.DiscardHandler)), feed.NewAuditFeed(js, store, 1, slog.New(slog.DiscardHandler)),
	} {
		running.Go(func() {
			if err := writer.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		bustest.Eventually(t, "the position of the log's end", func() bool { return writer.Position() == end })
	}
	for _, of := range []struct {
		key, stream, consumer string
		want                  []string
	}{
		{"engine-key", streams.FeedStream, "engine-default", changes},
		{"engines-key", streams.FeedStream, "engine-default", nil},
		{"auditor-key", streams.AuditStream, "audit-default", audit},
		{"audits-key", streams.AuditStream, "audit-default", nil},
	} {
		nc, _ := bustest.Connect(t, node, of.key)
		if diff := cmp.Diff(of.want, pullAll(t, nc, of.stream, of.consumer, len(of.want))); diff != "" {
			t.Errorf("%s pulls (-want +got):\n%s", of.key, diff)
		}
		if plain[of.key] == nil {
			continue
		}
		var heard []string
		for range of.want {
			m, err := plain[of.key].NextMsgWithContext(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			heard = append(heard, m.Header.Get("ce-type")+" "+m.Header.Get("ce-id"))
		}
		if diff := cmp.Diff(of.want, heard); diff != "" {
			t.Errorf("%s hears (-want +got):\n%s", of.key, diff)
		}
		if n, _, err := plain[of.key].Pending(); err != nil || n > 0 {
			t.Errorf("%s hears %d more: %v", of.key, n, err)
		}
	}
	cancel()
	running.Wait()
	if info, err := old.Info(t.Context()); err != nil || info.State.Msgs != uint64(len(changes)) {
		t.Errorf("the feed holds %d messages of %d changes: %v", info.State.Msgs, len(changes), err)
	}
	if _, err := old.Consumer(t.Context(), "audit-default"); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("the audit consumer of the feed of an earlier version: %v", err)
	}
}

// Servers that lost or repeated messages on their way leave no gap in the sequences:
// the end of the feed is compared with the log, and written anew where it differs.
func TestFeedThatDiffersFromTheLog(t *testing.T) {
	node := bustest.StartNode(t)
	conn, err := node.Conn("feed")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(t.Context(), feed.Config(1))
	if err != nil {
		t.Fatal(err)
	}
	store := memory.New(events.All())
	want := fill(t, store, 30)
	told(t, js, store, len(want))
	var messages []*nats.Msg
	for seq := range uint64(len(want)) {
		m, err := stream.GetMsg(t.Context(), seq+1)
		if err != nil {
			t.Fatal(err)
		}
		h := nats.Header{}
		for _, name := range []string{"ce-id", "ce-logseq", "ce-logindex"} {
			h[name] = []string{m.Header.Get(name)}
		}
		messages = append(messages, &nats.Msg{Subject: m.Subject, Header: h, Data: m.Data})
	}
	for what, wrong := range map[string][]*nats.Msg{
		"an event is missing":  slices.Concat(messages[:20], messages[21:]),
		"events are repeated":  slices.Concat(messages, messages[25:]),
		"the last is repeated": slices.Concat(messages, messages[len(messages)-1:]),
		"two changed places":   slices.Concat(messages[:10], messages[11:12], messages[10:11], messages[12:]),
	} {
		if err := stream.Purge(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, m := range wrong {
			if _, err := js.PublishMsg(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- feed.NewFeed(js, store, 1, slog.New(slog.DiscardHandler)).Run(ctx) }()
		var got []string
		for deadline := time.Now().Add(20 * time.Second); !cmp.Equal(want, got) && time.Now().Before(deadline); {
			info, err := stream.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got = nil
			for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
				if m, err := stream.GetMsg(t.Context(), seq); err == nil { // else it is purged
					got = append(got, m.Header.Get("ce-id"))
				}
			}
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}
