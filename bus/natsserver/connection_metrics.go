package natsserver

import (
	"strings"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
)

// connectionMetrics counts the connections of the embedded node, by kind: those of API keys, and
// the service's own. The account is no label, because each key has one.
type connectionMetrics struct {
	node                                        *Node
	connections, subscriptions, pending, closed *prometheus.Desc
}

// Metrics returns the collector of the node's connections. During a restart of
// the server it has no values.
func (n *Node) Metrics() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &connectionMetrics{
		node:          n,
		connections:   desc("credstream_nats_connections", "Connections to the embedded NATS server, by kind: key or service.", "kind"),
		subscriptions: desc("credstream_nats_subscriptions", "Subscriptions of the connections to the embedded NATS server, by kind.", "kind"),
		pending:       desc("credstream_nats_pending_bytes", "Bytes that wait in the embedded NATS server for its clients to read them, by kind.", "kind"),
		closed:        desc("credstream_nats_slow_consumers_total", "Connections that the embedded NATS server has closed since its start because they did not read."),
	}
}

// Describe implements prometheus.Collector.
func (m *connectionMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.connections, m.subscriptions, m.pending, m.closed} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (m *connectionMetrics) Collect(to chan<- prometheus.Metric) {
	r := m.node.running()
	if r == nil {
		return
	}
	list, err := r.srv.Connz(&server.ConnzOptions{Username: true, Limit: 1 << 20})
	if err != nil {
		return
	}
	type sum struct{ connections, subscriptions, pending int }
	sums := map[string]*sum{"key": {}, "service": {}}
	for _, c := range list.Conns {
		of := sums["service"]
		if strings.HasPrefix(c.Account, clientPrefix) {
			of = sums["key"]
		}
		of.connections++
		of.subscriptions += int(c.NumSubs)
		of.pending += c.Pending
	}
	for kind, of := range sums {
		for d, v := range map[*prometheus.Desc]int{m.connections: of.connections, m.subscriptions: of.subscriptions, m.pending: of.pending} {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), kind)
		}
	}
	to <- prometheus.MustNewConstMetric(m.closed, prometheus.CounterValue, float64(r.srv.NumSlowConsumers()))
}
