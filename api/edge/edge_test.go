package edge_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/credstream/credstream/api/connect"
	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/api/elasticio"
	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	serviceconnect "github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

const canary = "canary-5e7"

// panicking is a service that knows every caller and panics with each call.
type panicking struct{ received service.Call }

func (*panicking) Authenticate(context.Context, string, netip.Addr) (service.Principal, error) {
	return service.Principal{Home: "acme", Tenants: []string{"acme"}, Role: permission.Administrator}, nil
}

func (p *panicking) AuthenticateCertificate(ctx context.Context, _ *x509.Certificate, from netip.Addr) (service.Principal, error) {
	return p.Authenticate(ctx, "", from)
}

func (p *panicking) AuthenticateToken(ctx context.Context, token string, from netip.Addr) (service.Principal, error) {
	return p.Authenticate(ctx, token, from)
}

func (p *panicking) Receive(_ context.Context, call *service.Call, _ int64, read func() ([]byte, error)) ([]byte, func(), error) {
	p.received = *call
	body, err := read()
	return body, func() {}, err
}

func (*panicking) Serve(context.Context, service.Call, string, []byte) (any, error) { panic(canary) }

func (*panicking) Require(context.Context, service.Call, string, permission.Permission) error {
	return nil
}

func (*panicking) ChangeFlow(context.Context, service.Call, string, []byte) (flow.Flow, error) {
	panic(canary)
}

func (*panicking) OpenLink(context.Context, string, netip.Addr, serviceconnect.Browser) (serviceconnect.OpenedLink, error) {
	panic(canary)
}

func (*panicking) ReturnConnection(context.Context, serviceconnect.Callback) (serviceconnect.Returned, error) {
	panic(canary)
}

// surface is one HTTP surface: a path that reaches the service, one that is refused before,
// a command, and the member of its error document that holds the request id.
type surface struct {
	name, panics, refused, command string
	handler                        http.Handler
	requestID                      func(body []byte) string
	log                            *bytes.Buffer
	service                        *panicking
}

func surfaces() []surface {
	problem := func(body []byte) string {
		var p fault.Problem
		_ = json.Unmarshal(body, &p)
		return p.RequestID
	}
	document := func(body []byte) string {
		var d struct{ Errors []struct{ ID string } }
		if json.Unmarshal(body, &d) != nil || len(d.Errors) != 1 {
			return ""
		}
		return d.Errors[0].ID
	}
	list := []surface{
		{name: "v1", panics: "/v1/tenants/acme/credential.get?id=x", refused: "/v1/none", command: "/v1/tenants/acme/commands/credential.rename", requestID: problem},
		{name: "v2", panics: "/v2/credentials/x", refused: "/v2/none", command: "/v2/credentials", requestID: document},
		{name: "oauth", panics: "/oauth/connect/x", refused: "/oauth/none", requestID: problem},
	}
	for i := range list {
		p, log := &panicking{}, &bytes.Buffer{}
		logger := slog.New(slog.NewJSONHandler(log, nil))
		list[i].service, list[i].log = p, log
		list[i].handler = map[string]http.Handler{
			"v1":    v1.Handler(v1.Config{Service: p, Access: p, Logger: logger}),
			"v2":    elasticio.Handler(elasticio.Config{Service: p, Access: p, Flows: p, Logger: logger}),
			"oauth": connect.New(connect.Config{Service: p, Logger: logger}),
		}[list[i].name]
	}
	return list
}

func (s surface) send(method, path string, header http.Header, body io.Reader) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, body)
	r.Header.Set("Authorization", "Bearer key")
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	maps.Copy(r.Header, header)
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// lines are the log lines so far, which are forgotten.
func (s surface) lines(t *testing.T) (list []map[string]any) {
	t.Helper()
	for d := json.NewDecoder(s.log); d.More(); {
		var line map[string]any
		if err := d.Decode(&line); err != nil {
			t.Fatal(err)
		}
		list = append(list, line)
	}
	return list
}

// Every surface takes the sender's request id when it is a good one, else makes one, and
// repeats it in the header, the error document and the one log line of the request. A panic
// is a refusal like others, whose value nobody sees.
func TestRequestIDsAndPanics(t *testing.T) {
	for _, s := range surfaces() {
		seen := map[string]bool{}
		for name, given := range map[string][]string{
			"given": {"mine-1"}, "absent": nil, "invalid": {"a b"}, "too long": {strings.Repeat("x", 200)}, "two": {"mine-2", "mine-3"},
		} {
			for path, status := range map[string]int{s.panics: 500, s.refused: 404} {
				w := s.send("GET", path, http.Header{"X-Request-Id": given}, nil)
				id := w.Header().Get("X-Request-Id")
				if w.Code != status || len(w.Header()["X-Request-Id"]) != 1 || s.requestID(w.Body.Bytes()) != id {
					t.Errorf("%s, %s: %d with the id %q: %s", path, name, w.Code, id, w.Body)
				}
				if name == "given" && id != "mine-1" || name != "given" && (seen[id] || !service.GoodRequestID(id) || strings.HasPrefix(id, "mine")) {
					t.Errorf("%s, %s: the id is %q", path, name, id)
				}
				seen[id] = true
				if strings.Contains(w.Body.String()+s.log.String(), canary) {
					t.Errorf("%s: the value of a panic is shown: %s %s", path, w.Body, s.log)
				}
				lines := s.lines(t)
				if len(lines) != 1 || lines[0]["request_id"] != id || lines[0]["status"] != float64(status) || (status == 500) != (lines[0]["panic"] == "string") {
					t.Errorf("%s, %s: the log is %v", path, name, lines)
				}
			}
		}
	}
}

// Every response has the headers that keep a browser from doing anything with it, and the
// refusal of a page of another origin is in the dialect of its surface and in the log.
func TestBrowsers(t *testing.T) {
	for _, s := range surfaces() {
		for _, path := range []string{s.panics, s.refused, s.command} {
			if path == "" {
				continue
			}
			method := "GET"
			if path == s.command {
				method = "POST"
			}
			w := s.send(method, path, http.Header{"Sec-Fetch-Site": {"cross-site"}, "X-Request-Id": {"mine-1"}}, nil)
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin",
			} {
				if got := w.Header().Values(name); len(got) != 1 || got[0] != want {
					t.Errorf("%s: %s is %q", path, name, got)
				}
			}
			if policy := w.Header().Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none';") || !strings.Contains(policy, "frame-ancestors 'none'") {
				t.Errorf("%s: the policy is %q", path, policy)
			}
			lines := s.lines(t)
			if path == s.command && (w.Code != 403 || s.requestID(w.Body.Bytes()) != "mine-1" || len(lines) != 1 || lines[0]["code"] != "cross_origin_refused") {
				t.Errorf("%s %s: %d %s, the log is %v", method, path, w.Code, w.Body, lines)
			}
		}
	}
}

// A command carries what its headers say, on each surface alike.
func TestHeadersOfCommands(t *testing.T) {
	for _, s := range surfaces() {
		if s.command == "" {
			continue
		}
		s.send("POST", s.command, http.Header{"Idempotency-Key": {"c-1"}, "X-Correlation-Id": {"o-1"}, "X-Request-Deadline": {"2031-01-31T12:00:00Z"}}, strings.NewReader("{}"))
		if c := s.service.received; c.CommandID != "c-1" || c.Correlation != "o-1" || c.Deadline.Year() != 2031 || c.Tenant != "acme" || c.Via != "http" {
			t.Errorf("%s: the call is %+v", s.name, c)
		}
		for header, code := range map[string]string{"Idempotency-Key": "command_id_invalid", "X-Correlation-Id": "correlation_id_invalid", "X-Request-Deadline": "deadline_invalid"} {
			if w := s.send("POST", s.command, http.Header{header: {"a b"}}, nil); w.Code != 400 || !strings.Contains(w.Body.String(), code) {
				t.Errorf("%s, %s: %d %s", s.name, header, w.Code, w.Body)
			}
			if w := s.send("POST", s.command, http.Header{header: {"a", "b"}}, nil); w.Code != 400 || !strings.Contains(w.Body.String(), edge.ErrHeaderTwice.Code) {
				t.Errorf("%s, %s twice: %d %s", s.name, header, w.Code, w.Body)
			}
		}
	}
}
