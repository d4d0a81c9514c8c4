// Package feed publishes data that is derived from the log: the feed, the audit
// stream and the in-use index.
package feed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/credstream/credstream/jsapi"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// Config is the stream of the feed: the changes. It is derived from the log,
// so it is not fsynced: the writer publishes again what a power cut lost.
func Config(replicas int) jetstream.StreamConfig { return streams.FeedOfChanges.Config(replicas) }

// AuditConfig is the configuration of the audit stream: all public events. Like the feed, it is
// derived from the log.
func AuditConfig(replicas int) jetstream.StreamConfig { return streams.FeedOfAudit.Config(replicas) }

// feedWindow is the number of messages sent ahead of their acknowledgements.
const feedWindow = 256

// Pauses and timeouts of the writer.
const (
	feedRetry        = 100 * time.Millisecond
	feedRetryMax     = 2 * time.Second
	feedWatch        = 2 * time.Second  // between two checks that the stream exists
	feedUnreadyAfter = 10 * time.Second // failing for this long makes readiness report it
	feedChecked      = 512              // messages at the end of the feed that are compared with the log
	feedCheckTime    = time.Minute      // timeout of the comparison
)

// Feed writes the public form of every durable event that its audience may read
// into a stream, once and in the order of the log: each message expects the
// stream's last sequence, so of two writers one is refused.
type Feed struct {
	kind     streams.FeedKind
	js       jetstream.JetStream
	store    events.Store
	replicas int
	log      *slog.Logger
	seq      atomic.Uint64
	err      atomic.Pointer[error]
	moved    searched
}

// NewFeed creates the writer of the feed; Run runs it. js is created with
// jetstream.WithPublishAsyncTimeout(AckTimeout). A lost stream is recreated with
// that many replicas.
func NewFeed(js jetstream.JetStream, store events.Store, replicas int, log *slog.Logger) *Feed {
	return &Feed{kind: streams.FeedOfChanges, js: js, store: store, replicas: replicas, log: log.With("stream", streams.FeedStream)}
}

// NewAuditFeed creates the writer of the audit stream, like NewFeed.
func NewAuditFeed(js jetstream.JetStream, store events.Store, replicas int, log *slog.Logger) *Feed {
	return &Feed{kind: streams.FeedOfAudit, js: js, store: store, replicas: replicas, log: log.With("stream", streams.AuditStream)}
}

// position is the position of an event in the log.
type position struct {
	seq   uint64 // log sequence
	index int    // within its commit
}

func (p position) before(q position) bool {
	return p.seq < q.seq || p.seq == q.seq && p.index < q.index
}

// ErrFeedAhead means that the feed has events that the log does not have. Only durable commits
// are published, so the log has lost data.
var ErrFeedAhead = fault.New(fault.Unavailable, "log_behind_feed",
	"The feed has events that the log does not have, so the log is damaged. Changes are refused and "+
		"no secret is returned until the log is restored from a backup. If you restored an older log on "+
		"purpose, remove the streams CREDSTREAM_FEED and CREDSTREAM_AUDIT.")

// Check returns ErrFeedAhead when the log does not hold the feed's last event.
func (f *Feed) Check(ctx context.Context) error {
	last, err := f.lastMessage(ctx)
	if err != nil || last.Seq == 0 {
		return err
	}
	_, err = f.verifyPosition(ctx, last.header)
	return err
}

// Position returns the log sequence of the last commit that is published, completely or in
// part, or has nothing for this audience.
func (f *Feed) Position() uint64 { return f.seq.Load() }

// Err is why the writer has stopped, or nil.
func (f *Feed) Err() error {
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

// Run publishes until ctx ends. At its start, and after a failed or refused
// publish, it checks the feed's position and that its end has each event once
// and in order, repairs it, and resumes, with growing pauses. It recreates a deleted
// stream. It stops with an error when
// the log misses a commit or holds one that cannot be read, or contradicts
// the feed.
func (f *Feed) Run(ctx context.Context) error {
	whole := false
	failing := time.Time{} // time of the first failure
	for pause := feedRetry; ctx.Err() == nil; pause = min(2*pause, feedRetryMax) {
		at := f.Position()
		var err error
		if !whole {
			err = f.repairGaps(ctx)
			whole = err == nil
		}
		if err == nil {
			err = f.repairEnd(ctx)
		}
		if err == nil {
			err = f.resume(ctx)
		}
		switch {
		case ctx.Err() != nil, err == nil:
			return nil
		case permanent(err):
			f.err.Store(&err)
			return fmt.Errorf("feed: %w", err)
		case f.Position() > at:
			failing, pause = time.Time{}, feedRetry
			f.err.Store(nil)
		case failing.IsZero():
			failing = time.Now()
		case time.Since(failing) > feedUnreadyAfter:
			f.err.Store(&err) // it continues, but readiness must report it
		}
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			if _, err = jsapi.EnsureStream(ctx, f.js, f.kind.Config(f.replicas)); err == nil {
				f.seq.Store(0)
				f.log.ErrorContext(ctx, "feed stream missing; rebuilding it from the log")
				continue
			}
		}
		f.log.WarnContext(ctx, "feed resumes after its last message", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// errLog marks an error of the log, or a contradiction between log and feed.
type errLog struct{ err error }

func (e *errLog) Error() string { return e.err.Error() }

func (e *errLog) Unwrap() error { return e.err }

// permanent reports whether a retry is useless because the content of the log or the
// feed is wrong. An error while reading them is temporary.
func permanent(err error) bool {
	if _, of := errors.AsType[*errLog](err); !of {
		return false
	}
	_, refused := errors.AsType[*jetstream.APIError](err)
	return !refused && !jsapi.Temporary(err) && !errors.Is(err, context.Canceled)
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

// last reads the feed's last message: its position and the sequence that the
// next publish must expect. The log must confirm it.
func (f *Feed) last(ctx context.Context) (position, uint64, error) {
	for ctx.Err() == nil {
		stream, err := f.js.Stream(ctx, f.kind.Stream)
		if err != nil {
			return position{}, 0, fmt.Errorf("look up the feed: %w", err)
		}
		before, err := f.lastMessage(ctx)
		if err != nil {
			return position{}, 0, err
		}
		info, err := stream.Info(ctx)
		if err != nil {
			return position{}, 0, fmt.Errorf("look up the feed: %w", err)
		}
		msg, err := f.lastMessage(ctx)
		switch {
		case err != nil:
			return position{}, 0, err
		case msg.Seq != before.Seq:
			continue // another writer is active
		case msg.Seq == 0:
			return position{}, info.State.LastSeq, nil
		}
		at, err := f.verifyPosition(ctx, msg.header)
		if err != nil {
			return position{}, 0, err
		}
		f.seq.Store(at.seq)
		// A power cut may have lost later messages, whose sequences are not used again. A
		// server that is not the leader may report less than the message itself.
		return at, max(msg.Seq, info.State.LastSeq), nil
	}
	return position{}, 0, ctx.Err()
}

// feedLast is the last message of the feed; the zero one when there is none.
type feedLast struct {
	Seq    uint64 `json:"seq"`
	Raw    []byte `json:"hdrs"`
	header nats.Header
}

// lastMessage reads the feed's last message from the leader of its stream. A direct get
// could be served by a lagging replica.
func (f *Feed) lastMessage(ctx context.Context) (feedLast, error) {
	ctx, cancel := context.WithTimeout(ctx, streams.AckTimeout)
	defer cancel()
	reply, err := f.js.Conn().RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+f.kind.Stream, []byte(`{"last_by_subj":"`+f.kind.Root+`.>"}`))
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message feedLast            `json:"message"`
	}
	if err == nil {
		err = jsonv2.Unmarshal(reply.Data, &answer)
	}
	switch {
	case err != nil:
		return feedLast{}, fmt.Errorf("read the feed's last message: %w", err)
	case answer.Error != nil && answer.Error.ErrorCode == jetstream.JSErrCodeMessageNotFound:
		return feedLast{}, nil
	case answer.Error != nil:
		return feedLast{}, fmt.Errorf("read the feed's last message: %w", answer.Error)
	}
	answer.Message.header, err = nats.DecodeHeadersMsg(answer.Message.Raw)
	if err != nil {
		return feedLast{}, &errLog{fmt.Errorf("read the feed's last message: %w", err)}
	}
	return answer.Message, nil
}

// verifyPosition returns the position of a message's event in the log. The log may have been copied
// from another store since, where it had other sequences: then the event is searched by its id.
func (f *Feed) verifyPosition(ctx context.Context, h nats.Header) (position, error) {
	at, err := positionOf(h)
	if err != nil {
		return position{}, &errLog{err}
	}
	id := h.Get("ce-id")
	recs, err := f.store.Commit(ctx, at.seq)
	switch {
	case err != nil && !errors.Is(err, events.ErrNoSuchCommit):
		return position{}, &errLog{err}
	case err == nil && at.index < len(recs) && recs[at.index].ID() == id:
		return at, nil
	}
	end, err := f.store.End(ctx)
	if err != nil {
		return position{}, &errLog{err}
	}
	if at, known := f.moved.find(id, end); known && at.seq != 0 {
		return at, nil
	} else if known || end == 0 {
		return position{}, &errLog{ErrFeedAhead}
	}
	for rec, err := range f.store.Follow(ctx, 0) {
		if err != nil {
			return position{}, &errLog{err}
		}
		if rec.ID() == id {
			at := position{rec.Seq, rec.Index}
			f.moved.keep(id, end, at)
			return at, nil
		}
		if rec.Seq == end && rec.Last() {
			f.moved.keep(id, end, position{})
			return position{}, &errLog{ErrFeedAhead}
		}
	}
	return position{}, ctx.Err()
}

// searched is the result of the last search for an event, in a log that ended at end; the zero
// position if the event is not there.
type searched struct {
	mu  sync.Mutex
	id  string
	end uint64
	at  position
}

// find returns the position of an event that was searched before. An event that was not found may
// be in a log that has grown.
func (s *searched) find(id string, end uint64) (at position, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at, s.id == id && (s.end == end || s.at.seq != 0 && s.end < end)
}

func (s *searched) keep(id string, end uint64, at position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.end, s.at = id, end, at
}

// repairEnd compares the end of the feed with the log. If an event is missing, duplicated,
// or out of order, the feed is rebuilt: servers have lost or repeated
// messages in flight during a leader change.
func (f *Feed) repairEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, feedCheckTime)
	defer cancel()
	stream, err := f.js.Stream(ctx, f.kind.Stream)
	if err != nil {
		return fmt.Errorf("look up the feed: %w", err)
	}
	last, err := f.lastMessage(ctx)
	if err != nil || last.Seq == 0 {
		return err
	}
	end, err := f.verifyPosition(ctx, last.header)
	if err != nil {
		return err
	}
	expected, err := f.publishedAtEnd(ctx, stream, last.Seq)
	if err != nil {
		return err
	}
	if len(expected) == 0 || expected[len(expected)-1].Get("ce-id") != last.header.Get("ce-id") {
		return fmt.Errorf("compare the feed with the log: %w", nats.ErrTimeout) // a lagging replica; retry
	}
	first, err := f.expectedPosition(ctx, expected[0])
	if err != nil {
		return err
	}
	for rec, err := range f.store.Follow(ctx, max(first.seq, 1)-1) {
		if err != nil {
			return &errLog{err}
		}
		at := position{rec.Seq, rec.Index}
		if at.before(first) {
			continue
		}
		_, _, public := f.kind.Message(rec)
		matches := public && len(expected) > 0 && expected[0].Get("ce-id") == rec.ID()
		if matches {
			expected = expected[1:]
		}
		switch {
		case (matches || !public) && at != end:
			continue
		case matches && len(expected) == 0:
			return nil
		}
		f.log.ErrorContext(ctx, "the feed differs from the log; rebuilding it", "seq", at.seq, "index", at.index)
		if err := stream.Purge(ctx); err != nil {
			return fmt.Errorf("purge the feed: %w", err)
		}
		return f.dropOldConsumers(ctx, stream)
	}
	return ctx.Err()
}

// publishedAtEnd returns the headers of the last messages of the feed, up to the one at seq.
func (f *Feed) publishedAtEnd(ctx context.Context, stream jetstream.Stream, seq uint64) ([]nats.Header, error) {
	reader, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(seq, feedChecked) - feedChecked + 1, HeadersOnly: true,
	})
	if err != nil {
		return nil, fmt.Errorf("read the end of the feed: %w", err)
	}
	messages, err := reader.Messages(jetstream.PullMaxMessages(feedChecked), jetstream.PullExpiry(10*time.Second), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return nil, fmt.Errorf("read the end of the feed: %w", err)
	}
	defer messages.Stop()
	var published []nats.Header
	for {
		msg, err := messages.Next(jetstream.NextContext(ctx))
		if err != nil {
			return nil, fmt.Errorf("read the end of the feed: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return nil, fmt.Errorf("read the end of the feed: %w", err)
		}
		if meta.Sequence.Stream <= seq {
			published = append(published, msg.Headers())
		}
		if meta.Sequence.Stream >= seq {
			if info := reader.CachedInfo(); info != nil {
				_ = stream.DeleteConsumer(ctx, info.Name) // else the server does when it is idle
			}
			return published, nil
		}
	}
}

// repairGaps detects events that are missing in the middle. The feed is not fsynced, so a power
// cut may lose the end of one block and leave the next one. Missing sequences alone are no
// error: what a power cut lost at the end was published again after them. If events are missing,
// the feed is rebuilt, and its consumers get all of it again.
func (f *Feed) repairGaps(ctx context.Context) error {
	stream, err := f.js.Stream(ctx, f.kind.Stream)
	if err != nil {
		return fmt.Errorf("look up the feed: %w", err)
	}
	info, err := stream.Info(ctx, jetstream.WithDeletedDetails(true))
	if err != nil {
		return fmt.Errorf("look up the feed: %w", err)
	}
	state := info.State
	if state.Msgs == 0 {
		return nil
	}
	gaps := [][2]uint64{{0, state.FirstSeq}} // the sequences on both sides of each gap; the first gap is before the first message
	for _, missing := range state.Deleted {
		if last := len(gaps) - 1; gaps[last][1] == missing {
			gaps[last][1] = missing + 1
		} else {
			gaps = append(gaps, [2]uint64{missing - 1, missing + 1})
		}
	}
	for _, gap := range gaps {
		if gap[1] > state.LastSeq {
			continue // the end: the following events are published next
		}
		whole, err := f.contiguous(ctx, stream, gap)
		if err != nil {
			return err
		}
		if !whole {
			f.log.ErrorContext(ctx, "the feed misses events; rebuilding it", "after", gap[0], "before", gap[1])
			if err := stream.Purge(ctx); err != nil {
				return fmt.Errorf("purge the feed: %w", err)
			}
			return f.dropOldConsumers(ctx, stream)
		}
	}
	return nil
}

// dropOldConsumers deletes the audit consumers that an earlier version created on the feed. Its
// feed had the content of today's audit stream, which is why it is rebuilt.
func (f *Feed) dropOldConsumers(ctx context.Context, stream jetstream.Stream) error {
	names := stream.ConsumerNames(ctx)
	var old []string
	for name := range names.Name() {
		if f.kind.Stream == streams.FeedStream && strings.HasPrefix(name, streams.AuditConsumer("")) {
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

// expectedPosition is verifyPosition, or the position that the message names if the log does not
// have its event.
func (f *Feed) expectedPosition(ctx context.Context, h nats.Header) (position, error) {
	at, err := f.verifyPosition(ctx, h)
	if errors.Is(err, ErrFeedAhead) {
		if at, err = positionOf(h); err != nil {
			return position{}, &errLog{err}
		}
	}
	return at, err
}

// contiguous reports whether the messages on both sides of a gap are events that follow
// each other in the log.
func (f *Feed) contiguous(ctx context.Context, stream jetstream.Stream, gap [2]uint64) (bool, error) {
	var before position
	if gap[0] > 0 {
		msg, err := stream.GetMsg(ctx, gap[0])
		if err != nil {
			return false, fmt.Errorf("read message %d of the feed: %w", gap[0], err)
		}
		if before, err = f.expectedPosition(ctx, msg.Header); err != nil {
			return false, err
		}
	}
	msg, err := stream.GetMsg(ctx, gap[1])
	if err != nil {
		return false, fmt.Errorf("read message %d of the feed: %w", gap[1], err)
	}
	after, err := f.expectedPosition(ctx, msg.Header)
	if err != nil {
		return false, err
	}
	for rec, err := range f.store.Follow(ctx, max(before.seq, 1)-1) {
		if err != nil {
			return false, &errLog{err}
		}
		at := position{rec.Seq, rec.Index}
		if !before.before(at) {
			continue
		}
		// The feed has the event at after, so the log has it too, and the loop ends.
		if _, _, public := f.kind.Message(rec); public || !at.before(after) {
			return public && at == after, nil
		}
	}
	return false, ctx.Err()
}

func positionOf(h nats.Header) (position, error) {
	seq, err1 := strconv.ParseUint(h.Get("ce-logseq"), 10, 64)
	index, err2 := strconv.Atoi(h.Get("ce-logindex"))
	if err := errors.Join(err1, err2); err != nil {
		return position{}, fmt.Errorf("a message of the feed has no log position: %w", err)
	}
	return position{seq, index}, nil
}

// write publishes the log after a position. Up to feedWindow messages are in flight.
func (f *Feed) write(ctx context.Context, after position, feedSeq uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type sent struct {
		ack jetstream.PubAckFuture // nil: nothing to publish
		at  position
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
				drain(inFlight) // after a failed message the following ones fail as well
				return
			case <-ctx.Done(): // the rest is published after the restart
				drain(inFlight)
				return
			}
		}
	}()
	watched := make(chan error, 1)
	go func() { // ends with ctx
		watched <- f.watch(ctx)
		cancel()
	}()
	err := f.send(ctx, after, feedSeq, func(ack jetstream.PubAckFuture, at position) { inFlight <- sent{ack, at} })
	close(inFlight)
	lost := <-failed
	cancel()
	return cmp.Or(<-watched, lost, err)
}

// watch returns an error when the stream has been deleted, which a writer with nothing to
// publish would not notice, and nil when ctx ends.
func (f *Feed) watch(ctx context.Context) error {
	tick := time.NewTicker(feedWatch)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if _, err := f.js.Stream(ctx, f.kind.Stream); errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("look at the feed: %w", err)
		}
	}
}

// drain receives until the sender has ended.
func drain[T any](from <-chan T) {
	for range from {
	}
}

func (f *Feed) send(ctx context.Context, from position, feedSeq uint64, sent func(jetstream.PubAckFuture, position)) error {
	after := from.seq
	if after > 0 {
		after-- // the last commit may be published only in part
	}
	for rec, err := range f.store.Follow(ctx, after) {
		if err != nil {
			return &errLog{err}
		}
		at := position{rec.Seq, rec.Index}
		if from.seq > 0 && !from.before(at) {
			continue
		}
		subject, m, public := f.kind.Message(rec)
		if !public {
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
		msg.Header[h[0]] = []string{h[1]} // unchanged: CloudEvents names are lower case
	}
	msg.Data = m.Data
	return msg
}

// Rewind restarts the tenant's consumer of the stream at the first event whose
// log sequence is at least seq.
func (f *Feed) Rewind(ctx context.Context, tenant string, seq uint64) error {
	stream, err := f.js.Stream(ctx, f.kind.Stream)
	if err != nil {
		return fmt.Errorf("look up the feed: %w", err)
	}
	info, err := stream.Info(ctx)
	if err != nil {
		return fmt.Errorf("look up the feed: %w", err)
	}
	first, last := info.State.FirstSeq, info.State.LastSeq
	var failed error
	n := sort.Search(int(last-first+1), func(i int) bool {
		msg, err := stream.GetMsg(ctx, first+uint64(i), jetstream.WithGetMsgSubject(f.kind.Root+".>")) // or the next that is there
		if err != nil {
			failed = err
			return true
		}
		at, err := positionOf(msg.Header)
		if err != nil {
			failed = err
		}
		return at.seq >= seq
	})
	if failed != nil {
		return fmt.Errorf("search the feed: %w", failed)
	}
	target := first + uint64(n)
	if _, err := stream.ResetConsumerToSequence(ctx, f.kind.Consumer(tenant), target); err != nil {
		return fmt.Errorf("rewind the consumer %s: %w", f.kind.Consumer(tenant), err)
	}
	return nil
}
