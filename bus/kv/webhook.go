package kv

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/service/webhook"
)

// WebhookStream is the stream of the deliveries of webhooks: the last message of a subject is
// the state of a part of one webhook's deliveries.
const WebhookStream = "CREDSTREAM_WEBHOOKS"

const webhookPrefix = "credstream.webhooks."

// Webhooks implements webhook.Deliveries.
type Webhooks struct {
	js     jetstream.JetStream
	stream jetstream.Stream
	sync   func(context.Context) error
}

// WebhookConfig is the stream of the deliveries. It is read through its leader.
func WebhookConfig(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: WebhookStream, Description: "credstream: how far webhooks have come, and their dead letters.",
		Subjects: []string{webhookPrefix + "*.*.*"}, Storage: jetstream.FileStorage, Replicas: replicas,
		MaxMsgsPerSubject: 1, MaxMsgSize: 512 << 10,
	}
}

// OpenWebhooks opens the stream of WebhookConfig. sync returns when everything that was published
// to the stream before the call is durable; nil means that the server syncs before it
// acknowledges.
func OpenWebhooks(ctx context.Context, js jetstream.JetStream, sync func(context.Context) error) (*Webhooks, error) {
	stream, err := js.Stream(ctx, WebhookStream)
	if err != nil {
		return nil, fmt.Errorf("looking up stream %s: %w", WebhookStream, err)
	}
	return &Webhooks{js, stream, sync}, nil
}

func webhookSubject(tenant, id, part string) string {
	return webhookPrefix + events.Token(tenant) + "." + events.Token(id) + "." + part
}

// Load implements webhook.Deliveries.
func (w *Webhooks) Load(ctx context.Context, tenant, id, part string) (value []byte, revision uint64, err error) {
	m, err := w.stream.GetLastMsgForSubject(ctx, webhookSubject(tenant, id, part))
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return nil, 0, nil
	case err != nil:
		return nil, 0, fmt.Errorf("reading the deliveries of a webhook: %w", err)
	}
	return m.Data, m.Sequence, nil
}

// Store implements webhook.Deliveries.
func (w *Webhooks) Store(ctx context.Context, tenant, id, part string, value []byte, revision uint64) (uint64, error) {
	m := nats.NewMsg(webhookSubject(tenant, id, part))
	m.Data = value
	ack, err := w.js.PublishMsg(ctx, m, jetstream.WithExpectLastSequencePerSubject(revision), jetstream.WithRetryAttempts(0))
	if jsapi.WrongLast(err) {
		return 0, webhook.ErrMoved
	}
	if err == nil && w.sync != nil {
		err = w.sync(ctx)
	}
	if err != nil {
		return 0, fmt.Errorf("storing the deliveries of a webhook: %w", err)
	}
	return ack.Sequence, nil
}

// Forget implements webhook.Deliveries.
func (w *Webhooks) Forget(ctx context.Context, tenant, id string) error {
	if err := w.stream.Purge(ctx, jetstream.WithPurgeSubject(webhookSubject(tenant, id, "*"))); err != nil {
		return fmt.Errorf("removing the deliveries of a webhook: %w", err)
	}
	return nil
}
