package secrets

import (
	"context"
	"time"
)

// CollectFrom is a round of the collector that begins where another one ended.
func (s *Service) CollectFrom(ctx context.Context, age time.Duration, from uint64) (erased int, next uint64, err error) {
	return s.collect(ctx, age, from)
}

// Vaulted lists the secrets of one credential of the tenant default.
func (s *Service) Vaulted(ctx context.Context, credential string) (int, error) {
	entries, err := s.Vault.Owned(ctx, "default", "credential", credential)
	return len(entries), err
}
