package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// up is a program that serves in this process.
type up struct {
	*program
	api
	logs *bustest.LogBuffer
	stop func()
}

// bring starts a program on a folder and serves until the test ends or stop is called.
func bring(t testing.TB, data string, change ...func(*Config)) *up {
	t.Helper()
	u := &up{logs: &bustest.LogBuffer{}}
	cfg := Config{
		Data: data, HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", AdminKey: adminKey, Durability: "group",
		AllowPrivateTargets: true, LogFormat: "json", LogLevel: level(t), EventStore: eventStoreOf(t, data),
	}
	for _, c := range change {
		c(&cfg)
	}
	p, err := start(t.Context(), cfg, u.logs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.run(ctx) }()
	u.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the program ended with %v", err)
		}
	})
	t.Cleanup(u.stop)
	u.program = p
	u.api = api{base: "http://" + p.front.listener.Addr().String(), key: adminKey, tenant: "default"}
	return u
}

// connect connects a plain NATS client with a key.
func (u *up) connect(t testing.TB, key string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("anything", key))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// code is the code of a refusal, "" for success.
func code(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var refused *apiError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	return refused.Code
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// petstore is a real API for dry requests: it knows one key at a time.
type petstore struct {
	*httptest.Server
	mu    sync.Mutex
	key   string
	calls int
}

func newPetstore(t testing.TB, key string) *petstore {
	p := &petstore{key: key}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.calls++
		if r.URL.Path != "/v2/user/me" || r.Header.Get("api-key") != p.key {
			http.Error(w, "no, not with "+r.Header.Get("api-key"), http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"user":"me"}`)
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *petstore) accept(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key = key
}

// component reads a component.json of the tests.
func component(t testing.TB, file string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../commands/testdata/components", file))
	must(t, err)
	var d map[string]any
	must(t, json.Unmarshal(b, &d))
	return d
}

// verified is the descriptor of a pet shop with a dry request against the test's API.
func verified(t testing.TB, p *petstore) map[string]any {
	t.Helper()
	d := component(t, "api-key.json")
	d["hosts"] = []string{"127.0.0.1"}
	d["verification"] = map[string]any{"http": map[string]any{
		"method": "GET", "url": p.URL + "/v2/user/me", "headers": map[string]string{"api-key": "{{apiKey}}"},
		"expect": map[string]any{"status": []int{200}},
		"says":   map[string]string{"401": "The API key was not accepted."},
	}}
	return d
}

type shown struct {
	ID, Component, Name, Status string
	Version                     int
	Keys                        map[string]any
	Seq                         uint64
}

type listed struct {
	Credentials []shown
	Next        string
}

// The whole life of a credential on real parts, and afterwards no secret in any
// file, log or answer.
func TestLifeOfACredential(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	pets := newPetstore(t, "right-canary-1")

	for _, f := range []string{
		"checkbox.json", "oauth-with-endpoints.json", "host-in-field.json", "all-optional.json",
		"oauth-by-auth-client.json", "long-text.json",
	} {
		must(t, u.command("component.register", "", map[string]any{"id": strings.TrimSuffix(f, ".json"), "descriptor": component(t, f)}, nil))
	}
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))

	nc := u.connect(t, adminKey)
	feed := make(chan *nats.Msg, 100)
	sub, err := nc.ChanSubscribe("credstream.events.*.credential.>", feed)
	must(t, err)
	must(t, nc.Flush())
	defer func() { _ = sub.Unsubscribe() }()

	create := func(key string) map[string]any {
		return map[string]any{"component": "petstore", "name": "Pets of Acme", "keys": map[string]string{"apiKey": key}}
	}
	var answers bytes.Buffer
	err = u.command("credential.create", "", create("wrong-canary-2"), nil)
	fmt.Fprintln(&answers, err)
	if c := code(t, err); c != "credential_verification_failed" || !strings.Contains(err.Error(), "The API key was not accepted.") {
		t.Errorf("a wrong key is answered with %v", err)
	}
	var list listed
	must(t, u.query("credential.list", "", &list))
	if len(list.Credentials) != 0 {
		t.Errorf("a refused credential was saved: %+v", list)
	}

	var d done
	must(t, u.command("credential.create", "", create("right-canary-1"), &d))
	if d.Version != 1 || d.Status != "verified" || pets.calls != 2 {
		t.Errorf("created %+v after %d calls", d, pets.calls)
	}
	id := d.ID
	get := func() (s shown) {
		t.Helper()
		must(t, u.query("credential.get", fmt.Sprintf("id=%s&min_seq=%d", id, d.Seq), &s))
		fmt.Fprintln(&answers, s)
		return s
	}
	if s := get(); s.Keys["apiKey"] != secrets.Mask || s.Name != "Pets of Acme" || s.Seq != d.Seq {
		t.Errorf("shown as %+v", s)
	}
	must(t, u.command("credential.rename", "", map[string]any{"id": id, "name": "Pets"}, &d))
	if s := get(); s.Name != "Pets" || s.Version != 1 {
		t.Errorf("renamed to %+v", s)
	}
	err = u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]string{"apiKey": "other-canary-3"}}, nil)
	if code(t, err) != "credential_verification_failed" || get().Version != 1 {
		t.Errorf("keys that do not work: %v", err)
	}
	pets.accept("new-canary-4")
	must(t, u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]string{"apiKey": "new-canary-4"}, "expected_version": 1}, &d))
	if d.Version != 2 {
		t.Errorf("replaced: %+v", d)
	}
	err = u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]string{"apiKey": "new-canary-4"}, "expected_version": 1}, nil)
	if code(t, err) != "credential_version_stale" {
		t.Errorf("a stale version: %v", err)
	}
	if err := u.command("credential.revert", "", map[string]any{"id": id, "version": 1}, nil); code(t, err) != "credential_verification_failed" {
		t.Errorf("reverting to keys that no longer work: %v", err)
	}
	pets.accept("right-canary-1")
	must(t, u.command("credential.revert", "", map[string]any{"id": id, "version": 1}, &d))
	if s := get(); d.Version != 3 || s.Version != 3 || s.Status != "verified" {
		t.Errorf("reverted: %+v, %+v", d, s)
	}
	pets.accept("nobody")
	must(t, u.command("credential.verify", "", map[string]any{"id": id}, &d))
	if s := get(); d.Status != "failed" || s.Status != "failed" {
		t.Errorf("verified anew: %+v, %+v", d, s)
	}
	var history struct {
		Events []struct {
			Type, Actor, Via string
			Version          int
		}
	}
	must(t, u.query("credential.history", "id="+id, &history))
	var what []string
	for _, e := range history.Events {
		what = append(what, fmt.Sprintf("%s %d %s", e.Type, e.Version, e.Actor))
	}
	const who = "key:first-administrator"
	if got, want := strings.Join(what, ", "), "credential.created 1 "+who+", credential.renamed 1 "+who+", credential.keys_replaced 2 "+who+
		", credential.reverted 3 "+who+", credential.verified 3 "+who; got != want {
		t.Errorf("history is\n%s\nwant\n%s", got, want)
	}
	sealed := storedSecrets(t, u, id)
	if len(sealed) != 2 {
		t.Fatalf("the vault holds %d secrets of the credential, want 2", len(sealed))
	}
	must(t, u.command("credential.delete", "", map[string]any{"id": id}, &d))
	if c := code(t, u.query("credential.get", fmt.Sprintf("id=%s&min_seq=%d", id, d.Seq), nil)); c != "credential_not_found" {
		t.Errorf("a deleted credential: %s", c)
	}

	var told []string
	for len(told) < 6 {
		m := <-feed
		if m.Header.Get("ce-specversion") != "1.0" || m.Header.Get("ce-source") != "/credstream/default" || m.Subject != "credstream.events.default.credential."+id {
			t.Errorf("the feed says %s %v", m.Subject, m.Header)
		}
		told = append(told, strings.TrimPrefix(m.Header.Get("ce-type"), "credstream.credential."))
		fmt.Fprintln(&answers, m.Header, string(m.Data))
	}
	if got := strings.Join(told, " "); got != "created.v1 renamed.v1 keys_replaced.v1 reverted.v1 verified.v1 deleted.v1" {
		t.Errorf("the feed tells %s", got)
	}
	var replay json.RawMessage
	must(t, u.query("events.replay", "from=1", &replay))
	answers.Write(replay)
	metrics, err := http.Get(u.base + "/metrics")
	must(t, err)
	_, err = io.Copy(&answers, metrics.Body)
	must(t, err)
	_ = metrics.Body.Close()

	u.stop()
	if strings.Contains(u.logs.String(), "canary") || strings.Contains(u.logs.String(), adminKey) {
		t.Error("a secret is in the log")
	}
	if strings.Contains(answers.String(), "canary") {
		t.Error("a secret is in an answer or an event")
	}
	needles := append(sealed, []byte("canary"), []byte(adminKey))
	must(t, filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for i, n := range needles {
			if bytes.Contains(b, n) {
				t.Errorf("%s holds needle %d", path, i)
			}
		}
		return err
	}))
}

// storedSecrets reads the sealed bytes that the vault holds for a credential.
func storedSecrets(t *testing.T, u *up, id string) (sealed [][]byte) {
	t.Helper()
	owned, err := u.vault.Owned(t.Context(), "default", "credential", id)
	must(t, err)
	conn, err := u.node.Conn("test")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	stream, err := js.Stream(t.Context(), vault.Stream)
	must(t, err)
	for _, e := range owned {
		m, err := stream.GetMsg(t.Context(), e.Seq)
		must(t, err)
		sealed = append(sealed, m.Data)
	}
	return sealed
}

// natsDo sends a command or query over plain NATS.
func natsDo(t testing.TB, nc *nats.Conn, subject, msgID string, body []byte, out any) error {
	t.Helper()
	msg := nats.NewMsg(subject)
	msg.Data = body
	if msgID != "" {
		msg.Header.Set(nats.MsgIdHdr, msgID)
	}
	resp, err := nc.RequestMsg(msg, 30*time.Second)
	if err != nil {
		return err
	}
	if c := resp.Header.Get(micro.ErrorCodeHeader); c != "" {
		e := &apiError{}
		must(t, json.Unmarshal(resp.Data, e))
		if fmt.Sprint(e.Status) != c || resp.Header.Get(micro.ErrorHeader) != e.Detail {
			t.Errorf("headers say %v, the problem %+v", resp.Header, e)
		}
		return e
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(resp.Data, out)
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	must(t, err)
	return b
}

// The same commands and queries over NATS, from a plain client.
func TestNATS(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	nc := u.connect(t, adminKey)
	do := func(subject, id string, in, out any) error { return natsDo(t, nc, subject, id, encode(t, in), out) }
	must(t, do("credstream.cmd.default.component.register", "", map[string]any{"id": "plain", "descriptor": json.RawMessage(plain)}, nil))
	create := map[string]any{"component": "plain", "name": "One", "keys": map[string]string{"apiKey": "k"}}
	var first, again, shown done
	must(t, do("credstream.cmd.default.credential.create", "cmd-1", create, &first))
	must(t, do("credstream.cmd.default.credential.create", "cmd-1", create, &again))
	if first != again || first.ID == "" {
		t.Errorf("%+v, repeated %+v", first, again)
	}
	create["name"] = "Two"
	if c := code(t, do("credstream.cmd.default.credential.create", "cmd-1", create, nil)); c != "command_id_reused" {
		t.Errorf("a reused command id: %s", c)
	}
	must(t, do("credstream.query.default.credential.get", "", map[string]any{"id": first.ID, "min_seq": first.Seq}, &shown))
	if shown.ID != first.ID {
		t.Errorf("shown %+v", shown)
	}
	if c := code(t, do("credstream.cmd.nowhere.credential.create", "", create, nil)); c != "tenant_not_found" {
		t.Errorf("an unknown tenant: %s", c)
	}

	// Discovery and statistics of the micro service.
	resp, err := nc.Request("$SRV.STATS.credstream", nil, 10*time.Second)
	must(t, err)
	var stats struct {
		Endpoints []struct {
			Name        string
			NumRequests int `json:"num_requests"`
		}
	}
	must(t, json.Unmarshal(resp.Data, &stats))
	served := map[string]int{}
	for _, e := range stats.Endpoints {
		served[e.Name] = e.NumRequests
	}
	if len(served) != len(application.Routes()) || served["credential_create"] != 4 {
		t.Errorf("statistics are %v", served)
	}

	// A consumer that was away catches up without a gap, and the audit consumer starts over.
	js, err := jetstream.New(nc)
	must(t, err)
	pull := func(stream, name string, n int) (ids []string) {
		c, err := js.Consumer(t.Context(), stream, name)
		must(t, err)
		for len(ids) < n {
			batch, err := c.Fetch(n-len(ids), jetstream.FetchMaxWait(10*time.Second))
			must(t, err)
			for m := range batch.Messages() {
				ids = append(ids, m.Headers().Get("ce-logseq"))
				must(t, m.DoubleAck(t.Context()))
			}
			must(t, batch.Error())
		}
		return ids
	}
	seqs := commitSeqs(t, u.store)
	if len(seqs) != 4 {
		t.Fatalf("the log has commits %v, want 4", seqs)
	}
	if got := strings.Join(pull(streams.FeedStream, streams.EngineConsumer("default"), 2), " "); got != listedSeqs(seqs[2:]) {
		t.Errorf("the engine's consumer got %s", got)
	}
	if got := strings.Join(pull(streams.AuditStream, streams.AuditConsumer("default"), 4), " "); got != listedSeqs(seqs) {
		t.Errorf("the audit consumer got %s", got)
	}
	must(t, do("credstream.cmd.default.audit.rewind", "", map[string]any{"seq": seqs[2]}, nil))
	if got := strings.Join(pull(streams.AuditStream, streams.AuditConsumer("default"), 2), " "); got != listedSeqs(seqs[2:]) {
		t.Errorf("the rewound audit consumer got %s", got)
	}

	// The answer of a repeated command outlives a restart.
	u.stop()
	u = bring(t, data)
	nc = u.connect(t, adminKey)
	create["name"] = "One"
	must(t, natsDo(t, nc, "credstream.cmd.default.credential.create", "cmd-1", encode(t, create), &again))
	if first != again {
		t.Errorf("after a restart %+v, before %+v", again, first)
	}
	end, err := u.store.End(t.Context())
	must(t, err)
	if end != seqs[3] {
		t.Errorf("repeats were appended: the log ends at %d", end)
	}
}

// Every bad input is refused with its code on both edges, and changes nothing.
func TestBadInput(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	nc := u.connect(t, adminKey)
	var made done
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "name": "n", "keys": map[string]string{"apiKey": "k"}}, &made))
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	id := func(s string) string { return fmt.Sprintf(`{"id":%s,"name":"x"}`, s) }
	cases := []struct{ name, route, body, code string }{
		{"unknown field", "credential.create", `{"component":"plain","keys":{"apiKey":"k"},"tenant_id":"x"}`, "body_invalid"},
		{"wrong type", "credential.create", `{"component":7,"keys":{"apiKey":"k"}}`, "body_invalid"},
		{"repeated member", "credential.create", `{"component":"plain","component":"plain","keys":{"apiKey":"k"}}`, "body_invalid"},
		{"two documents", "credential.create", `{"component":"plain","keys":{"apiKey":"k"}}{}`, "body_invalid"},
		{"null", "credential.create", `null`, "member_missing"},
		{"array", "credential.create", `[]`, "body_invalid"},
		{"not JSON", "credential.create", `{"component"`, "body_invalid"},
		{"depth bomb", "credential.create", `{"component":"plain","keys":{"apiKey":` + deep + `}}`, "body_too_deep"},
		{"invalid UTF-8", "credential.create", "{\"component\":\"plain\",\"keys\":{\"apiKey\":\"\xff\"}}", "body_invalid"},
		{"lone surrogate", "credential.create", `{"component":"plain","name":"\ud800","keys":{"apiKey":"k"}}`, "body_invalid"},
		{"mask", "credential.create", `{"component":"plain","keys":{"apiKey":"********"}}`, "keys_masked"},
		{"missing field", "credential.create", `{"component":"plain","keys":{}}`, "keys_field_missing"},
		{"undeclared field", "credential.create", `{"component":"plain","keys":{"apiKey":"k","other":"k"}}`, "keys_field_unknown"},
		{"keys of another type", "credential.create", `{"component":"plain","keys":"k"}`, "keys_malformed"},
		{"NUL in a key", "credential.create", `{"component":"plain","keys":{"apiKey":"a\u0000b"}}`, "keys_malformed"},
		{"no component", "credential.create", `{"keys":{"apiKey":"k"}}`, "member_missing"},
		{"unknown component", "credential.create", `{"component":"nope","keys":{"apiKey":"k"}}`, "component_not_found"},
		{"component with a dot", "credential.create", `{"component":"a.b","keys":{"apiKey":"k"}}`, "component_not_found"},
		{"control characters in a name", "credential.create", `{"component":"plain","name":"a\u0007b","keys":{"apiKey":"k"}}`, "name_invalid"},
		{"direction override in a name", "credential.create", `{"component":"plain","name":"a\u202eb","keys":{"apiKey":"k"}}`, "name_invalid"},
		{"long name", "credential.create", `{"component":"plain","name":"` + strings.Repeat("x", 201) + `","keys":{"apiKey":"k"}}`, "name_invalid"},
		{"large keys", "credential.create", `{"component":"plain","keys":{"apiKey":"` + strings.Repeat("x", 65<<10) + `"}}`, "keys_too_large"},
		{"id with a dot", "credential.rename", id(`"a.b"`), "credential_not_found"},
		{"id with a star", "credential.rename", id(`"*"`), "credential_not_found"},
		{"id with an angle", "credential.rename", id(`">"`), "credential_not_found"},
		{"id with a slash", "credential.rename", id(`"../a"`), "credential_not_found"},
		{"id with a space", "credential.rename", id(`"a b"`), "credential_not_found"},
		{"id with NUL", "credential.rename", id(`"a\u0000"`), "id_invalid"},
		{"long id", "credential.rename", id(`"` + strings.Repeat("x", 300) + `"`), "id_invalid"},
		{"empty id", "credential.rename", id(`""`), "member_missing"},
		{"stale version", "credential.rename", `{"id":"` + made.ID + `","name":"y","expected_version":9}`, "credential_version_stale"},
		{"negative version", "credential.rename", `{"id":"` + made.ID + `","name":"y","expected_version":-1}`, "body_invalid"},
		{"version that is no integer", "credential.rename", `{"id":"` + made.ID + `","name":"y","expected_version":0.5}`, "body_invalid"},
		{"version 2^63", "credential.rename", `{"id":"` + made.ID + `","name":"y","expected_version":9223372036854775808}`, "body_invalid"},
		{"revert to nothing", "credential.revert", `{"id":"` + made.ID + `","version":4}`, "credential_version_not_found"},
		{"component id with a dot", "component.register", `{"id":"a.b","descriptor":{"title":"x"}}`, "id_invalid"},
		{"reserved component id", "component.register", `{"id":"_x","descriptor":{"title":"x"}}`, "id_invalid"},
		{"taken component id", "component.register", `{"id":"plain","descriptor":` + plain + `}`, "component_id_taken"},
		{"no descriptor", "component.register", `{"id":"x"}`, "member_missing"},
		{"descriptor that is none", "component.register", `{"id":"x","descriptor":[]}`, "component_descriptor_invalid"},
		{"tenant with a star", "tenant.register", `{"id":"*"}`, "id_invalid"},
		{"role that is none", "api_key.issue", `{"role":"ROOT"}`, "role_invalid"},
		{"OAuth credential", "credential.create", `{"component":"worksheets","keys":{"oauth":{"access_token":"a"}}}`, "oauth_client_missing"},
	}
	must(t, u.command("component.register", "", map[string]any{"id": "worksheets", "descriptor": component(t, "oauth-with-endpoints.json")}, nil))
	before, err := u.store.End(t.Context())
	must(t, err)
	secrets := vaultSize(t, u)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequest(http.MethodPost, u.base+"/v1/tenants/default/commands/"+c.route, strings.NewReader(c.body))
			must(t, err)
			req.Header.Set("Content-Type", "application/json")
			if got := code(t, u.do(req, nil)); got != c.code {
				t.Errorf("HTTP answers %q, want %q", got, c.code)
			}
			if got := code(t, natsDo(t, nc, "credstream.cmd.default."+c.route, "", []byte(c.body), nil)); got != c.code {
				t.Errorf("NATS answers %q, want %q", got, c.code)
			}
		})
	}
	t.Run("1 MiB and a byte", func(t *testing.T) {
		body := `{"component":"plain","keys":{"apiKey":"k"}}`
		body += strings.Repeat(" ", 1<<20+1-len(body))
		req, err := http.NewRequest(http.MethodPost, u.base+"/v1/tenants/default/commands/credential.create", strings.NewReader(body))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		if got := code(t, u.do(req, nil)); got != "body_too_large" {
			t.Errorf("answers %q for %d bytes", got, len(body))
		}
	})
	t.Run("command ids", func(t *testing.T) {
		for _, bad := range []string{"a b", strings.Repeat("x", 129)} {
			if got := code(t, u.command("credential.rename", bad, map[string]any{"id": made.ID, "name": "z"}, nil)); got != "command_id_invalid" {
				t.Errorf("%q answers %q", bad, got)
			}
		}
	})
	t.Run("queries", func(t *testing.T) {
		for params, want := range map[string]string{
			"limit=0": "", "limit=-1": "limit_invalid", "limit=1000000000": "limit_invalid", "sort=age": "sort_invalid",
			"status=fine": "status_invalid", "after=forged": "cursor_invalid", "nope=1": "query_parameter_unknown", "limit=x": "query_parameter_invalid",
		} {
			if got := code(t, u.query("credential.list", params, nil)); got != want {
				t.Errorf("%s answers %q, want %q", params, got, want)
			}
		}
	})
	t.Run("keys", func(t *testing.T) {
		for _, key := range []string{"", "nonsense", "cs_" + strings.Repeat("z", 40), "cs_" + strings.Repeat("é", 40)} {
			a := u.api
			a.key = key
			err := a.query("credential.list", "", nil)
			var refused *apiError
			if !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
				t.Errorf("key %q: %v", key, err)
			}
		}
	})
	after, err := u.store.End(t.Context())
	must(t, err)
	if after != before || vaultSize(t, u) != secrets {
		t.Errorf("bad input changed something: the log went from %d to %d, the vault from %d to %d", before, after, secrets, vaultSize(t, u))
	}
}

func vaultSize(t *testing.T, u *up) (n int) {
	t.Helper()
	for _, err := range u.vault.All(t.Context(), 1) {
		must(t, err)
		n++
	}
	return n
}

// A tenant sees and touches what is its own, and is told of the rest what it is
// told of what does not exist.
func TestTenants(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	must(t, u.command("tenant.register", "", map[string]any{"id": "acme", "name": "Acme"}, nil))
	must(t, u.command("tenant.register", "", map[string]any{"id": "ajax"}, nil))
	var issued struct{ Key, ID string }
	acme := u.api
	acme.tenant = "acme"
	must(t, acme.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR"}, &issued))
	acme.key = issued.Key
	var d done
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]string{"apiKey": "k"}}, &d))

	foreign, unknown := acme, acme
	foreign.tenant, unknown.tenant = "ajax", "nobody"
	if a, b := fmt.Sprint(foreign.query("credential.list", "", nil)), fmt.Sprint(unknown.query("credential.list", "", nil)); a != b || !strings.Contains(a, "tenant_not_found") {
		t.Errorf("another's tenant answers %s, an unknown one %s", a, b)
	}
	for _, id := range []string{d.ID, "0198c1f0-0000-7000-8000-000000000000"} {
		if got := code(t, acme.query("credential.get", fmt.Sprint("id=", id, "&min_seq=", d.Seq), nil)); got != "credential_not_found" {
			t.Errorf("get %s: %s", id, got)
		}
		if got := code(t, acme.command("credential.delete", "", map[string]any{"id": id}, nil)); got != "credential_not_found" {
			t.Errorf("delete %s: %s", id, got)
		}
		if got := code(t, acme.query("credential.history", "id="+id, nil)); got != "credential_not_found" {
			t.Errorf("history %s: %s", id, got)
		}
	}
	create := map[string]any{"component": "plain", "keys": map[string]string{"apiKey": "k"}}
	if got := code(t, acme.command("credential.create", "", create, nil)); got != "component_not_found" {
		t.Errorf("create for a component of another tenant: %s", got)
	}
	must(t, u.command("component.share", "", map[string]any{"id": "plain"}, nil))
	must(t, acme.command("credential.create", "", create, &d))
	if got := code(t, acme.command("component.delete", "", map[string]any{"id": "plain"}, nil)); got != "component_not_owner" {
		t.Errorf("delete another's component: %s", got)
	}
	must(t, u.command("component.delete", "", map[string]any{"id": "plain"}, nil))
	if got := code(t, acme.command("credential.create", "", create, nil)); got != "component_deleted" {
		t.Errorf("create for a deleted component: %s", got)
	}
	must(t, acme.query("credential.get", fmt.Sprint("id=", d.ID, "&min_seq=", d.Seq), nil))

	// Roles, and a revoked key: on HTTP and on an open NATS connection.
	nc := u.connect(t, acme.key)
	must(t, natsDo(t, nc, "credstream.query.acme.credential.list", "", []byte("{}"), nil))
	var operator struct{ Key string }
	must(t, acme.command("api_key.issue", "", map[string]any{"role": "OPERATOR"}, &operator))
	reader := acme
	reader.key = operator.Key
	must(t, reader.query("credential.list", "", nil))
	if got := code(t, reader.command("credential.delete", "", map[string]any{"id": d.ID}, nil)); got != "permission_denied" {
		t.Errorf("an operator deletes: %s", got)
	}
	if got := code(t, acme.command("api_key.issue", "", map[string]any{"role": "OPERATOR", "tenants": []string{"ajax"}}, nil)); got != "api_key_exceeds_issuer" {
		t.Errorf("a key for another tenant: %s", got)
	}
	closed := make(chan struct{})
	nc.SetDisconnectErrHandler(func(*nats.Conn, error) { close(closed) })
	nc.SetReconnectHandler(func(*nats.Conn) { t.Error("a revoked key came back") })
	owner := u.api
	owner.tenant = "acme"
	must(t, owner.command("api_key.revoke", "", map[string]any{"id": issued.ID}, nil))
	<-closed
	if got := code(t, acme.query("credential.list", "", nil)); got != "api_key_unknown" {
		t.Errorf("a revoked key: %s", got)
	}
}

// What the first start makes, it makes once; a folder has one process at a time,
// and does not open without its KMS key.
func TestStarts(t *testing.T) {
	data := t.TempDir()
	cfg := Config{Data: data, HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", Durability: "always", LogFormat: "text", LogLevel: "error"}
	first, err := start(t.Context(), cfg, io.Discard)
	must(t, err)
	var said bytes.Buffer
	first.announce(&said)
	key := string(first.firstKey.Reveal())
	if access.CheckKeyShape(key) != nil || !strings.Contains(said.String(), key) {
		t.Errorf("the first start says\n%s", &said)
	}
	if _, err := start(t.Context(), cfg, io.Discard); !errors.Is(err, natsserver.ErrDataFolderLocked) {
		t.Errorf("a second process on the folder: %v", err)
	}
	first.close()

	second, err := start(t.Context(), cfg, io.Discard)
	must(t, err)
	said.Reset()
	second.announce(&said)
	if !second.firstKey.IsZero() || strings.Contains(said.String(), "cs_") {
		t.Errorf("the second start says\n%s", &said)
	}
	if end, err := second.store.End(t.Context()); err != nil || end != 2 {
		t.Errorf("the log ends at %d, %v", end, err)
	}
	second.close()

	keyFile := filepath.Join(data, "kms.key")
	must(t, os.Rename(keyFile, keyFile+".away"))
	if _, err := start(t.Context(), cfg, io.Discard); !errors.Is(err, errKeyFileMissing) {
		t.Errorf("without the key file: %v", err)
	}
	if _, err := os.Stat(keyFile); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a new key file was made")
	}
	other, err := start(t.Context(), Config{Data: t.TempDir(), HTTP: cfg.HTTP, NATSListen: cfg.NATSListen, Durability: "group", LogFormat: "text", LogLevel: "error"}, io.Discard)
	must(t, err)
	otherKey, err := os.ReadFile(filepath.Join(other.cfg.Data, "kms.key"))
	must(t, err)
	other.close()
	must(t, os.WriteFile(keyFile, otherKey, 0o600))
	if _, err := start(t.Context(), cfg, io.Discard); err == nil {
		t.Error("another KMS key was taken")
	}
	must(t, os.Rename(keyFile+".away", keyFile))
	third, err := start(t.Context(), cfg, io.Discard)
	must(t, err)
	third.close()

	for what, broken := range map[string]func(*Config){
		"durability": func(c *Config) { c.Durability = "never" },
		"log level":  func(c *Config) { c.LogLevel = "loud" },
		"log format": func(c *Config) { c.LogFormat = "xml" },
		"views":      func(c *Config) { c.Views = "mysql://x" },
		"admin key":  func(c *Config) { c.AdminKey = "short"; c.Data = t.TempDir() },
	} {
		bad := cfg
		broken(&bad)
		if p, err := start(t.Context(), bad, io.Discard); err == nil {
			p.close()
			t.Errorf("a bad %s is taken", what)
		}
	}
}

// A process told to stop by SIGTERM ends cleanly, and the next one carries on.
// The first start leaves the administrator's key in a file for its owner, and not on its
// output. A start that broke off after it wrote the file continues with the same key.
func TestAdminKeyFile(t *testing.T) {
	begin := func(data, file string) (*program, string, error) {
		var said bytes.Buffer
		p, err := start(t.Context(), Config{
			Data: data, HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", AdminKeyFile: file, Durability: "group", LogFormat: "json", LogLevel: "error",
		}, &said)
		if err == nil {
			p.announce(&said)
			t.Cleanup(func() { _ = p.shutDown() })
		}
		return p, said.String(), err
	}
	data, file := t.TempDir(), filepath.Join(t.TempDir(), "admin.key")
	p, said, err := begin(data, file)
	must(t, err)
	text, err := os.ReadFile(file)
	must(t, err)
	info, err := os.Stat(file)
	must(t, err)
	key := strings.TrimSpace(string(text))
	if info.Mode().Perm() != 0o600 || strings.Contains(said, key) || !strings.Contains(said, file) {
		t.Errorf("mode %v, %s", info.Mode(), said)
	}
	a := api{base: "http://" + p.front.listener.Addr().String(), key: key, tenant: "default"}
	must(t, a.query("api_key.list", "", nil))
	must(t, p.shutDown())
	must(t, os.Remove(file))
	if _, said, err := begin(data, file); err != nil || strings.Contains(said, "key is in") {
		t.Errorf("the second start: %v, %s", err, said)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a later start wrote a key")
	}

	must(t, os.WriteFile(file, text, 0o600)) // as a start leaves it that is killed before the log has the key
	p, _, err = begin(t.TempDir(), file)
	must(t, err)
	a.base = "http://" + p.front.listener.Addr().String()
	must(t, a.query("api_key.list", "", nil))

	for name, write := range map[string]string{"not a key": "cs_x\n", "empty": ""} {
		must(t, os.WriteFile(file, []byte(write), 0o600))
		if _, _, err := begin(t.TempDir(), file); fault.Of(err).Code != "admin_key_file_invalid" || write != "" && strings.Contains(err.Error(), "cs_x") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := begin(t.TempDir(), filepath.Join(t.TempDir(), "missing", "key")); fault.Of(err).Code != "admin_key_file_invalid" {
		t.Errorf("a missing folder: %v", err)
	}
}

func TestTerminate(t *testing.T) {
	data := t.TempDir()
	p := spawn(t, data)
	registerPlain(t, p.http)
	if err := p.kill(syscall.SIGTERM); err != nil {
		t.Fatalf("SIGTERM ended the process with %v\n%s", err, p.logs)
	}
	p = spawn(t, data)
	a := api{base: p.http, key: adminKey, tenant: "default"}
	must(t, a.query("component.get", "id=plain", nil))
	must(t, p.kill(syscall.SIGTERM))
	if strings.Contains(p.out.String(), "cs_") {
		t.Errorf("a later start shows a key:\n%s", p.out)
	}
}

// pausing holds the first append to a credential back until told to go on.
type pausing struct {
	events.Store
	once    sync.Once
	reached chan struct{}
	goOn    chan struct{}
}

func (p *pausing) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	if stream.Category == aggregates.Credential.Category {
		p.once.Do(func() {
			close(p.reached)
			<-p.goOn
		})
	}
	return p.Store.Stage(ctx, stream, expected, meta, evs...)
}

// A writer stalls between the vault and the log, the collector takes its
// secret for an orphan, the writer goes on: its credential has a secret that opens.
func TestCollectorAndStalledWriter(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	slow := &pausing{Store: u.store, reached: make(chan struct{}), goOn: make(chan struct{})}
	states, err := aggregates.NewLog(slow, 100)
	must(t, err)
	svc, err := application.New(application.Config{
		Log: states, Views: u.views, Projector: u.proj, Vault: u.vault, Keyring: u.keyring, Logger: slog.New(slog.DiscardHandler),
	})
	must(t, err)
	defer svc.Close()
	admin, err := svc.Access.Authenticate(t.Context(), adminKey, netip.Addr{})
	must(t, err)
	type answer struct {
		done any
		err  error
	}
	answered := make(chan answer)
	go func() {
		d, err := svc.Serve(context.WithoutCancel(t.Context()), service.Call{Tenant: "default", Principal: admin, Via: "http"}, "credential.create",
			[]byte(`{"component":"plain","keys":{"apiKey":"stalled"}}`))
		answered <- answer{d, err}
	}()
	<-slow.reached
	if n := vaultSize(t, u); n != 1 {
		t.Fatalf("the vault holds %d secrets", n)
	}
	erased, err := u.svc.Secrets.Collect(t.Context(), 0)
	must(t, err)
	if erased != 1 || vaultSize(t, u) != 0 {
		t.Errorf("the collector erased %d, %d are left", erased, vaultSize(t, u))
	}
	close(slow.goOn)
	a := <-answered
	must(t, a.err)
	held, err := u.held(t.Context(), a.done.(service.Done).ID)
	must(t, err)
	if held.key != "stalled" || held.version != 1 {
		t.Errorf("the credential is %+v", held)
	}
	if erased, err := u.svc.Secrets.Collect(t.Context(), 0); err != nil || erased != 0 {
		t.Errorf("a secret in force was collected: %d, %v", erased, err)
	}
}

// What a command may not do now it is refused, and reads go on.
func TestWritesRefused(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	svc, err := application.New(application.Config{
		Log: u.states, Views: u.views, Projector: u.proj, Vault: u.vault, Keyring: u.keyring, Logger: slog.New(slog.DiscardHandler),
		WritesAllowed: func() error { return natsserver.ErrStorageLow },
	})
	must(t, err)
	defer svc.Close()
	admin, err := svc.Access.Authenticate(t.Context(), adminKey, netip.Addr{})
	must(t, err)
	call := service.Call{Tenant: "default", Principal: admin, Via: "http"}
	if _, err := svc.Serve(t.Context(), call, "component.delete", []byte(`{"id":"plain"}`)); !errors.Is(err, natsserver.ErrStorageLow) {
		t.Errorf("a write: %v", err)
	}
	if _, err := svc.Serve(t.Context(), call, "component.get", []byte(`{"id":"plain","min_seq":3}`)); err != nil {
		t.Errorf("a read: %v", err)
	}
}

// The views are rebuilt on demand while they serve, and say how far they are.
func TestRebuildOnDemand(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	for i := range 20 {
		must(t, u.command("credential.create", "", map[string]any{"component": "plain", "name": fmt.Sprint(i), "keys": map[string]string{"apiKey": "k"}}, nil))
	}
	must(t, u.command("views.rebuild", "", map[string]any{}, nil))
	var status struct {
		Rebuilding     bool
		Position, End  uint64
		Error, Stopped string
	}
	for {
		must(t, u.query("views.status", "", &status))
		if !status.Rebuilding {
			break
		}
	}
	if status.Error != "" || status.Stopped != "" || status.End != 23 {
		t.Errorf("status is %+v", status)
	}
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "name": "after", "keys": map[string]string{"apiKey": "k"}}, nil))
	var list listed
	must(t, u.query("credential.list", "min_seq=24&limit=200", &list))
	if len(list.Credentials) != 21 {
		t.Errorf("%d credentials after the rebuild", len(list.Credentials))
	}
}

// A log that holds less than was durable is noticed at the start: nothing is
// written, and readiness says why.
func TestLogCutShort(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]string{"apiKey": "k"}}, nil))
	u.stop()
	mark := filepath.Join(data, "high-water.json")
	b, err := os.ReadFile(mark)
	must(t, err)
	must(t, os.WriteFile(mark, bytes.Replace(b, []byte(`"seq":4`), []byte(`"seq":9`), 1), 0o600))
	u = bring(t, data)
	if got := code(t, u.command("component.delete", "", map[string]any{"id": "plain"}, nil)); got != eventlog.ErrLogCutShort.Code {
		t.Errorf("a write: %s", got)
	}
	must(t, u.query("component.get", "id=plain", nil))
	resp, err := http.Get(u.base + "/readyz")
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(body), "damaged") {
		t.Errorf("readiness is %d %s", resp.StatusCode, body)
	}
}

// level is as loud as can be in a test, so that a secret in any line is seen.
func level(t testing.TB) string {
	if _, benchmark := t.(*testing.B); benchmark {
		return "warn"
	}
	return "debug"
}
