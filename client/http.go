package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
)

// Config is the address of the service and the identity of the caller.
type Config struct {
	URL    string // "https://credstream.example.org"; it may have a path
	Key    string // the API key; "" if a client certificate in TLS stands for it
	Tenant string // DefaultTenant when empty
	// TLS is for https:// URLs: CAs to trust beside or in place of those of the system, and a
	// client certificate. nil trusts the CAs of the system. It is ignored with HTTPClient.
	TLS *tls.Config
	// HTTPClient makes the requests; nil means a client without
	// redirects and with a timeout of one minute. Keys are sent only to URL.
	HTTPClient *http.Client
}

// Client is an HTTP client of the service.
type Client struct{ API }

const (
	maxAnswer = 64 << 20 // bytes of one response
	callTime  = time.Minute
)

// New creates a client. It does not connect yet. It returns ErrConfig.
func New(cfg Config) (*Client, error) {
	base, err := baseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	if cfg.Tenant == "" {
		cfg.Tenant = DefaultTenant
	}
	authorization := "Bearer " + cfg.Key
	if cfg.Key == "" && cfg.TLS != nil {
		authorization = ""
	}
	return &Client{API{&httpTransport{
		client: httpClient(cfg),
		base:   base + "/v1/tenants/" + url.PathEscape(cfg.Tenant) + "/",
		key:    func() string { return authorization },
	}, cfg.Tenant}}, nil
}

// baseURL checks the service's URL and returns it without a slash at its end.
func baseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" {
		return "", ErrConfig.Withf("The service's URL must be http:// or https:// and a host, without user or query.")
	}
	return strings.TrimRight(u.String(), "/"), nil
}

func httpClient(cfg Config) *http.Client {
	if cfg.HTTPClient != nil {
		return cfg.HTTPClient
	}
	var transport http.RoundTripper
	if cfg.TLS != nil {
		if standard, ok := http.DefaultTransport.(*http.Transport); ok {
			own := standard.Clone()
			own.TLSClientConfig = cfg.TLS.Clone()
			transport = own
		}
	}
	return &http.Client{
		Transport:     transport,
		Timeout:       callTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// withoutURL removes the URL, which may hold a query, from an error of http.Client.
func withoutURL(err error) error {
	if outer := (*url.Error)(nil); errors.As(err, &outer) {
		return outer.Err
	}
	return err
}

type httpTransport struct {
	client *http.Client
	base   string
	key    func() string // a closure, so that nothing prints it
}

func (t *httpTransport) send(ctx context.Context, r request) ([]byte, error) {
	if t.client.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, t.client.Timeout)
		defer cancel()
	}
	method, target := http.MethodGet, t.base+url.PathEscape(r.name)
	var body io.Reader
	if r.command {
		method, target, body = http.MethodPost, t.base+"commands/"+url.PathEscape(r.name), bytes.NewReader(r.body)
	} else {
		values, err := parameters(r.body)
		if err != nil {
			return nil, err
		}
		if len(values) > 0 {
			target += "?" + values.Encode()
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, ErrConfig.Withf("%q is not the name of a command or query.", r.name)
	}
	if r.command {
		setDeadline(ctx, req.Header)
	}
	if key := t.key(); key != "" {
		req.Header.Set("Authorization", key)
	}
	req.Header.Set("Accept", "application/json")
	if r.command {
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Idempotency-Key", r.options.id)
		if r.options.correlation != "" {
			req.Header.Set("X-Correlation-Id", r.options.correlation)
		}
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, unreachable(ctx, withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, unreachable(ctx, err)
	case len(answer) > maxAnswer:
		return nil, ErrAnswer.Withf("The response is larger than %d MiB.", maxAnswer>>20)
	case resp.StatusCode != http.StatusOK:
		return nil, readProblem(resp.StatusCode, answer)
	}
	return answer, nil
}

// setDeadline sends the deadline of the response. A command that reaches the
// service later, such as one that a hung server has buffered, is not executed.
func setDeadline(ctx context.Context, h http.Header) {
	if at, bounded := ctx.Deadline(); bounded {
		h["X-Request-Deadline"] = []string{at.UTC().Format(time.RFC3339Nano)}
	}
}

// unreachable reports that no response arrived, and why. A cancelled caller gets the
// error of the context.
func unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w (%w)", fault.ErrTimeout, context.Cause(ctx))
	}
	if _, untrusted := errors.AsType[*tls.CertificateVerificationError](err); untrusted {
		return fmt.Errorf("%w (%w)", ErrUnreachable.Withf("The certificate of the service is not trusted. Trust its CA: in commands of credstream by --ca or CREDSTREAM_CA."), err)
	}
	return fmt.Errorf("%w (%w)", ErrUnreachable, err)
}

// parameters encodes a query's JSON object as URL parameters.
func parameters(body []byte) (url.Values, error) {
	var members map[string]jsontext.Value
	if err := json.Unmarshal(body, &members); err != nil {
		return nil, fmt.Errorf("a query takes a JSON object: %w", err)
	}
	values := make(url.Values, len(members))
	for name, v := range members {
		switch v.Kind() {
		case '"':
			var s string
			if err := json.Unmarshal(v, &s); err != nil {
				return nil, fmt.Errorf("parameter %s: %w", name, err)
			}
			values.Set(name, s)
		case '0', 't', 'f', '[':
			values.Set(name, v.String())
		default:
			return nil, fmt.Errorf("parameter %s is not a plain value", name)
		}
	}
	return values, nil
}
