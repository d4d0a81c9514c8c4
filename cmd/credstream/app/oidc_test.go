package app

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/nats-io/nats.go"
	"github.com/zitadel/oidc/v3/example/server/exampleop"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
	"golang.org/x/oauth2"

	"github.com/credstream/credstream/service/access"
)

// provider is a real OpenID Connect provider in this process, with a login page.
type provider struct {
	*storage.Storage
	*httptest.Server
	mu     sync.Mutex
	claims map[string]any // of the next ID token
	signer *signingKey
}

// signingKey is a key of the provider, private and public.
type signingKey struct {
	id  string
	key *rsa.PrivateKey
}

func (k *signingKey) ID() string                                  { return k.id }
func (k *signingKey) Key() any                                    { return k.key }
func (k *signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.RS256 }

type publicKey struct{ *signingKey }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.RS256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return &k.key.PublicKey }

// SigningKey implements op.Storage.
func (p *provider) SigningKey(context.Context) (op.SigningKey, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.signer, nil
}

// KeySet implements op.Storage.
func (p *provider) KeySet(context.Context) ([]op.Key, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []op.Key{publicKey{p.signer}}, nil
}

// SetUserinfoFromRequest implements op.CanSetUserinfoFromRequest.
func (p *provider) SetUserinfoFromRequest(_ context.Context, info *oidc.UserInfo, of op.IDTokenRequest, _ []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	info.Subject = of.GetSubject()
	for name, v := range p.claims {
		info.AppendClaims(name, v)
	}
	return nil
}

func (p *provider) rotate(t *testing.T, id string) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signer = &signingKey{id, key}
}

const callback = "http://127.0.0.1:1/callback"

func newProvider(t *testing.T) *provider {
	p := &provider{Server: httptest.NewUnstartedServer(nil)}
	p.rotate(t, "first")
	issuer := "http://" + p.Listener.Addr().String()
	storage.RegisterClients(storage.WebClient("credstream", "secret", callback), storage.WebClient("other", "secret", callback))
	p.Storage = storage.NewStorage(storage.NewUserStore(issuer))
	p.Config.Handler = exampleop.SetupServer(issuer, p, slog.New(slog.DiscardHandler), false)
	p.Start()
	t.Cleanup(p.Close)
	return p
}

// signIn goes through the login page and returns the ID token.
func (p *provider) signIn(t *testing.T, clientID string, claims map[string]any) string {
	t.Helper()
	p.mu.Lock()
	p.claims = claims
	p.mu.Unlock()
	jar, err := cookiejar.New(nil)
	must(t, err)
	browser := &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	cfg := oauth2.Config{
		ClientID: clientID, ClientSecret: "secret", RedirectURL: callback, Scopes: []string{"openid"},
		Endpoint: oauth2.Endpoint{AuthURL: p.URL + "/auth", TokenURL: p.URL + "/oauth/token", AuthStyle: oauth2.AuthStyleInHeader},
	}
	verifier := oauth2.GenerateVerifier()
	page, err := browser.Get(cfg.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
	must(t, err)
	_ = page.Body.Close()
	form := url.Values{"username": {"test-user2"}, "password": {"verysecure"}, "id": {page.Request.URL.Query().Get("authRequestID")}}
	back, err := browser.PostForm(p.URL+"/login/username", form)
	must(t, err)
	_ = back.Body.Close()
	to, err := back.Location()
	must(t, err)
	token, err := cfg.Exchange(t.Context(), to.Query().Get("code"), oauth2.VerifierOption(verifier))
	must(t, err)
	id, _ := token.Extra("id_token").(string)
	if !access.IsToken(id) {
		t.Fatalf("the provider gives no ID token but %q", id)
	}
	return id
}

// Somebody who signs in at an OpenID Connect provider works in the tenants and with
// the permissions that the provider's claims name, over HTTP, and is the actor of
// what they do.
func TestOpenIDConnect(t *testing.T) {
	idp := newProvider(t)
	u := bring(t, t.TempDir(), func(c *Config) {
		c.OIDCIssuer, c.OIDCAudience, c.OIDCTenantClaim, c.OIDCPermissionsClaim = idp.URL, "credstream", "tenant", "permissions"
	})
	must(t, u.command("tenant.register", "", map[string]any{"id": "acme"}, nil))
	must(t, u.command("tenant.register", "", map[string]any{"id": "ajax"}, nil))
	acme := u.api
	acme.tenant = "acme"
	plain := map[string]any{"id": "c1", "descriptor": map[string]any{"title": "C"}}

	operator := idp.signIn(t, "credstream", map[string]any{"tenant": "acme", "permissions": "OPERATOR not.known"})
	must(t, acme.as(operator).query("component.list", "", nil))
	if got := code(t, acme.as(operator).command("component.register", "", plain, nil)); got != "permission_denied" {
		t.Errorf("an operator registers a component: %q", got)
	}
	ajax := acme
	ajax.tenant = "ajax"
	if got := code(t, ajax.as(operator).query("component.list", "", nil)); got != "tenant_not_found" {
		t.Errorf("another tenant: %q", got)
	}
	admin := idp.signIn(t, "credstream", map[string]any{"tenant": []string{"acme", "ajax"}, "permissions": []string{"ADMINISTRATOR"}})
	var made done
	must(t, acme.as(admin).command("component.register", "once", plain, &made))
	var again done
	must(t, acme.as(admin).command("component.register", "once", plain, &again))
	if made != again {
		t.Errorf("a repeated command answers %+v, first %+v", again, made)
	}
	must(t, ajax.as(admin).query("component.list", "", nil))
	if got := code(t, acme.as(admin).query("tenant.list", "", nil)); got != "permission_denied" {
		t.Errorf("an administrator of two tenants lists all: %q", got)
	}
	var key issuedKey
	for _, expires := range []string{"", "8760h"} { // a key does not outlast the token that issues it
		if got := code(t, acme.as(admin).command("api_key.issue", "", map[string]any{"role": "OPERATOR", "expires": expires}, nil)); got != "api_key_exceeds_issuer" {
			t.Errorf("a token issues a key with expires %q: %q", expires, got)
		}
	}
	must(t, acme.as(admin).command("api_key.issue", "", map[string]any{"role": "OPERATOR", "expires": "1m"}, &key))
	var page struct {
		Events []struct {
			Type, Actor string
			Data        json.RawMessage
		} `json:"events"`
	}
	must(t, acme.query("events.replay", "limit=200", &page))
	actors := map[string]string{}
	for _, e := range page.Events {
		actors[e.Type] = e.Actor
	}
	for _, typ := range []string{"component.registered", "api_key.issued", "access.denied"} {
		if got := actors["credstream."+typ+".v1"]; got != "user:id2" {
			t.Errorf("%s was done by %q", typ, got)
		}
	}

	// Refused, and not taken anywhere else.
	for name, token := range map[string]string{
		"of another client": idp.signIn(t, "other", map[string]any{"tenant": "acme", "permissions": "ADMINISTRATOR"}),
		"without a tenant":  idp.signIn(t, "credstream", map[string]any{"permissions": "ADMINISTRATOR"}),
		"cut short":         operator[:len(operator)-4],
		"without signature": operator[:strings.LastIndex(operator, ".")+1],
	} {
		if got := code(t, acme.as(token).query("component.list", "", nil)); got != "token_invalid" {
			t.Errorf("a token %s: %q", name, got)
		}
	}
	if nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", operator)); err == nil {
		nc.Close()
		t.Error("a token is let in on NATS")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u.base+"/v1/tenants/acme/component.list", http.NoBody)
	must(t, err)
	req.SetBasicAuth("x", operator)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a token as a password: %d", resp.StatusCode)
	}

	// The provider changes its key.
	idp.rotate(t, "second")
	must(t, acme.as(idp.signIn(t, "credstream", map[string]any{"tenant": "acme", "permissions": "OPERATOR"})).query("component.list", "", nil))
	if strings.Contains(u.logs.String(), operator[:40]) {
		t.Error("a token stands in the log")
	}
}
