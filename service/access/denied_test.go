package access_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/service/access"
)

var noon = time.Date(2030, 1, 2, 12, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }

// The first refusal of a caller on a route is told of at once, those of the next
// minute together at its end, and so on; what is quiet for a minute is forgotten.
func TestDenialsAreGathered(t *testing.T) {
	d := access.NewDenials()
	for i, now := range []bool{true, false, false} {
		if d.Note("k", "credential.get", "acme", at(i)) != now {
			t.Errorf("refusal %d is not treated as it should be", i)
		}
	}
	if !d.Note("k", "credential.list", "other", at(3)) || !d.Note("l", "credential.get", "other", at(3)) {
		t.Error("another route or another caller is not told of at once")
	}
	if d.Note("k", "credential.list", "other", at(4)) || d.Note("k", "credential.list", "third", at(5)) {
		t.Error("another tenant is told of at once")
	}
	if due := d.Due(at(59), false); len(due) > 0 {
		t.Errorf("before the minute is over: %v", due)
	}
	denial := func(route, tenant string, count, since int) commands.Denial {
		return commands.Denial{Principal: "key:k", Tenant: tenant, Route: route, Permission: "p", Count: count, Since: at(since)}
	}
	due := d.Due(at(60), false)
	if diff := cmp.Diff(map[string][]commands.Denial{"k": {denial("credential.get", "acme", 2, 1)}}, due); diff != "" {
		t.Errorf("when the minute is over (-want +got):\n%s", diff)
	}
	if d.Note("k", "credential.get", "acme", at(61)) {
		t.Error("a fact is written within a minute of the one before")
	}
	due = d.Due(at(63), false)
	if diff := cmp.Diff(map[string][]commands.Denial{"k": {denial("credential.list", "", 2, 4)}}, due); diff != "" {
		t.Errorf("of several tenants (-want +got):\n%s", diff)
	}
	d.GiveBack("k", due["k"])
	due = d.Due(at(64), true)
	if diff := cmp.Diff(2, len(due["k"])); diff != "" {
		t.Errorf("at the end all that is left (-want +got):\n%s%v", diff, due)
	}
	if due := d.Due(at(200), false); len(due) > 0 || d.Size() != 0 {
		t.Errorf("%v is due and %d callers are remembered after a quiet time", due, d.Size())
	}
	if !d.Note("k", "credential.get", "acme", at(201)) {
		t.Error("the first after a quiet time is not told of at once")
	}
}

// Neither one caller nor many fill the log or the memory.
func TestDenialsFlood(t *testing.T) {
	d := access.NewDenials()
	commits := 0
	const seconds = 120
	for s := range seconds {
		for n := range 2000 {
			if d.Note(fmt.Sprint("k", n), fmt.Sprint("route", s%40), "acme", at(s)) {
				commits++
			}
		}
		commits += len(d.Due(at(s), false))
	}
	if d.Size() > 1000 {
		t.Errorf("%d callers are remembered", d.Size())
	}
	if most := 100 + 20*seconds; commits > most || commits < 20*seconds/2 {
		t.Errorf("%d commits in %d seconds, at most %d are allowed", commits, seconds, most)
	}
	told := 0
	for _, list := range d.Due(at(seconds), true) {
		for _, one := range list {
			told += one.Count
		}
	}
	if told == 0 || d.Due(at(seconds), true)["k1"] != nil {
		t.Errorf("%d refusals are told of at the end", told)
	}
}
