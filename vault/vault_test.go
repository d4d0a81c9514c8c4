package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
)

// node is an embedded server with the vault's stream and a keyring.
type node struct {
	dir   string
	srv   *server.Server
	nc    *nats.Conn
	js    jetstream.JetStream
	keys  *seal.Keyring
	syncs atomic.Int64
}

func startServer(tb testing.TB, dir string) *server.Server {
	tb.Helper()
	srv, err := server.NewServer(&server.Options{
		DontListen: true, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true,
	})
	if err != nil {
		tb.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		tb.Fatal("the server does not start")
	}
	tb.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	return srv
}

func connect(tb testing.TB, srv *server.Server) (*nats.Conn, jetstream.JetStream) {
	tb.Helper()
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		tb.Fatal(err)
	}
	return nc, js
}

func startNode(tb testing.TB, dir string, tenants ...string) *node {
	tb.Helper()
	n := &node{dir: dir, srv: startServer(tb, filepath.Join(dir, "js"))}
	n.nc, n.js = connect(tb, n.srv)
	ctx := tb.Context()
	if _, err := n.js.CreateOrUpdateStream(ctx, vault.StreamConfig(1)); err != nil {
		tb.Fatal(err)
	}
	kv, err := n.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "CREDSTREAM_KEYS", History: 2})
	if err != nil {
		tb.Fatal(err)
	}
	keyFile := filepath.Join(dir, "kms.key")
	if err := seal.CreateKeyFile(keyFile); err != nil && !errors.Is(err, fs.ErrExist) {
		tb.Fatal(err)
	}
	kms, err := seal.OpenKMS(ctx, seal.KMS{URL: "file://" + keyFile})
	if err != nil {
		tb.Fatal(err)
	}
	n.keys = seal.NewKeyring(kms, seal.NewKVKeysets(n.js, kv, nil))
	for _, tenant := range tenants {
		if err := n.keys.Ensure(ctx, tenant); err != nil {
			tb.Fatal(err)
		}
	}
	return n
}

func (n *node) stop() {
	n.nc.Close()
	n.srv.Shutdown()
	n.srv.WaitForShutdown()
}

func (n *node) vault() *vault.Vault {
	return vault.New(n.js, n.keys, func(context.Context) error { n.syncs.Add(1); return nil })
}

func ref(id string) vault.Ref {
	return vault.Ref{Tenant: "acme", Category: "credential", Owner: "c1", SecretID: id}
}

func secret(s string) seal.Secret { return seal.NewSecret([]byte(s)) }

// stored returns the message of a ref as it stands in the stream.
func (n *node) stored(tb testing.TB, r vault.Ref) *jetstream.RawStreamMsg {
	tb.Helper()
	stream, err := n.js.Stream(tb.Context(), vault.Stream)
	if err != nil {
		tb.Fatal(err)
	}
	m, err := stream.GetLastMsgForSubject(tb.Context(), subject(r))
	if err != nil {
		tb.Fatal(err)
	}
	return m
}

func subject(r vault.Ref) string {
	return "credstream.vault." + r.Tenant + "." + r.Category + "." + events.Token(r.Owner) + "." + r.SecretID
}

// filesWith names the files below dir that hold needle.
func filesWith(tb testing.TB, dir string, needle []byte) []string {
	tb.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || d.IsDir() { // the server replaces files meanwhile
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if bytes.Contains(b, needle) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return found
}

func TestPutGetErase(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir, "acme")
	v, ctx := n.vault(), t.Context()

	if err := v.Put(ctx, ref("s1"), secret("swordfish")); err != nil {
		t.Fatal(err)
	}
	if files := filesWith(t, dir, []byte("swordfish")); len(files) > 0 {
		t.Errorf("the clear text is in %v", files)
	}
	if n.syncs.Load() == 0 {
		t.Error("Put returned without a sync")
	}
	got, err := v.Get(ctx, ref("s1"))
	if err != nil || string(got.Reveal()) != "swordfish" {
		t.Fatalf("Get = %q, %v", got.Reveal(), err)
	}
	if err := v.Put(ctx, ref("s1"), secret("swordfish")); !errors.Is(err, vault.ErrExists) {
		t.Errorf("a second Put under one id: %v", err)
	}
	if _, err := v.Get(ctx, ref("s2")); !errors.Is(err, vault.ErrNoSecret) {
		t.Errorf("Get of none: %v", err)
	}
	before := n.syncs.Load()
	if err := v.Erase(ctx, ref("s1")); err != nil {
		t.Fatal(err)
	}
	if n.syncs.Load() == before {
		t.Error("Erase returned without a sync")
	}
	if _, err := v.Get(ctx, ref("s1")); !errors.Is(err, vault.ErrNoSecret) {
		t.Errorf("Get after Erase: %v", err)
	}
	if err := v.Erase(ctx, ref("s1")); err != nil {
		t.Errorf("a second Erase: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	v, ctx := n.vault(), t.Context()
	good := ref("s1")
	for name, bad := range map[string]func(*vault.Ref){
		"no tenant":           func(r *vault.Ref) { r.Tenant = "" },
		"wildcard tenant":     func(r *vault.Ref) { r.Tenant = "*" },
		"dotted category":     func(r *vault.Ref) { r.Category = "a.b" },
		"owner with NUL":      func(r *vault.Ref) { r.Owner = "a\x00" },
		"long owner":          func(r *vault.Ref) { r.Owner = strings.Repeat("a", 129) },
		"wildcard secret id":  func(r *vault.Ref) { r.SecretID = ">" },
		"secret id of tokens": func(r *vault.Ref) { r.SecretID = "a.b" },
	} {
		r := good
		bad(&r)
		_, getErr := v.Get(ctx, r)
		for op, err := range map[string]error{"Put": v.Put(ctx, r, secret("x")), "Get": getErr, "Erase": v.Erase(ctx, r)} {
			if !errors.Is(err, events.ErrID) {
				t.Errorf("%s: %s = %v", name, op, err)
			}
		}
	}
	if err := v.Put(ctx, good, seal.NewSecret(make([]byte, vault.MaxSecret+1))); !errors.Is(err, vault.ErrTooLarge) {
		t.Errorf("a secret above the limit: %v", err)
	}
	if err := v.Put(ctx, good, seal.NewSecret(make([]byte, vault.MaxSecret))); err != nil {
		t.Errorf("a secret at the limit: %v", err)
	}
	other := good
	other.Tenant = "nobody"
	if err := v.Put(ctx, other, secret("x")); !errors.Is(err, seal.ErrNoKeyset) {
		t.Errorf("a tenant without keys: %v", err)
	}
}

// What is copied elsewhere does not open there.
func TestMovedSecretDoesNotOpen(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme", "evil")
	v, ctx := n.vault(), t.Context()
	home := ref("s1")
	if err := v.Put(ctx, home, secret("swordfish")); err != nil {
		t.Fatal(err)
	}
	raw := n.stored(t, home)
	for name, move := range map[string]func(*vault.Ref){
		"tenant":    func(r *vault.Ref) { r.Tenant = "evil" },
		"category":  func(r *vault.Ref) { r.Category = "connector" },
		"owner":     func(r *vault.Ref) { r.Owner = "c2" },
		"secret id": func(r *vault.Ref) { r.SecretID = "s2" },
	} {
		r := home
		move(&r)
		if _, err := n.js.PublishMsg(ctx, &nats.Msg{Subject: subject(r), Header: raw.Header, Data: raw.Data}); err != nil {
			t.Fatal(err)
		}
		if got, err := v.Get(ctx, r); !errors.Is(err, seal.ErrSecretUnopenable) {
			t.Errorf("another %s: %q, %v", name, got.Reveal(), err)
		}
	}
}

func TestUnknownFormatStopsTheReader(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	v, ctx := n.vault(), t.Context()
	if err := v.Put(ctx, ref("s1"), secret("swordfish")); err != nil {
		t.Fatal(err)
	}
	raw := n.stored(t, ref("s1"))
	for name, change := range map[string]func(*nats.Msg){
		"header":     func(m *nats.Msg) { m.Header.Set("Cs-Format", "2") },
		"no header":  func(m *nats.Msg) { m.Header.Del("Cs-Format") },
		"body":       func(m *nats.Msg) { m.Data[0] = 2 },
		"empty body": func(m *nats.Msg) { m.Data = nil },
	} {
		r := ref(strings.ReplaceAll(name, " ", "-"))
		m := &nats.Msg{Subject: subject(r), Header: nats.Header{"Cs-Format": {raw.Header.Get("Cs-Format")}}, Data: bytes.Clone(raw.Data)}
		change(m)
		if _, err := n.js.PublishMsg(ctx, m); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Get(ctx, r); err == nil || errors.Is(err, seal.ErrSecretUnopenable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOwnedAndAll(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme", "beta")
	v, ctx := n.vault(), t.Context()
	refs := []vault.Ref{
		ref("s1"), ref("s2"),
		{Tenant: "acme", Category: "credential", Owner: "AAABcID5GBc=", SecretID: "s1"},
		{Tenant: "acme", Category: "credential", Owner: "AAABcID5GBc", SecretID: "s1"},
		{Tenant: "acme", Category: "component", Owner: "c1", SecretID: "s1"},
		{Tenant: "beta", Category: "credential", Owner: "c1", SecretID: "s1"},
	}
	empty := 0
	for range v.All(ctx, 1) {
		empty++
	}
	if empty != 0 {
		t.Errorf("All of an empty vault yields %d", empty)
	}
	for _, r := range refs {
		if err := v.Put(ctx, r, secret("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Erase(ctx, refs[1]); err != nil {
		t.Fatal(err)
	}
	left := append(refs[:1:1], refs[2:]...)

	for _, owner := range []vault.Ref{left[0], left[1], left[2], left[3], left[4]} {
		got, err := v.Owned(ctx, owner.Tenant, owner.Category, owner.Owner)
		if err != nil || len(got) != 1 || got[0].Ref != owner || got[0].Seq == 0 || got[0].Stored.IsZero() {
			t.Errorf("Owned(%v) = %v, %v", owner, got, err)
		}
	}
	if got, err := v.Owned(ctx, "acme", "credential", "nobody"); err != nil || len(got) != 0 {
		t.Errorf("Owned of nobody = %v, %v", got, err)
	}

	var all []vault.Ref
	for e, err := range v.All(ctx, 1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Seq == 0 || e.Stored.IsZero() {
			t.Errorf("entry %+v", e)
		}
		all = append(all, e.Ref)
	}
	if diff := cmp.Diff(left, all); diff != "" {
		t.Errorf("All (-want +got):\n%s", diff)
	}
	for range v.All(ctx, 1) { // broken off
		break
	}
	cancelled, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error
	for _, err := range v.All(cancelled, 1) {
		cancel()
		failed = err
	}
	if !errors.Is(failed, context.Canceled) {
		t.Errorf("All of a context that ended: %v", failed)
	}
	stream, err := n.js.Stream(ctx, vault.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if c := stream.CachedInfo().State.Consumers; c != 0 {
		t.Errorf("%d consumers are left behind", c)
	}
}

// The stream takes neither a purge nor a message in place of another.
func TestStreamGuardsItsMessages(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	v, ctx := n.vault(), t.Context()
	if err := v.Put(ctx, ref("s1"), secret("x")); err != nil {
		t.Fatal(err)
	}
	stream, err := n.js.Stream(ctx, vault.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(ctx); err == nil {
		t.Error("the stream was purged")
	}
	if _, err := n.js.Publish(ctx, subject(ref("s1")), nil); err != nil {
		t.Errorf("a second message, as sealing anew needs: %v", err)
	}
	if _, err := n.js.Publish(ctx, subject(ref("s1")), nil); err == nil {
		t.Error("a third message was taken")
	}
	if err := v.Erase(ctx, ref("s1")); err != nil {
		t.Fatal(err)
	}
	if got, err := v.Owned(ctx, "acme", "credential", "c1"); err != nil || len(got) != 0 {
		t.Errorf("after Erase of two messages: %v, %v", got, err)
	}
}

// deafJS publishes and then tells nothing of it, as when an answer is lost.
type deafJS struct {
	jetstream.JetStream
	deaf  atomic.Int64 // so many answers get lost
	drop  bool         // the messages, too
	calls atomic.Int64
}

func (d *deafJS) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	d.calls.Add(1)
	if d.deaf.Add(-1) < 0 {
		return d.JetStream.PublishMsg(ctx, m, opts...)
	}
	if !d.drop {
		if _, err := d.JetStream.PublishMsg(ctx, m, opts...); err != nil {
			return nil, err
		}
	}
	return nil, nats.ErrTimeout
}

func TestUnknownOutcomes(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	for _, c := range []struct {
		name  string
		deaf  int64
		drop  bool
		taken bool  // another secret stands there
		calls int64 // publishes
		want  error
	}{
		{name: "answer lost", deaf: 1, calls: 1},
		{name: "message lost", deaf: 1, drop: true, calls: 2},
		{name: "messages and an answer lost", deaf: 3, drop: true, calls: 4},
		{name: "all messages lost", deaf: 99, drop: true, calls: 4, want: vault.ErrUnknownOutcome},
		{name: "message lost and the place taken", deaf: 1, drop: true, taken: true, calls: 1, want: vault.ErrExists},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := t.Context()
			js := &deafJS{JetStream: n.js, drop: c.drop}
			js.deaf.Store(c.deaf)
			v := vault.New(js, n.keys, nil)
			r := ref(strings.ReplaceAll(c.name, " ", "-"))
			if c.taken {
				if err := n.vault().Put(ctx, r, secret("first")); err != nil {
					t.Fatal(err)
				}
			}
			if err := v.Put(ctx, r, secret("swordfish")); !errors.Is(err, c.want) {
				t.Fatalf("Put = %v, want %v", err, c.want)
			}
			if got := js.calls.Load(); got != c.calls {
				t.Errorf("%d publishes, want %d", got, c.calls)
			}
			if c.want != nil {
				return
			}
			if got, err := v.Get(ctx, r); err != nil || string(got.Reveal()) != "swordfish" {
				t.Errorf("Get = %q, %v", got.Reveal(), err)
			}
		})
	}
}

// A caller whose time is up while the answer is on its way still learns what happened.
func TestPutLearnsTheOutcomeAfterItsTime(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	ctx, cancel := context.WithCancel(t.Context())
	v := vault.New(&cancellingJS{n.js, cancel}, n.keys, nil)
	if err := v.Put(ctx, ref("s1"), secret("swordfish")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.vault().Get(t.Context(), ref("s1")); err != nil {
		t.Error(err)
	}
}

type cancellingJS struct {
	jetstream.JetStream
	cancel context.CancelFunc
}

func (j *cancellingJS) PublishMsg(ctx context.Context, m *nats.Msg, opts ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if _, err := j.JetStream.PublishMsg(ctx, m, opts...); err != nil {
		return nil, err
	}
	j.cancel()
	return nil, ctx.Err()
}

func TestSyncFailureIsAnError(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	broken := errors.New("input/output error")
	v := vault.New(n.js, n.keys, func(context.Context) error { return broken })
	if err := v.Put(t.Context(), ref("s1"), secret("x")); !errors.Is(err, broken) {
		t.Errorf("Put = %v", err)
	}
	if err := v.Erase(t.Context(), ref("s1")); !errors.Is(err, broken) {
		t.Errorf("Erase = %v", err)
	}
}

// One of many who put under one id wins, and its secret is the one stored.
func TestRacingPuts(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	v, ctx := n.vault(), t.Context()
	const racers = 16
	errs := make([]error, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { errs[i] = v.Put(ctx, ref("s1"), secret(fmt.Sprint("secret ", i))) })
	}
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err == nil && winner < 0:
			winner = i
		case !errors.Is(err, vault.ErrExists):
			t.Errorf("racer %d: %v (another winner: %d)", i, err, winner)
		}
	}
	got, err := v.Get(ctx, ref("s1"))
	if err != nil || string(got.Reveal()) != fmt.Sprint("secret ", winner) {
		t.Errorf("Get = %q, %v; the winner is %d", got.Reveal(), err, winner)
	}
}

func FuzzAssociatedDataIsInjective(f *testing.F) {
	f.Add("acme", "credential", "c1", "s1", "acme", "credential", "c1s", "1")
	f.Add("a", "", "", "", "", "a", "", "")
	f.Add("a\x00\x00\x00\x01b", "", "", "", "a", "b", "", "")
	f.Fuzz(func(t *testing.T, a1, a2, a3, a4, b1, b2, b3, b4 string) {
		a := vault.Ref{Tenant: a1, Category: a2, Owner: a3, SecretID: a4}
		b := vault.Ref{Tenant: b1, Category: b2, Owner: b3, SecretID: b4}
		if same := bytes.Equal(a.AssociatedData(), b.AssociatedData()); same != (a == b) {
			t.Errorf("%+v and %+v: same bytes is %v", a, b, same)
		}
	})
}
