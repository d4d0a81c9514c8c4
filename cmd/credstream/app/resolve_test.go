package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/credential"
)

var (
	resolveRounds = flag.Int("resolverounds", 200, "rounds of revoking on one process and resolving on another")
	revokeRounds  = flag.Int("revokerounds", 50, "revocations whose way to a flow engine is measured")
)

// resolvedJSON is what credential.resolve answers.
type resolvedJSON struct {
	Lease   string            `json:"lease"`
	Expires time.Time         `json:"expires"`
	Version int               `json:"version"`
	Hosts   []string          `json:"hosts"`
	Sealed  string            `json:"sealed"`
	Keys    map[string]string `json:"keys"`
}

// accessJSON is one fact of access.replay, or one lease of lease.list.
type accessJSON struct {
	Seq                                             uint64
	Kind, Credential, Actor, Flow, Step, Via, Lease string
	Version                                         int
	Cleartext, Revoked                              bool
	Time, Expires                                   time.Time
}

// accesses replays the access log.
func (a api) accesses(t testing.TB, params string) []accessJSON {
	t.Helper()
	var page struct{ Accesses []accessJSON }
	must(t, a.query("access.replay", params, &page))
	return page.Accesses
}

// engineClient connects a flow engine over NATS.
func engineClient(t testing.TB, url, key, tenant string) *client.Conn {
	t.Helper()
	c, err := client.Dial(t.Context(), client.NATSConfig{URL: url, Key: key, Tenant: tenant})
	must(t, err)
	t.Cleanup(c.Close)
	return c
}

// A flow engine is given the values over both edges, by the command line too, and
// everything is in the access log, but no secret.
func TestResolve(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	var made done
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "canary-1"}}, &made))
	key := u.engine(t)
	engine := u.as(key)
	var answers bytes.Buffer // that must not hold a secret

	over := engineClient(t, u.node.ClientURL(), key, "default")
	pair, err := client.NewResolveKey()
	must(t, err)
	sealed, err := over.Resolve(t.Context(), pair, made.ID, client.ResolveOptions{Flow: "orders", Step: "step_1"})
	must(t, err)
	if v, _ := sealed.Keys.Text("apiKey"); v != "canary-1" || sealed.Version != 1 || len(sealed.Hosts) != 0 {
		t.Errorf("over NATS: %+v", sealed)
	}
	fmt.Fprintln(&answers, sealed)
	var raw json.RawMessage
	must(t, engine.query("credential.resolve", "id="+made.ID+"&public_key="+pair.Public(), &raw))
	answers.Write(raw)
	http1, err := client.New(client.Config{URL: u.base, Key: key})
	must(t, err)
	sealed, err = http1.Resolve(t.Context(), pair, made.ID, client.ResolveOptions{})
	must(t, err)
	if v, _ := sealed.Keys.Text("apiKey"); v != "canary-1" {
		t.Errorf("over HTTP: %+v", sealed)
	}
	var clearly resolvedJSON
	must(t, engine.query("credential.resolve", "cleartext=true&id="+made.ID, &clearly))
	if clearly.Keys["apiKey"] != "canary-1" || clearly.Hosts == nil {
		t.Errorf("clear text over HTTP: %+v", clearly)
	}
	if _, err := over.ResolveCleartext(t.Context(), made.ID, client.ResolveOptions{}); !errors.Is(err, fault.New(fault.Denied, "cleartext_refused", "")) {
		t.Errorf("clear text over NATS: %v", err)
	}

	// Four questions, three leases: the same over HTTP twice is one.
	facts := u.accesses(t, "credential="+made.ID)
	var got []string
	for _, f := range facts {
		got = append(got, fmt.Sprint(f.Kind, " ", f.Via, " ", f.Cleartext, " ", f.Flow, "/", f.Step, " ", f.Version))
	}
	want := []string{"given nats false orders/step_1 1", "given http false / 1", "given http true / 1"}
	if !slices.Equal(got, want) {
		t.Errorf("the access log tells\n%q, want\n%q", got, want)
	}
	// One fact a line, without a limit.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, u.base+"/v1/tenants/default/access.replay", nil)
	must(t, err)
	req.Header.Set("Accept", "application/x-ndjson")
	req.Header.Set("Authorization", "Bearer "+adminKey)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	lines, err := io.ReadAll(resp.Body)
	must(t, err)
	if resp.Header.Get("Content-Type") != "application/x-ndjson" || bytes.Count(lines, []byte("\n")) != 3 || bytes.Count(lines, []byte(`"kind":"given"`)) != 3 {
		t.Errorf("as lines: %s", lines)
	}
	answers.Write(lines)

	c := &cli{env: map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey}}
	say := func(code int, args ...string) string {
		t.Helper()
		if got := c.run(t.Context(), args...); got != code {
			t.Errorf("%v exits with %d: %s", args, got, c.errOut.String())
		}
		return c.out.String()
	}
	if out := say(0, "access", "list", "--credential", made.ID); strings.Count(out, "\n") != 4 || !strings.Contains(out, "orders/step_1") || !strings.Contains(out, "http, clear text") {
		t.Errorf("access list says\n%s", out)
	}
	if out := say(0, "access", "list", "--json", "--since", "1h"); strings.Count(out, "\n") != 3 {
		t.Errorf("access list --json says\n%s", out)
	}
	if out := say(0, "access", "list", "--since", "2100-01-01T00:00:00Z"); strings.Count(out, "\n") != 1 {
		t.Errorf("access list of the future says\n%s", out)
	}
	say(2, "access", "list", "--since", "yesterday")
	if out := say(0, "lease", "list", "--credential", made.ID); strings.Count(out, "active") != 3 {
		t.Errorf("lease list says\n%s", out)
	}
	say(4, "credential", "resolve", made.ID) // an administrator is no flow engine
	c.env["CREDSTREAM_KEY"] = key
	out := say(0, "credential", "resolve", made.ID, "--flow", "f") + say(0, "credential", "resolve", made.ID, "--json") + say(0, "credential", "resolve", made.ID, "--cleartext")
	if !strings.Contains(out, "apiKey") || strings.Count(out, "\nlease") != 2 {
		t.Errorf("credential resolve says\n%s", out)
	}
	answers.WriteString(out)
	if out := say(0, "credential", "resolve", made.ID, "--show"); out != `{"apiKey":"canary-1"}`+"\n" {
		t.Errorf("credential resolve --show says %q", out)
	}
	if out := say(0, "credential", "resolve", made.ID, "--show", "--json", "--cleartext"); !strings.Contains(out, `"keys":{"apiKey":"canary-1"}`) {
		t.Errorf("credential resolve --show --json says %q", out)
	}
	say(5, "credential", "resolve", "nope")

	must(t, u.command("credential.replace-keys", "", map[string]any{"id": made.ID, "keys": map[string]any{"apiKey": "canary-2"}}, nil))
	c.env["CREDSTREAM_KEY"] = adminKey
	if out := say(0, "lease", "list"); strings.Contains(out, "active") || !strings.Contains(out, "revoked") {
		t.Errorf("after the keys were replaced, lease list says\n%s", out)
	}
	must(t, engine.query("credential.resolve", "cleartext=true&id="+made.ID, &clearly))
	if clearly.Keys["apiKey"] != "canary-2" || clearly.Version != 2 {
		t.Errorf("after the keys were replaced: %+v", clearly)
	}
	metrics, err := http.Get(u.base + "/metrics")
	must(t, err)
	_, err = io.Copy(&answers, metrics.Body)
	must(t, err)
	_ = metrics.Body.Close()
	for _, name := range []string{`credstream_resolves_total{result="given"}`, `credstream_resolves_total{result="leased"}`, "credstream_leases_outstanding"} {
		if !strings.Contains(answers.String(), name) {
			t.Errorf("there is no metric %s", name)
		}
	}

	u.stop()
	for what, text := range map[string]string{"an answer": answers.String(), "the log": u.logs.String()} {
		if strings.Contains(text, "canary") || strings.Contains(text, key) {
			t.Errorf("a secret is in %s", what)
		}
	}
	sealedText := []byte(sealedOf(t, raw))
	must(t, filepath.WalkDir(data, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		for _, needle := range [][]byte{[]byte("canary"), []byte(key), sealedText} {
			if bytes.Contains(b, needle) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return err
	}))
}

func sealedOf(t testing.TB, answer []byte) string {
	t.Helper()
	var r resolvedJSON
	must(t, json.Unmarshal(answer, &r))
	if r.Sealed == "" {
		t.Fatal("the answer is not sealed")
	}
	return r.Sealed
}

// Who comes over a network without TLS is answered sealed values alone, unless a
// proxy that ends TLS stands before the port.
func TestResolveFromOutside(t *testing.T) {
	var outside string
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() && ip.IP.To4() != nil {
			outside = ip.IP.String()
		}
	}
	if outside == "" {
		t.Skip("needs a network interface besides the loopback one: it connects over it")
	}
	data := t.TempDir()
	listen := func(behind bool) *up {
		return bring(t, data, func(c *Config) { c.HTTP, c.BehindTLSProxy = outside+":0", behind })
	}
	u := listen(true)
	registerPlain(t, u.base)
	id, key := u.create(t), u.engine(t)
	u.stop()
	pair, err := client.NewResolveKey()
	must(t, err)
	for behind, want := range map[bool]string{false: "cleartext_refused", true: ""} {
		u := listen(behind)
		if got := code(t, u.as(key).query("credential.resolve", "cleartext=true&id="+id, nil)); got != want {
			t.Errorf("behind a proxy %v: %q, want %q", behind, got, want)
		}
		must(t, u.as(key).query("credential.resolve", "id="+id+"&public_key="+pair.Public(), nil))
		u.stop()
	}
}

// Without the access log nothing is given; what is known of the credential is.
func TestResolveWithoutAccessLog(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	id := u.create(t)
	engine := u.as(u.engine(t))
	ask := func() string { return code(t, engine.query("credential.resolve", "cleartext=true&id="+id, nil)) }
	conn, err := u.node.Conn("test")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	must(t, js.DeleteStream(t.Context(), kv.AccessStream))
	if got := ask(); got != "access_log_unavailable" {
		t.Errorf("without the access log: %q", got)
	}
	must(t, engine.query("credential.get", "id="+id, nil))
	must(t, u.query("credential.history", "id="+id, nil))
	_, err = kv.EnsureAccessLog(t.Context(), js, 1, kv.DefaultAccessRetention)
	must(t, err)
	if got := ask(); got != "" {
		t.Errorf("when it is back: %q", got)
	}
}

// A process that is killed right after an answer has recorded it.
func TestAccessSurvivesAKill(t *testing.T) {
	data := t.TempDir()
	p := spawn(t, data)
	registerPlain(t, p.http)
	a := caller(p)
	id := a.create(t)
	engine := a.as(a.engine(t))
	var leases []string
	for i := range 5 {
		var got resolvedJSON
		must(t, engine.query("credential.resolve", fmt.Sprintf("cleartext=true&id=%s&flow=f%d", id, i), &got))
		leases = append(leases, got.Lease)
	}
	_ = p.kill(syscall.SIGKILL)
	a = caller(spawn(t, data))
	var recorded []string
	for _, f := range a.accesses(t, "") {
		recorded = append(recorded, f.Lease)
	}
	if !slices.Equal(recorded, leases) {
		t.Errorf("recorded %v, given %v", recorded, leases)
	}
}

// Two tenants know nothing of each other's access.
func TestAccessIsTheTenants(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	id := u.create(t)
	must(t, u.as(u.engine(t)).query("credential.resolve", "cleartext=true&id="+id, nil))
	must(t, u.command("tenant.register", "", map[string]any{"id": "ajax"}, nil))
	ajax := u.in("ajax")
	if facts := ajax.accesses(t, "credential="+id); len(facts) != 0 {
		t.Errorf("another tenant sees %+v", facts)
	}
	var leases struct{ Leases []accessJSON }
	must(t, ajax.query("lease.list", "", &leases))
	theirs := ajax.engine(t)
	if got := code(t, ajax.as(theirs).query("credential.resolve", "cleartext=true&id="+id, nil)); got != "credential_not_found" || len(leases.Leases) != 0 {
		t.Errorf("another tenant's engine: %q, leases %+v", got, leases.Leases)
	}
	if got := code(t, u.as(theirs).query("credential.resolve", "cleartext=true&id="+id, nil)); got != "tenant_not_found" {
		t.Errorf("another tenant's engine here: %q", got)
	}
	// Another connection of the same tenant hears nothing of what is answered.
	listen, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", u.engine(t)), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	must(t, err)
	defer listen.Close()
	heard, err := listen.SubscribeSync(">")
	must(t, err)
	must(t, listen.Flush())
	pair, err := client.NewResolveKey()
	must(t, err)
	_, err = engineClient(t, u.node.ClientURL(), u.engine(t), "default").Resolve(t.Context(), pair, id, client.ResolveOptions{})
	must(t, err)
	if n, _, err := heard.Pending(); err == nil && n > 0 {
		t.Errorf("somebody else hears %d messages", n)
	}
}

func TestAccessConfiguration(t *testing.T) {
	for _, c := range []struct{ flag, value, code string }{
		{"--lease", "30s", "config_lease"},
		{"--lease", "16m", "config_lease"},
		{"--lease", "soon", "usage"},
		{"--access-retention", "23h", "config_access_retention"},
		{"--access-retention", "0.5d", "usage"},
	} {
		cli := &cli{}
		if got := cli.run(t.Context(), "serve", "--data", t.TempDir(), "--http", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0", c.flag, c.value); got != 2 || !strings.Contains(cli.errOut.String(), "("+c.code+")") {
			t.Errorf("%s %s exits with %d: %s", c.flag, c.value, got, cli.errOut.String())
		}
	}
	data := t.TempDir()
	for _, days := range []int{0, 1, 3} { // 0: the default
		u := bring(t, data, func(c *Config) { c.AccessRetention, c.Lease = time.Duration(days)*24*time.Hour, time.Minute })
		if days == 0 {
			registerPlain(t, u.base)
		}
		id := u.create(t)
		var got resolvedJSON
		must(t, u.as(u.engine(t)).query("credential.resolve", "cleartext=true&id="+id, &got))
		if left := time.Until(got.Expires); left > time.Minute {
			t.Errorf("a lease of %v", left)
		}
		js, err := jetstream.New(mustConn(t, u.program))
		must(t, err)
		stream, err := js.Stream(t.Context(), kv.AccessStream)
		must(t, err)
		want := kv.DefaultAccessRetention
		if days > 0 {
			want = time.Duration(days) * 24 * time.Hour
		}
		if keeps := stream.CachedInfo().Config.MaxAge; keeps != want {
			t.Errorf("keeps for %v, want %v", keeps, want)
		}
		u.stop()
	}
}

// A credential is deleted, or given other keys, on one process while another one
// is asked for its values: who asks after the acknowledgement is never given what
// was before, whether there was a lease or not. An answer may be on its way when
// the acknowledgement comes; how late the latest came is logged.
func TestRaceOfResolveAndRevoke(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	registerPlain(t, a.http)
	admins := []api{caller(a), caller(b)}
	key := admins[0].engine(t)
	for _, admin := range admins { // both know the key
		await(t, "the key", func() (bool, error) {
			err := admin.as(key).query("credential.list", "", nil)
			return err == nil, nil
		})
	}
	pair, err := client.NewResolveKey()
	must(t, err)
	var mu sync.Mutex
	var before, crossing int // answers of questions asked before the acknowledgement, and those of them that came after it
	var latest time.Duration
	rounds(t, *resolveRounds, func(i int) error {
		revoker, engine := admins[i%2], admins[1-i%2].as(key)
		var made done
		if err := revoker.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "old"}}, &made); err != nil {
			return err
		}
		params := "id=" + made.ID + "&flow=f" + []string{"&cleartext=true", "&public_key=" + pair.Public()}[i/2%2]
		if i/4%2 == 0 { // within a lease
			if err := engine.query("credential.resolve", params, nil); err != nil {
				return err
			}
		}
		replace := i/8%2 == 1
		var acked time.Time
		var revoked error
		begun, over := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(over)
			<-begun
			if replace {
				revoked = revoker.command("credential.replace-keys", "", map[string]any{"id": made.ID, "keys": map[string]any{"apiKey": "new"}}, nil)
			} else {
				revoked = revoker.command("credential.delete", "", map[string]any{"id": made.ID}, nil)
			}
			acked = time.Now()
		}()
		type ask struct {
			asked, answered time.Time
			version         int
			code            string
		}
		var asks []ask
		for last := false; ; {
			one := ask{asked: time.Now()}
			var got resolvedJSON
			err := engine.query("credential.resolve", params, &got)
			one.answered, one.version = time.Now(), got.Version
			if one.code, err = codeOf(err); err != nil {
				return err
			}
			asks = append(asks, one)
			if len(asks) == 1 {
				close(begun)
			}
			if last {
				break
			}
			select {
			case <-over:
				last = true // once more, surely after it
			default:
			}
		}
		if revoked != nil {
			return revoked
		}
		mu.Lock()
		defer mu.Unlock()
		for _, one := range asks {
			old := one.code == "" && one.version == 1
			switch {
			case old && one.asked.After(acked):
				return fmt.Errorf("version 1 was given to who asked %v after the acknowledgement", one.asked.Sub(acked))
			case old && one.answered.After(acked):
				crossing++
				latest = max(latest, one.answered.Sub(acked))
			case old:
				before++
			case replace && one.code == "" && one.version == 2, !replace && one.code == "credential_not_found":
			default:
				return fmt.Errorf("answered version %d, %q", one.version, one.code)
			}
		}
		return nil
	})
	t.Logf("%d rounds: %d answers before the acknowledgement, %d on their way when it came, the latest %v after it", *resolveRounds, before, crossing, latest)
	if before < *resolveRounds {
		t.Error("the values were hardly ever given before")
	}
	// What was withheld is told so, and nothing else.
	for _, f := range admins[0].accesses(t, "limit=1000") {
		if f.Kind != credential.AccessGiven && f.Kind != credential.AccessWithdrawn {
			t.Errorf("a fact says %q", f.Kind)
		}
	}
}

// A revocation reaches a flow engine by itself. How long that takes is measured
// from the acknowledgement's request on, and logged.
func TestRevocationReachesTheEngine(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	key := u.engine(t)
	conn := engineClient(t, u.node.ClientURL(), key, "default")
	resolver, err := conn.NewResolver()
	must(t, err)
	defer resolver.Close()
	heard := make(chan time.Time, 1)
	feed := u.connect(t, key)
	_, err = feed.Subscribe("credstream.events.default.credential.>", func(m *nats.Msg) {
		if kind := m.Header.Get("ce-type"); kind == "credstream.credential.deleted.v1" || kind == "credstream.credential.keys_replaced.v1" {
			heard <- time.Now()
		}
	})
	must(t, err)
	must(t, feed.Flush())
	var onFeed, dropped []time.Duration
	for i := range *revokeRounds {
		id := u.create(t)
		before := u.factCount(t)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		await(t, "the values are kept", func() (bool, error) {
			first, err := resolver.Resolve(ctx, id, client.ResolveOptions{})
			if err != nil {
				return false, err
			}
			again, err := resolver.Resolve(ctx, id, client.ResolveOptions{})
			return first.Lease == again.Lease, err
		})
		if n := u.factCount(t) - before; n != 1 {
			t.Errorf("%d leases were given for one purpose", n)
		}
		sent := time.Now()
		if i%2 == 0 {
			must(t, u.command("credential.delete", "", map[string]any{"id": id}, nil))
		} else {
			must(t, u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]any{"apiKey": "new"}}, nil))
		}
		await(t, "the old values are dropped", func() (bool, error) {
			got, err := resolver.Resolve(ctx, id, client.ResolveOptions{})
			return errors.Is(err, fault.New(fault.NotFound, "credential_not_found", "")) || err == nil && got.Version == 2, nil
		})
		dropped = append(dropped, time.Since(sent))
		onFeed = append(onFeed, (<-heard).Sub(sent))
		cancel()
	}
	for what, list := range map[string][]time.Duration{"on the feed": onFeed, "dropped by the engine": dropped} {
		slices.Sort(list)
		t.Logf("%s: p50 %v, p99 %v, from the command on", what, list[len(list)/2], list[len(list)*99/100])
	}
}

// factCount is the number of facts in the access log.
func (u *up) factCount(t testing.TB) uint64 {
	t.Helper()
	js, err := jetstream.New(mustConn(t, u.program))
	must(t, err)
	stream, err := js.Stream(t.Context(), kv.AccessStream)
	must(t, err)
	return stream.CachedInfo().State.Msgs
}
