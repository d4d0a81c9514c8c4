package jetstream_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
)

// The power-cut test runs this test program again, as the process that dies.
const (
	powerCutDir  = "CREDSTREAM_TEST_POWERCUT_DIR"
	powerCutSync = "CREDSTREAM_TEST_POWERCUT_SYNC"
)

// TestPowerCutChild is not a test: it appends from 64 writers until it is
// killed, and prints the sequence and the stream of each acknowledged commit,
// and the time at which it was.
func TestPowerCutChild(t *testing.T) {
	dir := os.Getenv(powerCutDir)
	if dir == "" {
		t.Skip("this is the process that TestPowerCut kills")
	}
	n := startNode(t, dir)
	syncer := n.syncer(t)
	cfg := jetstream.Config{Conn: n.connect(t), SyncTree: syncer.SyncTree}
	if os.Getenv(powerCutSync) == "on" {
		cfg.Sync = syncer.Wait
	}
	s := openStore(t, cfg)
	acked := make(chan string, 4096)
	var printing, writing sync.WaitGroup
	printing.Go(func() {
		out := bufio.NewWriter(os.Stdout)
		for line := range acked {
			if _, err := out.WriteString(line); err != nil {
				return
			}
			if len(acked) == 0 {
				if err := out.Flush(); err != nil {
					return
				}
			}
		}
	})
	acked <- "ready\n"
	for range 64 {
		writing.Go(func() {
			for {
				id := events.NewID()
				text := events.ComponentRegistered{Owner: "acme", Title: id, Descriptor: strings.Repeat("x", 500+rand.IntN(8000))}
				seq, err := s.Append(t.Context(), storetest.Credential("acme", id), 0, storetest.Meta("acme", id), text)
				if err != nil {
					return
				}
				acked <- fmt.Sprintf("%d %s %d\n", seq, id, time.Now().UnixNano())
			}
		})
	}
	writing.Wait()
	close(acked)
	printing.Wait()
	select {} // the disk is dead; only a kill ends a machine without power
}

// powerCut runs the child on the disk, cuts the power at a random time, and adds
// what was acknowledged to acked: the stream's id by sequence.
func powerCut(t *testing.T, disk *storetest.Disk, sync string, acked map[uint64]string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self, "-test.run=^TestPowerCutChild$")
	child.Env = append(os.Environ(), powerCutDir+"="+filepath.Join(disk.Dir, "data"), powerCutSync+"="+sync)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "ready\n" {
		rest, _ := io.ReadAll(lines)
		t.Fatalf("the child says %q%s (%v)", line, rest, err)
	}
	type ack struct {
		seq uint64
		id  string
		at  int64
	}
	var acks []ack
	read := make(chan struct{})
	go func() {
		defer close(read)
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return // a last line that is cut short counts as not read
			}
			var a ack
			if _, err := fmt.Sscanf(line, "%d %s %d\n", &a.seq, &a.id, &a.at); err == nil {
				acks = append(acks, a)
			}
		}
	}()
	time.Sleep(300*time.Millisecond + rand.N(1200*time.Millisecond)) // the random moment, not a synchronisation
	dark := disk.Cut(t)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-read
	_ = child.Wait() // killed, it says
	for _, a := range acks {
		if a.at < dark.UnixNano() {
			acked[a.seq] = a.id
		}
	}
	disk.Remount(t)
}

// check starts a server on what is left and returns how many of the
// acknowledged commits are missing or are others, and the last sequence.
func check(t *testing.T, disk *storetest.Disk, acked map[uint64]string) (lost int, end uint64) {
	t.Helper()
	t.Run("check", func(t *testing.T) { // a test of its own, so that the server stops after it
		n := startNode(t, filepath.Join(disk.Dir, "data"))
		s := openStore(t, jetstream.Config{Conn: n.connect(t)})
		var err error
		if end, err = s.End(t.Context()); err != nil {
			t.Fatal(err)
		}
		found := 0
		missing := maps.Clone(acked)
		if end > 0 {
			for r, err := range s.Follow(t.Context(), 0) {
				if err != nil {
					t.Fatal(err)
				}
				if acked[r.Seq] == r.Stream.ID {
					found++
					delete(missing, r.Seq)
				}
				if r.Seq == end {
					break
				}
			}
		}
		lost = len(acked) - found
		if lost > 0 {
			seqs := slices.Sorted(maps.Keys(missing))
			t.Logf("missing %d to %d of a log that ends at %d", seqs[0], seqs[len(seqs)-1], end)
		}
	})
	return lost, end
}

// TestPowerCut cuts the power of a disk under 64 writers, again and again on the
// same log: every acknowledged commit is there afterwards.
func TestPowerCut(t *testing.T) {
	disk := storetest.NewDisk(t, 3<<30)
	cuts := 10
	if testing.Short() {
		cuts = 2
	}
	acked := map[uint64]string{}
	for cut := range cuts {
		powerCut(t, disk, "on", acked)
		lost, end := check(t, disk, acked)
		blocks, err := filepath.Glob(filepath.Join(disk.Dir, "data", "jetstream", "$G", "streams", jetstream.Stream, "msgs", "*.blk"))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("cut %d: %d acknowledged, %d in the log, %d blocks", cut+1, len(acked), end, len(blocks))
		if lost > 0 {
			t.Fatalf("cut %d: %d of %d acknowledged commits are lost", cut+1, lost, len(acked))
		}
	}
	if len(acked) == 0 {
		t.Error("nothing was acknowledged, so nothing was shown")
	}
}

// The same without the fsync must lose commits; else TestPowerCut shows nothing.
func TestPowerCutWithoutSync(t *testing.T) {
	disk := storetest.NewDisk(t, 1<<30)
	acked := map[uint64]string{}
	for range 3 {
		powerCut(t, disk, "off", acked)
		lost, end := check(t, disk, acked)
		t.Logf("%d acknowledged, %d in the log, %d lost", len(acked), end, lost)
		if lost > 0 {
			return
		}
	}
	t.Error("nothing is lost without an fsync: the power was not cut")
}
