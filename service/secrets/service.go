// Package secrets keeps the secrets of aggregates beside the log: sealed in the vault
// before the event that names them, erased when none does any more. It stands below the
// features, which share it.
package secrets

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/vault"
)

// Deps is what a Service is made of. Every field without "optional" is needed.
type Deps struct {
	Kernel  *service.Kernel
	Log     *aggregates.Log
	Views   *projections.Views
	Vault   *vault.Vault
	Keyring *seal.Keyring
	Metrics prometheus.Registerer // optional
	Logger  *slog.Logger

	// CheckStored proves, before anything is collected, that the log is whole; nil:
	// nothing to prove.
	CheckStored func(context.Context) error
	// FollowedUp keeps how far RunFollowUps has come; needed to run it.
	FollowedUp Checkpoint
	// Alone says that no other process serves the log while this one lives.
	SingleInstance bool
	// RefreshPatience is how long a renewal that another process has begun may stay
	// without progress before this one takes it over.
	RefreshTakeoverTimeout time.Duration
}

// Service keeps secrets. Its methods may be called from many goroutines.
type Service struct {
	Deps
	metrics     *metrics
	followUps   *followUps
	follow      map[string]FollowUp // by category of the aggregate
	background  []func(context.Context)
	secretsLeft atomic.Bool // the next round of the collector has to look at all secrets
}

// FollowUp completes what one commit owes, met by this process at a time. worked reports
// whether there was something to do. Errors: Postponed.
type FollowUp func(ctx context.Context, recs []events.Record, seen time.Time) (worked bool, err error)

// New makes a Service.
func New(deps Deps) (*Service, error) {
	s := &Service{Deps: deps, metrics: newMetrics(deps.Metrics)}
	s.follow = map[string]FollowUp{
		aggregates.OAuthClient.Category:     erasing(s, aggregates.OAuthClient),
		aggregates.AuthClient.Category:      erasing(s, aggregates.AuthClient),
		aggregates.Component.Category:       erasing(s, aggregates.Component),
		aggregates.ConnectorSecret.Category: erasing(s, aggregates.ConnectorSecret),
	}
	var err error
	s.followUps, err = newFollowUps()
	return s, err
}

// FollowUpWith sets what completes the commits to an aggregate, before RunFollowUps.
func (s *Service) FollowUpWith(category string, do FollowUp) { s.follow[category] = do }

// AddBackground adds what RunFollowUps runs beside it until its context ends, before it is called:
// what completes things that broke off and that the log does not hold.
func (s *Service) AddBackground(run func(context.Context)) { s.background = append(s.background, run) }

type metrics struct {
	sealed        prometheus.Histogram
	orphans       prometheus.Counter
	followUps     *prometheus.CounterVec
	followUpsOpen prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		sealed: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "credstream_vault_put_seconds", Help: "Time to seal a secret and make it durable, in seconds.", Buckets: service.Buckets,
		}),
		orphans: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "credstream_vault_orphans_erased_total", Help: "Secrets erased because no event references them.",
		}),
		followUps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_follow_ups_total",
			Help: "Attempts of the process manager to complete what a commit owes outside the log, by outcome: done, failed, given_up.",
		}, []string{"outcome"}),
		followUpsOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "credstream_follow_ups_open", Help: "Commits that may owe something outside the log and are not known to be followed up.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.sealed, m.orphans, m.followUps, m.followUpsOpen)
	}
	return m
}
