package app

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/cmd/credstream/importer"
)

// transferrer runs command lines against one service, and looks for the canary in all that it
// prints.
type transferrer struct {
	t testing.TB
	cli
}

func newTransferrer(t testing.TB, u *up, key string) *transferrer {
	return &transferrer{t: t, cli: cli{env: map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": key, "CREDSTREAM_NATS_URL": u.node.ClientURL()}}}
}

func (x *transferrer) wants(code int, args ...string) string {
	x.t.Helper()
	if got := x.run(x.t.Context(), args...); got != code {
		x.t.Fatalf("%v: exit code %d, want %d: %s%s", args, got, code, x.out.String(), x.errOut.String())
	}
	x.noSecret(args)
	return x.out.String()
}

func (x *transferrer) noSecret(args []string) {
	x.t.Helper()
	if strings.Contains(x.out.String()+x.errOut.String(), "canary") {
		x.t.Errorf("%v: a secret was printed: %s%s", args, x.out.String(), x.errOut.String())
	}
}

// identity makes a key pair as age-keygen does.
func identity(t *testing.T) (file, recipient string, id age.Identity) {
	t.Helper()
	pair, err := age.GenerateX25519Identity()
	must(t, err)
	return writeFile(t, "identity.txt", "# a comment\n"+pair.String()+"\n", 0o600), pair.Recipient().String(), pair
}

// dump is what an export says, one item a line, with its secrets in clear: without the times
// and numbers that each service has of its own.
func dump(t testing.TB, file, signedBy string, id age.Identity) string {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	src, err := importer.Open(f, signedBy, []age.Identity{id})
	must(t, err)
	var lines []string
	for item, err := range src.Items(t.Context()) {
		must(t, err)
		raw, err := json.Marshal(item.Facts)
		must(t, err)
		var facts map[string]any
		must(t, json.Unmarshal(raw, &facts))
		for _, own := range []string{"version", "created_at", "updated_at", "verified_at"} {
			delete(facts, own)
		}
		lines = append(lines, fmt.Sprint(item.Kind, " ", item.ID, " ", string(encode(t, facts)), " ", string(item.Keys.Reveal()), " ", item.Missing))
	}
	slices.Sort(lines) // auth clients stand in the order of their creation
	return strings.Join(lines, "\n")
}

// fill gives a service one of each.
func fill(t testing.TB, u *up, pets *petstore) {
	t.Helper()
	do := func(command string, body string) (d done) {
		t.Helper()
		must(t, u.command(command, "", json.RawMessage(body), &d))
		return d
	}
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	registerAs(t, u.api, "sheets", sheets)
	registerAs(t, u.api, "slides", sheets)
	do("component.share", `{"id":"slides"}`)
	do("throttle_policy.define", `{"id":"crm","tokens":5,"per":"second","description":"Five"}`)
	do("throttle_policy.define", `{"id":"erp=","tokens":1000000,"per":"day"}`)
	do("role.define", `{"name":"BILLING","title":"Billing","permissions":["flows.get","credentials.get"]}`)
	do("oauth_client.define", `{"component":"sheets","client_id":"sheets-id","client_secret":"canary-client"}`)
	do("auth_client.create", `{"name":"Slides","type":"oauth2","components":["slides"],"credentials":{"client_id":"slides-id","client_secret":"canary-auth"}}`)
	do("auth_client.create", `{"name":"Basic","type":"basic","scope":"workspace","scope_id":"sales","components":["petstore"],"credentials":{"username":"u","password":"canary-basic"}}`)
	pet := do("credential.create", `{"component":"petstore","name":"Pets","throttle_policy":"crm","description":"The pets","keys":{"apiKey":"canary-pet"}}`)
	do("credential.create", `{"id":"AAABcID5GBc=","type":"filesystem","description":"Sales HD1","throttle_policy":"erp=","keys":{"domain":"sales","login":{"user":"u","password":"canary-nested"},"list":[1,2.50,true,null]}}`)
	do("credential.create", fmt.Sprintf(`{"id":"probed","type":"pets","name":"Probed","keys":{"apiKey":"canary-pet"},"hosts":["127.0.0.1"],
		"verification":{"http":{"method":"GET","url":%q,"headers":{"api-key":"{{apiKey}}"},"expect":{"status":[200]}}}}`, pets.URL+"/v2/user/me"))
	do("credential.create", `{"component":"petstore","name":"Żółć 💾 of <b>","workspace":"sales","vpn_agent":"vpn-1","keys":{"apiKey":"canary-pet"}}`)
	do("credential.create", `{"component":"sheets","name":"Tokens","keys":{"oauth":{"access_token":"canary-access","refresh_token":"canary-refresh","expires_at":"2031-01-31T12:00:00Z","scope":"a b"}}}`)
	do("credential.create", `{"id":"none","type":"none","name":"Nothing","keys":{}}`)
	do("credential.rename", fmt.Sprintf(`{"id":%q,"name":"Renamed"}`, pet.ID))
	do("credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-pet"}}`, pet.ID))
	for i := range 20 { // more than one chunk, and more than one page
		do("credential.create", fmt.Sprintf(`{"id":"large-%02d","type":"large","name":"Large","keys":{"v":"canary-%s"}}`, i, strings.Repeat("x", 30<<10)))
	}
	do("flow.report", fmt.Sprintf(`{"change":"started","id":"orders","name":"Orders","revision":7,"steps":[{"id":"a","component":"petstore","credential":%q},{"id":"b","component":"sheets","credential":%q}]}`, pet.ID, firstOf(t, u, "Tokens")))
	d := do("flow.report", `{"change":"created","id":"idle","revision":2,"steps":[{"id":"a","name":"Copy","component":"filesystem","credential":"AAABcID5GBc="}]}`)
	must(t, u.proj.Wait(t.Context(), d.Seq))
}

// firstOf is the id of the credential with a name.
func firstOf(t testing.TB, u *up, name string) string {
	t.Helper()
	must(t, u.proj.Wait(t.Context(), logEnd(t, u.program)))
	var list struct{ Credentials []struct{ ID string } }
	must(t, u.query("credential.list", "name_contains="+name, &list))
	return list.Credentials[0].ID
}

// A tenant moves from one service to an empty one, is interrupted, goes on, and is equal in the
// end. No secret is in the file, in what is printed, or in a log; each access is audited.
func TestExportAndImport(t *testing.T) {
	pets := newPetstore(t, "canary-pet")
	from, to := bring(t, t.TempDir()), bring(t, t.TempDir())
	fill(t, from, pets)
	file, recipient, id := identity(t)
	reveals := from.issue(t, map[string]any{"role": "ADMINISTRATOR", "permissions": []string{"credentials.reveal"}})
	a, b := newTransferrer(t, from, reveals), newTransferrer(t, to, adminKey)
	dir := t.TempDir()
	first := filepath.Join(dir, "first.export")

	newTransferrer(t, from, adminKey).wants(4, "export", "--to", recipient, "--out", first) // no role sees secrets
	if _, err := os.Stat(first); err == nil {
		t.Error("a refused export left a file")
	}
	a.wants(2, "export", "--to", "age1nobody", "--out", first)
	a.wants(0, "export", "--to", recipient, "--out", first)
	a.wants(6, "export", "--to", recipient, "--out", first) // it is never replaced
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("beside the export stand %v %v", names, err)
	}
	raw, err := os.ReadFile(first)
	must(t, err)
	if bytes.Contains(raw, []byte("canary")) {
		t.Error("the file holds a secret in clear")
	}
	if info, err := os.Stat(first); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v %v", info.Mode(), err)
	}
	signedBy := strings.TrimSpace(a.wants(0, "export", "key"))
	want := dump(t, first, signedBy, id)
	if n := strings.Count(want, "canary"); n < 28 {
		t.Errorf("the file holds %d secrets:\n%s", n, want)
	}
	for route, n := range map[string]int{"credential.revealed": 25, "oauth_client.revealed": 1, "auth_client.revealed": 2} {
		if got := audited(t, from, route); got != n {
			t.Errorf("%d facts %s, want %d", got, route, n)
		}
	}

	// The service goes on only from a cursor that it made for this tenant.
	var page struct{ Next string }
	must(t, from.as(reveals).query("export.page", "to="+recipient, &page))
	must(t, from.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	for _, forged := range []string{"x", page.Next[:len(page.Next)-4] + "AAAA"} {
		if got := code(t, from.query("export.page", "after="+forged, nil)); got != "export_cursor_invalid" {
			t.Errorf("a forged cursor is answered %q", got)
		}
	}
	if got := code(t, from.in("other").query("export.page", "after="+page.Next, nil)); got != "export_cursor_invalid" {
		t.Errorf("another tenant's cursor is answered %q", got)
	}

	// Planned, interrupted in the middle, and continued.
	if out := b.wants(0, "import", first, "--signed-by", "any", "--plan"); strings.Count(out, "\ncreate ") != strings.Count(want, "\n")+1 {
		t.Errorf("the plan of an empty service is\n%s", out)
	}
	if got := count(t, to); got != 0 {
		t.Fatalf("the plan made %d credentials", got)
	}
	b.wants(2, "import", first, "--signed-by", "any")                   // without the identity
	for _, args := range [][]string{{"--plan"}, {"--identity", file}} { // anybody could have signed it
		b.wants(2, append([]string{"import", first}, args...)...)
		if said := b.errOut.String(); !strings.Contains(said, "--signed-by "+signedBy) || !strings.HasSuffix(said, " (signer_required)\n") {
			t.Errorf("without --signed-by, import %v says %s", args, said)
		}
	}
	b.wants(2, "import", first, "--identity", file, "--signed-by", strings.TrimSpace(b.wants(0, "export", "key")))
	ctx, interrupt := context.WithCancel(t.Context())
	stop := &stopper{after: 14, stop: interrupt}
	if code := CommandLine(ctx, []string{"import", first, "--identity", file, "--signed-by", signedBy}, func(n string) string { return b.env[n] }, strings.NewReader(""), stop, stop); code != 9 {
		t.Errorf("the interrupted import ends with %d: %s", code, stop.String())
	}
	if got := count(t, to); got == 0 || got == 26 {
		t.Errorf("the interrupted import made %d credentials", got)
	}
	b.wants(0, "import", first, "--identity", file, "--signed-by", signedBy)
	must(t, to.proj.Wait(t.Context(), logEnd(t, to.program)))
	end := logEnd(t, to.program)
	if out := b.wants(0, "import", first, "--signed-by", "any", "--identity", file); !strings.Contains(out, "\nCreated 0, updated 0, unchanged ") || logEnd(t, to.program) != end {
		t.Errorf("the same import again says\n%s", out)
	}
	// The secrets of a file are sent once.
	if out := b.wants(0, "import", first, "--signed-by", "any", "--identity", file, "--on-conflict", "replace"); !strings.Contains(out, "\nupdate    credential       probed  Probed: secrets\n") {
		t.Errorf("replace says\n%s", out)
	}
	must(t, to.proj.Wait(t.Context(), logEnd(t, to.program)))
	if out := b.wants(0, "import", first, "--signed-by", "any", "--identity", file, "--on-conflict", "replace"); !strings.Contains(out, "\nsame      credential       probed  Probed\n") {
		t.Errorf("replace again says\n%s", out)
	}

	back := newTransferrer(t, to, to.issue(t, map[string]any{"role": "ADMINISTRATOR", "permissions": []string{"credentials.reveal"}}))
	second := filepath.Join(dir, "second.export")
	back.wants(0, "export", "--to", recipient, "--out", second)
	if d := cmp.Diff(want, dump(t, second, strings.TrimSpace(back.wants(0, "export", "key")), id)); d != "" {
		t.Errorf("the two services differ:\n%s", d)
	}
	for _, u := range []*up{from, to} {
		if strings.Contains(u.logs.String(), "canary") {
			t.Error("a log holds a secret")
		}
	}
	conflicts(t, a, b, to, first, file, pets)
}

// conflicts goes on with what the service has in another form.
func conflicts(t *testing.T, a, b *transferrer, to *up, first, file string, pets *petstore) {
	t.Helper()
	var d done
	must(t, to.command("credential.rename", "", map[string]any{"id": "probed", "name": "Mine"}, nil))
	must(t, to.command("throttle_policy.change", "", map[string]any{"id": "crm", "tokens": 6}, nil))
	must(t, to.command("credential.delete", "", map[string]any{"id": "none"}, &d))
	must(t, to.proj.Wait(t.Context(), d.Seq))
	end := logEnd(t, to.program)
	if out := b.wants(6, "import", first, "--signed-by", "any", "--identity", file); !strings.Contains(out, "update    throttle policy  crm  tokens\n") || logEnd(t, to.program) != end {
		t.Errorf("the conflicts are\n%s", out)
	}
	out := b.wants(2, "import", first, "--signed-by", "any", "--identity", file, "--on-conflict", "skip")
	for _, line := range []string{"left      throttle policy  crm  It differs: tokens.\n", "left      credential       probed  Mine"} {
		if !strings.Contains(out, strings.Replace(line, "Mine", "Probed: It differs: name.", 1)) {
			t.Errorf("skip says\n%s", out)
		}
	}
	if !strings.Contains(out, "left      credential       none  Nothing: It was imported before and deleted since.") || !strings.HasSuffix(b.errOut.String(), " (import_incomplete)\n") {
		t.Errorf("skip says\n%s%s", out, b.errOut.String())
	}
	// A key that the API does not accept is refused, and the rest is imported.
	pets.accept("another")
	out = b.wants(2, "import", first, "--signed-by", "any", "--identity", file, "--new-ids", "--on-conflict", "replace")
	if n := strings.Count(out, "(credential_verification_failed)"); n != 3 {
		t.Errorf("%d keys were refused:\n%s", n, out)
	}
	if !strings.Contains(out, " as ") || count(t, to) != 25+23 {
		t.Errorf("with new ids there are %d credentials:\n%s", count(t, to), out)
	}
	pets.accept("canary-pet")

	// Without secrets, what is not there already is left and listed.
	plain := filepath.Join(t.TempDir(), "plain.export")
	a.wants(0, "export", "--out", plain)
	if said := a.errOut.String(); !strings.Contains(said, "Left out: oauth client sheets: client_secret\n") || strings.Count(said, "Left out: credential ") != 25 {
		t.Errorf("the export without secrets says\n%s", said)
	}
	if out := b.wants(0, "import", plain, "--signed-by", "any", "--plan", "--map", "component:petstore=pets-b", "--map", "probed=probed-b"); !strings.Contains(out, "\nmissing   credential       probed as probed-b  Probed: Its secrets") {
		t.Errorf("the plan of an export without secrets is\n%s", out)
	}
	if out := b.wants(6, "import", plain, "--signed-by", "any"); !strings.Contains(out, "update    credential       probed  Probed: name\n") {
		t.Errorf("an export without secrets says\n%s", out)
	}
	// Another tenant of the same installation: the component is the first one's.
	must(t, to.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	out = b.wants(0, "import", plain, "--signed-by", "any", "--plan", "--tenant", "other")
	if !strings.Contains(out, "same      component        slides  It is shared by another tenant.\n") {
		t.Errorf("in another tenant the plan is\n%s", out)
	}
	if out = b.wants(2, "import", first, "--signed-by", "any", "--identity", file, "--tenant", "other"); !strings.Contains(out, "left      component        petstore") || !strings.Contains(out, "(component_id_taken)") {
		t.Errorf("in another tenant the import says\n%s", out)
	}
	b.wants(5, "import", first, "--signed-by", "any", "--identity", file, "--tenant", "nobody")
}

// stopper ends an import after some lines.
type stopper struct {
	bytes.Buffer
	after int
	stop  func()
}

func (s *stopper) Write(b []byte) (int, error) {
	if s.after -= bytes.Count(b, []byte("\n")); s.after <= 0 {
		s.stop()
	}
	return s.Buffer.Write(b)
}

// count is the number of a service's credentials.
func count(t testing.TB, u *up) int {
	t.Helper()
	must(t, u.proj.Wait(t.Context(), logEnd(t, u.program)))
	var n struct{ Total int }
	must(t, u.query("credential.counts", "", &n))
	return n.Total
}

// audited is the number of facts of a type in the audit stream.
func audited(t testing.TB, u *up, typ string) (n int) {
	t.Helper()
	var page struct {
		Events []struct{ Type string }
	}
	must(t, u.query("events.replay", "limit=1000", &page))
	for _, e := range page.Events {
		if e.Type == "credstream."+typ+".v1" || e.Type == typ {
			n++
		}
	}
	return n
}

// newKV is an HTTP server that answers as the KV engine, version 2, of Vault is documented to:
// LIST of metadata, GET of data, 404 for what is not there or deleted, 403 without the token.
func newKV(t testing.TB, token string, secrets map[string]string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := func(status int, body string) { w.WriteHeader(status); fmt.Fprint(w, body) }
		if r.Header.Get("X-Vault-Token") != token {
			answer(403, `{"errors":["permission denied"]}`)
			return
		}
		at, list := strings.CutPrefix(r.URL.Path, "/v1/kv/metadata")
		if list && r.Method == "LIST" {
			at = strings.TrimPrefix(at+"/", "/")
			keys := map[string]bool{}
			for name := range secrets {
				if rest, below := strings.CutPrefix(name, at); below {
					first, _, folder := strings.Cut(rest, "/")
					if folder {
						first += "/"
					}
					keys[first] = true
				}
			}
			if len(keys) == 0 {
				answer(404, `{"errors":[]}`)
				return
			}
			answer(200, string(encode(t, map[string]any{"request_id": "r", "data": map[string]any{"keys": slices.Sorted(maps.Keys(keys))}})))
			return
		}
		name, read := strings.CutPrefix(r.URL.Path, "/v1/kv/data/")
		data, there := secrets[name]
		switch {
		case !read || r.Method != "GET" || !there:
			answer(404, `{"errors":[]}`)
		case data == "":
			answer(404, `{"data":{"data":null,"metadata":{"deletion_time":"2026-11-30T12:00:00Z","destroyed":false,"version":2}}}`)
		default:
			answer(200, `{"request_id":"r","lease_id":"","renewable":false,"data":{"data":`+data+`,"metadata":{"created_time":"2026-11-30T12:00:00Z","deletion_time":"","destroyed":false,"version":1}}}`)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// Credentials of other systems come in with their ids and values; what the API does not accept
// and what is not whole is left and listed, and a repeat does nothing again.
func TestImportFromOtherSystems(t *testing.T) {
	pets := newPetstore(t, "canary-pet")
	u := bring(t, t.TempDir())
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	key := u.issue(t, map[string]any{"role": "ADMINISTRATOR", "permissions": []string{"credentials.reveal"}})
	x := newTransferrer(t, u, key)
	reveals := u.as(key)
	holds := func(id, component, typ, keys string) {
		t.Helper()
		var c struct{ Component, Type string }
		must(t, u.proj.Wait(t.Context(), logEnd(t, u.program)))
		must(t, u.query("credential.get", "id="+url.QueryEscape(id), &c))
		var shown struct{ Keys json.RawMessage }
		must(t, reveals.command("credential.reveal", "", map[string]any{"id": id}, &shown))
		if c.Component != component || c.Type != typ || string(shown.Keys) != keys {
			t.Errorf("%s: %+v with %s, want %s", id, c, shown.Keys, keys)
		}
	}
	file := func(name, content string) string { return writeFile(t, name, content, 0o600) }

	aspire := file("aspire.json", `{"export":{"credentials":{"credential":[
		{"id":"AAABcID5GBc=","type":"filesystem","description":"Sales HD1","throttlePolicy":"P1","properties":{"user":"u","query":{"password":"canary-aspire"}}},
		{"id":"AAABcID5GBd","type":"http","description":"no secrets"},
		{"id":"a-mask","type":"http","description":"","properties":{"password":"********"}},
		{"id":"a\u0007bell","type":"http","description":"","properties":{"password":"canary-bell"}}]},
		"policies":{"policy":[{"id":"P1","type":"throttle","description":"d","timeUnit":"m","numberOfDocuments":"100"}]}}}`)
	out := x.wants(0, "import", "--from", "aspire", aspire, "--plan")
	if !strings.Contains(out, "\ncreate    credential       AAABcID5GBc=  Sales HD1\n") || !strings.Contains(out, "To create: 2, to update: 0, unchanged: 0, left behind: 3.") || count(t, u) != 0 {
		t.Errorf("the plan says\n%s", out)
	}
	out = x.wants(2, "import", "--from", "aspire", aspire)
	if !strings.Contains(out, "AAABcID5GBd  The source does not hold its secrets: they are masked or left out. (import_source_masked)\n") || !strings.Contains(out, "#4  ") {
		t.Errorf("aspire: %s", out)
	}
	holds("AAABcID5GBc=", "", "filesystem", `{"query":{"password":"canary-aspire"},"user":"u"}`)
	end := logEnd(t, u.program)
	if out = x.wants(2, "import", "--from", "aspire", aspire); !strings.Contains(out, "\nCreated 0, updated 0, unchanged 2, left behind 3.\n") || logEnd(t, u.program) != end {
		t.Errorf("aspire again: %s", out)
	}

	resource := func(id, component, key string) string {
		return fmt.Sprintf(`{"id":%q,"type":"credential","attributes":{"name":"N %s","keys":{"apiKey":%q}},"relationships":{"component":{"data":{"id":%q,"type":"component"}},"workspace":{"data":{"id":"573d","type":"workspace"}}}}`, id, id, key, component)
	}
	out = x.wants(2, "import", "--from", "elasticio", file("elasticio.json",
		`{"data":[`+resource("59f9f2ba112f28001921f274", "petstore", "canary-pet")+`],"meta":{}}`+"\n"+
			`{"data":[`+resource("wrong", "petstore", "canary-wrong")+`,`+resource("free", "5679", "canary-free")+`]}`))
	if !strings.Contains(out, "left      credential       wrong  N wrong: Nothing was saved: ") || !strings.Contains(out, "(credential_verification_failed)\n") {
		t.Errorf("elastic.io: %s", out)
	}
	holds("59f9f2ba112f28001921f274", "petstore", "", `{"apiKey":"canary-pet"}`)
	holds("free", "", "5679", `{"apiKey":"canary-free"}`)

	out = x.wants(2, "import", "--from", "n8n", file("n8n.json", `[{"createdAt":"2026-01-01T00:00:00.000Z","id":"aB3","name":"Pets","type":"petApi","data":{"token":"canary-pet","url":"https://x"},"isManaged":false},
		{"id":7,"name":"Old","type":"httpBasicAuth","data":{"user":"u","password":"canary-n8n"}},
		{"id":"enc","name":"Enc","type":"petApi","data":"U2FsdGVkX1"}]`),
		"--mapping", file("map.json", `{"types":{"petApi":{"component":"petstore","fields":{"token":"apiKey","url":""}}}}`))
	if !strings.Contains(out, "(import_source_encrypted)\n") || !strings.Contains(out, "\nCreated 2, ") {
		t.Errorf("n8n: %s", out)
	}
	holds("aB3", "petstore", "", `{"apiKey":"canary-pet"}`)
	holds("7", "", "httpBasicAuth", `{"password":"canary-n8n","user":"u"}`)

	env := file("shop.env", "# of the shop\nexport PETS__API_KEY='canary-pet'\nCRM__TOKEN=\"canary \\\"crm\\\"\" # the token\nPLAIN=canary-plain # c\n")
	out = x.wants(2, "import", "--from", "env", env, "--component", "petstore") // CRM and shop have no field apiKey
	if strings.Count(out, "\nleft ") != 2 {
		t.Errorf("env: %s", out)
	}
	holds("pets", "petstore", "", `{"apiKey":"canary-pet"}`)
	x.wants(0, "import", "--from", "env", env, "--map", "pets=pets-free")
	holds("crm", "", "env", `{"TOKEN":"canary \"crm\""}`)
	holds("shop", "", "env", `{"PLAIN":"canary-plain"}`)

	kv := newKV(t, "canary-token", map[string]string{
		"team/pets": `{"apiKey":"canary-pet"}`, "team/deep/er": `{"a":{"b":"canary-deep"},"n":1.50}`, "team/gone": "", "other": `{"a":"canary-other"}`,
	})
	vault := []string{"import", "--from", "vault", "kv/team", "--vault-address", kv.URL}
	x.wants(2, vault...) // without a token
	x.env["VAULT_TOKEN"] = "canary-bad"
	x.wants(2, vault...)
	if said := x.errOut.String(); !strings.HasSuffix(said, " (import_vault_refused)\n") {
		t.Errorf("a wrong token: %s", said)
	}
	x.env["VAULT_TOKEN"] = "canary-token"
	x.wants(2, "import", "--from", "vault", "nothing", "--vault-address", kv.URL)
	x.wants(2, "import", "--from", "vault", "kv/team", "--vault-address", "http://vault.example.org:8200") // its token is not sent in clear
	out = x.wants(2, append(vault, "--mapping", file("v.json", `{"credentials":{"team/pets":{"component":"petstore","name":"Pets"}}}`))...)
	if !strings.Contains(out, "team/gone  Its newest version was deleted in Vault. (import_vault_deleted)\n") || !strings.Contains(out, "\nCreated 2, updated 0, unchanged 0, left behind 1.\n") {
		t.Errorf("vault: %s", out)
	}
	holds("team/pets", "petstore", "", `{"apiKey":"canary-pet"}`)
	holds("team/deep/er", "", "vault", `{"a":{"b":"canary-deep"},"n":1.50}`)

	for _, kind := range []string{"aspire", "elasticio", "n8n", "env"} {
		for _, bad := range []string{"", "canary", `{"canary":`, `[]`, `{}`, `{"data":[{"id":"canary","type":"flow"}]}`, "canary\xff=x"} {
			if code := x.run(t.Context(), "import", "--from", kind, file("bad", bad)); code == 0 && bad != "[]" {
				t.Errorf("%s takes %q: %s", kind, bad, x.out.String())
			}
			x.noSecret([]string{kind, bad})
		}
	}
	x.wants(2, "import", "--from", "airflow", env)
	if strings.Contains(u.logs.String(), "canary") {
		t.Error("a log holds a secret")
	}
}
