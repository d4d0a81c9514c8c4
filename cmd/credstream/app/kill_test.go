package app

import (
	"errors"
	"flag"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
)

var (
	killTime  = flag.Duration("killtime", 0, "how long TestKillLoop goes on; 0: a few kills")
	killCount = flag.Int("killcount", 3, "how many kills TestKillLoop makes at least")
)

// The process is killed at any moment under load, again and again: every
// acknowledged change is there, the views equal a rebuild from the log, the feed
// holds every event once.
func TestKillLoop(t *testing.T) {
	data := t.TempDir()
	w := newWriters()
	begin := time.Now()
	kills := 0
	for kills < *killCount || time.Since(begin) < *killTime || w.acked == 0 && kills < 20 {
		moment := time.Duration(20+rand.IntN(400)) * time.Millisecond // any
		if w.acked == 0 {
			moment *= time.Duration(1 + kills) // a slow machine acknowledges nothing so soon
		}
		p := spawn(t, data)
		registerPlain(t, p.http)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			w.run(p.http, 8)
		}()
		time.Sleep(moment)
		_ = p.kill(syscall.SIGKILL)
		<-gone
		kills++
		if kills%5 == 0 || kills >= *killCount && time.Since(begin) >= *killTime {
			w.check(t, data)
		}
		if t.Failed() {
			t.Fatalf("after %d kills", kills)
		}
	}
	tally{faults: kills, acked: w.acked, unknown: w.unknown, lost: w.lost}.report(t)
	if w.acked == 0 {
		t.Error("nothing was acknowledged: the test shows nothing")
	}
}

// The encryption key is rotated again and again under load, in a process that is killed at any
// moment: every acknowledged secret opens, and in the end one key is left, which encrypts all.
func TestKeyRotationKilled(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	w := newWriters()
	rotating := func(p *process) (rotating bool, keys int) {
		var status struct {
			Rotating bool
			Keys     []struct{ State string }
		}
		must(t, api{base: p.http, key: adminKey, tenant: "default"}.query("encryption_key.status", "", &status))
		return status.Rotating, len(status.Keys)
	}
	rotations := 0
	rotate := func(p *process) {
		var refused *apiError
		err := api{base: p.http, key: adminKey, tenant: "default"}.command("encryption_key.rotate", "", map[string]any{}, nil)
		if err == nil {
			rotations++
		} else if !errors.As(err, &refused) || refused.Code != aggregates.ErrKeyRotating.Code {
			t.Fatal(err)
		}
	}
	for kills := range *killCount {
		p := spawn(t, data, "--key-retire-after", "2s")
		registerPlain(t, p.http)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			w.run(p.http, 8)
		}()
		rotate(p)
		if kills%2 == 1 { // and sometimes a rotation ends in between
			await(t, "the rotation", func() (bool, error) { r, _ := rotating(p); return !r, nil })
			rotate(p)
		}
		time.Sleep(time.Duration(20+rand.IntN(400)) * time.Millisecond) // the moment of the kill is meant to be any
		_ = p.kill(syscall.SIGKILL)
		<-gone
	}
	p := spawn(t, data, "--key-retire-after", "2s")
	await(t, "the rotation", func() (bool, error) { r, _ := rotating(p); return !r, nil })
	if _, keys := rotating(p); keys != 1 {
		t.Errorf("%d keys are left", keys)
	}
	must(t, p.kill(syscall.SIGTERM))
	w.check(t, data)
	t.Logf("%d rotations", rotations)
	tally{faults: *killCount, acked: w.acked, unknown: w.unknown, lost: w.lost}.report(t)
	if w.acked == 0 || rotations < 2 {
		t.Error("nothing was acknowledged or rotated: the test shows nothing")
	}
}
