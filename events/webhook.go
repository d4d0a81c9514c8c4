package events

import (
	"slices"
	"time"
)

// Webhook is the set of events about one webhook, which sends the events of its tenant to an
// HTTP receiver: stream "webhook.<id>" within its tenant. The signing secrets live in the vault
// alone.
//
//sumtype:decl
type Webhook interface{ webhook() }

// WebhookMode is the content mode of CloudEvents over HTTP.
type WebhookMode string

// The modes of a webhook.
const (
	Structured WebhookMode = "structured"
	Binary     WebhookMode = "binary"
)

// WebhookSettings are what a webhook sends, and where.
type WebhookSettings struct {
	URL         string      `json:"url"`
	Description string      `json:"description"` // for people, or ""
	Types       []string    `json:"types"`       // event types, such as "credential.created", and "credential.*"; all when empty
	Component   string      `json:"component"`   // only events of this component and its credentials; all when ""
	Mode        WebhookMode `json:"mode"`
}

// Equal reports whether both say the same.
func (s WebhookSettings) Equal(other WebhookSettings) bool {
	return s.URL == other.URL && s.Description == other.Description && slices.Equal(s.Types, other.Types) &&
		s.Component == other.Component && s.Mode == other.Mode
}

// Public implements formedPart: the settings hold no secret.
func (s WebhookSettings) Public() any { return s }

// WebhookDefined records: A webhook was defined. It sends the events after this one.
type WebhookDefined struct {
	Webhook  WebhookSettings `json:"webhook" feed:",embed"`
	SecretID string          `json:"secret_id" feed:"-"` // where the vault keeps the signing secret
}

// WebhookChanged records: The settings of the webhook were changed. Its secrets are unchanged.
type WebhookChanged struct {
	Webhook WebhookSettings `json:"webhook" feed:",embed"`
}

// WebhookRotated records: The webhook got a new signing secret. It signs with the one before as
// well until a time, at the latest.
type WebhookRotated struct {
	SecretID      string    `json:"secret_id" feed:"-"`
	PreviousUntil time.Time `json:"previous_until" feed:"previous_until"`
}

// WebhookRotationEnded records: The webhook no longer signs with the secret before the current
// one.
type WebhookRotationEnded struct{}

// WebhookDisabled records: The webhook stops sending until it is enabled again. It then
// continues where it stopped.
type WebhookDisabled struct {
	Reason string `json:"reason" feed:"reason"` // "requested", "gone" (the receiver answered 410) or "dead_letters_full"
}

// WebhookEnabled records: A disabled webhook sends again.
type WebhookEnabled struct{}

// WebhookDeleted records: The webhook was deleted; its secrets are erased from the vault.
type WebhookDeleted struct{}

func (WebhookDefined) webhook()       {}
func (WebhookChanged) webhook()       {}
func (WebhookRotated) webhook()       {}
func (WebhookRotationEnded) webhook() {}
func (WebhookDisabled) webhook()      {}
func (WebhookEnabled) webhook()       {}
func (WebhookDeleted) webhook()       {}
func (SecretAbandoned) webhook()      {}

// Who may read credentials need not be allowed to see where events go: the audit stream alone
// has them.
var webhookTypes = []Type{
	Define[WebhookDefined]("webhook.defined", Audit).KeepingSecrets(),
	Define[WebhookChanged]("webhook.changed", Audit).KeepingSecrets(),
	Define[WebhookRotated]("webhook.rotated", Audit),
	Define[WebhookRotationEnded]("webhook.rotation_ended", Audit),
	Define[WebhookDisabled]("webhook.disabled", Audit).KeepingSecrets(),
	Define[WebhookEnabled]("webhook.enabled", Audit).KeepingSecrets(),
	Define[WebhookDeleted]("webhook.deleted", Audit),
}
