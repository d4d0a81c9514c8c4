package web_test

import (
	"context"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/credstream/credstream/api/web"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
)

// administrator signs everybody in who has a session cookie.
type administrator struct {
	web.Access
	who service.Principal
}

func (a administrator) OpenSession(context.Context, string, netip.Addr) (service.Principal, error) {
	return a.who, nil
}

func (administrator) Require(context.Context, service.Call, string, permission.Permission) error {
	return nil
}

// visit requests a page, or sends a form if there is one, as an administrator of the real service.
func visit(t *testing.T, server *httptest.Server, path string, form url.Values, change ...func(*http.Request)) (status int, page string, header http.Header) {
	t.Helper()
	method, body := http.MethodGet, ""
	if form != nil {
		method, body = http.MethodPost, form.Encode()
	}
	req := stage.Must(http.NewRequestWithContext(t.Context(), method, server.URL+path, strings.NewReader(body)))(t)
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.AddCookie(&http.Cookie{Name: "credstream-session", Value: "default.x"})
	for _, f := range change {
		f(req)
	}
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp := stage.Must(client.Do(req))(t)
	defer func() { _ = resp.Body.Close() }()
	b := stage.Must(io.ReadAll(resp.Body))(t)
	return resp.StatusCode, html.UnescapeString(string(b)), resp.Header
}

func pages(t *testing.T) (*stage.Stage, *httptest.Server) {
	t.Helper()
	s := stage.New(t)
	server := httptest.NewServer(web.Handler(web.Config{Service: s.Service, Access: administrator{who: s.Admin}, Live: admin.NewLive()}))
	t.Cleanup(server.Close)
	return s, server
}

// Of two people who update a component, the second is refused, and keeps what was typed.
func TestTwoUpdatesOfAComponent(t *testing.T) {
	s, server := pages(t)
	register := func(command, title string) {
		s.Do("default", command, `{"id":"pets","descriptor":{"title":"`+title+`","credentials":{"fields":{"key":{"viewClass":"PasswordFieldView"}}}}}`)
		s.CaughtUp()
	}
	const path = "/ui/t/default/components/pets"
	revision := func() string {
		t.Helper()
		_, page, _ := visit(t, server, path, nil)
		m := regexp.MustCompile(`name="revision" value="(\d+)"`).FindStringSubmatch(page)
		if m == nil {
			t.Fatal("the form has no revision")
		}
		return m[1]
	}
	register("component.register", "Pets")
	opened := revision()
	form := func(do, revision string) url.Values {
		return url.Values{"do": {do}, "revision": {revision}, "descriptor": {`{"title": "Typed by me"}`}}
	}
	if status, page, _ := visit(t, server, path, form("compared", opened)); status != http.StatusOK || !strings.Contains(page, "The field key is removed") {
		t.Fatalf("compared: %d", status)
	}
	register("component.update", "Pets of somebody else")
	for _, do := range []string{"compared", "updated"} {
		status, page, _ := visit(t, server, path, form(do, opened))
		if status != http.StatusConflict || !strings.Contains(page, "component_revision_stale") || !strings.Contains(page, `{"title": "Typed by me"}`) {
			t.Errorf("%s: %d\n%s", do, status, page)
		}
	}
	if now := revision(); now == opened {
		t.Errorf("the page still has revision %s", now)
	}
	if status, _, header := visit(t, server, path, form("updated", revision())); status != http.StatusSeeOther {
		t.Errorf("an update of the current revision: %d %s", status, header.Get("Location"))
	}
}

func TestNavigationAndKeys(t *testing.T) {
	s, server := pages(t)
	s.Do("default", "api_key.issue", `{"name":"engine","role":"FLOW_ENGINE","certificate":"dns:engine.example.org"}`)
	s.CaughtUp()
	for path, label := range map[string]string{"new-credential": "Credentials", "credentials": "Credentials", "new-component": "Components", "keys": "API keys"} {
		_, page, _ := visit(t, server, "/ui/t/default/"+path, nil)
		if !strings.Contains(page, `aria-current="page">`+label+`<`) || strings.Count(page, `aria-current="page"`) != 1 {
			t.Errorf("%s does not highlight %s", path, label)
		}
		if path == "keys" && !strings.Contains(page, "dns:engine.example.org") {
			t.Error("the certificate of a key is not shown")
		}
	}
}

// Another site can neither frame a page nor send a form with the cookie of the browser.
func TestOtherSites(t *testing.T) {
	s, server := pages(t)
	id := s.Do("default", "credential.create", `{"component":"plain","name":"Mine","keys":{"apiKey":"k"}}`).ID
	s.CaughtUp()
	path := "/ui/t/default/credentials/" + id
	_, _, header := visit(t, server, path, nil)
	if header.Get("X-Frame-Options") != "DENY" || !strings.Contains(header.Get("Content-Security-Policy"), "frame-ancestors 'none'") ||
		strings.Contains(header.Get("Content-Security-Policy"), "unsafe") {
		t.Errorf("headers %v", header)
	}
	form := url.Values{"do": {"renamed"}, "name": {"By another site"}, "was": {"Mine"}, "version": {"1"}}
	for name, change := range map[string]func(*http.Request){
		"Sec-Fetch-Site": func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") },
		"same site":      func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-site") },
		"Origin":         func(r *http.Request) { r.Header.Set("Origin", "https://evil.example.org") },
		"no origin":      func(r *http.Request) { r.Header.Set("Origin", "null") },
	} {
		for _, to := range []string{path, "/ui/sign-out", "/ui/sign-in"} { // the forms of sessions call no route
			if status, _, _ := visit(t, server, to, form, change); status != http.StatusForbidden {
				t.Errorf("%s, %s: %d", name, to, status)
			}
		}
	}
	if status, _, _ := visit(t, server, path, form, func(r *http.Request) { r.Header.Set("Origin", server.URL) }); status != http.StatusSeeOther {
		t.Errorf("a form of our own: %d", status)
	}
	own := s.Issue("default", `{"role":"ADMINISTRATOR"}`) // unlike the first administrator, of one tenant
	server = httptest.NewServer(web.Handler(web.Config{Service: s.Service, Access: administrator{who: own}, Live: admin.NewLive()}))
	t.Cleanup(server.Close)
	for _, page := range []string{"credentials", "new-component"} { // the second one calls no route
		if status, _, _ := visit(t, server, "/ui/t/other/"+page, nil); status != http.StatusNotFound {
			t.Errorf("%s of another tenant: %d", page, status)
		}
	}
}
