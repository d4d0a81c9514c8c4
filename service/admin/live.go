package admin

import (
	"strings"
	"sync"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// ErrReaders refuses another connection that waits for events.
var ErrReaders = fault.New(fault.Throttled, "feed_readers_full",
	"Too many open connections wait for events. Close some of them, or poll events.changes without waiting.").WithRetryAfter(5 * time.Second)

// Limits of the connections that wait for events at one process.
const (
	maxFollowers = 2000
	maxOfTenant  = 1000
	maxOfOneKey  = 100

	recentMessages = 1024 // public messages that are kept for the followers
)

// Live wakes the connections that wait for events: open pages and readers of the feed. While
// there are any it keeps the latest public messages, so that none of them has to read the log.
// It is safe for concurrent use.
type Live struct {
	mu        sync.Mutex
	followers map[*Follower]struct{}
	ofKey     map[string]int // followers by the kind and id of their key or user
	ofTenant  map[string]int
	closed    bool

	recent      []projections.Message // of the commits after and up to last, oldest first
	after, last uint64                // log sequences
}

// Follower is one connection that waits. Leave ends it.
type Follower struct {
	Change chan struct{} // holds one signal: an event of its tenant and categories
	Look   chan struct{} // holds one signal: the caller's rights may have changed
	End    chan struct{} // closed when the service stops

	tenant, caller string
	of             string // categories, separated by spaces; "" for all
}

// NewLive returns a Live without followers.
func NewLive() *Live {
	return &Live{followers: map[*Follower]struct{}{}, ofKey: map[string]int{}, ofTenant: map[string]int{}}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Applied wakes the followers that the records concern. The records are durable, in the order of
// the log, and whole commits. It does not block.
func (l *Live) Applied(recs []events.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.followers) == 0 {
		l.recent, l.after, l.last = nil, 0, 0
		return
	}
	for _, r := range recs {
		l.keep(r)
		if !r.Last() {
			continue
		}
		for f := range l.followers {
			if r.Stream.Category == "api_key" || r.Stream.Category == "role" || r.Stream.Category == "tenant" {
				signal(f.Look)
			}
			if f.tenant == r.Meta.Tenant && (f.of == "" || strings.Contains(f.of, " "+r.Stream.Category+" ")) {
				signal(f.Change)
			}
		}
	}
}

// keep adds a record to the latest messages.
func (l *Live) keep(r events.Record) {
	if l.last == 0 || r.Seq != l.last && r.Seq != l.last+1 {
		l.recent, l.after = nil, r.Seq-1
	}
	l.last = r.Seq
	m, public := projections.Public(r)
	if !public {
		return
	}
	if len(l.recent) >= 2*recentMessages { // seldom, because it copies
		l.after = l.recent[recentMessages-1].LogSeq
		kept := l.recent[recentMessages:]
		for len(kept) > 0 && kept[0].LogSeq == l.after {
			kept = kept[1:]
		}
		l.recent = append([]projections.Message(nil), kept...)
	}
	l.recent = append(l.recent, m)
}

// since returns the messages from a log sequence on, and the last sequence that they cover; 0 if
// the sequence is not among the latest.
func (l *Live) since(from uint64) (messages []projections.Message, last uint64) {
	if l == nil {
		return nil, 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == 0 || from <= l.after || from > l.last {
		return nil, 0
	}
	i := len(l.recent)
	for i > 0 && l.recent[i-1].LogSeq >= from {
		i--
	}
	return l.recent[i:len(l.recent):len(l.recent)], l.last
}

// Join adds a connection of a caller that waits for events of the tenant in these categories,
// separated by spaces; of all if there are none. It returns ErrReaders if there are too many.
func (l *Live) Join(tenant string, who events.Actor, of string) (*Follower, error) {
	f := &Follower{
		Change: make(chan struct{}, 1), Look: make(chan struct{}, 1), End: make(chan struct{}),
		tenant: tenant, caller: who.Kind + ":" + who.ID,
	}
	if of != "" {
		f.of = " " + of + " "
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.followers) >= maxFollowers || l.ofKey[f.caller] >= maxOfOneKey || l.ofTenant[tenant] >= maxOfTenant {
		return nil, ErrReaders
	}
	l.followers[f] = struct{}{}
	l.ofKey[f.caller]++
	l.ofTenant[tenant]++
	return f, nil
}

// Leave removes a connection.
func (l *Live) Leave(f *Follower) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.followers, f)
	drop(l.ofKey, f.caller)
	drop(l.ofTenant, f.tenant)
}

func drop(count map[string]int, of string) {
	if count[of]--; count[of] <= 0 {
		delete(count, of)
	}
}

// Close ends every connection, because the service stops.
func (l *Live) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for f := range l.followers {
		close(f.End)
		delete(l.followers, f)
	}
}
