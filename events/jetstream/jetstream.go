// Package jetstream keeps the log in a NATS JetStream stream: one message per
// commit, on the subject of the aggregate it belongs to.
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

// The names of what is stored; they are forever.
const (
	Stream         = "CREDSTREAM_LOG"       // the stream of the log
	Prefix         = "credstream.log"       // its subjects are "<Prefix>.<tenant>.<category>.<token>"
	SnapshotStream = "CREDSTREAM_SNAPSHOTS" // the stream of snapshots; may be deleted
	SnapshotPrefix = "credstream.snapshots" // its subjects have the form of the log's
)

// maxMessage is the size in bytes of the largest message, headers included. A
// commit of events.MaxCommit bytes fits with its headers.
const maxMessage = 1 << 20

// StreamConfig is the log's stream: files, no limits, nothing deleted. It has no
// use for Nats-Msg-Id, whose de-duplication spans all tenants: the expected
// sequence keeps a commit from being stored twice.
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

// SnapshotConfig is the stream of snapshots: the last one of each aggregate.
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

// Config says where the log is.
type Config struct {
	Conn     *nats.Conn       // publishes and reads; reconnects by itself
	Follow   *nats.Conn       // a connection for Follow, which moves bulk (TCP is faster there than a pipe); Conn when nil
	Registry *events.Registry // what may be stored
	Replicas int              // of the streams; 0 is 1

	// LeaderReads has the last commit of a stream read through the leader's API
	// instead of a direct get. Always so with more than one replica.
	LeaderReads bool

	// OnlyWriter says that nobody else appends to the log while the store is open: it
	// is on a server of the process itself. Then Last need not ask the server of
	// streams that were used lately.
	OnlyWriter bool

	// Sync returns after an fsync, begun after the call, of all that the server has
	// acknowledged (bus.Syncer.Wait). nil: an acknowledged message is durable already.
	Sync func(context.Context) error
	// Intact refuses every append while it returns an error. nil: never.
	Intact func() error

	// SyncTree makes the log's stream itself durable, whoever created it
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

	stop context.CancelFunc
	done sync.WaitGroup
}

var _ events.Store = (*Store)(nil)

// Open returns the store. It creates the two streams where they are absent and
// refuses a log whose configuration could lose a commit. Close the store when done.
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
	if cfg.SyncTree != nil { // also when a process created it that ended before it had synced
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

// Reload forgets what is known of the log and starts again from what the
// server has. Call it after the embedded server was restarted in the process. It
// returns ErrLogCutShort, and forgets nothing, when the log now ends before what was durable.
func (s *Store) Reload(ctx context.Context) error {
	durable := s.Durable()
	at, err := s.state(ctx, stateQuestion{}, 0)
	switch {
	case err != nil:
		return fmt.Errorf("reading the end of the log: %w", err)
	case at.LastSeq < durable:
		return CutShort(durable)
	}
	if s.cfg.Sync != nil { // a predecessor may have been killed before its fsync
		if err := s.cfg.Sync(ctx); err != nil {
			return fmt.Errorf("syncing the log: %w", err)
		}
	}
	s.recent.forget()
	s.durable.reset(at.LastSeq)
	return nil
}

// Durable is the highest sequence known to be durable.
func (s *Store) Durable() uint64 { return s.durable.at() }

// Close ends the store's own work; the connections stay open. End every Follow first.
func (s *Store) Close() {
	s.stop()
	s.done.Wait()
	s.mux.close()
}

// subject is where the commits of stream are, below prefix. It refuses, with
// events.ErrID, a stream whose subject would not lead back to it.
func subject(prefix string, stream events.StreamID) (string, error) {
	if !events.Plain(stream.Tenant) || !events.Plain(stream.Category) {
		return "", events.ErrID
	}
	if err := events.CheckID(stream.ID); err != nil {
		return "", err
	}
	return stream.Subject(prefix), nil
}

// unavailable tells a caller that the log cannot be reached, and the operator why.
func unavailable(doing string, err error) error {
	return fmt.Errorf("%s: %w: %w", doing, fault.ErrUnavailable, err)
}
