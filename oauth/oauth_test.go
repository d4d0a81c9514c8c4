package oauth_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/verify"
)

const callback = "http://127.0.0.1:1/callback"

// exchanger returns an Exchanger that may reach this machine.
func exchanger() *oauth.Exchanger {
	return oauth.New(verify.NewClient(verify.Config{AllowPrivate: true}))
}

func secret(s string) seal.Secret { return seal.NewSecret([]byte(s)) }

func plain(s seal.Secret) string { return string(s.Reveal()) }

// failure is err as an *oauth.Error, which it must be.
func failure(t *testing.T, err error) *oauth.Error {
	t.Helper()
	var e *oauth.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *oauth.Error", err)
	}
	return e
}

// The whole life of a grant at a real provider.
func TestOpenIDProvider(t *testing.T) {
	idp := oauthtest.NewOpenIDProvider(t, callback)
	x, p, c, ctx := exchanger(), idp.Provider(), idp.Client(), t.Context()

	verifier := oauth.NewVerifier()
	back := idp.Consent(t, x.AuthorizationURL(p, c.ID, callback, "the-state", verifier)).Query()
	if back.Get("state") != "the-state" {
		t.Fatalf("the provider sends the browser back with %v", back)
	}
	_, err := x.Redeem(ctx, "acme", p, c, secret(back.Get("code")), oauth.NewVerifier(), callback)
	if e := failure(t, err); e.Outcome != oauth.Revoked || e.Code != "invalid_grant" {
		t.Errorf("a code with another verifier: %v", e)
	}
	back = idp.Consent(t, x.AuthorizationURL(p, c.ID, callback, "the-state", verifier)).Query()
	first, err := x.Redeem(ctx, "acme", p, c, secret(back.Get("code")), verifier, callback)
	if err != nil {
		t.Fatal(err)
	}
	if first.Access.IsZero() || first.Refresh.IsZero() || first.Type != "Bearer" || first.Lifetime < 290*time.Second || first.Lifetime > 5*time.Minute {
		t.Errorf("redeeming gives %+v", first)
	}
	if id, ok := first.Answer.Text("id_token"); !ok || id.IsZero() {
		t.Errorf("the answer has no ID token but %v", first.Answer.Names())
	}

	second, err := x.Refresh(ctx, "acme", p, c, first.Refresh)
	if err != nil {
		t.Fatal(err)
	}
	if second.Refresh.IsZero() || second.Refresh.Equal(first.Refresh) || second.Access.Equal(first.Access) {
		t.Error("refreshing does not replace the tokens")
	}
	_, err = x.Refresh(ctx, "acme", p, c, first.Refresh)
	if e := failure(t, err); e.Outcome != oauth.Revoked || e.Code != "invalid_grant" || e.Status != 400 || !e.Sent {
		t.Errorf("a refresh token used again: %+v", e)
	}
	_, err = x.Refresh(ctx, "acme", p, oauth.Client{ID: c.ID, Secret: secret("wrong")}, second.Refresh)
	if e := failure(t, err); e.Outcome != oauth.ClientRefused || e.Code != "invalid_client" {
		t.Errorf("the wrong secret: %+v", e)
	}
	if err := x.Revoke(ctx, "acme", p, c, second.Refresh, "refresh_token"); err != nil {
		t.Fatal(err)
	}
	_, err = x.Refresh(ctx, "acme", p, c, second.Refresh)
	if e := failure(t, err); e.Outcome != oauth.Revoked {
		t.Errorf("a revoked refresh token: %+v", e)
	}
	if err := x.Revoke(ctx, "acme", p, c, second.Refresh, ""); err != nil {
		t.Errorf("revoking what is revoked: %v", err)
	}

	own, err := x.ClientCredentials(ctx, "acme", p, idp.Service())
	if err != nil {
		t.Fatal(err)
	}
	if own.Access.IsZero() || !own.Refresh.IsZero() {
		t.Errorf("client credentials give %+v", own)
	}
}

func TestAuthorizationURL(t *testing.T) {
	x, verifier := exchanger(), secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk") // RFC 7636, appendix B
	for name, test := range map[string]struct {
		p    oauth.Provider
		want string
	}{
		"S256": {
			oauth.Provider{AuthURI: "https://as.example.com/authorize", Scopes: []string{"a", "b"}},
			"https://as.example.com/authorize?client_id=c1&code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256" +
				"&redirect_uri=https%3A%2F%2Fus.example.com%2Fcb&response_type=code&scope=a+b&state=s1",
		},
		"own query, comma, parameters, no PKCE": {
			oauth.Provider{
				AuthURI: "https://as.example.com/authorize?v=2", Scopes: []string{"a", "b"}, ScopeSeparator: ",", NoPKCE: true,
				AuthParams: map[string]string{"prompt": "consent", "state": "evil", "redirect_uri": "https://evil.example.com", "client_id": "evil"},
			},
			"https://as.example.com/authorize?v=2&client_id=c1&prompt=consent" +
				"&redirect_uri=https%3A%2F%2Fus.example.com%2Fcb&response_type=code&scope=a%2Cb&state=s1",
		},
		"no scopes": {
			oauth.Provider{AuthURI: "https://as.example.com/authorize", NoPKCE: true},
			"https://as.example.com/authorize?client_id=c1&redirect_uri=https%3A%2F%2Fus.example.com%2Fcb&response_type=code&state=s1",
		},
	} {
		if got := x.AuthorizationURL(test.p, "c1", "https://us.example.com/cb", "s1", verifier); got != test.want {
			t.Errorf("%s: got\n%s, want\n%s", name, got, test.want)
		}
	}
	if a, b := oauth.NewVerifier(), oauth.NewVerifier(); a.Len() < 43 || a.Equal(b) {
		t.Errorf("verifiers of %d bytes, or the same twice", a.Len())
	}
}

// What each request holds: nothing more, and the client's secret in one place.
func TestRequests(t *testing.T) {
	s := oauthtest.NewServer(t)
	x, ctx := exchanger(), t.Context()
	granted := s.Grant()
	refresh := secret(granted["refresh_token"].(string))
	s.Rotate(false)
	id, pass := oauthtest.ClientID, oauthtest.ClientSecret

	form, basic := s.Provider(), s.Provider()
	basic.Basic = true
	form.TokenParams = map[string]string{"audience": "https://api.example.com", "grant_type": "password", "client_id": "evil"}
	form.ScopeSeparator = ","
	type request struct {
		Form  url.Values
		Basic bool
	}
	for name, test := range map[string]struct {
		ask  func() error
		want request
	}{
		"refresh": {
			func() error { _, err := x.Refresh(ctx, "t", form, s.Client(), refresh); return err },
			request{url.Values{"grant_type": {"refresh_token"}, "refresh_token": {plain(refresh)}, "client_id": {id}, "client_secret": {pass}, "audience": {"https://api.example.com"}}, false},
		},
		"refresh, basic": {
			func() error { _, err := x.Refresh(ctx, "t", basic, s.Client(), refresh); return err },
			request{url.Values{"grant_type": {"refresh_token"}, "refresh_token": {plain(refresh)}}, true},
		},
		"client credentials": {
			func() error { _, err := x.ClientCredentials(ctx, "t", form, s.Client()); return err },
			request{url.Values{"grant_type": {"client_credentials"}, "scope": {"read,write"}, "client_id": {id}, "client_secret": {pass}, "audience": {"https://api.example.com"}}, false},
		},
		"client credentials, basic": {
			func() error { _, err := x.ClientCredentials(ctx, "t", basic, s.Client()); return err },
			request{url.Values{"grant_type": {"client_credentials"}, "scope": {"read write"}}, true},
		},
	} {
		before := s.Requests()
		if err := test.ask(); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		seen := s.Seen()[before:]
		if len(seen) != 1 {
			t.Errorf("%s took %d requests", name, len(seen))
			continue
		}
		got := request{seen[0].Form, seen[0].Header.Get("Authorization") != ""}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if h := seen[0].Header; h.Get("Referer") != "" || h.Get("Accept-Encoding") != "" || h.Get("Accept") != "application/json" {
			t.Errorf("%s: header %v", name, h)
		}
	}
}

// A code is bound to its redirect and its verifier, and is redeemed once.
func TestRedeem(t *testing.T) {
	s := oauthtest.NewServer(t)
	x, p, ctx := exchanger(), s.Provider(), t.Context()
	code := func(p oauth.Provider, verifier seal.Secret) seal.Secret {
		back := s.Consent(t, x.AuthorizationURL(p, oauthtest.ClientID, callback, "s", verifier)).Query()
		if back.Get("iss") != p.Issuer || back.Get("state") != "s" {
			t.Fatalf("sent back with %v", back)
		}
		return secret(back.Get("code"))
	}
	verifier := oauth.NewVerifier()
	good := code(p, verifier)
	token, err := x.Redeem(ctx, "t", p, s.Client(), good, verifier, callback)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Accepts(plain(token.Access)) || !s.Live(plain(token.Refresh)) || token.Scope != "read write" || token.Lifetime != time.Hour {
		t.Errorf("got %+v", token)
	}
	for name, err := range map[string]error{
		"again":            second(x.Redeem(ctx, "t", p, s.Client(), good, verifier, callback)),
		"another redirect": second(x.Redeem(ctx, "t", p, s.Client(), code(p, verifier), verifier, callback+"2")),
		"another verifier": second(x.Redeem(ctx, "t", p, s.Client(), code(p, verifier), oauth.NewVerifier(), callback)),
	} {
		if e := failure(t, err); e.Outcome != oauth.Revoked {
			t.Errorf("%s: %v", name, e)
		}
	}
	s.RequirePKCE(false)
	p.NoPKCE = true
	if _, err := x.Redeem(ctx, "t", p, s.Client(), code(p, verifier), verifier, callback); err != nil {
		t.Errorf("without PKCE: %v", err)
	}
	if seen := s.Seen(); seen[len(seen)-1].Form.Has("code_verifier") {
		t.Error("a provider that refuses PKCE is sent a verifier")
	}
	p.AuthURI += "?" // a question mark alone
	s.Deny(true)
	if back := s.Consent(t, x.AuthorizationURL(p, oauthtest.ClientID, callback, "s", verifier)).Query(); back.Get("error") != "access_denied" {
		t.Errorf("denied: %v", back)
	}
}

func second[T any](_ T, err error) error { return err }

// A refresh token that is used again takes its family with it: the server that
// others build on does as it says.
func TestReuse(t *testing.T) {
	s := oauthtest.NewServer(t)
	x, p, c, ctx := exchanger(), s.Provider(), s.Client(), t.Context()
	spent := secret(s.Grant()["refresh_token"].(string))
	fresh, err := x.Refresh(ctx, "t", p, c, spent)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Live(plain(fresh.Refresh)) || s.Live(plain(spent)) {
		t.Error("the old token lives, or the new one does not")
	}
	if e := failure(t, second(x.Refresh(ctx, "t", p, c, spent))); e.Outcome != oauth.Revoked {
		t.Errorf("used again: %v", e)
	}
	if e := failure(t, second(x.Refresh(ctx, "t", p, c, fresh.Refresh))); e.Outcome != oauth.Revoked {
		t.Errorf("its successor: %v", e)
	}
	if s.Reused() != 1 || s.Count("refresh_token") != 3 || s.Accepts(plain(fresh.Access)) {
		t.Errorf("reused %d, requests %d", s.Reused(), s.Count("refresh_token"))
	}
	s.Rotate(false)
	kept := secret(s.Grant()["refresh_token"].(string))
	for range 2 {
		token, err := x.Refresh(ctx, "t", p, c, kept)
		if err != nil {
			t.Fatal(err)
		}
		if !token.Refresh.IsZero() {
			t.Error("a refresh token came that the answer does not hold")
		}
	}
}

// A request that was sent is waited for, whatever becomes of the caller: its
// answer may hold the only copy of the new refresh token.
func TestCallerGone(t *testing.T) {
	s := oauthtest.NewServer(t)
	x, p := exchanger(), s.Provider()
	ctx, cancel := context.WithCancel(t.Context())
	s.After(func(*http.Request) { cancel() })
	token, err := x.Refresh(ctx, "t", p, s.Client(), secret(s.Grant()["refresh_token"].(string)))
	if err != nil {
		t.Fatal(err)
	}
	if ctx.Err() == nil || !s.Live(plain(token.Refresh)) {
		t.Error("the new refresh token is lost")
	}
	_, err = x.Refresh(ctx, "t", p, s.Client(), token.Refresh)
	if !errors.Is(err, context.Canceled) || s.Requests() != 1 {
		t.Errorf("with a context that has ended: %v, %d requests", err, s.Requests())
	}
}

func TestRevoke(t *testing.T) {
	var form url.Values
	status, body := 200, ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		form = r.PostForm
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	p := oauth.Provider{RevocationURI: server.URL}
	c := oauth.Client{ID: "c", Secret: secret("canary-secret")}
	for _, test := range []struct {
		status  int
		body    string
		outcome oauth.Outcome
		code    string
	}{
		{200, "", "", ""},
		{204, "", "", ""},
		{400, `{"error":"invalid_token"}`, "", ""},
		{400, `{"error":"unsupported_token_type"}`, oauth.Refused, "unsupported_token_type"},
		{401, `{"error":"invalid_client"}`, oauth.ClientRefused, "invalid_client"},
		{503, "", oauth.Transient, ""},
		{307, "", oauth.Transient, ""},
		{404, "", oauth.Refused, ""},
	} {
		status, body = test.status, test.body
		err := exchanger().Revoke(t.Context(), "t", p, c, secret("canary-token"), "refresh_token")
		if test.outcome == "" {
			if err != nil {
				t.Errorf("%d %s: %v", test.status, test.body, err)
			}
			continue
		}
		if e := failure(t, err); e.Outcome != test.outcome || e.Code != test.code || e.Status != test.status {
			t.Errorf("%d %s: %+v", test.status, test.body, e)
		}
	}
	want := url.Values{"token": {"canary-token"}, "token_type_hint": {"refresh_token"}, "client_id": {"c"}, "client_secret": {"canary-secret"}}
	if diff := cmp.Diff(want, form); diff != "" {
		t.Errorf("the form (-want +got):\n%s", diff)
	}
	if e := failure(t, exchanger().Revoke(t.Context(), "t", oauth.Provider{}, c, secret("x"), "")); e.Outcome != oauth.Refused || e.Sent {
		t.Errorf("without an address: %+v", e)
	}
}

// Nobody need know the codes of a standard to understand what went wrong.
func TestSays(t *testing.T) {
	for _, e := range oauth.Errors() {
		says := e.Says()
		first, _, _ := strings.Cut(says, ".")
		if len(strings.Fields(first)) < 5 || strings.Contains(says, "%") || strings.Contains(says, "\n") || strings.Contains(first, "_") {
			t.Errorf("%v says %q", e, says)
		}
		if e.Code != "" && !strings.HasSuffix(says, "Provider error: "+e.Code+".") {
			t.Errorf("%v does not name its code: %q", e, says)
		}
	}
}

// A provider that keeps a tenant waiting keeps it from no other one; who waits too
// long for the first has sent nothing, and is told so.
func TestSlowProvider(t *testing.T) {
	good, held := oauthtest.NewServer(t), make(chan struct{})
	reached := make(chan struct{}, 4)
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached <- struct{}{}
		<-held
		oauthtest.JSON(`{"access_token":"a"}`)(w, nil)
	}))
	t.Cleanup(slow.Close)
	guarded := verify.NewClient(verify.Config{AllowPrivate: true})
	x, p, c := oauth.New(guarded), good.Provider(), good.Client()
	p.TokenURI = slow.URL
	var waiting sync.WaitGroup
	for range 4 {
		waiting.Go(func() {
			if _, err := x.ClientCredentials(t.Context(), "t", p, c); err != nil {
				t.Error(err)
			}
		})
	}
	for range 4 {
		<-reached
	}
	if _, err := x.ClientCredentials(t.Context(), "t", good.Provider(), c); err != nil {
		t.Errorf("at another provider: %v", err)
	}
	close(held)
	waiting.Wait()

	hasty := verify.NewClient(verify.Config{AllowPrivate: true, Timeout: 50 * time.Millisecond})
	x = oauth.New(hasty)
	for range 4 {
		release, err := hasty.Slot(t.Context(), "t", strings.TrimPrefix(slow.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer release()
	}
	e := failure(t, second(x.ClientCredentials(t.Context(), "t", p, c)))
	if !e.Busy || e.Sent || e.Outcome != oauth.Transient || e.RetryAfter <= 0 {
		t.Errorf("too many at once: %+v", e)
	}
}
