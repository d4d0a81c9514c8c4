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

	refreshes   *prometheus.CounterVec
	refreshLost prometheus.Counter
	revocations *prometheus.CounterVec
	connections *prometheus.CounterVec

	followUps     *prometheus.CounterVec
	followUpsOpen prometheus.Gauge
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
			Name: "credstream_vault_orphans_erased_total", Help: "Secrets erased because no event references them.",
		}),
	}
	m.settled = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "credstream_flow_settle_seconds", Help: "Time to record a flow event and every resulting use, in seconds.", Buckets: buckets,
	})
	m.refreshes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_token_refreshes_total", Help: "Renewals of OAuth tokens by outcome.",
	}, []string{"outcome"})
	m.refreshLost = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "credstream_token_refreshes_lost_total",
		Help: "Renewals whose response was lost: the process ended before the vault stored it.",
	})
	m.connections = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_connections_total", Help: "Account connections: started, done, or by the code that ended them.",
	}, []string{"outcome"})
	m.revocations = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_token_revocations_total", Help: "Credentials whose tokens were revoked at the provider, by outcome.",
	}, []string{"outcome"})
	m.followUps = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_follow_ups_total",
		Help: "Attempts of the process manager to complete what a commit owes outside the log, by outcome: done, failed, given_up.",
	}, []string{"outcome"})
	m.followUpsOpen = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "credstream_follow_ups_open", Help: "Commits that may owe something outside the log and are not known to be followed up.",
	})
	if reg != nil {
		reg.MustRegister(m.followUps, m.followUpsOpen, m.revocations, m.connections, m.refreshes, m.refreshLost, m.settled, m.requests, m.latency, m.verified, m.appended, m.sealed, m.orphans)
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
