package edge

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"strings"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
)

// Service is what a surface needs of *service.Kernel.
type Service interface {
	// Serve answers one call of the route with a JSON body.
	Serve(ctx context.Context, call service.Call, route string, body []byte) (any, error)
	// Receive gives the call its place, has its body read and waits for its turn.
	Receive(ctx context.Context, call *service.Call, size int64, read func() ([]byte, error)) (body []byte, leave func(), err error)
}

// Identities authenticate callers. The address is the one that the request came
// from: a proxy's, where there is one.
type Identities interface {
	// Authenticate returns the principal of an API key.
	Authenticate(ctx context.Context, key string, from netip.Addr) (service.Principal, error)
	// AuthenticateToken returns the principal of a token of an OpenID Connect issuer.
	AuthenticateToken(ctx context.Context, token string, from netip.Addr) (service.Principal, error)
}

// Errors of a request that HTTP adds to the service's.
var (
	ErrPathUnknown = fault.New(fault.NotFound, "path_unknown", "No such path.")
	ErrMediaType   = fault.New(fault.Invalid, "media_type", "The body must be application/json in UTF-8.")
	ErrBodyRead    = fault.New(fault.Invalid, "body_incomplete", "The body is shorter than its Content-Length.")
	// ErrAuthorization refuses an Authorization header that is not one Basic, Bearer or ApiKey.
	ErrAuthorization = fault.New(fault.Unauthenticated, "authorization_invalid",
		"Send one Authorization header: Basic with the key as password, Bearer with the key, or ApiKey with the base64 of id:key.")
	ErrHeaderTwice = fault.New(fault.Invalid, "header_repeated", "Idempotency-Key, X-Correlation-Id and X-Request-Deadline may appear at most once.")
)

// Values of the headers that every response has; nobody changes them.
var (
	nosniff    = []string{"nosniff"}
	noStore    = []string{"no-store"}
	noReferrer = []string{"no-referrer"}
	sameOrigin = []string{"same-origin"}
	noContent  = []string{"default-src 'none'; frame-ancestors 'none'"}
)

// secure sets the headers that every response has: it is what its media type says,
// no cache keeps it, no page of another origin shows or frames it, and it does
// nothing in a browser.
func secure(header http.Header) {
	header["X-Content-Type-Options"] = nosniff
	header["Cache-Control"] = noStore
	header["Referrer-Policy"] = noReferrer
	header["Cross-Origin-Resource-Policy"] = sameOrigin
	header["Content-Security-Policy"] = noContent
}

var origin http.CrossOriginProtection

// CheckOrigin refuses what a page of another origin makes a browser send, except GET,
// HEAD and OPTIONS, which change nothing here. It accepts a client that is no browser.
// Errors: service.ErrCrossOrigin.
func CheckOrigin(r *http.Request) error {
	if origin.Check(r) != nil {
		return service.ErrCrossOrigin
	}
	return nil
}

// CrossSite reports whether a page of another origin makes a browser send the request,
// whatever its method.
func CrossSite(r *http.Request) bool {
	same := http.Request{Method: http.MethodPost, Host: r.Host, Header: r.Header, URL: r.URL}
	return origin.Check(&same) != nil
}

// Allows reports whether the method of the request is among those given, as the Allow
// header lists them. It answers 405 if not.
func (x *Exchange) Allows(methods string) bool {
	for m := range strings.SplitSeq(methods, ", ") {
		if x.R.Method == m {
			return true
		}
	}
	x.W.Header().Set("Allow", methods)
	x.Fail(service.ErrMethod)
	return false
}

// Accepted notes the tenant for the log, unless err says that it does not exist: what
// callers make up does not belong there.
func (x *Exchange) Accepted(tenant string, err error) {
	if !errors.Is(err, service.ErrTenantNotFound) {
		x.Tenant = tenant
	}
}

// Remote is the address of the client, or of the proxy before it. It is invalid when unknown.
func Remote(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	return at.Addr()
}

// Authenticate identifies the caller. The call that it returns lacks what its path and
// headers say. cleartext says that only a TLS terminating proxy can reach the service.
func (x *Exchange) Authenticate(s Identities, cleartext bool) (service.Call, error) {
	principal, err := Identify(s, x.R)
	if err != nil {
		return service.Call{}, err
	}
	x.Principal = principal.Actor.ID
	return service.Call{
		Principal: principal, Via: "http", CrossSite: CrossSite(x.R), Head: x.R.Method == http.MethodHead,
		Confidential: cleartext || x.R.TLS != nil || Remote(x.R).Unmap().IsLoopback(),
	}, nil
}

// Identify authenticates the sender of a request by its one Authorization header: Basic,
// with any user name and a key as the password, Bearer with a key or a token, or ApiKey with
// the base64 of "id:key", of which the id is not looked at, or a key. It returns
// service.ErrUnauthenticated without the header, ErrAuthorization when it is not one of
// these, and the errors of s.
func Identify(s Identities, r *http.Request) (service.Principal, error) {
	from := Remote(r)
	given := r.Header["Authorization"]
	switch len(given) {
	case 0:
		return s.Authenticate(r.Context(), "", from) // who guessed too much is told so
	case 1:
	default:
		return service.Principal{}, ErrAuthorization
	}
	scheme, key, _ := strings.Cut(given[0], " ")
	switch {
	case strings.EqualFold(scheme, "Bearer"):
		key = strings.TrimLeft(key, " ")
		if access.IsToken(key) {
			return s.AuthenticateToken(r.Context(), key, from)
		}
	case strings.EqualFold(scheme, "Basic"):
		var ok bool
		if _, key, ok = r.BasicAuth(); !ok {
			return service.Principal{}, ErrAuthorization
		}
	case strings.EqualFold(scheme, "ApiKey"): // of Elasticsearch's clients
		key = strings.TrimLeft(key, " ")
		if pair, err := base64.StdEncoding.DecodeString(key); err == nil {
			var ok bool
			if _, key, ok = strings.Cut(string(pair), ":"); !ok {
				return service.Principal{}, ErrAuthorization
			}
		}
	default:
		return service.Principal{}, ErrAuthorization
	}
	return s.Authenticate(r.Context(), key, from)
}

// ReadHeaders adds the deadline of the request to the call and, unless the method is GET or
// HEAD, its command id and correlation id.
func (x *Exchange) ReadHeaders(call *service.Call) (err error) {
	if x.R.Method != http.MethodGet && x.R.Method != http.MethodHead {
		if call.CommandID, err = single(x.R, "Idempotency-Key", service.ErrCommandID); err != nil {
			return err
		}
		if call.Correlation, err = single(x.R, "X-Correlation-Id", service.ErrCorrelation); err != nil {
			return err
		}
	}
	deadline, err := single(x.R, service.DeadlineHeader, service.ErrDeadline)
	if err == nil {
		call.Deadline, err = service.ParseDeadline(deadline)
	}
	return err
}

// single returns the value of a header that appears at most once, or "".
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

// Receive reads the whole body of a call, up to service.MaxBody, of a media type that
// accepts takes. The call ends with the request.
func (x *Exchange) Receive(s Service, call *service.Call, accepts func(contentType []string) bool) (body []byte, err error) {
	return x.ReceiveUpTo(s, call, service.MaxBody, accepts)
}

// ReceiveUpTo is Receive for a body of up to limit bytes, which the surface splits into calls.
func (x *Exchange) ReceiveUpTo(s Service, call *service.Call, limit int64, accepts func(contentType []string) bool) (body []byte, err error) {
	size := x.R.ContentLength // as large as any when the request does not say
	if size < 0 || size > limit {
		size = limit
	}
	body, x.leave, err = s.Receive(x.R.Context(), call, size, func() ([]byte, error) { return x.read(limit, accepts) })
	return body, err
}

func (x *Exchange) read(limit int64, accepts func(contentType []string) bool) ([]byte, error) {
	if x.R.ContentLength > limit {
		x.W.Header().Set("Connection", "close") // the rest is not read
		return nil, service.ErrBodyTooLarge
	}
	if x.R.Body == nil || x.R.Body == http.NoBody {
		return nil, nil
	}
	if x.R.Header.Get("Content-Encoding") != "" || !accepts(x.R.Header["Content-Type"]) {
		return nil, ErrMediaType
	}
	if x.R.ContentLength > 0 {
		body := make([]byte, x.R.ContentLength)
		if _, err := io.ReadFull(x.R.Body, body); err != nil {
			return nil, ErrBodyRead
		}
		return body, nil
	}
	body, err := io.ReadAll(http.MaxBytesReader(x.W, x.R.Body, limit))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return nil, service.ErrBodyTooLarge
	}
	if err != nil {
		return nil, ErrBodyRead
	}
	return body, nil
}

// IsJSON reports whether a Content-Type is application/json in UTF-8.
func IsJSON(contentType []string) bool {
	if len(contentType) != 1 {
		return false
	}
	if contentType[0] == MediaJSON {
		return true
	}
	media, params, err := mime.ParseMediaType(contentType[0])
	if err != nil || media != MediaJSON {
		return false
	}
	charset, given := params["charset"]
	return !given || strings.EqualFold(charset, "utf-8")
}
