package service_test

import (
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
)

// The follow-up of a commit leaves what a later commit dropped to that one's, which may
// have to tell a provider first.
func TestFollowUpsOfOneStream(t *testing.T) {
	s := newStage(t)
	id := s.create("canary")
	stream := aggregates.Credential.Stream("default", id)
	commit := func(facts ...events.Event) (seq uint64) {
		t.Helper()
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
		return must(s.store.Append(t.Context(), stream, must(s.store.Last(t.Context(), stream))(t), meta, facts...))(t)
	}
	replaced := commit(events.CredentialKeysReplaced{Keys: events.KeysVersion{Version: 2, SecretID: events.NewID(), Fields: []string{}, Revision: 1}})
	deleted := commit(events.CredentialDeleted{})
	for _, c := range []struct {
		seq  uint64
		left int
	}{{replaced, 1}, {deleted, 0}} {
		ok(t, s.svc.FollowUp(t.Context(), c.seq))
		if n := must(s.svc.Vaulted(t.Context(), id))(t); n != c.left {
			t.Errorf("after the follow-up of commit %d %d secrets are left, not %d", c.seq, n, c.left)
		}
	}
}
