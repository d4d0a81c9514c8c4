package vault_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
)

// goldenMessage is a whole stored message: subject, headers and body.
type goldenMessage struct {
	Subject string      `json:"subject"`
	Header  nats.Header `json:"header"`
	Body    []byte      `json:"body"`
}

// The stored message is for ever: the one this test reads was written by the
// first version, under the golden keys of package seal. It is never edited.
func TestGolden(t *testing.T) {
	ctx := t.Context()
	read := func(path ...string) []byte {
		b, err := os.ReadFile(filepath.Join(path...))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	n := startNode(t, t.TempDir())
	keyFile := filepath.Join(t.TempDir(), "kms.key")
	if err := os.WriteFile(keyFile, read("..", "seal", "testdata", "kms.v1.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	kms, err := seal.OpenKMS(ctx, seal.KMS{URL: "file://" + keyFile})
	if err != nil {
		t.Fatal(err)
	}
	kv, err := n.js.KeyValue(ctx, "CREDSTREAM_KEYS")
	if err != nil {
		t.Fatal(err)
	}
	keysets := seal.NewKVKeysets(n.js, kv, nil)
	if err := keysets.CreateKeyset(ctx, "acme", read("..", "seal", "testdata", "keyset.v1.json")); err != nil {
		t.Fatal(err)
	}
	v := vault.New(n.js, seal.NewKeyring(kms, keysets), nil)
	first := vault.Ref{Tenant: "acme", Category: "credential", Owner: "AAABcID5GBc=", SecretID: "0198c1a2-0000-7000-8000-000000000001"}
	const text = `{"password":"golden"}`

	var golden goldenMessage
	if err := json.Unmarshal(read("testdata", "message.v1.json"), &golden); err != nil {
		t.Fatal(err)
	}
	if golden.Subject != subject(first) {
		t.Errorf("the subject of %+v was %s and is %s", first, golden.Subject, subject(first))
	}
	if _, err := n.js.PublishMsg(ctx, &nats.Msg{Subject: golden.Subject, Header: golden.Header, Data: golden.Body}); err != nil {
		t.Fatal(err)
	}
	if got, err := v.Get(ctx, first); err != nil || string(got.Reveal()) != text {
		t.Errorf("the golden message: %q, %v", got.Reveal(), err)
	}

	// What is written today has the same form, but for the random bytes.
	second := first
	second.SecretID = "0198c1a2-0000-7000-8000-000000000002"
	if err := v.Put(ctx, second, secret(text)); err != nil {
		t.Fatal(err)
	}
	stored := n.stored(t, second)
	if diff := cmp.Diff(golden.Header, without(stored.Header, jetstream.StreamHeader, jetstream.SubjectHeader, jetstream.SequenceHeader,
		jetstream.TimeStampHeaer, jetstream.LastSequenceHeader, "Nats-Num-Pending")); diff != "" {
		t.Errorf("headers (-golden +new):\n%s", diff)
	}
	if len(stored.Data) != len(golden.Body) || stored.Data[0] != golden.Body[0] {
		t.Errorf("the body has %d bytes and starts with %d; the golden one %d and %d",
			len(stored.Data), stored.Data[0], len(golden.Body), golden.Body[0])
	}
}

// without drops the headers that a direct get adds.
func without(h nats.Header, names ...string) nats.Header {
	kept := nats.Header{}
	maps.Copy(kept, h)
	for _, name := range names {
		delete(kept, name)
	}
	return kept
}
