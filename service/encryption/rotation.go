package encryption

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
)

// StartRotation has no members: the tenant is that of the call.
type StartRotation struct{}

func (s *Service) startRotation(ctx context.Context, call *service.Call, _ StartRotation) (service.Done, error) {
	keys, err := s.Keyring.EncryptionKeys(ctx, call.Tenant)
	if err != nil {
		return service.Done{}, err
	}
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.Tenant, events.System,
		commands.Tenant(commands.StartKeyRotation{ID: call.Tenant, After: keys.Rotation}))
	if err != nil {
		return service.Done{}, err
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return service.Done{Seq: state.Seq, ID: call.Tenant}, nil
}

// RewrapKeys has no members: the tenant is that of the call.
type RewrapKeys struct{}

func (s *Service) rewrap(ctx context.Context, call *service.Call, _ RewrapKeys) (service.Done, error) {
	if _, err := s.Keyring.Rewrap(ctx, call.Tenant); err != nil {
		return service.Done{}, err
	}
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.Tenant, events.System, commands.Tenant(commands.RecordRewrap{ID: call.Tenant}))
	if err != nil {
		return service.Done{}, err
	}
	return service.Done{Seq: state.Seq, ID: call.Tenant}, nil
}

// GetStatus has no members: the tenant is that of the call.
type GetStatus struct{}

// Status is the state of a tenant's encryption keys.
type Status struct {
	Rotating bool `json:"rotating"` // a rotation is in progress
	// PreviousKMS means that the keys are wrapped by the previous KMS key: see encryption_key.rewrap.
	PreviousKMS bool  `json:"previous_kms"`
	Keys        []Key `json:"keys"` // the one that encrypts new secrets first
}

// Key is one encryption key.
type Key struct {
	ID      string `json:"id"`      // 8 hexadecimal digits
	Secrets int    `json:"secrets"` // secrets that it encrypts
	// State is active, retiring, or missing: then its secrets cannot be decrypted.
	State string `json:"state"`
}

func (s *Service) status(ctx context.Context, call *service.Call, _ GetStatus) (Status, error) {
	tenant, err := aggregates.Tenant.Fresh(ctx, s.Log, aggregates.Tenant.Stream(events.System, call.Tenant))
	if err != nil {
		return Status{}, err
	}
	keys, err := s.Keyring.EncryptionKeys(ctx, call.Tenant)
	if err != nil {
		return Status{}, err
	}
	counts, err := s.Vault.CountKeys(ctx, call.Tenant)
	if err != nil {
		return Status{}, err
	}
	status := Status{Rotating: tenant.Value.Rotating, PreviousKMS: keys.Previous, Keys: []Key{}}
	state := "active"
	for _, id := range keys.IDs {
		status.Keys = append(status.Keys, Key{ID: keyName(id), Secrets: counts[id], State: state})
		delete(counts, id)
		state = "retiring"
	}
	for _, id := range slices.Sorted(maps.Keys(counts)) {
		status.Keys = append(status.Keys, Key{ID: keyName(id), Secrets: counts[id], State: "missing"})
	}
	return status, nil
}

func keyName(id uint32) string { return fmt.Sprintf("%08x", id) }

const (
	checkEvery = 10 * time.Second // for rotations that another process started, or that are not complete
	logEvery   = 10 * time.Second
)

// rotation is one rotation in progress.
type rotation struct {
	number   uint64
	key      uint32    // the new one
	since    time.Time // when this process first saw it in use
	reported bool      // that secrets are left which do not open
}

// rotate completes the rotations of all tenants until ctx ends. All of it is idempotent, also if
// several processes run it at the same time.
func (s *Service) rotate(ctx context.Context) {
	known := map[string]*rotation{} // by tenant
	for {
		if err := s.rotateAll(ctx, known); err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "key rotation interrupted; it continues shortly", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-time.After(min(checkEvery, s.retireAfter())):
		}
	}
}

func (s *Service) retireAfter() time.Duration { return max(s.RetireAfter, 2*s.Keyring.Freshness) }

// rotateAll encrypts again what earlier keys encrypted, and completes the rotations of the
// tenants for which nothing was left.
func (s *Service) rotateAll(ctx context.Context, known map[string]*rotation) error {
	if err := s.Kernel.WritesAllowed(); err != nil {
		return nil //nolint:nilerr // readiness reports it
	}
	tenants, err := s.Views.RotatingTenants(ctx)
	if err != nil || len(tenants) == 0 {
		clear(known)
		return err
	}
	keys := map[string]uint32{}
	var failed []error // one tenant's failure does not stop the others
	for _, t := range tenants {
		key, err := s.Keyring.Rotate(ctx, t.ID, t.Rotation)
		if err != nil {
			failed = append(failed, err)
			delete(known, t.ID)
			continue
		}
		keys[t.ID] = key
		if r := known[t.ID]; r == nil || r.number != t.Rotation {
			known[t.ID] = &rotation{number: t.Rotation, key: key, since: time.Now()}
		}
	}
	begun, logged, total := time.Now(), time.Now(), 0
	found, err := s.Vault.Reseal(ctx, keys, func(n int) {
		s.resealed.Add(float64(n))
		if total += n; time.Since(logged) >= logEvery {
			logged = time.Now()
			s.Logger.InfoContext(ctx, "rotating keys", "tenants", len(keys), "secrets_encrypted", total)
		}
	})
	if err != nil {
		return errors.Join(append(failed, err)...)
	}
	for _, t := range tenants {
		r := known[t.ID]
		switch {
		case r == nil: // Rotate failed
		case found[t.ID] > 0:
			if total == 0 && !r.reported {
				r.reported = true
				s.Logger.ErrorContext(ctx, "secrets cannot be decrypted: the earlier key is kept", "tenant", t.ID, "secrets", found[t.ID])
			}
		case begun.Sub(r.since) >= s.retireAfter():
			if err := s.retire(ctx, t, r); err != nil {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

// retire destroys the earlier keys of a tenant and records that the rotation is complete.
func (s *Service) retire(ctx context.Context, t projections.Tenant, r *rotation) error {
	destroyed, err := s.Keyring.Retire(ctx, t.ID, r.number)
	if err != nil {
		return err
	}
	_, _, err = service.Execute(ctx, s.Kernel, service.System(t.ID, "key-rotation"), aggregates.Tenant, events.System,
		commands.Tenant(commands.CompleteKeyRotation{ID: t.ID, Rotation: r.number, Key: keyName(r.key)}))
	if err != nil {
		return err
	}
	s.Logger.InfoContext(ctx, "key rotation completed", "tenant", t.ID, "key", keyName(r.key), "destroyed", len(destroyed))
	return nil
}
