package oauth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/verify"
)

// Redeem exchanges the code of a callback for tokens (RFC 6749, section 4.1.3).
// redirectURI and verifier are those of the authorization URL. As with Refresh, an error may
// come with a refresh token. Every error is an *Error, or ctx's own if nothing was sent.
func (x *Exchanger) Redeem(ctx context.Context, tenant string, p Provider, c Client, code, verifier seal.Secret, redirectURI string) (Token, error) {
	form := url.Values{"grant_type": {"authorization_code"}, "code": {string(code.Reveal())}, "redirect_uri": {redirectURI}}
	if !p.NoPKCE {
		form.Set("code_verifier", string(verifier.Reveal()))
	}
	return x.exchange(ctx, tenant, p, c, redeeming, form, code, verifier)
}

// Refresh requests a new access token with one request (RFC 6749, section 6). The provider may
// rotate the refresh token, which invalidates the old one: store Token.Refresh, unless it is
// zero, before anything else. It may come with an error too, if the rest of the response is
// unusable. Every error is an *Error, or ctx's own if nothing was sent.
func (x *Exchanger) Refresh(ctx context.Context, tenant string, p Provider, c Client, refresh seal.Secret) (Token, error) {
	if refresh.IsZero() {
		return Token{}, &Error{Outcome: Refused, step: refreshing, cause: noRefresh}
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {string(refresh.Reveal())}}
	add(form, p.RefreshParams)
	p.TokenURI = cmp.Or(p.RefreshURI, p.TokenURI)
	return x.exchange(ctx, tenant, p, c, refreshing, form, refresh)
}

// ClientCredentials requests an access token for the client itself (RFC 6749,
// section 4.4), or by the assertion of p.JWT. Every error is an *Error, ErrSigningKey, or ctx's
// own if nothing was sent.
func (x *Exchanger) ClientCredentials(ctx context.Context, tenant string, p Provider, c Client) (Token, error) {
	form := url.Values{"grant_type": {cmp.Or(p.Grant, "client_credentials")}}
	if scope := p.scope(); len(scope) > 0 {
		form["scope"] = scope
	}
	if p.Grant == GrantJWT && p.JWT != nil {
		assertion, err := p.JWT.sign(p.TokenURI, nil, time.Now())
		if err != nil {
			return Token{}, err
		}
		form.Set("assertion", assertion)
	}
	return x.exchange(ctx, tenant, p, c, acquiring, form)
}

// Revoke revokes token at the provider (RFC 7009); hint is "access_token", "refresh_token" or
// "". A token that the provider does not know counts as revoked. Every error is an *Error, or
// ctx's own if nothing was sent.
func (x *Exchanger) Revoke(ctx context.Context, tenant string, p Provider, c Client, token seal.Secret, hint string) error {
	form := url.Values{"token": {string(token.Reveal())}}
	if hint != "" {
		form.Set("token_type_hint", hint)
	}
	p.JSON = false // RFC 7009 allows only forms
	made, err := x.do(ctx, tenant, p.RevocationURI, c, revoking, func(ctx context.Context, t *attempt) error {
		req, err := p.request(ctx, c, p.RevocationURI, form)
		if err != nil {
			return err
		}
		t.send(req)
		if t.failed == nil && t.response.Status/100 != 2 {
			t.failed = p.classify(t.response.Status, t.response.Header, parse(t.response.Body), []seal.Secret{token, c.Secret})
		}
		return nil
	})
	if failed := made.failed; failed != nil && failed.Code == "invalid_token" {
		return nil
	}
	return err
}

// request returns a POST of the parameters, with the client's id and secret.
func (p Provider) request(ctx context.Context, c Client, uri string, form url.Values) (*http.Request, error) {
	basic, err := p.authenticate(c, uri, form)
	if err != nil {
		return nil, err
	}
	body, contentType := form.Encode(), "application/x-www-form-urlencoded"
	if p.JSON {
		members := map[string]string{}
		for name := range form {
			members[name] = form.Get(name)
		}
		b, err := json.Marshal(members, json.Deterministic(true))
		if err != nil {
			return nil, errors.New("making the request: a parameter is not text in UTF-8") // err may quote it
		}
		body, contentType = string(b), "application/json"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, uri, strings.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("making the request: %w", err)
	}
	req.Header.Set("Content-Type", contentType)
	if basic {
		req.SetBasicAuth(url.QueryEscape(c.ID), url.QueryEscape(string(c.Secret.Reveal()))) // RFC 6749, section 2.3.1
	}
	return req, nil
}

// add adds the parameters that the form does not have yet.
func add(form url.Values, params map[string]string) {
	for name, value := range params {
		if !form.Has(name) {
			form.Set(name, value)
		}
	}
}

// exchange makes a token request.
func (x *Exchanger) exchange(ctx context.Context, tenant string, p Provider, c Client, s step, form url.Values, secrets ...seal.Secret) (Token, error) {
	var token Token
	add(form, p.TokenParams)
	_, err := x.do(ctx, tenant, p.TokenURI, c, s, func(ctx context.Context, t *attempt) error {
		req, err := p.request(ctx, c, p.TokenURI, form)
		if err != nil {
			return err
		}
		t.send(req)
		if t.failed == nil {
			token, t.failed = tokenFrom(t.response, p, append(secrets, c.Secret))
		}
		return nil
	})
	return token, err
}

// tokenFrom reads the tokens of a response. The refresh token may come with an error.
func tokenFrom(a verify.Answer, p Provider, secrets []seal.Secret) (Token, *Error) {
	parsed := parse(a.Body).within(p.TokenAt)
	if a.Status/100 != 2 {
		return Token{}, p.classify(a.Status, a.Header, parsed, secrets)
	}
	token, ok := parsed.token(p, secrets...)
	if ok && parsed.complete {
		return token, nil
	}
	failed := p.classify(a.Status, a.Header, parsed, secrets)
	switch {
	case failed.Outcome != Malformed:
	case a.Cut == verify.CutTooLarge:
		failed.cause = oversize
	case a.Cut != "":
		failed.Outcome, failed.cause = Transient, truncated
	case len(parsed.members) > 0 && !parsed.complete:
		failed.cause = truncated
	}
	return Token{Refresh: parsed.refresh()}, failed
}

// attempt is one request and its outcome.
type attempt struct {
	guarded  *verify.Client
	caller   context.Context
	sent     bool
	response verify.Answer
	failed   *Error
}

// send sends req, and sets response or failed.
func (a *attempt) send(req *http.Request) {
	req.Header.Set("Accept", "application/json") // else GitHub answers with a form
	req.Header.Set("User-Agent", "credstream")
	a.sent = true
	body := &deadlineBody{ReadCloser: req.Body, caller: a.caller}
	req.Body, req.GetBody = body, nil // so that the transport cannot send it again
	answer, err := a.guarded.Do(req.Context(), req)
	none, unanswered := errors.AsType[*verify.Unanswered](err)
	switch {
	case body.expired.Load(): // at most the header was sent, so any response to it does not matter
		a.failed = &Error{Outcome: Transient, cause: cause(verify.OutcomeTimeout)}
	case unanswered:
		a.failed = &Error{Outcome: Transient, Sent: none.Sent, cause: cause(none.Outcome)}
	default:
		a.response = answer
	}
}

// deadlineBody is a request body that is not sent after the caller's deadline: if the process
// was suspended, another process may have used the token in the body meanwhile.
type deadlineBody struct {
	io.ReadCloser
	caller  context.Context
	begun   bool
	expired atomic.Bool
}

// Read implements io.Reader.
func (p *deadlineBody) Read(b []byte) (int, error) {
	if deadline, ok := p.caller.Deadline(); ok && !p.begun && !time.Now().Before(deadline) {
		p.expired.Store(true)
		return 0, context.DeadlineExceeded
	}
	p.begun = true
	return p.ReadCloser.Read(b) //nolint:wrapcheck // a reader passes io.EOF on
}

// do acquires the slots of the tenant and of the host, then calls request, which must send at most one request to uri.
// The attempt is never nil, also with an error.
func (x *Exchanger) do(ctx context.Context, tenant, uri string, c Client, s step, request func(context.Context, *attempt) error) (*attempt, error) {
	made := &attempt{guarded: x.guarded, caller: ctx}
	fail := func(e *Error) (*attempt, error) {
		e.step = s
		made.failed = e
		return made, e
	}
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" {
		return fail(&Error{Outcome: Refused, cause: noURI})
	}
	// The tenant's slot first: a caller that waits for it must not hold a slot of the host.
	host := strings.ToLower(u.Host)
	defer admission.Idle(ctx)()
	release, err := x.guarded.Slot(ctx, tenant, host)
	if errors.Is(err, verify.ErrBusy) {
		return fail(&Error{Outcome: Transient, Busy: true, RetryAfter: fault.Of(err).RetryAfter, cause: busy})
	} else if err != nil {
		return made, fmt.Errorf("%s: %w", s, err)
	}
	defer release()
	releaseHost, err := x.breaker.acquire(ctx, host, u.EscapedPath(), tenant, c.ID)
	if refused, ok := errors.AsType[*Error](err); ok {
		return fail(refused)
	} else if err != nil {
		return made, fmt.Errorf("%s: %w", s, err)
	}
	defer func() { releaseHost(made.failed) }()
	// From here on, only the guarded client's own timeout ends the request.
	if err := request(context.WithoutCancel(ctx), made); errors.Is(err, ErrSigningKey) {
		return made, ErrSigningKey
	} else if err != nil && !made.sent {
		return fail(&Error{Outcome: Refused, cause: noURI})
	}
	if made.failed != nil {
		return fail(made.failed)
	}
	return made, nil
}
