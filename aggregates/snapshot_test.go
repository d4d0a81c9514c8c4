package aggregates_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
)

// unsoundSnapshots is a store whose snapshots are as the test wants them.
type unsoundSnapshots struct {
	events.Store
	snap events.Snapshot
	err  error
}

func (s unsoundSnapshots) Snapshot(context.Context, events.StreamID, int) (events.Snapshot, error) {
	return s.snap, s.err
}

// A snapshot is a convenience: one that cannot be reached or decoded is folded from the
// stream instead, and no part of it is taken over.
func TestSnapshotThatCannotBeUsedIsAMiss(t *testing.T) {
	store := memory.New(events.All())
	stream := aggregates.Credential.Stream("default", "c1")
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: "c", Time: time.Unix(1, 0), Via: "system"}
	seq, err := store.Append(t.Context(), stream, 0, meta, events.CredentialCreated{Name: "Pets", Component: "petstore", Keys: version(1, "s1")})
	if err != nil {
		t.Fatal(err)
	}
	for name, unsound := range map[string]unsoundSnapshots{
		"unreachable": {Store: store, err: errors.New("no responders")},
		"undecodable": {Store: store, snap: events.Snapshot{Seq: seq, Commit: "x", State: []byte(`{"name":"Orders","component":5}`)}},
	} {
		t.Run(name, func(t *testing.T) {
			log, err := aggregates.NewLog(unsound, 10)
			if err != nil {
				t.Fatal(err)
			}
			s, err := aggregates.Credential.Load(t.Context(), log, stream)
			if err != nil {
				t.Fatal(err)
			}
			if s.Seq != seq || s.Value.Component != "petstore" || s.Value.Name != "Pets" {
				t.Errorf("the state is %+v", s)
			}
		})
	}
}
