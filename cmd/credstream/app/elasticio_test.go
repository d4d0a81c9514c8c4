package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vendor speaks the elastic.io REST API v2 to a program.
type vendor struct {
	t       testing.TB
	base    string
	key     string
	answers bytes.Buffer // all of them
}

// send makes one request as the vendor's examples do. headers are "Name: value".
func (v *vendor) send(method, path, body string, headers ...string) (*http.Response, string) {
	v.t.Helper()
	req, err := http.NewRequestWithContext(v.t.Context(), method, v.base+path, strings.NewReader(body))
	must(v.t, err)
	req.SetBasicAuth("somebody@example.com", v.key)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	must(v.t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(v.t, err)
	v.answers.Write(b)
	return resp, string(b)
}

// wants makes a request and compares the answer member by member. What changes
// from run to run is left out: the meta of resources and the id of an error. It
// returns the id of the resource, for which want says {ID}.
func (v *vendor) wants(method, path, body string, status int, want string, headers ...string) (id string) {
	v.t.Helper()
	resp, got := v.send(method, path, body, headers...)
	if resp.StatusCode != status {
		v.t.Fatalf("%s %s answers %d %s, want %d", method, path, resp.StatusCode, got, status)
	}
	if want == "" {
		if got != "" {
			v.t.Errorf("%s %s answers %s", method, path, got)
		}
		return ""
	}
	var doc map[string]any
	must(v.t, json.Unmarshal([]byte(got), &doc))
	plain := func(resource any) string {
		r, ok := resource.(map[string]any)
		if !ok {
			return ""
		}
		if _, isError := r["status"]; isError {
			delete(r, "id")
			delete(r, "title")
		} else {
			delete(r, "meta")
		}
		s, _ := r["id"].(string)
		return s
	}
	id = plain(doc["data"])
	for _, list := range []string{"data", "included", "errors"} {
		items, _ := doc[list].([]any)
		for _, r := range items {
			plain(r)
		}
	}
	var expected any
	must(v.t, json.Unmarshal([]byte(strings.ReplaceAll(want, "{ID}", id)), &expected))
	if diff := cmp.Diff(expected, any(doc)); diff != "" {
		v.t.Errorf("%s %s (-want +got)\n%s", method, path, diff)
	}
	return id
}

// refused makes a request and wants an error object with the code, and in source
// the pointer or parameter, if it is not "".
func (v *vendor) refused(method, path, body string, status int, code, source string, headers ...string) map[string]any {
	v.t.Helper()
	resp, got := v.send(method, path, body, headers...)
	var doc struct {
		Errors []struct {
			ID, Status, Code, Title, Detail string
			Source                          struct{ Pointer, Parameter string }
			Meta                            map[string]any
		}
	}
	if err := json.Unmarshal([]byte(got), &doc); err != nil || len(doc.Errors) != 1 {
		v.t.Fatalf("%s %s answers %d %q", method, path, resp.StatusCode, got)
	}
	e := doc.Errors[0]
	if resp.StatusCode != status || e.Status != fmt.Sprint(status) || e.Code != code || e.Source.Pointer+e.Source.Parameter != source ||
		e.Title != http.StatusText(status) || e.Detail == "" || e.ID != resp.Header.Get("X-Request-Id") {
		v.t.Errorf("%s %s answers %d %s; want %d %s at %q", method, path, resp.StatusCode, got, status, code, source)
	}
	return e.Meta
}

func bringVendor(t *testing.T) (*up, *vendor) {
	u := bring(t, t.TempDir())
	return u, &vendor{t: t, base: u.base, key: adminKey}
}

func (v *vendor) as(key string) *vendor { return &vendor{t: v.t, base: v.base, key: key} }

func (u *up) issue(t testing.TB, in map[string]any) string {
	t.Helper()
	var issued struct {
		Key string `json:"key"`
	}
	must(t, u.command("api_key.issue", "", in, &issued))
	return issued.Key
}

const clients = "/v2/tenants/default/oauth-clients"

func newClient(typ, id, secret, component string) string {
	return fmt.Sprintf(`{"data":{"type":%q,"attributes":{"client_id":%q,"client_secret":%q},
		"relationships":{"component":{"data":{"id":%q,"type":"component"}}}}}`, typ, id, secret, component)
}

func clientJSON(id, clientID, secret, component string) string {
	return fmt.Sprintf(`{"id":%[1]q,"type":"oauth-client","links":{"self":"/v2/tenants/default/oauth-clients/%[1]s"},
		"attributes":{"client_id":%[2]q,"client_secret":%[3]q},
		"relationships":{"component":{"data":{"id":%[4]q,"type":"component"},"links":{"self":"/v2/components/%[4]s"}}}}`, id, clientID, secret, component)
}

// The vendor's examples for OAuth clients, over real HTTP.
func TestElasticIOClients(t *testing.T) {
	u, v := bringVendor(t)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	registerPlain(t, u.base)
	registerAs(t, u.api, "sheets", sheets)
	registerAs(t, u.api, "docs", sheets)
	const mask = "********"

	first := v.wants("POST", clients, newClient("oauth-client", "{CLIENT_ID}", "canary-1", "sheets"), 201,
		`{"data":`+clientJSON("{ID}", "{CLIENT_ID}", mask, "sheets")+`,"meta":{}}`)
	second := v.wants("POST", clients+"/", newClient("flow", "other-id", "canary-2", "docs"), 201,
		`{"data":`+clientJSON("{ID}", "other-id", mask, "docs")+`,"meta":{}}`)
	one := clientJSON(first, "{CLIENT_ID}", mask, "sheets")
	two := clientJSON(second, "other-id", mask, "docs")

	for path, list := range map[string]string{
		clients:                                  two + "," + one, // by component
		clients + "/":                            two + "," + one,
		clients + "?filter[component]=":          two + "," + one,
		clients + "/?filter[component]=":         two + "," + one,
		clients + "?filter[component]=sheets":    one,
		clients + "/?filter%5Bcomponent%5D=docs": two,
		clients + "?filter[component]=nothing":   "",
	} {
		_, query, _ := strings.Cut(path, "?")
		query, _ = strings.CutPrefix(query, "filter[component]=")
		query, _ = strings.CutPrefix(query, "filter%5Bcomponent%5D=")
		link := strings.Split(path, "?")[0] + "?"
		if strings.Contains(path, "?") {
			link += "filter%5Bcomponent%5D=" + query + "&"
		}
		v.wants("GET", path, "", 200, fmt.Sprintf(`{"data":[%[1]s],"links":{"first":%[2]q,"last":%[2]q},"meta":{"page":1,"per_page":50,"total":%[3]d,"total_pages":1}}`,
			list, link+"page%5Bnumber%5D=1&page%5Bsize%5D=50", strings.Count(list, `"oauth-client"`)))
	}
	item := clients + "/" + first
	v.wants("GET", item, "", 200, `{"data":`+one+`,"meta":{}}`)
	v.wants("PATCH", item, newClient("oauth-client", "new-id", "canary-3", "sheets"), 200,
		`{"data":`+clientJSON(first, "new-id", mask, "sheets")+`,"meta":{}}`)
	v.wants("PATCH", item, `{"data":{"attributes":{"client_id":"newer-id"}}}`, 200,
		`{"data":`+clientJSON(first, "newer-id", mask, "sheets")+`,"meta":{}}`)

	for _, c := range []struct {
		why, method, path, body string
		status                  int
		code, source            string
	}{
		{"a second client", "POST", clients, newClient("oauth-client", "i", "s", "sheets"), 409, "oauth_client_exists", ""},
		{"an unknown component", "POST", clients, newClient("oauth-client", "i", "s", "nowhere"), 422, "oauth_client_component_invalid", "/data/relationships/component/data/id"},
		{"a component without OAuth", "POST", clients, newClient("oauth-client", "i", "s", "plain"), 422, "oauth_not_declared", "/data/relationships/component/data/id"},
		{"a move", "PATCH", item, newClient("oauth-client", "i", "s", "docs"), 422, "oauth_client_component_fixed", "/data/relationships/component/data/id"},
		{"the mask", "PATCH", item, newClient("oauth-client", "i", mask, "sheets"), 400, "keys_masked", "/data/attributes/client_secret"},
		{"another id", "PATCH", item, `{"data":{"id":"x","type":"oauth-client"}}`, 409, "resource_id_mismatch", "/data/id"},
		{"no type", "POST", clients, `{"data":{}}`, 400, "resource_type_invalid", "/data/type"},
		{"no data", "POST", clients, `{}`, 400, "member_missing", "/data"},
		{"no body", "POST", clients, ``, 400, "member_missing", "/data"},
		{"no component", "POST", clients, `{"data":{"type":"oauth-client","attributes":{"client_id":"i","client_secret":"s"}}}`, 400, "member_missing", "/data/relationships/component/data/id"},
		{"a component without its type", "POST", clients, strings.Replace(newClient("oauth-client", "i", "s", "docs"), `,"type":"component"`, "", 1), 400, "resource_type_invalid", "/data/relationships/component/data/type"},
		{"no secret", "POST", clients, `{"data":{"type":"oauth-client","attributes":{"client_id":"i"},"relationships":{"component":{"data":{"id":"docs","type":"component"}}}}}`, 400, "member_missing", "/data/attributes/client_secret"},
		{"an id of one's own", "POST", clients, `{"data":{"id":"mine","type":"oauth-client"}}`, 403, "resource_id_refused", "/data/id"},
		{"an unknown attribute", "PATCH", item, `{"data":{"attributes":{"secret":"s"}}}`, 400, "body_invalid", "/data/attributes/secret"},
		{"an unknown member", "PATCH", item, `{"data":{"attribute":{}}}`, 400, "body_invalid", "/data/attribute"},
		{"no JSON", "POST", clients, `{"data"`, 400, "body_invalid", ""},
		{"an unknown parameter", "GET", clients + "?filter[name]=x", "", 400, "parameter_invalid", "filter[name]"},
		{"an unknown client", "GET", clients + "/nothing", "", 404, "oauth_client_not_found", ""},
		{"an unknown tenant", "GET", "/v2/tenants/nobody/oauth-clients", "", 404, "tenant_not_found", ""},
		{"another tenant", "GET", "/v2/tenants/other/oauth-clients/" + first, "", 404, "oauth_client_not_found", ""},
		{"an unknown path", "GET", "/v2/tenants/default/oauth-client", "", 404, "path_unknown", ""},
		{"an unknown method", "PUT", item, "{}", 405, "method_not_allowed", ""},
		{"a reveal without the permission", "GET", item + "?reveal=true", "", 403, "permission_denied", ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			w := v.as(v.key)
			w.t = t
			w.refused(c.method, c.path, c.body, c.status, c.code, c.source)
		})
	}
	v.as("cs_nobody").refused("GET", clients, "", 401, "api_key_malformed", "")
	v.as(u.issue(t, map[string]any{"role": "OPERATOR"})).refused("POST", clients, newClient("oauth-client", "i", "s", "docs"), 403, "permission_denied", "")

	revealer := v.as(u.issue(t, map[string]any{"permissions": []string{"tenants.oauth_clients.get", "credentials.reveal"}}))
	revealer.wants("GET", item+"?reveal=true", "", 200, `{"data":`+clientJSON(first, "newer-id", "canary-3", "sheets")+`,"meta":{}}`)

	v.wants("POST", "/v2/flows", newFlow("f1", `{"id":"s1","component_id":"docs"}`), 422,
		`{"errors":[{"status":"422","code":"credential_required","detail":"Nothing was recorded. Step \"s1\" uses no credential, but the component docs requires one.",
			"meta":{"steps":[{"step":"s1","component":"docs","reason":"credential_required"}]}}]}`)
	e := newEngine(t, u.connect(t, adminKey))
	must(t, e.tell("created", "f1", 1, flowStep{"s1", "docs", ""}))
	await(t, "the use of the component", func() (bool, error) {
		var c clientShown
		err := u.query("oauth_client.get", "id="+second, &c)
		return c.Used, err
	})
	if meta := v.refused("DELETE", clients+"/"+second, "", 409, "oauth_client_in_use", ""); fmt.Sprint(meta["flows"]) != "[map[active:false id:f1 name:The flow f1]]" {
		t.Errorf("the flows are %v", meta)
	}
	v.wants("DELETE", item, "", 204, "")
	v.refused("GET", item, "", 404, "oauth_client_not_found", "")

	if strings.Contains(v.answers.String()+u.logs.String(), "canary") {
		t.Error("a secret is in an answer or the log")
	}
}

// The media types of JSON:API, as far as the vendor's examples allow.
func TestElasticIOMedia(t *testing.T) {
	u, v := bringVendor(t)
	registerAs(t, u.api, "sheets", sheets)
	const api, plain = "application/vnd.api+json", "application/json"
	for _, c := range []struct {
		accept, content, answered string
		status                    int
	}{
		{"", plain, plain, 400},
		{"", api, api, 400},
		{"*/*", plain, plain, 400},
		{api, plain, api, 400},
		{plain, api, plain, 400},
		{"text/html, application/json;q=0.9", api, plain, 400},
		{"", "application/json; charset=UTF-8", plain, 400},
		{"", "application/json; charset=latin1", api, 415},
		{"", api + "; charset=utf-8", api, 415},
		{"", api + `; profile="https://example.org/p"`, api, 400},
		{"", "application/x-www-form-urlencoded", api, 415},
		{"text/html", plain, plain, 406},
		{api + "; ext=x", plain, plain, 406},
		{api + "; ext=x, " + api, plain, api, 400},
	} {
		headers := []string{"Content-Type: " + c.content}
		if c.accept != "" {
			headers = append(headers, "Accept: "+c.accept)
		}
		resp, body := v.send("POST", clients, "{}", headers...)
		if resp.StatusCode != c.status || resp.Header.Get("Content-Type") != c.answered {
			t.Errorf("Accept %q, Content-Type %q: %d %s %s", c.accept, c.content, resp.StatusCode, resp.Header.Get("Content-Type"), body)
		}
	}
	if resp, _ := v.send("GET", clients, ""); resp.Header.Get("Content-Type") != api || resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("headers %v", resp.Header)
	}
	v.refused("POST", clients, `{"data":{"type":"oauth-client","attributes":{"client_id":"`+strings.Repeat("x", 1<<20)+`"}}}`, 413, "body_too_large", "")
	if resp, _ := v.send("POST", clients, "{}", "Origin: https://evil.example", "Sec-Fetch-Site: cross-site"); resp.StatusCode != 403 {
		t.Errorf("a page of another origin: %d", resp.StatusCode)
	}
}

func newCredential(name, keys, component, workspace string) string {
	attributes := `"keys":` + keys
	if name != "" {
		attributes = fmt.Sprintf(`"name":%q,`, name) + attributes
	}
	more := ""
	if workspace != "" {
		more = fmt.Sprintf(`,"workspace":{"data":{"id":%q,"type":"workspace"}},"vpn_agent":{"data":{"id":"5a09","type":"vpn-agent"}}`, workspace)
	}
	return fmt.Sprintf(`{"data":{"type":"credential","attributes":{%s},"relationships":{"component":{"data":{"id":%q,"type":"component"}}%s}}}`, attributes, component, more)
}

func credentialJSON(id, name, keys, component, workspace string) string {
	more := ""
	if workspace != "" {
		more = fmt.Sprintf(`,"workspace":{"data":{"id":%[1]q,"type":"workspace"},"links":{"self":"/v2/workspaces/%[1]s"}},
			"vpn_agent":{"data":{"id":"5a09","type":"vpn-agent"},"links":{"self":"/v2/vpn_agents/5a09"}}`, workspace)
	}
	return fmt.Sprintf(`{"id":%[1]q,"type":"credential","links":{"self":"/v2/credentials/%[1]s"},"attributes":{"name":%[2]q,"keys":%[3]s},"relationships":{
		"user":{"data":{"id":"first-administrator","type":"user"},"links":{"self":"/v2/users/first-administrator"}},
		"component":{"data":{"id":%[4]q,"type":"component"},"links":{"self":"/v2/components/%[4]s"}}%[5]s}}`, id, name, keys, component, more)
}

// The vendor's examples for credentials, over real HTTP and with real dry requests.
func TestElasticIOCredentials(t *testing.T) {
	u, v := bringVendor(t)
	pets := newPetstore(t, "right-canary")
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	registerPlain(t, u.base)
	const right, masked = `{"apiKey":"right-canary"}`, `{"apiKey":"********"}`

	id := v.wants("POST", "/v2/credentials", newCredential("Pets", right, "petstore", "573d"), 201,
		`{"data":`+credentialJSON("{ID}", "Pets", masked, "petstore", "573d")+`,"meta":{}}`)
	resp, body := v.send("POST", "/v2/credentials/", newCredential("", right, "petstore", ""), "Accept: application/vnd.api+json")
	var made struct {
		Data struct {
			ID         string
			Attributes struct{ Name string }
		}
	}
	must(t, json.Unmarshal([]byte(body), &made))
	unnamed := made.Data.ID
	if name := made.Data.Attributes.Name; resp.StatusCode != 201 || !strings.HasSuffix(name, " "+unnamed[:8]) || resp.Header.Get("Location") != "/v2/credentials/"+unnamed {
		t.Errorf("without a name: %d %s", resp.StatusCode, body)
	}
	const again = "Idempotency-Key: once"
	once := v.wants("POST", "/v2/credentials", newCredential("Once", right, "petstore", ""), 201, `{"data":`+credentialJSON("{ID}", "Once", masked, "petstore", "")+`,"meta":{}}`, again)
	v.wants("POST", "/v2/credentials", newCredential("Once", right, "petstore", ""), 201, `{"data":`+credentialJSON(once, "Once", masked, "petstore", "")+`,"meta":{}}`, again)
	item := "/v2/credentials/" + id
	v.wants("GET", item, "", 200, `{"data":`+credentialJSON(id, "Pets", masked, "petstore", "573d")+`,"meta":{}}`)
	v.wants("GET", "/v2/credentials?workspace_id=573d&filter[component]=petstore", "", 200,
		fmt.Sprintf(`{"data":[%s],"meta":{"page":1,"per_page":50,"total":1,"total_pages":1},"links":{"first":%[2]q,"last":%[2]q}}`,
			credentialJSON(id, "Pets", masked, "petstore", "573d"), "/v2/credentials?filter%5Bcomponent%5D=petstore&page%5Bnumber%5D=1&page%5Bsize%5D=50&workspace_id=573d"))
	v.wants("PATCH", item, `{"data":{"id":"`+id+`","type":"credential","attributes":{"name":"Pets of Acme"}}}`, 200,
		`{"data":`+credentialJSON(id, "Pets of Acme", masked, "petstore", "573d")+`,"meta":{}}`)
	pets.accept("new-canary")
	v.wants("PATCH", item, newCredential("", `{"apiKey":"new-canary"}`, "petstore", "573d"), 200, // the name stays
		`{"data":`+credentialJSON(id, "Pets of Acme", masked, "petstore", "573d")+`,"meta":{}}`)

	agent := func(data string) string { return `{"data":{"relationships":{"vpn_agent":` + data + `}}}` }
	moved := strings.ReplaceAll(credentialJSON(id, "Pets of Acme", masked, "petstore", "573d"), "5a09", "office")
	v.wants("PATCH", item, agent(`{"data":{"id":"office","type":"vpn-agent"}}`), 200, `{"data":`+moved+`,"meta":{}}`)
	v.wants("PATCH", item, agent(`{"links":{"self":"/v2/vpn_agents/none"}}`), 200, `{"data":`+moved+`,"meta":{}}`) // without data, nothing is said
	_, body = v.send("PATCH", item, agent(`{"data":null}`))
	if strings.Contains(body, "vpn_agent") {
		t.Errorf("the VPN agent is still there: %s", body)
	}
	v.wants("PATCH", item, newCredential("Pets of Acme", `{"apiKey":"new-canary"}`, "petstore", "573d"), 200, // all three
		`{"data":`+credentialJSON(id, "Pets of Acme", masked, "petstore", "573d")+`,"meta":{}}`, "Idempotency-Key: three")

	for _, c := range []struct {
		why, method, path, body string
		status                  int
		code, source            string
	}{
		{"a VPN agent that is no id", "PATCH", item, agent(`{"data":{"id":"a\u0007","type":"vpn-agent"}}`), 400, "id_invalid", "/data/relationships/vpn_agent/data/id"},
		{"a new one behind such an agent", "POST", "/v2/credentials", strings.Replace(newCredential("", right, "petstore", "w"), "5a09", strings.Repeat("x", 200), 1), 400, "id_invalid", "/data/relationships/vpn_agent/data/id"},
		{"wrong keys", "POST", "/v2/credentials", newCredential("x", `{"apiKey":"wrong-canary"}`, "petstore", ""), 422, "credential_verification_failed", ""},
		{"wrong new keys", "PATCH", item, newCredential("y", `{"apiKey":"wrong-canary"}`, "petstore", ""), 422, "credential_verification_failed", ""},
		{"the mask", "PATCH", item, newCredential("y", masked, "petstore", ""), 400, "keys_masked", "/data/attributes/keys/apiKey"},
		{"a bad name", "PATCH", item, `{"data":{"attributes":{"name":"a\u0007b","keys":` + right + `}}}`, 400, "name_invalid", "/data/attributes/name"},
		{"a move", "PATCH", item, newCredential("y", right, "plain", ""), 422, "relationship_fixed", "/data/relationships/component/data/id"},
		{"another workspace", "PATCH", item, newCredential("y", right, "petstore", "other"), 422, "relationship_fixed", "/data/relationships/workspace/data/id"},
		{"another id", "PATCH", item, `{"data":{"id":"x","type":"credential"}}`, 409, "resource_id_mismatch", "/data/id"},
		{"no keys", "POST", "/v2/credentials", `{"data":{"type":"credential","relationships":{"component":{"data":{"id":"plain","type":"component"}}}}}`, 400, "member_missing", "/data/attributes/keys"},
		{"no component", "POST", "/v2/credentials", `{"data":{"type":"credential","attributes":{"keys":{}}}}`, 400, "member_missing", "/data/relationships/component/data/id"},
		{"an unknown component", "POST", "/v2/credentials", newCredential("x", right, "nowhere", ""), 404, "component_not_found", "/data/relationships/component/data/id"},
		{"a large page", "GET", "/v2/credentials?page[size]=201", "", 400, "parameter_invalid", "page[size]"},
		{"a far page", "GET", "/v2/credentials?page[number]=500", "", 400, "page_out_of_reach", "page[number]"},
		{"a sort", "GET", "/v2/credentials?sort=status", "", 400, "parameter_invalid", "sort"},
		{"an include", "GET", "/v2/credentials?include=user", "", 400, "parameter_invalid", "include"},
		{"a cursor", "GET", "/v2/credentials?page[after]=x", "", 400, "cursor_invalid", ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			w := v.as(v.key)
			w.t = t
			w.refused(c.method, c.path, c.body, c.status, c.code, c.source)
			v.answers.Write(w.answers.Bytes())
		})
	}
	// Both permissions are needed to write: that of the surface and the service's own.
	const create = "credentials.create"
	v.as(u.issue(t, map[string]any{"permissions": []string{create}})).refused("POST", "/v2/credentials", newCredential("x", right, "petstore", ""), 403, "permission_denied", "")
	v.as(u.issue(t, map[string]any{"permissions": []string{"workspaces.credential.edit"}})).refused("POST", "/v2/credentials", newCredential("x", right, "petstore", ""), 403, "permission_denied", "")
	writer := v.as(u.issue(t, map[string]any{"permissions": []string{create, "workspaces.credential.edit"}}))
	writer.wants("POST", "/v2/credentials", newCredential("Mine", `{"apiKey":"new-canary"}`, "petstore", ""), 201, // it may not read
		`{"data":{"id":"{ID}","type":"credential","links":{"self":"/v2/credentials/{ID}"},"attributes":{"name":"Mine"},
		"relationships":{"component":{"data":{"id":"petstore","type":"component"},"links":{"self":"/v2/components/petstore"}}}},"meta":{}}`)

	v.refused("GET", item+"?reveal=true", "", 403, "permission_denied", "")
	revealer := v.as(u.issue(t, map[string]any{"permissions": []string{"credentials.get", "credentials.reveal"}}))
	revealer.wants("GET", item+"?reveal=true", "", 200, `{"data":`+credentialJSON(id, "Pets of Acme", `{"apiKey":"new-canary"}`, "petstore", "573d")+`,"meta":{}}`)

	node := fmt.Sprintf(`{"id":"s1","component_id":"petstore","credentials_id":%q,"command":"petstore:get","first":true}`, id)
	v.send("POST", "/v2/flows", newFlow("f1", node))
	v.send("POST", "/v2/flows/f1/start", "")
	if meta := v.refused("DELETE", item, "", 409, "credential_in_use", ""); fmt.Sprint(meta["flows"]) != "[map[active:true id:f1 name:A flow]]" {
		t.Errorf("the flows are %v", meta)
	}
	v.wants("DELETE", "/v2/flows/f1", "", 204, "")
	v.wants("DELETE", item, "", 204, "")
	v.refused("GET", item, "", 404, "credential_not_found", "")
	v.refused("PATCH", item, `{"data":{"attributes":{"name":"x"}}}`, 404, "credential_not_found", "")
	v.wants("DELETE", "/v2/credentials/"+unnamed, "", 204, "")
	if strings.Contains(v.answers.String()+u.logs.String(), "canary") {
		t.Error("a secret is in an answer or the log")
	}
}

// Pages, orders, sparse fields and included components.
func TestElasticIOLists(t *testing.T) {
	u, v := bringVendor(t)
	registerPlain(t, u.base)
	var made done
	place := map[string]string{} // in the order of creation, by id
	for n, name := range []string{"b", "a", "B", "c", "a"} {
		in := map[string]any{"component": "plain", "name": name, "keys": map[string]string{"apiKey": "t"}}
		if n%2 == 0 {
			in["workspace"] = "w"
		}
		must(t, u.command("credential.create", "", in, &made))
		place[made.ID] = fmt.Sprint(n)
	}
	must(t, u.query("credential.counts", fmt.Sprint("min_seq=", made.Seq), nil))
	last := v.wantsAny("/v2/credentials?sort=-created_at&page[size]=1")
	page := func(path string) (names []string, links map[string]string, meta map[string]any) {
		var doc struct {
			Data []struct {
				ID         string
				Attributes struct{ Name string }
			}
			Links map[string]string
			Meta  map[string]any
		}
		resp, body := v.send("GET", path, "")
		if err := json.Unmarshal([]byte(body), &doc); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		for _, c := range doc.Data {
			names = append(names, c.Attributes.Name+place[c.ID])
		}
		return names, doc.Links, doc.Meta
	}
	for query, want := range map[string]string{
		"":                       "a1 a4 b0 B2 c3",
		"sort=created_at":        "b0 a1 B2 c3 a4",
		"sort=-created_at":       "a4 c3 B2 a1 b0",
		"sort=created_at,name":   "b0 a1 B2 c3 a4", // no two are of one time
		"workspace_id=w":         "a4 b0 B2",
		"page[number]=2":         "",
		"filter[component]=none": "",
	} {
		if names, _, _ := page("/v2/credentials?" + query); strings.Join(names, " ") != want {
			t.Errorf("%s: %v, want %s", query, names, want)
		}
	}
	// In both orders, and across the borders of pages in the middle of a name.
	for query, want := range map[string]string{
		"sort=name,created_at":   "a1 a4 b0 B2 c3",
		"sort=name,-created_at":  "a4 a1 B2 b0 c3",
		"sort=-name,created_at":  "c3 b0 B2 a1 a4",
		"sort=-name,-created_at": "c3 B2 b0 a4 a1",
	} {
		for size := 1; size <= 5; size++ {
			var got []string
			for next := fmt.Sprintf("/v2/credentials?%s&page[size]=%d", query, size); next != ""; {
				names, links, _ := page(next)
				got, next = append(got, names...), links["next"]
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%s, %d a page: %v, want %s", query, size, got, want)
			}
		}
	}
	next, got, numbers := "/v2/credentials?page[size]=2", []string{}, ""
	for next != "" {
		names, links, meta := page(next)
		got, next = append(got, names...), links["next"]
		numbers += fmt.Sprint(meta["page"], "/", meta["total_pages"], " of ", meta["total"], " ")
		if at, _, _ := page(links["last"]); len(at) != 1 || at[0] != "c3" {
			t.Errorf("the last page is %v", at)
		}
		if prev := links["prev"]; prev != "" {
			if names, _, _ := page(prev); len(names) != 2 {
				t.Errorf("the page before is %v", names)
			}
		}
	}
	if s := strings.Join(got, " "); s != "a1 a4 b0 B2 c3" || numbers != "1/3 of 5 2/3 of 5 3/3 of 5 " {
		t.Errorf("page by page: %s, %s", s, numbers)
	}
	for query, want := range map[string]string{
		"workspace_id=w&page[size]=2":                           "3 on 2",
		"workspace_id=w&filter[component]=plain&page[number]=2": "3 on 1",
		"workspace_id=w&filter[component]=none":                 "0 on 1",
		"workspace_id=none":                                     "0 on 1",
	} {
		if _, _, meta := page("/v2/credentials?" + query); fmt.Sprint(meta["total"], " on ", meta["total_pages"]) != want {
			t.Errorf("%s: %v, want %s", query, meta, want)
		}
	}
	v.wants("GET", "/v2/credentials/"+last+"?include=component&fields[credential]=name&fields[component]=access", "", 200, `{
		"data":{"id":"`+last+`","type":"credential","links":{"self":"/v2/credentials/`+last+`"},"attributes":{"name":"a"}},
		"included":[{"id":"plain","type":"component","links":{"self":"/v2/components/plain"},"attributes":{"access":"private"}}],"meta":{}}`)
}

// Who may not define OAuth clients does not see every global component. Totals and
// pages, by number and by link, tell of those alone that the caller sees.
func TestElasticIOTotals(t *testing.T) {
	u, v := bringVendor(t)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	theirs := u.api
	theirs.tenant = "other"
	for n, id := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		descriptor := sheets
		if n%3 == 2 {
			descriptor = `{"title":"Bare"}`
		}
		registerAs(t, theirs, id, descriptor)
		must(t, theirs.command("component.share", "", map[string]any{"id": id}, nil))
	}
	registerPlain(t, u.base)
	for _, id := range []string{"b", "e"} {
		if resp, body := v.send("POST", clients, newClient("oauth-client", "i", "s", id)); resp.StatusCode != 201 {
			t.Fatalf("%s: %d %s", id, resp.StatusCode, body)
		}
	}
	look := func(v *vendor, path string) (ids, next string, total string) {
		resp, body := v.send("GET", path, "")
		var doc struct {
			Data  []struct{ ID string }
			Links struct{ Next string }
			Meta  struct {
				Total int
				Pages int `json:"total_pages"`
			}
		}
		if err := json.Unmarshal([]byte(body), &doc); err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		for _, r := range doc.Data {
			ids += r.ID + " "
		}
		return ids, doc.Links.Next, fmt.Sprint(doc.Meta.Total, " on ", doc.Meta.Pages)
	}
	operator := v.as(u.issue(t, map[string]any{"role": "OPERATOR"}))
	for _, c := range []struct {
		who         *vendor
		path, total string
		pages       []string
	}{
		{v, "/v2/components", "8 on 4", []string{"a b ", "c d ", "e f ", "g plain "}},
		{operator, "/v2/components", "5 on 3", []string{"b c ", "e f ", "plain "}},
		{v, clients, "2 on 1", []string{"b e "}},
		{operator, clients, "2 on 1", []string{"b e "}},
		{v, clients + "?filter[component]=e", "1 on 1", []string{"e "}},
	} {
		mark := "?"
		if strings.Contains(c.path, "?") {
			mark = "&"
		}
		path := c.path + mark + "page[size]=2"
		for n, want := range c.pages {
			if strings.HasPrefix(c.path, clients) { // they have ids of their own
				want = fmt.Sprint(strings.Count(want, " "))
			}
			same := func(how, path string) (next string) {
				got, next, total := look(c.who, path)
				if strings.HasPrefix(c.path, clients) {
					got = fmt.Sprint(strings.Count(got, " "))
				}
				if got != want || total != c.total || (next == "") != (n == len(c.pages)-1) {
					t.Errorf("page %d by %s of %s: %s of %s, next %q; want %s of %s", n+1, how, c.path, got, total, next, want, c.total)
				}
				return next
			}
			same("number", fmt.Sprint(c.path, mark, "page[size]=2&page[number]=", n+1))
			path = same("link", path)
		}
	}
}

// wantsAny returns the id of the first resource of a list.
func (v *vendor) wantsAny(path string) string {
	v.t.Helper()
	_, body := v.send("GET", path, "")
	var doc struct{ Data []struct{ ID string } }
	if err := json.Unmarshal([]byte(body), &doc); err != nil || len(doc.Data) == 0 {
		v.t.Fatalf("%s: %s", path, body)
	}
	return doc.Data[0].ID
}

func newFlow(id, nodes string) string {
	return fmt.Sprintf(`{"data":{"id":%q,"type":"flow","attributes":{"name":"A flow","type":"ordinary",
		"graph":{"nodes":[%s],"edges":[]}},"relationships":{"workspace":{"data":{"type":"workspace","id":"w"}}}}}`, id, nodes)
}

// Components and flows, which end in the same facts as those of the bus.
func TestElasticIOComponentsAndFlows(t *testing.T) {
	u, v := bringVendor(t)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	const descriptor = `{"title":"Plain","credentials":{"fields":{"token":{"viewClass":"TextFieldView","label":"Token"}}}}`
	resource := func(access string) string {
		return `{"data":{"id":"plain","type":"component","links":{"self":"/v2/components/plain"},"attributes":{"name":"Plain","access":"` + access + `","descriptor":` + descriptor + `}},"meta":{}}`
	}
	v.wants("POST", "/v2/components", `{"data":{"id":"plain","type":"component","attributes":{"descriptor":`+descriptor+`}}}`, 201, resource("private"))
	v.refused("POST", "/v2/components", `{"data":{"id":"plain","type":"component","attributes":{"descriptor":`+descriptor+`}}}`, 409, "component_id_taken", "")
	v.refused("POST", "/v2/components", `{"data":{"type":"component","attributes":{}}}`, 400, "member_missing", "/data/attributes/descriptor")
	v.wants("PATCH", "/v2/components/plain", `{"data":{"id":"plain","type":"component","attributes":{"access":"global"}}}`, 200, resource("global"))
	v.wants("GET", "/v2/components/plain", "", 200, resource("global"))
	v.wants("GET", "/v2/components?fields[component]=name", "", 200, `{"data":[{"id":"plain","type":"component","links":{"self":"/v2/components/plain"},"attributes":{"name":"Plain"}}],
		"links":{"first":"/v2/components?fields%5Bcomponent%5D=name&page%5Bnumber%5D=1&page%5Bsize%5D=50","last":"/v2/components?fields%5Bcomponent%5D=name&page%5Bnumber%5D=1&page%5Bsize%5D=50"},
		"meta":{"page":1,"per_page":50,"total":1,"total_pages":1}}`)

	id := v.wants("POST", "/v2/credentials", newCredential("Token", `{"token":"canary"}`, "plain", ""), 201,
		`{"data":`+credentialJSON("{ID}", "Token", `{"token":"********"}`, "plain", "")+`,"meta":{}}`)
	v.wants("POST", "/v2/components", `{"data":{"id":"bare","type":"component","attributes":{"descriptor":{"title":"Bare"}}}}`, 201,
		`{"data":{"id":"bare","type":"component","links":{"self":"/v2/components/bare"},"attributes":{"name":"Bare","access":"private","descriptor":{"title":"Bare"}}},"meta":{}}`)

	node := func(component string) string {
		return fmt.Sprintf(`{"id":"s1","component_id":%q,"credentials_id":%q}`, component, id)
	}
	flow := func(status string) string {
		return `{"data":{"id":"f1","type":"flow","links":{"self":"/v2/flows/f1"},"attributes":{"name":"A flow","status":"` + status + `","graph":{"nodes":[` + node("plain") + `]}}},"meta":{}}`
	}
	v.refused("POST", "/v2/flows", newFlow("f1", node("bare")), 422, "credential_component_mismatch", "")
	v.refused("POST", "/v2/flows", newFlow("f1", `{"id":"s1","component_id":"plain"}`), 422, "credential_required", "")
	v.refused("POST", "/v2/flows", newFlow("f1", `{"component_id":"plain"}`), 400, "flow_steps_invalid", "/data/attributes/graph/nodes/0/id")
	v.refused("POST", "/v2/flows", newFlow("f1", `{"id":"s1"}`), 400, "flow_steps_invalid", "/data/attributes/graph/nodes/0/component_id")
	v.refused("GET", "/v2/flows/f1", "", 404, "flow_not_found", "") // nothing was recorded
	v.wants("POST", "/v2/flows", newFlow("f1", node("plain")), 201, flow("inactive"))
	v.refused("POST", "/v2/flows", newFlow("f1", node("plain")), 409, "flow_exists", "/data/id")
	v.wants("POST", "/v2/flows/f1/start", "", 200, flow("active"))
	v.wants("POST", "/v2/flows/f1/start", "", 200, flow("active"))
	v.wants("POST", "/v2/flows/f1/stop", "", 200, flow("inactive"))
	v.wants("GET", "/v2/flows/f1", "", 200, flow("inactive"))
	v.wants("DELETE", "/v2/credentials/"+id, "", 204, "")
	v.refused("POST", "/v2/flows/f1/start", "", 422, "flow_cannot_bind", "")
	v.wants("DELETE", "/v2/flows/f1", "", 204, "")
	v.refused("POST", "/v2/flows/f1/start", "", 404, "flow_not_found", "")
	v.as(u.issue(t, map[string]any{"role": "OPERATOR"})).refused("POST", "/v2/flows", newFlow("f2", ""), 403, "permission_denied", "")

	var facts struct{ Events []struct{ Type string } }
	must(t, u.query("events.replay", "stream=flow.f1", &facts))
	var types []string
	for _, e := range facts.Events {
		types = append(types, strings.TrimPrefix(e.Type, "credstream.flow."))
	}
	if got := strings.Join(types, " "); got != "observed.v1 observed.v1 observed.v1 observed.v1" {
		t.Errorf("the flow's facts are %s", got)
	}
	v.wants("DELETE", "/v2/components/bare", "", 204, "")
	for method, body := range map[string]string{"DELETE": "", "GET": "", "PATCH": `{"data":{"type":"component","attributes":{"access":"global"}}}`} {
		v.refused(method, "/v2/components/bare", body, 404, "component_gone", "")
	}
	v.refused("DELETE", "/v2/components/nothing", "", 404, "component_not_found", "")
}

// Changes of one flow at the same moment all happen: none is taken for the repeat
// of another.
func TestElasticIOFlowRaces(t *testing.T) {
	u, v := bringVendor(t)
	registerAs(t, u.api, "bare", `{"title":"Bare"}`)
	send := func(method, path string) (status int, body string) {
		req, err := http.NewRequestWithContext(t.Context(), method, v.base+path, nil)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		req.SetBasicAuth("somebody@example.com", v.key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		b, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Error(err)
		}
		return resp.StatusCode, string(b)
	}
	for n := range 40 {
		flow := fmt.Sprint("/v2/flows/f", n)
		v.send("POST", "/v2/flows", newFlow(fmt.Sprint("f", n), `{"id":"s1","component_id":"bare"}`))
		var all sync.WaitGroup
		all.Go(func() {
			status, body := send("POST", flow+"/start")
			if status != http.StatusNotFound && (status != http.StatusOK || !strings.Contains(body, `"status":"active"`)) {
				t.Errorf("the start answers %d %s", status, body)
			}
		})
		all.Go(func() {
			if status, _ := send("DELETE", flow); status != http.StatusNoContent {
				t.Errorf("the delete answers %d", status)
			}
		})
		all.Wait()
		if status, _ := send("POST", flow+"/stop"); status != http.StatusNotFound {
			t.Errorf("a flow that was deleted answers %d", status)
		}
	}
}

// A request with secrets that names the component's revision is refused when the
// component has another one by then. Whatever else a client keeps in meta is passed over.
func TestElasticIOExpectedRevision(t *testing.T) {
	u, v := bringVendor(t)
	registerPlain(t, u.base)
	registerAs(t, u.api, "one", sheets)
	for _, id := range []string{"two", "three", "four"} {
		registerAs(t, u.api, id, sheets)
	}
	var given done
	must(t, u.command("oauth_client.define", "", map[string]any{"component": "one", "client_id": "x", "client_secret": "y"}, &given))
	var secret done
	must(t, u.command("auth_secret.create", "", map[string]any{"workspace": "w", "component": "plain", "keys": map[string]any{"apiKey": "k"}}, &secret))
	authClient := func(typ, name, credentials, component string) string {
		return fmt.Sprintf(`{"type":"auth-client","attributes":{"name":%q,"type":%q,"credentials":%s},"relationships":{"components":{"data":[{"id":%q,"type":"component"}]}}}`,
			name, typ, credentials, component)
	}
	changed := func(credentials, component string) string {
		return fmt.Sprintf(`{"attributes":{"credentials":%s},"relationships":{"components":{"data":[{"id":%q,"type":"component"}]}}}`, credentials, component)
	}
	var basic, office done
	must(t, u.command("auth_client.create", "", map[string]any{"name": "B", "type": "basic", "components": []string{"plain"}, "credentials": map[string]any{"username": "u", "password": "p"}}, &basic))
	must(t, u.command("auth_client.create", "", map[string]any{"name": "O", "type": "oauth2", "components": []string{"three"}, "credentials": map[string]any{"client_id": "i", "client_secret": "s"}}, &office))
	requests := []struct{ method, path, data, component string }{
		{"POST", "/v2/credentials", `{"type":"credential","attributes":{"keys":{"apiKey":"k"}},"relationships":{"component":{"data":{"id":"plain","type":"component"}}}}`, "plain"},
		{"PATCH", "/v2/credentials/" + u.create(t), `{"attributes":{"name":"Another","keys":{"apiKey":"k2"}}}`, "plain"},
		{"POST", "/v2/workspaces/w/secrets", `{"type":"auth-secret","attributes":{"credentials":{"apiKey":"k"}},"relationships":{"component":{"data":{"id":"plain","type":"component"}}}}`, "plain"},
		{"PATCH", "/v2/workspaces/w/secrets/" + secret.ID, `{"attributes":{"name":"Another","credentials":{"apiKey":"k2"}}}`, "plain"},
		{"POST", clients, `{"type":"oauth-client","attributes":{"client_id":"x","client_secret":"y"},"relationships":{"component":{"data":{"id":"two","type":"component"}}}}`, "two"},
		{"PATCH", clients + "/" + given.ID, `{"attributes":{"client_secret":"z"}}`, "one"},
		{"POST", authClients, authClient("basic", "C", `{"username":"u","password":"p"}`, "plain"), "plain"},
		{"POST", authClients, authClient("oauth2", "D", `{"client_id":"i","client_secret":"s"}`, "four"), "four"},
		{"PATCH", authClients + "/" + basic.ID, changed(`{"password":"q"}`, "plain"), "plain"},
		{"PATCH", authClients + "/" + office.ID, changed(`{"client_secret":"t"}`, "three"), "three"},
	}
	revision := func(component string) (n int) {
		_, got := v.send("GET", "/v2/components/"+component, "")
		var doc struct {
			Data struct{ Meta struct{ Revision int } }
		}
		must(t, json.Unmarshal([]byte(got), &doc))
		return doc.Data.Meta.Revision
	}
	seen := map[string]int{}
	for component, descriptor := range map[string]string{"plain": plain, "one": sheets, "two": sheets, "three": sheets, "four": sheets} {
		seen[component] = revision(component)
		must(t, u.command("component.update", "", map[string]any{"id": component, "descriptor": json.RawMessage(strings.Replace(descriptor, `"title":"`, `"title":"New `, 1))}, nil))
	}
	end := logEnd(t, u.program)
	for _, r := range requests {
		document := func(meta string) string { return `{"data":` + r.data + `,"meta":` + meta + `}` }
		v.refused(r.method, r.path, document(fmt.Sprintf(`{"expected_revision":%d}`, seen[r.component])), 409, "component_changed", "/meta/expected_revision")
		for _, wrong := range []string{`"1"`, `0`, `-1`, `1.5`, `{}`} {
			v.refused(r.method, r.path, document(`{"expected_revision":`+wrong+`}`), 400, "body_invalid", "/meta/expected_revision")
		}
		if !strings.HasPrefix(r.path, authClients) {
			continue
		}
		by := func(revision any) string {
			return fmt.Sprintf(`{"expected_revisions":{%q:%v,"x":1}}`, r.component, revision)
		}
		v.refused(r.method, r.path, document(by(seen[r.component])), 409, "component_changed", "/meta/expected_revisions/"+r.component)
		for _, wrong := range []any{`"1"`, 0, -1, 1.5, "{}"} {
			v.refused(r.method, r.path, document(by(wrong)), 400, "body_invalid", "/meta/expected_revisions")
		}
		both := strings.Replace(document(`{"expected_revision":1}`), `{"data":[`, `{"data":[{"id":"one","type":"component"},`, 1)
		v.refused(r.method, r.path, both, 400, "body_invalid", "/meta/expected_revision") // of which component?
		v.refused(r.method, r.path, document(`{"expected_revision":1,"expected_revisions":{}}`), 400, "body_invalid", "/meta/expected_revision")
	}
	v.refused("PATCH", authClients+"/"+office.ID, `{"data":{"attributes":{"credentials":{"client_secret":"t"}}},"meta":{"expected_revision":1}}`,
		400, "body_invalid", "/meta/expected_revision")
	if now := logEnd(t, u.program); now != end {
		t.Errorf("refused requests have appended %d commits", now-end)
	}
	for _, r := range requests {
		meta := fmt.Sprintf(`{"expected_revision":%d,"request":{"of":"mine"}}`, seen[r.component]+1)
		if resp, got := v.send(r.method, r.path, `{"data":`+r.data+`,"meta":`+meta+`}`); resp.StatusCode > 201 {
			t.Errorf("%s %s answers %d %s", r.method, r.path, resp.StatusCode, got)
		}
		if r.method == "POST" && strings.Contains(r.data, `"client_secret"`) {
			continue // it is defined
		}
		for _, other := range []string{`{"expected":1}`, `{"expected_revision":null}`, `[]`, `"x"`, `null`} {
			if resp, got := v.send(r.method, r.path, `{"data":`+r.data+`,"meta":`+other+`}`); resp.StatusCode > 201 {
				t.Errorf("%s %s with meta %s answers %d %s", r.method, r.path, other, resp.StatusCode, got)
			}
		}
	}
}
