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
	// Create the keyset first, so that every registered tenant has one.
	if err := s.prepareTenant(ctx, in.ID); err != nil {
		return service.Done{}, err
	}
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.Tenant, events.System, commands.Tenant(commands.RegisterTenant(in)))
	if err != nil {
		return service.Done{}, err
	}
	return service.Done{Seq: state.Seq, ID: in.ID}, nil
}

// prepareTenant creates the keyset of a new tenant. The keyset of a registered tenant is never
// created again, because a new one could not decrypt the tenant's secrets.
func (s *Service) prepareTenant(ctx context.Context, tenant string) error {
	err := s.checkTenant(ctx, tenant)
	if err != nil && !errors.Is(err, service.ErrTenantNotFound) {
		return err
	}
	if err == nil {
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

// TenantExists reports whether a tenant is registered and not erased.
func (s *Service) TenantExists(ctx context.Context, tenant string) (bool, error) {
	err := s.checkTenant(ctx, tenant)
	if errors.Is(err, service.ErrTenantNotFound) || errors.Is(err, aggregates.ErrTenantErased) {
		return false, nil
	}
	return err == nil, err
}

// checkTenant returns service.ErrTenantNotFound for a tenant that is not registered, and
// aggregates.ErrTenantErased for one that is being erased or was. It caches existing tenants until
// the views report that one is erased.
func (s *Service) checkTenant(ctx context.Context, tenant string) error {
	erasures, viewsUpdated := s.Views.Erasures(), s.Projector.Err() == nil
	if at, ok := s.tenants.Get(tenant); ok && at == erasures && viewsUpdated {
		return nil
	}
	state, err := aggregates.Tenant.Fresh(ctx, s.Log, aggregates.Tenant.Stream(events.System, tenant))
	switch {
	case err != nil:
		return err
	case !state.Value.Exists:
		return service.ErrTenantNotFound
	case state.Value.Erasing:
		s.tenants.Remove(tenant)
		return aggregates.ErrTenantErased
	}
	s.tenants.Add(tenant, erasures)
	return nil
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
	// State is "" for a tenant in use, "erasing" or "erased".
	State string `json:"state,omitzero"`
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
			list.Tenants = append(list.Tenants, TenantInfo{ID: t.ID, Name: t.Name, State: t.Erasure.String()})
		}
	}
	return list, nil
}

// maxBootstrap is the maximum number of commits in a log without an administrator key: several
// processes may start concurrently on an empty log.
const maxBootstrap = 64

// isNew reports whether the log contains only events of a first start, which may have been
// interrupted.
func (s *Service) isNew(ctx context.Context) (bool, error) {
	end, err := s.Log.Store.End(ctx)
	if err != nil || end == 0 {
		return err == nil, err
	}
	commits := 0
	for r, err := range s.Log.Store.Follow(ctx, 0) {
		if err != nil {
			return false, err
		}
		if r.Index == 0 {
			commits++
		}
		switch r.Event.(type) {
		case events.TenantRegistered, events.DurabilityAttested:
		default:
			return false, nil
		}
		if r.Meta.Actor.Kind != "system" || commits > maxBootstrap {
			return false, nil
		}
		if r.Last() && r.Seq >= end {
			return true, nil
		}
	}
	return false, ctx.Err()
}

// ErrKeyShape rejects a configured administrator key that is malformed.
var ErrKeyShape = fault.New(fault.Invalid, "api_key_shape", "An API key must be \"cs_\" and 32 to 128 letters and digits.")

// firstAdministrator is the id of the key that the first start creates.
const firstAdministrator = "first-administrator"

// Bootstrap creates the tenant "default" and an administrator key for all tenants if the log is
// new, and returns that key; otherwise it returns the zero Secret. It calls choose for the key
// before it creates anything. Errors: ErrKeyShape for a malformed key, and the errors of choose.
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
