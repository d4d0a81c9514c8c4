// Package connect connects a user's account at a provider: a one-time link, the
// provider's consent page, and the tokens.
package connect

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
)

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel      *service.Kernel
	Secrets     *secrets.Service
	Access      Access
	Components  Components
	Clients     Clients
	Credentials Credentials
	Tokens      Tokens
	Log         *aggregates.Log
	Keyring     *seal.Keyring
	OAuth       *oauth.Exchanger      // talks to authorization servers
	Metrics     prometheus.Registerer // optional
	Logger      *slog.Logger

	// Connections stores the pending connections; without it, none can be started.
	Connections Connections
	// PublicURL is where browsers reach the service, as PublicURL checks it; without
	// it no account can be connected.
	PublicURL string
	// InstanceID identifies this process among those that redeem codes.
	InstanceID string
	// SingleInstance means that no other process serves the log.
	SingleInstance bool
	// RefreshTakeoverTimeout is the time in addition to service.MaxCall after which this
	// process takes over a redemption of another one.
	RefreshTakeoverTimeout time.Duration
	// ReturnTo lists the origins to which a browser may be redirected after a connection,
	// as ReturnOrigin checks them; optional.
	ReturnTo []string
}

// Access authorizes connections.
type Access interface {
	FreshPrincipal(ctx context.Context, id string) (service.Principal, error)
	Authorize(ctx context.Context, call *service.Call, perm permission.Permission) error
	Deny(ctx context.Context, call *service.Call, perm permission.Permission) error
	Denied(ctx context.Context, call *service.Call, perm permission.Permission)
	AdmitConnect(tenant string) error
}

// Components provides the components of connections.
type Components interface {
	Descriptor(ctx context.Context, component string, revision int) (commands.Descriptor, error)
	Effective(ctx context.Context, tenant, component string, d commands.Descriptor) (commands.Descriptor, error)
	Usable(ctx context.Context, tenant, component string) (commands.Descriptor, int, error)
	UsableAt(ctx context.Context, tenant, component, pointer string, expected int) (commands.Descriptor, int, error)
}

// Clients checks at which provider an OAuth client may be used.
type Clients interface {
	CheckConsentAudience(ctx context.Context, tenant, component string, d commands.Descriptor) error
}

// Credentials saves the credential of a connection.
type Credentials interface {
	CheckFor(ctx context.Context, call *service.Call, in credential.Create) (*commands.StepOfFlow, error)
	TryKeys(ctx context.Context, tenant, component string, d commands.Descriptor, revision int, keys seal.Fields, known credential.KnownHost) (seal.Fields, commands.NewKeys, error)
	Save(ctx context.Context, call *service.Call, id string, keys seal.Fields, cmd func(secretID string) commands.Credential) (service.Done, error)
}

// Tokens opens OAuth clients.
type Tokens interface {
	OAuthClient(ctx context.Context, tenant, component string, d commands.Descriptor) (oauth.Client, error)
}

// Service implements the routes of connections. It is safe for concurrent use.
type Service struct {
	Deps
	pending    pendingConnections
	redeemings redeemings
	outcomes   *prometheus.CounterVec
}

// New creates a Service. Errors: ErrPublicURL, ErrReturnOrigin.
func New(deps Deps) (*Service, error) {
	s := &Service{Deps: deps, outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_connections_total", Help: "Account connections: started, done, or by the code that ended them.",
	}, []string{"outcome"})}
	service.FromZero(s.outcomes, "started", "done")
	if deps.Metrics != nil {
		deps.Metrics.MustRegister(s.outcomes)
	}
	s.redeemings = redeemings{own: map[string]int{}, others: map[string]sighting{}}
	s.Secrets.AddBackground(s.resumeConnections)
	s.pending.by = map[string]map[string]time.Time{}
	return s, s.checkConnect()
}

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Remember implements service.Result.
func (c Connected) Remember(kept *events.CommandCompleted) (service.Done, bool) {
	kept.Expires = c.Expires
	return service.Done{ID: c.ID}, true
}

// recall rebuilds the link for a repeated command.
func (s *Service) recall(ctx context.Context, call *service.Call, _ service.Done, c events.CommandCompleted) (any, error) {
	link, _, err := s.link(ctx, call, c.ID, c.Expires)
	return link, err
}
