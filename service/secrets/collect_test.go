package secrets_test

import (
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/stage"
)

// A round of the collector goes on where the one before ended, at the first secret that was
// too young. What became an orphan behind that is found by a round over all.
func TestCollectorGoesOn(t *testing.T) {
	s := stage.New(t)
	// The credential of a process that ended between a commit and the erasing.
	orphan := func() string {
		t.Helper()
		id := s.Create("canary")
		stream := aggregates.Credential.Stream("default", id)
		last := stage.Must(s.Store.Last(t.Context(), stream))(t)
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
		stage.Must(s.Store.Append(t.Context(), stream, last, meta, events.CredentialDeleted{}))(t)
		return id
	}
	collect := func(age time.Duration, from uint64, want int) (next uint64) {
		t.Helper()
		erased, next, err := s.Service.Secrets.CollectFrom(t.Context(), age, from)
		if err != nil || erased != want {
			t.Fatalf("from %d: erased %d, %v; want %d", from, erased, err, want)
		}
		return next
	}
	s.Create("kept")
	old := orphan()
	young := collect(time.Hour, 1, 0)
	if young != 1 {
		t.Fatalf("a round that found everything too young ends before %d", young)
	}
	looked := collect(0, young, 1)
	if n := stage.Must(s.Service.Secrets.Vaulted(t.Context(), old))(t); n != 0 {
		t.Errorf("%d secrets of the orphan are left", n)
	}
	id := s.Create("kept")
	after := collect(0, looked, 0)
	stream := aggregates.Credential.Stream("default", id)
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
	stage.Must(s.Store.Append(t.Context(), stream, stage.Must(s.Store.Last(t.Context(), stream))(t), meta, events.CredentialDeleted{}))(t)
	orphan()
	collect(0, after, 1) // the new one alone
	collect(0, 1, 1)     // and the old one
	collect(0, 1, 0)
}
