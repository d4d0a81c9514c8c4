package elastic_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/credstream/credstream/api/elastic"
	"github.com/credstream/credstream/service/stage"
)

const everything = `{"role":"AUDITOR","permissions":["connectors.manage","read_connector_secrets","write_connector_secrets"]}`

// server is the edge over a real service, and how one of its callers asks it.
type server struct {
	*stage.Stage
	t   testing.TB
	url string
	key string
}

func serve(t testing.TB) *server {
	t.Helper()
	s := stage.New(t)
	http := httptest.NewServer(elastic.Handler(elastic.Config{
		Service: s.Service, Access: s.Service.Access, Logger: slog.New(slog.NewJSONHandler(s.Logs, nil)),
	}))
	t.Cleanup(http.Close)
	return &server{Stage: s, t: t, url: http.URL, key: s.Key("default", everything)}
}

// as is the server as another caller asks it.
func (s *server) as(key string) *server {
	other := *s
	other.key = key
	return &other
}

// send makes one request; headers are "Name: value", or "Name" for one that is not sent.
func (s *server) send(method, path, body string, headers ...string) (*http.Response, string) {
	s.t.Helper()
	req := stage.Must(http.NewRequestWithContext(s.t.Context(), method, s.url+path, strings.NewReader(body)))(s.t)
	req.SetBasicAuth("anybody", s.key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, given := strings.Cut(h, ": ")
		if req.Header.Set(name, value); !given {
			req.Header.Del(name)
		}
	}
	resp := stage.Must(http.DefaultClient.Do(req))(s.t)
	defer resp.Body.Close()
	return resp, string(stage.Must(io.ReadAll(resp.Body))(s.t))
}

// wants makes a request and compares the answer: the whole body, or the reason of an error.
func (s *server) wants(request, body string, status int, want string, headers ...string) {
	s.t.Helper()
	method, path, _ := strings.Cut(request, " ")
	resp, got := s.send(method, path, body, headers...)
	if product := resp.Header.Get("X-Elastic-Product"); product != "Elasticsearch" || resp.Header.Get("X-Request-Id") == "" {
		s.t.Errorf("%s: the header X-Elastic-Product is %q, X-Request-Id %q", request, product, resp.Header.Get("X-Request-Id"))
	}
	got = strings.TrimSpace(got)
	if status >= 400 {
		got = s.reason(resp.StatusCode, got)
	}
	if resp.StatusCode != status || got != want {
		s.t.Errorf("%s %s answers %d %s\nwant %d %s", request, body, resp.StatusCode, got, status, want)
	}
}

// reason reads an error, which must have Elasticsearch's form and nothing more.
func (s *server) reason(status int, body string) string {
	s.t.Helper()
	type cause struct{ Type, Reason string }
	var e struct {
		Error struct {
			RootCause []cause `json:"root_cause"`
			Type      string
			Reason    string
		}
		Status int
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	stage.OK(s.t, d.Decode(&e))
	own := cause{e.Error.Type, e.Error.Reason}
	if len(e.Error.RootCause) != 1 || e.Error.RootCause[0] != own || own.Type == "" || e.Status != status {
		s.t.Errorf("the error of a %d is %s", status, body)
	}
	return own.Reason
}

// encoded is an API key as Elasticsearch hands it out.
func encoded(id, key string) string { return base64.StdEncoding.EncodeToString([]byte(id + ":" + key)) }

const (
	noID     = `[connector_id] cannot be [null] or [""].`
	noValue  = `[value] of the connector secret cannot be [null] or [""]`
	mismatch = "The connector secret holds an API key whose id is not api_key_id. Correct api_key_id, or replace the value of the secret."
	unknown  = "api_key_secret_id must be the id of an existing connector secret. Create the secret first, or omit the id to leave it unchanged."
	badID    = "The id of an API key must have 1 to 512 bytes of UTF-8 and no control characters. Omit it to leave it unchanged."
)

// Each line of the contract.
func TestRoutes(t *testing.T) {
	s := serve(t)
	held := encoded("k1", "canary-1")
	for _, step := range []struct {
		request, body string
		status        int
		want          string
	}{
		{"PUT /_connector/wiki", `{"name":"Wiki","index_name":"search-wiki","service_type":"confluence","is_native":true}`, 201, `{"id":"wiki","result":"created"}`},
		{"PUT /_connector/wiki", `{"name":"Wiki","index_name":"search-wiki","service_type":"confluence","is_native":true}`, 200, `{"id":"wiki","result":"updated"}`},
		{"PUT /_connector/wiki", `{"name":"Wiki","secret":"x"}`, 400, "unknown field [secret]"},
		{"PUT /_connector/wiki", `{"name":7}`, 400, "The member /name has the wrong type."},
		{"PUT /_connector/empty", "", 201, `{"id":"empty","result":"created"}`},
		{"PUT /_connector/_x", "{}", 400, "no handler found for this uri and method"},
		{"PUT /_connector", "{}", 400, noID},
		{"PUT /_connector/", "{}", 400, noID},
		{"DELETE /_connector/", "", 400, noID},
		{"GET /_connector/none", "", 404, "connector [none] not found"},

		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":"k1"}`, 200, `{"result":"updated"}`},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":"k1"}`, 200, `{"result":"noop"}`},
		{"PUT /_connector/wiki/_api_key_id", `{}`, 200, `{"result":"noop"}`},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":null,"api_key_secret_id":null}`, 200, `{"result":"noop"}`},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":""}`, 400, badID},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_secret_id":""}`, 400, unknown},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_secret_id":"s1"}`, 400, unknown},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":{"id":"k1"}}`, 400, "The member /api_key_id has the wrong type."},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":1}`, 400, "The member /api_key_id has the wrong type."},
		{"PUT /_connector/wiki/_api_key_id", `{"id":"k1"}`, 400, "unknown field [id]"},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":"a","api_key_id":"b"}`, 400, "The member /api_key_id appears more than once."},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id"`, 400, "The body must be one JSON document."},
		{"PUT /_connector/wiki/_api_key_id", `["k1"]`, 400, "The body is not a JSON object."},
		{"PUT /_connector/wiki/_api_key_id", `null`, 400, "The body is not a JSON object."},
		{"PUT /_connector/wiki/_api_key_id", "", 400, "request body is required"},
		{"PUT /_connector/none/_api_key_id", `{"api_key_id":"k1"}`, 404, "connector [none] not found"},
		{"PUT /_connector/_api_key_id", `{"api_key_id":"k1"}`, 400, noID},
		{"PUT /_connector//_api_key_id", `{"api_key_id":"k1"}`, 400, noID},
		{"PUT /_connector/%5Fapi_key_id", `{"api_key_id":"k1"}`, 400, noID},
		{"GET /_connector/_api_key_id", "", 400, noID},

		{"POST /_connector/_secret", `{"value":null}`, 400, noValue},
		{"POST /_connector/_secret", `{"value":""}`, 400, noValue},
		{"POST /_connector/_secret", `{}`, 400, noValue},
		{"POST /_connector/_secret", `{"value":["x"]}`, 400, "The member /value has the wrong type."},
		{"POST /_connector/_secret", `{"value":"x","id":"s1"}`, 400, "unknown field [id]"},
		{"POST /_connector/_secret", "", 400, "request body is required"},
		{"PUT /_connector/_secret", `{"value":"x"}`, 400, `[id] of the connector secret cannot be [null] or [""].`},
		{"GET /_connector/_secret/s1", "", 404, "No secret with id [s1]"},
		{"DELETE /_connector/_secret/s1", "", 404, "No secret with id [s1]"},
		{"PUT /_connector/_secret/s1", `{"value":"canary-0"}`, 201, `{"result":"created"}`},
		{"PUT /_connector/_secret/s1", `{"value":"` + held + `"}`, 200, `{"result":"updated"}`},
		{"GET /_connector/_secret/s1", "", 200, `{"id":"s1","value":"` + held + `"}`},
		{"PUT /_connector/_secret/AAABcID5GBc%3D%2Fx", `{"value":"canary-2"}`, 201, `{"result":"created"}`},
		{"GET /_connector/_secret/AAABcID5GBc%3D%2Fx", "", 200, `{"id":"AAABcID5GBc=/x","value":"canary-2"}`},

		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":"k2","api_key_secret_id":"s1"}`, 400, mismatch},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_secret_id":"s1"}`, 200, `{"result":"updated"}`},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":"k1","api_key_secret_id":"s1"}`, 200, `{"result":"noop"}`},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":"k2"}`, 400, mismatch},
		{"PUT /_connector/empty/_api_key_id", `{"api_key_id":"anything","api_key_secret_id":"AAABcID5GBc=/x"}`, 200, `{"result":"updated"}`},
		{"DELETE /_connector/_secret/s1", "", 409, "The connector secret is in use by connectors: wiki. Delete these connectors first, or give them another secret."},
		{"PUT /_connector/other", `{"api_key_id":"k1","api_key_secret_id":"s1"}`, 201, `{"id":"other","result":"created"}`},
		{"PUT /_connector/wiki/_api_key_id", `{"api_key_id":"k3","api_key_secret_id":"AAABcID5GBc=/x"}`, 200, `{"result":"updated"}`},
		{"DELETE /_connector/_secret/s1", "", 409, "The connector secret is in use by connectors: other. Delete these connectors first, or give them another secret."},
		{"DELETE /_connector/other", "", 200, `{"acknowledged":true}`},
		{"DELETE /_connector/other", "", 404, "connector [other] not found"},
		{"DELETE /_connector/_secret/s1", "", 200, `{"deleted":true}`},
		{"GET /_connector/_secret/s1", "", 404, "No secret with id [s1]"},
		{"PUT /_connector/_secret/s1", `{"value":"again"}`, 201, `{"result":"created"}`},

		{"PATCH /_connector/wiki", "{}", 405, "This path does not support this method."},
		{"POST /_connector/wiki/_api_key_id", "{}", 405, "This path does not support this method."},
		{"PATCH /_connector/_secret", "{}", 405, "This path does not support this method."},
		{"GET /_connector/wiki/_nothing", "", 400, "no handler found for this uri and method"},
		{"GET /_connector/wiki?x=1", "", 400, "The request contains an unrecognized parameter: [x]."},
		{"PUT /_connector/wiki", `{"name":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "The body is larger than 1 MiB."},
	} {
		s.wants(step.request, step.body, step.status, step.want)
	}
	if resp, body := s.send("HEAD", "/_connector/_secret/s1", ""); resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, PUT, DELETE" || body != "" {
		t.Errorf("HEAD answers %d %q, %s", resp.StatusCode, body, resp.Header.Get("Allow"))
	}
	var c struct {
		Name      string
		Language  *string
		Native    bool   `json:"is_native"`
		APIKeyID  string `json:"api_key_id"`
		SecretID  string `json:"api_key_secret_id"`
		IndexName string `json:"index_name"`
	}
	_, body := s.send("GET", "/_connector/wiki?pretty", "")
	stage.OK(t, json.Unmarshal([]byte(body), &c))
	if c.Name != "Wiki" || c.Language != nil || !c.Native || c.APIKeyID != "k3" || c.SecretID != "AAABcID5GBc=/x" || c.IndexName != "search-wiki" || !strings.Contains(body, "\n  \"") {
		t.Errorf("the connector is %s", body)
	}
	if logs := s.Logs.String(); strings.Contains(logs, "canary") || strings.Contains(logs, held) {
		t.Error("the logs hold a value")
	}
}

func TestList(t *testing.T) {
	s := serve(t)
	for i := range 5 {
		s.wants(fmt.Sprintf("PUT /_connector/c%d", i), fmt.Sprintf(`{"name":"n%d","service_type":"t%d"}`, i, i%2), 201, fmt.Sprintf(`{"id":"c%d","result":"created"}`, i))
	}
	for query, want := range map[string]string{
		"": "5 c0 c1 c2 c3 c4", "?from=1&size=2": "5 c1 c2", "?size=0": "5", "?from=9": "5", "?service_type=t1": "2 c1 c3", "?connector_name=n4": "1 c4", "?index_name=x": "0",
	} {
		_, body := s.send("GET", "/_connector"+query, "")
		var list struct {
			Count   int
			Results []struct{ ID string }
		}
		stage.OK(t, json.Unmarshal([]byte(body), &list))
		got := fmt.Sprint(list.Count)
		for _, c := range list.Results {
			got += " " + c.ID
		}
		if got != want {
			t.Errorf("%q lists %s, want %s", query, got, want)
		}
	}
	s.wants("GET /_connector?size=x", "", 400, "The parameter [size] must be a number from 0 to 10000.")
	s.wants("GET /_connector?service_type=a,b", "", 400, "The parameter [service_type] accepts a single value.")
}

// Each privilege alone, none, and no identity.
func TestPrivileges(t *testing.T) {
	s := serve(t)
	requests := map[string][]string{
		"read_connector_secrets":  {"GET /_connector/_secret/s1"},
		"write_connector_secrets": {"POST /_connector/_secret", "PUT /_connector/_secret/s1", "DELETE /_connector/_secret/s1"},
		"connectors.manage":       {"GET /_connector", "POST /_connector", "GET /_connector/c1", "PUT /_connector/c1", "PUT /_connector/c1/_api_key_id", "DELETE /_connector/c1"},
	}
	bodies := map[string]string{
		"POST /_connector/_secret": `{"value":"v"}`, "PUT /_connector/_secret/s1": `{"value":"v"}`, "PUT /_connector/c1/_api_key_id": `{"api_key_id":"k"}`,
	}
	holders := map[string]string{"none": s.Key("default", `{"role":"AUDITOR"}`)}
	for p := range requests {
		holders[p] = s.Key("default", `{"permissions":["`+p+`"]}`)
	}
	for holder, key := range holders {
		for p, list := range requests {
			for _, request := range list {
				// What another holder has deleted is there again.
				s.send("PUT", "/_connector/_secret/s1", `{"value":"v"}`)
				s.send("PUT", "/_connector/c1", `{}`)
				method, path, _ := strings.Cut(request, " ")
				resp, body := s.as(key).send(method, path, bodies[request])
				if allowed := resp.StatusCode < 300; allowed != (holder == p) || !allowed && resp.StatusCode != 403 {
					t.Errorf("%s with %s: %d %s", request, holder, resp.StatusCode, body)
				}
			}
		}
	}
	missing := "An API key is required: send it by HTTP Basic or Bearer, or as the password of the NATS connection."
	invalid := "Not a valid API key: mistyped, truncated, or for another service."
	key := s.Key("default", everything)
	for header, want := range map[string]string{
		"Basic " + base64.StdEncoding.EncodeToString([]byte("anybody:"+key)): "", "Bearer " + key: "", "ApiKey " + encoded("id", key): "", "ApiKey " + key: "", "apikey " + encoded("", key): "",
		"ApiKey " + encoded("id", "wrong"): invalid, "Basic " + base64.StdEncoding.EncodeToString([]byte("anybody:wrong")): invalid,
	} {
		s.as("wrong").authorized(t, header, want)
	}
	req := stage.Must(http.NewRequestWithContext(t.Context(), "GET", s.url+"/_connector", nil))(t)
	resp := stage.Must(http.DefaultClient.Do(req))(t)
	body := stage.Must(io.ReadAll(resp.Body))(t)
	stage.OK(t, resp.Body.Close())
	if got := s.reason(resp.StatusCode, string(body)); resp.StatusCode != 401 || got != missing {
		t.Errorf("without identity: %d %s", resp.StatusCode, got)
	}
}

func (s *server) authorized(t testing.TB, header, refusal string) {
	t.Helper()
	resp, body := s.send("GET", "/", "", "Authorization: "+header)
	switch {
	case refusal == "" && (resp.StatusCode != 200 || !strings.Contains(body, `"number":"9.`)):
		t.Errorf("%.10s... answers %d %s", header, resp.StatusCode, body)
	case refusal != "" && (resp.StatusCode != 401 || s.reason(401, body) != refusal):
		t.Errorf("%.10s... answers %d %s", header, resp.StatusCode, body)
	}
}

// Each media type that Elasticsearch's clients send is answered in kind.
func TestMediaTypes(t *testing.T) {
	s := serve(t)
	const (
		eight = "application/vnd.elasticsearch+json;compatible-with=8"
		nine  = "application/vnd.elasticsearch+json;compatible-with=9"
	)
	for _, c := range []struct {
		content, accept string
		status          int
		want            string
	}{
		{"application/json", "", 200, "application/json"},
		{"application/json; charset=UTF-8", "*/*", 200, "application/json"},
		{"", "", 200, "application/json"},
		{"", nine, 200, nine},
		{eight, "", 200, eight},
		{"application/vnd.elasticsearch+json; compatible-with=9", "*/*", 200, nine},
		{nine, eight, 200, eight},
		{"application/json", "application/vnd.elasticsearch+json; compatible-with=9,text/plain", 200, nine},
		{"application/vnd.elasticsearch+json;compatible-with=7", "", 406, "application/json"},
		{"text/plain", "", 406, "application/json"},
		{"application/json", "text/html", 406, "application/json"},
		{"application/json", "application/vnd.elasticsearch+json;compatible-with=7", 406, "application/json"},
	} {
		headers := []string{"Content-Type: " + c.content}
		if c.content == "" {
			headers = []string{"Content-Type"}
		}
		if c.accept != "" {
			headers = append(headers, "Accept: "+c.accept)
		}
		s.send("PUT", "/_connector/c", "{}")
		resp, body := s.send("PUT", "/_connector/c", "{}", headers...)
		if resp.StatusCode != c.status || resp.Header.Get("Content-Type") != c.want {
			t.Errorf("%+v is answered %d %s %s", c, resp.StatusCode, resp.Header.Get("Content-Type"), body)
		}
	}
}

// A page of another origin gets nothing and leaves nothing: not even by GET, which
// hands out a secret here.
func TestCrossSite(t *testing.T) {
	s := serve(t)
	s.wants("PUT /_connector/_secret/s1", `{"value":"canary"}`, 201, `{"result":"created"}`)
	end := stage.Must(s.Store.End(t.Context()))(t)
	for _, request := range []string{"GET /_connector/_secret/s1", "PUT /_connector/_secret/s1", "DELETE /_connector/_secret/s1", "PUT /_connector/c"} {
		method, path, _ := strings.Cut(request, " ")
		body := ""
		if method == "PUT" {
			body = `{}`
		}
		if resp, answer := s.send(method, path, body, "Sec-Fetch-Site: cross-site", "Origin: https://evil.example"); resp.StatusCode != 403 || strings.Contains(answer, "canary") {
			t.Errorf("%s answers %d %s", request, resp.StatusCode, answer)
		}
	}
	if now := stage.Must(s.Store.End(t.Context()))(t); now != end {
		t.Errorf("%d commits more", now-end)
	}
}

// Another tenant's connectors and secrets are not found, whatever the caller says, and
// each tenant has ids of its own.
func TestTenants(t *testing.T) {
	s := serve(t)
	s.Do("default", "tenant.register", `{"id":"acme"}`)
	theirs := s.as(s.Key("acme", everything))
	theirs.wants("PUT /_connector/_secret/s1", `{"value":"theirs"}`, 201, `{"result":"created"}`)
	theirs.wants("PUT /_connector/c1", `{"api_key_secret_id":"s1"}`, 201, `{"id":"c1","result":"created"}`)
	for _, header := range []string{"X-Tenant: acme", "X-Credstream-Tenant: acme", "Es-Security-Runas-User: acme", "X-Forwarded-User: acme"} {
		s.wants("GET /_connector/_secret/s1", "", 404, "No secret with id [s1]", header)
		s.wants("DELETE /_connector/_secret/s1", "", 404, "No secret with id [s1]", header)
		s.wants("GET /_connector/c1", "", 404, "connector [c1] not found", header)
	}
	s.wants("PUT /_connector/c1", `{"api_key_secret_id":"s1"}`, 400, unknown)
	s.wants("PUT /_connector/_secret/s1", `{"value":"ours"}`, 201, `{"result":"created"}`)
	s.wants("GET /_connector/_secret/s1", "", 200, `{"id":"s1","value":"ours"}`)
	theirs.wants("GET /_connector/_secret/s1", "", 200, `{"id":"s1","value":"theirs"}`)
	if _, body := s.send("GET", "/_connector", ""); !strings.Contains(body, `"count":0`) {
		t.Errorf("the list holds another tenant's: %s", body)
	}
}

// A secret is deleted or pointed to, never both, whoever is faster.
func TestPointWhileDeleting(t *testing.T) {
	s := serve(t)
	for round := range 10 {
		id := fmt.Sprintf("s%d", round)
		s.wants("PUT /_connector/_secret/"+id, `{"value":"v"}`, 201, `{"result":"created"}`)
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() {
				s.send("PUT", fmt.Sprintf("/_connector/c%d", i), `{"api_key_secret_id":"`+id+`"}`)
			})
		}
		all.Go(func() { s.send("DELETE", "/_connector/_secret/"+id, "") })
		all.Wait()
		read, _ := s.send("GET", "/_connector/_secret/"+id, "")
		pointing := 0
		for i := range 3 {
			if _, body := s.send("GET", fmt.Sprintf("/_connector/c%d", i), ""); strings.Contains(body, `"api_key_secret_id":"`+id+`"`) {
				pointing++
			}
		}
		if there := read.StatusCode == 200; there != (pointing > 0) {
			t.Fatalf("round %d: the secret answers %d, and %d connectors point to it", round, read.StatusCode, pointing)
		}
	}
}

// The documented calls print what the page says.
func TestDocumentedCalls(t *testing.T) {
	s := serve(t)
	stage.Console(t, "../../docs/elastic.md", s.url, s.key)
}
