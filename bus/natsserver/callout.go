package natsserver

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// With an external NATS, the servers authenticate clients through the service by auth callout.
// All keys share one account, which imports from the service's account
// everything that any key could be granted. The user that the service creates for each
// connection has allow lists for what its own key is granted:
//
//   - requests to the endpoints of its tenants, and the discovery of the micro service;
//   - the pull API of its tenants' consumers of the feed and of the audit
//     stream (see Pulls), and single keys of their part of the in-use index;
//   - its own inbox prefix (see InboxPrefix), and never "_INBOX.>".
//
// The import is shared, so the servers put the user's name into the request.
//
// The sender of a request names its reply subject, and the servers do
// not check that the sender may publish there: within one account a reply could be directed
// into the subscription of another tenant. Inboxes cannot be guessed, but the subjects
// of the feed, the audit stream and the in-use index can. So plain subscriptions to these have
// their own account, in which nobody can publish: a connection with the user name
// FeedUser is put there.

// The NATS accounts of the keys on an external NATS.
const (
	ClientAccount = "CLIENTS" // sends requests and pulls
	FeedAccount   = "FEED"    // subscribes to the feed, the audit stream and the in-use index
)

// FeedUser is the user name, with the key as the password, of a connection that
// subscribes to the feed, the audit stream and the in-use index on an external NATS
// and does nothing else. A connection with any other name sends requests and
// pulls. The embedded server ignores the user name.
const FeedUser = "feed"

const (
	calloutQueue   = "credstream"     // one process replies
	calloutWorkers = 64               // concurrent requests of a process
	calloutLeave   = time.Second      // timeout of the unsubscription of a stopping process
	calloutExpiry  = 15 * time.Minute // of a connection that cannot be closed: without a system user
)

// kickAgain is when the connections of a revoked key are closed again, to include those
// accepted by a process that had not seen the revocation yet.
var kickAgain = []time.Duration{500 * time.Millisecond, 5 * time.Second}

// InboxPrefix is the prefix of the reply subjects of a key on an external NATS:
// "_INBOX_" and the first 8 bytes, in hex, of the SHA-256 of "inbox/" followed by
// the key. A client sets it as the inbox prefix of its library
// (nats.CustomInboxPrefix, "nats --inbox-prefix") and may subscribe to no other
// inbox. It cannot be derived without the key.
func InboxPrefix(key string) string {
	sum := sha256.Sum256([]byte("inbox/" + key))
	return "_INBOX_" + hex.EncodeToString(sum[:8])
}

// callout replies to the authorization requests of the servers.
type callout struct {
	c      *Cluster
	conn   *nats.Conn
	issuer nkeys.KeyPair
	xkey   nkeys.KeyPair // nil: the servers do not encrypt
	mac    []byte        // the key that signs the names of users
	auth   atomic.Pointer[Authenticator]
	slots  chan struct{}
	sub    atomic.Pointer[nats.Subscription] // nil until there is an Authenticator
}

func (c *Cluster) openCallout(ctx context.Context) (*callout, error) {
	o := &callout{c: c, slots: make(chan struct{}, calloutWorkers)}
	seed, err := c.readSeed("auth callout", c.cfg.CalloutSeedFile, nkeys.PrefixByteAccount)
	if err != nil {
		return nil, err
	}
	defer clear(seed)
	if o.issuer, err = nkeys.FromSeed(seed); err != nil {
		return nil, fmt.Errorf("reading the seed of the auth callout: %w", err)
	}
	h := hmac.New(sha256.New, seed)
	h.Write([]byte("credstream/nats-user/1"))
	o.mac = h.Sum(nil)
	if c.cfg.CalloutXKeyFile != "" {
		seed, err := c.readSeed("encryption key of the auth callout", c.cfg.CalloutXKeyFile, nkeys.PrefixByteCurve)
		if err != nil {
			return nil, err
		}
		defer clear(seed)
		if o.xkey, err = nkeys.FromCurveSeed(seed); err != nil {
			return nil, fmt.Errorf("reading the encryption key of the auth callout: %w", err)
		}
	}
	if o.conn, err = c.connect(ctx, "callout", roleCallout); err != nil {
		return nil, err
	}
	return o, nil
}

// readSeed reads the seed of an nkey from a file that others should not read.
func (c *Cluster) readSeed(what, file string, kind nkeys.PrefixByte) ([]byte, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("reading the seed of the %s: %w", what, err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		c.log.Warn("other users of this machine can read a file with a seed; run chmod 600 on it", "file", file)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the seed of the %s: %w", what, err)
	}
	seed := bytes.Clone(bytes.TrimSpace(raw))
	clear(raw)
	if prefix, _, err := nkeys.DecodeSeed(seed); err != nil || prefix != kind {
		return nil, ErrNATSConfig.Withf("The file for the seed of the %s does not contain one.", what)
	}
	return seed, nil
}

// SetAuthenticator accepts keys from now on. Without one this process leaves the
// authorization requests to the other processes.
func (c *Cluster) SetAuthenticator(f Authenticator) error {
	o := c.callout
	if o == nil || o.auth.Swap(&f) != nil {
		return nil
	}
	sub, err := o.conn.QueueSubscribe(server.AuthCalloutSubject, calloutQueue, o.receive)
	if err == nil {
		err = o.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("listening for the auth callout: %w", err)
	}
	o.sub.Store(sub)
	return nil
}

// stop leaves further requests to the other processes.
func (o *callout) stop() {
	if sub := o.sub.Load(); sub != nil {
		_ = sub.Unsubscribe()                 // fails when the connection is closed already
		_ = o.conn.FlushTimeout(calloutLeave) // fails when no server responds
	}
}

// receive handles each request in its own goroutine, because the handling may
// need a lookup.
func (o *callout) receive(m *nats.Msg) {
	select {
	case o.slots <- struct{}{}:
	case <-o.c.life.Done():
		return
	}
	o.c.work.Go(func() {
		defer func() { <-o.slots }()
		ctx, cancel := context.WithTimeout(o.c.life, checkTimeout)
		defer cancel()
		answer, err := o.answer(ctx, m)
		if err != nil {
			// The client gets a timeout, and reconnects.
			o.c.log.Warn("auth callout failed", "err", err)
			return
		}
		if err := m.Respond(answer); err != nil {
			o.c.log.Warn("auth callout failed", "err", err)
		}
	})
}

var errCalloutClear = errors.New("the server does not encrypt its auth callout, but --nats-callout-xkey is set")

// answer builds the response to one request. On an error there is no response.
func (o *callout) answer(ctx context.Context, m *nats.Msg) ([]byte, error) {
	question := m.Data
	from := m.Header.Get(server.AuthRequestXKeyHeader)
	if o.xkey != nil {
		if from == "" {
			return nil, errCalloutClear
		}
		var err error
		if question, err = o.xkey.Open(question, from); err != nil {
			return nil, fmt.Errorf("decrypting an auth callout: %w", err)
		}
	}
	req, err := jwt.DecodeAuthorizationRequestClaims(string(question))
	if err != nil {
		return nil, fmt.Errorf("reading an auth callout: %w", err)
	}
	answer := jwt.NewAuthorizationResponseClaims(req.UserNkey)
	answer.Audience = req.Server.ID
	user, err := o.user(ctx, req)
	switch {
	case err == nil:
		answer.Jwt = user
	case ctx.Err() != nil || fault.Of(err).Kind == fault.Unavailable:
		return nil, fmt.Errorf("checking a key: %w", err)
	default:
		answer.Error = "unknown key" // for the server's log, like the line below
		o.c.log.Info("connection to NATS refused", "host", req.ClientInformation.Host)
	}
	token, err := answer.Encode(o.issuer)
	if err != nil {
		return nil, fmt.Errorf("signing an auth callout response: %w", err)
	}
	if o.xkey == nil {
		return []byte(token), nil
	}
	sealed, err := o.xkey.Seal([]byte(token), from)
	if err != nil {
		return nil, fmt.Errorf("encrypting an auth callout response: %w", err)
	}
	return sealed, nil
}

// user creates the signed user of a connection. An error rejects the connection.
func (o *callout) user(ctx context.Context, req *jwt.AuthorizationRequestClaims) (string, error) {
	key := req.ConnectOptions.Password
	if key == "" {
		key = req.ConnectOptions.Token
	}
	if key == "" {
		return "", events.ErrID
	}
	from, _ := netip.ParseAddr(req.ClientInformation.Host) // the zero address when unknown
	g, err := (*o.auth.Load())(ctx, key, from.Unmap())
	if err != nil {
		return "", err
	}
	requests, subscriptions, err := g.subjects()
	if err != nil {
		o.c.log.Error("key refused: its permissions cannot be computed", "principal", g.Principal, "err", err)
		return "", err
	}
	u := jwt.NewUserClaims(req.UserNkey)
	u.Name = o.userName(g.Principal)
	// Not as a leaf node, which could impersonate its own clients.
	u.AllowedConnectionTypes = jwt.StringList{jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket}
	switch {
	case req.ConnectOptions.Username != FeedUser:
		u.Audience, u.Pub.Allow, u.Sub.Allow = ClientAccount, requests, jwt.StringList{InboxPrefix(key) + ".>"}
	case len(subscriptions) > 0:
		u.Audience, u.Pub.Deny, u.Sub.Allow = FeedAccount, jwt.StringList{">"}, subscriptions
	default: // an empty allow list would allow everything
		u.Audience, u.Pub.Deny, u.Sub.Deny = FeedAccount, jwt.StringList{">"}, jwt.StringList{">"}
	}
	if !confidentialClient(req) || o.c.exposed.Load() {
		for _, command := range o.c.cfg.ClearSecretCommands {
			u.Pub.Deny = append(u.Pub.Deny, "credstream.cmd.*."+command) // a queued command has encrypted keys, or is refused
		}
	}
	if o.c.sys == nil {
		u.Expires = time.Now().Add(calloutExpiry).Unix()
	}
	if end := g.Expires.Unix(); !g.Expires.IsZero() && (u.Expires == 0 || end < u.Expires) {
		u.Expires = end
	}
	token, err := u.Encode(o.issuer)
	if err != nil {
		return "", fmt.Errorf("signing a user: %w", err)
	}
	return token, nil
}

// confidentialClient reports whether the connection between the client and its server
// cannot be read by others. The routes between servers are up to the operator.
func confidentialClient(req *jwt.AuthorizationRequestClaims) bool {
	from, _ := netip.ParseAddr(req.ClientInformation.Host) // the zero address when unknown
	return service.Confidential(req.TLS != nil, from)
}

// userName is the name of a principal's users at the servers: the principal and
// a MAC that only the processes can create and verify, so that other users of the account
// are not recognized. It is not a secret: servers log it.
func (o *callout) userName(principal string) string {
	h := hmac.New(sha256.New, o.mac)
	h.Write([]byte(principal))
	return principal + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:24])
}

// Caller returns the principal that sent the request with these headers; see Node.Caller.
// Here the name of the sender's user identifies it, which the servers put
// into the header Nats-Request-Info. A user's name stays valid after its key was
// revoked, so the principal must be checked for every request.
func (c *Cluster) Caller(h nats.Header) (principal string, ok bool) {
	values := h[server.ClientInfoHdr]
	if c.callout == nil || len(values) != 1 {
		return "", false
	}
	var info struct {
		User string `json:"user"`
	}
	if err := json.Unmarshal([]byte(values[0]), &info); err != nil {
		return "", false
	}
	principal, _, _ = strings.Cut(info.User, ".")
	if !hmac.Equal([]byte(info.User), []byte(c.callout.userName(principal))) {
		return "", false
	}
	return principal, true
}

// DisconnectKey closes the connections of a key at every server, now and again
// within the next seconds, to include those that another process accepted before it
// saw the change. Call it after the key was revoked or its grants changed: a
// connection keeps its original grant. Without a system user nothing is
// closed; each connection ends after a quarter of an hour.
func (c *Cluster) DisconnectKey(principal string) {
	if c.sys == nil || c.callout == nil {
		c.log.Warn("connections of a revoked key stay open for up to 15 minutes: no user of the NATS system account is configured (--nats-system)", "principal", principal)
		return
	}
	c.kick(principal)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return
	}
	c.work.Go(func() {
		begin := time.Now()
		for _, after := range kickAgain {
			select {
			case <-c.life.Done():
				return
			case <-time.After(time.Until(begin.Add(after))):
				c.kick(principal)
			}
		}
	})
}

func (c *Cluster) kick(principal string) {
	if err := c.disconnect(principal); err != nil {
		c.log.Error("connections of a revoked key not closed", "principal", principal, "err", err)
	}
}

func (c *Cluster) disconnect(principal string) error {
	body, err := json.Marshal(map[string]any{
		"auth": true, "user": c.callout.userName(principal), "limit": 1 << 20,
	})
	if err != nil {
		return fmt.Errorf("listing connections: %w", err)
	}
	return c.request(c.life, sysConnz, body, func(a sysAnswer) (bool, error) {
		var list struct {
			Connections []struct {
				ID uint64 `json:"cid"`
			} `json:"connections"`
		}
		if err := json.Unmarshal(a.Data, &list); err != nil {
			return false, fmt.Errorf("reading the connections of the NATS server %s: %w", a.Server.Name, err)
		}
		for _, conn := range list.Connections {
			order, err := json.Marshal(map[string]uint64{"cid": conn.ID})
			if err != nil {
				return false, fmt.Errorf("closing a connection: %w", err)
			}
			// The server ignores a kick without a reply subject. It fails if the connection was closed meanwhile.
			if err := c.sys.PublishRequest(fmt.Sprintf(sysKick, a.Server.ID), c.sys.NewInbox(), order); err != nil {
				return false, fmt.Errorf("closing a connection: %w", err)
			}
		}
		return false, nil
	})
}
