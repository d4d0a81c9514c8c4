package app

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
)

// issuedKey is the answer to api_key.issue.
type issuedKey struct {
	ID, Key string
	Expires time.Time
}

// as is the same caller with another key.
func (a api) as(key string) api {
	a.key = key
	return a
}

// What a key may be given: what its issuer holds, for as long and from where its
// issuer may be used; an administrator gives anything.
func TestKeyGrants(t *testing.T) {
	u := bring(t, t.TempDir())
	must(t, u.command("tenant.register", "", map[string]any{"id": "acme"}, nil))
	acme := u.api
	acme.tenant = "acme"
	issue := func(by api, in map[string]any) (k issuedKey, code string) {
		t.Helper()
		c, err := codeOf(by.command("api_key.issue", "", in, &k))
		must(t, err)
		return k, c
	}
	manager, _ := issue(acme, map[string]any{
		"permissions": []string{"keys.manage", "components.get", "credentials.get", "credentials.export", "tenants.oauth_clients.get", "throttle_policies.get", "flows.get", "workspaces.auth_secret.get"},
		"expires":     "24h", "addresses": []string{"127.0.0.0/8", "::1"},
	})
	soon := map[string]any{"expires": "1h", "addresses": []string{"127.0.0.1"}}
	with := func(more map[string]any) map[string]any {
		in := map[string]any{}
		for _, m := range []map[string]any{soon, more} {
			maps.Copy(in, m)
		}
		return in
	}
	for name, c := range map[string]struct {
		by   api
		in   map[string]any
		want string
	}{
		"nothing":                            {acme, map[string]any{}, "role_invalid"},
		"an unknown role":                    {acme, map[string]any{"role": "ROOT"}, "role_invalid"},
		"an unknown permission":              {acme, map[string]any{"permissions": []string{"credentials.*"}}, "permission_invalid"},
		"a permission in capitals":           {acme, map[string]any{"permissions": []string{"Credentials.Get"}}, "permission_invalid"},
		"reveal, by an administrator":        {acme, map[string]any{"role": "OPERATOR", "permissions": []string{"credentials.reveal"}}, ""},
		"resolve, by an administrator":       {acme, map[string]any{"role": "FLOW_ENGINE"}, ""},
		"an expiry that has passed":          {acme, map[string]any{"role": "OPERATOR", "expires": "2020-01-01T00:00:00Z"}, "api_key_expires_invalid"},
		"an expiry of no time":               {acme, map[string]any{"role": "OPERATOR", "expires": "0s"}, "api_key_expires_invalid"},
		"an expiry before now":               {acme, map[string]any{"role": "OPERATOR", "expires": "-1h"}, "api_key_expires_invalid"},
		"an expiry in words":                 {acme, map[string]any{"role": "OPERATOR", "expires": "tomorrow"}, "api_key_expires_invalid"},
		"an address that is none":            {acme, map[string]any{"role": "OPERATOR", "addresses": []string{"example.org"}}, "api_key_addresses_invalid"},
		"an address of an interface":         {acme, map[string]any{"role": "OPERATOR", "addresses": []string{"fe80::1%eth0"}}, "api_key_addresses_invalid"},
		"an IPv4 address as IPv6":            {acme, map[string]any{"role": "OPERATOR", "addresses": []string{"::ffff:192.0.2.0/120"}}, "api_key_addresses_invalid"},
		"too many addresses":                 {acme, map[string]any{"role": "OPERATOR", "addresses": slices.Repeat([]string{"192.0.2.1"}, 33)}, "api_key_addresses_invalid"},
		"addresses":                          {acme, map[string]any{"role": "OPERATOR", "addresses": []string{"192.0.2.7/24", "2001:db8::/32"}}, ""},
		"less, by a manager":                 {acme.as(manager.Key), with(map[string]any{"permissions": []string{"credentials.get"}}), ""},
		"a role that it holds, by a manager": {acme.as(manager.Key), with(map[string]any{"role": "OPERATOR"}), ""},
		"more, by a manager":                 {acme.as(manager.Key), with(map[string]any{"permissions": []string{"credentials.edit"}}), "api_key_exceeds_issuer"},
		"reveal, by a manager":               {acme.as(manager.Key), with(map[string]any{"permissions": []string{"credentials.reveal"}}), "api_key_exceeds_issuer"},
		"administrator, by a manager":        {acme.as(manager.Key), with(map[string]any{"role": "ADMINISTRATOR"}), "api_key_exceeds_issuer"},
		"another tenant, by a manager":       {acme.as(manager.Key), with(map[string]any{"role": "OPERATOR", "tenants": []string{"default"}}), "api_key_exceeds_issuer"},
		"for ever, by a manager":             {acme.as(manager.Key), with(map[string]any{"role": "OPERATOR", "expires": ""}), "api_key_exceeds_issuer"},
		"longer, by a manager":               {acme.as(manager.Key), with(map[string]any{"role": "OPERATOR", "expires": "48h"}), "api_key_exceeds_issuer"},
		"from everywhere, by a manager":      {acme.as(manager.Key), with(map[string]any{"role": "OPERATOR", "addresses": nil}), "api_key_exceeds_issuer"},
		"from more, by a manager":            {acme.as(manager.Key), with(map[string]any{"role": "OPERATOR", "addresses": []string{"127.0.0.1", "192.0.2.0/24"}}), "api_key_exceeds_issuer"},
		"from all around, by a manager":      {acme.as(manager.Key), with(map[string]any{"role": "OPERATOR", "addresses": []string{"0.0.0.0/0"}}), "api_key_exceeds_issuer"},
	} {
		if _, got := issue(c.by, c.in); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	var list struct {
		Keys []client.APIKey `json:"keys"`
	}
	must(t, acme.query("api_key.list", "", &list))
	i := slices.IndexFunc(list.Keys, func(k client.APIKey) bool { return k.ID == manager.ID })
	if k := list.Keys[i]; k.Role != "" || len(k.Permissions) != 8 || !slices.Equal(k.Addresses, []string{"127.0.0.0/8", "::1/128"}) || !k.Expires.Equal(manager.Expires) || k.Expired || k.Revoked {
		t.Errorf("the list shows %+v", k)
	}
}

// A key is refused from other addresses, after its time, when it is mistyped, and
// when it was revoked: over HTTP as over NATS, where its connections end too.
func TestKeyBounds(t *testing.T) {
	u := bring(t, t.TempDir())
	issue := func(more map[string]any) (k issuedKey) {
		t.Helper()
		in := map[string]any{"role": "OPERATOR"}
		maps.Copy(in, more)
		must(t, u.command("api_key.issue", "", in, &k))
		return k
	}
	list := func(key string) string {
		t.Helper()
		c, err := codeOf(u.as(key).query("credential.list", "", nil))
		must(t, err)
		return c
	}
	refusedOnNATS := func(key string) bool {
		nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", key))
		if err == nil {
			nc.Close()
		}
		return errors.Is(err, nats.ErrAuthorization)
	}
	here, elsewhere := issue(map[string]any{"addresses": []string{"127.0.0.0/8", "::1/128"}}), issue(map[string]any{"addresses": []string{"192.0.2.0/24"}})
	if got := list(here.Key); got != "" || refusedOnNATS(here.Key) {
		t.Errorf("a key for this address: %q", got)
	}
	if got := list(elsewhere.Key); got != "api_key_unknown" || !refusedOnNATS(elsewhere.Key) {
		t.Errorf("a key for another address: %q", got)
	}
	last := here.Key[len(here.Key)-1:]
	if last == "A" {
		last = "B"
	} else {
		last = "A"
	}
	if got := list(here.Key[:len(here.Key)-1] + last); got != "api_key_malformed" {
		t.Errorf("a mistyped key: %q", got)
	}
	if got := list("cs_" + strings.Repeat("x", 40)); got != "api_key_unknown" {
		t.Errorf("an unknown key: %q", got)
	}

	// Time runs out while a connection is open.
	brief := issue(map[string]any{"expires": "2s"})
	nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", brief.Key), nats.NoReconnect())
	must(t, err)
	defer nc.Close()
	must(t, natsDo(t, nc, "credstream.query.default.credential.list", "", []byte("{}"), nil))
	await(t, "the key to expire", func() (bool, error) {
		c, err := codeOf(u.as(brief.Key).query("credential.list", "", nil))
		return c == "api_key_unknown", err
	})
	if time.Now().Before(brief.Expires) {
		t.Error("it expired too early")
	}
	await(t, "the connection to end", func() (bool, error) { return nc.IsClosed(), nil })
	if !refusedOnNATS(brief.Key) {
		t.Error("an expired key is let in on NATS")
	}
	if _, err := u.svc.Access.Principal(t.Context(), brief.ID); !errors.Is(err, service.ErrKeyUnknown) {
		t.Errorf("requests of an expired key: %v", err)
	}

	// Another process revokes a key: this one only sees it in the log.
	gone := issue(nil)
	nc, err = nats.Connect(u.node.ClientURL(), nats.UserInfo("x", gone.Key), nats.NoReconnect())
	must(t, err)
	defer nc.Close()
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "another process"}, Time: time.Now(), Via: "system"}
	_, _, err = aggregates.APIKey.Execute(t.Context(), u.states, events.System, commands.APIKey(commands.RevokeAPIKey{ID: gone.ID}), meta, nil)
	must(t, err)
	await(t, "the connection of the revoked key to end", func() (bool, error) { return nc.IsClosed(), nil })
	if got := list(gone.Key); got != "api_key_unknown" || !refusedOnNATS(gone.Key) {
		t.Errorf("a key that another process revoked: %q", got)
	}
}

// The list shows when a key was used last, by HTTP or NATS, also after a restart.
func TestKeyLastUse(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	var keys [3]issuedKey
	for i := range keys {
		must(t, u.command("api_key.issue", "", map[string]any{"role": "OPERATOR"}, &keys[i]))
	}
	begin := time.Now().Truncate(time.Minute)
	must(t, u.as(keys[0].Key).query("credential.list", "", nil))
	u.connect(t, keys[1].Key).Close()
	look := func() {
		t.Helper()
		var list struct {
			Keys []client.APIKey `json:"keys"`
		}
		must(t, u.query("api_key.list", "", &list))
		for i, k := range keys {
			n := slices.IndexFunc(list.Keys, func(shown client.APIKey) bool { return shown.ID == k.ID })
			if used := list.Keys[n].LastUsedAt; used.IsZero() != (i == 2) || i < 2 && (used.Before(begin) || used.After(time.Now()) || used.Second() != 0) {
				t.Errorf("key %d was used last at %v", i, used)
			}
		}
	}
	look()
	u.stop()
	u = bring(t, data)
	look()
}

// A key that is revoked on one process is refused on the other, whose open
// connections end as well, and an external server lets an expired key go.
func TestKeysOnTwoProcesses(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	var k, elsewhere issuedKey
	must(t, caller(a).command("api_key.issue", "", map[string]any{"role": "OPERATOR"}, &k))
	must(t, caller(a).command("api_key.issue", "", map[string]any{"role": "OPERATOR", "addresses": []string{"192.0.2.0/24"}}, &elsewhere))
	await(t, "the other process to know the key", func() (bool, error) {
		c, err := codeOf(caller(b).as(k.Key).query("credential.list", "", nil))
		return c == "", err
	})
	open := func(key string) (*nats.Conn, error) {
		return nats.Connect(servers.URL(""), nats.UserInfo("x", key), nats.CustomInboxPrefix(natsserver.InboxPrefix(key)), nats.NoReconnect())
	}
	if _, err := open(elsewhere.Key); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("a key for another address: %v", err)
	}
	var conns []*nats.Conn
	for range 8 { // judged by either process
		nc, err := open(k.Key)
		must(t, err)
		t.Cleanup(nc.Close)
		conns = append(conns, nc)
	}
	must(t, caller(a).command("api_key.revoke", "", map[string]any{"id": k.ID}, nil))
	revoked := time.Now()
	if got := code(t, caller(a).as(k.Key).query("credential.list", "", nil)); got != "api_key_unknown" {
		t.Errorf("on the process that revoked it: %q", got)
	}
	await(t, "the other process to refuse the key", func() (bool, error) {
		c, err := codeOf(caller(b).as(k.Key).query("credential.list", "", nil))
		return c == "api_key_unknown", err
	})
	there := time.Since(revoked)
	await(t, "every connection to end", func() (bool, error) {
		return !slices.ContainsFunc(conns, func(nc *nats.Conn) bool { return !nc.IsClosed() }), nil
	})
	t.Logf("refused by the other process after %v, connections closed after %v", there, time.Since(revoked))
	await(t, "the key to be refused by whoever is asked", func() (bool, error) {
		nc, err := open(k.Key)
		if err == nil {
			nc.Close()
		}
		return errors.Is(err, nats.ErrAuthorization), nil
	})

	var brief issuedKey
	must(t, caller(a).command("api_key.issue", "", map[string]any{"role": "OPERATOR", "expires": "3s"}, &brief))
	var nc *nats.Conn
	await(t, "the new key to be let in", func() (_ bool, err error) {
		nc, err = open(brief.Key)
		return err == nil, nil
	})
	defer nc.Close()
	await(t, "the connection of an expired key to end", func() (bool, error) { return nc.IsClosed(), nil })
	if time.Now().Before(brief.Expires.Truncate(time.Second)) {
		t.Error("it ended too early")
	}
}

// What is remembered of the use of keys can be neither read nor written by one.
func TestLastUseIsPrivate(t *testing.T) {
	u := bring(t, t.TempDir())
	js, err := jetstream.New(u.connect(t, adminKey))
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := js.KeyValue(ctx, kv.LastUseBucket); err == nil {
		t.Error("the administrator's key opens the bucket of the last use")
	}
}
