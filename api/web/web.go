// Package web is the web interface: credentials by component, forms that are generated from
// component.json files, and repair of broken connections. It is an edge like the
// others: every read and every change is a call of the service's route table on behalf of the
// user's API key, and it has no business rules.
//
// Pages are rendered on the server and work without JavaScript, except for live updates. A page
// never contains a secret, except one field that a caller with the permission reveals.
package web

import (
	"context"
	"embed"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
)

// Prefix is the prefix of all paths of this package.
const Prefix = "/ui/"

// Access is the part of *access.Service that the handler calls.
type Access interface {
	edge.Sessions
	// Require returns an error if the caller lacks the permission, and records the denial.
	Require(ctx context.Context, call service.Call, route string, perm permission.Permission) error
}

// Config configures a Handler. Service, Access and Live are required.
type Config struct {
	Service edge.Service
	Access  Access
	Live    *admin.Live  // sends updates to open pages
	Logger  *slog.Logger // one line per request; nil discards them
	// PublicURL is where browsers reach the service. If it is https, cookies are sent over TLS only.
	PublicURL string
	// AllowCleartext accepts and returns secrets also over plain HTTP. Set it only if all connections
	// come from a TLS-terminating proxy, or the port accepts TLS only.
	AllowCleartext bool
	// Answered may add headers to the response of a command; optional.
	Answered func(header http.Header, answer any)
	Ready    func() []string // reasons why the service is not ready; empty if it is
	Notes    func() []string // additional notes for the operator
	Version  string          // version of the program
}

// policy allows nothing from other origins, nothing inline and no frames. An image may be a data:
// URL of a component.json.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// ErrForm rejects an unreadable form.
var ErrForm = fault.New(fault.Invalid, "web_form_invalid", "The form could not be read. Reload the page and try again.")

// Handler returns the handler of all paths below Prefix.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg, routes: map[string]service.Route{}, mux: http.NewServeMux()}
	for _, r := range application.Routes() {
		h.routes[r.Name] = r
	}
	h.cookies(cfg.PublicURL)
	h.register()
	return edge.Handler(cfg.Logger, func(x *edge.Exchange) edge.Dialect { return &exchange{Exchange: x, handler: h} })
}

type handler struct {
	cfg          Config
	routes       map[string]service.Route
	mux          *http.ServeMux
	cookie       cookieForm // of a session
	signInCookie cookieForm // of a sign-in at the issuer
}

// exchange is one request and its response.
type exchange struct {
	*edge.Exchange
	*handler
	call     service.Call // of the signed-in person
	form     url.Values   // of a POST
	signedIn bool
}

type exchangeKey struct{}

// register adds the pages. Those of a tenant require a session.
func (h *handler) register() {
	for pattern, do := range map[string]func(*exchange) error{
		"GET /{$}":                 func(x *exchange) error { return x.redirect(Prefix) },
		"GET /ui":                  func(x *exchange) error { return x.redirect(Prefix) },
		"GET /ui/{$}":              (*exchange).home,
		"GET /ui/sign-in":          (*exchange).signInPage,
		"POST /ui/sign-in":         (*exchange).signIn,
		"GET /ui/sign-in/issuer":   (*exchange).beginSignIn,
		"GET /ui/sign-in/callback": (*exchange).endSignIn,
		"POST /ui/sign-out":        (*exchange).signOut,
		"GET /ui/app.css":          (*exchange).asset,
		"GET /ui/app.js":           (*exchange).asset,
		"/":                        func(*exchange) error { return edge.ErrPathUnknown },
	} {
		h.handle(pattern, do)
	}
	for pattern, do := range map[string]func(*exchange) error{
		"GET {$}":                     (*exchange).tenantHome,
		"GET events":                  (*exchange).follow,
		"GET credentials":             (*exchange).listCredentials,
		"GET new-credential":          (*exchange).newCredential,
		"POST new-credential":         (*exchange).createCredential,
		"GET credentials/{id}":        (*exchange).showCredential,
		"POST credentials/{id}":       (*exchange).changeCredential,
		"GET credentials/{id}/keys":   (*exchange).keysForm,
		"POST credentials/{id}/keys":  (*exchange).replaceKeys,
		"GET credentials/{id}/delete": (*exchange).confirmDelete,
		"GET connections/{id}":        (*exchange).showConnection,
		"POST connections/{id}":       (*exchange).completeConnection,
		"GET attention":               (*exchange).attention,
		"GET components":              (*exchange).listComponents,
		"GET new-component":           (*exchange).newComponent,
		"POST new-component":          (*exchange).registerComponent,
		"GET components/{id}":         (*exchange).showComponent,
		"POST components/{id}":        (*exchange).changeComponent,
		"GET components/{id}/delete":  (*exchange).confirmDeleteComponent,
		"GET oauth-clients":           (*exchange).listClients,
		"POST oauth-clients":          (*exchange).changeClient,
		"GET flows":                   (*exchange).listFlows,
		"GET flows/{id}":              (*exchange).showFlow,
		"GET keys":                    (*exchange).listKeys,
		"POST keys":                   (*exchange).changeKey,
		"GET webhooks":                (*exchange).listWebhooks,
		"POST webhooks":               (*exchange).defineWebhook,
		"GET webhooks/{id}":           (*exchange).showWebhook,
		"POST webhooks/{id}":          (*exchange).changeWebhook,
		"GET webhooks/{id}/delete":    (*exchange).confirmDeleteWebhook,
		"GET dead-letters":            (*exchange).listDeadLetters,
		"POST dead-letters":           (*exchange).changeDeadLetters,
		"GET audit":                   (*exchange).audit,
		"GET audit/{format}":          (*exchange).exportAudit,
		"GET status":                  (*exchange).status,
	} {
		method, path, _ := strings.Cut(pattern, " ")
		h.handle(method+" /ui/t/{tenant}/"+path, signedIn(do))
	}
}

func (h *handler) handle(pattern string, do func(*exchange) error) {
	h.mux.HandleFunc(pattern, func(_ http.ResponseWriter, r *http.Request) {
		x := r.Context().Value(exchangeKey{}).(*exchange) //nolint:forcetypeassert // Serve puts it there
		x.R = r
		if _, path, found := strings.Cut(pattern, " "); found {
			x.Pattern = path
		}
		if err := do(x); err != nil {
			x.Fail(err)
		}
	})
}

// Serve implements edge.Dialect.
func (x *exchange) Serve() {
	header := x.W.Header()
	header.Set("Content-Security-Policy", policy)
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Referrer-Policy", "same-origin")  // without a referrer, a form of ours would have the origin "null"
	if err := edge.CheckOrigin(x.R); err != nil { // a browser sends the cookie automatically
		x.Fail(err)
		return
	}
	if x.R.Method == http.MethodHead { // HEAD is not supported
		x.Allows("GET, POST")
		return
	}
	x.mux.ServeHTTP(x.W, x.R.WithContext(context.WithValue(x.R.Context(), exchangeKey{}, x)))
}

// signedIn wraps do for callers with a session; others are redirected to the sign-in page.
func signedIn(do func(*exchange) error) func(*exchange) error {
	return func(x *exchange) error {
		p, err := x.session()
		if err != nil && fault.Of(err).Kind == fault.Unauthenticated {
			return x.askToSignIn(err)
		}
		if err != nil {
			return err
		}
		x.call = x.CallOf(p, x.cfg.AllowCleartext)
		x.call.Tenant, x.signedIn = x.R.PathValue("tenant"), true
		if x.call.Tenant != "" && !p.Reaches(x.call.Tenant) { // also for pages that call no route of the tenant
			x.call.Tenant = p.Home
			return service.ErrTenantNotFound
		}
		if x.R.Method == http.MethodPost {
			if err := x.readForm(); err != nil {
				return err
			}
		}
		return do(x)
	}
}

// readForm admits the call and reads the body of a POST.
func (x *exchange) readForm() error {
	body, err := x.Receive(x.cfg.Service, &x.call, func(contentType []string) bool {
		return len(contentType) == 1 && strings.HasPrefix(contentType[0], "application/x-www-form-urlencoded")
	})
	if err != nil {
		return err
	}
	if x.form, err = url.ParseQuery(string(body)); err != nil {
		return ErrForm
	}
	// The command id of the form: a second click executes the command only once.
	x.call.CommandID = x.form.Get("_command")
	if len(x.call.CommandID) > 64 {
		return ErrForm
	}
	return nil
}

// ask calls a route with in as the body.
func ask[T any](x *exchange, route string, in any) (out T, err error) {
	if x.routes[route].Secrets && !x.call.Confidential {
		return out, credential.ErrCleartext
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, ErrForm
	}
	answer, err := x.cfg.Service.Serve(x.R.Context(), x.call, route, body)
	x.SetTenant(x.call.Tenant, err)
	if err != nil {
		return out, err
	}
	if x.cfg.Answered != nil {
		x.cfg.Answered(x.W.Header(), answer)
	}
	switch v := answer.(type) {
	case T:
		return v, nil
	case *T: // the response of a repeated command
		return *v, nil
	case interface{ Completed() service.Done }:
		if done, ok := any(v.Completed()).(T); ok {
			return done, nil
		}
	}
	return out, fmt.Errorf("%s answered %T", route, answer)
}

// do executes a command and returns only its Done.
func (x *exchange) do(route string, in any) (service.Done, error) {
	return ask[service.Done](x, route, in)
}

// may reports whether the caller may call a route. A page does not offer other routes; the
// service checks the permission again.
func (x *exchange) may(route string) bool {
	r, known := x.routes[route]
	return known && x.signedIn && (x.call.Principal.May(r.Permission) || r.AltPermission != "" && x.call.Principal.May(r.AltPermission))
}

// redirect makes the browser read the page that shows the change.
func (x *exchange) redirect(to string) error {
	x.W.Header().Set("Location", to)
	x.End(http.StatusSeeOther)
	return nil
}

// path returns the path of a page of the tenant.
func (x *exchange) path(parts ...string) string {
	escaped := []string{"/ui/t", url.PathEscape(x.call.Tenant)}
	for _, p := range parts {
		escaped = append(escaped, url.PathEscape(p))
	}
	return strings.Join(escaped, "/")
}

// done redirects the browser to the page that shows the change, which waits for the views.
func (x *exchange) done(what string, seq uint64, parts ...string) error {
	return x.redirect(fmt.Sprintf("%s?did=%s&seq=%d", x.path(parts...), what, seq))
}

// Serves reports whether a request is for this package: below Prefix, or for the root from a
// browser.
func Serves(r *http.Request) bool {
	path := r.URL.EscapedPath()
	return strings.HasPrefix(path, Prefix) || path == "/ui" || path == "/" && r.Method == http.MethodGet && strings.Contains(r.Header.Get("Accept"), "text/html")
}

// Problem writes an error page.
func (x *exchange) Problem(p fault.Problem) {
	if err := x.render(p.Status, "error", view{Title: p.Title, Data: p}); err != nil {
		x.Write(http.StatusInternalServerError, "text/plain; charset=utf-8", []byte("Internal error. Give the operator the request id "+x.ID+".\n"))
	}
}

//go:embed assets
var assets embed.FS

// asset writes the style sheet or the script.
func (x *exchange) asset() error {
	name := strings.TrimPrefix(x.R.URL.Path, Prefix)
	b, err := assets.ReadFile("assets/" + name)
	if err != nil {
		return err
	}
	media := "text/css; charset=utf-8"
	if strings.HasSuffix(name, ".js") {
		media = "text/javascript; charset=utf-8"
	}
	x.Quiet = true
	x.Write(http.StatusOK, media, b)
	return nil
}
