package seal_test

import (
	"errors"
	"testing"

	"github.com/credstream/credstream/seal"
)

// What is sealed to a tenant opens there, for the same request, and nowhere else.
func TestRecipient(t *testing.T) {
	ctx := t.Context()
	ring := seal.NewKeyring(keyFile(t), newMemStore())
	ensure(t, ring, "acme", "other")
	public, err := ring.Recipient(ctx, "acme")
	if err != nil {
		t.Fatal(err)
	}
	again, err := ring.Recipient(ctx, "acme")
	if err != nil || string(again) != string(public) || len(public) != 32 {
		t.Fatalf("the key is %x, then %x: %v", public, again, err)
	}
	info := []byte("tenant, command, id")
	sealed, err := seal.To(public, info, seal.NewSecret([]byte(`{"apiKey":"canary"}`)))
	if err != nil {
		t.Fatal(err)
	}
	clear, err := ring.OpenFor(ctx, "acme", info, sealed)
	if err != nil || string(clear.Reveal()) != `{"apiKey":"canary"}` {
		t.Fatalf("it opens with %v", err)
	}
	flipped := append([]byte(nil), sealed...)
	flipped[len(flipped)-1] ^= 1
	for what, open := range map[string]func() error{
		"by another tenant":   func() error { _, err := ring.OpenFor(ctx, "other", info, sealed); return err },
		"for another request": func() error { _, err := ring.OpenFor(ctx, "acme", []byte("x"), sealed); return err },
		"changed":             func() error { _, err := ring.OpenFor(ctx, "acme", info, flipped); return err },
		"cut":                 func() error { _, err := ring.OpenFor(ctx, "acme", info, sealed[:20]); return err },
		"empty":               func() error { _, err := ring.OpenFor(ctx, "acme", info, nil); return err },
	} {
		if err := open(); !errors.Is(err, seal.ErrSealedUnopenable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := seal.To([]byte("short"), info, seal.NewSecret(nil)); err == nil {
		t.Error("a key that is none seals")
	}
}
