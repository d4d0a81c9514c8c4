package access

import (
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

// Denials lets a test look at the refusals that wait to be recorded.
type Denials struct{ d *denials }

// NewDenials makes an empty one.
func NewDenials() Denials { return Denials{newDenials(nil)} }

// Note takes a refusal of a key of the tenant acme in, and reports whether it is
// to be recorded at once.
func (d Denials) Note(id, route, tenant string, at time.Time) bool {
	return d.d.note(denialKey{"acme", events.Actor{Kind: "key", ID: id}},
		commands.Denial{Principal: "key:" + id, Route: route, Tenant: tenant, Permission: "p", Count: 1, Since: at})
}

// Due takes out what is to be recorded, by the id of the key.
func (d Denials) Due(now time.Time, all bool) map[string][]commands.Denial {
	list := map[string][]commands.Denial{}
	for who, due := range d.d.due(now, all) {
		list[who.actor.ID] = due
	}
	return list
}

// GiveBack returns what could not be recorded.
func (d Denials) GiveBack(id string, list []commands.Denial) {
	d.d.restore(denialKey{"acme", events.Actor{Kind: "key", ID: id}}, list)
}

// Size is the number of callers that are remembered.
func (d Denials) Size() int { return len(d.d.by) }
