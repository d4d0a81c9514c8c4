package storage

import (
	"context"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/service/backup"
)

const (
	batchMessages = 512
	batchBytes    = 256 << 10
)

// Reader reads the stored messages of streams for a backup. It may be used by many goroutines.
type Reader struct {
	js      jetstream.JetStream
	api     jsapi.API
	streams map[string]string
}

var _ backup.Streams = (*Reader)(nil)

// NewReader returns a Reader of streams, by the kind of their messages. They allow direct reads.
func NewReader(js jetstream.JetStream, streams map[string]string) *Reader {
	return &Reader{js, jsapi.Of(js), streams}
}

// End implements backup.Streams.
func (r *Reader) End(ctx context.Context, kind string) (created time.Time, seq uint64, err error) {
	s, err := r.js.Stream(ctx, r.streams[kind])
	if err != nil {
		return created, 0, fmt.Errorf("looking up stream %s: %w", r.streams[kind], jsapi.Fault(err))
	}
	return s.CachedInfo().Created, s.CachedInfo().State.LastSeq, nil
}

// Read implements backup.Streams. What a lagging replica does not have comes from the leader.
func (r *Reader) Read(ctx context.Context, kind string, after, upTo uint64) (list []backup.Message, err error) {
	stream := r.streams[kind]
	next := jsapi.Question{NextBySubject: ">", Seq: after + 1}
	batch := next
	batch.Batch, batch.MaxBytes = int(min(upTo-after, batchMessages)), batchBytes
	msgs, err := r.api.Batch(ctx, stream, batch)
	if err == nil && len(msgs) == 0 {
		var m *jsapi.Message
		if m, err = r.api.FromLeader(ctx, stream, next); m != nil {
			msgs = append(msgs, *m)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading stream %s: %w", stream, jsapi.Fault(err))
	}
	for _, m := range msgs {
		if m.Seq > upTo {
			break
		}
		msg := backup.Message{Kind: kind, Seq: m.Seq, Subject: m.Subject, Data: m.Data}
		if len(m.Header) > 0 {
			msg.Header = m.Header
		}
		list = append(list, msg)
	}
	return list, nil
}
