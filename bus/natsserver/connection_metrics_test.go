package natsserver_test

import (
	"encoding/json"
	"net"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
)

// stalling is a connection that stops reading.
type stalling struct {
	net.Conn
	stalls *atomic.Bool
	closed chan struct{} // when the test ends
}

func (s stalling) Read(b []byte) (int, error) {
	if s.stalls.Load() {
		<-s.closed
	}
	return s.Conn.Read(b)
}

type stallingDialer struct {
	stalls atomic.Bool
	closed chan struct{}
}

func (d *stallingDialer) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address) // nats.CustomDialer has no context
	return stalling{c, &d.stalls, d.closed}, err
}

// A client that stops reading holds no more memory of the server than its bound, and
// is closed; the metrics show it, and no account's name.
func TestStalledReader(t *testing.T) {
	n := bustest.StartNode(t)
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.Metrics())
	measure := func(name, kind string) float64 {
		t.Helper()
		for _, f := range bustest.Must(registry.Gather())(t) {
			for _, m := range f.GetMetric() {
				labels := m.GetLabel()
				if len(labels) > 1 || len(labels) == 1 && labels[0].GetValue() != "key" && labels[0].GetValue() != "service" {
					t.Fatalf("%s has the labels %v", f.GetName(), labels)
				}
				if f.GetName() == name && (kind == "" || labels[0].GetValue() == kind) {
					return m.GetGauge().GetValue() + m.GetCounter().GetValue()
				}
			}
		}
		t.Fatalf("there is no %s of %s", name, kind)
		return 0
	}
	d := &stallingDialer{closed: make(chan struct{})}
	t.Cleanup(func() { close(d.closed) })
	reader, _ := bustest.Connect(t, n, "engine-key", nats.SetCustomDialer(d), nats.NoReconnect())
	for range 3 {
		bustest.Must(reader.SubscribeSync("credstream.events.default.>"))(t)
	}
	bustest.OK(t, reader.Flush())
	if c, s := measure("credstream_nats_connections", "key"), measure("credstream_nats_subscriptions", "key"); c != 1 || s < 3 {
		t.Errorf("%v connections of keys, %v subscriptions", c, s)
	}
	d.stalls.Store(true)
	service := bustest.Must(n.Conn("test"))(t)
	body := make([]byte, 512<<10)
	most := 0.0
	for sent := 0; measure("credstream_nats_slow_consumers_total", "") == 0; sent++ {
		if sent > 400 {
			t.Fatalf("200 MiB were sent, up to %v bytes wait, and the reader is not closed", most)
		}
		bustest.OK(t, service.Publish("credstream.events.default.x", body))
		bustest.OK(t, service.Flush())
		most = max(most, measure("credstream_nats_pending_bytes", "key"))
	}
	if most == 0 || most > 17<<20 {
		t.Errorf("up to %v bytes waited for the reader", most)
	}
	bustest.Eventually(t, "the end of the connection", func() bool { return measure("credstream_nats_connections", "key") == 0 })
}

// Servers with the configuration of deploy/nats do the same, with no code of ours: the
// reader is closed before they hold more for it than max_pending, and others are served.
func TestClusterStalledReader(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	sv := startEndpoints(t, c)
	system, err := nats.Connect(s.URL("credstream-system"))
	bustest.OK(t, err)
	t.Cleanup(system.Close)
	readers := func() (n int, pending int64) {
		t.Helper()
		m, err := system.RequestWithContext(t.Context(), "$SYS.REQ.SERVER.PING.CONNZ", []byte(`{"acc":"FEED"}`))
		bustest.OK(t, err)
		var answer struct{ Data server.Connz }
		bustest.OK(t, json.Unmarshal(m.Data, &answer))
		for _, conn := range answer.Data.Conns {
			pending += int64(conn.Pending)
		}
		return len(answer.Data.Conns), pending
	}
	d := &stallingDialer{closed: make(chan struct{})}
	t.Cleanup(func() { close(d.closed) })
	reader, _ := dial(t, s, "alice-key", nats.UserInfo(natsserver.FeedUser, "alice-key"), nats.SetCustomDialer(d), nats.NoReconnect())
	bustest.Must(reader.SubscribeSync("credstream.events.default.>"))(t)
	bustest.OK(t, reader.Flush())
	other, _ := dial(t, s, "alice-key", nats.UserInfo(natsserver.FeedUser, "alice-key"))
	reads := bustest.Must(other.SubscribeSync("credstream.events.default.>"))(t)
	bustest.OK(t, other.Flush())
	if n, _ := readers(); n != 2 {
		t.Fatalf("%d connections of readers", n)
	}
	d.stalls.Store(true)
	body := make([]byte, 512<<10)
	var most int64
	for range 100 {
		bustest.Must(sv.Js.Publish(t.Context(), "credstream.events.default.credential.x", body))(t)
		bustest.Must(reads.NextMsgWithContext(t.Context()))(t)
		_, pending := readers()
		most = max(most, pending)
	}
	bustest.Eventually(t, "the end of the connection", func() bool { n, _ := readers(); return n == 1 })
	if most == 0 || most > 17<<20 {
		t.Errorf("up to %d bytes waited for the reader", most)
	}
	answerAll(t, c, make(chan bustest.Call, 1))
	asks, _ := dial(t, s, "alice-key")
	if _, err := asks.RequestWithContext(t.Context(), "credstream.query.default.credential.list", nil); err != nil {
		t.Errorf("the service does not go on: %v", err)
	}
}
