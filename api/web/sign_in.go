package web

import (
	"encoding/base64"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/credential"
)

// begun is a sign-in at the issuer that this browser has begun: a cookie keeps it.
type begun struct {
	access.SignIn
	Next string `json:"next"`
}

const signInLife = 600 // seconds

// begunHere returns the sign-in that the browser has begun; a zero one completes nothing.
func (x *exchange) begunHere() (b begun) {
	value, _ := x.cookieValue(x.signInCookie)
	raw, err := base64.RawURLEncoding.DecodeString(value)
	if err != nil || json.Unmarshal(raw, &b) != nil {
		return begun{}
	}
	return b
}

// callback is where the issuer sends the browser back; empty if it is not known where browsers
// reach the service.
func (x *exchange) callback() string {
	if x.cfg.PublicURL == "" {
		return ""
	}
	return strings.TrimSuffix(x.cfg.PublicURL, "/") + "/ui/sign-in/callback"
}

// issuer is the host of the issuer at which people can sign in; empty if they cannot.
func (x *exchange) issuer() string {
	if x.callback() == "" {
		return ""
	}
	return x.cfg.Access.SignInIssuer()
}

func (x *exchange) beginSignIn() error {
	if x.callback() == "" {
		return access.ErrSignInOff
	}
	if call := x.CallOf(service.Principal{}, x.cfg.AllowCleartext); !call.Confidential {
		return credential.ErrCleartext
	}
	next := ours(x.R.URL.Query().Get("next"))
	to, in, err := x.cfg.Access.BeginSignIn(x.R.Context(), x.callback())
	if err != nil {
		return x.signInFailed(next, err)
	}
	value, err := json.Marshal(begun{in, next})
	if err != nil {
		return err
	}
	x.setCookie(x.signInCookie, base64.RawURLEncoding.EncodeToString(value), signInLife)
	return x.redirect(to)
}

func (x *exchange) endSignIn() error {
	if call := x.CallOf(service.Principal{}, x.cfg.AllowCleartext); !call.Confidential {
		return credential.ErrCleartext
	}
	b := x.begunHere()
	x.setCookie(x.signInCookie, "", -1) // it completes one sign-in
	sealed, p, err := x.cfg.Access.EndSignIn(x.R.Context(), b.SignIn, x.callback(), x.R.URL.Query(), edge.Remote(x.R))
	if err != nil {
		return x.signInFailed(ours(b.Next), err)
	}
	x.Principal = p.Actor.ID
	x.setCookie(x.cookie, sealed, int(access.SessionLife.Seconds()))
	return x.redirect(ours(b.Next))
}

// signInFailed shows why nobody was signed in, and the form to try again.
func (x *exchange) signInFailed(next string, err error) error {
	f := fault.Of(err)
	if f.Kind == fault.Internal {
		return err
	}
	x.Err = err
	return x.render(f.Kind.Status(), "sign-in", view{Title: "Sign in", Data: signInForm{Next: next, Error: f.Msg, Issuer: x.issuer()}})
}
