package token

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Errors of a renewal of tokens.
var (
	ErrRefreshFailed = fault.New(fault.Unavailable, "token_refresh_failed",
		"The access token has expired and the provider did not issue a new one. The service will retry.")
	ErrRefreshPending = fault.New(fault.Unavailable, "token_refresh_pending",
		"The access token is being renewed. Try again shortly.")
)

// The time limits of a renewal.
const (
	refreshWait  = 25 * time.Second // how long a caller waits for a renewal
	backoffFirst = 5 * time.Second  // after a transient failure, doubled each time...
	backoffMax   = 10 * time.Minute // ...up to this
	maxRetry     = 75 * time.Minute // of a provider that asks for an hour, plus jitter
	brokenFirst  = time.Hour        // until rejected tokens are retried, doubled each time...
	brokenMax    = 12 * time.Hour   // ...up to this
	brokenTries  = 60               // consecutive failures, then no more automatic retries: about a month
	confirmMin   = 2 * time.Minute  // until a rejected grant is tried once more while its access token is valid...
	confirmMax   = 5 * time.Minute  // ...and the longest time until then
	storeFor     = 2 * time.Minute  // how long storing a provider's response is retried
)

// renewals are the renewals of tokens in progress in this process: one for each
// credential. The log ensures a single one among all processes.
type renewals struct {
	mu    sync.Mutex
	by    map[credentialKey]*renewal
	group sync.WaitGroup
}

type credentialKey struct{ tenant, id string }

// renewal is a renewal in progress; err may be read when done is closed.
type renewal struct {
	done chan struct{}
	err  error
}

// TokenGoodFor returns the newest durable state of a credential; if it has
// tokens, with an access token that is valid for at least life, or as long as the
// provider grants: it renews them if needed. Errors:
// aggregates.ErrCredentialNotFound, ErrReauthorizationRequired, ErrRefreshFailed,
// ErrRefreshPending.
func (s *Service) TokenGoodFor(ctx context.Context, call *service.Call, id string, life time.Duration) (aggregates.State[aggregates.CredentialState], error) {
	stream := aggregates.Credential.Stream(call.Tenant, id)
	for round := 0; ; round++ {
		state, err := aggregates.Credential.Fresh(ctx, s.Log, stream)
		t := state.Value.Tokens
		switch {
		case err != nil:
			return state, err
		case !state.Value.Live():
			return state, aggregates.ErrCredentialNotFound
		case t.Field == "":
			return state, nil
		case t.ReauthReason != "":
			return state, aggregates.ErrReauthorizationRequired.Withf("%s", t.ReauthReason)
		case t.Token.ValidFor(s.Kernel.Now(), life):
			return state, nil
		case !t.Renewable && t.Token.Serves(s.Kernel.Now()):
			return state, nil
		case t.Token.Serves(s.Kernel.Now()) && s.Kernel.Now().Before(t.Token.Due): // the provider renews it nearer to its end
			return state, nil
		case t.Refresh.Epoch == 0 && s.untilRetry(t) > 0:
			if t.Token.Serves(s.Kernel.Now()) {
				return state, nil
			}
			return state, ErrRefreshFailed.WithRetryAfter(s.untilRetry(t))
		case round == maxRounds:
			return state, ErrRefreshPending.WithRetryAfter(time.Second)
		}
		err = s.renew(ctx, service.System(call.Tenant, keeper), id, t.Token.Epoch, false)
		later := errors.Is(err, ErrRefreshFailed) || errors.Is(err, ErrRefreshPending)
		switch {
		case err == nil:
		case !later || !t.Token.Serves(s.Kernel.Now()):
			return state, err
		default: // what is left of the token is better than none
			now, freshErr := aggregates.Credential.Fresh(ctx, s.Log, stream)
			if freshErr != nil || now.Value.ValuesTag() != state.Value.ValuesTag() {
				return state, err
			}
			return now, nil
		}
	}
}

// untilRetry is how long to wait before the next request to the provider after a failure. A
// time beyond the maximum was set by a clock that was ahead.
func (s *Service) untilRetry(t aggregates.Tokens) time.Duration {
	wait := t.RetryAt.Sub(s.Kernel.Now())
	if t.RetryAt.IsZero() || wait > maxRetry {
		return 0
	}
	return max(wait, 0)
}

// maxRounds bounds the renewals for one caller: the provider may grant
// tokens that expire at once.
const maxRounds = 3

// renew renews the tokens, unless those of the epoch are no longer current, and waits for it.
// Concurrent callers share the outcome. A renewal that has begun continues without them. force
// also retries tokens that the provider rejected, and after another process has just failed. The
// commits are in the name of the call that began the renewal.
func (s *Service) renew(ctx context.Context, call *service.Call, id string, epoch int, force bool) error {
	key := credentialKey{call.Tenant, id}
	r := &s.renewals
	r.mu.Lock()
	now := r.by[key]
	if now == nil {
		if s.Kernel.Background().Err() != nil {
			r.mu.Unlock()
			return fault.ErrUnavailable
		}
		now = &renewal{done: make(chan struct{})}
		r.by[key] = now
		r.group.Go(func() {
			// The provider's response is stored even when the process is told to stop.
			now.err = s.renewal(context.WithoutCancel(s.Kernel.Background()), call, id, epoch, force)
			r.mu.Lock()
			delete(r.by, key)
			r.mu.Unlock()
			close(now.done)
		})
	}
	r.mu.Unlock()
	defer admission.Idle(ctx)()
	wait := time.NewTimer(refreshWait)
	defer wait.Stop()
	select {
	case <-now.done:
		return now.err
	case <-wait.C:
	case <-ctx.Done():
	}
	return ErrRefreshPending.WithRetryAfter(time.Second)
}

// pause waits for d, or until the service ends.
func (s *Service) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.Kernel.Background().Done():
	}
}

// finish waits a while for the renewals in progress.
func (r *renewals) finish() { service.WaitFor(&r.group) }

func (s *Service) at(step string) {
	if s.RenewalStep != nil {
		s.RenewalStep(step)
	}
}

// renewal starts an epoch, or waits for its holder, and completes it.
func (s *Service) renewal(ctx context.Context, call *service.Call, id string, epoch int, force bool) error {
	tenant := call.Tenant
	var watched int // the epoch of another holder, and since when
	var since time.Time
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, s.RefreshTakeoverTimeout/20) {
		state, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(tenant, id))
		t := state.Value.Tokens
		switch {
		case err != nil:
			return err
		case !state.Value.Live():
			return aggregates.ErrCredentialNotFound
		case t.Token.Epoch != epoch && t.Unverified: // they arrived late, and are valid if they can be renewed
			epoch = t.Token.Epoch
		case t.Token.Epoch != epoch:
			return nil // another process has renewed them
		case s.Kernel.Background().Err() != nil:
			return fault.ErrUnavailable
		}
		takenOver := 0
		if other := t.Refresh; other.Epoch != 0 {
			if other.Epoch != watched {
				watched, since = other.Epoch, s.Kernel.Now()
				s.at("waiting")
			}
			// An epoch of this process has ended without a result, or this call would wait for it;
			// and a single instance knows that the other process is dead.
			holderDead := other.Holder == s.InstanceID || s.SingleInstance
			if !holderDead && s.Kernel.Now().Sub(since) < s.RefreshTakeoverTimeout {
				s.pause(pause)
				continue
			}
			if found, err := s.completeFound(ctx, call, id, state.Value, other); err != nil {
				return err
			} else if found {
				continue
			}
			takenOver = other.Epoch
			s.metrics.refreshLost.Inc()
			s.Logger.WarnContext(ctx, "took over a renewal with an unknown outcome; if the provider answered it, the new tokens are lost",
				"tenant", tenant, "credential", id, "epoch", other.Epoch)
		} else if watched != 0 && !force {
			// The holder has failed; an immediate retry would fail as well.
			return ErrRefreshFailed.WithRetryAfter(max(s.untilRetry(t), time.Second))
		}
		err = s.refreshOnce(ctx, call, id, commands.StartRefresh{
			ID: id, InstanceID: s.InstanceID, SecretID: events.NewID(), Epoch: epoch, TakesOver: takenOver, RetryRejected: force || t.Unverified,
		})
		switch {
		case errors.Is(err, aggregates.ErrRefreshNeedless):
			return nil
		case err == nil, errors.Is(err, aggregates.ErrRefreshUnderWay), errors.Is(err, aggregates.ErrSecretAbandoned):
			continue // and check again
		}
		return err
	}
}

// refreshOnce starts an epoch and completes it.
func (s *Service) refreshOnce(ctx context.Context, call *service.Call, id string, cmd commands.StartRefresh) error {
	begun := s.Kernel.Now() // monotonic: nothing is sent after the epoch may have been taken over
	tenant := call.Tenant
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.Credential, tenant, commands.Credential(cmd))
	if err != nil {
		return err
	}
	epoch := state.Value.Tokens.Refresh
	s.at("started")
	requested := s.Kernel.Now()
	token, old, err := s.requestTokens(ctx, tenant, id, state.Value, begun, cmd.RetryRejected)
	if err != nil && !token.Refresh.IsZero() {
		// The provider has rotated the refresh token but returned no valid access token.
		token.Lifetime = 0
		return errors.Join(s.storeToken(ctx, call, id, state.Value, epoch, token, old, requested), refreshFailed(err))
	}
	if err != nil {
		return s.failed(ctx, call, id, state.Value, err, cmd.RetryRejected)
	}
	s.at("answered")
	return s.storeToken(ctx, call, id, state.Value, epoch, token, old, requested)
}

// requestTokens requests new tokens from the provider. A rejected grant is accepted as final
// only if it is rejected twice, some time apart, and no other process has new tokens. While
// the access token is valid, the second attempt belongs to a later epoch, unless force is set.
func (s *Service) requestTokens(ctx context.Context, tenant, id string, state aggregates.CredentialState, begun time.Time, force bool) (token oauth.Token, old seal.Fields, err error) {
	version := state.Current()
	// The provider of the recorded revision: a later descriptor reaches these
	// tokens only with another authorization.
	d, err := s.Components.Descriptor(ctx, state.Component, version.Revision)
	if err != nil {
		return token, old, err
	}
	if d, err = s.Components.Effective(ctx, tenant, state.Component, d); err != nil {
		return token, old, err
	}
	if d.OAuth2 == nil {
		return token, old, ErrOAuthEndpointsMissing
	}
	client, err := s.OAuthClient(ctx, tenant, state.Component, d)
	if err != nil {
		return token, old, err
	}
	keys, err := s.Secrets.Open(ctx, tenant, id, version)
	if err != nil {
		return token, old, err
	}
	if old, err = s.tokenObject(ctx, tenant, id, state, keys); err != nil {
		return token, old, err
	}
	refresh, hasRefresh := old.Text(RefreshToken)
	if err := checkBound(old, d); err != nil {
		return token, old, err
	}
	provider, err := Provider(d.OAuth2, client, ProbeValues(d, keys))
	if err != nil {
		return token, old, err
	}
	provider.Lifetimes.Last = state.Tokens.Token.Lifetime
	for try := 1; ; try++ {
		// A process that was suspended must not send a refresh token that another process
		// may have sent meanwhile: a provider that sees one twice revokes the grant (reuse detection).
		left := s.RefreshTakeoverTimeout/2 - s.Kernel.Now().Sub(begun)
		if left <= 0 {
			return token, old, &oauth.Error{Outcome: oauth.Transient}
		}
		// This bounds only the time until the request is written: a request that was sent is never abandoned.
		send, cancel := context.WithTimeout(ctx, left)
		if hasRefresh {
			token, err = s.OAuth.Refresh(send, tenant, provider, client, refresh)
		} else {
			token, err = s.OAuth.ClientCredentials(send, tenant, provider, client)
		}
		cancel()
		refusal, ok := errors.AsType[*oauth.Error](err)
		if !ok || refusal.Outcome != oauth.Revoked || try == 2 || state.Tokens.Refusals > 0 || s.remaining(state.Tokens) > 0 && !force {
			return token, old, err
		}
		s.pause(s.RefreshTakeoverTimeout / 30)
		now, freshErr := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(tenant, id))
		if freshErr != nil {
			return token, old, freshErr
		}
		if now.Value.ValuesTag() != state.ValuesTag() {
			return token, old, err // there is a newer token, so the rejection of this one means nothing
		}
	}
}

// renewed merges the new tokens into the old object: members that the provider did not return
// are kept, unless the object would become too large.
func renewed(token oauth.Token, old seal.Fields) seal.Fields {
	object := token.Answer.Without(issuedBy).Over(old)
	if object.Marshal().Len() > seal.MaxFieldsSize-1024 {
		object = token.Answer.Without(issuedBy)
		if bound, ok := old.Get(issuedBy); ok {
			object = object.With(issuedBy, bound)
		}
	}
	if !token.Refresh.IsZero() {
		object = object.With(RefreshToken, quoted(token.Refresh))
	}
	return object
}

func quoted(text seal.Secret) seal.Secret {
	b, err := jsontext.AppendQuote(nil, text.Reveal())
	if err != nil { // it was parsed from JSON, or validated as text
		return seal.NewSecret([]byte(`""`))
	}
	return seal.NewSecret(b)
}

// storeToken stores the provider's response durably before anything else, and then
// activates it.
func (s *Service) storeToken(ctx context.Context, call *service.Call, id string, of aggregates.CredentialState, epoch aggregates.Refresh, token oauth.Token, old seal.Fields, requested time.Time) error {
	object, expires := WithExpiry(renewed(token, old), requested, token.Lifetime)
	stored := storedToken{
		Object: object.Marshal().Reveal(), Expires: expires, Lifetime: int64(token.Lifetime / time.Second),
		Rotated: !token.Refresh.IsZero(), Scope: printable(seal.NewSecret([]byte(token.Scope))), Odd: token.Odd,
	}
	if life := token.RefreshLifetime; life > 0 {
		stored.RefreshExpires, stored.RefreshLifetime = requested.Add(life).UTC().Truncate(time.Second), int64(life/time.Second)
	}
	text, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("store the tokens of %s: %w", id, err)
	}
	ref := secrets.CredentialRef(call.Tenant, id, epoch.SecretID)
	err = s.retry(ctx, func(ctx context.Context) error {
		if err := s.Vault.Put(ctx, ref, seal.NewSecret(text)); !errors.Is(err, vault.ErrExists) {
			return err
		}
		return nil // stored by an attempt that seemed to fail: the id belongs to this epoch only
	})
	if err != nil {
		s.metrics.refreshLost.Inc()
		s.Logger.ErrorContext(ctx, "cannot store the provider's response; the new tokens are lost", "tenant", call.Tenant, "credential", id, "err", err)
		return err
	}
	s.at("stored")
	return s.activateToken(ctx, call, id, of, epoch, stored)
}

// activateToken makes stored tokens the current ones; of is the state in which they
// were requested. It is idempotent.
func (s *Service) activateToken(ctx context.Context, call *service.Call, id string, of aggregates.CredentialState, epoch aggregates.Refresh, t storedToken) error {
	cmd := commands.CompleteRefresh{
		ID: id, Epoch: epoch.Epoch, Grant: of.Tokens.Grant, SecretID: epoch.SecretID,
		Expires: t.Expires, Lifetime: time.Duration(t.Lifetime) * time.Second, Rotated: t.Rotated, Scope: t.Scope, Odd: t.Odd,
		RefreshToken: commands.RefreshTokenLife{Expires: t.RefreshExpires, Lifetime: time.Duration(t.RefreshLifetime) * time.Second},
	}
	// Without the descriptor, which is read a moment before, the lifetime decides.
	if d, err := s.effectiveOf(ctx, call.Tenant, of); err == nil && d.OAuth2 != nil {
		cmd.Due = dueBy(d.OAuth2, t.Expires, cmd.Lifetime, learned(of.Tokens))
	}
	err := s.retry(ctx, func(ctx context.Context) error {
		_, err := s.Secrets.ChangeCredential(ctx, call, cmd)
		return err
	})
	switch {
	case err == nil:
		s.metrics.refreshes.WithLabelValues("refreshed").Inc()
	case errors.Is(err, aggregates.ErrRefreshSuperseded), errors.Is(err, aggregates.ErrCredentialNotFound),
		errors.Is(err, aggregates.ErrNotOAuth), errors.Is(err, aggregates.ErrSecretAbandoned):
		s.revokeOrphanedToken(ctx, call, id, of, t)
		s.Secrets.Erase(ctx, secrets.CredentialRef(call.Tenant, id, epoch.SecretID)) // nobody can use it any longer
		if errors.Is(err, aggregates.ErrRefreshSuperseded) {
			return nil
		}
	}
	return err
}

// retry retries, for a while, what failed without a clear rejection.
func (s *Service) retry(ctx context.Context, do func(context.Context) error) error {
	begun := time.Now()
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, service.MaxCall)
		err := do(attempt)
		cancel()
		if err == nil || service.IsRejected(err) || time.Since(begun) > storeFor {
			return err
		}
		time.Sleep(pause)
	}
}

// completeFound looks for the response of another process's epoch, and activates it.
func (s *Service) completeFound(ctx context.Context, call *service.Call, id string, of aggregates.CredentialState, epoch aggregates.Refresh) (found bool, err error) {
	stored, err := s.storedToken(ctx, call.Tenant, id, epoch.SecretID)
	if errors.Is(err, vault.ErrNoSecret) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.activateToken(ctx, call, id, of, epoch, stored)
}

// failed ends an epoch without new tokens, and returns the reason.
func (s *Service) failed(ctx context.Context, call *service.Call, id string, state aggregates.CredentialState, failure error, force bool) error {
	t := state.Tokens
	refusal, ok := errors.AsType[*oauth.Error](failure)
	if !ok { // an internal error, such as a missing OAuth client
		refusal = &oauth.Error{Outcome: oauth.Transient}
		if f := fault.Of(failure); f.Kind != fault.Unavailable && f.Kind != fault.Internal {
			refusal.Outcome = oauth.ClientRefused
		}
	}
	s.metrics.refreshes.WithLabelValues(string(refusal.Outcome)).Inc()
	left := s.remaining(t)
	cmd := commands.FailRefresh{
		ID: id, Epoch: t.Refresh.Epoch, Grant: t.Grant, Outcome: string(refusal.Outcome), Status: refusal.Status,
		RetryAt: s.Kernel.Now().Add(backoff(t.Failures, refusal)), Left: left,
	}
	switch {
	case refusal.Busy:
		cmd.Outcome, cmd.RetryAt = aggregates.OutcomeBusy, s.Kernel.Now().Add(max(refusal.RetryAfter, time.Second))
	case t.ReauthReason != "" && !t.Unverified:
		cmd.RetryAt = s.retryBroken(t, refusal)
	case refusal.Outcome == oauth.Revoked:
		// A response may have arrived at a process that was considered dead.
		for _, late := range t.Late {
			if found, err := s.completeFound(ctx, call, id, state, late); found || err != nil {
				return err
			}
		}
		if cmd.RetryAt = s.Kernel.Now().Add(confirmAfter(left)); left == 0 || t.Refusals > 0 || force {
			cmd.ReauthReason, cmd.RetryAt = refusal.Says(), s.retryBroken(t, refusal)
		}
	case refusal.Outcome == oauth.TooEarly, refusal.Outcome == oauth.Refused && left > 0:
		// Once the token has expired, the provider cannot refuse its renewal as too early.
		cmd.RetryAt = s.Kernel.Now().Add(tooEarly(left))
	case refusal.Outcome == oauth.Refused && t.Refusals > 0: // and the access token has expired
		cmd.ReauthReason, cmd.RetryAt = refusal.Says(), s.retryBroken(t, refusal)
	case refusal.Outcome == oauth.Refused:
		cmd.RetryAt = s.Kernel.Now().Add(tooEarly(0))
	}
	var after aggregates.CredentialState
	err := s.retry(ctx, func(ctx context.Context) error {
		_, now, err := service.Execute(ctx, s.Kernel, call, aggregates.Credential, call.Tenant, commands.Credential(cmd))
		after = now.Value
		return err
	})
	switch {
	case err != nil:
		return err
	case after.Tokens.Token.Epoch != t.Token.Epoch: // a late response arrived meanwhile
		return nil
	case after.Tokens.ReauthReason != "":
		return aggregates.ErrReauthorizationRequired.Withf("%s", after.Tokens.ReauthReason)
	case !ok && refusal.Outcome == oauth.ClientRefused:
		return failure
	}
	s.Logger.WarnContext(ctx, "tokens not renewed", "tenant", call.Tenant, "credential", id, "outcome", refusal.Outcome, "status", refusal.Status)
	return ErrRefreshFailed.Withf("%s", refusal.Says()).WithRetryAfter(cmd.RetryAt.Sub(s.Kernel.Now()))
}

// remaining returns how long the access token is still valid; 0 if it has expired, or its
// expiry is implausible.
func (s *Service) remaining(t aggregates.Tokens) time.Duration {
	now := s.Kernel.Now()
	if !t.Token.Serves(now) {
		return 0
	}
	return t.Token.Expires.Sub(now)
}

// learned returns how long before the end of an access token the provider renews it, as
// learned from its refusals; 0 if unknown.
func learned(t aggregates.Tokens) time.Duration {
	if t.RefusedLeft > 0 {
		return t.RefusedLeft / 2
	}
	return t.Ahead
}

// tooEarly returns the pause after a refused renewal, with so much of the access token left:
// half of that, near its end all of it, and about a minute after its expiry.
func tooEarly(left time.Duration) time.Duration {
	const last = 10 * time.Second
	switch {
	case left > 2*last:
		return left / 2
	case left > 0:
		return left
	}
	return time.Minute/2 + rand.N(time.Minute/2) //nolint:gosec // only spreads the attempts
}

// confirmAfter returns the pause before a rejected grant is tried once more, with so much of
// the access token left.
func confirmAfter(left time.Duration) time.Duration {
	return min(confirmMin+rand.N(confirmMax-confirmMin), left/2) //nolint:gosec // as above
}

// retryBroken returns when rejected tokens are retried: some providers reject a grant only for
// a while. It is the zero time, for never, if the provider said that the grant was revoked or
// too many attempts have failed.
func (s *Service) retryBroken(t aggregates.Tokens, refusal *oauth.Error) time.Time {
	if refusal.Final || t.Failures >= brokenTries {
		return time.Time{}
	}
	wait := min(brokenFirst<<min(max(t.Failures-1, 0), 10), brokenMax)
	return s.Kernel.Now().Add(wait + rand.N(wait/5)) //nolint:gosec // as above
}

// refreshFailed is the error of a missing access token.
func refreshFailed(err error) error {
	if refusal, ok := errors.AsType[*oauth.Error](err); ok {
		return ErrRefreshFailed.Withf("%s", refusal.Says()).WithRetryAfter(max(refusal.RetryAfter, backoffFirst))
	}
	return err
}

// backoff returns the pause before the next request to the provider after a failure.
func backoff(failures int, refusal *oauth.Error) time.Duration {
	wait := backoffMax
	if refusal.Outcome == oauth.Transient || refusal.Outcome == oauth.Malformed {
		wait = min(backoffFirst<<min(failures, 10), backoffMax)
	}
	wait += rand.N(wait / 5) //nolint:gosec // only spreads the attempts
	return max(wait, refusal.RetryAfter)
}

// keeper is the actor of renewals that no command asked for.
const keeper = "token-keeper"

type Refresh struct {
	ID string `json:"id"`
}

// RefreshCredential renews the tokens whether they are due or not, also after a
// failure and when re-authorization is required.
func (s *Service) RefreshCredential(ctx context.Context, call *service.Call, in Refresh) (service.Done, error) {
	state, err := s.Secrets.Live(ctx, call.Tenant, in.ID, 0)
	switch {
	case err != nil:
		return service.Done{}, err
	case !state.IsOAuth():
		return service.Done{}, aggregates.ErrNotOAuth
	}
	// A repeat after a crash renews the same tokens, so the provider gets one request.
	started, err := s.Kernel.Begin(ctx, call, events.CommandStarted{Epoch: state.Tokens.Token.Epoch})
	if err != nil {
		return service.Done{}, err
	}
	call.Detach()
	if err := s.renew(ctx, call.Apart().Step(1), in.ID, started.Epoch, true); err != nil {
		// An error has no sequence to wait for, so the views must have its effects before it is returned.
		if now, lookErr := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, in.ID)); lookErr == nil {
			_ = s.Kernel.AtLeast(ctx, now.Seq)
		}
		return service.Done{}, err
	}
	now, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(call.Tenant, in.ID))
	return service.Done{Seq: now.Seq, ID: in.ID, Version: now.Value.Current().Version, Status: secrets.StatusOf(now.Value)}, err
}

// The token refresher runs a limited number of renewals at a time. One tenant has a share of that,
// which is smaller while half of all are in use: a slow provider
// delays only its own tenant.
const (
	maxRenewals        = 64
	tenantRenewals     = 16
	tenantRenewalsBusy = 4
	dueInterval        = time.Second
	duePause           = 5 * time.Millisecond // between two checks for due tokens
)

// tokenRefresher is the state of RunTokenRefresher.
type tokenRefresher struct {
	mu     sync.Mutex
	busy   map[credentialKey]struct{}
	shares map[string]int // by tenant
	freed  chan struct{}
}

// share is the current limit of concurrent renewals of one tenant.
func (k *tokenRefresher) share() int {
	if len(k.busy) < maxRenewals/2 {
		return tenantRenewals
	}
	return tenantRenewalsBusy
}

// full are the tenants that have reached their share.
func (k *tokenRefresher) full() (tenants []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	share := k.share()
	for tenant, n := range k.shares {
		if n >= share {
			tenants = append(tenants, tenant)
		}
	}
	return tenants
}

// acquire reports whether the credential may be renewed now, and takes a slot for it.
func (k *tokenRefresher) acquire(key credentialKey) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, taken := k.busy[key]; taken || len(k.busy) >= maxRenewals || k.shares[key.tenant] >= k.share() {
		return false
	}
	k.busy[key] = struct{}{}
	k.shares[key.tenant]++
	return true
}

func (k *tokenRefresher) release(key credentialKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.busy, key)
	if k.shares[key.tenant]--; k.shares[key.tenant] == 0 {
		delete(k.shares, key.tenant)
	}
	select {
	case k.freed <- struct{}{}:
	default:
	}
}

// RunTokenRefresher renews tokens before they expire until ctx ends, and completes
// the renewals that a crash interrupted. One process of an installation must run it;
// two do no harm.
func (s *Service) RunTokenRefresher(ctx context.Context) error {
	k := &tokenRefresher{busy: map[credentialKey]struct{}{}, shares: map[string]int{}, freed: make(chan struct{}, 1)}
	var workers sync.WaitGroup
	defer workers.Wait()
	tick := time.NewTicker(dueInterval)
	defer tick.Stop()
	for {
		var due []projections.CredentialName
		full := k.full()
		if s.Kernel.WritesAllowed() == nil {
			var err error
			if due, err = s.Views.DueTokens(ctx, s.Kernel.Now(), full, service.BackgroundBatch); err != nil && ctx.Err() == nil {
				s.Logger.WarnContext(ctx, "cannot list the tokens that are due", "err", err)
			}
		}
		for _, d := range due {
			key := credentialKey{d.Tenant, d.ID}
			if !k.acquire(key) {
				continue
			}
			workers.Go(func() {
				defer k.release(key)
				if err := s.refreshDue(ctx, key); err != nil && ctx.Err() == nil {
					s.Logger.DebugContext(ctx, "renewal of a due token failed", "tenant", key.tenant, "credential", key.id, "err", err)
				}
			})
		}
		freed := k.freed
		if len(due)+len(full) == 0 { // no due credential waits for a slot
			freed = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-freed:
			s.pause(duePause)
		}
	}
}

// refreshDue renews the tokens of one credential that are due.
func (s *Service) refreshDue(ctx context.Context, key credentialKey) error {
	state, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(key.tenant, key.id))
	t := state.Value.Tokens
	switch {
	case err != nil:
		return err
	case !state.Value.IsOAuth() || !t.Renewable || t.RevokedLocally:
		return nil
	case t.ReauthReason != "" && !t.Unverified:
		wait := t.RetryAt.Sub(s.Kernel.Now())
		if t.Refresh.Epoch == 0 && (t.RetryAt.IsZero() || wait > 0 && wait <= 2*brokenMax) {
			return nil
		}
		return s.renew(ctx, service.System(key.tenant, keeper), key.id, t.Token.Epoch, true)
	case t.Refresh.Epoch == 0 && s.untilRetry(t) > 0:
		return nil
	}
	// The views may not have the last renewal yet.
	due := projections.RenewedDue
	if t.Token.SecretID == state.Value.Current().SecretID { // they are part of the keys
		due = projections.TokenDue
	}
	if t.Refresh.Epoch == 0 && t.Token.Plausible(s.Kernel.Now()) && s.Kernel.Now().Before(due(key.id, t.Token.Expires, t.Token.Due, t.Token.Lifetime)) {
		return nil
	}
	return s.renew(ctx, service.System(key.tenant, keeper), key.id, t.Token.Epoch, false)
}
