package main

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/credstream/credstream/service"
)

// BenchmarkCreate is credential.create from 64 callers without an edge: what
// the application, the vault, the log, the views and the feed cost together.
func BenchmarkCreate(b *testing.B) {
	u := bring(b, b.TempDir())
	registerPlain(b, u.base)
	admin, err := u.svc.Authenticate(b.Context(), adminKey)
	must(b, err)
	var n atomic.Int64
	b.SetParallelism(32)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			i := n.Add(1)
			call := service.Call{Tenant: "default", Principal: admin, Via: "http", CommandID: fmt.Sprint("bench-", i)}
			body := fmt.Appendf(nil, `{"component":"plain","name":"Credential %d","keys":{"apiKey":"%d"}}`, i, i)
			if _, err := u.svc.Serve(b.Context(), call, "credential.create", body); err != nil {
				b.Error(err)
			}
		}
	})
}
