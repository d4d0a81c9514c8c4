// Package access authenticates, authorizes and limits callers: API keys, tokens of an OpenID Connect
// issuer, roles, tenants, rate limits and the record of denials.
package access

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
)

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel    *service.Kernel
	Log       *aggregates.Log
	Views     *projections.Views
	Projector *projections.Projector
	Keyring   *seal.Keyring
	Metrics   prometheus.Registerer // optional
	Logger    *slog.Logger

	// KeyRevoked is called with the id of a revoked key, to close its
	// connections; optional.
	KeyRevoked func(id string)
	// LastUse stores when keys were last used; optional.
	LastUse LastUse
	// Tokens verifies the tokens of an OpenID Connect issuer; optional: without it, tokens are
	// rejected.
	Tokens *Tokens
	// Limits are the rate limits of callers; unlimited when zero.
	Limits Limits
}

// Service implements service.Gate. It is safe for concurrent use.
type Service struct {
	Deps
	keys      *lru.Cache[[sha256.Size]byte, knownKey]
	keyIDs    *lru.Cache[string, knownKey]
	tenants   *lru.Cache[string, uint64] // Views.Erasures before the tenant was looked up
	denials   *denials
	limiter   *limiter
	wrongKeys *wrongKeys
}

// The bounds of the caches.
const (
	maxKeys    = 10_000
	maxTenants = 10_000
)

// New creates a Service.
func New(deps Deps) (*Service, error) {
	s := &Service{Deps: deps, denials: newDenials(deps.Metrics)}
	var err error
	if s.keys, err = lru.New[[sha256.Size]byte, knownKey](maxKeys); err != nil {
		return nil, fmt.Errorf("cache of keys: %w", err)
	}
	if s.keyIDs, err = lru.New[string, knownKey](maxKeys); err != nil {
		return nil, fmt.Errorf("cache of keys: %w", err)
	}
	if s.tenants, err = lru.New[string, uint64](maxTenants); err != nil {
		return nil, fmt.Errorf("cache of tenants: %w", err)
	}
	if s.limiter, err = newLimiter(deps.Limits); err != nil {
		return nil, err
	}
	s.wrongKeys, err = newWrongKeys(deps.Limits.WrongKeys, deps.Kernel.Now)
	return s, err
}

// Knows implements service.Gate.
func (s *Service) Knows(tenant string) bool { return s.tenants.Contains(tenant) }

// Answers returns nothing: the responses of this feature have no data besides Done.
func (s *Service) Answers() []service.Answer { return nil }

// Remember implements service.Result.
func (k IssuedAPIKey) Remember(c *events.CommandCompleted) (service.Done, bool) {
	c.Expires = k.Expires
	return k.Done, true
}

// recallIssued returns the response of a repeated command, without the key, which is shown only
// once.
func recallIssued(_ context.Context, _ *service.Call, done service.Done, c events.CommandCompleted) (any, error) {
	return IssuedAPIKey{Done: done, Expires: c.Expires}, nil
}
