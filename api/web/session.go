package web

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/credential"
)

// cookieForm has the attributes of the session cookie.
type cookieForm struct {
	name   string
	path   string
	secure bool
}

// cookies sets the attributes of the cookie. Over TLS it is bound to the host (RFC 6265bis, section
// 4.1.3.2). On the same machine it has no such name, which browsers accept only over TLS.
func (h *handler) cookies(publicURL string) {
	h.cookie = cookieForm{name: "credstream-session", path: "/ui"}
	if u, err := url.Parse(publicURL); h.cfg.AllowCleartext || err == nil && u.Scheme == "https" {
		h.cookie = cookieForm{name: "__Host-credstream-session", path: "/", secure: true}
	}
}

func (x *exchange) setSession(value string, age int) {
	c := http.Cookie{ //nolint:gosec // not Secure where browser and service are on one machine
		Name: x.cookie.name, Value: value, Path: x.cookie.path, MaxAge: age,
		HttpOnly: true, Secure: x.cookie.secure, SameSite: http.SameSiteStrictMode,
	}
	x.W.Header().Add("Set-Cookie", c.String())
}

// session returns the principal of the request's session, or an error of the kind
// Unauthenticated.
func (x *exchange) session() (service.Principal, error) {
	given := x.R.CookiesNamed(x.cookie.name)
	if len(given) != 1 { // of two cookies with the same name, one was set by somebody else
		return service.Principal{}, service.ErrUnauthenticated
	}
	return x.cfg.Access.OpenSession(x.R.Context(), given[0].Value, edge.Remote(x.R))
}

// askToSignIn responds to a request without a session. A browser that follows a link of another
// site does not send the cookie: the page reloads itself, and then the browser sends it.
func (x *exchange) askToSignIn(why error) error {
	to := Prefix + "sign-in?next=" + url.QueryEscape(x.R.URL.RequestURI())
	switch {
	case x.R.Method != http.MethodGet, strings.HasSuffix(x.R.URL.Path, "/events"):
		return why
	case x.R.Header.Get("Sec-Fetch-Site") == "cross-site" && x.R.Header.Get("Sec-Fetch-Mode") == "navigate":
		x.W.Header().Set("Refresh", "0")
		return x.render(http.StatusOK, "again", view{Title: "One moment"})
	}
	if f := fault.Of(why); f.Code == access.ErrSessionEnded.Code {
		x.setSession("", -1)
		to += "&ended=1"
	}
	return x.redirect(to)
}

// ours returns the page to show after signing in: next if it is one of this package, else the first page.
func ours(next string) string {
	if strings.HasPrefix(next, Prefix+"t/") && !strings.ContainsAny(next, "\\\r\n") {
		return next
	}
	return Prefix
}

func (x *exchange) home() error {
	p, err := x.session()
	if err != nil {
		if fault.Of(err).Kind == fault.Unauthenticated {
			return x.askToSignIn(err)
		}
		return err
	}
	x.call.Tenant = p.Home
	return x.redirect(x.path("credentials"))
}

func (x *exchange) tenantHome() error { return x.redirect(x.path("credentials")) }

// signInForm is the data of the sign-in page.
type signInForm struct {
	Next   string
	Ended  bool
	Error  string
	Issuer string // host of the OpenID Connect issuer; empty if nobody can sign in there
}

func (x *exchange) signInPage() error {
	q := x.R.URL.Query()
	return x.render(http.StatusOK, "sign-in", view{Title: "Sign in", Data: signInForm{Next: ours(q.Get("next")), Ended: q.Has("ended"), Issuer: x.issuer()}})
}

// maxSignIn is the maximum size in bytes of a form from an unauthenticated client.
const maxSignIn = 8 << 10

func (x *exchange) signIn() error {
	call := x.CallOf(service.Principal{}, x.cfg.AllowCleartext)
	if !call.Confidential { // before the key is read
		return credential.ErrCleartext
	}
	x.R.Body = http.MaxBytesReader(x.W, x.R.Body, maxSignIn)
	if err := x.R.ParseForm(); err != nil {
		return ErrForm
	}
	next := ours(x.R.PostForm.Get("next"))
	sealed, p, err := x.cfg.Access.StartSession(x.R.Context(), strings.TrimSpace(x.R.PostForm.Get("key")), edge.Remote(x.R))
	if err != nil {
		f := fault.Of(err)
		if f.Kind != fault.Unauthenticated && f.Kind != fault.Throttled {
			return err
		}
		return x.signInFailed(next, err)
	}
	x.Principal = p.Actor.ID
	x.setSession(sealed, int(access.SessionLife.Seconds()))
	return x.redirect(next)
}

func (x *exchange) signOut() error {
	x.setSession("", -1)
	x.W.Header().Set("Clear-Site-Data", `"cache"`)
	return x.redirect(Prefix + "sign-in")
}
