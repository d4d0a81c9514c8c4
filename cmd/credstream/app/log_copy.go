package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/eventstoredb"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/logcopy"
	"github.com/credstream/credstream/fault"
)

var (
	errLogURL = fault.New(fault.Invalid, "log_url",
		"A log is named by esdb://host:2113, by nats://host:4222, or by the data folder of a service that is not running.")
	errSameLog = fault.New(fault.Invalid, "log_copy_same", "The source and the target are the same log.")
)

// LogLocation says where a log is.
type LogLocation struct {
	URL         string // esdb://..., nats://... or a data folder
	Credentials string // credentials file of the NATS user; "" if the URL names the user
	Replicas    int    // of the streams on an external NATS, if they are created
}

// LogSum is what a log holds.
type LogSum = logcopy.Sum

// CopyLog appends to one log the commits of another that it does not have, and compares the two.
// It changes nothing else, can be interrupted and repeated, and needs no key. With finish it follows
// the source until finish is closed. progress gets the number of commits that were compared and of
// those that were appended.
func CopyLog(ctx context.Context, from, to LogLocation, finish <-chan struct{}, progress func(compared, appended uint64)) (LogSum, error) {
	if from.URL == to.URL {
		return LogSum{}, errSameLog
	}
	source, closeSource, err := openLogAt(ctx, from, false)
	if err != nil {
		return LogSum{}, err
	}
	defer closeSource()
	target, closeTarget, err := openLogAt(ctx, to, true)
	if err != nil {
		return LogSum{}, err
	}
	defer closeTarget()
	return logcopy.Run(ctx, source, target, finish, progress)
}

// SumLog reads a log and returns the number of its commits and the SHA-256 over them.
func SumLog(ctx context.Context, at LogLocation) (LogSum, error) {
	source, done, err := openLogAt(ctx, at, false)
	if err != nil {
		return LogSum{}, err
	}
	defer done()
	return logcopy.SumOf(ctx, source)
}

// openLogAt opens a log. Without create, the log must exist.
func openLogAt(ctx context.Context, at LogLocation, create bool) (_ logcopy.Target, done func(), err error) {
	scheme, _, isURL := strings.Cut(at.URL, "://")
	switch {
	case isURL && strings.HasPrefix(scheme, "esdb"):
		s, err := eventstoredb.Open(ctx, eventstoredb.Config{URL: at.URL, Registry: events.All(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	case isURL && (scheme == "nats" || scheme == "tls"):
		var options []nats.Option
		if at.Credentials != "" {
			options = append(options, nats.UserCredentials(at.Credentials))
		}
		conn, err := nats.Connect(at.URL, options...)
		if err != nil {
			return nil, nil, fmt.Errorf("connect to NATS: %w: %w", fault.ErrUnavailable, err)
		}
		s, err := openStreamLog(ctx, eventlog.Config{Conn: conn, Replicas: at.Replicas, LeaderReads: true}, create)
		if err != nil {
			conn.Close()
			return nil, nil, err
		}
		return s, func() { s.Close(); conn.Close() }, nil
	case isURL || at.URL == "":
		return nil, nil, errLogURL
	}
	if _, err := os.Stat(filepath.Join(natsserver.StreamsDir(at.URL), eventlog.Stream)); err != nil && !create {
		return nil, nil, ErrNoLog.Withf("The folder %s has no log.", at.URL)
	}
	if err := checkRestored(at.URL); err != nil {
		return nil, nil, err
	}
	return openFolderLog(ctx, at.URL, create)
}

// openFolderLog opens the log in the data folder of a service that is not running.
func openFolderLog(ctx context.Context, dir string, create bool) (_ logcopy.Target, done func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("create the data folder: %w", err)
	}
	p := &program{cfg: Config{Data: dir}}
	kept := keptStreams
	if !create { // the mark of a target may be a position in another store
		kept = append([]string{eventlog.Stream}, keptStreams...)
	}
	node, err := natsserver.StartNode(ctx, natsserver.NodeConfig{
		Dir: dir, Logger: slog.New(slog.DiscardHandler), Kept: kept, Durable: p.durableMark,
		Fatal: func(err error) {
			fmt.Fprintln(os.Stderr, "fsync failed:", err)
			os.Exit(1)
		},
	})
	if err != nil {
		return nil, nil, err
	}
	stop := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		_ = node.Shutdown(ctx) // what was copied is durable already
	}
	conn, err := node.Conn("log")
	if err == nil {
		syncer := node.Syncer(eventlog.Stream)
		var s *eventlog.Store
		if s, err = openStreamLog(ctx, eventlog.Config{Conn: conn, Replicas: 1, OnlyWriter: true, Sync: syncer.Wait, SyncTree: syncer.SyncTree}, create); err == nil {
			return s, func() { s.Close(); stop() }, nil
		}
	}
	stop()
	return nil, nil, err
}

func openStreamLog(ctx context.Context, cfg eventlog.Config, create bool) (*eventlog.Store, error) {
	js, err := jetstream.New(cfg.Conn)
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	stream, err := js.Stream(ctx, eventlog.Stream)
	switch {
	case err == nil:
		cfg.Replicas = stream.CachedInfo().Config.Replicas
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return nil, fmt.Errorf("look up the log: %w: %w", fault.ErrUnavailable, err)
	case !create:
		return nil, ErrNoLog
	}
	cfg.Registry, cfg.Logger = events.All(), slog.New(slog.DiscardHandler)
	return eventlog.Open(ctx, cfg)
}
