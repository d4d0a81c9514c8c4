package app

import (
	"strings"
	"testing"
)

// The keysets move from the key file of the data folder to another KMS key: with both given
// everything works, and after the rewrap the previous one is needed no longer, and is of no use.
func TestMoveToAnotherKMSKey(t *testing.T) {
	data, key := t.TempDir(), kmsFile(t)
	u := bring(t, data)
	registerPlain(t, u.base)
	id := u.create(t)
	u.stop()
	old := "file://" + data + "/kms.key"

	cfg := u.cfg
	cfg.KMS = key
	if p, err := start(t.Context(), cfg, u.logs); err == nil || !strings.Contains(err.Error(), "cannot be decrypted with this KMS key") {
		if err == nil {
			p.close()
		}
		t.Fatalf("a KMS key that wrapped nothing: %v", err)
	}
	both := func(c *Config) { c.KMS, c.KMSPrevious = key, old }
	u = bring(t, data, both)
	var status struct {
		PreviousKMS bool `json:"previous_kms"`
	}
	must(t, u.query("encryption_key.status", "", &status))
	if !status.PreviousKMS {
		t.Error("the status does not name the previous KMS key")
	}
	must(t, u.command("encryption_key.rewrap", "", map[string]any{}, nil))
	must(t, u.query("encryption_key.status", "", &status))
	if status.PreviousKMS {
		t.Error("the keys are not wrapped anew")
	}
	u.stop()
	u = bring(t, data, func(c *Config) { c.KMS = key })
	must(t, u.command("credential.verify", "", map[string]any{"id": id}, nil))
	u.stop()
	cfg.KMS = old
	if _, err := start(t.Context(), cfg, u.logs); err == nil {
		t.Error("the previous KMS key still opens the keysets")
	}
}
