package service_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// stage is a service on a real node, with a clock that a test may move.
type stage struct {
	t       testing.TB
	store   *eventlog.Store
	svc     *service.Service
	access  *tapped
	metrics *prometheus.Registry
	logs    *lockedLog
	admin   service.Principal
	engine  service.Principal
	skew    atomic.Int64 // of the clock, in nanoseconds
	writes  atomic.Pointer[error]
	project func(context.Context, uint64) error
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tapped is an access log that a test listens to and may have fail.
type tapped struct {
	service.AccessLog
	mu     sync.Mutex
	facts  []service.AccessFact
	before func(service.AccessFact) error // called first; an error is the outcome
	after  func(service.AccessFact)       // called when the fact is durable
}

func (a *tapped) Append(ctx context.Context, tenant string, fact service.AccessFact) error {
	if a.before != nil {
		if err := a.before(fact); err != nil {
			return err
		}
	}
	if err := a.AccessLog.Append(ctx, tenant, fact); err != nil {
		return err
	}
	a.mu.Lock()
	a.facts = append(a.facts, fact)
	a.mu.Unlock()
	if a.after != nil {
		a.after(fact)
	}
	return nil
}

// told lists the facts since the last call: kind and version.
func (a *tapped) told() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for _, f := range a.facts {
		list = append(list, fmt.Sprint(f.Kind, " ", f.Version))
	}
	a.facts = nil
	return strings.Join(list, ", ")
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newStage brings a service up, with an administrator, a flow engine of the tenant
// "default", and the component "plain".
func newStage(t testing.TB) *stage {
	t.Helper()
	s := &stage{t: t, metrics: prometheus.NewRegistry(), logs: &lockedLog{}}
	log := slog.New(slog.NewJSONHandler(s.logs, nil))
	node := must(bus.StartNode(t.Context(), bus.NodeConfig{Dir: t.TempDir(), MinFree: 1, Logger: log}))(t)
	t.Cleanup(func() { ok(t, node.Shutdown(context.WithoutCancel(t.Context()))) })
	conn := must(node.Conn("test"))(t)
	js := must(jetstream.New(conn))(t)
	s.store = must(eventlog.Open(t.Context(), eventlog.Config{
		Conn: conn, Registry: events.All(), Logger: log, OnlyWriter: true, Sync: node.Syncer(eventlog.Stream).Wait,
	}))(t)
	t.Cleanup(s.store.Close)
	must(bus.EnsureStream(t.Context(), js, vault.StreamConfig(1)))(t)
	must(bus.EnsureAccessLog(t.Context(), js, 1, bus.DefaultAccessRetention))(t)
	views := must(projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{Logger: log}))(t)
	t.Cleanup(func() { ok(t, views.Close()) })
	projector := projections.NewProjector(s.store, views, log)
	s.project = projector.Wait
	running, halt := context.WithCancel(context.WithoutCancel(t.Context()))
	var parts sync.WaitGroup
	t.Cleanup(func() { halt(); parts.Wait() })
	parts.Go(func() { _ = projector.Run(running) })
	keyFile := filepath.Join(t.TempDir(), "kms.key")
	ok(t, seal.CreateKeyFile(keyFile))
	kms := must(seal.OpenKMS(t.Context(), seal.KMS{URL: "file://" + keyFile}))(t)
	kv := must(js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "CREDSTREAM_KEYS", Storage: jetstream.FileStorage}))(t)
	keyring := seal.NewKeyring(kms, seal.NewKVKeysets(js, kv, nil))
	s.access = &tapped{AccessLog: must(bus.NewAccessLog(must(node.Conn("access"))(t), node.Syncer(bus.AccessStream).Wait))(t)}
	guarded := verify.NewClient(verify.Config{Logger: log})
	s.svc = must(service.New(service.Config{
		Log: must(aggregates.NewLog(s.store, 1000))(t), Views: views, Projector: projector, Keyring: keyring,
		Vault: vault.New(js, conn, keyring, node.Syncer(vault.Stream).Wait), Verify: guarded, OAuth: oauth.New(guarded), Alone: true,
		Metrics: s.metrics, Logger: log, AccessLog: s.access,
		Now: func() time.Time { return time.Now().Add(time.Duration(s.skew.Load())) },
		WritesAllowed: func() error {
			if err := s.writes.Load(); err != nil {
				return *err
			}
			return nil
		},
	}))(t)
	t.Cleanup(s.svc.Close)
	first := must(s.svc.Bootstrap(t.Context(), seal.Secret{}))(t)
	s.caughtUp()
	s.admin = must(s.svc.Authenticate(t.Context(), string(first.Reveal()), netip.Addr{}))(t)
	s.engine = s.issue("default", `{"role":"FLOW_ENGINE"}`)
	s.do("default", "component.register", `{"id":"plain","descriptor":{"title":"Plain","hosts":["api.example.org","{{region}}.example.org"],
		"credentials":{"fields":{"apiKey":{"viewClass":"PasswordFieldView"},"region":{"viewClass":"TextFieldView"}}}}}`)
	return s
}

// caughtUp waits until the views reflect the log.
func (s *stage) caughtUp() {
	s.t.Helper()
	ok(s.t, s.project(s.t.Context(), must(s.store.End(s.t.Context()))(s.t)))
}

// do obeys a command of the administrator.
func (s *stage) do(tenant, command, body string) service.Done {
	s.t.Helper()
	answer := must(s.svc.Serve(s.t.Context(), service.Call{Tenant: tenant, Principal: s.admin, Via: "http"}, command, []byte(body)))(s.t)
	done, _ := answer.(service.Done)
	return done
}

// issue makes another caller.
func (s *stage) issue(tenant, body string) service.Principal {
	s.t.Helper()
	answer := must(s.svc.Serve(s.t.Context(), service.Call{Tenant: tenant, Principal: s.admin, Via: "http"}, "api_key.issue", []byte(body)))(s.t)
	s.caughtUp()
	return must(s.svc.Authenticate(s.t.Context(), answer.(service.IssuedAPIKey).Key, netip.Addr{}))(s.t)
}

// create makes a credential and returns its id.
func (s *stage) create(key string) string {
	s.t.Helper()
	return s.do("default", "credential.create", fmt.Sprintf(`{"component":"plain","keys":{"apiKey":%q,"region":"eu"}}`, key)).ID
}

// resolve asks as the engine, over HTTP on the same machine, unless change says otherwise.
func (s *stage) resolve(body string, change ...func(*service.Call)) (service.ResolvedCredential, error) {
	s.t.Helper()
	call := service.Call{Tenant: "default", Principal: s.engine, Via: "http", Confidential: true}
	for _, c := range change {
		c(&call)
	}
	answer, err := s.svc.Serve(s.t.Context(), call, "credential.resolve", []byte(body))
	resolved, _ := answer.(service.ResolvedCredential)
	return resolved, err
}

// recipient is a flow engine's pair of keys.
type recipient struct {
	public  string
	private hpke.PrivateKey
}

func newRecipient(t testing.TB) recipient {
	t.Helper()
	private := must(hpke.DHKEM(ecdh.X25519()).GenerateKey())(t)
	public := must(nkeys.Encode(nkeys.PrefixByteCurve, private.PublicKey().Bytes()))(t)
	return recipient{string(public), private}
}

// open opens a sealed answer to what info names, as another program would.
func (r recipient) open(sealed string, info ...string) (string, error) {
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return "", err
	}
	text, err := hpke.Open(r.private, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(strings.Join(info, "\n")), raw)
	return string(text), err
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.Of(err).Code
}

// A sealed answer opens with the key it was sealed to and as the answer to its own
// question, and in no other way.
func TestResolveSealed(t *testing.T) {
	s := newStage(t)
	id := s.create("canary-1")
	mine, other := newRecipient(t), newRecipient(t)
	begin := time.Now()
	got, err := s.resolve(fmt.Sprintf(`{"id":%q,"flow":"orders","step":"step_1","public_key":%q}`, id, mine.public))
	ok(t, err)
	want := service.ResolvedCredential{
		Lease: got.Lease, Expires: got.Expires, Version: 1, Hosts: []string{"api.example.org", "{{region}}.example.org"}, Sealed: got.Sealed,
	}
	if diff := cmp.Diff(want, got); diff != "" || got.Lease == "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if left := got.Expires.Sub(begin); left < 9*time.Minute || left > 10*time.Minute+time.Second || !got.Expires.Equal(got.Expires.Truncate(time.Second)) {
		t.Errorf("the lease ends in %v, at %v", left, got.Expires)
	}
	info := []string{"credstream/resolved/1", "default", id, got.Lease, "1", got.Expires.UTC().Format(time.RFC3339)}
	text, err := mine.open(got.Sealed, info...)
	if err != nil || text != `{"keys":{"apiKey":"canary-1","region":"eu"}}` {
		t.Errorf("opens to %q, %v", text, err)
	}
	if _, err := other.open(got.Sealed, info...); err == nil {
		t.Error("opens with another key")
	}
	zero := must(hpke.DHKEM(ecdh.X25519()).NewPrivateKey(make([]byte, 32)))(t)
	if _, err := (recipient{private: zero}).open(got.Sealed, info...); err == nil {
		t.Error("opens with the zero key")
	}
	for i := range info {
		changed := slices.Clone(info)
		changed[i] += "x"
		if _, err := mine.open(got.Sealed, changed...); err == nil {
			t.Errorf("opens with %q for %q", changed[i], info[i])
		}
	}
	facts := s.facts(service.ReplayAccess{})
	if len(facts) != 1 {
		t.Fatalf("%d facts", len(facts))
	}
	wantFact := service.Access{
		Seq: 1, Kind: "given", Time: facts[0].Time, Credential: id, Version: 1, Actor: "key:" + s.engine.Actor.ID, Flow: "orders", Step: "step_1",
		Via: "http", Recipient: facts[0].Recipient, Lease: got.Lease, Expires: got.Expires,
	}
	if diff := cmp.Diff(wantFact, facts[0]); diff != "" || len(facts[0].Recipient) != 64 || facts[0].Time.Before(begin.Add(-time.Millisecond)) {
		t.Errorf("the fact (-want +got):\n%s", diff)
	}
}

// facts replays the access log as an auditor.
func (s *stage) facts(in service.ReplayAccess) []service.Access {
	s.t.Helper()
	body := must(json.Marshal(in))(s.t)
	answer := must(s.svc.Serve(s.t.Context(), service.Call{Tenant: "default", Principal: s.admin, Via: "http"}, "access.replay", body))(s.t)
	return answer.(service.AccessReplay).Accesses
}

func TestResolveCleartext(t *testing.T) {
	s := newStage(t)
	id := s.create("canary-1")
	body := fmt.Sprintf(`{"id":%q,"cleartext":true}`, id)
	first, err := s.resolve(body)
	ok(t, err)
	for range 2 { // again within the lease
		again, err := s.resolve(body)
		ok(t, err)
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("again (-first +again):\n%s", diff)
		}
	}
	if got := string(first.Keys["apiKey"].(jsontext.Value)); got != `"canary-1"` || len(first.Keys) != 2 || first.Sealed != "" {
		t.Errorf("answers %+v", first)
	}
	if facts := s.facts(service.ReplayAccess{}); len(facts) != 1 || !facts[0].Cleartext || facts[0].Recipient != "" {
		t.Errorf("the facts are %+v", facts)
	}
}

// What is refused says why, and leaves no fact.
func TestResolveRefuses(t *testing.T) {
	s := newStage(t)
	id := s.create("canary-1")
	gone := s.create("canary-2")
	s.do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, gone))
	s.do("default", "tenant.register", `{"id":"ajax"}`)
	everywhere := s.issue("default", `{"role":"FLOW_ENGINE","tenants":["*"]}`)
	key := newRecipient(t).public
	zero := string(must(nkeys.Encode(nkeys.PrefixByteCurve, make([]byte, 32)))(t))
	account := string(must(nkeys.Encode(nkeys.PrefixByteAccount, make([]byte, 32)))(t))
	asked := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	overNATS := func(c *service.Call) { c.Via, c.Confidential = "nats", false }
	for _, c := range []struct {
		name, body, code string
		change           func(*service.Call)
	}{
		{"nobody to seal to", asked(`{"id":%q}`, id), "recipient_invalid", nil},
		{"both", asked(`{"id":%q,"public_key":%q,"cleartext":true}`, id, key), "recipient_invalid", nil},
		{"clear text is not wanted", asked(`{"id":%q,"cleartext":false}`, id), "recipient_invalid", nil},
		{"no key", asked(`{"id":%q,"public_key":"X"}`, id), "recipient_invalid", nil},
		{"a key that was cut", asked(`{"id":%q,"public_key":%q}`, id, key[:55]), "recipient_invalid", nil},
		{"a key with a slip", asked(`{"id":%q,"public_key":%q}`, id, key[:54]+"77"), "recipient_invalid", nil},
		{"another kind of key", asked(`{"id":%q,"public_key":%q}`, id, account), "recipient_invalid", nil},
		{"a key that makes no secret", asked(`{"id":%q,"public_key":%q}`, id, zero), "recipient_invalid", nil},
		{"clear text over NATS", asked(`{"id":%q,"cleartext":true}`, id), "cleartext_refused", overNATS},
		{"clear text where others listen", asked(`{"id":%q,"cleartext":true}`, id), "cleartext_refused", func(c *service.Call) { c.Confidential = false }},
		{"no id", asked(`{"public_key":%q}`, key), "member_missing", nil},
		{"an id that is none", asked(`{"id":"a\u0007","public_key":%q}`, key), "id_invalid", nil},
		{"a flow that is none", asked(`{"id":%q,"flow":"a\u0007","public_key":%q}`, id, key), "id_invalid", nil},
		{"a step that is none", asked(`{"id":%q,"step":"a\u0007","public_key":%q}`, id, key), "id_invalid", nil},
		{"an unknown member", asked(`{"id":%q,"key":%q}`, id, key), "body_invalid", nil},
		{"an unknown credential", asked(`{"id":"nope","public_key":%q}`, key), "credential_not_found", nil},
		{"a deleted one", asked(`{"id":%q,"public_key":%q}`, gone, key), "credential_not_found", nil},
		{"another tenant", asked(`{"id":%q,"public_key":%q}`, id, key), "tenant_not_found", func(c *service.Call) { c.Tenant = "ajax" }},
		{"one of another tenant", asked(`{"id":%q,"public_key":%q}`, id, key), "credential_not_found", func(c *service.Call) { c.Tenant, c.Principal = "ajax", everywhere }},
		{"an administrator", asked(`{"id":%q,"public_key":%q}`, id, key), "permission_denied", func(c *service.Call) { c.Principal = s.admin }},
	} {
		change := c.change
		if change == nil {
			change = func(*service.Call) {}
		}
		got, err := s.resolve(c.body, change)
		if codeOf(err) != c.code || got.Sealed != "" || got.Keys != nil {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	if told := s.access.told(); told != "" {
		t.Errorf("refusals are recorded as given: %s", told)
	}
	ok(t, second(s.resolve(asked(`{"id":%q,"public_key":%q}`, id, key), overNATS))) // sealed it may travel there
	low := errors.New("no space")
	s.writes.Store(&low)
	if _, err := s.resolve(asked(`{"id":%q,"public_key":%q}`, id, key), overNATS); !errors.Is(err, low) {
		t.Errorf("given while nothing may be written: %v", err)
	}
	s.writes.Store(nil)
	s.caughtUp()
	var denied []string
	answer := must(s.svc.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.admin, Via: "http"}, "events.replay", []byte(`{"type":"access.denied"}`)))(t)
	for _, e := range answer.(service.Replay).Events {
		var d struct{ Route, Principal string }
		ok(t, json.Unmarshal(e.Data, &d, json.MatchCaseInsensitiveNames(true)))
		denied = append(denied, d.Route+" "+strings.TrimPrefix(d.Principal, "key:"))
	}
	slices.Sort(denied)
	want := []string{"credential.resolve " + everywhere.Actor.ID, "credential.resolve " + s.admin.Actor.ID, "credential.resolve " + s.engine.Actor.ID}
	slices.Sort(want)
	if diff := cmp.Diff(want, denied); diff != "" {
		t.Errorf("traces of refusals (-want +got):\n%s", diff)
	}
}

func second[T any](_ T, err error) error { return err }

// The fact is durable before there is an answer; without it there is none.
func TestResolveNeedsTheAccessLog(t *testing.T) {
	s := newStage(t)
	id := s.create("canary-1")
	body := fmt.Sprintf(`{"id":%q,"cleartext":true}`, id)
	broken := errors.New("the disk says canary")
	s.access.before = func(service.AccessFact) error { return broken }
	got, err := s.resolve(body)
	if codeOf(err) != "access_log_unavailable" || fault.Of(err).Kind != fault.Unavailable || got.Keys != nil || got.Lease != "" {
		t.Errorf("without the access log: %+v, %v", got, err)
	}
	if strings.Contains(fault.Of(err).Msg, "canary") {
		t.Errorf("the caller is told %q", fault.Of(err).Msg)
	}
	s.access.before = nil
	answered := make(chan error, 1)
	stored, let := make(chan struct{}), make(chan struct{})
	s.access.after = func(service.AccessFact) { close(stored); <-let }
	go func() { answered <- second(s.resolve(body)) }()
	<-stored
	select {
	case err := <-answered:
		t.Errorf("answered before the fact was: %v", err)
	default:
	}
	s.access.after = nil
	close(let)
	ok(t, <-answered)
	// Within a lease nothing is recorded, so the access log may be away.
	s.access.before = func(service.AccessFact) error { return broken }
	ok(t, second(s.resolve(body)))
	if told := s.access.told(); told != "given 1" {
		t.Errorf("recorded: %s", told)
	}
}

// What changes while it is given away is not given: the fact is taken back, and
// the answer is what is in force by then, or that there is nothing.
func TestResolveLooksAgain(t *testing.T) {
	s := newStage(t)
	body := func(id string) string { return fmt.Sprintf(`{"id":%q,"cleartext":true}`, id) }
	during := func(what func(service.AccessFact)) {
		var once sync.Once
		s.access.after = func(f service.AccessFact) { once.Do(func() { what(f) }) }
	}
	deleted := s.create("canary-1")
	during(func(f service.AccessFact) {
		s.do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, f.Credential))
	})
	if got, err := s.resolve(body(deleted)); codeOf(err) != "credential_not_found" || got.Keys != nil {
		t.Errorf("deleted meanwhile: %+v, %v", got, err)
	}
	if told := s.access.told(); told != "given 1, withdrawn 1" {
		t.Errorf("deleted meanwhile: %s", told)
	}
	replaced := s.create("canary-2")
	during(func(f service.AccessFact) {
		s.do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-3"}}`, f.Credential))
	})
	got, err := s.resolve(body(replaced))
	if err != nil || got.Version != 2 || string(got.Keys["apiKey"].(jsontext.Value)) != `"canary-3"` {
		t.Errorf("replaced meanwhile: %+v, %v", got, err)
	}
	if told := s.access.told(); told != "given 1, withdrawn 1, given 2" {
		t.Errorf("replaced meanwhile: %s", told)
	}
	always := s.create("canary-4")
	s.access.after = func(f service.AccessFact) {
		if f.Kind == service.AccessGiven {
			s.do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-5"}}`, f.Credential))
		}
	}
	if got, err := s.resolve(body(always)); codeOf(err) != "conflict" || got.Keys != nil {
		t.Errorf("replaced again and again: %+v, %v", got, err)
	}
	// A change that leaves the values as they are is none.
	renamed := s.create("canary-6")
	s.access.told()
	during(func(f service.AccessFact) {
		s.do("default", "credential.rename", fmt.Sprintf(`{"id":%q,"name":"n"}`, f.Credential))
	})
	ok(t, second(s.resolve(body(renamed))))
	if told := s.access.told(); told != "given 1" {
		t.Errorf("renamed meanwhile: %s", told)
	}
	s.access.after = nil
	// The caller itself may be gone by then.
	doomed := s.issue("default", `{"role":"FLOW_ENGINE"}`)
	during(func(service.AccessFact) { s.do("default", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, doomed.Actor.ID)) })
	if got, err := s.resolve(body(s.create("canary-7")), func(c *service.Call) { c.Principal = doomed }); codeOf(err) != "api_key_unknown" || got.Keys != nil {
		t.Errorf("by a key that was revoked meanwhile: %+v, %v", got, err)
	}
}

// The same caller asking for the same thing gets the same lease, without another
// fact, as long as enough of it is left and nothing has changed.
func TestResolveWithinALease(t *testing.T) {
	s := newStage(t)
	id := s.create("canary-1")
	one, two := newRecipient(t), newRecipient(t)
	another := s.issue("default", `{"role":"FLOW_ENGINE"}`)
	ask := func(key recipient, flow, step string) string {
		return fmt.Sprintf(`{"id":%q,"flow":%q,"step":%q,"public_key":%q}`, id, flow, step, key.public)
	}
	first, err := s.resolve(ask(one, "f", "s"))
	ok(t, err)
	s.access.told()
	same := func(why string) {
		t.Helper()
		got, err := s.resolve(ask(one, "f", "s"))
		if diff := cmp.Diff(first, got); err != nil || diff != "" {
			t.Errorf("%s: %v, another answer (-first +got):\n%s", why, err, diff)
		}
		if told := s.access.told(); told != "" {
			t.Errorf("%s: recorded %s", why, told)
		}
	}
	fresh := func(why, told string, got service.ResolvedCredential, err error) {
		t.Helper()
		if err != nil || got.Lease == first.Lease || got.Sealed == first.Sealed {
			t.Errorf("%s: %v, the same lease", why, err)
		}
		if got := s.access.told(); got != told {
			t.Errorf("%s: recorded %q, want %q", why, got, told)
		}
	}
	same("at once")
	got, err := s.resolve(ask(one, "g", "s"))
	fresh("another flow", "given 1", got, err)
	got, err = s.resolve(ask(one, "f", "t"))
	fresh("another step", "given 1", got, err)
	got, err = s.resolve(ask(two, "f", "s"))
	fresh("another recipient", "given 1", got, err)
	got, err = s.resolve(ask(one, "f", "s"), func(c *service.Call) { c.Principal = another })
	fresh("another caller", "given 1", got, err)
	s.do("default", "credential.rename", fmt.Sprintf(`{"id":%q,"name":"n"}`, id))
	same("after a change of its name")
	s.skew.Store(int64(8*time.Minute + 50*time.Second))
	same("with more than a tenth left")
	s.skew.Store(int64(9*time.Minute + 10*time.Second))
	got, err = s.resolve(ask(one, "f", "s"))
	fresh("with less than a tenth left", "given 1", got, err)
	first = got
	same("the next lease")
	s.do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-2"}}`, id))
	got, err = s.resolve(ask(one, "f", "s"))
	fresh("with other keys", "given 2", got, err)
	// Every answer within a lease is checked as the first one was.
	doomed := s.issue("default", `{"permissions":["credentials.resolve"]}`)
	as := func(p service.Principal) func(*service.Call) { return func(c *service.Call) { c.Principal = p } }
	ok(t, second(s.resolve(ask(one, "f", "s"), as(doomed))))
	ok(t, second(s.resolve(ask(one, "f", "s"), as(doomed))))
	s.do("default", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, doomed.Actor.ID))
	if _, err := s.resolve(ask(one, "f", "s"), as(doomed)); codeOf(err) != "api_key_unknown" {
		t.Errorf("by a key that was revoked: %v", err)
	}
	less := s.engine
	less.Role = service.Operator
	if _, err := s.resolve(ask(one, "f", "s"), as(less)); codeOf(err) != "permission_denied" {
		t.Errorf("without the permission: %v", err)
	}
	s.do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, id))
	if _, err := s.resolve(ask(one, "f", "s")); codeOf(err) != "credential_not_found" {
		t.Errorf("after its end: %v", err)
	}
}

// Of an OAuth credential the access token is given, never the refresh token, and no
// lease is longer than the token lives.
func TestResolveOAuth(t *testing.T) {
	s := newStage(t)
	s.do("default", "component.register", `{"id":"sheets","descriptor":{"title":"Sheets","useOAuthClient":true,
		"oauth2":{"auth_uri":"https://provider.example.org/auth","token_uri":"https://provider.example.org/token"},
		"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}}}}}`)
	s.do("default", "oauth_client.define", `{"component":"sheets","client_id":"c","client_secret":"s"}`)
	id := s.do("default", "credential.create",
		`{"component":"sheets","keys":{"oauth":{"access_token":"canary-a","refresh_token":"canary-r","expires_in":300}}}`).ID
	begin := time.Now()
	got, err := s.resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, id))
	ok(t, err)
	if text := string(got.Keys["oauth"].(jsontext.Value)); !strings.Contains(text, "canary-a") || strings.Contains(text, "canary-r") || strings.Contains(text, "refresh_token") {
		t.Errorf("the values are %s", text)
	}
	if left := got.Expires.Sub(begin); left > 5*time.Minute || left < 4*time.Minute {
		t.Errorf("the lease ends in %v, the token in 5m", left)
	}
	if facts := s.facts(service.ReplayAccess{Credential: id}); len(facts) != 1 || facts[0].Grant != 1 {
		t.Errorf("the facts are %+v", facts)
	}
}

// Who had what, and who may still have it.
func TestAccessReplayAndLeases(t *testing.T) {
	s := newStage(t)
	keep, change, remove := s.create("canary-1"), s.create("canary-2"), s.create("canary-3")
	other := s.issue("default", `{"role":"FLOW_ENGINE"}`)
	key := newRecipient(t).public
	ask := func(id, flow string, p service.Principal) {
		t.Helper()
		ok(t, second(s.resolve(fmt.Sprintf(`{"id":%q,"flow":%q,"public_key":%q}`, id, flow, key), func(c *service.Call) { c.Principal = p })))
	}
	s.skew.Store(int64(-time.Hour))
	ask(keep, "long ago", s.engine)
	s.skew.Store(0)
	for _, id := range []string{keep, change, remove} {
		ask(id, "now", s.engine)
		ask(id, "now", other)
	}
	s.do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-4"}}`, change))
	s.do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, remove))
	withdrawn := s.create("canary-5")
	s.access.after = func(f service.AccessFact) {
		if f.Kind == service.AccessGiven {
			s.do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, f.Credential))
		}
	}
	if _, err := s.resolve(fmt.Sprintf(`{"id":%q,"public_key":%q}`, withdrawn, key)); codeOf(err) != "credential_not_found" {
		t.Fatal(err)
	}
	s.access.after = nil
	names := map[string]string{keep: "keep", change: "change", remove: "remove", withdrawn: "withdrawn", "key:" + s.engine.Actor.ID: "engine", "key:" + other.Actor.ID: "other"}
	accesses := func(body string) (list []string, next uint64) {
		t.Helper()
		answer := must(s.svc.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.admin, Via: "http"}, "access.replay", []byte(body)))(t)
		page := answer.(service.AccessReplay)
		for _, a := range page.Accesses {
			list = append(list, fmt.Sprint(a.Seq, " ", a.Kind, " ", names[a.Credential], " ", names[a.Actor]))
		}
		return list, page.Next
	}
	all := []string{
		"1 given keep engine", "2 given keep engine", "3 given keep other", "4 given change engine", "5 given change other",
		"6 given remove engine", "7 given remove other", "8 given withdrawn engine", "9 withdrawn withdrawn engine",
	}
	for _, c := range []struct {
		name, body string
		want       []string
		next       uint64
	}{
		{"all", `{}`, all, 0},
		{"a credential", fmt.Sprintf(`{"credential":%q}`, change), all[3:5], 0},
		{"one that is gone", fmt.Sprintf(`{"credential":%q}`, remove), all[5:7], 0},
		{"one that never was", `{"credential":"never"}`, nil, 0},
		{"an actor", fmt.Sprintf(`{"actor":"key:%s"}`, other.Actor.ID), []string{all[2], all[4], all[6]}, 0},
		{"an actor's first", fmt.Sprintf(`{"actor":"key:%s","limit":1}`, other.Actor.ID), all[2:3], 4},
		{"a time", fmt.Sprintf(`{"since":%q}`, time.Now().Add(-time.Minute).Format(time.RFC3339)), all[1:], 0},
		{"a page", `{"limit":4}`, all[:4], 5},
		{"the next", `{"limit":4,"from":5}`, all[4:8], 9},
		{"the last", `{"limit":4,"from":9}`, all[8:], 0},
		{"exactly all", `{"limit":9}`, all, 0},
	} {
		got, next := accesses(c.body)
		if diff := cmp.Diff(c.want, got); diff != "" || next != c.next {
			t.Errorf("%s: next %d, want %d (-want +got):\n%s", c.name, next, c.next, diff)
		}
	}
	leases := func(body string) (list []string) {
		t.Helper()
		answer := must(s.svc.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.admin, Via: "http"}, "lease.list", []byte(body)))(t)
		for _, l := range answer.(service.LeaseList).Leases {
			list = append(list, fmt.Sprint(names[l.Credential], " ", names[l.Actor], " ", l.Revoked))
		}
		return list
	}
	want := []string{"keep engine false", "keep other false", "change engine true", "change other true", "remove engine true", "remove other true"}
	if diff := cmp.Diff(want, leases(`{}`)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[2:4], leases(fmt.Sprintf(`{"credential":%q}`, change))); diff != "" {
		t.Errorf("leases of one credential (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[3:4], leases(fmt.Sprintf(`{"credential":%q,"actor":"key:%s"}`, change, other.Actor.ID))); diff != "" {
		t.Errorf("leases of one caller (-want +got):\n%s", diff)
	}
	if n := s.gauge("credstream_leases_outstanding"); n != 6 {
		t.Errorf("%v leases are outstanding, by the gauge", n)
	}
	s.skew.Store(int64(11 * time.Minute))
	if left := leases(`{}`); left != nil {
		t.Errorf("leases after their time: %v", left)
	}
	if n := s.gauge("credstream_leases_outstanding"); n != 0 {
		t.Errorf("%v leases are outstanding after their time, by the gauge", n)
	}
	for _, c := range []struct{ route, body, code string }{
		{"access.replay", `{"limit":1001}`, "limit_invalid"},
		{"access.replay", `{"credential":"a\u0007"}`, "id_invalid"},
		{"lease.list", `{"limit":-1}`, "limit_invalid"},
	} {
		if _, err := s.svc.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.admin, Via: "http"}, c.route, []byte(c.body)); codeOf(err) != c.code {
			t.Errorf("%s %s: %v", c.route, c.body, err)
		}
	}
	for _, route := range []string{"access.replay", "lease.list"} {
		if _, err := s.svc.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.engine, Via: "http"}, route, []byte(`{}`)); codeOf(err) != "permission_denied" {
			t.Errorf("%s of an engine: %v", route, err)
		}
	}
	if strings.Contains(s.logs.String(), "canary") {
		t.Error("a secret is in the log")
	}
}

// gauge is the value of a metric without labels.
func (s *stage) gauge(name string) float64 {
	s.t.Helper()
	for _, family := range must(s.metrics.Gather())(s.t) {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	s.t.Fatalf("there is no metric %s", name)
	return 0
}

// BenchmarkResolve measures the service without an edge: within a lease, and with a
// new one each time.
func BenchmarkResolve(b *testing.B) {
	s := newStage(b)
	id := s.create("a-secret-key-of-some-length")
	key := newRecipient(b).public
	call := service.Call{Tenant: "default", Principal: s.engine, Via: "http", Confidential: true}
	run := func(name string, body func(n uint64) string) {
		b.Run(name, func(b *testing.B) {
			var n atomic.Uint64
			b.SetParallelism(32) // 64 clients on two cores
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.svc.Serve(b.Context(), call, "credential.resolve", []byte(body(n.Add(1)))); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "resolves/s")
		})
	}
	run("within a lease", func(uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"f","public_key":%q}`, id, key) })
	run("new lease", func(n uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"%d","public_key":%q}`, id, n, key) })
	run("clear text, within a lease", func(uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"f","cleartext":true}`, id) })
	run("clear text, new lease", func(n uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"c%d","cleartext":true}`, id, n) })
}
