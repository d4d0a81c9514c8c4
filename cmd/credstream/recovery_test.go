package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

func (u *up) secrets(t testing.TB) (n int) {
	t.Helper()
	for _, err := range u.vault.All(t.Context(), 1) {
		must(t, err)
		n++
	}
	return n
}

// While the views stand still no secret is stored: the command would fail after
// it, and each retry leave one behind.
func TestNoSecretIsPutWhileTheViewsStandStill(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	create := map[string]any{"component": "plain", "name": "One", "keys": map[string]string{"apiKey": "k"}}
	must(t, u.command("credential.create", "", create, nil))
	before := u.secrets(t)
	stream := events.StreamID{Tenant: "default", Category: "credential", ID: "nobody"}
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "x"}, Command: events.NewID(), Time: time.Unix(1, 0), Via: "system"}
	_, err := u.store.Append(t.Context(), stream, 0, meta, events.CredentialRenamed{Name: "no view can apply it"})
	must(t, err)
	within(t, "the projector stops", func() bool { return u.proj.Err() != nil })
	for i := range 20 { // longer than the projector's first attempts to go on
		if got := code(t, u.command("credential.create", fmt.Sprint("c", i), create, nil)); got != projections.ErrViewsBehind.Code {
			t.Errorf("a create while the views stand still: %s", got)
		}
		if reasons := u.notReadyReasons(t); !strings.Contains(reasons, "views: ") {
			t.Errorf("readiness says %q", reasons)
		}
		time.Sleep(restartMin / 10)
	}
	if after := u.secrets(t); after != before {
		t.Errorf("%d secrets, %d before", after, before)
	}
}

// within waits until something is so.
func within(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("for a minute it was not so that ", what)
		}
	}
}

// Readiness says when the views are damaged, and the service rebuilds them.
func TestDamagedViewsHeal(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	for i := range 30 {
		must(t, u.command("credential.create", "", map[string]any{"component": "plain", "name": fmt.Sprint("n", i), "keys": map[string]string{"apiKey": "k"}}, nil))
	}
	u.stop()
	u = bring(t, data)
	f, err := os.OpenFile(filepath.Join(data, "views.db"), os.O_RDWR, 0)
	must(t, err)
	info, err := f.Stat()
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, int(info.Size())-4096), 4096)
	must(t, errors.Join(err, f.Close()))
	seen := false
	var list struct{ Credentials []shown }
	within(t, "the list is back", func() bool {
		err := u.query("credential.list", "limit=200", &list)
		if reasons := u.notReadyReasons(t); strings.Contains(reasons, projections.ErrViewsDamaged.Msg) {
			seen = true
		}
		return err == nil
	})
	if len(list.Credentials) != 30 {
		t.Errorf("%d credentials after the views healed, want 30", len(list.Credentials))
	}
	if !seen && !strings.Contains(u.logs.String(), "damaged read models rebuilt") {
		t.Error("nothing was damaged")
	}
	within(t, "the service is ready", func() bool { return u.notReadyReasons(t) == "" })
}
