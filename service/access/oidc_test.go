package access_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
)

// issuer is an OpenID Connect issuer: discovery, keys, and tokens that it signs.
type issuer struct {
	*httptest.Server
	t *testing.T

	mu    sync.Mutex
	now   time.Time
	keys  []jose.JSONWebKey // the last one signs
	away  bool
	asked int // for keys

	granted  map[string]any // the answer of the token endpoint
	redeemed int            // codes
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{t: t, now: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	i.Server = httptest.NewServer(i)
	t.Cleanup(i.Close)
	i.rotate("k1")
	return i
}

// ServeHTTP implements http.Handler.
func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.away:
		http.Error(w, "away", http.StatusInternalServerError)
	case r.URL.Path == "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "id_token_signing_alg_values_supported": []string{"RS256", "ES256", "HS256", "none"},
		})
	case r.URL.Path == "/token":
		i.redeemed++
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(i.granted)
	case r.URL.Path == "/keys":
		i.asked++
		public := []any{map[string]string{"kty": "unheard of"}} // a set may hold what nobody here knows
		for _, k := range i.keys {
			public = append(public, k.Public())
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": public})
	}
}

// rotate signs with a new key from now on.
func (i *issuer) rotate(id string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		i.t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys, jose.JSONWebKey{Key: key, KeyID: id, Algorithm: "ES256", Use: "sig"})
}

func (i *issuer) withdraw() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = i.keys[1:]
}

func (i *issuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func (i *issuer) clock() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.now
}

func (i *issuer) pass(d time.Duration) { i.set(func() { i.now = i.now.Add(d) }) }

// claims are those of a good token, with changes; nil takes one away.
func (i *issuer) claims(change map[string]any) map[string]any {
	claims := map[string]any{
		"iss": i.URL, "aud": "credstream", "sub": "u1", "exp": i.clock().Add(time.Hour).Unix(), "iat": i.clock().Unix(),
		"tenant": "acme", "permissions": []string{"credentials.get"},
	}
	maps.Copy(claims, change)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	return claims
}

// sign makes a token with the newest key, or the one given.
func (i *issuer) sign(claims map[string]any, with ...any) string {
	i.mu.Lock()
	defer i.mu.Unlock()
	key := jose.SigningKey{Algorithm: jose.ES256, Key: i.keys[len(i.keys)-1]}
	options := &jose.SignerOptions{}
	for _, w := range with {
		switch w := w.(type) {
		case jose.SigningKey:
			key = w
		case string:
			options.WithType(jose.ContentType(w))
		}
	}
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		i.t.Fatal(err)
	}
	body, err := json.Marshal(claims)
	if err != nil {
		i.t.Fatal(err)
	}
	signed, err := signer.Sign(body)
	if err != nil {
		i.t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		i.t.Fatal(err)
	}
	return token
}

func (i *issuer) service(change ...func(*access.TokenConfig)) *application.Application {
	i.t.Helper()
	cfg := access.TokenConfig{Issuer: i.URL, Audience: "credstream", Tenant: "tenant", Permissions: "permissions", Now: i.clock}
	for _, f := range change {
		f(&cfg)
	}
	tokens, err := access.NewTokens(cfg)
	if err != nil {
		i.t.Fatal(err)
	}
	s, err := application.New(application.Config{Tokens: tokens})
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(s.Close)
	return s
}

func user(id string, p service.Principal) service.Principal {
	p.Actor = events.Actor{Kind: "user", ID: id}
	if p.Tenants == nil {
		p.Tenants = []string{"acme"}
	}
	p.Home = p.Tenants[0]
	return p
}

func TestTokens(t *testing.T) {
	i := newIssuer(t)
	s := i.service()
	nested := i.service(func(c *access.TokenConfig) { c.Permissions = "realm_access.roles" })
	dotted := i.service(func(c *access.TokenConfig) { c.Permissions = "https://example.org/roles" })
	get := []permission.Permission{"credentials.get"}
	for name, c := range map[string]struct {
		s      *application.Application
		change map[string]any
		want   service.Principal
	}{
		"as it should be":     {s, nil, user("u1", service.Principal{Permissions: get})},
		"several audiences":   {s, map[string]any{"aud": []string{"x", "credstream"}}, user("u1", service.Principal{Permissions: get})},
		"several tenants":     {s, map[string]any{"tenant": []string{"acme", "*", "..", "_system", "ajax"}}, user("u1", service.Principal{Tenants: []string{"acme", "ajax"}, Permissions: get})},
		"a role":              {s, map[string]any{"permissions": "OPERATOR"}, user("u1", service.Principal{Role: permission.Operator})},
		"no permissions":      {s, map[string]any{"permissions": nil}, user("u1", service.Principal{})},
		"unknown permissions": {s, map[string]any{"permissions": []string{"credentials.*", "operator", "*", "", "CREDENTIALS.GET"}}, user("u1", service.Principal{})},
		"a role and another":  {s, map[string]any{"permissions": []string{"AUDITOR", "ADMINISTRATOR"}}, user("u1", service.Principal{Role: permission.Administrator, Permissions: slices.Sorted(slices.Values(permission.Roles[permission.Auditor]))})},
		"words in one string": {s, map[string]any{"permissions": "openid OPERATOR credentials.reveal"}, user("u1", service.Principal{Role: permission.Operator, Permissions: []permission.Permission{"credentials.reveal"}})},
		"a path of claims":    {nested, map[string]any{"realm_access": map[string]any{"roles": []string{"OPERATOR"}}}, user("u1", service.Principal{Role: permission.Operator})},
		"dots in a claim":     {dotted, map[string]any{"https://example.org/roles": []string{"OPERATOR"}}, user("u1", service.Principal{Role: permission.Operator})},
		"a subject to be hidden": {
			s,
			map[string]any{"sub": "jane@example.org"},
			user("", service.Principal{Permissions: get}),
		},
	} {
		c.want.Expires = i.clock().Add(time.Hour).Truncate(time.Second) // with the token
		got, err := c.s.Access.AuthenticateToken(t.Context(), i.sign(i.claims(c.change)), netip.Addr{})
		if name == "a subject to be hidden" { // by a hash that tells nothing
			if !strings.HasPrefix(got.Actor.ID, "sub-") || !events.Plain(got.Actor.ID) || strings.Contains(got.Actor.ID, "jane") {
				t.Errorf("%s: %q", name, got.Actor.ID)
			}
			c.want.Actor.ID = got.Actor.ID
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if diff := cmp.Diff(c.want, got, cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateApproxTime(0)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	hidden, err := s.Access.AuthenticateToken(t.Context(), i.sign(i.claims(map[string]any{"sub": "jane@example.org"})), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	posing, err := s.Access.AuthenticateToken(t.Context(), i.sign(i.claims(map[string]any{"sub": hidden.Actor.ID})), netip.Addr{})
	if err != nil || posing.Actor.ID == hidden.Actor.ID {
		t.Errorf("one subject can pose as another: %v", err)
	}
}

func TestTokensRefused(t *testing.T) {
	i := newIssuer(t)
	s := i.service()
	other := newIssuer(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	body, err := json.Marshal(i.claims(nil))
	if err != nil {
		t.Fatal(err)
	}
	public, err := json.Marshal(i.keys[0].Public())
	if err != nil {
		t.Fatal(err)
	}
	good := i.sign(i.claims(nil))
	header, rest, _ := strings.Cut(good, ".")
	_, signature, _ := strings.Cut(rest, ".")
	for name, token := range map[string]string{
		"another audience":             i.sign(i.claims(map[string]any{"aud": "other"})),
		"no audience":                  i.sign(i.claims(map[string]any{"aud": nil})),
		"another issuer":               i.sign(i.claims(map[string]any{"iss": other.URL})),
		"no issuer":                    i.sign(i.claims(map[string]any{"iss": nil})),
		"another's signature":          other.sign(i.claims(nil)),
		"expired":                      i.sign(i.claims(map[string]any{"exp": i.clock().Add(-time.Second).Unix()})),
		"no expiry":                    i.sign(i.claims(map[string]any{"exp": nil})),
		"not yet":                      i.sign(i.claims(map[string]any{"nbf": i.clock().Add(time.Hour).Unix()})),
		"nobody":                       i.sign(i.claims(map[string]any{"sub": nil})),
		"no tenant":                    i.sign(i.claims(map[string]any{"tenant": nil})),
		"every tenant":                 i.sign(i.claims(map[string]any{"tenant": "*"})),
		"the tenant is a map":          i.sign(i.claims(map[string]any{"tenant": map[string]any{"acme": true}})),
		"the end of a session":         i.sign(i.claims(nil), "logout+jwt"),
		"an unknown key":               i.sign(i.claims(nil), jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: rsaKey, KeyID: "k1"}}),
		"a key within":                 i.sign(i.claims(nil), jose.SigningKey{Algorithm: jose.RS256, Key: rsaKey}),
		"the public key as a password": i.sign(i.claims(nil), jose.SigningKey{Algorithm: jose.HS256, Key: public}),
		"no signature":                 part(`{"alg":"none"}`) + "." + part(string(body)) + ".",
		"none, with one":               part(`{"alg":"none"}`) + "." + part(string(body)) + "." + signature,
		"changed":                      header + "." + part(strings.Replace(string(body), "acme", "ajax", 1)) + "." + signature,
		"no token":                     "a.b.c",
		"empty parts":                  "..",
		"huge":                         header + "." + strings.Repeat("A", 9<<10) + "." + signature,
	} {
		p, err := s.Access.AuthenticateToken(t.Context(), token, netip.Addr{})
		if !errors.Is(err, access.ErrToken) || p.Actor.ID != "" {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	if _, err := s.Access.AuthenticateToken(t.Context(), good, netip.Addr{}); err != nil {
		t.Errorf("a good token after the bad ones: %v", err)
	}
	if i.asked > 4 {
		t.Errorf("the issuer was asked %d times for its keys: bad tokens are a way to attack it", i.asked)
	}
}

// The issuer begins to sign with a new key, withdraws the old one, and is away for
// a while.
func TestTokenKeys(t *testing.T) {
	i := newIssuer(t)
	s := i.service()
	answer := func(token string) error {
		_, err := s.Access.AuthenticateToken(t.Context(), token, netip.Addr{})
		return err
	}
	long := map[string]any{"exp": i.clock().Add(24 * time.Hour).Unix()}
	i.set(func() { i.away = true })
	first := i.sign(i.claims(long))
	if err := answer(first); !errors.Is(err, access.ErrIssuerAway) {
		t.Errorf("an issuer that is away: %v", err)
	}
	i.set(func() { i.away = false })
	if err := answer(first); err != nil {
		t.Error(err)
	}
	i.rotate("k2")
	second := i.sign(i.claims(long))
	if err := answer(second); err != nil {
		t.Errorf("a new key is not learned: %v", err)
	}
	i.withdraw()
	i.pass(6 * time.Minute)
	if err := answer(first); !errors.Is(err, access.ErrToken) {
		t.Errorf("a withdrawn key still counts: %v", err)
	}
	if err := answer(second); err != nil {
		t.Error(err)
	}
	i.set(func() { i.away = true })
	i.pass(10 * time.Minute)
	if err := answer(second); err != nil {
		t.Errorf("the keys are forgotten as soon as the issuer is away: %v", err)
	}
	i.pass(time.Hour)
	if err := answer(second); !errors.Is(err, access.ErrIssuerAway) {
		t.Errorf("keys that nobody has confirmed for an hour: %v", err)
	}
	i.set(func() { i.away = false })
	i.pass(time.Minute)
	if err := answer(second); err != nil {
		t.Error(err)
	}
	// A token that was found good once is not good for ever.
	i.pass(24 * time.Hour)
	if err := answer(second); !errors.Is(err, access.ErrToken) {
		t.Errorf("a token that has expired: %v", err)
	}
}

func TestTokenConfig(t *testing.T) {
	good := access.TokenConfig{Issuer: "https://id.example.org", Audience: "a", Tenant: "tenant", Permissions: "roles"}
	for name, c := range map[string]struct {
		change func(*access.TokenConfig)
		ok     bool
	}{
		"good":            {func(*access.TokenConfig) {}, true},
		"on this machine": {func(c *access.TokenConfig) { c.Issuer = "http://127.0.0.1:9998/" }, true},
		"in clear":        {func(c *access.TokenConfig) { c.Issuer = "http://id.example.org" }, false},
		"no URL":          {func(c *access.TokenConfig) { c.Issuer = "id.example.org" }, false},
		"no audience":     {func(c *access.TokenConfig) { c.Audience = "" }, false},
		"no tenant claim": {func(c *access.TokenConfig) { c.Tenant = "" }, false},
		"no permissions":  {func(c *access.TokenConfig) { c.Permissions = "" }, false},
	} {
		cfg := good
		c.change(&cfg)
		if _, err := access.NewTokens(cfg); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	s, err := application.New(application.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Access.AuthenticateToken(t.Context(), "a.b.c", netip.Addr{}); !errors.Is(err, access.ErrKeyMalformed) {
		t.Errorf("a token where none is taken: %v", err)
	}
	for bearer, want := range map[string]bool{"a.b.c": true, "cs_a.b.c": false, "cs_abc": false, "a.b": false, "a.b.c.d.e": false} {
		if access.IsToken(bearer) != want {
			t.Errorf("%s is a token: %t", bearer, !want)
		}
	}
}
