package client

import (
	"context"
	"iter"
	"time"
)

// Webhook is what the service shows of a webhook.
type Webhook struct {
	ID            string    `json:"id"`
	URL           string    `json:"url"`
	Description   string    `json:"description"`
	Types         []string  `json:"types"`     // event types that it sends; all when empty
	Component     string    `json:"component"` // it sends only events of this component, its OAuth client and its credentials; all when ""
	Mode          string    `json:"mode"`      // "structured" or "binary"
	Enabled       bool      `json:"enabled"`
	Reason        string    `json:"reason,omitzero"`         // why it is disabled: "requested", "gone" (the receiver answered 410) or "dead_letters_full"
	PreviousUntil time.Time `json:"previous_until,omitzero"` // until then it signs with the previous secret, too
	CreatedAt     time.Time `json:"created_at"`
	CreatedBy     string    `json:"created_by"` // "key:<id>"
	UpdatedAt     time.Time `json:"updated_at"`
	Seq           uint64    `json:"seq"` // log sequence of the last change
}

// WebhookSettings are what a webhook sends, and where. Of a change, what is nil or "" stays.
type WebhookSettings struct {
	URL         string    `json:"url,omitzero"`
	Description *string   `json:"description,omitzero"`
	Types       *[]string `json:"types,omitzero"`     // event types, such as "credential.created", or "credential.*"; all when empty
	Component   *string   `json:"component,omitzero"` // id
	Mode        string    `json:"mode,omitzero"`      // "structured" or "binary"
}

// WebhookSecret answers a command that makes a signing secret.
type WebhookSecret struct {
	Done
	Secret string `json:"secret,omitzero"` // "whsec_" and base64; "" in the answer to a repeat
}

// DefineWebhook defines a webhook; with id "" the service makes an id (webhook_exists).
func (a *API) DefineWebhook(ctx context.Context, id string, settings WebhookSettings, opts ...CommandOption) (WebhookSecret, error) {
	var made WebhookSecret
	err := a.Command(ctx, "webhook.define", struct {
		ID string `json:"id,omitzero"`
		WebhookSettings
	}{id, settings}, &made, opts...)
	return made, err
}

// WebhookChange changes a webhook.
type WebhookChange struct {
	ID string `json:"id"`
	WebhookSettings
	Enabled     *bool `json:"enabled,omitzero"`      // false stops sending; true continues where it stopped
	EndRotation bool  `json:"end_rotation,omitzero"` // no longer sign with the previous secret
}

// ChangeWebhook changes a webhook.
func (a *API) ChangeWebhook(ctx context.Context, change WebhookChange, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "webhook.change", change, &done, opts...)
	return done, err
}

// RotateWebhookSecret gives a webhook a new signing secret. The previous one signs as well for
// keep, at most 720 hours.
func (a *API) RotateWebhookSecret(ctx context.Context, id string, keep time.Duration, opts ...CommandOption) (WebhookSecret, error) {
	var made WebhookSecret
	err := a.Command(ctx, "webhook.rotate-secret", struct {
		ID   string `json:"id"`
		Keep string `json:"keep_previous"`
	}{id, keep.String()}, &made, opts...)
	return made, err
}

// DeleteWebhook deletes a webhook, with what it has not delivered.
func (a *API) DeleteWebhook(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "webhook.delete", change{ID: id}, &done, opts...)
	return done, err
}

// ShowWebhook returns one webhook; minSeq, when not 0, is the log sequence that the answer
// reflects at least.
func (a *API) ShowWebhook(ctx context.Context, id string, minSeq uint64) (Webhook, error) {
	var w Webhook
	err := a.Query(ctx, "webhook.show", struct {
		ID     string `json:"id"`
		MinSeq uint64 `json:"min_seq,omitzero"`
	}{id, minSeq}, &w)
	return w, err
}

// Webhooks yields the tenant's webhooks by id.
func (a *API) Webhooks(ctx context.Context) iter.Seq2[Webhook, error] {
	return listed(ctx, a, "webhook.list", func(p idPage) []Webhook { return p.Webhooks })
}

// WebhookDelivery is one event on its way to a receiver.
type WebhookDelivery struct {
	Event    string    `json:"event"` // id of the event
	Type     string    `json:"type"`
	Subject  string    `json:"subject"`
	Status   string    `json:"status"` // "delivered", "pending" or "dead"
	Attempts int       `json:"attempts"`
	HTTP     int       `json:"http_status,omitzero"` // of the last answer; 0 without one
	Outcome  string    `json:"outcome,omitzero"`     // why there was no answer
	Latency  int64     `json:"latency_ms"`           // of the last attempt
	At       time.Time `json:"at,omitzero"`          // of the last attempt
	Next     time.Time `json:"next,omitzero"`        // of the next attempt
	Seq      uint64    `json:"seq"`                  // log sequence of the event
}

// WebhookDeliveries lists the dead letters of a webhook, its pending deliveries, and the last
// that were made; status, when not "", is the one of those.
func (a *API) WebhookDeliveries(ctx context.Context, id, status string) ([]WebhookDelivery, error) {
	all := []WebhookDelivery{}
	for after := ""; ; {
		var list struct {
			Deliveries []WebhookDelivery `json:"deliveries"`
			Next       string            `json:"next"`
		}
		err := a.Query(ctx, "webhook.deliveries", struct {
			ID     string `json:"id"`
			Status string `json:"status,omitzero"`
			Limit  int    `json:"limit"`
			After  string `json:"after,omitzero"`
		}{id, status, 200, after}, &list)
		if all = append(all, list.Deliveries...); err != nil || list.Next == "" {
			return all, err
		}
		after = list.Next
	}
}

// WebhookSent is what came of a request to a receiver.
type WebhookSent struct {
	Done           // says what the receiver answered
	Outcome string `json:"outcome"` // "delivered" or "failed"
}

// TestWebhook sends a test event to the receiver of a webhook.
func (a *API) TestWebhook(ctx context.Context, id string, opts ...CommandOption) (WebhookSent, error) {
	var sent WebhookSent
	err := a.Command(ctx, "webhook.test", change{ID: id}, &sent, opts...)
	return sent, err
}

// RedeliverWebhook sends a dead letter of a webhook again (webhook_delivery_not_found).
func (a *API) RedeliverWebhook(ctx context.Context, id, event string, opts ...CommandOption) (WebhookSent, error) {
	var sent WebhookSent
	err := a.Command(ctx, "webhook.redeliver", struct {
		ID    string `json:"id"`
		Event string `json:"event"`
	}{id, event}, &sent, opts...)
	return sent, err
}
