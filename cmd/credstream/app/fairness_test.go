package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/connect"
)

// Each new lease is a fact that is kept for long, so it costs a command; within a
// lease it is a query.
func TestNewLeaseCountsAsACommand(t *testing.T) {
	u := bring(t, t.TempDir(), func(c *Config) { c.RatePerKey = 2 })
	registerPlain(t, u.base)
	id := u.create(t)
	engine := u.as(u.engine(t))
	flow := func(n int) string { return fmt.Sprintf("cleartext=true&id=%s&flow=f%d", id, n) }
	before, given := u.factCount(t), 0
	var err error
	for ; given < 100 && err == nil; given++ { // four at once, two a second: no machine is that slow
		err = engine.query("credential.resolve", flow(given), nil)
	}
	if code(t, err) != "rate_limited" {
		t.Fatalf("after %d: %v", given, err)
	}
	given--
	for range 10 {
		must(t, engine.query("credential.resolve", flow(0), nil))
	}
	if facts := u.factCount(t) - before; facts != uint64(given) {
		t.Errorf("%d facts of %d leases", facts, given)
	}
}

// A page of another site has a browser that remembers a key resolve nothing.
func TestResolveFromAnotherSite(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	id, key, before := u.create(t), u.engine(t), u.factCount(t)
	ask := func(header, value string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", u.base+"/v1/tenants/default/credential.resolve?cleartext=true&id="+id, nil)
		must(t, err)
		req.SetBasicAuth("x", key)
		req.Header.Set(header, value)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for _, foreign := range [][2]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example.org"}} {
		if status := ask(foreign[0], foreign[1]); status != 403 {
			t.Errorf("%s: %d", foreign, status)
		}
	}
	if facts := u.factCount(t) - before; facts != 0 {
		t.Errorf("%d facts", facts)
	}
	if status := ask("Sec-Fetch-Site", "same-origin"); status != 200 {
		t.Errorf("of our own: %d", status)
	}
}

// A page of another site has a browser reveal nothing over /v2, nor does a HEAD, and
// no record says that somebody was shown a secret.
func TestRevealFromAnotherSite(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	id := u.create(t)
	var issued struct{ Key string }
	must(t, u.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR", "permissions": []string{"credentials.reveal"}}, &issued))
	ask := func(method, header, value string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, u.base+"/v2/credentials/"+id+"?reveal=true", nil)
		must(t, err)
		req.SetBasicAuth("x", issued.Key)
		req.Header.Set("X-Request-Id", "mine-1")
		req.Header.Set(header, value)
		resp, err := http.DefaultClient.Do(req)
		must(t, err)
		_ = resp.Body.Close()
		if got := resp.Header.Get("X-Request-Id"); got != "mine-1" {
			t.Errorf("%s: the request is called %q", method, got)
		}
		return resp
	}
	revealed := func() (n int) {
		t.Helper()
		var page struct{ Events []struct{ Type string } }
		must(t, u.query("events.replay", "type=credential.revealed", &page))
		return len(page.Events)
	}
	for _, foreign := range [][2]string{{"Sec-Fetch-Site", "cross-site"}, {"Sec-Fetch-Site", "same-site"}, {"Origin", "https://evil.example.org"}} {
		for _, method := range []string{"GET", "HEAD"} {
			if resp := ask(method, foreign[0], foreign[1]); resp.StatusCode != 403 {
				t.Errorf("%s, %s: %d", method, foreign, resp.StatusCode)
			}
		}
	}
	if resp := ask("HEAD", "Sec-Fetch-Site", "same-origin"); resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET" {
		t.Errorf("HEAD: %d, Allow %q", resp.StatusCode, resp.Header.Get("Allow"))
	}
	if n := revealed(); n != 0 {
		t.Errorf("%d records", n)
	}
	if resp := ask("GET", "Sec-Fetch-Site", "same-origin"); resp.StatusCode != 200 || revealed() != 1 {
		t.Errorf("of our own: %d, %d records", resp.StatusCode, revealed())
	}
}

// A tenant that starts connections without end has a thousand of them.
func TestConnectionsLimit(t *testing.T) {
	u := connectable(t, oauthtest.NewServer(t))
	var ahead atomic.Int64 // of the clock, as the rate of starts has it
	svc, _ := u.besides(t, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) })
	for n := range 1000 {
		ahead.Add(int64(time.Second / 20))
		if err := serveBy(t.Context(), svc, "oauth.connect", map[string]any{"component": "sheets"}); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
	}
	ahead.Add(int64(time.Second))
	err := serveBy(t.Context(), svc, "oauth.connect", map[string]any{"component": "sheets"})
	if !errors.Is(err, connect.ErrConnectionsLimit) {
		t.Errorf("one more: %v", err)
	}
	ahead.Add(int64(10 * time.Minute))
	must(t, serveBy(t.Context(), svc, "oauth.connect", map[string]any{"component": "sheets"}))
}

// heldConnections are connections whose look-ups take as long as a test wants.
type heldConnections struct {
	connect.Connections
	open     chan struct{} // closed: they take no time
	now, max atomic.Int64  // look-ups under way
}

func (h *heldConnections) Get(ctx context.Context, id string) ([]byte, uint64, bool, error) {
	n := h.now.Add(1)
	defer h.now.Add(-1)
	for most := h.max.Load(); n > most && !h.max.CompareAndSwap(most, n); most = h.max.Load() {
	}
	<-h.open
	return h.Connections.Get(ctx, id)
}

// Browsers have no key. Those of one address that guess links hold no more than one
// share of a process, and beyond a line they are refused; keys are served beside them.
func TestBrowsersAreAdmitted(t *testing.T) {
	u := connectable(t, oauthtest.NewServer(t))
	held := &heldConnections{open: make(chan struct{})}
	svc, _ := u.besides(t, nil, func(c *application.Config) {
		held.Connections, c.Connections, c.Admission = c.Connections, held, admission.New(1, nil)
	})
	none := func(string) (string, string) { return "", "" }
	var all sync.WaitGroup
	var refused atomic.Int64
	const share, line, more = 8, 256, 36
	for n := range share + line + more {
		all.Go(func() {
			secret, err := events.NewID()+".x", error(nil)
			if n%2 == 0 {
				_, err = svc.Connects.OpenLink(t.Context(), secret, netip.MustParseAddr("192.0.2.1"), none)
			} else {
				_, err = svc.Connects.ReturnConnection(t.Context(), connect.Callback{Query: "code=x&state=" + secret, From: netip.MustParseAddr("192.0.2.1"), Browser: none})
			}
			if errors.Is(err, admission.ErrBusy) {
				refused.Add(1)
			} else if !errors.Is(err, connect.ErrLinkUnknown) && !errors.Is(err, connect.ErrStateUnknown) {
				t.Error(err)
			}
		})
	}
	await(t, "refusals", func() (bool, error) { return refused.Load() >= more, nil })
	must(t, serveBy(t.Context(), svc, "component.list", struct{}{}))
	close(held.open)
	all.Wait()
	if most := held.max.Load(); most > share {
		t.Errorf("%d look-ups at one time", most)
	}
}

// A tenant with too many calls under way has its browsers wait with it, and theirs
// alone. A link that is refused for that is not used up.
func TestBrowsersOfABusyTenant(t *testing.T) {
	u := connectable(t, oauthtest.NewServer(t))
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, nil))
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	other := u.api
	other.tenant = "other"
	must(t, other.command("oauth_client.define", "", map[string]any{
		"component": "sheets", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret,
	}, nil))
	a := admission.New(1, nil)
	_, server := u.besides(t, nil, func(c *application.Config) { c.Admission = a })
	at := func(address string) string { return strings.Replace(address, u.publicURL, server.URL, 1) }
	opened, callback := u.start(t, nil), newBrowser(t)
	returns := at(callback.toCallback(at(opened.URL)))
	var passes []*admission.Pass
	for n := 0; ; n++ {
		p, err := a.Reserve(admission.Caller{Tenant: "default", Key: fmt.Sprint(n % 5)}, admission.Request, 0)
		if err != nil {
			break
		}
		passes = append(passes, p)
	}
	link := u.start(t, nil)
	b := newBrowser(t)
	if s := b.get(at(link.URL)); s.status != http.StatusTooManyRequests {
		t.Errorf("a link of the busy tenant: %d", s.status)
	}
	if s := callback.get(returns); s.status != http.StatusTooManyRequests {
		t.Errorf("a return of the busy tenant: %d", s.status)
	}
	if s := newBrowser(t).get(at(other.start(t, nil).URL)); s.status != http.StatusFound {
		t.Errorf("a link of the other tenant: %d %s", s.status, s.body)
	}
	for _, p := range passes {
		p.Leave()
	}
	if s := b.get(at(link.URL)); s.status != http.StatusFound {
		t.Errorf("the link later: %d", s.status)
	}
	if s := callback.get(returns); s.status != http.StatusOK {
		t.Errorf("the return later: %d", s.status)
	}
}

// A provider that does not confirm keeps nobody from giving up the tokens of others.
func TestSickProviderKeepsNoOtherRevocation(t *testing.T) {
	provider := oauthtest.NewServer(t)
	reached := make(chan struct{}, 1)
	sick := newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		oauthtest.Status(503, "")(w, r)
		select {
		case reached <- struct{}{}:
		default:
		}
	})
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, sick.in)
	for n := range 7 {
		registerPlainOAuth(t, u, provider, fmt.Sprint("leaked", n))
	}
	u.connected(t, provider, "sheets")
	u.connected(t, provider, "leaked0")
	var first, other struct{ ID string }
	must(t, u.command("oauth.revoke", "", map[string]any{"component": "sheets"}, &first))
	<-reached
	must(t, u.command("oauth.revoke", "", map[string]any{"component": "leaked0"}, &other))
	await(t, "the end of the other", func() (bool, error) {
		var p progress
		err := u.query("oauth.revocation", "id="+other.ID, &p)
		return p.ID == other.ID && !p.Running && p.Done == 1, err
	})
	var last progress
	must(t, u.query("oauth.revocation", "", &last))
	if last.ID != other.ID {
		t.Errorf("the last one is %s, want %s", last.ID, other.ID)
	}
	if err := u.command("oauth.revoke", "", map[string]any{"component": "sheets"}, nil); code(t, err) != "revocation_under_way" {
		t.Errorf("the same again: %v", err)
	}
	for n := range 7 { // those that have ended are forgotten for them, the other is not
		must(t, u.command("oauth.revoke", "", map[string]any{"component": fmt.Sprint("leaked", n)}, nil))
	}
	must(t, u.query("oauth.revocation", "id="+first.ID, &last))
	if last.ID != first.ID || !last.Running {
		t.Errorf("the first: %+v", last)
	}
}

// registerPlainOAuth registers a component whose provider is not told of revocations.
func registerPlainOAuth(t testing.TB, u *up, provider *oauthtest.Server, id string) {
	t.Helper()
	must(t, u.command("component.register", "", map[string]any{"id": id, "descriptor": map[string]any{
		"title": id, "useOAuthClient": true, "hosts": []string{"127.0.0.1"}, "credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}},
			"oauth2": map[string]any{"auth_uri": provider.Provider().AuthURI, "token_uri": provider.Provider().TokenURI},
		},
	}}, nil))
	must(t, u.command("oauth_client.define", "", map[string]any{
		"component": id, "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret,
	}, nil))
}
