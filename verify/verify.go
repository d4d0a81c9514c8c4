// Package verify makes dry requests: one request or connection that checks whether a credential
// works. It also makes the service's other calls to addresses that tenants can choose. So it
// resolves, checks and dials in one step, follows no redirect, and reports only the class of a
// dry request's response.
package verify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

// The errors of Run. None of them contains a value.
var (
	// ErrValueInvalid means that a value is not allowed where the probe uses it; its pointer
	// is /keys/<field>.
	ErrValueInvalid = fault.New(fault.Invalid, "verification_value_invalid", "A value cannot be used in the dry request.")
	// ErrHostRefused means that the probe would send values to a host that is not allowed.
	ErrHostRefused = fault.New(fault.Precondition, "verification_host_refused", "The dry request would go to a host that these values may not be sent to.")
	// ErrBusy means that none of the tenant's slots for dry requests became free in time.
	ErrBusy = fault.New(fault.Throttled, "verification_busy", "Too many dry requests are running. Try again shortly.")
)

// Values returns the cleartext value of a field; ok is false if it has none.
type Values func(field string) (value seal.Secret, ok bool)

// Probe describes a dry request: exactly one of HTTP, TCP, TLS and Login is set. Its strings are
// templates: {{field}} is replaced by the value, escaped for that part of the request.
type Probe struct {
	HTTP  *HTTP
	TCP   *TCP
	TLS   *TLS
	Login *Login
	Hosts []string // where values may be sent: host names, which may hold {{field}}
}

// HTTP is one request and the criteria for its response.
type HTTP struct {
	Method string // "" is GET
	URL    string // absolute, http or https; or {{field}} with a base URL, and the rest of the path
	// AllowHTTP allows a base URL that begins with http://.
	AllowHTTP bool
	TLS       *TLSFiles // nil: the policy's CAs, no certificate
	Headers   map[string]string
	Basic     *Basic            // nil: none
	Form      map[string]string // the body as a form; nil: none
	JSON      []byte            // the body as JSON; its strings are templates; nil: none
	Expect    []int             // statuses that mean success; empty: every 2xx
	Checks    []Check           // conditions on the body if the status means success
	Says      map[string]string // sentence by status ("401") or class ("4xx")
}

// Check is one condition on the body of a response: Contains, or else Condition.
type Check struct {
	Condition
	Contains string // a text that the body must contain; "" for a condition on its JSON
	Says     string // sentence if the body does not meet it; "" for a default one
}

func (c Check) holds(body []byte) bool {
	if c.Contains != "" {
		return bytes.Contains(body, []byte(c.Contains))
	}
	return c.Holds(body)
}

// Basic is HTTP Basic authentication (RFC 7617).
type Basic struct{ Username, Password string }

// TCP opens a connection and closes it.
type TCP struct {
	Address     string // host:port
	DefaultPort int    // if the port expands to nothing; 0: none
}

// TLS opens a connection, checks the server's certificate and closes it.
type TLS struct {
	TCP
	TLSFiles
}

// TLSFiles are templates of certificates in PEM. An empty value counts as absent.
type TLSFiles struct {
	CA          string // the only CAs that are trusted
	Certificate string // of the client, with its chain
	Key         string
}

// The outcomes besides the classes of HTTP status ("2xx", "4xx", "5xx").
const (
	OutcomeConnected     = "connected"      // the tcp or tls probe succeeded
	OutcomeRefused       = "refused"        // connection refused
	OutcomeUnreachable   = "unreachable"    // no route
	OutcomeTimeout       = "timeout"        // no response in time
	OutcomeTLS           = "tls"            // no TLS, or a certificate that is not trusted
	OutcomeAddressDenied = "address_denied" // unknown host, or a denied address or port: one outcome, so that internal names cannot be probed
	OutcomeRedirect      = "redirect"       // an unexpected 3xx
	OutcomeTooLarge      = "too_large"      // headers above 32 KiB, or a body to be checked above 64 KiB
	OutcomeContent       = "content"        // the body does not meet the checks
	OutcomeClosed        = "closed"         // the connection was closed before the response
	OutcomeProtocol      = "protocol"       // the response is not of the probe's protocol
	OutcomeSignedIn      = "signed_in"      // the server accepted the user name and password
	OutcomeRejected      = "rejected"       // the server rejected them
	OutcomeTemporary     = "temporary"      // the server could not check them now
	OutcomeHostKey       = "host_key"       // the SSH server has another host key than the accepted one
)

// Result is the result of a dry request. It contains nothing of the response.
type Result struct {
	OK      bool
	Probe   string        // "http", "tcp", "tls" or the protocol of a Login
	Outcome string        // a class of status or one of the outcomes above
	Latency time.Duration // until the outcome was known
	Says    string        // a sentence for people: the component's or a default one
	HostKey string        // of an SSH server that showed one: "ssh-ed25519 SHA256:..."
}

// Config is the policy of a Client. The zero value is the strictest.
type Config struct {
	AllowPrivate bool           // development only: allow loopback and private addresses, and every port
	Deny         []netip.Prefix // additional denied addresses: the service's own public ones
	Timeout      time.Duration  // of one whole dry request; 0: 10 s
	MaxBody      int64          // bytes of a response body that are read; 0: 64 KiB
	Concurrency  int            // dry requests in flight of one tenant, and its calls to one host; 0: 4
	Resolver     *net.Resolver  // nil: the system's
	RootCAs      *x509.CertPool // nil: the system's
	Logger       *slog.Logger   // nil: no log
}

// Client makes dry requests. It is safe for concurrent use.
type Client struct {
	cfg   Config
	guard *guard
	slots *slots
	log   *slog.Logger

	// Separate from slots, so that a tenant's slow probes do not delay the renewal of its tokens.
	calls, hostCalls *slots // by tenant, and by tenant and host
}

const (
	maxHeaderBytes = 32 << 10               // of a response
	drainTimeout   = 500 * time.Millisecond // for reading a body that is not checked
	hostsAtOnce    = 8                      // number of slow hosts that can occupy all call slots of a tenant
)

// NewClient returns a Client with this policy.
func NewClient(cfg Config) *Client {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.MaxBody <= 0 {
		cfg.MaxBody = 64 << 10
	}
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = 4
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Client{
		cfg: cfg, guard: newGuard(cfg), log: cfg.Logger,
		slots: newSlots(cfg.Concurrency), calls: newSlots(hostsAtOnce * cfg.Concurrency), hostCalls: newSlots(cfg.Concurrency),
	}
}

// AllowsPrivate reports whether the policy allows private addresses.
func (c *Client) AllowsPrivate() bool { return c.cfg.AllowPrivate }

// Run makes one dry request for tenant. If the target is unreachable or rejects the values, the
// Result has OK false. An error means that nothing was sent: ErrValueInvalid, ErrHostRefused or
// ErrBusy; or that ctx ended.
func (c *Client) Run(ctx context.Context, tenant string, p Probe, values Values) (Result, error) {
	run, err := c.prepare(p, values)
	if err != nil {
		return Result{}, err
	}
	defer admission.Idle(ctx)()
	release, err := c.slots.acquire(ctx, tenant, c.cfg.Timeout)
	if err != nil {
		return Result{}, err
	}
	defer release()

	begin := time.Now()
	runCtx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	result := run(runCtx, cancel)
	if !result.OK && ctx.Err() != nil {
		return Result{}, fmt.Errorf("making the dry request: %w", ctx.Err())
	}
	if result.Latency == 0 {
		result.Latency = time.Since(begin)
	}
	c.log.DebugContext(ctx, "dry request", "tenant", tenant, "probe", result.Probe, "outcome", result.Outcome, "latency", result.Latency)
	return result, nil
}

// attempt makes a prepared dry request.
type attempt func(ctx context.Context, cancel context.CancelFunc) Result

// prepare expands the templates and checks the host, before anything is dialled.
func (c *Client) prepare(p Probe, values Values) (attempt, error) {
	switch {
	case p.HTTP != nil:
		req, err := request(p.HTTP, p.Hosts, values)
		if err != nil {
			return nil, err
		}
		how := route{tls: c.tlsConfig(""), port: c.guard.httpPort}
		if strings.HasPrefix(p.HTTP.URL, "{{") { // servers of a company's own often have another port
			how.port = c.guard.webPort
		}
		if p.HTTP.TLS != nil {
			if err := p.HTTP.TLS.addTo(how.tls, values); err != nil {
				return nil, err
			}
		}
		return func(ctx context.Context, cancel context.CancelFunc) Result {
			return c.http(ctx, cancel, p.HTTP, req, how)
		}, nil
	case p.TCP != nil:
		address, _, err := expandAddress(*p.TCP, p.Hosts, values)
		if err != nil {
			return nil, err
		}
		return func(ctx context.Context, _ context.CancelFunc) Result { return c.tcp(ctx, address) }, nil
	case p.TLS != nil:
		address, host, err := expandAddress(p.TLS.TCP, p.Hosts, values)
		if err != nil {
			return nil, err
		}
		config := c.tlsConfig(host)
		if err := p.TLS.addTo(config, values); err != nil {
			return nil, err
		}
		return func(ctx context.Context, _ context.CancelFunc) Result { return c.tls(ctx, address, config) }, nil
	case p.Login != nil:
		return c.prepareLogin(p.Login, p.Hosts, values)
	}
	return nil, errors.New("making the dry request: the probe is empty")
}

func (c *Client) http(ctx context.Context, cancel context.CancelFunc, p *HTTP, req *http.Request, how route) Result {
	var result Result
	begin := time.Now()
	fail := c.send(ctx, req, how, func(resp *http.Response) {
		result = resultOf(p, resp.StatusCode)
		if result.OK && len(p.Checks) > 0 {
			result = c.check(ctx, p, resp.Body, result)
			result.Latency = time.Since(begin)
			return
		}
		result.Latency = time.Since(begin)
		timer := time.AfterFunc(drainTimeout, cancel)
		defer timer.Stop()
		_, _ = io.CopyN(io.Discard, resp.Body, c.cfg.MaxBody)
	})
	if fail != nil {
		return unreached("http", fail.err, fail.handshake)
	}
	return result
}

// check checks the body of a response whose status means success. It returns r if every check
// holds.
func (c *Client) check(ctx context.Context, p *HTTP, from io.Reader, r Result) Result {
	body, err := io.ReadAll(io.LimitReader(from, c.cfg.MaxBody+1))
	failed := func(outcome, says string) Result {
		return Result{Probe: "http", Outcome: outcome, Says: says}
	}
	switch {
	case int64(len(body)) > c.cfg.MaxBody:
		return failed(OutcomeTooLarge, "The API's response is larger than 64 KiB, so it could not be checked.")
	case err != nil && ctx.Err() != nil:
		return failed(OutcomeTimeout, "The server did not answer in time.")
	case err != nil:
		return failed(OutcomeClosed, "The API's response was incomplete, so it could not be checked.")
	}
	for _, check := range p.Checks {
		if check.holds(body) {
			continue
		}
		if check.Says != "" {
			return failed(OutcomeContent, check.Says)
		}
		return failed(OutcomeContent, "The API answered with a success, but its response says that the keys do not work.")
	}
	return r
}

func (c *Client) tcp(ctx context.Context, address string) Result {
	conn, err := c.guard.dial(ctx, "tcp", address, c.guard.anyPort)
	if err != nil {
		return unreached("tcp", err, false)
	}
	_ = conn.Close()
	return Result{OK: true, Probe: "tcp", Outcome: OutcomeConnected, Says: "The server accepts connections."}
}

func (c *Client) tls(ctx context.Context, address string, config *tls.Config) Result {
	conn, err := c.guard.dial(ctx, "tcp", address, c.guard.anyPort)
	if err != nil {
		return unreached("tls", err, false)
	}
	defer func() { _ = conn.Close() }()
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return unreached("tls", err, true)
	}
	if len(config.Certificates) > 0 && !acceptsCertificate(ctx, secured) {
		return unreached("tls", errCertificateRefused, false)
	}
	return Result{OK: true, Probe: "tls", Outcome: OutcomeConnected, Says: "The server accepts connections and its certificate is valid."}
}

// errCertificateRefused means that the server ended a connection after the handshake.
var errCertificateRefused = errors.New("the client certificate is refused")

// acceptsCertificate reports whether the server keeps the connection open for half a second: in TLS
// 1.3 it checks the client's certificate when the handshake is over for the client.
func acceptsCertificate(ctx context.Context, conn *tls.Conn) bool {
	wait, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if deadline, ok := wait.Deadline(); ok {
		_ = conn.SetReadDeadline(deadline)
	}
	_, err := conn.Read(make([]byte, 1))
	return err == nil || errors.Is(err, os.ErrDeadlineExceeded)
}

func (c *Client) tlsConfig(host string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.cfg.RootCAs, ServerName: host}
}

// resultOf returns the result by the status alone.
func resultOf(p *HTTP, status int) Result {
	class := strconv.Itoa(status/100) + "xx"
	r := Result{Probe: "http", Outcome: class, OK: status/100 == 2}
	if len(p.Expect) > 0 {
		r.OK = slices.Contains(p.Expect, status)
	}
	if status/100 == 3 && !r.OK {
		r.Outcome = OutcomeRedirect
	}
	for _, key := range []string{strconv.Itoa(status), class} {
		if says, ok := p.Says[key]; ok {
			r.Says = says
			return r
		}
	}
	r.Says = sentence(status, r.OK)
	return r
}

func sentence(status int, ok bool) string {
	switch {
	case ok:
		return "The API accepted the keys."
	case status == http.StatusUnauthorized:
		return "The API rejected the keys (status 401)."
	case status == http.StatusForbidden:
		return "The API accepts the keys but denies them access (status 403)."
	case status == http.StatusTooManyRequests:
		return "The API limits the rate of requests (status 429), so the keys could not be checked. Try again later."
	case status/100 == 5:
		return fmt.Sprintf("The API reports an error of its own (status %d), so the keys could not be checked. Try again later.", status)
	case status/100 == 3:
		return fmt.Sprintf("The API redirects to another address (status %d). The dry request does not follow redirects, because that could expose the keys.", status)
	}
	return fmt.Sprintf("The API answered with status %d, which the component does not accept as a success.", status)
}

// unreached classifies why there was no response. The result contains nothing of err.
func unreached(probe string, err error, handshakeFailed bool) Result {
	r := Result{Probe: probe}
	var (
		dns     *net.DNSError
		timeout net.Error
	)
	switch {
	case errors.Is(err, errPortDenied):
		r.Outcome, r.Says = OutcomeAddressDenied, "The service does not send dry requests to this port."
	case errors.Is(err, errAddressDenied), errors.As(err, &dns) && !dns.IsTimeout:
		r.Outcome, r.Says = OutcomeAddressDenied, "The host was not found, or it has a private or reserved address, to which the service connects only with --allow-private-targets."
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		r.Outcome, r.Says = OutcomeTimeout, "The server did not answer in time."
	case errors.Is(err, errCertificateRefused), strings.Contains(err.Error(), "remote error: tls:"): // crypto/tls exports no error for it
		r.Outcome, r.Says = OutcomeTLS, "The server ended the secure connection: it requires a client certificate, does not accept this one, or does not support TLS 1.2 or newer."
	case handshakeFailed:
		r.Outcome, r.Says = OutcomeTLS, "No secure connection: the server's certificate is not trusted, is for another name or has expired, or it does not support TLS 1.2 or newer."
	case errors.Is(err, syscall.ECONNREFUSED):
		r.Outcome, r.Says = OutcomeRefused, "The server refused the connection: nothing listens at this address and port."
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL):
		r.Outcome, r.Says = OutcomeUnreachable, "The server is unreachable from this service."
	case strings.Contains(err.Error(), "response header"): // net/http exports no error for it
		r.Outcome, r.Says = OutcomeTooLarge, "The server's response was too large."
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		r.Outcome, r.Says = OutcomeClosed, "The server closed the connection without a response."
	default:
		r.Outcome, r.Says = OutcomeProtocol, "The server's response was not HTTP."
	}
	return r
}
