package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/streams"
)

// Metadata that a Subscriber adds to each message, besides its headers.
const (
	subjectMetadata   = "nats-subject"
	sequenceMetadata  = "nats-seq"       // sequence in the stream
	deliveredMetadata = "nats-delivered" // number of deliveries by this process
	// afterMetadata may be set by a handler that nacks a message: the minimum pause before
	// its redelivery, such as "2s".
	afterMetadata = "retry-after"
)

// The limits of a subscription. Only the sequence of a message that waits behind another one in
// its lane is kept; the message is read again before its delivery.
const (
	maxInDelivery = 256    // messages in delivery
	maxPerOwner   = 64     // of these, for one owner
	maxLanes      = 256    // lanes with a message in delivery or ready for it
	maxHeld       = 50_000 // received, unacknowledged messages
	pullBatch     = 64     // messages
	pullExpiry    = 10 * time.Second
	pullSilence   = 2 * time.Second // between two heartbeats of an idle consumer
	ackWait       = time.Minute     // after which the server redelivers a message
	firstPause    = 50 * time.Millisecond
	lastPause     = 30 * time.Second
)

// SubscriberConfig configures a Subscriber.
type SubscriberConfig struct {
	JS     jetstream.JetStream
	Stream string // work-queue retention
	// Lane returns the lane of a message; nil: one lane for all.
	Lane func(*message.Message) string
	// Owner returns the owner of a message. Each owner gets a part of the concurrent
	// deliveries, so that none uses all; nil: one owner for all.
	Owner func(*message.Message) string
	// Pause returns the wait after the nth nack of a message; nil: 50 ms, doubled up to 30 s.
	Pause  func(n int) time.Duration
	Logger *slog.Logger
}

// Subscriber is a Watermill subscriber over a work-queue stream of JetStream. A
// topic is a subject of the stream, with wildcards.
//
// Messages are delivered in the order of the stream within their lane, one at
// a time; lanes are processed concurrently. A nacked message is
// redelivered after a pause, and blocks its lane until it is acknowledged. If
// 50,000 messages wait behind such ones, the others wait too.
//
// Only one process at a time may subscribe to a topic. A subscription recreates its
// consumer at its start and whenever a connection or the consumer was
// lost, so that all unacknowledged messages are delivered again in stream order;
// messages that were acknowledged shortly before may be delivered again too.
type Subscriber struct {
	cfg  SubscriberConfig
	log  *slog.Logger
	life context.Context
	end  context.CancelFunc

	mu   sync.Mutex // guards done and work.Add
	done bool
	work sync.WaitGroup
}

var _ message.Subscriber = (*Subscriber)(nil)

// NewSubscriber creates a Subscriber. Close ends its subscriptions.
func NewSubscriber(cfg SubscriberConfig) *Subscriber {
	if cfg.Lane == nil {
		cfg.Lane = func(*message.Message) string { return "" }
	}
	if cfg.Owner == nil {
		cfg.Owner = func(*message.Message) string { return "" }
	}
	if cfg.Pause == nil {
		cfg.Pause = func(n int) time.Duration { return min(firstPause<<min(n-1, 20), lastPause) }
	}
	s := &Subscriber{cfg: cfg, log: cfg.Logger.With("stream", cfg.Stream)}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// Subscribe delivers the messages of a topic until ctx ends or the Subscriber
// is closed, which closes the channel. It retries forever while the stream is
// unreachable.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done {
		return nil, errors.New("bus: the subscriber is closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	out := make(chan *message.Message)
	s.work.Go(func() {
		defer close(out)
		defer cancel()
		defer stop()
		for pause := firstPause; ctx.Err() == nil; pause = min(2*pause, time.Second) {
			began := time.Now()
			err := s.session(ctx, topic, out)
			if ctx.Err() != nil {
				return
			}
			s.log.Warn("consumer lost; resubscribing", "topic", topic, "err", err)
			if time.Since(began) > lastPause {
				pause = firstPause
			}
			sleep(ctx, pause)
		}
	})
	return out, nil
}

// Close ends every subscription. Unacknowledged messages are delivered again
// to the next subscriber.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.done = true
	s.mu.Unlock()
	s.end()
	s.work.Wait()
	return nil
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// item is a received message that is not acknowledged.
type item struct {
	seq        uint64
	reply      string           // reply subject of its acknowledgement
	ownerSlots chan struct{}    // semaphore: one token per message of its owner in delivery
	msg        *message.Message // nil: read before its delivery
	tries      int
}

// session is the lifetime of one consumer.
type session struct {
	*Subscriber
	topic      string
	out        chan<- *message.Message
	stream     jetstream.Stream
	conn       *nats.Conn
	ctx        context.Context // context of the subscription: its end cancels the delivered messages
	sessionCtx context.Context // done with ctx, or when the consumer is lost: nothing more is delivered

	activeLanes   chan struct{} // semaphore: one token per lane with a message to deliver
	heldItems     chan struct{} // semaphore: one token per item
	deliverySlots chan struct{} // semaphore: one token per message in delivery
	work          sync.WaitGroup

	mu     sync.Mutex
	items  map[uint64]*item   // by sequence
	lanes  map[string][]*item // in order; lanes without items are removed
	owners map[string]chan struct{}
	last   uint64 // sequence of the last received message
}

// session creates the consumer and delivers messages until it is lost or ctx ends. It returns
// after all delivered messages were acknowledged or nacked.
func (s *Subscriber) session(ctx context.Context, topic string, out chan<- *message.Message) error {
	conn := s.cfg.JS.Conn()
	lost := conn.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer conn.RemoveStatusListener(lost)
	consumer, stream, err := s.consumer(ctx, topic)
	if err != nil {
		return err
	}
	sessionCtx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	u := &session{
		Subscriber: s, topic: topic, out: out, stream: stream, conn: conn, ctx: ctx, sessionCtx: sessionCtx,
		activeLanes: make(chan struct{}, maxLanes), heldItems: make(chan struct{}, maxHeld), deliverySlots: make(chan struct{}, maxInDelivery),
		items: map[uint64]*item{}, lanes: map[string][]*item{}, owners: map[string]chan struct{}{},
	}
	u.work.Go(func() {
		tick := time.NewTicker(ackWait / 3)
		defer tick.Stop()
		for {
			select {
			case <-sessionCtx.Done():
				return
			case <-lost:
				stop(nats.ErrDisconnected)
				return
			case <-tick.C:
				u.keepAlive()
			}
		}
	})
	err = u.receive(consumer)
	stop(err)
	u.work.Wait()
	return cmp.Or(context.Cause(sessionCtx), err)
}

// consumer recreates the consumer, which starts at the first message of the stream.
func (s *Subscriber) consumer(ctx context.Context, topic string) (jetstream.Consumer, jetstream.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, streams.AckTimeout)
	defer cancel()
	stream, err := s.cfg.JS.Stream(ctx, s.cfg.Stream)
	if err != nil {
		return nil, nil, fmt.Errorf("looking up stream %s: %w", s.cfg.Stream, err)
	}
	name := "reader_" + strings.NewReplacer(".", "_", "*", "any", ">", "all").Replace(topic)
	if err := stream.DeleteConsumer(ctx, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		return nil, nil, fmt.Errorf("deleting the previous consumer: %w", err)
	}
	consumer, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{
		Durable: name, FilterSubject: topic, DeliverPolicy: jetstream.DeliverAllPolicy, AckPolicy: jetstream.AckExplicitPolicy,
		AckWait: ackWait, MaxAckPending: -1, MaxDeliver: -1,
		MemoryStorage: true, // its position is worthless afterwards
	})
	if err != nil {
		return nil, nil, fmt.Errorf("creating the consumer: %w", err)
	}
	return consumer, stream, nil
}

// errGap means that a delivery was lost; its redelivery would come after
// later messages of its lane.
var errGap = errors.New("a delivery is missing")

// receive receives messages until the consumer is lost or the session ends.
func (u *session) receive(consumer jetstream.Consumer) error {
	messages, err := consumer.Messages(jetstream.PullMaxMessages(pullBatch),
		jetstream.PullExpiry(pullExpiry), jetstream.PullHeartbeat(pullSilence))
	if err != nil {
		return fmt.Errorf("requesting messages: %w", err)
	}
	defer messages.Stop()
	for delivery := uint64(1); ; delivery++ {
		if !u.acquire(u.activeLanes) || !u.acquire(u.heldItems) {
			return nil
		}
		m, err := messages.Next(jetstream.NextContext(u.sessionCtx))
		if err != nil {
			return fmt.Errorf("waiting for messages: %w", err)
		}
		at, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("reading the position of a message: %w", err)
		}
		if at.Sequence.Consumer != delivery {
			return errGap
		}
		u.enqueue(at.Sequence.Stream, m)
	}
}

// take acquires a token of a semaphore. It returns false if the session has ended.
func (u *session) acquire(semaphore chan<- struct{}) bool {
	select {
	case semaphore <- struct{}{}:
		return true
	case <-u.sessionCtx.Done():
		return false
	}
}

// enqueue appends a message to its lane. Sequences arrive in order, so a lower one is a
// redelivery: the message is still in its lane, or it is done and its acknowledgement was lost.
func (u *session) enqueue(seq uint64, m jetstream.Msg) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if seq <= u.last {
		if it := u.items[seq]; it != nil {
			it.reply = m.Reply()
		} else {
			u.ack(m.Reply(), ackBody)
		}
		<-u.activeLanes
		<-u.heldItems
		return
	}
	u.last = seq
	it := &item{seq: seq, reply: m.Reply(), msg: newMessage(m.Subject(), seq, m.Headers(), m.Data())}
	name, owner := u.cfg.Lane(it.msg), u.cfg.Owner(it.msg)
	if u.owners[owner] == nil {
		u.owners[owner] = make(chan struct{}, maxPerOwner)
	}
	it.ownerSlots = u.owners[owner]
	u.items[seq] = it
	if behind := len(u.lanes[name]) > 0; behind {
		it.msg = nil
		<-u.activeLanes
	} else {
		u.work.Go(func() { u.run(name) })
	}
	u.lanes[name] = append(u.lanes[name], it)
}

// run delivers the messages of a lane until it is empty or the session ends.
func (u *session) run(name string) {
	room := true // whether the lane has a token of u.activeLanes
	defer func() {
		if room {
			<-u.activeLanes
		}
	}()
	for it := u.next(name, nil); it != nil; it = u.next(name, it) {
		for {
			select {
			case it.ownerSlots <- struct{}{}:
			default: // yield to other lanes
				if room {
					room = false
					<-u.activeLanes
				}
				it.msg = nil
				if !u.acquire(it.ownerSlots) {
					return
				}
			}
			pause, done := u.deliver(it)
			<-it.ownerSlots
			if done {
				break
			}
			if room { // return the token
				room = false
				<-u.activeLanes
			}
			sleep(u.sessionCtx, pause)
			if u.sessionCtx.Err() != nil {
				return
			}
		}
	}
}

// next removes the completed message from its lane. It returns the next one, or nil if there is
// none.
func (u *session) next(name string, done *item) *item {
	u.mu.Lock()
	defer u.mu.Unlock()
	lane := u.lanes[name]
	if done != nil {
		delete(u.items, done.seq)
		lane[0], lane = nil, lane[1:]
		u.lanes[name] = lane
		<-u.heldItems
	}
	if len(lane) == 0 {
		delete(u.lanes, name)
		return nil
	}
	return lane[0]
}

// deliver delivers a message once. It reports whether the message is done, or how long to wait
// before the next delivery.
func (u *session) deliver(it *item) (pause time.Duration, done bool) {
	if !u.acquire(u.deliverySlots) {
		return 0, false
	}
	defer func() { <-u.deliverySlots }()
	w := it.msg
	it.msg = nil
	if w == nil {
		var err error
		if w, err = u.read(it.seq); errors.Is(err, jetstream.ErrMsgNotFound) {
			return 0, true // another caller removed it
		} else if err != nil {
			u.log.Warn("message of a queue cannot be read", "seq", it.seq, "err", err)
			return time.Second, false
		}
	}
	ctx, cancel := context.WithCancel(u.ctx)
	defer cancel()
	w.SetContext(ctx)
	it.tries++
	w.Metadata[deliveredMetadata] = strconv.Itoa(it.tries)
	select {
	case u.out <- w:
	case <-u.sessionCtx.Done():
		return 0, false
	}
	select {
	case <-w.Acked():
		u.mu.Lock()
		defer u.mu.Unlock()
		u.ack(it.reply, ackBody)
		return 0, true
	case <-w.Nacked():
		after, _ := time.ParseDuration(w.Metadata[afterMetadata])
		return max(u.cfg.Pause(it.tries), after), false
	case <-u.ctx.Done():
		return 0, false
	}
}

// read reads a message of the stream.
func (u *session) read(seq uint64) (*message.Message, error) {
	ctx, cancel := context.WithTimeout(u.sessionCtx, streams.AckTimeout)
	defer cancel()
	m, err := u.stream.GetMsg(ctx, seq)
	if err != nil {
		return nil, err
	}
	return newMessage(m.Subject, seq, m.Header, m.Data), nil
}

// The acknowledgements of a message, sent to its reply subject.
var (
	ackBody      = []byte("+ACK")
	progressBody = []byte("+WPI")
)

// ack sends an acknowledgement. If it is lost, the redelivery is detected by its sequence.
func (u *session) ack(reply string, what []byte) {
	if err := u.conn.Publish(reply, what); err != nil {
		u.log.Debug("message of a queue not acknowledged", "err", err)
	}
}

// keepAlive tells the server periodically that the messages are in progress.
func (u *session) keepAlive() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, it := range u.items {
		u.ack(it.reply, progressBody)
	}
}

// newMessage converts a message for Watermill: the first value of each header, and the
// metadata.
func newMessage(subject string, seq uint64, h nats.Header, data []byte) *message.Message {
	position := strconv.FormatUint(seq, 10)
	w := message.NewMessage(cmp.Or(h.Get("ce-id"), h.Get(commandHeader), position), data)
	for name, values := range h {
		if len(values) > 0 {
			w.Metadata[name] = values[0]
		}
	}
	delete(w.Metadata, afterMetadata)
	w.Metadata[subjectMetadata], w.Metadata[sequenceMetadata] = subject, position
	return w
}
