package erasure

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
)

// Errors of tenant.erase.
var (
	// ErrEraseOwn refuses to erase the home tenant of the caller's key, which would end the key.
	ErrEraseOwn = fault.New(fault.Precondition, "tenant_erase_own", "The key belongs to this tenant. Erase the tenant with a key of another tenant.")
	// ErrEraseDefault refuses to erase the tenant of the first administrator.
	ErrEraseDefault = fault.New(fault.Precondition, "tenant_erase_default", "The tenant default has the first key of the installation and cannot be erased.")
	// ErrFlowsRun refuses to erase a tenant whose flows run. Its detail names some of them.
	ErrFlowsRun = fault.New(fault.Precondition, "tenant_flows_run", "Flows of the tenant run. Stop them first, or set stop_flows (--stop-flows).")
)

// firstTenant is the home tenant of the first administrator.
const firstTenant = "default"

// EraseTenant requests the erasure of a tenant.
type EraseTenant struct {
	ID        string `json:"id"`
	StopFlows bool   `json:"stop_flows,omitzero"` // also if flows of the tenant run: they lose their credentials
}

func (s *Service) eraseTenant(ctx context.Context, call *service.Call, in EraseTenant) (service.Done, error) {
	state, err := s.find(ctx, in.ID)
	switch {
	case err != nil:
		return service.Done{}, err
	case in.ID == firstTenant:
		return service.Done{}, ErrEraseDefault.At("/id")
	case in.ID == call.Principal.Home:
		return service.Done{}, ErrEraseOwn.At("/id")
	}
	if !in.StopFlows && !state.Erasing {
		if err := s.checkNoFlows(ctx, in.ID); err != nil {
			return service.Done{}, err
		}
	}
	_, now, err := service.Execute(ctx, s.Kernel, call, aggregates.Tenant, events.System, commands.Tenant(commands.StartTenantErasure{ID: in.ID}))
	if err != nil {
		return service.Done{}, err
	}
	// Once the views have it, calls of the tenant are refused everywhere in this process, and the
	// work can begin.
	err = s.Kernel.AtLeast(ctx, now.Seq)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return service.Done{Seq: now.Seq, ID: in.ID}, err
}

// find returns the state of a registered tenant, or aggregates.ErrTenantNotFound.
func (s *Service) find(ctx context.Context, id string) (aggregates.TenantState, error) {
	if err := service.Required("/id", id); err != nil {
		return aggregates.TenantState{}, err
	}
	if events.CheckName(id) != nil {
		return aggregates.TenantState{}, errNoTenant
	}
	state, err := aggregates.Tenant.Fresh(ctx, s.Log, aggregates.Tenant.Stream(events.System, id))
	if err == nil && !state.Value.Exists {
		err = errNoTenant
	}
	return state.Value, err
}

// errNoTenant refuses the tenant of a request, which is not that of the call.
var errNoTenant = aggregates.ErrTenantNotFound.Withf("There is no tenant with this id.").At("/id")

func (s *Service) checkNoFlows(ctx context.Context, tenant string) error {
	if err := s.upToDate(ctx); err != nil {
		return err
	}
	const named = 3
	flows, _, err := s.Views.Flows(ctx, projections.FlowFilter{Tenant: tenant, Active: true, Limit: named})
	if err != nil || len(flows) == 0 {
		return err
	}
	ids := make([]string, len(flows))
	for i, f := range flows {
		ids[i] = f.ID
	}
	return ErrFlowsRun.Withf("Flows of the tenant run, among them %s. Stop them first, or set stop_flows (--stop-flows).", strings.Join(ids, ", "))
}

// upToDate waits until the views reflect the end of the log.
func (s *Service) upToDate(ctx context.Context) error {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return err
	}
	return s.Kernel.AtLeast(ctx, end)
}

// GetErasure identifies the tenant.
type GetErasure struct {
	ID string `json:"id"`
}

// Progress is what a tenant still has.
type Progress struct {
	ID           string `json:"id"`
	State        string `json:"state"`         // active, erasing or erased
	RunningFlows int    `json:"running_flows"` // that tenant.erase refuses to stop unless stop_flows is set
	Left         []Left `json:"left"`          // what is not deleted yet; kinds of which there is nothing are absent
	Secrets      int    `json:"secrets"`       // in the vault
	Keys         bool   `json:"keys"`          // the encryption keys exist
}

// Left is how many things of one kind a tenant still has.
type Left struct {
	Kind  string `json:"kind"`
	Count int    `json:"count"`
}

func (s *Service) progress(ctx context.Context, _ *service.Call, in GetErasure) (Progress, error) {
	state, err := s.find(ctx, in.ID)
	if err == nil {
		err = s.upToDate(ctx)
	}
	if err != nil {
		return Progress{}, err
	}
	p := Progress{ID: in.ID, State: "active", Left: []Left{}, Keys: true}
	switch {
	case state.Erased:
		p.State = "erased"
	case state.Erasing:
		p.State = "erasing"
	}
	for _, k := range kinds {
		count := 0
		err := s.each(ctx, in.ID, k, func(o one) error {
			count++
			if o.active {
				p.RunningFlows++
			}
			return nil
		})
		if err != nil {
			return Progress{}, err
		}
		if count > 0 {
			p.Left = append(p.Left, Left{k.name, count})
		}
	}
	counts, err := s.Vault.CountKeys(ctx, in.ID)
	if err != nil {
		return Progress{}, err
	}
	for _, n := range counts {
		p.Secrets += n
	}
	if _, err := s.Keyring.EncryptionKeys(ctx, in.ID); errors.Is(err, seal.ErrNoKeyset) {
		p.Keys = false
	} else if err != nil {
		return Progress{}, err
	}
	return p, nil
}

const (
	pageSize    = 200
	atOnce      = 16
	actor       = "erasure"
	retryEvery  = time.Second
	nextKind    = 10 * time.Millisecond
	checkEvery  = 10 * time.Second // for erasures that another process started
	reportEvery = time.Minute
)

// run completes the erasures of all tenants until ctx ends. All of it is idempotent, also if
// several processes run it at the same time.
func (s *Service) run(ctx context.Context) {
	known := map[string]*state{} // by tenant
	for {
		pause, err := s.round(ctx, known)
		if err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "erasure of a tenant interrupted; it continues shortly", "err", err)
		}
		wait := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-s.wake:
		case <-wait.C:
		}
		wait.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// state is what this process knows of an erasure.
type state struct {
	empty    time.Time // since when nothing is left to delete; zero: something is
	found    int       // things in the last round
	reported time.Time // when a refusal was logged last, or the erasure first seen
}

// after is how long the keys are kept: the calls that began before the erasure have ended by
// then, connections of accounts have expired, and no process encrypts with a keyset that it read before.
func (s *Service) after() time.Duration { return max(s.After, 2*s.Keyring.Freshness) }

// round does what can be done now for every tenant, and returns when to continue.
func (s *Service) round(ctx context.Context, known map[string]*state) (pause time.Duration, err error) {
	if s.Kernel.WritesAllowed() != nil { // readiness reports it
		return checkEvery, nil
	}
	tenants, err := s.Views.ErasingTenants(ctx)
	if err != nil || len(tenants) == 0 {
		clear(known)
		return checkEvery, err
	}
	pause = checkEvery
	var failed []error // one tenant's failure does not stop the others
	for _, t := range tenants {
		st := known[t.ID]
		if st == nil {
			st = &state{reported: time.Now()}
			known[t.ID] = st
		}
		found, err := s.deleteAll(ctx, t.ID)
		// What something else still uses is refused, until its users are deleted: that is no news at first.
		if err != nil && (fault.Of(err).Kind != fault.Precondition || time.Since(st.reported) > reportEvery) {
			st.reported = time.Now()
			failed = append(failed, fmt.Errorf("tenant %s: %w", t.ID, err))
		}
		switch {
		case err != nil:
			st.empty, pause = time.Time{}, min(pause, retryEvery)
			continue
		case found > 0:
			next := nextKind
			if found == st.found { // perhaps no progress
				next = retryEvery
			}
			st.empty, st.found, pause = time.Time{}, found, min(pause, next)
			continue
		}
		if st.empty.IsZero() {
			st.empty = time.Now()
		}
		if left := s.after() - time.Since(st.empty); left > 0 {
			pause = min(pause, left)
			continue
		}
		if err := s.complete(ctx, t.ID); err != nil {
			failed = append(failed, fmt.Errorf("tenant %s: %w", t.ID, err))
			pause = min(pause, retryEvery)
		}
	}
	return pause, errors.Join(failed...)
}

// deleteAll deletes what the tenant has, by the commands that its users would send: so the read
// models, the feed and the in-use index follow, tokens are revoked at their providers, and dropped
// secrets are erased. What another thing still uses is refused, and deleted by a later round.
func (s *Service) deleteAll(ctx context.Context, tenant string) (found int, err error) {
	if err := s.upToDate(ctx); err != nil {
		return 0, err
	}
	var failed error // the first one: others are likely to be the same
	for _, k := range kinds {
		var all errgroup.Group
		all.SetLimit(atOnce)
		err := s.each(ctx, tenant, k, func(o one) error {
			found++
			all.Go(func() error {
				err := k.delete(ctx, s, tenant, o)
				if err == nil || fault.Of(err).Kind == fault.NotFound {
					return nil
				}
				return fmt.Errorf("%s %s: %w", k.name, o.id, err)
			})
			return nil
		})
		failed = cmp.Or(failed, err, all.Wait())
		if found > 0 && failed == nil { // what it used follows in the next round
			break
		}
	}
	return found, failed
}

// each calls do for everything of a kind that the tenant has, one after the other.
func (s *Service) each(ctx context.Context, tenant string, k kind, do func(one) error) error {
	for after := ""; ; {
		page, next, err := k.list(ctx, s, tenant, after)
		if err != nil {
			return err
		}
		for _, o := range page {
			if err := do(o); err != nil {
				return err
			}
		}
		if after = next; after == "" {
			return nil
		}
	}
}

// complete erases what is left in the vault, such as the tokens that a provider has not revoked yet,
// destroys the keys, and records that.
func (s *Service) complete(ctx context.Context, tenant string) error {
	left, err := s.Vault.EraseTenant(ctx, tenant)
	if err != nil {
		return err
	}
	if err := s.Keyring.Destroy(ctx, tenant); err != nil {
		return err
	}
	late, err := s.Vault.EraseTenant(ctx, tenant) // stored meanwhile
	if err != nil {
		return err
	}
	_, _, err = service.Execute(ctx, s.Kernel, service.System(tenant, actor), aggregates.Tenant, events.System,
		commands.Tenant(commands.CompleteTenantErasure{ID: tenant}))
	if err != nil {
		return err
	}
	s.Logger.InfoContext(ctx, "tenant erased", "tenant", tenant, "remaining_secrets", left+late)
	return nil
}
