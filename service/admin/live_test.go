package admin_test

import (
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/admin"
)

// What is kept for those who wait is a whole end of the log: every public event from each
// sequence that it covers, also after older ones were dropped, and nothing across a gap.
func TestLiveKeepsTheEndOfTheLog(t *testing.T) {
	l := admin.NewLive()
	follower, err := l.Join("default", events.Actor{Kind: "key", ID: "a"}, "")
	if err != nil {
		t.Fatal(err)
	}
	commit := func(seq uint64) {
		var recs []events.Record
		for i := range 3 {
			recs = append(recs, events.Record{
				Stream: events.StreamID{Tenant: "default", Category: "credential", ID: "a"}, Seq: seq, Index: i, Of: 3,
				Meta: events.Meta{Tenant: "default"}, Event: events.CredentialRenamed{Name: "n"},
			})
		}
		l.Applied(recs)
	}
	check := func(first, last uint64) {
		t.Helper()
		covered := 0
		for from := first - 1; from <= last+1; from++ {
			got, end := l.Since(from)
			if end == 0 {
				continue
			}
			covered++
			if end != last || len(got) != int(3*(last-from+1)) || got[0] != [2]uint64{from, 0} {
				t.Fatalf("from %d: %d messages, up to %d", from, len(got), end)
			}
		}
		if covered < 300 || covers(l, first-1) || covers(l, last+1) {
			t.Fatalf("%d sequences covered", covered)
		}
	}
	for seq := uint64(7); seq <= 1500; seq++ {
		commit(seq)
	}
	check(7, 1500)
	for seq := uint64(2000); seq < 2400; seq++ { // the views were rebuilt meanwhile
		commit(seq)
	}
	check(2000, 2399)
	l.Leave(follower)
	commit(2400)
	if covers(l, 2399) || covers(l, 2400) {
		t.Error("something is kept for nobody")
	}
}

func covers(l *admin.Live, from uint64) bool {
	_, end := l.Since(from)
	return end != 0
}
