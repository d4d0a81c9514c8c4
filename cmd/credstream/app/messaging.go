package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/cmd/credstream/settings"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/jsapi"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/vault"
)

// messaging is the NATS server with the streams: a natsserver.Node or a natsserver.Cluster.
type messaging interface {
	Conn(name string) (*nats.Conn, error)
	EndpointConn() (*nats.Conn, error)
	SetAuthenticator(auth natsserver.Authenticator) error
	Caller(h nats.Header) (principal string, ok bool)
	DisconnectKey(principal string)
	Health() error
	WritesAllowed() error
	Watch(ctx context.Context) error
	ClientURL() string
	Shutdown(ctx context.Context) error
}

// openMessaging opens the NATS server: the embedded one, or the
// connection to an external one.
func (p *program) openMessaging(ctx context.Context) error {
	if err := checkRestored(p.cfg.Data); err != nil {
		return err
	}
	if err := os.MkdirAll(p.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("create the data folder: %w", err)
	}
	if err := os.Chmod(p.cfg.Data, 0o700); err != nil { //nolint:gosec // a folder needs its x bit
		return fmt.Errorf("restrict access to the data folder: %w", err)
	}
	var secrets []string // commands with clear text
	for _, r := range application.Routes() {
		if r.Secrets {
			secrets = append(secrets, r.Name)
		}
	}
	restarted := func() {
		if p.scrubber != nil { // the server verified the files again, and may have cut off a torn end
			p.scrubber.Forget()
		}
		select {
		case p.restarts <- struct{}{}:
		default:
		}
	}
	if p.cfg.NATS != "" {
		return p.connectCluster(ctx, secrets, restarted)
	}
	return p.startNode(ctx, secrets, restarted)
}

func (p *program) connectCluster(ctx context.Context, secrets []string, restarted func()) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	cluster, err := natsserver.Connect(ctx, natsserver.ClusterConfig{
		URL: p.cfg.NATS, Credentials: p.cfg.NATSCredentials, EndpointURL: p.cfg.NATSEndpoints,
		SystemURL: p.cfg.NATSSystem, SystemCredentials: p.cfg.NATSSystemCredentials,
		CalloutSeedFile: p.cfg.NATSCalloutSeed, CalloutXKeyFile: p.cfg.NATSCalloutXKey, CalloutURL: p.cfg.NATSCallout,
		Replicas: p.cfg.NATSReplicas, AttestSyncAlways: p.cfg.AttestSyncAlways,
		ClearSecretCommands: secrets, Logger: p.log, Restarted: restarted,
	})
	if err != nil {
		return err
	}
	p.nats, p.cluster = cluster, cluster
	p.stopMessaging()
	return nil
}

func (p *program) startNode(ctx context.Context, secrets []string, restarted func()) error {
	var secured *tls.Config
	if p.front.tls != nil {
		secured = p.front.tls.Config()
	}
	kept := keptStreams
	if p.cfg.EventStore == "" {
		kept = append([]string{eventlog.Stream}, keptStreams...)
	}
	node, err := natsserver.StartNode(ctx, natsserver.NodeConfig{
		TLS: secured, AuthenticateCertificate: p.grantOfCertificate,
		Dir: p.cfg.Data, Listen: p.cfg.NATSListen, SyncAlways: p.cfg.Durability == "always",
		ClearSecretCommands: secrets, Logger: p.log, Fatal: p.fatal, Restarted: restarted,
		Kept:    kept,
		Durable: p.durableMark,
	})
	if busy, ok := errors.AsType[*net.OpError](err); ok && busy.Op == "listen" {
		return settings.ListenError("nats-listen", p.cfg.NATSListen, err)
	}
	if err != nil {
		return err
	}
	p.nats, p.node = node, node
	p.openScrubber()
	if p.cfg.fsyncDelay > 0 {
		p.log.Warn("every fsync is delayed (CREDSTREAM_BENCH_FSYNC_DELAY)", "by", p.cfg.fsyncDelay)
		p.node.Syncer(eventlog.Stream).Delay = p.cfg.fsyncDelay
		p.node.Syncer(vault.Stream).Delay = p.cfg.fsyncDelay
		p.node.Syncer(kv.AccessStream).Delay = p.cfg.fsyncDelay
	}
	p.stopMessaging()
	return nil
}

// stopMessaging registers the stop of NATS, which comes after everything that uses it.
func (p *program) stopMessaging() {
	p.stop = append(p.stop, func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopTime)
		defer cancel()
		if err := p.nats.Shutdown(ctx); err != nil {
			p.log.Error("NATS did not stop cleanly", "err", err)
		}
	})
}

// fatal exits the process at once: after a failed fsync the content of
// the disk is unknown, and nothing more may be acknowledged.
func (p *program) fatal(err error) {
	p.log.Error("fsync failed; the process exits", "err", err)
	os.Exit(1)
}

// durable returns the group fsync of a stream, or nil where the server syncs by itself.
func (p *program) durable(stream string) func(context.Context) error {
	if p.node == nil || p.cfg.Durability == "always" {
		return nil
	}
	return p.node.Syncer(stream).Wait
}

// replicas is the number of copies of each stream.
func (p *program) replicas() int {
	if p.cluster == nil {
		return 1
	}
	return p.cluster.Replicas()
}

// ensureStream creates a stream, or checks that it can be used, and makes it durable.
func (p *program) ensureStream(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) error {
	if _, err := jsapi.EnsureStream(ctx, js, cfg); err != nil {
		return err
	}
	return p.syncStream(cfg.Name)
}

// syncStream fsyncs the stream's files, whichever process created or changed it: that process
// may have ended before its fsync.
func (p *program) syncStream(name string) error {
	if p.node == nil {
		return nil // the servers sync by themselves
	}
	return p.node.Syncer(name).SyncTree()
}

// lead runs run on one of the processes that serve the log; another process takes over
// when it ends. A single process runs it at once.
func (p *program) lead(role string, run func(context.Context) error) func(context.Context) error {
	if p.cluster == nil {
		return run
	}
	return func(ctx context.Context) error {
		return kv.RunLeased(ctx, kv.LeaseConfig{
			JS: p.leases, Replicas: p.replicas(), Role: role, Holder: p.id, Log: p.log,
		}, run)
	}
}
