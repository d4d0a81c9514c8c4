// Package v1 serves the HTTP API /v1: the service's route table, with POST for commands and GET
// for queries, and problem documents (RFC 9457) for errors. It has no business rules.
package v1

import (
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
)

// Config configures a handler. Service and Access are required.
type Config struct {
	Service edge.Service
	Access  edge.Identities
	Live    *admin.Live     // wakes readers of the feed that wait; nil: none wait
	Logger  *slog.Logger    // one line per request; nil discards them
	Ready   func() []string // reasons why the service is not ready; empty if it is
	Notes   func() []string // additional notes in /readyz; optional
	Metrics http.Handler    // serves /metrics
	Version string          // version of the program, shown at / and in /openapi.json
	// AllowCleartext accepts and returns secrets also over plain HTTP. Set it only if all connections
	// come from a TLS-terminating proxy, or the port accepts TLS only.
	AllowCleartext bool
	// DecorateResponse may add headers to the response of a command; optional.
	DecorateResponse func(header http.Header, answer any)
	// Starting means that the service has not started: /healthz and /readyz work, and all other
	// paths return ErrStarting. Service may be nil.
	Starting bool
	// Describe adds the paths of other APIs to /openapi.json; optional.
	Describe func(*huma.OpenAPI)
}

// ErrStarting refuses a request while the service starts.
var ErrStarting = fault.New(fault.Unavailable, "service_starting",
	"The service is starting. /readyz reports the progress. Retry shortly.").WithRetryAfter(2 * time.Second)

// Handler returns the edge:
//
//	POST /v1/tenants/{tenant}/commands/{command}
//	POST /v1/tenants/{tenant}/oauth/connect (the command oauth.connect)
//	GET  /v1/tenants/{tenant}/{query}
//	GET  /healthz, /readyz, /metrics, /openapi.json, /docs, /
//
// Paths are taken literally: nothing is cleaned or redirected.
func Handler(cfg Config) http.Handler {
	h := &handler{
		cfg: cfg, commands: map[string]endpoint{}, queries: map[string]endpoint{},
	}
	for _, r := range application.Routes() {
		if r.Command {
			h.commands[r.Name] = endpoint{pattern: commandPath + r.Name, route: r}
		} else {
			h.queries[r.Name] = endpoint{pattern: queryPath + r.Name, parameters: parametersOf(r.In), route: r}
		}
	}
	h.openAPI = sync.OnceValue(func() []byte { return openAPI(cfg.Version, cfg.Describe) }) // a start does not wait for it
	return edge.Handler(cfg.Logger, func(x *edge.Exchange) edge.Dialect { return &exchange{x, h} })
}

// Server returns a server with timeouts and limits against slow and greedy clients. The caller
// starts and stops it.
func Server(addr string, h http.Handler) *http.Server {
	return &http.Server{
		Addr:              addr,
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       120 * time.Second,
		MaxHeaderBytes:    32 << 10,
	}
}

// The path patterns in log lines and in the OpenAPI document.
const (
	commandPath = "/v1/tenants/{tenant}/commands/"
	queryPath   = "/v1/tenants/{tenant}/"

	// connectPath is an alias of the command oauth.connect.
	connectPath  = "oauth/connect"
	connectRoute = "oauth.connect"
)

type handler struct {
	cfg      Config
	commands map[string]endpoint
	queries  map[string]endpoint
	openAPI  func() []byte
}

// endpoint is a route with its path pattern and parameters.
type endpoint struct {
	pattern    string
	route      service.Route
	parameters []parameter
}

// exchange is one request and its response.
type exchange struct {
	*edge.Exchange
	*handler
}

const typeText = "text/plain; charset=utf-8"

// Serve routes by path.
func (x *exchange) Serve() {
	if err := edge.CheckOrigin(x.R); err != nil { // before authentication, because a browser sends credentials automatically
		x.Fail(err)
		return
	}
	path := x.R.URL.EscapedPath()
	x.Quiet = x.cfg.Starting // the start writes its own log lines
	if x.cfg.Starting && path != "/healthz" && path != "/readyz" {
		x.Fail(ErrStarting)
		return
	}
	if rest, ok := strings.CutPrefix(path, "/v1/tenants/"); ok {
		x.serveTenant(rest)
		return
	}
	probe := false
	var serve func()
	switch path {
	case "/":
		serve = x.index
	case "/healthz":
		probe, serve = true, func() { x.Write(http.StatusOK, typeText, []byte("ok\n")) }
	case "/readyz":
		probe, serve = true, x.ready
	case "/openapi.json":
		serve = func() { x.Write(http.StatusOK, edge.MediaJSON, x.openAPI()) }
	case "/docs", "/docs/page.js", "/docs/page.css":
		serve = func() { x.page(path) }
	case "/metrics":
		if x.cfg.Metrics != nil {
			probe, serve = true, x.metrics
		}
	}
	if serve == nil {
		x.Fail(edge.ErrPathUnknown)
		return
	}
	x.Pattern = path
	if x.Allows("GET, HEAD") {
		serve()
	}
	x.Quiet = x.Quiet || probe && x.Status < 500
}

// serveTenant handles the commands and queries below /v1/tenants/.
func (x *exchange) serveTenant(rest string) {
	tenant, name, _ := strings.Cut(rest, "/")
	name, isCommand := strings.CutPrefix(name, "commands/")
	if name == connectPath && !isCommand {
		name, isCommand = connectRoute, true
	}
	flow, isFlow := cutFlowEvents(name)
	if isFlow && !isCommand {
		name = flow
	}
	if tenant == "" || name == "" || strings.Contains(name, "/") {
		x.Fail(edge.ErrPathUnknown)
		return
	}
	tenant, err := unescape(tenant)
	if err == nil {
		name, err = unescape(name)
	}
	if err != nil {
		x.Fail(edge.ErrPathUnknown)
		return
	}
	if isFlow && !isCommand {
		x.flowEvents(tenant, name)
		return
	}
	endpoints, methods := x.queries, "GET, HEAD"
	if isCommand {
		endpoints, methods = x.commands, "POST"
	}
	if !x.Allows(methods) {
		return
	}
	to, known := endpoints[name]
	// Before authentication, because a browser sends credentials automatically.
	if err := to.route.CheckSender(edge.CrossSite(x.R), x.R.Method == http.MethodHead); err != nil {
		x.Fail(err)
		return
	}
	call, err := x.Authenticate(x.cfg.Access, x.cfg.AllowCleartext)
	if err == nil && !known {
		err = service.ErrRouteUnknown
	}
	if err != nil {
		x.Fail(err)
		return
	}
	call.Tenant, x.Pattern = tenant, to.pattern
	if isCommand {
		x.command(to, call)
	} else {
		x.query(to, call)
	}
}

func unescape(segment string) (string, error) {
	if !strings.Contains(segment, "%") {
		return segment, nil
	}
	return url.PathUnescape(segment)
}

func (x *exchange) command(to endpoint, call service.Call) {
	var body []byte
	err := x.ReadHeaders(&call)
	if to.route.Secrets && !call.Confidential {
		err = credential.ErrCleartext
	}
	if err == nil {
		body, err = x.Receive(x.cfg.Service, &call, edge.IsJSON)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.serve(to, call, body)
}

func (x *exchange) query(to endpoint, call service.Call) {
	body, err := bodyOf(to.parameters, x.R.URL.RawQuery)
	switch {
	case err != nil:
		x.Fail(err)
	case replays[to.route.Name] != "" && wantsLines(x.R):
		x.replay(call, to.route.Name, body)
	case to.route.Name == changesRoute:
		x.changes(call, body)
	default:
		x.serve(to, call, body)
	}
}

func (x *exchange) serve(to endpoint, call service.Call, body []byte) {
	answer, err := x.cfg.Service.Serve(x.R.Context(), call, to.route.Name, body)
	x.SetTenant(call.Tenant, err)
	if err != nil {
		x.Fail(err)
		return
	}
	if x.cfg.DecorateResponse != nil {
		x.cfg.DecorateResponse(x.W.Header(), answer)
	}
	x.JSON(http.StatusOK, edge.MediaJSON, answer)
}

// index is the response to GET /.
func (x *exchange) index() {
	x.JSON(http.StatusOK, edge.MediaJSON, map[string]string{
		"service": "credstream", "version": x.cfg.Version, "api": "/openapi.json", "docs": "/docs", "ready": "/readyz",
	})
}

// Readiness is the response of /readyz.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"`        // reasons why the service is not ready
	Notes   []string `json:"notes,omitzero"` // notes for the operator that do not affect readiness
}

func (x *exchange) ready() {
	answer, status := Readiness{Ready: true, Reasons: []string{}}, http.StatusOK
	if x.cfg.Ready != nil {
		if reasons := x.cfg.Ready(); len(reasons) > 0 {
			answer, status = Readiness{Reasons: reasons}, http.StatusServiceUnavailable
		}
	}
	if x.cfg.Notes != nil {
		answer.Notes = x.cfg.Notes()
	}
	x.JSON(status, edge.MediaJSON, answer)
}

func (x *exchange) metrics() {
	x.Status = http.StatusOK // the log line always says 200: the metrics handler writes its own status
	x.cfg.Metrics.ServeHTTP(x.W, x.R)
}
