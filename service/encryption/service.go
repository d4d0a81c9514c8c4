// Package encryption rotates the keys that encrypt the secrets of tenants.
package encryption

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/vault"
)

// DefaultRetireAfter is how long a replaced key is kept at least. Pending connections, which
// it may have encrypted, live up to 15 minutes.
const DefaultRetireAfter = 30 * time.Minute

// Deps are the dependencies of a Service. Fields are required unless marked as optional.
type Deps struct {
	Kernel  *service.Kernel
	Log     *aggregates.Log
	Views   *projections.Views
	Vault   *vault.Vault
	Keyring *seal.Keyring
	Metrics prometheus.Registerer // optional
	Logger  *slog.Logger
	// Background runs work in one process of the installation.
	Background Background
	// RetireAfter is how long a replaced key is kept at least; it is at least twice the
	// keyring's Freshness.
	RetireAfter time.Duration
}

// Background runs work in one process of the installation until its context ends.
type Background interface {
	AddBackground(run func(context.Context))
}

// Service implements the routes of encryption keys. Its methods may be called from many
// goroutines.
type Service struct {
	Deps
	wake     chan struct{} // holds one token after a rotation was started here
	resealed prometheus.Counter
}

// New creates a Service.
func New(deps Deps) *Service {
	s := &Service{Deps: deps, wake: make(chan struct{}, 1), resealed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "credstream_keys_resealed_total", Help: "Secrets encrypted again with a new key of their tenant.",
	})}
	if deps.Metrics != nil {
		deps.Metrics.MustRegister(s.resealed)
	}
	deps.Background.AddBackground(s.rotate)
	return s
}

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("encryption_key.rotate", permission.TenantsManage, s.startRotation,
			"Rotate the tenant's encryption key: create a new key, encrypt all secrets again with it, and then destroy the earlier keys. "+
				"The command starts the rotation; encryption_key.status shows its progress."),
		service.Command("encryption_key.rewrap", permission.TenantsManage, s.rewrap,
			"Wrap the tenant's encryption keys with the KMS key of --kms, if they are wrapped with that of --kms-previous."),
		service.Query("encryption_key.status", permission.TenantsManage, s.status,
			"The tenant's encryption keys, and how many secrets each of them encrypts. It reads all secrets of the tenant.").Scan(),
	}
}
