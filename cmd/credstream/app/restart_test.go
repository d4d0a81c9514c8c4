package app

import (
	"errors"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/credstream/credstream/bus/bustest"
)

// A NATS server that goes and comes back is an outage, not a fault of the service: what
// cannot be answered meanwhile is refused with 503 and the outcome is the caller's to
// repeat, and afterwards every call works again.
func TestServerRestartsUnderCalls(t *testing.T) {
	u := bring(t, t.TempDir())
	pets := newPetstore(t, "right-canary")
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	var made struct{ ID string }
	create := map[string]any{"component": "petstore", "keys": map[string]string{"apiKey": "right-canary"}}
	must(t, u.command("credential.create", "", create, &made))

	engine := u.as(u.engine(t))
	calls := map[string]func() error{
		"create": func() error { return u.command("credential.create", "", create, nil) },
		"verify": func() error { return u.command("credential.verify", "", map[string]any{"id": made.ID}, nil) },
		"rename": func() error {
			return u.command("credential.rename", "", map[string]any{"id": made.ID, "name": "Pets"}, nil)
		},
		"resolve": func() error { return engine.query("credential.resolve", "cleartext=true&id="+made.ID, nil) },
		"key":     func() error { return u.command("api_key.issue", "", map[string]any{"role": "AUDITOR"}, nil) },
		"history": func() error { return u.query("credential.history", "id="+made.ID, nil) },
		"list":    func() error { return u.query("credential.list", "", nil) },
	}
	var callers sync.WaitGroup
	stop := make(chan struct{})
	for name, call := range calls {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := call()
				if refused, ok := errors.AsType[*apiError](err); err != nil && (!ok || refused.Status != http.StatusServiceUnavailable && refused.Code != "conflict") {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		must(t, u.node.Restart(t.Context()))
	}
	close(stop)
	callers.Wait()
	for name, call := range calls {
		bustest.Eventually(t, name+" works again", func() bool { return call() == nil })
	}
}
