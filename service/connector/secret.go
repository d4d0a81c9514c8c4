package connector

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Errors of a connector secret's input.
var (
	ErrValueMissing = fault.New(fault.Invalid, "connector_secret_value_missing", "The value of a connector secret must be a string that is not empty.")
	ErrValueTooLong = fault.New(fault.Invalid, "connector_secret_value_too_long", "The value of a connector secret must have at most 65536 bytes.")
)

// maxValue bounds a value, in bytes.
const maxValue = 64 << 10

// Value is a clear value in a request. It cannot be printed.
type Value struct{ seal.Secret }

// UnmarshalJSON implements json.Unmarshaler. Its errors do not quote the input.
func (v *Value) UnmarshalJSON(b []byte) error {
	var text *string
	if err := json.Unmarshal(b, &text); err != nil {
		return service.ErrBody.Withf("The member /value has the wrong type.").At("/value")
	}
	switch {
	case text == nil || *text == "" || !utf8.ValidString(*text):
		return ErrValueMissing.At("/value")
	case len(*text) > maxValue:
		return ErrValueTooLong.At("/value")
	}
	v.Secret = seal.NewSecret([]byte(*text))
	return nil
}

type PutSecret struct {
	ID       string `json:"id,omitzero"` // generated when absent
	Value    Value  `json:"value"`
	Expected int    `json:"expected_version,omitzero"` // refuse unless this is the version of the current value
}

func (s *Service) putSecret(ctx context.Context, call *service.Call, in PutSecret) (service.Done, error) {
	if in.Value.IsZero() {
		return service.Done{}, ErrValueMissing.At("/value")
	}
	if in.ID == "" {
		in.ID = call.DeriveID("connector_secret")
	}
	if err := cmp.Or(commands.CheckRef("/id", in.ID), service.CheckTarget(in.ID, in.Expected)); err != nil {
		return service.Done{}, err
	}
	var done service.Done
	err := s.Secrets.WithSecret(ctx, secretRef(call.Tenant, in.ID, ""), in.Value.Secret, func(secretID string) (err error) {
		done, err = s.changeSecret(ctx, call, commands.PutConnectorSecret{ID: in.ID, SecretID: secretID, Expected: in.Expected})
		return err
	})
	return done, err
}

// secretRef is the vault reference of a value.
func secretRef(tenant, id, secretID string) vault.Ref {
	return vault.Ref{Tenant: tenant, Category: aggregates.ConnectorSecret.Category, Owner: id, SecretID: secretID}
}

// changeSecret executes a command and erases the values that the secret no longer has.
func (s *Service) changeSecret(ctx context.Context, call *service.Call, cmd commands.ConnectorSecret) (service.Done, error) {
	before, after, err := secrets.Change(ctx, s.Secrets, call, aggregates.ConnectorSecret, call.Tenant, cmd)
	if err != nil {
		return service.Done{}, err
	}
	return s.Kernel.Answered(aggregates.ConnectorSecret.Stream(call.Tenant, cmd.Target()), before, after.Value, after.Seq), nil
}

type RevertSecret struct {
	ID       string `json:"id"`
	Version  int    `json:"version"`                   // version to revert to
	Expected int    `json:"expected_version,omitzero"` // refuse unless this is the version of the current value
}

func (s *Service) revertSecret(ctx context.Context, call *service.Call, in RevertSecret) (service.Done, error) {
	if err := service.CheckTarget(in.ID, in.Expected); err != nil {
		return service.Done{}, err
	}
	if in.Version < 1 {
		return service.Done{}, service.ErrBody.Withf("A version is a number from 1.").At("/version")
	}
	return s.changeSecret(ctx, call, commands.RevertConnectorSecret{ID: in.ID, To: in.Version, Expected: in.Expected})
}

// SecretRef identifies a connector secret.
type SecretRef struct {
	ID string `json:"id"`
}

func (s *Service) deleteSecret(ctx context.Context, call *service.Call, in SecretRef) (service.Done, error) {
	if err := checkSecret(in.ID); err != nil {
		return service.Done{}, err
	}
	for range races {
		done, err := s.changeSecret(ctx, call, commands.DeleteConnectorSecret{ID: in.ID})
		if !errors.Is(err, aggregates.ErrConnectorSecretInUse) {
			return done, err
		}
		users, err := s.users(ctx, call, in.ID)
		switch {
		case err != nil:
			return service.Done{}, err
		case len(users) > 0:
			return service.Done{}, inUse(users)
		}
	}
	return service.Done{}, fault.ErrConflict
}

// checkSecret rejects an invalid connector secret id.
func checkSecret(id string) error {
	if err := service.Required("/id", id); err != nil {
		return err
	}
	if events.CheckID(id) != nil {
		return aggregates.ErrConnectorSecretNotFound
	}
	return nil
}

// inUse names the connectors that point to a secret.
func inUse(users []string) error {
	const named = 10
	text := strings.Join(users[:min(len(users), named)], ", ")
	if more := len(users) - named; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return aggregates.ErrConnectorSecretInUse.Withf("The connector secret is in use by connectors: %s. Delete these connectors first, or give them another secret.", text)
}

// users are the connectors that point to a secret. A use that its connector does not have
// is released, once the connector's own stream excludes that it will ever have it.
func (s *Service) users(ctx context.Context, call *service.Call, secret string) (users []string, err error) {
	state, err := aggregates.ConnectorSecret.Fresh(ctx, s.Log, aggregates.ConnectorSecret.Stream(call.Tenant, secret))
	if err != nil {
		return nil, err
	}
	for _, use := range state.Value.Uses {
		_, after, err := service.Execute(ctx, s.Kernel, call.Step(0), aggregates.Connector, call.Tenant,
			commands.Connector(commands.AbandonConnectorUse{ID: use.Connector, Use: use.Use}))
		if err != nil {
			return nil, err
		}
		if after.Value.Use == use.Use {
			users = append(users, use.Connector)
			continue
		}
		s.release(ctx, call, secret, use)
	}
	return users, nil
}

// value opens the current value.
func (s *Service) value(ctx context.Context, tenant, id string) (version int, value seal.Secret, err error) {
	stream := aggregates.ConnectorSecret.Stream(tenant, id)
	for range races {
		var state aggregates.State[aggregates.ConnectorSecretState]
		state, err = aggregates.ConnectorSecret.Fresh(ctx, s.Log, stream)
		switch {
		case err != nil:
			return 0, value, err
		case !state.Value.Live():
			return 0, value, aggregates.ErrConnectorSecretNotFound
		}
		now := state.Value.Current()
		value, err = s.Vault.Get(ctx, secretRef(tenant, id, now.SecretID))
		if !errors.Is(err, vault.ErrNoSecret) { // else it was erased since, with its version
			return now.Version, value, err
		}
	}
	return 0, value, fmt.Errorf("the value of connector secret %s is not in the vault: %s", id, err) //nolint:errorlint // hides ErrNoSecret, which callers would misinterpret
}

// RevealedSecret is the response to a reveal, the only one that contains a value.
type RevealedSecret struct {
	service.Done
	Value string `json:"value"`
}

// Remember implements service.Result. The value is shown once.
func (r RevealedSecret) Remember(*events.CommandCompleted) (service.Done, bool) { return r.Done, true }

// revealSecret returns a value. The audit event is committed first.
func (s *Service) revealSecret(ctx context.Context, call *service.Call, in SecretRef) (RevealedSecret, error) {
	if err := checkSecret(in.ID); err != nil {
		return RevealedSecret{}, err
	}
	for range races {
		version, value, err := s.value(ctx, call.Tenant, in.ID)
		if err != nil {
			return RevealedSecret{}, err
		}
		done, err := s.changeSecret(ctx, call, commands.RevealConnectorSecret{ID: in.ID, Version: version})
		switch {
		case errors.Is(err, aggregates.ErrConnectorSecretMoved):
			continue
		case err != nil:
			return RevealedSecret{}, err
		}
		return RevealedSecret{done, string(value.Reveal())}, nil
	}
	return RevealedSecret{}, fault.ErrConflict
}

// Secret is the public form of a connector secret, without its value.
type Secret struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`             // current version
	Oldest     int       `json:"oldest_version"`      // oldest version that can be activated again
	Connectors []string  `json:"connectors,omitzero"` // connectors that point to it, at most 200; absent in a list
	CreatedAt  time.Time `json:"created_at"`
	CreatedBy  string    `json:"created_by"` // "key:<id>"
	UpdatedAt  time.Time `json:"updated_at"`
	Seq        uint64    `json:"seq"` // log sequence of the last change
}

func secretInfo(k projections.ConnectorSecret) Secret {
	return Secret{
		ID: k.ID, Version: k.Version, Oldest: max(k.First, k.Version-aggregates.KeptVersions+1),
		CreatedAt: k.CreatedAt, CreatedBy: k.CreatedBy, UpdatedAt: k.UpdatedAt, Seq: k.Seq,
	}
}

func (s *Service) getSecret(ctx context.Context, call *service.Call, in Ref) (Secret, error) {
	if err := checkSecret(in.ID); err != nil {
		return Secret{}, err
	}
	if err := s.newest(ctx, in.MinSeq); err != nil {
		return Secret{}, err
	}
	page, _, _, err := s.Views.ConnectorSecrets(ctx, call.Tenant, in.ID, "", 1)
	switch {
	case err != nil:
		return Secret{}, err
	case len(page) == 0:
		return Secret{}, aggregates.ErrConnectorSecretNotFound
	}
	shown := secretInfo(page[0])
	shown.Connectors = []string{}
	users, _, _, err := s.Views.Connectors(ctx, projections.ConnectorFilter{Tenant: call.Tenant, Secret: in.ID, Limit: 200})
	for _, c := range users {
		shown.Connectors = append(shown.Connectors, c.ID)
	}
	return shown, err
}

type ListSecrets struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// SecretList is a page of connector secrets, by id.
type SecretList struct {
	Secrets []Secret `json:"secrets"`
	Next    string   `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total   int      `json:"total"`         // number of connector secrets on all pages
}

func (s *Service) listSecrets(ctx context.Context, call *service.Call, in ListSecrets) (SecretList, error) {
	limit, err := service.PageSize(in.Limit)
	if err == nil {
		err = s.newest(ctx, in.MinSeq)
	}
	if err != nil {
		return SecretList{}, err
	}
	list := SecretList{Secrets: []Secret{}}
	page, next, total, err := s.Views.ConnectorSecrets(ctx, call.Tenant, "", in.After, limit)
	if err != nil {
		return list, err
	}
	list.Next, list.Total = next, total
	for _, k := range page {
		list.Secrets = append(list.Secrets, secretInfo(k))
	}
	return list, nil
}
