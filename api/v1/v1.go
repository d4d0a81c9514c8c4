// Package v1 is the HTTP edge: the service's route table as POST for commands
// and GET for queries, errors as problems (RFC 9457). It owns no rule of its
// own but those of HTTP.
package v1

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
)

// Service is what the edge needs of *service.Kernel.
type Service interface {
	// Serve answers one call of the route with a JSON body.
	Serve(ctx context.Context, call service.Call, route string, body []byte) (any, error)
	// Receive gives the call its place, has its body read and waits for its turn.
	Receive(ctx context.Context, call *service.Call, size int64, read func() ([]byte, error)) (body []byte, leave func(), err error)
}

// Config is what the edge is made of. Service and Access are needed, the rest is optional.
type Config struct {
	Service Service
	Access  Identities
	Logger  *slog.Logger    // takes one line per request; nil drops them
	Ready   func() []string // why the service is not ready; empty means it is
	Notes   func() []string // what else to tell who asks for readiness; optional
	Metrics http.Handler    // answers /metrics
	Version string          // of the program, shown at / and in /openapi.json
	// AllowCleartext takes clear keys over plain HTTP from anywhere: for a service
	// that only a TLS terminating proxy can reach. Without it they are taken over
	// TLS and from the same machine alone.
	AllowCleartext bool
	// Answered is told the answer of each command before it goes out, to add to its
	// header; optional.
	Answered func(header http.Header, answer any)
	// Starting says that the service has not started: /healthz and /readyz answer, and
	// everything else is refused with ErrStarting. Service is not needed.
	Starting bool
	// Describe adds the paths of another surface to /openapi.json; optional.
	Describe func(*huma.OpenAPI)
}

// The refusals of a request that HTTP adds to the service's.
var (
	ErrPathUnknown = fault.New(fault.NotFound, "path_unknown", "No such path.")
	ErrMediaType   = fault.New(fault.Invalid, "media_type", "The body must be application/json in UTF-8.")
	ErrBodyRead    = fault.New(fault.Invalid, "body_incomplete", "The body is shorter than its Content-Length.")
	// ErrAuthorization refuses an Authorization header that is not one Basic or Bearer.
	ErrAuthorization = fault.New(fault.Unauthenticated, "authorization_invalid",
		"Send one Authorization header: Basic with the key as password, or Bearer with the key.")
	ErrHeaderTwice = fault.New(fault.Invalid, "header_repeated", "Idempotency-Key, X-Correlation-Id and X-Request-Deadline may appear at most once.")
	// ErrCleartext refuses clear secrets where others could listen.
	ErrCleartext = credential.ErrCleartext

	// ErrStarting refuses a request to a service that has not started.
	ErrStarting = fault.New(fault.Unavailable, "service_starting",
		"The service is starting. /readyz says how far it is; try again shortly.").After(2 * time.Second)

	ErrMethod      = service.ErrMethod
	ErrCrossOrigin = service.ErrCrossOrigin
)

// Handler returns the edge:
//
//	POST /v1/tenants/{tenant}/commands/{command}
//	POST /v1/tenants/{tenant}/oauth/connect (the command oauth.connect)
//	GET  /v1/tenants/{tenant}/{query}
//	GET  /healthz, /readyz, /metrics, /openapi.json, /docs, /
//
// Every answer carries X-Request-Id, which the log line of the request repeats.
// Paths are taken literally: nothing is cleaned or redirected.
func Handler(cfg Config) http.Handler {
	h := &handler{
		cfg: cfg, log: cfg.Logger, ids: NewRequestIDs(),
		commands: map[string]endpoint{}, queries: map[string]endpoint{},
	}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	for _, r := range application.Routes() {
		if r.Command {
			h.commands[r.Name] = endpoint{pattern: commandPath + r.Name, route: r}
		} else {
			h.queries[r.Name] = endpoint{pattern: queryPath + r.Name, parameters: parametersOf(r.In), route: r}
		}
	}
	if !cfg.Starting {
		h.openAPI = openAPI(cfg.Version, cfg.Describe)
	}
	return h
}

// Server returns a server for the edge with the bounds that keep a slow or
// greedy client from holding it. The caller starts and stops it.
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

// The paths of the routes, as they stand in logs and in the OpenAPI document.
const (
	commandPath = "/v1/tenants/{tenant}/commands/"
	queryPath   = "/v1/tenants/{tenant}/"

	// Who connects accounts knows the command by this path below the tenant.
	connectPath  = "oauth/connect"
	connectRoute = "oauth.connect"
)

type handler struct {
	cfg      Config
	log      *slog.Logger
	commands map[string]endpoint
	queries  map[string]endpoint
	openAPI  []byte
	ids      *RequestIDs
}

// endpoint is what the edge knows of a route.
type endpoint struct {
	pattern    string
	route      service.Route
	parameters []parameter
}

// exchange is one request on its way to its answer.
type exchange struct {
	w         http.ResponseWriter
	r         *http.Request
	id        string
	pattern   string // of the route, "" while unknown
	tenant    string // once the service has accepted it
	principal string
	status    int   // 0 until the answer begins
	err       error // what the answer was made of
}

// Values of headers that every answer shares; nobody changes them.
var (
	typeJSON    = []string{"application/json"}
	typeProblem = []string{"application/problem+json"}
	typeText    = []string{"text/plain; charset=utf-8"}
	challenges  = []string{`Basic realm="credstream", charset="UTF-8"`, `Bearer realm="credstream"`}
)

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := exchange{w: w, r: r, id: h.ids.Of(r)}
	header := w.Header()
	header["X-Request-Id"] = []string{x.id}
	secure(header)
	defer func() {
		if v := recover(); v != nil {
			h.panicked(&x, v, start)
		}
	}()
	h.route(&x)
	h.note(&x, time.Since(start))
}

// panicked answers a request whose handling panicked. The value may hold
// anything, so only its type is logged.
func (h *handler) panicked(x *exchange, v any, start time.Time) {
	aborted := false
	if err, ok := v.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		aborted = true
	} else {
		h.log.Error("request panicked", "request_id", x.id, "route", x.pattern, "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
	}
	if x.status == 0 && !aborted {
		x.fail(fault.ErrInternal)
		h.note(x, time.Since(start))
		return
	}
	h.note(x, time.Since(start))
	panic(http.ErrAbortHandler) // the answer has begun: the client must see that it is cut
}

// route finds what the path names.
func (h *handler) route(x *exchange) {
	if origin.Check(x.r) != nil { // before the key: a browser sends it by itself
		x.fail(ErrCrossOrigin)
		return
	}
	path := x.r.URL.EscapedPath()
	if h.cfg.Starting && path != "/healthz" && path != "/readyz" {
		x.fail(ErrStarting)
		return
	}
	if rest, ok := strings.CutPrefix(path, "/v1/tenants/"); ok {
		h.routeTenant(x, rest)
		return
	}
	var serve func(*exchange)
	switch path {
	case "/":
		serve = h.index
	case "/healthz":
		serve = func(x *exchange) { x.text(http.StatusOK, "ok\n") }
	case "/readyz":
		serve = h.ready
	case "/openapi.json":
		serve = func(x *exchange) { x.bytes(http.StatusOK, typeJSON, h.openAPI) }
	case "/docs", "/docs/page.js", "/docs/page.css":
		serve = func(x *exchange) { x.page(path) }
	case "/metrics":
		if h.cfg.Metrics != nil {
			serve = h.metrics
		}
	}
	if serve == nil {
		x.fail(ErrPathUnknown)
		return
	}
	x.pattern = path
	if x.allows("GET, HEAD") {
		serve(x)
	}
}

// routeTenant finds the command or query of the path below /v1/tenants/.
func (h *handler) routeTenant(x *exchange, rest string) {
	tenant, name, _ := strings.Cut(rest, "/")
	name, isCommand := strings.CutPrefix(name, "commands/")
	if name == connectPath && !isCommand {
		name, isCommand = connectRoute, true
	}
	if tenant == "" || name == "" || strings.Contains(name, "/") {
		x.fail(ErrPathUnknown)
		return
	}
	tenant, err := unescape(tenant)
	if err == nil {
		name, err = unescape(name)
	}
	if err != nil {
		x.fail(ErrPathUnknown)
		return
	}
	endpoints, methods := h.queries, "GET, HEAD"
	if isCommand {
		endpoints, methods = h.commands, "POST"
	}
	if !x.allows(methods) {
		return
	}
	// Before the key is looked at, which a browser sends by itself.
	if err := endpoints[name].route.CheckSender(CrossSite(x.r), x.r.Method == http.MethodHead); err != nil {
		x.fail(err)
		return
	}
	principal, err := Identify(h.cfg.Access, x.r)
	if err != nil {
		x.fail(err)
		return
	}
	x.principal = principal.Actor.ID
	to, ok := endpoints[name]
	if !ok {
		x.fail(service.ErrRouteUnknown)
		return
	}
	x.pattern = to.pattern
	call := service.Call{
		Tenant: tenant, Principal: principal, Via: "http", Confidential: h.cfg.AllowCleartext || confidential(x.r),
		CrossSite: CrossSite(x.r), Head: x.r.Method == http.MethodHead,
	}
	if isCommand {
		h.command(x, to, call, name)
	} else {
		h.query(x, to, call, name)
	}
}

func unescape(segment string) (string, error) {
	if !strings.Contains(segment, "%") {
		return segment, nil
	}
	return url.PathUnescape(segment)
}

// allows answers 405 unless the request's method is among those given.
func (x *exchange) allows(methods string) bool {
	for m := range strings.SplitSeq(methods, ", ") {
		if x.r.Method == m {
			return true
		}
	}
	x.w.Header().Set("Allow", methods)
	x.fail(ErrMethod)
	return false
}

// Deadline reads until when the caller of a command waits for its answer.
func Deadline(r *http.Request) (time.Time, error) {
	text, err := single(r, service.DeadlineHeader, service.ErrDeadline)
	if err != nil {
		return time.Time{}, err
	}
	return service.ParseDeadline(text)
}

// command answers a POST.
func (h *handler) command(x *exchange, to endpoint, call service.Call, name string) {
	if to.route.Secrets && !call.Confidential {
		x.fail(ErrCleartext)
		return
	}
	var err error
	if call.CommandID, err = single(x.r, "Idempotency-Key", service.ErrCommandID); err == nil {
		call.Correlation, err = single(x.r, "X-Correlation-Id", service.ErrCorrelation)
	}
	if err == nil {
		call.Deadline, err = Deadline(x.r)
	}
	if err != nil {
		x.fail(err)
		return
	}
	body, leave, err := h.cfg.Service.Receive(x.r.Context(), &call, BodySize(x.r), func() ([]byte, error) { return readBody(x.w, x.r) })
	if err != nil {
		x.fail(err)
		return
	}
	defer leave()
	h.serve(x, call, name, body)
}

// query answers a GET.
func (h *handler) query(x *exchange, to endpoint, call service.Call, name string) {
	body, err := bodyOf(to.parameters, x.r.URL.RawQuery)
	switch {
	case err != nil:
		x.fail(err)
	case replays[name] != "" && wantsLines(x.r):
		h.replay(x, call, name, body)
	default:
		h.serve(x, call, name, body)
	}
}

func (h *handler) serve(x *exchange, call service.Call, name string, body []byte) {
	answer, err := h.cfg.Service.Serve(x.r.Context(), call, name, body)
	x.accepted(call, err)
	if err != nil {
		x.fail(err)
		return
	}
	if h.cfg.Answered != nil {
		h.cfg.Answered(x.w.Header(), answer)
	}
	x.json(http.StatusOK, typeJSON, answer)
}

// accepted notes the tenant unless the service does not know it: what callers
// make up does not belong into the log.
func (x *exchange) accepted(call service.Call, err error) {
	if !errors.Is(err, service.ErrTenantNotFound) {
		x.tenant = call.Tenant
	}
}

// single returns the value of a header that stands at most once, or "".
func single(r *http.Request, name string, refusal *fault.Error) (string, error) {
	given := r.Header[name]
	switch len(given) {
	case 0:
		return "", nil
	case 1:
	default:
		return "", ErrHeaderTwice
	}
	v := given[0]
	if len(v) < 1 || len(v) > 128 {
		return "", refusal
	}
	for i := range len(v) {
		if v[i] < 0x21 || v[i] > 0x7e {
			return "", refusal
		}
	}
	return v, nil
}

// confidential reports whether nobody on the way can read along.
func confidential(r *http.Request) bool {
	if r.TLS != nil {
		return true
	}
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && remote.Addr().Unmap().IsLoopback()
}

// BodySize is how large the body of a request may be: what it says, or as large
// as any when it does not say.
func BodySize(r *http.Request) int64 {
	if r.ContentLength < 0 || r.ContentLength > service.MaxBody {
		return service.MaxBody
	}
	return r.ContentLength
}

// readBody reads the whole body, up to service.MaxBody, of a JSON media type.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > service.MaxBody {
		w.Header().Set("Connection", "close") // the rest is not read
		return nil, service.ErrBodyTooLarge
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	if r.Header.Get("Content-Encoding") != "" || !isJSON(r.Header["Content-Type"]) {
		return nil, ErrMediaType
	}
	if r.ContentLength > 0 {
		body := make([]byte, r.ContentLength)
		if _, err := io.ReadFull(r.Body, body); err != nil {
			return nil, ErrBodyRead
		}
		return body, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, service.MaxBody))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return nil, service.ErrBodyTooLarge
	}
	if err != nil {
		return nil, ErrBodyRead
	}
	return body, nil
}

func isJSON(contentType []string) bool {
	if len(contentType) != 1 {
		return false
	}
	if contentType[0] == "application/json" {
		return true
	}
	media, params, err := mime.ParseMediaType(contentType[0])
	if err != nil || media != "application/json" {
		return false
	}
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8")
}

// index says what this is to whoever opens the address in a browser.
func (h *handler) index(x *exchange) {
	x.json(http.StatusOK, typeJSON, map[string]string{
		"service": "credstream", "version": h.cfg.Version, "api": "/openapi.json", "docs": "/docs", "ready": "/readyz",
	})
}

// Readiness answers /readyz.
type Readiness struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons"`        // why not, in sentences
	Notes   []string `json:"notes,omitzero"` // what an operator should know all the same
}

func (h *handler) ready(x *exchange) {
	answer, status := Readiness{Ready: true, Reasons: []string{}}, http.StatusOK
	if h.cfg.Ready != nil {
		if reasons := h.cfg.Ready(); len(reasons) > 0 {
			answer, status = Readiness{Reasons: reasons}, http.StatusServiceUnavailable
		}
	}
	if h.cfg.Notes != nil {
		answer.Notes = h.cfg.Notes()
	}
	x.json(status, typeJSON, answer)
}

func (h *handler) metrics(x *exchange) {
	x.status = http.StatusOK // what the handler itself refuses is not ours to count
	h.cfg.Metrics.ServeHTTP(x.w, x.r)
}

func (x *exchange) json(status int, contentType []string, answer any) {
	b, err := json.Marshal(answer, json.Deterministic(true))
	if err != nil {
		x.fail(err)
		return
	}
	x.bytes(status, contentType, append(b, '\n'))
}

func (x *exchange) text(status int, s string) { x.bytes(status, typeText, []byte(s)) }

func (x *exchange) bytes(status int, contentType []string, b []byte) {
	header := x.w.Header()
	header["Content-Type"] = contentType
	header["Content-Length"] = []string{strconv.Itoa(len(b))}
	x.status = status
	x.w.WriteHeader(status)
	_, _ = x.w.Write(b) // a client that is gone needs no answer
}

// note writes the request's line of the log. Paths, parameters and bodies are
// not in it.
func (h *handler) note(x *exchange, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case h.cfg.Starting: // the start has lines of its own
		level = slog.LevelDebug
	case x.status >= 500:
		level = slog.LevelError
	case x.pattern == "/healthz" || x.pattern == "/readyz" || x.pattern == "/metrics":
		level = slog.LevelDebug
	}
	ctx := x.r.Context()
	if !h.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 9)
	attrs = append(attrs,
		slog.String("method", method(x.r.Method)), slog.String("route", x.pattern), slog.Int("status", x.status),
		slog.Duration("duration", took), slog.String("request_id", x.id))
	if x.principal != "" {
		attrs = append(attrs, slog.String("principal", x.principal))
	}
	if x.tenant != "" {
		attrs = append(attrs, slog.String("tenant", x.tenant))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("code", fault.Of(x.err).Code))
		if x.status >= 500 {
			attrs = append(attrs, slog.String("err", x.err.Error()))
		}
	}
	h.log.LogAttrs(ctx, level, "request", attrs...)
}

// method keeps made-up methods out of the log.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}
