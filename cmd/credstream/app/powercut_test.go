package app

import (
	"flag"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/credstream/credstream/events/storetest"
)

var cuts = flag.Int("cuts", 10, "how often TestPowerCut cuts the power; 2 with -short")

// The power of a disk is cut at any moment while 64 writers change credentials:
// every acknowledged change is there afterwards, every acknowledged secret
// opens, the views equal a rebuild and the feed holds every event once.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	disk := storetest.NewDisk(t, 2<<30)
	data := filepath.Join(disk.Dir, "data")
	w := newWriters()
	n := *cuts
	if testing.Short() {
		n = min(n, 2)
	}
	for i := range n {
		p := spawn(t, data, "--durability", "group")
		registerPlain(t, p.http)
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			w.run(p.http, 64)
		}()
		time.Sleep(time.Duration(300+rand.IntN(1200)) * time.Millisecond) // the moment of the cut is meant to be any
		cut := disk.Cut(t)
		_ = p.kill(syscall.SIGKILL)
		<-gone
		w.doubtAfter(cut)
		disk.Remount(t)
		w.check(t, data)
		if t.Failed() {
			t.Fatalf("after %d cuts", i+1)
		}
	}
	tally{faults: n, acked: w.acked, unknown: w.unknown, lost: w.lost}.report(t)
	if w.acked == 0 {
		t.Error("nothing was acknowledged: the test shows nothing")
	}
}
