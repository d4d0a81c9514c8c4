package connect_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	edge "github.com/credstream/credstream/api/connect"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/connect"
)

// answers is a service that answers what a test wants; the rules are tested where
// the real one is at hand.
type answers struct {
	open func(link string, browser connect.Browser) (connect.OpenedLink, error)
	back func(cb connect.Callback) (connect.Returned, error)
}

func (a answers) OpenLink(_ context.Context, link string, _ netip.Addr, browser connect.Browser) (connect.OpenedLink, error) {
	return a.open(link, browser)
}

func (a answers) ReturnConnection(_ context.Context, cb connect.Callback) (connect.Returned, error) {
	return a.back(cb)
}

func get(h http.Handler, path string, cookies ...string) *http.Response {
	req := httptest.NewRequest(http.MethodGet, path, http.NoBody)
	for _, c := range cookies {
		req.Header.Add("Cookie", c)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	return w.Result()
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// A provider's response in a form becomes the same response as a query: browsers send no cookies with
// a form of another site.
func TestFormPost(t *testing.T) {
	h := edge.New(edge.Config{Service: answers{back: func(connect.Callback) (connect.Returned, error) {
		t.Error("the form reaches the service")
		return connect.Returned{}, nil
	}}})
	for name, c := range map[string]struct {
		kind, form, location string
		status               int
	}{
		"a form":       {"application/x-www-form-urlencoded; charset=utf-8", "code=a%26b&state=s", "/oauth/callback/default/books?code=a%26b&state=s", http.StatusSeeOther},
		"no form":      {"application/json", "code=a&state=s", "", http.StatusBadRequest},
		"a wrong form": {"application/x-www-form-urlencoded", "code=%zz", "", http.StatusBadRequest},
		"a long form":  {"application/x-www-form-urlencoded", "code=" + strings.Repeat("x", 17<<10), "", http.StatusBadRequest},
	} {
		req := httptest.NewRequest(http.MethodPost, "/oauth/callback/default/books?code=query", strings.NewReader(c.form))
		req.Header.Set("Content-Type", c.kind)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if at := w.Header().Get("Location"); w.Code != c.status || at != c.location {
			t.Errorf("%s: %d, to %q", name, w.Code, at)
		}
	}
}

// What a page shows is what its policy lets it show.
func TestPageAndPolicy(t *testing.T) {
	h := edge.New(edge.Config{Service: answers{back: func(connect.Callback) (connect.Returned, error) {
		return connect.Returned{Connection: "x", Confirm: "ABCDEFGH"}, nil
	}}})
	resp := get(h, "/oauth/callback/acme/sheets?code=x")
	page := body(t, resp)
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page)
	if style == nil || strings.Contains(page, "<script") {
		t.Fatalf("the page is %s", page)
	}
	sum := sha256.Sum256([]byte(style[1]))
	if policy := resp.Header.Get("Content-Security-Policy"); !strings.Contains(policy, "style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
		t.Errorf("the policy %q does not let the page have its style", policy)
	}
	if !strings.Contains(page, "ABCD-EFGH") {
		t.Errorf("the page does not show the code: %s", page)
	}
}

// A browser shows the cookies of the connection in question, and each once.
func TestCookies(t *testing.T) {
	for _, c := range []struct {
		public  string
		cookies []string
		opened  string
		starter string
		set     string // how the cookie begins that is set
		path    string
	}{
		{"http://127.0.0.1:1", []string{"credstream-connect-x1=a", "credstream-start-x1=b"}, "a", "b", "credstream-connect-x1=new", "/oauth"},
		{"http://127.0.0.1:1", []string{"credstream-connect-x2=a; credstream-start-x=b"}, "", "", "credstream-connect-x1=new", "/oauth"},
		{"http://127.0.0.1:1", []string{"credstream-connect-x1=a; credstream-connect-x1=b"}, "", "", "credstream-connect-x1=new", "/oauth"},
		{"http://127.0.0.1:1/base", nil, "", "", "credstream-connect-x1=new", "/base/oauth"},
		{"https://example.org", []string{"__Host-credstream-connect-x1=a", "credstream-start-x1=b"}, "a", "", "__Host-credstream-connect-x1=new", "/"},
	} {
		var opened, starter string
		h := edge.New(edge.Config{PublicURL: c.public, Service: answers{open: func(_ string, browser connect.Browser) (connect.OpenedLink, error) {
			opened, starter = browser("x1")
			return connect.OpenedLink{Connection: "x1", Cookie: "new", Location: "https://provider.example.org/"}, nil
		}}})
		resp := get(h, "/oauth/connect/x1.secret", c.cookies...)
		if opened != c.opened || starter != c.starter {
			t.Errorf("%v are %q and %q", c.cookies, opened, starter)
		}
		set := resp.Header.Get("Set-Cookie")
		if !strings.HasPrefix(set, c.set+"; Path="+c.path+"; ") || strings.Contains(set, "Secure") != strings.HasPrefix(c.public, "https") {
			t.Errorf("%s: the cookie is %s", c.public, set)
		}
	}
}

// A failure of ours says nothing of its cause to the browser, and no secret to the log.
func TestFailuresAndPanics(t *testing.T) {
	var log bytes.Buffer
	failing := answers{
		open: func(string, connect.Browser) (connect.OpenedLink, error) { panic("canary-panic") },
		back: func(connect.Callback) (connect.Returned, error) {
			return connect.Returned{Connection: "x"}, fmt.Errorf("reading: %w", fault.ErrUnavailable)
		},
	}
	h := edge.New(edge.Config{Service: failing, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	resp := get(h, "/oauth/connect/x1.canary-link")
	if page := body(t, resp); resp.StatusCode != http.StatusInternalServerError || strings.Contains(page, "canary") {
		t.Errorf("a panic: %d %s", resp.StatusCode, page)
	}
	resp = get(h, "/oauth/callback/acme/sheets?state=canary-state&code=canary-code")
	if resp.StatusCode != http.StatusServiceUnavailable || len(resp.Header["Set-Cookie"]) != 0 {
		t.Errorf("an outage: %d %v", resp.StatusCode, resp.Header)
	}
	if strings.Contains(log.String(), "canary") || strings.Count(log.String(), "msg=request") != 2 {
		t.Errorf("the log is %s", &log)
	}
	resp = get(h, "/oauth/callback/acme%2fx/sheets?state=x")
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("an escaped slash: %d", resp.StatusCode)
	}
}
