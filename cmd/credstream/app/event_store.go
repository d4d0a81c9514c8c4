package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/storage"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/eventstoredb"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/backup"
	"github.com/credstream/credstream/vault"
)

// logStore is what the program needs of the log.
type logStore interface {
	events.Store
	eventlog.Markable
	// Reload discards cached state; events.ErrLogCutShort: the log lost its end.
	Reload(ctx context.Context) error
	// IDs lists the ids of a category's streams.
	IDs(ctx context.Context, tenant, category string) ([]string, error)
	Close()
}

var (
	errLogElsewhere = fault.New(fault.Precondition, "log_elsewhere",
		"The event store of --event-store has no log, but NATS JetStream has one. Copy it first with credstream log copy, or omit --event-store.")
	errBackupElsewhere = fault.New(fault.Precondition, "backup_event_store",
		"The log is in the event store of --event-store, so this backup cannot contain it. Use the backup of that server together with one of the NATS streams: see docs/event-store.md.")
)

// openStore opens the log in JetStream, or in the event store of --event-store.
func (p *program) openStore(ctx context.Context, conn *nats.Conn) (logStore, error) {
	if p.cfg.EventStore == "" {
		return p.openJetStream(ctx, conn)
	}
	cfg := eventstoredb.Config{URL: p.cfg.EventStore, Registry: events.All(), Intact: p.integrity.Err, Logger: p.log}
	s, err := eventstoredb.Open(ctx, cfg)
	for wait := 100 * time.Millisecond; errors.Is(err, fault.ErrUnavailable) && ctx.Err() == nil; wait = min(2*wait, connectTime) {
		p.log.WarnContext(ctx, "the event store is not available yet; will retry", "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		s, err = eventstoredb.Open(ctx, cfg)
	}
	if err != nil {
		return nil, err
	}
	if err := p.checkNotElsewhere(ctx, conn, s); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// checkNotElsewhere returns errLogElsewhere if s is empty and JetStream has a log: it would begin
// a second one, without the tenants whose secrets are in the vault.
func (p *program) checkNotElsewhere(ctx context.Context, conn *nats.Conn, s *eventstoredb.Store) error {
	if end, err := s.End(ctx); err != nil || end > 0 {
		return err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	stream, err := js.Stream(ctx, eventlog.Stream)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil
	case err != nil:
		return fmt.Errorf("look up the log in JetStream: %w", err)
	case stream.CachedInfo().State.LastSeq > 0:
		return errLogElsewhere
	}
	return nil
}

// backupStreams returns the streams that a backup reads.
func (p *program) backupStreams(js jetstream.JetStream) backup.Streams {
	r := storage.NewReader(js, map[string]string{
		backup.KindLog: eventlog.Stream, backup.KindVault: vault.Stream, backup.KindKeysets: keyStream, backup.KindAccess: kv.AccessStream,
	})
	if p.cfg.EventStore != "" {
		return noBackup{}
	}
	return r
}

// noBackup refuses a backup: without the log it would be worth nothing.
type noBackup struct{}

func (noBackup) End(context.Context, string) (time.Time, uint64, error) {
	return time.Time{}, 0, errBackupElsewhere
}

func (noBackup) Read(context.Context, string, uint64, uint64) ([]backup.Message, error) {
	return nil, errBackupElsewhere
}
