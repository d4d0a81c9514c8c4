package seal_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/seal"
)

func bucket(tb testing.TB) (jetstream.JetStream, jetstream.KeyValue) {
	tb.Helper()
	srv, err := server.NewServer(&server.Options{DontListen: true, JetStream: true, StoreDir: tb.TempDir(), NoSigs: true, NoLog: true})
	if err != nil {
		tb.Fatal(err)
	}
	srv.Start()
	tb.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		tb.Fatal("the server does not start")
	}
	nc, err := nats.Connect("", nats.InProcessServer(srv))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		tb.Fatal(err)
	}
	kv, err := js.CreateKeyValue(tb.Context(), jetstream.KeyValueConfig{Bucket: "CREDSTREAM_KEYS", History: 2})
	if err != nil {
		tb.Fatal(err)
	}
	return js, kv
}

func TestKVKeysets(t *testing.T) {
	ctx := t.Context()
	var syncs atomic.Int64
	js, kv := bucket(t)
	store := seal.NewKVKeysets(js, kv, func(context.Context) error { syncs.Add(1); return nil })

	if _, _, err := store.Keyset(ctx, "acme"); !errors.Is(err, seal.ErrNoKeyset) {
		t.Errorf("Keyset of none: %v", err)
	}
	if err := store.CreateKeyset(ctx, "acme", []byte("one")); err != nil {
		t.Fatal(err)
	}
	if syncs.Load() != 1 {
		t.Error("CreateKeyset returned without a sync")
	}
	if err := store.CreateKeyset(ctx, "acme", []byte("two")); !errors.Is(err, seal.ErrKeysetExists) {
		t.Errorf("a second CreateKeyset: %v", err)
	}
	got, revision, err := store.Keyset(ctx, "acme")
	if err != nil || string(got) != "one" {
		t.Fatalf("Keyset = %q, %v", got, err)
	}
	if err := store.UpdateKeyset(ctx, "acme", []byte("two"), revision); err != nil {
		t.Fatal(err)
	}
	if syncs.Load() != 2 {
		t.Error("UpdateKeyset returned without a sync")
	}
	if err := store.UpdateKeyset(ctx, "acme", []byte("three"), revision); !errors.Is(err, seal.ErrKeysetExists) {
		t.Errorf("UpdateKeyset of an old revision: %v", err)
	}
	if got, later, err := store.Keyset(ctx, "acme"); err != nil || string(got) != "two" || later <= revision {
		t.Errorf("Keyset = %q, %d, %v", got, later, err)
	}
	if syncs.Load() != 2 {
		t.Error("what is durable was synced again")
	}
	if err := store.CreateKeyset(ctx, "_system", []byte("sys")); err != nil {
		t.Errorf("the system's own keyset: %v", err)
	}
}

// What another writer left unsynced is synced before it is given out.
func TestKVKeysetsGiveOutDurableKeysOnly(t *testing.T) {
	ctx := t.Context()
	js, kv := bucket(t)
	broken := errors.New("input/output error")
	writer := seal.NewKVKeysets(js, kv, func(context.Context) error { return broken })
	if err := writer.CreateKeyset(ctx, "acme", []byte("one")); !errors.Is(err, broken) {
		t.Errorf("CreateKeyset = %v", err)
	}
	if _, _, err := writer.Keyset(ctx, "acme"); !errors.Is(err, broken) {
		t.Errorf("Keyset = %v", err)
	}
	var syncs atomic.Int64
	reader := seal.NewKVKeysets(js, kv, func(context.Context) error { syncs.Add(1); return nil })
	if _, _, err := reader.Keyset(ctx, "acme"); err != nil || syncs.Load() != 1 {
		t.Errorf("%v after %d syncs", err, syncs.Load())
	}
}

func TestKeyringOverKV(t *testing.T) {
	ctx := t.Context()
	js, kv := bucket(t)
	kms := keyFile(t)
	k := seal.NewKeyring(kms, seal.NewKVKeysets(js, kv, nil))
	ensure(t, k, "acme")
	sealed, err := k.Seal(ctx, "acme", seal.NewSecret([]byte("swordfish")), nil)
	if err != nil {
		t.Fatal(err)
	}
	fresh := seal.NewKeyring(kms, seal.NewKVKeysets(js, kv, nil))
	if got, err := fresh.Open(ctx, "acme", sealed, nil); err != nil || string(got.Reveal()) != "swordfish" {
		t.Errorf("%q, %v", got.Reveal(), err)
	}
}

// late reads from a replica that has not heard of any key yet.
type late struct{ jetstream.KeyValue }

func (late) Get(context.Context, string) (jetstream.KeyValueEntry, error) {
	return nil, jetstream.ErrKeyNotFound
}

// Only the leader can say that there is no keyset: a replica may be behind.
func TestKVKeysetsOnALateReplica(t *testing.T) {
	ctx := t.Context()
	js, kv := bucket(t)
	store := seal.NewKVKeysets(js, late{kv}, nil)
	kms := keyFile(t)
	ensure(t, seal.NewKeyring(kms, store), "acme")
	if err := seal.NewKeyring(kms, store).Check(ctx, []string{"acme"}); err != nil {
		t.Error(err)
	}
	if _, revision, err := store.Keyset(ctx, "acme"); err != nil || revision != 1 {
		t.Errorf("revision %d, %v", revision, err)
	}
	if _, _, err := store.Keyset(ctx, "beta"); !errors.Is(err, seal.ErrNoKeyset) {
		t.Errorf("no keyset at all: %v", err)
	}
	if err := kv.Delete(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := store.Keyset(ctx, "acme"); !errors.Is(err, seal.ErrNoKeyset) {
		t.Errorf("a deleted keyset: %v", err)
	}
}
