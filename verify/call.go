package verify

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// Answer is the response to a call.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte // as received, not decompressed: at most MaxBody bytes
	Cut    Cut    // why Body is truncated, "" if it is complete
}

// Cut says why the body of a response is truncated.
type Cut string

// The reasons.
const (
	CutTooLarge Cut = "too_large" // it is larger than MaxBody
	CutTimeout  Cut = "timeout"   // it did not arrive in time
	CutClosed   Cut = "closed"    // the connection was closed before its end
)

// Unanswered is the error of Do if no response arrived. It holds nothing of the request, any
// part of which may be secret.
type Unanswered struct {
	Outcome string // one of the outcomes of a dry request
	Sent    bool   // a connection was established, so the server may have received the request
}

// Error implements error.
func (u *Unanswered) Error() string { return "no answer: " + u.Outcome }

// Slot acquires a slot for a call of the tenant to host; the caller must release it. A tenant
// has Config.Concurrency slots for each host, so that a slow host does not block calls to
// others, and eight times as many in all. The error is ErrBusy if one of the two waits takes
// longer than Config.Timeout, or ctx's own.
func (c *Client) Slot(ctx context.Context, tenant, host string) (release func(), err error) {
	// The host's slot first: a call that waits for a slow host holds no slot of the tenant.
	releaseHost, err := c.hostCalls.acquire(ctx, tenant+"\n"+host, c.cfg.Timeout)
	if err != nil {
		return nil, err
	}
	releaseTenant, err := c.calls.acquire(ctx, tenant, c.cfg.Timeout)
	if err != nil {
		releaseHost()
		return nil, err
	}
	return func() { releaseTenant(); releaseHost() }, nil
}

// Do sends one HTTP request to an address that a tenant may have chosen, under the rules of a
// dry request: it resolves, checks and dials in one step, uses no proxy, follows no redirect
// (a 3xx is a response), sends no Referer, does not decompress, and ends after Config.Timeout,
// including the body of the response. Every error is an *Unanswered, also if ctx ended. The
// caller must hold a Slot.
func (c *Client) Do(ctx context.Context, req *http.Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	var answer Answer
	fail := c.send(ctx, req, route{tls: c.tlsConfig(""), port: c.guard.httpPort}, func(resp *http.Response) {
		answer.Status, answer.Header = resp.StatusCode, resp.Header
		body, err := io.ReadAll(io.LimitReader(resp.Body, c.cfg.MaxBody+1))
		switch {
		case int64(len(body)) > c.cfg.MaxBody:
			body, answer.Cut = body[:c.cfg.MaxBody], CutTooLarge
		case err != nil && ctx.Err() != nil:
			answer.Cut = CutTimeout
		case err != nil:
			answer.Cut = CutClosed
		}
		answer.Body = body
	})
	if fail != nil {
		return Answer{}, &Unanswered{Outcome: unreached("http", fail.err, fail.handshake).Outcome, Sent: fail.sent}
	}
	return answer, nil
}

// failure is why a request has no response. err must not leave this package: it may hold the
// URL, which may hold a secret.
type failure struct {
	err       error
	handshake bool // the TLS handshake failed
	sent      bool // a connection was established
}

// route is how a request may reach its server.
type route struct {
	tls  *tls.Config
	port func(uint16) bool // the allowed ports
}

// send sends req and passes the response to read. Each request has its own transport, so that
// a connection that was checked for one tenant never serves another. Without an http.Client,
// it follows no redirect, sends no Referer and keeps no cookie.
func (c *Client) send(ctx context.Context, req *http.Request, how route, read func(*http.Response)) *failure {
	var handshake, sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { handshake.Store(err != nil) },
		GotConn:          func(httptrace.GotConnInfo) { sent.Store(true) },
	})
	transport := &http.Transport{
		Proxy: nil, // ignores the environment variables
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.guard.dial(ctx, network, address, how.port)
		},
		TLSClientConfig:        how.tls,
		ForceAttemptHTTP2:      true,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return &failure{err: err, handshake: handshake.Load(), sent: sent.Load()}
	}
	defer func() { _ = resp.Body.Close() }()
	read(resp)
	return nil
}
