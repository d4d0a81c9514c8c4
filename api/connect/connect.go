// Package connect is the edge for browsers on their way to a provider and back: it
// opens the one-time links that oauth.connect makes, takes the provider's answer,
// and tells the person what became of it. It owns no rule but those of HTTP; who
// may complete what is the service's to say.
package connect

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/credstream/credstream/api/edge"
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
	ErrMethod   = fault.New(fault.Invalid, "connect_method_not_allowed", "Method not allowed: use GET.")
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
// document; an error is then a problem (RFC 9457). A HEAD uses nothing up.
type Handler struct {
	http.Handler
	service Service
	prefix  string // of the names of cookies
	path    string // of cookies
	secure  bool
}

// New makes a Handler.
func New(cfg Config) *Handler {
	h := &Handler{service: cfg.Service, prefix: "credstream-", path: "/oauth"}
	h.Handler = edge.Handler(cfg.Logger, func(x *edge.Exchange) edge.Dialect { return &exchange{x, h} })
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
	*edge.Exchange
	h *Handler
}

// Serve finds what the path names. It is taken literally.
func (x *exchange) Serve() {
	header := x.W.Header()
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Content-Security-Policy", pagePolicy)
	path := x.R.URL.EscapedPath()
	var serve func()
	if link, ok := strings.CutPrefix(path, linkPath); ok && plain(link) {
		x.Pattern, serve = linkPath+"{link}", func() { x.open(link) }
	}
	if context, ok := strings.CutPrefix(path, callbackPath); ok {
		tenant, component, _ := strings.Cut(context, "/")
		if plain(tenant) && plain(component) {
			x.Pattern, serve = callbackPath+"{tenant}/{component}", func() { x.callback(tenant, component) }
		}
	}
	switch {
	case serve == nil:
		x.Fail(ErrPath)
	case x.R.Method != http.MethodGet:
		x.FailAs(http.StatusMethodNotAllowed, ErrMethod)
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
		if given := x.R.CookiesNamed(x.h.prefix + name + connection); len(given) == 1 {
			return given[0].Value
		}
		return ""
	}
	return value("connect-"), value("start-")
}

// open answers a link.
func (x *exchange) open(link string) {
	if x.R.Header.Get("Sec-Purpose") != "" || x.R.Header.Get("Purpose") != "" || x.R.Header.Get("X-Purpose") != "" {
		x.Fail(ErrPrefetch)
		return
	}
	opened, err := x.h.service.OpenLink(x.R.Context(), link, edge.Remote(x.R), x.browser)
	if err != nil {
		x.Fail(err)
		return
	}
	x.Tenant = opened.Tenant
	x.W.Header().Add("Set-Cookie", x.h.cookie("connect-"+opened.Connection, opened.Cookie, openedAge))
	x.redirect(opened.Location)
}

// callback answers what the provider sends back.
func (x *exchange) callback(tenant, component string) {
	back, err := x.h.service.ReturnConnection(x.R.Context(), connect.Callback{
		Tenant: tenant, Component: component, Query: x.R.URL.RawQuery, From: edge.Remote(x.R), Browser: x.browser,
	})
	if back.Connection != "" {
		x.Tenant = tenant
		if f := fault.Of(err); f == nil || f.Kind != fault.Unavailable {
			for _, name := range []string{"connect-", "start-"} {
				x.W.Header().Add("Set-Cookie", x.h.cookie(name+back.Connection, "", -1))
			}
		}
	}
	switch {
	case back.Location != "":
		x.Err = err
		x.redirect(back.Location)
	case err != nil:
		x.Fail(err)
	case back.Confirm != "":
		x.confirm(back)
	default:
		x.done(back)
	}
}

// redirect sends the browser on. There is no body: it would repeat the address.
func (x *exchange) redirect(to string) {
	x.W.Header().Set("Location", to)
	x.End(http.StatusFound)
}

// asksJSON reports whether the answer is for a program.
func (x *exchange) asksJSON() bool {
	accept := strings.Join(x.R.Header["Accept"], ",")
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
		x.JSON(http.StatusOK, edge.MediaJSON, confirmation{back.Connection, back.Confirm})
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
		x.JSON(http.StatusOK, edge.MediaJSON, back.Done)
		return
	}
	x.page(http.StatusOK, page{
		Title: "Connected", Text: []string{"The account is connected. You can close this page."},
		Detail: fmt.Sprintf("Credential %s, version %d, %s", back.Done.ID, back.Done.Version, back.Done.Status),
	})
}

// Problem answers with a page, or for a program as every surface does.
func (x *exchange) Problem(p fault.Problem) {
	if x.asksJSON() {
		x.Exchange.Problem(p)
		return
	}
	x.page(p.Status, page{Title: "Not connected", Text: []string{p.Detail}, Detail: p.Code + ", request " + x.ID})
}
