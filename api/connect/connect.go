// Package connect serves the pages for browsers on their way to a provider and back: it opens
// the one-time links of oauth.connect, handles the provider's callback, and shows the outcome.
// It has no business rules: the service decides who may complete a connection.
package connect

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/connect"
)

// Service is the part of *connect.Service that the handler calls.
type Service interface {
	// OpenLink consumes a link and returns where to redirect the browser.
	OpenLink(ctx context.Context, link string, from netip.Addr, browser connect.Browser) (connect.OpenedLink, error)
	// ReturnConnection handles the provider's response.
	ReturnConnection(ctx context.Context, cb connect.Callback) (connect.Returned, error)
}

// Config configures a Handler. Service is required.
type Config struct {
	Service Service
	// PublicURL is the URL where browsers reach the service, validated by service.PublicURL. It
	// determines the attributes of cookies; the Host header is ignored.
	PublicURL string
	Logger    *slog.Logger // one line per request; nil discards them
}

// Errors that HTTP adds to those of the service.
var (
	ErrPath     = fault.New(fault.NotFound, "connect_path_unknown", "No such path.")
	ErrMethod   = fault.New(fault.Invalid, "connect_method_not_allowed", "Method not allowed: use GET.")
	ErrPrefetch = fault.New(fault.Denied, "connect_link_prefetched", "A one-time link cannot be prefetched.")
)

// The path patterns in log lines.
const (
	linkPath     = "/oauth/connect/"
	callbackPath = "/oauth/callback/"
)

// The lifetimes of the cookies in seconds: a little longer than the steps that they are for.
const (
	openedAge  = 11 * 60
	starterAge = 21 * 60
)

// Handler serves
//
//	GET /oauth/connect/{link}
//	GET /oauth/callback/{tenant}/{component}
//	POST /oauth/callback/{tenant}/{component}  (response_mode=form_post)
//
// It answers with a redirect, a page or, if Accept has application/json but not text/html, a
// JSON document; an error is then a problem document (RFC 9457). HEAD has no effect on a link.
type Handler struct {
	http.Handler
	service Service
	prefix  string // prefix of the cookies' names
	path    string // path of the cookies
	secure  bool
}

// New returns a Handler.
func New(cfg Config) *Handler {
	h := &Handler{service: cfg.Service, prefix: "credstream-", path: "/oauth"}
	h.Handler = edge.Handler(cfg.Logger, func(x *edge.Exchange) edge.Dialect { return &exchange{x, h} })
	if u, err := url.Parse(cfg.PublicURL); err == nil && u.Scheme == "https" {
		// A __Host- cookie cannot be set by a sibling domain (RFC 6265bis, section 4.1.3.2). It
		// requires the path "/".
		h.secure, h.prefix, h.path = true, "__Host-credstream-", "/"
	} else if err == nil {
		h.path = u.EscapedPath() + "/oauth"
	}
	return h
}

// DecorateResponse sets the cookie that identifies the browser that requested the link, if answer is
// the response of oauth.connect. It ignores other responses.
func (h *Handler) DecorateResponse(header http.Header, answer any) {
	if c, ok := answer.(connect.Connected); ok && c.Starter() != "" {
		header.Add("Set-Cookie", h.cookie("start-"+c.ID, c.Starter(), starterAge))
	}
}

// cookie formats a cookie that scripts cannot read. SameSite=Lax: the browser sends it when the
// provider redirects back.
func (h *Handler) cookie(name, value string, age int) string {
	c := http.Cookie{ //nolint:gosec // not Secure if browser and service are on the same machine
		Name: h.prefix + name, Value: value, Path: h.path, MaxAge: age,
		HttpOnly: true, Secure: h.secure, SameSite: http.SameSiteLaxMode,
	}
	return c.String()
}

// exchange is one request and its response.
type exchange struct {
	*edge.Exchange
	h *Handler
}

// Serve routes by path. The path is not normalized.
func (x *exchange) Serve() {
	header := x.W.Header()
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Content-Security-Policy", pagePolicy)
	path := x.R.URL.EscapedPath()
	var serve func()
	formPost := false
	if link, ok := strings.CutPrefix(path, linkPath); ok && plain(link) {
		x.Pattern, serve = linkPath+"{link}", func() { x.open(link) }
	}
	if context, ok := strings.CutPrefix(path, callbackPath); ok {
		tenant, component, _ := strings.Cut(context, "/")
		if plain(tenant) && plain(component) {
			x.Pattern, serve = callbackPath+"{tenant}/{component}", func() { x.callback(tenant, component) }
			formPost = x.R.Method == http.MethodPost
		}
	}
	switch {
	case serve == nil:
		x.Fail(ErrPath)
	case formPost:
		x.formPost(path)
	case x.R.Method != http.MethodGet:
		x.FailAs(http.StatusMethodNotAllowed, ErrMethod)
	default:
		serve()
	}
}

// plain reports whether part is one non-empty path segment without escapes.
func plain(part string) bool {
	return part != "" && len(part) <= 256 && !strings.ContainsAny(part, "/%")
}

// browser returns the values of the two cookies; "" if missing.
func (x *exchange) browser(connection string) (opened, starter string) {
	value := func(name string) string {
		// Of two cookies with the same name, one was set by somebody else.
		if given := x.R.CookiesNamed(x.h.prefix + name + connection); len(given) == 1 {
			return given[0].Value
		}
		return ""
	}
	return value("connect-"), value("start-")
}

// open handles a link.
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

// callback handles the provider's response.
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

// maxFormPost bounds the form of a provider's response, in bytes.
const maxFormPost = 16 << 10

// formPost handles a provider's response in a form (OAuth 2.0 Form Post Response Mode). Browsers send
// no cookies with a form of another site, so it redirects to the same response as a query.
func (x *exchange) formPost(path string) {
	kind, _, _ := strings.Cut(x.R.Header.Get("Content-Type"), ";")
	body, err := io.ReadAll(io.LimitReader(x.R.Body, maxFormPost+1))
	form, parseErr := url.ParseQuery(string(body))
	if strings.TrimSpace(kind) != "application/x-www-form-urlencoded" || err != nil || parseErr != nil || len(body) > maxFormPost {
		x.Fail(connect.ErrConnectionAnswer)
		return
	}
	x.W.Header().Set("Location", path+"?"+form.Encode())
	x.End(http.StatusSeeOther)
}

// redirect writes no body: it would repeat the address.
func (x *exchange) redirect(to string) {
	x.W.Header().Set("Location", to)
	x.End(http.StatusFound)
}

// asksJSON reports whether the client wants JSON instead of a page.
func (x *exchange) asksJSON() bool {
	accept := strings.Join(x.R.Header["Accept"], ",")
	return strings.Contains(accept, "json") && !strings.Contains(accept, "text/html")
}

// confirmation is the JSON form of the last page: the code for oauth.complete.
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

// Problem writes an error page, or a problem document if the client wants JSON.
func (x *exchange) Problem(p fault.Problem) {
	if x.asksJSON() {
		x.Exchange.Problem(p)
		return
	}
	x.page(p.Status, page{Title: "Not connected", Text: []string{p.Detail}, Detail: p.Code + ", request " + x.ID})
}
