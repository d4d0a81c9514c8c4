package v1

import (
	"context"
	"crypto/rand"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
)

// Identities tell who a caller is. The address is the one that the request came
// from: a proxy's, where there is one.
type Identities interface {
	// Authenticate returns the principal of an API key.
	Authenticate(ctx context.Context, key string, from netip.Addr) (service.Principal, error)
	// AuthenticateToken returns the principal of a token of an OpenID Connect issuer.
	AuthenticateToken(ctx context.Context, token string, from netip.Addr) (service.Principal, error)
}

// Identify tells who sent a request by its one Authorization header: Basic, with
// any user name and a key as the password, or Bearer with a key or a token. Every
// HTTP surface uses it. It returns service.ErrUnauthenticated without the header,
// ErrAuthorization when it is not one of these, and what s says.
func Identify(s Identities, r *http.Request) (service.Principal, error) {
	var from netip.Addr
	if remote, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		from = remote.Addr()
	}
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
	default:
		return service.Principal{}, ErrAuthorization
	}
	return s.Authenticate(r.Context(), key, from)
}

// RequestIDs names the requests of one HTTP surface. Its methods may be called from
// many goroutines.
type RequestIDs struct {
	process string // starts the ids of this process's requests
	count   atomic.Uint64
}

// NewRequestIDs starts to count.
func NewRequestIDs() *RequestIDs { return &RequestIDs{process: rand.Text()[:8] + "-"} }

// Of is the id that the sender gave the request in X-Request-Id, when it is a
// service.GoodRequestID, else a new one.
func (ids *RequestIDs) Of(r *http.Request) string {
	if given := r.Header["X-Request-Id"]; len(given) == 1 && service.GoodRequestID(given[0]) {
		return given[0]
	}
	return ids.process + strconv.FormatUint(ids.count.Add(1), 10)
}
