package aggregates

import (
	"slices"

	"github.com/benbjohnson/immutable"
	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
)

// Use is how one flow uses a thing.
type Use struct {
	Revision uint64 `json:"r,omitzero"` // last known revision of the flow
	Named    bool   `json:"n,omitzero"` // a step of the flow names it
	Active   bool   `json:"a,omitzero"` // and the flow runs
	Binding  string `json:"b,omitzero"` // id of the reservation, "" for none
	Until    int64  `json:"u,omitzero"` // when the reservation expires: microseconds since 1970
}

// Holds reports whether the used thing must not be deleted.
func (u Use) Holds() bool { return u.Active || u.Binding != "" }

// Uses are the flows that use one thing. It is a value like every state: with
// returns another one that shares what did not change, so that folding an event
// costs the same with ten flows as with ten thousand.
type Uses struct {
	flows    *immutable.Map[string, Use] // nil when there are none
	held     int                         // how many of them hold
	reserved int                         // how many have a reservation
}

// Of returns the use by a flow.
func (u Uses) Of(flow string) (Use, bool) {
	if u.flows == nil {
		return Use{}, false
	}
	return u.flows.Get(flow)
}

// Len is the number of flows that use the thing.
func (u Uses) Len() int {
	if u.flows == nil {
		return 0
	}
	return u.flows.Len()
}

// Held reports whether a flow runs with the thing or has reserved it.
func (u Uses) Held() bool { return u.held > 0 }

// Holders are the ids of up to limit flows that hold the thing, ordered
// by id, and how many hold it in total.
func (u Uses) Holders(limit int) (first []string, total int) {
	u.each(func(flow string, use Use) {
		if !use.Holds() {
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
	return first, u.held
}

// Named are the ids of up to limit flows that name the thing in a step, ordered
// by id, and how many name it in total.
func (u Uses) Named(limit int) (first []string, total int) {
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

// Reservations are the uses of flows that have reserved the thing and do not run, by flow.
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
	if use.Holds() {
		u.held += by
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

// Equal reports whether the same flows use the thing in the same way.
func (u Uses) Equal(other Uses) bool {
	same := u.Len() == other.Len() && u.held == other.held
	u.each(func(flow string, use Use) {
		o, ok := other.Of(flow)
		same = same && ok && o == use
	})
	return same
}

// usesRow is one flow in a snapshot.
type usesRow struct {
	Flow string `json:"f"`
	Use
}

// MarshalJSON writes the uses into a snapshot.
func (u Uses) MarshalJSON() ([]byte, error) {
	rows := make([]usesRow, 0, u.Len())
	u.each(func(flow string, use Use) { rows = append(rows, usesRow{flow, use}) })
	return json.Marshal(rows)
}

// UnmarshalJSON reads the uses back from a snapshot.
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
