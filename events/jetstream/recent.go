package jetstream

import (
	"fmt"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
)

// The bounds of what is known of streams: about 500 bytes each at most.
const (
	recentStreams = 16384
	maxDoubtful   = 16384
)

// recent knows the last sequences, newest first, of streams lately used, by
// subject. The lists are never changed, only replaced.
//
// What a writer or a follower was told is known here before they hear of it. So where
// nobody else writes, a stream's newest sequence here is its last one; but not
// once the outcome of an append was not known, for that commit may come yet, and
// not from an answer of the server that was under way while somebody appended.
type recent struct {
	only bool // nobody else writes

	mu       sync.Mutex
	seqs     *lru.Cache[string, []uint64]
	readings map[string]*reading
	doubtful map[string]struct{} // nil when there were too many: then all are
}

// reading is a stream whose last commit the server is being asked for.
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

// last is the stream's last sequence, if it is certain.
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

// appended keeps the last sequences of a stream after an append. A commit before it
// that was in doubt is stored by now, or never will be.
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

// followed notes a commit that a follower is about to be told of: who hears of it
// that way may ask for the stream's last commit before the writer has heard of it.
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

// ask says that the server is about to be asked for the last commit of a stream.
// Read must follow.
func (r *recent) ask(subject string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.readings[subject]
	if now == nil {
		now = &reading{}
		r.readings[subject] = now
	}
	now.askers++
}

// read keeps the last sequences that the server has answered; nil when it answered
// none.
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

// moved forgets a stream that somebody else has written.
func (r *recent) moved(subject string) {
	if !r.only { // else it was this process, which will say so
		r.seqs.Remove(subject)
	}
}

// markUncertain notes that a commit of the stream may be stored, now or later, of which
// nothing is known here.
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

// forget forgets all, also the doubts: the server was started anew, so what was on
// its way to it is lost.
func (r *recent) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seqs.Purge()
	r.doubtful = map[string]struct{}{}
}
