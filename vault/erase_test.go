package vault_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
)

// An erased secret's bytes stand in no file of the JetStream folder: in a full
// block, in the newest one, first, last or in the middle of it; they do not come
// back with a restart, and the neighbours still open.
func TestEraseLeavesNoBytes(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir, "acme")
	v, ctx := n.vault(), t.Context()
	const size, total = 200 << 10, 60 // 12 MB: three blocks
	sealedOf := make([][]byte, total)
	put := func(i int) {
		text := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(i)}).Read(text)
		if err := v.Put(ctx, ref(fmt.Sprint(i)), seal.NewSecret(text)); err != nil {
			t.Fatal(err)
		}
		m := n.stored(t, ref(fmt.Sprint(i)))
		sealedOf[i] = m.Data[len(m.Data)-64:] // enough to know it by
	}
	for i := range total {
		put(i)
	}
	js := filepath.Join(dir, "js")
	if blocks, _ := filepath.Glob(filepath.Join(js, "jetstream", "*", "streams", vault.Stream, "msgs", "*.blk")); len(blocks) < 3 {
		t.Fatalf("%d blocks: the test needs several", len(blocks))
	}
	for i := range total { // else the searches below would prove nothing
		if len(filesWith(t, js, sealedOf[i])) == 0 {
			t.Fatalf("secret %d is in no file before it is erased", i)
		}
		if i > 2 {
			break
		}
	}
	erased := map[int]bool{}
	erase := func(i int) {
		if err := v.Erase(ctx, ref(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if files := filesWith(t, js, sealedOf[i]); len(files) > 0 {
			t.Errorf("secret %d is erased and still in %v", i, files)
		}
		erased[i] = true
	}
	for _, i := range []int{0, 7, 25, 26, 58, 59} { // first, middle, neighbours, the last two
		erase(i)
	}
	for i := 30; i < 55; i++ { // a whole block and more: the server drops and compacts
		erase(i)
	}
	look := func(when string) {
		t.Helper()
		for i := range total {
			_, err := v.Get(ctx, ref(fmt.Sprint(i)))
			if erased[i] != errors.Is(err, vault.ErrNoSecret) || !erased[i] && err != nil {
				t.Errorf("%s: secret %d (erased %v): %v", when, i, erased[i], err)
			}
			if erased[i] && len(filesWith(t, js, sealedOf[i])) > 0 {
				t.Errorf("%s: secret %d is back in a file", when, i)
			}
		}
	}
	look("running")

	n.stop()
	// Without its index the server reads the blocks themselves, as after a crash.
	indexes, err := filepath.Glob(filepath.Join(js, "jetstream", "*", "streams", vault.Stream, "msgs", "index.db"))
	if err != nil || len(indexes) != 1 {
		t.Fatalf("index.db: %v, %v", indexes, err)
	}
	if err := os.Remove(indexes[0]); err != nil {
		t.Fatal(err)
	}
	n = startNode(t, dir, "acme")
	v = n.vault()
	look("restarted")

	// The server's memory of the newest block is now partial: rewriting it must
	// not lose what stands before.
	put(58)
	erased[58] = false
	erase(56)
	erase(58)
	look("written and erased after the restart")
}

// Erasing rewrites whole blocks while others write and read: nothing but the
// erased is lost.
func TestEraseAmongWriters(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	v, ctx := n.vault(), t.Context()
	const writers, each = 8, 40
	id := func(w, i int) vault.Ref { return ref(fmt.Sprintf("%d-%d", w, i)) }
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := v.Put(ctx, id(w, i), secret(fmt.Sprint(w, i))); err != nil {
					t.Error(err)
				}
				if i%2 == 1 {
					if err := v.Erase(ctx, id(w, i-1)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for w := range writers {
		for i := range each {
			got, err := v.Get(ctx, id(w, i))
			switch {
			case i%2 == 0 && !errors.Is(err, vault.ErrNoSecret):
				t.Errorf("erased %d-%d: %v", w, i, err)
			case i%2 == 1 && string(got.Reveal()) != fmt.Sprint(w, i):
				t.Errorf("kept %d-%d: %q, %v", w, i, got.Reveal(), err)
			}
		}
	}
}

// Two who erase one secret are both content.
func TestRacingErases(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	v, ctx := n.vault(), t.Context()
	if err := v.Put(ctx, ref("s1"), secret("x")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := v.Erase(ctx, ref("s1")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A secret may be erased right after it was put, the only one there is.
func TestEraseTheOnlySecret(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir, "acme")
	v, ctx := n.vault(), t.Context()
	for i := range 3 {
		if err := v.Put(ctx, ref(fmt.Sprint(i)), secret("swordfish")); err != nil {
			t.Fatal(err)
		}
		sealed := n.stored(t, ref(fmt.Sprint(i))).Data
		if len(filesWith(t, dir, sealed)) == 0 {
			t.Fatal("not in a file before")
		}
		if err := v.Erase(ctx, ref(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		if files := filesWith(t, dir, sealed); len(files) > 0 {
			t.Errorf("still in %v", files)
		}
	}
}

// What New's comment warns of: a secret erased, the block is another file, so a
// sync that kept the old one open would sync nothing.
func TestEraseReplacesTheBlockFile(t *testing.T) {
	dir := t.TempDir()
	n := startNode(t, dir, "acme")
	v, ctx := n.vault(), t.Context()
	for _, id := range []string{"s1", "s2"} {
		if err := v.Put(ctx, ref(id), secret("swordfish")); err != nil {
			t.Fatal(err)
		}
	}
	blocks, err := filepath.Glob(filepath.Join(dir, "js", "jetstream", "*", "streams", vault.Stream, "msgs", "*.blk"))
	if err != nil || len(blocks) != 1 {
		t.Fatalf("blocks: %v, %v", blocks, err)
	}
	kept, err := os.Open(blocks[0])
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if err := v.Erase(ctx, ref("s1")); err != nil {
		t.Fatal(err)
	}
	if err := v.Put(ctx, ref("s3"), secret("swordfish")); err != nil {
		t.Fatal(err)
	}
	was, err := kept.Stat()
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.Stat(blocks[0])
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(was, is) {
		t.Error("a secure delete keeps the file now: the warning in New can go")
	}
	later := n.stored(t, ref("s3")).Data
	old := make([]byte, was.Size())
	if _, err := kept.ReadAt(old, 0); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(old, later) {
		t.Error("the old file is still written to")
	}
}

// What is read while it is erased is read no more when that is done, though reads
// are answered from memory.
func TestReadsAmongErases(t *testing.T) {
	n := startNode(t, t.TempDir(), "acme")
	v, ctx := n.vault(), t.Context()
	for i := range 100 {
		r := ref(fmt.Sprint("s", i))
		if err := v.Put(ctx, r, secret("x")); err != nil {
			t.Fatal(err)
		}
		var readers sync.WaitGroup
		erased := make(chan struct{})
		for range 4 {
			readers.Go(func() {
				for {
					_, err := v.Get(ctx, r)
					select {
					case <-erased:
						if _, err := v.Get(ctx, r); !errors.Is(err, vault.ErrNoSecret) {
							t.Errorf("after Erase: %v", err)
						}
						return
					default:
					}
					if err != nil && !errors.Is(err, vault.ErrNoSecret) {
						t.Error(err)
						return
					}
				}
			})
		}
		if err := v.Erase(ctx, r); err != nil {
			t.Fatal(err)
		}
		close(erased)
		readers.Wait()
	}
}
