package oauth

import (
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
// redirectURI and verifier are those of the authorization URL. A refresh token may
// come with an error, as from Refresh. Every error is an *Error, or ctx's own when
// nothing was sent.
func (x *Exchanger) Redeem(ctx context.Context, tenant string, p Provider, c Client, code, verifier seal.Secret, redirectURI string) (Token, error) {
	form := url.Values{"grant_type": {"authorization_code"}, "code": {string(code.Reveal())}, "redirect_uri": {redirectURI}}
	if !p.NoPKCE {
		form.Set("code_verifier", string(verifier.Reveal()))
	}
	return x.exchange(ctx, tenant, p, c, redeeming, form, code, verifier)
}

// Refresh requests a new access token by one request (RFC 6749, section 6). The
// provider may replace the refresh token with it, and then the old one is worth
// nothing any more: store Token.Refresh, unless it is zero, before anything else
// - also when it comes with an error, as it may where the rest of the answer is
// of no use. Every error is an *Error, or ctx's own when nothing was sent.
func (x *Exchanger) Refresh(ctx context.Context, tenant string, p Provider, c Client, refresh seal.Secret) (Token, error) {
	if refresh.IsZero() {
		return Token{}, &Error{Outcome: Refused, step: refreshing, cause: noRefresh}
	}
	form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {string(refresh.Reveal())}}
	add(form, p.RefreshParams)
	return x.exchange(ctx, tenant, p, c, refreshing, form, refresh)
}

// ClientCredentials requests an access token for the client itself (RFC 6749,
// section 4.4). Every error is an *Error, or ctx's own when nothing was sent.
func (x *Exchanger) ClientCredentials(ctx context.Context, tenant string, p Provider, c Client) (Token, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	if scope := p.scope(); len(scope) > 0 {
		form["scope"] = scope
	}
	return x.exchange(ctx, tenant, p, c, acquiring, form)
}

// Revoke gives token up (RFC 7009); hint is "access_token", "refresh_token" or
// "". A token the provider no longer knows is revoked as well as any. Every error
// is an *Error, or ctx's own when nothing was sent.
func (x *Exchanger) Revoke(ctx context.Context, tenant string, p Provider, c Client, token seal.Secret, hint string) error {
	form := url.Values{"token": {string(token.Reveal())}}
	if hint != "" {
		form.Set("token_type_hint", hint)
	}
	p.JSON = false // RFC 7009 knows forms only
	asked, err := x.ask(ctx, tenant, p.RevocationURI, c, revoking, func(ctx context.Context, asked *asking) error {
		req, err := p.request(ctx, c, p.RevocationURI, form)
		if err != nil {
			return err
		}
		asked.send(req)
		if asked.failed == nil && asked.answer.Status/100 != 2 {
			asked.failed = p.judge(asked.answer.Status, asked.answer.Header, read(asked.answer.Body), []seal.Secret{token, c.Secret})
		}
		return nil
	})
	if failed := asked.failed; failed != nil && failed.Code == "invalid_token" {
		return nil
	}
	return err
}

// request makes a POST of parameters, with the client's id and secret.
func (p Provider) request(ctx context.Context, c Client, uri string, form url.Values) (*http.Request, error) {
	basic := p.Basic && !c.Secret.IsZero()
	if !basic {
		form.Set("client_id", c.ID)
		if !c.Secret.IsZero() {
			form.Set("client_secret", string(c.Secret.Reveal()))
		}
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

// add adds parameters to a form, those it has excepted.
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
	_, err := x.ask(ctx, tenant, p.TokenURI, c, s, func(ctx context.Context, asked *asking) error {
		req, err := p.request(ctx, c, p.TokenURI, form)
		if err != nil {
			return err
		}
		asked.send(req)
		if asked.failed == nil {
			token, asked.failed = granted(asked.answer, p, append(secrets, c.Secret))
		}
		return nil
	})
	return token, err
}

// granted reads what an answer grants.
func granted(a verify.Answer, p Provider, secrets []seal.Secret) (Token, *Error) {
	said := read(a.Body)
	if a.Status/100 != 2 {
		return Token{}, p.judge(a.Status, a.Header, said, secrets)
	}
	token, ok := said.token(p, secrets...)
	if ok && said.whole {
		return token, nil
	}
	failed := p.judge(a.Status, a.Header, said, secrets)
	switch {
	case failed.Outcome != Malformed:
	case a.Cut == verify.CutTooLarge:
		failed.cause = oversize
	case a.Cut != "":
		failed.Outcome, failed.cause = Transient, cut
	case len(said.members) > 0 && !said.whole:
		failed.cause = cut
	}
	return Token{Refresh: said.refresh()}, failed
}

// asking is one request and what became of it.
type asking struct {
	guarded *verify.Client
	caller  context.Context
	sent    bool
	answer  verify.Answer
	failed  *Error
}

// send sends req, and notes the answer or why there is none.
func (a *asking) send(req *http.Request) {
	req.Header.Set("Accept", "application/json") // else GitHub answers with a form
	req.Header.Set("User-Agent", "credstream")
	a.sent = true
	form := &punctual{ReadCloser: req.Body, caller: a.caller}
	req.Body, req.GetBody = form, nil // nothing sends it again
	answer, err := a.guarded.Do(req.Context(), req)
	none, unanswered := errors.AsType[*verify.Unanswered](err)
	switch {
	case form.late.Load(): // at most the header was sent, whatever was answered to that
		a.failed = &Error{Outcome: Transient, cause: cause(verify.OutcomeTimeout)}
	case unanswered:
		a.failed = &Error{Outcome: Transient, Sent: none.Sent, cause: cause(none.Outcome)}
	default:
		a.answer = answer
	}
}

// punctual is the form of a request. It is not written when the caller's deadline has
// passed, however long it took to come to that: the process may have stood still, and
// a token in the form be used by another one by now.
type punctual struct {
	io.ReadCloser
	caller context.Context
	begun  bool
	late   atomic.Bool
}

// Read implements io.Reader.
func (p *punctual) Read(b []byte) (int, error) {
	if deadline, ok := p.caller.Deadline(); ok && !p.begun && !time.Now().Before(deadline) {
		p.late.Store(true)
		return 0, context.DeadlineExceeded
	}
	p.begun = true
	return p.ReadCloser.Read(b) //nolint:wrapcheck // a reader passes io.EOF on
}

// ask has request make one request to uri when it is the turn of the tenant and
// of the host. The error is that of the asking, which is never nil.
func (x *Exchanger) ask(ctx context.Context, tenant, uri string, c Client, s step, request func(context.Context, *asking) error) (*asking, error) {
	asked := &asking{guarded: x.guarded, caller: ctx}
	fail := func(e *Error) (*asking, error) {
		e.step = s
		asked.failed = e
		return asked, e
	}
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" {
		return fail(&Error{Outcome: Refused, cause: noURI})
	}
	// The tenant's place first: who waits for it must not keep others from a host.
	host := strings.ToLower(u.Host)
	defer admission.Idle(ctx)()
	release, err := x.guarded.Slot(ctx, tenant, host)
	if errors.Is(err, verify.ErrBusy) {
		return fail(&Error{Outcome: Transient, Busy: true, RetryAfter: fault.Of(err).RetryAfter, cause: busy})
	} else if err != nil {
		return asked, fmt.Errorf("%s: %w", s, err)
	}
	defer release()
	leave, err := x.breaker.enter(ctx, host, u.EscapedPath(), tenant, c.ID)
	if rests, ok := errors.AsType[*Error](err); ok {
		return fail(rests)
	} else if err != nil {
		return asked, fmt.Errorf("%s: %w", s, err)
	}
	defer func() { leave(asked.failed) }()
	// From here on nothing but the guarded client's own timeout ends the request.
	if err := request(context.WithoutCancel(ctx), asked); err != nil && !asked.sent {
		return fail(&Error{Outcome: Refused, cause: noURI})
	}
	if asked.failed != nil {
		return fail(asked.failed)
	}
	return asked, nil
}
