package seal_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/tink-crypto/tink-go/v2/tink"

	"github.com/credstream/credstream/seal"
)

// A rotation in one process: the others open what it seals at once, seal with its key when their
// copy of the keyset is no longer fresh, and learn that what they sealed too late is lost.
func TestRotate(t *testing.T) {
	kms, store := keyFile(t), newMemStore()
	synctest.Test(t, func(t *testing.T) {
		ctx, secret, data := t.Context(), seal.NewSecret([]byte("swordfish")), []byte("place")
		one, other := seal.NewKeyring(kms, store), seal.NewKeyring(kms, store)
		ensure(t, one, "acme")
		made := func(k *seal.Keyring) seal.Sealed {
			t.Helper()
			sealed, err := k.Seal(ctx, "acme", secret, data)
			if err != nil {
				t.Fatal(err)
			}
			return sealed
		}
		opens := func(k *seal.Keyring, sealed seal.Sealed) bool {
			s, err := k.Open(ctx, "acme", sealed, data)
			if err != nil && !errors.Is(err, seal.ErrSecretUnopenable) {
				t.Fatal(err)
			}
			return s.Equal(secret)
		}
		old := made(one)
		made(other)
		mac, err := one.MAC(ctx, "acme", data)
		if err != nil {
			t.Fatal(err)
		}

		key, err := one.Rotate(ctx, "acme", 7)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := one.Rotate(ctx, "acme", 7); err != nil || again != key {
			t.Errorf("the repeated rotation: key %d, %v, want %d", again, err, key)
		}
		if got := seal.KeyOf(made(one)); got != key {
			t.Errorf("sealed with %d, want %d", got, key)
		}
		if !opens(one, old) || !opens(other, made(one)) {
			t.Error("a rotation keeps a secret from being opened")
		}
		time.Sleep(seal.DefaultFreshness)
		if got := seal.KeyOf(made(other)); got != key {
			t.Errorf("after its copy was no longer fresh the other process seals with %d, want %d", got, key)
		}
		if retired, err := one.Retire(ctx, "acme", 6); err != nil || len(retired) > 0 {
			t.Errorf("another rotation retired %v, %v", retired, err)
		}
		retired, err := one.Retire(ctx, "acme", 7)
		if err != nil || !cmp.Equal(retired, []uint32{seal.KeyOf(old)}) {
			t.Errorf("retired %v, %v, want %d", retired, err, seal.KeyOf(old))
		}
		if ids, err := other.EncryptionKeys(ctx, "acme"); err != nil || !cmp.Equal(ids, seal.EncryptionKeys{IDs: []uint32{key}, Rotation: 7}) {
			t.Errorf("keys %v, %v, want %d", ids, err, key)
		}
		if opens(one, old) || opens(other, old) || opens(seal.NewKeyring(kms, store), old) {
			t.Error("a destroyed key opens")
		}
		if err := other.Confirm(ctx, "acme", old); !errors.Is(err, seal.ErrKeyRetired) {
			t.Errorf("confirmed what a destroyed key sealed: %v", err)
		}
		if err := other.Confirm(ctx, "acme", made(other)); err != nil {
			t.Error(err)
		}
		if same, err := other.MAC(ctx, "acme", data); err != nil || !cmp.Equal(same, mac) {
			t.Errorf("the MAC key changed: %v", err)
		}
	})
}

// A process that stood still between sealing and storing learns it from Confirm, however little
// its copy of the keyset suggests it.
func TestConfirmOfALateProcess(t *testing.T) {
	kms, store := keyFile(t), newMemStore()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		one, other := seal.NewKeyring(kms, store), seal.NewKeyring(kms, store)
		ensure(t, one, "acme")
		sealed, err := other.Seal(ctx, "acme", seal.NewSecret([]byte("x")), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Confirm(ctx, "acme", sealed); err != nil {
			t.Error(err)
		}
		if _, err := one.Rotate(ctx, "acme", 1); err != nil {
			t.Fatal(err)
		}
		if err := other.Confirm(ctx, "acme", sealed); err != nil {
			t.Error("its key is not destroyed:", err)
		}
		time.Sleep(seal.DefaultFreshness)
		if _, err := one.Retire(ctx, "acme", 1); err != nil {
			t.Fatal(err)
		}
		if err := other.Confirm(ctx, "acme", sealed); !errors.Is(err, seal.ErrKeyRetired) {
			t.Errorf("got %v", err)
		}
	})
}

// The keysets of one KMS key are wrapped anew with another one, and back.
func TestRewrap(t *testing.T) { rewrap(t, keyFile(t), keyFile(t)) }

func rewrap(t *testing.T, first, second tink.AEAD) {
	t.Helper()
	ctx, store, secret := t.Context(), newMemStore(), seal.NewSecret([]byte("swordfish"))
	k := seal.NewKeyring(first, store)
	ensure(t, k, "acme")
	sealed, err := k.Seal(ctx, "acme", secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	mac, err := k.MAC(ctx, "acme", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, move := range []struct{ to, from tink.AEAD }{{second, first}, {first, second}} {
		if err := seal.NewKeyring(move.to, store).Check(ctx, []string{"acme"}); !errors.Is(err, seal.ErrKeysetUnopenable) {
			t.Errorf("the other KMS key opens it: %v", err)
		}
		both := seal.NewKeyring(move.to, store)
		both.Previous = move.from
		for _, want := range []bool{true, false} {
			if info, err := both.EncryptionKeys(ctx, "acme"); err != nil || info.Previous != want {
				t.Errorf("wrapped by the previous KMS key: %v, %v", info.Previous, err)
			}
			if rewrapped, err := both.Rewrap(ctx, "acme"); err != nil || rewrapped != want {
				t.Errorf("wrapped anew: %v, %v, want %v", rewrapped, err, want)
			}
		}
		alone := seal.NewKeyring(move.to, store)
		if s, err := alone.Open(ctx, "acme", sealed, nil); err != nil || !s.Equal(secret) {
			t.Error(err)
		}
		if same, err := alone.MAC(ctx, "acme", nil); err != nil || !cmp.Equal(same, mac) {
			t.Errorf("another MAC key, %v", err)
		}
		if err := seal.NewKeyring(move.from, store).Check(ctx, []string{"acme"}); !errors.Is(err, seal.ErrKeysetUnopenable) {
			t.Errorf("the previous KMS key still opens it: %v", err)
		}
	}
}

// Made-up ciphertexts with keys that do not exist cost no reads of the store; one with a new key
// of another process opens.
func TestOpenForeign(t *testing.T) {
	kms, store := keyFile(t), newMemStore()
	synctest.Test(t, func(t *testing.T) {
		ctx, secret := t.Context(), seal.NewSecret([]byte("swordfish"))
		one, other := seal.NewKeyring(kms, store), seal.NewKeyring(kms, store)
		ensure(t, one, "acme")
		forged := append([]byte{1, 0, 0, 0, 1}, make([]byte, 40)...)
		flood := func() {
			for range 1000 {
				if _, err := other.OpenForeign(ctx, "acme", forged, nil); !errors.Is(err, seal.ErrSecretUnopenable) {
					t.Fatal(err)
				}
			}
		}
		flood()
		before := store.reads.Load()
		flood()
		if got := store.reads.Load() - before; got > 0 {
			t.Errorf("%d reads for made-up ciphertexts", got)
		}
		if _, err := one.Rotate(ctx, "acme", 1); err != nil {
			t.Fatal(err)
		}
		sealed, err := one.Seal(ctx, "acme", secret, nil)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if got, err := other.OpenForeign(ctx, "acme", sealed, nil); err != nil || !got.Equal(secret) {
			t.Error(err)
		}
	})
}
