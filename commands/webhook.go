package commands

import (
	"time"

	"github.com/credstream/credstream/events"
)

// Webhook is the sum of the intents about one webhook.
//
//sumtype:decl
type Webhook interface {
	Command
	webhook()
}

// DefineWebhook makes a webhook of an id that no webhook has.
type DefineWebhook struct {
	ID       string
	Webhook  events.WebhookSettings
	SecretID string
}

// ChangeWebhook changes what is given.
type ChangeWebhook struct {
	ID          string
	URL         string             // "": stays
	Description *string            // nil: stays
	Types       *[]string          // nil: stays
	Component   *string            // nil: stays
	Mode        events.WebhookMode // "": stays
	Enabled     *bool              // nil: stays
	EndRotation bool               // no longer sign with the secret before the current one
}

// RotateWebhook gives the webhook a new signing secret.
type RotateWebhook struct {
	ID, SecretID  string
	PreviousUntil time.Time // zero: the current secret ends now
}

// EndWebhookRotation ends the rotation to a secret; a later rotation stays.
type EndWebhookRotation struct{ ID, SecretID string }

// DisableWebhook stops a webhook as it was defined with a secret.
type DisableWebhook struct{ ID, Incarnation, Reason string }

// DeleteWebhook ends the webhook.
type DeleteWebhook struct{ ID string }

// AbandonWebhookSecret forbids a secret in the vault that no event names, so that it can be erased.
type AbandonWebhookSecret struct{ ID, SecretID string }

// Target implements Command.
func (c DefineWebhook) Target() string        { return c.ID }
func (c ChangeWebhook) Target() string        { return c.ID }
func (c RotateWebhook) Target() string        { return c.ID }
func (c EndWebhookRotation) Target() string   { return c.ID }
func (c DisableWebhook) Target() string       { return c.ID }
func (c DeleteWebhook) Target() string        { return c.ID }
func (c AbandonWebhookSecret) Target() string { return c.ID }

func (DefineWebhook) webhook()        {}
func (ChangeWebhook) webhook()        {}
func (RotateWebhook) webhook()        {}
func (EndWebhookRotation) webhook()   {}
func (DisableWebhook) webhook()       {}
func (DeleteWebhook) webhook()        {}
func (AbandonWebhookSecret) webhook() {}
