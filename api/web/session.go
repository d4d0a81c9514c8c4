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

// cookieForm has the attributes of a cookie.
type cookieForm struct {
	name, path string
	secure     bool
	sameSite   http.SameSite
}

// cookies sets the attributes of the cookies. Over TLS they are bound to the host (RFC 6265bis,
// section 4.1.3.2). On the same machine they have no such names, which browsers accept only over
// TLS. That of a sign-in is sent along when the issuer sends the browser back.
func (h *handler) cookies(publicURL string) {
	h.cookie = cookieForm{name: "credstream-session", path: "/ui", sameSite: http.SameSiteStrictMode}
	h.signInCookie = cookieForm{name: "credstream-sign-in", path: "/ui/sign-in", sameSite: http.SameSiteLaxMode}
	if u, err := url.Parse(publicURL); h.cfg.AllowCleartext || err == nil && u.Scheme == "https" {
		for _, c := range []*cookieForm{&h.cookie, &h.signInCookie} {
			c.name, c.path, c.secure = "__Host-"+c.name, "/", true
		}
	}
}

// setCookie sets a cookie for age seconds, or removes it if age is negative.
func (x *exchange) setCookie(form cookieForm, value string, age int) {
	c := http.Cookie{ //nolint:gosec // not Secure where browser and service are on one machine
		Name: form.name, Value: value, Path: form.path, MaxAge: age, HttpOnly: true, Secure: form.secure, SameSite: form.sameSite,
	}
	x.W.Header().Add("Set-Cookie", c.String())
}

// cookieValue returns the value of a cookie of the request: of two with the same name, one was set
// by somebody else.
func (x *exchange) cookieValue(form cookieForm) (value string, ok bool) {
	given := x.R.CookiesNamed(form.name)
	if len(given) != 1 {
		return "", false
	}
	return given[0].Value, true
}

// session returns the principal of the request's session, or an error of the kind
// Unauthenticated.
func (x *exchange) session() (service.Principal, error) {
	sealed, ok := x.cookieValue(x.cookie)
	if !ok {
		return service.Principal{}, service.ErrUnauthenticated
	}
	return x.cfg.Access.OpenSession(x.R.Context(), sealed, edge.Remote(x.R))
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
		x.setCookie(x.cookie, "", -1)
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
	x.setCookie(x.cookie, sealed, int(access.SessionLife.Seconds()))
	return x.redirect(next)
}

func (x *exchange) signOut() error {
	x.setCookie(x.cookie, "", -1)
	x.W.Header().Set("Clear-Site-Data", `"cache"`)
	return x.redirect(Prefix + "sign-in")
}
