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

// Answer is what came back to a call.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte // as it was sent, compressed if it was: at most MaxBody bytes
	Cut    Cut    // why Body is not the whole of it, "" when it is
}

// Cut says why the body of an answer is not whole.
type Cut string

// The reasons.
const (
	CutTooLarge Cut = "too_large" // there is more than MaxBody
	CutTimeout  Cut = "timeout"   // it did not come in time
	CutClosed   Cut = "closed"    // the connection ended before it did
)

// Unanswered is the error of Do when no answer came. It holds nothing of the
// request, which may be all secret.
type Unanswered struct {
	Outcome string // one of the outcomes of a dry request
	Sent    bool   // a connection was made, so the server may have the request
}

// Error implements error.
func (u *Unanswered) Error() string { return "no answer: " + u.Outcome }

// Slot waits until tenant may make another call to host: it makes no more than
// Config.Concurrency to one host at one time, so that a host that is slow keeps
// nobody from the others, and no more than eight times as many in all. The caller
// must release it. The error is ErrBusy when one of the two waits takes longer than
// Config.Timeout, or ctx's own.
func (c *Client) Slot(ctx context.Context, tenant, host string) (release func(), err error) {
	// The host's place first: who waits for a slow host holds none of the tenant's.
	leaveHost, err := c.hostCalls.take(ctx, tenant+"\n"+host, c.cfg.Timeout)
	if err != nil {
		return nil, err
	}
	leaveTenant, err := c.calls.take(ctx, tenant, c.cfg.Timeout)
	if err != nil {
		leaveHost()
		return nil, err
	}
	return func() { leaveTenant(); leaveHost() }, nil
}

// Do makes one HTTP request to an address that a tenant may have chosen, under
// the rules of a dry request: it resolves, checks and dials in one step, uses no
// proxy, follows no redirect (a 3xx is an answer), sends no Referer, unpacks
// nothing and ends after Config.Timeout, the body of the answer included. The
// error is an *Unanswered, also when ctx ended. Call it with a Slot held.
func (c *Client) Do(ctx context.Context, req *http.Request) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	var answer Answer
	fail := c.send(ctx, req, func(resp *http.Response) {
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

// failure is why a request has no answer. Its error stays in this package: it
// may hold the URL, and that a secret.
type failure struct {
	err       error
	handshake bool // TLS was not agreed on
	sent      bool // a connection was made
}

// send sends req and hands the answer to read. The transport is made for this one
// request, so that no connection checked for one tenant ever serves another; used
// without an http.Client it follows no redirect, sends no Referer and keeps no cookie.
func (c *Client) send(ctx context.Context, req *http.Request, read func(*http.Response)) *failure {
	var handshake, sent atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { handshake.Store(err != nil) },
		GotConn:          func(httptrace.GotConnInfo) { sent.Store(true) },
	})
	transport := &http.Transport{
		Proxy: nil, // whatever the environment says
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return c.guard.dial(ctx, network, address, c.guard.httpPort)
		},
		TLSClientConfig:        c.tlsConfig(""),
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
