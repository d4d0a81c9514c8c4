package access

import (
	"context"
	"errors"
	"fmt"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// DefaultTenant exists from the first start.
const DefaultTenant = "default"

type RegisterTenant struct {
	ID   string `json:"id"`            // letters, digits, '_' and '-', up to 64; not starting with '_'
	Name string `json:"name,omitzero"` // display name
}

func (s *Service) registerTenant(ctx context.Context, call *service.Call, in RegisterTenant) (service.Done, error) {
	if err := service.Required("/id", in.ID); err != nil {
		return service.Done{}, err
	}
	if err := events.CheckName(in.ID); err != nil {
		return service.Done{}, fault.Of(err).At("/id")
	}
	if in.Name != "" {
		if err := service.CheckName("/name", in.Name); err != nil {
			return service.Done{}, err
		}
	}
	// The keyset comes first: a tenant that exists is complete.
	if err := s.prepareTenant(ctx, in.ID); err != nil {
		return service.Done{}, err
	}
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.Tenant, events.System, commands.Tenant(commands.RegisterTenant(in)))
	if err != nil {
		return service.Done{}, err
	}
	return service.Done{Seq: state.Seq, ID: in.ID}, nil
}

// prepareTenant creates the keyset of a tenant. A registered tenant already has one:
// if it is lost, a new one could not decrypt anything.
func (s *Service) prepareTenant(ctx context.Context, tenant string) error {
	exists, err := s.TenantExists(ctx, tenant)
	if err != nil {
		return err
	}
	if exists {
		if err = s.Keyring.Check(ctx, []string{tenant}); errors.Is(err, seal.ErrNoKeyset) {
			err = seal.ErrKeysetMissing.Withf("The encryption keys of tenant %s are lost. Restore them from a backup.", tenant)
		}
	} else {
		err = s.Keyring.Ensure(ctx, tenant)
	}
	if err != nil {
		return fmt.Errorf("keyset of tenant %s: %w", tenant, err)
	}
	return nil
}

// TenantExists reports whether a tenant is registered. It caches existing
// tenants, which are never removed.
func (s *Service) TenantExists(ctx context.Context, tenant string) (bool, error) {
	if s.tenants.Contains(tenant) {
		return true, nil
	}
	state, err := aggregates.Tenant.Fresh(ctx, s.Log, aggregates.Tenant.Stream(events.System, tenant))
	if err != nil {
		return false, err
	}
	if state.Value.Exists {
		s.tenants.Add(tenant, struct{}{})
	}
	return state.Value.Exists, nil
}

type ListTenants struct {
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

type TenantList struct {
	Tenants []TenantInfo `json:"tenants"`
}

// TenantInfo is one tenant.
type TenantInfo struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func (s *Service) listTenants(ctx context.Context, call *service.Call, in ListTenants) (TenantList, error) {
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return TenantList{}, err
	}
	all, err := s.Views.Tenants(ctx)
	if err != nil {
		return TenantList{}, err
	}
	list := TenantList{Tenants: []TenantInfo{}}
	for _, t := range all {
		if call.Principal.Reaches(t.ID) {
			list.Tenants = append(list.Tenants, TenantInfo{ID: t.ID, Name: t.Name})
		}
	}
	return list, nil
}

// maxBootstrap bounds the commits that processes starting concurrently on an empty log append
// before there is a first administrator key.
const maxBootstrap = 64

// isNew reports whether the log holds only what a first start writes, which may
// have been interrupted.
func (s *Service) isNew(ctx context.Context) (bool, error) {
	end, err := s.Log.Store.End(ctx)
	if err != nil || end > maxBootstrap {
		return false, err
	}
	for seq := uint64(1); seq <= end; seq++ {
		recs, err := s.Log.Store.Commit(ctx, seq)
		if err != nil {
			return false, err
		}
		for _, r := range recs {
			switch r.Event.(type) {
			case events.TenantRegistered, events.DurabilityAttested:
			default:
				return false, nil
			}
			if r.Meta.Actor.Kind != "system" {
				return false, nil
			}
		}
	}
	return true, nil
}

// ErrKeyShape rejects a configured administrator key that is malformed.
var ErrKeyShape = fault.New(fault.Invalid, "api_key_shape", "An API key must be \"cs_\" and 32 to 128 letters and digits.")

// firstAdministrator is the id of the key that the first start creates.
const firstAdministrator = "first-administrator"

// Bootstrap creates the tenant "default" and an administrator key for every tenant, once in
// the life of an installation, on an otherwise empty log. Then it calls choose for the key,
// before it creates anything, and returns that key; otherwise it returns the zero Secret. It
// returns ErrKeyShape for a key that is none, and the errors of choose.
func (s *Service) Bootstrap(ctx context.Context, choose func() (seal.Secret, error)) (seal.Secret, error) {
	stream := aggregates.APIKey.Stream(events.System, firstAdministrator)
	state, err := aggregates.APIKey.Fresh(ctx, s.Log, stream)
	if err != nil || state.Value.Exists {
		return seal.Secret{}, err
	}
	isNew, err := s.isNew(ctx)
	if err != nil {
		return seal.Secret{}, err
	}
	if !isNew {
		s.Logger.ErrorContext(ctx, "the log is not empty but has no first administrator key; none is created")
		return seal.Secret{}, nil
	}
	key, err := choose()
	if err != nil {
		return seal.Secret{}, err
	}
	if err := CheckKeyShape(string(key.Reveal())); err != nil {
		return seal.Secret{}, ErrKeyShape
	}
	call := service.System(DefaultTenant, "bootstrap")
	if err := s.prepareTenant(ctx, DefaultTenant); err != nil {
		return seal.Secret{}, err
	}
	if _, _, err := service.Execute(ctx, s.Kernel, call, aggregates.Tenant, events.System, commands.Tenant(commands.RegisterTenant{ID: DefaultTenant})); err != nil {
		return seal.Secret{}, fmt.Errorf("register the first tenant: %w", err)
	}
	_, err = s.issueKey(ctx, service.System(DefaultTenant, "bootstrap"), commands.IssueAPIKey{
		ID: firstAdministrator, SHA256: hashKey(string(key.Reveal())), Name: "first administrator",
		Home: DefaultTenant, Tenants: []string{service.AllTenants}, Role: string(permission.Administrator),
	})
	if errors.Is(err, aggregates.ErrAPIKeyExists) { // another process was first
		return seal.Secret{}, nil
	}
	if err != nil {
		return seal.Secret{}, fmt.Errorf("issue the first key: %w", err)
	}
	return key, nil
}
