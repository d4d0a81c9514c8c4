package service

import (
	"context"
	"fmt"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/vault"
)

// Collect erases the secrets in the vault that no event names and that are
// older than age, and returns how many. Age only chooses what to look at: a
// secret that was never named is first abandoned on its owner's stream, so a
// writer that was merely slow conflicts and puts its secret anew.
func (s *Service) Collect(ctx context.Context, age time.Duration) (erased int, err error) {
	if s.cfg.WritesAllowed != nil {
		if err := s.cfg.WritesAllowed(); err != nil {
			return 0, err
		}
	}
	before := s.now().Add(-age)
	for entry, err := range s.cfg.Vault.All(ctx) {
		if err != nil {
			return erased, fmt.Errorf("walk the vault: %w", err)
		}
		if entry.Stored.After(before) {
			continue
		}
		orphan, err := s.orphan(ctx, entry.Ref)
		if err != nil {
			return erased, fmt.Errorf("look at a secret of %s: %w", entry.Ref.Owner, err)
		}
		if !orphan {
			continue
		}
		if err := s.cfg.Vault.Erase(ctx, entry.Ref); err != nil {
			return erased, fmt.Errorf("erase a secret of %s: %w", entry.Ref.Owner, err)
		}
		erased++
		s.metrics.orphans.Inc()
	}
	return erased, nil
}

// orphan reports whether nothing names the secret and, once it has said so on
// the owner's stream, nothing ever will.
func (s *Service) orphan(ctx context.Context, ref vault.Ref) (bool, error) {
	switch ref.Category {
	case aggregates.Credential.Category:
		return abandon(ctx, s, ref, aggregates.Credential, ref.Tenant, commands.Credential(commands.AbandonSecret{ID: ref.Owner, SecretID: ref.SecretID}))
	case aggregates.OAuthClient.Category:
		return abandon(ctx, s, ref, aggregates.OAuthClient, ref.Tenant, commands.OAuthClient(commands.AbandonClientSecret{Component: ref.Owner, SecretID: ref.SecretID}))
	case aggregates.AuthClient.Category:
		return abandon(ctx, s, ref, aggregates.AuthClient, ref.Tenant, commands.AuthClient(commands.AbandonAuthClientSecret{ID: ref.Owner, SecretID: ref.SecretID}))
	case aggregates.Component.Category:
		return abandon(ctx, s, ref, aggregates.Component, events.System, commands.Component(commands.AbandonEnvSecret{ID: ref.Owner, SecretID: ref.SecretID}))
	}
	return false, nil // of a kind that is not known here
}

// abandon forbids the secret on its owner's stream, which is under tenant,
// unless the owner names it. It reports whether nothing names it.
func abandon[S interface {
	Names(secretID string) bool
	Over() bool
}, C commands.Command, E any](ctx context.Context, s *Service, ref vault.Ref,
	d aggregates.Decider[S, C, E], tenant string, cmd C,
) (bool, error) {
	state, err := d.Fresh(ctx, s.cfg.Log, d.Stream(tenant, ref.Owner))
	if err != nil || state.Value.Names(ref.SecretID) {
		return false, err
	}
	if state.Value.Over() {
		return true, nil // its owner takes no more commands
	}
	_, state, err = execute(ctx, s, system(ref.Tenant, "collector"), d, tenant, cmd)
	return err == nil && !state.Value.Names(ref.SecretID), err
}

// RunCollector collects every interval until ctx ends.
func (s *Service) RunCollector(ctx context.Context, interval, age time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		switch erased, err := s.Collect(ctx, age); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.cfg.Logger.WarnContext(ctx, "collecting orphaned secrets stopped early", "err", err)
		case erased > 0:
			s.cfg.Logger.InfoContext(ctx, "erased orphaned secrets", "count", erased)
		}
	}
}
