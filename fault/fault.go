// Package fault is the error vocabulary of every layer: the only errors a
// caller may see. Anything else that reaches an edge is answered as Internal
// and shown to the operator alone.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Kind is the class of an error. Each edge maps it to its own status in one
// table; a caller tells two errors of one kind apart by their code.
type Kind string

// The kinds, and what each tells a caller to do.
const (
	Invalid         Kind = "invalid"         // malformed or out of range: mend the input
	Unprocessable   Kind = "unprocessable"   // well-formed, but what it says cannot be: mend the content
	Unauthenticated Kind = "unauthenticated" // no key, or one that is not known
	Denied          Kind = "denied"          // known, but without the permission
	NotFound        Kind = "not_found"       // no such thing, or hidden from the caller
	Exists          Kind = "exists"          // the id is taken
	Precondition    Kind = "precondition"    // valid, but not in this state
	Conflict        Kind = "conflict"        // lost a race too often: try again
	Throttled       Kind = "throttled"       // a limit is reached: try later
	Unavailable     Kind = "unavailable"     // a part is out of reach: try later
	Internal        Kind = "internal"        // our fault
)

// Error may be shown to a caller. Code is stable and unique within the
// program ("credential_in_use"); Msg is a plain sentence and never holds a
// secret, an address of ours or another tenant's data.
type Error struct {
	Kind       Kind
	Code       string
	Msg        string
	Pointer    string        // JSON pointer to the input at fault (RFC 6901), or ""
	RetryAfter time.Duration // for Throttled and Unavailable; 0 when unknown
	Details    any           // more for programs, in JSON: the flows that hold a credential, say; or nil
}

// New declares an error beside the rule that raises it. Compare with errors.Is.
func New(kind Kind, code, msg string) *Error { return &Error{Kind: kind, Code: code, Msg: msg} }

// Error implements error.
func (e *Error) Error() string { return e.Msg }

// Is reports whether target is the same error, which is to say has the same code.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Withf returns e with a more specific sentence in place of its own.
func (e *Error) Withf(format string, args ...any) *Error {
	c := *e
	c.Msg = fmt.Sprintf(format, args...)
	return &c
}

// At returns e pointing at the input at fault, a JSON pointer (RFC 6901).
func (e *Error) At(pointer string) *Error {
	c := *e
	c.Pointer = pointer
	return &c
}

// With returns e carrying details for programs; they must marshal to JSON.
func (e *Error) With(details any) *Error {
	c := *e
	c.Details = details
	return &c
}

// WithRetryAfter returns e asking the caller to wait for d before it tries again.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// The errors that belong to no single rule.
var (
	ErrInternal    = New(Internal, "internal", "Internal error. Give the request id to the operator.")
	ErrUnavailable = New(Unavailable, "unavailable", "The service is temporarily unavailable. Try again shortly.")
	ErrTimeout     = New(Unavailable, "timeout", "The request timed out and its outcome is unknown. Repeat it with the same command id.")
	ErrConflict    = New(Conflict, "conflict", "Too many concurrent changes to this resource. Retry.")
)

// Of returns the *Error in err's chain. An error that is none is reported as
// ErrInternal, a deadline or a cancellation as ErrTimeout: what the caller may see of it.
func Of(err error) *Error {
	var e *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return ErrTimeout
	}
	return ErrInternal
}
