package natsserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// DefaultReplicas is the number of copies of each stream on an external NATS.
const DefaultReplicas = 3

const (
	clusterReconnect = 100 * time.Millisecond  // between two attempts, and up to as much again
	clusterPing      = 1500 * time.Millisecond // between two pings; after two without a reply the connection is closed
	clusterCheck     = time.Second             // between two checks of JetStream
	clusterSilence   = 4 * time.Second         // without JetStream, after which a connection moves to another server
	clusterAnswer    = 2 * time.Second         // timeout of JetStream
	clusterStart     = 20 * time.Second        // timeout at the start, while it may elect a leader
	clusterRecheck   = time.Minute             // between two checks of the servers' settings
)

// The errors of Connect.
var (
	// ErrNATSConfig is returned for a configuration that cannot be used.
	ErrNATSConfig = fault.New(fault.Invalid, "nats_config_invalid", "The configuration of the external NATS is not valid.")
	// ErrServerTooOld is returned when a server is older than 2.12.
	ErrServerTooOld = fault.New(fault.Precondition, "nats_server_too_old", "The NATS server is too old: credstream requires 2.12 or later.")
	// ErrNoJetStream is returned when the account of the service has no JetStream.
	ErrNoJetStream = fault.New(fault.Precondition, "nats_jetstream_off",
		"JetStream is not enabled for the NATS account that credstream connects to.")
	// ErrDurabilityWeak is returned if credstream cannot verify that an acknowledged message
	// survives a power cut, and the operator does not attest it.
	ErrDurabilityWeak = fault.New(fault.Precondition, "nats_durability_weak",
		"The NATS servers may lose messages that they have acknowledged.")
	// ErrServersSilent is returned if too few servers reply to the system account to verify
	// that an acknowledged message survives a power cut. It may be temporary.
	ErrServersSilent = fault.New(fault.Unavailable, "nats_servers_silent",
		"Too few NATS servers answered the system account.")
)

// ClusterConfig is the configuration of an external NATS. Only URL is required. A URL
// names one or several servers, separated by commas, may contain a user and a
// password or a token, and has one of the schemes nats, tls, ws and wss.
type ClusterConfig struct {
	// URL is where the service connects to, as the user that owns its streams.
	URL string
	// Credentials is a file with a JWT and an nkey seed for URL; "" for none.
	Credentials string
	// EndpointURL has the user of the endpoints, which receives requests and may only
	// publish to "_R_.>" and inboxes. "": the user of URL, so that a bug
	// in an endpoint could write to a stream. The scheme is nats or tls: see EndpointConn.
	EndpointURL string
	// SystemURL and SystemCredentials name a user of the system account. Without
	// one the servers' sync setting cannot be verified, and the connections of a revoked
	// key end after a quarter of an hour.
	SystemURL, SystemCredentials string

	// CalloutSeedFile has the seed of an account nkey ("SA..."): the issuer of the
	// servers' auth callout. Every replica needs the same one. "": this process
	// cannot authenticate NATS clients.
	CalloutSeedFile string
	// CalloutXKeyFile has the seed of the curve key ("SX...") to which the
	// servers encrypt their requests; "" if they do not.
	CalloutXKeyFile string
	// CalloutURL has the user that receives the auth callout. "": the
	// user of URL.
	CalloutURL string

	// TLS is used if the server or the scheme requires TLS; nil uses the system's roots.
	TLS *tls.Config
	// Replicas of each stream; 0 means DefaultReplicas.
	Replicas int
	// AttestSyncAlways asserts a durability that cannot be verified.
	AttestSyncAlways bool

	// Authenticate returns the grant of a key; see SetAuthenticator.
	Authenticate Authenticator
	// ClearSecretCommands are the commands whose body contains clear secrets
	// ("credential.create"). Keys may send them only if both the key's connection
	// and that of the endpoints are TLS or loopback.
	ClearSecretCommands []string

	// Restarted is called after each reconnect to JetStream: caches
	// must be compared with the streams again. It must return at once.
	Restarted func()
	// Logger receives the log lines; nil discards them. No payload and no key is logged.
	Logger *slog.Logger
}

// Cluster is an external NATS, one server or a cluster, that several
// processes of the service share. It replaces a Node.
type Cluster struct {
	cfg     ClusterConfig
	log     *slog.Logger
	logins  map[string]login // by role
	own     *nats.Conn
	sys     *nats.Conn // nil without a system user
	callout *callout   // nil without a seed

	warned     map[string]bool // servers about whose limits a warning was logged
	durability atomic.Pointer[Durability]
	exposed    atomic.Bool           // a connection is neither TLS nor loopback
	unhealthy  atomic.Pointer[error] // the last result of Watch

	life context.Context // ends with Shutdown
	end  context.CancelFunc
	work sync.WaitGroup

	mu    sync.Mutex
	done  bool
	conns []member
}

// member is one of the process's connections.
type member struct {
	*nats.Conn
	role string
}

// The roles in which the process connects.
const (
	roleService  = "service"
	roleEndpoint = "endpoints"
	roleSystem   = "system"
	roleCallout  = "callout"
)

// Connect connects and checks the servers. It returns ErrServerTooOld,
// ErrNoJetStream, or, unless durability is attested, ErrDurabilityWeak or
// ErrServersSilent: see Durability.
func Connect(ctx context.Context, cfg ClusterConfig) (_ *Cluster, err error) {
	if cfg.Replicas == 0 {
		cfg.Replicas = DefaultReplicas
	}
	if cfg.Replicas < 1 || cfg.Replicas > 5 {
		return nil, ErrNATSConfig.Withf("The number of replicas must be 1 to 5.")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{cfg: cfg, log: cfg.Logger, logins: map[string]login{}, warned: map[string]bool{}}
	c.life, c.end = context.WithCancel(context.Background())
	if err := c.readLogins(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.Shutdown(context.WithoutCancel(ctx)) // the start has failed already
		}
	}()
	if c.own, err = c.connect(ctx, "cluster", roleService); err != nil {
		return nil, err
	}
	if _, ok := c.logins[roleSystem]; ok {
		if c.sys, err = c.connect(ctx, "system", roleSystem); err != nil {
			return nil, err
		}
	}
	if err := c.checkServers(ctx); err != nil {
		return nil, err
	}
	if cfg.EndpointURL == "" {
		c.log.WarnContext(ctx, "the endpoints have no NATS user of their own, so they could publish into the streams: set --nats-endpoints")
	}
	if cfg.CalloutSeedFile == "" {
		c.log.WarnContext(ctx, "NATS clients cannot authenticate with API keys: set --nats-callout-seed")
	} else {
		if c.callout, err = c.openCallout(ctx); err != nil {
			return nil, err
		}
	}
	if cfg.Authenticate != nil {
		if err := c.SetAuthenticator(cfg.Authenticate); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// login is how the process connects in one role.
type login struct {
	servers string // URLs without users
	options []nats.Option
}

func (c *Cluster) readLogins() error {
	for _, l := range []struct{ role, name, url, credentials string }{
		{roleService, "NATS URL", c.cfg.URL, c.cfg.Credentials},
		{roleEndpoint, "NATS URL of the endpoints", c.cfg.EndpointURL, ""},
		{roleSystem, "NATS URL of the system account", c.cfg.SystemURL, c.cfg.SystemCredentials},
		{roleCallout, "NATS URL of the auth callout", c.cfg.CalloutURL, ""},
	} {
		switch {
		case l.url != "":
		case l.role == roleService:
			return ErrNATSConfig.Withf("The NATS URL is missing.")
		case l.role == roleSystem && l.credentials != "":
			l.url = c.cfg.URL
		case l.role == roleSystem:
			continue
		default:
			c.logins[l.role] = c.logins[roleService]
			continue
		}
		read, err := readLogin(l.name, l.url, l.credentials)
		if err != nil {
			return err
		}
		c.logins[l.role] = read
	}
	return nil
}

// readLogin removes the user from the URLs, so that it appears in no message and
// applies to every server. The errors do not quote the URL, which may contain a password.
func readLogin(name, urls, credentials string) (login, error) {
	var servers []string
	var user *url.Userinfo
	for s := range strings.SplitSeq(urls, ",") {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" || !slices.Contains([]string{"nats", "tls", "ws", "wss"}, u.Scheme) {
			return login{}, ErrNATSConfig.Withf("The %s must be a URL such as nats://user:password@host:4222, or several separated by commas.", name)
		}
		if user == nil {
			user = u.User
		}
		u.User = nil
		servers = append(servers, u.String())
	}
	l := login{servers: strings.Join(servers, ",")}
	switch {
	case credentials != "":
		l.options = append(l.options, nats.UserCredentials(credentials))
	case user != nil:
		if password, ok := user.Password(); ok {
			l.options = append(l.options, nats.UserInfo(user.Username(), password))
		} else {
			l.options = append(l.options, nats.Token(user.Username()))
		}
	}
	return l, nil
}

// Conn opens a connection as the service itself. It reconnects forever; publishing
// while disconnected is an error, nothing is buffered. Shutdown closes it.
func (c *Cluster) Conn(name string) (*nats.Conn, error) {
	return c.connect(c.life, name, roleService)
}

// EndpointConn opens the connection for the command and query endpoints. It checks
// the headers of requests as they are on the wire, hence no WebSocket: those that
// are malformed arrive without a caller.
func (c *Cluster) EndpointConn() (*nats.Conn, error) {
	l := c.logins[roleEndpoint]
	dialer := &guardedDialer{tls: c.cfg.TLS, exposed: &c.exposed}
	for s := range strings.SplitSeq(l.servers, ",") {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "nats" && u.Scheme != "tls" {
			return nil, ErrNATSConfig.Withf("The endpoints need a nats:// or tls:// URL; a WebSocket URL is not supported. Set --nats-endpoints.")
		}
		dialer.hosts = append(dialer.hosts, u.Hostname())
		dialer.secure = dialer.secure || u.Scheme == "tls"
	}
	return c.connect(c.life, "endpoints", roleEndpoint, nats.SetCustomDialer(dialer), nats.SkipHostLookup())
}

func (c *Cluster) connect(ctx context.Context, name, role string, more ...nats.Option) (*nats.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("connecting to NATS as %s: %w", role, err)
	}
	log := c.log.With("conn", name)
	options := slices.Concat(c.logins[role].options, more, []nats.Option{
		nats.Name("credstream " + name),
		nats.MaxReconnects(-1), nats.ReconnectWait(clusterReconnect), nats.ReconnectJitter(clusterReconnect, clusterReconnect),
		nats.ReconnectBufSize(-1), nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(clusterPing), nats.MaxPingsOutstanding(2),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("NATS connection", "err", err, "subject", subject)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { log.Warn("NATS disconnected", "err", err) }),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info("NATS reconnected", "server", nc.ConnectedServerName())
			c.expose(nc)
			if name == "cluster" && c.cfg.Restarted != nil {
				c.cfg.Restarted()
			}
		}),
	})
	if deadline, ok := ctx.Deadline(); ok {
		options = append(options, nats.Timeout(min(time.Until(deadline), nats.DefaultTimeout)))
	}
	if c.cfg.TLS != nil {
		options = append(options, func(o *nats.Options) error { // the scheme and the server decide whether TLS is used
			o.TLSConfig = c.cfg.TLS.Clone()
			return nil
		})
	}
	nc, err := nats.Connect(c.logins[role].servers, options...)
	if err != nil {
		return nil, fmt.Errorf("connecting to NATS as %s: %w", role, err)
	}
	if v := nc.ConnectedServerVersion(); !recent(v) {
		nc.Close()
		return nil, ErrServerTooOld.Withf("The NATS server %s has version %s. credstream requires 2.12 or later.", nc.ConnectedServerName(), v)
	}
	c.expose(nc)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		nc.Close()
		return nil, fmt.Errorf("connecting to NATS as %s: %w", role, nats.ErrConnectionClosed)
	}
	c.conns = append(c.conns, member{nc, role})
	return nc, nil
}

// recent reports whether a server of this version can be used.
func recent(version string) bool {
	major, rest, _ := strings.Cut(version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(minor)
	return err1 == nil && err2 == nil && (a > 2 || a == 2 && b >= 12)
}

// expose records that a connection to the server can be read by others.
func (c *Cluster) expose(nc *nats.Conn) {
	if _, guarded := nc.Opts.CustomDialer.(*guardedDialer); guarded {
		return // the dialer does it
	}
	if _, err := nc.TLSConnectionState(); err == nil {
		return
	}
	host, _, err := net.SplitHostPort(nc.ConnectedAddr())
	if err != nil {
		return // disconnected; the reconnect handler checks it again
	}
	at, _ := netip.ParseAddr(host) // the zero address of a name
	if !service.Confidential(false, at) {
		c.exposed.Store(true)
	}
}

// ClientURL is the address for clients: the servers as configured for the service.
func (c *Cluster) ClientURL() string { return c.logins[roleService].servers }

// Replicas is the number of copies that each stream has.
func (c *Cluster) Replicas() int { return c.cfg.Replicas }

// WritesAllowed returns nil: the servers monitor their own disks and
// reject what they cannot store.
func (c *Cluster) WritesAllowed() error { return nil }

// Health returns why the cluster is degraded: a connection is
// down, JetStream does not respond, a server's durability has become weak.
func (c *Cluster) Health() error {
	c.mu.Lock()
	conns := slices.Clone(c.conns)
	c.mu.Unlock()
	for _, nc := range conns {
		if !nc.IsConnected() && !nc.IsClosed() {
			return fmt.Errorf("bus: the NATS connection %q is %s", nc.Opts.Name, strings.ToLower(nc.Status().String()))
		}
	}
	if err := c.unhealthy.Load(); err != nil {
		return *err
	}
	return nil
}

// Watch monitors the cluster until ctx ends, and then returns nil: it checks that
// JetStream responds on every connection of the service, and that the servers still
// fsync before they acknowledge. A connection that does not reach JetStream for a while
// moves to another server.
func (c *Cluster) Watch(ctx context.Context) error {
	tick := time.NewTicker(clusterCheck)
	defer tick.Stop()
	checkedAt := time.Now()
	silent := map[*nats.Conn]time.Time{} // since when
	var weak error
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if c.sys != nil && time.Since(checkedAt) >= clusterRecheck {
			checkedAt, weak = time.Now(), c.recheck(ctx)
		}
		err := errors.Join(weak, c.pingAll(ctx, silent))
		was := c.unhealthy.Swap(&err)
		switch {
		case ctx.Err() != nil:
		case err != nil && (was == nil || *was == nil):
			c.log.ErrorContext(ctx, "NATS is degraded", "err", err)
		case err == nil && was != nil && *was != nil:
			c.log.InfoContext(ctx, "NATS has recovered")
		}
	}
}

// pingAll pings JetStream on every connection of the service concurrently.
func (c *Cluster) pingAll(ctx context.Context, silent map[*nats.Conn]time.Time) error {
	c.mu.Lock()
	conns := slices.Clone(c.conns)
	c.mu.Unlock()
	errs := make([]error, len(conns))
	var pings sync.WaitGroup
	for i, nc := range conns {
		if nc.role == roleService && nc.IsConnected() { // else it is already reconnecting, and Health reports it
			pings.Go(func() { errs[i] = c.ping(ctx, nc.Conn) })
		}
	}
	pings.Wait()
	for i, nc := range conns {
		since, known := silent[nc.Conn]
		switch {
		case errs[i] == nil:
			delete(silent, nc.Conn)
		case !known:
			silent[nc.Conn] = time.Now()
		case time.Since(since) > clusterSilence && ctx.Err() == nil:
			c.log.WarnContext(ctx, "NATS connection moved to another server", "conn", nc.Opts.Name, "server", nc.ConnectedServerName(), "err", errs[i])
			silent[nc.Conn] = time.Now()
			_ = nc.ForceReconnect() // fails when it is closed
		}
	}
	return errors.Join(errs...)
}

// ping checks that JetStream responds.
func (c *Cluster) ping(ctx context.Context, nc *nats.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, clusterAnswer)
	defer cancel()
	js, err := jetstream.New(nc)
	if err == nil {
		_, err = js.AccountInfo(ctx)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		return ErrNoJetStream
	}
	return fmt.Errorf("bus: JetStream does not respond on the NATS connection %q: %w", nc.Opts.Name, err)
}

// Shutdown stops the background work of the cluster and closes every connection. It
// returns ctx's error when that takes longer.
func (c *Cluster) Shutdown(ctx context.Context) error {
	c.mu.Lock()
	if c.done {
		c.mu.Unlock()
		return nil
	}
	c.done = true
	conns := c.conns
	c.conns = nil
	c.mu.Unlock()
	if c.callout != nil {
		c.callout.stop()
	}
	c.end()
	idle := make(chan struct{})
	go func() { // ends with the background work, which has a timeout
		defer close(idle)
		c.work.Wait()
	}()
	var err error
	select {
	case <-idle:
	case <-ctx.Done():
		err = fmt.Errorf("leaving NATS: %w", ctx.Err())
	}
	for _, nc := range conns {
		nc.Close()
	}
	return err
}
