package secrets

import (
	"context"
	"errors"
	"fmt"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/vault"
)

// Live returns the state of a credential that exists, or
// aggregates.ErrCredentialNotFound or ErrCredentialVersionStale.
func (s *Service) Live(ctx context.Context, tenant, id string, expected int) (aggregates.CredentialState, error) {
	var none aggregates.CredentialState
	if err := service.CheckTarget(id, expected); err != nil {
		return none, err
	}
	state, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(tenant, id))
	switch {
	case err != nil:
		return none, err
	case !state.Value.Live():
		return none, aggregates.ErrCredentialNotFound
	case expected != 0 && expected != state.Value.Current().Version:
		return none, aggregates.ErrCredentialVersionStale
	}
	return state.Value, nil
}

// ChangeCredential executes a command and erases the secrets that no kept version references
// any longer.
func (s *Service) ChangeCredential(ctx context.Context, call *service.Call, cmd commands.Credential) (service.Done, error) {
	before, after, err := Change(ctx, s, call, aggregates.Credential, call.Tenant, cmd)
	if err != nil {
		return service.Done{}, err
	}
	return s.CredentialDone(call.Tenant, cmd.Target(), before, after), nil
}

// CredentialDone is the response to a command on a credential, from the states before and after it.
func (s *Service) CredentialDone(tenant, id string, before aggregates.CredentialState, after aggregates.State[aggregates.CredentialState]) service.Done {
	return s.Kernel.Answered(aggregates.Credential.Stream(tenant, id), before, after.Value, after.Seq)
}

// StatusOf is the status of a credential; "" if it was deleted.
func StatusOf(s aggregates.CredentialState) events.Status {
	if !s.Live() {
		return ""
	}
	return s.Status
}

// Open reads the clear values of one version.
func (s *Service) Open(ctx context.Context, tenant, id string, v events.KeysVersion) (seal.Fields, error) {
	if v.SecretID == "" { // its tokens were revoked, and the keys that contained them are erased
		return seal.Fields{}, aggregates.ErrReauthorizationRequired.Withf("%s", aggregates.RevokedHere)
	}
	secret, err := s.Vault.Get(ctx, CredentialRef(tenant, id, v.SecretID))
	if errors.Is(err, vault.ErrNoSecret) {
		return seal.Fields{}, s.MissingSecretError(ctx, tenant, id, v.SecretID)
	}
	if err != nil {
		return seal.Fields{}, fmt.Errorf("open the secret of %s version %d: %w", id, v.Version, err)
	}
	return seal.ParseFields(secret.Reveal())
}

// MissingSecretError returns why a secret is not in the vault: it was dropped after the caller
// read the state, or it is lost, which callers cannot repair.
func (s *Service) MissingSecretError(ctx context.Context, tenant, id, secretID string) error {
	if state, err := s.Live(ctx, tenant, id, 0); err != nil || !state.References(secretID) {
		return errors.Join(err, aggregates.ErrCredentialVersionStale)
	}
	return fmt.Errorf("the vault has no secret of %s", id)
}

// CredentialRef is the vault reference of a secret of a credential.
func CredentialRef(tenant, id, secretID string) vault.Ref {
	return vault.Ref{Tenant: tenant, Category: aggregates.Credential.Category, Owner: id, SecretID: secretID}
}
