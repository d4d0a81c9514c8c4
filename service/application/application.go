// Package application is the whole service: the kernel and its features, wired together.
package application

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/backup"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/connector"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/encryption"
	"github.com/credstream/credstream/service/erasure"
	"github.com/credstream/credstream/service/expiry"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/throttle"
	"github.com/credstream/credstream/service/token"
	"github.com/credstream/credstream/service/transfer"
	"github.com/credstream/credstream/service/webhook"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// Config is the configuration of an Application. Fields are required unless marked as optional.
type Config struct {
	Log       *aggregates.Log
	Views     *projections.Views
	Projector *projections.Projector
	Vault     *vault.Vault
	Keyring   *seal.Keyring
	Verify    *verify.Client
	Metrics   prometheus.Registerer
	Logger    *slog.Logger

	// WritesAllowed refuses commands while it returns an error, such as too little
	// free space; optional.
	WritesAllowed func() error
	// Intact returns why the log cannot be trusted, nil while it can: a log that has lost
	// commits cannot prove that something does not exist. Optional.
	Intact func() error
	// CheckLogComplete returns an error unless the log is complete; the collector calls it first. nil:
	// no check.
	CheckLogComplete func(context.Context) error
	// KeyRevoked is called with the id of a revoked key, to close its
	// connections; optional.
	KeyRevoked func(id string)
	// Live has the latest events for callers that wait for them; optional.
	Live *admin.Live
	// Rewind starts the tenant's audit consumer over at a log sequence; optional.
	Rewind func(ctx context.Context, tenant string, seq uint64) error
	// Poison is the dead-letter queue; optional.
	Poison admin.DeadLetterQueue
	// Claims makes command ids unique across processes; optional if
	// a single process serves the log.
	Claims service.Claims
	// FollowedUp stores the position of RunFollowUps; required to run it.
	FollowedUp secrets.Checkpoint
	// RebuildViews rebuilds the views from the log; optional.
	RebuildViews func(ctx context.Context, progress func(done, end uint64)) error
	// Buckets stores the tokens taken from throttled credentials; without it nothing is
	// granted that a policy limits.
	Buckets throttle.Buckets
	// Deliveries stores the state of the deliveries of webhooks; without it nothing is delivered.
	Deliveries webhook.Deliveries
	// WebhookRetry is the pause after the first failed attempt at a delivery;
	// webhook.DefaultRetry when 0.
	WebhookRetry time.Duration
	// WarnDays are the days before an expiry at which an event warns of it, as expiry.Thresholds
	// returns them; none when nil.
	WarnDays []int
	// LastUse remembers when keys were used last; optional.
	LastUse access.LastUse
	// Tokens verifies the tokens of an OpenID Connect issuer; without it tokens are rejected.
	Tokens *access.Tokens
	// OAuth talks to authorization servers.
	OAuth *oauth.Exchanger
	// Holder names this process among those that renew tokens; a random name when "".
	InstanceID string
	// SingleInstance means that no other process serves the log while this one lives.
	SingleInstance bool
	// RefreshTakeoverTimeout is how long a renewal by another process may make
	// no progress before this one takes it over; 30 s when 0.
	RefreshTakeoverTimeout time.Duration
	// AccessLog records each access to a credential; without it no values are returned.
	AccessLog credential.AccessLog
	// Lease is how long a flow engine may keep resolved values; credential.DefaultLease when 0.
	Lease time.Duration
	// Connections stores the connections to providers in progress; without it none can
	// be started.
	Connections connect.Connections
	// PublicURL is where browsers reach the service, as connect.PublicURL checks it; without
	// it no account can be connected.
	PublicURL string
	// ReturnTo are the origins that a browser may be sent back to when an account was
	// connected, as connect.ReturnOrigin checks them; optional.
	ReturnTo []string
	// RenewalStep is called between the steps of a renewal ("started", "answered",
	// "stored") and when one waits for that of another process ("waiting"), so that a
	// test can interrupt it there; optional.
	RenewalStep func(step string)
	// ClocksAgree returns why the clocks of the processes are not known to agree: then
	// reservations are not expired; optional.
	ClocksAgree func() error
	// Limits are the rate limits of callers; unlimited when zero.
	Limits access.Limits
	// KeyRetireAfter is how long a replaced encryption key is kept at least, and those of a
	// tenant that is being erased.
	KeyRetireAfter time.Duration
	// Backup reads the stored messages; without it no backup can be made.
	Backup backup.Streams
	// Admission shares the work of the process between callers; one of its own when nil.
	Admission *admission.Admission
	// Now is the clock, with a monotonic reading; time.Now when nil.
	Now func() time.Time
}

// Application serves the route table of all features. The features' own methods are
// available through their fields.
type Application struct {
	*service.Kernel

	Access      *access.Service
	Secrets     *secrets.Service
	Flows       *flow.Service
	Components  *component.Service
	Clients     *client.Service
	Tokens      *token.Service
	Throttles   *throttle.Service
	Webhooks    *webhook.Service
	Expiries    *expiry.Service
	Encryption  *encryption.Service
	Erasures    *erasure.Service
	Credentials *credential.Service
	Connects    *connect.Service
	Connectors  *connector.Service
	Transfers   *transfer.Service
	Backups     *backup.Service
	Admin       *admin.Service
}

// features are those of a, in the order of the route table.
func (a *Application) features() []service.Feature {
	return []service.Feature{a.Access, a.Components, a.Credentials, a.Clients, a.Connects, a.Tokens, a.Throttles, a.Webhooks, a.Expiries, a.Connectors, a.Flows, a.Encryption, a.Erasures, a.Transfers, a.Backups, a.Admin}
}

// Routes is the route table: all commands and queries of the service.
func Routes() (routes []service.Route) {
	for _, f := range (&Application{}).features() {
		routes = append(routes, f.Routes()...)
	}
	return routes
}

// New creates an Application. Close ends it. Errors: connect.ErrPublicURL,
// connect.ErrReturnOrigin.
func New(cfg Config) (*Application, error) {
	if cfg.InstanceID == "" {
		cfg.InstanceID = events.NewID()
	}
	if cfg.RefreshTakeoverTimeout == 0 {
		cfg.RefreshTakeoverTimeout = token.DefaultTakeoverTimeout
	}
	kernel, err := service.New(service.Config{
		Log: cfg.Log, Views: cfg.Views, Projector: cfg.Projector, Keyring: cfg.Keyring, Metrics: cfg.Metrics, Logger: cfg.Logger,
		WritesAllowed: cfg.WritesAllowed, Intact: cfg.Intact, Claims: cfg.Claims, Admission: cfg.Admission, Now: cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	a := &Application{Kernel: kernel}
	var errs [6]error
	a.Access, errs[0] = access.New(access.Deps{
		Kernel: kernel, Log: cfg.Log, Views: cfg.Views, Projector: cfg.Projector, Keyring: cfg.Keyring, Metrics: cfg.Metrics, Logger: cfg.Logger,
		KeyRevoked: cfg.KeyRevoked, LastUse: cfg.LastUse, Tokens: cfg.Tokens, Limits: cfg.Limits,
	})
	a.Secrets, errs[1] = secrets.New(secrets.Deps{
		Kernel: kernel, Log: cfg.Log, Views: cfg.Views, Vault: cfg.Vault, Keyring: cfg.Keyring, Metrics: cfg.Metrics, Logger: cfg.Logger,
		CheckLogComplete: cfg.CheckLogComplete, FollowedUp: cfg.FollowedUp, SingleInstance: cfg.SingleInstance, RefreshTakeoverTimeout: cfg.RefreshTakeoverTimeout,
	})
	a.Flows = flow.New(flow.Deps{
		Kernel: kernel, Access: a.Access, Log: cfg.Log, Views: cfg.Views, Projector: cfg.Projector, Metrics: cfg.Metrics, Logger: cfg.Logger,
		ClocksAgree: cfg.ClocksAgree,
	})
	a.Components, errs[2] = component.New(component.Deps{
		Kernel: kernel, Secrets: a.Secrets, Log: cfg.Log, Views: cfg.Views, Logger: cfg.Logger, Flows: a.Flows,
	})
	a.Clients = client.New(client.Deps{
		Kernel: kernel, Secrets: a.Secrets, Access: a.Access, Components: a.Components, Flows: a.Flows,
		Log: cfg.Log, Views: cfg.Views, Vault: cfg.Vault, Logger: cfg.Logger,
	})
	// Dependencies of lower features on higher ones.
	a.Flows.Components, a.Flows.Clients, a.Components.Clients = a.Components, a.Clients, a.Clients
	a.Tokens = token.New(token.Deps{
		Kernel: kernel, Secrets: a.Secrets, Components: a.Components, Clients: a.Clients,
		Log: cfg.Log, Views: cfg.Views, Vault: cfg.Vault, OAuth: cfg.OAuth, Metrics: cfg.Metrics, Logger: cfg.Logger,
		InstanceID: cfg.InstanceID, SingleInstance: cfg.SingleInstance, RefreshTakeoverTimeout: cfg.RefreshTakeoverTimeout, RenewalStep: cfg.RenewalStep,
	})
	a.Throttles, errs[5] = throttle.New(throttle.Deps{Kernel: kernel, Log: cfg.Log, Views: cfg.Views, Logger: cfg.Logger, Buckets: cfg.Buckets})
	a.Webhooks = webhook.New(webhook.Deps{
		Kernel: kernel, Secrets: a.Secrets, Log: cfg.Log, Views: cfg.Views, Vault: cfg.Vault, HTTP: cfg.Verify, Metrics: cfg.Metrics, Logger: cfg.Logger,
		Deliveries: cfg.Deliveries, Retry: cfg.WebhookRetry,
	})
	a.Expiries = expiry.New(expiry.Deps{Kernel: kernel, Log: cfg.Log, Views: cfg.Views, Logger: cfg.Logger, Days: cfg.WarnDays})
	a.Credentials, errs[3] = credential.New(credential.Deps{
		Kernel: kernel, Secrets: a.Secrets, Access: a.Access, Components: a.Components, Clients: a.Clients, Flows: a.Flows, Tokens: a.Tokens, Grants: a.Tokens, Policies: a.Throttles,
		Log: cfg.Log, Views: cfg.Views, Keyring: cfg.Keyring, Verify: cfg.Verify, Metrics: cfg.Metrics, Logger: cfg.Logger,
		AccessLog: cfg.AccessLog, Lease: cfg.Lease,
	})
	a.Connects, errs[4] = connect.New(connect.Deps{
		Kernel: kernel, Secrets: a.Secrets, Access: a.Access, Components: a.Components, Clients: a.Clients, Credentials: a.Credentials, Tokens: a.Tokens,
		Log: cfg.Log, Keyring: cfg.Keyring, OAuth: cfg.OAuth, Metrics: cfg.Metrics, Logger: cfg.Logger,
		Connections: cfg.Connections, PublicURL: cfg.PublicURL, ReturnTo: cfg.ReturnTo,
		InstanceID: cfg.InstanceID, SingleInstance: cfg.SingleInstance, RefreshTakeoverTimeout: cfg.RefreshTakeoverTimeout,
	})
	a.Connectors = connector.New(connector.Deps{Kernel: kernel, Secrets: a.Secrets, Log: cfg.Log, Views: cfg.Views, Vault: cfg.Vault, Logger: cfg.Logger})
	a.Transfers = transfer.New(transfer.Deps{Kernel: kernel, Access: a.Access, Components: a.Components, Log: cfg.Log, Views: cfg.Views, Keyring: cfg.Keyring, Logger: cfg.Logger})
	a.Backups = backup.New(backup.Deps{
		Kernel: kernel, Log: cfg.Log, Vault: cfg.Vault, Keyring: cfg.Keyring, Logger: cfg.Logger, Streams: cfg.Backup, Intact: cfg.Intact,
	})
	a.Encryption = encryption.New(encryption.Deps{
		Kernel: kernel, Log: cfg.Log, Views: cfg.Views, Vault: cfg.Vault, Keyring: cfg.Keyring, Metrics: cfg.Metrics, Logger: cfg.Logger,
		Background: a.Secrets, RetireAfter: cfg.KeyRetireAfter,
	})
	a.Erasures = erasure.New(erasure.Deps{
		Kernel: kernel, Log: cfg.Log, Views: cfg.Views, Vault: cfg.Vault, Keyring: cfg.Keyring, Logger: cfg.Logger,
		Background: a.Secrets, DeadLetters: cfg.Poison, After: cfg.KeyRetireAfter,
	})
	a.Admin = admin.New(admin.Deps{
		Kernel: kernel, Secrets: a.Secrets, Log: cfg.Log, Views: cfg.Views, Projector: cfg.Projector, Keyring: cfg.Keyring, Logger: cfg.Logger,
		Live: cfg.Live, Rewind: cfg.Rewind, DeadLetters: cfg.Poison, RebuildViews: cfg.RebuildViews,
	})
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	kernel.Open(a.Access, a.features()...)
	return a, nil
}

// Close ends the background work, and waits for it.
func (a *Application) Close() {
	a.Kernel.Close()
	a.Admin.Close()
	a.Tokens.Close()
	a.Secrets.Close()
}
