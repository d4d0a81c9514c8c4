// Package webhook sends the events of the feed to HTTP receivers that administrators define:
// CloudEvents, signed as Standard Webhooks says, at least once and in order per credential.
package webhook

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel  *service.Kernel
	Secrets *secrets.Service
	Log     *aggregates.Log
	Views   *projections.Views
	Vault   *vault.Vault
	HTTP    *verify.Client
	Metrics prometheus.Registerer // optional
	Logger  *slog.Logger

	// Deliveries stores the state of the deliveries; without it nothing is delivered.
	Deliveries Deliveries
	// Retry is the pause after the first failed attempt at a delivery; DefaultRetry when 0.
	Retry time.Duration
}

// Service implements the routes of webhooks. It is safe for concurrent use.
type Service struct {
	Deps
	metrics *metrics
	running sync.Map // *worker, of this process
}

// New creates a Service.
func New(deps Deps) *Service {
	if deps.Retry == 0 {
		deps.Retry = DefaultRetry
	}
	s := &Service{Deps: deps}
	s.metrics = newMetrics(deps.Metrics, s)
	return s
}

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("webhook.define", permission.WebhooksEdit, s.define,
			"Define a webhook: where to send which events of the feed. Only this response contains the signing secret; a repeat answers without it.").WithSecrets().Unqueued().Recalling(recallSigning),
		service.Command("webhook.change", permission.WebhooksEdit, s.change,
			"Change, disable or enable a webhook, or end the rotation of its signing secret. An enabled webhook continues where it stopped."),
		service.Command("webhook.rotate-secret", permission.WebhooksEdit, s.rotate,
			"Give a webhook a new signing secret. Only this response contains it. Until the previous one ends, both sign.").WithSecrets().Unqueued().Recalling(recallSigning),
		service.Command("webhook.delete", permission.WebhooksEdit, s.delete,
			"Delete a webhook at once, with what it has not delivered, and erase its secrets."),
		service.Command("webhook.test", permission.WebhooksEdit, s.test,
			"Send a test event of the type credstream.webhook.test.v1 to the receiver of a webhook, and answer with what came of it.").Recalling(recallSent).Resumable(),
		service.Command("webhook.redeliver", permission.WebhooksEdit, s.redeliver,
			"Send a dead letter of a webhook again, or an event that it lists as delivered, and answer with what came of it. A dead letter remains unless the receiver accepts it.").Recalling(recallSent).Resumable(),
		service.Query("webhook.deliveries", permission.WebhooksGet, s.deliveries, "The deliveries of a webhook: its dead letters, those that are pending, and the last that were made.").Scan(),
		service.Query("webhook.show", permission.WebhooksGet, s.show, "One webhook, without its secrets."),
		service.Query("webhook.list", permission.WebhooksGet, s.list, "The webhooks of the tenant by id, page by page.").Scan(),
	}
}

// Signing answers a command that makes a signing secret.
type Signing struct {
	service.Done
	Secret string `json:"secret,omitzero"` // "whsec_" and base64, as Standard Webhooks writes it; shown once
}

// Remember implements service.Result. The secret is shown once.
func (s Signing) Remember(*events.CommandCompleted) (service.Done, bool) { return s.Done, true }

// recallSigning repeats the response without the secret.
func recallSigning(_ context.Context, _ *service.Call, done service.Done, _ events.CommandCompleted) (any, error) {
	return Signing{Done: done}, nil
}
