package secrets_test

import (
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service/stage"
)

// The follow-up of a commit leaves what a later commit dropped to that one's, which may
// have to tell a provider first.
func TestFollowUpsOfOneStream(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary")
	stream := aggregates.Credential.Stream("default", id)
	commit := func(facts ...events.Event) (seq uint64) {
		t.Helper()
		meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
		return stage.Must(s.Store.Append(t.Context(), stream, stage.Must(s.Store.Last(t.Context(), stream))(t), meta, facts...))(t)
	}
	replaced := commit(events.CredentialKeysReplaced{Keys: events.KeysVersion{Version: 2, SecretID: events.NewID(), Fields: []string{}, Revision: 1}})
	deleted := commit(events.CredentialDeleted{})
	for _, c := range []struct {
		seq  uint64
		left int
	}{{replaced, 1}, {deleted, 0}} {
		stage.OK(t, s.Service.Secrets.FollowUp(t.Context(), c.seq))
		if n := stage.Must(s.Service.Secrets.Vaulted(t.Context(), id))(t); n != c.left {
			t.Errorf("after the follow-up of commit %d %d secrets are left, not %d", c.seq, n, c.left)
		}
	}
}
