package kv_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/service/throttle"
)

// throttleProcesses are the buckets as n processes see them, on one real server.
func throttleProcesses(t testing.TB, n int) (all []*kv.ThrottleBuckets) {
	t.Helper()
	node, err := natsserver.StartNode(t.Context(), natsserver.NodeConfig{Dir: t.TempDir(), MinFree: 1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = node.Shutdown(context.WithoutCancel(t.Context())) })
	for range n {
		nc, err := node.Conn("throttle")
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		b, err := kv.OpenThrottle(t.Context(), js, 1)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	return all
}

// moved is a process's view of the buckets whose clock the test moves.
type moved struct {
	*kv.ThrottleBuckets
	at *atomic.Int64 // microseconds since 1970
}

func (m moved) Now(context.Context) (time.Time, error) { return time.UnixMicro(m.at.Load()), nil }

// Three processes take from one bucket at once, as fast as they can: in each of several
// periods what is granted is the limit to the token, and over all of them, the waiting for
// the slots included, within 5% of what the policy says.
func TestThrottleIsAccurate(t *testing.T) {
	limit := throttle.Limit{Tokens: 200, Per: time.Minute}
	var at atomic.Int64
	start := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC).UnixMicro()
	at.Store(start)
	var processes []*throttle.Taker
	for _, b := range throttleProcesses(t, 3) {
		taker, err := throttle.NewTaker(moved{b, &at})
		if err != nil {
			t.Fatal(err)
		}
		processes = append(processes, taker)
	}
	const rounds = 5
	total := int64(0)
	for round := range rounds {
		var granted, denied atomic.Int64
		var wait atomic.Int64
		var all sync.WaitGroup
		for p, taker := range processes {
			for range 4 {
				all.Go(func() {
					for range 40 {
						taken, err := taker.Take(t.Context(), "acme", "c1", limit, "one flow", 1)
						switch {
						case err != nil:
							t.Errorf("process %d: %v", p, err)
						case taken.Granted:
							granted.Add(1)
						default:
							denied.Add(1)
							wait.Store(taken.RetryAfter)
						}
					}
				})
			}
		}
		all.Wait()
		if granted.Load() != limit.Tokens || granted.Load()+denied.Load() != 480 {
			t.Errorf("round %d: %d granted, %d denied, want %d granted", round, granted.Load(), denied.Load(), limit.Tokens)
		}
		total += granted.Load()
		at.Add(wait.Load() * 1000) // as they are told to wait
	}
	elapsed := float64(at.Load()-start) / float64(limit.Per.Microseconds())
	if want := elapsed * float64(limit.Tokens); float64(total) < 0.95*want || float64(total) > want {
		t.Errorf("%d granted in %.3f periods, want %.0f less 5%% at most", total, elapsed, want)
	}
}

// A process that starts again finds what was taken, and one whose state is old is told so.
func TestThrottleSurvivesRestart(t *testing.T) {
	b := throttleProcesses(t, 2)
	limit := throttle.Limit{Tokens: 3, Per: time.Hour}
	for run := range 3 {
		taker, err := throttle.NewTaker(b[run%2])
		if err != nil {
			t.Fatal(err)
		}
		if taken, err := taker.Take(t.Context(), "acme", "=c1", limit, "", 1); !taken.Granted || taken.Remaining != int64(2-run) || err != nil {
			t.Errorf("run %d: %+v, %v", run, taken, err)
		}
		if taken, err := taker.Take(t.Context(), "other", "=c1", limit, "", 3); taken.Granted != (run == 0) || err != nil {
			t.Errorf("run %d of another tenant: %+v, %v", run, taken, err)
		}
	}
	if _, err := b[0].Store(t.Context(), "acme", "=c1", []byte("{}"), 0); !errors.Is(err, throttle.ErrMoved) {
		t.Errorf("an old revision is stored: %v", err)
	}
	now, err := b[0].Now(t.Context())
	if off := time.Since(now).Abs(); off > time.Minute || err != nil {
		t.Errorf("the server's clock is off by %v: %v", off, err)
	}
}

// What cannot be read or stored grants nothing.
func TestThrottleUnavailable(t *testing.T) {
	s := bustest.Start(t)
	nc, err := bustest.StartCluster(t, s).Conn("throttle")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	b, err := kv.OpenThrottle(t.Context(), js, 1)
	if err != nil {
		t.Fatal(err)
	}
	taker, err := throttle.NewTaker(b)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if taken, err := taker.Take(t.Context(), "acme", "c1", throttle.Limit{Tokens: 3, Per: time.Hour}, "", 1); taken.Granted || !errors.Is(err, throttle.ErrUnavailable) {
		t.Errorf("without a server: %+v, %v", taken, err)
	}
}

func benchmarkThrottle(b *testing.B, processes int) {
	limit := throttle.Limit{Tokens: throttle.MaxTokens, Per: time.Hour}
	var takers []*throttle.Taker
	for _, buckets := range throttleProcesses(b, processes) {
		taker, err := throttle.NewTaker(buckets)
		if err != nil {
			b.Fatal(err)
		}
		takers = append(takers, taker)
	}
	var n atomic.Int64
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		taker := takers[int(n.Add(1))%len(takers)]
		for pb.Next() {
			if taken, err := taker.Take(b.Context(), "acme", "c1", limit, "f", 1); !taken.Granted || err != nil {
				b.Error(taken, err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "takes/s")
}

func BenchmarkThrottle(b *testing.B)      { benchmarkThrottle(b, 1) }
func BenchmarkThrottleThree(b *testing.B) { benchmarkThrottle(b, 3) }

// A stream that was deleted, or lost with a whole cluster, is created again by the first take.
func TestThrottleStreamIsCreatedAgain(t *testing.T) {
	b := throttleProcesses(t, 1)[0]
	if err := b.DeleteStream(t.Context()); err != nil {
		t.Fatal(err)
	}
	taker, err := throttle.NewTaker(b)
	if err != nil {
		t.Fatal(err)
	}
	if taken, err := taker.Take(t.Context(), "acme", "c", throttle.Limit{Tokens: 5, Per: time.Minute}, "f", 1); err != nil || !taken.Granted {
		t.Errorf("%+v: %v", taken, err)
	}
}
