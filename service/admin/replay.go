package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
)

// ReplayEvents requests the tenant's events in log order. Filters
// combine by AND.
type ReplayEvents struct {
	From   uint64    `json:"from,omitzero"`   // first log sequence; 1 when absent
	To     uint64    `json:"to,omitzero"`     // last log sequence; the end of the log when absent
	Stream string    `json:"stream,omitzero"` // "credential.<id>"
	Type   string    `json:"type,omitzero"`   // "credential.created"
	Actor  string    `json:"actor,omitzero"`  // "key:<id>", "user:<id>" or "system:<name>"
	Since  time.Time `json:"since,omitzero"`  // events of this time or later (RFC 3339)
	Until  time.Time `json:"until,omitzero"`  // events before this time (RFC 3339)
	// Component selects events of this component, of its credentials and of its OAuth client.
	Component string `json:"component,omitzero"`
	// Flow selects events of this flow, and those that name it.
	Flow string `json:"flow,omitzero"`
	// Complete adds an event credstream.withheld.v1 for each part of the log that is not returned: an
	// internal event of the tenant, with its type, or a range of commits of other tenants. So every log
	// sequence and index is accounted for. Only without the other filters, except from and to.
	Complete bool `json:"complete,omitzero"`
	Limit    int  `json:"limit,omitzero"` // 1 to 1000; 200 when absent
}

// replayTypes are the types of events that can be replayed, and replayCategories those of their
// streams.
var replayTypes, replayCategories = func() (map[string]bool, map[string]bool) {
	types, categories := map[string]bool{}, map[string]bool{}
	for _, t := range events.All().Types() {
		if t.Audience != events.Internal {
			types[t.Name] = true
			category, _, _ := strings.Cut(t.Name, ".")
			categories[category] = true
		}
	}
	return types, categories
}()

// Check refuses filters that cannot match.
func (in ReplayEvents) Check() error {
	name := strings.TrimSuffix(strings.TrimPrefix(in.Type, "credstream."), ".v1")
	category, id, _ := strings.Cut(in.Stream, ".")
	switch {
	case in.Type != "" && (!replayTypes[name] || in.Type != name && in.Type != "credstream."+name+".v1"):
		return service.ErrFilter.Withf("There are no events of this type. The reference lists the types, such as credential.created.").At("/type")
	case in.Stream != "" && (!replayCategories[category] || events.CheckID(id) != nil):
		return service.ErrFilter.Withf("A stream is written <category>.<id>, such as credential.<id>; the categories are the first parts of the types.").At("/stream")
	case in.Component != "" && !events.Plain(in.Component):
		return service.ErrFilter.Withf("No component can have this id.").At("/component")
	case in.Complete && (in.Stream+in.Type+in.Actor+in.Component+in.Flow != "" || !in.Since.IsZero() || !in.Until.IsZero()):
		return service.ErrFilter.Withf("A complete replay has no filters except from and to.").At("/complete")
	}
	return errors.Join(service.CheckActor(in.Actor), service.CheckPeriod(in.Since, in.Until), service.CheckFilterID("flow", in.Flow))
}

// EventChanges requests the tenant's changes from a log sequence on, in log order.
type EventChanges struct {
	From  uint64 `json:"from,omitzero"`  // first log sequence; 1 when absent
	Limit int    `json:"limit,omitzero"` // 1 to 1000; 200 when absent
}

// eventChanges returns the feed's events from before a follower subscribed: every caller
// that may follow the feed may use it.
func (s *Service) eventChanges(ctx context.Context, call *service.Call, in EventChanges) (Replay, error) {
	return s.replay(ctx, call, ReplayEvents{From: in.From, Limit: in.Limit}, func(m projections.Message) bool { return m.Audience == events.Changes })
}

func (s *Service) replayEvents(ctx context.Context, call *service.Call, in ReplayEvents) (Replay, error) {
	return s.replay(ctx, call, in, func(projections.Message) bool { return true })
}

// replay reads a page of the tenant's events that the caller may read. A key that is restricted
// to some credentials gets only their events.
func (s *Service) replay(ctx context.Context, call *service.Call, in ReplayEvents, may func(projections.Message) bool) (Replay, error) {
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return Replay{}, err
	}
	if in.From == 0 {
		in.From = 1
	}
	if in.Limit == 0 {
		in.Limit = 200
	}
	switch {
	case in.Complete && call.Principal.Scope.Narrow(): // most of the log is outside its scope
		return Replay{}, service.ErrScopeTenantWide
	case in.Limit < 0 || in.Limit > 1000:
		return Replay{}, service.ErrLimit.Withf("A page holds 1 to 1000 events.").At("/limit")
	case in.To != 0 && in.To < in.From:
		return Replay{}, service.ErrRange.At("/to")
	case in.To == 0 || in.To > end:
		in.To = end
	}
	r := Replay{Events: []ReplayedEvent{}, End: end}
	if in.From > in.To {
		return r, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	items, to := s.items(ctx, in)
	seen, at := 0, uint64(0)
	var others *withheld
	for it, err := range items {
		if err != nil {
			return r, fmt.Errorf("replay from %d: %w", in.From, err)
		}
		// A page ends between two commits.
		if it.seq != at && (len(r.Events) >= in.Limit || seen >= replayScan) {
			r.Next = it.seq
			return r, nil
		}
		at = it.seq
		seen++
		if in.Complete && (!it.public || it.m.Tenant != call.Tenant) {
			others = r.withhold(call.Tenant, it, others)
			continue
		}
		if !it.public || !may(it.m) || !in.wants(call.Tenant, it.m) {
			continue
		}
		if ofComponent, err := s.ofComponent(ctx, in.Component, it.m); err != nil || !ofComponent {
			if err != nil {
				return r, err
			}
			continue
		}
		reached, err := s.reaches(ctx, call, it.m.EventSubject)
		if err != nil {
			return r, err
		}
		if reached {
			r.Events, others = append(r.Events, replayed(it.m)), nil
		}
	}
	if to < in.To {
		r.Next = to + 1
	}
	return r, ctx.Err()
}

// withheldType is the type of the events that stand for what is not returned.
const withheldType = "credstream.withheld.v1"

// withheld is the data of such an event.
type withheld struct {
	Reason string `json:"reason"`        // "internal" or "other_tenants"
	Type   string `json:"type,omitzero"` // of an internal event
	From   uint64 `json:"from,omitzero"` // first log sequence of other tenants' commits
	To     uint64 `json:"to,omitzero"`   // last one
}

// withhold adds what stands for an event that is not returned. others is the last event of the
// page, if it stands for commits of other tenants; otherwise nil. It returns the new one.
func (r *Replay) withhold(tenant string, it item, others *withheld) *withheld {
	data := withheld{Reason: "internal", Type: it.name}
	if it.tenant != tenant {
		data = withheld{Reason: "other_tenants", From: it.seq, To: it.seq}
		if others != nil {
			others.To = it.seq
			r.Events[len(r.Events)-1].Data, _ = json.Marshal(others) // a struct of numbers and constants
			return others
		}
	}
	e := ReplayedEvent{
		SpecVersion: "1.0", ID: fmt.Sprintf("withheld-%d-%d", it.seq, it.index), Source: "/credstream/" + tenant, Type: withheldType,
		DataContentType: "application/json", Tenant: tenant, LogSeq: it.seq, LogIndex: it.index,
	}
	if it.tenant == tenant {
		e.Time = it.time
	}
	e.Data, _ = json.Marshal(data)
	r.Events = append(r.Events, e)
	if data.To == 0 {
		return nil
	}
	return &data
}

// ofComponent reports whether an event is of the component, of one of its credentials or of its
// OAuth client; "" is any.
func (s *Service) ofComponent(ctx context.Context, component string, m projections.Message) (bool, error) {
	category, id, _ := strings.Cut(m.EventSubject, ".")
	switch {
	case component == "":
		return true, nil
	case category == aggregates.Component.Category, category == aggregates.OAuthClient.Category:
		return id == component, nil
	case category != aggregates.Credential.Category:
		return false, nil
	}
	// A credential never changes its component, so any state of it decides.
	state, err := aggregates.Credential.Load(ctx, s.Log, aggregates.Credential.Stream(m.Tenant, id))
	return state.Value.Component == component, err
}

// item is one event of the log, with its message if it is public.
type item struct {
	seq    uint64
	index  int
	tenant string
	name   string // stored name of the event, if it is not public
	time   time.Time
	m      projections.Message
	public bool
}

var registry = events.All()

// items returns the events of a part of the log, and the sequence with which they end. The latest
// ones come from memory if somebody waits for events, because all who wait read them together:
// then they may end before the part does.
func (s *Service) items(ctx context.Context, in ReplayEvents) (items iter.Seq2[item, error], end uint64) {
	from, to := in.From, in.To
	if messages, last := s.Live.since(from); last > 0 && !in.Complete {
		to = min(to, last)
		return func(yield func(item, error) bool) {
			for _, m := range messages {
				if m.LogSeq > to || !yield(item{seq: m.LogSeq, m: m, public: true}, nil) {
					return
				}
			}
		}, to
	}
	return func(yield func(item, error) bool) {
		for rec, err := range s.Log.Store.Follow(ctx, from-1) {
			if err != nil {
				yield(item{}, err)
				return
			}
			if rec.Seq > to {
				return
			}
			it := item{seq: rec.Seq, index: rec.Index, tenant: rec.Meta.Tenant, time: rec.Meta.Time.UTC()}
			if it.m, it.public = projections.Public(rec); !it.public {
				t, _ := registry.TypeOf(rec.Event)
				it.name = t.Name
			}
			if !yield(it, nil) || rec.Seq == to && rec.Last() {
				return
			}
		}
	}, to
}

func (s *Service) reaches(ctx context.Context, call *service.Call, subject string) (bool, error) {
	category, id, _ := strings.Cut(subject, ".")
	if category != aggregates.Credential.Category {
		return !call.Principal.Scope.Narrow(), nil
	}
	return s.Kernel.Reaches(ctx, call, id)
}

func (in ReplayEvents) wants(tenant string, m projections.Message) bool {
	return m.Tenant == tenant &&
		(in.Stream == "" || in.Stream == m.EventSubject) &&
		(in.Type == "" || in.Type == m.StoredName() || in.Type == m.Type) &&
		(in.Actor == "" || in.Actor == m.Actor) &&
		!m.Time.Before(in.Since) && (in.Until.IsZero() || m.Time.Before(in.Until)) &&
		(in.Flow == "" || names(m, in.Flow))
}

// names reports whether an event is of the flow or names it.
func names(m projections.Message, flow string) bool {
	if m.EventSubject == aggregates.Flow.Category+"."+flow {
		return true
	}
	if !bytes.Contains(m.Data, []byte(`"flow`)) { // most events
		return false
	}
	var data struct {
		Flow  string         `json:"flow"`
		Flows jsontext.Value `json:"flows"`
	}
	if json.Unmarshal(m.Data, &data) != nil {
		return false
	}
	var flows []string
	_ = json.Unmarshal(data.Flows, &flows) // another type names no flow
	return data.Flow == flow || slices.Contains(flows, flow)
}

// Replay is a page of ReplayEvents or EventChanges. It may hold fewer events than the limit, or
// none, and still have a next one.
type Replay struct {
	Events []ReplayedEvent `json:"events"`
	Next   uint64          `json:"next,omitzero"` // from of the next page; absent at the end
	End    uint64          `json:"end"`           // the last commit of the log when the page was read
}

// ReplayedEvent is a CloudEvent in JSON form (CloudEvents 1.0, JSON format).
type ReplayedEvent struct {
	SpecVersion     string         `json:"specversion"`
	ID              string         `json:"id"`
	Source          string         `json:"source"`
	Type            string         `json:"type"`
	Subject         string         `json:"subject,omitzero"` // absent for credstream.withheld.v1, like the actor and the ids of the command
	Time            time.Time      `json:"time,omitzero"`
	DataContentType string         `json:"datacontenttype"`
	Tenant          string         `json:"tenant"`
	Actor           string         `json:"actor,omitzero"`
	CommandID       string         `json:"commandid,omitzero"`
	CorrelationID   string         `json:"correlationid,omitzero"`
	CausationID     string         `json:"causationid,omitzero"`
	LogSeq          uint64         `json:"logseq"`
	LogIndex        int            `json:"logindex"`
	Data            jsontext.Value `json:"data"`
}

// replayScan bounds the records that one page scans.
const replayScan = 20_000

func replayed(m projections.Message) ReplayedEvent {
	return ReplayedEvent{
		SpecVersion: "1.0", ID: m.ID, Source: m.Source, Type: m.Type, Subject: m.EventSubject, Time: m.Time,
		DataContentType: "application/json", Tenant: m.Tenant, Actor: m.Actor, CommandID: m.CommandID,
		CorrelationID: m.CorrelationID, CausationID: m.CausationID,
		LogSeq: m.LogSeq, LogIndex: m.LogIndex, Data: jsontext.Value(m.Data),
	}
}
