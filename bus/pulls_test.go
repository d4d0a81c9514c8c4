package bus_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus"
	"github.com/credstream/credstream/bus/bustest"
)

// A consumer is made when a client first asks for it, tells of what was there before, and
// comes back when it, or its stream, is lost.
func TestConsumerOnFirstUse(t *testing.T) {
	node := startNode(t)
	checkFirstUse(t, node, func(key string) *nats.Conn { nc, _ := connect(t, node, key); return nc })
}

func TestClusterConsumerOnFirstUse(t *testing.T) {
	s := bustest.Start(t)
	checkFirstUse(t, startCluster(t, s), func(key string) *nats.Conn { nc, _ := dial(t, s, key); return nc })
}

func checkFirstUse(t *testing.T, on server, connect func(key string) *nats.Conn) {
	js := must(jetstream.New(must(on.Conn("test"))(t)))(t)
	config := jetstream.StreamConfig{Name: bus.FeedStream, Subjects: []string{bus.FeedSubject + ".>"}}
	publish := func(body string) {
		t.Helper()
		must(js.Publish(t.Context(), "credstream.events.default.credential.c", []byte(body)))(t)
	}
	must(js.CreateStream(t.Context(), config))(t)
	must(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: bus.AuditStream, Subjects: []string{bus.AuditSubject + ".>"}}))(t)
	pulls := servePulls(t, on)
	publish("before anybody came")
	consumers := func() []string {
		names := must(js.Stream(t.Context(), bus.FeedStream))(t).ConsumerNames(t.Context())
		var list []string
		for name := range names.Name() {
			list = append(list, name)
		}
		ok(t, names.Err())
		return list
	}
	for _, key := range []string{"engine-key", "engines-key"} { // of the tenant, and of all tenants
		if got := consumers(); len(got) > 0 {
			t.Fatalf("%s: %v before it was asked for", key, got)
		}
		client := must(jetstream.New(connect(key)))(t)
		for _, nobody := range []string{"engine-nobody", "engine-_system", "engine-", "other"} {
			if _, err := client.Consumer(t.Context(), bus.FeedStream, nobody); key == "engines-key" && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				t.Errorf("%s: consumer %s: %v", key, nobody, err)
			}
			if key == "engine-key" {
				break // it may not ask
			}
		}
		read := func(want string) {
			t.Helper()
			consumer := must(client.Consumer(t.Context(), bus.FeedStream, "engine-default"))(t)
			m := must(consumer.Next(jetstream.FetchMaxWait(20 * time.Second)))(t)
			ok(t, m.DoubleAck(t.Context()))
			if string(m.Data()) != want {
				t.Errorf("%s: got %q, want %q", key, m.Data(), want)
			}
		}
		read("before anybody came")
		// Who is bound already only pulls.
		bound := must(client.Consumer(t.Context(), bus.FeedStream, "engine-default"))(t)
		ok(t, js.DeleteConsumer(t.Context(), bus.FeedStream, "engine-default"))
		pulls.Forget()
		eventually(t, "the event again", func() bool {
			m, err := bound.Next(jetstream.FetchMaxWait(300 * time.Millisecond))
			return err == nil && string(m.Data()) == "before anybody came"
		})
		ok(t, js.DeleteStream(t.Context(), bus.FeedStream))
		must(js.CreateStream(t.Context(), config))(t)
		publish("after the loss")
		read("after the loss")
		ok(t, js.DeleteStream(t.Context(), bus.FeedStream))
		must(js.CreateStream(t.Context(), config))(t)
		publish("before anybody came")
	}
}

// Consumers that an earlier version made and nobody used are dropped; one with a place,
// and one that is not ours, stay.
func TestUnusedConsumersAreDropped(t *testing.T) {
	node := startNode(t)
	js := must(jetstream.New(must(node.Conn("test"))(t)))(t)
	must(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: bus.FeedStream, Subjects: []string{bus.FeedSubject + ".>"}}))(t)
	must(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: bus.AuditStream, Subjects: []string{bus.AuditSubject + ".>"}}))(t)
	pulls := servePulls(t, node)
	nc, _ := connect(t, node, "engines-key")
	client := must(jetstream.New(nc))(t)
	for tenant, acknowledge := range map[string]bool{"default": true, "other": false} {
		must(js.Publish(t.Context(), "credstream.events."+tenant+".credential.c", []byte("x")))(t)
		m := must(must(client.Consumer(t.Context(), bus.FeedStream, "engine-"+tenant))(t).Next(jetstream.FetchMaxWait(20 * time.Second)))(t)
		if acknowledge {
			ok(t, m.DoubleAck(t.Context()))
		}
	}
	must(js.Publish(t.Context(), "credstream.events.unused.credential.c", []byte("x")))(t)
	for name, stream := range map[string]string{"engine-unused": bus.FeedStream, "engine-empty": bus.FeedStream, "mine": bus.FeedStream, "audit-unused": bus.AuditStream} {
		must(js.CreateConsumer(t.Context(), stream, jetstream.ConsumerConfig{Durable: name, AckPolicy: jetstream.AckExplicitPolicy}))(t)
	}
	for range 2 {
		ok(t, pulls.DropUnused(t.Context()))
		var left []string
		for _, stream := range []string{bus.FeedStream, bus.AuditStream} {
			names := must(js.Stream(t.Context(), stream))(t).ConsumerNames(t.Context())
			for name := range names.Name() {
				left = append(left, name)
			}
			ok(t, names.Err())
		}
		slices.Sort(left)
		if want := []string{"engine-default", "engine-other", "mine"}; !slices.Equal(left, want) {
			t.Errorf("%v are left, want %v", left, want)
		}
	}
}

// What one pull may ask for is bounded, its heartbeat too.
func TestPullBounds(t *testing.T) {
	node := startNode(t)
	checkPullBounds(t, node, startService(t, node), func(key string, o ...nats.Option) *nats.Conn { nc, _ := connect(t, node, key, o...); return nc })
}

func TestClusterPullBounds(t *testing.T) {
	s := bustest.Start(t)
	c := startCluster(t, s)
	checkPullBounds(t, c, startEndpoints(t, c), func(key string, o ...nats.Option) *nats.Conn { nc, _ := dial(t, s, key, o...); return nc })
}

func checkPullBounds(t *testing.T, _ server, _ *service, connect func(key string, o ...nats.Option) *nats.Conn) {
	const next = "$JS.API.CONSUMER.MSG.NEXT." + bus.AuditStream + ".audit-default"
	nc := connect("auditor-key")
	for _, body := range []string{`{"batch":1001,"expires":1000000000}`, `{"batch":1,"expires":301000000000}`, `{"batch":1,"expires":1000000000,"max_bytes":8388609}`} {
		m := must(nc.Request(next, []byte(body), 20*time.Second))(t)
		if m.Header.Get("Status") != "409" {
			t.Errorf("%s: %v", body, m.Header)
		}
	}
	drained := must(must(jetstream.New(nc))(t).Consumer(t.Context(), bus.AuditStream, "audit-default"))(t)
	ok(t, must(drained.Next())(t).Ack())
	for _, c := range []struct {
		heartbeat time.Duration
		closed    bool
	}{{100 * time.Millisecond, false}, {1, true}, {99 * time.Millisecond, true}} {
		closed := make(chan struct{})
		nc := connect("auditor-key", nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
		inbox := nc.NewInbox()
		sub := must(nc.SubscribeSync(inbox))(t)
		ok(t, nc.PublishRequest(next, inbox, fmt.Appendf(nil, `{"batch":1,"expires":60000000000,"idle_heartbeat":%d}`, c.heartbeat)))
		if !c.closed {
			if m := must(sub.NextMsg(20 * time.Second))(t); m.Header.Get("Status") != "100" {
				t.Errorf("heartbeat %v: %v", c.heartbeat, m.Header)
			}
			continue
		}
		recv(t, closed)
	}
	for _, headers := range []nats.Header{
		{"X": {"y\nNats-Request-Info: {\"acc\":\"KEY_x\",\"user\":\"admin\"}"}},
		{"nats-request-info": {"{\"acc\":\"KEY_x\"}"}},
		{"Cs-Malformed-Headers": {"{\"acc\":\"KEY_x\",\"user\":\"admin\"}"}},
	} { // malformed ones do not shield a key
		closed := make(chan struct{})
		nc := connect("auditor-key", nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
		ok(t, nc.PublishMsg(&nats.Msg{Subject: next, Reply: nc.NewInbox(), Header: headers, Data: []byte(`{"batch":1,"expires":60000000000,"idle_heartbeat":1}`)}))
		recv(t, closed)
	}
}
