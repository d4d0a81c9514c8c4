package vault_test

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
)

var eraseWait = flag.Duration("erase-wait", 0, "how long TestEraseOnACluster waits until no file of three servers holds an erased secret; 0 skips it")

// The servers of a cluster keep an erased secret in their Raft logs until they compact them. This
// measures for how long.
func TestEraseOnACluster(t *testing.T) {
	if *eraseWait == 0 {
		t.Skip("takes minutes: -erase-wait=5m")
	}
	s := bustest.Start(t, bustest.Nodes(3))
	nc, err := nats.Connect(s.URL("credstream"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	n := &node{nc: nc}
	if n.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	bustest.Eventually(t, "the vault is there", func() bool {
		_, err := n.js.CreateOrUpdateStream(ctx, vault.StreamConfig(3))
		return err == nil
	})
	kv, err := n.js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "CREDSTREAM_KEYS", History: 2, Replicas: 3})
	if err != nil {
		t.Fatal(err)
	}
	keyFile := filepath.Join(t.TempDir(), "kms.key")
	if err := seal.CreateKeyFile(keyFile); err != nil {
		t.Fatal(err)
	}
	kms, err := seal.OpenKMS(ctx, seal.KMS{URL: "file://" + keyFile})
	if err != nil {
		t.Fatal(err)
	}
	n.keys = seal.NewKeyring(kms, seal.NewKVKeysets(n.js, kv, nil))
	if err := n.keys.Ensure(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	v := vault.New(n.js, n.keys, nil)
	const secrets = 20
	var sealed [][]byte
	for i := range 2 * secrets { // the second half stays
		r := ref(fmt.Sprint("s", i))
		if err := v.Put(ctx, r, secret("swordfish")); err != nil {
			t.Fatal(err)
		}
		sealed = append(sealed, n.stored(t, r).Data)
	}
	for i := range secrets {
		if err := v.Erase(ctx, ref(fmt.Sprint("s", i))); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	for first := true; ; first = false {
		files := map[string]bool{}
		for _, bytes := range sealed[:secrets] {
			for _, f := range filesWith(t, s.Dir(), bytes) {
				relative, _ := filepath.Rel(s.Dir(), f)
				files[relative] = true
			}
		}
		if first {
			t.Logf("right after the erasure: in %d files: %v", len(files), files)
		}
		if len(files) == 0 {
			t.Logf("in no file after %s", time.Since(begin).Round(time.Second))
			break
		}
		if time.Since(begin) > *eraseWait {
			t.Fatalf("after %s still in %v", *eraseWait, files)
		}
		time.Sleep(time.Second)
	}
	for i := range 2 * secrets {
		if _, err := v.Get(ctx, ref(fmt.Sprint("s", i))); errors.Is(err, vault.ErrNoSecret) != (i < secrets) {
			t.Errorf("s%d: %v", i, err)
		}
	}
}
