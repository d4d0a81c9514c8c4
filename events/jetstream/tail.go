package jetstream

import (
	"context"
	"errors"
	"sync"
)

// The bounds of what a tail holds for slow followers. A follower that is further behind reads
// the log itself.
const (
	tailCommits = 1024
	tailBytes   = 8 << 20 // of messages; decoded, they take about three times as much
)

// errBehindTail means that the tail no longer holds what comes after a sequence.
var errBehindTail = errors.New("jetstream: the follower is behind the tail of the log")

// tail reads the end of the log once for all followers. Its reader begins when the first of them
// has reached the end, and ends with the last of them, or with an error, which they all get.
type tail struct {
	begin func() // starts the reader, once
	stop  func() // stops the reader, if it was started, and returns when it has ended

	followers int // guarded by Store.tailMu

	mu      sync.Mutex
	start   uint64   // the sequence before commits[0]
	commits []commit // the last durable commits without a gap; entries are never overwritten
	bytes   int
	err     error         // why the reader has ended
	moved   chan struct{} // closed at the next change
}

// joinTail returns the tail that reads now, or a new one from the end of the log.
func (s *Store) joinTail() *tail {
	s.tailMu.Lock()
	defer s.tailMu.Unlock()
	if t := s.tail; t != nil && t.running() {
		t.followers++
		return t
	}
	ctx, cancel := context.WithCancel(context.Background())
	start := s.Durable()
	var reading sync.WaitGroup
	t := &tail{followers: 1, start: start, moved: make(chan struct{})}
	t.begin = sync.OnceFunc(func() {
		reading.Go(func() {
			for c, err := range s.read(ctx, start) {
				t.add(c, err)
			}
		})
	})
	t.stop = func() {
		cancel()
		reading.Wait()
	}
	s.tail = t
	return t
}

// leaveTail returns, for the last follower, when the reader has ended.
func (s *Store) leaveTail(t *tail) {
	s.tailMu.Lock()
	t.followers--
	last := t.followers == 0
	if last && s.tail == t {
		s.tail = nil
	}
	s.tailMu.Unlock()
	if last {
		t.stop()
	}
}

func (t *tail) add(c commit, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.err = err; err == nil {
		t.commits = append(t.commits, c)
		t.bytes += c.size
		for len(t.commits) > tailCommits || t.bytes > tailBytes && len(t.commits) > 1 {
			t.bytes -= t.commits[0].size
			t.start = t.commits[0].seq
			t.commits = t.commits[1:]
		}
	}
	close(t.moved)
	t.moved = make(chan struct{})
}

// running reports whether the reader has not failed.
func (t *tail) running() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err == nil
}

// holds reports whether the tail holds, or waits for, the commit after a sequence.
func (t *tail) holds(seq uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return seq >= t.start
}

// after waits for commits after a sequence and returns all that it holds. It returns
// errBehindTail if the tail no longer holds the first of them, and the error of the reader after
// the last commit.
func (t *tail) after(ctx context.Context, seq uint64) ([]commit, error) {
	for {
		t.mu.Lock()
		start, commits, err, moved := t.start, t.commits, t.err, t.moved
		t.mu.Unlock()
		switch {
		case seq < start:
			return nil, errBehindTail
		case seq-start < uint64(len(commits)): // sequences have no gap
			return commits[seq-start:], nil
		case err != nil:
			return nil, err
		}
		t.begin()
		select {
		case <-moved:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
