package app

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/service"
)

var manyTenants = flag.Int("tenants", 0, "measure processes with so many tenants, and assert what 10000 may cost")

// registerTenants fills a new data folder with tenants.
func registerTenants(t *testing.T, data string, n int) {
	t.Helper()
	u := bring(t, data, func(c *Config) { c.RatePerKey, c.RatePerTenant = 1_000_000, 1_000_000 })
	admin, err := u.svc.Access.Principal(t.Context(), "first-administrator")
	must(t, err)
	var g errgroup.Group
	g.SetLimit(64)
	for i := range n {
		g.Go(func() error {
			call := service.Call{Tenant: "default", Principal: admin, Via: "http"}
			_, err := u.svc.Serve(t.Context(), call, "tenant.register", fmt.Appendf(nil, `{"id":"tenant-%d"}`, i))
			return err
		})
	}
	must(t, g.Wait())
	u.stop()
}

// A tenant that nobody uses costs next to nothing: no goroutine, and little memory.
func TestIdleTenants(t *testing.T) {
	const n = 200
	cost := func(tenants, most int) (bytes, goroutines int) {
		data := t.TempDir()
		registerTenants(t, data, tenants)
		u := bring(t, data)
		must(t, u.proj.Wait(t.Context(), u.feed.Position()))
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) { // what the start needed goes
			var m runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&m)
			bytes, goroutines = int(m.HeapAlloc+m.StackInuse), runtime.NumGoroutine()
			if bytes <= most || time.Now().After(end) {
				break
			}
		}
		u.stop()
		return bytes, goroutines
	}
	_, _ = cost(0, 1<<40) // what is made once in the life of a process
	bytes, goroutines := cost(0, 1<<40)
	moreBytes, moreGoroutines := cost(n, bytes+n*(20<<10))
	t.Logf("a tenant costs %d bytes; %d goroutines, %d with %d tenants", (moreBytes-bytes)/n, goroutines, moreGoroutines, n)
	if (moreBytes-bytes)/n > 20<<10 {
		t.Errorf("a tenant costs %d bytes, want at most 20 KiB", (moreBytes-bytes)/n)
	}
	if moreGoroutines-goroutines > n/4 { // a tenant had eight
		t.Errorf("%d goroutines with %d tenants, %d with one", moreGoroutines, n, goroutines)
	}
}

// metric reads one number of the process.
func (p *process) metric(t *testing.T, name string) int {
	t.Helper()
	resp, err := http.Get(p.http + "/metrics")
	must(t, err)
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	must(t, resp.Body.Close())
	_, after, _ := strings.Cut(string(text), "\n"+name+" ")
	line, _, _ := strings.Cut(after, "\n")
	value, err := strconv.ParseFloat(line, 64)
	must(t, err)
	return int(value)
}

// With -tenants 10000 this says what that many cost a process: memory, and the time that it
// takes to start and to stop.
func TestManyTenants(t *testing.T) {
	if *manyTenants == 0 {
		t.Skip("measured with -tenants 10000 only")
	}
	type cost struct {
		Start, Stop     time.Duration
		RSS, Goroutines int
	}
	measure := func(tenants int) cost {
		data := filepath.Join(t.TempDir(), "data")
		registerTenants(t, data, tenants)
		began := time.Now()
		p := spawn(t, data, "--log-level", "error")
		c := cost{Start: time.Since(began)}
		time.Sleep(20 * time.Second) // it gives memory back when it is idle
		c.RSS, c.Goroutines = p.metric(t, "process_resident_memory_bytes"), p.metric(t, "go_goroutines")
		began = time.Now()
		if err := p.kill(syscall.SIGTERM); err != nil || strings.Contains(p.logs.String(), "NATS did not stop cleanly") {
			t.Errorf("with %d tenants the stop is not clean: %v\n%s", tenants, err, p.logs)
		}
		c.Stop = time.Since(began)
		t.Logf("%d tenants: started in %v, stopped in %v, %d MB, %d goroutines", tenants, c.Start, c.Stop, c.RSS>>20, c.Goroutines)
		return c
	}
	one, many := measure(0), measure(*manyTenants)
	if each := (many.RSS - one.RSS) / *manyTenants; each > 20<<10 {
		t.Errorf("a tenant costs %d bytes of memory, want at most 20 KiB", each)
	}
	if many.Start > one.Start+2*time.Second {
		t.Errorf("the start takes %v, with one tenant %v", many.Start, one.Start)
	}
}

// A feed that is deleted while the service runs is written again, and its readers go on.
func TestDeletedFeed(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	u.create(t)
	js, err := jetstream.New(u.connect(t, adminKey))
	must(t, err)
	own, err := jetstream.New(mustConn(t, u.program))
	must(t, err)
	read := func(stream, consumer string) string {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			c, err := js.Consumer(t.Context(), stream, consumer)
			if err == nil {
				var m jetstream.Msg
				if m, err = c.Next(jetstream.FetchMaxWait(time.Second)); err == nil {
					must(t, m.DoubleAck(t.Context()))
					return m.Headers().Get("ce-id")
				}
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v", consumer, err)
			}
		}
	}
	for _, of := range [][2]string{{streams.FeedStream, streams.EngineConsumer("default")}, {streams.AuditStream, streams.AuditConsumer("default")}} {
		first := read(of[0], of[1])
		must(t, own.DeleteStream(t.Context(), of[0]))
		if again := read(of[0], of[1]); again != first {
			t.Errorf("%s begins with %s, before with %s", of[1], again, first)
		}
	}
}
