package connect

import "testing"

// Of two calls of this process that begin at once, the one that loses ends first. The
// connection is not abandoned then: its code must not be sent again.
func TestRedeemedByTheOther(t *testing.T) {
	r := redeemings{own: map[string]int{}, others: map[string]sighting{}}
	s, c := &Service{Deps: Deps{SingleInstance: true}}, connection{id: "c"}
	wins, loses := r.begin(c.id), r.begin(c.id)
	loses()
	if r.abandoned(s, c) {
		t.Error("it is abandoned while one call redeems its code")
	}
	wins()
	if !r.abandoned(s, c) {
		t.Error("it is not abandoned when both have ended")
	}
}
