// Package elasticio is the edge that speaks the elastic.io REST API v2: OAuth
// clients, credentials, components and flows as JSON:API documents
// (https://jsonapi.org/format/1.1/). It owns no rule of its own but those of HTTP
// and of JSON:API; every call goes through the service's route table.
package elasticio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// Access is what the edge needs of *access.Service.
type Access interface {
	v1.Identities
	// Require refuses a caller without the permission, and records that.
	Require(ctx context.Context, call service.Call, route string, perm permission.Permission) error
}

// Flows is what the edge needs of *flow.Service.
type Flows interface {
	// ChangeFlow creates, starts, stops or deletes a flow.
	ChangeFlow(ctx context.Context, call service.Call, ceType string, data []byte) (flow.Flow, error)
}

// Service is what the edge needs of *service.Kernel.
type Service interface {
	// Serve answers one call of the route with a JSON body.
	Serve(ctx context.Context, call service.Call, route string, body []byte) (any, error)
	// Receive gives the call its place, has its body read and waits for its turn.
	Receive(ctx context.Context, call *service.Call, size int64, read func() ([]byte, error)) (body []byte, leave func(), err error)
}

// Config is what the edge is made of. Service, Access and Flows are needed, the rest is
// optional.
type Config struct {
	Service Service
	Access  Access
	Flows   Flows
	Logger  *slog.Logger // takes one line per request; nil drops them
	// AllowCleartext takes clear keys over plain HTTP from anywhere: for a service
	// that only a TLS terminating proxy can reach. Without it they are taken over
	// TLS and from the same machine alone.
	AllowCleartext bool
}

// Handler returns the edge, for every path below /v2/:
//
//	GET, POST           /v2/tenants/{tenant}/oauth-clients
//	GET, PATCH, DELETE  /v2/tenants/{tenant}/oauth-clients/{id}
//	GET, POST           /v2/credentials
//	GET, PATCH, DELETE  /v2/credentials/{id}
//	GET, POST           /v2/workspaces/{workspace}/secrets
//	GET, PATCH, DELETE  /v2/workspaces/{workspace}/secrets/{id}
//	POST                /v2/workspaces/{workspace}/secrets/{id}/refresh
//	GET, POST           /v2/auth-clients
//	GET, PATCH, DELETE  /v2/auth-clients/{id}
//	GET, POST           /v2/components
//	GET, PATCH, DELETE  /v2/components/{id}
//	POST                /v2/flows
//	GET, DELETE         /v2/flows/{id}
//	POST                /v2/flows/{id}/start, /v2/flows/{id}/stop
//
// A slash at the end of a path changes nothing. Where a path names no tenant, it
// is the home of the caller. Answers have the headers of v1.Protect, and
// X-Request-Id, which the log line of the request repeats.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg, log: cfg.Logger, ids: v1.NewRequestIDs(), secrets: map[string]bool{}}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	for _, r := range application.Routes() {
		h.secrets[r.Name] = r.Secrets
	}
	return v1.Protect(h)
}

type handler struct {
	cfg     Config
	log     *slog.Logger
	secrets map[string]bool // routes that hold clear text
	ids     *v1.RequestIDs
}

// exchange is one request on its way to its answer.
type exchange struct {
	*handler
	w         http.ResponseWriter
	r         *http.Request
	id        string
	pattern   string // of the path, "" while unknown
	tenant    string // from the path, or the caller's home
	workspace string // from the path, or ""
	item      string // id from the path, or ""
	known     bool   // the service has accepted the tenant
	principal service.Principal
	received  service.Call      // of a request whose body was read
	leave     func()            // ends it; nil when no body was read
	media     string            // of the answer
	commandID string            // Idempotency-Key
	deadline  time.Time         // X-Request-Deadline
	pointers  map[string]string // where in the document a member of the service's body stands
	status    int               // 0 until the answer begins
	err       error             // what the answer was made of
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := &exchange{handler: h, w: w, r: r, id: h.ids.Of(r), media: mediaJSONAPI}
	w.Header()["X-Request-Id"] = []string{x.id}
	defer func() {
		v := recover()
		if x.leave != nil {
			x.leave()
		}
		if v != nil {
			// The value may hold anything, so only its type is logged.
			h.log.Error("request panicked", "request_id", x.id, "route", x.pattern, "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
			if x.status == 0 {
				x.fail(fault.ErrInternal)
				v = nil
			}
		}
		x.note(time.Since(start))
		if v != nil {
			panic(http.ErrAbortHandler) // the answer has begun: the client must see that it is cut
		}
	}()
	x.route()
}

// operations are what the methods do at one path.
type operations map[string]func(*exchange)

// find returns what stands at the path, split at its slashes after /v2, and its pattern.
func (x *exchange) find(path []string) (operations, string) {
	if len(path) >= 3 && path[0] == "tenants" && path[2] == "oauth-clients" {
		x.tenant = path[1]
		switch len(path) {
		case 3:
			return operations{"GET": (*exchange).listClients, "POST": (*exchange).createClient}, "/v2/tenants/{tenant}/oauth-clients"
		case 4:
			x.item = path[3]
			return operations{"GET": (*exchange).getClient, "PATCH": (*exchange).patchClient, "DELETE": (*exchange).deleteClient},
				"/v2/tenants/{tenant}/oauth-clients/{id}"
		}
		return nil, ""
	}
	if len(path) >= 3 && path[0] == "workspaces" && path[2] == "secrets" {
		return x.findSecret(path)
	}
	if len(path) > 1 {
		x.item = path[1]
	}
	switch {
	case len(path) == 1 && path[0] == "credentials":
		return operations{"GET": (*exchange).listCredentials, "POST": (*exchange).createCredential}, "/v2/credentials"
	case len(path) == 2 && path[0] == "credentials":
		return operations{"GET": (*exchange).getCredential, "PATCH": (*exchange).patchCredential, "DELETE": (*exchange).deleteCredential},
			"/v2/credentials/{id}"
	case len(path) == 1 && path[0] == "auth-clients":
		return operations{"GET": (*exchange).listAuthClients, "POST": (*exchange).createAuthClient}, "/v2/auth-clients"
	case len(path) == 2 && path[0] == "auth-clients":
		return operations{"GET": (*exchange).getAuthClient, "PATCH": (*exchange).patchAuthClient, "DELETE": (*exchange).deleteAuthClient},
			"/v2/auth-clients/{id}"
	case len(path) == 1 && path[0] == "components":
		return operations{"GET": (*exchange).listComponents, "POST": (*exchange).createComponent}, "/v2/components"
	case len(path) == 2 && path[0] == "components":
		return operations{"GET": (*exchange).getComponent, "PATCH": (*exchange).patchComponent, "DELETE": (*exchange).deleteComponent},
			"/v2/components/{id}"
	case len(path) == 1 && path[0] == "flows":
		return operations{"POST": (*exchange).createFlow}, "/v2/flows"
	case len(path) == 2 && path[0] == "flows":
		return operations{"GET": (*exchange).getFlow, "DELETE": (*exchange).deleteFlow}, "/v2/flows/{id}"
	case len(path) == 3 && path[0] == "flows" && path[2] == "start":
		return operations{"POST": (*exchange).startFlow}, "/v2/flows/{id}/start"
	case len(path) == 3 && path[0] == "flows" && path[2] == "stop":
		return operations{"POST": (*exchange).stopFlow}, "/v2/flows/{id}/stop"
	}
	return nil, ""
}

// findSecret is find for the secrets of a workspace.
func (x *exchange) findSecret(path []string) (operations, string) {
	const pattern = "/v2/workspaces/{workspace}/secrets"
	x.workspace = path[1]
	if len(path) > 3 {
		x.item = path[3]
	}
	switch {
	case len(path) == 3:
		return operations{"GET": (*exchange).listSecrets, "POST": (*exchange).createSecret}, pattern
	case len(path) == 4:
		return operations{"GET": (*exchange).getSecret, "PATCH": (*exchange).patchSecret, "DELETE": (*exchange).deleteSecret}, pattern + "/{id}"
	case len(path) == 5 && path[4] == "refresh":
		return operations{"POST": (*exchange).refreshSecret}, pattern + "/{id}/refresh"
	}
	return nil, ""
}

// route finds what the path and method name, and who asks.
func (x *exchange) route() {
	if err := x.negotiate(); err != nil {
		x.fail(err)
		return
	}
	path, ok := split(x.r.URL.EscapedPath())
	var at operations
	if ok {
		at, x.pattern = x.find(path)
	}
	if at == nil {
		x.fail(v1.ErrPathUnknown)
		return
	}
	method := x.r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	serve, ok := at[method]
	if !ok {
		x.w.Header().Set("Allow", at.allowed())
		x.fail(v1.ErrMethod)
		return
	}
	var err error
	if x.principal, err = v1.Identify(x.cfg.Access, x.r); err != nil {
		x.fail(err)
		return
	}
	if x.tenant == "" {
		x.tenant = x.principal.Home
	}
	if given := x.r.Header["Idempotency-Key"]; len(given) > 1 {
		x.fail(v1.ErrHeaderTwice)
		return
	} else if len(given) == 1 {
		x.commandID = given[0]
	}
	if x.deadline, err = v1.Deadline(x.r); err != nil {
		x.fail(err)
		return
	}
	serve(x)
}

// split cuts a path at its slashes, and one slash off its end. A path is taken
// literally: nothing is cleaned or redirected.
func split(path string) (parts []string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return nil, false
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		plain, err := url.PathUnescape(part)
		if err != nil || plain == "" || !utf8.ValidString(plain) {
			return nil, false
		}
		parts = append(parts, plain)
	}
	return parts, true
}

// allowed lists the methods for the Allow header.
func (o operations) allowed() string {
	var list []string
	for _, m := range []string{"GET", "HEAD", "POST", "PATCH", "DELETE"} {
		if o[m] != nil || m == "HEAD" && o["GET"] != nil {
			list = append(list, m)
		}
	}
	return strings.Join(list, ", ")
}

func (x *exchange) call() service.Call {
	call := x.received
	call.Tenant, call.Principal, call.Via, call.CommandID = x.tenant, x.principal, "http", x.commandID
	call.Deadline = x.deadline
	call.CrossSite, call.Head = v1.CrossSite(x.r), x.r.Method == http.MethodHead
	return call
}

// ask has the service answer a route with in as its body.
func ask[T any](x *exchange, route string, in any) (out T, err error) {
	if x.secrets[route] && !x.confidential() {
		return out, v1.ErrCleartext
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("write the body of %s: %w", route, err)
	}
	call := x.call()
	if x.r.Method == http.MethodGet || x.r.Method == http.MethodHead {
		call.CommandID = ""
	}
	answer, err := x.cfg.Service.Serve(x.r.Context(), call, route, body)
	x.accepted(err)
	if err != nil {
		return out, err
	}
	switch v := answer.(type) {
	case T:
		return v, nil
	case *T: // a command that came again
		return *v, nil
	case interface{ Completed() service.Done }: // a Done and more
		if done, ok := any(v.Completed()).(T); ok {
			return done, nil
		}
	}
	return out, fmt.Errorf("%s answered %T", route, answer)
}

// accepted notes whether the service knows the tenant: what callers make up does
// not belong into the log.
func (x *exchange) accepted(err error) {
	x.known = x.known || !errors.Is(err, service.ErrTenantNotFound)
}

// may reports whether the caller could ask a query of its own, so that the answer
// of a command shows the whole resource.
func (x *exchange) may(perm permission.Permission) bool { return x.principal.May(perm) }

// confidential reports whether nobody on the way can read along.
func (x *exchange) confidential() bool {
	if x.cfg.AllowCleartext || x.r.TLS != nil {
		return true
	}
	remote, err := netip.ParseAddrPort(x.r.RemoteAddr)
	return err == nil && remote.Addr().Unmap().IsLoopback()
}

// body reads the whole body, up to service.MaxBody, of a JSON media type.
func (x *exchange) body() (body []byte, err error) {
	x.received = x.call()
	body, x.leave, err = x.cfg.Service.Receive(x.r.Context(), &x.received, v1.BodySize(x.r), x.read)
	return body, err
}

func (x *exchange) read() ([]byte, error) {
	if x.r.ContentLength > service.MaxBody {
		x.w.Header().Set("Connection", "close") // the rest is not read
		return nil, service.ErrBodyTooLarge
	}
	if x.r.Body == nil || x.r.Body == http.NoBody {
		return nil, nil
	}
	if x.r.Header.Get("Content-Encoding") != "" || mediaOf(x.r.Header["Content-Type"]) == "" {
		return nil, v1.ErrMediaType.Because("The body must be %s without parameters, or %s in UTF-8.", mediaJSONAPI, mediaJSON)
	}
	body, err := io.ReadAll(http.MaxBytesReader(x.w, x.r.Body, service.MaxBody))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return nil, service.ErrBodyTooLarge
	}
	if err != nil {
		return nil, v1.ErrBodyRead
	}
	return body, nil
}

// note writes the request's line of the log. Paths, parameters and bodies are
// not in it.
func (x *exchange) note(took time.Duration) {
	level := slog.LevelInfo
	if x.status >= 500 {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("route", x.pattern), slog.Int("status", x.status), slog.Duration("duration", took), slog.String("request_id", x.id),
	}
	if x.pattern != "" {
		attrs = append(attrs, slog.String("method", x.method()))
	}
	if x.principal.Actor.ID != "" {
		attrs = append(attrs, slog.String("principal", x.principal.Actor.ID))
	}
	if x.known {
		attrs = append(attrs, slog.String("tenant", x.tenant))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("code", fault.Of(x.err).Code))
		if x.status >= 500 {
			attrs = append(attrs, slog.String("err", x.err.Error()))
		}
	}
	x.log.LogAttrs(x.r.Context(), level, "request", attrs...)
}

// method keeps made-up methods out of the log.
func (x *exchange) method() string {
	switch m := x.r.Method; m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPatch, http.MethodPut, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}
