// Package natsserver runs the embedded NATS server, or connects to external
// servers: the authenticated port, the group fsync that makes its acknowledgements durable, and
// the checks of its files and settings.
package natsserver

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/credstream/credstream/bus/storage"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/fault"
)

// Account is the NATS account of the service. It owns the streams, and its name is part of
// their path on disk.
const Account = "CREDSTREAM"

// DefaultMinFree is the free space, in bytes, below which writes are refused,
// unless NodeConfig overrides it.
const DefaultMinFree = 256 << 20

// DefaultMinFreeInodes is the number of free inodes below which writes are
// refused, unless NodeConfig overrides it.
const DefaultMinFreeInodes = 1000

const (
	maxMemory    = 256 << 20             // bytes of memory streams; those of the service are files
	maxStore     = 1 << 62               // bytes on disk: no quota, MinFree protects the disk
	syncBackstop = 2 * time.Second       // the server's own fsync interval in addition to group fsync
	spaceMaxAge  = time.Second           // maximum age of a reading of the free space
	watchEvery   = time.Second           // between two checks of the server's health
	readyWithin  = time.Second           // for a server that does not seem ready to show that it is
	restartMin   = time.Second           // between two restarts, doubled each time...
	restartMax   = time.Minute           // ...up to this
	reconnect    = 20 * time.Millisecond // between two attempts of an in-process connection
)

// The errors of the node.
var (
	// ErrDataFolderLocked is returned by StartNode when another process serves the folder.
	ErrDataFolderLocked = fault.New(fault.Precondition, "data_folder_locked",
		"Another process uses this data folder.")
	// ErrStorageLow refuses writes while the disk is nearly full. Reads still work.
	ErrStorageLow = fault.New(fault.Unavailable, "storage_low",
		"The disk is nearly full. Changes are refused until space is freed; queries still work.")
)

var errInodesLow = ErrStorageLow.Withf("The disk is nearly out of inodes. Changes are refused until files are removed; queries still work.")

var (
	errNoServer   = errors.New("bus: the embedded NATS server is not running")
	errPortClosed = errors.New("bus: the NATS port is closed, its address may be in use; clients cannot connect")
)

// NodeConfig is the configuration of the embedded server. Only Dir is required.
type NodeConfig struct {
	// Dir is the data folder. The node stores its lock and its streams in it and
	// does not touch the rest.
	Dir string
	// Listen is the host:port of the NATS port; "" opens none, port 0 or -1 selects a free one.
	Listen string
	// TLS, if set, is required for every connection to the NATS port. A client may begin with
	// the handshake, or upgrade after the server's INFO.
	TLS *tls.Config
	// SyncAlways makes the server fsync every message ("--durability always"). Otherwise a
	// Syncer makes messages durable.
	SyncAlways bool
	// Authenticate returns the grant of a key; see SetAuthenticator.
	Authenticate Authenticator
	// AuthenticateCertificate returns the grant of a connection without a key, but with a client
	// certificate that TLS has verified; nil accepts none. It is not called before there is an
	// Authenticator.
	AuthenticateCertificate CertificateAuthenticator
	// ClearSecretCommands are the commands whose body contains clear secrets
	// ("credential.create"). A connection that is neither TLS nor loopback may not
	// send them.
	ClearSecretCommands []string
	// Kept are the streams that cannot be rebuilt. Their files are verified before
	// the server opens them, and if one is damaged, StartNode and Restart return
	// ErrStoredDamaged without changing anything; damaged files of other streams are moved
	// to the folder "damaged". Empty: nothing is verified.
	Kept []string
	// Durable is a sequence up to which the stream is known to have been durable, 0
	// if unknown; a newest block that ends before it is damaged, not just torn.
	Durable func(stream string) uint64
	// MinFree is the free space, in bytes, below which WritesAllowed refuses;
	// 0 means DefaultMinFree.
	MinFree uint64
	// MinFreeInodes is the number of free inodes below which WritesAllowed refuses, on
	// a file system that counts them; 0 means DefaultMinFreeInodes.
	MinFreeInodes uint64
	// Logger receives the server's log lines; nil discards them. No payload and no key is logged.
	Logger *slog.Logger
	// Fatal is called with the first fsync error of a Syncer: the process must
	// exit. Nil only logs it.
	Fatal func(error)
	// Restarted is called after Watch has restarted the server in the process,
	// before any client can connect: caches must be compared with the
	// streams again. It must return at once and must not call the node.
	Restarted func()
}

// Node is a nats-server inside the process, with JetStream in the account of the service. Its
// port requires an API key. Only one process at a time can use a data folder.
type Node struct {
	cfg             NodeConfig
	log             *slog.Logger
	lock            *os.File
	secret          string // password of the process's own connections
	auth            atomic.Pointer[Authenticator]
	disconnectEpoch atomic.Uint64 // how often DisconnectKey was called
	space           atomic.Pointer[spaceReading]

	life sync.Mutex // held while the server starts, restarts and stops
	mu   sync.RWMutex
	up   *running // nil while no server runs
	done bool     // Shutdown was called
	port string   // the actual port, which a restart uses too

	syncers map[string]*storage.Syncer
	conns   []*nats.Conn
	own     *nats.Conn
}

// running is one run of the embedded server.
type running struct {
	srv   *server.Server
	port  *port
	fatal <-chan string // errors that would end a nats-server process
}

type spaceReading struct {
	at     time.Time
	free   uint64 // bytes
	inodes uint64 // free inodes; MaxUint64 where they are not counted
	err    error
}

// StartNode locks the data folder, starts the server on it and returns when its
// streams are recovered. It returns ErrDataFolderLocked when another process
// serves the folder.
func StartNode(ctx context.Context, cfg NodeConfig) (*Node, error) {
	if cfg.MinFree == 0 {
		cfg.MinFree = DefaultMinFree
	}
	if cfg.MinFreeInodes == 0 {
		cfg.MinFreeInodes = DefaultMinFreeInodes
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Durable == nil {
		cfg.Durable = func(string) uint64 { return 0 }
	}
	n := &Node{
		cfg:     cfg,
		log:     cfg.Logger,
		secret:  rand.Text(),
		syncers: map[string]*storage.Syncer{},
	}
	if cfg.Authenticate != nil {
		n.auth.Store(&cfg.Authenticate)
	}
	if cfg.Listen != "" { // the port opens at the end of the start, but a conflict is reported at its beginning
		l, err := net.Listen("tcp", cfg.Listen) //nolint:noctx // closed at once
		if err != nil {
			return nil, fmt.Errorf("opening the NATS port: %w", err)
		}
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("opening the NATS port: %w", err)
		}
	}
	if err := os.MkdirAll(n.storeDir(), 0o700); err != nil {
		return nil, fmt.Errorf("creating the data folder: %w", err)
	}
	if err := os.Chmod(n.storeDir(), 0o700); err != nil { //nolint:gosec // a folder needs its x bit
		return nil, fmt.Errorf("restricting access to the data folder: %w", err)
	}
	var err error
	if n.lock, err = LockFolder(cfg.Dir); err != nil {
		return nil, err
	}
	if n.up, err = n.boot(ctx); err != nil {
		_ = n.lock.Close() // the start has failed already
		return nil, err
	}
	if n.own, err = n.Conn("node"); err == nil {
		err = n.listen(n.up)
	}
	if err != nil {
		return nil, errors.Join(err, n.Shutdown(ctx))
	}
	return n, nil
}

// LockFolder locks the folder, or returns ErrDataFolderLocked. Closing the file releases the
// lock, and so does the kernel when the process ends, however it ends.
func LockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "LOCK"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock of the data folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("locking the data folder: %w", err)
		}
		holder := make([]byte, 20)
		k, _ := f.ReadAt(holder, 0) // the process id is only a hint; that the folder is locked is certain
		return nil, ErrDataFolderLocked.Withf("The data folder %s is in use by another process (pid %s). Stop that process first, or choose another folder.",
			dir, strings.TrimSpace(string(holder[:k])))
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("writing the lock of the data folder: %w", err), f.Close())
	}
	return f, nil
}

func (n *Node) storeDir() string { return filepath.Join(n.cfg.Dir, "nats") }

func (n *Node) streams() string { return StreamsDir(n.cfg.Dir) }

// StreamsDir is the folder of the streams' files in a data folder.
func StreamsDir(data string) string {
	return filepath.Join(data, "nats", "jetstream", Account, "streams")
}

func (n *Node) options(p *port) (*server.Options, error) {
	o := &server.Options{
		ServerName:                 "credstream",
		Accounts:                   []*server.Account{server.NewAccount(Account), server.NewAccount("SYS")},
		SystemAccount:              "SYS",
		CustomClientAuthentication: p,
		JetStream:                  true,
		StoreDir:                   n.storeDir(),
		JetStreamMaxMemory:         maxMemory,
		JetStreamMaxStore:          maxStore,
		SyncAlways:                 n.cfg.SyncAlways,
		SyncInterval:               syncBackstop,
		MaxPayload:                 streams.MaxPayload,
		// Every tenant may have two consumers; clients cannot create any.
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: -1},
		NoSigs:          true,
		DontListen:      true, // listen opens the port
		MaxConn:         MaxConnections(),
		MaxSubs:         maxSubscriptions,
		MaxPending:      maxPending,
		WriteDeadline:   stalled,
	}
	if n.cfg.Listen == "" {
		return o, nil
	}
	host, port, err := net.SplitHostPort(n.cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("reading the address of the NATS port: %w", err)
	}
	if n.port != "" {
		port = n.port
	}
	if o.Port, err = strconv.Atoi(port); err != nil {
		return nil, fmt.Errorf("reading the address of the NATS port: %w", err)
	}
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	o.Host = host
	if n.cfg.TLS != nil {
		o.TLSConfig, o.TLS, o.TLSTimeout = n.cfg.TLS.Clone(), true, 5
		o.TLSHandshakeFirst, o.TLSHandshakeFirstFallback = true, server.DEFAULT_TLS_HANDSHAKE_FIRST_FALLBACK_DELAY
	}
	return o, nil
}

// boot starts a server and returns when its streams are recovered.
func (n *Node) boot(ctx context.Context) (_ *running, err error) {
	if len(n.cfg.Kept) > 0 {
		v := storage.Verifier{Streams: n.streams(), Aside: filepath.Join(n.cfg.Dir, "damaged"), Kept: n.cfg.Kept, Durable: n.cfg.Durable, Logger: n.log}
		if err := v.Verify(); err != nil {
			return nil, err
		}
	}
	p := newPort(n)
	opts, err := n.options(p)
	if err != nil {
		return nil, err
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		return nil, fmt.Errorf("creating the NATS server: %w", err)
	}
	defer func() {
		if err != nil {
			srv.Shutdown()
			srv.WaitForShutdown()
		}
	}()
	fatal := make(chan string, 1)
	srv.SetLoggerV2(&serverLog{log: n.log.With("part", "nats"), fatal: fatal}, false, false, false)
	core, err := srv.LookupAccount(Account)
	if err != nil {
		return nil, fmt.Errorf("looking up the account of the service: %w", err)
	}
	if err := p.open(srv, core); err != nil {
		return nil, err
	}
	srv.Start()
	for ready := false; !ready; {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("starting the NATS server: %w", ctx.Err())
		case why := <-fatal:
			return nil, fmt.Errorf("starting the NATS server: %s", why)
		default:
			ready = srv.ReadyForConnections(20 * time.Millisecond)
		}
	}
	if err := core.EnableJetStream(nil, nil); err != nil {
		return nil, fmt.Errorf("recovering the streams: %w", err)
	}
	return &running{srv: srv, port: p, fatal: fatal}, nil
}

// listen opens the NATS port when keys can be authenticated: a client that is rejected twice
// stops reconnecting, even with a valid key, while one that cannot connect retries.
func (n *Node) listen(r *running) error {
	if n.cfg.Listen == "" || n.auth.Load() == nil || r.srv.Addr() != nil {
		return nil
	}
	r.srv.AcceptLoop(make(chan struct{}))
	a, ok := r.srv.Addr().(*net.TCPAddr)
	if !ok {
		select {
		case why := <-r.fatal:
			return fmt.Errorf("opening the NATS port: %s", why)
		default:
			return errNoServer // the server is stopping
		}
	}
	n.port = strconv.Itoa(a.Port)
	return nil
}

func (n *Node) running() *running {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.up
}

// InProcessConn connects to the running server; it makes the node a
// nats.InProcessConnProvider, whose connections survive a restart of the server.
func (n *Node) InProcessConn() (net.Conn, error) {
	r := n.running()
	if r == nil {
		return nil, errNoServer
	}
	return r.srv.InProcessConn()
}

// Conn opens an in-process connection as the service itself, with all permissions
// in its account. It reconnects forever, also to a restarted server; publishing
// while disconnected is an error, nothing is buffered. Shutdown closes it.
func (n *Node) Conn(name string) (*nats.Conn, error) { return n.connect(name, serviceUser, n) }

// EndpointConn opens the in-process connection of the command and query
// endpoints: it receives requests and publishes replies, and cannot publish
// into any stream. Requests with malformed headers arrive without a caller.
func (n *Node) EndpointConn() (*nats.Conn, error) {
	return n.connect("endpoints", endpointUser, guardedServer{n})
}

func (n *Node) connect(name, user string, to nats.InProcessConnProvider) (*nats.Conn, error) {
	log := n.log.With("conn", name)
	nc, err := nats.Connect("",
		nats.InProcessServer(to), nats.UserInfo(user, n.secret), nats.Name(name),
		nats.MaxReconnects(-1), nats.ReconnectWait(reconnect), nats.ReconnectJitter(0, 0),
		nats.ReconnectBufSize(-1), nats.IgnoreAuthErrorAbort(),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			log.Warn("NATS connection", "err", err, "subject", subject)
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { log.Debug("NATS disconnected", "err", err) }),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("NATS reconnected") }),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting in process: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done {
		nc.Close()
		return nil, errNoServer
	}
	n.conns = append(n.conns, nc)
	return nc, nil
}

// Addr is the address of the NATS port, or nil when there is none.
func (n *Node) Addr() net.Addr {
	if r := n.running(); r != nil && n.cfg.Listen != "" {
		return r.srv.Addr()
	}
	return nil
}

// ClientURL is the URL that a client connects to, or "" when there is no NATS port.
func (n *Node) ClientURL() string {
	if r := n.running(); r != nil && n.cfg.Listen != "" {
		return r.srv.ClientURL()
	}
	return ""
}

// Syncer returns the only Syncer of a stream, created by the first call.
func (n *Node) Syncer(stream string) *storage.Syncer {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.syncers[stream]
	if s == nil {
		s = storage.NewSyncer(filepath.Join(n.streams(), stream, "msgs"), n.fatal)
		n.syncers[stream] = s
	}
	return s
}

func (n *Node) fatal(err error) {
	n.log.Error("fsync failed; an acknowledged write may be lost", "err", err)
	if n.cfg.Fatal != nil {
		n.cfg.Fatal(err)
	}
}

// WritesAllowed returns ErrStorageLow while less than MinFree bytes or
// MinFreeInodes inodes are free. It reads the disk's state at most once a second.
func (n *Node) WritesAllowed() error {
	r := n.space.Load()
	if r == nil || time.Since(r.at) > spaceMaxAge {
		r = n.readSpace()
	}
	return r.err
}

// readSpace reads the disk's state; its err is the reason why writes are refused.
func (n *Node) readSpace() *spaceReading {
	r := &spaceReading{at: time.Now(), inodes: math.MaxUint64}
	var fs unix.Statfs_t
	if err := unix.Statfs(n.storeDir(), &fs); err != nil {
		r.err = fmt.Errorf("reading the free space: %w", err)
	} else {
		r.free = uint64(fs.Bavail) * uint64(fs.Bsize) // their types differ between systems
		if fs.Files > 0 {
			r.inodes = uint64(fs.Ffree)
		}
		switch {
		case r.free < n.cfg.MinFree:
			r.err = ErrStorageLow
		case r.inodes < n.cfg.MinFreeInodes:
			r.err = errInodesLow
		}
	}
	n.space.Store(r)
	return r
}

// mayRestart returns an error if a restarted server could not use the folder: a running server
// answers reads even while it refuses writes, but one that does not start answers nothing.
func (n *Node) mayRestart(r *spaceReading) error {
	if r.err != nil {
		return r.err
	}
	f, err := os.CreateTemp(n.storeDir(), "probe-")
	if err != nil {
		return fmt.Errorf("trying to write: %w", err)
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// Health reports why the node cannot do all of its work: the server restarts,
// JetStream is off, a stream has a latched write error, the NATS port is not open though
// keys can be checked, the disk is nearly full.
func (n *Node) Health() error {
	if _, err := n.serverHealth(); err != nil {
		return err
	}
	if r := n.running(); r != nil && n.cfg.Listen != "" && n.auth.Load() != nil && r.srv.Addr() == nil {
		return errPortClosed
	}
	return n.WritesAllowed()
}

// serverHealth is the server's own health. latched reports a state that only a
// restart of the server ends.
func (n *Node) serverHealth() (latched bool, _ error) {
	r := n.running()
	if r == nil {
		return false, errNoServer
	}
	if !r.srv.JetStreamEnabled() {
		return true, errors.New("bus: JetStream has disabled itself")
	}
	// The server gives itself one millisecond to see that it is ready, which a busy machine exceeds.
	h := r.srv.Healthz(&server.HealthzOptions{Details: true})
	if h.StatusCode >= 400 && r.srv.ReadyForConnections(readyWithin) {
		h = r.srv.Healthz(&server.HealthzOptions{Details: true})
	}
	var errs []error
	for _, e := range h.Errors {
		errs = append(errs, fmt.Errorf("bus: %s", e.Error))
		latched = latched || strings.Contains(e.Error, "write error")
	}
	if len(errs) == 0 && h.StatusCode >= 400 {
		errs = append(errs, fmt.Errorf("bus: the NATS server is %s: %s", h.Status, h.Error))
	}
	return latched, errors.Join(errs...)
}

// Watch monitors the server until ctx ends: after a disk error JetStream keeps refusing writes,
// even when the disk works again, until it is
// restarted. Watch restarts it in the process, once there is space, on the same
// port, and calls Restarted. A failed restart is retried with growing
// pauses. It returns nil when ctx ends.
func (n *Node) Watch(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var low, waiting, down bool // down: the last restart failed
	var next time.Time
	pause := restartMin
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		r := n.readSpace()
		if now := errors.Is(r.err, ErrStorageLow); now != low {
			low = now
			n.log.Warn("free space", "low", low, "bytes", r.free, "watermark", n.cfg.MinFree, "inodes", r.inodes, "inode_watermark", n.cfg.MinFreeInodes)
		}
		latched, err := n.serverHealth()
		switch {
		case !latched && !down:
			waiting = false
			if time.Since(next) > restartMax {
				pause = restartMin
			}
		case time.Now().Before(next):
		case n.mayRestart(r) != nil:
			if !waiting {
				n.log.Error("JetStream refuses writes; restarting it when the disk is writable again", "err", err, "low_space", low)
			}
			waiting = true
		default:
			n.log.Error("NATS server failed; restarting it", "err", err)
			err := n.Restart(ctx)
			if down = err != nil; down {
				n.log.Error("NATS server did not start; will retry", "in", pause, "err", err)
			}
			waiting = false
			next, pause = time.Now().Add(pause), min(2*pause, restartMax)
		}
	}
}

// Restart stops the server and starts it again on the same folder and port.
// Connections reconnect by themselves. When the new server does not start, the
// node is left without one.
func (n *Node) Restart(ctx context.Context) error {
	n.life.Lock()
	defer n.life.Unlock()
	n.mu.Lock()
	old := n.up
	n.up = nil
	done := n.done
	n.mu.Unlock()
	if done {
		return errNoServer
	}
	if old != nil {
		old.srv.Shutdown()
		old.srv.WaitForShutdown()
	}
	up, err := n.boot(ctx)
	if err != nil {
		return fmt.Errorf("restarting the NATS server: %w", err)
	}
	if n.cfg.Restarted != nil {
		n.cfg.Restarted()
	}
	n.mu.Lock()
	n.up = up
	n.mu.Unlock()
	if err := n.listen(up); err != nil {
		return err
	}
	n.log.Info("NATS server restarted")
	return nil
}

// Shutdown closes every connection, stops the server and the syncers, and then
// unlocks the folder. It returns ctx's error when the server takes longer.
func (n *Node) Shutdown(ctx context.Context) error {
	n.life.Lock()
	defer n.life.Unlock()
	n.mu.Lock()
	if n.done {
		n.mu.Unlock()
		return nil
	}
	n.done = true
	up, conns, syncers := n.up, n.conns, n.syncers
	n.up, n.conns = nil, nil
	n.mu.Unlock()
	for _, nc := range conns {
		nc.Close()
	}
	if up != nil {
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			up.srv.Shutdown()
			up.srv.WaitForShutdown()
		}()
		select {
		case <-stopped:
		case <-ctx.Done():
			return fmt.Errorf("stopping the NATS server: %w", ctx.Err()) // the folder stays locked: it still writes
		}
	}
	for _, s := range syncers {
		s.Close()
	}
	if err := n.lock.Close(); err != nil {
		return fmt.Errorf("unlocking the data folder: %w", err)
	}
	return nil
}
