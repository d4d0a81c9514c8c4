package app

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth/oauthtest"
)

// A credential is connected again in place at each step of a revocation, or revoked at
// each step of a connection before the tokens are saved. The tokens of the new grant stay
// in force, and the provider is not told that they are over.
func TestReconnectBesideARevocation(t *testing.T) {
	provider := oauthtest.NewServer(t)
	told := newRevoker(t, nil)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, told.in)
	s := u.second(t, u.claims(t))
	s.ready(t)
	var between atomic.Pointer[func()] // at the provider, while it is told
	told.then(func(_ int, _ http.ResponseWriter, r *http.Request) {
		provider.Withdraw(r.PostForm.Get("token"))
		if do := between.Swap(nil); do != nil {
			(*do)()
		}
	})
	survives := func(where, id string) {
		t.Helper()
		refresh := refreshTokenOf(t, u, id)
		state := u.tokens(t, id)
		if !provider.Live(refresh) || slices.Contains(told.tokens(), refresh) || state.RevokedLocally || state.ReauthReason != "" {
			t.Errorf("%s: the new grant is good: %v, told: %v, and it is %+v", where, provider.Live(refresh), slices.Contains(told.tokens(), refresh), state)
		}
	}
	var link connectLink
	var confirm string
	returned := func() (id string) {
		id, _ = u.connected(t, provider, "sheets")
		link = u.start(t, map[string]any{"credential": id})
		confirm = newBrowser(t).through(link.URL).confirm()
		return id
	}
	connect := func() {
		if _, err := u.complete(link.ID, confirm, ""); err != nil {
			t.Errorf("the connection answers %v", err)
		}
	}
	for n := range 4 { // at the nth append of the revocation, or at the provider
		for _, stored := range []bool{false, true} {
			id := returned()
			appends := 0
			at := func(now bool) {
				if now && appends == n {
					s.store.before, s.store.after = nil, nil
					connect()
				}
			}
			if n == 0 {
				between.Store(&connect)
			} else {
				s.store.before = func(events.StreamID) { appends++; at(!stored) }
				s.store.after = func(events.StreamID, uint64) { at(stored) }
			}
			where := fmt.Sprintf("connected at append %d of the revocation, stored: %v", n, stored)
			if _, err := s.command(t.Context(), t, "credential.revoke", "", map[string]any{"id": id}); err != nil {
				t.Errorf("%s: the revocation answers %v", where, err)
			}
			s.store.before, s.store.after = nil, nil
			done := func() (bool, error) { return u.connection(t, link.ID).Stage == "done", nil }
			if n == 0 {
				await(t, where, done)
			} else if reached, _ := done(); !reached { // the process manager was faster
				if n == 1 {
					t.Errorf("%s: that was not reached", where)
				}
				connect()
			}
			survives(where, id)
		}
	}

	// The revocation broke off when it had begun, and is repeated when the credential is
	// connected again.
	id := returned()
	dead := s.deaths(1, true)
	go func() {
		_, _ = s.command(context.WithoutCancel(t.Context()), t, "credential.revoke", "broken-off", map[string]any{"id": id})
	}()
	<-dead
	s.store.before, s.store.after = nil, nil
	connect()
	must(t, u.command("credential.revoke", "broken-off", map[string]any{"id": id}, nil))
	survives("a revocation that broke off and came again", id)

	for _, where := range []string{"before the code is redeemed", "when it is redeemed", "before the tokens are saved"} {
		id := returned()
		done := false
		now := func() {
			if !done {
				done = true
				must(t, u.command("credential.revoke", "", map[string]any{"id": id}, nil))
			}
		}
		switch where {
		case "before the code is redeemed":
			provider.Before(func(*http.Request) { now() })
		case "when it is redeemed":
			provider.After(func(*http.Request) { now() })
		default:
			s.store.before = func(events.StreamID) { now() }
		}
		if _, err := s.command(t.Context(), t, "oauth.complete", "", map[string]any{"connection": link.ID, "confirm": confirm}); err != nil || !done {
			t.Errorf("revoked %s: the connection answers %v", where, err)
		}
		provider.Before(nil)
		provider.After(nil)
		s.store.before = nil
		survives("revoked "+where, id)
	}
}
