package secrets

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/vault"
)

// clockSkew is the tolerated difference between the clocks of the server that stores secrets and of the process
// that appends commits before a secret counts as older than the log.
const clockSkew = time.Minute

// wholeRound is the interval at which the collector scans all secrets. In between, it scans
// those stored since its last round: an older one becomes an orphan only if its erasure
// after a commit failed, which sets secretsLeft, or the process died before it.
const wholeRound = 24 * time.Hour

// Collect erases the secrets in the vault that no event references and that are older than
// age, and returns how many. Age only selects the candidates: a secret that was never
// referenced is first abandoned on its owner's stream, so that a slow writer gets a conflict
// and stores its secret again.
func (s *Service) Collect(ctx context.Context, age time.Duration) (erased int, err error) {
	erased, _, err = s.collect(ctx, age, 1)
	return erased, err
}

// collect is Collect for the secrets from a sequence of the vault on; next is the sequence of
// the first one that it has not processed.
func (s *Service) collect(ctx context.Context, age time.Duration, from uint64) (erased int, next uint64, err error) {
	next = from
	if err := s.Kernel.WritesAllowed(); err != nil {
		return 0, next, err
	}
	if s.CheckLogComplete != nil {
		if err := s.CheckLogComplete(ctx); err != nil {
			return 0, next, fmt.Errorf("check the log before collection: %w", err)
		}
	}
	before := s.Kernel.Now().Add(-age)
	young := false // a secret was too young: the next round begins there
	for entry, err := range s.Vault.All(ctx, from) {
		if err != nil {
			return erased, next, fmt.Errorf("walk the vault: %w", err)
		}
		if entry.Stored.After(before) {
			young = true
			continue
		}
		orphan, err := s.isOrphan(ctx, entry)
		if err != nil {
			return erased, next, fmt.Errorf("check a secret of %s: %w", entry.Ref.Owner, err)
		}
		if orphan {
			if err := s.Vault.Erase(ctx, entry.Ref); err != nil {
				return erased, next, fmt.Errorf("erase a secret of %s: %w", entry.Ref.Owner, err)
			}
			erased++
			s.metrics.orphans.Inc()
		}
		if !young {
			next = entry.Seq + 1
		}
	}
	return erased, next, nil
}

// isOrphan reports whether nothing references the secret and, because it is now abandoned on
// the owner's stream, nothing ever will.
func (s *Service) isOrphan(ctx context.Context, e vault.Entry) (bool, error) {
	ref := e.Ref
	switch ref.Category {
	case aggregates.Credential.Category:
		return abandon(ctx, s, e, aggregates.Credential, ref.Tenant, commands.Credential(commands.AbandonSecret{ID: ref.Owner, SecretID: ref.SecretID}),
			func() (bool, error) {
				_, found, err := s.Views.Credential(ctx, ref.Tenant, ref.Owner)
				return found, err
			})
	case aggregates.OAuthClient.Category:
		return abandon(ctx, s, e, aggregates.OAuthClient, ref.Tenant, commands.OAuthClient(commands.AbandonClientSecret{Component: ref.Owner, SecretID: ref.SecretID}),
			func() (bool, error) {
				_, found, err := s.Views.OAuthClient(ctx, ref.Tenant, "", ref.Owner)
				return found, err
			})
	case aggregates.AuthClient.Category:
		return abandon(ctx, s, e, aggregates.AuthClient, ref.Tenant, commands.AuthClient(commands.AbandonAuthClientSecret{ID: ref.Owner, SecretID: ref.SecretID}),
			func() (bool, error) {
				_, found, err := s.Views.AuthClient(ctx, ref.Tenant, ref.Owner)
				return found, err
			})
	case aggregates.ConnectorSecret.Category:
		return abandon(ctx, s, e, aggregates.ConnectorSecret, ref.Tenant, commands.ConnectorSecret(commands.AbandonConnectorSecret{ID: ref.Owner, SecretID: ref.SecretID}),
			func() (bool, error) {
				page, _, _, err := s.Views.ConnectorSecrets(ctx, ref.Tenant, ref.Owner, "", 1)
				return len(page) > 0, err
			})
	case aggregates.Webhook.Category:
		return abandon(ctx, s, e, aggregates.Webhook, ref.Tenant, commands.Webhook(commands.AbandonWebhookSecret{ID: ref.Owner, SecretID: ref.SecretID}),
			func() (bool, error) { _, found, err := s.Views.Webhook(ctx, ref.Tenant, ref.Owner); return found, err })
	case aggregates.Component.Category:
		return abandon(ctx, s, e, aggregates.Component, events.System, commands.Component(commands.AbandonEnvSecret{ID: ref.Owner, SecretID: ref.SecretID}),
			func() (bool, error) { _, found, err := s.Views.Component(ctx, ref.Owner); return found, err })
	}
	return false, nil // of an unknown kind
}

// abandon excludes the secret from use on its owner's stream, which is under tenant, unless the
// owner references it. It reports whether nothing references it. A missing owner is no proof if
// the log may have lost its commits; inViews reports whether the views know the owner.
func abandon[S interface {
	References(secretID string) bool
	Terminal() bool
}, C commands.Command, E any](ctx context.Context, s *Service, e vault.Entry,
	d aggregates.Decider[S, C, E], tenant string, cmd C, inViews func() (bool, error),
) (bool, error) {
	ref := e.Ref
	state, err := d.Fresh(ctx, s.Log, d.Stream(tenant, ref.Owner))
	if err != nil || state.Value.References(ref.SecretID) {
		return false, err
	}
	if state.Seq == 0 {
		lost, err := s.mayBeLost(ctx, e, inViews)
		if err != nil || lost {
			return false, err
		}
	}
	if state.Value.Terminal() {
		return true, nil // its owner accepts no further commands
	}
	_, state, err = service.Execute(ctx, s.Kernel, service.System(ref.Tenant, "collector"), d, tenant, cmd)
	return err == nil && !state.Value.References(ref.SecretID), err
}

// mayBeLost reports whether the log may have lost the owner of a secret: the
// secret is older than the log's first commit, or the views know the owner.
func (s *Service) mayBeLost(ctx context.Context, e vault.Entry, inViews func() (bool, error)) (bool, error) {
	var why string
	first, err := s.Log.Store.Commit(ctx, 1)
	switch {
	case errors.Is(err, events.ErrNoSuchCommit):
		why = "the log is empty"
	case err != nil:
		return false, err
	case e.Stored.Before(first[0].Meta.Time.Add(-clockSkew)):
		why = "the secret is older than the log"
	default:
		known, err := inViews()
		if err != nil || !known {
			return false, err
		}
		why = "the read models know the owner"
	}
	s.Logger.WarnContext(ctx, "secret kept: its owner is missing in the log, so the log may be damaged", "why", why,
		"tenant", e.Ref.Tenant, "category", e.Ref.Category, "owner", e.Ref.Owner)
	return true, nil
}

// RunCollector collects every interval until ctx ends: first all secrets, then
// those stored since the previous round; all again once a day, and after a
// failed erasure.
func (s *Service) RunCollector(ctx context.Context, interval, age time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	next, whole := uint64(1), s.Kernel.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if now := s.Kernel.Now(); s.secretsLeft.Swap(false) || now.Sub(whole) >= wholeRound {
			next, whole = 1, now
		}
		erased, upTo, err := s.collect(ctx, age, next)
		next = upTo
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			s.Logger.WarnContext(ctx, "collection of orphaned secrets stopped early", "err", err)
		case erased > 0:
			s.Logger.InfoContext(ctx, "erased orphaned secrets", "count", erased)
		}
	}
}
