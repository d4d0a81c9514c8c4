package edge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/fault"
)

// The streams of queued and of dead-lettered messages. They are private: only the service
// publishes to them.
const (
	FlowsStream      = "CREDSTREAM_FLOWS"
	QueueStream      = "CREDSTREAM_CMDQ"
	DeadLetterStream = "CREDSTREAM_POISON"
)

// Queue is the display name of one of the two queues.
type Queue string

// The queues.
const (
	Flows    Queue = "flows"    // flow events
	Commands Queue = "commands" // queued commands
)

// layout holds the names of a queue: its stream, and the subject prefixes for publishers and in the stream.
type layout struct{ publicPrefix, storedPrefix, stream string }

func (q Queue) layout() layout {
	if q == Flows {
		return layout{streams.FlowsPublicPrefix, streams.FlowsStoredPrefix, FlowsStream}
	}
	return layout{streams.QueuePublicPrefix, streams.QueueStoredPrefix, QueueStream}
}

// Headers of a message in a queue. A flow event is a CloudEvent in binary mode besides.
const (
	actorHeader       = "Cs-Actor"       // id of the key that published the message
	commandHeader     = "Cs-Command"     // command id
	correlationHeader = "Cs-Correlation" // correlation id; may be absent
	sizeHeader        = "Cs-Size"        // size of the published message in bytes
	sumHeader         = "Cs-Sha256"      // SHA-256 of the published message in hex
)

// maxQueued is the maximum size of a body, so that it fits into the dead-letter queue together
// with the reason.
const maxQueued = 640 << 10

// maxBacklog is the maximum number of queued commands per tenant and command name.
const maxBacklog = 5000

// FlowsConfig is the configuration of the flow events' stream, by tenant and flow:
// "credstream.in.flows.<tenant>.<token of the flow>", plus the size of a large message.
// Processed messages are removed.
func FlowsConfig(replicas int) jetstream.StreamConfig {
	return queueStream(FlowsStream, streams.FlowsStoredPrefix+">", jetstream.WorkQueuePolicy, replicas)
}

// QueueConfig is the configuration of the queued commands' stream, by tenant and command:
// "credstream.in.cmdq.<tenant>.<command>", plus the size of a large message. Processed messages
// are removed.
func QueueConfig(replicas int) jetstream.StreamConfig {
	cfg := queueStream(QueueStream, streams.QueueStoredPrefix+">", jetstream.WorkQueuePolicy, replicas)
	// The backlog of one tenant and command must not exceed what a reader can hold in total.
	cfg.MaxMsgsPerSubject, cfg.Discard, cfg.DiscardNewPerSubject = maxBacklog, jetstream.DiscardNew, true
	return cfg
}

// DeadLetterConfig is the configuration of the dead-letter queue's stream, by tenant and queue:
// "credstream.in.poison.<tenant>.<queue>", plus the size of a large message. A message stays
// until it is retried or dropped.
func DeadLetterConfig(replicas int) jetstream.StreamConfig {
	return queueStream(DeadLetterStream, streams.DeadLetterSubject+">", jetstream.LimitsPolicy, replicas)
}

// queueStream disables direct reads, which a lagging replica could serve.
func queueStream(name, subject string, retention jetstream.RetentionPolicy, replicas int) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: name, Subjects: []string{subject}, Storage: jetstream.FileStorage, Replicas: replicas,
		Retention: retention, MaxMsgSize: streams.MaxPayload,
	}
}

// Queues stores messages durably in the three streams.
type Queues struct {
	js      jetstream.JetStream
	durable map[string]func(context.Context) error // by stream; nil if the server fsyncs
	backlog map[string]*backlog                    // by stream
}

// NewQueues returns Queues on a connection of the service. durable returns the function that
// waits for the fsync of a stream, or nil if the server fsyncs. The streams must exist before
// the first message.
func NewQueues(conn *nats.Conn, durable func(stream string) func(context.Context) error) (*Queues, error) {
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncTimeout(streams.AckTimeout), jetstream.WithPublishAsyncMaxPending(streams.MaxUnacked))
	if err != nil {
		return nil, fmt.Errorf("opening JetStream for the queues: %w", err)
	}
	q := &Queues{js: js, durable: map[string]func(context.Context) error{}, backlog: map[string]*backlog{}}
	for _, s := range []struct {
		stream, prefix string
		full           *fault.Error
	}{
		{FlowsStream, streams.FlowsStoredPrefix, streams.ErrQueueFull}, {QueueStream, streams.QueueStoredPrefix, streams.ErrQueueFull}, {DeadLetterStream, streams.DeadLetterSubject, ErrDeadLettersFull},
	} {
		q.durable[s.stream] = durable(s.stream)
		if q.backlog[s.stream], err = newBacklog(s.stream, s.prefix, s.full); err != nil {
			return nil, err
		}
	}
	return q, nil
}

// send publishes a message, or refuses it with ErrQueueFull or ErrDeadLettersFull.
// Messages are stored in the order in which they were sent.
func (q *Queues) send(ctx context.Context, stream string, m *nats.Msg) (streams.Receipt, error) {
	m.Subject = sized(m.Subject, len(m.Data))
	if err := q.backlog[stream].add(ctx, q.js, m.Subject); err != nil {
		return streams.Receipt{}, err
	}
	// A retry could be stored after a message that was sent later.
	ack, err := q.js.PublishMsgAsync(m, jetstream.WithRetryAttempts(0))
	if err != nil {
		return streams.Receipt{}, fmt.Errorf("storing in %s: %w: %w", stream, streams.ErrNotStored, err)
	}
	return streams.Receipt{Stream: stream, Ack: ack, Durable: q.durable[stream]}, nil
}

// put stores a message. It returns when the message is durable.
func (q *Queues) put(ctx context.Context, stream string, m *nats.Msg) error {
	r, err := q.send(ctx, stream, m)
	if err != nil {
		return err
	}
	_, _, err = r.Wait(ctx)
	return err
}

// count returns the number of messages in a stream.
func (q *Queues) count(ctx context.Context, stream string) (uint64, error) {
	s, err := q.js.Stream(ctx, stream)
	if err != nil {
		return 0, fmt.Errorf("looking up stream %s: %w", stream, err)
	}
	return s.CachedInfo().State.Msgs, nil
}

// once makes a stream store equal messages only once within its duplicate window (two minutes).
// The parts must include the tenant: the window spans all messages of the stream.
func once(m *nats.Msg, parts ...string) {
	h := sha256.New()
	for _, part := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part) // a hash returns no error
	}
	m.Header.Set(nats.MsgIdHdr, hex.EncodeToString(h.Sum(nil)))
}

// describe adds headers that describe the published message.
func describe(h nats.Header, principal, correlation string, published []byte) {
	sum := sha256.Sum256(published)
	h[actorHeader] = []string{principal}
	h[sizeHeader] = []string{strconv.Itoa(len(published))}
	h[sumHeader] = []string{hex.EncodeToString(sum[:])}
	if correlation != "" {
		h[correlationHeader] = []string{correlation}
	}
}
