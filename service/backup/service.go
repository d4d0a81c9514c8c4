package backup

import (
	"context"
	"log/slog"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/vault"
)

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel  *service.Kernel
	Log     *aggregates.Log
	Vault   *vault.Vault
	Keyring *seal.Keyring
	Logger  *slog.Logger
	Streams Streams      // without it no backup can be made
	Intact  func() error // returns why the stored data cannot be trusted; optional
}

// Streams reads the stored messages.
type Streams interface {
	// End returns the last sequence of a stream, by the kind of its messages, and when the
	// stream was created, as its leader has them.
	End(ctx context.Context, kind string) (created time.Time, seq uint64, err error)
	// Read returns the messages after a sequence and up to another one, some at a time, in
	// order; none if there are no more.
	Read(ctx context.Context, kind string, after, upTo uint64) ([]Message, error)
}

// Service implements the route of backups. It is safe for concurrent use.
type Service struct{ Deps }

// New creates a Service.
func New(deps Deps) *Service { return &Service{deps} }

// Answers returns nil: Done is the whole response.
func (s *Service) Answers() []service.Answer { return nil }

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Query("backup.page", permission.BackupsCreate, s.page,
			"The next part of a signed backup of the installation: the log, the sealed secrets, the wrapped keysets and the access log of all tenants. "+
				"Secrets stay encrypted as they are stored.").Scan(),
	}
}
