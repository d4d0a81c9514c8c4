package flow

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// Bind requests the credentials of a flow that is about to start.
type Bind struct {
	Flow  string            `json:"flow"`
	Name  string            `json:"name,omitzero"` // display name
	Steps []events.FlowStep `json:"steps"`
	TTL   string            `json:"ttl,omitzero"` // how long the reservation lasts unless the flow starts: "10m" when absent
}

// bindFlow reserves every credential that the steps name, in the order of their
// ids, under one binding id; if one cannot be reserved, the others are released
// again. A process that crashes in between leaves reservations that expire.
func (s *Service) bindFlow(ctx context.Context, call *service.Call, in Bind) (service.Done, error) {
	cmd, err := s.binding(call, in)
	if err != nil {
		return service.Done{}, err
	}
	if cmd.AllowedCredentials, err = s.onlyReached(ctx, call, in.Flow, in.Steps); err != nil {
		return service.Done{}, err
	}
	if releases(call.Resumed()) {
		return s.resumeRelease(ctx, call)
	}
	// Report the faults of all steps, so check all before reserving any.
	refused, err := s.bindFaults(ctx, call.Tenant, in.Steps)
	if err != nil {
		return service.Done{}, err
	}
	if len(refused) > 0 {
		return service.Done{}, cannotBind(in.Steps, refused)
	}
	steps := byCredential(in.Steps)
	if len(steps) == 0 { // nothing to reserve; the previous reservation is released
		return s.endBinding(ctx, call, commands.ReleaseFlow{ID: cmd.ID, Reason: events.ReleasedOnRequest, AllowedCredentials: cmd.AllowedCredentials})
	}
	order := slices.Sorted(maps.Keys(steps))
	for n, credential := range order {
		step := call // the first step records the command id
		if n > 0 || call.Resumed() != nil {
			step = call.Step(n)
		}
		refused, err := s.reserve(ctx, step, cmd, credential, steps[credential])
		if err == nil && len(refused) > 0 { // it was deleted after the check
			err = cannotBind(in.Steps, refused)
		}
		if err != nil {
			s.abandonBinding(ctx, call, cmd, order[:n], err)
			return service.Done{}, err
		}
	}
	before, now, err := service.Execute(ctx, s.Kernel, call.Step(len(order)), aggregates.Flow, call.Tenant, commands.Flow(cmd))
	if err != nil {
		s.abandonBinding(ctx, call, cmd, order, err)
		return service.Done{}, err
	}
	if b := before.Binding; b.ID != "" && b.ID != cmd.Binding { // replaced by this one
		s.releaseReservations(ctx, call, cmd.ID, b.ID, slices.Sorted(maps.Keys(byCredential(b.Steps))))
	}
	if err := s.reconcileReservations(ctx, call, cmd.ID, now.Value.Binding); err != nil {
		return service.Done{}, err
	}
	return s.Kernel.Answered(aggregates.Flow.Stream(call.Tenant, cmd.ID), before, now.Value, now.Seq), nil
}

// reconcileReservations updates the credentials to the flow's current reservation, because a
// concurrent bind of the flow may have reserved some of them. The flow's own stream determines
// which reservation is current.
func (s *Service) reconcileReservations(ctx context.Context, call *service.Call, flow string, b aggregates.Binding) error {
	for {
		for credential, steps := range byCredential(b.Steps) {
			refused, err := s.reserve(ctx, call.Step(0), commands.BindFlow{ID: flow, Binding: b.ID, Until: b.Until}, credential, steps)
			if err == nil && len(refused) > 0 {
				err = cannotBind(b.Steps, refused)
			}
			if err != nil {
				return err
			}
		}
		now, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(call.Tenant, flow))
		switch {
		case err != nil || now.Value.Binding.ID == b.ID:
			return err
		case now.Value.Binding.ID == "": // it has started, or was released, meanwhile
			s.releaseReservations(ctx, call, flow, b.ID, slices.Sorted(maps.Keys(byCredential(b.Steps))))
			return nil
		}
		b = now.Value.Binding
	}
}

// binding checks the form of the request.
func (s *Service) binding(call *service.Call, in Bind) (cmd commands.BindFlow, err error) {
	if err := cmp.Or(commands.CheckRef("/flow", in.Flow), CheckFlow("/flow", in.Flow)); err != nil {
		return cmd, err
	}
	if in.Name != "" {
		if err := service.CheckName("/name", in.Name); err != nil {
			return cmd, err
		}
	}
	if len(in.Steps) == 0 {
		return cmd, service.ErrMissing.Withf("The flow's steps are required.").At("/steps")
	}
	if err := checkSteps(in.Steps); err != nil {
		return cmd, err
	}
	ttl := defaultTTL
	if in.TTL != "" {
		if ttl, err = time.ParseDuration(in.TTL); err != nil || ttl < shortestTTL || ttl > longestTTL {
			return cmd, ErrTTL.At("/ttl")
		}
	}
	return commands.BindFlow{
		ID: in.Flow, Binding: call.DeriveID("binding/" + in.Flow),
		Name: in.Name, Steps: in.Steps, Until: s.Kernel.Now().Add(ttl).UTC().Truncate(time.Microsecond),
	}, nil
}

// CheckFlow rejects an invalid id of a flow or of a step.
func CheckFlow(pointer, id string) error {
	if err := service.Required(pointer, id); err != nil {
		return err
	}
	return service.PointAt(events.CheckID(id), pointer)
}

func (s *Service) reserve(ctx context.Context, call *service.Call, bind commands.BindFlow, credential string, steps []events.FlowStep) ([]events.FlowUseRefused, error) {
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.Credential, call.Tenant, commands.Credential(commands.ReserveCredential{
		ID: credential, Flow: bind.ID, Binding: bind.Binding, Steps: steps, Until: bind.Until,
	}))
	return mismatched(0, steps, state.Value, err)
}

// abandonBinding releases the credentials of a binding that failed permanently. If another
// process executed the same command meanwhile, it keeps the reservation, which belongs to that
// process.
func (s *Service) abandonBinding(ctx context.Context, call *service.Call, bind commands.BindFlow, credentials []string, failed error) {
	if _, repeated := errors.AsType[*service.Repeat](failed); repeated || !service.IsRejected(failed) {
		return
	}
	now, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(call.Tenant, bind.ID))
	if err != nil || now.Value.Binding.ID == bind.Binding {
		return
	}
	s.releaseReservations(ctx, call, bind.ID, bind.Binding, credentials)
}

// releaseReservations releases a reservation on the credentials and returns the last sequence
// of a release. After a failure the reservation expires.
func (s *Service) releaseReservations(ctx context.Context, call *service.Call, flow, binding string, credentials []string) (last uint64) {
	// With an id of its own, so that it does not count as a repeat of the command.
	call = call.Step(0)
	for _, credential := range credentials {
		seq, err := s.release(ctx, call, commands.ReleaseCredential{ID: credential, Flow: flow, Binding: binding})
		last = max(last, seq)
		if err != nil {
			s.Logger.WarnContext(ctx, "reservation not released; it will expire", "tenant", call.Tenant, "credential", credential, "binding", binding, "err", err)
		}
	}
	return last
}

// bindFaults lists the steps that cannot use their credential or component.
func (s *Service) bindFaults(ctx context.Context, tenant string, steps []events.FlowStep) ([]events.FlowUseRefused, error) {
	needs := map[string]need{}
	for component := range componentsOf(steps) {
		n, err := s.componentNeed(ctx, tenant, component)
		if err != nil {
			return nil, err
		}
		needs[component] = n
	}
	free, err := s.freeTypes(ctx, tenant, steps, needs)
	if err != nil {
		return nil, err
	}
	refused := componentFaults(0, steps, needs, free)
	for credential, its := range byCredential(steps) {
		state, err := aggregates.Credential.Fresh(ctx, s.Log, aggregates.Credential.Stream(tenant, credential))
		if err != nil {
			return nil, err
		}
		missing := error(nil)
		if !state.Value.Live() {
			missing = aggregates.ErrCredentialNotFound
		}
		more, err := mismatched(0, its, state.Value, missing)
		if err != nil {
			return nil, err
		}
		refused = append(refused, more...)
	}
	return inOrder(steps, refused), nil
}

// cannotBind returns an error with every step that cannot use its credential or component. If
// all have the same fault, the error has its code.
func cannotBind(steps []events.FlowStep, refused []events.FlowUseRefused) error {
	refused = inOrder(steps, refused)
	err := ErrFlowCannotBind
	first := refused[0].Reason
	if !slices.ContainsFunc(refused, func(r events.FlowUseRefused) bool { return r.Reason != first }) {
		for _, known := range []*fault.Error{ErrCredentialRequired, aggregates.ErrCredentialComponentMismatch} {
			if known.Code == first {
				err = known
			}
		}
	}
	return err.Withf("Nothing was reserved. %s", refusedSentence(refused)).With(stepFaults(refused))
}

type Release struct {
	Flow    string `json:"flow"`
	Binding string `json:"binding,omitzero"` // only this one; the current one when absent
}

func (s *Service) releaseFlow(ctx context.Context, call *service.Call, in Release) (done service.Done, err error) {
	defer func() { err = hideFlow(err, "/flow") }()
	if err := CheckFlow("/flow", in.Flow); err != nil {
		return service.Done{}, err
	}
	if releases(call.Resumed()) {
		return s.resumeRelease(ctx, call)
	}
	only, err := s.onlyReached(ctx, call, in.Flow, nil)
	if err != nil {
		return service.Done{}, err
	}
	state, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(call.Tenant, in.Flow))
	switch now := state.Value.Binding.ID; {
	case err != nil:
		return service.Done{}, err
	case state.Seq == 0:
		return service.Done{}, aggregates.ErrFlowNotFound.At("/flow")
	case in.Binding != "" && now != "" && now != in.Binding:
		return service.Done{}, aggregates.ErrFlowNotBound.Withf("The flow has no reservation %s; its reservation is %s.", in.Binding, now).At("/binding")
	}
	return s.endBinding(ctx, call, commands.ReleaseFlow{ID: in.Flow, Binding: in.Binding, Reason: events.ReleasedOnRequest, AllowedCredentials: only})
}

// hideFlow returns aggregates.ErrFlowNotFound instead of service.ErrScopeExceeded, wherever it was
// detected: a key that is bound to some credentials is not told of flows that use others.
func hideFlow(err error, pointer string) error {
	if errors.Is(err, service.ErrScopeExceeded) {
		return aggregates.ErrFlowNotFound.At(pointer)
	}
	return err
}

// endBinding ends a reservation: on the flow's stream, then on each credential's.
func (s *Service) endBinding(ctx context.Context, call *service.Call, cmd commands.ReleaseFlow) (service.Done, error) {
	was, now, err := service.Execute(ctx, s.Kernel, call, aggregates.Flow, call.Tenant, commands.Flow(cmd))
	if err != nil {
		return service.Done{}, err
	}
	if b := was.Binding; b.ID != "" && now.Value.Binding.ID != b.ID {
		return s.afterRelease(ctx, call, cmd.ID, b, now.Seq), nil
	}
	return service.Done{Seq: now.Seq, ID: cmd.ID}, nil
}

// afterRelease releases the credentials of a reservation that ended at seq.
func (s *Service) afterRelease(ctx context.Context, call *service.Call, flow string, b aggregates.Binding, seq uint64) service.Done {
	call.Unfinished()
	last := s.releaseReservations(ctx, call, flow, b.ID, slices.Sorted(maps.Keys(byCredential(b.Steps))))
	return service.Done{Seq: max(seq, last), ID: flow, Binding: b.ID}
}

// releases reports whether a commit ends a reservation, whose credentials are then
// released.
func releases(recs []events.Record) bool {
	return slices.ContainsFunc(recs, func(r events.Record) bool { _, is := r.Event.(events.FlowReleased); return is })
}

// resumeRelease completes a release of an earlier attempt.
func (s *Service) resumeRelease(ctx context.Context, call *service.Call) (service.Done, error) {
	recs := call.Resumed()
	before, _, err := aggregates.Flow.Around(ctx, s.Log, recs)
	if err != nil {
		return service.Done{}, err
	}
	return s.afterRelease(ctx, call, recs[0].Stream.ID, before.Binding, recs[0].Seq), nil
}

// reconcileEvery is the interval of RunFlowReconciler.
const reconcileEvery = time.Second

// RunFlowReconciler ends the expired reservations, and completes what a
// crash interrupted between a flow and what it uses, until ctx ends. One process
// of an installation must run it; two do no harm.
func (s *Service) RunFlowReconciler(ctx context.Context) error {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		if err := s.ReconcileFlows(ctx); err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "reconciliation of flows stopped early", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ReconcileFlows is one round of RunFlowReconciler.
func (s *Service) ReconcileFlows(ctx context.Context) error {
	if s.Kernel.WritesAllowed() != nil {
		return nil
	}
	var errs []error
	if s.ClocksAgree == nil || s.ClocksAgree() == nil { // else the expiry was set by a differing clock
		expired, err := s.Views.ExpiredBindings(ctx, s.Kernel.Now(), service.BackgroundBatch)
		errs = append(errs, err)
		for _, use := range expired {
			errs = append(errs, s.expire(ctx, use.Tenant, use.Flow, use.ID, use.Binding))
		}
	}
	stale, err := s.Views.StaleUses(ctx, service.BackgroundBatch)
	errs = append(errs, err)
	for _, use := range stale {
		call := service.System(use.Tenant, "flow-keeper")
		if use.Kind == aggregates.OAuthClient.Category {
			errs = append(errs, s.changeClientUse(ctx, call, commands.ReleaseOAuthClient{Component: use.ID, Flow: use.Flow, Revision: use.Revision}))
			continue
		}
		errs = append(errs, s.changeUse(ctx, call, commands.ReleaseCredential{ID: use.ID, Flow: use.Flow, Revision: use.Revision}))
	}
	unsettled, err := s.Views.UnsettledFlows(ctx, service.BackgroundBatch)
	errs = append(errs, err)
	for _, flow := range unsettled {
		errs = append(errs, s.reconcile(ctx, flow.Tenant, flow.Flow))
	}
	return errors.Join(append(errs, s.Clients.MarkClients(ctx), s.Clients.ReconcileAuthClients(ctx))...)
}

// reconcile applies the recorded state of a flow to what it uses.
func (s *Service) reconcile(ctx context.Context, tenant, flow string) error {
	call := service.System(tenant, "flow-keeper")
	state, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(tenant, flow))
	if err != nil {
		return err
	}
	_, err = s.reconcileUses(ctx, call, flow, state.Value, state.Value)
	return err
}

// expire ends one expired reservation. It names the binding, so it
// cannot end one that a start has confirmed or another reservation has replaced.
func (s *Service) expire(ctx context.Context, tenant, flow, credential, binding string) error {
	call := service.System(tenant, "flow-keeper")
	_, err := s.endBinding(ctx, call, commands.ReleaseFlow{ID: flow, Binding: binding, Reason: events.ReleasedByExpiry})
	if err != nil {
		return err
	}
	return s.changeUse(ctx, call, commands.ReleaseCredential{ID: credential, Flow: flow, Binding: binding})
}
