package app

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/service"
)

// BenchmarkCreate is credential.create from 64 callers without an edge: what
// the application, the vault, the log, the views and the feed cost together.
func BenchmarkCreate(b *testing.B) {
	u := bring(b, b.TempDir())
	registerPlain(b, u.base)
	admin, err := u.svc.Access.Authenticate(b.Context(), adminKey, netip.Addr{})
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

// BenchmarkGet is credential.get from many callers, its answer encoded, without
// an edge.
func BenchmarkGet(b *testing.B) {
	u := bring(b, b.TempDir())
	registerPlain(b, u.base)
	admin, err := u.svc.Access.Authenticate(b.Context(), adminKey, netip.Addr{})
	must(b, err)
	var bodies [][]byte
	var d done
	for i := range 500 {
		must(b, u.command("credential.create", "", map[string]any{
			"component": "plain", "name": fmt.Sprint("Credential ", i), "keys": map[string]string{"apiKey": "k"},
		}, &d))
		bodies = append(bodies, fmt.Appendf(nil, `{"id":%q}`, d.ID))
	}
	must(b, u.query("credential.get", fmt.Sprint("id=", d.ID, "&min_seq=", d.Seq), nil))
	call := service.Call{Tenant: "default", Principal: admin, Via: "http"}
	var n atomic.Int64
	b.SetParallelism(32)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			answer, err := u.svc.Serve(b.Context(), call, "credential.get", bodies[n.Add(1)%500])
			if err != nil {
				b.Error(err)
			}
			if _, err := json.Marshal(answer); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkAuthorize is what it costs to know a caller and to let it through.
func BenchmarkAuthorize(b *testing.B) {
	u := bring(b, b.TempDir())
	call := service.Call{Tenant: "default", Via: "nats"}
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if call.Principal, err = u.svc.Access.Authenticate(b.Context(), adminKey, netip.Addr{}); err != nil {
			b.Fatal(err)
		}
		if err := u.svc.Flows.AdmitFlowEvent(b.Context(), call); err != nil {
			b.Fatal(err)
		}
	}
}
