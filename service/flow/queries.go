package flow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
)

type Get struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// Flow is the last known state of a flow.
type Flow struct {
	ID        string            `json:"id"`
	Name      string            `json:"name,omitzero"`
	Revision  uint64            `json:"revision"` // 0: the flow engine has reported nothing yet
	Active    bool              `json:"active"`
	Broken    bool              `json:"broken"` // a step cannot use its credential or component
	Faults    []StepFault       `json:"faults,omitzero"`
	Steps     []events.FlowStep `json:"steps"`
	Binding   string            `json:"binding,omitzero"` // id of the current reservation
	Until     time.Time         `json:"until,omitzero"`   // when it expires
	UpdatedAt time.Time         `json:"updated_at"`
	Seq       uint64            `json:"seq"` // log sequence of the last change
}

func (s *Service) getFlow(ctx context.Context, call *service.Call, in Get) (Flow, error) {
	if err := CheckFlow("/id", in.ID); err != nil {
		return Flow{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Flow{}, err
	}
	f, found, err := s.Views.Flow(ctx, call.Tenant, in.ID)
	switch {
	case err != nil:
		return Flow{}, err
	case !found:
		return Flow{}, aggregates.ErrFlowNotFound
	}
	shown, err := s.visible(ctx, call, f)
	if err == nil && call.Principal.Scope.Narrow() && len(shown.Steps) == 0 {
		err = aggregates.ErrFlowNotFound
	}
	if err != nil {
		return Flow{}, err
	}
	return shown, nil
}

// visible is the flow as the caller may see it: a key that is restricted to some credentials sees
// only the steps that name one of these.
func (s *Service) visible(ctx context.Context, call *service.Call, f projections.Flow) (shown Flow, err error) {
	f.Steps, err = service.Reached(ctx, s.Kernel, call, f.Steps, func(step events.FlowStep) string { return step.Credential })
	if err == nil {
		f.Faults, err = service.Reached(ctx, s.Kernel, call, f.Faults, func(fault projections.FlowFault) string { return fault.Credential })
	}
	return flowInfo(f), err
}

func flowInfo(f projections.Flow) Flow {
	info := Flow{
		ID: f.ID, Name: f.Name, Revision: f.Revision, Active: f.Active, Broken: len(f.Faults) > 0, Steps: f.Steps,
		Binding: f.Binding, Until: f.Until, UpdatedAt: f.UpdatedAt, Seq: f.Seq,
	}
	if info.Steps == nil {
		info.Steps = []events.FlowStep{}
	}
	for _, fault := range f.Faults {
		info.Faults = append(info.Faults, StepFault(fault))
	}
	return info
}

// List requests flows. Filters combine by AND.
type List struct {
	Credential string `json:"credential,omitzero"` // those that name it, use it or have it reserved
	Component  string `json:"component,omitzero"`  // those that include it
	Active     bool   `json:"active,omitzero"`     // only active ones
	Broken     bool   `json:"broken,omitzero"`     // only those with a step that cannot use its credential or component
	Limit      int    `json:"limit,omitzero"`      // 1 to 200; 50 when absent
	After      string `json:"after,omitzero"`      // cursor of the previous page, with the same filter
	MinSeq     uint64 `json:"min_seq,omitzero"`    // wait until the response reflects this log sequence
}

type Page struct {
	Flows []Flow `json:"flows"`
	Next  string `json:"next,omitzero"` // cursor of the next page; absent on the last
}

func (s *Service) listFlows(ctx context.Context, call *service.Call, in List) (Page, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return Page{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Page{}, err
	}
	if in.Credential != "" {
		if reached, err := s.Kernel.Reaches(ctx, call, in.Credential); err != nil || !reached {
			return Page{Flows: []Flow{}}, err
		}
	}
	page, next, err := s.Views.Flows(ctx, projections.FlowFilter{
		Tenant: call.Tenant, Credential: in.Credential, Component: in.Component, Active: in.Active, Broken: in.Broken,
		Limit: limit, After: in.After, Scope: call.Principal.Scope,
	})
	if err != nil {
		return Page{}, err
	}
	list := Page{Flows: make([]Flow, 0, len(page)), Next: next}
	for _, f := range page {
		shown, err := s.visible(ctx, call, f)
		if err != nil {
			return Page{}, err
		}
		if !call.Principal.Scope.Narrow() || in.fits(shown) {
			list.Flows = append(list.Flows, shown)
		}
	}
	return list, nil
}

// fits reports whether what the caller may see of a flow matches the filter: a filter must not
// disclose steps outside the caller's scope.
func (in List) fits(shown Flow) bool {
	of := func(step events.FlowStep) bool { return step.Component == in.Component }
	return (in.Component == "" || slices.ContainsFunc(shown.Steps, of)) && (!in.Broken || shown.Broken)
}

type ListInUse struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

type InUseList struct {
	Entries []InUseEntry `json:"entries"`
	Next    string       `json:"next,omitzero"` // cursor of the next page; absent on the last
}

// InUseEntry is one key of the in-use index.
type InUseEntry struct {
	Kind  string            `json:"kind"` // "credential" or "oauth_client"
	ID    string            `json:"id"`   // of the credential, or of the component
	Value projections.InUse `json:"value"`
}

func (s *Service) listInUse(ctx context.Context, call *service.Call, in ListInUse) (InUseList, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return InUseList{}, err
	}
	// A subscriber of the index requests the earlier values: the response must not be older
	// than what another process may have written to the index already.
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return InUseList{}, err
	}
	if err := s.Kernel.AtLeast(ctx, max(end, in.MinSeq)); err != nil {
		return InUseList{}, err
	}
	page, next, err := s.Views.InUseList(ctx, call.Tenant, call.Principal.Scope, in.After, limit)
	if err != nil {
		return InUseList{}, err
	}
	list := InUseList{Entries: make([]InUseEntry, len(page)), Next: next}
	for i, e := range page {
		list.Entries[i] = InUseEntry{Kind: e.Kind, ID: e.ID, Value: e.Value}
	}
	return list, nil
}

// Ref names one flow for people and programs.
type Ref struct {
	ID       string    `json:"id"`
	Name     string    `json:"name,omitzero"`
	Active   bool      `json:"active"`
	Reserved bool      `json:"reserved,omitzero"` // it has a reservation
	Until    time.Time `json:"until,omitzero"`    // when the reservation expires
}

// Refs are the details of an error that flows cause.
type Refs struct {
	Total int   `json:"total"` // of the flows; the list holds up to 100
	Flows []Ref `json:"flows"`
}

// List names the first flows for people.
func (refs Refs) List() string {
	const named = 3
	var names []string
	for _, f := range refs.Flows[:min(len(refs.Flows), named)] {
		if f.Name != "" {
			names = append(names, fmt.Sprintf("%q (%s)", f.Name, f.ID))
		} else {
			names = append(names, f.ID)
		}
	}
	if refs.Total > named {
		return strings.Join(names, ", ") + fmt.Sprintf(" and %d more", refs.Total-named)
	}
	return strings.Join(names, ", ")
}

// InUse returns the error of deleting a credential in use, with the flows that prevent it.
func (s *Service) InUse(ctx context.Context, call *service.Call, state aggregates.CredentialState) error {
	holders, total := state.Uses.Blockers(FlowsInDetail)
	refs := Refs{Total: total, Flows: []Ref{}}
	names, err := s.Views.FlowNames(ctx, call.Tenant, holders)
	if err != nil {
		s.Logger.WarnContext(ctx, "cannot read the names of flows; showing their ids", "err", err)
	}
	for _, id := range holders {
		use, _ := state.Uses.Of(id)
		ref := Ref{ID: id, Name: names[id], Active: use.Active, Reserved: use.Binding != ""}
		if use.Until != 0 {
			ref.Until = time.UnixMicro(use.Until).UTC()
		}
		refs.Flows = append(refs.Flows, ref)
	}
	return aggregates.ErrCredentialInUse.Withf("%s", inUseSentence(refs)).With(refs)
}

// inUseSentence names the first flows, and the remedy.
func inUseSentence(refs Refs) string {
	list := refs.List()
	flows := "in use by the active flow"
	active := slices.ContainsFunc(refs.Flows, func(f Ref) bool { return f.Active })
	switch {
	case !active && refs.Total == 1:
		flows = "reserved for the flow"
	case !active:
		flows = "reserved for flows:"
	case refs.Total > 1:
		flows = "in use by active flows:"
	}
	release := ""
	if !active {
		release = fmt.Sprintf(" The reservation ends at %s or with flow.release.", refs.Flows[0].Until.Format(time.RFC3339))
	}
	// The wording of the last sentence is fixed: clients depend on it.
	return fmt.Sprintf("The credential is %s %s.%s Stop or delete these flows first, or give them another credential.", flows, list, release)
}

// ExpireHolders ends the expired reservations of a credential, so that a delete need not wait
// for the reconciler. It reports whether there were some.
func (s *Service) ExpireHolders(ctx context.Context, call *service.Call, id string, state aggregates.CredentialState) (some bool, err error) {
	now := s.Kernel.Now().UnixMicro()
	for flow, use := range state.Uses.Reservations() {
		if use.Until > now {
			continue
		}
		some = true
		if err := s.expire(ctx, call.Tenant, flow, id, use.Binding); err != nil {
			return some, err
		}
	}
	return some, nil
}

// Impact is the result of a dry run: what the command would do.
type Impact struct {
	Allowed     bool                 `json:"allowed"`       // the command would be accepted now
	Kind        fault.Kind           `json:"kind,omitzero"` // kind of the error with which it would fail
	Code        string               `json:"code,omitzero"` // error code
	Says        string               `json:"says"`          // a sentence
	Flows       []Flow               `json:"flows"`         // that use it, up to 200
	TotalFlows  int                  `json:"total_flows"`
	ActiveFlows int                  `json:"active_flows"`
	Credentials int                  `json:"credentials,omitzero"`  // of a component: those of the tenant that remain
	Verified    *events.Verification `json:"verification,omitzero"` // outcome of the dry request with the new keys
}

// Tried is the response to a command that supports a dry run.
type Tried struct {
	service.Done
	DryRun *Impact `json:"dry_run,omitzero"` // what would happen; nothing was changed
}

// Remember implements service.Result.
func (t Tried) Remember(*events.CommandCompleted) (service.Done, bool) {
	return t.Done, t.DryRun == nil
}

// RecallTried rebuilds the response of a command that supports a dry run.
func RecallTried(_ context.Context, _ *service.Call, done service.Done, _ events.CommandCompleted) (any, error) {
	return Tried{Done: done}, nil
}

// Impact lists the flows that use a credential or component.
func (s *Service) Impact(ctx context.Context, call *service.Call, kind, id string) (*Impact, error) {
	filter := projections.FlowFilter{Tenant: call.Tenant, Credential: id, Limit: 200}
	if kind == aggregates.OAuthClient.Category {
		filter.Credential, filter.Component = "", id
	}
	if end, err := s.Log.Store.End(ctx); err != nil { // the response includes everything recorded before the request
		return nil, err
	} else if err := s.Kernel.AtLeast(ctx, end); err != nil {
		return nil, err
	}
	page, _, err := s.Views.Flows(ctx, filter)
	if err != nil {
		return nil, err
	}
	i := &Impact{Allowed: true, Flows: make([]Flow, len(page))}
	for n, f := range page {
		if i.Flows[n], err = s.visible(ctx, call, f); err != nil {
			return nil, err
		}
	}
	i.TotalFlows, i.ActiveFlows, err = s.Views.CountNaming(ctx, call.Tenant, kind, id)
	i.TotalFlows = max(i.TotalFlows, len(page))
	return i, err
}

// RefusedBy sets the error with which the command would fail.
func (i *Impact) RefusedBy(err error) error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	i.Allowed, i.Kind, i.Code, i.Says = false, f.Kind, f.Code, f.Msg
	return nil
}
