package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// GetFlow asks for one flow.
type GetFlow struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the answer reflects this log sequence
}

// Flow is what the service knows of a flow.
type Flow struct {
	ID        string            `json:"id"`
	Name      string            `json:"name,omitzero"`
	Revision  uint64            `json:"revision"` // 0: the flow engine has told nothing yet
	Active    bool              `json:"active"`
	Broken    bool              `json:"broken"` // a step cannot use what it names
	Faults    []StepFault       `json:"faults,omitzero"`
	Steps     []events.FlowStep `json:"steps"`
	Binding   string            `json:"binding,omitzero"` // id of a reservation that stands
	Until     time.Time         `json:"until,omitzero"`   // when it ends by itself
	UpdatedAt time.Time         `json:"updated_at"`
	Seq       uint64            `json:"seq"` // log sequence of the last change
}

func (s *Service) getFlow(ctx context.Context, call *Call, in GetFlow) (Flow, error) {
	if err := checkFlow("/id", in.ID); err != nil {
		return Flow{}, err
	}
	if err := s.atLeast(ctx, in.MinSeq); err != nil {
		return Flow{}, err
	}
	f, found, err := s.cfg.Views.Flow(ctx, call.Tenant, in.ID)
	switch {
	case err != nil:
		return Flow{}, err
	case !found:
		return Flow{}, aggregates.ErrFlowNotFound
	}
	return flowInfo(f), nil
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

// ListFlows asks for flows. Filters combine by AND.
type ListFlows struct {
	Credential string `json:"credential,omitzero"` // those that name it, use it or have it reserved
	Component  string `json:"component,omitzero"`  // those that include it
	Active     bool   `json:"active,omitzero"`     // only active ones
	Broken     bool   `json:"broken,omitzero"`     // only those with a step that cannot use what it names
	Limit      int    `json:"limit,omitzero"`      // 1 to 200; 50 when absent
	After      string `json:"after,omitzero"`      // cursor of the page before, with the same filter
	MinSeq     uint64 `json:"min_seq,omitzero"`    // wait until the answer reflects this log sequence
}

// FlowList answers ListFlows.
type FlowList struct {
	Flows []Flow `json:"flows"`
	Next  string `json:"next,omitzero"` // cursor of the next page; absent on the last
}

func (s *Service) listFlows(ctx context.Context, call *Call, in ListFlows) (FlowList, error) {
	limit, err := pageSize(in.Limit)
	if err != nil {
		return FlowList{}, err
	}
	if err := s.atLeast(ctx, in.MinSeq); err != nil {
		return FlowList{}, err
	}
	page, next, err := s.cfg.Views.Flows(ctx, projections.FlowFilter{
		Tenant: call.Tenant, Credential: in.Credential, Component: in.Component, Active: in.Active, Broken: in.Broken,
		Limit: limit, After: in.After,
	})
	if err != nil {
		return FlowList{}, err
	}
	list := FlowList{Flows: make([]Flow, len(page)), Next: next}
	for i, f := range page {
		list.Flows[i] = flowInfo(f)
	}
	return list, nil
}

// ListInUse asks for the in-use index.
type ListInUse struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor of the page before
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the answer reflects this log sequence
}

// InUseList answers ListInUse.
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

func (s *Service) listInUse(ctx context.Context, call *Call, in ListInUse) (InUseList, error) {
	limit, err := pageSize(in.Limit)
	if err != nil {
		return InUseList{}, err
	}
	// Whoever listens to the index asks for what it held before: no older answer
	// than what another process may have written there already.
	end, err := s.cfg.Log.Store.End(ctx)
	if err != nil {
		return InUseList{}, err
	}
	if err := s.atLeast(ctx, max(end, in.MinSeq)); err != nil {
		return InUseList{}, err
	}
	page, next, err := s.cfg.Views.InUseList(ctx, call.Tenant, in.After, limit)
	if err != nil {
		return InUseList{}, err
	}
	list := InUseList{Entries: make([]InUseEntry, len(page)), Next: next}
	for i, e := range page {
		list.Entries[i] = InUseEntry{Kind: e.Kind, ID: e.ID, Value: e.Value}
	}
	return list, nil
}

// FlowRef names one flow for people and programs.
type FlowRef struct {
	ID       string    `json:"id"`
	Name     string    `json:"name,omitzero"`
	Active   bool      `json:"active"`
	Reserved bool      `json:"reserved,omitzero"` // it has a reservation
	Until    time.Time `json:"until,omitzero"`    // when the reservation ends by itself
}

// FlowRefs are the details of a refusal that flows cause.
type FlowRefs struct {
	Total int       `json:"total"` // of the flows; the list holds up to 100
	Flows []FlowRef `json:"flows"`
}

// list names the first flows for people.
func (refs FlowRefs) list() string {
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

// inUse names the flows that hold a credential in the refusal to delete it.
func (s *Service) inUse(ctx context.Context, call *Call, state aggregates.CredentialState) error {
	holders, total := state.Uses.Holders(flowsInDetail)
	refs := FlowRefs{Total: total, Flows: []FlowRef{}}
	names, err := s.cfg.Views.FlowNames(ctx, call.Tenant, holders)
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "names of flows", "err", err) // their ids have to do
	}
	for _, id := range holders {
		use, _ := state.Uses.Of(id)
		ref := FlowRef{ID: id, Name: names[id], Active: use.Active, Reserved: use.Binding != ""}
		if use.Until != 0 {
			ref.Until = time.UnixMicro(use.Until).UTC()
		}
		refs.Flows = append(refs.Flows, ref)
	}
	return aggregates.ErrCredentialInUse.Because("%s", sayInUse(refs)).With(refs)
}

// sayInUse names the first flows, and the remedy.
func sayInUse(refs FlowRefs) string {
	list := refs.list()
	flows := "in use by the active flow"
	active := slices.ContainsFunc(refs.Flows, func(f FlowRef) bool { return f.Active })
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
	// The last sentence is the contract's.
	return fmt.Sprintf("The credential is %s %s.%s Stop or delete these flows first, or give them another credential.", flows, list, release)
}

// expireHolders ends the reservations among what holds a credential whose time
// is over, so that a delete need not wait for the keeper. It reports whether there were some.
func (s *Service) expireHolders(ctx context.Context, call *Call, id string, state aggregates.CredentialState) (some bool, err error) {
	now := s.now().UnixMicro()
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

// Impact answers a dry run: what the command would do, without doing it.
type Impact struct {
	Allowed     bool                 `json:"allowed"`               // the command would be obeyed now
	Kind        fault.Kind           `json:"kind,omitzero"`         // of the refusal
	Code        string               `json:"code,omitzero"`         // why not
	Says        string               `json:"says"`                  // in a sentence
	Flows       []Flow               `json:"flows"`                 // that use it, up to 200
	TotalFlows  int                  `json:"total_flows"`           //
	ActiveFlows int                  `json:"active_flows"`          //
	Credentials int                  `json:"credentials,omitzero"`  // of a component: those of the tenant that remain
	Verified    *events.Verification `json:"verification,omitzero"` // what the dry request with the new keys found
}

// impact lists the flows behind a thing that is used.
func (s *Service) impact(ctx context.Context, call *Call, kind, id string) (*Impact, error) {
	filter := projections.FlowFilter{Tenant: call.Tenant, Credential: id, Limit: 200}
	if kind == aggregates.OAuthClient.Category {
		filter.Credential, filter.Component = "", id
	}
	if end, err := s.cfg.Log.Store.End(ctx); err != nil { // what was recorded before the question is in the answer
		return nil, err
	} else if err := s.atLeast(ctx, end); err != nil {
		return nil, err
	}
	page, _, err := s.cfg.Views.Flows(ctx, filter)
	if err != nil {
		return nil, err
	}
	i := &Impact{Allowed: true, Flows: make([]Flow, len(page))}
	for n, f := range page {
		i.Flows[n] = flowInfo(f)
	}
	i.TotalFlows, i.ActiveFlows, err = s.cfg.Views.CountNaming(ctx, call.Tenant, kind, id)
	i.TotalFlows = max(i.TotalFlows, len(page))
	return i, err
}

// refusedBy notes why the command would be refused.
func (i *Impact) refusedBy(err error) error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	i.Allowed, i.Kind, i.Code, i.Says = false, f.Kind, f.Code, f.Msg
	return nil
}

// tryDelete is the dry run of a delete.
func (s *Service) tryDelete(ctx context.Context, call *Call, in DeleteCredential) (Done, error) {
	if _, err := s.live(ctx, call.Tenant, in.ID, in.Expected); err != nil {
		return Done{}, err
	}
	state, err := aggregates.Credential.Fresh(ctx, s.cfg.Log, aggregates.Credential.Stream(call.Tenant, in.ID))
	if err != nil {
		return Done{}, err
	}
	i, err := s.impact(ctx, call, aggregates.Credential.Category, in.ID)
	if err != nil {
		return Done{}, err
	}
	if expired, err := s.expireHolders(ctx, call, in.ID, state.Value); err != nil {
		return Done{}, err
	} else if expired { // as the delete itself would do
		return s.tryDelete(ctx, call, in)
	}
	_, refusal := aggregates.Credential.Decide(state.Value, commands.DeleteCredential{ID: in.ID, Expected: in.Expected})
	switch {
	case errors.Is(refusal, aggregates.ErrCredentialInUse):
		err = i.refusedBy(s.inUse(ctx, call, state.Value))
	case refusal != nil:
		err = i.refusedBy(refusal)
	case i.TotalFlows > 0:
		i.Says = fmt.Sprintf("The credential would be deleted. %s could not start again.", countFlows(i.TotalFlows))
	default:
		i.Says = "The credential would be deleted. No flow uses it."
	}
	return Done{Seq: state.Seq, ID: in.ID, DryRun: i}, err
}

func countFlows(n int) string {
	if n == 1 {
		return "1 inactive flow that uses it"
	}
	return fmt.Sprintf("%d inactive flows that use it", n)
}

// tryReplaceKeys is the dry run of replacing keys: the dry request is made, and
// nothing is saved.
func (s *Service) tryReplaceKeys(ctx context.Context, call *Call, in ReplaceKeys, state aggregates.CredentialState, verified events.Verification, refusal error) (Done, error) {
	i, err := s.impact(ctx, call, aggregates.Credential.Category, in.ID)
	if err != nil {
		return Done{}, err
	}
	if verified.Status != "" {
		i.Verified = &verified
	}
	switch {
	case refusal != nil:
		err = i.refusedBy(refusal)
	case i.TotalFlows > 0:
		i.Says = fmt.Sprintf("The keys would become version %d, and the flows that use the credential would get them.", state.Current().Version+1)
	default:
		i.Says = fmt.Sprintf("The keys would become version %d. No flow uses the credential.", state.Current().Version+1)
	}
	return Done{Seq: s.cfg.Views.Position(), ID: in.ID, DryRun: i}, err
}

// tryDeleteComponent is the dry run of deleting a component.
func (s *Service) tryDeleteComponent(ctx context.Context, call *Call, id string) (Done, error) {
	if events.CheckName(id) != nil {
		return Done{}, aggregates.ErrComponentNotFound.At("/id")
	}
	state, err := aggregates.Component.Fresh(ctx, s.cfg.Log, aggregates.Component.Stream(events.System, id))
	if err != nil {
		return Done{}, err
	}
	i, err := s.impact(ctx, call, aggregates.OAuthClient.Category, id)
	if err != nil {
		return Done{}, err
	}
	counts, err := s.cfg.Views.CredentialCounts(ctx, call.Tenant, projections.CredentialFilter{Component: id})
	if err != nil {
		return Done{}, err
	}
	i.Credentials = perComponent(counts)[id]
	done := Done{Seq: state.Seq, ID: id, DryRun: i}
	if _, refusal := aggregates.Component.Decide(state.Value, commands.DeleteComponent{ID: id, Owner: call.Tenant}); refusal != nil {
		if errors.Is(refusal, aggregates.ErrComponentNotFound) {
			return Done{}, refusal
		}
		return done, i.refusedBy(refusal)
	}
	i.Says = fmt.Sprintf("The component would be deleted. Its credentials in your tenant (%d) would remain usable with the hosts and "+
		"probe of their recorded revision. New credentials, new keys and reverts would be refused, and an OAuth client "+
		"of the component would become unusable. Flows in your tenant that include it: %d.", i.Credentials, i.TotalFlows)
	return done, nil
}
