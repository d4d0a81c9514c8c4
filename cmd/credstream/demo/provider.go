// Package demo holds the servers of the tour: a small API and a small OAuth provider.
package demo

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
)

// The one client that the demo provider knows, and the scope it grants.
const (
	ClientID     = "demo-client"
	ClientSecret = "demo-secret"
	scope        = "calendar"
)

// provider is a tiny OAuth authorization server and the API behind it: enough
// to see a credential connected, renewed, and lost when its grant is revoked. A
// refresh token is rotated when it is used, and reusing an old one revokes its
// grant (RFC 9700, section 4.14.2). It keeps everything in memory.
type provider struct {
	lifetime time.Duration // of an access token

	mu      sync.Mutex
	codes   map[string]authCode
	refresh map[string]*userGrant
	access  map[string]accessToken
}

type authCode struct{ redirect, challenge string }

type userGrant struct {
	current string // the valid refresh token
	ended   bool
}

type accessToken struct {
	grant *userGrant
	until time.Time
}

// Provider is a new provider whose access tokens are good for lifetime.
func Provider(lifetime time.Duration) http.Handler {
	p := &provider{lifetime: lifetime, codes: map[string]authCode{}, refresh: map[string]*userGrant{}, access: map[string]accessToken{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /authorize", p.ask)
	mux.HandleFunc("POST /authorize", p.consent)
	mux.HandleFunc("POST /token", p.token)
	mux.HandleFunc("POST /revoke", p.revoke)
	mux.HandleFunc("POST /revoke-all", p.revokeAll)
	mux.HandleFunc("GET /me", p.me)
	return mux
}

var consentPage = template.Must(template.New("consent").Parse(`<!doctype html><meta charset="utf-8"><title>Demo calendar</title>
<h1>Demo calendar</h1><p>Let credstream read your calendar?</p>
<form method="post"><button name="answer" value="allow">Allow</button> <button name="answer" value="deny">Deny</button></form>`))

// ask shows the page on which a person consents.
func (p *provider) ask(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if q.Get("client_id") != ClientID || q.Get("redirect_uri") == "" {
		http.Error(w, "This provider knows only the client "+ClientID+".", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	_ = consentPage.Execute(w, nil) // a client that is gone needs no page
}

// consent redirects the browser back with a code, or with the refusal.
func (p *provider) consent(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || back.Host == "" || q.Get("client_id") != ClientID {
		http.Error(w, "The redirect_uri is not valid.", http.StatusBadRequest)
		return
	}
	answer := back.Query()
	answer.Set("state", q.Get("state"))
	switch {
	case q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256":
		answer.Set("error", "invalid_request")
	case r.FormValue("answer") != "allow":
		answer.Set("error", "access_denied")
	default:
		code := rand.Text()
		p.mu.Lock()
		p.codes[code] = authCode{q.Get("redirect_uri"), q.Get("code_challenge")}
		p.mu.Unlock()
		answer.Set("code", code)
	}
	back.RawQuery = answer.Encode()
	http.Redirect(w, r, back.String(), http.StatusSeeOther) //nolint:gosec // a demo for one machine knows no list of redirect addresses
}

// known authenticates the client, by HTTP Basic or in the form (RFC 6749, section 2.3.1).
func (p *provider) known(r *http.Request) bool {
	id, secret, basic := r.BasicAuth()
	if !basic {
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	return id == ClientID && subtle.ConstantTimeCompare([]byte(secret), []byte(ClientSecret)) == 1
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	if !p.known(r) {
		respond(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var grant *userGrant
	switch r.PostFormValue("grant_type") {
	case "authorization_code":
		code, ok := p.codes[r.PostFormValue("code")]
		delete(p.codes, r.PostFormValue("code"))
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if ok && code.redirect == r.PostFormValue("redirect_uri") && code.challenge == base64.RawURLEncoding.EncodeToString(sum[:]) {
			grant = &userGrant{}
		}
	case "refresh_token":
		used := r.PostFormValue("refresh_token")
		if g := p.refresh[used]; g != nil && g.current == used && !g.ended {
			grant = g
		} else if g != nil {
			g.ended = true
		}
	default:
		respond(w, http.StatusBadRequest, map[string]any{"error": "unsupported_grant_type"})
		return
	}
	if grant == nil {
		respond(w, http.StatusBadRequest, map[string]any{"error": "invalid_grant"})
		return
	}
	access := rand.Text()
	grant.current = rand.Text()
	p.refresh[grant.current] = grant
	p.access[access] = accessToken{grant, time.Now().Add(p.lifetime)}
	respond(w, http.StatusOK, map[string]any{
		"access_token": access, "refresh_token": grant.current, "token_type": "Bearer",
		"expires_in": int(p.lifetime.Seconds()), "scope": scope,
	})
}

// revoke revokes the grant of a token (RFC 7009).
func (p *provider) revoke(w http.ResponseWriter, r *http.Request) {
	if !p.known(r) {
		respond(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	token := r.PostFormValue("token")
	if g := p.refresh[token]; g != nil {
		g.ended = true
	} else if a, ok := p.access[token]; ok {
		a.grant.ended = true
	}
	w.WriteHeader(http.StatusOK)
}

// revokeAll revokes every grant, as the users could at the provider.
func (p *provider) revokeAll(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, g := range p.refresh {
		g.ended = true
	}
	w.WriteHeader(http.StatusNoContent)
}

// me is the API: it accepts a valid access token.
func (p *provider) me(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	a, ok := p.access[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	good := ok && !a.grant.ended && time.Now().Before(a.until)
	p.mu.Unlock()
	if !good {
		respond(w, http.StatusUnauthorized, map[string]any{"message": "unauthorized"})
		return
	}
	respond(w, http.StatusOK, map[string]any{"calendar": "demo"})
}

func respond(w http.ResponseWriter, status int, answer map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.MarshalWrite(w, answer, json.Deterministic(true)) // a client that is gone needs no response
}
