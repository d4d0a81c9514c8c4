// Package edge is the NATS edge of the service: the command and query endpoints, the intake
// of flow events and queued commands, and the dead-letter queue.
package edge

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
)

// Limits of received but unprocessed requests.
const (
	maxWaiting = 1024 // requests of one endpoint
	grace      = time.Second
)

var errAnswerTooLarge = fault.New(fault.Invalid, "answer_too_large",
	"The response does not fit into one NATS message. Request a smaller page, or use HTTP.")

// Endpoints serves commands and queries over request-reply: a NATS micro service with one
// endpoint per route, so that discovery and statistics ($SRV.PING, INFO, STATS) work.
type Endpoints struct {
	conn    *nats.Conn
	service *application.Application
	caller  func(nats.Header) (principal string, ok bool)
	log     *slog.Logger
	dropped *prometheus.CounterVec

	life    context.Context
	end     context.CancelFunc
	answers sync.WaitGroup
	micro   micro.Service
	unknown []*nats.Subscription
}

// EndpointsConfig is the configuration of Endpoints.
type EndpointsConfig struct {
	Conn    *nats.Conn // may only publish to reply subjects: Node.EndpointConn
	Caller  func(nats.Header) (principal string, ok bool)
	Service *application.Application
	Version string // version of the program, three numbers
	Metrics prometheus.Registerer
	Logger  *slog.Logger
}

// Why a request is dropped.
const (
	dropReply   = "reply subject"
	dropHeaders = "headers"
	dropCaller  = "no caller"
)

var dropReasons = []string{dropReply, dropHeaders, dropCaller}

// ServeEndpoints starts the endpoints. Close stops them.
func ServeEndpoints(cfg EndpointsConfig) (*Endpoints, error) {
	e := &Endpoints{
		conn: cfg.Conn, service: cfg.Service, caller: cfg.Caller, log: cfg.Logger,
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_nats_requests_dropped_total", Help: "Requests dropped without processing, by reason.",
		}, []string{"reason"}),
	}
	service.FromZero(e.dropped, dropReasons...)
	e.life, e.end = context.WithCancel(context.Background())
	if cfg.Metrics != nil {
		cfg.Metrics.MustRegister(e.dropped)
	}
	var err error
	e.micro, err = micro.AddService(cfg.Conn, micro.Config{
		Name: "credstream", Version: cfg.Version, Description: "Commands and queries of the credential service.", QueueGroup: "credstream",
	})
	if err != nil {
		return nil, fmt.Errorf("announce the micro service: %w", err)
	}
	for _, r := range application.Routes() {
		err := e.micro.AddEndpoint(strings.ReplaceAll(r.Name, ".", "_"), e.handler(r),
			micro.WithEndpointSubject(root(r)+".*."+r.Name),
			micro.WithEndpointPendingLimits(maxWaiting, streams.MaxWaitingSize),
			micro.WithEndpointMetadata(map[string]string{"summary": r.Summary, "permission": string(r.Permission)}))
		if err != nil {
			e.Close()
			return nil, fmt.Errorf("announce %s: %w", r.Name, err)
		}
	}
	if err := e.listenUnknown(); err != nil {
		e.Close()
		return nil, fmt.Errorf("listening for unknown requests: %w", err)
	}
	return e, nil
}

// listenUnknown refuses requests for commands and queries that do not exist, to which nobody
// would respond. Its queue group is not that of the endpoints: the server delivers a message to
// one member of a group, whichever of its subjects matches.
func (e *Endpoints) listenUnknown() error {
	known := map[string]bool{}
	for _, r := range application.Routes() {
		known[root(r)+"."+r.Name] = true
	}
	for _, prefix := range []string{commandRoot, queryRoot} {
		sub, err := e.conn.QueueSubscribe(prefix+".*.>", "credstream-unknown", func(m *nats.Msg) {
			_, name, _ := strings.Cut(strings.TrimPrefix(m.Subject, prefix+"."), ".")
			if known[prefix+"."+name] {
				return
			}
			if _, drop := sender(m.Reply, m.Header, e.caller, false); drop != "" {
				e.dropped.WithLabelValues(drop).Inc()
				return
			}
			e.refuse(m.Reply, "unknown", requestID(micro.Headers(m.Header)), service.ErrRouteUnknown)
		})
		if err == nil {
			e.unknown = append(e.unknown, sub)
			err = sub.SetPendingLimits(-1, streams.MaxWaitingSize)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// First tokens of the subjects of commands and queries.
const (
	commandRoot = "credstream.cmd"
	queryRoot   = "credstream.query"
)

func root(r service.Route) string {
	if r.Command {
		return commandRoot
	}
	return queryRoot
}

// Close stops receiving requests and waits for those in progress, which it
// cancels after one second, for at most three seconds.
func (e *Endpoints) Close() {
	for _, sub := range e.unknown { // before the endpoints: a subscription that outlived them would drop requests for known routes
		_ = sub.Unsubscribe() // fails when the connection is closed
	}
	_ = e.micro.Stop() // remaining subscriptions end with the connection
	cut := time.AfterFunc(grace, e.end)
	defer cut.Stop()
	// A command that has started to change something completes by itself, but the wait for it
	// is limited.
	answered := make(chan struct{})
	go func() { e.answers.Wait(); close(answered) }()
	select {
	case <-answered:
	case <-time.After(3 * grace):
	}
	e.end()
}

// sender returns the principal of a request, or the reason why it must be dropped unread: a
// caller must not be able to make the service publish to any subject. With replyOptional, a
// request without a reply subject is accepted.
func sender(reply string, h nats.Header, caller func(nats.Header) (string, bool), replyOptional bool) (principal, drop string) {
	if !natsserver.IsReplySubject(reply) && (reply != "" || !replyOptional) {
		return "", dropReply
	}
	if _, malformed := h[natsserver.MalformedHeader]; malformed {
		return "", dropHeaders
	}
	principal, ok := caller(h)
	if !ok {
		return "", dropCaller
	}
	return principal, ""
}

// handler serves the requests of one route, each in its own goroutine.
func (e *Endpoints) handler(r service.Route) micro.HandlerFunc {
	prefix := root(r) + "."
	return func(req micro.Request) {
		principal, drop := sender(req.Reply(), nats.Header(req.Headers()), e.caller, false)
		if drop != "" {
			e.dropped.WithLabelValues(drop).Inc()
			return
		}
		e.answers.Go(func() {
			tenant, _, _ := strings.Cut(strings.TrimPrefix(req.Subject(), prefix), ".")
			e.answer(req, r.Name, tenant, principal)
		})
	}
}

// requestID returns the sender's request id, or a new one.
func requestID(h micro.Headers) string {
	if given := h.Values("X-Request-Id"); len(given) == 1 && service.GoodRequestID(given[0]) {
		return given[0]
	}
	return events.NewID()
}

func (e *Endpoints) answer(req micro.Request, route, tenant, principal string) {
	id := requestID(req.Headers())
	body, err := e.serve(req, route, tenant, principal)
	if err == nil && len(body) > streams.MaxPayload-1024 { // headers need space too
		err = errAnswerTooLarge
	}
	if err != nil {
		if fault.Of(err).Kind == fault.Internal {
			e.log.Error("request failed", "route", route, "tenant", tenant, "principal", principal, "request", id, "err", err)
		}
		e.refuse(req.Reply(), route, id, err)
		return
	}
	e.send(route, id, &nats.Msg{Subject: req.Reply(), Data: body})
}

// refuse replies with the problem document of err, also in the micro service's error headers.
func (e *Endpoints) refuse(reply, route, id string, err error) {
	problem := fault.Of(err).Problem()
	problem.RequestID = id
	data, err := json.Marshal(problem)
	if err != nil {
		e.log.Error("error response not encoded", "route", route, "request", id, "err", err)
		return
	}
	e.send(route, id, &nats.Msg{Subject: reply, Data: data, Header: nats.Header{
		micro.ErrorHeader: {problem.Detail}, micro.ErrorCodeHeader: {strconv.Itoa(problem.Status)},
	}})
}

// send publishes a reply. Respond of a micro.Request works only until its handler returns, and
// it has returned.
func (e *Endpoints) send(route, id string, answer *nats.Msg) {
	if err := e.conn.PublishMsg(answer); err != nil {
		e.log.Warn("response not sent", "route", route, "request", id, "err", err)
	}
}

func (e *Endpoints) serve(req micro.Request, route, tenant, principal string) ([]byte, error) {
	p, err := e.service.Access.Principal(e.life, principal)
	if err != nil {
		return nil, err
	}
	deadline, err := service.ParseDeadline(req.Headers().Get(service.DeadlineHeader))
	if err != nil {
		return nil, err
	}
	answer, err := e.service.Serve(e.life, service.Call{
		Tenant: tenant, Principal: p, Via: "nats", Deadline: deadline,
		CommandID: req.Headers().Get(nats.MsgIdHdr), Correlation: req.Headers().Get("X-Correlation-Id"),
	}, route, req.Data())
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("encode the response of %s: %w", route, err)
	}
	return body, nil
}
