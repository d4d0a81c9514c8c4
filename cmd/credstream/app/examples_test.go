package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"

	v1 "github.com/credstream/credstream/api/v1"
)

// documented is one operation of the OpenAPI document with its example.
type documented struct {
	id, method, path string
	query            url.Values
	header           http.Header
	body             []byte
}

// documentedBy reads the document of a running service.
func documentedBy(t *testing.T, base string) (list []documented) {
	t.Helper()
	resp, err := http.Get(base + "/openapi.json")
	must(t, err)
	defer resp.Body.Close()
	var doc struct {
		Paths map[string]map[string]struct {
			OperationID string
			Parameters  []struct {
				Name, In string
				Required bool
				Example  any
			}
			RequestBody *struct {
				Content map[string]struct{ Example json.RawMessage }
			}
		}
	}
	must(t, json.NewDecoder(resp.Body).Decode(&doc))
	for path, item := range doc.Paths {
		for method, op := range item {
			d := documented{id: op.OperationID, method: strings.ToUpper(method), path: path, query: url.Values{}, header: http.Header{}}
			for _, p := range op.Parameters {
				if p.Example == nil {
					if p.Required {
						t.Errorf("%s: no example of the parameter %s", d.id, p.Name)
					}
					continue
				}
				value := fmt.Sprint(p.Example)
				switch p.In {
				case "path":
					d.path = strings.ReplaceAll(d.path, "{"+p.Name+"}", url.PathEscape(value))
				case "query":
					d.query.Set(p.Name, value)
				case "header":
					d.header.Set(p.Name, value)
				}
			}
			if op.RequestBody != nil {
				for media, content := range op.RequestBody.Content {
					if content.Example == nil {
						t.Errorf("%s: no example of the body", d.id)
					}
					d.header.Set("Content-Type", media)
					d.body = content.Example
				}
			}
			list = append(list, d)
		}
	}
	return list
}

// Every documented example is sent as it stands to a real service, the ids that
// the service makes put in their places. What makes things goes first, what ends
// them last.
func TestDocumentedExamples(t *testing.T) {
	u := bring(t, t.TempDir(), func(c *Config) { c.ConnectReturnTo = "https://app.example.org" })
	calendar, err := os.ReadFile("../../../docs/examples/calendar-component.json")
	must(t, err)
	must(t, u.command("component.register", "", map[string]any{"id": "calendar", "descriptor": json.RawMessage(calendar)}, nil))
	must(t, u.command("oauth_client.define", "", map[string]any{"component": "calendar", "client_id": "demo-client", "client_secret": "demo-secret"}, nil))
	first := []string{
		"component.register", "component.set-env", "oauth_client.define", "throttle_policy.define", "role.define", "webhook.define", "credential.create", "credential.replace-keys", "oauth.connect", "auth_secret.create", "auth_client.create", "flow.bind", "api_key.issue", "connector_secret.put", "connector.put",
		"v2.components.create", "v2.oauth-clients.create", "v2.credentials.create", "v2.secrets.create", "v2.auth-clients.create", "v2.flows.create",
	}
	last := []string{
		"webhook.delete", "connector.delete", "connector_secret.delete",
		"flow.release", "auth_secret.delete", "auth_client.delete", "credential.delete", "oauth_client.delete", "component.delete", "api_key.revoke",
		"v2.flows.delete", "v2.secrets.delete", "v2.auth-clients.delete", "v2.credentials.delete", "v2.oauth-clients.delete", "v2.components.delete",
		"tenant.erasure", "tenant.erase",
	}
	place := func(d documented) int {
		if i := slices.Index(first, d.id); i >= 0 {
			return i - len(first)
		}
		return slices.Index(last, d.id) + 1
	}
	list := documentedBy(t, u.base)
	slices.SortFunc(list, func(a, b documented) int {
		if d := place(a) - place(b); d != 0 {
			return d
		}
		return strings.Compare(a.id, b.id)
	})
	want := map[string]int{ // of those that cannot be obeyed in an empty service
		"webhook.redeliver": 404,                                        // nothing was delivered
		"queue.get":         404, "queue.retry": 404, "queue.drop": 404, // no message has failed
		"credential.refresh": 409, "auth_secret.refresh": 409, "v2.secrets.refresh": 409, "credential.revoke": 409, // there are no tokens
		"oauth.complete":     409,                                                                                  // nobody has come back
		"credential.resolve": 403, "credential.reveal": 403, "oauth_client.reveal": 403, "auth_client.reveal": 403, // no role does this
		"connector_secret.reveal": 403, // likewise
		"throttle_policy.delete":  409, // a credential has it
		"throttle.take":           403, // the permission of flow engines
	}
	made := map[string]string{} // ids by what they are of
	for _, d := range list {
		noun := d.id[:max(0, strings.LastIndexByte(d.id, '.'))]
		verb := strings.TrimPrefix(d.id, noun)
		switch noun { // the id in a flow is its credential's
		case "flow":
			noun = "credential"
		case "v2.flows":
			noun = "v2.credentials"
		}
		put := func(s string) string {
			if made[noun] == "" {
				return s
			}
			return strings.ReplaceAll(s, v1.ExampleID, made[noun])
		}
		target := u.base + put(d.path)
		if len(d.query) > 0 {
			target += "?" + put(d.query.Encode())
		}
		req, err := http.NewRequestWithContext(t.Context(), d.method, target, strings.NewReader(put(string(d.body))))
		must(t, err)
		req.Header = d.header
		req.SetBasicAuth("me@example.com", adminKey)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		answer, err := io.ReadAll(resp.Body)
		must(t, err)
		_ = resp.Body.Close()
		status := 200
		if s, ok := want[d.id]; ok {
			status = s
		}
		if strings.HasPrefix(d.id, "v2.") && verb == ".create" {
			status = 201
		} else if strings.HasPrefix(d.id, "v2.") && verb == ".delete" {
			status = 204
		}
		if resp.StatusCode != status {
			t.Errorf("%s: %d %s, want %d", d.id, resp.StatusCode, bytes.TrimSpace(answer), status)
		}
		switch resp.StatusCode { // what no example may earn, on any surface
		case 400, 401, 405, 406, 411, 413, 414, 415, 422, 500:
			t.Errorf("%s %s: %d %s", d.method, d.path, resp.StatusCode, bytes.TrimSpace(answer))
		}
		var done struct {
			ID   string
			Data struct{ ID string }
		}
		if made[noun] == "" && resp.StatusCode < 300 && json.Unmarshal(answer, &done) == nil {
			made[noun] = done.ID + done.Data.ID // one of them
		}
	}
	if len(list) < 60 || made["credential"] == "" || made["oauth_client"] == "" || made["api_key"] == "" || made["v2.credentials"] == "" {
		t.Errorf("%d examples made %v", len(list), made)
	}
}

// Twenty wrong keys a minute come from one address; the right one comes through.
func TestWrongKeysFromOneAddress(t *testing.T) {
	u := bring(t, t.TempDir(), func(c *Config) { c.WrongKeys = 20 })
	ask := func(key string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", u.base+"/v1/tenants/default/component.list", nil)
		must(t, err)
		if key != "" {
			req.SetBasicAuth("me@example.com", key)
		}
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		_ = resp.Body.Close()
		return resp
	}
	for i := range 20 {
		if resp := ask("cs_" + strings.Repeat("wrong", 10)); resp.StatusCode != 401 {
			t.Fatalf("wrong key %d: %s", i+1, resp.Status)
		}
	}
	for _, key := range []string{"cs_" + strings.Repeat("wrong", 10), ""} {
		resp := ask(key)
		if after := resp.Header.Get("Retry-After"); resp.StatusCode != 429 || after == "" || after == "0" {
			t.Errorf("after twenty wrong keys %q is answered %s, Retry-After %q", key, resp.Status, after)
		}
	}
	if resp := ask(adminKey); resp.StatusCode != 200 {
		t.Errorf("a right key is answered %s", resp.Status)
	}
	if resp, err := http.Get(u.base + "/readyz"); err != nil || resp.StatusCode != 200 {
		t.Errorf("readiness: %v %v", resp, err)
	}
}

// The limits hold on both edges, with the time to wait.
func TestRateOnBothEdges(t *testing.T) {
	u := bring(t, t.TempDir(), func(c *Config) { c.RatePerKey = 1 })
	status, code := 0, ""
	for range 100 { // two at once, ten a second: no machine is that slow
		req, err := http.NewRequestWithContext(t.Context(), "POST", u.base+"/v1/tenants/default/commands/component.share", strings.NewReader(`{"id":"none"}`))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.SetBasicAuth("x", adminKey)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		var p struct{ Code string }
		must(t, json.NewDecoder(resp.Body).Decode(&p))
		_ = resp.Body.Close()
		if status, code = resp.StatusCode, p.Code; status == 429 {
			if resp.Header.Get("Retry-After") != "1" {
				t.Errorf("Retry-After is %q", resp.Header.Get("Retry-After"))
			}
			break
		}
	}
	if status != 429 || code != "rate_limited" {
		t.Errorf("a hundred commands end with %d %s", status, code)
	}
	nc := u.connect(t, adminKey)
	for range 100 {
		m, err := nc.RequestWithContext(t.Context(), "credstream.cmd.default.component.share", []byte(`{"id":"none"}`))
		must(t, err)
		if code = m.Header.Get("Nats-Service-Error-Code"); code == "429" || strings.Contains(string(m.Data), "rate_limited") {
			return
		}
	}
	t.Errorf("over NATS a hundred commands end with %s", code)
}
