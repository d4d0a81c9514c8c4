package service_test

import (
	"errors"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/memory"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// reached stands at the far side of the limits: commands that pass get no further.
var reached = errors.New("reached")

// limited is a service with limits, the tenants acme and other, and a clock.
type limited struct {
	*service.Service
	now time.Time
}

func newLimited(t testing.TB, limits service.Limits) *limited {
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
	l := &limited{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	l.Service, err = service.New(service.Config{
		Log: log, Limits: limits, WritesAllowed: func() error { return reached }, Now: func() time.Time { return l.now },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// ask sends a command or a query and returns how it was refused before the far side.
func (l *limited) ask(t testing.TB, key, tenant, route string, role service.Role) error {
	t.Helper()
	_, err := l.Serve(t.Context(), service.Call{
		Tenant: tenant, Principal: service.Principal{Actor: events.Actor{Kind: "key", ID: key}, Tenants: []string{"acme", "other"}, Role: role},
	}, route, []byte(`{}`))
	if errors.Is(err, reached) {
		return nil
	}
	return err
}

const (
	aCommand = "credential.verify"
	aQuery   = "events.replay" // answered from the log alone
)

// drain asks until the limit refuses, and returns how often it did not.
func (l *limited) drain(t testing.TB, key, tenant, route string, role service.Role) (passed int, refusal *fault.Error) {
	t.Helper()
	for ; passed < 1000; passed++ {
		if err := l.ask(t, key, tenant, route, role); errors.Is(err, service.ErrRateLimited) {
			return passed, fault.Of(err)
		}
	}
	return passed, nil
}

func TestRatePerKey(t *testing.T) {
	l := newLimited(t, service.Limits{PerKey: service.Rate{Commands: 2, Queries: 20}})
	passed, f := l.drain(t, "k1", "acme", aCommand, service.Administrator)
	if passed != 4 || f.Kind != fault.Throttled || f.RetryAfter != 500*time.Millisecond {
		t.Errorf("after %d commands: %+v; want 4 and half a second", passed, f)
	}
	if f := l.ask(t, "k1", "other", aCommand, service.Administrator); !errors.Is(f, service.ErrRateLimited) {
		t.Error("another tenant gives the key new tokens")
	}
	if passed, f := l.drain(t, "k1", "acme", aQuery, service.Administrator); passed != 40 || f.RetryAfter != 50*time.Millisecond {
		t.Errorf("after %d queries: %+v; want 40 of them", passed, f)
	}
	if passed, _ := l.drain(t, "k2", "acme", aCommand, service.Administrator); passed != 4 {
		t.Errorf("another key may send %d commands", passed)
	}
	l.now = l.now.Add(499 * time.Millisecond)
	if f := l.ask(t, "k1", "acme", aCommand, service.Administrator); !errors.Is(f, service.ErrRateLimited) {
		t.Errorf("too early it gets %+v", f)
	}
	l.now = l.now.Add(time.Millisecond)
	if passed, _ := l.drain(t, "k1", "acme", aCommand, service.Administrator); passed != 1 {
		t.Errorf("after half a second it may send %d commands, want 1", passed)
	}
	l.now = l.now.Add(time.Hour)
	if passed, _ := l.drain(t, "k1", "acme", aCommand, service.Administrator); passed != 4 {
		t.Errorf("after an hour it may send %d commands, want 4", passed)
	}
}

func TestRatePerTenant(t *testing.T) {
	l := newLimited(t, service.Limits{PerTenant: service.Rate{Commands: 3}})
	if passed, _ := l.drain(t, "k1", "acme", aQuery, service.Administrator); passed != 1000 {
		t.Errorf("queries are refused after %d", passed)
	}
	for range 1000 { // of who may not, nothing is counted against the tenant
		if f := l.ask(t, "k1", "acme", aCommand, service.Operator); !errors.Is(f, service.ErrDenied) {
			t.Fatalf("an operator's command is answered %+v", f)
		}
	}
	for _, key := range []string{"k1", "k2", "k3"} {
		for range 2 {
			if f := l.ask(t, key, "acme", aCommand, service.Administrator); f != nil {
				t.Errorf("%s is answered %+v", key, f)
			}
		}
	}
	if f := l.ask(t, "k4", "acme", aCommand, service.Administrator); !errors.Is(f, service.ErrRateLimited) || fault.Of(f).RetryAfter <= 0 {
		t.Errorf("a seventh command is answered %+v", f)
	}
	if passed, _ := l.drain(t, "k4", "other", aCommand, service.Administrator); passed != 6 {
		t.Errorf("in another tenant it may send %d commands, want 6", passed)
	}
}

// Refusals cost the one who is refused.
func TestRateOfDenied(t *testing.T) {
	l := newLimited(t, service.Limits{PerKey: service.RateOf(5)})
	for _, tenant := range []string{"acme", "unknown"} {
		if passed, _ := l.drain(t, "k-"+tenant, tenant, aCommand, service.Auditor); passed != 10 {
			t.Errorf("%d commands to %s are denied before the limit, want 10", passed, tenant)
		}
	}
}

func TestNoLimits(t *testing.T) {
	l := newLimited(t, service.Limits{})
	if _, f := l.drain(t, "k1", "acme", aCommand, service.Administrator); f != nil {
		t.Errorf("without limits it is refused: %+v", f)
	}
}

// What the limits cost is the difference between the two.
func BenchmarkLimits(b *testing.B) {
	for _, c := range []struct {
		name   string
		limits service.Limits
	}{
		{"none", service.Limits{}},
		{"both", service.Limits{PerKey: service.RateOf(1e8), PerTenant: service.RateOf(1e8)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLimited(b, c.limits)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if f := l.ask(b, "k1", "acme", aCommand, service.Administrator); f != nil {
						b.Fatal(f)
					}
				}
			})
		})
	}
}
