package app

import (
	"flag"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
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
	for kills < *killCount || time.Since(begin) < *killTime {
		p := spawn(t, data)
		registerPlain(t, p.http)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			w.run(p.http, 8)
		}()
		time.Sleep(time.Duration(20+rand.IntN(400)) * time.Millisecond) // the moment of the kill is meant to be any
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
	t.Logf("%d kills, %d acknowledged changes of %d credentials", kills, w.acked, len(w.acks))
	if w.acked == 0 {
		t.Error("nothing was acknowledged: the test shows nothing")
	}
}
