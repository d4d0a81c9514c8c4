package access_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/stage"
)

// A session is its key's: it lives no longer, and is used from no other address.
func TestSession(t *testing.T) {
	s := stage.New(t)
	inside, outside := netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("192.0.2.1")
	key := s.Key("default", `{"role":"OPERATOR","addresses":["10.0.0.0/8"]}`)
	sealed, p, err := s.Service.Access.StartSession(t.Context(), key, inside)
	stage.OK(t, err)
	if strings.Contains(sealed, key) || strings.Contains(sealed, p.Actor.ID) {
		t.Error("the session shows its key")
	}
	open := func(sealed string, from netip.Addr) string {
		t.Helper()
		opened, err := s.Service.Access.OpenSession(t.Context(), sealed, from)
		if err == nil && opened.Actor.ID != p.Actor.ID {
			t.Errorf("the session is that of %s", opened.Actor.ID)
		}
		return stage.CodeOf(err)
	}
	is := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	ended := access.ErrSessionEnded.Code
	is("from an allowed address", open(sealed, inside), "")
	is("from another address", open(sealed, outside), ended)
	is("in the name of another tenant", open("other"+strings.TrimPrefix(sealed, "default"), inside), ended)
	is("changed", open(sealed[:len(sealed)-4]+"AAAA", inside), ended)
	is("nothing", open("", inside), ended)
	is("too long", open(sealed+strings.Repeat("A", 2000), inside), ended)
	_, _, err = s.Service.Access.StartSession(t.Context(), key, outside)
	is("a start from another address", stage.CodeOf(err), "api_key_unknown")

	s.Skew.Store(int64(access.SessionLife - time.Minute))
	is("a minute before its end", open(sealed, inside), "")
	s.Skew.Store(int64(access.SessionLife + time.Minute))
	is("after its end", open(sealed, inside), ended)
	s.Skew.Store(0)

	s.Do("default", "api_key.revoke", `{"id":"`+p.Actor.ID+`"}`)
	s.CaughtUp()
	is("of a revoked key", open(sealed, inside), ended)
}
