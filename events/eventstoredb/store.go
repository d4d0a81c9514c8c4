// Package eventstoredb stores the log in EventStoreDB (KurrentDB): one event per commit, in the
// stream of its aggregate. The sequence of a commit is its position in $all, so sequences increase
// in log order and have gaps.
package eventstoredb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/EventStore/EventStore-Client-Go/v4/esdb"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// The stored names; they never change.
const (
	// Prefix begins the name of a commit's stream: "credstream-<tenant>.<category>.<token>". The
	// rest is the subject of the stream in JetStream, since an id may contain '-'.
	Prefix = "credstream-"
	// CommitType is the event type of a commit: its name and events.CommitFormat.
	CommitType = "credstream.commit.v" + events.CommitFormat

	snapshotPrefix = "credstream_snapshots-"
	snapshotType   = "credstream.snapshot.v1"
	metaPrefix     = "$$" + Prefix // of the streams with the metadata of streams
)

// recentStreams is the number of streams whose last revision the store remembers.
const recentStreams = 16384

var (
	// ErrURL refuses a connection string.
	ErrURL = fault.New(fault.Invalid, "event_store_url",
		"The URL of the event store is not valid. It has the form esdb://user:password@host:2113?tls=true, or esdb+discover:// for a cluster.")
	errOld = errors.New("eventstoredb: the server does not tell the position of a stream's events: version 22.6 or later is required")
)

// Config configures a Store.
type Config struct {
	URL      string // connection string of the client: esdb://...
	Registry *events.Registry
	// Intact is checked before every append; its error is returned. nil: no check.
	Intact func() error
	Logger *slog.Logger // nil: slog.Default()
}

// Store is an events.Store on EventStoreDB. What is appended is durable at once, since the server
// acknowledges what a majority of its nodes has written to disk.
type Store struct {
	cfg    Config
	log    *slog.Logger
	links  *links
	recent *lru.Cache[string, head]

	durable atomic.Uint64 // highest sequence seen

	endMu   sync.Mutex
	endSeq  uint64 // last commit up to endRead
	endRead uint64 // position up to which $all was searched for the end

	damageMu sync.Mutex
	damage   map[string]error // by stream

	scanMu sync.Mutex
	scan   scan
}

// head is the last known commit of a stream.
type head struct{ seq, revision uint64 }

var _ events.Store = (*Store)(nil)

// Open connects to the server and returns the store. Close it after use.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	conf, err := esdb.ParseConnectionString(cfg.URL)
	if err != nil {
		return nil, ErrURL // the client's error may quote the password
	}
	if conf.DisableTLS && conf.Username != "" {
		return nil, ErrURL.Withf("The URL of the event store has a password and tls=false, so the client would not send it. Use TLS, or a server without users.")
	}
	conf.Logger = esdb.NoopLogging()
	conf.MaxDiscoverAttempts = 1 // the store repeats it, with a client that still works
	recent, err := lru.New[string, head](recentStreams)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	s := &Store{cfg: cfg, log: cfg.Logger, links: &links{cfg: conf}, recent: recent, damage: map[string]error{}}
	if err := s.Reload(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Reload discards the cached state. If the log now ends before a commit that it held, it returns
// events.ErrLogCutShort.
func (s *Store) Reload(ctx context.Context) error {
	durable := s.durable.Load()
	s.endMu.Lock()
	s.endSeq, s.endRead = 0, 0
	s.endMu.Unlock()
	s.recent.Purge()
	end, err := s.End(ctx)
	if err != nil {
		return err
	}
	if end < durable {
		return events.CutShort(durable)
	}
	return nil
}

// Durable returns the highest sequence known to be durable.
func (s *Store) Durable() uint64 { return s.durable.Load() }

// Close closes the connections after the last call. End every Follow first.
func (s *Store) Close() { s.links.close() }

func (s *Store) saw(seq uint64) {
	for {
		at := s.durable.Load()
		if seq <= at || s.durable.CompareAndSwap(at, seq) {
			return
		}
	}
}

// learn remembers the last commit of a stream, unless a later one is known.
func (s *Store) learn(name string, h head) {
	s.saw(h.seq)
	if known, ok := s.recent.Get(name); !ok || known.seq < h.seq {
		s.recent.Add(name, h)
	}
}

// streamName returns the name of a stream below prefix. It returns events.ErrID if the stream
// cannot be derived from it.
func streamName(prefix string, stream events.StreamID) (string, error) {
	if !events.Plain(stream.Tenant) || !events.Plain(stream.Category) {
		return "", events.ErrID
	}
	if err := events.CheckID(stream.ID); err != nil {
		return "", err
	}
	return prefix + strings.TrimPrefix(stream.Subject(""), "."), nil
}

// parseStream is the inverse of streamName for a commit's stream.
func parseStream(name string) (events.StreamID, error) {
	rest, ok := strings.CutPrefix(name, Prefix)
	if !ok {
		return events.StreamID{}, fmt.Errorf("%q is not a stream of the log: %w", name, events.ErrID)
	}
	return events.ParseSubject("", "."+rest)
}

// seqOf returns the sequence of a commit.
func seqOf(e *esdb.RecordedEvent) (uint64, error) {
	if p := e.Position.Commit; p != 0 && p != math.MaxUint64 {
		return p, nil
	}
	return 0, errOld
}

// decode decodes a commit. It returns an error for anything unknown.
func (s *Store) decode(e *esdb.RecordedEvent) ([]events.Record, error) {
	seq, err := seqOf(e)
	if err != nil {
		return nil, err
	}
	stream, err := checkType(e)
	if err != nil {
		return nil, err
	}
	recs, err := s.cfg.Registry.DecodeCommit(stream, seq, e.Data)
	if err != nil {
		return nil, err
	}
	if id := e.EventID.String(); recs[0].Meta.Commit != id {
		return nil, fmt.Errorf("commit %d of %s: the event has id %s, its body %q", seq, stream, id, recs[0].Meta.Commit)
	}
	s.learn(e.StreamID, head{seq, e.EventNumber})
	return recs, nil
}

func checkType(e *esdb.RecordedEvent) (events.StreamID, error) {
	stream, err := parseStream(e.StreamID)
	if err == nil && e.EventType != CommitType {
		err = fmt.Errorf("commit %d of %s: %w: %q", e.Position.Commit, stream, events.ErrCommitFormat, e.EventType)
	}
	return stream, err
}

// deleted records that a stream lost commits, and returns the error.
func (s *Store) deleted(name, how string) error {
	err := events.ErrLogIncomplete.Withf("The stream %s of the log %s in the event store, so the log is damaged. Changes are "+
		"refused and no secret is returned until it is restored.", name, how)
	s.damageMu.Lock()
	s.damage[name] = err
	s.damageMu.Unlock()
	return err
}

// failed converts an error of the client to one for the caller.
func (s *Store) failed(doing, name string, err error) error {
	switch codeOf(err) { //nolint:exhaustive // the others have no better name
	case esdb.ErrorCodeStreamDeleted:
		return s.deleted(name, "was deleted")
	case esdb.ErrorCodeUnauthenticated, esdb.ErrorCodeAccessDenied:
		return fmt.Errorf("%s: the event store refuses the user of --event-store: %w: %w", doing, fault.ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w: %w", doing, fault.ErrUnavailable, err)
}
