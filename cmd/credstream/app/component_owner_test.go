package app

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service/application"
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

// leading is a component that sends everything to a server: values in its dry request,
// the client's secret, tokens and people.
func leading(server *httptest.Server, provider *oauthtest.Server, change func(block map[string]any)) func(d, field map[string]any) {
	return func(d, field map[string]any) {
		block := provider.Block()
		change(block)
		d["verification"] = tries(server, map[string]any{"url": server.URL + "/?k={{secretKey}}", "headers": map[string]string{"api-key": "{{secretKey}} {{oauth}}"}})
		d["credentials"].(map[string]any)["oauth2"] = block
		field["secret"] = false
	}
}

var betweenAllSteps = flag.Bool("between-all-steps", false, "change a component between all steps of another tenant, not between some")

// The owner of a shared component changes it between every two steps of what another
// tenant does with a credential. Nothing that the other tenant has entered for the
// component as it saw it comes to the owner's server, and none of it is shown.
func TestComponentOwnerBetweenAllSteps(t *testing.T) {
	provider, honest, thief := oauthtest.NewServer(t), newSpy(t), newSpy(t)
	u := connectable(t, provider)
	must(t, u.command("tenant.register", "", map[string]any{"id": "victim"}, nil))
	victim := u.in("victim")
	engine := victim.as(victim.engine(t))
	honestly := func(d, _ map[string]any) { d["verification"] = tries(honest.Server, nil) }
	evils := []func(d, field map[string]any){
		leading(thief.Server, provider, func(map[string]any) {}), // all but the provider
		leading(thief.Server, provider, func(b map[string]any) {
			b["token_uri"], b["revocation_uri"], b["auth_uri"] = thief.URL+"/token", thief.URL+"/revoke", thief.URL+"/authorize"
		}),
		leading(honest.Server, provider, func(b map[string]any) { b["revocation_uri"] = thief.URL + "/revoke" }), // the mask, and what is told at the end
	}

	for round := range 14 {
		if !*betweenAllSteps && !slices.Contains([]int{3, 4, 7, 11, 13}, round) {
			continue
		}
		component, evil := fmt.Sprint("crm-", round), evils[round%len(evils)]
		var k, a, made, connected done
		var link connectLink
		var confirm string
		keys := func() map[string]any { return map[string]any{"secretKey": "canary-entered", "oauth": provider.Grant()} }
		_ = u.command("component.register", "", map[string]any{"id": component, "descriptor": crm(provider, honestly)}, nil)
		must(t, u.command("component.share", "", map[string]any{"id": component}, nil))
		do := func(command string, in map[string]any, out any) {
			err := victim.command(command, "", in, out)
			if c := code(t, err); c == "internal" || c == "" && err != nil {
				t.Errorf("round %d, %s: %v", round, command, err)
			}
		}
		steps := []func(){
			func() {
				do("auth_client.create", map[string]any{
					"name": "G", "type": "oauth2", "components": []string{component}, "expected_revisions": map[string]int{component: 1},
					"credentials": map[string]any{"client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret},
				}, &a)
				if a.ID == "" {
					do("oauth_client.define", map[string]any{"component": component, "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret, "expected_revision": 1}, &k)
				}
			},
			func() {
				do("credential.create", map[string]any{"component": component, "workspace": "w", "keys": keys(), "expected_revision": 1}, &made)
			},
			func() {
				do("credential.replace-keys", map[string]any{"id": made.ID, "keys": keys(), "expected_revision": 1}, nil)
				do("auth_client.change", map[string]any{"id": a.ID, "name": "H"}, nil)
				do("auth_client.change", map[string]any{"id": a.ID, "credentials": map[string]any{"token_expires_in": 7200}}, nil)
			},
			func() { do("oauth.connect", map[string]any{"credential": made.ID}, &link) },
			func() {
				if link.URL == "" {
					return
				}
				b := newBrowser(t)
				opened := b.get(link.URL)
				if opened.next == "" {
					return // refused
				}
				if strings.HasPrefix(opened.next, thief.URL) {
					t.Errorf("round %d: people are sent to %s", round, thief.URL)
				}
				confirm = b.get(b.get(opened.next).next).confirm()
			},
			func() {
				do("oauth.complete", map[string]any{"connection": link.ID, "confirm": confirm}, &connected)
			},
			func() { do("credential.verify", map[string]any{"id": made.ID}, nil) },
			func() { do("credential.refresh", map[string]any{"id": made.ID}, nil) },
			func() { do("auth_secret.refresh", map[string]any{"workspace": "w", "id": made.ID}, nil) },
			func() {
				do("credential.revert", map[string]any{"id": made.ID, "version": 1}, nil)
				do("credential.rename", map[string]any{"id": made.ID, "name": "R"}, nil)
			},
			func() {
				var given struct{ Hosts []string }
				err := engine.query("credential.resolve", "cleartext=true&id="+made.ID, &given)
				if err == nil && fmt.Sprint(given.Hosts) != "[127.0.0.1]" {
					t.Errorf("round %d: to be sent to %v", round, given.Hosts)
				}
			},
			func() { do("credential.revoke", map[string]any{"id": made.ID}, nil) },
			func() { do("credential.delete", map[string]any{"id": made.ID}, nil) },
		}
		for n, step := range steps {
			if n == round {
				must(t, u.command("component.update", "", map[string]any{"id": component, "descriptor": crm(provider, evil)}, nil))
			}
			step()
			var s shown
			if made.ID != "" && n < len(steps)-1 {
				must(t, victim.query("credential.get", fmt.Sprint("id=", made.ID, "&min_seq=", logEnd(t, u.program)), &s))
				if s.Keys["secretKey"] != "********" {
					t.Errorf("round %d, step %d: it is shown: %v", round, n, s.Keys)
				}
			}
		}
		if round > 1 && made.ID == "" || round == len(steps) && (connected.ID != made.ID || connected.Version != 3) {
			t.Errorf("round %d: the steps were not gone: %+v, %+v", round, made, connected)
		}
	}
	if n := thief.connections(); n != 0 {
		t.Errorf("the owner's server had %d connections and got %q", n, thief.got)
	}
	if !honest.saw("canary-entered") {
		t.Error("the keys were not tried: the test has lost its point")
	}
}

// undurable is a log whose last commits may still be lost.
type undurable struct {
	events.Store
	lost atomic.Bool
}

var errUndurable = errors.New("it is not known to be durable")

func (s *undurable) WaitDurable(ctx context.Context, seq uint64) error {
	if s.lost.Load() {
		return errUndurable
	}
	return s.Store.WaitDurable(ctx, seq)
}

// How tokens stand is told of what is durable.
func TestTokensShownAreDurable(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := connectable(t, provider)
	id, _ := u.grant(t, provider)
	log := &undurable{Store: u.store}
	svc := u.over(t, log)
	get := map[string]any{"id": id, "min_seq": logEnd(t, u.program)}
	must(t, serveBy(t.Context(), svc, "credential.get", get))
	log.lost.Store(true)
	if err := serveBy(t.Context(), svc, "credential.get", get); !errors.Is(err, errUndurable) {
		t.Errorf("answered with %v", err)
	}
}

// over is a service on another log.
func (u *up) over(t testing.TB, log events.Store) *application.Application {
	t.Helper()
	states, err := aggregates.NewLog(log, 100)
	must(t, err)
	svc, err := application.New(application.Config{
		Log: states, Views: u.views, Projector: u.proj, Vault: u.vault, Keyring: u.keyring, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	t.Cleanup(svc.Close)
	return svc
}

// What is refused leaves none of its secrets: in no answer, log line, event, metric or
// file, whatever it was refused for.
func TestRefusalsKeepNoSecret(t *testing.T) {
	const canary = "canary-refused"
	provider, data := oauthtest.NewServer(t), t.TempDir()
	u := bring(t, data, func(c *Config) { c.LogLevel = "debug" })
	plain := crm(provider, func(d, _ map[string]any) { d["envVars"] = map[string]any{"V": map[string]any{}} })
	must(t, u.command("component.register", "", map[string]any{"id": "crm", "descriptor": plain}, nil))
	must(t, u.command("component.update", "", map[string]any{"id": "crm", "descriptor": crm(provider, func(d, _ map[string]any) {
		d["title"], d["envVars"] = "Other", map[string]any{"V": map[string]any{}}
	})}, nil))
	params := func(change func(block map[string]any)) map[string]any {
		block := provider.Block()
		change(block)
		return withBlock(block)
	}
	keys := map[string]any{"secretKey": canary, "oauth": map[string]any{"access_token": canary, "refresh_token": canary}}
	low := u.as(u.issue(t, map[string]any{"permissions": []string{"credentials.get"}}))
	nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", adminKey), nats.CustomInboxPrefix(natsserver.InboxPrefix(adminKey)))
	must(t, err)
	defer nc.Close()
	var said strings.Builder
	for _, c := range []struct {
		command string
		in      map[string]any
		code    string
	}{
		{"component.register", map[string]any{"id": "a", "descriptor": params(func(b map[string]any) { b["token_params"] = map[string]any{"app_secret": canary} })}, "component_secret_in_descriptor"},
		{"component.register", map[string]any{"id": "a", "descriptor": params(func(b map[string]any) { b["apiKey"] = canary })}, "component_secret_in_descriptor"},
		{"component.update", map[string]any{"id": "crm", "descriptor": params(func(b map[string]any) { b["client_secret"] = canary })}, "component_secret_in_descriptor"},
		{"component.set-env", map[string]any{"id": "crm", "values": map[string]any{"V": canary}, "expected_revision": 1}, "component_changed"},
		{"component.set-env", map[string]any{"id": "crm", "values": map[string]any{"W": canary}}, "component_env_unknown"},
		{"credential.create", map[string]any{"component": "crm", "keys": keys, "expected_revision": 1}, "component_changed"},
		{"credential.create", map[string]any{"component": "crm", "keys": keys}, "oauth_client_missing"},
		{"credential.create", map[string]any{"component": "crm", "keys_sealed": canary}, "keys_sealed_invalid"},
		{"auth_secret.create", map[string]any{"component": "crm", "workspace": "w", "keys": keys, "expected_revision": 1}, "component_changed"},
		{"oauth.connect", map[string]any{"component": "crm", "keys": map[string]any{"secretKey": canary}, "expected_revision": 1}, "component_changed"},
		{"oauth_client.define", map[string]any{"component": "crm", "client_id": "i", "client_secret": canary, "expected_revision": 1}, "component_changed"},
		{"auth_client.create", map[string]any{
			"name": "G", "type": "oauth2", "components": []string{"crm"}, "expected_revisions": map[string]int{"crm": 1},
			"credentials": map[string]any{"client_id": "i", "client_secret": canary},
		}, "component_changed"},
	} {
		err := u.command(c.command, "", c.in, nil)
		if got := code(t, err); got != c.code {
			t.Errorf("%s: %v", c.command, err)
		}
		fmt.Fprintln(&said, err, low.command(c.command, "", c.in, nil))
		body, err := json.Marshal(c.in)
		must(t, err)
		answer, err := nc.Request("credstream.cmdq.default."+c.command, body, 30*time.Second)
		must(t, err)
		if fmt.Fprintln(&said, answer.Header, string(answer.Data)); answer.Header.Get("Nats-Service-Error-Code") == "" {
			t.Errorf("%s is taken into the queue: %s", c.command, answer.Data)
		}
	}
	for _, query := range []string{"events.replay", "queue.list"} {
		var page json.RawMessage
		must(t, u.query(query, "", &page))
		said.Write(page)
	}
	metrics, err := http.Get(u.base + "/metrics")
	must(t, err)
	_, err = io.Copy(&said, metrics.Body)
	must(t, err)
	_ = metrics.Body.Close()
	u.stop()
	if strings.Contains(said.String(), canary) || strings.Contains(u.logs.String(), canary) {
		t.Error("a secret is in an answer, an event, a metric or the log")
	}
	coded := base64.StdEncoding.EncodeToString([]byte(canary))
	must(t, filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(canary)) || bytes.Contains(b, []byte(coded[:len(coded)-4])) {
			t.Errorf("%s holds it", path)
		}
		return err
	}))
}
