package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/net/netutil"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/cmd/credstream/servetls"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/seal"
)

const (
	standstill  = time.Minute      // without progress, after which an attempt to start is aborted
	startReport = 10 * time.Second // between two log lines of a long start
	connectTime = 10 * time.Second // for one attempt to connect to an external NATS
	startRetry  = 2 * time.Second  // before a start is retried on an external NATS that cannot serve it yet
)

// errStandstill ends an attempt to start that makes no progress.
var errStandstill = fault.New(fault.Unavailable, "start_standstill", "The start makes no progress.")

// front answers HTTP from the first moment on: while the service starts, /readyz reports
// the progress, and everything else but /healthz is refused.
type front struct {
	log      *slog.Logger
	listener net.Listener
	server   *http.Server
	ended    chan error       // why the server ended
	tls      *servetls.Source // nil: the ports are not encrypted
	devCA    string           // file with the CA of --dev-tls, or ""
	stopTLS  context.CancelFunc
	handler  atomic.Pointer[http.Handler]

	mu       sync.Mutex
	patience time.Duration // without progress, see standstill
	doing    string        // the step of the start
	why      string        // why it has to wait, or ""
	since    time.Time     // the last progress
	bounds   bool          // the attempt is aborted if the step makes no progress
}

// listen starts to answer HTTP at an address; over TLS only, if there is a source.
func listen(address string, secured *servetls.Source, log *slog.Logger) (*front, error) {
	l, err := net.Listen("tcp", address) //nolint:noctx // lives as long as the process
	if err != nil {
		return nil, settings.ListenError("http", address, err)
	}
	f := &front{
		log: log, listener: netutil.LimitListener(l, natsserver.MaxConnections()), // further connections wait until one ends
		tls: secured, stopTLS: func() {}, ended: make(chan error, 1), doing: "opening the data", since: time.Now(), patience: standstill,
	}
	f.open(v1.Handler(v1.Config{Starting: true, Logger: log, Ready: f.reasons}))
	f.server = v1.Server("", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { (*f.handler.Load()).ServeHTTP(w, r) }))
	f.server.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug) // what clients do wrong before their first request
	if secured == nil {
		go func() { f.ended <- f.server.Serve(f.listener) }() // ends with Close
		return f, nil
	}
	watching, stop := context.WithCancel(context.Background())
	f.stopTLS = stop
	go func() { _ = secured.Run(watching) }() // ends with close
	f.server.TLSConfig = secured.Config("h2", "http/1.1")
	go func() { f.ended <- f.server.ServeTLS(f.listener, "", "") }() // ends with Close
	return f, nil
}

// open sets the handler that answers from now on.
func (f *front) open(h http.Handler) { f.handler.Store(&h) }

// scheme is that of the URLs of HTTP.
func (f *front) scheme() string {
	if f.tls != nil {
		return "https"
	}
	return "http"
}

func (f *front) close() {
	f.stopTLS()
	_ = f.server.Close()   // pending requests get no response
	_ = f.listener.Close() // if Serve has not begun
}

// step sets the current step of the start. bounded aborts the attempt if the step makes
// no progress.
func (f *front) step(bounded bool, format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.doing, f.why, f.since, f.bounds = fmt.Sprintf(format, args...), "", time.Now(), bounded
}

// waits records why the start has to wait.
func (f *front) waits(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.why, f.since, f.bounds = why.Error(), time.Now(), false
}

// reasons is the status of readiness while the service starts.
func (f *front) reasons() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.why != "" {
		return []string{"starting: waiting while " + f.doing + ": " + f.why}
	}
	return []string{"starting: " + f.doing}
}

// wait returns how long the start may make no progress.
func (f *front) wait() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.patience
}

// watch logs an attempt that takes long, and aborts it when it makes no progress.
func (f *front) watch(ctx context.Context, giveUp context.CancelCauseFunc) {
	patience := f.wait()
	tick := time.NewTicker(min(startReport, patience))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.mu.Lock()
		doing, still, bounds := f.doing, time.Since(f.since), f.bounds
		f.mu.Unlock()
		f.log.Info("still starting", "doing", doing, "for", still.Round(time.Second))
		if bounds && still >= patience {
			giveUp(errStandstill.Withf("The start made no progress for %s while %s. The log lines before this one say what does not answer.", patience, doing))
		}
	}
}

// attempt runs open until it returns or makes no progress.
func (f *front) attempt(ctx context.Context, open func(context.Context) error) error {
	ctx, giveUp := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() { // ends with ctx
		defer close(watched)
		f.watch(ctx, giveUp)
	}()
	err := open(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	giveUp(nil)
	<-watched
	return err
}

// start starts every component in the order of their dependencies. If it
// fails, everything that it started is stopped again. It waits for servers of an external NATS that cannot be
// reached, have no leader or do not respond.
func (f *front) start(ctx context.Context, cfg Config) (p *program, err error) {
	var firstKey seal.Secret
	for {
		p = newProgram(f, cfg)
		if err = f.attempt(ctx, p.open); err == nil {
			if p.firstKey.IsZero() {
				p.firstKey = firstKey // of an earlier attempt
			}
			return p, nil
		}
		if !p.firstKey.IsZero() {
			firstKey = p.firstKey
		}
		p.closeParts()
		if ctx.Err() != nil || cfg.NATS == "" || !isTransient(err) {
			return nil, err
		}
		f.waits(err)
		f.log.Warn("waiting for NATS; the start continues when it answers", "err", err)
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(startRetry):
		}
	}
}

// The error codes of servers that elect a leader, or have just connected to each other, besides those of status 503
// (nats-server, jetstream_errors_generated.go).
const (
	clusterNoPeers   jetstream.ErrorCode = 10005 // too few servers are available for the replicas of a stream
	clusterNotLeader jetstream.ErrorCode = 10009
)

// isTransient reports whether a start may succeed later without intervention: NATS is
// away, its servers elect leaders, or too few of them are available.
func isTransient(err error) bool {
	if api, ok := errors.AsType[*jetstream.APIError](err); ok && (api.ErrorCode == clusterNoPeers || api.ErrorCode == clusterNotLeader) {
		return true
	}
	return jsapi.Temporary(err) || errors.Is(err, errStandstill) || errors.Is(err, natsserver.ErrServersSilent)
}
