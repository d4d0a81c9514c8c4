// Package client is the Go client of credstream, for platform services and flow
// engines: the same commands and queries over HTTP (New) and NATS (Dial), and
// the feed of changes (Conn.Follow). A flow engine gets secrets by a Resolver
// (Conn.NewResolver, Client.NewResolver).
//
// An error that the service answered is a *fault.Error with the service's own
// kind and code, so that errors.Is and errors.As work as they do inside it.
package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
)

// The errors that arise on this side.
var (
	// ErrUnreachable is returned when no answer came from the service.
	ErrUnreachable = fault.New(fault.Unavailable, "service_unreachable", "The service cannot be reached. Check the address and whether the service runs.")
	// ErrAnswer is returned for an answer that is not one of this API.
	ErrAnswer = fault.New(fault.Internal, "answer_not_understood",
		"The response is not from a credstream API of this version. Check the address.")
	// ErrConfig is returned by New and Dial for a URL or tenant that is none.
	ErrConfig = fault.New(fault.Invalid, "client_config_invalid", "The client's configuration is not valid.")
)

// DefaultTenant exists in every installation.
const DefaultTenant = "default"

// The bounds of what is tried again. A command carries its id through every
// attempt, so that it is obeyed once.
const (
	attempts  = 5
	firstWait = 100 * time.Millisecond
	longWait  = 2 * time.Second
)

// request is one command or query on its way.
type request struct {
	command bool
	name    string
	body    []byte // a JSON object
	options commandOptions
}

// transport takes a request to the service, once, and returns the answer's
// JSON. It returns a *fault.Error in the chain for what may be tried again.
type transport interface {
	send(ctx context.Context, r request) ([]byte, error)
}

// API is what both transports offer. Its methods may be called from many
// goroutines. They try again, with the same command id, when the service cannot
// be reached or says that it is unavailable.
type API struct {
	transport transport
	tenant    string
}

type commandOptions struct {
	id, correlation string
	revision        int
}

// CommandOption changes how one command is sent.
type CommandOption func(*commandOptions)

// CommandID names the command: sent again with the same id and the same input,
// also by another process, it is obeyed once and answered as the first time. It
// is 1 to 128 printable ASCII characters. A command without one gets a random id.
func CommandID(id string) CommandOption { return func(o *commandOptions) { o.id = id } }

// Correlation sets the correlation id that the command's events carry: 1 to 128
// printable ASCII characters.
func Correlation(id string) CommandOption { return func(o *commandOptions) { o.correlation = id } }

// ExpectRevision refuses the command (component_changed) unless the component's
// descriptor in force has this revision, the one that the caller has looked at: so
// secrets go only where it was seen to send them. CreateCredential, ReplaceKeys,
// ConnectOAuth, DefineOAuthClient, ChangeOAuthClient and SetComponentEnv take it; 0
// expects none.
func ExpectRevision(revision int) CommandOption {
	return func(o *commandOptions) { o.revision = revision }
}

// revisionOf is the revision that the options expect.
func revisionOf(opts []CommandOption) int { return optionsOf(opts).revision }

// Command sends a command by name, such as "credential.rename". In marshals to
// a JSON object, or is nil; out, unless nil, takes the answer.
func (a *API) Command(ctx context.Context, name string, in, out any, opts ...CommandOption) error {
	return a.call(ctx, request{command: true, name: name, options: optionsOf(opts)}, in, out)
}

func optionsOf(opts []CommandOption) commandOptions {
	o := commandOptions{}
	for _, opt := range opts {
		opt(&o)
	}
	if o.id == "" {
		o.id = rand.Text()
	}
	return o
}

// Query asks a query by name, such as "credential.get". In marshals to a JSON
// object of plain values, or is nil; out takes the answer.
func (a *API) Query(ctx context.Context, name string, in, out any) error {
	return a.call(ctx, request{name: name}, in, out)
}

func (a *API) call(ctx context.Context, r request, in, out any) error {
	r.body = []byte("{}")
	if in != nil {
		var err error
		if r.body, err = json.Marshal(in); err != nil {
			return fmt.Errorf("encode %s: %w", r.name, err)
		}
	}
	answer, err := try(ctx, func(ctx context.Context) ([]byte, error) { return a.transport.send(ctx, r) })
	if err != nil {
		return err
	}
	if out == nil {
		return nil
	}
	if raw, ok := out.(*jsontext.Value); ok {
		*raw = answer
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil { // members of a later version are passed over
		return fmt.Errorf("%w %w", ErrAnswer, err)
	}
	return nil
}

// try sends a request until it is answered, refused, or tried often enough.
func try[T any](ctx context.Context, send func(context.Context) (T, error)) (T, error) {
	wait := firstWait
	for n := 1; ; n++ {
		answer, err := send(ctx)
		if err == nil || n == attempts || ctx.Err() != nil || !retryable(err) {
			return answer, err
		}
		pause := wait/2 + mathrand.N(wait/2+1) //nolint:gosec // spreads attempts, guards nothing
		var f *fault.Error
		if errors.As(err, &f) && f.RetryAfter > pause {
			pause = min(f.RetryAfter, longWait)
		}
		wait = min(2*wait, longWait)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return answer, err
		}
	}
}

// smaller makes a page smaller whose answer did not fit into one message, and
// reports whether to ask for it again.
func smaller(err error, limit *int) bool {
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != "answer_too_large" || *limit < 2 {
		return false
	}
	*limit /= 2
	return true
}

func retryable(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Kind == fault.Unavailable
}

// readProblem reads the body of an answer whose status is an error.
func readProblem(status int, body []byte) error {
	var p fault.Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
		// Something between us and the service answered: a proxy, a load balancer.
		switch status {
		case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return ErrUnreachable.Withf("The service cannot be reached: the proxy in front of it answered with status %d.", status)
		}
		return ErrAnswer.Withf("The response is not from a credstream API: status %d. Check the address.", status)
	}
	f := p.Fault()
	if f.Kind == fault.Internal && p.RequestID != "" {
		f = f.Withf("%s Request id: %s.", f.Msg, p.RequestID)
	}
	return f
}
