package fault

import (
	"encoding/json"
	"net/http"
	"time"
)

// Problem is the form in which an error leaves the service on every edge: the
// members of RFC 9457 and our own. Programs tell errors apart by Code.
type Problem struct {
	Title      string          `json:"title"`  // the status in words
	Status     int             `json:"status"` // of HTTP (RFC 9110), on NATS too
	Code       string          `json:"code"`
	Kind       Kind            `json:"kind"`
	Detail     string          `json:"detail"`
	Pointer    string          `json:"pointer,omitzero"`     // JSON pointer (RFC 6901) to the input at fault
	Details    json.RawMessage `json:"details,omitzero"`     // more for programs
	RequestID  string          `json:"request_id,omitzero"`  // leads the operator to the cause
	RetryAfter int             `json:"retry_after,omitzero"` // seconds
}

// statuses is the one table of kinds and statuses (429 is of RFC 6585).
var statuses = map[Kind]int{
	Invalid:         http.StatusBadRequest,
	Unprocessable:   http.StatusUnprocessableEntity,
	Unauthenticated: http.StatusUnauthorized,
	Denied:          http.StatusForbidden,
	NotFound:        http.StatusNotFound,
	Exists:          http.StatusConflict,
	Precondition:    http.StatusConflict,
	Conflict:        http.StatusConflict,
	Throttled:       http.StatusTooManyRequests,
	Unavailable:     http.StatusServiceUnavailable,
	Internal:        http.StatusInternalServerError,
}

// Status is the HTTP status of a kind; 500 for an unknown kind.
func (k Kind) Status() int {
	if s, ok := statuses[k]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Problem writes e for a caller. Details that do not marshal are left out.
func (e *Error) Problem() Problem {
	p := Problem{
		Status: e.Kind.Status(), Code: e.Code, Kind: e.Kind, Detail: e.Msg, Pointer: e.Pointer,
		RetryAfter: int((e.RetryAfter + time.Second - 1) / time.Second),
	}
	p.Title = http.StatusText(p.Status)
	if e.Details != nil {
		p.Details, _ = json.Marshal(e.Details) // nil when it fails
	}
	return p
}

// Fault converts a problem to the Error that it was made of: errors.Is matches by code. A problem
// with an unknown kind or without a code becomes ErrInternal.
func (p Problem) Fault() *Error {
	if _, known := statuses[p.Kind]; !known || p.Code == "" {
		return ErrInternal
	}
	e := &Error{
		Kind: p.Kind, Code: p.Code, Msg: p.Detail, Pointer: p.Pointer,
		RetryAfter: time.Duration(p.RetryAfter) * time.Second,
	}
	if len(p.Details) > 0 {
		e.Details = p.Details
	}
	return e
}
