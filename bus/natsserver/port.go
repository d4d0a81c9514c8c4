package natsserver

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// The users of the process itself. Both are accepted only on in-process connections.
const (
	serviceUser  = "service"
	endpointUser = "endpoints"
)

// requestRoots are the second tokens of the subjects that clients send requests
// to: "credstream.cmd.<tenant>.<command>".
var requestRoots = []string{"cmd", "query", "cmdq", "flows"}

const (
	servicePrefix = "_R_."                  // prefix of the reply subject of an imported request, set by the server
	inboxPrefix   = "_INBOX."               // the reply subjects of NATS clients
	clientPrefix  = "KEY_"                  // prefix of the accounts of keys
	checkTimeout  = 1500 * time.Millisecond // below authTime
	authTime      = 2 * time.Second         // after which the server drops unauthenticated connections
	outlast       = authTime + time.Second  // longer than authTime, with a margin for a busy machine
)

// Grant is what a key may access at the NATS port. The service also authorizes each request.
type Grant struct {
	Principal string   // the key's id: letters, digits, '_' and '-'
	Tenants   []string // the tenants it is granted, or AllTenants
	Follow    bool     // may subscribe to the feed and pull from engine-<tenant>
	Audit     bool     // may subscribe to the audit stream and pull from audit-<tenant>

	Expires time.Time // when its connections are closed; zero: never
}

// An Authenticator returns the grant of a key that is used from the address, or
// an error for an invalid key. It is called for each connection,
// from many goroutines, with about a second to answer.
type Authenticator func(ctx context.Context, key string, from netip.Addr) (Grant, error)

// A CertificateAuthenticator returns the grant of a client certificate that the handshake has
// verified; otherwise it is like an Authenticator.
type CertificateAuthenticator func(ctx context.Context, verified *x509.Certificate, from netip.Addr) (Grant, error)

// SetAuthenticator opens the NATS port and accepts keys from now on. The service needs the node
// before it can authenticate keys, so it can also be set after the start.
func (n *Node) SetAuthenticator(f Authenticator) error {
	n.life.Lock()
	defer n.life.Unlock()
	n.auth.Store(&f)
	if r := n.running(); r != nil {
		return n.listen(r)
	}
	return nil
}

// port authenticates and authorizes the connections to one server.
type port struct {
	n    *Node
	srv  *server.Server
	core *server.Account

	mu       sync.RWMutex
	accounts map[string]*server.Account // by grant
	keys     map[string]string          // account name to principal
}

func newPort(n *Node) *port {
	return &port{n: n, accounts: map[string]*server.Account{}, keys: map[string]string{}}
}

// open exports the subjects of the service's account that other accounts may import.
func (p *port) open(srv *server.Server, core *server.Account) error {
	p.srv, p.core = srv, core
	err := errors.Join(
		core.AddStreamExport(streams.FeedSubject+".>", server.IsPublicExport),
		core.AddStreamExport(streams.AuditSubject+".>", server.IsPublicExport),
		core.AddStreamExport(streams.InUseSubject+".>", server.IsPublicExport),
		core.AddServiceExport(streams.InUseAPI+">", server.IsPublicExport))
	for _, root := range requestRoots {
		err = errors.Join(err, core.AddServiceExport("credstream."+root+".>", server.IsPublicExport))
	}
	for _, stream := range []string{streams.FeedStream, streams.AuditStream} {
		err = errors.Join(err,
			core.AddServiceExport(pullInfo+stream+".*", server.IsPublicExport),
			core.AddServiceExport(streams.AckAPI+stream+".>", server.IsPublicExport),
			core.AddServiceExportWithResponse(streams.NextAPI+stream+".*", server.Streamed, server.IsPublicExport)) // one request, several replies
	}
	err = errors.Join(err, core.AddServiceExportWithResponse("$SRV.>", server.Streamed, server.IsPublicExport))
	if err != nil {
		return fmt.Errorf("exporting from the account of the service: %w", err)
	}
	return nil
}

// Check accepts or rejects a connection; the server calls it for each.
func (p *port) Check(c server.ClientAuthentication) bool {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	opts := c.GetOpts()
	name, key := opts.Username, opts.Password
	if key == "" {
		key = opts.Token
	}
	// The server logs the name, which may be a key in the wrong place.
	c.RegisterUser(&server.User{Username: "unknown"})
	if inProcess(c) {
		return p.checkOwn(c, name, key)
	}
	kicks := p.n.disconnectEpoch.Load()
	if !p.register(ctx, c, key) {
		return false
	}
	// A connection of a key that was revoked meanwhile may have missed DisconnectKey.
	return p.n.disconnectEpoch.Load() == kicks || p.register(ctx, c, key)
}

func inProcess(c server.ClientAuthentication) bool {
	a := c.RemoteAddress()
	return a != nil && a.Network() == "pipe"
}

// checkOwn authenticates the process's own connections.
func (p *port) checkOwn(c server.ClientAuthentication, name, secret string) bool {
	if subtle.ConstantTimeCompare([]byte(secret), []byte(p.n.secret)) != 1 {
		return false
	}
	switch name {
	case serviceUser:
		c.RegisterUser(&server.User{Username: name, Account: p.core})
	case endpointUser:
		receive := []string{"$SRV.>", inboxPrefix + ">", pullInfo + ">", streams.NextAPI + streams.FeedStream + ".*", streams.NextAPI + streams.AuditStream + ".*"}
		for _, root := range requestRoots {
			receive = append(receive, "credstream."+root+".>")
		}
		c.RegisterUser(&server.User{Username: name, Account: p.core, Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: []string{servicePrefix + ">", inboxPrefix + ">"}},
			Subscribe: &server.SubjectPermission{Allow: receive},
		}})
	default:
		return false
	}
	return true
}

// identify returns the grant of the connection's key, or else of its client certificate.
func (p *port) identify(ctx context.Context, c server.ClientAuthentication, key string) (Grant, error) {
	from := addressOf(c.RemoteAddress())
	if key != "" {
		return (*p.n.auth.Load())(ctx, key, from)
	}
	if t := c.GetTLSConnectionState(); t != nil && len(t.VerifiedChains) > 0 && p.n.cfg.AuthenticateCertificate != nil {
		return p.n.cfg.AuthenticateCertificate(ctx, t.VerifiedChains[0][0], from)
	}
	return Grant{}, service.ErrUnauthenticated
}

// register authorizes the connection according to the grant of its key or certificate.
func (p *port) register(ctx context.Context, c server.ClientAuthentication, key string) bool {
	if p.n.auth.Load() == nil {
		return false
	}
	g, err := p.identify(ctx, c, key)
	if err != nil {
		if kind := fault.Of(err).Kind; ctx.Err() != nil || kind == fault.Unavailable || kind == fault.Throttled {
			// The key could not be authenticated. The server closes the connection with a
			// timeout, after which clients reconnect; after two rejections they stop.
			time.Sleep(outlast)
		}
		return false
	}
	requests, subscriptions, err := g.subjects()
	if err != nil {
		p.n.log.Error("key refused: its permissions cannot be computed", "principal", g.Principal, "err", err)
		return false
	}
	acc, err := p.account(g, requests, subscriptions)
	if err != nil {
		p.n.log.Error("key refused: its NATS account cannot be created", "principal", g.Principal, "err", err)
		return false
	}
	perms := &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: requests},
		Subscribe: &server.SubjectPermission{Allow: append([]string{inboxPrefix + ">", InboxPrefix(key) + ".>"}, subscriptions...)},
	}
	if !confidential(c) {
		for _, command := range p.n.cfg.ClearSecretCommands {
			perms.Publish.Deny = append(perms.Publish.Deny, "credstream.cmd.*."+command) // a queued command has encrypted keys, or is refused
		}
	}
	if !p.admit(c, &server.User{Username: g.Principal, Account: acc, Permissions: perms, ConnectionDeadline: g.Expires}) {
		time.Sleep(outlast)
		return false
	}
	return true
}

// admit counts the connection for its key. It returns false if the key has too many.
func (p *port) admit(c server.ClientAuthentication, u *server.User) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	open := 0
	for _, acc := range p.accounts {
		if p.keys[acc.GetName()] == u.Username {
			open += acc.NumLocalConnections()
		}
	}
	if open >= maxOfKey {
		return false
	}
	c.RegisterUser(u)
	return true
}

// addressOf is the address of a connection; the zero address when unknown.
func addressOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}

// confidential reports whether the connection cannot be read by others.
func confidential(c server.ClientAuthentication) bool {
	return service.Confidential(c.GetTLSConnectionState() != nil, addressOf(c.RemoteAddress()))
}

// subjects are the subjects to which the key may send requests, and to which it may subscribe.
func (g Grant) subjects() (requests, subscriptions []string, err error) {
	if !events.Plain(g.Principal) {
		return nil, nil, fmt.Errorf("principal: %w", events.ErrID)
	}
	tenants := slices.Compact(slices.Sorted(slices.Values(g.Tenants)))
	if slices.Contains(tenants, streams.AllTenants) {
		tenants = []string{streams.AllTenants} // if two imports matched a request, it would arrive twice
	}
	requests = []string{"$SRV.>", streams.FlowsPublicPrefix + "*"} // a flow event without a tenant goes to the dead-letter queue
	for _, t := range tenants {
		if t != streams.AllTenants && !events.Plain(t) {
			return nil, nil, fmt.Errorf("tenant %q: %w", t, events.ErrID)
		}
		for _, root := range requestRoots {
			requests = append(requests, "credstream."+root+"."+t+".>")
		}
		part := "." + t + ".>"
		if t == streams.AllTenants {
			part = ".>" // any subscription is within it
		}
		if g.Follow {
			subscriptions = append(subscriptions, streams.FeedSubject+part, streams.InUseSubject+part)
			requests = append(requests, streams.InUseAPI+streams.InUseSubject+part)
			requests = append(requests, streams.FeedOfChanges.PullAPI(t)...)
		}
		if g.Audit {
			subscriptions = append(subscriptions, streams.AuditSubject+part)
			requests = append(requests, streams.FeedOfAudit.PullAPI(t)...)
		}
	}
	return requests, subscriptions, nil
}

// servedAt returns the service's own subject for a client's subject.
func servedAt(subject string) string {
	if rest, ok := strings.CutPrefix(subject, streams.InfoAPI); ok {
		return pullInfo + rest
	}
	return subject
}

// account returns the account of a grant, created for its first connection. Its
// name is not a secret: the server reports it to the client.
func (p *port) account(g Grant, requests, subscriptions []string) (*server.Account, error) {
	grant := strings.Join(slices.Concat([]string{g.Principal}, requests, []string{""}, subscriptions), "\n")
	p.mu.Lock()
	defer p.mu.Unlock()
	if acc := p.accounts[grant]; acc != nil {
		return acc, nil
	}
	acc, err := p.srv.RegisterAccount(clientPrefix + g.Principal + "_" + rand.Text())
	if err != nil {
		return nil, fmt.Errorf("registering: %w", err)
	}
	for _, s := range requests {
		if err := acc.AddServiceImport(p.core, s, servedAt(s)); err != nil {
			return nil, fmt.Errorf("importing %s: %w", s, err)
		}
	}
	for _, s := range subscriptions {
		if err := acc.AddStreamImport(p.core, s, ""); err != nil {
			return nil, fmt.Errorf("importing %s: %w", s, err)
		}
	}
	p.accounts[grant], p.keys[acc.GetName()] = acc, g.Principal
	return acc, nil
}

// Caller returns the principal that sent the request with these headers: the id that its
// Authenticator returned. The server puts the sender's account into the header
// Nats-Request-Info when a request crosses from that account into the service's. Nobody
// else can have written it if the request arrived on EndpointConn, which checks
// the raw headers. A request without a caller must be dropped:
// it is forged, or it is a reply that was directed at an endpoint.
func (n *Node) Caller(h nats.Header) (principal string, ok bool) {
	r := n.running()
	values := h[server.ClientInfoHdr]
	if r == nil || len(values) != 1 {
		return "", false
	}
	var info struct {
		Account string `json:"acc"`
	}
	if err := json.Unmarshal([]byte(values[0]), &info); err != nil {
		return "", false
	}
	r.port.mu.RLock()
	defer r.port.mu.RUnlock()
	principal, ok = r.port.keys[info.Account]
	return principal, ok
}

// IsReplySubject reports whether an endpoint may reply to this subject: one
// that the server made for a request from another account, or an inbox. Every
// other request must be dropped unread.
func IsReplySubject(reply string) bool {
	return strings.HasPrefix(reply, servicePrefix) || strings.HasPrefix(reply, inboxPrefix)
}

// DisconnectKey closes every connection of a key. Call it after the key was
// revoked or its grants changed: a connection keeps its original grant.
func (n *Node) DisconnectKey(principal string) {
	n.disconnectEpoch.Add(1)
	r := n.running()
	if r == nil {
		return
	}
	for _, acc := range r.port.drop(principal) {
		conns, err := r.srv.Connz(&server.ConnzOptions{Account: acc.GetName(), Limit: 1 << 20})
		if err != nil {
			n.log.Error("connections of a revoked key not listed", "principal", principal, "err", err)
		} else {
			for _, c := range conns.Conns {
				_ = r.srv.DisconnectClientByID(c.Cid) // fails if it was closed meanwhile
			}
		}
		// The server cannot delete an account, but it can drop its imports, which are more than
		// half of it. The limit of zero connections also closes one that is being established.
		r.srv.UpdateAccountClaims(acc, &jwt.AccountClaims{})
	}
}

// drop forgets the accounts of a key: its next connection gets a new one.
func (p *port) drop(principal string) (dropped []*server.Account) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for grant, acc := range p.accounts {
		if name := acc.GetName(); p.keys[name] == principal {
			dropped = append(dropped, acc)
			delete(p.accounts, grant)
			delete(p.keys, name)
		}
	}
	return dropped
}
