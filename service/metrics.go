package service

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/fault"
)

// metrics counts the calls of routes. Labels are fixed names, never ids.
type metrics struct {
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	appended prometheus.Histogram
}

// Buckets are the bounds of the histograms, in seconds.
var Buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_requests_total", Help: "Commands and queries by name and kind of outcome.",
		}, []string{"name", "kind"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "credstream_request_seconds", Help: "Time from the request to its answer, in seconds.",
			Buckets: Buckets,
		}, []string{"name"}),
		appended: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "credstream_append_seconds", Help: "Time to decide a command and make its commit durable, in seconds.", Buckets: Buckets,
		}),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.latency, m.appended)
	}
	return m
}

// FromZero creates the series of a counter with these values of its only label. A series that
// begins with its first event hides that event from a rate.
func FromZero(c *prometheus.CounterVec, values ...string) *prometheus.CounterVec {
	for _, v := range values {
		c.WithLabelValues(v)
	}
	return c
}

// fromZero creates the series of a route that alerts are about.
func (m *metrics) fromZero(r *Route) {
	for _, kind := range []string{"ok", string(fault.Internal), string(fault.Unavailable)} {
		m.requests.WithLabelValues(r.Name, kind)
	}
}

func (m *metrics) served(r *Route, took time.Duration, err error) {
	kind := "ok"
	if err != nil {
		kind = string(fault.Of(err).Kind)
	}
	m.requests.WithLabelValues(r.Name, kind).Inc()
	m.latency.WithLabelValues(r.Name).Observe(took.Seconds())
}
