package vault_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/vault"
)

// BenchmarkPut puts 300-byte secrets without a sync; -cpu sets the callers with
// SetParallelism below.
func BenchmarkPut(b *testing.B) {
	for _, callers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint("callers=", callers), func(b *testing.B) {
			n := startNode(b, b.TempDir(), "acme")
			v := vault.New(n.js, n.keys, nil)
			var id atomic.Int64
			b.SetParallelism(callers) // times GOMAXPROCS
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := fmt.Sprint(id.Add(1))
					r := vault.Ref{Tenant: "acme", Category: "credential", Owner: i, SecretID: i}
					if err := v.Put(b.Context(), r, seal.NewSecret(make([]byte, 300))); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "puts/s")
		})
	}
}

func BenchmarkGet(b *testing.B) {
	n := startNode(b, b.TempDir(), "acme")
	v := vault.New(n.js, n.keys, nil)
	if err := v.Put(b.Context(), ref("s1"), seal.NewSecret(make([]byte, 300))); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := v.Get(b.Context(), ref("s1")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkErase erases from a full block among others.
func BenchmarkErase(b *testing.B) {
	n := startNode(b, b.TempDir(), "acme")
	v := vault.New(n.js, n.keys, nil)
	for i := range b.N + 20000 {
		if err := v.Put(b.Context(), ref(fmt.Sprint(i)), seal.NewSecret(make([]byte, 300))); err != nil {
			b.Fatal(err)
		}
	}
	b.ResetTimer()
	for i := range b.N {
		if err := v.Erase(b.Context(), ref(fmt.Sprint(i))); err != nil {
			b.Fatal(err)
		}
	}
}
