package web_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/credstream/credstream/api/web"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/permission"
)

// signedIn opens every session as the key of its value.
type signedIn struct {
	web.Access
	scope events.Scope
}

func (s signedIn) OpenSession(_ context.Context, key string, _ netip.Addr) (service.Principal, error) {
	return service.Principal{Actor: events.Actor{Kind: "key", ID: key}, Home: "acme", Tenants: []string{"acme"}, Scope: s.scope}, nil
}

func (signedIn) Require(context.Context, service.Call, string, permission.Permission) error {
	return nil
}

// following starts a server, and returns how it answers one more page of a key.
func following(t *testing.T, sessions signedIn) func(key string) (status int, leave func()) {
	live := admin.NewLive()
	server := httptest.NewServer(web.Handler(web.Config{Service: &endless{}, Access: sessions, Live: live}))
	t.Cleanup(server.Close)
	t.Cleanup(live.Close)
	return func(key string) (int, func()) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL+"/ui/t/acme/events?of=credential", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.AddCookie(&http.Cookie{Name: "credstream-session", Value: key})
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		leave := func() { _ = resp.Body.Close() }
		t.Cleanup(leave)
		return resp.StatusCode, leave
	}
}

func TestOneKeyDoesNotTakeAllPages(t *testing.T) {
	follow := following(t, signedIn{})
	var leave func()
	for range 100 {
		var status int
		if status, leave = follow("one"); status != http.StatusOK {
			t.Fatal(status)
		}
	}
	if status, _ := follow("one"); status != http.StatusServiceUnavailable {
		t.Errorf("the 101st page of one key: %d", status)
	}
	if status, _ := follow("other"); status != http.StatusOK {
		t.Errorf("a page of another key: %d", status)
	}
	leave()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		status, _ := follow("one")
		if status == http.StatusOK {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after one was closed: %d", status)
		}
	}
}

func TestBoundKeysDoNotFollow(t *testing.T) {
	follow := following(t, signedIn{scope: events.Scope{Credentials: []string{"a"}}})
	if status, _ := follow("bound"); status != http.StatusForbidden {
		t.Errorf("%d", status)
	}
}
