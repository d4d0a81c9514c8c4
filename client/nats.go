package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/fault"
)

// ErrRefused is returned when the NATS server rejects the key or a
// subject: the key is unknown, or has no access to the tenant.
var ErrRefused = fault.New(fault.Unauthenticated, "nats_refused", "The NATS server rejected the API key.")

// errSubject is returned for a tenant that the key may not access: the server rejects
// the subject before the service sees the request.
var errSubject = &fault.Error{Kind: fault.NotFound, Code: "tenant_not_found", Msg: "Tenant not found."}

// NATSConfig is the address of the service's NATS server and the identity of the caller.
type NATSConfig struct {
	URL    string // "nats://127.0.0.1:4222", or several with commas between
	Key    string // the API key; "" if a client certificate in Options stands for it
	Tenant string // DefaultTenant when empty
	// Options are added to those of the connection: TLS, a name, handlers other than those
	// for errors and reconnects, which the client needs itself.
	Options []nats.Option
}

// Conn is a NATS client of the service. Close closes it.
type Conn struct {
	API
	cfg NATSConfig
	nc  *nats.Conn // for requests

	dialing       sync.Mutex
	feed          *nats.Conn     // for subscriptions to the feed; nil until needed
	requestLogins loginRejection // of nc
	feedLogins    loginRejection // of feed

	mu        sync.Mutex
	closed    bool
	waiting   map[*pending]struct{}
	followers map[*follower]struct{}
}

// The user names of the two connections. On an external NATS they select the
// account: a subscriber to the feed sends no requests there.
const (
	userRequests = "key"
	userFeed     = "feed"
)

// pending is a request in flight. The server reports a permission violation on the connection,
// not as a response to the request, and reports nothing
// when the connection is lost: then fail ends the wait.
type pending struct {
	subject string
	fail    context.CancelCauseFunc
}

// loginRejection counts the consecutive reconnects of a connection that were rejected. A starting
// service rejects every key for a while, so a single rejection does not mean that the key is unknown.
type loginRejection struct{ refusals atomic.Int32 }

// maxRefusals is the number of rejections after which the key counts as unknown: about 20 seconds
// of them from a single server.
const maxRefusals = 7

// The delays before reconnects: the first, and the longest, to which rejections double it. A
// server that only cannot be reached is tried again after the first.
const (
	firstReconnect   = 250 * time.Millisecond
	longestReconnect = 30 * time.Second
)

func (e *loginRejection) refused() bool { return e.refusals.Load() >= maxRefusals }

// pause is the delay before each reconnect, of which a random half keeps many clients apart.
func (e *loginRejection) pause(int) time.Duration {
	d := longestReconnect
	if n := e.refusals.Load(); n < maxRefusals {
		d = min(d, firstReconnect<<n)
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // a pause, not a secret
}

const natsCallTime = 35 * time.Second // above the service's own bound

// Dial connects. It returns ErrRefused for an unknown key, and
// ErrUnreachable. Later the connection reconnects by itself, forever. After
// many rejections, because the key is no longer known, requests and
// followers end with ErrRefused until it is accepted again.
func Dial(ctx context.Context, cfg NATSConfig) (*Conn, error) {
	if cfg.Tenant == "" {
		cfg.Tenant = DefaultTenant
	}
	if !isToken(cfg.Tenant) {
		return nil, ErrConfig.Withf("A tenant must have 1 to 64 letters, digits, '_' and '-'.")
	}
	c := &Conn{cfg: cfg, waiting: map[*pending]struct{}{}, followers: map[*follower]struct{}{}}
	c.API = API{c, cfg.Tenant}
	var err error
	c.nc, err = c.connect(ctx, userRequests, &c.requestLogins)
	return c, err
}

func (c *Conn) connect(ctx context.Context, user string, at *loginRejection) (*nats.Conn, error) {
	options := append([]nats.Option{
		nats.Name("credstream client"),
		nats.UserInfo(user, c.cfg.Key),
		nats.CustomInboxPrefix(InboxPrefix(c.cfg.Key)),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(at.pause),
		nats.ReconnectBufSize(-1), // what is sent while disconnected fails, and is retried with its id
		nats.IgnoreAuthErrorAbort(),
	}, c.cfg.Options...)
	if deadline, ok := ctx.Deadline(); ok {
		// Never longer than without a deadline: a server that cannot reach the
		// authentication rejects every key after 2 seconds, which does not mean that it is unknown.
		options = append(options, func(o *nats.Options) error {
			o.Timeout = min(o.Timeout, time.Until(deadline))
			return nil
		})
	}
	options = append(options, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if isRefusal(err) && at.refusals.Add(1) == maxRefusals {
			c.keyRejected()
		}
		c.failed(err)
	}))
	if user == userRequests {
		options = append(options, func(o *nats.Options) error {
			own := o.DisconnectedErrCB
			o.DisconnectedErrCB = func(nc *nats.Conn, err error) {
				c.lost()
				if own != nil {
					own(nc, err)
				}
			}
			return nil
		})
	}
	options = append(options, func(o *nats.Options) error {
		own := o.ReconnectedCB
		o.ReconnectedCB = func(nc *nats.Conn) {
			at.refusals.Store(0)
			c.gap()
			if own != nil {
				own(nc)
			}
		}
		return nil
	})
	nc, err := nats.Connect(c.cfg.URL, options...)
	switch {
	case isRefusal(err) && strings.Count(c.cfg.Key, ".") == 2:
		return nil, ErrRefused.Withf("The NATS server accepts API keys only, and this looks like a token of an OpenID Connect issuer. Use the token over HTTP, or issue an API key.")
	case isRefusal(err):
		return nil, ErrRefused
	case err != nil:
		return nil, unreachable(ctx, err)
	}
	return nc, nil
}

func isRefusal(err error) bool {
	return errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked)
}

// listening returns the connection for subscriptions, opened by the first call.
func (c *Conn) listening(ctx context.Context) (*nats.Conn, error) {
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if c.feed != nil {
		return c.feed, nil
	}
	feed, err := c.connect(ctx, userFeed, &c.feedLogins)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		feed.Close()
		return nil, fmt.Errorf("%w (%w)", ErrUnreachable, nats.ErrConnectionClosed)
	}
	c.feed = feed
	return feed, nil
}

// InboxPrefix is the prefix of a key's reply subjects: "_INBOX_" and the
// first 8 bytes, in hex, of the SHA-256 of "inbox/" and the key. With
// an external NATS (serve --nats), the servers allow no other reply subjects.
func InboxPrefix(key string) string {
	sum := sha256.Sum256([]byte("inbox/" + key))
	return "_INBOX_" + hex.EncodeToString(sum[:8])
}

// Close closes the connections. Requests and followers end with an error.
func (c *Conn) Close() {
	c.nc.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.feed != nil {
		c.feed.Close()
	}
}

// isToken reports whether s is a valid token of a subject.
func isToken(s string) bool {
	return s != "" && !strings.ContainsAny(s, ".*> \t\r\n\x00") && len(s) <= 64
}

// send implements transport.
func (c *Conn) send(ctx context.Context, r request) ([]byte, error) {
	kind := "query"
	if r.command {
		kind = "cmd"
	}
	subject, err := c.subject(kind, r.name)
	if err != nil {
		return nil, err
	}
	m := nats.NewMsg(subject)
	m.Data = r.body
	ctx, cancel := context.WithTimeout(ctx, natsCallTime)
	defer cancel()
	if r.command {
		r.options.write(m.Header)
		setDeadline(ctx, http.Header(m.Header))
	}
	answer, err := c.request(ctx, m)
	if err != nil {
		return nil, err
	}
	code := answer.Header.Get(micro.ErrorCodeHeader)
	if code == "" {
		return answer.Data, nil
	}
	status, err := strconv.Atoi(code)
	if err != nil {
		status = http.StatusInternalServerError
	}
	return nil, readProblem(status, answer.Data)
}

// subject is the subject of a command or query.
func (c *Conn) subject(kind, name string) (string, error) {
	for token := range strings.SplitSeq(name, ".") {
		if !isToken(token) {
			return "", ErrConfig.Withf("%q is not the name of a command or query.", name)
		}
	}
	return "credstream." + kind + "." + c.tenant + "." + name, nil
}

// write sets the headers of a command.
func (o commandOptions) write(h nats.Header) {
	h.Set(nats.MsgIdHdr, o.id)
	if o.correlation != "" {
		h.Set("X-Correlation-Id", o.correlation)
	}
}

// request sends one message and waits for its reply.
func (c *Conn) request(ctx context.Context, m *nats.Msg) (*nats.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, natsCallTime)
	defer cancel()
	wait, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	p := &pending{m.Subject, stop}
	c.expect(p)
	defer c.forget(p)
	answer, err := c.nc.RequestMsgWithContext(wait, m)
	switch {
	case err != nil && c.requestLogins.refused():
		return nil, ErrRefused
	case err != nil && errors.Is(context.Cause(wait), errSubject):
		return nil, errSubject
	case err != nil && errors.Is(context.Cause(wait), nats.ErrDisconnected):
		return nil, fmt.Errorf("%w (%w)", ErrUnreachable, nats.ErrDisconnected)
	case err != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("%w (%w)", fault.ErrTimeout, ctx.Err())
	case err != nil:
		return nil, fmt.Errorf("%w (%w)", ErrUnreachable, err)
	}
	return answer, nil
}

func (c *Conn) expect(p *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting[p] = struct{}{}
}

func (c *Conn) forget(p *pending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, p)
}

// failed handles errors that belong to no call.
func (c *Conn) failed(err error) {
	if errors.Is(err, nats.ErrSlowConsumer) {
		c.gap()
	}
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.waiting {
		if strings.Contains(err.Error(), strconv.Quote(p.subject)) {
			p.fail(errSubject)
		}
	}
	for f := range c.followers {
		if strings.Contains(err.Error(), strconv.Quote(f.subject)) {
			f.refuse()
		}
	}
}

// lost ends the wait for replies that will not arrive: the requests are sent
// again, with the same command id.
func (c *Conn) lost() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.waiting {
		p.fail(nats.ErrDisconnected)
	}
}

// keyRejected ends the followers, because the key is no longer known.
func (c *Conn) keyRejected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.followers {
		raise(f.locked)
	}
}

// gap tells the followers that messages may be missing.
func (c *Conn) gap() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for f := range c.followers {
		f.missed()
	}
}
