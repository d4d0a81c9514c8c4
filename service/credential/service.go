// Package credential manages credentials: it verifies their keys by a dry request before it
// stores them, and returns their values to flow engines under audited leases.
package credential

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/token"
	"github.com/credstream/credstream/verify"
)

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel     *service.Kernel
	Secrets    *secrets.Service
	Access     Callers
	Components Components
	Clients    Clients
	Flows      Flows
	Tokens     Tokens
	Grants     Grants
	Policies   Policies
	Log        *aggregates.Log
	Views      *projections.Views
	Keyring    *seal.Keyring
	Verify     *verify.Client
	Metrics    prometheus.Registerer // optional
	Logger     *slog.Logger

	// AccessLog records each access to a credential; without it no values are returned.
	AccessLog AccessLog
	// Lease is how long a flow engine may keep resolved values; DefaultLease when 0.
	Lease time.Duration
}

// Callers checks whether a caller still has access.
type Callers interface {
	Denied(ctx context.Context, call *service.Call, perm permission.Permission)
	FreshPrincipal(ctx context.Context, id string) (service.Principal, error)
}

// Components provides the components of credentials.
type Components interface {
	Descriptor(ctx context.Context, component string, revision int) (commands.Descriptor, error)
	Usable(ctx context.Context, tenant, component string) (commands.Descriptor, int, error)
	UsableAt(ctx context.Context, tenant, component, pointer string, expected int) (commands.Descriptor, int, error)
	ClientOf(ctx context.Context, tenant, component string, d commands.Descriptor) (component.ClientKind, error)
	Owned(ctx context.Context, tenant, component string) (bool, error)
}

// Clients provides the auth clients of workspace credentials.
type Clients interface {
	AuthClient(ctx context.Context, call *service.Call, ref client.AuthClientRef, fresh bool) (projections.AuthClient, error)
}

// Flows provides the uses of a credential.
type Flows interface {
	Impact(ctx context.Context, call *service.Call, kind, id string) (*flow.Impact, error)
	InUse(ctx context.Context, call *service.Call, state aggregates.CredentialState) error
	ExpireHolders(ctx context.Context, call *service.Call, id string, state aggregates.CredentialState) (some bool, err error)
}

// Tokens provides the tokens of credentials.
type Tokens interface {
	TokenGoodFor(ctx context.Context, call *service.Call, id string, life time.Duration) (aggregates.State[aggregates.CredentialState], error)
	ActiveKeys(ctx context.Context, tenant, id string, state aggregates.CredentialState) (seal.Fields, error)
	Values(ctx context.Context, tenant, id string, state aggregates.CredentialState) (keys seal.Fields, expires time.Time, err error)
	ExtractTokens(ctx context.Context, tenant, component string, d commands.Descriptor, keys seal.Fields) (seal.Fields, *commands.Tokens, error)
}

// Grants renews and revokes the grants of providers.
type Grants interface {
	RefreshCredential(ctx context.Context, call *service.Call, in token.Refresh) (service.Done, error)
	EndCredential(ctx context.Context, call *service.Call, cmd commands.DeleteCredential) (service.Done, aggregates.CredentialState, error)
}

// Policies are the throttle policies of credentials.
type Policies interface {
	// Use records in a policy that it is about to be assigned to a credential; it does nothing for policy "".
	Use(ctx context.Context, call *service.Call, policy, credential string) (commands.PolicyUse, error)
	// Release removes a use that the credential did not take up, or no longer has.
	Release(ctx context.Context, call *service.Call, use commands.PolicyUse)
}

// Service implements the routes of credentials. It is safe for concurrent use.
type Service struct {
	Deps
	verified *prometheus.CounterVec
	pageEnds *lru.Cache[pageEnd, int] // version of the keys at the end of a page of a history
	leases   *leases
}

// maxPageEnds bounds pageEnds.
const maxPageEnds = 1024

// New creates a Service.
func New(deps Deps) (*Service, error) {
	s := &Service{Deps: deps, verified: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "credstream_verifications_total", Help: "Dry requests by probe and class of outcome.",
	}, []string{"probe", "outcome"})}
	for probe, outcomes := range map[string][]string{"http": {"2xx", "4xx", "5xx", verify.OutcomeTimeout}, "tcp": {verify.OutcomeConnected}, "tls": {verify.OutcomeConnected}, "smtp": {verify.OutcomeSignedIn}, "imap": {verify.OutcomeSignedIn}, "ldap": {verify.OutcomeSignedIn}, "postgres": {verify.OutcomeSignedIn}, "mysql": {verify.OutcomeSignedIn}, "ssh": {verify.OutcomeSignedIn, verify.OutcomeHostKey}, "sftp": {verify.OutcomeSignedIn, verify.OutcomeHostKey}} {
		for _, o := range outcomes {
			s.verified.WithLabelValues(probe, o)
		}
	}
	if deps.Metrics != nil {
		deps.Metrics.MustRegister(s.verified)
	}
	if s.Lease == 0 {
		s.Lease = DefaultLease
	}
	var err error
	if s.pageEnds, err = lru.New[pageEnd, int](maxPageEnds); err != nil {
		return nil, fmt.Errorf("cache of pages: %w", err)
	}
	s.leases, err = newLeases(deps.Metrics, deps.Kernel.Now)
	return s, err
}

// Answers completes the responses to commands on credentials.
func (s *Service) Answers() []service.Answer {
	return []service.Answer{service.AnswerOf(aggregates.Credential, func(done *service.Done, _, after aggregates.CredentialState) {
		done.Version, done.Status = after.Current().Version, secrets.StatusOf(after)
	})}
}

// Remember implements service.Result. The secrets are shown once.
func (r Revealed) Remember(*events.CommandCompleted) (service.Done, bool) { return r.Done, true }
