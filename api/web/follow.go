package web

import (
	"fmt"
	"net/http"
	"time"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// ErrPagesOpen refuses to send updates to another page. The page works without them.
var ErrPagesOpen = fault.New(fault.Unavailable, "web_pages_open", "Too many open pages receive updates. This page does not update automatically: reload it.")

const (
	keepAlive = 20 * time.Second       // between two keep-alive lines, each after a check of the session
	pause     = 250 * time.Millisecond // between two change events of a page
)

// follow sends server-sent events (HTML Living Standard, section 9.2): "change" when something on
// the page changed, and "end" when the session ends. It sends the kind of a change, never its
// content: the page then reads again with the permissions of its caller.
func (x *exchange) follow() error {
	x.Quiet = true
	if err := x.cfg.Access.Require(x.R.Context(), x.call, "events.changes", permission.CredentialsGet); err != nil {
		return err
	}
	if x.call.Principal.Scope.Narrow() { // a change event does not name its credential
		return service.ErrScopeTenantWide
	}
	f, err := x.cfg.Live.Join(x.call.Tenant, x.call.Principal.Actor, x.R.URL.Query().Get("of"))
	if err != nil {
		return ErrPagesOpen
	}
	defer x.cfg.Live.Leave(f)
	out := http.NewResponseController(x.W)
	send := func(text string) bool {
		// The write timeout applies to each line, because the response never ends.
		if out.SetWriteDeadline(time.Now().Add(keepAlive)) != nil {
			return false
		}
		_, err := fmt.Fprint(x.W, text)
		return err == nil && out.Flush() == nil
	}
	if err := out.SetReadDeadline(time.Time{}); err != nil { // the deadline of the request would end the response
		return err
	}
	x.W.Header().Set("Content-Type", "text/event-stream")
	x.W.Header().Set("X-Accel-Buffering", "no")
	x.End(http.StatusOK)
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for open := send("retry: 2000\nevent: open\ndata:\n\n"); open; {
		select {
		case <-x.R.Context().Done():
			return nil
		case <-f.End:
			return nil
		case <-f.Change:
			open = send("event: change\ndata:\n\n")
			select {
			case <-x.R.Context().Done():
				return nil
			case <-time.After(pause):
			}
		case <-f.Look:
			open = x.stillSignedIn(send)
		case <-tick.C:
			open = x.stillSignedIn(send)
		}
	}
	return nil
}

// stillSignedIn checks the session, and sends "end" if it has ended.
func (x *exchange) stillSignedIn(send func(string) bool) bool {
	if _, err := x.session(); err != nil && fault.Of(err).Kind == fault.Unauthenticated {
		send("event: end\ndata:\n\n")
		return false
	}
	return send(": still here\n\n")
}
