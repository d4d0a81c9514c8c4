package elasticio_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/credstream/credstream/api/elasticio"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// asked is a service that remembers what it was asked and has one of everything.
type asked struct {
	route string
	body  []byte
	calls int
	serve func(route string) (any, error) // when the answer is not the usual one
}

func (a *asked) Authenticate(_ context.Context, key string, _ netip.Addr) (service.Principal, error) {
	switch key {
	case "":
		return service.Principal{}, service.ErrUnauthenticated
	case "good":
		return service.Principal{Home: "acme", Tenants: []string{"acme"}, Role: permission.Administrator}, nil
	}
	return service.Principal{}, service.ErrKeyUnknown
}

func (a *asked) AuthenticateCertificate(context.Context, *x509.Certificate, netip.Addr) (service.Principal, error) {
	return service.Principal{}, service.ErrKeyUnknown
}

func (a *asked) AuthenticateToken(context.Context, string, netip.Addr) (service.Principal, error) {
	return service.Principal{}, service.ErrKeyUnknown
}

func (a *asked) Receive(_ context.Context, _ *service.Call, _ int64, read func() ([]byte, error)) ([]byte, func(), error) {
	body, err := read()
	return body, func() {}, err
}

func (a *asked) Serve(_ context.Context, _ service.Call, route string, body []byte) (any, error) {
	a.route, a.body, a.calls = route, body, a.calls+1
	if a.serve != nil {
		return a.serve(route)
	}
	switch route {
	case "credential.list":
		return credential.Page{Credentials: []credential.Credential{{ID: "c", Component: "k"}}, Next: "next"}, nil
	case "credential.counts":
		return credential.Counts{Total: 400_000}, nil
	case "credential.get":
		return credential.Credential{ID: "c", Component: "k"}, nil
	case "auth_client.list":
		return client.AuthClientList{AuthClients: []client.AuthClient{{ID: "a", Type: "basic", Scope: "global"}}, Next: "next", Total: 400_000}, nil
	case "auth_client.get":
		return client.AuthClient{ID: "a", Type: "basic", Scope: "global"}, nil
	case "auth_secret.list":
		return credential.AuthSecretList{Secrets: []credential.AuthSecret{{Credential: credential.Credential{ID: "c", Component: "k"}}}, Next: "next", Total: 400_000}, nil
	case "auth_secret.get":
		return credential.AuthSecret{Credential: credential.Credential{ID: "c", Component: "k"}}, nil
	case "oauth_client.list":
		return client.OAuthClientList{Clients: []client.OAuthClient{{ID: "o", Component: "k"}}, Next: "next"}, nil
	case "oauth_client.get":
		return client.OAuthClient{ID: "o", Component: "k"}, nil
	case "component.list":
		return component.Page{}, nil
	case "component.get":
		return component.Component{Info: component.Info{ID: "k"}, Descriptor: []byte("{}")}, nil
	case "flow.get":
		return flow.Flow{ID: "f"}, nil
	}
	return service.Done{ID: "x", Seq: 1}, nil
}

func (a *asked) Require(context.Context, service.Call, string, permission.Permission) error {
	return nil
}

func (a *asked) ChangeFlow(_ context.Context, _ service.Call, _ string, data []byte) (flow.Flow, error) {
	a.route, a.body = "flow", data
	return flow.Flow{ID: "f"}, nil
}

// send makes a request of the edge in this process, from this machine.
func send(h http.Handler, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/", strings.NewReader(body))
	path, query, _ := strings.Cut(target, "?")
	r.URL = &url.URL{Path: path, RawQuery: query}
	r.RemoteAddr = "127.0.0.1:1"
	r.Header.Set("Authorization", "Bearer good")
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// Whatever a body says, the answer is a document or one error, never a failure of
// ours, and what reaches the service is one JSON object.
func FuzzDocument(f *testing.F) {
	const client = `{"data":{"type":"oauth-client","attributes":{"client_id":"i","client_secret":"s"},"relationships":{"component":{"data":{"id":"k","type":"component"}}}}}`
	for _, seed := range []string{
		client, strings.Replace(client, "oauth-client", "flow", 1), strings.Replace(client, "component\"", "credential\"", 1), `{}`, `{"data":null}`, `{"data":[]}`, `[`, ``, "\xff",
		`{"data":{"id":"c","type":"credential","attributes":{"name":null,"keys":{"a":{"b":[1]}}},"relationships":{"component":{"data":{"id":"k","type":"component"}},"vpn_agent":{"data":null},"user":[]}}}`,
		`{"data":{"type":"auth-client","attributes":{"name":"n","type":"basic","credentials":{"a":1}},"relationships":{"components":{"data":[{"id":"k","type":"component"}]},"tenant":{"data":{"id":"acme","type":"tenant"}}}}}`,
		`{"data":{"type":"auth-secret","attributes":{"name":"n","state":"ready","error":"e","credentials":{"access_token":"t"}},"relationships":{"component":{"data":{"id":"k","type":"component"}}}}}`,
		`{"data":{"type":"component","attributes":{"descriptor":{"title":"T"},"access":"global"}},"meta":{},"jsonapi":{"version":"1.1"}}`,
		`{"data":{"type":"flow","attributes":{"name":"n","graph":{"nodes":[{"id":"s","component_id":"k","credentials_id":"c","x":1}],"edges":[]}}}}`,
		`{"data":{"data":{}}}`, `{"data":{"type":"credential","type":"x"}}`, `{"data":{"attributes":{"a/b~c":1}}}`,
	} {
		f.Add([]byte(seed))
	}
	targets := []string{"POST /v2/tenants/acme/oauth-clients", "PATCH /v2/tenants/acme/oauth-clients/o", "POST /v2/credentials", "PATCH /v2/credentials/c", "POST /v2/workspaces/w/secrets", "PATCH /v2/workspaces/w/secrets/c", "POST /v2/auth-clients", "PATCH /v2/auth-clients/a", "POST /v2/components", "PATCH /v2/components/k", "POST /v2/flows"}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, target := range targets {
			a := &asked{}
			h := elasticio.Handler(elasticio.Config{Service: a, Access: a, Flows: a})
			method, path, _ := strings.Cut(target, " ")
			w := send(h, method, path, string(body))
			var doc struct {
				Data   map[string]any
				Errors []map[string]any
			}
			if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code >= 500 || (w.Code >= 400) != (len(doc.Errors) == 1) || (w.Code < 400) != (doc.Data != nil) {
				t.Fatalf("%s answers %d %s", target, w.Code, w.Body)
			}
			if a.body != nil {
				var object map[string]any
				if err := json.Unmarshal(a.body, &object); err != nil {
					t.Fatalf("%s asks %s with %q", target, a.route, a.body)
				}
			}
		}
	})
}

// Whatever the parameters say, the service is asked for a page within bounds or
// not at all, and the links of a page lead to pages.
func FuzzParameters(f *testing.F) {
	for _, seed := range []string{
		"", "filter[component]=k", "filter%5Bcomponent%5D=", "workspace_id=w&page[number]=2&page[size]=200&sort=name,-created_at", "page[number]=0", "page[number]=99999999999",
		"page[after]=x&page[number]=7", "include=component&fields[credential]=name,keys&fields[component]=", "fields[]=x", "workspace_id=\xff", "\xff=1", "fields[a]b=x", "reveal=true", "%zz", "a;b", "filter[component]=a&filter[component]=b",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range []string{"/v2/credentials", "/v2/workspaces/w/secrets", "/v2/auth-clients", "/v2/tenants/acme/oauth-clients/"} {
			a := &asked{}
			h := elasticio.Handler(elasticio.Config{Service: a, Access: a, Flows: a})
			w := send(h, "GET", path+"?"+query, "")
			switch {
			case w.Code == http.StatusBadRequest && a.calls == 0:
				continue
			case w.Code != http.StatusOK:
				t.Fatalf("%s?%s: %d %s after %d calls", path, query, w.Code, w.Body, a.calls)
			}
			var doc struct {
				Links map[string]string
				Meta  struct {
					PerPage int `json:"per_page"`
				}
			}
			if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || doc.Meta.PerPage < 1 || doc.Meta.PerPage > 200 {
				t.Fatalf("%s?%s: %v %s", path, query, err, w.Body)
			}
			next, ok := doc.Links["next"]
			if !ok {
				t.Fatal("there is a next page")
			}
			if w := send(h, "GET", next, ""); w.Code != http.StatusOK {
				t.Fatalf("the next page of %s?%s is %s: %d %s", path, query, next, w.Code, w.Body)
			}
		}
	})
}

// What the edge itself refuses, and what it says of failures.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		why, method, target string
		change              func(*http.Request)
		fails               error
		status              int
		code                string
	}{
		{why: "no key", method: "GET", target: "/v2/credentials", change: func(r *http.Request) { r.Header.Del("Authorization") }, status: 401, code: "unauthenticated"},
		{why: "a key nobody knows", method: "GET", target: "/v2/credentials", change: func(r *http.Request) { r.SetBasicAuth("a@b", "bad") }, status: 401, code: "api_key_unknown"},
		{why: "Basic", method: "GET", target: "/v2/credentials", change: func(r *http.Request) { r.SetBasicAuth("a@b", "good") }, status: 200},
		{why: "clear secrets over the network", method: "GET", target: "/v2/credentials/c?reveal=true", change: func(r *http.Request) { r.RemoteAddr = "192.0.2.1:1" }, status: 403, code: "cleartext_refused"},
		{why: "two command ids", method: "DELETE", target: "/v2/credentials/c", change: func(r *http.Request) { r.Header["Idempotency-Key"] = []string{"a", "b"} }, status: 400, code: "header_repeated"},
		{why: "two slashes", method: "GET", target: "/v2//credentials", status: 404, code: "path_unknown"},
		{why: "two slashes at the end", method: "GET", target: "/v2/credentials//", status: 404, code: "path_unknown"},
		{why: "a path that is no text", method: "GET", target: "/v2/credentials/%ff", status: 404, code: "path_unknown"},
		{why: "a path too long", method: "GET", target: "/v2/credentials/c/keys", status: 404, code: "path_unknown"},
		{why: "a failure", method: "GET", target: "/v2/credentials/c", fails: errors.New("canary: where we live"), status: 500, code: "internal"},
		{why: "a limit", method: "GET", target: "/v2/credentials/c", fails: access.ErrRateLimited.WithRetryAfter(1500e6), status: 429, code: "rate_limited"},
		{why: "the disk", method: "DELETE", target: "/v2/credentials/c", fails: fault.ErrUnavailable, status: 503, code: "unavailable"},
	} {
		t.Run(c.why, func(t *testing.T) {
			var log bytes.Buffer
			a := &asked{}
			if c.fails != nil {
				a.serve = func(string) (any, error) { return nil, c.fails }
			}
			h := elasticio.Handler(elasticio.Config{Service: a, Access: a, Flows: a, Logger: slog.New(slog.NewJSONHandler(&log, nil))})
			r := httptest.NewRequest(c.method, c.target, nil)
			r.RemoteAddr = "127.0.0.1:1"
			r.Header.Set("Authorization", "Bearer good")
			if c.change != nil {
				c.change(r)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			var doc struct {
				Errors []struct{ Code, Status string }
			}
			if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil || w.Code != c.status || c.code != "" && (len(doc.Errors) != 1 || doc.Errors[0].Code != c.code) {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			if strings.Contains(w.Body.String(), "canary") || !strings.Contains(log.String(), `"status":`) {
				t.Errorf("the answer is %s, the log %s", w.Body, &log)
			}
			if retry := w.Header().Get("Retry-After"); (c.status == 429) != (retry == "2") {
				t.Errorf("Retry-After: %q", retry)
			}
			if (w.Code == 401) != (len(w.Header()["Www-Authenticate"]) == 2) {
				t.Errorf("challenges: %q", w.Header()["Www-Authenticate"])
			}
		})
	}
}

// A page whose number passes over others is found by passing over them, and a
// cursor saves that.
func TestPagesArePassedOver(t *testing.T) {
	for query, want := range map[string]int{ // and one for the counts
		"":                             2,
		"page[number]=3&page[after]=x": 2,
		"page[number]=6&page[size]=1":  7, // the test's pages hold one item each
	} {
		a := &asked{}
		if w := send(elasticio.Handler(elasticio.Config{Service: a, Access: a, Flows: a}), "GET", "/v2/credentials?"+query, ""); w.Code != 200 {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
		if a.calls != want {
			t.Errorf("%s: %d calls, want %d", query, a.calls, want)
		}
	}
}
