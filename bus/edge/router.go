package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/flow"
)

// maxTries is the number of deliveries of a message that fails with an internal error,
// which takes about a minute including the pauses. A message that waits for the
// service is retried forever.
const maxTries = 11

// Reader processes one of the queues, in the stored order for each flow or command target. A
// permanent failure moves the message to the dead-letter queue. A temporary failure is retried,
// and delays messages for the same target. Only one process at a time may run the reader of a
// queue, so it needs a lease.
type Reader struct {
	cfg     ReaderConfig
	log     *slog.Logger
	handled *prometheus.CounterVec
}

// ReaderConfig is the configuration of a Reader.
type ReaderConfig struct {
	Queue       Queue
	Queues      *Queues
	DeadLetters *DeadLetters
	Service     *application.Application
	Metrics     prometheus.Registerer // may be nil
	Logger      *slog.Logger
	// Pause returns the wait after the nth failure of a message; nil: 50 ms, doubled up to 30
	// s.
	Pause func(n int) time.Duration
}

// NewReader returns a Reader. Call Run.
func NewReader(cfg ReaderConfig) *Reader {
	labels := prometheus.Labels{"queue": string(cfg.Queue)}
	r := &Reader{cfg: cfg, log: cfg.Logger.With("queue", cfg.Queue), handled: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_queue_handled_total", ConstLabels: labels,
		Help: "Queue messages handled: ok, retried or poisoned (dead-lettered), by error code.",
	}, []string{"outcome", "code"})}
	r.handled.WithLabelValues("ok", "")
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(r.handled,
			waiting("credstream_queue_messages", "Messages waiting in a queue.", labels, cfg.Queues, cfg.Queue.layout().stream))
	}
	return r
}

// Run reads until ctx ends, and then waits for the messages in progress. It may be called
// again.
func (r *Reader) Run(ctx context.Context) error {
	// Watermill logs every error of a handler, which is logged already.
	logger := watermill.NewSlogLoggerWithLevelMapping(r.log, map[slog.Level]slog.Level{
		slog.LevelError: slog.LevelDebug, slog.LevelInfo: slog.LevelDebug,
	})
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: grace + streams.AckTimeout}, logger)
	if err != nil {
		return fmt.Errorf("creating the router: %w", err)
	}
	router.AddMiddleware(r.ackOrDeadLetter, r.recoverer)
	where := r.cfg.Queue.layout()
	subscriber := NewSubscriber(SubscriberConfig{
		JS: r.cfg.Queues.js, Stream: where.stream, Lane: r.lane, Owner: r.owner, Pause: r.cfg.Pause, Logger: r.log,
	})
	topic := where.storedPrefix + ">"
	if r.cfg.Queue == Flows {
		err = r.handleFlows(router, subscriber, topic, logger)
	} else {
		router.AddConsumerHandler("commands", topic, subscriber, r.execute)
	}
	if err != nil {
		return err
	}
	if err := router.Run(ctx); err != nil {
		return fmt.Errorf("reading the queue of %s: %w", r.cfg.Queue, err)
	}
	return nil
}

// queued is the decoded header of a message in a queue.
type queued struct {
	tenant  string
	name    string // ce-type, or the command
	target  string // the flow; "" for a command
	id      string // ce-id, or the command id
	subject string // subject to which it was published
	actor   string // id of the key that published it
	size    int    // size of the published message
	sum     string // SHA-256 of the published message in hex
}

// errForeign rejects a message that this service did not publish to the queue.
var errForeign = fault.New(fault.Invalid, "queue_message_foreign", "The message in the queue was not published by this service.")

// open decodes the headers that the intake has set.
func (r *Reader) open(msg *message.Message) (queued, error) {
	q := queued{actor: msg.Metadata[actorHeader], sum: msg.Metadata[sumHeader]}
	subject, _ := unsized(msg.Metadata[subjectMetadata])
	rest, ok := strings.CutPrefix(subject, r.cfg.Queue.layout().storedPrefix)
	tenant, last, _ := strings.Cut(rest, ".")
	if !ok || events.CheckName(tenant) != nil {
		return q, errForeign
	}
	q.tenant, q.subject = tenant, r.cfg.Queue.layout().publicPrefix+rest
	var err1, err2 error
	if r.cfg.Queue == Flows {
		q.name, q.id = msg.Metadata["ce-type"], msg.Metadata["ce-id"]
		q.target, err1 = events.ParseToken(last)
	} else {
		q.name, q.id = last, msg.Metadata[commandHeader]
	}
	q.size, err2 = strconv.Atoi(msg.Metadata[sizeHeader])
	if err1 != nil || err2 != nil || !events.Plain(q.actor) || !flow.PrintableID(q.id) || len(q.sum) != 64 || !r.knows(q.name) {
		return q, errForeign
	}
	return q, nil
}

// knows reports whether the flow event or command exists.
func (r *Reader) knows(name string) bool {
	if r.cfg.Queue == Commands {
		return safeName(name) != "" // the service validates the command name
	}
	change, ok := strings.CutPrefix(name, "flow.")
	return ok && slices.Contains(flowChanges, events.FlowChange(change))
}

var flowChanges = []events.FlowChange{
	events.FlowWasCreated, events.FlowWasUpdated, events.FlowWasStarted, events.FlowWasStopped, events.FlowWasDeleted,
}

// lane returns the key of messages that are processed in order: the flow or the target.
func (r *Reader) lane(msg *message.Message) string {
	q, err := r.open(msg)
	if err != nil || r.cfg.Queue == Flows {
		subject, _ := unsized(msg.Metadata[subjectMetadata])
		return subject
	}
	return admin.QueueLane(q.tenant, q.name, q.id, msg.Payload)
}

// owner returns the tenant: slow targets of one tenant leave capacity for the others.
func (r *Reader) owner(msg *message.Message) string {
	q, err := r.open(msg)
	if err != nil {
		return ""
	}
	return q.tenant
}

// queuedKey is the context key of a message's queued.
type queuedKey struct{}

// errAgain is the only error that Watermill gets: it redelivers the message.
var errAgain = errors.New("message will be redelivered")

// ackOrDeadLetter is the middleware that acknowledges a message, schedules a retry, or moves it
// to the dead-letter queue. Unlike Watermill's own middleware it stores only public text.
func (r *Reader) ackOrDeadLetter(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) ([]*message.Message, error) {
		q, err := r.open(msg)
		ours := err == nil
		if ours {
			msg.SetContext(context.WithValue(msg.Context(), queuedKey{}, q))
			_, err = next(msg)
			ours = !errors.Is(err, errForeign)
		}
		if err == nil {
			r.handled.WithLabelValues("ok", "").Inc()
			return nil, nil
		}
		if msg.Context().Err() != nil { // cancelled: the next reader starts with this message
			return nil, errAgain
		}
		f := fault.Of(err)
		tries, _ := strconv.Atoi(msg.Metadata[deliveredMetadata])
		log := r.log.With("tenant", q.tenant, "seq", msg.Metadata[sequenceMetadata], "id", q.id, "try", tries, "code", f.Code)
		if !retryable(f, tries) {
			if err = r.deadLetter(msg, q, ours, f); err == nil {
				r.handled.WithLabelValues("poisoned", f.Code).Inc()
				return nil, nil
			}
			f = fault.Of(err)
		}
		if f.Kind == fault.Internal {
			log = log.With("err", err)
		}
		log.Warn("message will be retried")
		r.handled.WithLabelValues("retried", f.Code).Inc()
		if f.RetryAfter > 0 {
			msg.Metadata[afterMetadata] = min(f.RetryAfter, lastPause).String()
		}
		return nil, errAgain
	}
}

// retryable reports whether a retry may succeed.
func retryable(f *fault.Error, tries int) bool {
	switch f.Kind {
	case fault.Conflict, fault.Throttled, fault.Unavailable:
		return true
	case fault.Internal:
		return tries < maxTries
	}
	return false
}

// deadLetter moves a message to the dead-letter queue, durably. ours is false for a message that
// this service did not publish: only its subject, size and hash are stored. The content of a
// command that the current version would refuse is not stored either.
func (r *Reader) deadLetter(msg *message.Message, q queued, ours bool, f *fault.Error) error {
	keepContent := ours && (r.cfg.Queue == Flows || r.cfg.Service.Admin.MayKeep(q.name, msg.Payload) == nil)
	e := deadLetter{DeadLetter: admin.DeadLetter{Queue: string(r.cfg.Queue), Kept: keepContent}}
	if ours {
		e.Name, e.Subject, e.Actor, e.Size, e.SHA256 = q.name, q.subject, "key:"+q.actor, q.size, q.sum
		if r.cfg.Queue == Flows {
			e.EventID = q.id
		} else {
			e.CommandID = q.id
		}
	} else {
		e.Subject, e.Size, e.SHA256 = msg.Metadata[subjectMetadata], len(msg.Payload), hexSum(msg.Payload)
	}
	if keepContent {
		e.Origin = &origin{Subject: msg.Metadata[subjectMetadata], Header: map[string]string{}, Data: msg.Payload}
		for name, value := range msg.Metadata {
			switch name {
			case subjectMetadata, sequenceMetadata, deliveredMetadata, afterMetadata:
			default:
				e.Origin.Header[name] = value
			}
		}
	}
	setReason(&e.DeadLetter, f)
	tenant := q.tenant
	if tenant == "" {
		tenant = events.System // the message has no tenant
	}
	sent, err := r.cfg.DeadLetters.send(msg.Context(), tenant, e)
	if err != nil {
		return err
	}
	_, _, err = sent.Wait(msg.Context())
	return err
}

// errPanic replaces a panic, whose value and stack may hold secrets.
var errPanic = errors.New("message handler panicked")

// recoverer is the middleware that turns a panic into an error. It logs the
// location, and nothing of the message.
func (r *Reader) recoverer(next message.HandlerFunc) message.HandlerFunc {
	return func(msg *message.Message) (out []*message.Message, err error) {
		defer func() {
			v := recover()
			if v == nil {
				return
			}
			r.log.Error("message handler panicked", "seq", msg.Metadata[sequenceMetadata], "kind", fmt.Sprintf("%T", v), "at", panickedAt())
			out, err = nil, errPanic
		}()
		return next(msg)
	}
}

// panickedAt is the function and line of the panic that is being recovered from.
func panickedAt() string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	panicked := false
	for {
		f, more := frames.Next()
		if panicked && !strings.HasPrefix(f.Function, "runtime.") {
			return fmt.Sprintf("%s:%d", f.Function, f.Line)
		}
		panicked = panicked || f.Function == "runtime.gopanic"
		if !more {
			return ""
		}
	}
}

// call returns the call of a message on behalf of the key that published it, if that key is
// still valid.
func (r *Reader) call(msg *message.Message) (service.Call, queued, error) {
	q, _ := msg.Context().Value(queuedKey{}).(queued) // set by ackOrDeadLetter
	p, err := r.cfg.Service.Access.Principal(msg.Context(), q.actor)
	return service.Call{
		Tenant: q.tenant, Principal: p, Via: "nats", Causation: q.id, Correlation: msg.Metadata[correlationHeader],
	}, q, err
}

// execute executes a queued command. A repeat is detected by its id.
func (r *Reader) execute(msg *message.Message) error {
	call, q, err := r.call(msg)
	if err != nil {
		return err
	}
	call.CommandID = q.id
	_, err = r.cfg.Service.Serve(msg.Context(), call, q.name, msg.Payload)
	return err
}

// handleFlows adds a handler for each type of flow event.
func (r *Reader) handleFlows(router *message.Router, subscriber message.Subscriber, topic string, logger watermill.LoggerAdapter) error {
	processor, err := cqrs.NewEventGroupProcessorWithConfig(router, cqrs.EventGroupProcessorConfig{
		GenerateSubscribeTopic: func(cqrs.EventGroupProcessorGenerateSubscribeTopicParams) (string, error) { return topic, nil },
		SubscriberConstructor: func(cqrs.EventGroupProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return subscriber, nil
		},
		Marshaler: flowMarshaler{},
		Logger:    logger,
	})
	if err != nil {
		return fmt.Errorf("creating the event processor: %w", err)
	}
	var handlers []cqrs.GroupEventHandler
	for _, change := range flowChanges {
		handlers = append(handlers, flowHandler{r, change})
	}
	if err := processor.AddHandlersGroup("flows", handlers...); err != nil {
		return fmt.Errorf("adding the handlers of flow events: %w", err)
	}
	return nil
}

// flowHandler handles flow events of one type.
type flowHandler struct {
	r      *Reader
	change events.FlowChange
}

// NewEvent implements cqrs.GroupEventHandler.
func (h flowHandler) NewEvent() any { return &flow.Event{Change: h.change} }

// Handle implements cqrs.GroupEventHandler.
func (h flowHandler) Handle(ctx context.Context, e any) error {
	call, _, err := h.r.call(cqrs.OriginalMessageFromCtx(ctx))
	if err != nil {
		return err
	}
	return h.r.cfg.Service.Flows.ObserveFlow(ctx, call, *e.(*flow.Event))
}

// flowMarshaler reads flow events from CloudEvents in binary mode.
type flowMarshaler struct{}

var errOnlyRead = errors.New("bus: flow events are read-only")

// Marshal implements cqrs.CommandEventMarshaler.
func (flowMarshaler) Marshal(any) (*message.Message, error) { return nil, errOnlyRead }

// Name implements cqrs.CommandEventMarshaler: the type of the CloudEvent.
func (flowMarshaler) Name(v any) string { return v.(*flow.Event).Type() }

// NameFromMessage implements cqrs.CommandEventMarshaler.
func (flowMarshaler) NameFromMessage(msg *message.Message) string { return msg.Metadata["ce-type"] }

// Unmarshal implements cqrs.CommandEventMarshaler. The intake stores only valid
// messages, so an invalid one is foreign.
func (flowMarshaler) Unmarshal(msg *message.Message, v any) error {
	q, _ := msg.Context().Value(queuedKey{}).(queued) // set by ackOrDeadLetter
	e, err := flow.ParseFlowEvent(q.name, "", q.target, msg.Payload)
	if err != nil {
		return errForeign
	}
	*v.(*flow.Event) = e
	return nil
}
