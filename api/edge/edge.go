// Package edge is shared by all HTTP APIs: request ids, security headers, recovery from panics,
// the log line, and the status code of an error. Each API adds its paths and the format of its
// errors.
package edge

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// Media types of several APIs.
const (
	MediaJSON    = "application/json"
	MediaProblem = "application/problem+json" // RFC 9457
)

// ExampleID is used in the examples of the OpenAPI document for generated ids.
const ExampleID = "0198c1aa-7d3e-7bb2-9c4e-3f6a5d2b1e70"

// Dialect handles one request of an API. It embeds its Exchange.
type Dialect interface {
	// Serve writes the response.
	Serve()
	// Problem writes an error document.
	Problem(p fault.Problem)
}

// Exchange is one request and its response.
type Exchange struct {
	W         http.ResponseWriter
	R         *http.Request
	ID        string // request id
	Pattern   string // path pattern for the log; "" if unknown
	Tenant    string // "" unless it exists
	Principal string // "" until the caller is authenticated
	Err       error  // why the request failed
	Status    int    // 0 until the response starts
	Quiet     bool   // log at debug level

	dialect Dialect
	leave   func() // ends the call whose body was received; nil if there is none
	log     *slog.Logger
	start   time.Time
}

// Handler returns the handler of an API. Every response has X-Request-Id, which is also in the
// log line: the client's id if it is a service.GoodRequestID, otherwise a new one. open returns
// the Dialect of a request. A nil logger discards the lines.
func Handler(log *slog.Logger, open func(*Exchange) Dialect) http.Handler {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	process := rand.Text()[:8] + "-" // prefix of this process's request ids
	var count atomic.Uint64
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &Exchange{W: w, R: r, log: log, start: time.Now()}
		if given := r.Header["X-Request-Id"]; len(given) == 1 && service.GoodRequestID(given[0]) {
			x.ID = given[0]
		} else {
			x.ID = process + strconv.FormatUint(count.Add(1), 10)
		}
		w.Header()["X-Request-Id"] = []string{x.ID}
		secure(w.Header())
		x.dialect = open(x)
		defer x.end()
		x.dialect.Serve()
	})
}

// end recovers from a panic and logs the request. The value of a panic may contain secrets, so
// only its type is logged.
func (x *Exchange) end() {
	v := recover()
	if x.leave != nil {
		x.leave()
	}
	var panicked []slog.Attr
	if err, _ := v.(error); v != nil && !errors.Is(err, http.ErrAbortHandler) {
		panicked = []slog.Attr{slog.String("panic", fmt.Sprintf("%T", v)), slog.String("stack", string(debug.Stack()))}
		if x.Status == 0 {
			x.Fail(fault.ErrInternal)
			v = nil
		}
	}
	x.note(panicked)
	if v != nil {
		panic(http.ErrAbortHandler) // the response has started: abort the connection, so that the client detects it
	}
}

// note writes the log line. It has no paths, parameters or bodies, which may contain secrets.
func (x *Exchange) note(panicked []slog.Attr) {
	level := slog.LevelInfo
	switch {
	case panicked != nil:
		level = slog.LevelError
	case x.Quiet:
		level = slog.LevelDebug
	case x.Status >= 500:
		level = slog.LevelError
	}
	ctx := x.R.Context()
	if !x.log.Enabled(ctx, level) {
		return
	}
	attrs := make([]slog.Attr, 0, 11)
	attrs = append(attrs,
		slog.String("method", method(x.R.Method)), slog.String("route", x.Pattern), slog.Int("status", x.Status),
		slog.Duration("duration", time.Since(x.start)), slog.String("request_id", x.ID))
	if x.Principal != "" {
		attrs = append(attrs, slog.String("principal", x.Principal))
	}
	if x.Tenant != "" {
		attrs = append(attrs, slog.String("tenant", x.Tenant))
	}
	if f := fault.Of(x.Err); f != nil {
		attrs = append(attrs, slog.String("code", f.Code))
		if f.Kind.Status() >= 500 {
			attrs = append(attrs, slog.String("err", x.Err.Error()))
		}
	}
	x.log.LogAttrs(ctx, level, "request", append(attrs, panicked...)...)
}

// method returns m for the log, or a placeholder if m is not a standard method.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// Fail writes err in the format of the API. If err is not a fault, its cause is only logged.
func (x *Exchange) Fail(err error) {
	f := fault.Of(err)
	status := f.Kind.Status()
	switch f.Code { // these codes have a status of their own in HTTP
	case service.ErrMethod.Code:
		status = http.StatusMethodNotAllowed
	case ErrMediaType.Code:
		status = http.StatusUnsupportedMediaType
	case service.ErrBodyTooLarge.Code:
		status = http.StatusRequestEntityTooLarge
	}
	x.FailAs(status, err)
}

var challenges = []string{`Basic realm="credstream", charset="UTF-8"`, `Bearer realm="credstream"`}

// FailAs is Fail with a given status.
func (x *Exchange) FailAs(status int, err error) {
	x.Err = err
	p := fault.Of(err).Problem()
	p.Status, p.Title, p.RequestID = status, http.StatusText(status), x.ID
	header := x.W.Header()
	if status == http.StatusUnauthorized {
		header["Www-Authenticate"] = challenges
	}
	if status == http.StatusMethodNotAllowed && header.Get("Allow") == "" {
		header.Set("Allow", http.MethodGet) // every method except HEAD
	}
	if p.RetryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	x.dialect.Problem(p)
}

// Problem writes a problem document (RFC 9457).
func (x *Exchange) Problem(p fault.Problem) { x.JSON(p.Status, MediaProblem, p) }

// JSON writes a JSON document.
func (x *Exchange) JSON(status int, mediaType string, document any) {
	b, err := json.Marshal(document, json.Deterministic(true))
	switch {
	case err == nil:
		x.Write(status, mediaType, append(b, '\n'))
	case x.Err == nil:
		x.Fail(err)
	default: // the error document itself cannot be encoded
		x.Err = errors.Join(x.Err, err)
		x.Write(status, mediaType, []byte("{}\n"))
	}
}

func (x *Exchange) Write(status int, mediaType string, body []byte) {
	header := x.W.Header()
	header["Content-Type"] = []string{mediaType}
	header["Content-Length"] = []string{strconv.Itoa(len(body))}
	x.End(status)
	_, _ = x.W.Write(body) // the client may have disconnected
}

// End writes a response without a body.
func (x *Exchange) End(status int) {
	x.Status = status
	x.W.WriteHeader(status)
}

// Warn logs a failure that has no effect on the response.
func (x *Exchange) Warn(text string, err error) {
	x.log.WarnContext(x.R.Context(), text, "request_id", x.ID, "err", err)
}
