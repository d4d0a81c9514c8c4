package webhook

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count the attempts of this process.
type metrics struct{ attempts *prometheus.CounterVec }

func newMetrics(to prometheus.Registerer, s *Service) *metrics {
	m := &metrics{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_webhook_attempts_total", Help: "Attempts to deliver an event to the receiver of a webhook, by outcome.",
	}, []string{"outcome"})}
	for _, outcome := range []string{"delivered", "failed"} {
		m.attempts.WithLabelValues(outcome)
	}
	if to == nil {
		return m
	}
	to.MustRegister(m.attempts,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_webhook_pending", Help: "Events that wait for the receiver of a webhook in this process.",
		}, func() float64 { n, _ := s.pending(); return float64(n) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_webhook_lag_seconds", Help: "How long the oldest event has waited for the receiver of a webhook in this process.",
		}, func() float64 { _, oldest := s.pending(); return oldest.Seconds() }),
	)
	return m
}

func (m *metrics) attempt(a attempted) {
	outcome := "failed"
	if a.delivered() {
		outcome = "delivered"
	}
	m.attempts.WithLabelValues(outcome).Inc()
}

// pending is the number of events that wait, and how long the oldest one has.
func (s *Service) pending() (n int, oldest time.Duration) {
	now := s.Kernel.Now()
	s.running.Range(func(key, _ any) bool {
		w := key.(*worker) //nolint:forcetypeassert // nothing else is stored
		w.mu.Lock()
		defer w.mu.Unlock()
		n += len(w.progress.Pending)
		for _, d := range w.progress.Pending {
			oldest = max(oldest, now.Sub(d.Since))
		}
		return true
	})
	return n, oldest
}
