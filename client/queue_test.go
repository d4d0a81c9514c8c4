package client_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

func TestEnqueue(t *testing.T) {
	b := newBus(t)
	asked := b.serve("credstream.cmdq.acme.>", func(n int, _ *nats.Msg) *nats.Msg {
		switch n {
		case 1:
			return body(`{"stream":"CREDSTREAM_CMDQ","seq":4}`)
		case 2:
			return refusal(t, fault.New(fault.Invalid, "secret_in_queue", "No clear keys."))
		}
		return body(`{"stream":"CREDSTREAM_CMDQ","seq":5}`)
	})
	c := b.dial("acme")
	in := struct { // a map has its members in any order
		ID   string `json:"id"`
		Name string `json:"name"`
	}{"i", "n"}
	ack, err := c.Enqueue(t.Context(), "credential.rename", in, client.CommandID("mine"), client.Correlation("theirs"))
	if want := (client.QueueAck{Ack: client.Ack{Stream: "CREDSTREAM_CMDQ", Seq: 4}, CommandID: "mine"}); err != nil || ack != want {
		t.Errorf("%+v, %v", ack, err)
	}
	if _, err := c.Enqueue(t.Context(), "credential.create", in); !errors.Is(err, fault.New(fault.Invalid, "secret_in_queue", "")) {
		t.Error(err)
	}
	ack, err = c.Enqueue(t.Context(), "credential.rename", in)
	if err != nil || ack.CommandID == "" {
		t.Errorf("%+v, %v", ack, err)
	}
	if _, err := c.Enqueue(t.Context(), "a.>", in); !errors.Is(err, client.ErrConfig) {
		t.Error(err)
	}
	all := asked()
	if len(all) != 3 || all[0].Subject != "credstream.cmdq.acme.credential.rename" || string(all[0].Data) != `{"id":"i","name":"n"}` ||
		all[0].Header.Get("Nats-Msg-Id") != "mine" || all[0].Header.Get("X-Correlation-Id") != "theirs" || all[2].Header.Get("Nats-Msg-Id") != ack.CommandID {
		t.Errorf("asked %v", all)
	}
}

// keysets holds the keyset of one tenant.
type keysets struct{ wrapped []byte }

func (k *keysets) Keyset(context.Context, string) ([]byte, uint64, error) {
	if k.wrapped == nil {
		return nil, 0, seal.ErrNoKeyset
	}
	return k.wrapped, 1, nil
}

func (k *keysets) CreateKeyset(_ context.Context, _ string, wrapped []byte) error {
	k.wrapped = bytes.Clone(wrapped)
	return nil
}

func (k *keysets) NewestKeyset(ctx context.Context, tenant string) ([]byte, uint64, error) {
	return k.Keyset(ctx, tenant)
}

func (k *keysets) UpdateKeyset(context.Context, string, []byte, uint64) error {
	return errors.New("not used")
}

func (k *keysets) RemoveEarlier(context.Context, string, uint64) error { return nil }

func (k *keysets) RemoveKeyset(context.Context, string) error { return nil }

// What is sealed for one command opens for it, with the service's own keyring,
// and for no other.
func TestSealKeys(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "kms.key")
	if err := seal.CreateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	kms, err := seal.OpenKMS(ctx, seal.KMS{URL: "file://" + path})
	if err != nil {
		t.Fatal(err)
	}
	keyring := seal.NewKeyring(kms, &keysets{})
	if err := keyring.Ensure(ctx, "acme"); err != nil {
		t.Fatal(err)
	}
	public, err := keyring.Recipient(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	answer := fmt.Sprintf(`{"public_key":%q,"suite":%q}`, base64.RawURLEncoding.EncodeToString(public), seal.Suite)
	_, api := newServer(t, says(answer))
	sealed, err := api.SealKeys(ctx, "credential.create", "mine", "petstore", keys(t, `{"apiKey":"`+canary+`"}`))
	if err != nil || strings.Contains(sealed, canary) {
		t.Fatal(sealed, err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		t.Fatal(err)
	}
	clear, err := keyring.OpenFor(ctx, "acme", []byte("credstream/keys-sealed/1\nacme\ncredential.create\nmine\npetstore"), raw)
	if err != nil || string(clear.Reveal()) != `{"apiKey":"`+canary+`"}` {
		t.Error(err)
	}
	for _, info := range []string{"credential.replace-keys\nmine\npetstore", "credential.create\nother\npetstore", "credential.create\nmine\nother"} {
		if _, err := keyring.OpenFor(ctx, "acme", []byte("credstream/keys-sealed/1\nacme\n"+info), raw); !errors.Is(err, seal.ErrSealedUnopenable) {
			t.Errorf("%q: %v", info, err)
		}
	}

	for _, wrong := range []string{
		`{"public_key":"AAAA","suite":"` + seal.Suite + `"}`, `{"public_key":"!","suite":"` + seal.Suite + `"}`,
		`{"public_key":"` + base64.RawURLEncoding.EncodeToString(public) + `","suite":"none"}`,
	} {
		_, api := newServer(t, says(wrong))
		if _, err := api.SealKeys(ctx, "credential.create", "mine", "petstore", keys(t, `{}`)); !errors.Is(err, client.ErrAnswer) {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

func TestQueuePages(t *testing.T) {
	s, api := newServer(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"messages":[{"id":"%d"}],"next":%q}`, n, []string{"", "c1", ""}[n])
	})
	var got []string
	for m, err := range api.Queued(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, m.ID)
	}
	const path = "GET /v1/tenants/acme/queue.list?"
	if d := cmp.Diff([]string{"1", "2"}, got) + cmp.Diff([]string{path + "limit=200", path + "after=c1&limit=200"}, s.asked); d != "" {
		t.Error(d)
	}
}
