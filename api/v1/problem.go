package v1

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// statusOf is the status of a problem: that of its kind, but for three that HTTP
// has a status of its own for.
func statusOf(f *fault.Error) int {
	switch f.Code {
	case ErrMethod.Code:
		return http.StatusMethodNotAllowed
	case ErrMediaType.Code:
		return http.StatusUnsupportedMediaType
	case service.ErrBodyTooLarge.Code:
		return http.StatusRequestEntityTooLarge
	}
	return f.Kind.Status()
}

// fail answers with the problem of err (RFC 9457). What is no fault is for the
// log alone.
func (x *exchange) fail(err error) {
	x.err = err
	f := fault.Of(err)
	p := f.Problem()
	p.Status, p.RequestID = statusOf(f), x.id
	p.Title = http.StatusText(p.Status)
	if p.Status == http.StatusUnauthorized {
		x.w.Header()["Www-Authenticate"] = challenges
	}
	if p.Status == http.StatusMethodNotAllowed && x.w.Header().Get("Allow") == "" {
		x.w.Header().Set("Allow", http.MethodGet) // all but HEAD
	}
	if p.RetryAfter > 0 {
		x.w.Header().Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	b, err := json.Marshal(p)
	if err != nil { // only details could fail, and they are checked
		x.err, b = err, []byte("{}")
	}
	x.bytes(p.Status, typeProblem, append(b, '\n'))
}
