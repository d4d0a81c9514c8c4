// Package oauthtest has authorization servers for tests: a small one of our own
// that counts, rotates and fails on demand, answers that no server should give,
// and a real OpenID provider. They listen on the loopback interface, so what
// talks to them needs verify.Config.AllowPrivate.
package oauthtest

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/seal"
)

const (
	// Mark stands in every secret of a Server - tokens, codes, the client's
	// secret - so that a test can look for it where no secret may be.
	Mark = "canary-"
	// ClientID is the id of the one client a Server knows.
	ClientID = "oauthtest-client"
	// ClientSecret is its secret.
	ClientSecret = Mark + "client-secret"
)

// Server is an authorization server of which a test knows everything. People
// consent at once. Refresh tokens are replaced when used, and one that is used
// again takes its whole family with it (RFC 9700, section 4.14.2), as does a code. All methods
// may be called at any time.
type Server struct {
	URL string // and issuer

	mu         sync.Mutex
	lifetime   time.Duration
	rotates    bool
	oneConsent bool
	forgives   bool
	requires   bool // PKCE
	denies     bool
	delay      time.Duration
	before     func(*http.Request)
	after      func(*http.Request)
	mangle     func(map[string]any)
	next       []http.HandlerFunc
	seen       []Request
	revoked    int
	reused     int
	codes      map[string]*consent
	redeemed   map[string]*family // by code
	refresh    map[string]*family
	access     map[string]access
}

// Request is a token request that came.
type Request struct {
	Form   url.Values
	Header http.Header
}

type consent struct{ redirect, challenge, scope string }

// family is a grant: all refresh tokens that came from one consent.
type family struct {
	scope   string
	current string
	dead    bool
}

type access struct {
	of      *family // nil for client credentials
	expires time.Time
}

// NewServer starts a Server that ends with the test. Its access tokens live an hour.
func NewServer(t testing.TB) *Server {
	s := &Server{
		lifetime: time.Hour, rotates: true, requires: true,
		codes: map[string]*consent{}, redeemed: map[string]*family{}, refresh: map[string]*family{}, access: map[string]access{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /authorize", s.authorize)
	mux.HandleFunc("POST /token", s.token)
	mux.HandleFunc("POST /revoke", s.revoke)
	mux.HandleFunc("GET /me", s.me)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.URL = server.URL
	return s
}

// Provider describes the server.
func (s *Server) Provider() oauth.Provider {
	return oauth.Provider{
		Issuer: s.URL, RequireIssuer: true,
		AuthURI: s.URL + "/authorize", TokenURI: s.URL + "/token", RevocationURI: s.URL + "/revoke",
		Scopes: []string{"read", "write"}, ScopeSeparator: " ",
	}
}

// Block is the server as the oauth2 block of a component.json.
func (s *Server) Block() map[string]any {
	return map[string]any{
		"issuer": s.URL, "require_iss": true, "auth_uri": s.URL + "/authorize", "token_uri": s.URL + "/token",
		"revocation_uri": s.URL + "/revoke", "scopes": []string{"read", "write"}, "refresh_rotation": "always",
	}
}

// Client is the one client the server knows. It may authenticate in the form and
// by HTTP Basic, and use every grant.
func (s *Server) Client() oauth.Client {
	return oauth.Client{ID: ClientID, Secret: seal.NewSecret([]byte(ClientSecret))}
}

// Lifetime sets how long the access tokens live that are given from now on.
func (s *Server) Lifetime(d time.Duration) { s.set(func() { s.lifetime = d }) }

// Rotate sets whether a refresh token is replaced when used; it is at first.
func (s *Server) Rotate(yes bool) { s.set(func() { s.rotates = yes }) }

// Forgive sets whether a refresh token that is used again is merely refused, and
// its family lives on.
func (s *Server) Forgive(yes bool) { s.set(func() { s.forgives = yes }) }

// OneConsent sets whether the revocation of any token ends every grant, as it does where
// a provider keeps one consent for an account and a client (RFC 7009, section 2.1).
func (s *Server) OneConsent(yes bool) { s.set(func() { s.oneConsent = yes }) }

// RequirePKCE sets whether an authorization request needs a challenge; it does at first.
func (s *Server) RequirePKCE(yes bool) { s.set(func() { s.requires = yes }) }

// Deny sets whether people deny instead of consent.
func (s *Server) Deny(yes bool) { s.set(func() { s.denies = yes }) }

// Before sets what is called when a token request has come and nothing has been
// done about it; nil: nothing. It may block.
func (s *Server) Before(hook func(*http.Request)) { s.set(func() { s.before = hook }) }

// After sets what is called when a token request has had its effect, a refresh
// token been replaced, say, and is not yet answered; nil: nothing. It may block.
func (s *Server) After(hook func(*http.Request)) { s.set(func() { s.after = hook }) }

// Delay has each token request answered this long after it had its effect.
func (s *Server) Delay(d time.Duration) { s.set(func() { s.delay = d }) }

// Mangle sets what changes the members of good answers, after they took effect;
// nil: nothing.
func (s *Server) Mangle(change func(answer map[string]any)) { s.set(func() { s.mangle = change }) }

// AnswerNext has the next n token requests answered by answer, without effect.
// The request's form has been parsed.
func (s *Server) AnswerNext(n int, answer http.HandlerFunc) {
	s.set(func() { s.next = append(s.next, slices.Repeat([]http.HandlerFunc{answer}, n)...) })
}

// FailNext has the next n token requests fail with this status and error code,
// without effect; code may be "".
func (s *Server) FailNext(n, status int, code string) { s.AnswerNext(n, Status(status, code)) }

// Recover takes back what AnswerNext and FailNext have left.
func (s *Server) Recover() { s.set(func() { s.next = nil }) }

// Requests is how many token requests came.
func (s *Server) Requests() int { return len(s.Seen()) }

// Count is how many token requests of a grant type came ("refresh_token").
func (s *Server) Count(grant string) (n int) {
	for _, r := range s.Seen() {
		if r.Form.Get("grant_type") == grant {
			n++
		}
	}
	return n
}

// Seen lists the token requests that came, oldest first.
func (s *Server) Seen() (all []Request) {
	s.set(func() { all = slices.Clone(s.seen) })
	return all
}

// Reused is how often a refresh token came that had been used before.
func (s *Server) Reused() (n int) {
	s.set(func() { n = s.reused })
	return n
}

// Revocations is how many revocation requests came.
func (s *Server) Revocations() (n int) {
	s.set(func() { n = s.revoked })
	return n
}

// Live reports whether this refresh token can be used now.
func (s *Server) Live(refresh string) (yes bool) {
	s.set(func() {
		f := s.refresh[refresh]
		yes = f != nil && !f.dead && f.current == refresh
	})
	return yes
}

// Accepts reports whether this access token is good now.
func (s *Server) Accepts(token string) (yes bool) {
	s.set(func() {
		a, ok := s.access[token]
		yes = ok && time.Now().Before(a.expires) && (a.of == nil || !a.of.dead)
	})
	return yes
}

// Withdraw ends the grant a refresh token belongs to, as its person would.
func (s *Server) Withdraw(refresh string) {
	s.set(func() {
		if f := s.refresh[refresh]; f != nil {
			f.dead = true
		}
	})
}

// Grant returns tokens as if somebody had consented, in the form of an answer.
func (s *Server) Grant() (answer map[string]any) {
	s.set(func() { answer = s.issue(&family{scope: "read write"}, true) })
	return answer
}

// Consent opens an authorization URL as a browser would, and returns the address
// of ours that the provider then sends the browser to, with code, state and iss.
func (s *Server) Consent(t testing.TB, authorizationURL string) *url.URL {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, authorizationURL, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	back, err := resp.Location()
	if err != nil {
		t.Fatalf("the authorization endpoint answers %s and sends nobody back", resp.Status)
	}
	return back
}

func (s *Server) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *Server) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	back, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || !back.IsAbs() || q.Get("client_id") != ClientID {
		http.Error(w, "no such client or redirect", http.StatusBadRequest)
		return
	}
	answer := url.Values{"state": {q.Get("state")}, "iss": {s.URL}}
	s.set(func() {
		switch {
		case q.Get("response_type") != "code", s.requires && (q.Get("code_challenge") == "" || q.Get("code_challenge_method") != "S256"):
			answer.Set("error", "invalid_request")
		case s.denies:
			answer.Set("error", "access_denied")
		default:
			code := Mark + "code-" + rand.Text()
			s.codes[code] = &consent{redirect: q.Get("redirect_uri"), challenge: q.Get("code_challenge"), scope: q.Get("scope")}
			answer.Set("code", code)
		}
	})
	query := back.Query()
	for name := range answer {
		query.Set(name, answer.Get(name))
	}
	back.RawQuery = query.Encode()
	http.Redirect(w, r, back.String(), http.StatusFound) //nolint:gosec // the test's own address
}

func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	var (
		before, after func(*http.Request)
		delay         time.Duration
		instead       http.HandlerFunc
	)
	s.set(func() {
		s.seen = append(s.seen, Request{r.PostForm, r.Header})
		before, after, delay = s.before, s.after, s.delay
		if len(s.next) > 0 {
			instead, s.next = s.next[0], s.next[1:]
		}
	})
	if before != nil {
		before(r)
	}
	if instead != nil {
		instead(w, r)
		return
	}
	status, answer := http.StatusOK, map[string]any(nil)
	s.set(func() {
		var code string
		if answer, code = s.grant(r); code != "" {
			status, answer = http.StatusBadRequest, map[string]any{"error": code}
		} else if s.mangle != nil {
			s.mangle(answer)
		}
	})
	if after != nil {
		after(r)
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
		}
	}
	reply(w, status, answer)
}

// grant gives effect to a token request; code is the error if it has none.
func (s *Server) grant(r *http.Request) (answer map[string]any, code string) {
	if !known(r) {
		return nil, "invalid_client"
	}
	switch form := r.PostForm; form.Get("grant_type") {
	case "authorization_code":
		given, ok := s.codes[form.Get("code")]
		delete(s.codes, form.Get("code"))
		if f := s.redeemed[form.Get("code")]; f != nil { // RFC 6749, section 4.1.2
			f.dead = true
		}
		sum := sha256.Sum256([]byte(form.Get("code_verifier")))
		if !ok || given.redirect != form.Get("redirect_uri") ||
			given.challenge != "" && given.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
			return nil, "invalid_grant"
		}
		f := &family{scope: given.scope}
		s.redeemed[form.Get("code")] = f
		return s.issue(f, true), ""
	case "refresh_token":
		used := form.Get("refresh_token")
		f := s.refresh[used]
		if f != nil && f.current != used {
			s.reused++
			f.dead = !s.forgives
		}
		if f == nil || f.dead || f.current != used {
			return nil, "invalid_grant"
		}
		return s.issue(f, s.rotates), ""
	case "client_credentials":
		return s.issue(nil, false), ""
	}
	return nil, "unsupported_grant_type"
}

// issue gives an access token of a family, and a refresh token if it is new.
func (s *Server) issue(f *family, renew bool) map[string]any {
	token := Mark + "access-" + rand.Text()
	s.access[token] = access{of: f, expires: time.Now().Add(s.lifetime)}
	answer := map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": int64(s.lifetime / time.Second)}
	if f == nil {
		return answer
	}
	answer["scope"] = f.scope
	if renew {
		f.current = Mark + "refresh-" + rand.Text()
		s.refresh[f.current] = f
		answer["refresh_token"] = f.current
	}
	return answer
}

func (s *Server) revoke(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	if !known(r) {
		reply(w, http.StatusUnauthorized, map[string]any{"error": "invalid_client"})
		return
	}
	s.set(func() {
		s.revoked++
		token := r.PostForm.Get("token")
		if f := s.refresh[token]; f != nil {
			f.dead = true
		}
		for _, f := range s.refresh {
			f.dead = f.dead || s.oneConsent
		}
		delete(s.access, token)
	})
}

// me is an API that takes the access tokens.
func (s *Server) me(w http.ResponseWriter, r *http.Request) {
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); !ok || !s.Accepts(token) {
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// known checks the client, by HTTP Basic or in the form (RFC 6749, section 2.3.1).
func known(r *http.Request) bool {
	id, secret, basic := r.BasicAuth()
	if !basic {
		return r.PostForm.Get("client_id") == ClientID && r.PostForm.Get("client_secret") == ClientSecret
	}
	id, _ = url.QueryUnescape(id)
	secret, _ = url.QueryUnescape(secret)
	return id == ClientID && secret == ClientSecret && !r.PostForm.Has("client_secret")
}

func reply(w http.ResponseWriter, status int, answer map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer)
}
