package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// FeedConfig is the stream of the feed: the changes. It is derived from the log,
// so it is not fsynced: what a power cut takes, the writer puts there again.
func FeedConfig(replicas int) jetstream.StreamConfig { return feedOfChanges.config(replicas) }

// AuditConfig is the stream of the audit trail: every public event. It is derived
// from the log like the feed.
func AuditConfig(replicas int) jetstream.StreamConfig { return feedOfAudit.config(replicas) }

// feedKind is what tells the feed and the audit trail apart. They are streams of
// their own because a subject of the pull API names the stream as a token of its
// own, but the consumer with its kind and tenant as one: "engine-*" cannot be
// granted, the consumers of one stream can.
type feedKind struct {
	stream   string
	root     string                           // of the subjects
	consumer func(tenant string) string       // of a tenant's readers
	subject  func(projections.Message) string // "": not for this audience
}

var (
	feedOfChanges = feedKind{FeedStream, FeedSubject, EngineConsumer, func(m projections.Message) string { return m.Subject }}
	feedOfAudit   = feedKind{AuditStream, AuditSubject, AuditConsumer, func(m projections.Message) string { return m.AuditSubject }}
)

func (k feedKind) config(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: k.stream, Subjects: []string{k.root + ".>"}, Storage: jetstream.FileStorage, Replicas: replicas,
		AllowDirect: true, DenyDelete: true, MaxMsgSize: maxPayload,
	}
}

// message is the public form of a record; ok is false when this audience is not told of it.
func (k feedKind) message(r events.Record) (subject string, m projections.Message, ok bool) {
	if m, ok = projections.Public(r); !ok {
		return "", m, false
	}
	subject = k.subject(m)
	return subject, m, subject != ""
}

// feedWindow is the number of messages sent ahead of their acknowledgements.
const feedWindow = 256

// feedRetry is the pause before the writer looks where the feed stands and goes on.
const feedRetry = 100 * time.Millisecond

// Feed writes the public form of every durable event that its audience may read
// into a stream, once and in the order of the log: each message expects the
// stream's last sequence, so of two writers one is refused.
type Feed struct {
	kind  feedKind
	js    jetstream.JetStream
	store events.Store
	log   *slog.Logger
	seq   atomic.Uint64
	err   atomic.Pointer[error]
}

// AckTimeout bounds how long the feed waits for the acknowledgement of a
// message: a server whose disk has failed answers nothing.
const AckTimeout = 5 * time.Second

// NewFeed makes the writer of the feed; Run runs it. js is made with
// jetstream.WithPublishAsyncTimeout(AckTimeout).
func NewFeed(js jetstream.JetStream, store events.Store, log *slog.Logger) *Feed {
	return &Feed{kind: feedOfChanges, js: js, store: store, log: log.With("stream", FeedStream)}
}

// NewAuditFeed makes the writer of the audit trail, like NewFeed.
func NewAuditFeed(js jetstream.JetStream, store events.Store, log *slog.Logger) *Feed {
	return &Feed{kind: feedOfAudit, js: js, store: store, log: log.With("stream", AuditStream)}
}

// place is a place in the feed: an event of the log.
type place struct {
	seq   uint64 // log sequence
	index int    // within its commit
}

func (p place) before(q place) bool { return p.seq < q.seq || p.seq == q.seq && p.index < q.index }

// ErrFeedAhead says that the feed tells of events that the log does not hold. It is written
// from durable commits only, so it is the log that has lost something.
var ErrFeedAhead = fault.New(fault.Unavailable, "log_behind_feed",
	"The feed tells of events that the log does not hold: it was damaged. Nothing is changed and no secret leaves until it is restored from a backup. "+
		"If the log was restored on purpose, remove the streams CREDSTREAM_FEED and CREDSTREAM_AUDIT.")

// Check returns ErrFeedAhead when the log does not hold the feed's last event.
func (f *Feed) Check(ctx context.Context) error {
	_, _, err := f.last(ctx)
	return err
}

// Position is the log sequence of the last commit that the stream tells whole or
// in part, or that holds nothing for its audience.
func (f *Feed) Position() uint64 { return f.seq.Load() }

// Err is why the writer stands still, or nil.
func (f *Feed) Err() error {
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Run writes until ctx ends. It first looks for what a power cut may have torn
// out of the feed. It goes on after a failed or refused publish from where the
// feed then stands; it stops with an error when the log cannot be followed or
// holds something else than the feed tells.
func (f *Feed) Run(ctx context.Context) error {
	whole := false
	for ctx.Err() == nil {
		var err error
		if !whole {
			err = f.mend(ctx)
			whole = err == nil
		}
		if err == nil {
			err = f.resume(ctx)
		}
		var lost *publishError
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			return nil
		case !errors.As(err, &lost) && !transient(err) || refusedForGood(err):
			f.err.Store(&err)
			return fmt.Errorf("feed: %w", err)
		}
		f.log.WarnContext(ctx, "the feed goes on from where it stands", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(feedRetry):
		}
	}
	return nil
}

func (f *Feed) resume(ctx context.Context) error {
	last, lastSeq, err := f.last(ctx)
	if err != nil {
		return err
	}
	return f.write(ctx, last, lastSeq)
}

// publishError is a message that was not stored as expected.
type publishError struct{ err error }

func (e *publishError) Error() string { return "publish: " + e.err.Error() }
func (e *publishError) Unwrap() error { return e.err }

// refusedForGood reports whether the server will not take the message however
// often it is sent: any refusal but that the feed has moved on, or is not there.
func refusedForGood(err error) bool {
	api, ok := errors.AsType[*jetstream.APIError](err)
	if !ok || errors.Is(err, jetstream.ErrStreamNotFound) {
		return false
	}
	switch api.ErrorCode {
	case jetstream.JSErrCodeStreamWrongLastSequence, wrongLastInFlight:
		return false
	}
	return api.Code == 400
}

// wrongLastInFlight is how a replicated stream says that the last sequence is
// not the expected one (nats-server's JSStreamWrongLastSequenceConstantErr).
const wrongLastInFlight = 10164

func transient(err error) bool {
	return errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrConnectionClosed) ||
		errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrConnectionReconnecting) ||
		errors.Is(err, nats.ErrReconnectBufExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// last reads the feed's last message: the place it tells of and its sequence in
// the feed. The log must bear it out.
func (f *Feed) last(ctx context.Context) (place, uint64, error) {
	stream, err := f.js.Stream(ctx, f.kind.stream)
	if err != nil {
		return place{}, 0, fmt.Errorf("look at the feed: %w", err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return place{}, 0, fmt.Errorf("look at the feed: %w", err)
	}
	lastSeq := info.State.LastSeq
	if info.State.Msgs == 0 {
		return place{}, lastSeq, nil
	}
	// The last one that is there: a power cut may have taken later ones.
	msg, err := stream.GetLastMsgForSubject(ctx, f.kind.root+".>")
	if err != nil {
		return place{}, 0, fmt.Errorf("read the feed's last message: %w", err)
	}
	at, err := placeOf(msg.Header)
	if err != nil {
		return place{}, 0, err
	}
	recs, err := f.store.Commit(ctx, at.seq)
	switch {
	case errors.Is(err, events.ErrNoSuchCommit):
		return place{}, 0, ErrFeedAhead
	case err != nil:
		return place{}, 0, err
	case at.index >= len(recs) || recs[at.index].ID() != msg.Header.Get("ce-id"):
		return place{}, 0, ErrFeedAhead
	}
	f.seq.Store(at.seq)
	return at, lastSeq, nil
}

// mend looks for events that are missing between others. The feed is not
// fsynced, so a power cut may take the end of one block and leave the next one.
// Sequences that are missing are no fault by themselves: what a cut took from the
// feed's end was put there again behind them. Where events are missing the feed
// is written anew, and its consumers get all of it again.
func (f *Feed) mend(ctx context.Context) error {
	stream, err := f.js.Stream(ctx, f.kind.stream)
	if err != nil {
		return fmt.Errorf("look at the feed: %w", err)
	}
	info, err := stream.Info(ctx, jetstream.WithDeletedDetails(true))
	if err != nil {
		return fmt.Errorf("look at the feed: %w", err)
	}
	state := info.State
	if state.Msgs == 0 {
		return nil
	}
	gaps := [][2]uint64{{0, state.FirstSeq}} // the sequences beside each gap; the first stands before the first message
	for _, missing := range state.Deleted {
		if last := len(gaps) - 1; gaps[last][1] == missing {
			gaps[last][1] = missing + 1
		} else {
			gaps = append(gaps, [2]uint64{missing - 1, missing + 1})
		}
	}
	for _, gap := range gaps {
		if gap[1] > state.LastSeq {
			continue // the end: what follows is written now
		}
		whole, err := f.adjacent(ctx, stream, gap)
		if err != nil {
			return err
		}
		if !whole {
			f.log.ErrorContext(ctx, "events are missing in the feed; it is written anew", "after", gap[0], "before", gap[1])
			if err := stream.Purge(ctx); err != nil {
				return fmt.Errorf("purge the feed: %w", err)
			}
			return f.dropOldConsumers(ctx, stream)
		}
	}
	return nil
}

// dropOldConsumers deletes the audit consumers of a feed that an earlier version
// wrote: it held what the audit trail holds now, which is how it comes to be
// written anew.
func (f *Feed) dropOldConsumers(ctx context.Context, stream jetstream.Stream) error {
	names := stream.ConsumerNames(ctx)
	var old []string
	for name := range names.Name() {
		if f.kind.stream == FeedStream && strings.HasPrefix(name, AuditConsumer("")) {
			old = append(old, name)
		}
	}
	if err := names.Err(); err != nil {
		return fmt.Errorf("list the consumers of the feed: %w", err)
	}
	for _, name := range old {
		if err := stream.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("delete the consumer %s of the feed: %w", name, err)
		}
	}
	return nil
}

// adjacent reports whether the messages beside a gap tell of events that follow
// each other in the log.
func (f *Feed) adjacent(ctx context.Context, stream jetstream.Stream, gap [2]uint64) (bool, error) {
	var before place
	if gap[0] > 0 {
		msg, err := stream.GetMsg(ctx, gap[0])
		if err != nil {
			return false, fmt.Errorf("read message %d of the feed: %w", gap[0], err)
		}
		if before, err = placeOf(msg.Header); err != nil {
			return false, err
		}
	}
	msg, err := stream.GetMsg(ctx, gap[1])
	if err != nil {
		return false, fmt.Errorf("read message %d of the feed: %w", gap[1], err)
	}
	after, err := placeOf(msg.Header)
	if err != nil {
		return false, err
	}
	for rec, err := range f.store.Follow(ctx, max(before.seq, 1)-1) {
		if err != nil {
			return false, err
		}
		at := place{rec.Seq, rec.Index}
		if !before.before(at) {
			continue
		}
		// The record after them all is in the log, since the feed tells of it.
		if _, _, told := f.kind.message(rec); told || !at.before(after) {
			return told && at == after, nil
		}
	}
	return false, ctx.Err()
}

func placeOf(h nats.Header) (place, error) {
	seq, err1 := strconv.ParseUint(h.Get("ce-logseq"), 10, 64)
	index, err2 := strconv.Atoi(h.Get("ce-logindex"))
	if err := errors.Join(err1, err2); err != nil {
		return place{}, fmt.Errorf("a message of the feed without its place in the log: %w", err)
	}
	return place{seq, index}, nil
}

// write follows the log from a place on and publishes ahead of the
// acknowledgements, up to feedWindow of them.
func (f *Feed) write(ctx context.Context, told place, feedSeq uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type sent struct {
		ack jetstream.PubAckFuture // nil: there was nothing to tell
		at  place
	}
	inFlight := make(chan sent, feedWindow)
	failed := make(chan error, 1)
	go func() { // ends when inFlight is closed, which write does before it returns
		defer close(failed)
		for s := range inFlight {
			if s.ack == nil {
				f.seq.Store(s.at.seq)
				continue
			}
			select {
			case <-s.ack.Ok():
				f.seq.Store(s.at.seq)
			case err := <-s.ack.Err():
				cancel()
				failed <- &publishError{err}
				drain(inFlight) // what follows a failed message fails as well
				return
			case <-ctx.Done(): // nobody waits for the rest any more
				drain(inFlight)
				return
			}
		}
	}()
	err := f.send(ctx, told, feedSeq, func(ack jetstream.PubAckFuture, at place) { inFlight <- sent{ack, at} })
	close(inFlight)
	if lost := <-failed; lost != nil {
		return lost
	}
	return err
}

// drain takes what is sent until the sender has ended.
func drain[T any](from <-chan T) {
	for range from {
	}
}

func (f *Feed) send(ctx context.Context, from place, feedSeq uint64, sent func(jetstream.PubAckFuture, place)) error {
	after := from.seq
	if after > 0 {
		after-- // the last commit may have been told in part
	}
	for rec, err := range f.store.Follow(ctx, after) {
		if err != nil {
			return err
		}
		at := place{rec.Seq, rec.Index}
		if from.seq > 0 && !from.before(at) {
			continue
		}
		subject, m, told := f.kind.message(rec)
		if !told {
			sent(nil, at)
			continue
		}
		ack, err := f.js.PublishMsgAsync(feedMessage(subject, m),
			jetstream.WithExpectLastSequence(feedSeq))
		if err != nil {
			return &publishError{err}
		}
		feedSeq++
		sent(ack, at)
	}
	return nil
}

func feedMessage(subject string, m projections.Message) *nats.Msg {
	msg := nats.NewMsg(subject)
	for _, h := range m.Headers() {
		msg.Header[h[0]] = []string{h[1]} // as they stand: CloudEvents names are lower case
	}
	msg.Data = m.Data
	return msg
}

// Rewind starts the tenant's consumer of the stream over at the first event whose
// log sequence is at least seq.
func (f *Feed) Rewind(ctx context.Context, tenant string, seq uint64) error {
	stream, err := f.js.Stream(ctx, f.kind.stream)
	if err != nil {
		return fmt.Errorf("look at the feed: %w", err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("look at the feed: %w", err)
	}
	first, last := info.State.FirstSeq, info.State.LastSeq
	var failed error
	n := sort.Search(int(last-first+1), func(i int) bool {
		msg, err := stream.GetMsg(ctx, first+uint64(i), jetstream.WithGetMsgSubject(f.kind.root+".>")) // or the next that is there
		if err != nil {
			failed = err
			return true
		}
		at, err := placeOf(msg.Header)
		if err != nil {
			failed = err
		}
		return at.seq >= seq
	})
	if failed != nil {
		return fmt.Errorf("search the feed: %w", failed)
	}
	target := first + uint64(n)
	if _, err := stream.ResetConsumerToSequence(ctx, f.kind.consumer(tenant), target); err != nil {
		return fmt.Errorf("rewind the consumer %s: %w", f.kind.consumer(tenant), err)
	}
	return nil
}
