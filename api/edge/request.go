package edge

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
)

// Service is the part of *service.Kernel that an API calls.
type Service interface {
	// Serve executes one call of the route with a JSON body.
	Serve(ctx context.Context, call service.Call, route string, body []byte) (any, error)
	// Receive admits the call: it reserves capacity, reads the body and waits in the admission
	// queue.
	Receive(ctx context.Context, call *service.Call, size int64, read func() ([]byte, error)) (body []byte, leave func(), err error)
}

// Identities authenticates callers. from is the address of the connection: that of a proxy, if
// there is one.
type Identities interface {
	// Authenticate returns the principal of an API key.
	Authenticate(ctx context.Context, key string, from netip.Addr) (service.Principal, error)
	// AuthenticateCertificate returns the principal of a client certificate that was verified in
	// the handshake of the connection.
	AuthenticateCertificate(ctx context.Context, verified *x509.Certificate, from netip.Addr) (service.Principal, error)
	// AuthenticateToken returns the principal of a token of an OpenID Connect issuer.
	AuthenticateToken(ctx context.Context, token string, from netip.Addr) (service.Principal, error)
}

// Sessions manages browser sessions, which act on behalf of an API key or of a user of an OpenID
// Connect issuer.
type Sessions interface {
	// StartSession authenticates an API key, and returns an encrypted session that acts on its behalf.
	StartSession(ctx context.Context, key string, from netip.Addr) (sealed string, p service.Principal, err error)
	// OpenSession returns the principal of an encrypted session.
	OpenSession(ctx context.Context, sealed string, from netip.Addr) (service.Principal, error)
	// SignInIssuer is the host of the OpenID Connect issuer; empty if nobody can sign in there.
	SignInIssuer() string
	// BeginSignIn returns where to send a browser that signs in at the issuer.
	BeginSignIn(ctx context.Context, callback string) (address string, in access.SignIn, err error)
	// EndSignIn redeems the code of the issuer's callback, and returns a sealed session.
	EndSignIn(ctx context.Context, in access.SignIn, callback string, answer url.Values, from netip.Addr) (sealed string, p service.Principal, err error)
}

// Errors that HTTP adds to those of the service.
var (
	ErrPathUnknown = fault.New(fault.NotFound, "path_unknown", "No such path.")
	ErrMediaType   = fault.New(fault.Invalid, "media_type", "The body must be application/json in UTF-8.")
	ErrBodyRead    = fault.New(fault.Invalid, "body_incomplete", "The body is shorter than its Content-Length.")
	// ErrAuthorization refuses an Authorization header that is not one Basic, Bearer or ApiKey.
	ErrAuthorization = fault.New(fault.Unauthenticated, "authorization_invalid",
		"Send one Authorization header: Basic with the key as password, Bearer with the key, or ApiKey with the base64 of id:key.")
	ErrHeaderTwice = fault.New(fault.Invalid, "header_repeated", "Idempotency-Key, X-Correlation-Id and X-Request-Deadline may appear at most once.")
)

// Values of the headers of every response. They are shared: do not modify them.
var (
	nosniff    = []string{"nosniff"}
	noStore    = []string{"no-store"}
	noReferrer = []string{"no-referrer"}
	sameOrigin = []string{"same-origin"}
	denyAllCSP = []string{"default-src 'none'; frame-ancestors 'none'"}
)

// secure sets the security headers: nosniff, no-store, no-referrer, same-origin, and a
// Content-Security-Policy that allows nothing.
func secure(header http.Header) {
	header["X-Content-Type-Options"] = nosniff
	header["Cache-Control"] = noStore
	header["Referrer-Policy"] = noReferrer
	header["Cross-Origin-Resource-Policy"] = sameOrigin
	header["Content-Security-Policy"] = denyAllCSP
}

var origin http.CrossOriginProtection

// CheckOrigin returns service.ErrCrossOrigin if a page of another origin caused the request.
// GET, HEAD and OPTIONS change nothing and pass, and so do clients that are not browsers.
func CheckOrigin(r *http.Request) error {
	if origin.Check(r) != nil {
		return service.ErrCrossOrigin
	}
	return nil
}

// CrossSite reports whether a page of another origin caused the request, whatever its method.
func CrossSite(r *http.Request) bool {
	same := http.Request{Method: http.MethodPost, Host: r.Host, Header: r.Header, URL: r.URL}
	return origin.Check(&same) != nil
}

// Allows reports whether methods, in the format of the Allow header, contains the method of the
// request. If not, it writes a 405.
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

// SetTenant sets the tenant of the log line, unless it does not exist: invented names must not
// reach the log.
func (x *Exchange) SetTenant(tenant string, err error) {
	if !errors.Is(err, service.ErrTenantNotFound) {
		x.Tenant = tenant
	}
}

// Remote returns the address of the client, or of the proxy in front of it. It is invalid if
// unknown.
func Remote(r *http.Request) netip.Addr {
	at, _ := netip.ParseAddrPort(r.RemoteAddr)
	return at.Addr()
}

// Authenticate identifies the caller. The caller of Authenticate still sets tenant, command id
// and deadline. encrypted marks a plain HTTP connection as confidential, because it
// comes from a TLS-terminating proxy.
func (x *Exchange) Authenticate(s Identities, encrypted bool) (service.Call, error) {
	principal, err := Identify(s, x.R)
	if err != nil {
		return service.Call{}, err
	}
	return x.CallOf(principal, encrypted), nil
}

// CallOf returns the call of an identified caller, and adds the caller to the log line. The caller
// of CallOf still sets tenant, command id and deadline.
func (x *Exchange) CallOf(principal service.Principal, encrypted bool) service.Call {
	x.Principal = principal.Actor.ID
	return service.Call{
		Principal: principal, Via: "http", CrossSite: CrossSite(x.R), Head: x.R.Method == http.MethodHead,
		Confidential: service.Confidential(encrypted || x.R.TLS != nil, Remote(x.R)),
	}
}

// Identify authenticates the sender of a request by its Authorization header: Basic with any
// user name and a key as the password, Bearer with a key or a token, or ApiKey with a key or
// the base64 of "id:key" (the id is ignored); without the header, by a verified client
// certificate. It returns service.ErrUnauthenticated if there is neither, ErrAuthorization for any other header, and the errors of s.
func Identify(s Identities, r *http.Request) (service.Principal, error) {
	from := Remote(r)
	given := r.Header["Authorization"]
	switch len(given) {
	case 0:
		if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			return s.AuthenticateCertificate(r.Context(), r.TLS.VerifiedChains[0][0], from)
		}
		return s.Authenticate(r.Context(), "", from) // an address over the invalid-key limit gets 429 instead of 401
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
	case strings.EqualFold(scheme, "ApiKey"): // sent by Elasticsearch's clients
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

// ReadHeaders sets the deadline of the call and, unless the method is GET or HEAD, its command
// id and correlation id.
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

// Receive reads the body of a call, up to service.MaxBody bytes, if accepts returns true for
// its media type. It admits the call, which ends with the request.
func (x *Exchange) Receive(s Service, call *service.Call, accepts func(contentType []string) bool) (body []byte, err error) {
	return x.ReceiveUpTo(s, call, service.MaxBody, accepts)
}

// ReceiveUpTo is Receive with another limit in bytes, for an API that splits the body into
// several calls.
func (x *Exchange) ReceiveUpTo(s Service, call *service.Call, limit int64, accepts func(contentType []string) bool) (body []byte, err error) {
	size := x.R.ContentLength // unknown length: assume the maximum
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
