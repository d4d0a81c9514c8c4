// Package storage manages the files of the embedded server's streams: it
// makes acknowledged messages durable, verifies the files before a server opens them, and
// detects lost messages.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// errSyncerClosed is returned by Wait after Close.
var errSyncerClosed = errors.New("storage: the syncer is closed")

// A directory's change time has a resolution of up to 10 ms. Within dirTick after a change,
// another change may have the same change time.
const dirTick = 100 * time.Millisecond

// descriptorWait is the pause between two attempts to open a file while no descriptor is free.
const descriptorWait = 20 * time.Millisecond

// Syncer makes the messages that the embedded server has acknowledged durable, for one
// stream: it fsyncs the stream's block files from outside the server, one round
// for all waiting callers. It relies on two properties of the server (2.15, file
// storage, one replica, default persist mode): a message is written to its
// block with write(2) before it is acknowledged, and only the newest block grows,
// while an older one is only ever replaced by rename or removed.
type Syncer struct {
	// Delay is added to every fsync, so that a benchmark can model a slower disk.
	// Set it before the first Wait.
	Delay time.Duration

	dir    string
	fatal  func(error)
	fsync  func(*os.File) error
	rounds atomic.Uint64
	trees  atomic.Uint64

	kick chan struct{} // holds one token while somebody waits for the next round
	quit chan struct{}
	done chan struct{} // closed when run has returned

	mu   sync.Mutex
	next *syncRound // the round for which new callers wait
	err  error      // the first failure, or errSyncerClosed; no round follows it

	// The result of the last listing; used only by run.
	listed  os.FileInfo         // the directory before that listing; nil before the first
	settled bool                // a change after that listing shows in the directory's change time
	blocks  map[int]os.FileInfo // every block, as it was before it was last synced
	newest  int
	head    *os.File // the newest block; kept open so that a write error is reported here
	folder  *os.File // dir; kept open so that no client connection takes its descriptor
}

type syncRound struct {
	done chan struct{}
	err  error
}

// NewSyncer watches dir, the folder ".../jetstream/<account>/streams/<stream>/msgs".
// It does nothing before the first Wait; the first round syncs every block,
// because a killed predecessor may have left some unsynced. fatal is called
// once, on the first error: the kernel may have dropped unwritten data
// and will not report it again, so the process must exit.
func NewSyncer(dir string, fatal func(error)) *Syncer {
	s := &Syncer{
		dir:    dir,
		fatal:  fatal,
		fsync:  (*os.File).Sync,
		kick:   make(chan struct{}, 1),
		quit:   make(chan struct{}),
		done:   make(chan struct{}),
		next:   &syncRound{done: make(chan struct{})},
		blocks: map[int]os.FileInfo{},
	}
	go s.run()
	return s
}

// Wait returns after an fsync, begun after the call, of everything that was written
// before the call. One round serves all waiting callers. Every call after the first
// failure returns that failure.
func (s *Syncer) Wait(ctx context.Context) error {
	s.mu.Lock()
	r, err := s.next, s.err
	s.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case s.kick <- struct{}{}:
	default: // the next round is already requested
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Rounds is the number of rounds begun.
func (s *Syncer) Rounds() uint64 { return s.rounds.Load() }

// Trees is the number of calls of SyncTree that succeeded.
func (s *Syncer) Trees() uint64 { return s.trees.Load() }

// Close ends the rounds and returns when the last has ended. Waiting callers
// get an error.
func (s *Syncer) Close() {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = errSyncerClosed
	}
	s.mu.Unlock()
	if first {
		close(s.quit)
	}
	<-s.done
}

// SyncTree fsyncs every file and folder of the stream and the folders that
// lead to it. Call it once after creating or changing the stream:
// otherwise a power cut can lose the stream's configuration.
func (s *Syncer) SyncTree() error {
	stream := filepath.Dir(s.dir)
	if err := s.withDescriptors(func() error { return s.syncTree(stream) }); err != nil {
		return s.fail(fmt.Errorf("syncing %s: %w", stream, err))
	}
	s.trees.Add(1)
	return nil
}

func (s *Syncer) syncTree(stream string) error {
	err := filepath.WalkDir(stream, func(path string, _ fs.DirEntry, err error) error {
		if err == nil {
			err = s.syncPath(path)
		}
		if path != stream && errors.Is(err, fs.ErrNotExist) {
			return nil // the server's temporary files come and go
		}
		return err
	})
	for up, n := filepath.Dir(stream), 0; err == nil && n < 4; up, n = filepath.Dir(up), n+1 { // streams, account, jetstream, store
		err = s.syncPath(up)
	}
	return err
}

// withDescriptors calls a function that opens files, again while no descriptor is
// free: such a call has synced less than it should, and lost nothing.
func (s *Syncer) withDescriptors(sync func() error) error {
	for {
		err := sync()
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) {
			return err
		}
		select {
		case <-s.quit:
			return err
		case <-time.After(descriptorWait):
		}
	}
}

func (s *Syncer) run() {
	defer close(s.done)
	defer func() {
		for _, f := range []*os.File{s.head, s.folder} {
			if f != nil {
				_ = f.Close() // opened for reading
			}
		}
	}()
	for {
		select {
		case <-s.quit:
			s.finish(s.take(), errSyncerClosed)
			return
		case <-s.kick:
		}
		r := s.take()
		s.rounds.Add(1)
		err := s.withDescriptors(s.syncBlocks)
		if err == nil {
			s.finish(r, nil)
			continue
		}
		err = s.fail(fmt.Errorf("syncing %s: %w", s.dir, err))
		s.finish(r, err)
		s.finish(s.take(), err) // callers that came during the failure
		return
	}
}

// take starts a round: later calls of Wait wait for the one after it.
func (s *Syncer) take() *syncRound {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.next
	s.next = &syncRound{done: make(chan struct{})}
	return r
}

func (s *Syncer) finish(r *syncRound, err error) {
	r.err = err
	close(r.done)
}

// fail makes every later Wait return err and reports the first failure.
func (s *Syncer) fail(err error) error {
	s.mu.Lock()
	first := s.err == nil
	if first {
		s.err = err
	}
	s.mu.Unlock()
	if first && s.fatal != nil {
		s.fatal(err)
	}
	return err
}

// syncBlocks is one round: the newest block, and whatever else has changed
// since the last round. Usually that is one stat and one fsync.
func (s *Syncer) syncBlocks() error {
	for range 100 {
		now := time.Now()
		dir, err := os.Stat(s.dir)
		if errors.Is(err, fs.ErrNotExist) { // a purge swaps the folder in two renames
			time.Sleep(time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		if s.settled && sameState(dir, s.listed) {
			if s.head == nil {
				return nil
			}
			return s.syncFile(s.head)
		}
		vanished, err := s.syncChanged(dir, now)
		if err != nil || !vanished {
			return err
		}
	}
	return fmt.Errorf("%s keeps changing: %w", s.dir, fs.ErrNotExist)
}

// syncChanged lists the folder, whose state before was dir, and syncs
// every block that is new, was replaced or written since its last sync, or
// was the newest until now: it may have grown after its last sync and before its
// successor was created. vanished means that a block was removed meanwhile.
func (s *Syncer) syncChanged(dir os.FileInfo, now time.Time) (vanished bool, err error) {
	entries, err := s.list(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	found := make(map[int]os.FileInfo, len(entries))
	var order []int
	for _, e := range entries {
		n, ok := blockNumber(e.Name())
		if !ok {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			vanished = true
			continue
		}
		if err != nil {
			return false, err
		}
		found[n] = info
		order = append(order, n)
	}
	slices.Sort(order)

	dirChanged := !sameState(dir, s.listed) || len(found) != len(s.blocks)
	for i, n := range order {
		was, known := s.blocks[n]
		replaced := !known || !os.SameFile(was, found[n])
		dirChanged = dirChanged || replaced
		isNewest := i == len(order)-1
		if !replaced && sameState(was, found[n]) && n < s.newest && !isNewest {
			continue
		}
		removed, err := s.syncBlock(n, found[n], isNewest)
		if err != nil {
			return false, err
		}
		vanished = vanished || removed
	}
	if len(order) == 0 && s.head != nil {
		_ = s.head.Close()
		s.head = nil
	}
	if dirChanged {
		if err := s.syncFile(s.folder); err != nil {
			return false, err
		}
		if s.listed == nil || !os.SameFile(dir, s.listed) {
			if err := s.syncPath(filepath.Dir(s.dir)); errors.Is(err, fs.ErrNotExist) {
				vanished = true
			} else if err != nil {
				return false, err
			}
		}
	}
	s.listed, s.blocks = dir, found
	s.settled = now.Sub(dir.ModTime()) > dirTick
	s.newest = 0
	if len(order) > 0 {
		s.newest = order[len(order)-1]
	}
	return vanished, nil
}

// list reads the folder, whose state was dir, through the open file if that is still
// the folder.
func (s *Syncer) list(dir os.FileInfo) ([]os.DirEntry, error) {
	if s.folder != nil {
		held, err := s.folder.Stat()
		if err != nil {
			return nil, err
		}
		if os.SameFile(held, dir) {
			if _, err := s.folder.Seek(0, io.SeekStart); err != nil {
				return nil, err
			}
			return s.folder.ReadDir(-1)
		}
	}
	f, err := os.Open(s.dir)
	if err != nil {
		return nil, err
	}
	if s.folder != nil {
		_ = s.folder.Close() // opened for reading
	}
	s.folder = f
	return f.ReadDir(-1)
}

// syncBlock syncs block n through the open file if that is still the block, and
// keeps the newest open. removed means that the file no longer exists.
func (s *Syncer) syncBlock(n int, info os.FileInfo, newest bool) (removed bool, err error) {
	f := s.head
	if f != nil {
		held, err := f.Stat()
		if err != nil {
			return false, err
		}
		if !os.SameFile(held, info) {
			f = nil
		}
	}
	if f == nil {
		if f, err = os.Open(filepath.Join(s.dir, strconv.Itoa(n)+".blk")); errors.Is(err, fs.ErrNotExist) {
			return true, nil
		} else if err != nil {
			return false, err
		}
	}
	err = s.syncFile(f)
	switch {
	case newest && f != s.head:
		if s.head != nil {
			_ = s.head.Close()
		}
		s.head = f
	case f != s.head:
		_ = f.Close()
	}
	return false, err
}

func (s *Syncer) syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	return s.syncFile(f)
}

func (s *Syncer) syncFile(f *os.File) error {
	if s.Delay > 0 {
		time.Sleep(s.Delay)
	}
	return s.fsync(f)
}

// blockNumber reads the number in a block's file name, "<n>.blk".
func blockNumber(name string) (int, bool) {
	digits, ok := strings.CutSuffix(name, ".blk")
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n > 0
}

// sameState reports whether two stats are of the same, unchanged file.
func sameState(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
