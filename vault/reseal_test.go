package vault_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
)

// rotated is a vault with secrets under a key that was replaced by key.
func rotated(t *testing.T, secrets int) (n *node, v *vault.Vault, old, key uint32, ciphertexts [][]byte) {
	t.Helper()
	n = startNode(t, t.TempDir(), "acme", "other")
	v = n.vault()
	for i := range secrets {
		must(t, v.Put(t.Context(), ref(fmt.Sprint(i)), secret(fmt.Sprint("secret of ", i))))
		data := n.stored(t, ref(fmt.Sprint(i))).Data
		ciphertexts, old = append(ciphertexts, bytes.Clone(data[len(data)-16:])), seal.KeyOf(data[1:])
	}
	key, err := n.keys.Rotate(t.Context(), "acme", 1)
	must(t, err)
	return n, v, old, key, ciphertexts
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// allOpen reports secrets that a vault does not return.
func allOpen(t *testing.T, v *vault.Vault, secrets int) {
	t.Helper()
	for i := range secrets {
		if s, err := v.Get(t.Context(), ref(fmt.Sprint(i))); err != nil || string(s.Reveal()) != fmt.Sprint("secret of ", i) {
			t.Fatalf("secret %d: %v", i, err)
		}
	}
}

// After Reseal no ciphertext of the earlier key is in any file, and every secret opens, also where
// the earlier ciphertext was cached, when the earlier key is destroyed.
func TestReseal(t *testing.T) {
	const secrets = 150
	n, v, old, key, ciphertexts := rotated(t, secrets)
	allOpen(t, v, secrets) // and caches the ciphertexts
	resealed := 0
	keys := map[string]uint32{"acme": key}
	found, err := v.Reseal(t.Context(), keys, func(n int) { resealed += n })
	if err != nil || found["acme"] != secrets || resealed != secrets {
		t.Fatalf("found %v, sealed %d anew, %v", found, resealed, err)
	}
	if found, err := v.Reseal(t.Context(), keys, func(int) {}); err != nil || len(found) != 0 {
		t.Errorf("the second search found %v, %v", found, err)
	}
	if counts, err := v.CountKeys(t.Context(), "acme"); err != nil || !cmp.Equal(counts, map[uint32]int{key: secrets}) {
		t.Errorf("keys %v, %v", counts, err)
	}
	other := vault.New(n.js, n.keys, nil)
	retired, err := n.keys.Retire(t.Context(), "acme", 1)
	if err != nil || !cmp.Equal(retired, []uint32{old}) {
		t.Errorf("destroyed %v, %v", retired, err)
	}
	allOpen(t, v, secrets)
	allOpen(t, other, secrets)
	for i, c := range ciphertexts {
		if files := filesWith(t, filepath.Join(n.dir, "js"), c); len(files) > 0 {
			t.Fatalf("the earlier ciphertext of secret %d is in %v", i, files)
		}
	}
}

// A Reseal that ends between storing and erasing is completed by the next one, and so is
// one in which two versions wait.
func TestResealAfterACrash(t *testing.T) {
	const secrets = 70
	n, _, _, key, _ := rotated(t, secrets)
	crashes := n.vault()
	crashes.OnDelete(func(context.Context) (func(bool), error) { return nil, errors.New("killed") })
	keys := map[string]uint32{"acme": key}
	if _, err := crashes.Reseal(t.Context(), keys, func(int) {}); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatal(err)
	}
	key, err := n.keys.Rotate(t.Context(), "acme", 2) // now both messages of a secret are outdated
	must(t, err)
	keys["acme"] = key
	v := n.vault()
	for range 5 {
		if found, err := v.Reseal(t.Context(), keys, func(int) {}); err == nil && len(found) == 0 {
			break
		}
	}
	if counts, err := v.CountKeys(t.Context(), "acme"); err != nil || !cmp.Equal(counts, map[uint32]int{key: secrets}) {
		t.Errorf("keys %v, %v", counts, err)
	}
	_, err = n.keys.Retire(t.Context(), "acme", 2)
	must(t, err)
	allOpen(t, v, secrets)
}

// Two processes that seal anew, and a third one that erases and puts, lose nothing and bring
// nothing back.
func TestResealBesideOthers(t *testing.T) {
	const secrets = 120
	n, v, _, key, _ := rotated(t, secrets)
	keys := map[string]uint32{"acme": key}
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			if _, err := n.vault().Reseal(t.Context(), keys, func(int) {}); err != nil {
				t.Error(err)
			}
		})
	}
	for i := secrets; i < 2*secrets; i++ {
		must(t, v.Put(t.Context(), ref(fmt.Sprint(i)), secret(fmt.Sprint("secret of ", i))))
		must(t, v.Erase(t.Context(), ref(fmt.Sprint(i-secrets))))
	}
	all.Wait()
	_, err := v.Reseal(t.Context(), keys, func(int) {})
	must(t, err)
	_, err = n.keys.Retire(t.Context(), "acme", 1)
	must(t, err)
	for i := range secrets {
		if _, err := v.Get(t.Context(), ref(fmt.Sprint(i))); !errors.Is(err, vault.ErrNoSecret) {
			t.Errorf("erased secret %d: %v", i, err)
		}
	}
	if counts, err := v.CountKeys(t.Context(), "acme"); err != nil || !cmp.Equal(counts, map[uint32]int{key: secrets}) {
		t.Errorf("keys %v, %v", counts, err)
	}
}

// A secret whose key was destroyed before its writer confirmed it does not keep the writer from
// storing it again.
func TestPutAgainAfterItsKeyWasDestroyed(t *testing.T) {
	n, v, _, _, _ := rotated(t, 1)
	_, err := n.keys.Retire(t.Context(), "acme", 1) // nothing was sealed anew
	must(t, err)
	if _, err := v.Get(t.Context(), ref("0")); !errors.Is(err, seal.ErrSecretUnopenable) {
		t.Fatal(err)
	}
	must(t, v.Put(t.Context(), ref("0"), secret("secret of 0")))
	allOpen(t, v, 1)
	if err := v.Put(t.Context(), ref("0"), secret("another")); !errors.Is(err, vault.ErrExists) {
		t.Errorf("another secret under the same id: %v", err)
	}
}
