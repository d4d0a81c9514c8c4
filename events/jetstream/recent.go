package jetstream

import (
	"fmt"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
)

// The limits of the cache: at most about 500 bytes per stream.
const (
	recentStreams = 16384
	maxDoubtful   = 16384
)

// recent caches the last sequences of recently used streams, newest first, by subject. The
// slices are immutable.
//
// It is updated before writers and followers get the result. So if no other process writes, the
// newest cached sequence is the last one of the stream, with two exceptions: after an append
// whose outcome is unknown, because the commit may still be stored; and for a read from the
// server during a concurrent append.
type recent struct {
	only bool // no other process writes

	mu       sync.Mutex
	seqs     *lru.Cache[string, []uint64]
	readings map[string]*reading
	doubtful map[string]struct{} // nil if there were too many: then every stream is uncertain
}

// reading is a stream whose last commit is being read from the server.
type reading struct {
	askers   int
	appended uint64 // sequence of the newest commit appended or followed meanwhile
}

func newRecent(only bool) (*recent, error) {
	seqs, err := lru.New[string, []uint64](recentStreams)
	if err != nil {
		return nil, fmt.Errorf("cache of sequences: %w", err)
	}
	return &recent{only: only, seqs: seqs, readings: map[string]*reading{}, doubtful: map[string]struct{}{}}, nil
}

func (r *recent) get(subject string) ([]uint64, bool) { return r.seqs.Get(subject) }

// last returns the stream's last sequence, if it is certain.
func (r *recent) last(subject string) (uint64, bool) {
	if !r.only {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, doubt := r.doubtful[subject]; doubt || r.doubtful == nil {
		return 0, false
	}
	seqs, ok := r.seqs.Get(subject)
	if !ok {
		return 0, false
	}
	return seqs[0], true
}

// appended records the last sequences of a stream after an append. The outcome of an earlier
// uncertain commit is thereby final.
func (r *recent) appended(subject string, seqs []uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.doubtful != nil {
		delete(r.doubtful, subject)
	}
	if now := r.readings[subject]; now != nil {
		now.appended = max(now.appended, seqs[0])
	}
	r.keep(subject, seqs)
}

func (r *recent) keep(subject string, seqs []uint64) {
	if known, ok := r.seqs.Get(subject); !ok || known[0] < seqs[0] {
		r.seqs.Add(subject, seqs)
	}
}

// followed records a commit before a follower gets it: the follower may request the stream's
// last commit before the writer gets its response.
func (r *recent) followed(subject string, seq uint64, prev []uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.readings[subject]; now != nil {
		now.appended = max(now.appended, seq)
	}
	if known, ok := r.seqs.Peek(subject); ok && known[0] < seq {
		r.seqs.Add(subject, following(seq, prev))
	}
}

// beginRead records that the last commit of a stream is about to be read from the server. Call read
// afterwards.
func (r *recent) beginRead(subject string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.readings[subject]
	if now == nil {
		now = &reading{}
		r.readings[subject] = now
	}
	now.askers++
}

// read records the last sequences that the server returned; nil if it returned none.
func (r *recent) read(subject string, seqs []uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.readings[subject]
	if now.askers--; now.askers == 0 {
		delete(r.readings, subject)
	}
	if len(seqs) > 0 && seqs[0] >= now.appended {
		r.keep(subject, seqs)
	}
}

// moved removes a stream that another process has written to.
func (r *recent) moved(subject string) {
	if !r.only { // otherwise this process did, and will call appended
		r.seqs.Remove(subject)
	}
}

// markUncertain records that a commit of unknown outcome may be stored in the stream, now or
// later.
func (r *recent) markUncertain(subject string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.doubtful == nil:
	case len(r.doubtful) == maxDoubtful:
		r.doubtful = nil
	default:
		r.doubtful[subject] = struct{}{}
	}
}

// forget clears the cache, with the uncertain streams: call it after a restart of the server,
// which loses messages in flight.
func (r *recent) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seqs.Purge()
	r.doubtful = map[string]struct{}{}
}
