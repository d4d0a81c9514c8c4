package app

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
)

// grant makes a key with exactly these permissions; there may be none, which no
// command would issue.
func grant(t testing.TB, p *program, id string, tenants []string, permissions ...permission.Permission) (key string) {
	t.Helper()
	key = string(access.NewKey().Reveal())
	sum := sha256.Sum256([]byte(key))
	cmd := commands.IssueAPIKey{ID: id, SHA256: hex.EncodeToString(sum[:]), Home: "acme", Tenants: tenants}
	for _, perm := range permissions {
		cmd.Permissions = append(cmd.Permissions, string(perm))
	}
	meta := events.Meta{Tenant: "acme", Actor: events.Actor{Kind: "system", ID: "test"}, Time: time.Now(), Via: "system"}
	_, state, err := aggregates.APIKey.Execute(t.Context(), p.states, events.System, commands.APIKey(cmd), meta, nil)
	must(t, err)
	must(t, p.proj.Wait(t.Context(), state.Seq))
	return key
}

// holder is a key of the tenant acme and what it holds.
type holder struct {
	name, key string
	holds     func(permission.Permission) bool
}

// grantRole makes a key with a role of the tenant acme that holds exactly this permission.
func grantRole(t testing.TB, u *up, name string, perm permission.Permission) (key string) {
	t.Helper()
	acme := u.api
	acme.tenant = "acme"
	must(t, acme.command("role.define", "", map[string]any{"name": name, "permissions": []permission.Permission{perm}}, nil))
	var issued issuedKey
	must(t, acme.command("api_key.issue", "", map[string]any{"role": name}, &issued))
	return issued.Key
}

// holders are keys with a role of exactly one permission, with all permissions but one, and
// with none.
func holders(t testing.TB, u *up) (list []holder) {
	p := u.program
	var all []permission.Permission
	for _, info := range permission.Permissions() {
		all = append(all, info.Permission)
	}
	acme := []string{"acme"}
	list = append(list, holder{"none", grant(t, p, "none", acme), func(permission.Permission) bool { return false }})
	for i, one := range all {
		others := slices.Concat(all[:i], all[i+1:])
		list = append(list,
			holder{"only " + string(one), grantRole(t, u, fmt.Sprint("ONLY_", i), one), func(p permission.Permission) bool { return p == one }},
			holder{"all but " + string(one), grant(t, p, fmt.Sprint("but-", i), acme, others...), func(p permission.Permission) bool { return p != one }})
	}
	return list
}

// everywhere are the permissions that take a key of every tenant.
func everywhere(perm permission.Permission) bool {
	return slices.ContainsFunc(permission.Permissions(), func(p permission.Info) bool { return p.Permission == perm && p.Everywhere })
}

// said is an answer without what differs from one request to the next.
type said struct {
	status int
	code   string
	body   string
}

// ask sends an empty request of a route over HTTP.
func ask(t testing.TB, base, key, tenant string, r service.Route, body string) said {
	t.Helper()
	method, at := http.MethodGet, base+"/v1/tenants/"+tenant+"/"+r.Name
	if r.Command {
		method, at = http.MethodPost, base+"/v1/tenants/"+tenant+"/commands/"+r.Name
	} else if body != "{}" {
		at += "?" + parameters(t, body)
		body = "{}"
	}
	req, err := http.NewRequestWithContext(t.Context(), method, at, strings.NewReader(body))
	must(t, err)
	if !r.Command {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth("somebody@example.org", key)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	must(t, err)
	return saying(t, resp.StatusCode, answer)
}

func saying(t testing.TB, status int, answer []byte) said {
	t.Helper()
	s := said{status: status, body: string(answer)}
	if status != http.StatusOK {
		var problem map[string]any
		if err := json.Unmarshal(answer, &problem); err != nil {
			t.Fatalf("%d with %q", status, answer)
		}
		s.code, _ = problem["code"].(string)
		delete(problem, "request_id")
		plain, err := json.Marshal(problem)
		must(t, err)
		s.body = string(plain)
	}
	return s
}

// parameters writes the members of a query's body as those of a URL.
func parameters(t testing.TB, body string) string {
	var members map[string]json.RawMessage
	must(t, json.Unmarshal([]byte(body), &members))
	var list []string
	for name, value := range members {
		list = append(list, name+"="+url.QueryEscape(strings.Trim(string(value), `"`)))
	}
	return strings.Join(list, "&")
}

// check asserts one cell of the table: what a caller that holds the permission of
// the route, or does not, is told.
func check(t testing.TB, where string, r service.Route, allowed bool, got said) {
	t.Helper()
	switch {
	case allowed && (got.code == "permission_denied" || got.code == "tenant_not_found" || got.status == http.StatusUnauthorized || got.status >= 500):
		t.Errorf("%s: %d %s", where, got.status, got.body)
	case !allowed && (got.status != http.StatusForbidden || got.code != "permission_denied" || !strings.Contains(got.body, string(r.Permission))):
		t.Errorf("%s: %d %s", where, got.status, got.body)
	}
}

// dialects are requests of the other edges, with the permissions that each requires.
var dialects = []struct {
	method, path string
	needs        []permission.Permission
}{
	{"GET", "/aspire/_api/credentials", []permission.Permission{permission.CredentialsExport, permission.CredentialsGet}},
	{"POST", "/aspire/_api/credentials/getAll", []permission.Permission{permission.CredentialsExport, permission.CredentialsGet}},
	{"GET", "/aspire/_api/credentials/x", []permission.Permission{permission.CredentialsExport, permission.CredentialsGet}},
	{"GET", "/aspire/_api/credentials/export", []permission.Permission{permission.CredentialsExport}},
	{"POST", "/aspire/_api/credentials", []permission.Permission{permission.CredentialsCreate}},
	{"PUT", "/aspire/_api/credentials/x", []permission.Permission{permission.CredentialsEdit}},
	{"DELETE", "/aspire/_api/credentials/x", []permission.Permission{permission.CredentialsDelete}},
	{"GET", "/aspire/_api/policies", []permission.Permission{permission.CredentialsExport, permission.ThrottlePoliciesGet}},
	{"DELETE", "/aspire/_api/policies/x", []permission.Permission{permission.ThrottlePoliciesEdit}},
	{"GET", "/v2/credentials", []permission.Permission{permission.CredentialsGet}},
	{"DELETE", "/v2/credentials/x", []permission.Permission{permission.WorkspacesCredentialEdit, permission.CredentialsDelete}},
	{"GET", "/v2/components", []permission.Permission{permission.ComponentsGet}},
	{"DELETE", "/v2/components/x", []permission.Permission{permission.ComponentsDelete}},
	{"GET", "/v2/auth-clients", []permission.Permission{permission.OAuthClientsGet}},
	{"DELETE", "/v2/auth-clients/x", []permission.Permission{permission.OAuthClientsDelete}},
	{"GET", "/v2/tenants/acme/oauth-clients", []permission.Permission{permission.OAuthClientsGet}},
	{"GET", "/v2/workspaces/w/secrets", []permission.Permission{permission.AuthSecretsGet}},
	{"DELETE", "/v2/workspaces/w/secrets/x", []permission.Permission{permission.AuthSecretsDelete}},
	{"GET", "/v2/flows/x", []permission.Permission{permission.FlowsGet}},
	{"DELETE", "/v2/flows/x", []permission.Permission{permission.FlowsEdit}},
	{"GET", "/_connector", []permission.Permission{permission.ConnectorsManage}},
	{"DELETE", "/_connector/x", []permission.Permission{permission.ConnectorsManage}},
	{"GET", "/_connector/_secret/x", []permission.Permission{permission.ConnectorSecretsRead}},
	{"DELETE", "/_connector/_secret/x", []permission.Permission{permission.ConnectorSecretsWrite}},
}

// tryDialects asserts that a holder gets 403 exactly where it lacks a permission. It returns the
// number of cells.
func tryDialects(t testing.TB, base string, h holder) int {
	t.Helper()
	for _, d := range dialects {
		req, err := http.NewRequestWithContext(t.Context(), d.method, base+d.path, strings.NewReader("{}"))
		must(t, err)
		if d.method == http.MethodGet || d.method == http.MethodDelete {
			req.Body, req.ContentLength = http.NoBody, 0
		}
		req.Header.Set("Content-Type", "application/json")
		req.SetBasicAuth("somebody@example.org", h.key)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		answer, err := io.ReadAll(resp.Body)
		must(t, err)
		must(t, resp.Body.Close())
		allowed := !slices.ContainsFunc(d.needs, func(p permission.Permission) bool { return !h.holds(p) })
		if refused := resp.StatusCode == http.StatusForbidden; refused == allowed || resp.StatusCode == http.StatusUnauthorized || resp.StatusCode >= 500 {
			t.Errorf("%s %s, %s: %d %s", d.method, d.path, h.name, resp.StatusCode, answer)
		}
	}
	return len(dialects)
}

// Every route for every permission, in the caller's own tenant, in another one, and in one that
// does not exist, over HTTP and NATS, and requests of the other edges. A new route comes in by
// itself.
func TestPermissionMatrix(t *testing.T) {
	u := bring(t, t.TempDir())
	for _, tenant := range []string{"acme", "ajax"} {
		must(t, u.command("tenant.register", "", map[string]any{"id": tenant}, nil))
	}
	var looked atomic.Int64
	t.Run("holders", func(t *testing.T) {
		for i, h := range holders(t, u) {
			t.Run(h.name, func(t *testing.T) {
				t.Parallel()
				looked.Add(int64(u.tryHolder(t, h, i)))
			})
		}
	})
	cells := int(looked.Load())
	for i, info := range permission.Permissions() {
		if !info.Everywhere {
			continue
		}
		key := grant(t, u.program, fmt.Sprint("everywhere-", i), []string{service.AllTenants}, info.Permission)
		for _, r := range application.Routes() {
			for _, tenant := range []string{"acme", "ajax"} {
				check(t, fmt.Sprintf("HTTP, every tenant, %s, only %s", r.Name, info.Permission), r, r.Permission == info.Permission, ask(t, u.base, key, tenant, r, "{}"))
				cells++
			}
			if got := ask(t, u.base, key, "nobody", r, "{}"); got.code != "tenant_not_found" {
				t.Errorf("every tenant, %s: an unknown one answers %v", r.Name, got)
			}
		}
	}
	t.Logf("%d cells", cells)
	least := len(application.Routes()) * len(permission.Permissions()) * 2 * 6
	if raceDetector {
		least /= 2 // of six cells, four are thinned
	}
	if cells < least {
		t.Errorf("%d cells were looked at, at least %d are there", cells, least)
	}
}

// tryHolder asks for every route as holder number i, in its own tenant and in others, and returns
// the number of cells. Under the race detector, which makes each request five times as expensive,
// each holder asks for a quarter of the routes; .ci/run also runs the whole without it.
func (u *up) tryHolder(t testing.TB, h holder, i int) (cells int) {
	t.Helper()
	nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", h.key), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	must(t, err)
	for j, r := range application.Routes() {
		if raceDetector && i%4 != j%4 {
			continue
		}
		allowed := (h.holds(r.Permission) || r.AltPermission != "" && h.holds(r.AltPermission)) && !everywhere(r.Permission)
		check(t, fmt.Sprintf("HTTP, own tenant, %s, %s", r.Name, h.name), r, allowed, ask(t, u.base, h.key, "acme", r, "{}"))
		check(t, fmt.Sprintf("NATS, own tenant, %s, %s", r.Name, h.name), r, allowed, askNATS(t, nc, root(r)+"acme."+r.Name))
		foreign, unknown := ask(t, u.base, h.key, "ajax", r, "{}"), ask(t, u.base, h.key, "nobody", r, "{}")
		if foreign.status != http.StatusNotFound || foreign.code != "tenant_not_found" || foreign != unknown {
			t.Errorf("%s, %s: in another tenant %v, in an unknown one %v", r.Name, h.name, foreign, unknown)
		}
		cells += 4
		if r.Command && !allowed {
			if code := enqueue(t, nc, "credstream.cmdq.acme."+r.Name); code != "permission_denied" && code != "command_not_queueable" {
				t.Errorf("queue, own tenant, %s, %s: %q", r.Name, h.name, code)
			}
			cells++
		}
	}
	if !h.holds(permission.FlowsEdit) {
		if code := enqueue(t, nc, "credstream.flows.acme.f1"); code != "permission_denied" {
			t.Errorf("flow event, own tenant, %s: %q", h.name, code)
		}
	}
	nc.Close()
	return cells + silence(t, u.node.ClientURL(), h) + tryDialects(t, u.base, h)
}

func root(r service.Route) string {
	if r.Command {
		return "credstream.cmd."
	}
	return "credstream.query."
}

// askNATS sends an empty request over NATS.
func askNATS(t testing.TB, nc *nats.Conn, subject string) said {
	t.Helper()
	answer, err := nc.Request(subject, []byte("{}"), 30*time.Second)
	must(t, err)
	if answer.Header.Get("Nats-Service-Error-Code") == "" {
		return saying(t, http.StatusOK, answer.Data)
	}
	var problem struct {
		Status int `json:"status"`
	}
	must(t, json.Unmarshal(answer.Data, &problem))
	return saying(t, problem.Status, answer.Data)
}

// enqueue leaves an empty message in a queue and returns the code of the refusal.
func enqueue(t testing.TB, nc *nats.Conn, subject string) string {
	t.Helper()
	answer, err := nc.Request(subject, []byte("{}"), 30*time.Second)
	must(t, err)
	var ack struct {
		Problem struct {
			Code string `json:"code"`
		} `json:"problem"`
	}
	must(t, json.Unmarshal(answer.Data, &ack))
	return ack.Problem.Code
}

// violations gathers what a NATS server does not allow a connection.
type violations struct {
	mu   sync.Mutex
	said []string
}

func (v *violations) add(_ *nats.Conn, _ *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrPermissionViolation) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.said = append(v.said, err.Error())
	}
}

// of reports whether a subject was refused, to be published to or subscribed to.
func (v *violations) of(verb, subject string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.ContainsFunc(v.said, func(s string) bool {
		return strings.Contains(strings.ToLower(s), "permissions violation for "+verb+" to") && strings.Contains(s, `"`+subject+`"`)
	})
}

// silence sends every route to another tenant and to one that does not exist: the
// server takes neither, and nobody answers. It returns the number of cells.
func silence(t testing.TB, url string, h holder) (cells int) {
	t.Helper()
	v := &violations{}
	nc, err := nats.Connect(url, nats.UserInfo("x", h.key), nats.ErrorHandler(v.add))
	must(t, err)
	defer nc.Close()
	answers, err := nc.SubscribeSync(nats.NewInbox() + ".>")
	must(t, err)
	var subjects []string
	for _, tenant := range []string{"ajax", "nobody"} {
		for _, r := range application.Routes() {
			subjects = append(subjects, root(r)+tenant+"."+r.Name)
		}
	}
	for _, subject := range subjects {
		must(t, nc.PublishRequest(subject, strings.TrimSuffix(answers.Subject, ">")+"x", []byte("{}")))
	}
	must(t, nc.Flush())
	for _, subject := range subjects {
		await(t, h.name+" is kept from "+subject, func() (bool, error) { return v.of("publish", subject), nil })
	}
	if n, _, err := answers.Pending(); err != nil || n > 0 {
		t.Errorf("%s: %d answers from other tenants, %v", h.name, n, err)
	}
	return len(subjects)
}

// What belongs to another tenant answers as what does not exist, in every route
// that names a thing.
func TestForeignIDs(t *testing.T) {
	u := bring(t, t.TempDir())
	for _, tenant := range []string{"acme", "ajax"} {
		must(t, u.command("tenant.register", "", map[string]any{"id": tenant}, nil))
	}
	ajax := u.api
	ajax.tenant = "ajax"
	must(t, ajax.command("component.register", "", map[string]any{"id": "theirs", "descriptor": map[string]any{
		"title": "Theirs", "useOAuthClient": true, "envVars": map[string]any{"A": map[string]any{}},
		"credentials": map[string]any{"fields": map[string]any{"apiKey": map[string]any{"viewClass": "TextFieldView"}}},
	}}, nil))
	var client, authClient, credential, key, last done
	must(t, ajax.command("oauth_client.define", "", map[string]any{"component": "theirs", "client_id": "c", "client_secret": "s"}, &client))
	must(t, ajax.command("auth_client.create", "", map[string]any{
		"name": "Theirs", "type": "basic", "components": []string{"theirs"}, "credentials": map[string]string{"password": "p"},
	}, &authClient))
	must(t, ajax.command("component.register", "", map[string]any{"id": "plain", "descriptor": map[string]any{
		"title": "Plain", "credentials": map[string]any{"fields": map[string]any{"apiKey": map[string]any{"viewClass": "TextFieldView"}}},
	}}, nil))
	must(t, ajax.command("credential.create", "", map[string]any{"component": "plain", "workspace": "sales", "keys": map[string]any{"apiKey": "k"}}, &credential))
	must(t, ajax.command("flow.bind", "", map[string]any{"flow": "their-flow", "steps": []any{map[string]any{"id": "s", "component": "plain", "credential": credential.ID}}}, nil))
	must(t, ajax.command("api_key.issue", "", map[string]any{"role": "OPERATOR"}, &key))
	must(t, ajax.command("throttle_policy.define", "", map[string]any{"id": "their-policy", "tokens": 5, "per": "day"}, nil))
	must(t, ajax.command("role.define", "", map[string]any{"name": "THEIRS", "permissions": []string{"flows.get"}}, nil))
	must(t, ajax.command("webhook.define", "", map[string]any{"id": "their-webhook", "url": "https://hooks.example.org"}, nil))
	must(t, ajax.command("connector_secret.put", "", map[string]any{"id": "their-secret", "value": "v"}, nil))
	must(t, ajax.command("connector.put", "", map[string]any{"id": "their-connector", "api_key_secret_id": "their-secret"}, nil))
	nc := u.connect(t, adminKey)
	if _, err := nc.Request("credstream.flows.ajax.bad", []byte("{}"), 30*time.Second); err != nil {
		t.Fatal(err)
	}
	var poisoned struct {
		Messages []struct{ ID string } `json:"messages"`
	}
	await(t, "a message in the dead-letter queue", func() (bool, error) {
		err := ajax.query("queue.list", "", &poisoned)
		return len(poisoned.Messages) > 0, err
	})
	var all []permission.Permission
	for _, info := range permission.Permissions() {
		all = append(all, info.Permission)
	}
	mine := grant(t, u.program, "mine", []string{"acme"}, all...)
	must(t, ajax.command("credential.rename", "", map[string]any{"id": credential.ID, "name": "theirs"}, &last))
	must(t, u.proj.Wait(t.Context(), last.Seq))

	// By route: the id that belongs to somebody else, and a body that names it as %s.
	type naming struct{ foreign, body string }
	component := func(more string) naming { return naming{"theirs", `{"id":"%s"` + more + `}`} }
	of := func(id, more string) naming { return naming{id, `{"id":"%s"` + more + `}`} }
	table := map[string]naming{
		"component.update": component(`,"descriptor":{"title":"Mine"}`), "component.share": component(""), "component.unshare": component(""),
		"component.delete": component(""), "component.set-env": component(`,"values":{"A":"x"}`), "component.get": component(""),
		"credential.create":                 {"plain", `{"component":"%s","keys":{"apiKey":"k"}}`},
		"credential.rename":                 of(credential.ID, `,"name":"n"`),
		"credential.set-vpn-agent":          of(credential.ID, `,"vpn_agent":"v"`),
		"credential.assign-throttle-policy": of(credential.ID, ""),
		"throttle_policy.change":            of("their-policy", `,"tokens":4`), "throttle_policy.delete": of("their-policy", ""), "throttle_policy.get": of("their-policy", ""),
		"throttle_policy.define": {}, // each tenant has ids of policies of its own
		"webhook.define":         {}, // likewise
		"webhook.change":         of("their-webhook", `,"enabled":false`), "webhook.test": of("their-webhook", ""), "webhook.redeliver": of("their-webhook", `,"event":"e"`), "webhook.deliveries": of("their-webhook", ""), "webhook.rotate-secret": of("their-webhook", ""), "webhook.delete": of("their-webhook", ""),
		"webhook.show":               of("their-webhook", ""),
		"credential.set-description": of(credential.ID, `,"description":"d"`), "credential.update": of(credential.ID, `,"description":"d"`),
		"credential.update-many": {credential.ID, `{"updates":[{"id":"%s","description":"d"}]}`}, "credential.delete-many": {credential.ID, `{"ids":["%s"]}`},
		"credential.create-many": {"plain", `{"credentials":[{"component":"%s","keys":{"apiKey":"k"}}]}`},
		"credential.search":      {credential.ID, `{"ids":["%s"]}`}, "credential.export": {credential.ID, `{"ids":["%s"]}`},
		"throttle.take":           {credential.ID, `{"credential":"%s"}`},
		"credential.replace-keys": of(credential.ID, `,"keys":{"apiKey":"k"}`), "credential.revert": of(credential.ID, `,"version":1`),
		"credential.verify": of(credential.ID, ""), "credential.refresh": of(credential.ID, ""), "credential.revoke": of(credential.ID, ""),
		"oauth.revoke": {"theirs", `{"component":"%s","dry_run":true}`}, "oauth.revocation": of("4242", ""),
		"credential.delete": of(credential.ID, ""), "credential.reveal": of(credential.ID, ""),
		"credential.get": of(credential.ID, ""), "credential.history": of(credential.ID, ""),
		"credential.list": {"plain", `{"component":"%s"}`}, "credential.counts": {"plain", `{"component":"%s"}`}, "expiry.list": {},
		"auth_client.change": of(authClient.ID, `,"name":"n"`), "auth_client.delete": of(authClient.ID, ""), "auth_client.reveal": of(authClient.ID, ""),
		"auth_client.get": of(authClient.ID, ""), "auth_client.list": {"theirs", `{"component":"%s"}`},
		"auth_secret.create":       {"plain", `{"workspace":"sales","component":"%s","keys":{"apiKey":"k"}}`},
		"auth_secret.rename":       of(credential.ID, `,"workspace":"sales","name":"n"`),
		"auth_secret.replace-keys": of(credential.ID, `,"workspace":"sales","keys":{"apiKey":"k"}`),
		"auth_secret.refresh":      of(credential.ID, `,"workspace":"sales"`), "auth_secret.delete": of(credential.ID, `,"workspace":"sales"`),
		"auth_secret.get": of(credential.ID, `,"workspace":"sales"`), "auth_secret.list": {"plain", `{"workspace":"sales","component":"%s"}`},
		"flow.bind":    {credential.ID, `{"flow":"f","steps":[{"id":"s","component":"plain","credential":"%s"}]}`},
		"flow.release": {"their-flow", `{"flow":"%s"}`}, "flow.get": of("their-flow", ""), "flow.list": {credential.ID, `{"credential":"%s"}`},
		"queue.retry": of(poisoned.Messages[0].ID, ""), "queue.drop": of(poisoned.Messages[0].ID, ""), "queue.get": of(poisoned.Messages[0].ID, ""),
		"oauth_client.define": {"theirs", `{"component":"%s","client_id":"c","client_secret":"s"}`},
		"oauth_client.change": of(client.ID, `,"client_id":"d"`), "oauth_client.delete": of(client.ID, ""), "oauth_client.reveal": of(client.ID, ""),
		"oauth_client.get": of(client.ID, ""), "oauth_client.list": {"theirs", `{"component":"%s"}`},
		"api_key.revoke": of(key.ID, ""),
		"role.define":    {}, // each tenant has names of roles of its own
		"role.change":    {"THEIRS", `{"name":"%s","title":"Mine"}`}, "role.delete": {"THEIRS", `{"name":"%s"}`},
		"oauth.connect": {"theirs", `{"component":"%s"}`}, "oauth.redirect-uri": {"theirs", `{"component":"%s"}`},
		"oauth.connection":   {}, // TestConnectAttacks has one of another tenant
		"events.replay":      {"credential." + credential.ID, `{"stream":"%s"}`},
		"credential.resolve": of(credential.ID, `,"cleartext":"true"`),
		"lease.list":         {credential.ID, `{"credential":"%s"}`}, "access.replay": {credential.ID, `{"credential":"%s"}`},
		"connector.set-api-key": of("their-connector", `,"api_key_id":"k"`), "connector.delete": of("their-connector", ""), "connector.get": of("their-connector", ""),
		"connector_secret.revert": of("their-secret", `,"version":1`), "connector_secret.delete": of("their-secret", ""), "connector_secret.reveal": of("their-secret", ""),
		"connector_secret.get": of("their-secret", ""),
		// Each tenant has ids of connectors, their secrets, flows and auth clients of its own.
		"connector.put": {}, "connector_secret.put": {}, "flow.report": {}, "auth_client.create": {},
		// Ids of components and tenants are one space: a taken one says so.
		"component.register": {}, "tenant.register": {}, "tenant.erase": {}, "tenant.erasure": {}, // of an administrator of all tenants
	}
	for _, r := range application.Routes() {
		names, listed := table[r.Name]
		if !listed {
			if field := namingMember(r.In); field != "" {
				t.Errorf("%s names a thing by its member %s: say in the table how another tenant's is asked for", r.Name, field)
			}
			continue
		}
		if names.body == "" {
			continue
		}
		unknown := "4242424242"
		if strings.HasPrefix(names.foreign, "credential.") {
			unknown = "credential.4242424242"
		}
		theirs := ask(t, u.base, mine, "acme", r, fmt.Sprintf(names.body, names.foreign))
		nobodys := ask(t, u.base, mine, "acme", r, fmt.Sprintf(names.body, unknown))
		theirs.body, nobodys.body = strings.ReplaceAll(theirs.body, names.foreign, "ID"), strings.ReplaceAll(nobodys.body, unknown, "ID")
		if theirs != nobodys {
			t.Errorf("%s: another tenant's answers\n%v, an unknown one\n%v", r.Name, theirs, nobodys)
		}
		if theirs.status == http.StatusBadRequest || theirs.status >= 500 {
			t.Errorf("%s: the body of the table says nothing: %v", r.Name, theirs)
		}
	}
	var still struct{ Name string }
	must(t, ajax.query("credential.get", "id="+credential.ID, &still))
	if still.Name != "theirs" {
		t.Errorf("another tenant's credential has become %q", still.Name)
	}
}

// namingMember is the first member of a request that names a thing, or "".
func namingMember(in reflect.Type) string {
	for f := range in.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if slices.Contains([]string{"id", "component", "credential", "flow", "stream"}, name) {
			return name
		}
	}
	return ""
}

// call is one thing a key tries at a NATS server.
type call struct {
	verb    string // "publish" or "subscribe"
	subject string
	allowed bool
}

// subjectCalls is what a key of one tenant tries, with its own and with another's
// things: %s is a tenant.
func subjectCalls(external bool) (own, foreign, nobodys []string) {
	own = []string{
		"publish credstream.cmd.%s.credential.create", "publish credstream.query.%s.credential.list",
		"publish credstream.cmdq.%s.credential.rename", "publish credstream.flows.%s.f1",
		"publish $JS.API.CONSUMER.INFO.CREDSTREAM_FEED.engine-%s", "publish $JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_FEED.engine-%s",
		"publish $JS.API.CONSUMER.INFO.CREDSTREAM_AUDIT.audit-%s", "publish $JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_AUDIT.audit-%s",
		"publish $JS.ACK.CREDSTREAM_FEED.engine-%s.1.1.1.1.0", "publish $JS.ACK.CREDSTREAM_AUDIT.audit-%s.1.1.1.1.0",
		"publish $JS.API.DIRECT.GET.KV_credstream-in-use.$KV.credstream-in-use.%s.credential.c1",
	}
	feeds := []string{"subscribe credstream.events.%s.>", "subscribe credstream.audit.%s.>", "subscribe $KV.credstream-in-use.%s.>"}
	foreign = slices.Concat(own, feeds)
	if !external { // there these have a user of their own
		own = append(own, feeds...)
	}
	nobodys = []string{
		// The service's own streams and buckets, and another way into the feed.
		"publish credstream.log.%s.credential.c1", "publish credstream.vault.%s.credential.c1.s1", "publish credstream.events.%s.credential.c1",
		"publish credstream.audit.%s.api_key.k1",
		"publish credstream.access.%s.c1",
		"publish $JS.API.DIRECT.GET.CREDSTREAM_ACCESS", "publish $JS.API.STREAM.MSG.GET.CREDSTREAM_ACCESS", "publish $JS.API.STREAM.PURGE.CREDSTREAM_ACCESS",
		"publish credstream.in.flows.%s.f1", "publish credstream.in.cmdq.%s.credential.rename", "publish credstream.in.poison.%s.x",
		"publish $KV.credstream-in-use.%s.credential.c1", "publish $KV.CREDSTREAM_KEYS.%s", "publish $KV.CREDSTREAM_LAST_USED.x", "publish $KV.CREDSTREAM_CONNECT.x", "publish $KV.CREDSTREAM_CHECKPOINTS.follow-ups",
		"publish $JS.API.DIRECT.GET.KV_CREDSTREAM_KEYS.$KV.CREDSTREAM_KEYS.%s", "publish $JS.API.DIRECT.GET.KV_CREDSTREAM_LAST_USED.$KV.CREDSTREAM_LAST_USED.x",
		"publish $JS.API.DIRECT.GET.KV_credstream-in-use", "publish $JS.API.DIRECT.GET.CREDSTREAM_LOG.credstream.log.%s.credential.c1",
		"publish $JS.API.DIRECT.GET.CREDSTREAM_VAULT", "publish $JS.API.STREAM.MSG.GET.CREDSTREAM_VAULT", "publish $JS.API.STREAM.MSG.GET.KV_credstream-in-use",
		// The API of streams and consumers.
		"publish $JS.API.INFO", "publish $JS.API.STREAM.LIST", "publish $JS.API.STREAM.NAMES", "publish $JS.API.STREAM.INFO.CREDSTREAM_FEED",
		"publish $JS.API.STREAM.CREATE.MINE", "publish $JS.API.STREAM.UPDATE.CREDSTREAM_FEED", "publish $JS.API.STREAM.DELETE.CREDSTREAM_LOG",
		"publish $JS.API.STREAM.PURGE.CREDSTREAM_VAULT", "publish $JS.API.STREAM.MSG.DELETE.CREDSTREAM_LOG", "publish $JS.API.STREAM.SNAPSHOT.CREDSTREAM_LOG",
		"publish $JS.API.STREAM.RESTORE.CREDSTREAM_LOG", "publish $JS.API.CONSUMER.CREATE.CREDSTREAM_FEED", "publish $JS.API.CONSUMER.CREATE.CREDSTREAM_FEED.mine",
		"publish $JS.API.CONSUMER.DURABLE.CREATE.CREDSTREAM_FEED.mine", "publish $JS.API.CONSUMER.CREATE.CREDSTREAM_FEED.mine.credstream.events.%s.x",
		"publish $JS.API.CONSUMER.CREATE.KV_CREDSTREAM_KEYS.mine", "publish $JS.API.CONSUMER.DELETE.CREDSTREAM_FEED.engine-%s",
		"publish $JS.API.CONSUMER.PAUSE.CREDSTREAM_FEED.engine-%s", "publish $JS.API.CONSUMER.LIST.CREDSTREAM_FEED", "publish $JS.API.CONSUMER.MSG.NEXT.CREDSTREAM_LOG.mine",
		// The system, other clients' inboxes, and answers.
		"publish $SYS.REQ.SERVER.PING", "publish $SYS.REQ.ACCOUNT.PING.CONNZ", "publish $SYS.REQ.USER.AUTH", "publish _INBOX.somebody.else",
		"publish _INBOX_0123456789abcdef.x", "publish _R_.x.y", "publish credstream.cmd._system.api_key.issue",
		"subscribe >", "subscribe $SYS.>", "subscribe $JS.>", "subscribe $KV.>", "subscribe $KV.CREDSTREAM_KEYS.>", "subscribe $KV.CREDSTREAM_LAST_USED.>", "subscribe $KV.CREDSTREAM_CONNECT.>", "subscribe $KV.CREDSTREAM_CHECKPOINTS.>",
		"subscribe credstream.>", "subscribe credstream.log.%s.>", "subscribe credstream.vault.%s.>", "subscribe credstream.access.%s.>", "subscribe credstream.cmd.%s.>", "subscribe credstream.query.>",
		"subscribe credstream.events.>", "subscribe credstream.events.*.>", "subscribe credstream.audit.>", "subscribe $KV.credstream-in-use.>", "subscribe _R_.>", "subscribe $SRV.>",
		"subscribe _INBOX_0123456789abcdef.>",
	}
	if external {
		nobodys = append(nobodys, "subscribe _INBOX.>", "subscribe credstream.events.%s.>", "subscribe credstream.audit.%s.>")
	}
	return own, foreign, nobodys
}

// callsOf is the table of one tenant's key.
func callsOf(tenant, other string, external bool) (list []call) {
	own, foreign, nobodys := subjectCalls(external)
	add := func(of string, allowed bool, lines []string) {
		for _, line := range lines {
			verb, subject, _ := strings.Cut(line, " ")
			list = append(list, call{verb, strings.ReplaceAll(subject, "%s", of), allowed})
		}
	}
	add(tenant, true, own)
	add(other, false, foreign)
	add(tenant, false, nobodys)
	return list
}

// try does what the calls say and asserts each: what is not allowed is refused by
// the server, what is allowed is not.
func try(t *testing.T, connect func(nats.ErrHandler) *nats.Conn, calls []call) {
	t.Helper()
	v := &violations{}
	nc := connect(v.add)
	for _, c := range calls {
		if c.verb == "subscribe" {
			_, err := nc.SubscribeSync(c.subject)
			must(t, err)
			continue
		}
		must(t, nc.Publish(c.subject, []byte("{}"))) // without a reply subject nothing is answered, or done
	}
	must(t, nc.Flush())
	for _, c := range calls {
		if !c.allowed {
			await(t, fmt.Sprintf("%s %s is refused", c.verb, c.subject), func() (bool, error) { return v.of(verbOf[c.verb], c.subject), nil })
		}
	}
	for _, c := range calls { // the refusals came in their order, so these would be there
		if c.allowed && v.of(verbOf[c.verb], c.subject) {
			t.Errorf("%s %s is refused", c.verb, c.subject)
		}
	}
}

// verbOf is what the server calls it.
var verbOf = map[string]string{"publish": "publish", "subscribe": "subscription"}

// What a NATS server lets the administrators of two tenants send and hear: their
// own tenant's, not the other's, and of the service's nothing. On the embedded
// server and on external ones.
func TestSubjectMatrix(t *testing.T) {
	issue := func(t *testing.T, admin api, tenant string) string {
		var issued struct{ Key string }
		must(t, admin.command("tenant.register", "", map[string]any{"id": tenant}, nil))
		admin.tenant = tenant
		must(t, admin.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR"}, &issued))
		return issued.Key
	}
	t.Run("embedded", func(t *testing.T) {
		u := bring(t, t.TempDir())
		keys := map[string]string{"acme": issue(t, u.api, "acme"), "ajax": issue(t, u.api, "ajax")}
		n := 0
		for tenant, other := range map[string]string{"acme": "ajax", "ajax": "acme"} {
			calls := callsOf(tenant, other, false)
			n += len(calls)
			try(t, func(refused nats.ErrHandler) *nats.Conn {
				nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", keys[tenant]), nats.ErrorHandler(refused))
				must(t, err)
				t.Cleanup(nc.Close)
				return nc
			}, calls)
		}
		if n < 120 {
			t.Errorf("%d calls were tried", n)
		}
	})
	t.Run("external", func(t *testing.T) {
		servers := bustest.Start(t)
		p := replica(t, servers, kmsFile(t))
		keys := map[string]string{"acme": issue(t, caller(p), "acme"), "ajax": issue(t, caller(p), "ajax")}
		for tenant, other := range map[string]string{"acme": "ajax", "ajax": "acme"} {
			connect := func(name string) func(nats.ErrHandler) *nats.Conn {
				return func(refused nats.ErrHandler) *nats.Conn {
					nc, err := nats.Connect(servers.URL(""), nats.UserInfo(name, keys[tenant]), nats.ErrorHandler(refused))
					must(t, err)
					t.Cleanup(nc.Close)
					return nc
				}
			}
			try(t, connect("x"), callsOf(tenant, other, true))
			try(t, connect(natsserver.FeedUser), []call{
				{"subscribe", "credstream.events." + tenant + ".>", true},
				{"subscribe", "credstream.events." + tenant + ".credential.*", true},
				{"subscribe", "$KV.credstream-in-use." + tenant + ".>", true},
				{"subscribe", "credstream.events." + other + ".>", false},
				{"subscribe", "$KV.credstream-in-use." + other + ".>", false},
				{"subscribe", "credstream.events.>", false},
				{"subscribe", "credstream.audit." + tenant + ".>", true},
				{"subscribe", "credstream.audit." + other + ".>", false},
				{"subscribe", "credstream.audit.>", false},
				{"subscribe", "$SYS.>", false},
				{"subscribe", "_INBOX.>", false},
				{"publish", "credstream.cmd." + tenant + ".credential.create", false},
				{"publish", "credstream.events." + tenant + ".x", false},
				{"publish", "$KV.credstream-in-use." + tenant + ".credential.c1", false},
			})
		}
	})
}

// A caller finds what it was refused in the history of its home tenant, and in no
// other: the first refusal at once, those that follow when the service stops at
// the latest.
func TestDenialsAreFacts(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	for _, tenant := range []string{"acme", "ajax"} {
		must(t, u.command("tenant.register", "", map[string]any{"id": tenant}, nil))
	}
	acme := u.api
	acme.tenant = "acme"
	var issued struct{ Key, ID string }
	must(t, acme.command("api_key.issue", "", map[string]any{"role": "OPERATOR"}, &issued))
	operator := acme
	operator.key = issued.Key
	for range 5 {
		if got := code(t, operator.command("credential.delete", "", map[string]any{"id": "x"}, nil)); got != "permission_denied" {
			t.Errorf("an operator deletes: %s", got)
		}
	}
	for _, tenant := range []string{"ajax", "a..b", "%2a", "ajax"} {
		operator.tenant = tenant
		if got := code(t, operator.query("credential.list", "", nil)); got != "tenant_not_found" {
			t.Errorf("another tenant: %s", got)
		}
	}
	type denial struct {
		Principal, Tenant, Route, Permission string
		Count                                int
	}
	facts := func(a api) (list []denial) {
		var page struct {
			Events []struct {
				Type, Subject, Actor string
				Data                 denial
			}
		}
		must(t, a.query("events.replay", "type=access.denied&limit=200", &page))
		for _, e := range page.Events {
			if e.Type != "credstream.access.denied.v1" || e.Subject != "access."+issued.ID || e.Actor != "key:"+issued.ID {
				t.Errorf("a denial is told as %+v", e)
			}
			list = append(list, e.Data)
		}
		return list
	}
	who := "key:" + issued.ID
	first := []denial{
		{who, "acme", "credential.delete", "credentials.delete", 1}, {who, "ajax", "credential.list", "credentials.get", 1},
	}
	if got := facts(acme); !reflect.DeepEqual(got, first) {
		t.Errorf("at once:\n%v, want\n%v", got, first)
	}
	u.stop()
	u = bring(t, data)
	acme.base = u.base
	got := facts(acme)
	slices.SortFunc(got, func(a, b denial) int { return strings.Compare(a.Route, b.Route)*10 + a.Count - b.Count })
	want := []denial{first[0], {who, "acme", "credential.delete", "credentials.delete", 4}, first[1], {who, "", "credential.list", "credentials.get", 3}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("after the end:\n%v, want\n%v", got, want)
	}
	acme.tenant = "ajax"
	if got := facts(acme); len(got) > 0 {
		t.Errorf("the tenant that was named is told %v", got)
	}
	if strings.Contains(u.logs.String(), "denied calls not recorded") {
		t.Error("something was not recorded")
	}
}

// A key that is bound to a workspace, on every edge: what is outside answers as what does not
// exist, and the feed and the index, whose subjects do not tell one workspace from another,
// are closed to it.
func TestBoundKeyEdges(t *testing.T) {
	u := bring(t, t.TempDir())
	must(t, u.command("component.register", "", map[string]any{"id": "plain", "descriptor": map[string]any{
		"title": "Plain", "credentials": map[string]any{"fields": map[string]any{"apiKey": map[string]any{"viewClass": "TextFieldView"}}},
	}}, nil))
	create := func(workspace string) string {
		var d done
		must(t, u.command("credential.create", "", map[string]any{"component": "plain", "workspace": workspace, "description": workspace, "keys": map[string]any{"apiKey": "k"}}, &d))
		return d.ID
	}
	inside, outside := create("sales"), create("hr")
	engine := u.issue(t, map[string]any{"role": "FLOW_ENGINE", "workspaces": []string{"sales"}})
	admin := u.issue(t, map[string]any{"role": "ADMINISTRATOR", "permissions": []string{"credentials.reveal"}, "workspaces": []string{"sales"}})

	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u.base+path, nil)
		must(t, err)
		req.SetBasicAuth("somebody@example.org", admin)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(body)
	}
	for _, path := range []string{"/v1/tenants/default/credential.get?id=", "/v2/credentials/", "/aspire/_api/credentials/", "/aspire/_api/credentials/export/"} {
		await(t, path+" answers with the credential inside", func() (bool, error) {
			status, _ := get(path + inside)
			return status == http.StatusOK, nil
		})
		got, body := get(path + outside)
		unknown, same := get(path + "unknown")
		if got != unknown || got != http.StatusNotFound && !strings.Contains(path, "export") || strings.Contains(body, "hr") || len(body) != len(strings.ReplaceAll(same, "unknown", outside)) {
			t.Errorf("%s: outside answers %d %s, unknown %d %s", path, got, body, unknown, same)
		}
	}
	for _, path := range []string{"/v1/tenants/default/credential.list", "/v1/tenants/default/events.changes?limit=1000", "/v2/credentials", "/v2/workspaces/sales/secrets", "/aspire/_api/credentials"} {
		if status, body := get(path); status == http.StatusOK && (!strings.Contains(body, inside) || strings.Contains(body, outside)) || status >= 500 {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	for _, path := range []string{"/_connector", "/_connector/_secret/s"} {
		if status, body := get(path); status != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	if err := u.as(admin).command("oauth.connect", "", map[string]any{"component": "plain", "workspace": "hr"}, nil); code(t, err) != "key_scope_exceeded" {
		t.Error(err)
	}

	// NATS: requests and the queue are served, the feed and the index are not.
	nc := u.connect(t, engine)
	for id, want := range map[string]string{inside: "", outside: "credential_not_found", "unknown": "credential_not_found"} {
		answer, err := nc.Request("credstream.query.default.credential.resolve", []byte(`{"id":"`+id+`","public_key":"`+stage.NewRecipient(t).Public+`"}`), 30*time.Second)
		must(t, err)
		var got struct{ Code string }
		must(t, json.Unmarshal(answer.Data, &got))
		if got.Code != want {
			t.Errorf("resolving %s over NATS: %s", id, answer.Data)
		}
	}
	event := nats.NewMsg("credstream.flows.default.f")
	event.Header = nats.Header{"ce-id": {"1"}, "ce-type": {"flow.created"}, "ce-source": {"test"}, "ce-specversion": {"1.0"}}
	event.Data = []byte(`{"id":"f","revision":1,"steps":[{"id":"s","component":"plain","credential":"` + outside + `"}]}`)
	answer, err := nc.RequestMsg(event, 30*time.Second)
	must(t, err)
	if !strings.Contains(string(answer.Data), "credential_not_found") {
		t.Errorf("a flow event that names one outside: %s", answer.Data)
	}
	if code := enqueue(t, u.connect(t, admin), "credstream.cmdq.default.throttle_policy.define"); code != "key_scope_tenantwide" {
		t.Errorf("a command that concerns the tenant, in the queue: %q", code)
	}
	v := &violations{}
	nc, err = nats.Connect(u.node.ClientURL(), nats.UserInfo("x", admin), nats.ErrorHandler(v.add))
	must(t, err)
	defer nc.Close()
	for _, subject := range []string{
		"credstream.events.default.>", "credstream.events.default.credential." + inside, "credstream.audit.default.>", "$KV.credstream-in-use.default.>",
	} {
		_, err := nc.SubscribeSync(subject)
		must(t, err)
		await(t, "the key is kept from "+subject, func() (bool, error) { return v.of("subscription", subject), nc.Flush() })
	}
	for _, kind := range []streams.FeedKind{streams.FeedOfChanges, streams.FeedOfAudit} {
		for _, pull := range kind.PullAPI("default") {
			must(t, nc.PublishRequest(pull, nats.NewInbox(), nil))
			await(t, "the key is kept from "+pull, func() (bool, error) { return v.of("publish", pull), nc.Flush() })
		}
	}
}
