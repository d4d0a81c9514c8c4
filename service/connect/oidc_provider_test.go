package connect_test

import (
	"bufio"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/netip"
	"net/url"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
	"github.com/credstream/credstream/service/token"
)

// authorizationServer starts the npm package oidc-provider, or skips the test.
func authorizationServer(t *testing.T, clients string) (issuer string) {
	t.Helper()
	packages := filepath.Join("..", "..", "cmd", "credstream", "app", "testdata", "js") // the exact version is there
	dir := stage.NPM(t, filepath.Join(packages, "package.json"), filepath.Join(packages, "package-lock.json"), filepath.Join("testdata", "authorization-server.mjs"))
	server := exec.CommandContext(t.Context(), "node", "authorization-server.mjs", clients)
	server.Dir = dir
	lines := stage.Must(server.StdoutPipe())(t)
	stage.OK(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
	return strings.TrimSpace(stage.Must(bufio.NewReader(lines).ReadString('\n'))(t))
}

var (
	formAction = regexp.MustCompile(`<form[^>]* action="([^"]+)"`)
	formPrompt = regexp.MustCompile(`name="prompt" value="([^"]+)"`)
)

// consent does in a browser what a person does there, and returns the query of the callback.
func consent(t *testing.T, location, callback string) string {
	t.Helper()
	back := ""
	browser := &http.Client{Jar: stage.Must(cookiejar.New(nil))(t), CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback+"?") {
			back = r.URL.RawQuery
			return http.ErrUseLastResponse
		}
		return nil
	}}
	read := func(resp *http.Response, err error) string {
		stage.OK(t, err)
		defer func() { _ = resp.Body.Close() }()
		return string(stage.Must(io.ReadAll(resp.Body))(t))
	}
	page := read(browser.Get(location))
	for range 3 {
		if back != "" {
			return back
		}
		action, prompt := formAction.FindStringSubmatch(page), formPrompt.FindStringSubmatch(page)
		if action == nil || prompt == nil {
			t.Fatalf("the page has no form: %s", page)
		}
		page = read(browser.PostForm(html.UnescapeString(action[1]), url.Values{"prompt": {prompt[1]}, "login": {"ann"}, "password": {"any"}}))
	}
	if back == "" {
		t.Fatalf("the server did not send the browser back: %s", page)
	}
	return back
}

// An account is connected, renewed, resolved and revoked at an authorization server that knows
// nothing of credstream.
func TestIndependentAuthorizationServer(t *testing.T) {
	const callbacks = "http://127.0.0.1:1/oauth/callback/default/"
	issuer := authorizationServer(t, `[
		{"client_id":"credstream","client_secret":"canary-secret-of-32-characters-00","token_endpoint_auth_method":"client_secret_basic","redirect_uris":["`+callbacks+`books"]},
		{"client_id":"open","token_endpoint_auth_method":"none","redirect_uris":["`+callbacks+`open"]}]`)
	s := stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.PublicURL = "http://127.0.0.1:1" })
	serve := func(route, body string) (any, error) {
		return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http", Confidential: true}, route, []byte(body))
	}
	register := func(id, method string) {
		s.Do("default", "component.register", fmt.Sprintf(`{"id":%[2]q,"descriptor":{"title":"Books","useOAuthClient":true,"hosts":["127.0.0.1"],
			"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView","required":true}}},
			"oauth2":{"issuer":%[1]q,"require_iss":true,"auth_uri":"%[1]s/auth","token_uri":"%[1]s/token","revocation_uri":"%[1]s/token/revocation",
				"token_endpoint_auth_method":%[3]q,"scopes":["openid","offline_access"],"prompt":"consent"},
			"verification":{"http":{"url":"%[1]s/me","headers":{"Authorization":"Bearer {{oauth}}"},"expect":{"json":[{"pointer":"/sub","equals":"ann"}]}}}}}`, issuer, id, method))
	}
	register("books", "client_secret_basic")
	register("open", "none")
	if _, err := serve("oauth_client.define", `{"component":"books","client_id":"credstream"}`); err == nil || fault.Of(err).Pointer != "/client_secret" {
		t.Errorf("a client without a secret: %v", err)
	}
	s.Do("default", "oauth_client.define", `{"component":"open","client_id":"open"}`)
	s.Do("default", "oauth_client.define", `{"component":"books","client_id":"credstream","client_secret":"canary-secret-of-32-characters-00"}`)
	s.CaughtUp()
	browser := ""
	cookies := func(string) (opened, starter string) { return browser, "" }
	connected := func(component, start string) service.Done {
		t.Helper()
		_, secret, _ := strings.Cut(stage.Must(serve("oauth.connect", start))(t).(connect.Connected).URL, "/oauth/connect/")
		opened := stage.Must(s.Service.Connects.OpenLink(t.Context(), secret, netip.MustParseAddr("127.0.0.1"), cookies))(t)
		browser = opened.Cookie
		back := stage.Must(s.Service.Connects.ReturnConnection(t.Context(), connect.Callback{
			Tenant: "default", Component: component, From: netip.MustParseAddr("127.0.0.1"), Browser: cookies, Query: consent(t, opened.Location, callbacks+component),
		}))(t)
		done := stage.Must(serve("oauth.complete", fmt.Sprintf(`{"connection":%q,"confirm":%q}`, back.Connection, back.Confirm)))(t).(service.Done)
		s.CaughtUp()
		return done
	}
	accessToken := func(id string) string {
		t.Helper()
		answer := stage.Must(s.Resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, id)))(t)
		found := regexp.MustCompile(`"access_token":"([^"]+)"`).FindStringSubmatch(fmt.Sprintf("%s", answer.Keys["oauth"]))
		if found == nil || strings.Contains(fmt.Sprintf("%s", answer.Keys), "refresh_token") {
			t.Fatal("the resolved keys have no access token, or a refresh token")
		}
		return found[1]
	}
	// accepted asks the server itself whether a token is valid.
	accepted := func(value string) int {
		t.Helper()
		req := stage.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, issuer+"/me", nil))(t)
		req.Header.Set("Authorization", "Bearer "+value)
		resp := stage.Must(http.DefaultClient.Do(req))(t)
		_ = resp.Body.Close()
		return resp.StatusCode
	}

	made := connected("books", `{"component":"books","name":"b"}`)
	reference := fmt.Sprintf(`{"id":%q}`, made.ID)
	if shown := stage.Must(serve("credential.get", reference))(t).(credential.Credential); shown.Status != "verified" {
		t.Errorf("connected, and %s", shown.Status)
	}
	first := accessToken(made.ID)
	for range 2 { // the server replaces the refresh token each time
		stage.Must(serve("credential.refresh", reference))(t)
	}
	second := accessToken(made.ID)
	if first == second || accepted(second) != http.StatusOK {
		t.Errorf("renewed: another token is %v, the server answers %d", first != second, accepted(second))
	}
	revoked := stage.Must(serve("credential.revoke", reference))(t).(token.Revoked)
	if revoked.Outcome != "revoked" || accepted(second) == http.StatusOK {
		t.Errorf("revoked: %s, the server answers %d", revoked.Outcome, accepted(second))
	}
	if _, err := s.Resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, made.ID)); stage.CodeOf(err) != "reauthorization_required" {
		t.Errorf("resolved after the revocation: %v", err)
	}
	connected("books", fmt.Sprintf(`{"credential":%q}`, made.ID))
	if third := accessToken(made.ID); accepted(third) != http.StatusOK {
		t.Error("connected again, and the token is not accepted")
	}

	// A client without a secret, by PKCE alone.
	made = connected("open", `{"component":"open","name":"o"}`)
	reference = fmt.Sprintf(`{"id":%q}`, made.ID)
	stage.Must(serve("credential.refresh", reference))(t)
	if value := accessToken(made.ID); accepted(value) != http.StatusOK {
		t.Error("the token of a public client is not accepted")
	}
	if revoked := stage.Must(serve("credential.revoke", reference))(t).(token.Revoked); revoked.Outcome != "revoked" {
		t.Errorf("the tokens of a public client: %s", revoked.Outcome)
	}
}
