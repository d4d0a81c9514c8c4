package secrets

import (
	"fmt"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/vault"
)

// Owners are the states of the owners of secrets at a position of the log: which secrets the
// log names there, and which of them the vault must have. They are not safe for concurrent use.
type Owners struct{ kinds map[string]owners }

// owners are the Owners of one category.
type owners interface {
	apply(events.Record) error
	references(vault.Ref) bool
	required(each func(vault.Ref))
}

// NewOwners returns the Owners of an empty log.
func NewOwners() *Owners {
	return &Owners{map[string]owners{
		aggregates.Credential.Category:      ownersOf(aggregates.Credential, aggregates.CredentialState.StoredSecrets),
		aggregates.OAuthClient.Category:     ownersOf(aggregates.OAuthClient, aggregates.OAuthClientState.Secrets),
		aggregates.AuthClient.Category:      ownersOf(aggregates.AuthClient, aggregates.AuthClientState.Secrets),
		aggregates.ConnectorSecret.Category: ownersOf(aggregates.ConnectorSecret, aggregates.ConnectorSecretState.Secrets),
		aggregates.Webhook.Category:         ownersOf(aggregates.Webhook, aggregates.WebhookState.Secrets),
		aggregates.Component.Category:       ownersOf(aggregates.Component, aggregates.ComponentState.Secrets),
	}}
}

// Has reports whether aggregates of the category own secrets.
func (o *Owners) Has(category string) bool { return o.kinds[category] != nil }

// Apply applies the next record of the log, or of one stream of it.
func (o *Owners) Apply(rec events.Record) error {
	if k := o.kinds[rec.Stream.Category]; k != nil {
		return k.apply(rec)
	}
	return nil
}

// References reports whether the log names the secret. A secret of an unknown category counts as named.
func (o *Owners) References(ref vault.Ref) bool {
	k := o.kinds[ref.Category]
	return k == nil || k.references(ref)
}

// Required calls each with every secret that the vault must have.
func (o *Owners) Required(each func(vault.Ref)) {
	for _, k := range o.kinds {
		k.required(each)
	}
}

type fold[S secretOwner, C commands.Command, E any] struct {
	d      aggregates.Decider[S, C, E]
	stored func(S) []string // secrets that were durable before an event named them
	states map[vault.Ref]S  // by the owner: a Ref without a secret
}

func ownersOf[S secretOwner, C commands.Command, E any](d aggregates.Decider[S, C, E], stored func(S) []string) owners {
	return &fold[S, C, E]{d, stored, map[vault.Ref]S{}}
}

func (f *fold[S, C, E]) apply(rec events.Record) error {
	e, ok := rec.Event.(E)
	if !ok {
		return fmt.Errorf("read %s: unexpected event %T at %d", rec.Stream, rec.Event, rec.Seq)
	}
	of := ownerOf([]events.Record{rec})
	f.states[of] = f.d.Evolve(f.states[of], e)
	return nil
}

func (f *fold[S, C, E]) references(ref vault.Ref) bool {
	id := ref.SecretID
	ref.SecretID = ""
	return f.states[ref].References(id)
}

func (f *fold[S, C, E]) required(each func(vault.Ref)) {
	for ref, state := range f.states {
		for _, id := range f.stored(state) {
			if id != "" && state.References(id) {
				ref.SecretID = id
				each(ref)
			}
		}
	}
}
