package web

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// ErrPagesOpen refuses to send updates to another page. The page works without them.
var ErrPagesOpen = fault.New(fault.Unavailable, "web_pages_open", "Too many open pages receive updates. This page does not update automatically: reload it.")

const (
	maxFollowers = 2000
	maxOfOneKey  = 100
	keepAlive    = 20 * time.Second       // between two keep-alive lines, each after a check of the session
	pause        = 250 * time.Millisecond // between two change events of a page
)

// Live notifies open pages of changes: it sends the kind of a change, never its content. The page
// then reads again with the permissions of its caller. It is safe for concurrent use.
type Live struct {
	mu        sync.Mutex
	followers map[*follower]struct{}
	ofKey     map[string]int // followers by API key
	closed    bool
}

type follower struct {
	tenant string
	key    string        // id of the API key
	of     string        // categories, separated by spaces
	change chan struct{} // holds one signal: a page that lags reads once
	look   chan struct{} // signals that the session may have ended
	end    chan struct{}
}

// NewLive returns a Live without followers.
func NewLive() *Live {
	return &Live{followers: map[*follower]struct{}{}, ofKey: map[string]int{}}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Changed notifies the pages that show a category of the tenant. It does not block.
func (l *Live) Changed(tenant, category string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f := range l.followers {
		if category == "api_key" {
			signal(f.look)
		}
		if f.tenant == tenant && strings.Contains(f.of, " "+category+" ") {
			signal(f.change)
		}
	}
}

// Close disconnects every follower, because the service stops.
func (l *Live) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for f := range l.followers {
		close(f.end)
		delete(l.followers, f)
	}
}

func (l *Live) add(f *follower) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.followers) >= maxFollowers || l.ofKey[f.key] >= maxOfOneKey {
		return ErrPagesOpen
	}
	l.followers[f] = struct{}{}
	l.ofKey[f.key]++
	return nil
}

func (l *Live) drop(f *follower) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.followers, f)
	if l.ofKey[f.key]--; l.ofKey[f.key] <= 0 {
		delete(l.ofKey, f.key)
	}
}

// follow sends server-sent events (HTML Living Standard, section 9.2): "change" when something on
// the page changed, and "end" when the session ends.
func (x *exchange) follow() error {
	x.Quiet = true
	if err := x.cfg.Access.Require(x.R.Context(), x.call, "events.changes", permission.CredentialsGet); err != nil {
		return err
	}
	if x.call.Principal.Scope.Narrow() { // a change event does not name its credential
		return service.ErrScopeTenantWide
	}
	f := &follower{
		tenant: x.call.Tenant, key: x.call.Principal.Actor.ID, of: " " + x.R.URL.Query().Get("of") + " ",
		change: make(chan struct{}, 1), look: make(chan struct{}, 1), end: make(chan struct{}),
	}
	if err := x.cfg.Live.add(f); err != nil {
		return err
	}
	defer x.cfg.Live.drop(f)
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
		case <-f.end:
			return nil
		case <-f.change:
			open = send("event: change\ndata:\n\n")
			select {
			case <-x.R.Context().Done():
				return nil
			case <-time.After(pause):
			}
		case <-f.look:
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
