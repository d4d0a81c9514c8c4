package feed

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/credstream/credstream/jsapi"

	jsonv2 "github.com/go-json-experiment/json"
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// InUseConfig is the bucket of the in-use index. It is derived from the log, so
// it is not fsynced: the writer puts again what a power cut lost.
func InUseConfig(replicas int) jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{Bucket: streams.InUseBucket, History: 1, Storage: jetstream.FileStorage, Replicas: replicas}
}

// InUseKey returns the key of a resource in the bucket: "<tenant>.<kind>.<id as token>".
func InUseKey(tenant, kind, id string) string {
	return tenant + "." + kind + "." + events.Token(id)
}

const (
	inUseWindow  = 256                    // keys in flight
	inUseKnown   = 1 << 16                // keys whose value in the bucket is cached
	inUseRetry   = 500 * time.Millisecond // the pause after a failure
	inUseCheck   = time.Second            // interval at which an idle writer checks for a lost connection
	inUseRounds  = 8                      // attempts at one key with concurrent writers
	inUseSilence = 30 * time.Second       // timeout for the next key while the bucket is read
)

// InUse keeps the bucket of the in-use index equal to the views. Any number of
// writers may run, on views that are up to date or behind: a value replaces
// only one that reflects less of the log, by compare-and-set on the
// key's revision. A key is never deleted.
type InUse struct {
	js        jetstream.JetStream
	views     *projections.Views
	projector *projections.Projector
	log       *slog.Logger

	known    *lru.Cache[string, kvEntry] // cache of entries of the bucket; a key that is missing here costs one refused write
	position atomic.Uint64
	err      atomic.Pointer[error]
}

// kvEntry is a value in the bucket.
type kvEntry struct {
	revision uint64 // of the key; 0: it has none
	seq      uint64 // log sequence that the value reflects
}

// inUsePut is a value on its way into the bucket.
type inUsePut struct {
	key      string
	body     []byte
	seq      uint64 // of the value
	revision uint64 // expected of the key
	ack      jetstream.PubAckFuture
}

// NewInUse creates a writer; Run runs it. projector is the one that feeds views.
// js is created with jetstream.WithPublishAsyncTimeout(AckTimeout).
func NewInUse(js jetstream.JetStream, views *projections.Views, projector *projections.Projector, log *slog.Logger) *InUse {
	known, err := lru.New[string, kvEntry](inUseKnown)
	if err != nil {
		panic(err) // the size is a constant above 0
	}
	return &InUse{js: js, views: views, projector: projector, log: log, known: known}
}

// Position is the log sequence up to which the bucket reflects the log.
func (u *InUse) Position() uint64 { return u.position.Load() }

// Err is why the writer has stopped, or nil.
func (u *InUse) Err() error {
	if err := u.err.Load(); err != nil {
		return *err
	}
	return nil
}

// errInUseViews marks a failure to read the views.
var errInUseViews = errors.New("read the read models")

// Run writes until ctx ends; then it returns nil. At its start, after every
// failure and after every lost connection it compares the whole bucket with
// the views, repairs it, and resumes.
func (u *InUse) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		err := u.write(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errInUseViews):
			u.err.Store(&err)
		}
		u.log.WarnContext(ctx, "in-use index: comparing it with the read models before it resumes", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(inUseRetry):
		}
	}
	return nil
}

var errReconnected = errors.New("the connection was lost meanwhile")

// write repairs the bucket and then follows the views.
func (u *InUse) write(ctx context.Context) error {
	connection := u.connection()
	after, err := u.repair(ctx, connection)
	if err == nil {
		u.err.Store(nil)
	}
	for err == nil {
		position := u.projector.Position()
		var last uint64
		last, err = u.changes(ctx, after, u.expected)
		switch {
		case err != nil:
		case last > after:
			after = last
		default:
			u.position.Store(position)
			err = u.next(ctx, position, connection)
		}
	}
	return err
}

// connection identifies the current connection: it changes with each reconnect.
func (u *InUse) connection() uint64 { return u.js.Conn().Stats().Reconnects }

// next waits until the views have advanced, also while their projector has
// stopped. It returns an error when the connection was lost, because the server
// may have lost its latest writes.
func (u *InUse) next(ctx context.Context, after, connection uint64) error {
	for {
		wait, cancel := context.WithTimeout(ctx, inUseCheck)
		err := u.projector.Next(wait, after)
		if errors.Is(err, projections.ErrViewsBehind) {
			<-wait.Done()
		}
		cancel()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case u.connection() != connection:
			return errReconnected
		case err == nil:
			return nil
		}
	}
}

// expected is the revision that a put must replace; ok is false if the bucket already
// holds this value or a later one.
func (u *InUse) expected(p inUsePut) (revision uint64, ok bool) {
	at, _ := u.known.Get(p.key)
	return at.revision, at.seq < p.seq
}

// changes writes one page of changes after a log sequence and returns
// the last sequence of the page, or after if there is none.
func (u *InUse) changes(ctx context.Context, after uint64, expected func(inUsePut) (uint64, bool)) (uint64, error) {
	page, err := u.views.InUseChanges(ctx, after, inUseWindow)
	if err != nil {
		return after, fmt.Errorf("%w: %w", errInUseViews, err)
	}
	var puts []inUsePut
	for _, e := range page {
		p, err := newInUsePut(InUseKey(e.Tenant, e.Kind, e.ID), e.Value)
		if err != nil {
			return after, err
		}
		var ok bool
		if p.revision, ok = expected(p); ok {
			puts = append(puts, p)
		}
		after = e.Value.Seq
	}
	return after, u.put(ctx, puts)
}

func newInUsePut(key string, value projections.InUse) (inUsePut, error) {
	body, err := jsonv2.Marshal(value)
	if err != nil {
		return inUsePut{}, fmt.Errorf("write the value of %s: %w", key, err)
	}
	return inUsePut{key: key, body: body, seq: value.Seq}, nil
}

// emptyInUse returns the value of a resource that no flow uses.
func emptyInUse(key string, seq uint64) (inUsePut, error) {
	return newInUsePut(key, projections.InUse{Seq: seq, Flows: []projections.InUseFlow{}})
}

// put writes values, each key once, without waiting for each acknowledgement.
func (u *InUse) put(ctx context.Context, puts []inUsePut) (err error) {
	sent := 0
	for i := range puts {
		p := &puts[i]
		p.ack, err = u.js.PublishMsgAsync(p.message(), jetstream.WithExpectLastSequencePerSubject(p.revision))
		if err != nil {
			break
		}
		sent++
	}
	var refused []inUsePut
	for _, p := range puts[:sent] {
		select {
		case ack := <-p.ack.Ok():
			u.known.Add(p.key, kvEntry{ack.Sequence, p.seq})
		case failed := <-p.ack.Err():
			if jsapi.WrongLast(failed) {
				refused = append(refused, p)
			} else {
				err = errors.Join(err, failed)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	for _, p := range refused {
		if err := u.resolveConflict(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (p inUsePut) message() *nats.Msg {
	return &nats.Msg{Subject: streams.InUseSubject + "." + p.key, Data: p.body, Header: nats.Header{}}
}

// resolveConflict writes a value whose key has another revision than expected, unless the current
// value reflects as much of the log.
func (u *InUse) resolveConflict(ctx context.Context, p inUsePut) error {
	var err error
	for range inUseRounds {
		var at kvEntry
		if at, err = u.readEntry(ctx, p.key); err != nil {
			return err
		}
		if at.seq >= p.seq {
			u.known.Add(p.key, at)
			return nil
		}
		var ack *jetstream.PubAck
		ack, err = u.js.PublishMsg(ctx, p.message(), jetstream.WithExpectLastSequencePerSubject(at.revision))
		switch {
		case err == nil:
			u.known.Add(p.key, kvEntry{ack.Sequence, p.seq})
			return nil
		case !jsapi.WrongLast(err):
			return fmt.Errorf("publish: %w", err)
		}
	}
	return fmt.Errorf("publish: %w", err)
}

// readEntry reads the current entry of a key.
func (u *InUse) readEntry(ctx context.Context, key string) (kvEntry, error) {
	stream, err := u.js.Stream(ctx, "KV_"+streams.InUseBucket)
	if err != nil {
		return kvEntry{}, fmt.Errorf("look up the bucket: %w", err)
	}
	msg, err := stream.GetLastMsgForSubject(ctx, streams.InUseSubject+"."+key)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return kvEntry{}, nil
	case err != nil:
		return kvEntry{}, fmt.Errorf("read %s: %w", key, err)
	}
	return kvEntry{msg.Sequence, parseInUse(msg.Data).Seq}, nil
}

// parseInUse decodes a value; an invalid one counts as reflecting nothing.
func parseInUse(body []byte) projections.InUse {
	var value projections.InUse
	if jsonv2.Unmarshal(body, &value) != nil {
		return projections.InUse{}
	}
	return value
}

// found is a value that was in the bucket when repair began.
type found struct {
	kvEntry
	empty bool
	sum   [sha256.Size]byte
}

// repair makes the bucket equal to the views, and returns the log sequence up to which it is. It
// reads the log's end after the bucket, and waits for the views to reach it: then they include
// every commit that a valid value can reflect. A value that still differs is old, was lost in
// part, or reflects commits that a power cut removed from the log. Concurrent writes are not
// overwritten: the puts expect the revisions that were read.
func (u *InUse) repair(ctx context.Context, connection uint64) (after uint64, err error) {
	u.known.Purge()
	stored, err := u.readAll(ctx)
	if err != nil {
		return 0, err
	}
	end, err := u.projector.End(ctx)
	if err != nil {
		return 0, err
	}
	if end > 0 {
		if err := u.next(ctx, end-1, connection); err != nil {
			return 0, err
		}
	}
	missing := 0
	for {
		last, err := u.changes(ctx, after, func(p inUsePut) (uint64, bool) {
			f, ok := stored[p.key]
			delete(stored, p.key)
			switch {
			case !ok:
				missing++
				return u.expected(p)
			case f.sum == sha256.Sum256(p.body):
				u.known.Add(p.key, f.kvEntry)
				return 0, false
			}
			missing++
			return f.revision, true
		})
		if err != nil {
			return 0, err
		}
		if last == after {
			break
		}
		after = last
	}
	var unknown []inUsePut
	for key, f := range stored {
		if f.empty && f.seq <= end {
			continue
		}
		p, err := emptyInUse(key, end)
		if err != nil {
			return 0, err
		}
		p.revision = f.revision
		unknown = append(unknown, p)
	}
	for some := range slices.Chunk(unknown, inUseWindow) {
		if err := u.put(ctx, some); err != nil {
			return 0, err
		}
	}
	if missing+len(unknown) > 0 {
		u.log.InfoContext(ctx, "in-use index repaired", "written", missing, "emptied", len(unknown))
	}
	return after, nil
}

// readAll reads the whole bucket, including keys that others deleted.
func (u *InUse) readAll(ctx context.Context) (map[string]found, error) {
	kv, err := u.js.KeyValue(ctx, streams.InUseBucket)
	if err != nil {
		return nil, fmt.Errorf("open the bucket: %w", err)
	}
	watcher, err := kv.WatchAll(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the bucket: %w", err)
	}
	defer watcher.Stop() //nolint:errcheck // reading is complete
	stored := map[string]found{}
	for {
		stuck := time.NewTimer(inUseSilence)
		select {
		case entry, open := <-watcher.Updates():
			stuck.Stop()
			if !open {
				return nil, fmt.Errorf("read the bucket: %w", errReconnected)
			}
			if entry == nil {
				return stored, nil
			}
			value := parseInUse(entry.Value())
			empty, err := emptyInUse(entry.Key(), value.Seq)
			if err != nil {
				return nil, err
			}
			stored[strings.Clone(entry.Key())] = found{
				kvEntry: kvEntry{entry.Revision(), value.Seq}, sum: sha256.Sum256(entry.Value()), empty: bytes.Equal(entry.Value(), empty.body),
			}
		case <-stuck.C:
			return nil, fmt.Errorf("read the bucket: %w", nats.ErrTimeout)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
