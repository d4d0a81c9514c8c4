// Package erasure erases tenants: it deletes everything that a tenant has, erases its secrets in the
// vault, and destroys its encryption keys.
package erasure

import (
	"context"
	"log/slog"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/vault"
)

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel  *service.Kernel
	Log     *aggregates.Log
	Views   *projections.Views
	Vault   *vault.Vault
	Keyring *seal.Keyring
	Logger  *slog.Logger
	// Background runs work in one process of the installation.
	Background Background
	// DeadLetters is the dead-letter queue; optional.
	DeadLetters admin.DeadLetterQueue
	// After is how long the keys of a tenant are kept at least after its erasure began; it is at
	// least twice the keyring's Freshness.
	After time.Duration
}

// Background runs work in one process of the installation until its context ends.
type Background interface {
	AddBackground(run func(context.Context))
}

// Service implements the routes of erasures. Its methods may be called from many goroutines.
type Service struct {
	Deps
	wake chan struct{} // holds one token after an erasure was started here
}

// New creates a Service.
func New(deps Deps) *Service {
	s := &Service{Deps: deps, wake: make(chan struct{}, 1)}
	deps.Background.AddBackground(s.run)
	return s
}

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("tenant.erase", permission.TenantsManage, s.eraseTenant,
			"Erase a tenant for good: its calls are refused from now on, everything that it has is deleted, its tokens are revoked at their providers, "+
				"its secrets are erased and its encryption keys destroyed. The command starts the erasure; tenant.erasure shows its progress. "+
				"Refused while flows of the tenant run, unless stop_flows is set."),
		service.Query("tenant.erasure", permission.TenantsManage, s.progress,
			"What a tenant still has: before tenant.erase what that would delete, and then its progress. It reads all secrets of the tenant.").Scan(),
	}
}
