package fault

import (
	"encoding/json"
	"net/http"
	"time"
)

// Problem is the form in which an error leaves the service, on every edge: the
// members of RFC 9457 and our own.
type Problem struct {
	Title      string          `json:"title"`                 // the kind
	Status     int             `json:"status"`                // the kind's HTTP status, on NATS too
	Code       string          `json:"code"`                  //
	Detail     string          `json:"detail"`                //
	Pointer    string          `json:"pointer,omitempty"`     // JSON pointer to the input at fault
	RetryAfter int             `json:"retry_after,omitempty"` // seconds
	RequestID  string          `json:"request_id,omitempty"`  // leads the operator to the log
	Details    json.RawMessage `json:"details,omitempty"`     // more for programs
}

// statuses is the one table of kinds and HTTP statuses (RFC 9110; 429 is RFC 6585).
var statuses = map[Kind]int{
	Invalid: http.StatusBadRequest, Unauthenticated: http.StatusUnauthorized, Denied: http.StatusForbidden,
	NotFound: http.StatusNotFound, Exists: http.StatusConflict, Precondition: http.StatusConflict,
	Conflict: http.StatusConflict, Throttled: http.StatusTooManyRequests,
	Unavailable: http.StatusServiceUnavailable, Internal: http.StatusInternalServerError,
}

// Problem writes e for a caller.
func (e *Error) Problem() Problem {
	p := Problem{Title: string(e.Kind), Status: statuses[e.Kind], Code: e.Code, Detail: e.Msg, Pointer: e.Pointer}
	if e.RetryAfter > 0 {
		p.RetryAfter = int((e.RetryAfter + time.Second - 1) / time.Second)
	}
	if e.Details != nil {
		if details, err := json.Marshal(e.Details); err == nil {
			p.Details = details
		}
	}
	return p
}

// Fault reads a problem back into the error it was: errors.Is knows it by its
// code on both sides.
func (p Problem) Fault() *Error {
	e := &Error{Kind: Kind(p.Title), Code: p.Code, Msg: p.Detail, Pointer: p.Pointer, RetryAfter: time.Duration(p.RetryAfter) * time.Second}
	if _, known := statuses[e.Kind]; !known || e.Code == "" {
		return ErrInternal
	}
	if p.Details != nil {
		e.Details = p.Details
	}
	return e
}
