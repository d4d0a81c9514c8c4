package seal_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

// memStore is a KeysetStore in memory.
type memStore struct {
	mu        sync.Mutex
	entries   map[string][]byte
	revisions map[string]uint64
	reads     atomic.Int64
	lose      bool // the answer of a create is lost
}

func newMemStore() *memStore {
	return &memStore{entries: map[string][]byte{}, revisions: map[string]uint64{}}
}

func (s *memStore) Keyset(_ context.Context, tenant string) ([]byte, uint64, error) {
	s.reads.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.entries[tenant]
	if !ok {
		return nil, 0, seal.ErrNoKeyset
	}
	return bytes.Clone(b), s.revisions[tenant], nil
}

func (s *memStore) CreateKeyset(_ context.Context, tenant string, wrapped []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.entries[tenant]; ok {
		return seal.ErrKeysetExists
	}
	s.entries[tenant] = bytes.Clone(wrapped)
	if s.lose {
		return context.DeadlineExceeded
	}
	return nil
}

func (s *memStore) NewestKeyset(ctx context.Context, tenant string) ([]byte, uint64, error) {
	return s.Keyset(ctx, tenant)
}

func (s *memStore) UpdateKeyset(_ context.Context, tenant string, wrapped []byte, revision uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revisions[tenant] != revision {
		return seal.ErrKeysetExists
	}
	s.entries[tenant] = bytes.Clone(wrapped)
	s.revisions[tenant]++
	return nil
}

func (s *memStore) RemoveEarlier(context.Context, string, uint64) error { return nil }

func (s *memStore) RemoveKeyset(_ context.Context, tenant string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.entries, tenant)
	return nil
}

func (s *memStore) swap(a, b string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[a], s.entries[b] = s.entries[b], s.entries[a]
	s.revisions[a]++
	s.revisions[b]++
}

// keyFile makes a KMS key.
func keyFile(tb testing.TB) tink.AEAD {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "kms.key")
	if err := seal.CreateKeyFile(path); err != nil {
		tb.Fatal(err)
	}
	kms, err := seal.OpenKMS(tb.Context(), seal.KMS{URL: "file://" + path})
	if err != nil {
		tb.Fatal(err)
	}
	return kms
}

func ensure(tb testing.TB, k *seal.Keyring, tenants ...string) {
	tb.Helper()
	for _, tenant := range tenants {
		if err := k.Ensure(tb.Context(), tenant); err != nil {
			tb.Fatal(err)
		}
	}
}

func TestSealOpen(t *testing.T) {
	ctx := t.Context()
	kms, store := keyFile(t), newMemStore()
	k := seal.NewKeyring(kms, store)
	ensure(t, k, "acme", "evil", "acme")

	secret := seal.NewSecret([]byte("swordfish"))
	sealed, err := k.Seal(ctx, "acme", secret, []byte("here"))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, []byte("swordfish")) {
		t.Error("sealed bytes hold the clear text")
	}
	for name, ring := range map[string]*seal.Keyring{"same": k, "fresh": seal.NewKeyring(kms, store)} {
		got, err := ring.Open(ctx, "acme", sealed, []byte("here"))
		if err != nil || !got.Equal(secret) {
			t.Errorf("%s keyring: %q, %v", name, got.Reveal(), err)
		}
	}
	flipped := bytes.Clone(sealed)
	flipped[len(flipped)-1] ^= 1
	for name, try := range map[string]func() (seal.Secret, error){
		"other place":  func() (seal.Secret, error) { return k.Open(ctx, "acme", sealed, []byte("there")) },
		"no place":     func() (seal.Secret, error) { return k.Open(ctx, "acme", sealed, nil) },
		"other tenant": func() (seal.Secret, error) { return k.Open(ctx, "evil", sealed, []byte("here")) },
		"bit flipped":  func() (seal.Secret, error) { return k.Open(ctx, "acme", flipped, []byte("here")) },
		"cut short":    func() (seal.Secret, error) { return k.Open(ctx, "acme", sealed[:8], []byte("here")) },
		"empty":        func() (seal.Secret, error) { return k.Open(ctx, "acme", nil, []byte("here")) },
	} {
		if got, err := try(); !errors.Is(err, seal.ErrSecretUnopenable) || !got.IsZero() {
			t.Errorf("%s: %q, %v", name, got.Reveal(), err)
		}
	}
	again, err := k.Seal(ctx, "acme", secret, []byte("here"))
	if err != nil || bytes.Equal(again, sealed) {
		t.Errorf("sealing twice gives the same bytes, %v", err)
	}
	if empty, err := k.Seal(ctx, "acme", seal.Secret{}, nil); err != nil {
		t.Error(err)
	} else if got, err := k.Open(ctx, "acme", empty, nil); err != nil || !got.IsZero() {
		t.Errorf("the empty secret: %v", err)
	}
}

func TestMAC(t *testing.T) {
	ctx := t.Context()
	kms, store := keyFile(t), newMemStore()
	k := seal.NewKeyring(kms, store)
	ensure(t, k, "acme", "beta")
	mac := func(k *seal.Keyring, tenant, data string) string {
		sum, err := k.MAC(ctx, tenant, []byte(data))
		if err != nil || len(sum) != 32 {
			t.Fatalf("%d bytes, %v", len(sum), err)
		}
		return hex.EncodeToString(sum)
	}
	first := mac(k, "acme", "x")
	if first != mac(seal.NewKeyring(kms, store), "acme", "x") {
		t.Error("the same data has another MAC in a fresh keyring")
	}
	if first == mac(k, "acme", "y") || first == mac(k, "beta", "x") {
		t.Error("other data or another tenant has the same MAC")
	}
}

func TestNoKeyset(t *testing.T) {
	ctx := t.Context()
	store := newMemStore()
	k := seal.NewKeyring(keyFile(t), store)
	_, sealErr := k.Seal(ctx, "acme", seal.Secret{}, nil)
	_, openErr := k.Open(ctx, "acme", nil, nil)
	_, macErr := k.MAC(ctx, "acme", nil)
	for op, err := range map[string]error{"Seal": sealErr, "Open": openErr, "MAC": macErr, "Check": k.Check(ctx, []string{"acme"})} {
		if !errors.Is(err, seal.ErrNoKeyset) {
			t.Errorf("%s = %v", op, err)
		}
	}
	if len(store.entries) != 0 {
		t.Error("a keyset was made")
	}
	ensure(t, k, "acme")
	if _, err := k.MAC(ctx, "acme", nil); err != nil {
		t.Errorf("after Ensure: %v", err)
	}
}

func TestWrongKMSKey(t *testing.T) {
	ctx := t.Context()
	store := newMemStore()
	ensure(t, seal.NewKeyring(keyFile(t), store), "acme", "beta")
	before := string(store.entries["acme"])

	k := seal.NewKeyring(keyFile(t), store)
	for op, err := range map[string]error{"Check": k.Check(ctx, []string{"acme", "beta"}), "Ensure": k.Ensure(ctx, "acme")} {
		if !errors.Is(err, seal.ErrKeysetUnopenable) {
			t.Errorf("%s = %v", op, err)
		}
		if f := fault.Of(err); f.Kind != fault.Unavailable || f.Code != "keyset_unopenable" {
			t.Errorf("%s is shown as %s %s", op, f.Kind, f.Code)
		}
	}
	if string(store.entries["acme"]) != before {
		t.Error("the keyset was replaced")
	}
}

func TestForeignAndDamagedKeysets(t *testing.T) {
	ctx := t.Context()
	kms, store := keyFile(t), newMemStore()
	ensure(t, seal.NewKeyring(kms, store), "acme", "evil")
	good := store.entries["acme"]

	store.swap("acme", "evil")
	if err := seal.NewKeyring(kms, store).Check(ctx, []string{"acme"}); !errors.Is(err, seal.ErrKeysetUnopenable) {
		t.Errorf("swapped between tenants: %v", err)
	}

	var entry struct {
		Format int    `json:"format"`
		AEAD   []byte `json:"aead"`
		MAC    []byte `json:"mac"`
	}
	if err := json.Unmarshal(good, &entry); err != nil {
		t.Fatal(err)
	}
	crossed := entry
	crossed.AEAD, crossed.MAC = entry.MAC, entry.AEAD
	crossedJSON, err := json.Marshal(crossed)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":          "",
		"cut short":      string(good[:len(good)/2]),
		"other format":   strings.Replace(string(good), `"format":1`, `"format":9`, 1),
		"unknown member": strings.Replace(string(good), `"format":1`, `"format":1,"x":1`, 1),
		"keys crossed":   string(crossedJSON),
		"no keys":        `{"format":1,"aead":"","mac":""}`,
	} {
		store.entries["acme"] = []byte(bad)
		if err := seal.NewKeyring(kms, store).Check(ctx, []string{"acme"}); !errors.Is(err, seal.ErrKeysetUnopenable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// countingKMS counts the calls of a KMS and may fail or forget its part.
type countingKMS struct {
	tink.AEAD
	opened  atomic.Int64
	forgets bool // takes no account of associated data
	broken  atomic.Bool
}

var errKMS = errors.New("kms: 10.1.2.3 said no")

func (c *countingKMS) Encrypt(plaintext, ad []byte) ([]byte, error) {
	if c.broken.Load() {
		return nil, errKMS
	}
	if c.forgets {
		ad = nil
	}
	return c.AEAD.Encrypt(plaintext, ad)
}

func (c *countingKMS) Decrypt(ciphertext, ad []byte) ([]byte, error) {
	c.opened.Add(1)
	if c.broken.Load() {
		return nil, errKMS
	}
	if c.forgets {
		ad = nil
	}
	return c.AEAD.Decrypt(ciphertext, ad)
}

func TestKMSMustBindTheTenant(t *testing.T) {
	store := newMemStore()
	k := seal.NewKeyring(&countingKMS{AEAD: keyFile(t), forgets: true}, store)
	if err := k.Ensure(t.Context(), "acme"); !errors.Is(err, seal.ErrKeysetUnwrappable) {
		t.Errorf("a KMS that ignores associated data: %v", err)
	}
	if len(store.entries) != 0 {
		t.Error("the keyset was stored all the same")
	}
}

func TestBrokenKMS(t *testing.T) {
	ctx := t.Context()
	store, kms := newMemStore(), &countingKMS{AEAD: keyFile(t)}
	ensure(t, seal.NewKeyring(kms, store), "acme")
	k := seal.NewKeyring(kms, store)
	kms.broken.Store(true)
	for tenant, want := range map[string]*fault.Error{"acme": seal.ErrKeysetUnopenable, "new": seal.ErrKeysetUnwrappable} {
		err := k.Ensure(ctx, tenant)
		if f := fault.Of(err); f != want {
			t.Errorf("%s: %v", tenant, err)
		} else if strings.Contains(f.Msg, "10.1.2.3") || !strings.Contains(err.Error(), errKMS.Error()) {
			t.Errorf("%s: the cause is shown to callers, or lost to the operator: %v", tenant, err)
		}
	}
	kms.broken.Store(false) // failures are not remembered
	ensure(t, k, "acme", "new")
}

// Many users of a cold tenant unwrap once; many makers make one keyset.
func TestConcurrentUse(t *testing.T) {
	ctx := t.Context()
	store, kms := newMemStore(), &countingKMS{AEAD: keyFile(t)}
	const users = 32
	rings := []*seal.Keyring{seal.NewKeyring(kms, store), seal.NewKeyring(kms, store)}
	sealed := make([]seal.Sealed, users)
	var wg sync.WaitGroup
	for i := range users {
		wg.Go(func() {
			k := rings[i%2]
			if err := k.Ensure(ctx, "acme"); err != nil {
				t.Error(err)
				return
			}
			var err error
			if sealed[i], err = k.Seal(ctx, "acme", seal.NewSecret([]byte(fmt.Sprint(i))), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	kms.opened.Store(0)
	store.reads.Store(0)
	cold := seal.NewKeyring(kms, store)
	for i := range users {
		wg.Go(func() {
			if got, err := cold.Open(ctx, "acme", sealed[i], nil); err != nil || string(got.Reveal()) != fmt.Sprint(i) {
				t.Errorf("secret %d: %q, %v", i, got.Reveal(), err)
			}
		})
	}
	wg.Wait()
	if kms.opened.Load() != 2 || store.reads.Load() != 1 { // the AEAD and the MAC keyset
		t.Errorf("%d calls of the KMS and %d reads for one tenant", kms.opened.Load(), store.reads.Load())
	}
}

// An answer that got lost does not make Ensure fail.
func TestEnsureAfterALostAnswer(t *testing.T) {
	store := newMemStore()
	store.lose = true
	ensure(t, seal.NewKeyring(keyFile(t), store), "acme")
}

// The first of two callers gives up; the second is not taken down with it.
func TestAWaiterSurvivesTheLoader(t *testing.T) {
	store := newMemStore()
	kms := keyFile(t)
	ensure(t, seal.NewKeyring(kms, store), "acme")
	slow := &slowStore{memStore: store, entered: make(chan struct{}, 2)}
	k := seal.NewKeyring(kms, slow)

	first, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := k.Check(first, []string{"acme"}); !errors.Is(err, context.Canceled) {
			t.Errorf("first: %v", err)
		}
	})
	<-slow.entered
	wg.Go(func() {
		if err := k.Check(t.Context(), []string{"acme"}); err != nil {
			t.Errorf("second: %v", err)
		}
	})
	cancel()
	wg.Wait()
}

// A read that began before the keyset was made does not tell Ensure that there is none.
func TestEnsureBesideAnOlderRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &overtaken{memStore: newMemStore()}
		k := seal.NewKeyring(keyFile(t), store)
		store.beside = func() { _ = k.Check(t.Context(), []string{"acme"}) }
		ensure(t, k, "acme")
		store.wg.Wait()
	})
}

// overtaken's keysets are made while somebody reads, whose answer comes later.
type overtaken struct {
	*memStore
	beside func()
	wg     sync.WaitGroup
	late   atomic.Bool
}

func (s *overtaken) CreateKeyset(ctx context.Context, tenant string, wrapped []byte) error {
	s.late.Store(true)
	s.wg.Go(s.beside)
	synctest.Wait()
	return s.memStore.CreateKeyset(ctx, tenant, wrapped)
}

func (s *overtaken) Keyset(ctx context.Context, tenant string) ([]byte, uint64, error) {
	wrapped, revision, err := s.memStore.Keyset(ctx, tenant)
	if s.late.Swap(false) {
		time.Sleep(time.Second)
	}
	return wrapped, revision, err
}

// slowStore's first reader waits until its context ends.
type slowStore struct {
	*memStore
	once    sync.Once
	entered chan struct{}
}

func (s *slowStore) Keyset(ctx context.Context, tenant string) ([]byte, uint64, error) {
	var err error
	s.once.Do(func() {
		s.entered <- struct{}{}
		<-ctx.Done()
		err = ctx.Err()
	})
	if err != nil {
		return nil, 0, err
	}
	return s.memStore.Keyset(ctx, tenant)
}

// The stored keyset and sealed bytes are for ever: what this test reads was
// written by the first version. The files are never edited.
func TestGolden(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	golden := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	path := filepath.Join(dir, "kms.key")
	if err := os.WriteFile(path, golden("kms.v1.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	kms, err := seal.OpenKMS(ctx, seal.KMS{URL: "file://" + path})
	if err != nil {
		t.Fatal(err)
	}
	store := newMemStore()
	store.entries["acme"] = golden("keyset.v1.json")
	k := seal.NewKeyring(kms, store)

	sealed, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(golden("sealed.v1.txt"))))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(ctx, "acme", sealed, []byte("golden")); err != nil || string(got.Reveal()) != "golden secret" {
		t.Errorf("the sealed bytes: %q, %v", got.Reveal(), err)
	}
	sum, err := k.MAC(ctx, "acme", []byte("golden"))
	if err != nil || hex.EncodeToString(sum) != strings.TrimSpace(string(golden("mac.v1.txt"))) {
		t.Errorf("the MAC: %x, %v", sum, err)
	}

	// What is written today has the same form, but for the keys themselves.
	ensure(t, k, "beta")
	if diff := cmp.Diff(shape(t, golden("keyset.v1.json")), shape(t, store.entries["beta"])); diff != "" {
		t.Errorf("a new keyset has another form (-golden +new):\n%s", diff)
	}
}

// shape is a keyset entry with the lengths of its keys in place of the keys.
func shape(t *testing.T, b []byte) string {
	t.Helper()
	var e struct{ AEAD, MAC []byte }
	if err := json.Unmarshal(b, &e, json.MatchCaseInsensitiveNames(true)); err != nil {
		t.Fatal(err)
	}
	s := string(bytes.TrimSpace(b))
	for _, key := range [][]byte{e.AEAD, e.MAC} {
		s = strings.Replace(s, base64.StdEncoding.EncodeToString(key), "<key>", 1)
	}
	return s
}

func BenchmarkSeal(b *testing.B) {
	k := seal.NewKeyring(keyFile(b), newMemStore())
	ensure(b, k, "acme")
	s := seal.NewSecret(make([]byte, 300))
	for b.Loop() {
		if _, err := k.Seal(b.Context(), "acme", s, []byte("associated data of some length")); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMAC(b *testing.B) {
	k := seal.NewKeyring(keyFile(b), newMemStore())
	ensure(b, k, "acme")
	for b.Loop() {
		if _, err := k.MAC(b.Context(), "acme", make([]byte, 300)); err != nil {
			b.Fatal(err)
		}
	}
}
