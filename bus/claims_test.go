package bus_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus"
	"github.com/credstream/credstream/bus/bustest"
)

// oneClaims lets many claim the same ids by way of two processes: one is first,
// and everybody learns whose request that was.
func oneClaims(t *testing.T, processes ...*bus.Claims) {
	t.Helper()
	const ids, callers = 20, 8
	type result struct {
		mine   bool
		holder string
	}
	var results [ids][callers]result
	var work sync.WaitGroup
	for id := range ids {
		for n := range callers {
			work.Go(func() {
				r := &results[id][n]
				var err error
				r.mine, r.holder, err = processes[n%len(processes)].Claim(t.Context(), [32]byte{9, byte(id)}, fmt.Sprint("request ", n))
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	work.Wait()
	for id := range results {
		first := -1
		for n, r := range results[id] {
			if r.mine && first >= 0 {
				t.Errorf("id %d was claimed by %d and by %d", id, first, n)
			} else if r.mine {
				first = n
			}
		}
		for n, r := range results[id] {
			if r.holder != fmt.Sprint("request ", first) {
				t.Errorf("id %d was claimed by %d, but %d is told of %q", id, first, n, r.holder)
			}
		}
	}
}

func TestClaims(t *testing.T) {
	s := bustest.Start(t)
	var processes []*bus.Claims
	for range 2 {
		nc, err := startCluster(t, s).Conn("claims")
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := bus.OpenClaims(t.Context(), js, 1)
		if err != nil {
			t.Fatal(err)
		}
		processes = append(processes, claims)
	}
	oneClaims(t, processes...)
	key := [32]byte{1, 2, 3}
	claim := func(process int, request string, wantMine bool, wantHolder string) {
		t.Helper()
		mine, holder, err := processes[process].Claim(t.Context(), key, request)
		if err != nil || mine != wantMine || holder != wantHolder {
			t.Errorf("got %v, %q, %v", mine, holder, err)
		}
	}
	claim(0, "a", true, "a")
	claim(0, "a", false, "a") // again, by the same process: it was obeyed, or is
	claim(1, "a", false, "a")
	claim(1, "b", false, "a")
	if err := processes[0].Drop(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	claim(1, "b", true, "b")
	claim(0, "a", false, "b")
	// The claims are gone with the memory of a single server, the stream comes back.
	s.Stop(0)
	s.StartNode(0)
	s.Ready()
	claim(1, "c", true, "c")
	claim(0, "d", false, "c")
}

func BenchmarkClaim(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		b.Run(fmt.Sprint(nodes, " servers"), func(b *testing.B) {
			s := bustest.Start(b, bustest.Nodes(nodes))
			cfg := s.Config()
			cfg.AttestSyncAlways = true
			c, err := bus.Connect(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Shutdown(b.Context())
			nc, err := c.Conn("claims")
			if err != nil {
				b.Fatal(err)
			}
			js, err := jetstream.New(nc)
			if err != nil {
				b.Fatal(err)
			}
			claims, err := bus.OpenClaims(b.Context(), js, nodes)
			if err != nil {
				b.Fatal(err)
			}
			var n uint32
			for b.Loop() {
				n++
				if mine, _, err := claims.Claim(b.Context(), [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}, "request"); err != nil || !mine {
					b.Fatal(mine, err)
				}
			}
		})
	}
}
