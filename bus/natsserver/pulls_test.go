package natsserver_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/streams"
)

// A consumer is made when a client first asks for it, tells of what was there before, and
// comes back when it, or its stream, is lost.
func TestConsumerOnFirstUse(t *testing.T) {
	node := bustest.StartNode(t)
	checkFirstUse(t, node, func(key string) *nats.Conn { nc, _ := bustest.Connect(t, node, key); return nc })
}

func TestClusterConsumerOnFirstUse(t *testing.T) {
	s := bustest.Start(t)
	checkFirstUse(t, bustest.StartCluster(t, s), func(key string) *nats.Conn { nc, _ := dial(t, s, key); return nc })
}

func checkFirstUse(t *testing.T, on bustest.Server, connect func(key string) *nats.Conn) {
	js := bustest.Must(jetstream.New(bustest.Must(on.Conn("test"))(t)))(t)
	config := jetstream.StreamConfig{Name: streams.FeedStream, Subjects: []string{streams.FeedSubject + ".>"}}
	publish := func(body string) {
		t.Helper()
		bustest.Must(js.Publish(t.Context(), "credstream.events.default.credential.c", []byte(body)))(t)
	}
	bustest.Must(js.CreateStream(t.Context(), config))(t)
	bustest.Must(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: streams.AuditStream, Subjects: []string{streams.AuditSubject + ".>"}}))(t)
	pulls := bustest.ServePulls(t, on)
	publish("before anybody came")
	consumers := func() []string {
		names := bustest.Must(js.Stream(t.Context(), streams.FeedStream))(t).ConsumerNames(t.Context())
		var list []string
		for name := range names.Name() {
			list = append(list, name)
		}
		bustest.OK(t, names.Err())
		return list
	}
	for _, key := range []string{"engine-key", "engines-key"} { // of the tenant, and of all tenants
		if got := consumers(); len(got) > 0 {
			t.Fatalf("%s: %v before it was asked for", key, got)
		}
		client := bustest.Must(jetstream.New(connect(key)))(t)
		for _, nobody := range []string{"engine-nobody", "engine-_system", "engine-", "other"} {
			if _, err := client.Consumer(t.Context(), streams.FeedStream, nobody); key == "engines-key" && !errors.Is(err, jetstream.ErrConsumerNotFound) {
				t.Errorf("%s: consumer %s: %v", key, nobody, err)
			}
			if key == "engine-key" {
				break // it may not ask
			}
		}
		read := func(want string) {
			t.Helper()
			consumer := bustest.Must(client.Consumer(t.Context(), streams.FeedStream, "engine-default"))(t)
			m := bustest.Must(consumer.Next(jetstream.FetchMaxWait(20 * time.Second)))(t)
			bustest.OK(t, m.DoubleAck(t.Context()))
			if string(m.Data()) != want {
				t.Errorf("%s: got %q, want %q", key, m.Data(), want)
			}
		}
		read("before anybody came")
		// Who is bound already only pulls.
		bound := bustest.Must(client.Consumer(t.Context(), streams.FeedStream, "engine-default"))(t)
		bustest.OK(t, js.DeleteConsumer(t.Context(), streams.FeedStream, "engine-default"))
		pulls.Forget()
		bustest.Eventually(t, "the event again", func() bool {
			m, err := bound.Next(jetstream.FetchMaxWait(300 * time.Millisecond))
			return err == nil && string(m.Data()) == "before anybody came"
		})
		bustest.OK(t, js.DeleteStream(t.Context(), streams.FeedStream))
		bustest.Must(js.CreateStream(t.Context(), config))(t)
		publish("after the loss")
		read("after the loss")
		bustest.OK(t, js.DeleteStream(t.Context(), streams.FeedStream))
		bustest.Must(js.CreateStream(t.Context(), config))(t)
		publish("before anybody came")
	}
}

// Consumers that an earlier version made and nobody used are dropped; one with a place,
// and one that is not ours, stay.
func TestUnusedConsumersAreDropped(t *testing.T) {
	node := bustest.StartNode(t)
	js := bustest.Must(jetstream.New(bustest.Must(node.Conn("test"))(t)))(t)
	bustest.Must(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: streams.FeedStream, Subjects: []string{streams.FeedSubject + ".>"}}))(t)
	bustest.Must(js.CreateStream(t.Context(), jetstream.StreamConfig{Name: streams.AuditStream, Subjects: []string{streams.AuditSubject + ".>"}}))(t)
	pulls := bustest.ServePulls(t, node)
	nc, _ := bustest.Connect(t, node, "engines-key")
	client := bustest.Must(jetstream.New(nc))(t)
	for tenant, acknowledge := range map[string]bool{"default": true, "other": false} {
		bustest.Must(js.Publish(t.Context(), "credstream.events."+tenant+".credential.c", []byte("x")))(t)
		m := bustest.Must(bustest.Must(client.Consumer(t.Context(), streams.FeedStream, "engine-"+tenant))(t).Next(jetstream.FetchMaxWait(20 * time.Second)))(t)
		if acknowledge {
			bustest.OK(t, m.DoubleAck(t.Context()))
		}
	}
	bustest.Must(js.Publish(t.Context(), "credstream.events.unused.credential.c", []byte("x")))(t)
	for name, stream := range map[string]string{"engine-unused": streams.FeedStream, "engine-empty": streams.FeedStream, "mine": streams.FeedStream, "audit-unused": streams.AuditStream} {
		bustest.Must(js.CreateConsumer(t.Context(), stream, jetstream.ConsumerConfig{Durable: name, AckPolicy: jetstream.AckExplicitPolicy}))(t)
	}
	for range 2 {
		bustest.OK(t, pulls.DropUnused(t.Context()))
		var left []string
		for _, stream := range []string{streams.FeedStream, streams.AuditStream} {
			names := bustest.Must(js.Stream(t.Context(), stream))(t).ConsumerNames(t.Context())
			for name := range names.Name() {
				left = append(left, name)
			}
			bustest.OK(t, names.Err())
		}
		slices.Sort(left)
		if want := []string{"engine-default", "engine-other", "mine"}; !slices.Equal(left, want) {
			t.Errorf("%v are left, want %v", left, want)
		}
	}
}

// What one pull may ask for is bounded, its heartbeat too.
func TestPullBounds(t *testing.T) {
	node := bustest.StartNode(t)
	checkPullBounds(t, node, bustest.StartService(t, node), func(key string, o ...nats.Option) *nats.Conn { nc, _ := bustest.Connect(t, node, key, o...); return nc })
}

func TestClusterPullBounds(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	checkPullBounds(t, c, startEndpoints(t, c), func(key string, o ...nats.Option) *nats.Conn { nc, _ := dial(t, s, key, o...); return nc })
}

func checkPullBounds(t *testing.T, _ bustest.Server, _ *bustest.Service, connect func(key string, o ...nats.Option) *nats.Conn) {
	const next = "$JS.API.CONSUMER.MSG.NEXT." + streams.AuditStream + ".audit-default"
	nc := connect("auditor-key")
	for _, body := range []string{`{"batch":1001,"expires":1000000000}`, `{"batch":1,"expires":301000000000}`, `{"batch":1,"expires":1000000000,"max_bytes":8388609}`} {
		m := bustest.Must(nc.Request(next, []byte(body), 20*time.Second))(t)
		if m.Header.Get("Status") != "409" {
			t.Errorf("%s: %v", body, m.Header)
		}
	}
	drained := bustest.Must(bustest.Must(jetstream.New(nc))(t).Consumer(t.Context(), streams.AuditStream, "audit-default"))(t)
	bustest.OK(t, bustest.Must(drained.Next())(t).Ack())
	for _, c := range []struct {
		heartbeat time.Duration
		closed    bool
	}{{100 * time.Millisecond, false}, {1, true}, {99 * time.Millisecond, true}} {
		closed := make(chan struct{})
		nc := connect("auditor-key", nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
		inbox := nc.NewInbox()
		sub := bustest.Must(nc.SubscribeSync(inbox))(t)
		bustest.OK(t, nc.PublishRequest(next, inbox, fmt.Appendf(nil, `{"batch":1,"expires":60000000000,"idle_heartbeat":%d}`, c.heartbeat)))
		if !c.closed {
			if m := bustest.Must(sub.NextMsg(20 * time.Second))(t); m.Header.Get("Status") != "100" {
				t.Errorf("heartbeat %v: %v", c.heartbeat, m.Header)
			}
			continue
		}
		bustest.Recv(t, closed)
	}
	for _, headers := range []nats.Header{
		{"X": {"y\nNats-Request-Info: {\"acc\":\"KEY_x\",\"user\":\"admin\"}"}},
		{"nats-request-info": {"{\"acc\":\"KEY_x\"}"}},
		{"Cs-Malformed-Headers": {"{\"acc\":\"KEY_x\",\"user\":\"admin\"}"}},
	} { // malformed ones do not shield a key
		closed := make(chan struct{})
		nc := connect("auditor-key", nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(closed) }))
		bustest.OK(t, nc.PublishMsg(&nats.Msg{Subject: next, Reply: nc.NewInbox(), Header: headers, Data: []byte(`{"batch":1,"expires":60000000000,"idle_heartbeat":1}`)}))
		bustest.Recv(t, closed)
	}
}
