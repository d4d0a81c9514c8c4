package app

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/credstream/credstream/bus/bustest"
)

// stopsWithin is how long a stop may take on a busy machine; it is meant to take 5 s.
const stopsWithin = 15 * time.Second

// A process stops though NATS hangs or is gone, with requests and roles under way.
func TestStopsWithoutNATS(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		how string
		end func(*bustest.NATS)
	}{
		{"hangs", func(s *bustest.NATS) { s.Freeze(0) }},
		{"is gone", func(s *bustest.NATS) { s.Kill(0) }},
	} {
		t.Run(c.how, func(t *testing.T) {
			t.Parallel()
			servers := bustest.Start(t)
			p := replica(t, servers, kmsFile(t))
			registerPlain(t, p.http)
			c.end(servers)
			asking, stop := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			for n := range 8 {
				a := caller(p)
				a.client = &http.Client{}
				clients.Go(func() {
					for i := 0; asking.Err() == nil; i++ {
						_ = a.command("credential.create", fmt.Sprint("c", n, "-", i), map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, nil)
						time.Sleep(10 * time.Millisecond)
					}
				})
			}
			time.Sleep(time.Second) // requests and renewals are on their way
			told := time.Now()
			ended := make(chan error, 1)
			go func() { ended <- p.kill(syscall.SIGTERM) }()
			select {
			case err := <-ended:
				t.Logf("stopped after %v: %v", time.Since(told), err)
			case <-time.After(stopsWithin):
				_ = p.cmd.Process.Signal(syscall.SIGQUIT)
				t.Errorf("it does not stop: %v\n%s", <-ended, p.logs)
			}
			stop()
			clients.Wait()
		})
	}
}
