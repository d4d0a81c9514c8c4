package app

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credstream/credstream/oauth/oauthtest"
)

const storedSecret = "canary-stored-client-secret"

// withBlock is a component with this oauth2 block.
func withBlock(block map[string]any) map[string]any {
	return map[string]any{
		"title": "Sheets", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView", "required": true}}, "oauth2": block,
		},
	}
}

// byItself is a component at a provider that is asked for tokens by the client alone,
// so that a credential of it sends the client's secret there at once.
func byItself(uri string) map[string]any {
	return withBlock(map[string]any{"token_uri": uri + "/token", "grant_type": "client_credentials"})
}

// granting is a server that grants tokens to everybody, and keeps what it was sent.
func granting(t *testing.T) *revoker {
	return newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		oauthtest.JSON(`{"access_token":"a","expires_in":3600}`)(w, r)
	})
}

// told reports whether the server was sent the secret.
func (v *revoker) told(secret string) bool {
	for _, form := range v.forms() {
		if form.Get("client_secret") == secret {
			return true
		}
	}
	return false
}

// makes creates a credential that asks for its token, and returns the refusal's code.
func (a api) makes(t testing.TB, component string) string {
	t.Helper()
	return code(t, a.command("credential.create", "", map[string]any{"component": component, "keys": map[string]any{}}, nil))
}

// refusedAt checks the code of a refusal, where it points to and that it names a host.
func refusedAt(t testing.TB, err error, code, pointer, uri string) {
	t.Helper()
	var refused *apiError
	if !errors.As(err, &refused) || refused.Code != code || refused.Pointer != pointer || !strings.Contains(refused.Error(), strings.TrimPrefix(uri, "http://")) {
		t.Errorf("refused with %v, want %s at %s", err, code, pointer)
	}
}

// Whoever may edit OAuth clients, and must not reveal secrets, adds a component to an
// auth client: its secret does not go to other hosts, unless it is given again.
func TestAddedComponentNeedsTheSecret(t *testing.T) {
	honest, evil := granting(t), granting(t)
	u := bring(t, t.TempDir())
	for id, at := range map[string]*revoker{"sheets": honest, "docs": honest} {
		must(t, u.command("component.register", "", map[string]any{"id": id, "descriptor": byItself(at.URL)}, nil))
	}
	var client done
	must(t, u.command("auth_client.create", "", map[string]any{
		"name": "G", "type": "oauth2", "components": []string{"sheets"},
		"credentials": map[string]any{"client_id": "the-client", "client_secret": storedSecret},
	}, &client))

	low := u.as(u.issue(t, map[string]any{"permissions": []string{"components.create", "components.edit", "tenants.oauth_clients.edit", "credentials.create"}}))
	if err := low.command("auth_client.reveal", "", map[string]any{"id": client.ID}, nil); code(t, err) != "permission_denied" {
		t.Fatalf("reveal: %v", err)
	}
	must(t, low.command("component.register", "", map[string]any{"id": "evil", "descriptor": byItself(evil.URL)}, nil))
	for name, change := range map[string]map[string]any{
		"alone":                {},
		"with another id":      {"credentials": map[string]any{"client_id": "another"}},
		"with another setting": {"credentials": map[string]any{"token_expires_in": 7200}},
	} {
		change["id"], change["components"] = client.ID, []string{"sheets", "evil"}
		err := low.command("auth_client.change", "", change, nil)
		refusedAt(t, err, "oauth_client_secret_needed", "/components/1", evil.URL)
		if t.Failed() {
			t.Fatalf("added %s", name)
		}
	}
	// What sends it to the same hosts may be added, and does not get it elsewhere later.
	must(t, low.command("auth_client.change", "", map[string]any{"id": client.ID, "components": []string{"sheets", "docs"}}, nil))
	if c := low.makes(t, "docs"); c != "" || !honest.told(storedSecret) {
		t.Errorf("a component of the same provider: %q", c)
	}
	must(t, low.command("component.update", "", map[string]any{"id": "docs", "descriptor": byItself(evil.URL)}, nil))
	must(t, low.command("auth_client.change", "", map[string]any{"id": client.ID, "components": []string{"docs"}}, nil))
	if c := low.makes(t, "docs"); c != "oauth_client_hosts_changed" {
		t.Errorf("after its provider was changed: %q", c)
	}
	if evil.count() != 0 {
		t.Fatalf("%d requests reached the other host", evil.count())
	}
	must(t, low.command("auth_client.change", "", map[string]any{
		"id": client.ID, "components": []string{"docs", "evil"}, "credentials": map[string]any{"client_secret": "canary-of-low"},
	}, nil))
	for _, id := range []string{"docs", "evil"} {
		if c := low.makes(t, id); c != "" {
			t.Errorf("%s, once a secret was given: %q", id, c)
		}
	}
	if evil.told(storedSecret) || !evil.told("canary-of-low") {
		t.Error("it is not the secret that was given")
	}
}

// The owner of a shared component has secrets sent elsewhere. What other tenants
// change of an auth client does not let theirs go there, but for the secret itself.
func TestChangedAuthClientStaysWhereItWasMeant(t *testing.T) {
	honest, evil := granting(t), granting(t)
	u := bring(t, t.TempDir())
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	must(t, u.command("component.register", "", map[string]any{"id": "sheets", "descriptor": byItself(honest.URL)}, nil))
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, nil))
	other := u.in("other")
	var client done
	must(t, other.command("auth_client.create", "", map[string]any{
		"name": "G", "type": "oauth2", "components": []string{"sheets"},
		"credentials": map[string]any{"client_id": oauthtest.ClientID, "client_secret": storedSecret},
	}, &client))
	var before done
	must(t, other.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{}}, &before))
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": byItself(evil.URL)}, nil))
	for _, change := range []map[string]any{
		{},
		{"name": "H"},
		{"components": []string{"sheets"}},
		{"credentials": map[string]any{"token_expires_in": 7200}},
		{"credentials": map[string]any{"client_id": "another"}},
	} {
		change["id"] = client.ID
		must(t, other.command("auth_client.change", "", change, nil))
		if c := other.makes(t, "sheets"); c != "oauth_client_hosts_changed" {
			t.Errorf("after the change %v: %q", change, c)
		}
	}
	elsewhere := map[string]any{"id": client.ID, "credentials": map[string]any{"token_uri": evil.URL + "/token"}}
	if code, err := codeOf(other.command("auth_client.change", "", elsewhere, nil)); code != "oauth_client_endpoints_secret" {
		t.Errorf("another token endpoint without the secret: %v", err)
	}
	if evil.count() != 0 {
		t.Fatalf("%d requests reached the other host", evil.count())
	}
	must(t, other.command("auth_client.change", "", map[string]any{"id": client.ID, "credentials": map[string]any{"client_secret": storedSecret}}, nil))
	if c := other.makes(t, "sheets"); c != "" || !evil.told(storedSecret) {
		t.Errorf("once the secret was given again: %q", c)
	}
	asked := honest.count()
	if err := other.command("credential.refresh", "", map[string]any{"id": before.ID}, nil); err != nil || honest.count() != asked+1 {
		t.Errorf("what was made before is renewed where it was: %v", err)
	}
}

// The owner of an OAuth client's component may edit it and the client, and does not
// know the secret: they do not get to know it.
func TestChangedOAuthClientStaysWhereItWasMeant(t *testing.T) {
	honest, evil := granting(t), granting(t)
	u := bring(t, t.TempDir())
	must(t, u.command("component.register", "", map[string]any{"id": "sheets", "descriptor": byItself(honest.URL)}, nil))
	must(t, u.command("oauth_client.define", "", map[string]any{"component": "sheets", "client_id": "the-client", "client_secret": storedSecret}, nil))
	low := u.as(u.issue(t, map[string]any{"permissions": []string{"components.edit", "tenants.oauth_clients.get", "tenants.oauth_clients.edit", "credentials.create"}}))
	var k clientShown
	must(t, low.query("oauth_client.get", "component=sheets", &k))
	must(t, low.command("component.update", "", map[string]any{"id": "sheets", "descriptor": byItself(evil.URL)}, nil))
	for _, change := range []map[string]any{{}, {"client_id": "another"}, {"component": "sheets"}} {
		change["id"] = k.ID
		must(t, low.command("oauth_client.change", "", change, nil))
		if c := low.makes(t, "sheets"); c != "oauth_client_hosts_changed" {
			t.Errorf("after the change %v: %q", change, c)
		}
	}
	must(t, low.command("oauth_client.change", "", map[string]any{"id": k.ID, "client_secret": "canary-of-low"}, nil))
	if c := low.makes(t, "sheets"); c != "" || !evil.told("canary-of-low") || evil.told(storedSecret) {
		t.Errorf("once a secret was given: %q", c)
	}
}

// The owner of a shared component moves the page where people allow access, and
// nothing else: no link leads people of other tenants there, where the owner could
// have them connect an account of the owner's.
func TestConnectStaysWhereItWasMeant(t *testing.T) {
	provider := oauthtest.NewServer(t)
	evil := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(evil.Close)
	u := connectable(t, provider)
	must(t, u.command("tenant.register", "", map[string]any{"id": "victim"}, nil))
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, nil))
	victim := u.in("victim")
	var client done
	defined := map[string]any{"component": "sheets", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}
	must(t, victim.command("oauth_client.define", "", defined, &client))
	before := victim.start(t, nil)

	moved := provider.Block()
	moved["auth_uri"] = evil.URL + "/authorize"
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": withBlock(moved)}, nil))
	if seen := newBrowser(t).get(before.URL); seen.next != "" {
		t.Errorf("a link of before leads to %s", seen.next)
	}
	connect := func() (link connectLink, err error) {
		err = victim.command("oauth.connect", "", map[string]any{"component": "sheets"}, &link)
		return link, err
	}
	_, err := connect()
	refusedAt(t, err, "oauth_client_hosts_changed", "/component", evil.URL)
	must(t, victim.command("oauth_client.change", "", map[string]any{"id": client.ID, "client_id": oauthtest.ClientID}, nil))
	if _, err := connect(); code(t, err) != "oauth_client_hosts_changed" {
		t.Errorf("a new link after a change without the secret: %v", err)
	}
	// A secret is not sent there, so what uses it goes on.
	must(t, victim.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": provider.Grant()}}, nil))

	must(t, victim.command("oauth_client.change", "", map[string]any{"id": client.ID, "client_secret": oauthtest.ClientSecret}, nil))
	link, err := connect()
	must(t, err)
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": withBlock(provider.Block())}, nil))
	must(t, victim.command("oauth_client.delete", "", map[string]any{"id": client.ID}, nil))
	must(t, victim.command("oauth_client.define", "", defined, &client))
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": withBlock(moved)}, nil))
	opened := newBrowser(t).get(link.URL) // its page is not one that this client was defined for
	if opened.next != "" || !strings.Contains(opened.body, "oauth_client_hosts_changed") {
		t.Errorf("a link of before leads to %q: %s", opened.next, opened.body)
	}
}
