package bus

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// maxInFlight bounds the requests answered at one time; more wait in line.
const maxInFlight = 512

// Endpoints answers commands and queries over request-reply: a NATS micro
// service with one endpoint for each route, so that discovery and statistics
// ($SRV.PING, INFO, STATS) work.
type Endpoints struct {
	service *service.Service
	caller  func(nats.Header) (principal string, ok bool)
	log     *slog.Logger
	dropped *prometheus.CounterVec

	life    context.Context
	end     context.CancelFunc
	slots   chan struct{}
	answers sync.WaitGroup
	micro   micro.Service
}

// EndpointsConfig is what Endpoints are made of.
type EndpointsConfig struct {
	Conn    *nats.Conn // may publish to reply subjects only: Node.EndpointConn
	Caller  func(nats.Header) (principal string, ok bool)
	Service *service.Service
	Version string // of the program, three numbers
	Metrics prometheus.Registerer
	Logger  *slog.Logger
}

// ServeEndpoints starts to answer. Close ends it.
func ServeEndpoints(cfg EndpointsConfig) (*Endpoints, error) {
	e := &Endpoints{
		service: cfg.Service, caller: cfg.Caller, log: cfg.Logger, slots: make(chan struct{}, maxInFlight),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "credstream_nats_requests_dropped_total", Help: "Requests dropped unread, by reason.",
		}, []string{"reason"}),
	}
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
	for _, r := range service.Routes() {
		err := e.micro.AddEndpoint(strings.ReplaceAll(r.Name, ".", "_"), e.handler(r),
			micro.WithEndpointSubject(root(r)+".*."+r.Name),
			micro.WithEndpointPendingLimits(-1, -1),
			micro.WithEndpointMetadata(map[string]string{"summary": r.Summary, "permission": string(r.Permission)}))
		if err != nil {
			e.Close()
			return nil, fmt.Errorf("announce %s: %w", r.Name, err)
		}
	}
	return e, nil
}

func root(r service.Route) string {
	if r.Command {
		return "credstream.cmd"
	}
	return "credstream.query"
}

// Close stops to take requests and waits for the answers under way.
func (e *Endpoints) Close() {
	_ = e.micro.Stop() // what it could not unsubscribe goes with the connection
	e.answers.Wait()
	e.end()
}

// handler answers the requests of one route, each in a goroutine of its own.
func (e *Endpoints) handler(r service.Route) micro.HandlerFunc {
	prefix := root(r) + "."
	return func(req micro.Request) {
		// A caller could otherwise have us publish into whatever subject it names.
		if !Answerable(req.Reply()) {
			e.dropped.WithLabelValues("reply subject").Inc()
			return
		}
		principal, ok := e.caller(nats.Header(req.Headers()))
		if !ok {
			e.dropped.WithLabelValues("no caller").Inc()
			return
		}
		e.slots <- struct{}{}
		e.answers.Go(func() {
			defer func() { <-e.slots }()
			tenant, _, _ := strings.Cut(strings.TrimPrefix(req.Subject(), prefix), ".")
			e.answer(req, r.Name, tenant, principal)
		})
	}
}

func (e *Endpoints) answer(req micro.Request, route, tenant, principal string) {
	id := events.NewID()
	body, err := e.serve(req, route, tenant, principal)
	if err == nil {
		err = req.Respond(body)
		if err != nil {
			e.log.Warn("an answer was not sent", "route", route, "request", id, "err", err)
		}
		return
	}
	f := fault.Of(err)
	if f.Kind == fault.Internal {
		e.log.Error("a request failed", "route", route, "tenant", tenant, "principal", principal, "request", id, "err", err)
	}
	problem := f.Problem()
	problem.RequestID = id
	data, err := json.Marshal(problem)
	if err == nil {
		err = req.Error(strconv.Itoa(problem.Status), problem.Detail, data)
	}
	if err != nil {
		e.log.Warn("a refusal was not sent", "route", route, "request", id, "err", err)
	}
}

func (e *Endpoints) serve(req micro.Request, route, tenant, principal string) ([]byte, error) {
	p, err := e.service.Principal(e.life, principal)
	if err != nil {
		return nil, err
	}
	answer, err := e.service.Serve(e.life, service.Call{
		Tenant: tenant, Principal: p, Via: "nats",
		CommandID: req.Headers().Get(nats.MsgIdHdr), Correlation: req.Headers().Get("X-Correlation-Id"),
	}, route, req.Data())
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("encode the answer of %s: %w", route, err)
	}
	return body, nil
}
