package token

import (
	"context"
	"errors"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
)

// followUp revokes tokens that a commit has ended at the provider, and erases
// the secrets that it has dropped. An interrupted revocation is completed.
func (s *Service) followUp(ctx context.Context, recs []events.Record, seen time.Time) (worked bool, err error) {
	id, call := recs[0].Stream.ID, followingUp(recs[0].Meta)
	before, now, gone, err := secrets.Around(ctx, s.Secrets, aggregates.Credential, recs)
	if err != nil {
		return false, err
	}
	var ended bool
	for _, rec := range recs {
		switch e := rec.Event.(type) {
		case events.CredentialDeleted, events.CredentialTokensRevoked:
			ended = true
		case events.CredentialReauthorizationRequired:
			if e.Reason == aggregates.ReasonRevokedHere && now.OAuth() && now.Tokens.RevokedLocally && now.Tokens.Grant == e.Grant && now.Current().SecretID != "" {
				return true, s.completeRevocation(ctx, call, recs[0], e.Grant, seen)
			}
		}
	}
	if worked, err = s.Secrets.HasAny(ctx, gone); err != nil {
		return worked, err
	}
	if !ended {
		return worked, s.Secrets.EraseAll(ctx, gone)
	}
	if _, err := s.revokeEndedTokens(ctx, call, id, before, time.Since(seen) > s.Secrets.Grace()); err != nil {
		return worked, err
	}
	if err := s.Secrets.EraseAll(ctx, gone); err != nil {
		return worked, err
	}
	if left := s.RefreshTakeoverTimeout - time.Since(seen); before.Tokens.Refresh.Epoch != 0 && left > 0 {
		// The process that renews them may crash after it stored the response, and before it revokes it.
		return worked, &secrets.Postponed{After: left, Why: "a renewal is under way whose answer may yet come"}
	}
	return worked, nil
}

// followingUp is a call in the name of the caller that made a commit.
func followingUp(m events.Meta) *service.Call {
	return &service.Call{Tenant: m.Tenant, Principal: service.Principal{Actor: m.Actor}, Via: "system", CommandID: m.Command, Correlation: m.Correlation}
}

// completeRevocation completes the revocation that the commit of cut has started for a grant, and records the
// outcome of the command if its caller named it.
func (s *Service) completeRevocation(ctx context.Context, call *service.Call, cut events.Record, grant int, seen time.Time) error {
	defer s.Secrets.Hold(cut.Stream)()
	done, gone, commits, err := s.revoke(ctx, call, cut.Stream.ID, grant, func(_ string, t providerAnswer) (bool, error) {
		if t.passing() && time.Since(seen) <= s.Secrets.Grace() {
			return false, &secrets.Postponed{After: t.after, Why: "the provider does not confirm a revocation: " + t.outcome}
		}
		return false, nil
	})
	if err == nil && cut.Meta.Request != "" {
		err = s.Kernel.CompleteFor(ctx, call, cut, "credential.revoke", done)
	}
	if err = errors.Join(err, s.Secrets.EraseAll(ctx, gone)); err == nil {
		s.Secrets.Finish(commits...)
	}
	return err
}
