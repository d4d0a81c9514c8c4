// Package app starts the service, supervises its components, and stops it.
package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/api/aspire"
	apiconnect "github.com/credstream/credstream/api/connect"
	"github.com/credstream/credstream/api/elastic"
	"github.com/credstream/credstream/api/elasticio"
	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/api/web"
	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/storage"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/encryption"
	"github.com/credstream/credstream/service/expiry"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// Version is the program's, three numbers.
const Version = "0.1.0"

const (
	cachedStates = 16_384            // folded aggregates kept in memory
	keyBucket    = "CREDSTREAM_KEYS" // wrapped keysets, by tenant
	keyStream    = "KV_" + keyBucket
	stopTime     = 3 * time.Second         // for requests in progress when the process is told to stop
	stopMost     = 4500 * time.Millisecond // for a complete stop, where nothing is stored in this process
	collectEvery = 10 * time.Minute        // between two scans for orphaned secrets
	orphanAge    = time.Hour               // of a secret before it is checked
	idleAfter    = 5 * time.Second         // without a commit
	burst        = 1_000                   // commits that leave memory to release
	bulkRebuild  = 5_000                   // commits behind which the views are rebuilt instead of updated
)

// Configuration errors.
var (
	errDurability = fault.New(fault.Invalid, "config_durability", "--durability must be group or always.")
	errViewsURL   = fault.New(fault.Invalid, "config_views", "--views is not supported yet: the read models are in the SQLite file of the data folder. Omit --views.")
	errLease      = fault.New(fault.Invalid, "config_lease", "--lease must be 1m to 15m.")
	errRetireKeys = fault.New(fault.Invalid, "config_key_retire_after", "--key-retire-after must be at least 2s.")
	errRetention  = fault.New(fault.Invalid, "config_access_retention", "--access-retention must be at least 1d.")
	errLogLevel   = fault.New(fault.Invalid, "config_log_level", "--log-level must be debug, info, warn or error.")
	errLogFormat  = fault.New(fault.Invalid, "config_log_format", "--log-format must be text or json.")
	errKMSNeeded  = fault.New(fault.Invalid, "config_kms",
		"With --nats every process needs the same KMS key. Set --kms, such as file:///path/kms.key or hcvault://.")
	errKeyFileMissing = fault.New(fault.Precondition, "kms_key_missing",
		"The data folder has tenants, but its key file kms.key is missing. Restore the file from its backup: a new key file could not decrypt their secrets.")
)

// program is a running credstream: its components and how to stop them.
type program struct {
	cfg       Config
	log       *slog.Logger
	nats      messaging           // the node or the cluster
	node      *natsserver.Node    // the embedded server; nil with an external one
	cluster   *natsserver.Cluster // the external servers; nil with the embedded one
	store     logStore
	states    *aggregates.Log
	views     *projections.Views
	proj      *projections.Projector
	vault     *vault.Vault
	keyring   *seal.Keyring
	svc       *application.Application
	feed      *feed.Feed
	audit     *feed.Feed
	ends      *edge.Endpoints
	inUse     *feed.InUse
	queues    *edge.Queues
	poison    *edge.DeadLetters
	access    *kv.AccessLog
	intake    *edge.Intake
	pulls     *natsserver.Pulls
	lastUse   *kv.LastUse
	clocks    *kv.Clocks     // nil where a single process serves the log
	followed  *kv.Checkpoint // of the process manager
	ended     *endedKeys
	front     *front
	live      *admin.Live // open pages and readers of the feed
	metrics   *prometheus.Registry
	firstKey  seal.Secret // generated by the first start; zero afterwards
	publicURL string      // where browsers reach the service; "" when unknown
	restarts  chan struct{}
	id        string              // of this process among those that serve one log
	leases    jetstream.JetStream // where leases of roles are stored; nil with the embedded server
	highWater *eventlog.HighWater
	marks     *storage.Marks
	scrubber  *storage.Scrubber // nil with external servers
	integrity integrity
	keysets   jetstream.JetStream // where the keysets are; nil until they are open

	keysetsLeft bool     // keysets were not opened at the start
	stop        []func() // in reverse order

	supervised supervisor // of the components that survive a failure

	parts *errgroup.Group    // background components
	life  context.Context    // context of the components; ends when one of them fails for good
	halt  context.CancelFunc // ends the components
}

// serve runs the service until ctx ends or a component fails. It prints its
// addresses once everything works.
func serve(ctx context.Context, cfg Config, stdout, stderr io.Writer) error {
	p, err := start(ctx, cfg, stderr)
	if err != nil {
		return err
	}
	p.announce(stdout)
	return p.run(ctx)
}

// start answers HTTP, and starts the rest behind it. If it fails, everything that it started
// is stopped again.
func start(ctx context.Context, cfg Config, stderr io.Writer) (*program, error) {
	log, err := newLogger(cfg, stderr)
	if err != nil {
		return nil, err
	}
	if err := forbidDumps(); err != nil {
		log.Warn("a core file may contain the memory of this process", "err", err)
	}
	if cfg.Durability != "group" && cfg.Durability != "always" {
		return nil, errDurability
	}
	if cfg.Lease != 0 && (cfg.Lease < credential.MinLease || cfg.Lease > credential.MaxLease) {
		return nil, errLease
	}
	if cfg.AccessRetention != 0 && cfg.AccessRetention < kv.MinAccessRetention {
		return nil, errRetention
	}
	if cfg.KeyRetireAfter == 0 {
		cfg.KeyRetireAfter = encryption.DefaultRetireAfter
	}
	if cfg.KeyRetireAfter < 2*time.Second {
		return nil, errRetireKeys
	}
	if cfg.Views != "" {
		return nil, errViewsURL
	}
	if _, err := expiry.Thresholds(cmp.Or(cfg.ExpiryWarnings, expiry.DefaultThresholds)); err != nil {
		return nil, err
	}
	secured, ca, err := openTLS(cfg, log)
	if err != nil {
		return nil, err
	}
	f, err := listen(cfg.HTTP, secured, log)
	if err != nil {
		return nil, err
	}
	f.devCA = ca
	p, err := f.start(ctx, cfg)
	if err != nil {
		f.close()
		return nil, err
	}
	return p, nil
}

func newProgram(f *front, cfg Config) *program {
	p := &program{
		cfg: cfg, log: f.log, front: f, metrics: prometheus.NewRegistry(), restarts: make(chan struct{}, 1), ended: newEndedKeys(), id: events.NewID(),
		live: admin.NewLive(),
	}
	f.server.RegisterOnShutdown(p.live.Close)
	p.supervised.log = p.log
	if f.tls != nil {
		p.metrics.MustRegister(f.tls.Metrics()...)
	}
	p.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return p
}

// open starts every component in the order of their dependencies; close
// stops them, also after a failure.
func (p *program) open(ctx context.Context) error {
	for _, step := range []struct {
		doing string
		open  func(context.Context) error
	}{
		{"opening the streams", p.openMessaging},
		{"opening the log", p.openLog},
		{"opening the read models", p.openViews},
		{"opening the vault and the queues", p.openService},
		{"opening the endpoints", p.openPort},
		{"bringing the read models up to date", p.openParts},
		{"opening the ports", p.openToClients},
	} {
		// JetStream recovers its streams for as long as it takes, and says nothing meanwhile.
		p.front.step(p.node != nil || p.cluster != nil, "%s", step.doing)
		if err := step.open(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (p *program) openLog(ctx context.Context) error {
	conn, err := p.nats.Conn("log")
	if err != nil {
		return err
	}
	if err := p.openMarks(conn, keptStreams...); err != nil {
		return err
	}
	if err := p.checkIntegrity(ctx); err != nil { // before anything missing is created
		return err
	}
	if p.store, err = p.openStore(ctx, conn); err != nil {
		return err
	}
	p.stop = append(p.stop, p.store.Close)
	p.highWater = eventlog.NewHighWater(p.highWaterFile(), p.store, p.log)
	if err := p.checkIntegrity(ctx); err != nil {
		return err
	}
	p.states, err = aggregates.NewLog(p.store, cachedStates)
	return err
}

// openJetStream opens the log in the NATS server.
func (p *program) openJetStream(ctx context.Context, conn *nats.Conn) (logStore, error) {
	cfg := eventlog.Config{
		Conn: conn, Registry: events.All(), Logger: p.log, Replicas: p.replicas(), Sync: p.durable(eventlog.Stream),
		OnlyWriter: p.node != nil, Intact: p.integrity.Err,
	}
	if p.node != nil {
		cfg.SyncTree = p.node.Syncer(eventlog.Stream).SyncTree
	}
	s, err := eventlog.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// writesAllowed refuses commands while the log or the disk must not be written to.
func (p *program) writesAllowed() error {
	if err := p.integrity.Err(); err != nil {
		return err
	}
	return p.nats.WritesAllowed()
}

func (p *program) openViews(ctx context.Context) error {
	var err error
	if p.views, err = projections.OpenViews(filepath.Join(p.cfg.Data, "views.db"), projections.ViewsOptions{Logger: p.log}); err != nil {
		return err
	}
	p.stop = append(p.stop, func() {
		if err := p.views.Close(); err != nil {
			p.log.Error("read models not closed cleanly", "err", err)
		}
	})
	if err := p.checkIntegrity(ctx); err != nil { // compares the views among others
		return err
	}
	end, err := p.store.End(ctx)
	if err != nil {
		return err
	}
	if end > p.views.Position()+bulkRebuild {
		p.log.Info("building the read models from the log", "commits", end)
		p.front.step(true, "rebuilding read models, 0 of %d", end)
		err := p.rebuildViews(ctx, func(done, end uint64) { p.front.step(true, "rebuilding read models, %d of %d", done, end) })
		if ctx.Err() != nil {
			return err
		}
		if err != nil { // everything that does not need them is served; they follow the log as far as possible
			p.log.Error("read models not built in advance; applying the log one commit at a time", "position", p.views.Position(), "err", err)
		}
	}
	p.proj = projections.NewProjector(p.store, p.views, p.log)
	p.proj.OnApplied(func(recs []events.Record) { // commits of other processes make cached states stale
		defer p.live.Applied(recs)
		for _, r := range recs {
			if r.Last() {
				p.states.Invalidate(r.Stream, r.Seq)
			}
			if _, revoked := r.Event.(events.APIKeyRevoked); revoked {
				p.ended.add(r.Stream.ID)
			}
		}
	})
	return nil
}

func (p *program) rebuildViews(ctx context.Context, progress func(done, end uint64)) error {
	return p.views.Rebuild(ctx, p.store, progress)
}

func (p *program) openService(ctx context.Context) error {
	conn, err := p.nats.Conn("vault")
	if err != nil {
		return err
	}
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	if p.keyring, err = p.openKeyring(ctx, js); err != nil {
		return err
	}
	var claims service.Claims
	if p.cluster != nil {
		p.leases = js
		p.clocks = kv.NewClocks(kv.ClocksConfig{Conn: conn, Process: p.id, Metrics: p.metrics, Logger: p.log})
		if claims, err = kv.OpenClaims(ctx, js, p.replicas()); err != nil {
			return err
		}
	}
	n := p.replicas()
	for _, cfg := range []jetstream.StreamConfig{
		vault.StreamConfig(n), feed.Config(n), feed.AuditConfig(n), edge.FlowsConfig(n), edge.QueueConfig(n), edge.DeadLetterConfig(n),
		kv.CheckpointConfig(n), kv.WebhookConfig(n),
	} {
		if err := p.ensureStream(ctx, js, cfg); err != nil {
			return err
		}
	}
	if err := p.openQueues(); err != nil {
		return err
	}
	if err := p.openAccessLog(ctx, js); err != nil {
		return err
	}
	p.vault = vault.New(js, p.keyring, p.durable(vault.Stream))
	p.vault.Guard(p.integrity.Err)
	p.vault.OnDelete(p.marks.Deleting)
	if p.lastUse, err = kv.OpenLastUse(ctx, js, n, p.log); err != nil {
		return err
	}
	buckets, err := kv.OpenThrottle(ctx, js, n)
	if err != nil {
		return err
	}
	deliveries, err := kv.OpenWebhooks(ctx, js, p.durable(kv.WebhookStream))
	if err != nil {
		return err
	}
	tokens, err := p.openTokens()
	if err != nil {
		return err
	}
	connections, err := kv.OpenConnections(ctx, js, n)
	if err != nil {
		return err
	}
	if p.publicURL, err = p.findPublicURL(); err != nil {
		return err
	}
	warnDays, err := expiry.Thresholds(cmp.Or(p.cfg.ExpiryWarnings, expiry.DefaultThresholds))
	if err != nil {
		return err
	}
	guarded := verify.NewClient(verify.Config{AllowPrivate: p.cfg.AllowPrivateTargets, Logger: p.log})
	p.followed = kv.NewCheckpoint(js, "follow-ups", p.durable(kv.CheckpointStream))
	p.svc, err = application.New(application.Config{
		Log: p.states, Views: p.views, Projector: p.proj, Keyring: p.keyring,
		Vault:                  p.vault,
		Verify:                 guarded,
		OAuth:                  oauth.New(guarded),
		InstanceID:             p.id,
		SingleInstance:         p.node != nil,
		RefreshTakeoverTimeout: p.cfg.RefreshPatience,
		Metrics:                p.metrics, Logger: p.log,
		WritesAllowed: p.writesAllowed, Intact: p.integrity.Err,
		CheckLogComplete: func(ctx context.Context) error {
			if err := p.checkIntegrity(ctx); err != nil {
				return err
			}
			return p.integrity.Err()
		},
		KeyRetireAfter: p.cfg.KeyRetireAfter,
		KeyRevoked:     p.nats.DisconnectKey,
		Live:           p.live,
		Rewind:         p.rewindAudit,
		ClocksAgree:    p.clocksAgree,
		RebuildViews:   p.rebuildViews,
		Claims:         claims,
		Poison:         p.poison,
		AccessLog:      p.access,
		Lease:          p.cfg.Lease,
		Limits: access.Limits{
			PerKey: access.RateOf(p.cfg.RatePerKey), PerTenant: access.RateOf(p.cfg.RatePerTenant), WrongKeys: p.cfg.WrongKeys,
		},
		LastUse:    p.lastUse,
		Backup:     p.backupStreams(js),
		Buckets:    buckets,
		Deliveries: deliveries,
		WarnDays:   warnDays,
		FollowedUp: p.followed,
		Tokens:     tokens,

		Connections: connections,
		PublicURL:   p.publicURL,
		ReturnTo:    strings.FieldsFunc(p.cfg.ConnectReturnTo, func(r rune) bool { return r == ',' || r == ' ' }),
	})
	if err != nil {
		return err
	}
	p.stop = append(p.stop, p.svc.Close)
	feedConn, err := p.nats.Conn("feed")
	if err != nil {
		return err
	}
	feedJS, err := jetstream.New(feedConn, jetstream.WithPublishAsyncTimeout(streams.AckTimeout))
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	p.feed, p.audit = feed.NewFeed(feedJS, p.store, n, p.log), feed.NewAuditFeed(feedJS, p.store, n, p.log)
	if err := p.checkIntegrity(ctx); err != nil { // compares the feeds among others
		return err
	}
	if _, err := natsserver.EnsureBucket(ctx, feedJS, feed.InUseConfig(n)); err != nil {
		return fmt.Errorf("open the bucket of the in-use index: %w", err)
	}
	p.inUse = feed.NewInUse(feedJS, p.views, p.proj, p.log)
	if p.integrity.Err() != nil {
		return nil // existing data is served; nothing is created
	}
	if p.attested() {
		d := p.cluster.Durability()
		if err := p.svc.Admin.AttestDurability(ctx, d.Replicas, d.Why); err != nil {
			return err
		}
	}
	file := ""
	p.firstKey, err = p.svc.Access.Bootstrap(ctx, func() (key seal.Secret, err error) {
		switch {
		case p.cfg.AdminKey != "":
			key = seal.NewSecret([]byte(p.cfg.AdminKey))
		case p.cfg.AdminKeyFile != "":
			key, file, err = keyInFile(p.cfg.AdminKeyFile)
		default:
			key = access.NewKey()
		}
		return key, err
	})
	if file != "" && err == nil && p.firstKey.IsZero() { // another process was first, with another key
		_ = os.Remove(file)
	}
	return err
}

var errAdminKeyFile = fault.New(fault.Invalid, "admin_key_file_invalid", "The file of --admin-key-file cannot be used.")

// keyInFile returns the key in the file, or creates the file, durably and for its owner alone,
// with a new key: a start that broke off continues with the same key. created names a new file.
func keyInFile(path string) (key seal.Secret, created string, err error) {
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		key = seal.NewSecret(bytes.TrimSpace(text))
		if access.CheckKeyShape(string(key.Reveal())) != nil {
			return key, "", errAdminKeyFile.Withf("The file %s of --admin-key-file does not contain an API key. Remove it, and the first start writes a new key to it.", path)
		}
		return key, "", nil
	case !errors.Is(err, fs.ErrNotExist):
		return key, "", fmt.Errorf("%w (%w)", errAdminKeyFile, err)
	}
	key = access.NewKey()
	if err := seal.CreateFile(path, append(key.Reveal(), '\n')); err != nil {
		return key, "", fmt.Errorf("%w (%w)", errAdminKeyFile, err)
	}
	return key, path, nil
}

// openQueues opens the queues of flow events and commands, and the dead-letter queue.
func (p *program) openQueues() error {
	conn, err := p.nats.Conn("queues")
	if err != nil {
		return err
	}
	if p.queues, err = edge.NewQueues(conn, p.durable); err != nil {
		return err
	}
	p.poison = edge.NewDeadLetters(p.queues, p.metrics, p.log)
	return nil
}

// openAccessLog opens the access log.
func (p *program) openAccessLog(ctx context.Context, js jetstream.JetStream) error {
	keep := cmp.Or(p.cfg.AccessRetention, kv.DefaultAccessRetention)
	if _, err := kv.EnsureAccessLog(ctx, js, p.replicas(), keep); err != nil {
		return err
	}
	if err := p.syncStream(kv.AccessStream); err != nil {
		return err
	}
	conn, err := p.nats.Conn("access")
	if err != nil {
		return err
	}
	p.access, err = kv.NewAccessLog(conn, p.durable(kv.AccessStream))
	return err
}

// keysetsAtStart is the number of keysets that a start opens to verify the KMS key. The
// others are opened later: each takes a fraction of a millisecond.
const keysetsAtStart = 256

func keysetsConfig(replicas int) jetstream.KeyValueConfig {
	return jetstream.KeyValueConfig{Bucket: keyBucket, History: 5, Storage: jetstream.FileStorage, Replicas: replicas}
}

// openKeyring opens the tenants' keysets with the KMS key. The local key file is
// created only if no existing keyset needs another one.
func (p *program) openKeyring(ctx context.Context, js jetstream.JetStream) (*seal.Keyring, error) {
	const stream = keyStream
	_, err := natsserver.EnsureBucket(ctx, js, keysetsConfig(p.replicas()))
	if err == nil {
		err = p.syncStream(stream)
	}
	if err != nil {
		return nil, fmt.Errorf("open the bucket of keysets: %w", err)
	}
	kv, err := js.KeyValue(ctx, keyBucket)
	if err != nil {
		return nil, fmt.Errorf("open the bucket of keysets: %w", err)
	}
	p.keysets = js
	tenants, err := p.keysetTenants(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.checkIntegrity(ctx); err != nil { // checks the keysets among others
		return nil, err
	}
	end, err := p.store.End(ctx)
	if err != nil {
		return nil, err
	}
	url, err := p.kmsURL(len(tenants) > 0 || end > 0)
	if err != nil {
		return nil, err
	}
	kms, err := seal.OpenKMS(ctx, seal.KMS{URL: url, Token: p.cfg.kmsToken})
	if err != nil {
		return nil, err
	}
	keysets := seal.NewKVKeysets(js, kv, p.durable(stream))
	keysets.OnDelete(p.marks.Deleting)
	keyring := seal.NewKeyring(kms, keysets)
	if p.cfg.KMSPrevious != "" {
		if keyring.Previous, err = seal.OpenKMS(ctx, seal.KMS{URL: p.cfg.KMSPrevious, Token: p.cfg.kmsPreviousToken}); err != nil {
			return nil, fmt.Errorf("--kms-previous: %w", err)
		}
	}
	keyring.Freshness = min(seal.DefaultFreshness, p.cfg.KeyRetireAfter/2)
	err = keyring.Check(ctx, tenants[:min(len(tenants), keysetsAtStart)])
	if errors.Is(err, seal.ErrNoKeyset) { // destroyed since they were listed, with its tenant
		if tenants, err = p.keysetTenants(ctx); err == nil {
			err = keyring.Check(ctx, tenants[:min(len(tenants), keysetsAtStart)])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the keysets cannot be decrypted with this KMS key: %w", err)
	}
	p.keysetsLeft = len(tenants) > keysetsAtStart
	return keyring, nil
}

// kmsURL is the KMS key to use: the configured one, or the key file in the data
// folder, which the first start creates.
func (p *program) kmsURL(needed bool) (string, error) {
	if p.cfg.KMS != "" {
		return p.cfg.KMS, nil
	}
	if p.cluster != nil {
		return "", errKMSNeeded
	}
	path, err := filepath.Abs(filepath.Join(p.cfg.Data, "kms.key"))
	if err != nil {
		return "", fmt.Errorf("find the key file: %w", err)
	}
	_, err = os.Stat(path)
	switch {
	case err == nil:
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("look for the key file: %w", err)
	case needed:
		return "", errKeyFileMissing
	default:
		if err := seal.CreateKeyFile(path); err != nil {
			return "", err
		}
		p.log.Warn("created a local KMS key file: back it up apart from the data; without it no secret can be decrypted", "path", path)
	}
	return "file://" + path, nil
}

// openTokens prepares to accept the tokens of an OpenID Connect issuer; nil when none
// is configured.
func (p *program) openTokens() (*access.Tokens, error) {
	c := p.cfg
	if c.OIDCIssuer == "" && c.OIDCAudience == "" && c.OIDCClientID == "" {
		return nil, nil
	}
	return access.NewTokens(access.TokenConfig{
		Issuer: c.OIDCIssuer, Audience: c.OIDCAudience, Tenant: c.OIDCTenantClaim, Permissions: c.OIDCPermissionsClaim,
		ClientID: c.OIDCClientID, ClientSecret: c.oidcClientSecret, Scopes: c.OIDCScopes,
	})
}

// findPublicURL is where browsers reach the service; "" when unknown: it must be
// configured if the service listens on a non-local address.
func (p *program) findPublicURL() (string, error) {
	if p.cfg.PublicURL != "" {
		public, err := connect.PublicURL(p.cfg.PublicURL)
		if err == nil && p.front.tls != nil && !strings.HasPrefix(public, "https:") {
			return "", errPublicTLS
		}
		return public, err
	}
	listens, err := netip.ParseAddrPort(p.front.listener.Addr().String())
	if err != nil {
		return "", nil //nolint:nilerr // an address of another kind
	}
	if listens.Addr().IsUnspecified() {
		listens = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), listens.Port())
	}
	if !listens.Addr().Unmap().IsLoopback() {
		return "", nil
	}
	return p.front.scheme() + "://" + listens.String(), nil
}

// openToClients opens the NATS port and HTTP to clients, once everything that they can request is there.
func (p *program) openToClients(context.Context) error {
	err := p.nats.SetAuthenticator(func(ctx context.Context, key string, from netip.Addr) (natsserver.Grant, error) {
		who, err := p.svc.Access.Authenticate(ctx, key, from)
		grant := grantOf(who)
		if err == nil && p.cluster != nil {
			p.ensureConsumers(ctx, grant)
		}
		return grant, err
	})
	if err != nil {
		return err
	}
	encrypted := p.cfg.BehindTLSProxy || p.front.tls != nil
	vendor := elasticio.Handler(elasticio.Config{Service: p.svc, Access: p.svc.Access, Flows: p.svc.Flows, Logger: p.log, AllowCleartext: encrypted})
	browsers := apiconnect.New(apiconnect.Config{Service: p.svc.Connects, PublicURL: p.publicURL, Logger: p.log})
	connectors := elastic.Handler(elastic.Config{Service: p.svc, Access: p.svc.Access, Logger: p.log, AllowCleartext: encrypted})
	bulk := aspire.Handler(aspire.Config{Service: p.svc, Access: p.svc.Access, Logger: p.log, AllowCleartext: encrypted})
	page := web.Handler(web.Config{
		Service: p.svc, Access: p.svc.Access, Live: p.live, Logger: p.log, PublicURL: p.publicURL, AllowCleartext: encrypted,
		Answered: browsers.DecorateResponse, Ready: p.notReady, Notes: p.notes, Version: Version,
	})
	p.front.open(surfaces(vendor, connectors, bulk, browsers, page, v1.Handler(v1.Config{
		Service: p.svc, Access: p.svc.Access, Live: p.live, Logger: p.log, Ready: p.notReady, Notes: p.notes,
		Metrics: promhttp.HandlerFor(p.metrics, promhttp.HandlerOpts{}), Version: Version,
		AllowCleartext: encrypted, Describe: elasticio.Describe,
		DecorateResponse: browsers.DecorateResponse,
	})))
	return nil
}

// grantOf is what a principal may access at the NATS port.
func grantOf(who service.Principal) natsserver.Grant {
	grant := natsserver.Grant{
		Principal: who.Actor.ID, Tenants: who.Tenants,
		Follow: who.May(permission.CredentialsGet), Audit: who.May(permission.AuditRead),
		Expires: who.Expires,
	}
	if who.Scope.Narrow() { // subjects do not tell its credentials from others: docs/adr/0039
		grant.Follow, grant.Audit = false, false
	}
	return grant
}

// grantOfCertificate is the grant of a verified client certificate. Its connections end with it.
func (p *program) grantOfCertificate(ctx context.Context, verified *x509.Certificate, from netip.Addr) (natsserver.Grant, error) {
	who, err := p.svc.Access.AuthenticateCertificate(ctx, verified, from)
	grant := grantOf(who)
	if grant.Expires.IsZero() || verified.NotAfter.Before(grant.Expires) {
		grant.Expires = verified.NotAfter
	}
	return grant, err
}

// ensureConsumers creates the consumers that a key may pull from. External servers with the
// accounts of an earlier version route pull requests past the service, which would create them.
func (p *program) ensureConsumers(ctx context.Context, g natsserver.Grant) {
	for _, tenant := range g.Tenants {
		if tenant == streams.AllTenants {
			continue
		}
		if err := p.pulls.Ensure(ctx, tenant, g.Follow, g.Audit); err != nil {
			p.log.WarnContext(ctx, "consumers of a tenant not created", "principal", g.Principal, "tenant", tenant, "err", err)
			return
		}
	}
}

// openPort opens the endpoints on NATS.
func (p *program) openPort(ctx context.Context) error {
	conn, err := p.nats.EndpointConn()
	if err != nil {
		return err
	}
	if err := p.openPulls(ctx, conn); err != nil {
		return err
	}
	p.ends, err = edge.ServeEndpoints(edge.EndpointsConfig{
		Conn: conn, Caller: p.nats.Caller, Service: p.svc, Version: Version, Metrics: p.metrics, Logger: p.log,
	})
	if err != nil {
		return err
	}
	p.stop = append(p.stop, p.ends.Close)
	p.intake, err = edge.ServeIntake(edge.IntakeConfig{
		Conn: conn, Caller: p.nats.Caller, Service: p.svc, Queues: p.queues, DeadLetters: p.poison,
		WritesAllowed: p.writesAllowed, Metrics: p.metrics, Logger: p.log,
	})
	if err != nil {
		return err
	}
	p.stop = append(p.stop, p.intake.Close)
	if p.node != nil {
		p.metrics.MustRegister(p.node.Metrics())
	}
	p.metrics.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_data_intact", Help: "1 while no damage of the stored data is known, else 0: changes are refused and no secret is returned.",
		}, func() float64 {
			if p.integrity.Err() != nil {
				return 0
			}
			return 1
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_projector_position", Help: "Log sequence that the read models reflect.",
		}, func() float64 { return float64(p.views.Position()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_log_durable_position", Help: "Log sequence up to which every commit is known to be durable.",
		}, func() float64 { return float64(p.store.Durable()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_feed_position", Help: "Log sequence of the last commit in the feed.",
		}, func() float64 { return float64(p.feed.Position()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_audit_position", Help: "Log sequence of the last commit in the audit stream.",
		}, func() float64 { return float64(p.audit.Position()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "credstream_in_use_position", Help: "Log sequence that the in-use index reflects.",
		}, func() float64 { return float64(p.inUse.Position()) }),
	)
	return nil
}

// openPulls serves the consumers of the feed and of the audit stream.
func (p *program) openPulls(ctx context.Context, requests *nats.Conn) error {
	conn, err := p.nats.Conn("pulls")
	if err != nil {
		return err
	}
	p.pulls, err = natsserver.ServePulls(natsserver.PullsConfig{
		Conn: conn, Requests: requests, Caller: p.nats.Caller, DisconnectKey: p.nats.DisconnectKey, TenantExists: p.svc.Access.TenantExists,
		Metrics: p.metrics, Logger: p.log,
	})
	if err != nil {
		return err
	}
	p.stop = append(p.stop, p.pulls.Close)
	if p.node == nil {
		return nil
	}
	return p.pulls.DropUnused(ctx)
}

func (p *program) announce(out io.Writer) {
	data, err := filepath.Abs(p.cfg.Data)
	if err != nil {
		data = p.cfg.Data
	}
	fmt.Fprintf(out, "credstream %[1]s is ready\n  HTTP  %[5]s://%[2]s\n  NATS  %[3]s\n  data  %[4]s\n  page  %[5]s://%[2]s/ui/\n", Version, p.front.listener.Addr(), p.nats.ClientURL(), data, p.front.scheme())
	if p.front.devCA != "" {
		fmt.Fprintf(out, "  CA    %[1]s\n\nClients must trust the development CA. For the commands of credstream:\n\n  export CREDSTREAM_CA=%[1]s CREDSTREAM_URL=https://%[2]s CREDSTREAM_NATS_URL=%[3]s\n", p.front.devCA, p.front.listener.Addr(), p.nats.ClientURL())
	}
	switch {
	case p.firstKey.IsZero() || p.cfg.AdminKey != "":
	case p.cfg.AdminKeyFile != "":
		fmt.Fprintf(out, "\nThe first administrator's key is in the file %s.\n\n", p.cfg.AdminKeyFile)
	default:
		fmt.Fprintf(out, "\nThe first administrator's key, shown only once:\n\n  %s\n\n", p.firstKey.Reveal())
	}
}

// run serves until ctx ends or a component fails, then stops everything in order.
func (p *program) run(ctx context.Context) error {
	p.parts.Go(func() error {
		select {
		case err := <-p.front.ended:
			if !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve HTTP: %w", err)
			}
		case <-p.life.Done():
		}
		return nil
	})
	select {
	case <-ctx.Done():
		p.log.Info("stopping")
	case <-p.life.Done():
	}
	if p.cluster == nil {
		return p.shutDown()
	}
	done := make(chan error, 1)
	go func() { done <- p.shutDown() }() // ends with the process at the latest
	select {
	case err := <-done:
		return err
	case <-time.After(stopMost):
		p.log.Warn("NATS does not answer; exiting without releasing leases, which another process acquires when they expire")
		if ctx.Err() == nil {
			return context.Cause(p.life)
		}
		return nil
	}
}

// shutDown stops everything in order, and returns the error of a failed component.
func (p *program) shutDown() error {
	stopping, cancel := context.WithTimeout(context.Background(), stopTime)
	defer cancel()
	if err := p.front.server.Shutdown(stopping); err != nil {
		p.log.Warn("requests were aborted", "err", err)
		p.front.close()
	}
	p.intake.Close()
	p.ends.Close()
	p.halt()
	err := p.parts.Wait()
	p.close()
	return err
}

// surfaces routes each path to its surface. Paths are compared
// literally, which http.ServeMux does not do.
func surfaces(vendor, connectors, bulk, browsers, page, own http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.EscapedPath(); {
		case strings.HasPrefix(path, "/v2/"):
			vendor.ServeHTTP(w, r)
		case elastic.Serves(r):
			connectors.ServeHTTP(w, r)
		case strings.HasPrefix(path, aspire.Prefix):
			bulk.ServeHTTP(w, r)
		case strings.HasPrefix(path, "/oauth/"):
			browsers.ServeHTTP(w, r)
		case web.Serves(r):
			page.ServeHTTP(w, r)
		default:
			own.ServeHTTP(w, r)
		}
	})
}

// openParts starts the background components, and returns when the views
// have caught up with the log.
func (p *program) openParts(ctx context.Context) error {
	end, err := p.store.End(ctx)
	if err != nil {
		return err
	}
	p.parts, p.life = errgroup.WithContext(context.WithoutCancel(ctx))
	p.life, p.halt = context.WithCancel(p.life)
	p.stop = append(p.stop, func() {
		p.halt()
		_ = p.parts.Wait() // run has reported its error
	})
	p.parts.Go(func() error { return p.supervised.run(p.life, "views", p.proj.Run) })
	p.parts.Go(func() error {
		return p.supervised.run(p.life, "repair of the views", func(ctx context.Context) error { return p.views.Repair(ctx, p.store) })
	})
	p.parts.Go(func() error { return p.supervised.run(p.life, "feed", p.lead("feed", p.feed.Run)) })
	p.parts.Go(func() error { return p.supervised.run(p.life, "audit stream", p.lead("audit", p.audit.Run)) })
	p.parts.Go(func() error { return p.supervised.run(p.life, "in-use index", p.lead("in-use", p.inUse.Run)) })
	p.parts.Go(func() error { return p.supervised.run(p.life, "storage", p.nats.Watch) })
	p.parts.Go(func() error { return p.afterRestarts(p.life) })
	p.parts.Go(func() error { return p.ended.run(p.life, p.nats.DisconnectKey) })
	p.parts.Go(func() error { return p.supervised.run(p.life, "last use of keys", p.lastUse.Run) })
	p.parts.Go(func() error { return p.supervised.run(p.life, "denials", p.svc.Access.RunDenials) })
	if p.clocks != nil {
		p.parts.Go(func() error { return p.supervised.run(p.life, "clocks", p.clocks.Run) })
	}
	p.parts.Go(func() error { return p.releaseMemoryWhenIdle(p.life) })
	if p.keysetsLeft {
		p.parts.Go(func() error {
			return p.supervised.run(p.life, "keysets", func(ctx context.Context) error {
				tenants, err := p.keysetTenants(ctx) // at each attempt: erased tenants have none
				if err != nil {
					return err
				}
				return p.keyring.Check(ctx, tenants)
			})
		})
	}
	p.parts.Go(func() error { return p.watchIntegrity(p.life) })
	// Writers start when the stored data is intact, or intact again.
	writer := func(part string, run func(context.Context) error) {
		p.parts.Go(func() error {
			if !p.integrity.await(p.life) {
				return nil
			}
			return p.supervised.run(p.life, part, run)
		})
	}
	writer("high-water mark", p.highWater.Run)
	writer("marks", func(ctx context.Context) error { return p.marks.Run(ctx, p.integrity.Err) })
	writer("collector", p.lead("collector", func(ctx context.Context) error { return p.svc.Secrets.RunCollector(ctx, collectEvery, orphanAge) }))
	for _, queue := range []edge.Queue{edge.Flows, edge.Commands} {
		reader := edge.NewReader(edge.ReaderConfig{
			Queue: queue, Queues: p.queues, DeadLetters: p.poison, Service: p.svc, Metrics: p.metrics, Logger: p.log,
		})
		writer("reader of "+string(queue), p.lead("read-"+string(queue), reader.Run))
	}
	writer("process manager", p.lead("follow-ups", p.svc.Secrets.RunFollowUps))
	writer("token keeper", p.lead("token-keeper", p.svc.Tokens.RunTokenRefresher))
	writer("expiry warnings", p.lead("expiry-warnings", p.svc.Expiries.Run))
	writer("webhooks", p.lead("webhooks", p.svc.Webhooks.RunDeliveries))
	writer("flow keeper", p.lead("flow-keeper", p.svc.Flows.RunFlowReconciler))
	return p.followLog(ctx, end)
}

// rewindAudit restarts the tenant's audit consumer, which nobody may have used so far.
func (p *program) rewindAudit(ctx context.Context, tenant string, seq uint64) error {
	if err := p.pulls.Ensure(ctx, tenant, false, true); err != nil {
		return err
	}
	return p.audit.Rewind(ctx, tenant, seq)
}

// followLog returns when the views have reached the end of the log, or have stopped before
// it.
func (p *program) followLog(ctx context.Context, end uint64) error {
	for at := p.views.Position(); ; {
		once, cancel := context.WithTimeout(ctx, time.Second)
		err := p.proj.Wait(once, end)
		late := once.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, projections.ErrViewsBehind): // readiness reports the event at which they stopped
			p.log.Error("read models stopped at an event; other functions still work: see credstream views status and credstream views rebuild", "err", p.proj.Err())
			if err := p.checkIntegrity(ctx); err != nil { // the log may be damaged
				p.log.WarnContext(ctx, "integrity check of stored data failed", "err", err)
			}
			return nil
		case !late:
			return fmt.Errorf("bring the read models up to the log: %w", err)
		}
		if now := p.views.Position(); now > at {
			at = now
			p.front.step(true, "bringing the read models up to date, %d of %d", at, end)
		}
	}
}

// afterRestarts compares the state in memory with the log again after each restart of
// the embedded server, or reconnect to the external ones.
func (p *program) afterRestarts(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.restarts:
		}
		p.states.Forget()
		p.pulls.Forget()
		for ctx.Err() == nil {
			err := p.store.Reload(ctx)
			pause := 100 * time.Millisecond
			switch {
			case isDamage(err): // an old leader of a cluster causes this, too: check again
				p.damaged(ctx, err)
				pause = recheckEvery
			case err == nil:
				err = p.checkIntegrity(ctx)
			}
			if err == nil {
				break
			}
			p.log.Warn("the log is not available yet", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}
}

// releaseMemoryWhenIdle returns memory to the system after a burst of commands,
// once they have stopped. The runtime alone takes minutes.
func (p *program) releaseMemoryWhenIdle(ctx context.Context) error {
	tick := time.NewTicker(idleAfter)
	defer tick.Stop()
	var seen, given uint64
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := p.store.Durable()
		if now == seen && now > given+burst {
			debug.FreeOSMemory()
			given = now
		}
		seen = now
	}
}

// notReady lists why the service cannot do all of its work.
func (p *program) notReady() []string {
	failures := p.supervised.failures()
	for part, err := range map[string]error{"log": p.integrity.Err(), "storage": p.nats.Health(), "views": errors.Join(p.views.Err(), p.proj.Err()), "feed": p.feed.Err(), "audit stream": p.audit.Err(), "in-use index": p.inUse.Err()} {
		if err != nil {
			failures[part] = err
		}
	}
	var reasons []string
	for what, err := range failures {
		reasons = append(reasons, what+": "+err.Error())
	}
	return reasons
}

// attested reports whether the operator attests a durability that is weak or
// cannot be verified.
func (p *program) attested() bool {
	if p.cluster == nil {
		return false
	}
	d := p.cluster.Durability()
	return d.Attested && d.Why != ""
}

// notes is additional information of readiness.
func (p *program) notes() []string {
	var notes []string
	if p.attested() {
		notes = append(notes, "durability: attested by the operator; "+p.cluster.Durability().Why)
	}
	if p.front.tls != nil {
		if err := p.front.tls.Problem(); err != nil {
			notes = append(notes, "TLS: "+err.Error())
		}
	}
	if err := p.clocksAgree(); err != nil {
		notes = append(notes, "clocks: "+err.Error())
	}
	return notes
}

// clocksAgree returns why the clocks of the processes are not known to agree.
func (p *program) clocksAgree() error {
	if p.clocks == nil {
		return nil
	}
	return p.clocks.Err()
}

// close stops everything, in reverse order.
func (p *program) close() {
	p.closeParts()
	p.front.close()
}

func (p *program) closeParts() {
	for len(p.stop) > 0 {
		last := len(p.stop) - 1
		p.stop[last]()
		p.stop = p.stop[:last]
	}
}

func newLogger(cfg Config, out io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(strings.ToUpper(cfg.LogLevel))); err != nil {
		return nil, errLogLevel
	}
	options := &slog.HandlerOptions{Level: level}
	switch cfg.LogFormat {
	case "json":
		return slog.New(slog.NewJSONHandler(out, options)), nil
	case "text":
		return slog.New(slog.NewTextHandler(out, options)), nil
	}
	return nil, errLogFormat
}
