package access_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
)

// errReached stands at the far side of the limits: commands that pass get no further.
var errReached = errors.New("reached")

// limited is a service with limits, the tenants acme and other, and a clock.
type limited struct {
	*application.Application
	now time.Time
}

func newLimited(t testing.TB, limits access.Limits) *limited {
	t.Helper()
	store := memory.New(events.All())
	for _, tenant := range []string{"acme", "other"} {
		if _, err := store.Append(t.Context(), aggregates.Tenant.Stream(events.System, tenant), 0,
			events.Meta{Tenant: events.System}, events.TenantRegistered{}); err != nil {
			t.Fatal(err)
		}
	}
	log, err := aggregates.NewLog(store, 16)
	if err != nil {
		t.Fatal(err)
	}
	views, err := projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = views.Close() })
	l := &limited{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	l.Application, err = application.New(application.Config{
		Log: log, Views: views, Projector: projections.NewProjector(store, views, slog.New(slog.DiscardHandler)), Limits: limits, WritesAllowed: func() error { return errReached }, Now: func() time.Time { return l.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// ask sends a command or a query and returns how it was refused before the far side.
func (l *limited) ask(t testing.TB, key, tenant, route string, role permission.Role) error {
	t.Helper()
	_, err := l.Serve(t.Context(), service.Call{
		Tenant: tenant, Principal: service.Principal{Actor: events.Actor{Kind: "key", ID: key}, Tenants: []string{"acme", "other"}, Role: role},
	}, route, []byte(`{}`))
	if errors.Is(err, errReached) {
		return nil
	}
	return err
}

const (
	aCommand = "credential.verify"
	aQuery   = "events.replay" // answered from the log alone
)

// drain asks until the limit refuses, and returns how often it did not.
func (l *limited) drain(t testing.TB, key, tenant, route string, role permission.Role) (passed int, refusal *fault.Error) {
	t.Helper()
	for ; passed < 1000; passed++ {
		if err := l.ask(t, key, tenant, route, role); errors.Is(err, access.ErrRateLimited) {
			return passed, fault.Of(err)
		}
	}
	return passed, nil
}

func TestRatePerKey(t *testing.T) {
	l := newLimited(t, access.Limits{PerKey: access.Rate{Commands: 2, Queries: 20}})
	passed, f := l.drain(t, "k1", "acme", aCommand, permission.Administrator)
	if passed != 4 || f.Kind != fault.Throttled || f.RetryAfter != 500*time.Millisecond {
		t.Errorf("after %d commands: %+v; want 4 and half a second", passed, f)
	}
	if f := l.ask(t, "k1", "other", aCommand, permission.Administrator); !errors.Is(f, access.ErrRateLimited) {
		t.Error("another tenant gives the key new tokens")
	}
	if passed, f := l.drain(t, "k1", "acme", aQuery, permission.Administrator); passed != 40 || f.RetryAfter != 50*time.Millisecond {
		t.Errorf("after %d queries: %+v; want 40 of them", passed, f)
	}
	if passed, _ := l.drain(t, "k2", "acme", aCommand, permission.Administrator); passed != 4 {
		t.Errorf("another key may send %d commands", passed)
	}
	l.now = l.now.Add(499 * time.Millisecond)
	if f := l.ask(t, "k1", "acme", aCommand, permission.Administrator); !errors.Is(f, access.ErrRateLimited) {
		t.Errorf("too early it gets %+v", f)
	}
	l.now = l.now.Add(time.Millisecond)
	if passed, _ := l.drain(t, "k1", "acme", aCommand, permission.Administrator); passed != 1 {
		t.Errorf("after half a second it may send %d commands, want 1", passed)
	}
	l.now = l.now.Add(time.Hour)
	if passed, _ := l.drain(t, "k1", "acme", aCommand, permission.Administrator); passed != 4 {
		t.Errorf("after an hour it may send %d commands, want 4", passed)
	}
}

func TestRatePerTenant(t *testing.T) {
	l := newLimited(t, access.Limits{PerTenant: access.Rate{Commands: 3}})
	if passed, _ := l.drain(t, "k1", "acme", aQuery, permission.Administrator); passed != 1000 {
		t.Errorf("queries are refused after %d", passed)
	}
	for range 1000 { // of who may not, nothing is counted against the tenant
		if f := l.ask(t, "k1", "acme", aCommand, permission.Operator); !errors.Is(f, service.ErrDenied) {
			t.Fatalf("an operator's command is answered %+v", f)
		}
	}
	for _, key := range []string{"k1", "k2", "k3"} {
		for range 2 {
			if f := l.ask(t, key, "acme", aCommand, permission.Administrator); f != nil {
				t.Errorf("%s is answered %+v", key, f)
			}
		}
	}
	if f := l.ask(t, "k4", "acme", aCommand, permission.Administrator); !errors.Is(f, access.ErrRateLimited) || fault.Of(f).RetryAfter <= 0 {
		t.Errorf("a seventh command is answered %+v", f)
	}
	if passed, _ := l.drain(t, "k4", "other", aCommand, permission.Administrator); passed != 6 {
		t.Errorf("in another tenant it may send %d commands, want 6", passed)
	}
}

// Refusals cost the one who is refused.
func TestRateOfDenied(t *testing.T) {
	l := newLimited(t, access.Limits{PerKey: access.RateOf(5)})
	for _, tenant := range []string{"acme", "unknown"} {
		if passed, _ := l.drain(t, "k-"+tenant, tenant, aCommand, permission.Auditor); passed != 10 {
			t.Errorf("%d commands to %s are denied before the limit, want 10", passed, tenant)
		}
	}
}

func TestNoLimits(t *testing.T) {
	l := newLimited(t, access.Limits{})
	if _, f := l.drain(t, "k1", "acme", aCommand, permission.Administrator); f != nil {
		t.Errorf("without limits it is refused: %+v", f)
	}
}

// What the limits cost is the difference between the two.
func BenchmarkLimits(b *testing.B) {
	for _, c := range []struct {
		name   string
		limits access.Limits
	}{
		{"none", access.Limits{}},
		{"both", access.Limits{PerKey: access.RateOf(1e8), PerTenant: access.RateOf(1e8)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLimited(b, c.limits)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if f := l.ask(b, "k1", "acme", aCommand, permission.Administrator); f != nil {
						b.Fatal(f)
					}
				}
			})
		})
	}
}

// Wrong keys are counted by address: a caller without a key is none who
// guesses, and another address is not concerned.
func TestWrongKeys(t *testing.T) {
	const most = 20
	wrong, none := "not-a-key", ""
	from := func(s string) netip.Addr { return netip.MustParseAddr(s) }
	l := newLimited(t, access.Limits{WrongKeys: most})
	try := func(address, key string, want error) {
		t.Helper()
		if _, err := l.Access.Authenticate(t.Context(), key, from(address)); !errors.Is(err, want) {
			t.Errorf("%s with %q: %v, want %v", address, key, err, want)
		}
	}
	for range 3 * most {
		try("192.0.2.1", none, service.ErrUnauthenticated)
		if _, err := l.Access.Authenticate(t.Context(), wrong, netip.Addr{}); errors.Is(err, access.ErrWrongKeys) {
			t.Fatal("what has no address is counted")
		}
	}
	for range most {
		if _, err := l.Access.Authenticate(t.Context(), wrong, from("192.0.2.1")); fault.Of(err).Kind != fault.Unauthenticated {
			t.Fatalf("a wrong key is answered %v", err)
		}
	}
	l.now = l.now.Add(20 * time.Second)
	_, err := l.Access.Authenticate(t.Context(), wrong, from("::ffff:192.0.2.1")) // the same address
	if f := fault.Of(err); !errors.Is(err, access.ErrWrongKeys) || f.Kind != fault.Throttled || f.RetryAfter != 40*time.Second {
		t.Errorf("one more is answered %+v", f)
	}
	try("192.0.2.1", none, access.ErrWrongKeys)
	try("192.0.2.2", none, service.ErrUnauthenticated)
	l.now = l.now.Add(40 * time.Second) // over, whatever came meanwhile
	try("192.0.2.1", none, service.ErrUnauthenticated)
	for range most {
		if _, err := l.Access.Authenticate(t.Context(), wrong, from("192.0.2.1")); errors.Is(err, access.ErrWrongKeys) {
			t.Fatal("the second minute is shorter")
		}
	}
	try("192.0.2.1", wrong, access.ErrWrongKeys)

	// One caller has a whole /64 of IPv6 addresses.
	for i := range most {
		_, _ = l.Access.Authenticate(t.Context(), wrong, from(fmt.Sprintf("2001:db8:0:1::%x", i+1)))
	}
	try("2001:db8:0:1:ffff::1", wrong, access.ErrWrongKeys)
	try("2001:db8:0:2::1", none, service.ErrUnauthenticated)
}

// What only looks like much work is refused before it is done.
func TestBombs(t *testing.T) {
	l := newLimited(t, access.Limits{})
	keys := func(n int) string {
		var b strings.Builder
		b.WriteString(`{"id":"a","descriptor":{`)
		for i := range n {
			fmt.Fprintf(&b, `"%x":0,`, i)
		}
		return strings.TrimSuffix(b.String(), ",") + "}}"
	}
	for _, c := range []struct {
		name, route, body string
		want              error
	}{
		{"a million arrays", aQuery, strings.Repeat("[", 1e6), service.ErrBodyTooDeep},
		{"a million objects", aQuery, strings.Repeat(`{"":`, 250_000), service.ErrBodyTooDeep},
		{"closed and opened again", aQuery, `{"from":[` + strings.Repeat("[],", 300_000) + `[]]}`, service.ErrBody},
		{"a million keys", aQuery, keys(1e6), service.ErrBodyTooLarge},
		{"as many keys as fit, not known", aQuery, keys(90_000), service.ErrBody},
		{"more than fits", aQuery, strings.Repeat(" ", service.MaxBody) + "{}", service.ErrBodyTooLarge},
		{"a long number", aQuery, `{"from":` + strings.Repeat("9", 1e6) + `}`, service.ErrBody},
		{"a long name", aQuery, `{"` + strings.Repeat("a", 1e6) + `":1}`, service.ErrBody},
	} {
		_, err := l.Serve(t.Context(), service.Call{
			Tenant: "acme", Principal: service.Principal{Actor: events.Actor{Kind: "key", ID: "k1"}, Tenants: []string{"acme"}, Role: permission.Administrator},
		}, c.route, []byte(c.body))
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if len(fmt.Sprint(err)) > 1000 {
			t.Errorf("%s: the answer repeats the request", c.name)
		}
	}
}

// Flow events and commands for the queue have a rate, too.
func TestRateOfMessages(t *testing.T) {
	l := newLimited(t, access.Limits{PerKey: access.RateOf(2)})
	call := service.Call{
		Tenant: "acme", Principal: service.Principal{Actor: events.Actor{Kind: "key", ID: "k1"}, Tenants: []string{"acme"}, Role: permission.Administrator},
	}
	for name, publish := range map[string]func() error{
		"flow event": func() error { return l.Flows.AdmitFlowEvent(t.Context(), call) },
		"command": func() error {
			_, err := l.Admin.CheckQueued(t.Context(), &call, aCommand, []byte(`{"id":"c"}`))
			return err
		},
	} {
		passed := 0
		for ; passed < 100 && publish() == nil; passed++ {
		}
		if err := publish(); passed != 4 || !errors.Is(err, access.ErrRateLimited) {
			t.Errorf("%s: after %d: %v, want 4 in two seconds", name, passed, err)
		}
		l.now = l.now.Add(time.Hour)
	}
	if passed, _ := l.drain(t, "k1", "acme", aCommand, permission.Administrator); passed != 4 {
		t.Errorf("messages are counted as commands: %d pass", passed)
	}
}
