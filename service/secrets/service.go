// Package secrets manages secrets that are stored in the vault, outside the log: it encrypts
// them before the event that references them, and erases them when no event references them any
// more. The features share it.
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

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel  *service.Kernel
	Log     *aggregates.Log
	Views   *projections.Views
	Vault   *vault.Vault
	Keyring *seal.Keyring
	Metrics prometheus.Registerer // optional
	Logger  *slog.Logger

	// CheckLogComplete returns an error unless the log is complete. The collector calls it before
	// each run. nil: no check.
	CheckLogComplete func(context.Context) error
	// FollowedUp stores the position of RunFollowUps, which requires it.
	FollowedUp Checkpoint
	// SingleInstance means that no other process serves the log at the same time.
	SingleInstance bool
	// RefreshTakeoverTimeout is the time without progress after which this process takes over a
	// token renewal of another process.
	RefreshTakeoverTimeout time.Duration
}

// Service manages secrets. It is safe for concurrent use.
type Service struct {
	Deps
	metrics            *metrics
	tracker            *followUpTracker
	eraser             *eraser
	followUpByCategory map[string]FollowUp // by category of the aggregate
	background         []func(context.Context)
	secretsLeft        atomic.Bool // the next run of the collector must scan all secrets
}

// FollowUp completes the follow-up of one commit, which this process has read at seen. worked
// reports whether there was anything to do. It may return Postponed.
type FollowUp func(ctx context.Context, recs []events.Record, seen time.Time) (worked bool, err error)

// New creates a Service.
func New(deps Deps) (*Service, error) {
	s := &Service{Deps: deps, metrics: newMetrics(deps.Metrics), eraser: newEraser()}
	s.followUpByCategory = map[string]FollowUp{
		aggregates.OAuthClient.Category:     erasing(s, aggregates.OAuthClient),
		aggregates.AuthClient.Category:      erasing(s, aggregates.AuthClient),
		aggregates.Component.Category:       erasing(s, aggregates.Component),
		aggregates.ConnectorSecret.Category: erasing(s, aggregates.ConnectorSecret),
		aggregates.Webhook.Category:         erasing(s, aggregates.Webhook),
	}
	var err error
	s.tracker, err = newFollowUpTracker()
	return s, err
}

// RegisterFollowUp sets the FollowUp of an aggregate's category. Call it before RunFollowUps.
func (s *Service) RegisterFollowUp(category string, do FollowUp) { s.followUpByCategory[category] = do }

// AddBackground adds work that RunFollowUps runs concurrently until its context ends. The work
// completes interrupted actions that are not in the log. Call it before RunFollowUps.
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
			Help: "Attempts of the process manager at the follow-up of a commit (erase secrets, revoke tokens at a provider), by outcome: done, failed, given_up.",
		}, []string{"outcome"}),
		followUpsOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "credstream_follow_ups_open", Help: "Commits whose follow-up (erase secrets, revoke tokens at a provider) is not known to be complete.",
		}),
	}
	service.FromZero(m.followUps, "done", "failed", "given_up")
	if reg != nil {
		reg.MustRegister(m.sealed, m.orphans, m.followUps, m.followUpsOpen)
	}
	return m
}
