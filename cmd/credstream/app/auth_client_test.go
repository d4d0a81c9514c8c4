package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/vault"
)

const authClients = "/v2/auth-clients"

// newAuthClient is the document of an auth client. place is "workspace sales", "tenant
// default" or "" for one of every tenant.
func newAuthClient(name, typ, credentials, place string, components ...string) string {
	list := []string{}
	for _, c := range components {
		list = append(list, fmt.Sprintf(`{"id":%q,"type":"component"}`, c))
	}
	if scope, id, ok := strings.Cut(place, " "); ok {
		place = fmt.Sprintf(`,%[1]q:{"data":{"id":%[2]q,"type":%[1]q}}`, scope, id)
	}
	return fmt.Sprintf(`{"data":{"type":"auth-client","attributes":{"name":%q,"type":%q,"credentials":%s},"relationships":{"components":{"data":[%s]}%s}}}`,
		name, typ, credentials, strings.Join(list, ","), place)
}

func authClientJSON(id, name, typ, credentials, place string, components ...string) string {
	list := []string{}
	for _, c := range components {
		list = append(list, fmt.Sprintf(`{"id":%q,"type":"component"}`, c))
	}
	if scope, of, ok := strings.Cut(place, " "); ok {
		place = fmt.Sprintf(`,%[1]q:{"data":{"id":%[2]q,"type":%[1]q},"links":{"self":"/v2/%[1]ss/%[2]s"}}`, scope, of)
	}
	return fmt.Sprintf(`{"id":%[1]q,"type":"auth-client","links":{"self":"/v2/auth-clients/%[1]s"},"attributes":{"name":%[2]q,"type":%[3]q,"credentials":%[4]s},
		"relationships":{"components":{"data":[%[5]s]}%[6]s}}`, id, name, typ, credentials, strings.Join(list, ","), place)
}

// oauthClients are the OAuth clients of the tenant: component, and client id.
func (u *up) oauthClients(t testing.TB) string {
	t.Helper()
	end, err := u.store.End(t.Context())
	must(t, err)
	var list struct {
		Clients []struct {
			Component string
			ClientID  string `json:"client_id"`
		}
	}
	must(t, u.query("oauth_client.list", fmt.Sprint("min_seq=", end), &list))
	var all []string
	for _, k := range list.Clients {
		all = append(all, k.Component+" "+k.ClientID)
	}
	return strings.Join(all, ", ")
}

// Auth clients over real HTTP, in both media types.
func TestAuthClients(t *testing.T) {
	u, v := bringVendor(t)
	for _, id := range []string{"sheets", "docs", "mail"} {
		registerAs(t, u.api, id, sheets)
	}
	registerPlain(t, u.base)
	const (
		given  = `{"client_id":"the-client","client_secret":"canary-1","auth_uri":"https://x.example/a","token_uri":"https://x.example/t","refresh_token_uri":"https://x.example/r","token_expires_in":18000}`
		shown  = `{"client_id":"the-client","client_secret":"********","auth_uri":"https://x.example/a","token_uri":"https://x.example/t","refresh_token_uri":"https://x.example/r","token_expires_in":18000}`
		secret = `{"username":"********","password":"********"}`
		mine   = "tenant default"
	)
	id := v.wants("POST", authClients, newAuthClient("Sheets", "oauth2", given, mine, "sheets", "docs"), 201,
		`{"data":`+authClientJSON("{ID}", "Sheets", "oauth2", shown, mine, "sheets", "docs")+`,"meta":{}}`)
	item := authClients + "/" + id
	if got := u.oauthClients(t); got != "docs the-client, sheets the-client" {
		t.Errorf("the OAuth clients are %s", got)
	}
	for _, media := range []string{"application/json", "application/vnd.api+json"} {
		v.wants("GET", item, "", 200, `{"data":`+authClientJSON(id, "Sheets", "oauth2", shown, mine, "sheets", "docs")+`,"meta":{}}`, "Accept: "+media)
	}
	workspace := v.wants("POST", authClients, newAuthClient("Basic", "basic", `{"username":"canary-u","password":"canary-p"}`, "workspace sales", "plain", "sheets"), 201,
		`{"data":`+authClientJSON("{ID}", "Basic", "basic", secret, "workspace sales", "plain", "sheets")+`,"meta":{}}`, "Idempotency-Key: once")
	v.wants("POST", authClients, newAuthClient("Basic", "basic", `{"username":"canary-u","password":"canary-p"}`, "workspace sales", "plain", "sheets"), 201,
		`{"data":`+authClientJSON(workspace, "Basic", "basic", secret, "workspace sales", "plain", "sheets")+`,"meta":{}}`, "Idempotency-Key: once")
	contract := v.wants("POST", authClients, newAuthClient("Key", "api_key", `{"key":{"nested":["canary-k"]}}`, "contract k1", "plain"), 201,
		`{"data":`+authClientJSON("{ID}", "Key", "api_key", `{"key":"********"}`, "contract k1", "plain")+`,"meta":{}}`)
	global := v.wants("POST", authClients, newAuthClient("Open", "noauth", `{}`, "", "plain"), 201, `{"data":`+authClientJSON("{ID}", "Open", "noauth", `{}`, "", "plain")+`,"meta":{}}`)

	for query, want := range map[string][]string{
		"":                                {global},
		"?tenant_id=default":              {id, global},
		"?workspace_id=sales":             {id, workspace, global},
		"?workspace_id=support":           {id, global},
		"?contract_id=k1":                 {id, contract, global},
		"?tenant_id=default&page[size]=1": {id},
		"?workspace_id=sales&filter[component]=sheets": {id, workspace},
		"?workspace_id=sales&filter[component]=mail":   {},
	} {
		resp, body := v.send("GET", authClients+query, "")
		var doc struct{ Data []struct{ ID string } }
		must(t, json.Unmarshal([]byte(body), &doc))
		var got []string
		for _, r := range doc.Data {
			got = append(got, r.ID)
		}
		if resp.StatusCode != 200 || strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: %d %v, want %v", query, resp.StatusCode, got, want)
		}
	}
	v.refused("GET", authClients+"/"+workspace+"?workspace_id=support", "", 404, "auth_client_not_found", "")
	v.wants("GET", authClients+"/"+workspace+"?workspace_id=sales", "", 200, `{"data":`+authClientJSON(workspace, "Basic", "basic", secret, "workspace sales", "plain", "sheets")+`,"meta":{}}`)

	// The OAuth clients follow: another secret and client id, one component less, one more.
	changed := strings.ReplaceAll(shown, "the-client", "new-client")
	v.wants("PATCH", item, `{"data":{"id":"`+id+`","type":"auth-client","attributes":{"name":"Mail","credentials":{"client_id":"new-client","client_secret":"canary-2"}},
		"relationships":{"components":{"data":[{"id":"docs","type":"component"},{"id":"mail","type":"component"}]}}}}`, 200,
		`{"data":`+authClientJSON(id, "Mail", "oauth2", changed, mine, "docs", "mail")+`,"meta":{}}`, "Idempotency-Key: change")
	if got := u.oauthClients(t); got != "docs new-client, mail new-client" {
		t.Errorf("after a change the OAuth clients are %s", got)
	}
	revealer := v.as(u.issue(t, map[string]any{"permissions": []string{"tenants.oauth_clients.get", "credentials.reveal"}}))
	revealer.wants("GET", item+"?reveal=true", "", 200, `{"data":`+authClientJSON(id, "Mail", "oauth2", strings.Replace(changed, "********", "canary-2", 1), mine, "docs", "mail")+`,"meta":{}}`)
	v.refused("GET", item+"?reveal=true", "", 403, "permission_denied", "")
	var of struct{ ID string }
	must(t, u.query("oauth_client.get", "component=docs", &of))
	v.refused("DELETE", clients+"/"+of.ID, "", 409, "oauth_client_follows", "")
	v.refused("PATCH", clients+"/"+of.ID, `{"data":{"attributes":{"client_id":"x"}}}`, 409, "oauth_client_follows", "")
	if err := u.command("oauth_client.change", "", map[string]string{"id": of.ID}, nil); code(t, err) != "oauth_client_follows" {
		t.Errorf("a change of nothing: %v", err)
	}

	plainText := func(s string) string { return strings.Replace(s, `"api_key"`, `"basic"`, 1) }
	for _, c := range []struct {
		why, method, path, body string
		status                  int
		code, source            string
	}{
		{"a second client of a component", "POST", authClients, newAuthClient("x", "oauth2", given, mine, "sheets", "docs"), 409, "oauth_client_exists", "/data/relationships/components/data/1"},
		{"one of an auth client's, defined", "POST", clients, newClient("oauth-client", "i", "s", "docs"), 409, "oauth_client_exists", ""},
		{"a component without OAuth", "POST", authClients, newAuthClient("x", "oauth2", given, mine, "sheets", "plain"), 422, "oauth_not_declared", "/data/relationships/components/data/1"},
		{"such a one in a workspace", "POST", authClients, newAuthClient("x", "oauth2", given, "workspace w", "plain"), 422, "oauth_not_declared", "/data/relationships/components/data/0"},
		{"an unknown component", "PATCH", item, `{"data":{"relationships":{"components":{"data":[{"id":"nowhere","type":"component"}]}}}}`, 422, "oauth_client_component_invalid", "/data/relationships/components/data/0"},
		{"a component twice", "POST", authClients, newAuthClient("x", "basic", `{}`, mine, "plain", "plain"), 400, "auth_client_components_invalid", "/data/relationships/components/data/1"},
		{"no component", "PATCH", item, `{"data":{"relationships":{"components":{"data":[]}}}}`, 400, "auth_client_components_invalid", "/data/relationships/components/data"},
		{"no components", "POST", authClients, `{"data":{"type":"auth-client","attributes":{"name":"n","type":"noauth"}}}`, 400, "member_missing", "/data/relationships/components/data"},
		{"a component without its type", "POST", authClients, strings.Replace(newAuthClient("x", "basic", `{}`, mine, "plain"), `,"type":"component"`, "", 1), 400, "resource_type_invalid", "/data/relationships/components/data/0/type"},
		{"no name", "POST", authClients, newAuthClient("", "noauth", `{}`, mine, "plain"), 400, "member_missing", "/data/attributes/name"},
		{"a bad name", "PATCH", item, `{"data":{"attributes":{"name":"a\u0007b"}}}`, 400, "name_invalid", "/data/attributes/name"},
		{"a type that is none", "POST", authClients, newAuthClient("x", "oauth1", `{}`, mine, "plain"), 400, "auth_client_type_invalid", "/data/attributes/type"},
		{"two places", "POST", authClients, strings.Replace(newAuthClient("x", "basic", `{}`, mine, "plain"), `"tenant":`, `"workspace":{"data":{"id":"w","type":"workspace"}},"tenant":`, 1), 400, "auth_client_scope_invalid", "/data/relationships/tenant"},
		{"a workspace that is no id", "POST", authClients, newAuthClient("x", "basic", `{}`, "workspace "+strings.Repeat("w", 200), "plain"), 400, "id_invalid", "/data/relationships/workspace/data/id"},
		{"no client secret", "POST", authClients, newAuthClient("x", "oauth2", `{"client_id":"c"}`, mine, "sheets"), 400, "member_missing", "/data/attributes/credentials/client_secret"},
		{"no credentials", "POST", authClients, strings.Replace(newAuthClient("x", "oauth2", `null`, mine, "sheets"), `,"credentials":null`, "", 1), 400, "member_missing", "/data/attributes/credentials/client_id"},
		{"the mask", "PATCH", item, `{"data":{"attributes":{"credentials":{"client_secret":"********"}}}}`, 400, "keys_masked", "/data/attributes/credentials/client_secret"},
		{"a client id that is none", "PATCH", item, `{"data":{"attributes":{"credentials":{"client_id":"a\u0007"}}}}`, 400, "oauth_client_id_invalid", "/data/attributes/credentials/client_id"},
		{"a member that is none", "PATCH", item, `{"data":{"attributes":{"credentials":{"secret":"s"}}}}`, 400, "body_invalid", "/data/attributes/credentials/secret"},
		{"a secret that is none", "PATCH", item, `{"data":{"attributes":{"credentials":{"client_secret":["s"]}}}}`, 400, "body_invalid", "/data/attributes/credentials/client_secret"},
		{"the secret taken away", "PATCH", item, `{"data":{"attributes":{"credentials":{"client_secret":null}}}}`, 400, "member_missing", "/data/attributes/credentials/client_secret"},
		{"another type", "PATCH", item, plainText(`{"data":{"attributes":{"type":"api_key"}}}`), 422, "relationship_fixed", "/data/attributes/type"},
		{"another place", "PATCH", item, `{"data":{"relationships":{"workspace":{"data":{"id":"w","type":"workspace"}}}}}`, 422, "relationship_fixed", "/data/relationships/workspace/data/id"},
		{"another id", "PATCH", item, `{"data":{"id":"x","type":"auth-client"}}`, 409, "resource_id_mismatch", "/data/id"},
		{"an id of one's own", "POST", authClients, `{"data":{"id":"mine","type":"auth-client"}}`, 403, "resource_id_refused", "/data/id"},
		{"another resource", "POST", authClients, strings.Replace(newAuthClient("x", "basic", `{}`, mine, "plain"), "auth-client", "oauth-client", 1), 400, "resource_type_invalid", "/data/type"},
		{"an unknown tenant", "POST", authClients, newAuthClient("x", "basic", `{}`, "tenant nobody", "plain"), 404, "tenant_not_found", ""},
		{"two places to look from", "GET", authClients + "?workspace_id=w&tenant_id=default", "", 400, "parameter_invalid", "workspace_id"},
		{"an unknown one", "GET", authClients + "/nothing", "", 404, "auth_client_not_found", ""},
		{"an unknown one, changed", "PATCH", authClients + "/nothing", `{"data":{"attributes":{"name":"n"}}}`, 404, "auth_client_not_found", ""},
		{"an unknown one, deleted", "DELETE", authClients + "/nothing", "", 404, "auth_client_not_found", ""},
		{"an unknown method", "PUT", item, "{}", 405, "method_not_allowed", ""},
	} {
		t.Run(c.why, func(t *testing.T) {
			w := v.as(v.key)
			w.t = t
			w.refused(c.method, c.path, c.body, c.status, c.code, c.source)
			v.answers.Write(w.answers.Bytes())
		})
	}
	if got := u.oauthClients(t); got != "docs new-client, mail new-client" {
		t.Errorf("after what was refused the OAuth clients are %s", got)
	}

	// A secret of a workspace tells, and may be told, its auth client.
	made := strings.Replace(newSecret("Mine", `{"access_token":"canary","refresh_token":"canary"}`, "mail"),
		`"component":{"data":{"id":"mail","type":"component"}}`, `"auth-client":{"data":{"id":"%s","type":"auth-client"}}`, 1)
	v.refused("POST", secretsOfSales, fmt.Sprintf(made, id), 400, "member_missing", "/data/relationships/component/data/id") // it is for two
	v.refused("POST", secretsOfSales, fmt.Sprintf(made, workspace), 422, "auth_client_idle", "/data/relationships/auth-client/data/id")
	v.refused("POST", secretsOfSales, fmt.Sprintf(made, "nothing"), 404, "auth_client_not_found", "/data/relationships/auth-client/data/id")
	v.wants("PATCH", item, `{"data":{"relationships":{"components":{"data":[{"id":"mail","type":"component"}]}}}}`, 200, `{"data":`+authClientJSON(id, "Mail", "oauth2", changed, mine, "mail")+`,"meta":{}}`)
	resp, body := v.send("POST", secretsOfSales, fmt.Sprintf(made, id))
	if to := `"auth-client":{"data":{"id":"` + id + `","type":"auth-client"}`; resp.StatusCode != 201 || !strings.Contains(body, to) || !strings.Contains(body, `"id":"mail"`) {
		t.Errorf("a secret by its auth client: %d %s", resp.StatusCode, body)
	}

	must(t, newEngine(t, u.connect(t, adminKey)).tell("created", "f1", 1, flowStep{"s1", "mail", ""}))
	await(t, "the use of the component", func() (bool, error) {
		var c clientShown
		err := u.query("oauth_client.get", "component=mail", &c)
		return c.Used, err
	})
	for method, body := range map[string]string{"DELETE": "", "PATCH": `{"data":{"relationships":{"components":{"data":[{"id":"docs","type":"component"}]}}}}`} {
		if meta := v.refused(method, item, body, 409, "oauth_client_in_use", ""); fmt.Sprint(meta["flows"]) != "[map[active:false id:f1 name:The flow f1]]" {
			t.Errorf("%s: the flows are %v", method, meta)
		}
	}
	v.wants("DELETE", "/v2/flows/f1", "", 204, "")
	v.wants("DELETE", item, "", 204, "")
	v.refused("GET", item, "", 404, "auth_client_not_found", "")
	if got := u.oauthClients(t); got != "" {
		t.Errorf("after the end the OAuth clients are %s", got)
	}
	for _, id := range []string{workspace, contract, global} {
		v.wants("DELETE", authClients+"/"+id, "", 204, "")
	}
	if strings.Contains(v.answers.String()+u.logs.String(), "canary") {
		t.Error("a secret is in an answer or the log")
	}
	n, err := u.svc.Secrets.Collect(t.Context(), 0)
	must(t, err)
	if n != 0 {
		t.Errorf("%d secrets were left in the vault", n)
	}
}

// One of every tenant is seen in every tenant, and written by who is granted every
// tenant alone; all others are nobody else's.
func TestAuthClientTenants(t *testing.T) {
	u, v := bringVendor(t)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	registerAs(t, u.api, "sheets", sheets)
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, nil))
	const given, shown, masked = `{"client_id":"c","client_secret":"canary"}`, `{"client_id":"c","client_secret":"********"}`, `{"client_id":"********","client_secret":"********"}`
	global := v.wants("POST", authClients, newAuthClient("All", "oauth2", given, "", "sheets"), 201, `{"data":`+authClientJSON("{ID}", "All", "oauth2", shown, "", "sheets")+`,"meta":{}}`)
	mine := v.wants("POST", authClients, newAuthClient("Mine", "oauth2", given, "tenant default", "sheets"), 201, `{"data":`+authClientJSON("{ID}", "Mine", "oauth2", shown, "tenant default", "sheets")+`,"meta":{}}`)
	theirs := v.wants("POST", authClients, newAuthClient("Theirs", "oauth2", given, "tenant other", "sheets"), 201, `{"data":`+authClientJSON("{ID}", "Theirs", "oauth2", shown, "tenant other", "sheets")+`,"meta":{}}`)

	other := *u
	other.api = u.in("other")
	them := v.as(other.issue(t, map[string]any{"role": "ADMINISTRATOR"}))
	them.wants("GET", authClients+"/"+global, "", 200, `{"data":`+authClientJSON(global, "All", "oauth2", masked, "", "sheets")+`,"meta":{}}`)
	them.wants("GET", authClients+"/"+theirs+"?tenant_id=other", "", 200, `{"data":`+authClientJSON(theirs, "Theirs", "oauth2", shown, "tenant other", "sheets")+`,"meta":{}}`)
	them.refused("POST", authClients, newAuthClient("x", "noauth", `{}`, "", "sheets"), 403, "permission_denied", "")
	them.refused("POST", authClients, newAuthClient("x", "noauth", `{}`, "tenant default", "sheets"), 404, "tenant_not_found", "")
	for method, body := range map[string]string{"GET": "", "DELETE": "", "PATCH": `{"data":{"attributes":{"name":"x"}}}`} {
		them.refused(method, authClients+"/"+mine, body, 404, "auth_client_not_found", "")
		them.refused(method, authClients+"/"+mine+"?tenant_id=default", body, 404, "tenant_not_found", "")
		if method != "GET" {
			them.refused(method, authClients+"/"+global, body, 403, "permission_denied", "")
		}
	}
	revealer := v.as(other.issue(t, map[string]any{"permissions": []string{"tenants.oauth_clients.get", "credentials.reveal"}}))
	revealer.refused("GET", authClients+"/"+global+"?reveal=true", "", 403, "permission_denied", "")
	revealer.refused("GET", authClients+"/"+mine+"?reveal=true", "", 404, "auth_client_not_found", "")
	for query, want := range map[string]string{"": "All", "?tenant_id=other": "All Theirs", "?workspace_id=w": "All Theirs"} {
		_, body := them.send("GET", authClients+query, "")
		var doc struct {
			Data []struct{ Attributes struct{ Name string } }
		}
		must(t, json.Unmarshal([]byte(body), &doc))
		var names []string
		for _, r := range doc.Data {
			names = append(names, r.Attributes.Name)
		}
		if strings.Join(names, " ") != want {
			t.Errorf("%s: %v, want %s", query, names, want)
		}
	}
	// Who is granted every tenant writes it from any of them, and the others where they are.
	v.wants("PATCH", authClients+"/"+global+"?tenant_id=other", `{"data":{"attributes":{"name":"Everybody's"}}}`, 200, `{"data":`+authClientJSON(global, "Everybody's", "oauth2", shown, "", "sheets")+`,"meta":{}}`, "Idempotency-Key: far")
	v.wants("PATCH", authClients+"/"+global+"?tenant_id=other", `{"data":{"attributes":{"name":"Everybody's"}}}`, 200, `{"data":`+authClientJSON(global, "Everybody's", "oauth2", shown, "", "sheets")+`,"meta":{}}`, "Idempotency-Key: far")
	v.wants("DELETE", authClients+"/"+theirs+"?tenant_id=other", "", 204, "")
	v.wants("DELETE", authClients+"/"+global, "", 204, "")
	if strings.Contains(v.answers.String()+them.answers.String()+u.logs.String(), "canary") {
		t.Error("a secret is in an answer or the log")
	}
}

// Each call takes the permission of OAuth clients, and no other one will do.
func TestAuthClientPermissions(t *testing.T) {
	u, v := bringVendor(t)
	registerPlain(t, u.base)
	document := newAuthClient("Plain", "basic", `{"password":"canary"}`, "tenant default", "plain")
	create := func() string {
		_, body := v.send("POST", authClients, document)
		var made struct{ Data struct{ ID string } }
		must(t, json.Unmarshal([]byte(body), &made))
		return made.Data.ID
	}
	var all []string
	for _, p := range permission.Permissions() {
		all = append(all, string(p.Permission))
	}
	for _, c := range []struct {
		method, more, body string
		takes              permission.Permission
		status             int
	}{
		{"GET", "", "", permission.OAuthClientsGet, 200},
		{"GET", "/{id}", "", permission.OAuthClientsGet, 200},
		{"POST", "", document, permission.OAuthClientsCreate, 201},
		{"PATCH", "/{id}", `{"data":{"attributes":{"name":"Another"}}}`, permission.OAuthClientsEdit, 200},
		{"DELETE", "/{id}", "", permission.OAuthClientsDelete, 204},
	} {
		but := []string{}
		for _, p := range all {
			if p != string(c.takes) {
				but = append(but, p)
			}
		}
		only := v.as(u.issue(t, map[string]any{"permissions": []string{string(c.takes)}}))
		others := v.as(u.issue(t, map[string]any{"permissions": but}))
		path := authClients + strings.Replace(c.more, "{id}", create(), 1)
		others.refused(c.method, path, c.body, 403, "permission_denied", "")
		if resp, body := only.send(c.method, path, c.body); resp.StatusCode != c.status {
			t.Errorf("%s %s with %s alone: %d %s", c.method, c.more, c.takes, resp.StatusCode, body)
		}
	}
}

// The client that a renewal takes is the one that follows the auth client.
func TestAuthClientServesRefreshes(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u, v := bringVendor(t)
	block := provider.Block()
	must(t, u.command("component.register", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}, "oauth2": block},
	}}, nil))
	wrong, err := json.Marshal(map[string]string{"client_id": provider.Client().ID, "client_secret": "wrong"})
	must(t, err)
	resp, body := v.send("POST", authClients, newAuthClient("Sheets", "oauth2", string(wrong), "tenant default", "sheets"))
	var made struct{ Data struct{ ID string } }
	must(t, json.Unmarshal([]byte(body), &made))
	if resp.StatusCode != 201 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	id, _ := u.grant(t, provider)
	if err := u.command("credential.refresh", "", map[string]string{"id": id}, nil); err == nil {
		t.Error("a wrong client secret was taken")
	}
	right, err := json.Marshal(map[string]any{"data": map[string]any{"attributes": map[string]any{
		"credentials": map[string]string{"client_secret": string(provider.Client().Secret.Reveal())},
	}}})
	must(t, err)
	if resp, body := v.send("PATCH", authClients+"/"+made.Data.ID, string(right)); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	must(t, u.command("credential.refresh", "", map[string]string{"id": id}, nil))
	if now := u.tokens(t, id); now.Token.Epoch == 0 || now.ReauthReason != "" {
		t.Errorf("tokens are %+v", now)
	}
}

// A process dies before the OAuth clients follow. The keeper completes what was
// begun; where somebody else was first, the auth client is for the rest.
func TestAuthClientOutlivesADeadProcess(t *testing.T) {
	u, v := bringVendor(t)
	for _, id := range []string{"sheets", "docs"} {
		registerAs(t, u.api, id, sheets)
	}
	begin := func(id string, when time.Time) {
		t.Helper()
		ref := vault.Ref{Tenant: "default", Category: "auth_client", Owner: id, SecretID: events.NewID()}
		must(t, u.vault.Put(t.Context(), ref, seal.NewSecret([]byte(`{"client_id":"c","client_secret":"canary"}`))))
		cmd := commands.CreateAuthClient{ID: id, Created: events.AuthClientCreated{
			Name: id, Type: "oauth2", Scope: "tenant", Fields: []string{"client_id", "client_secret"}, ClientID: "client-of-" + id, SecretID: ref.SecretID,
			Components: []events.AuthClientComponent{{Component: "sheets", OAuthClient: "o1-" + id}, {Component: "docs", OAuthClient: "o2-" + id}},
		}}
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Time: when, Via: "system"}
		_, state, err := aggregates.AuthClient.Execute(t.Context(), u.states, "default", commands.AuthClient(cmd), meta, nil)
		must(t, err)
		must(t, u.proj.Wait(t.Context(), state.Seq))
	}
	settled := func(id string) aggregates.AuthClientState {
		t.Helper()
		must(t, u.svc.Flows.ReconcileFlows(t.Context()))
		state, err := aggregates.AuthClient.Fresh(t.Context(), u.states, aggregates.AuthClient.Stream("default", id))
		must(t, err)
		must(t, u.proj.Wait(t.Context(), state.Seq))
		return state.Value
	}
	begin("fresh", time.Now())
	if settled("fresh").Settled {
		t.Error("the keeper is faster than who is at it")
	}
	for method, body := range map[string]string{"PATCH": `{"data":{"attributes":{"name":"x"}}}`, "DELETE": ""} {
		v.refused(method, authClients+"/fresh", body, 409, "auth_client_unsettled", "")
	}
	begin("old", time.Now().Add(-time.Hour))
	if now := settled("old"); !now.Settled || u.oauthClients(t) != "docs client-of-old, sheets client-of-old" {
		t.Errorf("the keeper has made %+v and %s", now, u.oauthClients(t))
	}
	v.wants("PATCH", authClients+"/old", `{"data":{"relationships":{"components":{"data":[{"id":"docs","type":"component"}]}}}}`, 200,
		`{"data":`+authClientJSON("old", "old", "oauth2", `{"client_id":"c","client_secret":"********"}`, "tenant default", "docs")+`,"meta":{}}`)
	begin("late", time.Now().Add(-time.Hour))
	now := settled("late")
	if want := []events.AuthClientComponent{{Component: "sheets", OAuthClient: "o1-late"}}; !now.Settled || !slices.Equal(now.Components, want) || u.oauthClients(t) != "docs client-of-old, sheets client-of-late" {
		t.Errorf("the keeper has made %+v and %s", now, u.oauthClients(t))
	}
}

// Of auth clients that want one component at the same moment one comes about, with
// all that follows it, and nothing is left of the others.
func TestRaceOfAuthClients(t *testing.T) {
	u, v := bringVendor(t)
	for _, id := range []string{"a", "b", "c"} {
		registerAs(t, u.api, id, sheets)
	}
	const given = `{"client_id":"%s","client_secret":"canary"}`
	create := func(name string, components ...string) (int, string) {
		document := newAuthClient(name, "oauth2", fmt.Sprintf(given, name), "tenant default", components...)
		req, err := http.NewRequestWithContext(t.Context(), "POST", v.base+authClients, strings.NewReader(document))
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		req.SetBasicAuth("x", v.key)
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		var made struct{ Data struct{ ID string } }
		if err := errors.Join(json.NewDecoder(resp.Body).Decode(&made), resp.Body.Close()); err != nil {
			t.Error(err)
		}
		return resp.StatusCode, made.Data.ID
	}
	for range 10 {
		wants := map[string][]string{"x": {"a", "b"}, "y": {"b", "c"}, "z": {"c", "a"}}
		var mu sync.Mutex
		won := map[string]string{}
		var all sync.WaitGroup
		for name, components := range wants {
			all.Go(func() {
				status, id := create(name, components...)
				mu.Lock()
				defer mu.Unlock()
				switch status {
				case http.StatusCreated:
					won[name] = id
				case http.StatusConflict:
				default:
					t.Errorf("%s answers %d", name, status)
				}
			})
		}
		all.Wait()
		var expected []string
		for name := range won {
			for _, c := range wants[name] {
				expected = append(expected, c+" "+name)
			}
		}
		slices.Sort(expected)
		if got := u.oauthClients(t); len(won) > 1 || got != strings.Join(expected, ", ") {
			t.Fatalf("%v came about with %s", won, got)
		}
		_, body := v.send("GET", authClients+"?tenant_id=default", "")
		if n := strings.Count(body, `"type":"auth-client"`); n != len(won) {
			t.Fatalf("%d came about, the list is %s", len(won), body)
		}
		for _, id := range won {
			v.wants("DELETE", authClients+"/"+id, "", 204, "")
		}
	}
	must(t, u.command("auth_client.create", "", map[string]any{
		"name": "last", "type": "oauth2", "components": []string{"a", "b", "c"}, "credentials": map[string]string{"client_id": "last", "client_secret": "canary"},
	}, nil))
	if got := u.oauthClients(t); got != "a last, b last, c last" {
		t.Errorf("after all, the OAuth clients are %s", got)
	}
	if n, err := u.svc.Secrets.Collect(t.Context(), 0); err != nil || n != 0 {
		t.Errorf("%d secrets were left in the vault, %v", n, err)
	}
}

// Auth clients and VPN agents on the command line.
func TestAuthClientsOnTheCommandLine(t *testing.T) {
	u := bring(t, t.TempDir())
	registerAs(t, u.api, "sheets", sheets)
	registerAs(t, u.api, "docs", sheets)
	registerPlain(t, u.base)
	env := map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey}
	verb := func(stdin string, want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		code := CommandLine(t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(stdin), &out, &errs)
		if code != want {
			t.Fatalf("%v ends with %d: %s%s", args, code, &out, &errs)
		}
		return out.String() + errs.String()
	}
	made := func(stdin string, args ...string) (d done) {
		t.Helper()
		must(t, json.Unmarshal([]byte(verb(stdin, 0, append(args, "--json")...)), &d))
		must(t, u.proj.Wait(t.Context(), d.Seq))
		return d
	}
	const given = `{"client_id":"client-1","client_secret":"canary"}`
	of := made(given, "auth-client", "create", "--name", "Office", "--component", "sheets", "--component", "docs", "--credentials-file", "-")
	shown := verb("", 0, "auth-client", "show", of.ID)
	for _, want := range []string{"Office", "tenant", "sheets, OAuth client ", "client-1", "********"} {
		if !strings.Contains(shown, want) || strings.Contains(shown, "canary") {
			t.Errorf("shown is %s, without %s", shown, want)
		}
	}
	verb(given, 6, "auth-client", "create", "--name", "Again", "--component", "sheets", "--credentials-file", "-")
	made("", "auth-client", "create", "--name", "Nobody", "--type", "noauth", "--component", "plain", "--scope", "workspace", "--scope-id", "sales")
	made("", "auth-client", "change", of.ID, "--name", "Desk", "--component", "docs")
	if list := verb("", 0, "auth-client", "list", "--component", "docs"); !strings.Contains(list, "Desk") || strings.Contains(list, "Nobody") {
		t.Errorf("listed are %s", list)
	}
	if list := verb("", 0, "auth-client", "list", "--scope", "workspace", "--scope-id", "sales"); !strings.Contains(list, "Desk") || !strings.Contains(list, "workspace sales") {
		t.Errorf("in a workspace, listed are %s", list)
	}
	if got := u.oauthClients(t); got != "docs client-1" {
		t.Errorf("the OAuth clients are %s", got)
	}
	verb("", 4, "auth-client", "reveal", of.ID)
	env["CREDSTREAM_KEY"] = u.issue(t, map[string]any{"permissions": []string{"credentials.reveal"}})
	if out := verb("", 0, "auth-client", "reveal", of.ID); !strings.Contains(out, "canary") {
		t.Errorf("revealed is %s", out)
	}
	env["CREDSTREAM_KEY"] = adminKey
	verb("", 0, "auth-client", "delete", of.ID)
	verb("", 5, "auth-client", "show", "nothing")

	credential := made(`{"apiKey":"canary"}`, "credential", "create", "--component", "plain", "--keys-file", "-", "--vpn-agent", "office")
	if out := verb("", 0, "credential", "show", credential.ID); !strings.Contains(out, "vpn agent") || !strings.Contains(out, "office") {
		t.Errorf("the credential is %s", out)
	}
}
