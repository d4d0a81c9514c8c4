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
	"net"
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
)

// On an external NATS the servers ask the service, by auth callout, who may
// come in. All keys share one account, which imports from the service's account
// what any key could be granted; the user that the service makes for each
// connection has allow lists for what its own key is granted:
//
//   - requests to the endpoints of its tenants, and the discovery of the micro service;
//   - the pull API of its tenants' consumers of the feed and of the audit
//     trail (see Pulls), and single keys of their part of the in-use index;
//   - an inbox prefix of its own (see InboxPrefix), and never "_INBOX.>".
//
// The import is shared, so the servers put the user's name into the request.
//
// Whoever sends a request names the subject of the answer, and the servers do
// not ask whether he may publish there: in one account an answer could be directed
// into the subscription of another tenant. Inboxes cannot be guessed, the subjects
// of the feed, the audit trail and the in-use index can. So plain subscriptions to these have an
// account of their own, in which nobody can send anything: a connection is put
// there that gives FeedUser as its user.

// The NATS accounts of the keys on an external NATS.
const (
	ClientAccount = "CLIENTS" // sends requests and pulls
	FeedAccount   = "FEED"    // subscribes to the feed, the audit trail and the in-use index
)

// FeedUser is the user name, with the key as the password, of a connection that
// subscribes to the feed, the audit trail and the in-use index on an external NATS
// and does nothing else. Any other name is for everything else. On the embedded
// server all names are alike.
const FeedUser = "feed"

const (
	calloutQueue   = "credstream"     // one replica answers
	calloutWorkers = 64               // requests that a replica answers at a time
	calloutLeave   = time.Second      // for the servers to hear that a replica leaves
	calloutExpiry  = 15 * time.Minute // of a connection that nobody could end: without a system user
)

// kickAgain is when the connections of a revoked key are closed again, for who
// was let in by a replica that did not know yet.
var kickAgain = []time.Duration{500 * time.Millisecond, 5 * time.Second}

// InboxPrefix is the prefix of the reply subjects of a key on an external NATS:
// "_INBOX_" and the first 8 bytes, in hex, of the SHA-256 of "inbox/" followed by
// the key. A client gives it to its library as the inbox prefix
// (nats.CustomInboxPrefix, "nats --inbox-prefix") and may subscribe to nothing
// else for answers. It cannot be told without the key.
func InboxPrefix(key string) string {
	sum := sha256.Sum256([]byte("inbox/" + key))
	return "_INBOX_" + hex.EncodeToString(sum[:8])
}

// callout answers the servers' questions about who connects.
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

// SetAuthenticator lets keys in from now on. Without one this process leaves the
// servers' questions to the other replicas.
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

// stop leaves what comes from now on to the other replicas.
func (o *callout) stop() {
	if sub := o.sub.Load(); sub != nil {
		_ = sub.Unsubscribe()                 // fails when the connection is closed already
		_ = o.conn.FlushTimeout(calloutLeave) // fails when nobody answers
	}
}

// receive answers each question in a goroutine of its own, since the answer may
// have to be looked up.
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
			// The client is told of a time-out, and comes again.
			o.c.log.Warn("auth callout failed", "err", err)
			return
		}
		if err := m.Respond(answer); err != nil {
			o.c.log.Warn("auth callout failed", "err", err)
		}
	})
}

var errCalloutClear = errors.New("the server does not encrypt its auth callout, but --nats-callout-xkey is set")

// answer makes the answer to one question. An error means that none is given.
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

// user makes the user for a connection, signed. An error refuses it.
func (o *callout) user(ctx context.Context, req *jwt.AuthorizationRequestClaims) (string, error) {
	key := req.ConnectOptions.Password
	if key == "" {
		key = req.ConnectOptions.Token
	}
	if key == "" {
		return "", events.ErrID
	}
	from, _ := netip.ParseAddr(req.ClientInformation.Host) // the zero address when it is not known
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
	// Not as a leaf node, whose word the servers take for what its own clients are.
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
			u.Pub.Deny = append(u.Pub.Deny, "credstream.cmd.*."+command) // a queued one carries its keys sealed, or is told
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

// confidentialClient reports whether nobody between the client and its server
// can read along. The servers' own routes are the operator's matter.
func confidentialClient(req *jwt.AuthorizationRequestClaims) bool {
	ip := net.ParseIP(req.ClientInformation.Host)
	return req.TLS != nil || ip != nil && ip.IsLoopback()
}

// userName is the name of a principal's users at the servers: the principal and
// a MAC that only the replicas can make and check, so that a user of the account
// which the callout did not make is nobody. It is no secret: servers log it.
func (o *callout) userName(principal string) string {
	h := hmac.New(sha256.New, o.mac)
	h.Write([]byte(principal))
	return principal + "." + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:24])
}

// Caller tells whose key sent the request with these headers; see Node.Caller.
// Here it is the name of the sender's user that counts, which the servers put
// into the header Nats-Request-Info. A user's name stays good after its key was
// revoked, so the principal has to be checked at every request.
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
// in the next seconds, for those that another replica let in before it knew
// better. Call it after the key was revoked or granted something else: a
// connection keeps the grant it came with. Without a system user nothing is
// closed; each connection ends when it is a quarter of an hour old.
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
	return c.ask(c.life, sysConnz, body, func(a sysAnswer) (bool, error) {
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
			// The server ignores an order without a reply subject. A failure is a connection that has gone by itself.
			if err := c.sys.PublishRequest(fmt.Sprintf(sysKick, a.Server.ID), c.sys.NewInbox(), order); err != nil {
				return false, fmt.Errorf("closing a connection: %w", err)
			}
		}
		return false, nil
	})
}
