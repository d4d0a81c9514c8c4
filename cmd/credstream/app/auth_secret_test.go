package app

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service/permission"
)

const secretsOfSales = "/v2/workspaces/sales/secrets"

func newSecret(name, credentials, component string) string {
	return fmt.Sprintf(`{"data":{"type":"auth-secret","attributes":{"name":%q,"state":"ready","credentials":%s},
		"relationships":{"component":{"data":{"id":%q,"type":"component"}}}}}`, name, credentials, component)
}

func secretJSON(id, name, state, credentials, component, workspace string) string {
	return fmt.Sprintf(`{"id":%[1]q,"type":"auth-secret","links":{"self":"/v2/workspaces/%[6]s/secrets/%[1]s"},
		"attributes":{"name":%[2]q,%[3]s,"credentials":%[4]s},"relationships":{
		"user":{"data":{"id":"first-administrator","type":"user"},"links":{"self":"/v2/users/first-administrator"}},
		"component":{"data":{"id":%[5]q,"type":"component"},"links":{"self":"/v2/components/%[5]s"}},
		"workspace":{"data":{"id":%[6]q,"type":"workspace"},"links":{"self":"/v2/workspaces/%[6]s"}}}}`, id, name, state, credentials, component, workspace)
}

// The secrets of a workspace, over real HTTP and with real dry requests, in both
// media types.
func TestAuthSecrets(t *testing.T) {
	u, v := bringVendor(t)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	pets := newPetstore(t, "right-canary")
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	registerPlain(t, u.base)
	const right, masked, ready = `{"apiKey":"right-canary"}`, `{"apiKey":"********"}`, `"state":"ready"`

	id := v.wants("POST", secretsOfSales, newSecret("Pets", right, "petstore"), 201, `{"data":`+secretJSON("{ID}", "Pets", ready, masked, "petstore", "sales")+`,"meta":{}}`)
	item := secretsOfSales + "/" + id
	for _, media := range []string{"application/json", "application/vnd.api+json"} {
		v.wants("GET", item, "", 200, `{"data":`+secretJSON(id, "Pets", ready, masked, "petstore", "sales")+`,"meta":{}}`, "Accept: "+media)
		v.wants("PATCH", item, `{"data":{"id":"`+id+`","type":"auth-secret","attributes":{"name":"Pets","state":"error","error":"said by a caller","credentials":`+right+`}}}`, 200,
			`{"data":`+secretJSON(id, "Pets", ready, masked, "petstore", "sales")+`,"meta":{}}`, "Accept: "+media, "Content-Type: "+media, "Idempotency-Key: "+media)
	}
	// It is a credential like any other, and its workspace is the one in the path.
	_, body := v.send("GET", "/v2/credentials/"+id, "")
	if !strings.Contains(body, `"workspace":{"data":{"id":"sales","type":"workspace"}`) {
		t.Errorf("as a credential it is %s", body)
	}
	resp, body := v.send("POST", secretsOfSales+"/", strings.Replace(newSecret("", right, "petstore"), `"name":"",`, "", 1))
	var made struct {
		Data struct {
			ID         string
			Attributes struct{ Name string }
		}
	}
	must(t, json.Unmarshal([]byte(body), &made))
	unnamed := made.Data.ID
	if resp.StatusCode != 201 || !strings.HasSuffix(made.Data.Attributes.Name, " "+unnamed[:8]) || resp.Header.Get("Location") != secretsOfSales+"/"+unnamed {
		t.Errorf("without a name: %d %s", resp.StatusCode, body)
	}
	plain := v.wants("POST", secretsOfSales, newSecret("Plain", `{"apiKey":"canary"}`, "plain"), 201, `{"data":`+secretJSON("{ID}", "Plain", ready, masked, "plain", "sales")+`,"meta":{}}`)
	v.wants("POST", "/v2/workspaces/support/secrets", newSecret("Theirs", `{"apiKey":"canary"}`, "plain"), 201,
		`{"data":`+secretJSON("{ID}", "Theirs", ready, masked, "plain", "support")+`,"meta":{}}`)
	link := secretsOfSales + "?filter%5Bcomponent%5D=plain&page%5Bnumber%5D=1&page%5Bsize%5D=1"
	v.wants("GET", secretsOfSales+"?filter[component]=plain&page[size]=1", "", 200, fmt.Sprintf(
		`{"data":[%s],"links":{"first":%[2]q,"last":%[2]q},"meta":{"page":1,"per_page":1,"total":1,"total_pages":1}}`, secretJSON(plain, "Plain", ready, masked, "plain", "sales"), link))
	for query, want := range map[string]string{
		"":                       "3 of 3",
		"?page[size]=2":          "2 of 3",
		"?filter[component]=":    "3 of 3",
		"?filter[component]=x":   "0 of 0",
		"?page[number]=2":        "0 of 3",
		"?sort=-name,created_at": "3 of 3",
	} {
		var doc struct {
			Data []any
			Meta struct{ Total int }
		}
		_, body := v.send("GET", secretsOfSales+query, "")
		must(t, json.Unmarshal([]byte(body), &doc))
		if got := fmt.Sprint(len(doc.Data), " of ", doc.Meta.Total); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}

	for _, c := range []struct {
		why, method, path, body string
		status                  int
		code, source            string
	}{
		{"wrong credentials", "POST", secretsOfSales, newSecret("x", `{"apiKey":"wrong-canary"}`, "petstore"), 422, "credential_verification_failed", ""},
		{"an unknown field", "POST", secretsOfSales, newSecret("x", `{"key":"k"}`, "petstore"), 400, "keys_field_unknown", "/data/attributes/credentials/key"},
		{"the mask", "PATCH", item, newSecret("y", masked, "petstore"), 400, "keys_masked", "/data/attributes/credentials/apiKey"},
		{"a bad name", "PATCH", item, `{"data":{"attributes":{"name":"a\u0007b"}}}`, 400, "name_invalid", "/data/attributes/name"},
		{"a name that is none", "POST", secretsOfSales, `{"data":{"type":"auth-secret","attributes":{"name":7}}}`, 400, "body_invalid", "/data/attributes/name"},
		{"credentials that are none", "POST", secretsOfSales, `{"data":{"type":"auth-secret","attributes":{"credentials":[]}}}`, 400, "body_invalid", "/data/attributes/credentials"},
		{"a state that is none", "PATCH", item, `{"data":{"attributes":{"state":"good"}}}`, 400, "body_invalid", "/data/attributes/state"},
		{"keys by another name", "PATCH", item, `{"data":{"attributes":{"keys":{}}}}`, 400, "body_invalid", "/data/attributes/keys"},
		{"a move", "PATCH", item, newSecret("y", right, "plain"), 422, "relationship_fixed", "/data/relationships/component/data/id"},
		{"another workspace", "PATCH", item, `{"data":{"relationships":{"workspace":{"data":{"id":"support","type":"workspace"}}}}}`, 422, "relationship_fixed", "/data/relationships/workspace/data/id"},
		{"another id", "PATCH", item, `{"data":{"id":"x","type":"auth-secret"}}`, 409, "resource_id_mismatch", "/data/id"},
		{"another type", "POST", secretsOfSales, strings.Replace(newSecret("x", right, "petstore"), "auth-secret", "credential", 1), 400, "resource_type_invalid", "/data/type"},
		{"an id of one's own", "POST", secretsOfSales, `{"data":{"id":"mine","type":"auth-secret"}}`, 403, "resource_id_refused", "/data/id"},
		{"no component", "POST", secretsOfSales, `{"data":{"type":"auth-secret","attributes":{"credentials":{}}}}`, 400, "member_missing", "/data/relationships/component/data/id"},
		{"no credentials", "POST", secretsOfSales, `{"data":{"type":"auth-secret","relationships":{"component":{"data":{"id":"plain","type":"component"}}}}}`, 400, "member_missing", "/data/attributes/credentials"},
		{"an unknown component", "POST", secretsOfSales, newSecret("x", right, "nowhere"), 404, "component_not_found", "/data/relationships/component/data/id"},
		{"no tokens to renew", "POST", item + "/refresh", "", 409, "credential_not_oauth", ""},
		{"an unknown parameter", "GET", secretsOfSales + "?workspace_id=sales", "", 400, "parameter_invalid", "workspace_id"},
		{"a workspace that is no id", "GET", "/v2/workspaces/a%07/secrets", "", 400, "id_invalid", ""},
		{"an unknown path", "GET", item + "/keys", "", 404, "path_unknown", ""},
		{"an unknown method", "PUT", item, "{}", 405, "method_not_allowed", ""},
		{"a reveal without the permission", "GET", item + "?reveal=true", "", 403, "permission_denied", ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			w := v.as(v.key)
			w.t = t
			w.refused(c.method, c.path, c.body, c.status, c.code, c.source)
			v.answers.Write(w.answers.Bytes())
		})
	}

	// One of another workspace, and one of none, is not found; nor is another tenant's.
	resp, body = v.send("POST", "/v2/credentials", newCredential("Free", `{"apiKey":"canary"}`, "plain", ""))
	must(t, json.Unmarshal([]byte(body), &made))
	if resp.StatusCode != 201 {
		t.Fatalf("a credential without a workspace: %s", body)
	}
	all := []string{"workspaces.auth_secret.get", "workspaces.auth_secret.edit", "workspaces.auth_secret.delete", "workspaces.auth_secret.refresh"}
	other := *u
	other.api = u.in("other")
	foreigner := v.as(other.issue(t, map[string]any{"permissions": all}))
	for _, c := range []struct{ method, more, body string }{
		{"GET", "", ""},
		{"PATCH", "", `{"data":{"attributes":{"name":"x"}}}`},
		{"PATCH", "", `{"data":{"attributes":{"credentials":{"apiKey":"x"}}}}`},
		{"POST", "/refresh", ""},
		{"DELETE", "", ""},
	} {
		v.refused(c.method, "/v2/workspaces/support/secrets/"+id+c.more, c.body, 404, "credential_not_found", "")
		v.refused(c.method, secretsOfSales+"/"+made.Data.ID+c.more, c.body, 404, "credential_not_found", "")
		v.refused(c.method, secretsOfSales+"/nothing"+c.more, c.body, 404, "credential_not_found", "")
		foreigner.refused(c.method, item+c.more, c.body, 404, "credential_not_found", "")
	}
	if _, body := foreigner.send("GET", secretsOfSales, ""); !strings.Contains(body, `"data":[]`) {
		t.Errorf("another tenant lists %s", body)
	}

	revealer := v.as(u.issue(t, map[string]any{"permissions": []string{"workspaces.auth_secret.get", "credentials.reveal"}}))
	revealer.wants("GET", item+"?reveal=true", "", 200, `{"data":`+secretJSON(id, "Pets", ready, right, "petstore", "sales")+`,"meta":{}}`)
	revealer.refused("GET", "/v2/workspaces/support/secrets/"+id+"?reveal=true", "", 404, "credential_not_found", "")

	pets.accept("another-key")
	var found done
	must(t, u.command("credential.verify", "", map[string]any{"id": id}, &found))
	must(t, u.proj.Wait(t.Context(), found.Seq))
	v.refused("PATCH", item, newSecret("y", right, "petstore"), 422, "credential_verification_failed", "") // as before, nothing changed
	broken := secretJSON(id, "Pets", `"state":"error","error":"The API rejected the keys at the last verification: it answered with a 4xx status."`, masked, "petstore", "sales")
	v.wants("GET", item, "", 200, `{"data":`+broken+`,"meta":{}}`)
	if _, body := v.send("GET", secretsOfSales+"?filter[component]=petstore&fields[auth-secret]=state,error", ""); !strings.Contains(body, `{"error":"The API rejected the keys`) {
		t.Errorf("the list says %s", body)
	}

	v.send("POST", "/v2/flows", newFlow("f1", fmt.Sprintf(`{"id":"s1","component_id":"petstore","credentials_id":%q}`, id)))
	v.send("POST", "/v2/flows/f1/start", "")
	if meta := v.refused("DELETE", item, "", 409, "credential_in_use", ""); fmt.Sprint(meta["flows"]) != "[map[active:true id:f1 name:A flow]]" {
		t.Errorf("the flows are %v", meta)
	}
	v.wants("DELETE", "/v2/flows/f1", "", 204, "")
	v.wants("DELETE", item, "", 204, "")
	v.refused("GET", item, "", 404, "credential_not_found", "")
	if strings.Contains(v.answers.String()+foreigner.answers.String()+u.logs.String(), "canary") {
		t.Error("a secret is in an answer or the log")
	}
}

// Each call takes one permission, and no other one will do.
func TestAuthSecretPermissions(t *testing.T) {
	u, v := bringVendor(t)
	registerPlain(t, u.base)
	const right = `{"apiKey":"canary"}`
	create := func() string {
		_, body := v.send("POST", secretsOfSales, newSecret("Plain", right, "plain"))
		var made struct{ Data struct{ ID string } }
		must(t, json.Unmarshal([]byte(body), &made))
		return made.Data.ID
	}
	calls := []struct {
		method, more, body string
		takes              permission.Permission
		status             int // with the permission
	}{
		{"GET", "", "", permission.AuthSecretsGet, 200},
		{"POST", "", newSecret("New", right, "plain"), permission.AuthSecretsCreate, 201},
		{"GET", "/{id}", "", permission.AuthSecretsGet, 200},
		{"PATCH", "/{id}", `{"data":{"attributes":{"name":"Another"}}}`, permission.AuthSecretsEdit, 200},
		{"PATCH", "/{id}", `{"data":{"attributes":{"credentials":` + right + `}}}`, permission.AuthSecretsEdit, 200},
		{"PATCH", "/{id}", `{"data":{"type":"auth-secret"}}`, permission.AuthSecretsEdit, 200},
		{"POST", "/{id}/refresh", "", permission.AuthSecretsRefresh, 409}, // there are no tokens
		{"DELETE", "/{id}", "", permission.AuthSecretsDelete, 204},
	}
	var all []string
	for _, p := range permission.Permissions() {
		all = append(all, string(p.Permission))
	}
	for _, c := range calls {
		but := []string{}
		for _, p := range all {
			if p != string(c.takes) {
				but = append(but, p)
			}
		}
		only := v.as(u.issue(t, map[string]any{"permissions": []string{string(c.takes)}}))
		others := v.as(u.issue(t, map[string]any{"permissions": but}))
		path := secretsOfSales + strings.Replace(c.more, "{id}", create(), 1)
		others.refused(c.method, path, c.body, 403, "permission_denied", "")
		if resp, body := only.send(c.method, path, c.body); resp.StatusCode != c.status {
			t.Errorf("%s %s with %s alone: %d %s", c.method, c.more, c.takes, resp.StatusCode, body)
		}
	}
	for role, status := range map[string]int{"ADMINISTRATOR": 200, "OPERATOR": 200, "AUDITOR": 403, "FLOW_ENGINE": 403} {
		who := v.as(u.issue(t, map[string]any{"role": role}))
		if resp, body := who.send("GET", secretsOfSales, ""); resp.StatusCode != status {
			t.Errorf("%s lists: %d %s", role, resp.StatusCode, body)
		}
		if role != "ADMINISTRATOR" {
			who.refused("POST", secretsOfSales, newSecret("New", right, "plain"), 403, "permission_denied", "")
		}
	}
}

// Tokens are taken as the vendor's documents hold them, are renewed on demand, and
// an auth secret says in a sentence why its tokens are renewed no more.
func TestAuthSecretsOfOAuth(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u, v := bringVendor(t)
	u.registerSheets(t, provider)
	refresh := "" // of the grant made last
	tokens := func() string {
		granted := provider.Grant()
		refresh, _ = granted["refresh_token"].(string)
		delete(granted, "expires_in")
		granted["expires_at"] = "2020-01-01T00:00:00Z"
		b, err := json.Marshal(granted)
		must(t, err)
		return string(b)
	}
	const masked, ready = `{"oauth":"********"}`, `"state":"ready"`
	id := v.wants("POST", secretsOfSales, newSecret("Sheets", tokens(), "sheets"), 201, `{"data":`+secretJSON("{ID}", "Sheets", ready, masked, "sheets", "sales")+`,"meta":{}}`)
	item := secretsOfSales + "/" + id
	before := provider.Requests()
	v.wants("POST", item+"/refresh", "", 200, `{"data":`+secretJSON(id, "Sheets", ready, masked, "sheets", "sales")+`,"meta":{}}`, "Content-Type: application/json")
	if n := provider.Requests() - before; n != 1 {
		t.Errorf("%d requests reached the provider", n)
	}
	granted := refresh
	v.refused("POST", secretsOfSales, newSecret("x", `{"access_token":"a"}`, "sheets"), 422, "oauth_refresh_token_missing", "/data/attributes/credentials")
	v.refused("POST", secretsOfSales, newSecret("x", `{"access_token":"a","refresh_token":["b"]}`, "sheets"), 400, "oauth_tokens_invalid", "/data/attributes/credentials/refresh_token")
	v.refused("POST", secretsOfSales, newSecret("x", `{"oauth":{"access_token":"a"}}`, "sheets"), 422, "oauth_refresh_token_missing", "/data/attributes/credentials/oauth")

	provider.Withdraw(granted)
	v.refused("POST", item+"/refresh", "", 409, "reauthorization_required", "")
	_, body := v.send("GET", item, "")
	var doc struct {
		Data struct{ Attributes struct{ State, Error string } }
	}
	must(t, json.Unmarshal([]byte(body), &doc))
	var c struct{ Tokens struct{ Problem string } }
	must(t, u.query("credential.get", "id="+id, &c))
	if a := doc.Data.Attributes; a.State != "error" || a.Error == "" || a.Error != c.Tokens.Problem {
		t.Errorf("the answer is %s, the problem %q", body, c.Tokens.Problem)
	}
	if _, list := v.send("GET", secretsOfSales, ""); !strings.Contains(list, fmt.Sprintf("%q", c.Tokens.Problem)) {
		t.Errorf("the list is %s", list)
	}
	v.wants("PATCH", item, `{"data":{"attributes":{"credentials":`+tokens()+`}}}`, 200, `{"data":`+secretJSON(id, "Sheets", ready, masked, "sheets", "sales")+`,"meta":{}}`)
}
