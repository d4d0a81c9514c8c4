package secrets

import (
	"context"
	"slices"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/vault"
)

// ErrVaultBehind means that the vault lost secrets that the log references.
var ErrVaultBehind = fault.New(fault.Unavailable, "vault_behind_log",
	"The vault misses secrets that the log references, so it is damaged. Changes are refused and no secret is returned until it is restored from a backup.")

// newestCommits is the number of commits that CheckNewest checks.
const newestCommits = 64

// CheckNewest returns ErrVaultBehind if the vault misses a secret of an owner among the newest
// commits: a secret is durable before the commit that references it, and a power cut loses the
// latest writes first. It skips owners that cannot be read.
func (s *Service) CheckNewest(ctx context.Context) error {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return err
	}
	checked := map[events.StreamID]bool{}
	for seq := end; seq > 0 && end-seq < newestCommits; seq-- {
		recs, err := s.Log.Store.Commit(ctx, seq)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil || checked[recs[0].Stream]:
			continue
		}
		checked[recs[0].Stream] = true
		if err := s.checkOwner(ctx, recs, seq); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) checkOwner(ctx context.Context, recs []events.Record, seq uint64) error {
	var missing bool
	var err error
	switch recs[0].Stream.Category {
	case aggregates.Credential.Category:
		missing, err = misses(ctx, s, aggregates.Credential, recs, aggregates.CredentialState.StoredSecrets)
	case aggregates.OAuthClient.Category:
		missing, err = misses(ctx, s, aggregates.OAuthClient, recs, aggregates.OAuthClientState.Secrets)
	case aggregates.AuthClient.Category:
		missing, err = misses(ctx, s, aggregates.AuthClient, recs, aggregates.AuthClientState.Secrets)
	case aggregates.Component.Category:
		missing, err = misses(ctx, s, aggregates.Component, recs, aggregates.ComponentState.Secrets)
	}
	if missing {
		return ErrVaultBehind.Withf("The stream %s misses a secret of %s %s, which the log references up to commit %d. It is damaged: changes are refused "+
			"and no secret is returned until it is restored from a backup.", vault.Stream, recs[0].Stream.Category, recs[0].Stream.ID, seq)
	}
	return err
}

// misses reports whether an owner has secrets, as returned by stored, that the vault lacks.
func misses[S secretOwner, C commands.Command, E any](ctx context.Context, s *Service, d aggregates.Decider[S, C, E], recs []events.Record,
	stored func(S) []string,
) (bool, error) {
	of := ownerOf(recs)
	lacks := func(has []vault.Entry) (bool, error) {
		state, err := d.Fresh(ctx, s.Log, recs[0].Stream)
		if err != nil {
			return false, ctx.Err()
		}
		return slices.ContainsFunc(stored(state.Value), func(id string) bool {
			return id != "" && state.Value.References(id) && !slices.ContainsFunc(has, func(e vault.Entry) bool { return e.Ref.SecretID == id })
		}), nil
	}
	for again := range 2 { // one that was stored or dropped between the two reads is not missing
		has, err := s.Vault.Owned(ctx, of.Tenant, of.Category, of.Owner)
		if err != nil {
			return false, err
		}
		if missing, err := lacks(has); err != nil || !missing || again == 1 {
			return missing, err
		}
	}
	return false, nil
}
