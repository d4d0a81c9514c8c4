package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credstream/credstream/oauth/oauthtest"
)

// crm is a component with a field of its own beside the OAuth one.
func crm(provider *oauthtest.Server, change func(descriptor, field map[string]any)) map[string]any {
	field := map[string]any{"viewClass": "TextFieldView", "required": true}
	d := map[string]any{
		"title": "CRM", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{"fields": map[string]any{
			"secretKey": field, "oauth": map[string]any{"viewClass": "OAuthFieldView", "required": true},
		}, "oauth2": provider.Block()},
	}
	change(d, field)
	return d
}

// tries is the dry request that sends the key to a server.
func tries(server *httptest.Server, more map[string]any) map[string]any {
	probe := map[string]any{"url": server.URL + "/", "headers": map[string]string{"api-key": "{{secretKey}}"}}
	maps.Copy(probe, more)
	return map[string]any{"http": probe}
}

// The owner of a shared component changes it between the making of a credential and
// its reconnection: the values that stay keep the rules that they were entered under.
func TestReconnectKeepsTheRulesOfItsValues(t *testing.T) {
	provider, honest, thief := oauthtest.NewServer(t), newSpy(t), newSpy(t)
	u := connectable(t, provider)
	must(t, u.command("tenant.register", "", map[string]any{"id": "victim"}, nil))
	victim := u.in("victim")
	entered := func(d, _ map[string]any) { d["verification"] = tries(honest.Server, nil) }
	update := func(change func(d, field map[string]any)) {
		t.Helper()
		must(t, u.command("component.update", "", map[string]any{"id": "crm", "descriptor": crm(provider, change)}, nil))
	}
	connect := func(in map[string]any) done {
		t.Helper()
		link := victim.start(t, in)
		d, err := victim.complete(link.ID, newBrowser(t).through(link.URL).confirm(), "")
		must(t, err)
		return d
	}
	must(t, u.command("component.register", "", map[string]any{"id": "crm", "descriptor": crm(provider, entered)}, nil))
	must(t, u.command("component.share", "", map[string]any{"id": "crm"}, nil))
	must(t, victim.command("oauth_client.define", "", map[string]any{"component": "crm", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}, nil))
	made := connect(map[string]any{"component": "crm", "keys": map[string]any{"secretKey": "canary-kept"}})

	_, port, _ := strings.Cut(strings.TrimPrefix(honest.URL, "http://"), ":")
	for name, change := range map[string]func(d, field map[string]any){
		"mask off":     func(d, field map[string]any) { entered(d, field); field["secret"] = false },
		"another port": func(d, _ map[string]any) { d["verification"] = tries(thief.Server, nil) },
		"another scheme": func(d, _ map[string]any) {
			d["verification"] = tries(honest.Server, map[string]any{"url": "https://127.0.0.1:" + port + "/"})
		},
		"another path": func(d, _ map[string]any) {
			d["verification"] = tries(honest.Server, map[string]any{"url": honest.URL + "/collect"})
		},
		"in the URL": func(d, _ map[string]any) {
			d["verification"] = tries(honest.Server, map[string]any{"url": honest.URL + "/?k={{secretKey}}"})
		},
		"another header": func(d, _ map[string]any) {
			d["verification"] = tries(honest.Server, map[string]any{"headers": map[string]string{"x-log": "{{secretKey}}"}})
		},
		"in a body": func(d, _ map[string]any) {
			d["verification"] = tries(honest.Server, map[string]any{"method": "POST", "form": map[string]string{"k": "{{secretKey}}"}})
		},
		"a bare connection": func(d, _ map[string]any) {
			d["verification"] = map[string]any{"tcp": map[string]any{"address": strings.TrimPrefix(thief.URL, "http://")}}
		},
		"no dry request": func(map[string]any, map[string]any) {},
		"another host":   func(d, field map[string]any) { entered(d, field); d["hosts"] = []string{"127.0.0.1", "evil.example"} },
		"for OAuth's":    func(d, field map[string]any) { entered(d, field); field["viewClass"] = "HTTPAuthView" },
		"the field is gone": func(d, _ map[string]any) {
			fields := d["credentials"].(map[string]any)["fields"].(map[string]any)
			delete(fields, "secretKey")
		},
	} {
		update(change)
		if err := victim.command("oauth.connect", "", map[string]any{"credential": made.ID}, nil); code(t, err) != "connect_keys_needed" {
			t.Errorf("%s: %v", name, err)
		}
		update(entered) // as it was, under another revision
		link := victim.start(t, map[string]any{"component": "crm", "credential": made.ID})
		page := newBrowser(t).through(link.URL)
		update(change) // while somebody is at the provider
		again, err := victim.complete(link.ID, page.confirm(), "")
		if c := code(t, err); c != "" && c != "connection_component_changed" {
			t.Errorf("%s, while it was connected: %v", name, err)
		}
		var s shown
		must(t, victim.query("credential.get", fmt.Sprint("id=", made.ID, "&min_seq=", again.Seq), &s))
		if s.Keys["secretKey"] != "********" {
			t.Errorf("%s: it is shown: %v", name, s.Keys)
		}
		_ = victim.command("credential.verify", "", map[string]any{"id": made.ID}, nil)
	}
	if n := thief.connections(); n != 0 {
		t.Errorf("the thief's server had %d connections and got %q", n, thief.got)
	}
	// What leads no value anywhere may change, and so may a mask that is put on.
	update(func(d, _ map[string]any) {
		d["verification"] = tries(honest.Server, map[string]any{"expect": map[string]any{"status": []int{200, 204}}, "says": map[string]string{"401": "Wrong."}})
	})
	if again := connect(map[string]any{"component": "crm", "credential": made.ID}); again.ID != made.ID {
		t.Errorf("connected again: %+v", again)
	}
	// Given again, they are for what the component is by now.
	update(func(d, field map[string]any) { d["verification"], field["secret"] = tries(thief.Server, nil), false })
	connect(map[string]any{"component": "crm", "credential": made.ID, "keys": map[string]any{"secretKey": "canary-new"}})
	if thief.saw("canary-kept") || !thief.saw("canary-new") {
		t.Errorf("the thief's server got %q", thief.got)
	}
}

// Whoever may edit a component of the tenant, and must not reveal secrets, does not
// get the values of its variables by leading them elsewhere, or by calling the secret
// the client's id.
func TestVariablesStayWhereTheyWereMeant(t *testing.T) {
	honest, evil := granting(t), granting(t)
	u := bring(t, t.TempDir())
	legacy := func(uri, id, secret string) map[string]any {
		d := withBlock(map[string]any{"token_uri": uri + "/token", "grant_type": "client_credentials", "client_id": id, "client_secret": secret})
		delete(d, "useOAuthClient")
		d["envVars"] = map[string]any{"ID": map[string]any{}, "SECRET": map[string]any{}}
		return d
	}
	must(t, u.command("component.register", "", map[string]any{"id": "sheets", "descriptor": legacy(honest.URL, "{{ID}}", "{{SECRET}}")}, nil))
	values := map[string]any{"ID": "the-client", "SECRET": storedSecret}
	must(t, u.command("component.set-env", "", map[string]any{"id": "sheets", "values": values}, nil))
	low := u.as(u.issue(t, map[string]any{"permissions": []string{"components.edit", "credentials.create"}}))
	if c := low.makes(t, "sheets"); c != "" || !honest.told(storedSecret) {
		t.Fatalf("as it was meant: %q", c)
	}
	must(t, low.command("component.update", "", map[string]any{"id": "sheets", "descriptor": legacy(evil.URL, "{{ID}}", "{{SECRET}}")}, nil))
	if c := low.makes(t, "sheets"); c != "oauth_client_hosts_changed" || evil.count() != 0 {
		t.Errorf("at another host: %q, %d requests", c, evil.count())
	}
	must(t, low.command("component.update", "", map[string]any{"id": "sheets", "descriptor": legacy(honest.URL, "{{SECRET}}", "{{ID}}")}, nil))
	if c := low.makes(t, "sheets"); c != "" {
		t.Errorf("with the roles exchanged: %q", c)
	}
	for _, form := range honest.forms() {
		if form.Get("client_id") != "the-client" {
			t.Errorf("the client is sent as %q", form.Get("client_id"))
		}
	}
	must(t, low.command("component.update", "", map[string]any{"id": "sheets", "descriptor": legacy(evil.URL, "{{ID}}", "{{SECRET}}")}, nil))
	values["SECRET"] = "canary-of-low"
	must(t, low.command("component.set-env", "", map[string]any{"id": "sheets", "values": values}, nil))
	if c := low.makes(t, "sheets"); c != "" || evil.told(storedSecret) || !evil.told("canary-of-low") {
		t.Errorf("once they were given again: %q", c)
	}
}

// A component changes after its user has looked at it: no command that carries secrets
// sends or stores any, and each says why.
func TestSecretsForAnotherRevision(t *testing.T) {
	provider, honest, thief := oauthtest.NewServer(t), newSpy(t), newSpy(t)
	u := connectable(t, provider)
	must(t, u.command("tenant.register", "", map[string]any{"id": "victim"}, nil))
	victim := u.in("victim")
	at := func(server *httptest.Server) map[string]any {
		return crm(provider, func(d, _ map[string]any) {
			d["verification"], d["envVars"] = tries(server, nil), map[string]any{"V": map[string]any{}}
		})
	}
	must(t, u.command("component.register", "", map[string]any{"id": "crm", "descriptor": at(honest.Server)}, nil))
	must(t, u.command("component.share", "", map[string]any{"id": "crm"}, nil))
	client := map[string]any{"component": "crm", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret, "expected_revision": 1}
	var k, d, a done
	must(t, victim.command("oauth_client.define", "", client, &k))
	keys := func() map[string]any {
		return map[string]any{"secretKey": "canary-key", "oauth": provider.Grant()}
	}
	must(t, victim.command("credential.create", "", map[string]any{"component": "crm", "workspace": "w", "keys": keys(), "expected_revision": 1}, &d))
	must(t, u.command("auth_client.create", "", map[string]any{
		"name": "G", "type": "oauth2", "components": []string{"crm"}, "expected_revisions": map[string]int{"crm": 1, "other": 9},
		"credentials": map[string]any{"client_id": "i", "client_secret": "s"},
	}, &a))
	must(t, u.command("component.update", "", map[string]any{"id": "crm", "descriptor": at(thief.Server)}, nil))
	before := logEnd(t, u.program)
	for _, c := range []struct {
		by      api
		command string
		in      map[string]any
		at      string
	}{
		{victim, "credential.create", map[string]any{"component": "crm", "keys": keys()}, "/expected_revision"},
		{victim, "credential.replace-keys", map[string]any{"id": d.ID, "keys": keys()}, "/expected_revision"},
		{victim, "credential.replace-keys", map[string]any{"id": d.ID, "keys": keys(), "dry_run": true}, "/expected_revision"},
		{victim, "auth_secret.create", map[string]any{"component": "crm", "workspace": "w", "keys": keys()}, "/expected_revision"},
		{victim, "auth_secret.replace-keys", map[string]any{"id": d.ID, "workspace": "w", "keys": keys()}, "/expected_revision"},
		{victim, "oauth.connect", map[string]any{"component": "crm", "keys": map[string]any{"secretKey": "canary-key"}}, "/expected_revision"},
		{victim, "oauth.connect", map[string]any{"credential": d.ID}, "/expected_revision"},
		{victim, "oauth_client.define", map[string]any{"component": "crm", "client_id": "i", "client_secret": "s"}, "/expected_revision"},
		{victim, "oauth_client.change", map[string]any{"id": k.ID, "client_secret": "s"}, "/expected_revision"},
		{u.api, "component.set-env", map[string]any{"id": "crm", "values": map[string]any{"V": "v"}}, "/expected_revision"},
		{victim, "auth_client.create", map[string]any{"name": "G", "type": "oauth2", "components": []string{"crm"}, "credentials": map[string]any{"client_id": "i", "client_secret": "s"}}, "/expected_revisions/crm"},
		{u.api, "auth_client.change", map[string]any{"id": a.ID, "credentials": map[string]any{"client_secret": "s"}}, "/expected_revisions/crm"},
	} {
		if c.in["expected_revision"] = 1; c.at == "/expected_revisions/crm" {
			delete(c.in, "expected_revision")
			c.in["expected_revisions"] = map[string]int{"crm": 1}
		}
		var refused *apiError
		if err := c.by.command(c.command, "", c.in, nil); !errors.As(err, &refused) || refused.Code != "component_changed" || refused.Pointer != c.at {
			t.Errorf("%s: %v", c.command, err)
		}
	}
	if n := thief.connections(); n != 0 {
		t.Errorf("the other server had %d connections", n)
	}
	if now := logEnd(t, u.program); now != before {
		t.Errorf("the log has grown from %d to %d", before, now)
	}
	if err := victim.command("credential.create", "", map[string]any{"component": "crm", "keys": keys(), "expected_revision": -1}, nil); code(t, err) != "body_invalid" {
		t.Errorf("a negative revision: %v", err)
	}
	must(t, victim.command("credential.create", "", map[string]any{"component": "crm", "keys": keys(), "expected_revision": 2}, nil))
}
