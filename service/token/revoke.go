package token

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// The times of a revocation.
const (
	slotWait   = 10 * time.Second // how long to wait for a slot at a provider
	deleteWait = 2 * time.Second  // how long a delete waits for the provider
)

// The outcomes of a revocation at a provider, in addition to those of oauth.
const (
	outcomeRevoked = "revoked"
	notOffered     = "not_offered" // the component names no revocation endpoint
	superseded     = "superseded"  // the credential has the tokens of a newer grant
)

// providerAnswer is the result of revoking tokens at a provider. The zero value means that
// there was nothing to revoke.
type providerAnswer struct {
	outcome string        // outcomeRevoked, notOffered, an oauth.Outcome, or ""
	says    string        // why the provider does not confirm it, a sentence; "" when it does
	after   time.Duration // how long to wait before a retry; 0: unknown
}

// noRevocation is the result if the component names no revocation endpoint.
var noRevocation = providerAnswer{outcome: notOffered, says: "Not revoked at the provider: the component.json has no revocation_uri."}

// newerGrant is the result if the credential has the tokens of a newer grant.
var newerGrant = providerAnswer{outcome: superseded, says: "Not revoked at the provider: the credential was connected again, and the provider may revoke the new tokens with the old ones."}

func revocable(d commands.Descriptor) bool { return d.OAuth2 != nil && d.OAuth2.RevocationURI != "" }

// transient reports whether a retry may have another result.
func (t providerAnswer) transient() bool {
	return t.outcome == string(oauth.Transient) || t.outcome == string(oauth.Malformed)
}

// heldToken is a token that a provider may still accept.
type heldToken struct {
	value seal.Secret
	hint  string // token_type_hint (RFC 7009, section 2.1)

	object seal.Fields // that holds it
	keys   seal.Fields // of the credential; empty if they were erased
}

// heldTokens opens the tokens of a credential that its provider may still accept:
// the current ones, and the responses of renewals that are in the vault but were not
// activated. Of each it returns the refresh token, whose revocation revokes
// the whole grant (RFC 7009, section 2.1), or the access token if there is none.
func (s *Service) heldTokens(ctx context.Context, tenant, id string, state aggregates.CredentialState) (held []heldToken, err error) {
	var keys seal.Fields
	if state.Current().SecretID != "" { // else they were dropped when the access was revoked
		if keys, err = s.keysOf(ctx, tenant, id, state); err != nil && !errors.Is(err, vault.ErrNoSecret) {
			return nil, err
		}
	}
	for _, secretID := range state.Tokens.TokenSecrets() {
		var object seal.Fields
		if secretID == state.Current().SecretID {
			object, _ = keys.Object(state.Tokens.Field)
		} else {
			object, err = s.tokensStored(ctx, tenant, id, secretID)
		}
		if errors.Is(err, vault.ErrNoSecret) { // no response arrived, or it is already erased
			continue
		}
		if err != nil {
			return nil, err
		}
		held = addToken(held, object, keys)
	}
	return held, nil
}

// keysOf opens the keys of a credential that may have been deleted.
func (s *Service) keysOf(ctx context.Context, tenant, id string, state aggregates.CredentialState) (seal.Fields, error) {
	secret, err := s.Vault.Get(ctx, secrets.CredentialRef(tenant, id, state.Current().SecretID))
	if err != nil {
		return seal.Fields{}, fmt.Errorf("open the keys of %s: %w", id, err)
	}
	keys, err := seal.ParseFields(secret.Reveal())
	if err != nil {
		return seal.Fields{}, fmt.Errorf("read the keys of %s: %w", id, err)
	}
	return keys, nil
}

func (s *Service) tokensStored(ctx context.Context, tenant, id, secretID string) (seal.Fields, error) {
	stored, err := s.storedToken(ctx, tenant, id, secretID)
	if err != nil {
		return seal.Fields{}, err
	}
	return seal.ParseFields(stored.Object)
}

// addToken adds the token to revoke of a token's object, once.
func addToken(held []heldToken, object, keys seal.Fields) []heldToken {
	for _, hint := range []string{RefreshToken, AccessToken} {
		value, ok := object.Text(hint)
		if !ok {
			continue
		}
		if !slices.ContainsFunc(held, func(h heldToken) bool { return bytes.Equal(h.value.Reveal(), value.Reveal()) }) {
			held = append(held, heldToken{value, hint, object, keys})
		}
		break
	}
	return held
}

// effectiveOf returns the descriptor that the current keys of a credential were entered for, with the
// endpoints of the tenant's OAuth client.
func (s *Service) effectiveOf(ctx context.Context, tenant string, state aggregates.CredentialState) (commands.Descriptor, error) {
	d, err := s.Components.Descriptor(ctx, state.Component, state.Current().Revision)
	if err != nil {
		return d, err
	}
	return s.Components.Effective(ctx, tenant, state.Component, d)
}

// revokeAtProvider revokes tokens at the provider of a credential's recorded revision. It
// tries once. ctx bounds the wait for a slot.
func (s *Service) revokeAtProvider(ctx context.Context, tenant string, state aggregates.CredentialState, held []heldToken) providerAnswer {
	if len(held) == 0 {
		return providerAnswer{}
	}
	d, err := s.effectiveOf(ctx, tenant, state)
	if err == nil && !revocable(d) {
		return noRevocation
	}
	var client oauth.Client
	if err == nil {
		client, err = s.OAuthClient(ctx, tenant, state.Component, d)
	}
	if err != nil {
		return s.providerFailure(ctx, state.Component, err)
	}
	worst := providerAnswer{outcome: outcomeRevoked}
	for _, h := range held {
		err := checkBound(h.object, d)
		var provider oauth.Provider
		if err == nil {
			provider, err = Provider(d.OAuth2, client, ProbeValues(d, h.keys))
		}
		if err == nil {
			turn, cancel := context.WithTimeout(ctx, slotWait)
			err = s.OAuth.Revoke(turn, tenant, provider, client, h.value, h.hint)
			cancel()
		}
		if err != nil {
			worst = s.providerFailure(ctx, state.Component, err)
		}
	}
	return worst
}

// revokeGrantAtProvider is revokeAtProvider for the tokens of a credential's grant, unless the
// credential has those of a newer one: a provider may revoke the whole consent of an account
// with any token of it (RFC 7009, section 2.1).
func (s *Service) revokeGrantAtProvider(ctx context.Context, tenant, id string, state aggregates.CredentialState, held []heldToken) providerAnswer {
	if len(held) == 0 {
		return providerAnswer{}
	}
	now, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(tenant, id))
	switch {
	case err != nil:
		return s.providerFailure(ctx, state.Component, err)
	case now.Value.HoldsTokens() && now.Value.Tokens.Grant > state.Tokens.Grant:
		return newerGrant
	}
	return s.revokeAtProvider(ctx, tenant, state, held)
}

// providerFailure is the reason why a provider did not confirm the revocation of a token.
func (s *Service) providerFailure(ctx context.Context, component string, err error) providerAnswer {
	if refusal, ok := errors.AsType[*oauth.Error](err); ok {
		return providerAnswer{string(refusal.Outcome), "The provider did not confirm the revocation: " + refusal.Says(), refusal.RetryAfter}
	}
	f := fault.Of(err)
	if f.Kind == fault.Unavailable || f.Kind == fault.Internal {
		s.Logger.WarnContext(ctx, "cannot revoke tokens at the provider", "component", component, "err", err)
		return providerAnswer{outcome: string(oauth.Transient), says: "The provider could not be asked to revoke the tokens."}
	}
	return providerAnswer{outcome: string(oauth.ClientRefused), says: "The provider could not be asked to revoke the tokens: " + f.Msg}
}

// recordAnswer records the result of a provider. The tokens are revoked locally either way.
func (s *Service) recordAnswer(ctx context.Context, call *service.Call, id string, t providerAnswer) error {
	if t.outcome == "" || t.outcome == notOffered || t.outcome == superseded {
		return nil
	}
	s.metrics.revocations.WithLabelValues(t.outcome).Inc()
	_, _, err := service.Execute(ctx, s.Kernel, call, aggregates.Credential, call.Tenant, commands.Credential(commands.RecordProviderRevocation{ID: id, Outcome: t.outcome}))
	if err != nil {
		s.Logger.WarnContext(ctx, "failed to record a revocation at the provider",
			"tenant", call.Tenant, "credential", id, "outcome", t.outcome, "err", err)
	}
	return err
}

type Revoke struct {
	ID string `json:"id"`
}

// Revoked is the response to Revoke. The tokens are revoked locally in any
// case.
type Revoked struct {
	service.Done
	Outcome string `json:"outcome,omitzero"` // at the provider: revoked, not_offered if the component names no revocation_uri, superseded if the credential was connected again meanwhile, or as in credential.refresh_failed; absent when no tokens were held
}

// revokeCredential revokes the tokens locally and at the provider. It completes even
// if the caller no longer waits.
func (s *Service) revokeCredential(ctx context.Context, call *service.Call, in Revoke) (Revoked, error) {
	if err := service.CheckTarget(in.ID, 0); err != nil {
		return Revoked{}, err
	}
	call.Detach()
	defer s.Secrets.Hold(aggregates.Credential.Stream(call.Tenant, in.ID))()
	done, dropped, commits, err := s.revoke(ctx, call, in.ID, 0, nil)
	if s.Secrets.EraseAll(context.WithoutCancel(ctx), dropped) == nil && err == nil {
		s.Secrets.Finish(commits...)
	}
	if first := call.Resumed(); first != nil && err == nil && done.Outcome == "" { // another attempt has ended the tokens
		var t providerAnswer
		t, err = s.answerSince(ctx, first[0])
		done.Outcome, done.Says = t.outcome, t.says
	}
	return done, err
}

// answerSince returns the provider's result of a revocation. started is the commit that began it.
// If there is no result yet, it revokes the tokens at the provider now.
func (s *Service) answerSince(ctx context.Context, started events.Record) (providerAnswer, error) {
	var ended []events.Record
	for round := range 2 {
		var commit []events.Record
		for rec, err := range s.Log.Store.Stream(ctx, started.Stream, started.Seq) {
			if err != nil {
				return providerAnswer{}, fmt.Errorf("load %s: %w", started.Stream, err)
			}
			if rec.Index == 0 {
				commit = nil
			}
			commit = append(commit, rec)
			switch e := rec.Event.(type) {
			case events.CredentialTokensRevoked:
				if ended == nil {
					ended = commit
				}
			case events.CredentialRevokedAtProvider:
				return recordedAnswer(e.Outcome), nil
			}
		}
		if ended == nil {
			return providerAnswer{}, nil
		}
		if round > 0 {
			break
		}
		if _, err := s.followUp(ctx, ended, time.Time{}); err != nil {
			return providerAnswer{}, err
		}
	}
	// Nothing is recorded if the provider offers no revocation.
	before, _, err := aggregates.Credential.Around(ctx, s.Log, ended)
	if err != nil {
		return providerAnswer{}, err
	}
	d, err := s.effectiveOf(ctx, started.Stream.Tenant, before)
	if err == nil && !revocable(d) {
		return noRevocation, nil
	}
	return providerAnswer{}, err
}

// recordedAnswer converts an outcome in the log to a provider's result.
func recordedAnswer(outcome string) providerAnswer {
	t := providerAnswer{outcome: outcome}
	if outcome != outcomeRevoked {
		t.says = "The provider did not confirm the revocation (" + outcome + "). The grant may still be active at the provider: revoke it there."
	}
	return t
}

// grantOf returns the grant whose tokens a call revokes: the current one, or the one of an
// earlier attempt. It does not return the later grant of a credential that was connected again
// meanwhile.
func (s *Service) grantOf(ctx context.Context, call *service.Call, id string) (int, error) {
	for _, rec := range call.Resumed() {
		if e, is := rec.Event.(events.CredentialReauthorizationRequired); is {
			return e.Grant, nil
		}
	}
	state, err := s.Secrets.Live(ctx, call.Tenant, id, 0)
	switch {
	case err != nil:
		return 0, err
	case !state.IsOAuth():
		return 0, aggregates.ErrNotOAuth
	}
	return state.Tokens.Grant, nil
}

// revokeLocally stops all further use of the tokens of a grant. The credential still
// holds them, so that an interrupted revocation can be completed at the provider.
// The Seq of the state is 0 if there was nothing to do.
func (s *Service) revokeLocally(ctx context.Context, call *service.Call, id string, grant int) (aggregates.State[aggregates.CredentialState], error) {
	state, err := s.Secrets.Live(ctx, call.Tenant, id, 0)
	now := aggregates.State[aggregates.CredentialState]{Value: state}
	switch {
	case err != nil:
		return now, err
	case !state.IsOAuth():
		return now, aggregates.ErrNotOAuth
	case state.Tokens.Grant != grant || state.Current().SecretID == "": // there are no tokens
		return now, nil
	}
	was, after, err := service.Commit(ctx, s.Kernel, call, aggregates.Credential, call.Tenant, commands.Credential(commands.RequireReauthorization{
		ID: id, Grant: grant, Reason: aggregates.ReasonRevokedHere, Says: aggregates.RevokedHere,
	}))
	if after.Seq == was.Seq {
		after.Seq = 0
	}
	return after, err
}

// revoke revokes the tokens of a grant (0: see grantOf), in this order: it stops their use,
// revokes them at the provider, and drops them here. The caller, which holds the stream, must
// then erase the dropped secrets and finish the follow-up of the commits. After a crash in
// between the tokens are still held, and the process manager completes the revocation. A
// concurrent renewal cannot bring them back; its response is revoked, too. again, if not nil,
// gets the provider's result and decides about a retry; its error ends the revocation for now.
func (s *Service) revoke(ctx context.Context, call *service.Call, id string, grant int, again func(component string, t providerAnswer) (bool, error)) (done Revoked, dropped []vault.Ref, commits []uint64, err error) {
	if grant == 0 {
		if grant, err = s.grantOf(ctx, call, id); err != nil {
			return done, nil, nil, err
		}
	}
	started, err := s.revokeLocally(ctx, call, id, grant)
	if err != nil {
		return done, nil, nil, err
	}
	state := started.Value
	var held []heldToken
	if state.Tokens.Grant == grant {
		if held, err = s.heldTokens(ctx, call.Tenant, id, state); err != nil {
			return done, nil, nil, err
		}
	}
	t := s.revokeGrantAtProvider(ctx, call.Tenant, id, state, held)
	for again != nil {
		more, err := again(state.Component, t)
		if err != nil {
			return done, nil, nil, err
		}
		if !more {
			break
		}
		t = s.revokeGrantAtProvider(ctx, call.Tenant, id, state, held)
	}
	was, after, err := service.Commit(ctx, s.Kernel, call.Step(1), aggregates.Credential, call.Tenant, commands.Credential(commands.RevokeTokens{ID: id, Grant: grant}))
	if err != nil {
		return done, nil, nil, err
	}
	before := was.Value
	if commits = append(commits, started.Seq); after.Seq > was.Seq {
		commits = append(commits, after.Seq)
	}
	ctx = context.WithoutCancel(ctx)
	if before.Tokens.Grant == grant && !slices.Equal(before.Tokens.TokenSecrets(), state.Tokens.TokenSecrets()) { // a renewal produced others meanwhile
		if late, err := s.heldTokens(ctx, call.Tenant, id, before); err != nil {
			t = s.providerFailure(ctx, before.Component, err)
		} else if more := s.revokeGrantAtProvider(ctx, call.Tenant, id, before, late); more.outcome != "" {
			t = more
		}
	}
	_ = s.recordAnswer(ctx, call.Step(2), id, t) // it is logged
	done = Revoked{Done: s.Secrets.CredentialDone(call.Tenant, id, before, after), Outcome: t.outcome}
	done.Says = t.says
	return done, secrets.Dropped(secrets.CredentialRef(call.Tenant, id, ""), before, after.Value), commits, nil
}

// revokeOrphanedToken revokes the response of a renewal at the provider if it arrived after the
// tokens had been revoked, or the credential deleted. of is the state in which it
// was requested. If the credential has other tokens by now, it does nothing:
// the provider may revoke those with these.
func (s *Service) revokeOrphanedToken(ctx context.Context, call *service.Call, id string, of aggregates.CredentialState, answer storedToken) {
	now, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, id))
	if err != nil || !now.Value.Deleted && !now.Value.Tokens.RevokedLocally && (now.Value.Tokens.Field == "" || now.Value.Current().SecretID != "") {
		return
	}
	object, err := seal.ParseFields(answer.Object)
	if err != nil {
		return
	}
	keys, _ := s.keysOf(ctx, call.Tenant, id, of)                                                                    // without them, templates of the provider's addresses have no values
	_ = s.recordAnswer(ctx, call.Step(1), id, s.revokeAtProvider(ctx, call.Tenant, of, addToken(nil, object, keys))) // it is logged
}

// revokeEndedTokens revokes tokens that a credential held before at the provider, and
// records the result. Their secrets must still exist, because revoking needs the tokens.
// While a failure may be temporary, the error is Postponed and nothing is recorded,
// unless final is set. It is idempotent.
func (s *Service) revokeEndedTokens(ctx context.Context, call *service.Call, id string, before aggregates.CredentialState, final bool) (providerAnswer, error) {
	held, err := s.heldTokens(ctx, call.Tenant, id, before)
	t := providerAnswer{}
	if err != nil {
		t = s.providerFailure(ctx, before.Component, err)
	} else {
		t = s.revokeGrantAtProvider(ctx, call.Tenant, id, before, held)
	}
	switch {
	case err != nil && !final:
		return t, err
	case t.transient() && !final:
		return t, &secrets.Postponed{After: t.after, Why: "the provider does not confirm the end of tokens: " + t.outcome}
	}
	if err := s.recordAnswer(ctx, call.Step(1), id, t); !final {
		return t, err
	}
	return t, nil
}

// EndCredential executes a delete. Then it revokes the tokens at the provider and erases the
// secrets; if that takes long, it continues after the response, and the process manager
// completes it.
func (s *Service) EndCredential(ctx context.Context, call *service.Call, cmd commands.DeleteCredential) (service.Done, aggregates.CredentialState, error) {
	release := s.Secrets.Hold(aggregates.Credential.Stream(call.Tenant, cmd.ID))
	was, after, err := service.Commit(ctx, s.Kernel, call, aggregates.Credential, call.Tenant, commands.Credential(cmd))
	before := was.Value
	if err != nil {
		release()
		return service.Done{}, before, err
	}
	done := s.Secrets.CredentialDone(call.Tenant, cmd.ID, before, after)
	dropped := secrets.Dropped(secrets.CredentialRef(call.Tenant, cmd.ID, ""), before, after.Value)
	if len(before.Tokens.TokenSecrets()) == 0 {
		s.Secrets.EraseDropped(ctx, call, dropped, after.Seq, release)
		return done, before, nil
	}
	answer, ended := make(chan providerAnswer, 1), make(chan struct{})
	begun := s.revocations.start(s.Kernel.Background(), func() {
		defer close(ended)
		defer release()
		ctx := context.WithoutCancel(s.Kernel.Background())
		t, err := s.revokeEndedTokens(ctx, call, cmd.ID, before, false)
		answer <- t
		if err == nil {
			err = s.Secrets.EraseAll(ctx, dropped)
		}
		if err == nil && before.Tokens.Refresh.Epoch == 0 { // else its response may still arrive
			s.Secrets.Finish(after.Seq)
		}
	})
	if !begun {
		release()
		done.Says = "Not revoked at the provider yet: the service is stopping. It does so when it runs again."
		return done, before, nil
	}
	wait := time.NewTimer(deleteWait)
	defer wait.Stop()
	select {
	case t := <-answer:
		switch {
		case t.transient():
			done.Says = t.says + " The service retries for a while."
		case t.outcome != notOffered:
			done.Says = t.says
		}
		select {
		case <-ended:
		case <-ctx.Done():
		}
	case <-wait.C:
	case <-ctx.Done():
	}
	return done, before, nil
}

// The bounds of a revocation in bulk.
const (
	revokeAtOnce      = 16
	tenantRevocations = 8 // per tenant: running, and remembered
	revokePage        = 1000
	bulkTimeout       = time.Minute      // for a provider that confirms nothing
	bulkPause         = 30 * time.Second // maximum wait before a retry
	failuresShown     = 20
)

// revocations are the bulk revocations and other work in progress.
type revocations struct {
	mu    sync.Mutex
	jobs  map[string][]*revocation // by tenant: the last ones, in the order of their start
	group sync.WaitGroup
}

// revocation is a bulk revocation. revocations.mu guards its members.
type revocation struct {
	component string // "" for all; immutable
	progress  RevocationProgress
	since     map[string]time.Time // by component: since when its provider has not confirmed anything
	dropped   []revokedTokens      // to be erased
}

// revokedTokens is the remaining work after a credential's tokens are revoked.
type revokedTokens struct {
	secrets []vault.Ref
	commits []uint64 // that ended them
}

// start starts work that finish waits for, unless background has ended.
func (r *revocations) start(background context.Context, do func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if background.Err() != nil {
		return false
	}
	r.group.Go(do)
	return true
}

// finish waits a while for work in progress. No new work starts.
func (r *revocations) finish() {
	r.mu.Lock()   // callers that were about to start have done so, or will see the end
	r.mu.Unlock() //nolint:staticcheck // intentionally empty
	service.WaitFor(&r.group)
}

// Errors of a revocation in bulk.
var (
	ErrRevocationScope = fault.New(fault.Invalid, "revocation_scope_invalid",
		"Give exactly one of all, component and oauth_client.")
	ErrRevocationUnderWay = fault.New(fault.Precondition, "revocation_under_way",
		"These tokens are already being revoked, or eight revocations are running. Query oauth.revocation for the progress.")
)

// RevokeOAuth requests the revocation of the tokens of many credentials. Exactly one of all, component
// and oauth_client is set.
type RevokeOAuth struct {
	All         bool   `json:"all,omitzero"`          // every OAuth credential of the tenant
	Component   string `json:"component,omitzero"`    // those of this component
	OAuthClient string `json:"oauth_client,omitzero"` // those of the component of the OAuth client with this id
	DryRun      bool   `json:"dry_run,omitzero"`      // say how many they are; revoke nothing
}

// RevocationStarted is the response to RevokeOAuth. The id is that of the revocation, absent
// after a dry run.
type RevocationStarted struct {
	service.Done
	Total int `json:"total"` // credentials that hold tokens
}

// revokeOAuth starts to process the credentials that hold tokens according to the views,
// and returns. It stores only counters: if it is interrupted,
// the same command continues with the credentials that still hold tokens.
func (s *Service) revokeOAuth(ctx context.Context, call *service.Call, in RevokeOAuth) (RevocationStarted, error) {
	started := RevocationStarted{Done: service.Done{ID: call.DeriveID("revocation")}}
	if total, known := s.revocations.known(call.Tenant, started.ID); known { // a repeated command
		started.Total = total
		return started, nil
	}
	end, err := s.Log.Store.End(ctx)
	if err == nil {
		err = s.Kernel.AtLeast(ctx, end)
	}
	if err != nil {
		return RevocationStarted{}, err
	}
	component, err := s.revocationScope(ctx, call, in)
	if err != nil {
		return RevocationStarted{}, err
	}
	ids, err := s.tokenHolders(ctx, call.Tenant, component)
	if err != nil {
		return RevocationStarted{}, err
	}
	started.Seq, started.Total = end, len(ids)
	if in.DryRun {
		started.ID = ""
		return started, nil
	}
	job := &revocation{component: component, since: map[string]time.Time{}, progress: RevocationProgress{
		ID: started.ID, Here: true, Running: true, Total: len(ids), Failures: []RevocationFailure{}, StartedAt: s.Kernel.Now().UTC(),
	}}
	if err := s.revocations.begin(call.Tenant, job); err != nil {
		return RevocationStarted{}, err
	}
	walk := call.Apart()
	if !s.revocations.start(s.Kernel.Background(), func() { s.revokeAll(s.Kernel.Background(), walk, job, ids) }) {
		return RevocationStarted{}, fault.ErrUnavailable
	}
	return started, nil
}

// revocationScope is the component of the selected credentials; "" for all.
func (s *Service) revocationScope(ctx context.Context, call *service.Call, in RevokeOAuth) (string, error) {
	named := 0
	for _, given := range []bool{in.All, in.Component != "", in.OAuthClient != ""} {
		if given {
			named++
		}
	}
	switch {
	case named != 1:
		return "", ErrRevocationScope
	case in.OAuthClient != "":
		k, err := s.Clients.Client(ctx, call, client.OAuthClientRef{ID: in.OAuthClient}, false)
		return k.Component, service.PointAt(err, "/oauth_client")
	case in.Component != "":
		if events.CheckName(in.Component) != nil {
			return "", aggregates.ErrComponentNotFound.At("/component")
		}
		state, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, in.Component))
		if err != nil || state.Value.VisibleTo(call.Tenant) {
			return in.Component, err
		}
		// It may have been shared before, and still have credentials.
		if left, err := s.Views.TokenHolders(ctx, call.Tenant, in.Component, "", 1); err != nil || len(left) > 0 {
			return in.Component, err
		}
		return "", aggregates.ErrComponentNotFound.At("/component")
	}
	return "", nil
}

// tokenHolders are the credentials of a tenant that hold tokens, only those of component unless
// it is "".
func (s *Service) tokenHolders(ctx context.Context, tenant, component string) (ids []string, err error) {
	for after := ""; ; after = ids[len(ids)-1] {
		page, err := s.Views.TokenHolders(ctx, tenant, component, after, revokePage)
		if err != nil {
			return nil, err
		}
		if ids = append(ids, page...); len(page) < revokePage {
			return ids, nil
		}
	}
}

// revokeAll revokes the tokens of all credentials: first it stops their use,
// which takes moments, then it revokes them at the providers, which may take long, and last
// it erases the secrets, which the vault does one by one.
func (s *Service) revokeAll(ctx context.Context, call *service.Call, job *revocation, ids []string) {
	for _, id := range ids {
		defer s.Secrets.Hold(aggregates.Credential.Stream(call.Tenant, id))()
	}
	type holder struct {
		id    string
		grant int
	}
	holders := make([]*holder, len(ids))
	for i, id := range ids {
		holders[i] = &holder{id: id}
	}
	forEach(ctx, holders, func(h *holder) {
		id := h.id
		grant, err := s.grantOf(ctx, call.Within(id), id)
		if err == nil {
			h.grant = grant
			_, err = s.revokeLocally(ctx, call.Within(id), id, grant)
		}
		if err != nil && ctx.Err() == nil {
			s.Logger.DebugContext(ctx, "tokens to be revoked may still be resolved for a while", "tenant", call.Tenant, "credential", id, "err", err)
		}
	})
	forEach(ctx, holders, func(h *holder) {
		id := h.id
		done, dropped, commits, err := s.revoke(ctx, call.Within(id), id, h.grant, func(component string, t providerAnswer) (bool, error) {
			return s.revocations.wait(ctx, job, component, t)
		})
		if err != nil && ctx.Err() != nil {
			return // Left still counts it
		}
		s.revocations.note(job, s.revoked(ctx, call.Tenant, id, done, err), revokedTokens{dropped, commits})
	})
	forEach(ctx, job.dropped, func(tokens revokedTokens) {
		if s.Secrets.EraseAll(ctx, tokens.secrets) == nil {
			s.Secrets.Finish(tokens.commits...)
			s.revocations.note(job, RevocationProgress{Erased: len(tokens.secrets)})
		}
	})
	s.revocations.end(job, s.Kernel.Now().UTC())
}

// forEach calls do for each element, several at a time, until ctx ends.
func forEach[E any](ctx context.Context, all []E, do func(E)) {
	var workers sync.WaitGroup
	defer workers.Wait()
	next := make(chan E)
	defer close(next)
	for range min(revokeAtOnce, len(all)) {
		workers.Go(func() {
			for one := range next {
				do(one)
			}
		})
	}
	for _, one := range all {
		select {
		case next <- one:
		case <-ctx.Done():
			return
		}
	}
}

// revoked is the contribution of one credential to the progress.
func (s *Service) revoked(ctx context.Context, tenant, id string, done Revoked, err error) (one RevocationProgress) {
	switch {
	case errors.Is(err, aggregates.ErrCredentialNotFound), errors.Is(err, aggregates.ErrNotOAuth): // it no longer has any
		one.Done = 1
	case err != nil:
		s.Logger.WarnContext(ctx, "tokens not revoked", "tenant", tenant, "credential", id, "err", err)
		one.Failed = 1
		one.Failures = []RevocationFailure{{Credential: id, Says: "The tokens were not revoked: " + fault.Of(err).Msg}}
	case done.Outcome == outcomeRevoked:
		one.Done, one.AtProvider = 1, 1
	case done.Outcome == notOffered:
		one.Done, one.NotOffered = 1, 1
	case done.Outcome == "":
		one.Done = 1
	default:
		one.Done, one.Failed = 1, 1
		one.Failures = []RevocationFailure{{Credential: id, Outcome: done.Outcome, Says: done.Says}}
	}
	return one
}

// known finds a recent revocation of a tenant by its id.
func (r *revocations) known(tenant, id string) (total int, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if job := r.find(tenant, id); job != nil {
		return job.progress.Total, true
	}
	return 0, false
}

// find requires mu: it returns the tenant's revocation with the id, its last one if
// that is "", or nil.
func (r *revocations) find(tenant, id string) *revocation {
	for _, job := range slices.Backward(r.jobs[tenant]) {
		if id == "" || id == job.progress.ID {
			return job
		}
	}
	return nil
}

// begin registers a revocation of the tenant, unless the same one or too many are
// running. A provider that does not respond does not block the others.
func (r *revocations) begin(tenant string, job *revocation) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	jobs := r.jobs[tenant]
	if slices.ContainsFunc(jobs, func(j *revocation) bool { return j.progress.Running && j.component == job.component }) {
		return ErrRevocationUnderWay
	}
	if len(jobs) == tenantRevocations {
		finished := slices.IndexFunc(jobs, func(j *revocation) bool { return !j.progress.Running })
		if finished < 0 {
			return ErrRevocationUnderWay
		}
		jobs = slices.Delete(jobs, finished, finished+1)
	}
	r.jobs[tenant] = append(jobs, job)
	return nil
}

func (r *revocations) note(job *revocation, one RevocationProgress, dropped ...revokedTokens) {
	r.mu.Lock()
	defer r.mu.Unlock()
	job.dropped = append(job.dropped, dropped...)
	p := &job.progress
	p.Erased += one.Erased
	p.Done += one.Done
	p.AtProvider += one.AtProvider
	p.NotOffered += one.NotOffered
	p.Failed += one.Failed
	if len(p.Failures) < failuresShown {
		p.Failures = append(p.Failures, one.Failures...)
	}
}

func (r *revocations) end(job *revocation, at time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	job.progress.Running, job.progress.EndedAt, job.dropped = false, at, nil
}

// wait pauses before a retry at a provider that did not confirm, and reports
// whether to retry. A component's provider that has confirmed nothing for long is
// not retried. Its error is that of ctx.
func (r *revocations) wait(ctx context.Context, job *revocation, component string, t providerAnswer) (bool, error) {
	if !r.shouldRetry(job, component, t) {
		return false, nil
	}
	pause := time.NewTimer(min(max(t.after, time.Second), bulkPause))
	defer pause.Stop()
	select {
	case <-pause.C:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

func (r *revocations) shouldRetry(job *revocation, component string, t providerAnswer) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !t.transient() {
		if t.outcome == outcomeRevoked { // another result does not mean that it confirms the next one
			delete(job.since, component)
		}
		return false
	}
	since, failing := job.since[component]
	if !failing {
		since = time.Now()
		job.since[component] = since
	}
	return time.Since(since) < bulkTimeout
}

// OAuthRevocation requests the progress of a bulk revocation.
type OAuthRevocation struct {
	ID string `json:"id,omitzero"` // the tenant's last one when absent
}

// RevocationProgress is the progress of a bulk revocation. Its numbers count credentials.
type RevocationProgress struct {
	ID         string              `json:"id,omitzero"` // of the revocation
	Here       bool                `json:"here"`        // the responding process ran it; else only left is known
	Running    bool                `json:"running"`
	Total      int                 `json:"total"`       // that held tokens at the start
	Done       int                 `json:"done"`        // whose tokens are revoked locally
	AtProvider int                 `json:"at_provider"` // of these, confirmed by the provider
	NotOffered int                 `json:"not_offered"` // of these, of components without a revocation_uri
	Erased     int                 `json:"erased"`      // secrets erased from the vault, after all tokens are revoked
	Failed     int                 `json:"failed"`      // not confirmed by the provider, or not revoked
	Failures   []RevocationFailure `json:"failures"`    // the first 20 of these
	StartedAt  time.Time           `json:"started_at,omitzero"`
	EndedAt    time.Time           `json:"ended_at,omitzero"` // absent while it runs
	Left       int                 `json:"left"`              // credentials of the tenant that still hold tokens
}

// RevocationFailure is the reason why a revocation was not confirmed.
type RevocationFailure struct {
	Credential string `json:"credential"`
	Outcome    string `json:"outcome,omitzero"` // at the provider, as in credential.revoked_at_provider; absent when the tokens were not revoked
	Says       string `json:"says"`             // a sentence
}

// oauthRevocation returns what this process knows. A revocation of another process,
// or one that a restart ended, is visible only in left.
func (s *Service) oauthRevocation(ctx context.Context, call *service.Call, in OAuthRevocation) (RevocationProgress, error) {
	p := RevocationProgress{ID: in.ID, Failures: []RevocationFailure{}}
	s.revocations.mu.Lock()
	if job := s.revocations.find(call.Tenant, in.ID); job != nil {
		p = job.progress
		p.Failures = slices.Clone(p.Failures)
	}
	s.revocations.mu.Unlock()
	var err error
	p.Left, err = s.Views.TokenHolderCount(ctx, call.Tenant)
	return p, err
}
