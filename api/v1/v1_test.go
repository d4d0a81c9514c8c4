package v1_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/secrets"
)

const (
	key    = "cs_abcdefghijklmnopqrstuvwxyz0123456789"
	token  = "e30.e30.c2ln"
	canary = "canary-5e7"
)

// fake answers what it is told, and remembers what it was asked.
type fake struct {
	answer  func(route string, body []byte) (any, error)
	revoked atomic.Bool // every key and token

	mu    sync.Mutex
	calls []call
}

type call struct {
	Route, Tenant, Principal, Via, CommandID, Correlation, Body string
}

func (f *fake) AuthenticateCertificate(context.Context, *x509.Certificate, netip.Addr) (service.Principal, error) {
	return service.Principal{}, access.ErrCertificateUnknown
}

func (f *fake) AuthenticateToken(_ context.Context, given string, _ netip.Addr) (service.Principal, error) {
	if given == token && !f.revoked.Load() {
		return service.Principal{Actor: events.Actor{Kind: "user", ID: "u1"}, Tenants: []string{"acme"}}, nil
	}
	return service.Principal{}, access.ErrToken
}

func (f *fake) Authenticate(_ context.Context, given string, _ netip.Addr) (service.Principal, error) {
	switch {
	case given == "":
		return service.Principal{}, service.ErrUnauthenticated
	case given == key && !f.revoked.Load():
		return service.Principal{Actor: events.Actor{Kind: "key", ID: "k1"}, Tenants: []string{"acme"}}, nil
	}
	return service.Principal{}, service.ErrKeyUnknown
}

func (f *fake) Receive(_ context.Context, _ *service.Call, _ int64, read func() ([]byte, error)) ([]byte, func(), error) {
	body, err := read()
	return body, func() {}, err
}

func (f *fake) Serve(_ context.Context, c service.Call, route string, body []byte) (any, error) {
	f.mu.Lock()
	f.calls = append(f.calls, call{route, c.Tenant, c.Principal.Actor.ID, c.Via, c.CommandID, c.Correlation, string(body)})
	f.mu.Unlock()
	if c.Tenant != "acme" {
		return nil, service.ErrTenantNotFound
	}
	if f.answer == nil {
		return service.Done{Seq: 7, ID: "x"}, nil
	}
	return f.answer(route, body)
}

// asked returns the calls so far and forgets them.
func (f *fake) asked() []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

// edge is a real server over a fake service.
type edge struct {
	*fake
	*httptest.Server
	logs lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newEdge(t *testing.T, change ...func(*v1.Config)) *edge {
	t.Helper()
	e := &edge{fake: &fake{}}
	cfg := v1.Config{
		Service: e.fake, Access: e.fake, Version: "1.2.3", Logger: slog.New(slog.NewJSONHandler(&e.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "m 1\n") }),
	}
	for _, c := range change {
		c(&cfg)
	}
	e.Server = httptest.NewUnstartedServer(nil)
	e.Config = v1.Server("", v1.Handler(cfg))
	e.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	e.Start()
	t.Cleanup(e.Close)
	return e
}

// request is one request; the key is sent unless it sets Authorization.
type request struct {
	method, path string
	body         io.Reader
	header       http.Header
}

func (e *edge) do(t *testing.T, r request) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), r.method, e.URL+r.path, r.body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(req.Header, r.header)
	resp, err := e.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

const (
	create = "/v1/tenants/acme/commands/credential.create"
	get    = "/v1/tenants/acme/credential.get"
)

func TestCommand(t *testing.T) {
	e := newEdge(t)
	resp, body := e.do(t, request{"POST", create, strings.NewReader(`{"a":1}`), http.Header{
		"Idempotency-Key": {"c-1"}, "X-Correlation-Id": {"o-1"}, "Content-Type": {"application/json; charset=UTF-8"}, "X-Request-Id": {"mine-1"},
	}})
	if resp.StatusCode != 200 || body != `{"seq":7,"id":"x"}`+"\n" {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
	want := []call{{"credential.create", "acme", "k1", "http", "c-1", "o-1", `{"a":1}`}}
	if d := cmp.Diff(want, e.asked()); d != "" {
		t.Error(d)
	}
	for name, want := range map[string]string{
		"Content-Type": "application/json", "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "X-Request-Id": "mine-1",
	} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("other origins are let in")
	}
}

func TestQueryParameters(t *testing.T) {
	e := newEdge(t)
	for _, c := range []struct{ query, body string }{
		{"credential.get?id=a%20b%2Bc+d&min_seq=18446744073709551615", `{"id":"a b+c d","min_seq":18446744073709551615}`},
		{"credential.get?id=%22%7D", `{"id":"\"}"}`},
		{"credential.list?limit=5&name_contains=%C3%A9&status=verified&&sort=-name", `{"limit":5,"name_contains":"é","status":"verified","sort":"-name"}`},
		{"credential.list?limit=-1", `{"limit":-1}`},
		{"credential.list", ``},
		{"credential.list?", ``},
		{"events.replay?since=2026-01-02T03:04:05%2B01:00&from=3", `{"since":"2026-01-02T03:04:05+01:00","from":3}`},
	} {
		resp, body := e.do(t, request{"GET", "/v1/tenants/acme/" + c.query, nil, nil})
		if resp.StatusCode != 200 {
			t.Errorf("%s: %d %s", c.query, resp.StatusCode, body)
			continue
		}
		if got := e.asked(); len(got) != 1 || got[0].Body != c.body {
			t.Errorf("%s asks %+v, want the body %s", c.query, got, c.body)
		}
	}
}

// A token as Bearer is somebody else's matter than a key.
func TestBearerTokens(t *testing.T) {
	e := newEdge(t)
	resp, _ := e.do(t, request{"GET", get, nil, http.Header{"Authorization": {"Bearer " + token}}})
	if calls := e.asked(); resp.StatusCode != http.StatusOK || len(calls) != 1 || calls[0].Principal != "u1" {
		t.Errorf("%d, %v", resp.StatusCode, calls)
	}
}

// Every refusal has its status, is a problem with its code, and repeats nothing
// of the request.
func TestBadInput(t *testing.T) {
	e := newEdge(t, func(c *v1.Config) { c.Service = c.Service.(*fake) })
	body := func(s string) io.Reader { return strings.NewReader(s) }
	big := func() io.Reader { return strings.NewReader(strings.Repeat(" ", service.MaxBody+1)) }
	h := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return h
	}
	for _, c := range []struct {
		name   string
		r      request
		status int
		code   string
	}{
		{"no key", request{"GET", get, nil, http.Header{"Authorization": nil}}, 401, "unauthenticated"},
		{"unknown key", request{"GET", get, nil, h("Authorization", "Bearer cs_"+canary)}, 401, "api_key_unknown"},
		{"unknown token", request{"GET", get, nil, h("Authorization", "Bearer a.b."+canary)}, 401, "token_invalid"},
		{"a token as a password", request{"GET", get, nil, h("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("x:"+token)))}, 401, "api_key_unknown"},
		{"empty bearer", request{"GET", get, nil, h("Authorization", "Bearer")}, 401, "unauthenticated"},
		{"other scheme", request{"GET", get, nil, h("Authorization", "Digest "+canary)}, 401, "authorization_invalid"},
		{"broken basic", request{"GET", get, nil, h("Authorization", "Basic "+canary)}, 401, "authorization_invalid"},
		{"two keys", request{"GET", get, nil, h("Authorization", "Bearer "+key, "Authorization", "Bearer "+key)}, 401, "authorization_invalid"},

		{"unknown path", request{"GET", "/" + canary, nil, nil}, 404, "path_unknown"},
		{"double slash", request{"GET", "//v1/tenants/acme/credential.get", nil, nil}, 404, "path_unknown"},
		{"double slash within", request{"GET", "/v1/tenants/acme//credential.get", nil, nil}, 404, "path_unknown"},
		{"dot segment", request{"GET", "/v1/tenants/acme/./credential.get", nil, nil}, 404, "path_unknown"},
		{"dot segments", request{"GET", "/v1/tenants/x/../acme/credential.get", nil, nil}, 404, "path_unknown"},
		{"trailing slash", request{"GET", get + "/", nil, nil}, 404, "path_unknown"},
		{"no tenant", request{"GET", "/v1/tenants//credential.get", nil, nil}, 404, "path_unknown"},
		{"encoded slash", request{"GET", "/v1/tenants/acme%2Fcredential.get", nil, nil}, 404, "path_unknown"},
		{"encoded slash in a tenant", request{"GET", "/v1/tenants/acme%2F" + canary + "/credential.get", nil, nil}, 404, "tenant_not_found"},
		{"NUL in a tenant", request{"GET", "/v1/tenants/acme%00/credential.get", nil, nil}, 404, "tenant_not_found"},
		{"wildcard tenant", request{"GET", "/v1/tenants/*/credential.get", nil, nil}, 404, "tenant_not_found"},
		{"other tenant", request{"GET", "/v1/tenants/" + canary + "/credential.get", nil, nil}, 404, "tenant_not_found"},
		{"unknown query", request{"GET", "/v1/tenants/acme/credential." + canary, nil, nil}, 404, "route_unknown"},
		{"unknown command", request{"POST", "/v1/tenants/acme/commands/credential." + canary, body("{}"), nil}, 404, "route_unknown"},
		{"a command as a query", request{"GET", "/v1/tenants/acme/credential.create", nil, nil}, 404, "route_unknown"},
		{"a query as a command", request{"POST", "/v1/tenants/acme/commands/credential.get", body("{}"), nil}, 404, "route_unknown"},
		{"GET of a command", request{"GET", create, nil, nil}, 405, "method_not_allowed"},
		{"POST of a query", request{"POST", get, body("{}"), nil}, 405, "method_not_allowed"},
		{"OPTIONS", request{"OPTIONS", create, nil, nil}, 405, "method_not_allowed"},
		{"DELETE of health", request{"DELETE", "/healthz", nil, nil}, 405, "method_not_allowed"},

		{"media type", request{"POST", create, body("{}"), h("Content-Type", "text/plain")}, 415, "media_type"},
		{"form", request{"POST", create, body("{}"), h("Content-Type", "application/x-www-form-urlencoded")}, 415, "media_type"},
		{"no media type", request{"POST", create, body("{}"), http.Header{"Content-Type": nil}}, 415, "media_type"},
		{"charset", request{"POST", create, body("{}"), h("Content-Type", "application/json; charset=latin1")}, 415, "media_type"},
		{"compressed", request{"POST", create, body("{}"), h("Content-Encoding", "gzip")}, 415, "media_type"},
		{"1 MiB and 1", request{"POST", create, big(), nil}, 413, "body_too_large"},
		{"1 MiB and 1 in chunks", request{"POST", create, io.MultiReader(big()), nil}, 413, "body_too_large"},

		{"command id with a space", request{"POST", create, body("{}"), h("Idempotency-Key", "a "+canary)}, 400, "command_id_invalid"},
		{"empty command id", request{"POST", create, body("{}"), h("Idempotency-Key", "")}, 400, "command_id_invalid"},
		{"long command id", request{"POST", create, body("{}"), h("Idempotency-Key", strings.Repeat("a", 129))}, 400, "command_id_invalid"},
		{"two command ids", request{"POST", create, body("{}"), h("Idempotency-Key", "a", "Idempotency-Key", "b")}, 400, "header_repeated"},
		{"correlation id", request{"POST", create, body("{}"), h("X-Correlation-Id", "é"+canary)}, 400, "correlation_id_invalid"},
		{"cross origin", request{"POST", create, body("{}"), h("Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site")}, 403, "cross_origin_refused"},

		{"unknown parameter", request{"GET", get + "?" + canary + "=1", nil, nil}, 400, "query_parameter_unknown"},
		{"repeated parameter", request{"GET", get + "?id=a&id=" + canary, nil, nil}, 400, "query_parameter_unknown"},
		{"word for a number", request{"GET", get + "?id=a&min_seq=" + canary, nil, nil}, 400, "query_parameter_invalid"},
		{"negative for a natural number", request{"GET", get + "?min_seq=-1", nil, nil}, 400, "query_parameter_invalid"},
		{"overflow", request{"GET", get + "?min_seq=18446744073709551616", nil, nil}, 400, "query_parameter_invalid"},
		{"nothing for a number", request{"GET", get + "?min_seq=", nil, nil}, 400, "query_parameter_invalid"},
		{"invalid UTF-8", request{"GET", get + "?id=%ff", nil, nil}, 400, "query_parameter_invalid"},
		{"broken escape", request{"GET", get + "?id=%zz", nil, nil}, 400, "query_parameter_invalid"},
		{"time", request{"GET", "/v1/tenants/acme/events.replay?since=yesterday", nil, nil}, 400, "query_parameter_invalid"},
		{"lines with a negative limit", request{"GET", "/v1/tenants/acme/events.replay?limit=-1", nil, h("Accept", "application/x-ndjson")}, 400, "limit_invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, got := e.do(t, c.r)
			var p fault.Problem
			if err := json.Unmarshal([]byte(got), &p); err != nil {
				t.Fatalf("%d %q: %v", resp.StatusCode, got, err)
			}
			if resp.StatusCode != c.status || p.Status != c.status || p.Code != c.code {
				t.Errorf("answered %d %s, want %d %s", resp.StatusCode, got, c.status, c.code)
			}
			if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
				t.Errorf("the media type is %s", ct)
			}
			if p.RequestID == "" || p.RequestID != resp.Header.Get("X-Request-Id") || p.Title == "" || p.Detail == "" || p.Kind == "" {
				t.Errorf("members are missing: %s", got)
			}
			if strings.Contains(got, canary) {
				t.Errorf("the answer repeats the input: %s", got)
			}
			if (c.status == 401) != (resp.Header.Get("WWW-Authenticate") != "") {
				t.Errorf("WWW-Authenticate is %q", resp.Header.Values("WWW-Authenticate"))
			}
			if (c.status == 405) != (resp.Header.Get("Allow") != "") {
				t.Errorf("Allow is %q", resp.Header.Get("Allow"))
			}
			for _, asked := range e.asked() {
				if asked.Tenant == "acme" {
					t.Errorf("the service was asked %+v", asked)
				}
			}
		})
	}
	if strings.Contains(e.logs.String(), canary) || strings.Contains(e.logs.String(), key) {
		t.Error("the log repeats the input")
	}
}

// A fault is answered as such; anything else is for the log alone.
func TestErrors(t *testing.T) {
	secret := errors.New("dial 10.0.0.1: " + canary)
	for _, c := range []struct {
		err    error
		status int
		code   string
	}{
		{fault.New(fault.Invalid, "a", "m"), 400, "a"},
		{fault.New(fault.Unauthenticated, "a", "m"), 401, "a"},
		{fault.New(fault.Denied, "a", "m"), 403, "a"},
		{fault.New(fault.NotFound, "a", "m"), 404, "a"},
		{fault.New(fault.Exists, "a", "m"), 409, "a"},
		{fault.New(fault.Precondition, "a", "m"), 409, "a"},
		{fault.New(fault.Conflict, "a", "m"), 409, "a"},
		{fault.New(fault.Throttled, "a", "m"), 429, "a"},
		{fault.New(fault.Unavailable, "a", "m"), 503, "a"},
		{fault.New(fault.Internal, "a", "m"), 500, "a"},
		{fmt.Errorf("x: %w", service.ErrBodyTooLarge), 413, "body_too_large"},
		{secret, 500, "internal"},
		{context.DeadlineExceeded, 503, "timeout"},
	} {
		e := newEdge(t)
		e.answer = func(string, []byte) (any, error) { return nil, c.err }
		resp, body := e.do(t, request{"GET", get + "?id=a", nil, nil})
		if resp.StatusCode != c.status || !strings.Contains(body, `"code":"`+c.code+`"`) || strings.Contains(body, canary) {
			t.Errorf("%v: %d %s, want %d %s", c.err, resp.StatusCode, body, c.status, c.code)
		}
		if c.err == secret && !strings.Contains(e.logs.String(), canary) { //nolint:errorlint // this very one
			t.Error("the cause is not in the log")
		}
		if !strings.Contains(e.logs.String(), resp.Header.Get("X-Request-Id")) {
			t.Error("the log does not have the request id")
		}
	}
}

func TestProblemMembers(t *testing.T) {
	e := newEdge(t)
	e.answer = func(string, []byte) (any, error) {
		return nil, fault.New(fault.Throttled, "slow", "Slow down.").At("/id").With(map[string]int{"left": 0}).WithRetryAfter(1500 * time.Millisecond)
	}
	resp, body := e.do(t, request{"GET", get, nil, nil})
	var got map[string]any
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	delete(got, "request_id")
	want := map[string]any{
		"title": "Too Many Requests", "status": 429.0, "code": "slow", "kind": "throttled", "detail": "Slow down.",
		"pointer": "/id", "details": map[string]any{"left": 0.0}, "retry_after": 2.0,
	}
	if d := cmp.Diff(want, got); d != "" || resp.Header.Get("Retry-After") != "2" {
		t.Error(d, resp.Header.Get("Retry-After"))
	}
}

func TestPanic(t *testing.T) {
	e := newEdge(t)
	e.answer = func(string, []byte) (any, error) { panic(canary) }
	resp, body := e.do(t, request{"GET", get, nil, nil})
	if resp.StatusCode != 500 || !strings.Contains(body, `"code":"internal"`) {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
	if logs := e.logs.String(); strings.Contains(body+logs, canary) || !strings.Contains(logs, `"panic":"string"`) {
		t.Errorf("the log says %s", logs)
	}
}

func TestBasicAuthorization(t *testing.T) {
	e := newEdge(t)
	req, err := http.NewRequestWithContext(t.Context(), "GET", e.URL+get, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("anybody", key)
	resp, err := e.Client().Do(req)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	_ = resp.Body.Close()
}

func TestHead(t *testing.T) {
	e := newEdge(t)
	for _, path := range []string{get, "/healthz", "/readyz", "/openapi.json", "/"} {
		if resp, body := e.do(t, request{"HEAD", path, nil, nil}); resp.StatusCode != 200 || body != "" || resp.ContentLength <= 0 {
			t.Errorf("HEAD %s: %d %q, %d bytes", path, resp.StatusCode, body, resp.ContentLength)
		}
	}
}

func TestHealth(t *testing.T) {
	var reasons []string
	e := newEdge(t, func(c *v1.Config) { c.Ready = func() []string { return reasons } })
	open := http.Header{"Authorization": nil}
	for _, c := range []struct {
		path, body string
		reasons    []string
		status     int
	}{
		{"/healthz", "ok\n", []string{"x"}, 200},
		{"/readyz", `{"ready":true,"reasons":[]}` + "\n", nil, 200},
		{"/readyz", `{"ready":false,"reasons":["storage: full"]}` + "\n", []string{"storage: full"}, 503},
		{"/metrics", "m 1\n", nil, 200},
		{"/", `{"api":"/openapi.json","docs":"/docs","ready":"/readyz","service":"credstream","version":"1.2.3"}` + "\n", nil, 200},
	} {
		reasons = c.reasons
		if resp, body := e.do(t, request{"GET", c.path, nil, open}); resp.StatusCode != c.status || body != c.body {
			t.Errorf("%s with %q: %d %s", c.path, c.reasons, resp.StatusCode, body)
		}
	}
}

// Clear secrets go over TLS or stay on the machine.
func TestCleartext(t *testing.T) {
	for _, c := range []struct {
		name, path, remote string
		tls, allow, want   bool
	}{
		{"loopback", create, "127.0.0.1:99", false, false, true},
		{"loopback, IPv6", create, "[::1]:99", false, false, true},
		{"loopback, mapped", create, "[::ffff:127.0.0.1]:99", false, false, true},
		{"remote", create, "192.0.2.1:99", false, false, false},
		{"unknown remote", create, "@", false, false, false},
		{"TLS", create, "192.0.2.1:99", true, false, true},
		{"behind a proxy", create, "192.0.2.1:99", false, true, true},
		{"without secrets", "/v1/tenants/acme/commands/credential.rename", "192.0.2.1:99", false, false, true},
	} {
		f := &fake{}
		h := v1.Handler(v1.Config{Service: f, Access: f, AllowCleartext: c.allow})
		r := httptest.NewRequestWithContext(t.Context(), "POST", c.path, strings.NewReader(`{"keys":{}}`))
		r.Header.Set("Authorization", "Bearer "+key)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("X-Forwarded-For", "127.0.0.1") // says nothing
		r.RemoteAddr = c.remote
		if r.TLS = nil; c.tls {
			r.TLS = &tls.ConnectionState{}
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := len(f.asked()) == 1; got != c.want || !c.want && !strings.Contains(w.Body.String(), `"code":"cleartext_refused"`) {
			t.Errorf("%s: served %v, want %v; %s", c.name, got, c.want, w.Body)
		}
	}
}

// Each page of a replay is one of three events; pages answers them.
func pages(t *testing.T, fail uint64) func(string, []byte) (any, error) {
	return func(_ string, body []byte) (any, error) {
		var in admin.ReplayEvents
		if err := json.Unmarshal(body, &in); err != nil {
			t.Error(err)
		}
		in.From = max(in.From, 1)
		if in.From == fail {
			return nil, errors.New(canary)
		}
		r := admin.Replay{Events: []admin.ReplayedEvent{}}
		for i := range uint64(min(3, in.Limit)) {
			if seq := in.From + i; seq <= 8 {
				r.Events = append(r.Events, admin.ReplayedEvent{SpecVersion: "1.0", LogSeq: seq, Data: []byte("{}")})
			}
		}
		if n := uint64(len(r.Events)); in.From+n <= 8 {
			r.Next = in.From + n
		}
		return r, nil
	}
}

func TestReplayLines(t *testing.T) {
	accept := http.Header{"Accept": {"application/x-ndjson, */*;q=0.1"}}
	for _, c := range []struct {
		query string
		want  []uint64
	}{
		{"", []uint64{1, 2, 3, 4, 5, 6, 7, 8}},
		{"?from=6", []uint64{6, 7, 8}},
		{"?from=2&limit=4", []uint64{2, 3, 4, 5}},
		{"?from=9", nil},
	} {
		e := newEdge(t)
		e.answer = pages(t, 0)
		resp, body := e.do(t, request{"GET", "/v1/tenants/acme/events.replay" + c.query, nil, accept})
		if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/x-ndjson" {
			t.Errorf("%q: %d %s", c.query, resp.StatusCode, resp.Header)
		}
		var got []uint64
		for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
			var event struct{ LogSeq uint64 }
			if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
				t.Fatal(err)
			}
			got = append(got, event.LogSeq)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%q: %s", c.query, d)
		}
	}
}

// A part of a replay must not look like the whole.
func TestReplayCut(t *testing.T) {
	e := newEdge(t)
	e.answer = pages(t, 4)
	req, err := http.NewRequestWithContext(t.Context(), "GET", e.URL+"/v1/tenants/acme/events.replay", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := e.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err == nil || strings.Count(string(b), "\n") != 3 || strings.Contains(string(b), canary) {
		t.Errorf("read %s with error %v", b, err)
	}

	e = newEdge(t)
	e.answer = pages(t, 1)
	if resp, body := e.do(t, request{"GET", "/v1/tenants/acme/events.replay", nil, http.Header{"Accept": {"application/x-ndjson"}}}); resp.StatusCode != 500 {
		t.Errorf("the first page fails with %d %s", resp.StatusCode, body)
	}
}

// A replay ends when its key does: between two pages, while a page is gathered or
// waited for, and while its client does not read.
func TestReplayEndsWithItsKey(t *testing.T) {
	event := admin.ReplayedEvent{SpecVersion: "1.0", Data: []byte(`"` + strings.Repeat("x", 1000) + `"`)}
	endless := func(string, []byte) (any, error) {
		time.Sleep(time.Millisecond) // leaves the machine to the others
		return admin.Replay{Events: []admin.ReplayedEvent{event}, Next: 1, End: 2}, nil
	}
	for name, tc := range map[string]struct {
		reads  bool
		answer func(n int, route string, body []byte) (any, error)
	}{
		"reading": {true, func(_ int, route string, body []byte) (any, error) { return endless(route, body) }},
		"limited": {true, func(n int, route string, body []byte) (any, error) {
			if n > 1 {
				return nil, access.ErrRateLimited.WithRetryAfter(time.Hour)
			}
			return endless(route, body)
		}},
		"not reading": {false, func(_ int, route string, body []byte) (any, error) { return endless(route, body) }},
	} {
		for _, credential := range []string{key, token} {
			e := newEdge(t)
			n := 0
			e.answer = func(route string, body []byte) (any, error) { n++; return tc.answer(n, route, body) }
			req, err := http.NewRequestWithContext(t.Context(), "GET", e.URL+"/v1/tenants/acme/events.replay", nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+credential)
			req.Header.Set("Accept", "application/x-ndjson")
			resp, err := e.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 200 {
				t.Fatalf("%s: %d", name, resp.StatusCode)
			}
			if _, err := io.ReadFull(resp.Body, make([]byte, 1000)); err != nil {
				t.Fatal(err)
			}
			if !tc.reads { // until what is sent fills the buffers of the connection
				for calls := 0; ; {
					time.Sleep(50 * time.Millisecond)
					if now := len(e.asked()); now == 0 && calls == 0 {
						break
					} else {
						calls = now
					}
				}
			}
			e.revoked.Store(true)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for !strings.Contains(e.logs.String(), `"route":"/v1/tenants/{tenant}/events.replay"`) {
					time.Sleep(5 * time.Millisecond)
				}
			}()
			if tc.reads {
				if _, err := io.Copy(io.Discard, resp.Body); err == nil {
					t.Errorf("%s: a part of the replay looks like the whole", name)
				}
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Errorf("%s: the replay goes on", name)
			}
			if log := e.logs.String(); !strings.Contains(log, `"code":"api_key_unknown"`) && !strings.Contains(log, `"code":"token_invalid"`) {
				t.Errorf("%s: the log says %s", name, log)
			}
			_ = resp.Body.Close()
		}
	}
}

// The rate limit slows a replay down that is under way, and refuses one that begins.
func TestReplayLimited(t *testing.T) {
	e := newEdge(t)
	lines := http.Header{"Accept": {"application/x-ndjson"}}
	calls, answer := 0, pages(t, 0)
	e.answer = func(route string, body []byte) (any, error) {
		if calls++; calls%2 == 0 {
			return nil, access.ErrRateLimited.WithRetryAfter(time.Millisecond)
		}
		return answer(route, body)
	}
	if resp, body := e.do(t, request{"GET", "/v1/tenants/acme/events.replay", nil, lines}); resp.StatusCode != 200 || strings.Count(body, "\n") != 8 || calls != 5 {
		t.Errorf("%d with %d calls: %s", resp.StatusCode, calls, body)
	}
	e.answer = func(string, []byte) (any, error) { return nil, access.ErrRateLimited.WithRetryAfter(time.Millisecond) }
	if resp, _ := e.do(t, request{"GET", "/v1/tenants/acme/events.replay", nil, lines}); resp.StatusCode != 429 || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("one that begins is answered %s", resp.Status)
	}
}

func TestLogLine(t *testing.T) {
	e := newEdge(t)
	e.do(t, request{"POST", create + "?x=" + canary, strings.NewReader(`{"keys":{"k":"` + canary + `"}}`), nil})
	var line map[string]any
	if err := json.Unmarshal([]byte(e.logs.String()), &line); err != nil {
		t.Fatalf("%v in %s", err, e.logs.String())
	}
	for _, name := range []string{"time", "duration", "request_id"} {
		delete(line, name)
	}
	want := map[string]any{
		"level": "INFO", "msg": "request", "method": "POST", "route": "/v1/tenants/{tenant}/commands/credential.create",
		"status": 200.0, "principal": "k1", "tenant": "acme",
	}
	if d := cmp.Diff(want, line); d != "" {
		t.Error(d)
	}
}

func TestOpenAPI(t *testing.T) {
	e := newEdge(t)
	resp, body := e.do(t, request{"GET", "/openapi.json", nil, http.Header{"Authorization": nil}})
	if resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode)
	}
	type operation struct {
		OperationID string
		Parameters  []struct{ Name, In string }
		RequestBody struct {
			Content map[string]struct{ Schema json.RawMessage }
		}
		Responses map[string]json.RawMessage
	}
	var doc struct {
		OpenAPI string
		Info    struct{ Version string }
		Paths   map[string]map[string]operation
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" || doc.Info.Version != "1.2.3" || len(doc.Paths) != len(application.Routes())+8 { // those of the edge, the short one of oauth.connect, and that of flow events
		t.Errorf("OpenAPI %s of %s with %d paths", doc.OpenAPI, doc.Info.Version, len(doc.Paths))
	}
	for _, r := range application.Routes() {
		path, method := "/v1/tenants/{tenant}/"+r.Name, "get"
		if r.Command {
			path, method = "/v1/tenants/{tenant}/commands/"+r.Name, "post"
		}
		op, ok := doc.Paths[path][method]
		if !ok || op.OperationID != r.Name || op.Responses["200"] == nil || op.Responses["default"] == nil {
			t.Errorf("%s is not described: %+v", r.Name, op)
		}
		if r.Command {
			if op.RequestBody.Content["application/json"].Schema == nil {
				t.Errorf("%s has no body", r.Name)
			}
			continue
		}
		// Every member of a query's input can be given in a URL.
		inURL := 0
		for _, p := range op.Parameters {
			if p.In != "header" {
				inURL++
			}
		}
		if want := 1 + r.In.NumField(); inURL != want {
			t.Errorf("%s has %d parameters in its URL, want %d", r.Name, inURL, want)
		}
	}
	// Every schema compiles, so every reference in it leads somewhere.
	compiler, root := compilerOf(t, body)
	schemas := root["components"].(map[string]any)["schemas"].(map[string]any)
	for name := range schemas {
		if _, err := compiler.Compile("file:///openapi.json#/components/schemas/" + name); err != nil {
			t.Errorf("schema %s: %v", name, err)
		}
	}
	create, err := compiler.Compile("file:///openapi.json#/components/schemas/CredentialCreate")
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]bool{
		`{"component":"c","keys":{"a":"b","n":{"x":1}}}`: true,
		`{"component":"c","keys":"x"}`:                   false,
		`{"component":"c"}`:                              false,
		`{"component":"c","keys":{},"other":1}`:          false,
	} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(in))
		if err != nil {
			t.Fatal(err)
		}
		if err := create.Validate(v); (err == nil) != want {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func BenchmarkGet(b *testing.B) {
	f := &quiet{}
	h := v1.Handler(v1.Config{Service: f, Access: f, Logger: slog.New(slog.NewTextHandler(&discard{}, nil))}) // as in production, lines are written
	r := httptest.NewRequestWithContext(b.Context(), "GET", get+"?id=0198c1aa-0000-7000-8000-000000000000", nil)
	r.Header.Set("Authorization", "Bearer "+key)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(&discard{h: http.Header{}}, r)
	}
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// quiet answers one credential, always.
type quiet struct{ fake }

func (*quiet) Serve(context.Context, service.Call, string, []byte) (any, error) {
	return credential.Credential{ID: "0198c1aa", Component: "petstore", Name: "n", Status: events.Verified, Keys: map[string]any{"apiKey": secrets.Mask}}, nil
}
