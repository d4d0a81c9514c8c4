// Package client is the Go client of credstream, for platform services and flow
// engines: the same commands and queries over HTTP (New) and NATS (Dial), and
// the feed of changes (Conn.Follow). A flow engine gets secrets by a Resolver
// (Conn.NewResolver, Client.NewResolver).
//
// An error of the service is a *fault.Error with the service's own
// kind and code, so that errors.Is and errors.As work as inside the service.
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

// Errors of the client itself.
var (
	// ErrUnreachable is returned when the service did not respond.
	ErrUnreachable = fault.New(fault.Unavailable, "service_unreachable", "The service cannot be reached. Check the address and whether the service runs.")
	// ErrAnswer is returned for a response that does not belong to this API.
	ErrAnswer = fault.New(fault.Internal, "answer_not_understood",
		"The response is not from a credstream API of this version. Check the address.")
	// ErrConfig is returned by New and Dial for an invalid URL or tenant.
	ErrConfig = fault.New(fault.Invalid, "client_config_invalid", "The client's configuration is not valid.")
)

// DefaultTenant exists in every installation.
const DefaultTenant = "default"

// Bounds of the retries. A command carries its id through every
// attempt, so that it is executed once.
const (
	attempts  = 5
	firstWait = 100 * time.Millisecond
	longWait  = 2 * time.Second
)

// request is one command or query.
type request struct {
	command bool
	name    string
	body    []byte // a JSON object
	options commandOptions
}

// transport sends a request to the service, once, and returns the JSON of the
// response. An error that may be retried has a *fault.Error in its chain.
type transport interface {
	send(ctx context.Context, r request) ([]byte, error)
}

// API has the methods of both transports. They may be called from many
// goroutines. They retry, with the same command id, when the service cannot
// be reached or reports that it is unavailable, unless it asks to wait for longer than two
// seconds, or a provider may have got a token that can be used only once.
type API struct {
	transport transport
	tenant    string
}

type commandOptions struct {
	id, correlation string
	revision        int
	expires         time.Time
	hostKey         string
	endpoints       Endpoints
}

// CommandOption changes how one command is sent.
type CommandOption func(*commandOptions)

// CommandID sets the command id, the idempotency key: a command that is sent again with the same id and input,
// also by another process, is executed once and gets the same response. The id
// has 1 to 128 printable ASCII characters. Without this option it is random.
func CommandID(id string) CommandOption { return func(o *commandOptions) { o.id = id } }

// Correlation sets the correlation id that the command's events carry: 1 to 128
// printable ASCII characters.
func Correlation(id string) CommandOption { return func(o *commandOptions) { o.correlation = id } }

// ExpectRevision refuses the command (component_changed) unless the component's
// current descriptor has this revision, the one that the caller has inspected. So
// secrets are only sent to hosts that the caller has seen. CreateCredential, ReplaceKeys,
// ConnectOAuth, DefineOAuthClient, ChangeOAuthClient and SetComponentEnv support it; 0
// accepts any revision.
func ExpectRevision(revision int) CommandOption {
	return func(o *commandOptions) { o.revision = revision }
}

// Expires declares when keys or a client secret expire at the provider, so that events warn of it.
// CreateCredential, ReplaceKeys, DefineOAuthClient and ChangeOAuthClient support it.
func Expires(at time.Time) CommandOption {
	return func(o *commandOptions) { o.expires = at }
}

// AcceptHostKey accepts a key of an SSH server in place of the one that the credential recorded,
// such as "ssh-ed25519 SHA256:...". VerifyCredential and ReplaceKeys support it.
func AcceptHostKey(key string) CommandOption {
	return func(o *commandOptions) { o.hostKey = key }
}

// revisionOf is the revision that the options expect.
func revisionOf(opts []CommandOption) int { return optionsOf(opts).revision }

// Command sends a command by name, such as "credential.rename". In marshals to
// a JSON object, or is nil; out, unless nil, receives the response.
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

// Query sends a query by name, such as "credential.get". In marshals to a JSON
// object of plain values, or is nil; out receives the response.
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
	answer, err := try(ctx, func(ctx context.Context) ([]byte, error) {
		answer, err := a.transport.send(ctx, r)
		if r.command && mayBeSpent(err) {
			return answer, &final{err}
		}
		return answer, err
	})
	if err != nil {
		if last, ok := errors.AsType[*final](err); ok {
			return last.error
		}
		return err
	}
	if out == nil {
		return nil
	}
	if raw, ok := out.(*jsontext.Value); ok {
		*raw = answer
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil { // unknown members of a later version are ignored
		return fmt.Errorf("%w %w", ErrAnswer, err)
	}
	return nil
}

// try sends a request until it succeeds, is refused, or the attempts are used up.
func try[T any](ctx context.Context, send func(context.Context) (T, error)) (T, error) {
	wait := firstWait
	for n := 1; ; n++ {
		answer, err := send(ctx)
		if err == nil || n == attempts || ctx.Err() != nil || !retryable(err) {
			return answer, err
		}
		pause := wait/2 + mathrand.N(wait/2+1) //nolint:gosec // jitter, not a secret
		var f *fault.Error
		if errors.As(err, &f) && f.RetryAfter > pause {
			if pause = f.RetryAfter; pause > longWait { // the caller learns when
				return answer, err
			}
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

// smaller reduces the page size after a response that did not fit into one message, and
// reports whether to retry.
func smaller(err error, limit *int) bool {
	var f *fault.Error
	if !errors.As(err, &f) || f.Code != "answer_too_large" || *limit < 2 {
		return false
	}
	*limit /= 2
	return true
}

// mayBeSpent reports whether the service may have sent a single-use code or token to the provider.
// The service itself retries the renewal of stored tokens.
func mayBeSpent(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Code == "token_refresh_failed"
}

// final is an error after which the request is not sent again.
type final struct{ error }

func retryable(err error) bool {
	if _, ok := errors.AsType[*final](err); ok {
		return false
	}
	var f *fault.Error
	return errors.As(err, &f) && f.Kind == fault.Unavailable
}

// readProblem reads the body of a response with an error status.
func readProblem(status int, body []byte) error {
	var p fault.Problem
	if err := json.Unmarshal(body, &p); err != nil || p.Code == "" {
		// An intermediary responded: a proxy, a load balancer.
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
