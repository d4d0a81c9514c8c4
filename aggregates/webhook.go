package aggregates

import (
	"slices"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of a webhook.
var (
	ErrWebhookNotFound = fault.New(fault.NotFound, "webhook_not_found", "Webhook not found.")
	ErrWebhookExists   = fault.New(fault.Exists, "webhook_exists", "A webhook with this id already exists.")
)

// Webhook is the aggregate of one webhook. Its id may be used again after a deletion.
var Webhook = Decider[WebhookState, commands.Webhook, events.Webhook]{
	Category: "webhook", Fold: 1, Decide: WebhookState.decide, Evolve: WebhookState.evolve,
}

// WebhookState is the state of a webhook.
type WebhookState struct {
	Incarnation   string // the secret id of its definition, which tells it from an earlier webhook of its id; "" when there is none
	Settings      events.WebhookSettings
	SecretID      string
	Previous      string    // the secret before, which still signs; or ""
	PreviousUntil time.Time // when it stops
	Disabled      string    // why; "" when it sends
	Abandoned     []string  // secret ids that no event may name from now on
}

// Live reports whether the webhook exists.
func (s WebhookState) Live() bool { return s.Incarnation != "" }

// Secrets are the ids of the secrets that it signs with.
func (s WebhookState) Secrets() []string { return []string{s.SecretID, s.Previous} }

// References reports whether it signs with this secret.
func (s WebhookState) References(secretID string) bool {
	return secretID != "" && (s.SecretID == secretID || s.Previous == secretID)
}

// Terminal reports whether no further event can name a secret.
func (s WebhookState) Terminal() bool { return false }

func (s WebhookState) decide(cmd commands.Webhook) ([]events.Webhook, error) {
	one := func(e events.Webhook) ([]events.Webhook, error) { return []events.Webhook{e}, nil }
	switch c := cmd.(type) {
	case commands.DefineWebhook:
		switch {
		case s.Live():
			return nil, ErrWebhookExists
		case slices.Contains(s.Abandoned, c.SecretID):
			return nil, ErrSecretAbandoned
		}
		return one(events.WebhookDefined{Webhook: c.Webhook, SecretID: c.SecretID})
	case commands.ChangeWebhook:
		if !s.Live() {
			return nil, ErrWebhookNotFound
		}
		return s.change(c), nil
	case commands.RotateWebhook:
		switch {
		case !s.Live():
			return nil, ErrWebhookNotFound
		case slices.Contains(s.Abandoned, c.SecretID):
			return nil, ErrSecretAbandoned
		case s.SecretID == c.SecretID:
			return nil, nil
		}
		return one(events.WebhookRotated{SecretID: c.SecretID, PreviousUntil: c.PreviousUntil})
	case commands.EndWebhookRotation:
		if !s.Live() || s.SecretID != c.SecretID || s.Previous == "" {
			return nil, nil
		}
		return one(events.WebhookRotationEnded{})
	case commands.DisableWebhook:
		if !s.Live() || s.Incarnation != c.Incarnation || s.Disabled != "" {
			return nil, nil
		}
		return one(events.WebhookDisabled{Reason: c.Reason})
	case commands.DeleteWebhook:
		if !s.Live() {
			return nil, ErrWebhookNotFound
		}
		return one(events.WebhookDeleted{})
	case commands.AbandonWebhookSecret: // also before the webhook exists
		if s.References(c.SecretID) || slices.Contains(s.Abandoned, c.SecretID) {
			return nil, nil
		}
		return one(events.SecretAbandoned{SecretID: c.SecretID})
	}
	return nil, unknownCommand(cmd)
}

// DisabledOnRequest is the reason of a webhook that an administrator disabled.
const DisabledOnRequest = "requested"

func (s WebhookState) change(c commands.ChangeWebhook) (facts []events.Webhook) {
	next := s.Settings
	if c.URL != "" {
		next.URL = c.URL
	}
	if c.Description != nil {
		next.Description = *c.Description
	}
	if c.Types != nil {
		next.Types = *c.Types
	}
	if c.Component != nil {
		next.Component = *c.Component
	}
	if c.Mode != "" {
		next.Mode = c.Mode
	}
	if !next.Equal(s.Settings) {
		facts = append(facts, events.WebhookChanged{Webhook: next})
	}
	if c.EndRotation && s.Previous != "" {
		facts = append(facts, events.WebhookRotationEnded{})
	}
	if c.Enabled != nil && *c.Enabled != (s.Disabled == "") {
		if *c.Enabled {
			return append(facts, events.WebhookEnabled{})
		}
		return append(facts, events.WebhookDisabled{Reason: DisabledOnRequest})
	}
	return facts
}

func (s WebhookState) evolve(e events.Webhook) WebhookState {
	switch e := e.(type) {
	case events.WebhookDefined:
		return WebhookState{Incarnation: e.SecretID, Settings: e.Webhook, SecretID: e.SecretID, Abandoned: s.Abandoned}
	case events.WebhookChanged:
		s.Settings = e.Webhook
	case events.WebhookRotated:
		s.Previous, s.PreviousUntil = s.SecretID, e.PreviousUntil
		if e.PreviousUntil.IsZero() {
			s.Previous = ""
		}
		s.SecretID = e.SecretID
	case events.WebhookRotationEnded:
		s.Previous, s.PreviousUntil = "", time.Time{}
	case events.WebhookDisabled:
		s.Disabled = e.Reason
	case events.WebhookEnabled:
		s.Disabled = ""
	case events.WebhookDeleted:
		return WebhookState{Abandoned: s.Abandoned}
	case events.SecretAbandoned:
		s.Abandoned = append(slices.Clip(s.Abandoned), e.SecretID)
	}
	return s
}
