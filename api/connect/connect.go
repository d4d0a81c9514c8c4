// Package connect is the edge for browsers on their way to a provider and back: it
// opens the one-time links that oauth.connect makes, takes the provider's answer,
// and tells the person what became of it. It owns no rule but those of HTTP; who
// may complete what is the service's to say.
package connect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/connect"
)

// Service is what the edge needs of the feature.
type Service interface {
	// OpenLink uses up a link.
	OpenLink(ctx context.Context, link string, from netip.Addr, browser connect.Browser) (connect.OpenedLink, error)
	// ReturnConnection takes a provider's answer.
	ReturnConnection(ctx context.Context, cb connect.Callback) (connect.Returned, error)
}

// Config is what the edge is made of. Service is needed, the rest is optional.
type Config struct {
	Service Service
	// PublicURL is where browsers reach the service, as service.PublicURL checks it.
	// Cookies are made for it; the Host of a request counts for nothing.
	PublicURL string
	Logger    *slog.Logger // takes one line per request; nil drops them
}

// The refusals that HTTP adds to the service's.
var (
	ErrPath     = fault.New(fault.NotFound, "connect_path_unknown", "No such path.")
	ErrMethod   = fault.New(fault.Invalid, "connect_method_not_allowed", "A browser opens this address with GET.")
	ErrPrefetch = fault.New(fault.Denied, "connect_link_prefetched", "A one-time link cannot be prefetched.")
)

// The paths, as they stand in logs.
const (
	linkPath     = "/oauth/connect/"
	callbackPath = "/oauth/callback/"
)

// The lives of the cookies in seconds: a little longer than the steps that they are for.
const (
	openedAge  = 11 * 60
	starterAge = 21 * 60
)

// Handler answers
//
//	GET /oauth/connect/{link}
//	GET /oauth/callback/{tenant}/{component}
//
// with a redirect, a page or, for who accepts application/json and no page, a JSON
// document; an error is then a problem (RFC 9457). Every answer carries
// X-Request-Id, which the log line of the request repeats. A HEAD uses nothing up.
type Handler struct {
	service Service
	log     *slog.Logger
	prefix  string // of the names of cookies
	path    string // of cookies
	secure  bool
	ids     *v1.RequestIDs
}

// New makes a Handler.
func New(cfg Config) *Handler {
	h := &Handler{service: cfg.Service, log: cfg.Logger, ids: v1.NewRequestIDs(), prefix: "credstream-", path: "/oauth"}
	if h.log == nil {
		h.log = slog.New(slog.DiscardHandler)
	}
	if u, err := url.Parse(cfg.PublicURL); err == nil && u.Scheme == "https" {
		// Such a cookie cannot be put there by a neighbour of the host (RFC 6265bis,
		// section 4.1.3.2). It has to be for the whole host.
		h.secure, h.prefix, h.path = true, "__Host-credstream-", "/"
	} else if err == nil {
		h.path = u.EscapedPath() + "/oauth"
	}
	return h
}

// Answered makes known the browser that has asked for a link: it sets a cookie
// beside the answer of oauth.connect. Other answers it leaves as they are.
func (h *Handler) Answered(header http.Header, answer any) {
	if c, ok := answer.(connect.Connected); ok && c.Starter() != "" {
		header.Add("Set-Cookie", h.cookie("start-"+c.ID, c.Starter(), starterAge))
	}
}

// cookie writes a cookie that only this service reads, and that a browser brings
// along when the provider sends it back.
func (h *Handler) cookie(name, value string, age int) string {
	c := http.Cookie{ //nolint:gosec // not Secure where browser and service are on one machine
		Name: h.prefix + name, Value: value, Path: h.path, MaxAge: age,
		HttpOnly: true, Secure: h.secure, SameSite: http.SameSiteLaxMode,
	}
	return c.String()
}

// exchange is one request on its way to its answer.
type exchange struct {
	*Handler
	w       http.ResponseWriter
	r       *http.Request
	id      string
	pattern string // of the path, "" while unknown
	tenant  string // once it is known
	status  int    // 0 until the answer begins
	err     error  // what the answer was made of
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := &exchange{Handler: h, w: w, r: r, id: h.ids.Of(r)}
	header := w.Header()
	header.Set("X-Request-Id", x.id)
	header.Set("Cache-Control", "no-store")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Content-Security-Policy", pagePolicy)
	defer func() {
		v := recover()
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
			panic(http.ErrAbortHandler) // the answer has begun: the browser must see that it is cut
		}
	}()
	x.route()
}

// route finds what the path names. It is taken literally.
func (x *exchange) route() {
	path := x.r.URL.EscapedPath()
	var serve func()
	if link, ok := strings.CutPrefix(path, linkPath); ok && plain(link) {
		x.pattern, serve = linkPath+"{link}", func() { x.open(link) }
	}
	if context, ok := strings.CutPrefix(path, callbackPath); ok {
		tenant, component, _ := strings.Cut(context, "/")
		if plain(tenant) && plain(component) {
			x.pattern, serve = callbackPath+"{tenant}/{component}", func() { x.callback(tenant, component) }
		}
	}
	switch {
	case serve == nil:
		x.fail(ErrPath)
	case x.r.Method != http.MethodGet:
		x.w.Header().Set("Allow", http.MethodGet)
		x.fail(ErrMethod)
	default:
		serve()
	}
}

// plain reports whether a part of a path is one, and written as it is read.
func plain(part string) bool {
	return part != "" && len(part) <= 256 && !strings.ContainsAny(part, "/%")
}

// browser reads the cookies of the request.
func (x *exchange) browser(connection string) (opened, starter string) {
	value := func(name string) string {
		// Of two cookies with one name, one was put there by somebody else.
		if given := x.r.CookiesNamed(x.prefix + name + connection); len(given) == 1 {
			return given[0].Value
		}
		return ""
	}
	return value("connect-"), value("start-")
}

// from is the address of the browser, or of the proxy before it.
func (x *exchange) from() netip.Addr {
	remote, _ := netip.ParseAddrPort(x.r.RemoteAddr)
	return remote.Addr()
}

// open answers a link.
func (x *exchange) open(link string) {
	if x.r.Header.Get("Sec-Purpose") != "" || x.r.Header.Get("Purpose") != "" || x.r.Header.Get("X-Purpose") != "" {
		x.fail(ErrPrefetch)
		return
	}
	opened, err := x.service.OpenLink(x.r.Context(), link, x.from(), x.browser)
	if err != nil {
		x.fail(err)
		return
	}
	x.tenant = opened.Tenant
	x.w.Header().Add("Set-Cookie", x.cookie("connect-"+opened.Connection, opened.Cookie, openedAge))
	x.redirect(opened.Location)
}

// callback answers what the provider sends back.
func (x *exchange) callback(tenant, component string) {
	back, err := x.service.ReturnConnection(x.r.Context(), connect.Callback{
		Tenant: tenant, Component: component, Query: x.r.URL.RawQuery, From: x.from(), Browser: x.browser,
	})
	if back.Connection != "" {
		x.tenant = tenant
		if f := fault.Of(err); f == nil || f.Kind != fault.Unavailable {
			for _, name := range []string{"connect-", "start-"} {
				x.w.Header().Add("Set-Cookie", x.cookie(name+back.Connection, "", -1))
			}
		}
	}
	switch {
	case back.Location != "":
		x.err = err
		x.redirect(back.Location)
	case err != nil:
		x.fail(err)
	case back.Confirm != "":
		x.confirm(back)
	default:
		x.done(back)
	}
}

// redirect sends the browser on. There is no body: it would repeat the address.
func (x *exchange) redirect(to string) {
	x.w.Header().Set("Location", to)
	x.status = http.StatusFound
	x.w.WriteHeader(x.status)
}

// asksJSON reports whether the answer is for a program.
func (x *exchange) asksJSON() bool {
	accept := strings.Join(x.r.Header["Accept"], ",")
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html")
}

// confirmation is what a program is told that brings the provider's answer for
// somebody else.
type confirmation struct {
	Connection string `json:"connection"`
	Confirm    string `json:"confirm"` // for oauth.complete
}

func (x *exchange) confirm(back connect.Returned) {
	if x.asksJSON() {
		x.json(http.StatusOK, "application/json", confirmation{back.Connection, back.Confirm})
		return
	}
	x.page(http.StatusOK, page{
		Title: "One more step", Code: back.Confirm[:len(back.Confirm)/2] + "-" + back.Confirm[len(back.Confirm)/2:],
		Text: []string{
			"The provider has answered. Nothing is connected yet: enter this code where you started, within ten minutes.",
			"Did somebody else send you the link? Then close this page and do not share the code: it would give them access to your account.",
		},
	})
}

func (x *exchange) done(back connect.Returned) {
	if x.asksJSON() {
		x.json(http.StatusOK, "application/json", back.Done)
		return
	}
	x.page(http.StatusOK, page{
		Title: "Connected", Text: []string{"The account is connected. You can close this page."},
		Detail: fmt.Sprintf("Credential %s, version %d, %s", back.Done.ID, back.Done.Version, back.Done.Status),
	})
}

// fail answers with err: a page, or a problem.
func (x *exchange) fail(err error) {
	x.err = err
	f := fault.Of(err)
	p := f.Problem()
	p.RequestID = x.id
	if errors.Is(f, ErrMethod) {
		p.Status = http.StatusMethodNotAllowed
		p.Title = http.StatusText(p.Status)
	}
	if p.RetryAfter > 0 {
		x.w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	if x.asksJSON() {
		x.json(p.Status, "application/problem+json", p)
		return
	}
	x.page(p.Status, page{Title: "Not connected", Text: []string{p.Detail}, Detail: p.Code + ", request " + x.id})
}

func (x *exchange) json(status int, mediaType string, answer any) {
	b, err := json.Marshal(answer, json.Deterministic(true))
	if err != nil { // what is answered here marshals
		status, b = http.StatusInternalServerError, []byte("{}")
	}
	x.bytes(status, mediaType, append(b, '\n'))
}

func (x *exchange) bytes(status int, mediaType string, b []byte) {
	header := x.w.Header()
	header.Set("Content-Type", mediaType)
	header.Set("Content-Length", strconv.Itoa(len(b)))
	x.status = status
	x.w.WriteHeader(status)
	_, _ = x.w.Write(b) // a browser that is gone needs no answer
}

// note writes the request's line of the log. Paths and parameters are not in it:
// they hold secrets.
func (x *exchange) note(took time.Duration) {
	level := slog.LevelInfo
	if x.status >= 500 {
		level = slog.LevelError
	}
	method := x.r.Method
	if method != http.MethodGet && method != http.MethodHead && method != http.MethodPost {
		method = "other"
	}
	attrs := []slog.Attr{
		slog.String("method", method), slog.String("route", x.pattern), slog.Int("status", x.status),
		slog.Duration("duration", took), slog.String("request_id", x.id),
	}
	if x.tenant != "" {
		attrs = append(attrs, slog.String("tenant", x.tenant))
	}
	if x.err != nil {
		attrs = append(attrs, slog.String("code", fault.Of(x.err).Code))
		if fault.Of(x.err).Kind == fault.Internal {
			attrs = append(attrs, slog.String("err", x.err.Error()))
		}
	}
	x.log.LogAttrs(x.r.Context(), level, "request", attrs...)
}
