package app

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/oauth/oauthtest"
)

// While a revocation waits for a provider nobody is given the tokens any more, and
// no renewal brings them back: none that is asked for, and none that was under way.
func TestNoRenewalUndoesARevocation(t *testing.T) {
	provider := oauthtest.NewServer(t)
	hold, reached := make(chan struct{}), make(chan struct{}, 100)
	slow := newRevoker(t, func(int, http.ResponseWriter, *http.Request) { reached <- struct{}{}; <-hold })
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, slow.in)
	engine := u.as(u.engine(t))
	given := func(id string) bool {
		err := engine.query("credential.resolve", "cleartext=true&id="+id, nil)
		if got := code(t, err); got != "" && got != "reauthorization_required" {
			t.Errorf("resolve: %s", got)
		}
		return err == nil
	}
	asked, _ := u.connected(t, provider, "sheets")
	underWay, _ := u.connected(t, provider, "sheets")
	begun, goOn := make(chan struct{}), make(chan struct{})
	provider.After(func(*http.Request) { close(begun); <-goOn })
	renewed := make(chan struct{})
	go func() {
		_ = u.command("credential.refresh", "", map[string]any{"id": underWay}, nil)
		close(renewed)
	}()
	<-begun
	provider.After(nil)
	must(t, u.command("oauth.revoke", "", map[string]any{"all": true}, nil))
	<-reached // all are cut off, and the providers are being told
	if got := code(t, u.command("credential.refresh", "", map[string]any{"id": asked}, nil)); got != "reauthorization_required" {
		t.Errorf("a renewal that was asked for: %q", got)
	}
	close(goOn)
	<-renewed
	if given(asked) || given(underWay) {
		t.Errorf("tokens are given after the cut; facts %v and %v", u.since(t, asked, 0), u.since(t, underWay, 0))
	}
	close(hold)
}

// Who connects again while a revocation waits for the provider keeps the new grant.
func TestARevocationLeavesTheNextGrant(t *testing.T) {
	provider := oauthtest.NewServer(t)
	hold, reached := make(chan struct{}), make(chan struct{}, 100)
	slow := newRevoker(t, func(int, http.ResponseWriter, *http.Request) { reached <- struct{}{}; <-hold })
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, slow.in)
	id, _ := u.connected(t, provider, "sheets")
	must(t, u.command("oauth.revoke", "", map[string]any{"all": true}, nil))
	<-reached
	must(t, u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]any{"oauth": provider.Grant()}}, nil))
	close(hold)
	await(t, "the end", func() (bool, error) {
		var p progress
		err := u.query("oauth.revocation", "", &p)
		return !p.Running, err
	})
	if now := u.tokens(t, id); now.ReauthReason != "" {
		t.Errorf("connected again after the revocation was asked for: %q; facts %v", now.ReauthReason, u.since(t, id, 0))
	}
}

// A flow engine is given no refresh token, wherever a provider puts one.
func TestNoRefreshTokenLeaves(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	must(t, u.command("component.register", "", map[string]any{"id": "two", "descriptor": map[string]any{
		"title": "Two", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{
			"fields": map[string]any{"a": map[string]any{"viewClass": "OAuthFieldView"}, "b": map[string]any{"viewClass": "HTTPAuthView"}},
			"oauth2": provider.Block(),
		},
	}}, nil))
	must(t, u.command("oauth_client.define", "", map[string]any{"component": "two", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}, nil))
	both := map[string]any{"component": "two", "keys": map[string]any{"a": provider.Grant(), "b": provider.Grant()}}
	if got := code(t, u.command("credential.create", "", both, nil)); got != "oauth_tokens_invalid" {
		t.Errorf("tokens in two fields: %q", got)
	}
	tokens := provider.Grant()
	tokens["authed_user"] = map[string]any{"access_token": "kept", "refresh_token": "nested"}
	tokens["teams"] = []any{map[string]any{"refreshToken": "nested", "n": 1e3}, "kept too"}
	var made done
	must(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": tokens}}, &made))
	var got struct{ Keys json.RawMessage }
	must(t, u.as(u.engine(t)).query("credential.resolve", "cleartext=true&id="+made.ID, &got))
	text := string(got.Keys)
	if strings.Contains(text, "nested") || strings.Contains(text, "refresh") || !strings.Contains(text, `"kept"`) || !strings.Contains(text, `[{"n":1000},"kept too"]`) {
		t.Errorf("the engine is given %s", strings.ReplaceAll(text, tokens["access_token"].(string), "..."))
	}
}

// A tenant whose provider is slow to grant keeps no other tenant waiting, and one
// whose tokens are over at once does not have them renewed all the time.
func TestTheKeeperIsFair(t *testing.T) {
	good := oauthtest.NewServer(t)
	stop := make(chan struct{})
	evil := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-stop
		oauthtest.JSON(`{"access_token":"a","refresh_token":"b","expires_in":1}`)(w, r)
	}))
	t.Cleanup(evil.Close)
	u := bring(t, t.TempDir())
	must(t, u.command("tenant.register", "", map[string]any{"id": "evil"}, nil))
	theirs := u.in("evil")
	must(t, theirs.command("component.register", "", map[string]any{"id": "slowly", "descriptor": map[string]any{
		"title": "Slowly", "useOAuthClient": true, "hosts": []string{"127.0.0.1"}, "credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}},
			"oauth2": map[string]any{"auth_uri": evil.URL + "/authorize", "token_uri": evil.URL + "/token"},
		},
	}}, nil))
	must(t, theirs.command("oauth_client.define", "", map[string]any{"component": "slowly", "client_id": "c", "client_secret": "s"}, nil))
	for range 60 {
		must(t, theirs.command("credential.create", "", map[string]any{
			"component": "slowly", "keys": map[string]any{"oauth": map[string]any{"refresh_token": "b"}},
		}, nil))
	}
	u.registerSheets(t, good)
	id, _ := u.grant(t, good) // due at once
	await(t, "the other tenant's token", func() (bool, error) { return u.tokens(t, id).Token.Epoch > 0, nil })
	close(stop)
}

// A retry time that was set by a clock that is ahead is not believed.
func TestAClockThatIsAhead(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	var made done
	must(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": provider.Grant()}}, &made))
	ahead, _ := u.besides(t, func() time.Time { return time.Now().Add(365 * 24 * time.Hour) })
	provider.FailNext(1, 503, "")
	_ = refreshBy(t.Context(), t, ahead, made.ID)
	if retry := u.tokens(t, made.ID).RetryAt; retry.Before(time.Now().Add(24 * time.Hour)) {
		t.Fatalf("tried again at %v: the clock was not ahead", retry)
	}
	later, _ := u.besides(t, func() time.Time { return time.Now().Add(2 * time.Hour) }) // the token has ended
	if err := serveBy(t.Context(), later, "credential.verify", map[string]any{"id": made.ID}); err != nil {
		t.Errorf("the provider is well, and yet: %v", err)
	}
}
