package projections_test

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// tape is a log of records that are decoded already, so that a benchmark
// measures the views alone.
type tape struct {
	events.Store
	recs []events.Record
}

func (s tape) End(context.Context) (uint64, error) { return s.recs[len(s.recs)-1].Seq, nil }

func (s tape) Follow(ctx context.Context, after uint64) iter.Seq2[events.Record, error] {
	return func(yield func(events.Record, error) bool) {
		i, _ := slices.BinarySearchFunc(s.recs, after+1, func(r events.Record, seq uint64) int { return int(r.Seq) - int(seq) })
		for ; i < len(s.recs); i++ {
			if !yield(s.recs[i], nil) {
				return
			}
		}
		<-ctx.Done()
	}
}

var words = []string{"Orders", "CRM", "billing", "production", "staging", "Petstore", "sales", "EU", "backup", "webhook", "invoices", "sync"}

// created are n commits that each create a credential, for 50 tenants, in about
// 900 bytes of JSON.
func created(n int) []events.Record {
	rng := rand.New(rand.NewPCG(1, 2))
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	recs := make([]events.Record, n)
	for i := range recs {
		tenant := fmt.Sprintf("tenant-%02d", i%50)
		recs[i] = events.Record{
			Stream: events.StreamID{Tenant: tenant, Category: "credential", ID: events.DeriveID(tenant, events.Actor{Kind: "key", ID: "1"}, fmt.Sprint(i), "credential")},
			Seq:    uint64(i + 1), Of: 1,
			Meta: events.Meta{
				Commit: fmt.Sprintf("0198c1a0-0000-7000-8000-%012d", i), Tenant: tenant, Actor: events.Actor{Kind: "key", ID: "0198c1a0-0000-7000-8000-00000000000a"},
				Command: fmt.Sprintf("cmd-%d", i), Request: "5f3c7b0c2c1f4e0d9f3e5a6b7c8d9e0f5f3c7b0c2c1f4e0d9f3e5a6b7c8d9e0f", Correlation: fmt.Sprintf("0198c1a0-0000-7000-8000-%012d", i), Time: at.Add(time.Duration(i) * time.Millisecond), Via: "http",
			},
			Event: events.CredentialCreated{
				Component: fmt.Sprintf("component-%d", rng.IntN(20)),
				Name:      fmt.Sprintf("%s %s %d", words[rng.IntN(len(words))], words[rng.IntN(len(words))], i),
				Keys: events.KeysVersion{
					Version: 1, SecretID: fmt.Sprintf("0198c1a0-1111-7000-8000-%012d", i), Fields: []string{"apiKey", "domain"}, Revision: 1,
					Hosts: []string{"petstore.example.org", "{{domain}}.example.com"}, HostMAC: "9d1c7b0c2c1f4e0d9f3e5a6b7c8d9e0f",
					Verification: events.Verification{Status: events.Verified, Probe: "http", Outcome: "2xx", LatencyMS: 12},
				},
			},
		}
	}
	return recs
}

func open(tb testing.TB, path string) *projections.Views {
	tb.Helper()
	v, err := projections.OpenViews(path, projections.ViewsOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := v.Close(); err != nil {
			tb.Error(err)
		}
	})
	return v
}

const benchRows = 100_000

func BenchmarkRebuild(b *testing.B) {
	log := tape{recs: created(benchRows)}
	for b.Loop() {
		v := open(b, filepath.Join(b.TempDir(), "views.db"))
		if err := v.Rebuild(b.Context(), log, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(benchRows*b.N)/b.Elapsed().Seconds(), "events/s")
}

func BenchmarkApply(b *testing.B) {
	recs := created(benchRows)
	for _, size := range []int{1, 8, 64, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			v, n := open(b, filepath.Join(b.TempDir(), "views.db")), 0
			for b.Loop() {
				if n+size > len(recs) {
					b.StopTimer()
					v, n = open(b, filepath.Join(b.TempDir(), "views.db")), 0
					b.StartTimer()
				}
				if err := v.Apply(b.Context(), recs[n:n+size]); err != nil {
					b.Fatal(err)
				}
				n += size
			}
			b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	recs := created(benchRows)
	for i := range recs { // half of all in one tenant
		if i%2 == 0 {
			recs[i].Stream.Tenant, recs[i].Meta.Tenant = "big", "big"
		} else { // the other half has no names
			e := recs[i].Event.(events.CredentialCreated) //nolint:forcetypeassert // created makes no other
			e.Name = ""
			recs[i].Event = e
			recs[i].Stream.Tenant, recs[i].Meta.Tenant = "nameless", "nameless"
		}
	}
	v := open(b, filepath.Join(b.TempDir(), "views.db"))
	if err := v.Rebuild(b.Context(), tape{recs: recs}, nil); err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	rng := rand.New(rand.NewPCG(1, 2))
	pick := func() events.Record { return recs[rng.IntN(len(recs)/2)*2] }
	b.Run("get", func(b *testing.B) {
		for b.Loop() {
			r := pick()
			if _, ok, err := v.Credential(ctx, r.Stream.Tenant, r.Stream.ID); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("command hit", func(b *testing.B) {
		for b.Loop() {
			r := pick()
			if _, ok, err := v.Command(ctx, r.Meta.Tenant, r.Meta.Actor, r.Meta.Command); !ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	b.Run("command miss", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			if _, ok, err := v.Command(ctx, "big", events.Actor{Kind: "key", ID: "x"}, fmt.Sprint(n)); ok || err != nil {
				b.Fatal(ok, err)
			}
		}
	})
	list := func(name string, f projections.CredentialFilter) {
		if f.Tenant == "" {
			f.Tenant = "big"
		}
		b.Run(name, func(b *testing.B) {
			var slowest time.Duration
			pages := 0
			for b.Loop() {
				start := time.Now()
				_, next, err := v.Credentials(ctx, f)
				slowest = max(slowest, time.Since(start))
				if err != nil {
					b.Fatal(err)
				}
				f.After = next
				pages++
			}
			b.ReportMetric(float64(slowest.Microseconds()), "max-us")
		})
	}
	list("list name", projections.CredentialFilter{})
	list("list created", projections.CredentialFilter{Sort: "created", Desc: true})
	list("list nameless", projections.CredentialFilter{Tenant: "nameless"})
	list("contains in nameless", projections.CredentialFilter{Tenant: "nameless", NameContains: "a"})
	list("list component", projections.CredentialFilter{Component: "component-7"})
	list("list component status created", projections.CredentialFilter{Component: "component-7", Status: events.Verified, Sort: "created"})
	list("contains common", projections.CredentialFilter{NameContains: "prod"})
	list("contains common by creation", projections.CredentialFilter{NameContains: "prod", Sort: "created"})
	list("contains rare", projections.CredentialFilter{NameContains: "orders crm 123"})
	list("contains short", projections.CredentialFilter{NameContains: "cr"})
	list("contains nothing", projections.CredentialFilter{NameContains: "q"})
	list("contains in component", projections.CredentialFilter{NameContains: "prod", Component: "component-7"})
	b.Run("counts", func(b *testing.B) {
		for b.Loop() {
			if _, err := v.CredentialCounts(ctx, "big", projections.CredentialFilter{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// started are n flows that start with one credential, as facts in three streams
// each: three commits a flow, after the credential's own.
func started(n int) []events.Record {
	recs := created(1)
	tenant, credential := recs[0].Stream.Tenant, recs[0].Stream.ID
	add := func(category, id string, e events.Event) {
		r := recs[0]
		r.Stream, r.Seq, r.Event = events.StreamID{Tenant: tenant, Category: category, ID: id}, uint64(len(recs)+1), e
		r.Meta.Command = fmt.Sprint("flow-", len(recs))
		recs = append(recs, r)
	}
	for i := range n {
		flow := fmt.Sprintf("flow-%05d", i)
		add("flow", flow, events.FlowObserved{Change: events.FlowWasStarted, Name: flow, Revision: 1, Active: true, Steps: []events.FlowStep{
			{ID: "step_1", Name: "Get pets", Component: "petstore", Credential: credential}, {ID: "step_2", Name: "Write rows", Component: "sheets"},
		}})
		add("credential", credential, events.CredentialUsed{Flow: flow, Revision: 1, Named: true, Active: true, Steps: []string{"step_1"}})
		add("oauth_client", "petstore", events.OAuthClientUsed{Flow: flow, Revision: 1})
	}
	return recs
}

func BenchmarkFlows(b *testing.B) {
	const flows = 10_000
	recs := started(flows)
	for _, size := range []int{15, 1000} {
		b.Run(fmt.Sprint("apply ", size), func(b *testing.B) {
			for b.Loop() {
				v := open(b, filepath.Join(b.TempDir(), "views.db"))
				for batch := range slices.Chunk(recs, size) {
					if err := v.Apply(b.Context(), batch); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(flows*b.N)/b.Elapsed().Seconds(), "flows/s")
		})
	}
	b.Run("rebuild", func(b *testing.B) {
		for b.Loop() {
			v := open(b, filepath.Join(b.TempDir(), "views.db"))
			if err := v.Rebuild(b.Context(), tape{recs: recs}, nil); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(flows*b.N)/b.Elapsed().Seconds(), "flows/s")
	})
	v := open(b, filepath.Join(b.TempDir(), "views.db"))
	if err := v.Apply(b.Context(), recs); err != nil {
		b.Fatal(err)
	}
	tenant, credential := recs[0].Stream.Tenant, recs[0].Stream.ID
	reads := map[string]func() error{
		"in-use value": func() error { _, _, err := v.InUseOf(b.Context(), tenant, "credential", credential); return err },
		"where used": func() error {
			_, _, err := v.Flows(b.Context(), projections.FlowFilter{Tenant: tenant, Credential: credential})
			return err
		},
		"where used by broken": func() error {
			_, _, err := v.Flows(b.Context(), projections.FlowFilter{Tenant: tenant, Credential: credential, Broken: true})
			return err
		},
		"unsettled": func() error { _, err := v.UnsettledFlows(b.Context(), 200); return err },
		"flow":      func() error { _, _, err := v.Flow(b.Context(), tenant, "flow-07000"); return err },
	}
	for name, read := range reads {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := read(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("delete", func(b *testing.B) {
		gone := recs[0]
		gone.Seq, gone.Event = uint64(len(recs)+1), events.CredentialDeleted{}
		for b.Loop() {
			b.StopTimer()
			v := open(b, filepath.Join(b.TempDir(), "views.db"))
			if err := v.Apply(b.Context(), recs); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			if err := v.Apply(b.Context(), []events.Record{gone}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
