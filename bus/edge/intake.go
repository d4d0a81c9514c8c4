package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/flow"
)

// The bounds of messages that wait to be stored. A publisher may send many messages
// before they are acknowledged, and gets an error when there are too many.
const (
	maxInbound      = 4096     // messages of one key
	maxInboundBytes = 64 << 20 // of all keys; one key may use all of it
	inboundLine     = 16 << 20 // received but unprocessed bytes, by queue
)

// refusalDelay delays the refusal of a publisher that sends too much. Otherwise a
// publisher that repeats each refused message immediately would keep the processors
// busy with refusals, and other tenants waiting.
const refusalDelay = time.Second

// refusalCode is added to the HTTP status to form the err_code of a refusal: 20400 for an
// invalid message, 20403 for a missing permission.
const refusalCode = 20_000

// errTooLarge is the service's error with the limit of a queue.
var errTooLarge = service.ErrBodyTooLarge.Withf("A message for a queue is limited to %d KiB.", maxQueued>>10)

// Intake receives flow events and queued commands. They are published as if to
// a stream, but to endpoints of the service, which validates them, stores them, and
// replies with a JetStream PubAck when they are durable. Without a
// running service the server reports "no responders" to the publisher. As with a stream, a flow
// event without a reply subject is stored too, without an acknowledgement; a
// command without one is dropped and counted. A header that requests an unsupported
// stream feature is refused.
//
// Messages from one connection to one queue through one process
// are stored in the order in which they were published.
type Intake struct {
	cfg        IntakeConfig
	log        *slog.Logger
	seen       *prometheus.CounterVec
	unanswered *prometheus.CounterVec

	mu    sync.Mutex
	bytes int64 // bytes in the lines
	lines map[source]*line
	delay time.Duration // delay of a refusal for too many messages

	subs    []*nats.Subscription
	life    context.Context
	end     context.CancelFunc
	answers sync.WaitGroup
}

// IntakeConfig is the configuration of an Intake.
type IntakeConfig struct {
	Conn          *nats.Conn // may only publish to reply subjects, like that of Endpoints
	Caller        func(nats.Header) (principal string, ok bool)
	Service       *application.Application
	Queues        *Queues
	DeadLetters   *DeadLetters
	WritesAllowed func() error // optional: messages are refused while it returns an error
	Metrics       prometheus.Registerer
	Logger        *slog.Logger
}

// ServeIntake starts to receive messages. Close stops it.
func ServeIntake(cfg IntakeConfig) (*Intake, error) {
	in := &Intake{
		cfg: cfg, log: cfg.Logger, lines: map[source]*line{}, delay: refusalDelay,
		seen: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_intake_messages_total",
			Help: "Messages published to a queue: stored, duplicate, poisoned (dead-lettered), refused or dropped, by error code.",
		}, []string{"queue", "outcome", "code"}),
		unanswered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_intake_unanswered_total",
			Help: "Messages published to a queue without a reply subject: their publishers get no acknowledgement.",
		}, []string{"queue"}),
	}
	for _, q := range []Queue{Flows, Commands} {
		in.seen.WithLabelValues(string(q), "stored", "")
		in.seen.WithLabelValues(string(q), "duplicate", "")
		for _, reason := range dropReasons {
			in.seen.WithLabelValues(string(q), "dropped", reason)
		}
		in.unanswered.WithLabelValues(string(q))
	}
	in.life, in.end = context.WithCancel(context.Background())
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(in.seen, in.unanswered)
	}
	for subject, q := range map[string]Queue{
		streams.FlowsPublicPrefix + "*.>": Flows, streams.FlowsPublicPrefix + "*": Flows, // without a tenant, so it goes to the dead-letter queue
		streams.QueuePublicPrefix + "*.>": Commands,
	} {
		sub, err := cfg.Conn.QueueSubscribe(subject, "credstream", in.receive(q))
		if err == nil {
			in.subs = append(in.subs, sub)
			err = sub.SetPendingLimits(-1, inboundLine)
		}
		if err != nil {
			in.Close()
			return nil, fmt.Errorf("listening for %s: %w", q, err)
		}
	}
	if err := cfg.Conn.Flush(); err != nil {
		in.Close()
		return nil, fmt.Errorf("listening for messages: %w", err)
	}
	return in, nil
}

// Close stops receiving messages, stores and acknowledges the received ones, and
// cancels that after one second.
func (in *Intake) Close() {
	cut := time.AfterFunc(grace, in.end)
	defer cut.Stop()
	for _, sub := range in.subs {
		closed := sub.StatusChanged(nats.SubscriptionClosed)
		if sub.Drain() != nil {
			continue // the connection is closed
		}
		select {
		case <-closed:
		case <-in.life.Done():
		}
	}
	in.answers.Wait()
	in.end()
}

// source identifies messages whose order is preserved.
type source struct {
	queue     Queue
	principal string
}

// line holds the messages of a source that wait to be stored.
type line struct {
	messages []*nats.Msg
	bytes    int64
	taken    int  // 1 while drain publishes a message
	refused  int  // messages whose refusal is delayed
	draining bool // until messages is empty
}

// receive appends messages to the lines of their sources. It never blocks, so publishers do not
// delay each other.
func (in *Intake) receive(q Queue) nats.MsgHandler {
	return func(m *nats.Msg) {
		principal, drop := sender(m.Reply, m.Header, in.cfg.Caller, q == Flows)
		if drop != "" {
			in.seen.WithLabelValues(string(q), "dropped", drop).Inc()
			return
		}
		if m.Reply == "" {
			in.unanswered.WithLabelValues(string(q)).Inc()
		}
		from := source{q, principal}
		if !in.queue(from, m) {
			in.refuse(q, m, admission.ErrBusy)
		}
	}
}

// queue appends a message to the line of its source. It returns false if the line is full.
func (in *Intake) queue(from source, m *nats.Msg) bool {
	size := int64(len(m.Data))
	in.mu.Lock()
	defer in.mu.Unlock()
	l := in.lines[from]
	if l == nil {
		l = &line{}
		in.lines[from] = l
	} else if len(l.messages)+l.taken+l.refused >= maxInbound || len(l.messages) > 0 && l.bytes+size > maxInboundBytes-in.bytes {
		return false
	}
	if !l.draining {
		l.draining = true
		in.answers.Go(func() { in.drain(from, l) })
	}
	l.messages = append(l.messages, m)
	l.bytes += size
	in.bytes += size
	return true
}

// next removes the first message of a line; nil if there is none, which ends draining.
func (in *Intake) next(from source, l *line) *nats.Msg {
	in.mu.Lock()
	defer in.mu.Unlock()
	l.taken = 0
	if len(l.messages) == 0 {
		l.draining = false
		in.leave(from, l)
		return nil
	}
	l.taken = 1
	m := l.messages[0]
	l.messages[0], l.messages = nil, l.messages[1:]
	l.bytes -= int64(len(m.Data))
	in.bytes -= int64(len(m.Data))
	return m
}

// leave removes a line without messages.
func (in *Intake) leave(from source, l *line) {
	if !l.draining && l.refused == 0 {
		delete(in.lines, from)
	}
}

// refuseOf refuses a message that was removed from a line. If the publisher sends too much, the
// refusal is delayed, and the message counts in the line until then. published says that drain has
// published the message, and may be taking the next one.
func (in *Intake) refuseOf(from source, l *line, m *nats.Msg, err error, published bool) {
	if fault.Of(err).Kind != fault.Throttled {
		in.refuse(from.queue, m, err)
		return
	}
	m.Header, m.Data = nil, nil
	in.mu.Lock()
	l.refused++
	if !published {
		l.taken = 0
	}
	delay := in.delay
	in.mu.Unlock()
	in.answers.Go(func() {
		sleep(in.life, delay)
		in.mu.Lock()
		l.refused--
		in.leave(from, l)
		in.mu.Unlock()
		in.refuse(from.queue, m, err)
	})
}

// drain stores the messages of a line one after the other, in order. Other goroutines wait for
// their durability.
func (in *Intake) drain(from source, l *line) {
	for m := in.next(from, l); m != nil; m = in.next(from, l) {
		ctx, cancel := context.WithTimeout(in.life, streams.AckTimeout)
		r, wrong, leave, err := in.take(ctx, from, m)
		if err != nil {
			leave()
			cancel()
			in.refuseOf(from, l, m, err, false)
			continue
		}
		in.answers.Go(func() {
			defer cancel()
			defer leave()
			seq, duplicate, err := r.Wait(ctx)
			switch {
			case err != nil:
				in.refuseOf(from, l, m, err, true)
			case wrong != nil:
				in.count(from.queue, "poisoned", wrong.Code, duplicate)
				in.reject(m, events.NewID(), wrong.With(deadLetterDetails{strconv.FormatUint(seq, 10)}))
			default:
				in.count(from.queue, "stored", "", duplicate)
				in.answer(m, nil, answer{Stream: r.Stream, Seq: seq, Duplicate: duplicate})
			}
		})
	}
}

// count counts a stored message, unless it is stored already.
func (in *Intake) count(q Queue, outcome, code string, duplicate bool) {
	if duplicate {
		outcome = "duplicate"
	}
	in.seen.WithLabelValues(string(q), outcome, code).Inc()
}

// take publishes a message to its stream or, with the error that its publisher gets, to the
// dead-letter queue. leave ends its admission.
func (in *Intake) take(ctx context.Context, from source, m *nats.Msg) (r streams.Receipt, wrong *fault.Error, leave func(), err error) {
	leave = func() {}
	if in.cfg.WritesAllowed != nil {
		if err := in.cfg.WritesAllowed(); err != nil {
			return r, nil, leave, err
		}
	}
	if err := checkStreamHeaders(from.queue, m.Header); err != nil {
		return r, nil, leave, err
	}
	tenant, name, _ := strings.Cut(strings.TrimPrefix(m.Subject, from.queue.layout().publicPrefix), ".")
	p, err := in.cfg.Service.Access.Principal(ctx, from.principal)
	if err != nil {
		return r, nil, leave, err
	}
	call := service.Call{Tenant: tenant, Principal: p, Via: "nats"}
	entered, err := in.cfg.Service.ReceiveMessage(ctx, &call, int64(len(m.Data)))
	if err != nil {
		return r, nil, leave, err
	}
	if from.queue == Flows {
		r, wrong, err = in.takeFlow(ctx, call, m, name)
	} else {
		r, err = in.takeCommand(ctx, call, m, name)
	}
	return r, wrong, entered, err
}

// ErrStreamHeader refuses a message with a header that requests a stream feature that the
// queues do not support.
var ErrStreamHeader = fault.New(fault.Invalid, "queue_header_unsupported",
	"A header requests a JetStream feature that this queue does not support.")

// unsupported has the prefixes of such headers.
var unsupported = []string{
	"Nats-Expected-", "Nats-TTL", "Nats-Rollup", "Nats-Batch-", "Nats-Schedule", "Nats-Incr", "Nats-Counter-", "Nats-Required-Api-Level",
}

// checkStreamHeaders refuses headers that would be acknowledged but ignored. It accepts
// Nats-Expected-Stream with the queue's own stream.
func checkStreamHeaders(q Queue, h nats.Header) error {
	for name, values := range h {
		if name == jetstream.ExpectedStreamHeader && slices.Equal(values, []string{q.layout().stream}) {
			continue
		}
		for _, prefix := range unsupported {
			if len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
				return ErrStreamHeader.Withf("This queue does not support the header %s. Publish without it.", prefix)
			}
		}
	}
	return nil
}

// takeFlow stores the parsed part of a flow event. If it cannot be parsed, it stores a dead letter
// without content and returns the reason in rejected. It refuses an event that the caller may not
// send.
func (in *Intake) takeFlow(ctx context.Context, call service.Call, m *nats.Msg, token string) (r streams.Receipt, rejected *fault.Error, err error) {
	noTenant := token == "" // the subject names no tenant or, for a caller with access to all, one that does not exist
	if noTenant {
		call.Tenant = call.Principal.Home
	}
	err = in.cfg.Service.Flows.AdmitFlowEvent(ctx, call)
	if errors.Is(err, service.ErrTenantNotFound) && !noTenant && call.Principal.Reaches(call.Tenant) {
		noTenant, call.Tenant = true, call.Principal.Home
		err = in.cfg.Service.Flows.AdmitFlowEvent(ctx, call)
	}
	if err != nil {
		return r, nil, err
	}
	id, _ := events.ParseToken(token) // "" matches no flow
	f, wrong := flow.ReadCloudEvent(m.Header, m.Data, id)
	name := safeName(f.EventType)
	var data []byte
	if wrong == nil {
		if err = in.cfg.Service.Flows.CheckReached(ctx, call, f.Event); err != nil {
			return r, nil, err
		}
		if data, err = f.Data(); err != nil {
			return r, nil, err
		}
	}
	switch {
	case noTenant:
		wrong = service.ErrTenantNotFound
	case wrong == nil && len(data) > maxQueued:
		wrong = errTooLarge
	}
	principal := call.Principal.Actor.ID
	if wrong != nil {
		e := admin.DeadLetter{
			Queue: string(Flows), Name: name, Subject: m.Subject, EventID: f.EventID, Actor: "key:" + principal,
			Size: len(m.Data), SHA256: hexSum(m.Data),
		}
		setReason(&e, wrong)
		r, err = in.cfg.DeadLetters.send(ctx, call.Tenant, deadLetter{DeadLetter: e})
		return r, fault.Of(wrong), err
	}
	stored := nats.NewMsg(streams.FlowsStoredPrefix + call.Tenant + "." + events.Token(f.ID))
	stored.Header = nats.Header{
		"ce-specversion": {"1.0"}, "ce-id": {f.EventID}, "ce-type": {f.Type()},
		"ce-source":    {"/credstream/" + call.Tenant}, // the publisher's source is not stored
		"content-type": {"application/json"},
	}
	describe(stored.Header, principal, f.Correlation, m.Data)
	stored.Data = data
	if id := m.Header.Get(nats.MsgIdHdr); id != "" { // another event with the same id is no duplicate
		once(stored, call.Tenant, principal, f.ID, f.Type(), id, string(data))
	}
	r, err = in.cfg.Queues.send(ctx, FlowsStream, stored)
	return r, nil, err
}

// takeCommand stores a command, with encrypted keys.
func (in *Intake) takeCommand(ctx context.Context, call service.Call, m *nats.Msg, command string) (streams.Receipt, error) {
	call.CommandID, call.Correlation = m.Header.Get(nats.MsgIdHdr), m.Header.Get("X-Correlation-Id")
	body := m.Data
	if len(body) == 0 {
		body = []byte("{}")
	}
	body, err := in.cfg.Service.Admin.CheckQueued(ctx, &call, command, body)
	if err != nil {
		return streams.Receipt{}, err
	}
	if len(body) > maxQueued {
		return streams.Receipt{}, errTooLarge
	}
	stored := nats.NewMsg(streams.QueueStoredPrefix + call.Tenant + "." + command)
	stored.Header[commandHeader] = []string{call.CommandID}
	describe(stored.Header, call.Principal.Actor.ID, call.Correlation, m.Data)
	stored.Data = body
	return in.cfg.Queues.send(ctx, QueueStream, stored)
}

// answer is a JetStream publish acknowledgement, as clients parse it. Problem is an extension
// of credstream.
type answer struct {
	Error     *answerError   `json:"error,omitzero"`
	Stream    string         `json:"stream"`
	Seq       uint64         `json:"seq"`
	Duplicate bool           `json:"duplicate,omitzero"`
	Problem   *fault.Problem `json:"problem,omitzero"`
}

// deadLetterDetails are the details of the refusal of a message that is in the dead-letter queue.
type deadLetterDetails struct {
	ID string `json:"dead_letter"`
}

type answerError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

// refuse replies with the problem document of err. The message is not stored.
func (in *Intake) refuse(q Queue, m *nats.Msg, err error) {
	f, request := fault.Of(err), events.NewID()
	in.seen.WithLabelValues(string(q), "refused", f.Code).Inc()
	if !errors.Is(err, streams.ErrNotStored) && f.Kind != fault.Internal {
		in.log.Debug("message refused", "queue", q, "request", request, "code", f.Code)
	} else {
		in.log.Error("message not stored", "queue", q, "request", request, "err", err)
	}
	in.reject(m, request, f)
}

// reject replies with the problem document of f, also in the micro service's error headers.
func (in *Intake) reject(m *nats.Msg, request string, f *fault.Error) {
	problem := f.Problem()
	problem.RequestID = request
	in.answer(m, nats.Header{
		micro.ErrorHeader: {problem.Detail}, micro.ErrorCodeHeader: {strconv.Itoa(problem.Status)},
	}, answer{
		Error: &answerError{
			Code: problem.Status, ErrCode: refusalCode + problem.Status, Description: problem.Detail + " (" + problem.Code + ")",
		},
		Problem: &problem,
	})
}

// answer replies if there is a reply subject.
func (in *Intake) answer(m *nats.Msg, h nats.Header, a answer) {
	if m.Reply == "" {
		return
	}
	data, err := json.Marshal(a)
	if err == nil {
		err = in.cfg.Conn.PublishMsg(&nats.Msg{Subject: m.Reply, Header: h, Data: data})
	}
	if err != nil {
		in.log.Warn("acknowledgement not sent", "err", err)
	}
}
