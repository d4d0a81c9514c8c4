package app

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// An id that looks like a part of a path names what has it on each surface, and nothing else; one
// that no client would send is refused by each. The requests are those of a real client.
func TestIDsInPaths(t *testing.T) {
	u := bring(t, t.TempDir())
	admin := u.issue(t, map[string]any{"role": "ADMINISTRATOR"})
	page := visit(t, u.base, admin)
	send := func(method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, u.base+path, strings.NewReader(body))
		must(t, err)
		req.SetBasicAuth("any", admin)
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(text)
	}
	wants := func(id string, status int, method, path, body, has string) {
		t.Helper()
		if got, text := send(method, path, body); got != status || !strings.Contains(text, has) {
			t.Errorf("id %q: %s %s: %d %s, want %d %s", id, method, path, got, text, status, has)
		}
	}
	quoted := func(id string) string {
		text, err := json.Marshal(id)
		must(t, err)
		return string(text)
	}

	ids := []string{"new", "keys", "new-credential", "a/b", "a/../b", "../..", "...", "%2e%2e", ".%2e", "?x=1", "#x", "a b", "a//b", "export/x", "credentials", "ż=", "-", "start"}
	for _, id := range ids {
		at, say := url.PathEscape(id), quoted(id)
		wants(id, 200, "POST", "/v1/tenants/default/commands/credential.create", `{"id":`+say+`,"type":"t","description":"d","keys":{}}`, `"id":`+say)
		wants(id, 200, "POST", "/v1/tenants/default/commands/throttle_policy.define", `{"id":`+say+`,"tokens":1,"per":"day"}`, `"id":`+say)
		must(t, u.proj.Wait(t.Context(), logEnd(t, u.program)))
		wants(id, 200, "GET", "/v1/tenants/default/credential.get?id="+url.QueryEscape(id), "", `"id":`+say)
		wants(id, 200, "GET", "/v2/credentials/"+at, "", `"id":`+say)
		wants(id, 200, "GET", "/aspire/_api/credentials/"+at, "", `"id":`+say)
		wants(id, 200, "GET", "/aspire/_api/credentials/export/"+at, "", `"id":`+say)
		wants(id, 200, "GET", "/aspire/_api/policies/"+at, "", `"id":`+say)
		if status, text, _ := page.send("GET", "/ui/t/default/credentials/"+at, nil, nil); status != 200 || !strings.Contains(text, "Delete") {
			t.Errorf("id %q: the page answers %d", id, status)
		}
		wants(id, 200, "DELETE", "/aspire/_api/policies/"+at, "", "1 policy deleted")
		wants(id, 200, "DELETE", "/aspire/_api/credentials/"+at, "", "1 credential deleted")
	}
	// The words of Aspire's API: policies have other methods than the word, credentials do not.
	wants("delete", 201, "POST", "/aspire/_api/policies", `{"id":"delete","type":"throttle","description":"d","timeUnit":"m","numberOfDocuments":"1"}`, `"id":"delete"`)
	wants("delete", 200, "GET", "/aspire/_api/policies/delete", "", `"id":"delete"`)
	wants("delete", 200, "POST", "/aspire/_api/policies/delete", `{"ids":["delete"]}`, "1 policy deleted")
	for _, id := range []string{"export", "exportAll", "getAll", "updateAll", "delete", "deleteAll"} {
		wants(id, 406, "POST", "/aspire/_api/credentials", `{"id":`+quoted(id)+`,"type":"t","description":"d","properties":{}}`, "credential_id_reserved")
	}

	for _, id := range []string{".", "..", "/"} {
		say := quoted(id)
		for command, body := range map[string]string{
			"credential.create":      `{"id":` + say + `,"type":"t","keys":{}}`,
			"throttle_policy.define": `{"id":` + say + `,"tokens":1,"per":"day"}`,
			"connector_secret.put":   `{"id":` + say + `,"value":"v"}`,
			"auth_client.create":     `{"id":` + say + `,"name":"n","type":"basic","components":["c"],"credentials":{}}`,
			"webhook.define":         `{"id":` + say + `,"url":"https://hooks.example.org"}`,
			"flow.bind":              `{"flow":` + say + `,"steps":[{"id":"s","component":"c","credential":"x"}]}`,
			"auth_secret.create":     `{"workspace":` + say + `,"component":"c","keys":{}}`,
			"oauth.connect":          `{"workspace":` + say + `,"component":"c"}`,
		} {
			var p struct{ Code string }
			status, text := send("POST", "/v1/tenants/default/commands/"+command, body)
			if must(t, json.NewDecoder(bytes.NewReader([]byte(text))).Decode(&p)); status != 400 || p.Code != "id_invalid" {
				t.Errorf("%s %s: %d %s", command, body, status, text)
			}
		}
		wants(id, 406, "POST", "/aspire/_api/credentials", `{"id":`+say+`,"type":"t","description":"d","properties":{}}`, "id_invalid")
		wants(id, 406, "POST", "/aspire/_api/policies", `{"id":`+say+`,"type":"throttle","description":"d","timeUnit":"m","numberOfDocuments":"1"}`, "id_invalid")
		wants(id, 400, "PUT", "/_connector/"+url.PathEscape(id), `{}`, "id")
		wants(id, 400, "POST", "/v1/tenants/default/commands/flow.report", `{"change":"created","id":`+say+`,"revision":1,"steps":[]}`, "flow_event_data_invalid")
	}
}
