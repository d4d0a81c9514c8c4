package app

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"

	"github.com/credstream/credstream/cmd/credstream/demo"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/stage"
)

var webShots = flag.String("webshots", "", "folder for screenshots of the page")

// browser starts Chromium, or skips the test where there is none.
func chromium(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("no Chromium here: apt-get install chromium")
	}
	ctx, stop := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WSURLReadTimeout(2*time.Minute), chromedp.Flag("disable-dev-shm-usage", true))...)
	t.Cleanup(stop)
	ctx, stop = chromedp.NewContext(ctx)
	t.Cleanup(stop)
	must(t, chromedp.Do(ctx))
	return ctx
}

// tab is a window of a person: it shares no cookie with others.
type tab struct {
	context.Context
	t    *testing.T
	base string
}

func person(shared context.Context, t *testing.T, base string) tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(shared, chromedp.WithNewBrowserContext())
	t.Cleanup(stop)
	must(t, chromedp.Do(ctx)) // opens it, for as long as the test
	return tab{ctx, t, base}
}

// do carries out actions. The bound is for a test that would hang, not for the page.
func (p tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.Context, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.fail(err)
	}
}

const patience = 2 * time.Minute

func (p tab) fail(err error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.Context, 10*time.Second)
	defer cancel()
	text, _ := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n" + (document.body?.innerText ?? "")`))
	p.t.Fatalf("%v\n%s", err, text)
}

func (p tab) open(path string) { p.t.Helper(); p.do(chromedp.Navigate(p.base + path)) }

// until waits for a condition of the page, which may be on its way to another one. The policy
// of the page lets no code be made of text, as polling within it would.
func (p tab) until(js string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.Context, patience)
	defer cancel()
	for {
		if is, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("Boolean("+js+")")); err == nil && is {
			return
		}
		select {
		case <-ctx.Done():
			p.fail(fmt.Errorf("never: %s", js))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (p tab) sees(text string) {
	p.t.Helper()
	p.until(fmt.Sprintf("document.body?.innerText.includes(%q)", text))
}

func (p tab) eval(js string) string {
	p.t.Helper()
	text, err := chromedp.Run(p.Context, chromedp.Evaluate[string]("String("+js+")"))
	if err != nil {
		p.fail(err)
	}
	return text
}

// click clicks when the page is complete: its script hears it.
func (p tab) click(selector string) {
	p.t.Helper()
	p.until(fmt.Sprintf("document.readyState === 'complete' && document.querySelector(%q)", selector))
	p.do(chromedp.Click(chromedp.CSS(selector)))
}

func (p tab) types(selector, text string) {
	p.t.Helper()
	p.do(chromedp.WaitVisible(chromedp.CSS(selector)))
	p.eval(fmt.Sprintf("document.querySelector(%q).value = ''", selector))
	p.do(chromedp.SendKeys(chromedp.CSS(selector), text))
}

// screen sets the size of the window.
func (p tab) screen(width, height int64, dark bool) {
	p.t.Helper()
	scheme := map[bool]string{true: "dark", false: "light"}[dark]
	_, err := chromedp.Call(p.Context, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	must(p.t, err)
	p.do(chromedp.EmulateViewport(width, height))
}

func (p tab) signIn(key string) {
	p.t.Helper()
	p.open("/")
	p.types("#key", key)
	p.click("form button.main")
	p.sees("Sign out")
}

// shot keeps a screenshot to be looked at.
func (p tab) shot(name string, width, height int64, dark bool) {
	if *webShots == "" {
		return
	}
	p.t.Helper()
	p.screen(width, height, dark)
	b, err := chromedp.Run(p.Context, chromedp.CaptureScreenshot())
	must(p.t, err)
	must(p.t, os.MkdirAll(*webShots, 0o700))
	must(p.t, os.WriteFile(filepath.Join(*webShots, name+".png"), b, 0o600))
}

// accessible checks the open page with axe-core.
func (p tab) accessible(axe string) {
	p.t.Helper()
	if _, err := chromedp.Run(p.Context, chromedp.Evaluate[bool](axe+";true")); err != nil {
		p.fail(err)
	}
	p.eval(`axe.run().then(r => { window.axed = r.violations.map(v => v.id + ": " + v.help + "\n" + v.nodes.map(n => "  " + n.html + " " + n.failureSummary).join("\n")).join("\n") || "none" })`)
	p.until("window.axed")
	if found := p.eval("window.axed"); found != "none" {
		p.t.Errorf("%s: %s", p.eval("location.href"), found)
	}
}

// visitor is a signed-in browser without a screen.
type visitor struct {
	*http.Client
	t    *testing.T
	base string
}

func visit(t *testing.T, base, key string) visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	must(t, err)
	v := visitor{&http.Client{Jar: jar}, t, base}
	if status, body, _ := v.send("POST", "/ui/sign-in", url.Values{"key": {key}}, nil); status != http.StatusOK {
		t.Fatalf("signing in answered %d: %s", status, body)
	}
	return v
}

func (v visitor) send(method, path string, form url.Values, header http.Header) (int, string, http.Header) {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), method, v.base+path, strings.NewReader(form.Encode()))
	must(v.t, err)
	if header != nil {
		req.Header = header
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	answer, err := v.Do(req)
	must(v.t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	must(v.t, err)
	return answer.StatusCode, string(body), answer.Header
}

func (v visitor) post(path string, form url.Values) (int, string) {
	v.t.Helper()
	status, body, _ := v.send("POST", path, form, nil)
	return status, body
}

// issueKey issues a key, and returns its id too.
func (a api) issueKey(t testing.TB, in map[string]any) (id, key string) {
	t.Helper()
	var issued struct{ ID, Key string }
	must(t, a.command("api_key.issue", "", in, &issued))
	return issued.ID, issued.Key
}

// caughtUp returns once the views show everything.
func (u *up) caughtUp(t testing.TB) {
	t.Helper()
	must(t, u.proj.Wait(t.Context(), logEnd(t, u.program)))
}

// The rules of HTTP that keep the page safe, without a browser.
func TestPage(t *testing.T) {
	u := bring(t, t.TempDir())
	pets := newPetstore(t, "right-canary-1")
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	var made struct{ ID string }
	must(t, u.command("credential.create", "", map[string]any{"component": "petstore", "name": "Pets", "keys": map[string]string{"apiKey": "right-canary-1"}}, &made))
	_, operatorKey := u.issueKey(t, map[string]any{"role": "OPERATOR"})
	_, revealerKey := u.issueKey(t, map[string]any{"role": "OPERATOR", "permissions": []string{"credentials.reveal"}})
	u.caughtUp(t)
	admin, operator, revealer := visit(t, u.base, adminKey), visit(t, u.base, operatorKey), visit(t, u.base, revealerKey)
	at := "/ui/t/default/credentials/" + made.ID

	t.Run("headers", func(t *testing.T) {
		_, _, h := admin.send("GET", at, nil, nil)
		for name, want := range map[string]string{
			"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY", "Cache-Control": "no-store",
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin",
		} {
			if !strings.Contains(h.Get(name), want) {
				t.Errorf("%s is %q", name, h.Get(name))
			}
		}
		if csp := h.Get("Content-Security-Policy"); strings.Contains(csp, "unsafe") || !strings.Contains(csp, "default-src 'none'") {
			t.Errorf("the policy is %q", csp)
		}
	})
	t.Run("cookie", func(t *testing.T) {
		plain := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		_, _, h := visitor{plain, t, u.base}.send("POST", "/ui/sign-in", url.Values{"key": {adminKey}, "next": {"//evil.example"}}, nil)
		c := h.Get("Set-Cookie")
		if !strings.Contains(c, "HttpOnly") || !strings.Contains(c, "SameSite=Strict") || strings.Contains(c, adminKey) || h.Get("Location") != "/ui/" {
			t.Errorf("the cookie is %q, the next page %q", c, h.Get("Location"))
		}
		value, _, _ := strings.Cut(strings.TrimPrefix(c, "credstream-session="), ";")
		forged := []byte(value)
		forged[len(forged)-2] ^= 1
		for _, bad := range []string{"", "default." + strings.Repeat("A", 40), "nobody." + strings.TrimPrefix(value, "default."), string(forged)} {
			status, body, _ := visitor{plain, t, u.base}.send("GET", at, nil, http.Header{"Cookie": {"credstream-session=" + bad}})
			if status != http.StatusSeeOther || strings.Contains(body, made.ID) {
				t.Errorf("the session %.20q was taken: %d", bad, status)
			}
		}
	})
	t.Run("another origin", func(t *testing.T) {
		for _, h := range []http.Header{{"Sec-Fetch-Site": {"cross-site"}}, {"Sec-Fetch-Site": {"same-site"}}, {"Origin": {"http://evil.example"}}} {
			for _, path := range []string{at, "/ui/sign-in", "/ui/sign-out"} {
				if status, _, _ := admin.send("POST", path, url.Values{"do": {"deleted"}, "key": {adminKey}}, h.Clone()); status != http.StatusForbidden {
					t.Errorf("%s with %v answered %d", path, h, status)
				}
			}
		}
	})
	t.Run("permissions", func(t *testing.T) {
		_, body, _ := operator.send("GET", at, nil, nil)
		for _, word := range []string{"Verify now", "Delete", "Save name", "Reveal", "Replace keys"} {
			if strings.Contains(body, word) {
				t.Errorf("an operator is offered %q", word)
			}
		}
		for _, do := range []string{"renamed", "verified", "deleted", "reveal", "reverted", "revoked", "refreshed", "connect"} {
			if status, _ := operator.post(at, url.Values{"do": {do}, "name": {"Mine"}, "was": {"Pets"}, "to": {"1"}}); status != http.StatusForbidden {
				t.Errorf("%s by an operator answered %d", do, status)
			}
		}
		for _, page := range []string{"credentials", "status"} { // the latter asks nothing of the tenant
			if status, _, _ := operator.send("GET", "/ui/t/nobody/"+page, nil, nil); status != http.StatusNotFound {
				t.Errorf("the page %s of another tenant: %d", page, status)
			}
		}
	})
	t.Run("secrets", func(t *testing.T) {
		form := url.Values{"name": {"More pets"}, "key.apiKey": {"typed-canary-3"}}
		status, body := admin.post("/ui/t/default/new-credential?component=petstore", form)
		if status != http.StatusUnprocessableEntity || !strings.Contains(body, "The API key was not accepted.") || !strings.Contains(body, `value="More pets"`) || strings.Contains(body, "canary") {
			t.Errorf("a refused form answered %d: %s", status, body)
		}
		status, body = admin.post(at, url.Values{"do": {"reveal"}, "field": {"apiKey"}})
		if status != http.StatusForbidden || strings.Contains(body, "canary") {
			t.Errorf("revealing without the permission answered %d", status)
		}
		status, body, h := revealer.send("POST", at, url.Values{"do": {"reveal"}, "field": {"apiKey"}}, nil)
		if status != http.StatusOK || !strings.Contains(body, "right-canary-1") || !strings.HasPrefix(h.Get("Refresh"), "30; url=") {
			t.Errorf("revealing answered %d, refresh %q", status, h.Get("Refresh"))
		}
		if _, body, _ = revealer.send("GET", at, nil, nil); strings.Contains(body, "canary") {
			t.Error("the page after revealing holds the secret")
		}
		if _, body, _ = admin.send("GET", at, nil, nil); !strings.Contains(body, "Revealed") {
			t.Error("the history lacks that the secret was revealed")
		}
	})
	t.Run("renamed meanwhile", func(t *testing.T) {
		if status, body := admin.post(at, url.Values{"do": {"renamed"}, "name": {"Mine"}, "was": {"Old name"}}); status != http.StatusConflict || !strings.Contains(body, "Somebody else renamed") {
			t.Errorf("answered %d", status)
		}
	})
	t.Run("a component with an error", func(t *testing.T) {
		for text, place := range map[string]string{"{\n  \"title\": oops\n}": "line 2, column 12", "{\n  \"title\": \"T\",\n  \"hosts\": 7}": "line 3, column 3"} {
			status, body := admin.post("/ui/t/default/new-component", url.Values{"descriptor": {text}})
			if status != http.StatusBadRequest || !strings.Contains(body, place) {
				t.Errorf("answered %d without %s: %s", status, place, body)
			}
		}
	})
	t.Run("sign out", func(t *testing.T) {
		if _, body := operator.post("/ui/sign-out", nil); !strings.Contains(body, "<h1>Sign in</h1>") {
			t.Error("signing out does not lead to the form")
		}
		if _, body, _ := operator.send("GET", at, nil, nil); strings.Contains(body, made.ID+"<") {
			t.Error("the session goes on after signing out")
		}
	})
	if logs := u.logs.String(); strings.Contains(logs, "canary") || strings.Contains(logs, adminKey) {
		t.Error("a secret stands in the log")
	}
}

// pagesOf are the paths of all pages of a tenant, with a credential of a component where they
// show one.
func pagesOf(component, id string) []string {
	return []string{
		"credentials", "credentials?component=" + component, "new-credential?component=" + component, "credentials/" + id, "credentials/" + id + "/keys",
		"credentials/" + id + "/delete", "components", "components/" + component, "components/" + component + "/delete", "new-component", "attention", "oauth-clients", "flows", "keys", "webhooks", "webhooks/on-call", "webhooks/on-call/delete",
		"dead-letters", "audit", "status",
	}
}

// A person signs in at an independent OpenID Connect issuer (the npm package oidc-provider),
// with the rights that the issuer's token names, until that token ends.
func TestSignInAtAnIssuer(t *testing.T) {
	dir := stage.NPM(t, "testdata/js")
	shared := chromium(t)
	var service *url.URL // known when both have started: each of the two must know the other's address
	public := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(service)
		r.Out.Host = r.In.Host
	}})
	t.Cleanup(public.Close)
	arguments, err := json.Marshal(map[string]any{
		"clients": []any{map[string]any{"client_id": "page", "client_secret": "client-canary", "redirect_uris": []string{public.URL + "/ui/sign-in/callback"}}},
		"claims":  map[string]any{"tenant": "default", "permissions": []string{"OPERATOR"}},
	})
	must(t, err)
	issuer := exec.CommandContext(t.Context(), "node", "issuer.mjs", string(arguments))
	issuer.Dir = dir
	lines, err := issuer.StdoutPipe()
	must(t, err)
	must(t, issuer.Start())
	t.Cleanup(func() { _ = issuer.Process.Kill(); _ = issuer.Wait() })
	address, err := bufio.NewReader(lines).ReadString('\n')
	must(t, err)
	address = strings.TrimSpace(address)
	u := bring(t, t.TempDir(), func(c *Config) {
		c.OIDCIssuer, c.OIDCAudience, c.OIDCClientID, c.OIDCScopes = address, "page", "page", "openid"
		c.OIDCTenantClaim, c.OIDCPermissionsClaim, c.oidcClientSecret = "tenant", "permissions", seal.NewSecret([]byte("client-canary"))
		c.PublicURL = public.URL
	})
	service, err = url.Parse(u.base)
	must(t, err)

	p := person(shared, t, public.URL)
	p.open("/ui/t/default/status")
	p.click("a[href^='/ui/sign-in/issuer']")
	p.types("input[name=login]", "jo")
	p.types("input[name=password]", "any")
	p.click("button[type=submit]")
	p.sees("Authorize")
	p.click("button[type=submit]")
	p.sees("Sign out")
	if at := p.eval("location.pathname"); at != "/ui/t/default/status" {
		t.Errorf("the browser is at %s", at)
	}
	p.sees("jo")
	if html := p.eval("document.cookie + document.documentElement.outerHTML"); strings.Contains(html, "eyJ") || strings.Contains(html, "canary") {
		t.Error("the page can read the token or a secret")
	}
	p.open("/ui/t/default/keys")
	p.sees("permission") // an operator may not list keys
	p.click(".who button")
	p.sees("Sign in at ")

	v := visit(t, public.URL, adminKey)
	v.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	for _, c := range []struct{ name, query, says string }{
		{"nobody began", "?code=c&state=s", "was started in another browser"},
		{"no state", "", "was started in another browser"},
		{"refused", "?error=access_denied&state=", "was started in another browser"},
	} {
		status, body, _ := v.send(http.MethodGet, "/ui/sign-in/callback"+c.query, nil, nil)
		if status != http.StatusUnauthorized || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %s", c.name, status, body)
		}
	}
	begun, _, header := v.send(http.MethodGet, "/ui/sign-in/issuer?next=//evil.example", nil, nil)
	to, err := url.Parse(header.Get("Location"))
	must(t, err)
	if q := to.Query(); begun != http.StatusSeeOther || q.Get("code_challenge_method") != "S256" || q.Get("nonce") == "" || q.Get("redirect_uri") != public.URL+"/ui/sign-in/callback" {
		t.Errorf("%d %s", begun, to)
	}
	for query, says := range map[string]string{
		"?error=access_denied&state=":                      "refused the sign-in: access_denied.",
		"?error=%3Cscript%3E&state=":                       "refused the sign-in.",
		"?code=wrong&state=":                               "refused the sign-in: invalid_grant.",
		"?code=wrong&iss=http%3A%2F%2Fevil.example&state=": "came from another issuer",
	} {
		_, _, header := v.send(http.MethodGet, "/ui/sign-in/issuer", nil, nil)
		to, err := url.Parse(header.Get("Location"))
		must(t, err)
		status, body, _ := v.send(http.MethodGet, "/ui/sign-in/callback"+query+to.Query().Get("state"), nil, nil)
		if status != http.StatusUnauthorized || !strings.Contains(body, says) {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
	if logs := u.logs.String(); strings.Contains(logs, "canary") || strings.Contains(logs, "eyJ") {
		t.Error("a secret or a token is in the log")
	}
}

// What the page does, tried in a browser on the whole program.
func TestPageInABrowser(t *testing.T) {
	shared := chromium(t)
	u := bring(t, t.TempDir())
	pets := newPetstore(t, "right-canary-1")
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	u.caughtUp(t)

	t.Run("sign in and create", func(t *testing.T) {
		p := person(shared, t, u.base)
		p.open("/")
		p.types("#key", "cs_"+strings.Repeat("A", 32))
		p.click("form button.main")
		p.sees("The API key is unknown")
		p.shot("sign-in", 1200, 800, false)
		p.signIn(adminKey)
		p.click("a.button.main") // 1: Add a credential
		p.sees("Which component is it for?")
		p.click("a.tile") // 2: the component
		p.types("#name", "Pets of Acme")
		p.types("#f-apiKey", "wrong-canary-2")
		p.click("form.form button.main") // 3: Check and save
		p.sees("The API key was not accepted.")
		if name, key := p.eval("document.querySelector('#name').value"), p.eval("document.querySelector('#f-apiKey').value"); name != "Pets of Acme" || key != "wrong-canary-2" {
			t.Errorf("what was typed is gone: %q, %q", name, key)
		}
		if at := p.eval("document.activeElement.id"); at != "refusal" {
			t.Errorf("the focus is on %q, not on the refusal", at)
		}
		p.shot("refused", 1200, 900, false)
		p.types("#f-apiKey", "right-canary-1")
		p.click("form.form button.main")
		p.sees("Credential created.")
		p.sees("verified")
		if html := p.eval("document.documentElement.outerHTML"); strings.Contains(html, "canary") {
			t.Error("the page holds a secret")
		}
		p.until("!location.href.includes('did=')")
		if at := p.eval("location.href"); strings.Contains(at, "canary") {
			t.Errorf("the address is %s", at)
		}
		p.click(".who button")
		p.sees("Sign in")
		p.open("/ui/t/default/credentials")
		p.sees("API key")
	})

	t.Run("two people and live changes", func(t *testing.T) {
		var made struct{ ID string }
		must(t, u.command("credential.create", "", map[string]any{"component": "petstore", "name": "Shared", "keys": map[string]string{"apiKey": "right-canary-1"}}, &made))
		u.caughtUp(t)
		p := person(shared, t, u.base)
		p.signIn(adminKey)
		p.open("/ui/t/default/credentials/" + made.ID + "/keys")
		p.sees("Enter every value again")
		must(t, u.command("credential.replace-keys", "", map[string]any{"id": made.ID, "keys": map[string]string{"apiKey": "right-canary-1"}}, nil))
		p.types("#f-apiKey", "right-canary-1")
		p.click("form.form button.main")
		p.sees("credential_version_stale")

		p.open("/ui/t/default/credentials?component=petstore")
		p.until("document.body.dataset.following !== undefined")
		p.types("#q", "half a word")
		must(t, u.command("credential.create", "", map[string]any{"component": "petstore", "name": "Appears by itself", "keys": map[string]string{"apiKey": "right-canary-1"}}, nil))
		p.sees("Appears by itself")
		if q, at := p.eval("document.querySelector('#q').value"), p.eval("document.activeElement.id"); q != "half a word" || at != "q" {
			t.Errorf("the search holds %q and the focus is on %q", q, at)
		}
		p.shot("list", 1200, 800, false)
	})

	t.Run("delete in use", func(t *testing.T) {
		var made struct{ ID string }
		must(t, u.command("credential.create", "", map[string]any{"component": "petstore", "name": "Needed", "keys": map[string]string{"apiKey": "right-canary-1"}}, &made))
		e := newEngine(t, u.connect(t, adminKey))
		must(t, e.tell("started", "orders", 1, flowStep{"fetch", "petstore", made.ID}))
		await(t, "the flow uses the credential", func() (bool, error) {
			flows, err := u.whereUsed("credential=" + made.ID)
			return len(flows) == 1 && flows[0].Active, err
		})
		p := person(shared, t, u.base)
		p.signIn(adminKey)
		p.open("/ui/t/default/credentials/" + made.ID)
		p.shot("credential", 1200, 1000, false)
		p.shot("credential-dark", 1200, 1000, true)
		p.click("a[data-dialog]")
		p.until("document.querySelector('dialog[open]')?.innerText.includes('The flow orders')")
		if n := p.eval("document.querySelectorAll('dialog button.danger').length"); n != "0" {
			t.Error("the dialog offers what is refused")
		}
		p.shot("delete", 1200, 800, false)
		p.click("dialog [data-close]")
		p.until("!document.querySelector('dialog') && document.activeElement.matches('a[data-dialog]')")
		must(t, e.tell("stopped", "orders", 2, flowStep{"fetch", "petstore", made.ID}))
		p.until("!document.querySelector('#live-flows').innerText.includes('active')")
		p.click("a[data-dialog]")
		p.until("document.querySelector('dialog[open] button.danger')")
		p.click("dialog button.danger")
		p.sees("Deleted.")
	})

	t.Run("connect an account", func(t *testing.T) {
		provider := httptest.NewServer(demo.Provider(10 * time.Minute))
		t.Cleanup(provider.Close)
		must(t, u.command("component.register", "", map[string]any{"id": "calendar", "descriptor": map[string]any{
			"title": "Calendar", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
			"credentials": map[string]any{
				"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView", "label": "Authentication", "required": true}},
				"oauth2": map[string]any{"auth_uri": provider.URL + "/authorize", "token_uri": provider.URL + "/token", "scopes": []string{"calendar"}},
			},
		}}, nil))
		u.caughtUp(t)
		p := person(shared, t, u.base)
		p.signIn(adminKey)
		p.open("/ui/t/default/new-credential?component=calendar")
		p.sees("needs an OAuth client")
		p.click(".notice a.button")
		p.sees("/oauth/callback/default/calendar")
		p.types("#client_id", demo.ClientID)
		p.types("#client_secret", demo.ClientSecret)
		p.click("form.form button.main")
		p.sees("OAuth client saved.")
		p.open("/ui/t/default/new-credential?component=calendar")
		p.types("#name", "My calendar")
		p.click("form.form button.main")
		p.sees("Open the provider")
		opened := chromedp.WaitNewTarget(p, func(i *target.Info) bool { return i.Type == "page" })
		p.click("a[target]")
		ctx, stop := chromedp.NewContext(p, chromedp.WithTargetID(<-opened))
		defer stop()
		must(t, chromedp.Do(ctx))
		w := tab{ctx, t, u.base}
		w.click("button[value=allow]")
		w.sees("The account is connected.")
		p.until("location.pathname.startsWith('/ui/t/default/credentials/')")
		p.sees("My calendar")
		p.sees("Access token expires")
		p.shot("connected", 1200, 900, true)
	})

	t.Run("a session ends with its key", func(t *testing.T) {
		id, key := u.issueKey(t, map[string]any{"role": "OPERATOR", "name": "Watcher"})
		p := person(shared, t, u.base)
		p.signIn(key)
		p.until("document.body.dataset.following !== undefined")
		if n := p.eval("[...document.querySelectorAll('a')].filter(a => a.textContent.includes('Add a')).length"); n != "0" {
			t.Error("the page offers what an operator may not do")
		}
		must(t, u.command("api_key.revoke", "", map[string]any{"id": id}, nil))
		p.sees("Your session has ended")
	})

	t.Run("webhooks", func(t *testing.T) {
		status := http.StatusNoContent
		var mu sync.Mutex
		receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			w.WriteHeader(status)
		}))
		t.Cleanup(receiver.Close)
		p := person(shared, t, u.base)
		p.signIn(adminKey)
		p.open("/ui/t/default/webhooks")
		p.sees("No webhook yet")
		p.types("#id", "on-call")
		p.types("#url", "ftp://example.org")
		p.types("#description", `"><script>window.pwned=1</script>`)
		p.types("#types", "credential.renamed\nwebhook.*")
		p.click("form.form button.main")
		p.sees("must be absolute")
		if kept := p.eval("document.querySelector('#types').value"); !strings.Contains(kept, "credential.renamed") {
			t.Errorf("what was typed is gone: %q", kept)
		}
		p.types("#url", receiver.URL)
		p.click("form.form button.main")
		p.sees("The feed has no event type")
		p.types("#types", "credential.renamed")
		p.click("form.form button.main")
		p.sees("it is not shown again")
		secret := p.eval("document.querySelector('#new-secret').textContent")
		if !strings.HasPrefix(secret, "whsec_") {
			t.Errorf("the secret is %q", secret)
		}
		p.open("/ui/t/default/webhooks/on-call")
		p.sees("Nothing sent yet")
		p.click("button[value=tested]")
		p.sees("accepted the event with status 204")
		mu.Lock()
		status = http.StatusInternalServerError
		mu.Unlock()
		p.click("button[value=tested]")
		p.sees("answered with status 500")
		mu.Lock()
		status = http.StatusNoContent
		mu.Unlock()
		var made struct{ ID string }
		must(t, u.command("credential.create", "", map[string]any{"component": "petstore", "name": "Hooked", "keys": map[string]string{"apiKey": "right-canary-1"}}, &made))
		must(t, u.command("credential.rename", "", map[string]any{"id": made.ID, "name": "Hooked again"}, nil))
		for deadline := time.Now().Add(patience); !strings.Contains(p.eval("document.body.innerText"), "credential.renamed\ncredential."+made.ID); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the delivery is not listed")
			}
			p.open("/ui/t/default/webhooks/on-call")
		}
		p.click("button[value=redelivered]")
		p.sees("accepted the event with status 204")
		p.eval("window.confirm = () => true")
		p.click("button[value=rotated]")
		p.sees("There is a new signing secret")
		if next := p.eval("document.querySelector('#new-secret').textContent"); next == secret || !strings.HasPrefix(next, "whsec_") {
			t.Errorf("the new secret is %q", next)
		}
		p.open("/ui/t/default/webhooks/on-call")
		p.click("button[value=disabled]")
		p.sees("The webhook is disabled.")
		p.types("#description", "The people on call")
		p.click("form.form button[value=changed]")
		p.sees("Webhook saved.")
		if text := p.eval("document.body.innerText"); strings.Contains(text, "whsec_") || p.eval("window.pwned") != "undefined" {
			t.Error("the page has a secret, or ran a script")
		}
		must(t, u.command("webhook.define", "", map[string]any{"id": "gone-soon", "url": receiver.URL}, nil))
		u.caughtUp(t)
		p.open("/ui/t/default/webhooks/gone-soon")
		p.click("a[data-dialog]")
		p.until("document.querySelector('dialog[open] button.danger')")
		p.click("dialog button.danger")
		p.sees("Deleted.")
		_, operatorKey := u.issueKey(t, map[string]any{"role": "OPERATOR"})
		u.caughtUp(t)
		if status, _ := visit(t, u.base, operatorKey).post("/ui/t/default/webhooks/on-call", url.Values{"do": {"deleted"}}); status != http.StatusForbidden {
			t.Errorf("an operator deletes a webhook: %d", status)
		}
	})

	t.Run("expiring soon", func(t *testing.T) {
		must(t, u.command("credential.create", "", map[string]any{
			"component": "petstore", "name": `Short-lived "><img src=x onerror=window.pwned=1>`, "keys": map[string]string{"apiKey": "right-canary-1"},
			"expires_at": time.Now().Add(50 * time.Hour).UTC().Format(time.RFC3339),
		}, nil))
		u.issueKey(t, map[string]any{"role": "OPERATOR", "name": "Nightly job", "expires": "100h"})
		u.caughtUp(t)
		p := person(shared, t, u.base)
		p.signIn(adminKey)
		p.open("/ui/t/default/attention")
		p.sees("Expiring soon")
		p.sees("Short-lived")
		p.sees("API key Nightly job")
		p.sees("in 2 days")
		if p.eval("window.pwned") != "undefined" {
			t.Error("the page ran a script")
		}
	})

	t.Run("a component is compared, its variables are set, a role is chosen", func(t *testing.T) {
		d := map[string]any{
			"title": "Pizzas", "hosts": []string{"api.example.org"}, "envVars": map[string]any{"PIZZA_KEY": map[string]any{"required": true}},
			"credentials": map[string]any{"fields": map[string]any{"apiKey": map[string]any{"viewClass": "PasswordFieldView"}}},
		}
		must(t, u.command("component.register", "", map[string]any{"id": "pizzas", "descriptor": d}, nil))
		must(t, u.command("role.define", "", map[string]any{"name": "BILLING", "permissions": []string{"credentials.get"}}, nil))
		u.caughtUp(t)
		p := person(shared, t, u.base)
		p.signIn(adminKey)
		p.open("/ui/t/default/components/pizzas")
		p.types("#env-PIZZA_KEY", "env-canary-5")
		p.click("button[value='env-set']")
		p.sees("The values of the variables were saved.")
		p.eval(`document.querySelector('#descriptor').value = '{"title":"Pizzas","hosts":["other.example.org"],"credentials":{"fields":{"token":{"viewClass":"PasswordFieldView","required":true}}}}'`)
		p.click("button[value=compared]")
		for _, change := range []string{"The field token is added, and required", "The field apiKey is removed", "may also be sent to other.example.org", "no longer be sent to api.example.org"} {
			p.sees(change)
		}
		var c struct{ Revision int }
		must(t, u.query("component.get", "id=pizzas", &c))
		if c.Revision != 1 {
			t.Errorf("comparing made revision %d", c.Revision)
		}
		p.click("button[value=updated]")
		p.sees("Component updated.")
		p.open("/ui/t/default/keys")
		p.eval("document.querySelector('#role').value = 'BILLING'")
		p.click("button[value=issued]")
		p.sees("it is not shown again")
		p.sees("BILLING")
	})

	t.Run("accessible", func(t *testing.T) {
		axe, err := os.ReadFile(filepath.Join(stage.NPM(t, "testdata/js"), "node_modules", "axe-core", "axe.min.js"))
		must(t, err)
		var made struct{ ID string }
		must(t, u.command("credential.create", "", map[string]any{"component": "petstore", "name": "Read aloud", "keys": map[string]string{"apiKey": "right-canary-1"}}, &made))
		u.caughtUp(t)
		p := person(shared, t, u.base)
		p.open("/ui/sign-in")
		p.accessible(string(axe))
		p.signIn(adminKey)
		for i, path := range pagesOf("petstore", made.ID) {
			p.screen(1200, 900, i%2 == 0) // pages share the colors
			p.open("/ui/t/default/" + path)
			p.sees("Sign out")
			p.accessible(string(axe))
		}
		p.open("/ui/t/default/credentials/" + made.ID)
		p.click("a[data-dialog]")
		p.until("document.querySelector('dialog[open] button.danger')")
		p.accessible(string(axe))
	})

	if *webShots != "" {
		t.Run("screenshot for the documentation", func(t *testing.T) {
			for i, title := range []string{"Acme CRM", "Invoices", "Warehouse", "Mail", "Support desk", "Data lake", "Payments"} {
				id := fmt.Sprintf("shown%d", i)
				d := verified(t, pets)
				d["title"] = title
				must(t, u.command("component.register", "", map[string]any{"id": id, "descriptor": d}, nil))
				for n := range i * 3 % 7 {
					must(t, u.command("credential.create", "", map[string]any{
						"component": id, "name": fmt.Sprintf("%s, team %d", title, n+1), "keys": map[string]string{"apiKey": "right-canary-1"},
					}, nil))
				}
			}
			var failing struct{ ID string }
			must(t, u.command("credential.create", "", map[string]any{"component": "shown3", "name": "Newsletter", "keys": map[string]string{"apiKey": "right-canary-1"}}, &failing))
			pets.accept("another")
			_ = u.command("credential.verify", "", map[string]any{"id": failing.ID}, nil)
			pets.accept("right-canary-1")
			u.caughtUp(t)
			p := person(shared, t, u.base)
			p.signIn(adminKey)
			p.shot("web", 1100, 560, false)
			p.open("/ui/t/default/credentials?component=shown3")
			p.shot("component", 1100, 700, false)
			p.open("/ui/t/default/attention")
			p.shot("attention", 1100, 700, false)
		})
	}

	t.Run("hostile names", func(t *testing.T) {
		fields := map[string]any{}
		for i := range 100 {
			fields[fmt.Sprintf("field%d", i)] = map[string]any{
				"label": `<script>window.pwned=1</script>"'><img src=x onerror=window.pwned=1>`, "viewClass": "TextFieldView", "note": strings.Repeat("w", 200),
				"placeholder": `" autofocus onfocus="window.pwned=1`,
			}
		}
		title := "<script>window.pwned=1</script> \u202egnp.elif"
		must(t, u.command("component.register", "", map[string]any{"id": "hostile", "descriptor": map[string]any{
			"title": title, "icon": `data:image/svg+xml,<svg xmlns="http://www.w3.org/2000/svg" onload="window.pwned=1"/>`,
			"credentials": map[string]any{"fields": fields},
		}}, nil))
		var made struct{ ID string }
		must(t, u.command("credential.create", "", map[string]any{
			"component": "hostile", "name": `"><svg onload=window.pwned=1>` + strings.Repeat("W", 160), "keys": map[string]string{"field1": "v"},
		}, &made))
		u.caughtUp(t)
		p := person(shared, t, u.base)
		p.screen(360, 740, false)
		p.signIn(adminKey)
		for _, path := range pagesOf("hostile", made.ID) {
			p.open("/ui/t/default/" + path)
			p.sees("Sign out")
			if pwned := p.eval("window.pwned"); pwned != "undefined" {
				t.Errorf("%s ran a script of a descriptor", path)
			}
			if wide := p.eval("document.documentElement.scrollWidth > innerWidth"); wide != "false" {
				t.Errorf("%s is wider than a screen of 360", path)
			}
			p.shot("narrow-"+strings.NewReplacer("/", "-", "?", "-", "=", "-", made.ID, "id").Replace(path), 360, 740, false)
		}
		p.open("/ui/t/default/credentials")
		p.shot("tiles", 1200, 800, false)
		p.shot("tiles-dark", 1200, 800, true)
		for _, path := range []string{"attention", "keys", "audit", "oauth-clients", "components", "dead-letters", "status", "new-component"} {
			p.open("/ui/t/default/" + path)
			p.shot("wide-"+strings.ReplaceAll(path, "/", "-"), 1200, 900, path == "keys")
		}
	})

	if logs := u.logs.String(); strings.Contains(logs, "canary") || strings.Contains(logs, demo.ClientSecret) {
		t.Error("a secret stands in the log")
	}
}
