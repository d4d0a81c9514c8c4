// Package jetstream stores the log in a NATS JetStream stream: one message per commit, on the
// subject of its aggregate.
package jetstream

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/jsapi"
)

// The stored names; they never change.
const (
	Stream         = "CREDSTREAM_LOG"       // stream of the log
	Prefix         = "credstream.log"       // its subjects are "<Prefix>.<tenant>.<category>.<token>"
	SnapshotStream = "CREDSTREAM_SNAPSHOTS" // stream of snapshots; it may be deleted
	SnapshotPrefix = "credstream.snapshots" // its subjects have the same form as those of the log
)

// maxMessage is the maximum message size in bytes, with headers. A commit of events.MaxCommit
// bytes fits.
const maxMessage = 1 << 20

// StreamConfig is the configuration of the log: file storage, no limits, no deletes. It does
// not use Nats-Msg-Id, whose deduplication spans all tenants: the expected sequence prevents a
// second copy of a commit.
func StreamConfig(replicas int) natsjs.StreamConfig {
	return natsjs.StreamConfig{
		Name:        Stream,
		Description: "credstream: the event log. One message per commit; the source of truth.",
		Subjects:    []string{Prefix + ".>"},
		Storage:     natsjs.FileStorage,
		Replicas:    replicas,
		MaxMsgSize:  maxMessage,
		AllowDirect: true,
		DenyDelete:  true,
		DenyPurge:   true,
	}
}

// SnapshotConfig is the configuration of the stream of snapshots, which keeps the last one of
// each aggregate.
func SnapshotConfig(replicas int) natsjs.StreamConfig {
	cfg := natsjs.StreamConfig{
		Name:              SnapshotStream,
		Description:       "credstream: snapshots of streams. Rebuilt from the log, may be deleted.",
		Subjects:          []string{SnapshotPrefix + ".>"},
		Storage:           natsjs.FileStorage,
		Replicas:          replicas,
		MaxMsgsPerSubject: 1,
		MaxMsgSize:        maxMessage,
		AllowDirect:       true,
	}
	if replicas == 1 {
		cfg.PersistMode = natsjs.AsyncPersistMode
	}
	return cfg
}

// Config configures a Store.
type Config struct {
	Conn     *nats.Conn       // publishes and reads; reconnects automatically
	Follow   *nats.Conn       // connection for Follow, which transfers much data (TCP is faster there than a pipe); Conn if nil
	Registry *events.Registry // the event types
	Replicas int              // of the streams; 0 means 1

	// LeaderReads reads the last commit of a stream from the leader instead of with a direct
	// get. It is implied by more than one replica.
	LeaderReads bool

	// OnlyWriter means that no other process appends to the log while the store is open,
	// because the server is embedded. Then Last can use the cache of recent streams.
	OnlyWriter bool

	// Sync returns after an fsync, started after the call, of everything that the server has
	// acknowledged (bus.Syncer.Wait). nil: acknowledged messages are durable.
	Sync func(context.Context) error
	// Intact is checked before every append; its error is returned. nil: no check.
	Intact func() error

	// SyncTree makes the folder of the log's stream durable, even if another process created it
	// (bus.Syncer.SyncTree). nil: nothing to do.
	SyncTree func() error

	Logger *slog.Logger // nil: slog.Default()
}

// Store is an events.Store on JetStream.
type Store struct {
	cfg     Config
	log     *slog.Logger
	mux     *mux
	follow  natsjs.JetStream
	durable *durable
	recent  *recent

	leadership *leadership

	tailMu sync.Mutex
	tail   *tail // nil while nobody follows

	stop context.CancelFunc
	done sync.WaitGroup
}

var _ events.Store = (*Store)(nil)

// Open returns the store. It creates the two streams if they are missing, and refuses a log
// whose configuration could lose a commit. Close the store after use.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Replicas == 0 {
		cfg.Replicas = 1
	}
	cfg.LeaderReads = cfg.LeaderReads || cfg.Replicas > 1
	if cfg.Follow == nil {
		cfg.Follow = cfg.Conn
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	js, err := natsjs.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	follow, err := natsjs.New(cfg.Follow)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	if _, err := jsapi.EnsureStream(ctx, js, StreamConfig(cfg.Replicas)); err != nil {
		return nil, err
	}
	if cfg.SyncTree != nil { // the process that created the stream may have died before its fsync
		if err := cfg.SyncTree(); err != nil {
			return nil, err
		}
	}
	if _, err := jsapi.EnsureStream(ctx, js, SnapshotConfig(cfg.Replicas)); err != nil {
		return nil, err
	}
	recent, err := newRecent(cfg.OnlyWriter)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	m, err := newMux(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	s := &Store{cfg: cfg, log: cfg.Logger, mux: m, follow: follow, durable: newDurable(cfg.Sync), recent: recent, leadership: newLeadership()}
	if err := s.Reload(ctx); err != nil {
		m.close()
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.done.Go(func() { s.durable.run(run) })
	return s, nil
}

// Reload discards the cached state and starts again from the state of the server. Call it after
// a restart of the embedded server. If the log now ends before a durable commit, it returns
// ErrLogCutShort and discards nothing.
func (s *Store) Reload(ctx context.Context) error {
	durable := s.Durable()
	at, err := s.state(ctx, stateQuestion{}, 0)
	switch {
	case err != nil:
		return fmt.Errorf("reading the end of the log: %w", err)
	case at.LastSeq < durable:
		return CutShort(durable)
	}
	if s.cfg.Sync != nil { // an earlier process may have died before its fsync
		if err := s.cfg.Sync(ctx); err != nil {
			return fmt.Errorf("syncing the log: %w", err)
		}
	}
	s.recent.forget()
	s.durable.reset(at.LastSeq)
	return nil
}

// Durable returns the highest sequence known to be durable.
func (s *Store) Durable() uint64 { return s.durable.at() }

// Close stops the background work of the store; the connections stay open. End every Follow
// first.
func (s *Store) Close() {
	s.stop()
	s.done.Wait()
	s.mux.close()
}

// subject returns the subject of a stream's commits. It returns events.ErrID if the stream
// cannot be derived from its subject.
func subject(prefix string, stream events.StreamID) (string, error) {
	if !events.Plain(stream.Tenant) || !events.Plain(stream.Category) {
		return "", events.ErrID
	}
	if err := events.CheckID(stream.ID); err != nil {
		return "", err
	}
	return stream.Subject(prefix), nil
}

// unavailable returns an error for the caller, with the cause for the operator.
func unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: %w", doing, fault.ErrUnavailable, err)
}
