package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

// The targets of secrets for flow engines.
const (
	barNewLease  = 0.15 // of hello-world
	barSameLease = 0.45 // of hello-world
	barRevoked   = 50 * time.Millisecond
)

const (
	enginesEach   = 4    // keys of flow engines in a tenant
	resolvedFrom  = 1000 // credentials that they resolve
	herdSize      = 500  // flow engines that resolve one credential at once
	herdProcesses = 3
	herdRounds    = 10                     // for each round of other rows
	herdDelay     = 100 * time.Millisecond // response time of the provider
	revokers      = 4                      // that revoke one credential after the other
	overdue       = 1000                   // tokens that are due at once
	overdueLife   = 16 * time.Second       // lifetime of those: they are due after 10 to 12 s
	overdueAfter  = 13 * time.Second
	keeperTime    = 2 * time.Minute
)

// engineSite is a site whose credentials flow engines resolve.
type engineSite struct {
	*site
	sealTo   client.ResolveKey
	keys     []apiKey // of flow engines
	purposes []purpose
	leases   atomic.Int64 // granted
}

// purpose is a credential and the flow engine that resolves it.
type purpose struct {
	made
	engine apiKey
	leases [2]string // that it extends: for encrypted values, and for cleartext
}

// openEngines creates credentials, and keys for flow engines.
func openEngines(ctx context.Context, s *site) (*engineSite, error) {
	e := &engineSite{site: s}
	var err error
	if e.sealTo, err = client.NewResolveKey(); err != nil {
		return nil, err
	}
	if _, err := closed(ctx, clients, size{calls: resolvedFrom}, s.creators(s.keys, "", nil)); err != nil {
		return nil, err
	}
	admin, err := dialWire(s.proc.http)
	if err != nil {
		return nil, err
	}
	defer admin.close()
	of := map[string][]apiKey{}
	for i := range tenants * enginesEach {
		k, err := engineKey(admin, fmt.Sprintf("t%02d", i%tenants))
		if err != nil {
			return nil, err
		}
		e.keys, of[k.tenant] = append(e.keys, k), append(of[k.tenant], k)
	}
	given := map[string]int{} // by tenant: every engine needs some of its credentials
	for _, m := range s.made {
		e.purposes = append(e.purposes, purpose{made: m, engine: of[m.tenant][given[m.tenant]%enginesEach]})
		given[m.tenant]++
	}
	return e, nil
}

// engineKey issues a key for a flow engine, and waits until the service accepts it.
func engineKey(admin *wire, tenant string) (apiKey, error) {
	var issued struct {
		Key string `json:"key"`
		Seq uint64 `json:"seq"`
	}
	err := command(admin, adminKey, tenant, "api_key.issue", map[string]any{"role": "FLOW_ENGINE", "name": "bench"}, &issued)
	if err == nil {
		err = query(admin, adminKey, "default", "tenant.list?min_seq="+strconv.FormatUint(issued.Seq, 10), nil)
	}
	return apiKey{issued.Key, tenant}, err
}

// sameFlow is the flow of repeated requests.
const sameFlow = "again"

// resolveRequest appends a whole request over HTTP.
func (e *engineSite) resolveRequest(b []byte, p *purpose, flow string, clearly bool) []byte {
	b = append(b, "GET /v1/tenants/"...)
	b = append(b, p.tenant...)
	b = append(b, "/credential.resolve?id="...)
	b = append(b, p.id...)
	b = append(b, "&step=step_1&flow="...)
	b = append(b, flow...)
	if clearly {
		b = append(b, "&cleartext=true"...)
	} else {
		b = append(append(b, "&public_key="...), e.sealTo.Public()...)
	}
	return append(appendHeaders(b, p.engine.key), "\r\n"...)
}

var errNotGiven = errors.New("the response does not contain the values")

// leaseOf checks a response, and returns its lease.
func leaseOf(p *purpose, clearly bool, answer []byte) (string, error) {
	lease, ok := memberOf(answer, `"lease":"`)
	holds := []byte(`"sealed":"`)
	if clearly {
		holds = appendSecret(nil, p.n)
	}
	if !ok || !bytes.Contains(answer, holds) {
		return "", fmt.Errorf("%w: %.300s", errNotGiven, answer)
	}
	return lease, nil
}

// ask resolves a credential over HTTP and returns the lease.
func (e *engineSite) ask(c *wire, request *[]byte, p *purpose, flow string, clearly bool) (string, error) {
	*request = e.resolveRequest((*request)[:0], p, flow, clearly)
	status, answer, err := c.do(*request)
	if err != nil || status != 200 {
		return "", fmt.Errorf("resolve: %d %.300s: %w", status, answer, err)
	}
	return leaseOf(p, clearly, answer)
}

// newLeases returns clients that get a new lease with each request, over HTTP.
func (e *engineSite) newLeases(clearly bool) func(int) (caller, error) {
	return e.resolvers(func(c *wire, request *[]byte, p *purpose, n uint64) error {
		_, err := e.ask(c, request, p, flowName(n), clearly)
		e.leases.Add(1)
		return err
	})
}

var errOtherLease = errors.New("a repeated request got another lease")

// sameLeases returns clients that repeat requests within the leases of warm.
func (e *engineSite) sameLeases(clearly bool) func(int) (caller, error) {
	return e.resolvers(func(c *wire, request *[]byte, p *purpose, _ uint64) error {
		lease, err := e.ask(c, request, p, sameFlow, clearly)
		if err == nil && lease != p.leases[form(clearly)] {
			err = errOtherLease
		}
		return err
	})
}

func form(clearly bool) int {
	if clearly {
		return 1
	}
	return 0
}

// warm acquires the leases for sameLeases.
func (e *engineSite) warm(ctx context.Context, clearly bool) error {
	of := make(chan *purpose, len(e.purposes))
	for i := range e.purposes {
		of <- &e.purposes[i]
	}
	_, err := closed(ctx, clients, size{calls: int64(len(e.purposes))}, e.resolvers(func(c *wire, request *[]byte, _ *purpose, _ uint64) error {
		p := <-of
		held := &p.leases[form(clearly)]
		lease, err := e.ask(c, request, p, sameFlow, clearly)
		if lease != *held {
			e.leases.Add(1)
		}
		*held = lease
		return err
	}))
	return err
}

// resolvers returns clients over HTTP whose calls iterate over the purposes.
func (e *engineSite) resolvers(call func(c *wire, request *[]byte, p *purpose, n uint64) error) func(int) (caller, error) {
	return overHTTP(e.proc.http, func(_ int, c *wire) func() error {
		var request []byte
		return func() error {
			n := next.Add(1)
			return call(c, &request, &e.purposes[n%uint64(len(e.purposes))], n)
		}
	})
}

// overNATS returns clients that resolve encrypted values over NATS. A connection belongs to a key,
// so each client resolves the credentials of its own engine.
func (e *engineSite) overNATS(again bool) func(int) (caller, error) {
	return func(i int) (caller, error) {
		k := e.keys[(i*7+3)%len(e.keys)]
		nc, err := nats.Connect(e.proc.nats, nats.UserInfo("bench", k.key), nats.CustomInboxPrefix(client.InboxPrefix(k.key)))
		if err != nil {
			return caller{}, fmt.Errorf("connect to NATS: %w", err)
		}
		var own []*purpose
		for i := range e.purposes {
			if p := &e.purposes[i]; p.engine == k {
				own = append(own, p)
			}
		}
		if len(own) == 0 {
			nc.Close()
			return caller{}, errors.New("an engine needs nothing")
		}
		subject := "credstream.query." + k.tenant + ".credential.resolve"
		return caller{close: nc.Close, call: func() error {
			n := next.Add(1)
			p, flow := own[n%uint64(len(own))], sameFlow
			if !again {
				flow = flowName(n)
			}
			body := make([]byte, 0, 256)
			body = append(append(append(body, `{"id":"`...), p.id...), `","step":"step_1","flow":"`...)
			body = append(append(append(body, flow...), `","public_key":"`...), e.sealTo.Public()...)
			answer, err := nc.Request(subject, append(body, `"}`...), 30*time.Second)
			if err != nil {
				return fmt.Errorf("resolve: %w", err)
			}
			lease, err := leaseOf(p, false, answer.Data)
			switch {
			case err != nil:
			case !again:
				e.leases.Add(1)
			case lease != p.leases[0]:
				err = errOtherLease
			}
			return err
		}}, nil
	}
}

// resolve measures credential.resolve next to the yardsticks.
func (b *bench) resolve(ctx context.Context, s *site) error {
	e, err := openEngines(ctx, s)
	if err != nil {
		return err
	}
	if err := e.opens(ctx); err != nil {
		return err
	}
	none := func(context.Context) error { return nil }
	warm := func(clearly bool) func(context.Context) error {
		return func(ctx context.Context) error { return e.warm(ctx, clearly) }
	}
	ways := []resolveWay{
		{"new durable lease, sealed, over HTTP", barNewLease, none, e.newLeases(false)},
		{"new durable lease, clear text, over HTTP", barNewLease, none, e.newLeases(true)},
		{"new durable lease, sealed, over NATS", 0, none, e.overNATS(false)},
		{"within a lease, sealed, over HTTP", barSameLease, warm(false), e.sameLeases(false)},
		{"within a lease, clear text, over HTTP", barSameLease, warm(true), e.sameLeases(true)},
		{"within a lease, sealed, over NATS", 0, warm(false), e.overNATS(true)},
	}
	for _, n := range []int{1, 16, clients} {
		if err := b.resolveBy(ctx, e, n, ways); err != nil {
			return err
		}
	}
	return b.recordedLeases(ctx, e)
}

// resolveWay is one way to resolve.
type resolveWay struct {
	what  string
	bar   float64 // of hello-world, with all clients; 0: none
	ready func(context.Context) error
	open  func(int) (caller, error)
}

// resolveBy measures every way with n clients.
func (b *bench) resolveBy(ctx context.Context, e *engineSite, n int, ways []resolveWay) error {
	rounds := 1
	if n == clients {
		rounds = b.rounds
	}
	loads := make([][]load, len(ways))
	ofHello, ofRaw := make([][]float64, len(ways)), make([][]float64, len(ways))
	var hellos, raws []float64
	for range rounds {
		hello, err := b.helloWorld(ctx, n)
		if err != nil {
			return err
		}
		raw, err := b.publish(ctx, "always", "tcp", n)
		if err != nil {
			return err
		}
		hellos, raws = append(hellos, hello.rate), append(raws, raw.Rate)
		for i, w := range ways {
			if err := w.ready(ctx); err != nil {
				return err
			}
			l, err := e.counted(ctx, n, b.measured(), w.open)
			if err != nil {
				return fmt.Errorf("%s: %w", w.what, err)
			}
			loads[i] = append(loads[i], l)
			ofHello[i], ofRaw[i] = append(ofHello[i], l.rate/hello.rate), append(ofRaw[i], l.rate/raw.Rate)
		}
	}
	with := countClients(n)
	b.report.add("hello-world, "+with, perSecond(median(hellos)), "")
	b.report.add("raw JetStream publish, sync-always, "+with, perSecond(median(raws)), "")
	for i, w := range ways {
		l, ratio := middle(loads[i]), median(ofHello[i])
		result := perSecond(l.rate)
		details := fmt.Sprintf("%s of hello-world, %.2f times raw publish; %s, %s of the service", percent(ratio), median(ofRaw[i]), latencies(l), micros(l.cpu))
		if n < clients || w.bar == 0 {
			b.report.add(w.what+", "+with, result, details)
			continue
		}
		b.report.target(w.what+", "+with, result, details, percent(w.bar)+" of hello-world", ratio >= w.bar)
		if err := w.ready(ctx); err != nil {
			return err
		}
		if err := b.half(ctx, "the same at half load", l.rate, w.open); err != nil {
			return err
		}
	}
	return nil
}

// opens checks that the decrypted values are those that were stored.
func (e *engineSite) opens(ctx context.Context) error {
	p := &e.purposes[0]
	c, err := client.New(client.Config{URL: "http://" + e.proc.http, Key: p.engine.key, Tenant: p.tenant})
	if err != nil {
		return err
	}
	v, err := c.Resolve(ctx, e.sealTo, p.id, client.ResolveOptions{Flow: "first"})
	if err != nil {
		return err
	}
	e.leases.Add(1)
	if got, _ := v.Keys.Text("apiKey"); got != string(appendSecret(nil, p.n)) {
		return fmt.Errorf("%w: others were", errNotGiven)
	}
	return nil
}

// recordedLeases kills the service and has a new process count the recorded leases.
func (b *bench) recordedLeases(ctx context.Context, e *engineSite) error {
	e.kill()
	var facts int64
	if err := askChild(ctx, &facts, "accesses", e.dir); err != nil {
		return err
	}
	want := e.leases.Load()
	b.report.target("leases in the access log, after SIGKILL", thousands(facts)+" of "+thousands(want), "of the leases that were granted", "all", facts == want)
	return nil
}

// accessesChild opens a data folder without a running service and counts the entries of the access
// log. args: folder.
func accessesChild(ctx context.Context, stdout io.Writer, args []string) error {
	_, conn, stop, err := openStore(ctx, args[0])
	if err != nil {
		return err
	}
	defer stop()
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open JetStream: %w", err)
	}
	stream, err := js.Stream(ctx, kv.AccessStream)
	if err != nil {
		return fmt.Errorf("open the access log: %w", err)
	}
	return json.NewEncoder(stdout).Encode(stream.CachedInfo().State.Msgs)
}

// provider is an authorization server that rotates refresh tokens and refuses used ones.
type provider struct {
	url     string
	server  *http.Server
	delay   time.Duration
	refuses atomic.Bool

	mu          sync.Mutex
	granted     int
	good        map[string]bool // refresh tokens
	asked, bad  int             // token requests, and rejected ones
	first, last time.Time       // of the requests since reset
}

const (
	oauthComponent = "sheets"
	renewedPrefix  = "renewed-"
)

func startProvider(delay time.Duration) (*provider, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // ends by close
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	p := &provider{url: "http://" + l.Addr().String(), delay: delay, good: map[string]bool{}}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = p.server.Serve(l) }() // ends by close
	return p, nil
}

func (p *provider) close() { _ = p.server.Close() }

// grant issues tokens without a consent; the access token has this lifetime.
func (p *provider) grant(life time.Duration) map[string]any {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.issue("granted-", life)
}

func (p *provider) issue(prefix string, life time.Duration) map[string]any {
	p.granted++
	refresh := "refresh-" + strconv.Itoa(p.granted)
	p.good[refresh] = true
	return map[string]any{
		"access_token": prefix + strconv.Itoa(p.granted), "refresh_token": refresh, "token_type": "Bearer", "expires_in": int(life.Seconds()),
	}
}

// ServeHTTP implements http.Handler: it is the token endpoint.
func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	used := r.PostFormValue("refresh_token")
	p.mu.Lock()
	p.last = time.Now()
	if p.asked++; p.first.IsZero() {
		p.first = p.last
	}
	status, answer := http.StatusOK, map[string]any(nil)
	switch {
	case p.refuses.Load():
		status, answer = http.StatusBadRequest, map[string]any{"error": "invalid_grant"}
	case !p.good[used]:
		p.bad++
		status, answer = http.StatusBadRequest, map[string]any{"error": "invalid_grant"}
	default:
		delete(p.good, used)
		answer = p.issue(renewedPrefix, time.Hour)
	}
	p.mu.Unlock()
	time.Sleep(p.delay)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // fails only if the caller has disconnected
}

// seen returns the counts of requests since the last reset.
func (p *provider) seen() (asked, bad int, first, last time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked, p.bad, p.first, p.last
}

func (p *provider) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked, p.first = 0, time.Time{}
}

// register registers a component for the provider, and defines the tenant's OAuth client.
func (p *provider) register(admin *wire, tenant string) error {
	err := command(admin, adminKey, tenant, "component.register", map[string]any{"id": oauthComponent, "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView", "label": "Account", "required": true}},
			"oauth2": map[string]any{
				"auth_uri": p.url + "/authorize", "token_uri": p.url + "/token", "scopes": []string{"read"}, "refresh_rotation": "always",
			},
		},
	}}, nil)
	if err != nil {
		return err
	}
	return command(admin, adminKey, tenant, "oauth_client.define", map[string]any{
		"component": oauthComponent, "client_id": "bench", "client_secret": "bench-secret",
	}, nil)
}

// connect creates a credential from tokens with this lifetime; 0: expired.
func (p *provider) connect(admin *wire, tenant string, life time.Duration) (id string, err error) {
	tokens := p.grant(life)
	if life == 0 {
		tokens["expires_at"] = "2020-01-01T00:00:00Z"
	}
	var done struct{ ID string }
	err = command(admin, adminKey, tenant, "credential.create", map[string]any{"component": oauthComponent, "keys": map[string]any{"oauth": tokens}}, &done)
	return done.ID, err
}

// revocation is one way to invalidate the values that flow engines hold.
type revocation struct {
	what   string
	make   func(admin *wire) (id string, err error)
	revoke func(admin *wire, id string) error
}

// revocation measures how soon a flow engine learns that its values are no longer valid.
func (b *bench) revocation(ctx context.Context, s *site) error {
	e, err := openEngines(ctx, s)
	if err != nil {
		return err
	}
	p, err := startProvider(0)
	if err != nil {
		return err
	}
	defer p.close()
	p.refuses.Store(true)
	admin, err := dialWire(s.proc.http)
	if err != nil {
		return err
	}
	defer admin.close()
	if err := p.register(admin, flowTenant); err != nil {
		return err
	}
	most, err := closed(ctx, clients, b.measured(), e.newLeases(false))
	if err != nil {
		return err
	}
	h, err := newFeedFollower(ctx, e)
	if err != nil {
		return err
	}
	defer h.close()
	plainly := func(admin *wire) (string, error) {
		var done struct{ ID string }
		err := answered(admin, "credential.create", postRequest(nil, "/v1/tenants/"+flowTenant+"/commands/credential.create", adminKey, "", appendCreate(nil, next.Add(1), plain(0))), &done)
		return done.ID, err
	}
	for _, r := range []revocation{
		{"delete", plainly, func(admin *wire, id string) error {
			return command(admin, adminKey, flowTenant, "credential.delete", map[string]any{"id": id}, nil)
		}},
		{"new keys", plainly, func(admin *wire, id string) error {
			return command(admin, adminKey, flowTenant, "credential.replace-keys", map[string]any{"id": id, "keys": map[string]any{"apiKey": "new"}}, nil)
		}},
		{"a grant revoked by the provider", func(admin *wire) (string, error) { return p.connect(admin, flowTenant, time.Hour) }, refusedRefresh},
	} {
		idle, err := h.revoke(ctx, 2*b.time, 1, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.what, err)
		}
		b.report.add(r.what+": to the feed, one at a time", latencies(idle.fed()), idle.details())
		b.report.add(r.what+": to the drop by a Resolver, one at a time", latencies(idle.dropped()), "")
		var busy revoked
		parts, going := errgroup.WithContext(ctx)
		var loaded load
		parts.Go(func() (err error) {
			loaded, err = paced(going, clients, most.rate/2, 2*b.time, e.newLeases(false))
			return err
		})
		parts.Go(func() (err error) {
			busy, err = h.revoke(going, 2*b.time, revokers, r)
			return err
		})
		if err := parts.Wait(); err != nil {
			return fmt.Errorf("%s: %w", r.what, err)
		}
		bar := "p99 " + ms(barRevoked)
		fed, dropped := busy.fed(), busy.dropped()
		b.report.target(r.what+": to the feed, at half load", latencies(fed), fmt.Sprintf("%s; beside %s new leases", busy.details(), perSecond(loaded.rate)),
			bar, fed.quantile(.99) <= barRevoked)
		b.report.target(r.what+": to the drop by a Resolver, at half load", latencies(dropped), "", bar, dropped.quantile(.99) <= barRevoked)
	}
	return s.stop()
}

// refusedRefresh renews tokens that the provider no longer accepts.
func refusedRefresh(admin *wire, id string) error {
	body := []byte(`{"id":"` + id + `"}`)
	status, answer, err := admin.do(postRequest(nil, "/v1/tenants/"+flowTenant+"/commands/credential.refresh", adminKey, "", body))
	if err == nil && (status == 200 || !bytes.Contains(answer, []byte(`"reauthorization_required"`))) {
		err = fmt.Errorf("credential.refresh: %d %.300s", status, answer)
	}
	return err
}

// feedFollower is a flow engine: it caches values and follows the feed.
type feedFollower struct {
	http     string
	conn     *client.Conn
	resolver *client.Resolver
	feed     *nats.Conn

	mu      sync.Mutex
	awaited map[string]chan time.Time // by subject of the event
}

func newFeedFollower(ctx context.Context, e *engineSite) (*feedFollower, error) {
	admin, err := dialWire(e.proc.http)
	if err != nil {
		return nil, err
	}
	defer admin.close()
	k, err := engineKey(admin, flowTenant)
	if err != nil {
		return nil, err
	}
	h := &feedFollower{http: e.proc.http, awaited: map[string]chan time.Time{}}
	if h.conn, err = client.Dial(ctx, client.NATSConfig{URL: e.proc.nats, Key: k.key, Tenant: flowTenant}); err != nil {
		return nil, err
	}
	if h.resolver, err = h.conn.NewResolver(); err != nil {
		h.close()
		return nil, err
	}
	h.feed, err = nats.Connect(e.proc.nats, nats.UserInfo("feed", k.key))
	if err == nil {
		_, err = h.feed.Subscribe("credstream.events."+flowTenant+".credential.>", h.take)
	}
	if err == nil {
		err = h.feed.Flush()
	}
	if err != nil {
		h.close()
		return nil, fmt.Errorf("listen to the feed: %w", err)
	}
	return h, nil
}

func (h *feedFollower) close() {
	if h.resolver != nil {
		h.resolver.Close()
	}
	if h.feed != nil {
		h.feed.Close()
	}
	h.conn.Close()
}

// revoking are the events that invalidate the values that flow engines hold.
var revoking = map[string]bool{
	"credstream.credential.deleted.v1": true, "credstream.credential.keys_replaced.v1": true,
	"credstream.credential.reauthorization_required.v1": true,
}

func (h *feedFollower) take(m *nats.Msg) {
	at := time.Now()
	if kind := m.Header["ce-type"]; len(kind) != 1 || !revoking[kind[0]] {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	subject := strings.Join(m.Header["ce-subject"], "")
	if c := h.awaited[subject]; c != nil {
		delete(h.awaited, subject)
		c <- at
	}
}

func (h *feedFollower) await(id string) <-chan time.Time {
	c := make(chan time.Time, 1)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.awaited["credential."+id] = c
	return c
}

// revoked holds the times of what followed each revocation.
type revoked struct {
	of []revokedOnce
	d  time.Duration
}

type revokedOnce struct{ asked, acked, fed, dropped time.Time }

func (r revoked) after(from, to func(revokedOnce) time.Time) load {
	var took []time.Duration
	for _, one := range r.of {
		took = append(took, max(0, to(one).Sub(from(one))))
	}
	return summed([][]time.Duration{took}, r.d)
}

func askedAt(r revokedOnce) time.Time   { return r.asked }
func ackedAt(r revokedOnce) time.Time   { return r.acked }
func fedAt(r revokedOnce) time.Time     { return r.fed }
func droppedAt(r revokedOnce) time.Time { return r.dropped }

func (r revoked) fed() load     { return r.after(ackedAt, fedAt) }
func (r revoked) dropped() load { return r.after(ackedAt, droppedAt) }

func (r revoked) details() string {
	return fmt.Sprintf("%s revocations; from the request to the drop %s", thousands(int64(len(r.of))), latencies(r.after(askedAt, droppedAt)))
}

// revoke has n clients revoke credentials, one after the other, for a time.
func (h *feedFollower) revoke(ctx context.Context, d time.Duration, n int, r revocation) (out revoked, err error) {
	out.d = d
	until := time.Now().Add(d)
	var mu sync.Mutex
	parts, ctx := errgroup.WithContext(ctx)
	for range n {
		parts.Go(func() error {
			admin, err := dialWire(h.http)
			if err != nil {
				return err
			}
			defer admin.close()
			for time.Now().Before(until) {
				one, err := h.revokeOne(ctx, admin, r)
				if err != nil {
					return err
				}
				mu.Lock()
				out.of = append(out.of, one)
				mu.Unlock()
			}
			return nil
		})
	}
	return out, parts.Wait()
}

// revokeOne creates a credential, has the Resolver cache its values, and revokes it.
func (h *feedFollower) revokeOne(ctx context.Context, admin *wire, r revocation) (one revokedOnce, err error) {
	id, err := r.make(admin)
	if err != nil {
		return one, err
	}
	kept := client.Resolved{}
	for held := false; !held; {
		v, err := h.resolver.Resolve(ctx, id, client.ResolveOptions{})
		if err != nil {
			return one, err
		}
		held, kept = v.Lease == kept.Lease, v
	}
	fed := h.await(id)
	var parts errgroup.Group
	parts.Go(func() (err error) {
		one.dropped, err = h.awaitDrop(ctx, id, kept)
		return err
	})
	parts.Go(func() error {
		one.asked = time.Now()
		err := r.revoke(admin, id)
		one.acked = time.Now()
		return err
	})
	if err := parts.Wait(); err != nil {
		return one, err
	}
	select {
	case one.fed = <-fed:
		return one, nil
	case <-time.After(flowPatience):
		return one, fmt.Errorf("the feed has no event of %s", id)
	}
}

// awaitDrop returns the time of the first call that the Resolver did not answer from its cache.
func (h *feedFollower) awaitDrop(ctx context.Context, id string, kept client.Resolved) (time.Time, error) {
	for until := time.Now().Add(flowPatience); time.Now().Before(until); time.Sleep(100 * time.Microsecond) {
		at := time.Now()
		v, err := h.resolver.Resolve(ctx, id, client.ResolveOptions{})
		switch refused := (*fault.Error)(nil); {
		case err == nil && v.Version == kept.Version:
		case err == nil:
			return at, nil
		case errors.As(err, &refused) && (refused.Code == "credential_not_found" || refused.Code == "reauthorization_required"):
			return at, nil
		default:
			return at, err
		}
	}
	return time.Time{}, fmt.Errorf("the Resolver still has %s", id)
}

// natsChild runs a single server with the configuration of deploy/nats, and prints its address.
// args: folder of that configuration, folder for everything else, password of every user.
func natsChild(ctx context.Context, stdout io.Writer, args []string) error {
	deploy, dir, password := args[0], args[1], args[2]
	issuer, err := nkeys.CreateAccount()
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	xkey, err := nkeys.CreateCurveKeys()
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	env := map[string]string{"NATS_NAME": "bench", "NATS_LISTEN": `"127.0.0.1:-1"`, "NATS_STORE": strconv.Quote(filepath.Join(dir, "store"))}
	for _, of := range []string{"SERVICE", "ENDPOINTS", "CALLOUT", "SYSTEM"} {
		env["NATS_"+of+"_PASSWORD"] = password
	}
	for name, pair := range map[string]nkeys.KeyPair{"issuer": issuer, "xkey": xkey} {
		seed, err := pair.Seed()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".seed"), seed, 0o600)
		}
		if err == nil {
			env["NATS_CALLOUT_"+strings.ToUpper(name)], err = pair.PublicKey()
		}
		if err != nil {
			return fmt.Errorf("keep a key: %w", err)
		}
	}
	for name, value := range env {
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	options, err := server.ProcessConfigFile(filepath.Join(deploy, "single.conf"))
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	options.NoSigs, options.NoLog = true, true
	srv, err := server.NewServer(options)
	if err != nil {
		return fmt.Errorf("make the server: %w", err)
	}
	srv.Start()
	defer func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	}()
	if !srv.ReadyForConnections(10 * time.Second) {
		return errors.New("the server does not start")
	}
	fmt.Fprintln(stdout, srv.Addr())
	<-ctx.Done()
	return nil
}

// processes starts several processes of the service on one nats-server, in a new folder.
func (b *bench) processes(ctx context.Context, folder string, n int) (list []*site, stop func(), err error) {
	dir := filepath.Join(b.dir, folder)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make a folder: %w", err)
	}
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("find the configuration of the servers: %w", err)
	}
	kms, password := filepath.Join(dir, "kms.key"), "p"+rand.Text()
	if err := seal.CreateKeyFile(kms); err != nil {
		return nil, nil, err
	}
	servers, err := spawnChild(ctx, "nats", filepath.Join(strings.TrimSpace(string(root)), "deploy", "nats"), dir, password)
	if err != nil {
		return nil, nil, err
	}
	stop = func() {
		for _, s := range list {
			_ = s.stop()
		}
		servers.stop()
	}
	as := func(user string) string { return "nats://" + user + ":" + password + "@" + servers.line }
	env := []string{
		"CREDSTREAM_NATS=" + as("credstream"), "CREDSTREAM_NATS_ENDPOINTS=" + as("credstream-endpoints"),
		"CREDSTREAM_NATS_SYSTEM=" + as("credstream-system"), "CREDSTREAM_NATS_CALLOUT=" + as("credstream-callout"),
		"CREDSTREAM_NATS_CALLOUT_SEED=" + filepath.Join(dir, "issuer.seed"), "CREDSTREAM_NATS_CALLOUT_XKEY=" + filepath.Join(dir, "xkey.seed"),
		"CREDSTREAM_NATS_REPLICAS=1", "CREDSTREAM_ATTEST_SYNC_ALWAYS=true", "CREDSTREAM_KMS=file://" + kms,
	}
	for i := range n {
		s := &site{dir: filepath.Join(dir, strconv.Itoa(i)), bin: b.bin, env: env}
		if _, err := s.start(ctx); err != nil {
			stop()
			return nil, nil, err
		}
		list = append(list, s)
	}
	return list, stop, nil
}

// herd measures many engines that request a credential with an expired token from several processes.
func (b *bench) herd(ctx context.Context, _ *site) error {
	p, err := startProvider(herdDelay)
	if err != nil {
		return err
	}
	defer p.close()
	all, stop, err := b.processes(ctx, "herd", herdProcesses)
	if err != nil {
		return err
	}
	defer stop()
	admin, err := dialWire(all[0].proc.http)
	if err != nil {
		return err
	}
	defer admin.close()
	if err := retryUntilReady(ctx, func() error { return p.register(admin, flowTenant) }); err != nil {
		return err
	}
	k, err := engineKey(admin, flowTenant)
	if err != nil {
		return err
	}
	var herd []*wire
	defer func() {
		for _, c := range herd {
			c.close()
		}
	}()
	for i := range herdSize {
		c, err := dialWire(all[i%len(all)].proc.http)
		if err != nil {
			return err
		}
		herd = append(herd, c)
		// Every process has cached the key, and every connection is open.
		if err := retryUntilReady(ctx, func() error { return query(c, k.key, flowTenant, "credential.list", nil) }); err != nil {
			return err
		}
	}
	var took, alone []time.Duration
	most, early := 0, 0
	for len(took) < herdRounds*b.rounds {
		// A request with a valid token: the lower bound.
		one, _, err := p.stampede(ctx, admin, k, herd[:1])
		if err != nil {
			return err
		}
		last, begun, err := p.stampede(ctx, admin, k, herd)
		if err != nil {
			return err
		}
		asked, _, first, _ := p.seen()
		if first.Before(begun) { // the token refresher was faster
			if early++; early > herdRounds*b.rounds {
				return errors.New("the keeper of tokens always comes first")
			}
			continue
		}
		most = max(most, asked)
		took, alone = append(took, last), append(alone, one)
	}
	_, bad, _, _ := p.seen()
	what := fmt.Sprintf("%d callers ask %d processes for an expired token", herdSize, herdProcesses)
	b.report.target("requests at the provider when "+what, strconv.Itoa(most), fmt.Sprintf("maximum of %d rounds; %d with a used refresh token", len(took), bad),
		"1", most == 1 && bad == 0)
	l := summed([][]time.Duration{took}, b.time)
	b.report.add("time until the last caller has the new token", latencies(l),
		fmt.Sprintf("a single caller %s; the provider takes %s of it", latencies(summed([][]time.Duration{alone}, b.time)), ms(herdDelay)))
	return nil
}

// retryUntilReady retries a call that a service that has just started may refuse.
func retryUntilReady(ctx context.Context, do func() error) error {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		err := do()
		if err == nil || ctx.Err() != nil || time.Since(began) > flowPatience {
			return err
		}
	}
}

// stampede creates a credential with an expired token, and has all engines request it at once. It
// returns the time until the last one has the new token, which must be the same for all.
func (p *provider) stampede(ctx context.Context, admin *wire, k apiKey, all []*wire) (last time.Duration, begun time.Time, err error) {
	p.reset()
	id, err := p.connect(admin, k.tenant, 0)
	if err != nil {
		return 0, begun, err
	}
	tokens := make([]string, len(all))
	parts, _ := errgroup.WithContext(ctx)
	request := getRequest(nil, "/v1/tenants/"+k.tenant+"/credential.resolve?cleartext=true&id="+id, k.key)
	ready, start := make(chan struct{}, len(all)), make(chan struct{})
	for i, c := range all {
		parts.Go(func() error {
			ready <- struct{}{}
			<-start
			status, answer, err := c.do(request)
			token, ok := memberOf(answer, `"access_token":"`)
			if err != nil || status != 200 || !ok || !strings.HasPrefix(token, renewedPrefix) {
				return fmt.Errorf("resolve: %d %.300s: %w", status, answer, err)
			}
			tokens[i] = token
			return nil
		})
	}
	for range all {
		<-ready
	}
	begun = time.Now()
	close(start)
	err = parts.Wait()
	last = time.Since(begun)
	if err == nil && len(slices.Compact(tokens)) != 1 {
		err = errors.New("they have different tokens")
	}
	return last, begun, err
}

// renewals measures the token refresher after a stop of the service in which many tokens became due.
func (b *bench) renewals(ctx context.Context, _ *site) error {
	s := &site{dir: filepath.Join(b.dir, "renewals"), bin: b.bin}
	if _, err := s.start(ctx); err != nil {
		return err
	}
	defer func() { _ = s.stop() }() // again, after an error
	p, err := startProvider(0)
	if err != nil {
		return err
	}
	defer p.close()
	admin, err := dialWire(s.proc.http)
	if err != nil {
		return err
	}
	defer admin.close()
	if err := retryUntilReady(ctx, func() error { return p.register(admin, flowTenant) }); err != nil {
		return err
	}
	k, err := engineKey(admin, flowTenant)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var ids []string
	_, err = closed(ctx, clients, size{calls: overdue}, overHTTP(s.proc.http, func(_ int, c *wire) func() error {
		return func() error {
			id, err := p.connect(c, flowTenant, overdueLife)
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, id)
			return err
		}
	}))
	if err != nil {
		return err
	}
	made := time.Now()
	if err := s.stop(); err != nil {
		return err
	}
	if asked, _, _, _ := p.seen(); asked > 0 {
		return fmt.Errorf("%d tokens were due before all were made", asked)
	}
	time.Sleep(time.Until(made.Add(overdueAfter)))
	if _, err := s.start(ctx); err != nil {
		return err
	}
	ready := time.Now()
	before, err := s.cpu()
	if err != nil {
		return err
	}
	for asked := 0; asked < len(ids); time.Sleep(10 * time.Millisecond) {
		if asked, _, _, _ = p.seen(); time.Since(ready) > keeperTime {
			return fmt.Errorf("after %v %d of %d tokens were renewed", keeperTime, asked, len(ids))
		}
	}
	after, err := s.cpu()
	if err != nil {
		return err
	}
	_, _, first, last := p.seen()
	if err := s.renewed(k, ids); err != nil {
		return err
	}
	asked, bad, _, _ := p.seen()
	n := float64(len(ids))
	b.report.add(fmt.Sprintf("renewals ahead of expiry, of %s tokens that are due at once", thousands(int64(len(ids)))), perSecond((n-1)/last.Sub(first).Seconds()),
		fmt.Sprintf("%s requests at the provider, %d with a used refresh token; the first %s after the start", thousands(int64(asked)), bad, ms(max(0, first.Sub(ready)))))
	b.cost((after - before) / time.Duration(len(ids)))
	return s.stop()
}

// renewed checks that flow engines get new tokens of all of these credentials.
func (s *site) renewed(k apiKey, ids []string) error {
	c, err := dialWire(s.proc.http)
	if err != nil {
		return err
	}
	defer c.close()
	for _, id := range ids {
		var got struct {
			Keys struct {
				OAuth struct {
					Token string `json:"access_token"`
				} `json:"oauth"`
			} `json:"keys"`
		}
		if err := query(c, k.key, k.tenant, "credential.resolve?cleartext=true&id="+id, &got); err != nil {
			return err
		}
		if !strings.HasPrefix(got.Keys.OAuth.Token, renewedPrefix) {
			return fmt.Errorf("%s was not renewed", id)
		}
	}
	return nil
}
