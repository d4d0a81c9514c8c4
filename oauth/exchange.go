package oauth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

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
	return x.exchange(ctx, tenant, p, c, redeeming, func(ctx context.Context) error {
		config := p.config(c)
		config.RedirectURL = redirectURI
		var options []oauth2.AuthCodeOption
		if !p.NoPKCE {
			options = append(options, oauth2.VerifierOption(string(verifier.Reveal())))
		}
		_, err := config.Exchange(ctx, string(code.Reveal()), options...)
		return err
	}, code, verifier)
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
	return x.exchange(ctx, tenant, p, c, refreshing, func(ctx context.Context) error {
		_, err := p.config(c).TokenSource(ctx, &oauth2.Token{RefreshToken: string(refresh.Reveal())}).Token()
		return err
	}, refresh)
}

// ClientCredentials requests an access token for the client itself (RFC 6749,
// section 4.4). Every error is an *Error, or ctx's own when nothing was sent.
func (x *Exchanger) ClientCredentials(ctx context.Context, tenant string, p Provider, c Client) (Token, error) {
	return x.exchange(ctx, tenant, p, c, acquiring, func(ctx context.Context) error {
		config := clientcredentials.Config{
			ClientID: c.ID, ClientSecret: string(c.Secret.Reveal()),
			TokenURL: p.TokenURI, Scopes: p.scope(), AuthStyle: p.authStyle(),
		}
		_, err := config.Token(ctx)
		return err
	})
}

// Revoke gives token up (RFC 7009); hint is "access_token", "refresh_token" or
// "". A token the provider no longer knows is revoked as well as any. Every error
// is an *Error, or ctx's own when nothing was sent.
func (x *Exchanger) Revoke(ctx context.Context, tenant string, p Provider, c Client, token seal.Secret, hint string) error {
	form := url.Values{"token": {string(token.Reveal())}}
	if hint != "" {
		form.Set("token_type_hint", hint)
	}
	if !p.Basic {
		form.Set("client_id", c.ID)
		if !c.Secret.IsZero() {
			form.Set("client_secret", string(c.Secret.Reveal()))
		}
	}
	asked, err := x.ask(ctx, tenant, p.RevocationURI, c, revoking, func(ctx context.Context, asked *asking) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.RevocationURI, strings.NewReader(form.Encode()))
		if err != nil {
			return fmt.Errorf("making the request: %w", err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if p.Basic {
			req.SetBasicAuth(url.QueryEscape(c.ID), url.QueryEscape(string(c.Secret.Reveal()))) // RFC 6749, section 2.3.1
		}
		asked.send(req)
		if asked.failed == nil && asked.answer.Status/100 != 2 {
			asked.failed = judge(asked.answer.Status, asked.answer.Header, read(asked.answer.Body).code())
		}
		return nil
	})
	if failed := asked.failed; failed != nil && failed.Code == "invalid_token" {
		return nil
	}
	return err
}

func (p Provider) config(c Client) *oauth2.Config {
	return &oauth2.Config{
		ClientID: c.ID, ClientSecret: string(c.Secret.Reveal()),
		Endpoint: oauth2.Endpoint{TokenURL: p.TokenURI, AuthStyle: p.authStyle()},
	}
}

// exchange has request make a token request through x/oauth2, whose result and
// errors count for nothing: the answer is read before it gets there.
func (x *Exchanger) exchange(ctx context.Context, tenant string, p Provider, c Client, s step, request func(context.Context) error, secrets ...seal.Secret) (Token, error) {
	var token Token
	_, err := x.ask(ctx, tenant, p.TokenURI, c, s, func(ctx context.Context, asked *asking) error {
		transport := tokenTransport(func(req *http.Request) (*http.Response, error) {
			if err := extend(req, p.TokenParams); err != nil {
				return nil, err
			}
			asked.send(req)
			if asked.failed == nil {
				token, asked.failed = granted(asked.answer, p, append(secrets, c.Secret))
			}
			if asked.failed != nil {
				return nil, asked.failed
			}
			return accepted(), nil
		})
		return request(context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: transport}))
	})
	return token, err
}

// granted reads what an answer grants.
func granted(a verify.Answer, p Provider, secrets []seal.Secret) (Token, *Error) {
	said := read(a.Body)
	if a.Status/100 != 2 {
		return Token{}, judge(a.Status, a.Header, said.code())
	}
	token, ok := said.token(p, secrets...)
	if ok && said.whole {
		return token, nil
	}
	failed := judge(a.Status, a.Header, said.code())
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

// tokenTransport is an http.RoundTripper for the one request of a call.
type tokenTransport func(*http.Request) (*http.Response, error)

// RoundTrip implements http.RoundTripper.
func (t tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) { return t(req) }

// accepted is what x/oauth2 is told of a good answer: that it was one.
func accepted() *http.Response {
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(`{"access_token":"-"}`)),
	}
}

// extend adds parameters to the form of a request, those it has excepted.
func extend(req *http.Request, params map[string]string) error {
	if len(params) == 0 {
		return nil
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return fmt.Errorf("reading the form: %w", err)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return fmt.Errorf("reading the form: %w", err)
	}
	for name, value := range params {
		if !form.Has(name) {
			form.Set(name, value)
		}
	}
	body = []byte(form.Encode())
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return nil
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
