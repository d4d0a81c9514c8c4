package aspire_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credstream/credstream/api/aspire"
	"github.com/credstream/credstream/service/stage"
)

// Each line of the contract, after the vendor's example ids were imported.
func TestRoutes(t *testing.T) {
	s := stage.New(t)
	server := httptest.NewServer(aspire.Handler(aspire.Config{Service: s.Service, Access: s.Service.Access, Logger: slog.New(slog.NewJSONHandler(s.Logs, nil))}))
	t.Cleanup(server.Close)
	admin, operator, engine := s.Key("default", `{"role":"ADMINISTRATOR"}`), s.Key("default", `{"role":"OPERATOR"}`), s.Key("default", `{"role":"FLOW_ENGINE"}`)
	send := func(key, method, path, body string, headers ...string) (int, string, http.Header) {
		t.Helper()
		req := stage.Must(http.NewRequestWithContext(t.Context(), method, server.URL+"/aspire/_api/"+path, strings.NewReader(body)))(t)
		if key != "" {
			req.SetBasicAuth("anybody", key)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			req.Header.Set(name, value)
		}
		resp := stage.Must(http.DefaultClient.Do(req))(t)
		defer resp.Body.Close()
		return resp.StatusCode, string(stage.Must(io.ReadAll(resp.Body))(t)), resp.Header
	}
	const masked = `"properties":{"domain":"********","password":"********","user":"********"}`
	one := func(id string) string {
		return `{"id":"` + id + `","type":"filesystem","description":"xxxx",` + masked + `}`
	}
	add := func(id string) string {
		return `{"id":"` + id + `","type":"filesystem","description":"xxxx","properties":{"domain":"canary","user":"canary","password":"canary"}}`
	}
	limited := func(id string) string {
		return `{"id":"` + id + `","type":"filesystem","description":"xxxx","throttlePolicy":"POLICY_ID",` + masked + `}`
	}
	policy := func(id string) string {
		return `{"id":"` + id + `","type":"throttle","description":"Throttle","timeUnit":"m","numberOfDocuments":"100"}`
	}
	for _, c := range []struct {
		key, request, body string
		status             int
		want               string // the whole answer, or a part of it when it begins with "..."
	}{
		{"", "GET credentials", "", 401, "...unauthenticated"},
		{engine, "GET credentials", "", 403, "...credentials.export"},
		{operator, "POST credentials", add("x"), 403, "...permission_denied"},
		{
			admin, "POST credentials", "[" + add("AAABcID5GBc") + "," + add("AAABcID5GBd") + "," + add("AAABcID5GBc=") + "," + add("AAABcID5GBd=") + "]", 201,
			`{"credential":[` + one("AAABcID5GBc") + "," + one("AAABcID5GBd") + "," + one("AAABcID5GBc=") + "," + one("AAABcID5GBd=") + "]}",
		},
		{admin, "POST credentials", add("AAABcID5GBc="), 406, "...credential_exists"},
		{admin, "POST credentials", `{"type":"filesystem","properties":{}}`, 406, "...description is required"},
		{admin, "POST credentials", `{"type":"filesystem","description":"","properties":{"a":"********"}}`, 406, "...keys_masked"},
		{admin, "POST credentials", `{"type":"t","description":"","properties":{},"x":1}`, 406, "...body_invalid"},
		{admin, "POST credentials", `[]`, 406, "...body_invalid"},
		{operator, "GET credentials/AAABcID5GBc%3D", "", 200, `{"credential":` + one("AAABcID5GBc=") + `}`},
		{operator, "GET credentials/none", "", 404, "...credential_not_found"},
		{operator, "GET credentials", "", 200, `{"count":{"totalItems":4},"credential":[` + one("AAABcID5GBc") + "," + one("AAABcID5GBc=") + "," + one("AAABcID5GBd") + "," + one("AAABcID5GBd=") + "]}"},
		{operator, "GET credentials?from=1&size=1&sortBy=id&sortMode=desc&sparse=true", "", 200, `{"count":{"from":1,"size":1,"totalItems":4},"credential":[{"id":"AAABcID5GBd","type":"filesystem","description":"xxxx"}]}`},
		{operator, "GET credentials?size=0", "", 200, `{"count":{"from":0,"size":0,"totalItems":4},"credential":[]}`},
		{operator, "GET credentials?size=x", "", 406, "...aspire_parameter_invalid"},
		{operator, "POST credentials/getAll", `{"filter":{"ids":["AAABcID5GBc="],"type":"filesystem","description":"XX"}}`, 200, `{"count":{"totalItems":1},"credential":[` + one("AAABcID5GBc=") + "]}"},
		{operator, "POST credentials/getAll", `{"filter":{"ids":"none"}}`, 200, `{"count":{"totalItems":0},"credential":[]}`},
		{operator, "POST credentials/getAll", `{"filter":{"name":"x"}}`, 406, "...body_invalid"},
		{admin, "PUT credentials/AAABcID5GBc", `{"description":"yyyy"}`, 200, `{"credential":[{"id":"AAABcID5GBc","updated":true}]}`},
		{admin, "PUT credentials/AAABcID5GBc", `{"id":"other","description":"yyyy"}`, 406, "...differs"},
		{admin, "PUT credentials/AAABcID5GBc", `{"type":"t","description":"yyyy"}`, 406, "...type"},
		{admin, "PUT credentials/AAABcID5GBc", `{}`, 406, "...at least one"},
		{admin, "PUT credentials/none", `{"description":"yyyy"}`, 404, "...credential_not_found"},
		{operator, "POST policies", policy("POLICY_ID"), 403, "...permission_denied"},
		{engine, "GET policies", "", 403, "...credentials.export"},
		{admin, "POST policies", policy("POLICY_ID"), 201, `{"policy":[` + policy("POLICY_ID") + `]}`},
		{
			admin, "POST policies", "[" + policy("P=") + `,{"id":"x","type":"throttle","timeUnit":"w","numberOfDocuments":"1"},` + policy("P=") + "]", 201,
			`{"error":[{"id":"x","status":406,"code":"throttle_period_invalid","message":"timeUnit must be s, m, h or d: a second, minute, hour or day."},` +
				`{"id":"P=","status":406,"code":"throttle_policy_exists","message":"A throttle policy with this id already exists."}],"policy":[` + policy("P=") + `]}`,
		},
		{admin, "POST policies", `{"type":"other","timeUnit":"m","numberOfDocuments":"1"}`, 406, "...must be throttle"},
		{admin, "POST policies", `{"type":"throttle","timeUnit":"m","numberOfDocuments":"0"}`, 406, "...throttle_tokens_invalid"},
		{admin, "POST policies", `{"type":"throttle","timeUnit":"m"}`, 406, "...requires type"},
		{operator, "GET policies", "", 200, `{"count":{"totalItems":2},"policy":[` + policy("P=") + "," + policy("POLICY_ID") + "]}"},
		{operator, "GET policies?from=1&size=5", "", 200, `{"count":{"from":1,"size":1,"totalItems":2},"policy":[` + policy("POLICY_ID") + "]}"},
		{operator, "GET policies/P%3D", "", 200, `{"policy":` + policy("P=") + "}"},
		{operator, "GET policies/none", "", 404, "...throttle_policy_not_found"},
		{admin, "PUT policies/P%3D", `{"numberOfDocuments":50,"timeUnit":"h"}`, 200, `{"policy":[{"id":"P=","updated":true}]}`},
		{
			admin, "PUT policies", `{"P=":{"description":"d"},"none":{"description":"d"}}`, 200,
			`{"error":[{"id":"none","status":404,"code":"throttle_policy_not_found","message":"Throttle policy not found."}],"policy":[{"id":"P=","updated":true}]}`,
		},
		{admin, "PUT policies/P%3D", `{}`, 406, "...at least one"},
		{operator, "GET policies/P%3D", "", 200, `{"policy":{"id":"P=","type":"throttle","description":"d","timeUnit":"h","numberOfDocuments":"50"}}`},
		{admin, "PUT credentials/AAABcID5GBd%3D", `{"throttlePolicy":"none"}`, 406, "...throttle_policy_unknown"},
		{admin, "PUT credentials/AAABcID5GBd%3D", `{"throttlePolicy":"POLICY_ID"}`, 200, `{"credential":[{"id":"AAABcID5GBd=","updated":true}]}`},
		{operator, "POST credentials/getAll", `{"filter":{"throttlePolicy":"POLICY_ID"}}`, 200, `{"count":{"totalItems":1},"credential":[` + limited("AAABcID5GBd=") + "]}"},
		{operator, "GET credentials?size=1&sortBy=throttlePolicy&sortMode=desc", "", 200, `{"count":{"from":0,"size":1,"totalItems":4},"credential":[` + limited("AAABcID5GBd=") + "]}"},
		{admin, "DELETE policies/POLICY_ID", "", 406, "...AAABcID5GBd="},
		{operator, "POST credentials/exportAll", `{"filter":{"throttlePolicy":"POLICY_ID"}}`, 200, `{"export":{"credentials":{"credential":[{"id":"AAABcID5GBd=","type":"filesystem","description":"xxxx","throttlePolicy":"POLICY_ID","properties":{}}]},` +
			`"policies":{"policy":[` + policy("POLICY_ID") + `]}},"missing":[{"credential":"AAABcID5GBd=","properties":["domain","password","user"],"message":"Secrets are not exported in clear. Enter them again after the import."}]}`},
		{admin, "POST credentials/updateAll", `{"filter":{"throttlePolicy":"POLICY_ID"},"update":{"throttlePolicy":null}}`, 200, `{"credential":[{"id":"AAABcID5GBd=","updated":true}]}`},
		{operator, "GET credentials/AAABcID5GBd%3D", "", 200, `{"credential":` + one("AAABcID5GBd=") + "}"},
		{admin, "DELETE policies/POLICY_ID", "", 200, `{"message":"1 policy deleted."}`},
		{admin, "DELETE policies?id=none&id=P%3D", "", 200, `{"error":[{"id":"none","status":404,"code":"throttle_policy_not_found","message":"Throttle policy not found."}],"message":"1 policy deleted."}`},
		{admin, "POST policies/delete", `{"ids":["P="]}`, 404, "...throttle_policy_not_found"},
		{admin, "GET policies/delete", "", 404, "...throttle_policy_not_found"},
		{
			admin, "PUT credentials", `{"AAABcID5GBc=":{"id":"AAABcID5GBc=","properties":{"q":{"a":"canary"}}},"none":{"id":"none","description":"d"}}`, 200,
			`{"credential":[{"id":"AAABcID5GBc=","updated":true}],"error":[{"id":"none","status":404,"code":"credential_not_found","message":"Credential not found."}]}`,
		},
		{admin, "PUT credentials", `{"id":"AAABcID5GBd","description":"zzzz"}`, 200, `{"credential":[{"id":"AAABcID5GBd","updated":true}]}`},
		{admin, "POST credentials/updateAll", `{"filter":{"description":"ZZ"},"update":{"description":"updated"}}`, 200, `{"credential":[{"id":"AAABcID5GBd","updated":true}]}`},
		{admin, "POST credentials/updateAll", `{"filter":{},"update":{"description":"updated"}}`, 406, "...member_missing"},
		{operator, "GET credentials/export/AAABcID5GBd%3D", "", 200, `{"export":{"credentials":{"credential":[{"id":"AAABcID5GBd=","type":"filesystem","description":"xxxx","properties":{}}]},"policies":{"policy":[]}},` +
			`"missing":[{"credential":"AAABcID5GBd=","properties":["domain","password","user"],"message":"Secrets are not exported in clear. Enter them again after the import."}]}`},
		{operator, "GET credentials/export?id=none", "", 404, "...credential_not_found"},
		{admin, "DELETE credentials/export", "", 405, "...method_not_allowed"},
		{admin, "DELETE credentials/AAABcID5GBd?id=x", "", 406, "...aspire_parameter_invalid"},
		{admin, "DELETE credentials", "", 406, "...member_missing"},
		{admin, "DELETE credentials/AAABcID5GBd", "", 200, `{"message":"1 credential deleted."}`},
		{admin, "DELETE credentials/AAABcID5GBd", "", 404, "...credential_not_found"},
		{admin, "DELETE credentials?id=AAABcID5GBc&id=none", "", 200, `{"error":[{"id":"none","status":404,"code":"credential_not_found","message":"Credential not found."}],"message":"1 credential deleted."}`},
		{admin, "POST credentials/delete", `{"ids":"AAABcID5GBc="}`, 200, `{"message":"1 credential deleted."}`},
		{admin, "POST credentials/deleteAll", `{"filter":{"type":"filesystem"}}`, 200, `{"message":"1 credential deleted."}`},
		{operator, "GET credentials", "", 200, `{"count":{"totalItems":0},"credential":[]}`},
		{operator, "GET nothing", "", 404, "...path_unknown"},
	} {
		method, path, _ := strings.Cut(c.request, " ")
		status, got, header := send(c.key, method, path, c.body)
		got = strings.TrimSpace(got)
		part, partly := strings.CutPrefix(c.want, "...")
		if status != c.status || partly && !strings.Contains(got, part) || !partly && got != c.want {
			t.Errorf("%s %s answers %d %s\nwant %d %s", c.request, c.body, status, got, c.status, c.want)
		}
		if status == 405 && !strings.Contains(header.Get("Allow"), "POST") {
			t.Errorf("the methods are %q", header.Get("Allow"))
		}
		if strings.Contains(got, "canary") {
			t.Errorf("%s shows a secret: %s", c.request, got)
		}
	}
	// A list that is too long is not read to its end, and nothing of one whose sender may not.
	for _, long := range []string{"[" + strings.Repeat("0,", 100_000) + "0]", "{" + strings.Repeat(`"a":0,`, 9) + `"a":0}`} {
		for _, path := range []string{"credentials", "policies"} {
			method := map[byte]string{'[': "POST", '{': "PUT"}[long[0]]
			if status, got, _ := send(admin, method, path, long); status != 406 || len(got) > 1000 {
				t.Errorf("%s of %d bytes at %s: %d %.200s", method, len(long), path, status, got)
			}
			if status, _, _ := send(operator, method, path, long); status != 403 {
				t.Errorf("%s of an operator at %s: %d", method, path, status)
			}
		}
	}
	// Many, with progress; a repeat with the same key doubles nothing.
	var list []string
	for i := range 600 {
		list = append(list, fmt.Sprintf(`{"type":"t","description":"%d","properties":{}}`, i))
	}
	for range 2 {
		status, got, _ := send(admin, "POST", "credentials", "["+strings.Join(list, ",")+"]", "Accept: application/x-ndjson", "Idempotency-Key: batch")
		if lines := strings.Split(strings.TrimSpace(got), "\n"); status != 200 || len(lines) != 3 || lines[1] != `{"progress":{"done":600,"failed":0,"total":600}}` {
			t.Fatalf("%d %.300s", status, got)
		}
	}
	if _, got, _ := send(operator, "GET", "credentials?size=0", ""); !strings.Contains(got, `"totalItems":600`) {
		t.Errorf("after the repeat: %s", got)
	}
	if strings.Contains(s.Logs.String(), "canary") {
		t.Error("the log shows a secret")
	}
}

// The documented calls print what the page says.
func TestDocumentedCalls(t *testing.T) {
	s := stage.New(t)
	server := httptest.NewServer(aspire.Handler(aspire.Config{Service: s.Service, Access: s.Service.Access, Logger: slog.New(slog.NewJSONHandler(s.Logs, nil))}))
	t.Cleanup(server.Close)
	stage.Console(t, "../../docs/aspire.md", server.URL, s.Key("default", `{"role":"ADMINISTRATOR"}`))
}
