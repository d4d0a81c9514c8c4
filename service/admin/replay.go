package admin

import (
	"context"
	"fmt"
	"time"

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
	Actor  string    `json:"actor,omitzero"`  // "key:<id>"
	Since  time.Time `json:"since,omitzero"`  // events of this time or later (RFC 3339)
	Limit  int       `json:"limit,omitzero"`  // 1 to 1000; 200 when absent
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
	seen := 0
	for rec, err := range s.Log.Store.Follow(ctx, in.From-1) {
		if err != nil {
			return r, fmt.Errorf("replay from %d: %w", in.From, err)
		}
		if rec.Seq > in.To {
			return r, nil
		}
		// A page ends between two commits.
		if rec.Index == 0 && (len(r.Events) >= in.Limit || seen >= replayScan) {
			r.Next = rec.Seq
			return r, nil
		}
		seen++
		if m, public := projections.Public(rec); public && may(m) && in.wants(call.Tenant, rec, m) {
			reached, err := s.reaches(ctx, call, rec.Stream)
			if err != nil {
				return r, err
			}
			if reached {
				r.Events = append(r.Events, replayed(rec, m))
			}
		}
		if rec.Seq == in.To && rec.Last() {
			return r, nil
		}
	}
	return r, ctx.Err()
}

func (s *Service) reaches(ctx context.Context, call *service.Call, stream events.StreamID) (bool, error) {
	if stream.Category != aggregates.Credential.Category {
		return !call.Principal.Scope.Narrow(), nil
	}
	return s.Kernel.Reaches(ctx, call, stream.ID)
}

func (in ReplayEvents) wants(tenant string, rec events.Record, m projections.Message) bool {
	return rec.Meta.Tenant == tenant &&
		(in.Stream == "" || in.Stream == rec.Stream.String()) &&
		(in.Type == "" || in.Type == m.StoredName() || in.Type == m.Type) &&
		(in.Actor == "" || in.Actor == rec.Meta.Actor.Kind+":"+rec.Meta.Actor.ID) &&
		!rec.Meta.Time.Before(in.Since)
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
	Subject         string         `json:"subject"`
	Time            time.Time      `json:"time"`
	DataContentType string         `json:"datacontenttype"`
	Tenant          string         `json:"tenant"`
	Actor           string         `json:"actor"`
	CommandID       string         `json:"commandid"`
	CorrelationID   string         `json:"correlationid"`
	CausationID     string         `json:"causationid,omitzero"`
	LogSeq          uint64         `json:"logseq"`
	LogIndex        int            `json:"logindex"`
	Data            jsontext.Value `json:"data"`
}

// replayScan bounds the records that one page scans.
const replayScan = 20_000

func replayed(rec events.Record, m projections.Message) ReplayedEvent {
	return ReplayedEvent{
		SpecVersion: "1.0", ID: m.ID, Source: m.Source, Type: m.Type, Subject: m.EventSubject, Time: rec.Meta.Time,
		DataContentType: "application/json", Tenant: rec.Meta.Tenant,
		Actor: rec.Meta.Actor.Kind + ":" + rec.Meta.Actor.ID, CommandID: rec.Meta.Command,
		CorrelationID: rec.Meta.Correlation, CausationID: rec.Meta.Causation,
		LogSeq: rec.Seq, LogIndex: rec.Index, Data: jsontext.Value(m.Data),
	}
}
