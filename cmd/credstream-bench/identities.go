package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	memlog "github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
)

// barAuthorize bounds the time to authorize a request.
const barAuthorize = 20 * time.Microsecond

// oauthClients is the number of OAuth clients of one tenant.
const oauthClients = 200

// authorized is the result of an authorize child: seconds per request.
type authorized struct {
	First   float64 // of a key that is used for the first time
	Passed  float64 // of one that is allowed
	Refused float64 // of one that is denied
}

// errReached ends each command after the authorization.
var errReached = errors.New("let through")

// authorizeChild measures the work before a command begins: it looks up the key, its tenant and its
// permission, and counts against both rate limits. The log is in memory, the views are on disk.
// args: folder, calls per round.
func authorizeChild(ctx context.Context, stdout io.Writer, args []string) (err error) {
	calls, err := strconv.Atoi(args[1])
	if err != nil {
		return fmt.Errorf("calls: %w", err)
	}
	store := memlog.New(events.All())
	log, err := aggregates.NewLog(store, keys)
	if err != nil {
		return err
	}
	quiet := slog.New(slog.DiscardHandler)
	views, err := projections.OpenViews(filepath.Join(args[0], "authorize.db"), projections.ViewsOptions{Logger: quiet})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, views.Close()) }()
	projector := projections.NewProjector(store, views, quiet)
	running, stop := context.WithCancel(ctx)
	var parts errgroup.Group
	parts.Go(func() error { return projector.Run(running) })
	defer func() { _ = parts.Wait() }() // it was stopped
	defer stop()
	svc, err := application.New(application.Config{
		Log: log, Views: views, Projector: projector, Logger: quiet, WritesAllowed: func() error { return errReached },
		Limits: access.Limits{PerKey: access.RateOf(1 << 30), PerTenant: access.RateOf(1 << 30)}, // counted but never reached
	})
	if err != nil {
		return err
	}
	defer svc.Close()
	of, end, err := issueKeys(ctx, log, store)
	if err != nil {
		return err
	}
	if err := projector.Wait(ctx, end); err != nil {
		return fmt.Errorf("wait for the views: %w", err)
	}
	from := netip.MustParseAddr("127.0.0.1")
	once := func(n int, route string, want error) error {
		k := of[n%len(of)]
		p, err := svc.Access.Authenticate(ctx, k.key, from)
		if err != nil {
			return fmt.Errorf("authenticate: %w", err)
		}
		if _, err := svc.Serve(ctx, service.Call{Tenant: k.tenant, Principal: p, Via: "http"}, route, nil); !errors.Is(err, want) {
			return fmt.Errorf("%s answers %w", route, err)
		}
		return nil
	}
	each := func(calls int, route string, want error) (float64, error) {
		began := time.Now()
		for n := range calls {
			if err := once(n, route, want); err != nil {
				return 0, err
			}
		}
		return time.Since(began).Seconds() / float64(calls), nil
	}
	rounds := func(calls int, route string, want error) (float64, error) {
		var took []float64
		for range 5 {
			t, err := each(calls, route, want)
			if err != nil {
				return 0, err
			}
			took = append(took, t)
		}
		return median(took), nil
	}
	const allowed, denied = "credential.verify", "credential.reveal" // denied has a permission that no role has
	var out authorized
	if out.First, err = each(keys, allowed, errReached); err != nil {
		return err
	}
	if out.Passed, err = rounds(calls, allowed, errReached); err != nil {
		return err
	}
	if out.Refused, err = rounds(calls/10, denied, service.ErrDenied); err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(out)
}

// issueKeys creates tenants with administrator keys, and returns the end of the log.
func issueKeys(ctx context.Context, log *aggregates.Log, store events.Store) (of []apiKey, end uint64, err error) {
	meta := func(tenant string) events.Meta {
		return events.Meta{Tenant: tenant, Actor: events.Actor{Kind: "system", ID: "bench"}, Command: events.NewID(), Time: time.Now().UTC(), Via: "system"}
	}
	for i := range tenants {
		id := fmt.Sprintf("t%02d", i)
		_, _, err := aggregates.Tenant.Execute(ctx, log, events.System, commands.Tenant(commands.RegisterTenant{ID: id}), meta(id), nil)
		if err != nil {
			return nil, 0, fmt.Errorf("register a tenant: %w", err)
		}
	}
	for i := range keys {
		k := apiKey{string(access.NewKey().Reveal()), fmt.Sprintf("t%02d", i%tenants)}
		sum := sha256.Sum256([]byte(k.key))
		cmd := commands.IssueAPIKey{
			ID: events.NewID(), SHA256: hex.EncodeToString(sum[:]), Home: k.tenant, Tenants: []string{k.tenant}, Role: string(permission.Administrator),
		}
		if _, _, err := aggregates.APIKey.Execute(ctx, log, events.System, commands.APIKey(cmd), meta(k.tenant), nil); err != nil {
			return nil, 0, fmt.Errorf("issue a key: %w", err)
		}
		of = append(of, k)
	}
	end, err = store.End(ctx)
	return of, end, err
}

// authorize measures the authorization of a request.
func (b *bench) authorize(ctx context.Context, _ *site) error {
	var a authorized
	if err := askChild(ctx, &a, "authorize", b.dir, strconv.Itoa(100*keys)); err != nil {
		return err
	}
	spent := func(seconds float64) string { return fmt.Sprintf("%.2f µs", seconds*1e6) }
	b.report.target("authorize a request: key, tenant, permission, rate limits", spent(a.Passed), fmt.Sprintf("%s keys in turn", thousands(keys)),
		"under "+micros(barAuthorize), a.Passed < barAuthorize.Seconds())
	b.report.add("the same, first use of a key", spent(a.First), "read from the read models")
	b.report.add("deny a request without the permission", spent(a.Refused), "counted for the event access.denied")
	return nil
}

// listClients measures lists of OAuth clients in a tenant that has many.
func (b *bench) listClients(ctx context.Context, s *site) error {
	admin, err := dialWire(s.proc.http)
	if err != nil {
		return err
	}
	defer admin.close()
	component := func(n int) string { return fmt.Sprintf("oauth-%03d", n) }
	for n := range oauthClients {
		id := component(n)
		in := map[string]any{"id": id, "descriptor": map[string]any{"title": id, "useOAuthClient": true}}
		if err := command(admin, adminKey, bigTenant, "component.register", in, nil); err != nil {
			return err
		}
		in = map[string]any{"component": id, "client_id": "client-of-" + id, "client_secret": string(appendSecret(nil, uint64(n)))}
		if err := command(admin, adminKey, bigTenant, "oauth_client.define", in, nil); err != nil {
			return err
		}
	}
	const path = "/v2/tenants/" + bigTenant + "/oauth-clients"
	for _, row := range []struct {
		what   string
		target func() string
		items  int
	}{
		{"list of OAuth clients, a page of 50 of " + thousands(oauthClients) + ", 64 clients", func() string { return path }, 50},
		{"the same, of one component", func() string {
			return path + "?filter%5Bcomponent%5D=" + component(rand.IntN(oauthClients)) //nolint:gosec // a choice, not a secret
		}, 1},
	} {
		hello, err := b.helloWorld(ctx, clients)
		if err != nil {
			return err
		}
		l, err := s.counted(ctx, clients, b.measured(), s.clientListers(row.target, row.items))
		if err != nil {
			return err
		}
		b.report.add(row.what, perSecond(l.rate), percent(l.rate/hello.rate)+" of hello-world; "+latencies(l))
		b.cost(l.cpu)
	}
	return nil
}

// clientListers returns clients that request a list, each call with one of the tenant's keys, and
// check the number of its items once.
func (s *site) clientListers(target func() string, items int) func(int) (caller, error) {
	return func(i int) (caller, error) {
		c, err := dialWire(s.proc.http)
		if err != nil {
			return caller{}, err
		}
		var list struct{ Data []struct{ ID string } }
		if err := answered(c, "list", getRequest(nil, target(), s.big[0].key), &list); err != nil || len(list.Data) != items {
			c.close()
			return caller{}, errors.Join(err, fmt.Errorf("the list has %d items, want %d", len(list.Data), items))
		}
		var request []byte
		return caller{close: c.close, call: func() error {
			i++
			request = getRequest(request[:0], target(), s.big[i%len(s.big)].key)
			return c.expect(200, "list", request)
		}}, nil
	}
}

// createV2 measures the create over the vendor's API next to that over the service's own.
func (b *bench) createV2(ctx context.Context, s *site) error {
	if err := b.rate(ctx, "create over /v2, 1 client", 1, s.creatorsV2); err != nil {
		return err
	}
	var ratios []float64
	var overV1, overV2 []load
	for range b.rounds {
		own, err := closed(ctx, clients, b.measured(), s.creators(s.keys, "", nil))
		if err != nil {
			return err
		}
		vendors, err := s.counted(ctx, clients, b.measured(), s.creatorsV2)
		if err != nil {
			return err
		}
		overV1, overV2 = append(overV1, own), append(overV2, vendors)
		ratios = append(ratios, vendors.rate/own.rate)
	}
	l := middle(overV2)
	b.report.add("create over /v2, 64 clients", perSecond(l.rate), latencies(l))
	b.report.add("the same over /v1", perSecond(middle(overV1).rate), "create over /v2 reaches "+percent(median(ratios))+" of it")
	b.report.add("CPU time of the service per create over /v2", micros(l.cpu), "the response has the credential from the read models")
	return b.reopen(ctx, s)
}

// creatorsV2 returns clients that create credentials over /v2, each call with the next key.
func (s *site) creatorsV2(i int) (caller, error) {
	return s.creating(201, s.keys, func(string) string { return "/v2/credentials" }, appendCreateV2, nil)(i)
}

// appendCreateV2 appends the document that creates the n-th credential, in one of
// a hundred workspaces.
func appendCreateV2(b []byte, n uint64) []byte {
	b = append(b, `{"data":{"type":"credential","attributes":{"name":"`...)
	b = appendName(b, n)
	b = append(b, `","keys":{"apiKey":"`...)
	b = appendSecret(b, n)
	b = append(b, `"}},"relationships":{"component":{"data":{"id":"`...)
	b = append(b, plain(n)...)
	b = append(b, `","type":"component"}},"workspace":{"data":{"id":"w`...)
	b = strconv.AppendUint(b, n%100, 10)
	return append(b, `","type":"workspace"}}}}}`...)
}
