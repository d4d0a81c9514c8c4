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
)

// The root is Elasticsearch's for its clients alone.
func TestElasticRoot(t *testing.T) {
	_, v := bringVendor(t)
	const elastic, own, page = `"number":"9.`, `"service":"credstream"`, `<h1>Sign in</h1>`
	for _, c := range []struct {
		want    string
		headers []string
	}{
		{elastic, nil}, // HTTP Basic
		{own, []string{"Authorization: Bearer " + adminKey}},
		{page, []string{"Accept: text/html,*/*"}}, // a browser
		{elastic, []string{"Authorization: Bearer " + adminKey, "X-Elastic-Client-Meta: es=9.5.2"}},
		{elastic, []string{"Authorization: Bearer " + adminKey, "Accept: application/vnd.elasticsearch+json;compatible-with=9"}},
	} {
		resp, body := v.send("GET", "/", "", c.headers...)
		product := resp.Header.Get("X-Elastic-Product") != ""
		if resp.StatusCode != 200 || !strings.Contains(body, c.want) || product != (c.want == elastic) {
			t.Errorf("%v: %d %s", c.headers, resp.StatusCode, body)
		}
	}
	if resp, body := v.send("GET", "/_connectors", ""); resp.StatusCode != 404 || !strings.Contains(body, "path_unknown") {
		t.Errorf("a path beside the edge answers %d %s", resp.StatusCode, body)
	}
}

// The values of connector secrets are in no file and no log, and are erased with what held
// them: versions that are let go, and secrets that are deleted.
func TestConnectorSecretsLeaveNothing(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data, func(c *Config) { c.LogLevel = "debug" })
	v := &vendor{t: t, base: u.base, key: u.issue(t, map[string]any{"permissions": []string{"read_connector_secrets", "write_connector_secrets"}})}
	put := func(n string) {
		if resp, body := v.send("PUT", "/_connector/_secret/s1", `{"value":"canary-`+n+`"}`); resp.StatusCode > 201 {
			t.Fatal(resp.StatusCode, body)
		}
	}
	for n := range 12 {
		put(string(rune('a' + n)))
	}
	if n := vaultSize(t, u); n != 10 {
		t.Errorf("%d values are kept, want 10", n)
	}
	v.send("PUT", "/_connector/_secret/s1", `{"value":["canary-x"]}`)
	v.send("PUT", "/_connector/_secret/s1", `{"canary-y":"canary-z"`)
	if _, body := v.send("GET", "/_connector/_secret/s1", ""); !strings.Contains(body, "canary-l") {
		t.Error(body)
	}
	if resp, body := v.send("DELETE", "/_connector/_secret/s1", ""); resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode, body)
	}
	if n := vaultSize(t, u); n != 0 {
		t.Errorf("%d values of a deleted secret are left", n)
	}
	if strings.Contains(u.logs.String(), "canary") {
		t.Error("a value is in the logs")
	}
	u.stop()
	must(t, filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("canary")) {
			t.Errorf("%s holds a value", path)
		}
		return err
	}))
}

// The verbs of connectors: a managed connector gets a secret, and keeps it from deletion.
func TestConnectorsOnTheCommandLine(t *testing.T) {
	u := bring(t, t.TempDir())
	c := &cli{env: map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey}}
	verb := func(code int, stdin string, args ...string) string {
		t.Helper()
		c.stdin = strings.NewReader(stdin)
		if got := c.run(t.Context(), append([]string{"connector"}, args...)...); got != code {
			t.Fatalf("%v: exit code %d, want %d: %s%s", args, got, code, c.out.String(), c.errOut.String())
		}
		if strings.Contains(c.out.String()+c.errOut.String(), "canary") {
			t.Errorf("%v: a secret was printed", args)
		}
		return c.out.String()
	}
	caughtUp := func(answer string) {
		t.Helper()
		var d done
		must(t, json.Unmarshal([]byte(answer), &d))
		must(t, u.query("connector.list", fmt.Sprintf("min_seq=%d", d.Seq), nil))
	}
	verb(0, "canary-1\n", "secret", "put", "--id", "s1", "--secret-file", "-")
	verb(0, "canary-2\n", "secret", "put", "--id", "s1", "--secret-file", "-")
	verb(0, "", "put", "--id", "c1", "--name", "Orders", "--index-name", "orders", "--service-type", "sql", "--native")
	caughtUp(verb(0, "", "set-api-key", "c1", "--api-key-id", "k1", "--api-key-secret-id", "s1", "--json"))
	if out := verb(0, "", "list"); !strings.Contains(out, "c1  Orders  sql           orders  k1       s1 ") {
		t.Errorf("the connectors are\n%s", out)
	}
	if out := verb(0, "", "show", "c1"); !strings.Contains(out, "native             true") {
		t.Errorf("the connector is\n%s", out)
	}
	if out := verb(0, "", "secret", "show", "s1"); !strings.Contains(out, "version         2") || !strings.Contains(out, "connectors      c1") {
		t.Errorf("the secret is\n%s", out)
	}
	verb(6, "", "secret", "delete", "s1")
	verb(4, "", "secret", "reveal", "s1") // no role holds the permission
	caughtUp(verb(0, "", "secret", "revert", "s1", "--to-version", "1", "--json"))
	if out := verb(0, "", "secret", "list"); !strings.Contains(out, "s1  3 ") {
		t.Errorf("the secrets are\n%s", out)
	}
	verb(0, "", "delete", "c1")
	verb(0, "", "secret", "delete", "s1")
	verb(5, "", "show", "c1")
	verb(2, "", "secret", "put", "--secret-file", "no-such-file")
	verb(2, "", "set-api-key", "c1", "--api-key-id", "\n")
}
