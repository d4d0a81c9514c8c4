package aggregates_test

import (
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

func TestWebhook(t *testing.T) {
	type (
		facts = []events.Webhook
		tc    = aggregatetest.Case[commands.Webhook, events.Webhook]
	)
	to, other, none, yes, no, all := events.WebhookSettings{URL: "https://a", Types: []string{"credential.*"}, Mode: events.Structured}, events.WebhookSettings{URL: "https://b", Mode: events.Structured}, "", true, false, []string(nil)
	tomorrow := time.Date(2031, 1, 2, 0, 0, 0, 0, time.UTC)
	defined, deleted := events.WebhookDefined{Webhook: to, SecretID: "s1"}, events.WebhookDeleted{}
	rotated := events.WebhookRotated{SecretID: "s2", PreviousUntil: tomorrow}
	gone := events.WebhookDisabled{Reason: "gone"}
	aggregatetest.Run(t, aggregates.Webhook,
		tc{Name: "define", When: commands.DefineWebhook{ID: "w", Webhook: to, SecretID: "s1"}, Then: facts{defined}},
		tc{Name: "define a taken id", Given: facts{defined}, When: commands.DefineWebhook{ID: "w", Webhook: to, SecretID: "s2"}, Err: aggregates.ErrWebhookExists},
		tc{Name: "define a deleted id", Given: facts{defined, deleted}, When: commands.DefineWebhook{ID: "w", Webhook: to, SecretID: "s2"}, Then: facts{events.WebhookDefined{Webhook: to, SecretID: "s2"}}},
		tc{Name: "define with a secret that was abandoned", Given: facts{events.SecretAbandoned{SecretID: "s1"}}, When: commands.DefineWebhook{ID: "w", Webhook: to, SecretID: "s1"}, Err: aggregates.ErrSecretAbandoned},
		tc{Name: "abandoned, defined and deleted", Given: facts{events.SecretAbandoned{SecretID: "s1"}, events.WebhookDefined{Webhook: to, SecretID: "s2"}, deleted}, When: commands.DefineWebhook{ID: "w", Webhook: to, SecretID: "s1"}, Err: aggregates.ErrSecretAbandoned},
		tc{Name: "change", Given: facts{defined}, When: commands.ChangeWebhook{ID: "w", URL: "https://b", Types: &all}, Then: facts{events.WebhookChanged{Webhook: other}}},
		tc{Name: "change nothing", Given: facts{defined}, When: commands.ChangeWebhook{ID: "w", Description: &none, Component: &none, Mode: events.Structured, Enabled: &yes, EndRotation: true}},
		tc{Name: "change what is gone", Given: facts{defined, deleted}, When: commands.ChangeWebhook{ID: "w", URL: "https://b"}, Err: aggregates.ErrWebhookNotFound},
		tc{Name: "disable on request", Given: facts{defined}, When: commands.ChangeWebhook{ID: "w", Enabled: &no}, Then: facts{events.WebhookDisabled{Reason: "requested"}}},
		tc{Name: "disable", Given: facts{defined}, When: commands.DisableWebhook{ID: "w", Incarnation: "s1", Reason: "gone"}, Then: facts{gone}},
		tc{Name: "disable an earlier one", Given: facts{defined, deleted, events.WebhookDefined{Webhook: to, SecretID: "s2"}}, When: commands.DisableWebhook{ID: "w", Incarnation: "s1", Reason: "gone"}},
		tc{Name: "disable again", Given: facts{defined, gone}, When: commands.DisableWebhook{ID: "w", Incarnation: "s1", Reason: "dead_letters_full"}},
		tc{Name: "enable and change", Given: facts{defined, gone}, When: commands.ChangeWebhook{ID: "w", URL: "https://b", Types: &all, Enabled: &yes}, Then: facts{events.WebhookChanged{Webhook: other}, events.WebhookEnabled{}}},
		tc{Name: "rotate", Given: facts{defined}, When: commands.RotateWebhook{ID: "w", SecretID: "s2", PreviousUntil: tomorrow}, Then: facts{rotated}},
		tc{Name: "rotate with a secret that was abandoned", Given: facts{defined, events.SecretAbandoned{SecretID: "s2"}}, When: commands.RotateWebhook{ID: "w", SecretID: "s2"}, Err: aggregates.ErrSecretAbandoned},
		tc{Name: "rotate nothing", When: commands.RotateWebhook{ID: "w", SecretID: "s2"}, Err: aggregates.ErrWebhookNotFound},
		tc{Name: "end the rotation", Given: facts{defined, rotated}, When: commands.EndWebhookRotation{ID: "w", SecretID: "s2"}, Then: facts{events.WebhookRotationEnded{}}, Again: true},
		tc{Name: "end the rotation by a change", Given: facts{defined, rotated}, When: commands.ChangeWebhook{ID: "w", EndRotation: true}, Then: facts{events.WebhookRotationEnded{}}},
		tc{Name: "end an earlier rotation", Given: facts{defined, rotated, events.WebhookRotated{SecretID: "s3", PreviousUntil: tomorrow}}, When: commands.EndWebhookRotation{ID: "w", SecretID: "s2"}},
		tc{Name: "end a rotation that keeps nothing", Given: facts{defined, events.WebhookRotated{SecretID: "s2"}}, When: commands.EndWebhookRotation{ID: "w", SecretID: "s2"}},
		tc{Name: "abandon a secret that signs", Given: facts{defined, rotated}, When: commands.AbandonWebhookSecret{ID: "w", SecretID: "s1"}},
		tc{Name: "abandon a secret that no longer signs", Given: facts{defined, rotated, events.WebhookRotationEnded{}}, When: commands.AbandonWebhookSecret{ID: "w", SecretID: "s1"}, Then: facts{events.SecretAbandoned{SecretID: "s1"}}},
		tc{Name: "delete", Given: facts{defined, rotated, gone}, When: commands.DeleteWebhook{ID: "w"}, Then: facts{deleted}},
		tc{Name: "delete nothing", When: commands.DeleteWebhook{ID: "w"}, Err: aggregates.ErrWebhookNotFound},
	)
}
