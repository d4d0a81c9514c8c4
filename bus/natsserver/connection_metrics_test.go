package natsserver_test

import (
	"net"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/bus/bustest"
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
