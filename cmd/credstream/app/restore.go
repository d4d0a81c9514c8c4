package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/backup"
	"github.com/credstream/credstream/vault"
)

// The errors of a restore.
var (
	errRestoreNotEmpty = fault.New(fault.Precondition, "restore_folder_not_empty",
		"The folder is not empty. Choose a new or empty folder; kms.key alone may be in it.")
	errRestoreIncomplete = fault.New(fault.Precondition, "restore_incomplete",
		"A restore into this data folder was not completed. Run the same credstream restore again, or choose another folder.")
	errRestoreFailed = fault.New(fault.Unavailable, "restore_failed",
		"The restore was not completed. The folder cannot be served; run the same command again.")
)

// restoreMark is the file that a data folder has while a restore is not complete.
const restoreMark = "restore-incomplete"

// checkRestored refuses a folder whose restore is not complete.
func checkRestored(data string) error {
	if _, err := os.Lstat(filepath.Join(data, restoreMark)); err == nil {
		return errRestoreIncomplete.Withf("A restore into the data folder %s was not completed. Run the same credstream restore again, or choose another folder.", data)
	}
	return nil
}

// Restore stores the contents of backups in an empty data folder, or in one where an earlier
// restore was not completed. Until it returns nil, serve refuses the folder. progress gets the
// number of stored messages.
func Restore(ctx context.Context, data string, c *backup.Contents, progress func(n int)) error {
	if err := emptyFolder(data); err != nil {
		return err
	}
	if err := restoreInto(ctx, data, c, progress); err != nil {
		if _, known := errors.AsType[*fault.Error](err); known {
			return err
		}
		return fmt.Errorf("%w (%w)", errRestoreFailed, err)
	}
	return nil
}

// emptyFolder marks an empty folder, and empties one that is marked.
func emptyFolder(data string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return fmt.Errorf("%w (%w)", errRestoreNotEmpty.Withf("The folder cannot be created."), err)
	}
	lock, err := natsserver.LockFolder(data)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // the node locks it again
	marked := checkRestored(data) != nil
	entries, err := os.ReadDir(data)
	if err != nil {
		return fmt.Errorf("%w (%w)", errRestoreNotEmpty.Withf("The folder cannot be read."), err)
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case name == "kms.key" || name == "LOCK" || name == "lost+found" || name == restoreMark:
		case !marked && !strings.HasPrefix(name, seal.TempPrefix): // of the mark, when a restore was killed just then
			return errRestoreNotEmpty.Withf("The folder %s is not empty: it has %s. Choose a new or empty folder; kms.key alone may be in it.", data, name)
		default:
			if err := os.RemoveAll(filepath.Join(data, name)); err != nil {
				return fmt.Errorf("remove an incomplete restore: %w", err)
			}
		}
	}
	if marked {
		return nil
	}
	if err := seal.CreateFile(filepath.Join(data, restoreMark), nil); err != nil { // empty: its name says everything
		return fmt.Errorf("%w (%w)", errRestoreFailed, err)
	}
	return nil
}

func restoreInto(ctx context.Context, data string, c *backup.Contents, progress func(n int)) (err error) {
	p := &program{cfg: Config{Data: data, Durability: "group"}, log: slog.New(slog.DiscardHandler)}
	failed := make(chan error, 1)
	p.node, err = natsserver.StartNode(ctx, natsserver.NodeConfig{Dir: data, Fatal: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	if err != nil {
		return err
	}
	p.nats = p.node
	err = p.restoreStreams(ctx, c, progress)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	err = errors.Join(err, p.node.Shutdown(stop))
	select {
	case broken := <-failed:
		err = errors.Join(err, broken)
	default:
	}
	if err != nil {
		return err
	}
	return removeMark(data)
}

// removeMark completes a restore.
func removeMark(data string) error {
	if err := os.Remove(filepath.Join(data, restoreMark)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("complete the restore: %w", err)
	}
	return seal.SyncFolder(data)
}

// restoreStreams creates the streams of a backup with their messages, and the files that reveal
// when they are damaged later.
func (p *program) restoreStreams(ctx context.Context, c *backup.Contents, progress func(n int)) error {
	conn, err := p.node.Conn("restore")
	if err != nil {
		return err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	if _, err := jsapi.EnsureStream(ctx, js, vault.StreamConfig(1)); err != nil {
		return err
	}
	if _, err := kv.EnsureAccessLog(ctx, js, 1, kv.DefaultAccessRetention); err != nil {
		return err
	}
	if _, err := natsserver.EnsureBucket(ctx, js, keysetsConfig(1)); err != nil {
		return err
	}
	store, err := eventlog.Open(ctx, eventlog.Config{
		Conn: conn, Registry: events.All(), Logger: p.log, Replicas: 1, OnlyWriter: true,
		Sync: p.durable(eventlog.Stream), SyncTree: p.node.Syncer(eventlog.Stream).SyncTree,
	})
	if err != nil {
		return err
	}
	defer store.Close()
	if err := p.restoreMessages(ctx, js, c, progress); err != nil {
		return err
	}
	restored := []string{eventlog.Stream, vault.Stream, keyStream, kv.AccessStream}
	for _, stream := range restored {
		if err := p.node.Syncer(stream).Wait(ctx); err != nil {
			return err
		}
		if err := p.syncStream(stream); err != nil {
			return err
		}
	}
	if err := store.Reload(ctx); err != nil {
		return err
	}
	if err := p.openMarks(conn, restored[1:]...); err != nil {
		return err
	}
	p.highWater = eventlog.NewHighWater(p.highWaterFile(), store, p.log)
	return errors.Join(p.highWater.Record(ctx), p.marks.Record(ctx))
}

// storedAtOnce is the number of messages in flight to the streams.
const storedAtOnce = 256

// restoreMessages stores each message as it was. A commit must get its sequence.
func (p *program) restoreMessages(ctx context.Context, js jetstream.JetStream, c *backup.Contents, progress func(n int)) error {
	type sent struct {
		msg backup.Message
		ack jetstream.PubAckFuture
	}
	var flight []sent
	n := 0
	land := func() error {
		for _, s := range flight {
			select {
			case ack := <-s.ack.Ok():
				if s.msg.Kind == backup.KindLog && (ack.Stream != eventlog.Stream || ack.Sequence != s.msg.Seq) {
					return fmt.Errorf("store commit %d: it became message %d of %s", s.msg.Seq, ack.Sequence, ack.Stream)
				}
			case err := <-s.ack.Err():
				return fmt.Errorf("store message %d of the backup's %s: %w", s.msg.Seq, s.msg.Kind, err)
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		n += len(flight)
		progress(n)
		flight = flight[:0]
		return nil
	}
	err := c.Restored(func(m backup.Message) error {
		msg := &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}
		if m.Kind != backup.KindLog { // a condition of its time, of which there is another one now
			msg.Header.Del(jetstream.ExpectedLastSubjSeqHeader)
		}
		ack, err := js.PublishMsgAsync(msg, jetstream.WithRetryAttempts(0))
		if err != nil {
			return fmt.Errorf("store message %d of the backup's %s: %w", m.Seq, m.Kind, err)
		}
		if flight = append(flight, sent{m, ack}); len(flight) < storedAtOnce {
			return nil
		}
		return land()
	})
	if err != nil {
		return err
	}
	return land()
}
