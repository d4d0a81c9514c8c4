package app

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
)

func (u *up) secrets(t testing.TB) (n int) {
	t.Helper()
	for _, err := range u.vault.All(t.Context(), 1) {
		must(t, err)
		n++
	}
	return n
}

// While the views stand still at an event that they cannot apply, the commands of others
// go on, repeated ones too, and so do resolve and the feed; readiness and the status of
// the views name the event. No retry leaves a secret behind.
func TestWorkGoesOnWhileTheViewsStandStill(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	create := map[string]any{"component": "plain", "name": "One", "keys": map[string]string{"apiKey": "k"}}
	must(t, u.command("credential.create", "", create, nil))
	engine := u.as(u.issue(t, map[string]any{"name": "engine", "role": "FLOW_ENGINE"}))
	var status struct {
		Position, End uint64
		Stopped       string
	}
	within(t, "the views know the key", func() bool {
		must(t, u.query("views.status", "", &status))
		return status.Position == status.End
	})
	before := u.secrets(t)
	stream := events.StreamID{Tenant: "default", Category: "credential", ID: "nobody"}
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "x"}, Command: events.NewID(), Time: time.Unix(1, 0), Via: "system"}
	seq, err := u.store.Append(t.Context(), stream, 0, meta, events.CredentialRenamed{Name: "no view can apply it"})
	must(t, err)
	within(t, "the projector stops", func() bool { return u.proj.Err() != nil })
	late := u.as(u.issue(t, map[string]any{"name": "late", "role": "FLOW_ENGINE"})) // the views never hear of it
	const creates = 10
	for i := range creates { // longer than the projector's first attempts to go on
		var made, again done
		must(t, u.command("credential.create", fmt.Sprint("c", i), create, &made))
		must(t, u.command("credential.create", fmt.Sprint("c", i), create, &again))
		if made != again {
			t.Errorf("a create is answered %+v, and its repeat %+v", made, again)
		}
		if got := code(t, u.command("credential.rename", fmt.Sprint("c", i), map[string]any{"id": made.ID, "name": "x"}, nil)); got != service.ErrCommandIDReused.Code {
			t.Errorf("another command with the same id: %q", got)
		}
		if got := code(t, u.command("credential.rename", fmt.Sprint("r", i), map[string]any{"id": "nobody-else", "name": "x"}, nil)); got != aggregates.ErrCredentialNotFound.Code {
			t.Errorf("a named command that is refused: %q", got)
		}
		must(t, engine.query("credential.resolve", "cleartext=true&id="+made.ID, nil))
		must(t, late.query("credential.resolve", "cleartext=true&id="+made.ID, nil))
		if reasons := u.notReadyReasons(t); !strings.Contains(reasons, "views: ") {
			t.Errorf("readiness says %q", reasons)
		}
		time.Sleep(restartMin / 10)
	}
	if after := u.secrets(t); after != before+creates {
		t.Errorf("%d secrets, %d before", after, before)
	}
	must(t, u.query("views.status", "", &status))
	if !strings.Contains(status.Stopped, fmt.Sprint("commit ", seq)) {
		t.Errorf("the status of the views says %q", status.Stopped)
	}
	end, err := u.store.End(t.Context())
	must(t, err)
	within(t, "the feeds are at the end of the log", func() bool { return u.feed.Position() >= end && u.audit.Position() >= end })
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
