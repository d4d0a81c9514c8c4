// Package streams has the names of the streams of the bus, their subjects and configuration,
// and acknowledgements of messages.
package streams

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// MaxWaitingSize is the maximum size in bytes of requests that wait in a subscription.
const MaxWaitingSize = 16 << 20

// FeedKind distinguishes the feed and the audit stream. They are separate streams
// because a subject of the pull API has the stream as its own token,
// but the consumer with its kind and tenant as one token: permissions for "engine-*" are not
// possible, those for all consumers of one stream are.
type FeedKind struct {
	Stream   string
	Root     string                           // first tokens of the subjects
	Consumer func(tenant string) string       // name of a tenant's consumer
	subject  func(projections.Message) string // "": not for this audience
}

// The two feeds.
var (
	FeedOfChanges = FeedKind{FeedStream, FeedSubject, EngineConsumer, func(m projections.Message) string { return m.Subject }}
	FeedOfAudit   = FeedKind{AuditStream, AuditSubject, AuditConsumer, func(m projections.Message) string { return m.AuditSubject }}
)

// Config is the configuration of the stream.
func (k FeedKind) Config(replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: k.Stream, Subjects: []string{k.Root + ".>"}, Storage: jetstream.FileStorage, Replicas: replicas,
		AllowDirect: true, DenyDelete: true, MaxMsgSize: MaxPayload,
	}
}

// Message is the public form of a record; ok is false if it is not for this audience.
func (k FeedKind) Message(r events.Record) (subject string, m projections.Message, ok bool) {
	if m, ok = projections.Public(r); !ok {
		return "", m, false
	}
	subject = k.subject(m)
	return subject, m, subject != ""
}

// AckTimeout is the timeout of the acknowledgement of a message: a server with a failed disk
// does not reply.
const AckTimeout = 5 * time.Second

// MaxPayload is the maximum size of a message in bytes.
const MaxPayload = 1 << 20

// Access to the NATS port: without a key there is no connection. Each key
// has its own account, which imports what the key is granted of
// the service's account, and nothing else:
//
//   - requests to the endpoints, and the discovery of the micro service;
//   - plain subscriptions to its tenants' part of the feed, of the audit stream and of
//     the in-use index, and single keys of that index;
//   - the pull API of its tenants' consumers of the feed and of the audit stream (see Pulls).
//
// Streams, their API and the service's own subjects do not exist in that
// account, its inboxes are invisible to other keys, and a reply subject is valid
// only in that account: no reply of the service can be directed into
// a stream. In addition each connection has allow lists, so that a single mistake
// is not enough.

// AllTenants in a Grant means every tenant.
const AllTenants = "*"

// The streams of the feed and of the audit stream, and the first tokens of their
// subjects.
const (
	FeedStream   = "CREDSTREAM_FEED"
	FeedSubject  = "credstream.events"
	AuditStream  = "CREDSTREAM_AUDIT"
	AuditSubject = "credstream.audit"
)

// The in-use index is a key-value bucket. Its keys begin with the tenant.
const (
	InUseBucket  = "credstream-in-use"
	InUseSubject = "$KV." + InUseBucket
	InUseAPI     = "$JS.API.DIRECT.GET.KV_" + InUseBucket + "."
)

// Prefixes of the pull API, followed by the stream and the consumer.
const (
	InfoAPI = "$JS.API.CONSUMER.INFO."
	NextAPI = "$JS.API.CONSUMER.MSG.NEXT."
	AckAPI  = "$JS.ACK."
)

// PullAPI lists the subjects of the pull API of the tenant's consumer, or of every
// tenant's: each consumer of the stream is one of a tenant.
func (k FeedKind) PullAPI(tenant string) []string {
	of := k.Stream + ".*"
	if tenant != AllTenants {
		of = k.Stream + "." + k.Consumer(tenant)
	}
	return []string{InfoAPI + of, NextAPI + of, AckAPI + of + ".>"}
}

// EngineConsumer names the consumer of the feed that a tenant's flow engines share.
func EngineConsumer(tenant string) string { return "engine-" + tenant }

// AuditConsumer is the name of a tenant's consumer of the audit stream.
func AuditConsumer(tenant string) string { return "audit-" + tenant }

// TenantOf returns the tenant of the consumer at the end of a subject; ok is false if there is
// none.
func (k FeedKind) TenantOf(subject string) (tenant string, ok bool) {
	tenant, ok = strings.CutPrefix(subject[strings.LastIndexByte(subject, '.')+1:], k.Consumer(""))
	return tenant, ok && events.CheckName(tenant) == nil
}

// Subjects to which publishers send messages for the queues, and subjects of the stored
// messages.
const (
	FlowsPublicPrefix = "credstream.flows."
	FlowsStoredPrefix = "credstream.in.flows."
	QueuePublicPrefix = "credstream.cmdq."
	QueueStoredPrefix = "credstream.in.cmdq."
	DeadLetterSubject = "credstream.in.poison."
)

// ErrNotStored is returned to a publisher whose message is not known to be durable.
var ErrNotStored = fault.New(fault.Unavailable, "queue_message_not_stored",
	"The message was not stored, or it is unknown whether it was. Publish it again.")

// ErrQueueFull is returned while too many messages of a tenant, or commands of one
// name, or too many bytes, wait in a queue.
var ErrQueueFull = fault.New(fault.Throttled, "queue_full",
	"Too many messages of this tenant, or too many bytes, are waiting in the queue. Publish it again later.").WithRetryAfter(10 * time.Second)

// storeFull is the server's error for a message to a full subject
// (nats-server's ErrMaxMsgsPerSubject).
const storeFull = "maximum messages per subject exceeded"

// MaxUnacked bounds the messages that are sent but not acknowledged by the streams.
const MaxUnacked = 16_384

// Receipt is a message in flight to a stream.
type Receipt struct {
	Stream  string
	Ack     jetstream.PubAckFuture
	Durable func(context.Context) error
	Stored  func() // called when it is durable, unless it is a duplicate; may be nil
}

// Wait returns when the message is durable, with its sequence in the stream. duplicate reports
// that the stream has stored a message with the same Nats-Msg-Id before, at that sequence.
func (r Receipt) Wait(ctx context.Context) (seq uint64, duplicate bool, err error) {
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case err = <-r.Ack.Err():
	case ack := <-r.Ack.Ok():
		if ack.Stream != r.Stream {
			err = fmt.Errorf("it was stored in %s", ack.Stream)
		}
		if err == nil && r.Durable != nil {
			err = r.Durable(ctx)
		}
		seq, duplicate = ack.Sequence, ack.Duplicate
	}
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && strings.Contains(api.Description, storeFull) {
		return 0, false, ErrQueueFull
	}
	if err != nil {
		return 0, false, fmt.Errorf("storing in %s: %w: %w", r.Stream, ErrNotStored, err)
	}
	if r.Stored != nil && !duplicate {
		r.Stored()
	}
	return seq, duplicate, nil
}
