package service

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/fault"
)

// metrics counts what the routes do. Labels are names of ours, never ids.
type metrics struct {
	requests *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	verified *prometheus.CounterVec
	appended prometheus.Histogram
	sealed   prometheus.Histogram
	orphans  prometheus.Counter
	settled  prometheus.Histogram
}

// buckets are the bounds of the histograms, in seconds.
var buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, 1, 5, 30}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_requests_total", Help: "Commands and queries by name and kind of outcome.",
		}, []string{"name", "kind"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "credstream_request_seconds", Help: "Time from the request to its answer, in seconds.",
			Buckets: buckets,
		}, []string{"name"}),
		verified: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_verifications_total", Help: "Dry requests by probe and class of outcome.",
		}, []string{"probe", "outcome"}),
		appended: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "credstream_append_seconds", Help: "Time to decide a command and make its commit durable, in seconds.", Buckets: buckets,
		}),
		sealed: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "credstream_vault_put_seconds", Help: "Time to seal a secret and make it durable, in seconds.", Buckets: buckets,
		}),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "credstream_vault_orphans_erased_total", Help: "Secrets erased because no event names them.",
		}),
	}
	m.settled = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "credstream_flow_settle_seconds", Help: "Time to record a flow event and every use that follows from it, in seconds.", Buckets: buckets,
	})
	if reg != nil {
		reg.MustRegister(m.settled, m.requests, m.latency, m.verified, m.appended, m.sealed, m.orphans)
	}
	return m
}

func (m *metrics) served(r *Route, took time.Duration, err error) {
	kind := "ok"
	if err != nil {
		kind = string(fault.Of(err).Kind)
	}
	m.requests.WithLabelValues(r.Name, kind).Inc()
	m.latency.WithLabelValues(r.Name).Observe(took.Seconds())
}
