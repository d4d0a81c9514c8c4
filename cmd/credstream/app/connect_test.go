package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/aggregates"
	edge "github.com/credstream/credstream/api/connect"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/verify"
)

// origin is one that browsers may be sent back to.
const origin = "https://app.example.org"

// connectable brings a service up with a component of a provider.
func connectable(t testing.TB, provider *oauthtest.Server, change ...func(*Config)) *up {
	t.Helper()
	u := bring(t, t.TempDir(), append(change, func(c *Config) { c.ConnectReturnTo = origin + ", https://other.example.org:8443" })...)
	u.registerSheets(t, provider)
	return u
}

// browser is a person's browser: it has cookies, and goes where it is sent one
// step at a time.
type browser struct {
	*http.Client
	t testing.TB
}

func newBrowser(t testing.TB) *browser {
	jar, err := cookiejar.New(nil)
	must(t, err)
	return &browser{&http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, t}
}

// seen is what a browser is answered.
type seen struct {
	status int
	header http.Header
	body   string
	next   string // where it is sent
}

func (b *browser) do(method, address string, header map[string]string) seen {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, address, http.NoBody)
	must(b.t, err)
	for name, value := range header {
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	resp, err := b.Do(req)
	must(b.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(b.t, err)
	return seen{resp.StatusCode, resp.Header, string(body), resp.Header.Get("Location")}
}

func (b *browser) get(address string) seen {
	b.t.Helper()
	return b.do(http.MethodGet, address, map[string]string{"Accept": "text/html,application/json"})
}

// code is the code of the refusal that a page shows, "" when it shows none.
func (s seen) code() string {
	if m := regexp.MustCompile(`<p class="detail">([a-z_]+), request `).FindStringSubmatch(s.body); m != nil {
		return m[1]
	}
	return ""
}

// confirm is the code that a page asks the person to pass on, "" when there is none.
func (s seen) confirm() string {
	if m := regexp.MustCompile(`<p class="code">([A-Z2-7]{4}-[A-Z2-7]{4})</p>`).FindStringSubmatch(s.body); m != nil {
		return m[1]
	}
	return ""
}

// toCallback opens a link and consents, and returns where the provider then sends
// the browser.
func (b *browser) toCallback(link string) string {
	b.t.Helper()
	opened := b.get(link)
	if opened.status != http.StatusFound {
		b.t.Fatalf("the link answers %d %s", opened.status, opened.body)
	}
	consented := b.get(opened.next)
	if consented.status != http.StatusFound {
		b.t.Fatalf("the provider answers %d %s", consented.status, consented.body)
	}
	return consented.next
}

// through opens a link, consents and comes back.
func (b *browser) through(link string) seen {
	b.t.Helper()
	return b.get(b.toCallback(link))
}

type connectLink struct {
	ID, URL string
	Expires time.Time
}

// start asks for a link, for the component sheets.
func (a api) start(t testing.TB, in map[string]any) (link connectLink) {
	t.Helper()
	body := map[string]any{"component": "sheets"}
	maps.Copy(body, in)
	must(t, a.command("oauth.connect", "", body, &link))
	return link
}

func (a api) complete(connection, confirm, user string) (done, error) {
	var d done
	err := a.command("oauth.complete", "", map[string]any{"connection": connection, "confirm": confirm, "user": user}, &d)
	return d, err
}

type connectionShown struct{ ID, Stage, Credential, Reason, Says string }

func (a api) connection(t testing.TB, id string) (c connectionShown) {
	t.Helper()
	must(t, a.query("oauth.connection", "id="+id, &c))
	return c
}

// aborted lists why connections of the tenant ended, as the history has it.
func (a api) aborted(t testing.TB) map[string]string {
	t.Helper()
	var page struct {
		Events []struct {
			Data struct{ Connection, Reason, Principal, Component, User string }
		}
	}
	must(t, a.query("events.replay", "type=access.connect_aborted&limit=200", &page))
	list := map[string]string{}
	for _, e := range page.Events {
		if !strings.HasPrefix(e.Data.Principal, "key:") || e.Data.Component == "" {
			t.Errorf("an end is told as %+v", e.Data)
		}
		list[e.Data.Connection] = e.Data.Reason
	}
	return list
}

// A person connects an account, and connects it again in place when the grant has
// gone. Nothing secret is left anywhere.
func TestConnect(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	link := u.start(t, map[string]any{"name": "Sheets of u1", "user": "u1", "workspace": "w1"})
	if !strings.HasPrefix(link.URL, u.publicURL+"/oauth/connect/"+link.ID+".") || time.Until(link.Expires) > 10*time.Minute {
		t.Errorf("the link is %+v", link)
	}
	if c := u.connection(t, link.ID); c.Stage != "created" {
		t.Errorf("at first: %+v", c)
	}
	if _, err := u.complete(link.ID, "AAAA-AAAA", "u1"); code(t, err) != "connection_not_returned" {
		t.Errorf("completed before anything happened: %v", err)
	}
	b := newBrowser(t)
	callback := b.toCallback(link.URL)
	if c := u.connection(t, link.ID); c.Stage != "opened" {
		t.Errorf("at the provider: %+v", c)
	}
	if !strings.HasPrefix(callback, u.publicURL+"/oauth/callback/default/sheets?") {
		t.Errorf("the provider sends the browser to %s", callback)
	}
	back := b.get(callback)
	if back.status != http.StatusOK || back.confirm() == "" || provider.Requests() != 0 {
		t.Fatalf("the callback answers %d %s, and the provider has %d requests", back.status, back.body, provider.Requests())
	}
	if c := u.connection(t, link.ID); c.Stage != "returned" {
		t.Errorf("back: %+v", c)
	}
	made, err := u.complete(link.ID, strings.ToLower(back.confirm()), "u1")
	must(t, err)
	if c := u.connection(t, link.ID); c.Stage != "done" || c.Credential != made.ID || made.Version != 1 {
		t.Errorf("done: %+v of %+v", c, made)
	}
	if again, err := u.complete(link.ID, back.confirm(), "u1"); err != nil || again != made || provider.Requests() != 1 {
		t.Errorf("completed again: %+v, %v after %d requests", again, err, provider.Requests())
	}
	var shown struct {
		Name, Workspace string
		Keys            map[string]any
	}
	must(t, u.query("credential.get", fmt.Sprintf("id=%s&min_seq=%d", made.ID, made.Seq), &shown))
	if shown.Name != "Sheets of u1" || shown.Workspace != "w1" || shown.Keys["oauth"] != "********" {
		t.Errorf("the credential is %+v", shown)
	}
	authorized := func(grant int, user, connection string) bool {
		return slices.ContainsFunc(u.facts(t, made.ID), func(e events.Event) bool {
			a, ok := e.(events.CredentialAuthorized)
			return ok && a.Grant == grant && a.By == "connect" && a.User == user && a.Connection == connection && a.Renewable
		})
	}
	if !authorized(1, "u1", link.ID) {
		t.Errorf("the facts are %+v", u.facts(t, made.ID))
	}
	verifier := provider.Seen()[0].Form.Get("code_verifier")
	refresh := refreshTokenOf(t, u, made.ID)
	if len(verifier) < 43 || !provider.Live(refresh) {
		t.Errorf("verifier of %d characters, refresh token %t", len(verifier), provider.Live(refresh))
	}

	// The grant goes, and the same credential is connected again.
	provider.Withdraw(refresh)
	if err := u.command("credential.refresh", "", map[string]any{"id": made.ID}, nil); code(t, err) != "reauthorization_required" {
		t.Fatalf("a grant that is gone: %v", err)
	}
	second := u.start(t, map[string]any{"component": "sheets", "credential": made.ID, "user": "u2"})
	b2 := newBrowser(t)
	confirm := b2.through(second.URL).confirm()
	redone, err := u.complete(second.ID, confirm, "u2")
	must(t, err)
	if redone.ID != made.ID || redone.Version != 2 || redone.Status == string(events.ReauthorizationRequired) || !authorized(2, "u2", second.ID) {
		t.Errorf("connected again: %+v", redone)
	}
	if !slices.ContainsFunc(u.facts(t, made.ID), func(e events.Event) bool { _, ok := e.(events.CredentialRecovered); return ok }) {
		t.Error("it has not recovered")
	}
	if ends := u.aborted(t); len(ends) != 0 {
		t.Errorf("connections that were completed have ended: %v", ends)
	}
	u.stop()
	state := queryOf(t, callback).Get("state")
	for _, secret := range []string{
		verifier, oauthtest.Mark, state, strings.Split(state, ".")[1], confirm, strings.ReplaceAll(confirm, "-", ""), strings.ReplaceAll(back.confirm(), "-", ""),
		strings.Split(link.URL, link.ID+".")[1],
	} {
		absent(t, u.cfg.Data, u.logs.String(), secret)
	}
}

// refreshTokenOf is the refresh token in force.
func refreshTokenOf(t testing.TB, u *up, id string) string {
	t.Helper()
	state, err := aggregates.Credential.Fresh(t.Context(), u.states, aggregates.Credential.Stream("default", id))
	must(t, err)
	key := grant(t, u.program, "revealer-"+id, []string{"default"}, permission.CredentialsReveal)
	a := u.api
	a.key = key
	var shown struct {
		Keys map[string]map[string]any
	}
	must(t, a.command("credential.reveal", "", map[string]any{"id": id}, &shown))
	token, _ := shown.Keys[state.Value.Tokens.Field]["refresh_token"].(string)
	return token
}

func queryOf(t testing.TB, address string) url.Values {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	return u.Query()
}

// with is the address with parameters changed; "" takes one away.
func with(t testing.TB, address string, changes ...string) string {
	t.Helper()
	u, err := url.Parse(address)
	must(t, err)
	q := u.Query()
	for i := 0; i < len(changes); i += 2 {
		q.Del(changes[i])
		if changes[i+1] != "" {
			q.Set(changes[i], changes[i+1])
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// The browser that asked for the link itself needs to confirm nothing.
func TestConnectInTheBrowserThatStarted(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	b := newBrowser(t)
	post := func(path string) connectLink {
		a := u.api
		a.client = b.Client
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, u.base+path, strings.NewReader(`{"component":"sheets"}`))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		var link connectLink
		must(t, a.do(req, &link))
		return link
	}
	for i, path := range []string{"/v1/tenants/default/oauth/connect", "/v1/tenants/default/commands/oauth.connect"} {
		link := post(path)
		back := b.through(link.URL)
		c := u.connection(t, link.ID)
		if back.status != http.StatusOK || back.confirm() != "" || c.Stage != "done" || !strings.Contains(back.body, c.Credential) || provider.Requests() != i+1 {
			t.Errorf("%s: %d %s, %+v", path, back.status, back.body, c)
		}
	}
	// Somebody else's browser does not become the starter's by its cookies for another connection.
	link := post("/v1/tenants/default/oauth/connect")
	other := newBrowser(t)
	if back := other.through(link.URL); back.confirm() == "" || provider.Requests() != 2 {
		t.Errorf("another browser: %d %s", back.status, back.body)
	}
	// Whose key was revoked meanwhile gets nothing.
	var issued struct{ Key, ID string }
	must(t, u.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR"}, &issued))
	admin := u.api
	u.key = issued.Key
	link = post("/v1/tenants/default/oauth/connect")
	u.api = admin
	callback := b.toCallback(link.URL)
	var revoked done
	must(t, u.command("api_key.revoke", "", map[string]any{"id": issued.ID}, &revoked))
	must(t, u.query("api_key.list", fmt.Sprintf("min_seq=%d", revoked.Seq), nil))
	if back := b.get(callback); back.code() != "api_key_unknown" || provider.Requests() != 2 || u.aborted(t)[link.ID] != "api_key_unknown" {
		t.Errorf("a revoked starter: %d %s", back.status, back.body)
	}
}

// An application is told by the address it gave, and confirms who its user is.
func TestConnectReturnsToTheApplication(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	for _, address := range []string{origin + "/connected", origin + "/?a=1&b=%20", "https://other.example.org:8443", "http://127.0.0.1:40000/x", "http://[::1]:9/"} {
		link := u.start(t, map[string]any{"return_to": address, "user": "u1"})
		back := newBrowser(t).through(link.URL)
		q := queryOf(t, back.next)
		if back.status != http.StatusFound || !strings.HasPrefix(back.next, address) || q.Get("connection") != link.ID || len(q.Get("confirm")) < 43 || back.body != "" {
			t.Fatalf("%s: %d to %s", address, back.status, back.next)
		}
		if _, err := u.complete(link.ID, q.Get("confirm"), "u1"); err != nil {
			t.Error(err)
		}
	}
	before := provider.Requests()
	provider.Deny(true)
	link := u.start(t, map[string]any{"return_to": origin})
	back := newBrowser(t).through(link.URL)
	if back.next != origin+"?connection="+link.ID+"&error=connection_denied" || provider.Requests() != before {
		t.Errorf("denied: %s", back.next)
	}
	if c := u.connection(t, link.ID); c.Stage != "failed" || c.Reason != "connection_denied" || u.aborted(t)[link.ID] != "connection_denied" {
		t.Errorf("denied: %+v", c)
	}
}

// No browser is sent to where somebody else wants it.
func TestConnectIsNoOpenRedirect(t *testing.T) {
	u := connectable(t, oauthtest.NewServer(t))
	payloads := []string{
		"//evil.example", "///evil.example", "https:evil.example", "https:/evil.example", `https:\\evil.example`, `/\evil.example`, `\\evil.example`, `/\/evil.example`,
		"javascript:alert(1)", "JaVaScRiPt:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd", "ftp://app.example.org/", "blob:https://app.example.org/x",
		"https://evil.example", "https://evil.example/https://app.example.org", "https://evil.example?" + origin, "https://evil.example#" + origin,
		"https://app.example.org@evil.example", "https://app.example.org:x@evil.example/", "https://x@app.example.org/", "https://app.example.org%40evil.example",
		"https://app.example.org.evil.example", "https://app.example.orgevil.example", "https://evilapp.example.org", "https://evil.example/app.example.org",
		"https://app.example.org:444/", "https://app.example.org:443/", "https://app.example.org:/", "https://APP.example.org/", "HTTPS://app.example.org/", "http://app.example.org/",
		"https://app.example.org./", "https://app.example.org%2f@evil.example", `https://app.example.org\@evil.example`, `https://app.example.org\.evil.example`,
		"https://app.example.org\t.evil.example", "https://app.example.org\n.evil.example", " https://app.example.org/", "https://app.example.org /", "https://app.example.org/\r\nX: y",
		"https://app.example.org/#fragment", "https://аpp.example.org/", "https://app.example.org/é", "https://app.example。org/", "https://[::1]/", "https://app.example.org;evil.example/",
		"/connected", "connected", "?x", "#", ".", "https://", "http://", "https:///app.example.org", "http://127.0.0.1/", "http://127.0.0.1:/", "http://localhost:8080/", "http://127.0.0.2:80/",
		"http://127.1:8080/", "http://2130706433:80/", "http://0x7f.1:80/", "http://127.0.0.1:80@evil.example/", "http://[::ffff:127.0.0.1]:80/", "http://[::1%25eth0]:80/", "https://127.0.0.1:8080/",
		"http://127.0.0.1.evil.example:80/", "http://evil.example:80/127.0.0.1", "http://127.0.0.1:99999999/", "http://127.0.0.1:80x/",
		origin + "/?confirm=1", origin + "/?connection=x", origin + "/?error=x", origin + "/?a=%zz", origin + "/?a;b", origin + "/" + strings.Repeat("a", 2048),
	}
	for _, payload := range payloads {
		err := u.command("oauth.connect", "", map[string]any{"component": "sheets", "return_to": payload}, nil)
		if code(t, err) != "return_to_invalid" {
			t.Errorf("%q: %v", payload, err)
		}
	}
	if len(payloads) < 40 {
		t.Error("there are too few of them")
	}
}

// A link works once, in one browser, and in time.
func TestConnectLink(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	link := u.start(t, nil)
	for _, method := range []string{http.MethodHead, http.MethodPost, http.MethodOptions, http.MethodPut} {
		if got := newBrowser(t).do(method, link.URL, nil); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "GET" {
			t.Errorf("%s answers %d", method, got.status)
		}
	}
	if got := newBrowser(t).do("GET", link.URL, map[string]string{"Sec-Purpose": "prefetch"}); got.code() != "connect_link_prefetched" {
		t.Errorf("a prefetch answers %d", got.status)
	}
	for _, wrong := range []string{
		link.URL[:len(link.URL)-1], link.URL + "A", strings.Replace(link.URL, link.ID, events.NewID(), 1), u.publicURL + "/oauth/connect/" + link.ID,
		u.publicURL + "/oauth/connect/" + link.ID + ".", u.publicURL + "/oauth/connect/.x", u.publicURL + "/oauth/connect/x.y",
		strings.Replace(link.URL, link.ID, "*", 1), strings.Replace(link.URL, link.ID, strings.ToUpper(link.ID), 1),
	} {
		if got := newBrowser(t).get(wrong); got.status != http.StatusNotFound || got.code() != "connect_link_unknown" {
			t.Errorf("%s answers %d %s", wrong, got.status, got.code())
		}
	}
	for _, wrong := range []string{"/oauth/connect/", "/oauth/connect/a/b", "/oauth/connect/a%2fb.c", "/oauth/", "/oauth/x", "/oauth/callback/", "/oauth/callback/default", "/oauth/callback/default/", "/oauth/callback/default/a/b"} {
		if got := newBrowser(t).get(u.base + wrong); got.status != http.StatusNotFound || got.code() != "connect_path_unknown" {
			t.Errorf("%s answers %d %s", wrong, got.status, got.code())
		}
	}
	hostile := newBrowser(t).do("GET", u.start(t, nil).URL, map[string]string{"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"})
	b := newBrowser(t)
	first := b.get(link.URL)
	q := queryOf(t, hostile.next)
	if q.Get("redirect_uri") != u.publicURL+"/oauth/callback/default/sheets" || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" || len(strings.Split(q.Get("state"), ".")[1]) < 43 {
		t.Errorf("the browser is sent to %s", first.next)
	}
	if !strings.HasPrefix(first.next, provider.URL+"/authorize?") || first.body != "" || first.header.Get("Cache-Control") != "no-store" || first.header.Get("Referrer-Policy") != "no-referrer" {
		t.Errorf("opened: %+v", first)
	}
	cookie := first.header.Get("Set-Cookie")
	for _, part := range []string{"credstream-connect-" + link.ID + "=", "HttpOnly", "SameSite=Lax", "Path=/oauth", "Max-Age="} {
		if !strings.Contains(cookie, part) {
			t.Errorf("the cookie %s lacks %s", part, cookie)
		}
	}
	if got := newBrowser(t).get(link.URL); got.code() != "connect_link_used" || got.status != http.StatusConflict {
		t.Errorf("another browser opens it, too: %d %s", got.status, got.body)
	}
	// The same browser goes Back and opens it again: its first state is void by then.
	old := b.get(first.next).next
	callback := b.toCallback(link.URL)
	if got := b.get(old); got.code() != "connection_state_unknown" {
		t.Errorf("the state before: %s", got.code())
	}
	if got := b.get(callback); got.confirm() == "" {
		t.Errorf("the state after: %d %s", got.status, got.body)
	}
	if got := b.get(link.URL); got.code() != "connect_link_used" {
		t.Errorf("after the callback: %s", got.code())
	}
	if provider.Requests() != 0 {
		t.Error("a code was redeemed")
	}
}

// What comes to the callback and is not the answer to a question of ours: the code
// is never redeemed, and what ends a connection is a fact.
func TestConnectAttacks(t *testing.T) {
	provider, second := oauthtest.NewServer(t), oauthtest.NewServer(t)
	u := connectable(t, provider)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	other := u.in("other")
	register := func(a api, id string, p *oauthtest.Server) {
		must(t, a.command("component.register", "", map[string]any{"id": id, "descriptor": map[string]any{
			"title": id, "useOAuthClient": true,
			"credentials": map[string]any{"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}, "oauth2": p.Block()},
		}}, nil))
		must(t, a.command("oauth_client.define", "", map[string]any{"component": id, "client_id": p.Client().ID, "client_secret": string(p.Client().Secret.Reveal())}, nil))
	}
	register(u.api, "second", second)
	register(other, "theirs", provider)
	const ended, stays = "failed", "opened"
	for name, c := range map[string]struct {
		change func(b *browser, callback string) seen
		want   string
		stage  string // of the connection afterwards
	}{
		"no state":              {func(b *browser, at string) seen { return b.get(with(t, at, "state", "")) }, "connection_state_missing", stays},
		"two states":            {func(b *browser, at string) seen { return b.get(at + "&state=" + queryOf(t, at).Get("state")) }, "connection_state_missing", stays},
		"a state without a dot": {func(b *browser, at string) seen { return b.get(with(t, at, "state", "x")) }, "connection_state_missing", stays},
		"a query that is none":  {func(b *browser, at string) seen { return b.get(at + "&x=%zz") }, "connection_state_missing", stays},
		"a made up state":       {func(b *browser, at string) seen { return b.get(with(t, at, "state", events.NewID()+".x")) }, "connection_state_unknown", stays},
		"a guessed state": {func(b *browser, at string) seen {
			id, _, _ := strings.Cut(queryOf(t, at).Get("state"), ".")
			return b.get(with(t, at, "state", id+"."+strings.Repeat("A", 52)))
		}, "connection_state_unknown", stays},
		"a state with a strange id": {func(b *browser, at string) seen { return b.get(with(t, at, "state", "../>*.x")) }, "connection_state_unknown", stays},
		"a state used before": {func(b *browser, at string) seen {
			if got := b.get(at); got.confirm() == "" {
				t.Errorf("the first time: %s", got.body)
			}
			return b.get(at)
		}, "connection_state_used", "returned"},
		"another tenant's path": {func(b *browser, at string) seen {
			return b.get(strings.Replace(at, "/default/sheets", "/other/sheets", 1))
		}, "connection_other_context", ended},
		"another component's path": {func(b *browser, at string) seen {
			return b.get(strings.Replace(at, "/default/sheets", "/default/second", 1))
		}, "connection_other_context", ended},
		"another browser": {func(_ *browser, at string) seen { return newBrowser(t).get(at) }, "connection_other_browser", ended},
		"another person's browser": {func(_ *browser, at string) seen {
			theirs := newBrowser(t)
			theirs.toCallback(u.start(t, nil).URL)
			return theirs.get(at)
		}, "connection_other_browser", ended},
		"another issuer":             {func(b *browser, at string) seen { return b.get(with(t, at, "iss", second.URL)) }, "connection_issuer_mismatch", ended},
		"an issuer in other letters": {func(b *browser, at string) seen { return b.get(with(t, at, "iss", strings.ToUpper(provider.URL))) }, "connection_issuer_mismatch", ended},
		"no issuer":                  {func(b *browser, at string) seen { return b.get(with(t, at, "iss", "")) }, "connection_issuer_mismatch", ended},
		"two issuers":                {func(b *browser, at string) seen { return b.get(at + "&iss=" + url.QueryEscape(provider.URL)) }, "connection_issuer_mismatch", ended},
		"code and error":             {func(b *browser, at string) seen { return b.get(at + "&error=access_denied") }, "connection_answer_invalid", ended},
		"neither code nor error":     {func(b *browser, at string) seen { return b.get(with(t, at, "code", "")) }, "connection_answer_invalid", ended},
		"two codes":                  {func(b *browser, at string) seen { return b.get(at + "&code=x") }, "connection_answer_invalid", ended},
		"a long code":                {func(b *browser, at string) seen { return b.get(with(t, at, "code", strings.Repeat("x", 10<<10))) }, "connection_answer_invalid", ended},
		"a code with NUL":            {func(b *browser, at string) seen { return b.get(with(t, at, "code", "a\x00b")) }, "connection_answer_invalid", ended},
		"denied":                     {func(b *browser, at string) seen { return b.get(with(t, at, "code", "", "error", "access_denied")) }, "connection_denied", ended},
		"a mistake of the provider":  {func(b *browser, at string) seen { return b.get(with(t, at, "code", "", "error", "server_error")) }, "connection_refused", ended},
		"POST": {func(b *browser, at string) seen {
			return b.do("POST", at, map[string]string{"Sec-Fetch-Site": "cross-site"})
		}, "connection_answer_invalid", stays},
	} {
		t.Run(name, func(t *testing.T) {
			link := u.start(t, nil)
			b := newBrowser(t)
			callback := b.toCallback(link.URL)
			got := c.change(b, callback)
			if got.code() != c.want || got.confirm() != "" || got.status < 400 {
				t.Errorf("answered %d %s", got.status, got.body)
			}
			now := u.connection(t, link.ID)
			if now.Stage != c.stage || c.stage == ended && now.Reason != c.want {
				t.Errorf("afterwards it is %+v", now)
			}
			if reason := u.aborted(t)[link.ID]; c.stage == ended && reason != c.want || c.stage != ended && reason != "" {
				t.Errorf("the history says %q", reason)
			}
			if c.stage == ended { // the right answer comes too late
				if late := b.get(callback); late.code() != "connection_state_used" {
					t.Errorf("the right answer afterwards: %d %s", late.status, late.code())
				}
				if _, err := u.complete(link.ID, "AAAAAAAA", ""); code(t, err) != "connection_ended" {
					t.Errorf("completed afterwards: %v", err)
				}
			}
		})
	}
	// Mix-up: an account at one provider, the answer at the other one's address.
	b := newBrowser(t)
	honest, attackers := u.start(t, nil), u.start(t, map[string]any{"component": "second"})
	callback, mixed := b.toCallback(honest.URL), b.toCallback(attackers.URL)
	for _, at := range []string{
		with(t, mixed, "code", queryOf(t, callback).Get("code")),
		with(t, callback, "state", queryOf(t, mixed).Get("state")),
		with(t, mixed, "code", queryOf(t, callback).Get("code"), "iss", provider.URL),
	} {
		if got := b.get(at); got.status < 400 && got.confirm() == "" {
			t.Errorf("a mixed answer: %d %s", got.status, got.body)
		}
	}
	if n := provider.Requests() + second.Requests(); n != 0 {
		t.Errorf("%d codes were redeemed", n)
	}
	// Their tenants and components are theirs.
	for in, want := range map[string]string{
		`{"component":"theirs"}`: "component_not_found", `{"component":"nowhere"}`: "component_not_found", `{}`: "member_missing",
		`{"component":"sheets","keys":{"oauth":{"access_token":"x"}}}`: "keys_field_unknown", `{"component":"sheets","keys":{"x":"y"}}`: "keys_field_unknown",
		`{"component":"sheets","credential":"nobody"}`: "credential_not_found", `{"component":"sheets","tenant":"other"}`: "body_invalid", `{"component":"sheets","user":"a\u0000b"}`: "id_invalid",
	} {
		if err := u.command("oauth.connect", "", json.RawMessage(in), nil); code(t, err) != want {
			t.Errorf("%s: %v", in, err)
		}
	}
	if err := other.query("oauth.connection", "id="+honest.ID, nil); code(t, err) != "connection_not_found" {
		t.Errorf("another tenant looks at it: %v", err)
	}
}

// Only who started completes, with what the browser was given, and for the user it
// was started for.
func TestConnectIsCompletedByWhoStarted(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	var issued struct{ Key string }
	must(t, u.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR"}, &issued))
	colleague := u.api
	colleague.key = issued.Key
	returned := func(in map[string]any) (connectLink, string) {
		link := u.start(t, in)
		return link, newBrowser(t).through(link.URL).confirm()
	}
	link, confirm := returned(map[string]any{"user": "u1"})
	for name, c := range map[string]struct {
		a                         api
		connection, confirm, user string
		want                      string
	}{
		"another tenant":         {u.in("other"), link.ID, confirm, "u1", "connection_not_found"},
		"a colleague":            {colleague, link.ID, confirm, "u1", "connection_of_another"},
		"an unknown one":         {u.api, events.NewID(), confirm, "u1", "connection_not_found"},
		"a strange id":           {u.api, "*", confirm, "u1", "connection_not_found"},
		"without a confirmation": {u.api, link.ID, "", "u1", "member_missing"},
	} {
		if _, err := c.a.complete(c.connection, c.confirm, c.user); code(t, err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	if _, err := u.complete(link.ID, confirm, "u2"); code(t, err) != "connection_user_mismatch" || u.aborted(t)[link.ID] != "connection_user_mismatch" {
		t.Errorf("another user: %v", err)
	}
	if _, err := u.complete(link.ID, confirm, "u1"); code(t, err) != "connection_ended" {
		t.Errorf("the right user afterwards: %v", err)
	}
	for _, users := range [][2]string{{"u1", ""}, {"", "u1"}} {
		link, confirm := returned(map[string]any{"user": users[0]})
		if _, err := u.complete(link.ID, confirm, users[1]); code(t, err) != "connection_user_mismatch" {
			t.Errorf("started for %q, completed for %q: %v", users[0], users[1], err)
		}
	}
	// Guesses, one after the other and at the same time.
	link, confirm = returned(nil)
	for i := range 5 {
		want := "connection_confirm_wrong"
		if i == 4 {
			want = "connection_confirm_guessed"
		}
		if _, err := u.complete(link.ID, "AAAA-AAAA", ""); code(t, err) != want {
			t.Errorf("guess %d: %v", i+1, err)
		}
	}
	if _, err := u.complete(link.ID, confirm, ""); code(t, err) != "connection_ended" || u.aborted(t)[link.ID] != "connection_confirm_guessed" {
		t.Errorf("after the guesses: %v", err)
	}
	link, _ = returned(nil)
	var wait sync.WaitGroup
	var mu sync.Mutex
	counts := map[string]int{}
	for range 40 {
		wait.Go(func() {
			_, err := u.complete(link.ID, "BBBB-BBBB", "")
			c, _ := codeOf(err)
			mu.Lock()
			defer mu.Unlock()
			counts[c]++
		})
	}
	wait.Wait()
	if counts["connection_confirm_wrong"] > 4 || counts["connection_confirm_guessed"] > 1 || counts[""] > 0 {
		t.Errorf("40 guesses at the same time: %v", counts)
	}
	if n := provider.Requests(); n != 0 {
		t.Errorf("%d codes were redeemed", n)
	}
	// The right confirmation, many times at once: one redeems.
	link, confirm = returned(nil)
	clear(counts)
	for range 10 {
		wait.Go(func() {
			_, err := u.complete(link.ID, confirm, "")
			c, _ := codeOf(err)
			mu.Lock()
			defer mu.Unlock()
			counts[c]++
		})
	}
	wait.Wait()
	if counts[""] == 0 || counts[""]+counts["connection_busy"] != 10 || provider.Requests() != 1 {
		t.Errorf("confirmed ten times: %v with %d requests", counts, provider.Requests())
	}
	// Permissions: what exists takes another one than what is new.
	var made struct{ ID string }
	must(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": provider.Grant()}}, &made))
	for perm, in := range map[permission.Permission][2]map[string]any{
		permission.CredentialsCreate: {{"component": "sheets"}, {"credential": made.ID}},
		permission.CredentialsEdit:   {{"credential": made.ID}, {"component": "sheets"}},
	} {
		a := u.api
		a.key = grant(t, u.program, "only-"+strings.ReplaceAll(string(perm), ".", "-"), []string{"default"}, perm)
		var link connectLink
		must(t, a.command("oauth.connect", "", in[0], &link))
		if err := a.command("oauth.connect", "", in[1], nil); code(t, err) != "permission_denied" {
			t.Errorf("%s lets %v: %v", perm, in[1], err)
		}
		if _, err := a.complete(link.ID, newBrowser(t).through(link.URL).confirm(), ""); err != nil {
			t.Errorf("%s: %v", perm, err)
		}
	}
}

// Pages are honest, and what a provider writes is text. Programs get JSON.
func TestConnectPages(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	b := newBrowser(t)
	says := `<script>alert(1)</script><a href="https://evil.example">click</a> ` + "\u202e\x1b[31m" + strings.Repeat("long ", 100)
	link := u.start(t, nil)
	got := b.get(with(t, b.toCallback(link.URL), "code", "", "error", "access_denied", "error_description", says, "error_uri", "https://evil.example/uri"))
	if strings.Contains(got.body, "<script") || strings.Contains(got.body, "<a ") || strings.Contains(got.body, "evil.example/uri") || !strings.Contains(got.body, "&lt;script&gt;") ||
		strings.ContainsAny(got.body, "\u202e\x1b") || strings.Count(got.body, "long") > 40 || !strings.Contains(got.body, "You denied the access") {
		t.Errorf("the page is %s", got.body)
	}
	policy := got.header.Get("Content-Security-Policy")
	for _, part := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'none'", "base-uri 'none'"} {
		if !strings.Contains(policy, part) {
			t.Errorf("the policy %q lacks %s", policy, part)
		}
	}
	if strings.Contains(policy, "unsafe") || strings.Contains(got.body, " style=") || strings.Contains(got.body, "src=") || got.header.Get("Cache-Control") != "no-store" ||
		got.header.Get("Referrer-Policy") != "no-referrer" || got.header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("the header is %v", got.header)
	}
	if c := u.connection(t, link.ID); strings.Contains(c.Says, "click") {
		t.Errorf("what the provider wrote is kept: %+v", c)
	}
	asJSON := map[string]string{"Accept": "application/json"}
	link = u.start(t, nil)
	callback := b.toCallback(link.URL)
	var problem struct {
		Code      string
		Status    int
		RequestID string `json:"request_id"`
	}
	got = b.do("GET", with(t, callback, "state", ""), asJSON)
	must(t, json.Unmarshal([]byte(got.body), &problem))
	if problem.Code != "connection_state_missing" || problem.Status != got.status || problem.RequestID == "" || got.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("as JSON: %s", got.body)
	}
	got = b.do("GET", callback, asJSON)
	var confirmation struct{ Connection, Confirm string }
	must(t, json.Unmarshal([]byte(got.body), &confirmation))
	if confirmation.Connection != link.ID {
		t.Errorf("as JSON: %s", got.body)
	}
	if _, err := u.complete(link.ID, confirmation.Confirm, ""); err != nil {
		t.Error(err)
	}
	if got := u.logs.String(); strings.Contains(got, "evil") || strings.Contains(got, confirmation.Confirm) || !strings.Contains(got, `"route":"/oauth/callback/{tenant}/{component}"`) {
		t.Errorf("the log is %s", got)
	}
}

// Behind TLS the cookies can be put there by nobody else.
func TestConnectCookiesOverTLS(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider, func(c *Config) { c.PublicURL = "https://credstream.example.org/" })
	link := u.start(t, nil)
	if !strings.HasPrefix(link.URL, "https://credstream.example.org/oauth/connect/") {
		t.Errorf("the link is %s", link.URL)
	}
	opened := newBrowser(t).get(strings.Replace(link.URL, "https://credstream.example.org", u.base, 1))
	cookie := opened.header.Get("Set-Cookie")
	if !strings.HasPrefix(cookie, "__Host-credstream-connect-") || !strings.Contains(cookie, "; Secure") || !strings.Contains(cookie, "; Path=/;") || strings.Contains(cookie, "Domain") {
		t.Errorf("the cookie is %s", cookie)
	}
	if to := queryOf(t, opened.next).Get("redirect_uri"); to != "https://credstream.example.org/oauth/callback/default/sheets" {
		t.Errorf("the redirect URI is %s", to)
	}
	var uri struct {
		RedirectURI string `json:"redirect_uri"`
	}
	must(t, u.query("oauth.redirect-uri", "component=sheets", &uri))
	if uri.RedirectURI != "https://credstream.example.org/oauth/callback/default/sheets" {
		t.Errorf("the redirect URI is said to be %s", uri.RedirectURI)
	}
}

// The same over NATS, where no browser can have asked.
func TestConnectOverNATS(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	nc := u.connect(t, adminKey)
	ask := func(subject string, in, out any) {
		t.Helper()
		body, err := json.Marshal(in)
		must(t, err)
		answer, err := nc.Request(subject, body, 30*time.Second)
		must(t, err)
		if answer.Header.Get("Nats-Service-Error-Code") != "" {
			t.Fatalf("%s: %s", subject, answer.Data)
		}
		must(t, json.Unmarshal(answer.Data, out))
	}
	var link connectLink
	ask("credstream.cmd.default.oauth.connect", map[string]any{"component": "sheets"}, &link)
	confirm := newBrowser(t).through(link.URL).confirm()
	var shown connectionShown
	ask("credstream.query.default.oauth.connection", map[string]any{"id": link.ID}, &shown)
	if shown.Stage != "returned" {
		t.Errorf("the connection is %+v", shown)
	}
	var made done
	ask("credstream.cmd.default.oauth.complete", map[string]any{"connection": link.ID, "confirm": confirm}, &made)
	if made.ID == "" || provider.Requests() != 1 {
		t.Errorf("made %+v", made)
	}
	for _, command := range []string{"oauth.connect", "oauth.complete"} {
		if c := enqueue(t, nc, "credstream.cmdq.default."+command); c != "command_not_queueable" {
			t.Errorf("%s can be queued: %q", command, c)
		}
	}
}

// besides is another process over the same log, with a clock of its own; it knows
// the same public URL.
func (u *up) besides(t testing.TB, now func() time.Time, change ...func(*application.Config)) (*application.Application, *httptest.Server) {
	t.Helper()
	conn, err := u.nats.Conn("other connections")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	connections, err := kv.OpenConnections(t.Context(), js, 1)
	must(t, err)
	states, err := aggregates.NewLog(u.store, 100)
	must(t, err)
	logger := slog.New(slog.NewTextHandler(u.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	guarded := verify.NewClient(verify.Config{AllowPrivate: true})
	cfg := application.Config{
		Log: states, Views: u.views, Projector: u.proj, Vault: u.vault, Keyring: u.keyring, Verify: guarded, OAuth: oauth.New(guarded),
		Logger: logger, Connections: connections, PublicURL: u.publicURL, Now: now,
	}
	for _, f := range change {
		f(&cfg)
	}
	svc, err := application.New(cfg)
	must(t, err)
	t.Cleanup(svc.Close)
	server := httptest.NewServer(edge.New(edge.Config{Service: svc.Connects, PublicURL: u.publicURL, Logger: logger}))
	t.Cleanup(server.Close)
	return svc, server
}

// The link is made by one process, opened at another, and the answer comes to a
// third; what comes too late is refused.
func TestConnectOverSeveralProcesses(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	_, second := u.besides(t, nil)
	at := func(server *httptest.Server, address string) string {
		return strings.Replace(address, u.publicURL, server.URL, 1)
	}
	link := u.start(t, nil)
	b := newBrowser(t)
	callback := b.toCallback(at(second, link.URL))
	if !strings.HasPrefix(callback, u.publicURL) {
		t.Errorf("the provider sends the browser to %s", callback)
	}
	confirm := b.get(callback).confirm()
	if made, err := u.complete(link.ID, confirm, ""); err != nil || made.ID == "" {
		t.Errorf("made %+v, %v", made, err)
	}
	_, late := u.besides(t, func() time.Time { return time.Now().Add(11 * time.Minute) })
	link = u.start(t, nil)
	if got := b.get(at(late, link.URL)); got.code() != "connect_link_expired" {
		t.Errorf("an old link: %s", got.code())
	}
	callback = b.toCallback(link.URL)
	if got := b.get(at(late, callback)); got.code() != "connection_expired" {
		t.Errorf("an old state: %s", got.code())
	}
	if provider.Requests() != 1 {
		t.Errorf("%d codes were redeemed", provider.Requests())
	}
}

// What the provider grants and cannot be saved is given back, and said.
func TestConnectThatCannotBeSaved(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	try := func(in map[string]any) (connectLink, string) {
		t.Helper()
		link := u.start(t, in)
		_, err := u.complete(link.ID, newBrowser(t).through(link.URL).confirm(), "")
		c := code(t, err)
		if now := u.connection(t, link.ID); now.Stage != "failed" || now.Reason != c || u.aborted(t)[link.ID] != c {
			t.Errorf("%s: it is %+v", c, now)
		}
		return link, c
	}
	provider.Mangle(func(answer map[string]any) { delete(answer, "refresh_token") })
	if _, c := try(nil); c != "oauth_refresh_token_missing" || provider.Revocations() != 1 {
		t.Errorf("without a refresh token: %s after %d revocations", c, provider.Revocations())
	}
	provider.Mangle(nil)
	for status, answer := range map[string]struct {
		status int
		code   string
	}{"oauth_redeem_failed": {503, ""}, "oauth_token_refused": {400, "invalid_grant"}} {
		provider.FailNext(1, answer.status, answer.code)
		if _, c := try(nil); c != status {
			t.Errorf("%v: %s", answer, c)
		}
	}
	// The dry request fails.
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"verification": map[string]any{"http": map[string]any{
			"method": "GET", "url": provider.URL + "/nowhere", "headers": map[string]string{"authorization": "Bearer {{oauth}}"}, "expect": map[string]any{"status": []int{200}},
		}},
		"credentials": map[string]any{"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}, "oauth2": provider.Block()},
	}}, nil))
	before := provider.Revocations()
	if _, c := try(nil); c != "credential_verification_failed" || provider.Revocations() != before+1 {
		t.Errorf("a failing dry request: %s", c)
	}
	// The component changes on the way.
	elsewhere := oauthtest.NewServer(t)
	link := u.start(t, nil)
	b := newBrowser(t)
	callback := b.toCallback(link.URL)
	requests := provider.Requests()
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "credentials": map[string]any{"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}, "oauth2": elsewhere.Block()},
	}}, nil))
	if _, err := u.complete(link.ID, b.get(callback).confirm(), ""); code(t, err) != "connection_component_changed" {
		t.Errorf("a changed component: %v", err)
	}
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "credentials": map[string]any{"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}, "oauth2": provider.Block()},
	}}, nil))
	link = u.start(t, nil)
	callback = b.toCallback(link.URL)
	must(t, u.command("component.delete", "", map[string]any{"id": "sheets"}, nil))
	if _, err := u.complete(link.ID, b.get(callback).confirm(), ""); code(t, err) != "component_deleted" {
		t.Errorf("a deleted component: %v", err)
	}
	if err := u.command("oauth.connect", "", map[string]any{"component": "sheets"}, nil); code(t, err) != "component_deleted" {
		t.Errorf("a link for a deleted component: %v", err)
	}
	if provider.Requests() != requests || elsewhere.Requests() != 0 {
		t.Error("a code was redeemed")
	}
}

// A component may ask for more than the provider gives: these values are given
// beforehand, and stay when the account is connected again, unless they would come
// to other hosts.
func TestConnectWithOtherFields(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	descriptor := func(hosts ...string) map[string]any {
		return map[string]any{
			"title": "CRM", "useOAuthClient": true, "hosts": hosts,
			"credentials": map[string]any{"fields": map[string]any{
				"domain": map[string]any{"viewClass": "TextFieldView", "required": true, "secret": false},
				"oauth":  map[string]any{"viewClass": "OAuthFieldView", "required": true},
			}, "oauth2": provider.Block()},
		}
	}
	must(t, u.command("component.register", "", map[string]any{"id": "crm", "descriptor": descriptor("{{domain}}.example.org")}, nil))
	must(t, u.command("oauth_client.define", "", map[string]any{"component": "crm", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}, nil))
	for in, want := range map[string]string{
		`{"component":"crm"}`:                              "keys_field_missing",
		`{"component":"crm","keys":{"domain":"********"}}`: "keys_masked",
		`{"component":"crm","keys":{"domain":"a","x":1}}`:  "keys_field_unknown",
	} {
		if err := u.command("oauth.connect", "", json.RawMessage(in), nil); code(t, err) != want {
			t.Errorf("%s: %v", in, err)
		}
	}
	connect := func(in map[string]any) done {
		t.Helper()
		link := u.start(t, in)
		made, err := u.complete(link.ID, newBrowser(t).through(link.URL).confirm(), "")
		must(t, err)
		return made
	}
	domain := func(d done) any {
		var shown struct{ Keys map[string]any }
		must(t, u.query("credential.get", fmt.Sprintf("id=%s&min_seq=%d", d.ID, d.Seq), &shown))
		return shown.Keys["domain"]
	}
	made := connect(map[string]any{"component": "crm", "keys": map[string]any{"domain": "acme"}})
	if got := domain(made); got != "acme" {
		t.Errorf("the domain is %v", got)
	}
	again := connect(map[string]any{"component": "crm", "credential": made.ID})
	if got := domain(again); got != "acme" || again.Version != 2 || again.ID != made.ID {
		t.Errorf("again: the domain is %v, %+v", got, again)
	}
	again = connect(map[string]any{"component": "crm", "credential": made.ID, "keys": map[string]any{"domain": "ajax"}})
	if got := domain(again); got != "ajax" {
		t.Errorf("with other keys: the domain is %v", got)
	}
	for _, member := range []string{"name", "workspace"} {
		if err := u.command("oauth.connect", "", map[string]any{"credential": made.ID, member: "x"}, nil); code(t, err) != "body_invalid" {
			t.Errorf("%s for an existing one: %v", member, err)
		}
	}
	if err := u.command("oauth.connect", "", map[string]any{"credential": made.ID, "component": "sheets"}, nil); code(t, err) != "body_invalid" {
		t.Errorf("of another component: %v", err)
	}
	must(t, u.command("component.update", "", map[string]any{"id": "crm", "descriptor": descriptor("{{domain}}.evil.example")}, nil))
	if err := u.command("oauth.connect", "", map[string]any{"credential": made.ID}, nil); code(t, err) != "connect_keys_needed" {
		t.Errorf("to other hosts: %v", err)
	}
	connect(map[string]any{"component": "crm", "credential": made.ID, "keys": map[string]any{"domain": "acme"}})
}

// What cannot be connected is refused with the reason.
func TestConnectRefusals(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	field := map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}
	byItself := map[string]any{"token_uri": provider.URL + "/token", "grant_type": "client_credentials"}
	for id, c := range map[string]struct {
		credentials map[string]any
		want        string
	}{
		"no-field":  {map[string]any{"fields": map[string]any{"k": map[string]any{"viewClass": "TextFieldView"}}, "oauth2": provider.Block()}, "oauth_not_declared"},
		"no-block":  {map[string]any{"fields": field}, "oauth_endpoints_missing"},
		"by-itself": {map[string]any{"fields": field, "oauth2": byItself}, "oauth_connect_needless"},
		"no-client": {map[string]any{"fields": field, "oauth2": provider.Block()}, "oauth_client_missing"},
	} {
		must(t, u.command("component.register", "", map[string]any{"id": id, "descriptor": map[string]any{"title": id, "useOAuthClient": true, "credentials": c.credentials}}, nil))
		if err := u.command("oauth.connect", "", map[string]any{"component": id}, nil); code(t, err) != c.want {
			t.Errorf("%s: %v, want %s", id, err, c.want)
		}
	}
	if err := u.command("oauth.connect", "", map[string]any{"component": "sheets", "keys": map[string]any{"x": strings.Repeat("x", 17<<10)}}, nil); code(t, err) != "keys_too_large" {
		t.Errorf("large keys: %v", err)
	}
	// One tenant's links do not take the room of the others'.
	noon := time.Now()
	svc, _ := u.besides(t, func() time.Time { return noon })
	for i := range 41 {
		if err := serveBy(t.Context(), svc, "oauth.connect", map[string]any{"component": "sheets"}); errors.Is(err, access.ErrRateLimited) != (i == 40) {
			t.Errorf("link %d at the same moment: %v", i+1, err)
		}
	}
	for _, cfg := range []Config{
		{PublicURL: "http://credstream.example.org"},
		{PublicURL: "ftp://x"},
		{PublicURL: "https://u:p@x"},
		{PublicURL: "https://x?y"},
		{PublicURL: "https://x#"},
		{PublicURL: "x"},
		{ConnectReturnTo: "https://app.example.org/"},
		{ConnectReturnTo: "http://app.example.org"},
		{ConnectReturnTo: "*"},
		{ConnectReturnTo: "https://*.example.org/x"},
		{ConnectReturnTo: "app.example.org"},
	} {
		_, err := start(t.Context(), Config{
			Data: t.TempDir(), HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", Durability: "group", LogFormat: "json", LogLevel: "error",
			PublicURL: cfg.PublicURL, ConnectReturnTo: cfg.ConnectReturnTo,
		}, io.Discard)
		if !errors.Is(err, connect.ErrPublicURL) && !errors.Is(err, connect.ErrReturnOrigin) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

// A real OpenID provider.
func TestConnectAtAnOpenIDProvider(t *testing.T) {
	u := bring(t, t.TempDir())
	provider := oauthtest.NewOpenIDProvider(t, u.publicURL+"/oauth/callback/default/sheets")
	must(t, u.command("component.register", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true,
		"credentials": map[string]any{"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}, "oauth2": provider.Block()},
	}}, nil))
	must(t, u.command("oauth_client.define", "", map[string]any{"component": "sheets", "client_id": provider.Client().ID, "client_secret": string(provider.Client().Secret.Reveal())}, nil))
	link := u.start(t, nil)
	b := newBrowser(t)
	back := b.get(provider.Consent(t, b.get(link.URL).next).String())
	made, err := u.complete(link.ID, back.confirm(), "")
	if err != nil || made.ID == "" {
		t.Fatalf("%v after %d %s", err, back.status, back.body)
	}
	must(t, u.command("credential.refresh", "", map[string]any{"id": made.ID}, nil))
}

// The verb connect, with a browser on the same machine and on another one.
func TestConnectOnTheCommandLine(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	env := map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey}
	linkIn := regexp.MustCompile(`http://\S+/oauth/connect/\S+`)
	// verb runs a line and lets a person act on what it prints.
	verb := func(person func(link string, stdin io.Writer), want int, args ...string) (string, string) {
		t.Helper()
		stdin, typed := io.Pipe()
		var out bytes.Buffer
		errs := &bustest.LogBuffer{}
		ended := make(chan int)
		go func() {
			ended <- CommandLine(t.Context(), args, func(k string) string { return env[k] }, stdin, &out, errs)
		}()
		await(t, "the link", func() (bool, error) { return linkIn.MatchString(errs.String()), nil })
		person(linkIn.FindString(errs.String()), typed)
		if got := <-ended; got != want {
			t.Fatalf("%v ends with %d: %s%s", args, got, &out, errs.String())
		}
		_ = typed.Close()
		return out.String(), errs.String()
	}
	comeBack := func(says string) func(string, io.Writer) {
		return func(link string, _ io.Writer) {
			b := newBrowser(t)
			if page := b.get(b.through(link).next); !strings.HasPrefix(page.body, says) {
				t.Errorf("the browser is told %d %q", page.status, page.body)
			}
		}
	}
	var made done
	out, _ := verb(comeBack("Connected."), 0, "connect", "--component", "sheets", "--name", "Mine", "--user", "u1", "--json")
	must(t, json.Unmarshal([]byte(out), &made))
	out, notes := verb(comeBack("Connected."), 0, "connect", "--credential", made.ID)
	if want := "Connected credential " + made.ID + " again, version 2, unverified.\n"; out != want || !strings.Contains(notes, "It works once, until ") {
		t.Errorf("printed %q, want %q", out, want)
	}
	out, _ = verb(func(link string, stdin io.Writer) {
		_, _ = io.WriteString(stdin, "\nAAAA-AAAA\n") // too early
		_, _ = io.WriteString(stdin, newBrowser(t).through(link).confirm()+"\n")
	}, 0, "connect", "--component", "sheets", "--headless", "--no-browser")
	if !strings.HasPrefix(out, "Created credential ") || !strings.HasSuffix(out, ", version 1, unverified.\n") {
		t.Errorf("printed %q", out)
	}
	provider.Deny(true)
	if _, notes := verb(comeBack("Not connected: You denied the access"), 6, "connect", "--component", "sheets"); !strings.Contains(notes, "(connection_denied)") {
		t.Errorf("denied: %s", notes)
	}
	provider.Deny(false)
	// The browser never comes back: it was another one at the callback.
	if _, notes := verb(func(link string, _ io.Writer) { newBrowser(t).get(newBrowser(t).toCallback(link)) }, 6, "connect", "--component", "sheets"); !strings.Contains(notes, "(connection_other_browser)") {
		t.Errorf("another browser: %s", notes)
	}
	for _, args := range [][]string{{"connect"}, {"connect", "--component", "sheets", "--open", "--headless"}, {"connect", "--component", "sheets", "x"}} {
		if got := CommandLine(t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(""), io.Discard, io.Discard); got != 2 {
			t.Errorf("%v ends with %d", args, got)
		}
	}
	var out2 bytes.Buffer
	if got := CommandLine(t.Context(), []string{"connect", "--component", "sheets", "--headless"}, func(k string) string { return env[k] }, strings.NewReader(""), io.Discard, &out2); got != 2 || !strings.Contains(out2.String(), "(confirm_missing)") {
		t.Errorf("without input it ends with %d: %s", got, &out2)
	}
}
