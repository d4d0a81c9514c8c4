package storage_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/storage"
)

// blocks is a stream's folder whose files a test writes in the server's place,
// with a record of what was fsynced.
type blocks struct {
	t    *testing.T
	root string // the store
	dir  string // the blocks

	mu     sync.Mutex
	synced []string
	fail   error         // what the next fsyncs answer
	hold   chan struct{} // when set, each fsync takes a value from it first
	begun  chan struct{} // and gives one to this before
}

func newBlocks(t *testing.T) (*blocks, *storage.Syncer, *[]error) {
	t.Helper()
	root := t.TempDir()
	b := &blocks{t: t, root: root, dir: filepath.Join(root, "jetstream", "acc", "streams", "LOG", "msgs"), begun: make(chan struct{}, 100)}
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var fatal []error
	s := storage.NewSyncer(b.dir, func(err error) { fatal = append(fatal, err) })
	s.SetFsync(b.fsync)
	t.Cleanup(s.Close)
	return b, s, &fatal
}

func (b *blocks) fsync(f *os.File) error {
	b.mu.Lock()
	name, hold := f.Name(), b.hold
	if held, err := f.Stat(); err == nil {
		if now, err := os.Stat(name); err != nil || !os.SameFile(held, now) {
			name += " (dead)" // an fsync of a file that is no longer there makes nothing durable
		}
	}
	b.synced = append(b.synced, strings.TrimPrefix(strings.TrimPrefix(name, b.root), "/jetstream/acc/streams/"))
	err := b.fail
	b.mu.Unlock()
	if hold != nil {
		b.begun <- struct{}{}
		<-hold
	}
	return err
}

// write appends to a block, as the server does.
func (b *blocks) write(name string) {
	b.t.Helper()
	f, err := os.OpenFile(filepath.Join(b.dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString("record")
	}
	if err := errors.Join(err, f.Close()); err != nil {
		b.t.Fatal(err)
	}
}

// rewrite replaces a block by another one, as the server does to erase a message.
func (b *blocks) rewrite(name string) {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := errors.Join(os.WriteFile(path+".tmp", []byte("record"), 0o600), os.Rename(path+".tmp", path)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *blocks) remove(name string) {
	b.t.Helper()
	if err := os.Remove(filepath.Join(b.dir, name)); err != nil {
		b.t.Fatal(err)
	}
}

// take returns what was fsynced since the last call, sorted.
func (b *blocks) take() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Sorted(slices.Values(b.synced))
	b.synced = nil
	return all
}

func TestSyncerSyncsWhatChanged(t *testing.T) {
	b, s, fatal := newBlocks(t)
	const dir, stream = "LOG/msgs", "LOG"
	file := func(name string) string { return dir + "/" + name }
	for _, step := range []struct {
		name string
		do   func()
		want []string
	}{
		{"an empty stream", func() {}, []string{stream, dir}},
		{"the first block", func() { b.write("1.blk") }, []string{dir, file("1.blk")}},
		{"nothing new", func() {}, []string{file("1.blk")}},
		{"more in it", func() { b.write("1.blk") }, []string{file("1.blk")}},
		{"a successor: the one before once more", func() { b.write("1.blk"); b.write("2.blk") }, []string{dir, file("1.blk"), file("2.blk")}},
		{"then the newest alone", func() { b.write("2.blk") }, []string{file("2.blk")}},
		{"two at once", func() { b.write("2.blk"); b.write("3.blk"); b.write("4.blk") }, []string{dir, file("2.blk"), file("3.blk"), file("4.blk")}},
		{"ten comes after nine", func() { b.write("9.blk"); b.write("10.blk") }, []string{dir, file("10.blk"), file("4.blk"), file("9.blk")}},
		{"the newest alone again", func() { b.write("10.blk") }, []string{file("10.blk")}},
		{"an older block rewritten", func() { b.rewrite("2.blk") }, []string{dir, file("10.blk"), file("2.blk")}},
		{"the newest rewritten", func() { b.rewrite("10.blk") }, []string{dir, file("10.blk")}},
		{"an older block removed", func() { b.remove("1.blk") }, []string{dir, file("10.blk")}},
		{"other files", func() { b.write("index.db"); b.write("x.blk"); b.write("10.key") }, []string{dir, file("10.blk")}},
		{"a folder swapped by a purge", func() {
			if err := errors.Join(os.Rename(b.dir, b.dir+"x"), os.Mkdir(b.dir, 0o700)); err != nil {
				t.Fatal(err)
			}
			b.write("11.blk")
		}, []string{stream, dir, file("11.blk")}},
		{"and after it", func() { b.write("11.blk") }, []string{file("11.blk")}},
		{"no block left", func() { b.remove("11.blk") }, []string{dir}},
	} {
		step.do()
		if err := s.Wait(t.Context()); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if diff := cmp.Diff(step.want, b.take()); diff != "" {
			t.Errorf("%s: synced (-want +got):\n%s", step.name, diff)
		}
	}
	if len(*fatal) > 0 {
		t.Errorf("fatal: %v", *fatal)
	}
}

// A killed predecessor may have left any block unsynced.
func TestSyncerFirstRoundSyncsAll(t *testing.T) {
	b, s, _ := newBlocks(t)
	for _, name := range []string{"1.blk", "2.blk", "3.blk"} {
		b.write(name)
	}
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"LOG", "LOG/msgs", "LOG/msgs/1.blk", "LOG/msgs/2.blk", "LOG/msgs/3.blk"}, b.take()); diff != "" {
		t.Errorf("synced (-want +got):\n%s", diff)
	}
}

// Who comes while a round is under way waits for the next one, with all the others.
func TestSyncerRounds(t *testing.T) {
	b, s, _ := newBlocks(t)
	b.write("1.blk")
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.hold = make(chan struct{})
	b.mu.Unlock()

	var waiting sync.WaitGroup
	wait := func(ended chan<- error) {
		waiting.Go(func() { ended <- s.Wait(t.Context()) })
	}
	first, later := make(chan error, 1), make(chan error, 100)
	wait(first)
	<-b.begun // the second round is under way
	for range 64 {
		wait(later)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("a waiter whose time is up got %v", err)
	}
	b.hold <- struct{}{}
	if err := <-first; err != nil {
		t.Error(err)
	}
	<-b.begun // the third begins, so the second has ended
	select {
	case err := <-later:
		t.Errorf("a waiter was served by a round that had begun before it came: %v", err)
	default:
	}
	close(b.hold)
	waiting.Wait()
	for range 64 {
		if err := <-later; err != nil {
			t.Error(err)
		}
	}
}

func TestSyncerFailure(t *testing.T) {
	b, s, fatal := newBlocks(t)
	b.write("1.blk")
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.mu.Lock()
	b.fail = fs.ErrInvalid
	b.mu.Unlock()
	if err := s.Wait(t.Context()); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	b.mu.Lock()
	b.fail = nil // a later fsync would succeed, and lie: the kernel has dropped the data
	b.mu.Unlock()
	if err := s.Wait(t.Context()); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("after a failure: %v", err)
	}
	if err := s.SyncTree(); err != nil {
		t.Errorf("SyncTree on its own: %v", err)
	}
	s.Close()
	if len(*fatal) != 1 || !errors.Is((*fatal)[0], fs.ErrInvalid) {
		t.Errorf("fatal was called with %v", *fatal)
	}
}

func TestSyncerWithoutItsFolder(t *testing.T) {
	b, s, fatal := newBlocks(t)
	if err := os.RemoveAll(filepath.Dir(b.dir)); err != nil {
		t.Fatal(err)
	}
	if err := s.Wait(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("syncing nothing: %v", err)
	}
	s.Close()
	if len(*fatal) != 1 {
		t.Errorf("fatal was called with %v", *fatal)
	}
}

func TestSyncerClosed(t *testing.T) {
	_, s, fatal := newBlocks(t)
	s.Close()
	s.Close()
	if err := s.Wait(t.Context()); err == nil {
		t.Error("a closed syncer says that all is synced")
	}
	if len(*fatal) > 0 {
		t.Errorf("fatal: %v", *fatal)
	}
}

func TestSyncTree(t *testing.T) {
	b, s, _ := newBlocks(t)
	b.write("1.blk")
	consumer := filepath.Join(filepath.Dir(b.dir), "obs", "feed")
	if err := errors.Join(os.MkdirAll(consumer, 0o700),
		os.WriteFile(filepath.Join(consumer, "meta.inf"), nil, 0o600),
		os.WriteFile(filepath.Join(filepath.Dir(b.dir), "meta.inf"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := s.SyncTree(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"", "/jetstream", "/jetstream/acc", "/jetstream/acc/streams",
		"LOG", "LOG/meta.inf", "LOG/msgs", "LOG/msgs/1.blk", "LOG/obs", "LOG/obs/feed", "LOG/obs/feed/meta.inf",
	}
	if diff := cmp.Diff(want, b.take()); diff != "" {
		t.Errorf("synced (-want +got):\n%s", diff)
	}
}

// A process without a free descriptor loses nothing: whoever waits for an fsync
// waits for a descriptor too.
func TestSyncerWaitsForADescriptor(t *testing.T) {
	b, s, fatal := newBlocks(t)
	b.write("1.blk")
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.write("2.blk")
	obs := filepath.Join(filepath.Dir(b.dir), "obs")
	if err := os.MkdirAll(filepath.Join(obs, "feed"), 0o700); err != nil {
		t.Fatal(err)
	}
	release := useDescriptors(t)
	done := make(chan error, 2)
	go func() { done <- s.Wait(t.Context()) }()
	go func() { done <- s.SyncTree() }()
	select {
	case err := <-done:
		t.Errorf("synced without a descriptor: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	release()
	for range cap(done) {
		if err := bustest.Recv(t, done); err != nil {
			t.Error(err)
		}
	}
	if got := b.take(); !slices.Contains(got, "LOG/msgs/2.blk") || !slices.Contains(got, "LOG/obs/feed") {
		t.Errorf("synced %v", got)
	}
	if len(*fatal) > 0 {
		t.Errorf("fatal: %v", *fatal)
	}
}

// useDescriptors leaves the process without a free descriptor until release.
func useDescriptors(t *testing.T) (release func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	free, err := unix.Dup(0) // the lowest one that is free
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.Close(free), unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: was.Max})); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(release)
	return release
}
