package aggregates

import (
	"slices"

	"github.com/benbjohnson/immutable"
	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/events"
)

// Use is how one flow stands to the thing it uses.
type Use struct {
	Revision uint64 `json:"r,omitzero"` // of the flow when it was last heard of
	Named    bool   `json:"n,omitzero"` // a step of the flow names it
	Active   bool   `json:"a,omitzero"` // and the flow runs
	Binding  string `json:"b,omitzero"` // id of a reservation, "" when none stands
	Until    int64  `json:"u,omitzero"` // when the reservation ends by itself: microseconds since 1970
}

// Holds reports whether what is used must not go away.
func (u Use) Holds() bool { return u.Active || u.Binding != "" }

// Uses are the flows that use one thing. It is a value like every state: with
// returns another one that shares what did not change, so that folding an event
// costs the same with ten flows and with ten thousand.
type Uses struct {
	flows    *immutable.Map[string, Use] // nil when there are none
	held     int                         // how many of them hold
	reserved int                         // how many have a reservation
}

// Of returns how a flow uses it.
func (u Uses) Of(flow string) (Use, bool) {
	if u.flows == nil {
		return Use{}, false
	}
	return u.flows.Get(flow)
}

// Len is the number of flows that use it.
func (u Uses) Len() int {
	if u.flows == nil {
		return 0
	}
	return u.flows.Len()
}

// Held reports whether a flow holds it: runs with it, or has reserved it.
func (u Uses) Held() bool { return u.held > 0 }

// Holders are the ids of up to limit of the flows that hold it, the first ones in
// the order of their ids, and how many hold it in all.
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

// Named are the ids of up to limit of the flows that name it in a step, the first
// ones in the order of their ids, and how many name it in all.
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

// Reservations are the flows that have reserved it and do not run, with how they stand to it.
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

// Equal reports whether the same flows use it in the same way.
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
