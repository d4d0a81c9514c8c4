package aggregates

import (
	"slices"

	"github.com/benbjohnson/immutable"
	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
)

// Use is one flow's use of a resource (a credential or an OAuth client).
type Use struct {
	Revision uint64 `json:"r,omitzero"` // last known revision of the flow
	Named    bool   `json:"n,omitzero"` // a step of the flow names the resource
	Active   bool   `json:"a,omitzero"` // a step names it and the flow is active
	Binding  string `json:"b,omitzero"` // id of the reservation; "" if there is none
	Until    int64  `json:"u,omitzero"` // expiry of the reservation: microseconds since 1970
}

// BlocksDelete reports whether the use prevents the deletion of the resource.
func (u Use) BlocksDelete() bool { return u.Active || u.Binding != "" }

// Uses are the flows that use one resource. Uses is immutable: with() and without() return a
// modified copy that shares structure, so that an event costs the same with ten flows as with
// ten thousand.
type Uses struct {
	flows    *immutable.Map[string, Use] // nil if there are none
	blocking int                         // number of uses that prevent a deletion
	reserved int                         // number of uses with a reservation
}

func (u Uses) Of(flow string) (Use, bool) {
	if u.flows == nil {
		return Use{}, false
	}
	return u.flows.Get(flow)
}

// Len returns the number of flows that use the resource.
func (u Uses) Len() int {
	if u.flows == nil {
		return 0
	}
	return u.flows.Len()
}

// Blocked reports whether an active flow uses the resource, or a flow has reserved it.
func (u Uses) Blocked() bool { return u.blocking > 0 }

// Blockers returns the ids of up to limit flows that prevent the deletion, sorted, and their
// total number.
func (u Uses) Blockers(limit int) (first []string, total int) {
	u.each(func(flow string, use Use) {
		if !use.BlocksDelete() {
			return
		}
		at, _ := slices.BinarySearch(first, flow)
		if at == limit {
			return
		}
		if len(first) == limit {
			first = first[:limit-1]
		}
		first = slices.Insert(first, at, flow)
	})
	return first, u.blocking
}

// NamedFlows returns the ids of up to limit flows whose steps name the resource, sorted, and
// their total number.
func (u Uses) NamedFlows(limit int) (first []string, total int) {
	first = []string{}
	u.each(func(flow string, use Use) {
		if !use.Named {
			return
		}
		total++
		first = append(first, flow)
	})
	slices.Sort(first)
	return first[:min(limit, total)], total
}

// Reservations returns the uses with a reservation whose flow is not active, by flow.
func (u Uses) Reservations() map[string]Use {
	if u.reserved == 0 {
		return nil
	}
	all := make(map[string]Use, u.reserved)
	u.each(func(flow string, use Use) {
		if use.Binding != "" && !use.Active {
			all[flow] = use
		}
	})
	return all
}

func (u Uses) each(f func(flow string, use Use)) {
	if u.flows == nil {
		return
	}
	for it := u.flows.Iterator(); ; {
		flow, use, ok := it.Next()
		if !ok {
			return
		}
		f(flow, use)
	}
}

func (u Uses) evolve(e events.CredentialUse) Uses {
	switch e := e.(type) {
	case events.CredentialUsed:
		use := Use{Revision: e.Revision, Named: e.Named, Active: e.Active, Binding: e.Binding}
		if !e.Until.IsZero() {
			use.Until = e.Until.UnixMicro()
		}
		return u.with(e.Flow, use)
	case events.CredentialReleased:
		return u.without(e.Flow)
	}
	return u
}

func (u Uses) with(flow string, use Use) Uses {
	u = u.without(flow)
	if u.flows == nil {
		u.flows = immutable.NewMap[string, Use](nil)
	}
	u.flows = u.flows.Set(flow, use)
	return u.count(use, 1)
}

func (u Uses) count(use Use, by int) Uses {
	if use.BlocksDelete() {
		u.blocking += by
	}
	if use.Binding != "" {
		u.reserved += by
	}
	return u
}

func (u Uses) without(flow string) Uses {
	was, ok := u.Of(flow)
	if !ok {
		return u
	}
	u.flows = u.flows.Delete(flow)
	return u.count(was, -1)
}

// Equal reports whether the same flows use the resource in the same way.
func (u Uses) Equal(other Uses) bool {
	same := u.Len() == other.Len() && u.blocking == other.blocking
	u.each(func(flow string, use Use) {
		o, ok := other.Of(flow)
		same = same && ok && o == use
	})
	return same
}

// usesRow is one use in a snapshot.
type usesRow struct {
	Flow string `json:"f"`
	Use
}

// MarshalJSON encodes the uses for a snapshot.
func (u Uses) MarshalJSON() ([]byte, error) {
	rows := make([]usesRow, 0, u.Len())
	u.each(func(flow string, use Use) { rows = append(rows, usesRow{flow, use}) })
	return json.Marshal(rows)
}

// UnmarshalJSON decodes the uses of a snapshot.
func (u *Uses) UnmarshalJSON(b []byte) error {
	var rows []usesRow
	if err := json.Unmarshal(b, &rows); err != nil {
		return err
	}
	*u = Uses{}
	if len(rows) == 0 {
		return nil
	}
	flows := immutable.NewMapBuilder[string, Use](nil)
	for _, r := range rows {
		flows.Set(r.Flow, r.Use)
		*u = u.count(r.Use, 1)
	}
	u.flows = flows.Map()
	return nil
}
