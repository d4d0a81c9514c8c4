package storage

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/credstream/credstream/fault"
)

// ErrStoredChanged means that a file of a stream was damaged, replaced or removed while the
// service used it.
var ErrStoredChanged = fault.New(fault.Unavailable, "stored_file_changed",
	"A file of the data folder was damaged or replaced. Changes are refused and no secret is returned until it is restored from a backup.")

const (
	scrubAttempts = 3                     // before a file counts as damaged: the server may be writing to it
	scrubPause    = 50 * time.Millisecond // between two of them
	scrubEvery    = 5                     // calls of Check, until the next unchanged block of a stream is verified
)

// Scrubber verifies the files of streams while the embedded server uses them. The server reads a
// block when a message of it is requested, and truncates it at the first damage. Each Check
// verifies the blocks whose file has changed since the last one, and every scrubEvery-th one of
// the others, too.
type Scrubber struct {
	Streams string   // the folder of the streams
	Kept    []string // the streams to verify
	// Grows are the streams whose blocks are never rewritten: no message is erased. All but the
	// newest block of them are never written to again.
	Grows []string
	// Whole are the streams of Grows whose blocks are never removed.
	Whole   []string
	Durable func(stream string) uint64 // a sequence up to which a stream was durable; 0: unknown

	mu    sync.Mutex
	files map[string]os.FileInfo // by path, as they were when they were last verified
	turn  uint64                 // calls of Check
}

// Forget makes the next Check accept every file as it is: the server was restarted, and Verifier
// has verified them.
func (s *Scrubber) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = nil
}

// Check returns ErrStoredChanged, with the file and the last readable sequence. The first call
// only records which files there are. It is safe for concurrent use.
func (s *Scrubber) Check(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.files != nil
	if !known {
		s.files = map[string]os.FileInfo{}
	}
	for _, stream := range s.Kept {
		damage, err := s.stream(ctx, stream, known)
		if err != nil {
			return fmt.Errorf("verifying the files of stream %s: %w", stream, err)
		}
		if damage != "" {
			return ErrStoredChanged.Withf("The stream %s is damaged: %s. Changes are refused and no secret is returned until it is restored from a backup.", stream, damage)
		}
	}
	s.turn++
	return nil
}

func (s *Scrubber) stream(ctx context.Context, stream string, known bool) (damage string, err error) {
	dir := filepath.Join(s.Streams, stream, "msgs")
	blocks, err := blockNumbers(dir)
	if err != nil {
		return "", err
	}
	if known {
		if damage := s.vanished(stream, dir, blocks); damage != "" {
			return damage, nil
		}
	}
	for i, n := range blocks {
		path, newest := filepath.Join(dir, strconv.Itoa(n)+".blk"), i == len(blocks)-1
		if damage, err = s.block(ctx, stream, path, n, newest, known, s.turn%(scrubEvery*uint64(len(blocks))) == scrubEvery*uint64(i)); damage != "" || err != nil {
			return damage, err
		}
	}
	return s.meta(ctx, stream)
}

// vanished returns the damage if a block that was there is missing although its stream never
// removes it. What other streams miss shows in their marks.
func (s *Scrubber) vanished(stream, dir string, blocks []int) (damage string) {
	if !slices.Contains(s.Grows, stream) {
		return ""
	}
	for path := range s.files {
		n, is := blockNumber(filepath.Base(path))
		if filepath.Dir(path) != dir || !is || slices.Contains(blocks, n) {
			continue
		}
		if slices.Contains(s.Whole, stream) || len(blocks) > 0 && n > blocks[0] {
			return fmt.Sprintf("block file %d.blk is missing", n)
		}
		delete(s.files, path) // its messages have expired
	}
	return ""
}

func (s *Scrubber) block(ctx context.Context, stream, path string, n int, newest, known, turn bool) (damage string, err error) {
	for attempt := 1; ; attempt++ {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) { // removed since it was listed
			return "", nil
		}
		if err != nil {
			return "", err
		}
		was := s.files[path]
		if !known || was != nil && sameState(was, info) && !turn {
			s.files[path] = info
			return "", nil
		}
		if damage = s.replaced(stream, n, was, info); damage != "" {
			return damage, nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", err
		}
		if damage = verifyBlock(b, stream, n, newest, s.Durable(stream)); damage == "" {
			s.files[path] = info
			return "", nil
		}
		if attempt == scrubAttempts {
			return damage, nil
		}
		if err := pause(ctx); err != nil {
			return "", err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-time.After(scrubPause):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// replaced returns the damage if a block that only grows is another file, or shorter.
func (s *Scrubber) replaced(stream string, n int, was, info os.FileInfo) (damage string) {
	switch {
	case was == nil || !slices.Contains(s.Grows, stream):
		return ""
	case !os.SameFile(was, info):
		return fmt.Sprintf("block file %d.blk was replaced by another file", n)
	case info.Size() < was.Size():
		return fmt.Sprintf("block file %d.blk has %d bytes, but had %d", n, info.Size(), was.Size())
	}
	return ""
}

// meta verifies the description of a stream if it has changed.
func (s *Scrubber) meta(ctx context.Context, stream string) (damage string, err error) {
	dir := filepath.Join(s.Streams, stream)
	files := []string{filepath.Join(dir, "meta.inf"), filepath.Join(dir, "meta.sum")}
	for attempt := 1; ; attempt++ {
		found, same := map[string]os.FileInfo{}, true
		for _, path := range files {
			info, err := os.Stat(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
			if err == nil {
				found[path] = info
			}
			same = same && (err == nil && sameState(s.files[path], info) || err != nil && s.files[path] == nil)
		}
		if same {
			return "", nil
		}
		whole, err := verifyMeta(dir, sha256.Sum256([]byte(stream)))
		if err != nil {
			return "", err
		}
		if whole {
			maps.Copy(s.files, found)
			return "", nil
		}
		if attempt == scrubAttempts {
			return metaDamaged, nil
		}
		if err := pause(ctx); err != nil {
			return "", err
		}
	}
}
