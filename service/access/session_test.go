package access_test

import (
	"maps"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/stage"
)

// A session is its key's: it lives no longer, and is used from no other address.
func TestSession(t *testing.T) {
	s := stage.New(t)
	inside, outside := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("192.0.2.1")
	key := s.Key("default", `{"role":"OPERATOR","addresses":["10.0.0.0/8"]}`)
	sealed, p, err := s.Service.Access.StartSession(t.Context(), key, inside)
	stage.OK(t, err)
	if strings.Contains(sealed, key) || strings.Contains(sealed, p.Actor.ID) {
		t.Error("the session shows its key")
	}
	open := func(sealed string, from netip.Addr) string {
		t.Helper()
		opened, err := s.Service.Access.OpenSession(t.Context(), sealed, from)
		if err == nil && opened.Actor.ID != p.Actor.ID {
			t.Errorf("the session is that of %s", opened.Actor.ID)
		}
		return stage.CodeOf(err)
	}
	is := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	ended := access.ErrSessionEnded.Code
	is("from an allowed address", open(sealed, inside), "")
	is("from another address", open(sealed, outside), ended)
	is("in the name of another tenant", open("other"+strings.TrimPrefix(sealed, "default"), inside), ended)
	is("changed", open(sealed[:len(sealed)-4]+"AAAA", inside), ended)
	is("nothing", open("", inside), ended)
	is("too long", open(sealed+strings.Repeat("A", 2000), inside), ended)
	_, _, err = s.Service.Access.StartSession(t.Context(), key, outside)
	is("a start from another address", stage.CodeOf(err), "api_key_unknown")

	s.Skew.Store(int64(access.SessionLife - time.Minute))
	is("a minute before its end", open(sealed, inside), "")
	s.Skew.Store(int64(access.SessionLife + time.Minute))
	is("after its end", open(sealed, inside), ended)
	s.Skew.Store(0)

	s.Do("default", "api_key.revoke", `{"id":"`+p.Actor.ID+`"}`)
	s.CaughtUp()
	is("of a revoked key", open(sealed, inside), ended)
}

// A session of a user holds the issuer's token: it ends with it, and with the key that signed it.
func TestSessionOfAUser(t *testing.T) {
	i := newIssuer(t)
	configure := func(change ...func(*access.TokenConfig)) *access.Tokens {
		cfg := access.TokenConfig{
			Issuer: i.URL, Audience: "credstream", Tenant: "tenant", Permissions: "permissions", Now: i.clock, ClientID: "credstream", Scopes: "openid",
		}
		for _, f := range change {
			f(&cfg)
		}
		return bustest.Must(access.NewTokens(cfg))(t)
	}
	s := stage.New(t, func(c *application.Config) { c.Limits.WrongKeys = 30 })
	users := s.Service.Access
	here := netip.MustParseAddr("192.0.2.1")
	// signIn signs in with an ID token, and an access token where the issuer grants one.
	signIn := func(id, accessToken map[string]any) (string, service.Principal, error) {
		t.Helper()
		address, in, err := users.BeginSignIn(t.Context(), "http://127.0.0.1/ui/sign-in/callback")
		stage.OK(t, err)
		q := bustest.Must(url.Parse(address))(t).Query()
		claims := map[string]any{"nonce": q.Get("nonce"), "tenant": "default"}
		maps.Copy(claims, id)
		granted := map[string]any{"token_type": "Bearer", "access_token": "opaque", "id_token": i.sign(i.claims(claims))}
		if accessToken != nil {
			granted["access_token"] = i.sign(i.claims(accessToken))
		}
		i.set(func() { i.granted = granted })
		return users.EndSignIn(t.Context(), in, "http://127.0.0.1/ui/sign-in/callback", url.Values{"code": {"c"}, "state": {q.Get("state")}}, here)
	}
	open := func(sealed string) string {
		t.Helper()
		_, err := users.OpenSession(t.Context(), sealed, here)
		return stage.CodeOf(err)
	}
	is := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	_, _, err := users.BeginSignIn(t.Context(), "")
	is("not configured", stage.CodeOf(err), "sign_in_not_configured")
	if _, err := access.NewTokens(access.TokenConfig{Issuer: i.URL, Audience: "a", Tenant: "t", Permissions: "p", ClientID: "c", Scopes: "profile"}); stage.CodeOf(err) != "token_config_invalid" {
		t.Errorf("a sign-in without openid: %v", err)
	}

	users.Tokens = configure()
	sealed, p, err := signIn(nil, nil)
	stage.OK(t, err)
	if p.Actor.ID != "u1" || p.Actor.Kind != "user" || p.Home != "default" {
		t.Errorf("signed in as %+v", p)
	}
	is("its session", open(sealed), "")
	for name, c := range map[string]struct {
		id   map[string]any
		code string
	}{
		"of another sign-in":         {map[string]any{"nonce": "another"}, "sign_in_failed"},
		"without a nonce":            {map[string]any{"nonce": nil}, "sign_in_failed"},
		"for another client":         {map[string]any{"aud": "another"}, "token_invalid"},
		"of another issuer":          {map[string]any{"iss": "https://elsewhere.example"}, "token_invalid"},
		"of a tenant that is not":    {map[string]any{"tenant": "acme"}, "token_invalid"},
		"without a tenant":           {map[string]any{"tenant": nil}, "token_invalid"},
		"with more than fits":        {map[string]any{"groups": strings.Repeat("group ", 500)}, "session_too_large"},
		"that has ended before":      {map[string]any{"exp": i.clock().Add(-time.Minute).Unix()}, "token_invalid"},
		"in the name of the service": {map[string]any{"tenant": "_system"}, "token_invalid"},
	} {
		_, _, err := signIn(c.id, nil)
		is("a token "+name, stage.CodeOf(err), c.code)
	}
	i.pass(59 * time.Minute)
	is("a minute before the token's end", open(sealed), "")
	i.pass(2 * time.Minute)
	is("after the token's end", open(sealed), access.ErrSessionEnded.Code)

	sealed, _, err = signIn(nil, nil)
	stage.OK(t, err)
	i.rotate("k2")
	i.withdraw()
	i.pass(10 * time.Minute)
	is("of a key that the issuer has withdrawn", open(sealed), access.ErrSessionEnded.Code)

	users.Tokens = configure(func(c *access.TokenConfig) { c.Audience = "https://credstream.example" })
	_, _, err = signIn(nil, nil)
	is("an opaque access token", stage.CodeOf(err), "token_invalid")
	_, _, err = signIn(nil, map[string]any{"aud": "https://elsewhere.example", "tenant": "default"})
	is("an access token for another service", stage.CodeOf(err), "token_invalid")
	sealed, p, err = signIn(nil, map[string]any{"aud": "https://credstream.example", "tenant": "default", "sub": "u2"})
	stage.OK(t, err)
	is("the access token's user", p.Actor.ID, "u2")
	is("its session", open(sealed), "")
	i.set(func() { i.redeemed = 0 })
	last := error(nil)
	for range 100 {
		_, _, last = signIn(map[string]any{"nonce": "another"}, nil)
	}
	is("too many refusals from one address", stage.CodeOf(last), access.ErrWrongKeys.Code)
	i.set(func() {
		if i.redeemed >= 100 {
			t.Errorf("the issuer was asked %d times for one address", i.redeemed)
		}
	})
	users.Tokens = nil
	is("without an issuer", open(sealed), access.ErrSessionEnded.Code)
}
