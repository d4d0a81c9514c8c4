package web_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/credstream/credstream/api/web"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/permission"
)

// endless is a service whose audit has no end.
type endless struct{ pages atomic.Int64 }

func (e *endless) Serve(_ context.Context, _ service.Call, route string, _ []byte) (any, error) {
	return admin.Replay{Events: []admin.ReplayedEvent{{Type: route}}, Next: uint64(e.pages.Add(1) + 1)}, nil
}

func (e *endless) Receive(context.Context, *service.Call, int64, func() ([]byte, error)) ([]byte, func(), error) {
	return nil, func() {}, nil
}

// revoked opens a session a few times, until its key is revoked.
type revoked struct {
	web.Access
	left int
}

func (r *revoked) OpenSession(context.Context, string, netip.Addr) (service.Principal, error) {
	if r.left--; r.left < 0 {
		return service.Principal{}, access.ErrSessionEnded
	}
	return service.Principal{Actor: events.Actor{Kind: "key", ID: "k"}, Home: "acme", Tenants: []string{"acme"}}, nil
}

func (*revoked) Require(context.Context, service.Call, string, permission.Permission) error {
	return nil
}

func TestAuditExportEndsWithItsSession(t *testing.T) {
	audit, sessions := &endless{}, &revoked{left: 4} // one for the request, three for pages
	server := httptest.NewServer(web.Handler(web.Config{Service: audit, Access: sessions, Live: admin.NewLive()}))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/ui/t/acme/audit/audit.ndjson", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.AddCookie(&http.Cookie{Name: "credstream-session", Value: "acme.x"})
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		_ = resp.Body.Close()
	}
	if got := audit.pages.Load(); err == nil || got != 3 {
		t.Errorf("%d pages, %v; want three, and an answer that breaks off", got, err)
	}
}
