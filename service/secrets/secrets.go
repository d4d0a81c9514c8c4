package secrets

import (
	"context"
	"errors"
	"fmt"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/vault"
)

// WithSecret stores a secret in the vault, durably, and then executes do, which references it.
// If do is rejected, it erases the secret; if the outcome is unknown, the collector decides.
func (s *Service) WithSecret(ctx context.Context, ref vault.Ref, secret seal.Secret, do func(secretID string) error) error {
	for {
		ref.SecretID = events.NewID()
		begin := s.Kernel.Now()
		if err := s.Vault.Put(ctx, ref, secret); err != nil {
			return fmt.Errorf("put the secret of %s %s: %w", ref.Category, ref.Owner, err)
		}
		s.metrics.sealed.Observe(s.Kernel.Now().Sub(begin).Seconds())
		err := do(ref.SecretID)
		if err != nil && service.IsRejected(err) {
			s.Erase(ctx, ref)
		}
		if !errors.Is(err, aggregates.ErrSecretAbandoned) {
			return err
		}
	}
}

// EraseAll erases secrets from the vault now. An error means that some are left.
func (s *Service) EraseAll(ctx context.Context, refs []vault.Ref) error {
	if len(refs) == 0 {
		return nil
	}
	return s.erased(ctx, refs, s.Vault.EraseEach(ctx, refs...))
}

// erased reports secrets of one owner that could not be erased.
func (s *Service) erased(ctx context.Context, refs []vault.Ref, errs []error) error {
	err := errors.Join(errs...)
	if err != nil {
		s.secretsLeft.Store(true)
		s.Logger.WarnContext(ctx, "secret not erased; process manager will retry", "tenant", refs[0].Tenant, "owner", refs[0].Owner, "err", err)
	}
	return err
}

// Erase erases a secret that no event references from the vault now; the
// collector retries a failure.
func (s *Service) Erase(ctx context.Context, ref vault.Ref) {
	if err := s.Vault.Erase(ctx, ref); err != nil {
		s.secretsLeft.Store(true)
		s.Logger.WarnContext(ctx, "secret not erased; collector will retry", "tenant", ref.Tenant, "owner", ref.Owner, "err", err)
	}
}
