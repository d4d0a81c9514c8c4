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

// followUp follows up a commit that ended tokens or dropped secrets: it revokes the tokens at
// the provider and erases the secrets. It completes an interrupted revocation.
func (s *Service) followUp(ctx context.Context, recs []events.Record, seen time.Time) (worked bool, err error) {
	id, call := recs[0].Stream.ID, callOf(recs[0].Meta)
	before, now, dropped, err := secrets.Around(ctx, s.Secrets, aggregates.Credential, recs)
	if err != nil {
		return false, err
	}
	var ended bool
	for _, rec := range recs {
		switch e := rec.Event.(type) {
		case events.CredentialDeleted, events.CredentialTokensRevoked:
			ended = true
		case events.CredentialReauthorizationRequired:
			if e.Reason == aggregates.ReasonRevokedHere && now.IsOAuth() && now.Tokens.RevokedLocally && now.Tokens.Grant == e.Grant && now.Current().SecretID != "" {
				return true, s.completeRevocation(ctx, call, recs[0], e.Grant, seen)
			}
		}
	}
	if worked, err = s.Secrets.HasAny(ctx, dropped); err != nil {
		return worked, err
	}
	if !ended {
		return worked, s.Secrets.EraseAll(ctx, dropped)
	}
	if _, err := s.revokeEndedTokens(ctx, call, id, before, time.Since(seen) > s.Secrets.Grace()); err != nil {
		return worked, err
	}
	if err := s.Secrets.EraseAll(ctx, dropped); err != nil {
		return worked, err
	}
	if left := s.RefreshTakeoverTimeout - time.Since(seen); before.Tokens.Refresh.Epoch != 0 && left > 0 {
		// The process that renews them may crash after it stored the response, and before it revokes it.
		return worked, &secrets.Postponed{After: left, Why: "a renewal is in progress and its response may still arrive"}
	}
	return worked, nil
}

// callOf returns a call on behalf of the caller that made a commit.
func callOf(m events.Meta) *service.Call {
	return &service.Call{Tenant: m.Tenant, Principal: service.Principal{Actor: m.Actor}, Via: "system", CommandID: m.Command, Correlation: m.Correlation}
}

// completeRevocation completes the revocation of a grant. started is the commit that began it. It
// records the outcome of the command if that has a command id.
func (s *Service) completeRevocation(ctx context.Context, call *service.Call, started events.Record, grant int, seen time.Time) error {
	defer s.Secrets.Hold(started.Stream)()
	done, dropped, commits, err := s.revoke(ctx, call, started.Stream.ID, grant, func(_ string, t providerAnswer) (bool, error) {
		if t.transient() && time.Since(seen) <= s.Secrets.Grace() {
			return false, &secrets.Postponed{After: t.after, Why: "the provider does not confirm a revocation: " + t.outcome}
		}
		return false, nil
	})
	if err == nil && done.Outcome == "" { // the interrupted attempt ended the tokens meanwhile
		var t providerAnswer
		t, err = s.answerSince(ctx, started)
		done.Outcome, done.Says = t.outcome, t.says
	}
	if err == nil && started.Meta.Request != "" {
		err = s.Kernel.CompleteFor(ctx, call, started, "credential.revoke", done)
	}
	if err = errors.Join(err, s.Secrets.EraseAll(ctx, dropped)); err == nil {
		s.Secrets.Finish(commits...)
	}
	return err
}
