// Package token manages the tokens of OAuth credentials: it renews them before they expire, in
// one process at a time, and revokes them at their provider.
package token

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel     *service.Kernel
	Secrets    *secrets.Service
	Components Components
	Clients    Clients
	Log        *aggregates.Log
	Views      *projections.Views
	Vault      *vault.Vault
	OAuth      *oauth.Exchanger      // talks to authorization servers
	Metrics    prometheus.Registerer // optional
	Logger     *slog.Logger

	// InstanceID identifies this process among those that renew tokens.
	InstanceID string
	// SingleInstance means that no other process serves the log.
	SingleInstance bool
	// RefreshTakeoverTimeout is how long a renewal by another process may make
	// no progress before this one takes it over.
	RefreshTakeoverTimeout time.Duration
	// RenewalStep is called between the steps of a renewal ("started", "answered",
	// "stored"), so that a test can interrupt it there; optional.
	RenewalStep func(step string)
}

// DefaultTakeoverTimeout is the default of RefreshTakeoverTimeout.
const DefaultTakeoverTimeout = 30 * time.Second

// Components provides the descriptors of components.
type Components interface {
	Descriptor(ctx context.Context, component string, revision int) (commands.Descriptor, error)
	Effective(ctx context.Context, tenant, component string, d commands.Descriptor) (commands.Descriptor, error)
}

// Clients provides the OAuth clients whose tokens are renewed.
type Clients interface {
	Client(ctx context.Context, call *service.Call, ref client.OAuthClientRef, fresh bool) (projections.OAuthClient, error)
	CheckSecretAudience(ctx context.Context, tenant, component string, c aggregates.OAuthClientState, d commands.Descriptor) error
	CheckRenewalAudience(ctx context.Context, tenant, component string, d commands.Descriptor) error
}

// Service renews and revokes tokens. It is safe for concurrent use.
type Service struct {
	Deps
	metrics     *metrics
	renewals    renewals
	revocations revocations
}

// New creates a Service. Close ends it.
func New(deps Deps) *Service {
	s := &Service{Deps: deps, metrics: newMetrics(deps.Metrics)}
	s.renewals.by = map[credentialKey]*renewal{}
	s.revocations.jobs = map[string][]*revocation{}
	s.Secrets.RegisterFollowUp(aggregates.Credential.Category, s.followUp)
	return s
}

// Close waits for the renewals and revocations in progress, which end with the kernel's background context.
func (s *Service) Close() {
	s.renewals.finish()
	s.revocations.finish()
}

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Remember implements service.Result.
func (r Revoked) Remember(c *events.CommandCompleted) (service.Done, bool) {
	c.Outcome = r.Outcome
	return r.Done, true
}

func recallRevoked(_ context.Context, _ *service.Call, done service.Done, c events.CommandCompleted) (any, error) {
	return Revoked{Done: done, Outcome: c.Outcome}, nil
}

// Remember implements service.Result.
func (r RevocationStarted) Remember(c *events.CommandCompleted) (service.Done, bool) {
	c.Total = r.Total
	return r.Done, r.ID != ""
}

func recallRevocation(_ context.Context, _ *service.Call, done service.Done, c events.CommandCompleted) (any, error) {
	return RevocationStarted{Done: done, Total: c.Total}, nil
}

type metrics struct {
	refreshes   *prometheus.CounterVec
	refreshLost prometheus.Counter
	revocations *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_token_refreshes_total", Help: "Renewals of OAuth tokens by outcome.",
		}, []string{"outcome"}),
		refreshLost: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "credstream_token_refreshes_lost_total",
			Help: "Renewals whose response was lost: the process ended before the vault stored it.",
		}),
		revocations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_token_revocations_total", Help: "Credentials whose tokens were revoked at the provider, by outcome.",
		}, []string{"outcome"}),
	}
	for _, o := range []oauth.Outcome{oauth.Transient, oauth.Malformed, oauth.Revoked, oauth.ClientRefused, oauth.Refused, oauth.TooEarly} {
		service.FromZero(m.refreshes, string(o))
		service.FromZero(m.revocations, string(o))
	}
	service.FromZero(m.refreshes, "refreshed")
	if reg != nil {
		reg.MustRegister(m.refreshes, m.refreshLost, m.revocations)
	}
	return m
}
