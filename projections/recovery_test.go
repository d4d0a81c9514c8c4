package projections_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// persist runs something until the test ends, again after each failure.
func persist(t *testing.T, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var runs sync.WaitGroup
	runs.Go(func() {
		for ctx.Err() == nil {
			if err := run(ctx); err != nil {
				time.Sleep(time.Millisecond)
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		runs.Wait()
	})
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("for a minute it was not so that ", what)
		}
	}
}

// reached waits until the projector has applied a commit, whatever stops it meanwhile.
func reached(t *testing.T, p *projections.Projector, seq uint64) {
	t.Helper()
	eventually(t, "the views are up to date", func() bool { return p.Wait(t.Context(), seq) == nil })
}

func equalFresh(t *testing.T, v *projections.Views, recs []events.Record) {
	t.Helper()
	fresh := open(t, filepath.Join(t.TempDir(), "fresh.db"))
	if err := fresh.Apply(t.Context(), recs); err != nil {
		t.Fatal(err)
	}
	if dump(t, fresh) != dump(t, v) {
		t.Error("the views differ from fresh ones")
	}
}

// smallDisk mounts a file system of some MB.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if os.Getuid() != 0 {
		t.Skip("what a full disk does is not tried: mounting a small file system needs root")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skip("what a full disk does is not tried: a small file system cannot be mounted here: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Views whose disk fills up say so, answer what they know, and go on by
// themselves once there is space: nothing is left out, nothing applied twice.
func TestViewsRecoverFromAFullDisk(t *testing.T) {
	dir := smallDisk(t, "size=16m")
	v := open(t, filepath.Join(dir, "views.db"))
	recs := created(6000)
	log := newJournal(recs[:100]...)
	p := projections.NewProjector(log, v, quiet())
	var seen []uint64
	p.OnApplied(func(batch []events.Record) {
		for _, r := range batch {
			seen = append(seen, r.Seq)
		}
	})
	persist(t, p.Run)
	reached(t, p, 100)
	written := uint64(100)
	more := func() {
		log.write(recs[written : written+20]...)
		written += 20
		_ = p.Wait(t.Context(), written)
	}
	for round := range 3 {
		fill(t, filepath.Join(dir, "ballast"))
		for p.Err() == nil && int(written) < len(recs) {
			more()
		}
		if err := p.Err(); !errors.Is(err, projections.ErrDiskFull) {
			t.Fatalf("round %d: the disk is full after %d commits, and the projector says %v", round, written, err)
		}
		if err := p.Wait(t.Context(), written); !errors.Is(err, projections.ErrViewsBehind) && err != nil {
			t.Errorf("a wait for views that stand still: %v", err)
		}
		if _, found, err := v.Credential(t.Context(), recs[9].Stream.Tenant, recs[9].Stream.ID); err == nil && !found {
			t.Error("what was there is gone")
		}
		if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
			t.Fatal(err)
		}
		reached(t, p, written)
		if err := p.Err(); err != nil {
			t.Errorf("the views are up to date, and the projector says %v", err)
		}
	}
	var want []uint64
	for seq := range written {
		want = append(want, seq+1)
	}
	if !slices.Equal(slices.Compact(slices.Sorted(slices.Values(seen))), want) {
		t.Errorf("%d commits were told of, want %d", len(seen), len(want))
	}
	equalFresh(t, v, recs[:written])
}

// fill writes a file until the disk takes no more.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 1<<12; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
}

// Views that are damaged while they serve say so, and are built anew.
func TestDamagedViewsAreRebuilt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "views.db")
	recs := created(900)
	v := open(t, path)
	if err := v.Apply(t.Context(), recs[:600]); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil { // so that no write-ahead log hides the damage
		t.Fatal(err)
	}
	v = open(t, path)
	log := newJournal(recs[:600]...)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, 200_000), 4096)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	list := func() error {
		_, _, err := v.Credentials(t.Context(), projections.CredentialFilter{Tenant: "tenant-01"})
		return err
	}
	if err := list(); !errors.Is(err, projections.ErrViewsDamaged) || !errors.Is(v.Err(), projections.ErrViewsDamaged) {
		t.Errorf("a list read from garbage: %v; the views: %v", err, v.Err())
	}
	p := projections.NewProjector(log, v, quiet())
	persist(t, p.Run)
	log.write(recs[600:]...)
	persist(t, func(ctx context.Context) error { return v.Repair(ctx, log) })
	reached(t, p, 900)
	eventually(t, "the views are sound", func() bool { return v.Err() == nil })
	if err := list(); err != nil {
		t.Error(err)
	}
	equalFresh(t, v, recs)
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if v = open(t, path); v.Position() != 900 {
		t.Errorf("after the next start the views are at %d", v.Position())
	}
}
