package app

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service/backup"
)

// filesOf lists the files below a folder that hold one of the needles.
func filesOf(t testing.TB, dir string, needles [][]byte) (files []string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for i, n := range needles {
			if bytes.Contains(b, n) {
				files = append(files, fmt.Sprintf("%s holds needle %d", path, i))
			}
		}
		return err
	}))
	return files
}

// An erased tenant: no file of the data folder has a sealed byte of it, its calls are refused, the
// feed and the in-use index know it, the other tenants notice nothing, and a restart in the middle
// of the work changes nothing.
func TestEraseTenant(t *testing.T) {
	data := t.TempDir()
	soon := func(c *Config) { c.KeyRetireAfter = 2 * time.Second }
	u := bring(t, data, soon)
	registerPlain(t, u.base)
	var own done
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]string{"apiKey": "k"}}, &own))
	neighbor := own.ID
	must(t, u.command("tenant.register", "", map[string]any{"id": "acme"}, nil))
	admin := u.api
	admin.tenant = "acme"
	acme := admin
	var issued struct{ Key string }
	must(t, admin.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR"}, &issued))
	acme.key = issued.Key
	must(t, acme.command("component.register", "", map[string]any{"id": "theirs", "descriptor": json.RawMessage(plain)}, nil))
	var ids []string
	for range 3 {
		var d done
		must(t, acme.command("credential.create", "", map[string]any{"component": "theirs", "keys": map[string]string{"apiKey": "canary"}}, &d))
		ids = append(ids, d.ID)
	}
	for name, in := range map[string]map[string]any{
		"credential.replace-keys": {"id": ids[0], "keys": map[string]string{"apiKey": "canary2"}},
		"connector_secret.put":    {"id": "s", "value": "canary3"},
		"webhook.define":          {"id": "w", "url": "https://hooks.example.org"},
		"role.define":             {"name": "BILLING", "permissions": []string{"flows.get"}},
	} {
		must(t, acme.command(name, "", in, nil))
	}
	steps := []map[string]any{{"id": "s", "component": "theirs", "credential": ids[0]}}
	must(t, acme.command("flow.report", "", map[string]any{"id": "f", "change": "started", "revision": 1, "steps": steps}, nil))
	must(t, acme.command("flow.bind", "", map[string]any{"flow": "g", "steps": []map[string]any{{"id": "s", "component": "theirs", "credential": ids[1]}}}, nil))
	var needles [][]byte
	for _, m := range u.stored(t, backup.KindVault, 1<<40) {
		if strings.HasPrefix(m.Subject, "credstream.vault.acme.") {
			needles = append(needles, m.Data[len(m.Data)-40:])
		}
	}
	if len(needles) != 6 || len(filesOf(t, data, needles)) < 6 { // else the search below would prove nothing
		t.Fatalf("%d secrets of the tenant, in %v", len(needles), filesOf(t, data, needles))
	}

	type progress struct {
		State        string
		RunningFlows int `json:"running_flows"`
		Left         []struct {
			Kind  string
			Count int
		}
		Secrets int
		Keys    bool
	}
	var before progress
	must(t, u.query("tenant.erasure", "id=acme", &before))
	if got, want := fmt.Sprint(before), "{active 1 [{flows 2} {credentials 3} {connector_secrets 1} {webhooks 1} {components 1} {api_keys 1} {roles 1}] 6 true}"; got != want {
		t.Errorf("the tenant has %s, not %s", got, want)
	}
	for _, c := range []struct {
		as   api
		id   string
		want string
	}{
		{acme, "acme", "permission_denied"}, {u.api, "nobody", "tenant_not_found"}, {u.api, "default", "tenant_erase_default"}, {u.api, "acme", "tenant_flows_run"},
	} {
		if got := code(t, c.as.command("tenant.erase", "", map[string]any{"id": c.id}, nil)); got != c.want {
			t.Errorf("erasing %s answers %q, not %q", c.id, got, c.want)
		}
	}
	must(t, acme.query("credential.get", "id="+ids[0], nil))

	must(t, u.command("tenant.erase", "", map[string]any{"id": "acme", "stop_flows": true}, nil))
	if got := code(t, admin.query("credential.list", "", nil)); got != "tenant_erased" {
		t.Errorf("a call of the erased tenant answers %q", got)
	}
	if got := code(t, acme.command("credential.create", "", map[string]any{"component": "theirs", "keys": map[string]string{"apiKey": "x"}}, nil)); got != "tenant_erased" && got != "api_key_unknown" {
		t.Errorf("a command with a key of the erased tenant answers %q", got)
	}
	u.stop() // in the middle of it
	u = bring(t, data, soon)
	var after progress
	await(t, "the erasure", func() (bool, error) {
		err := u.query("tenant.erasure", "id=acme", &after)
		return after.State == "erased", err
	})
	if after.Secrets != 0 || after.Keys || len(after.Left) != 0 {
		t.Errorf("the erased tenant still has %+v", after)
	}
	if got := code(t, u.command("tenant.register", "", map[string]any{"id": "acme"}, nil)); got != "tenant_erased" {
		t.Errorf("registering the erased tenant answers %q", got)
	}
	acme.base, admin.base = u.base, u.base
	if got := code(t, acme.query("credential.list", "", nil)); got != "api_key_unknown" {
		t.Errorf("a key of the erased tenant answers %q", got)
	}
	in, _, err := u.views.InUseList(t.Context(), "acme", events.Scope{}, "", 100)
	must(t, err)
	for _, e := range in {
		if len(e.Value.Flows) > 0 {
			t.Errorf("the in-use index still has %+v", e)
		}
	}
	list, _, err := u.views.Credentials(t.Context(), projections.CredentialFilter{Tenant: "acme"})
	must(t, err)
	if len(list) != 0 {
		t.Errorf("the views still have %d credentials", len(list))
	}
	conn, err := u.node.Conn("test")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	feed, err := js.Stream(t.Context(), streams.FeedStream)
	must(t, err)
	for _, id := range ids {
		m, err := feed.GetLastMsgForSubject(t.Context(), "credstream.events.acme.credential."+id)
		must(t, err)
		if got := m.Header.Get("ce-type"); got != "credstream.credential.deleted.v1" {
			t.Errorf("the feed's last event of a credential is %s", got)
		}
	}
	must(t, u.command("credential.verify", "", map[string]any{"id": neighbor}, nil))
	must(t, u.checkIntegrity(t.Context()))
	u.stop()
	if files := filesOf(t, data, needles); len(files) > 0 {
		t.Errorf("sealed bytes of the erased tenant are left: %v", files)
	}
	checked, err := checkFolder(t.Context(), data)
	must(t, err)
	if len(checked.Damages)+len(checked.Affected) > 0 {
		t.Errorf("log check finds damage after the erasure: %+v %+v", checked.Damages, checked.Affected)
	}
	u = bring(t, data, soon)
	must(t, u.command("credential.verify", "", map[string]any{"id": neighbor}, nil))
}
