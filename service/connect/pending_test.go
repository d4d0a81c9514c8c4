package connect_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/connect"
)

// A tenant has a thousand connections under way, and others what they want. Those
// that have ended or expired do not count.
func TestConnectionsUnderWay(t *testing.T) {
	u, now := connect.NewPending(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	start := func(tenant string, n int, within time.Duration) error {
		return u.Start(tenant, fmt.Sprint(n), now, now.Add(within))
	}
	for n := range 1000 {
		if err := start("acme", n, 10*time.Minute); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		now = now.Add(time.Millisecond)
	}
	err := start("acme", 1000, 10*time.Minute)
	if f := fault.Of(err); !errors.Is(err, connect.ErrConnectionsLimit) || f.Kind != fault.Throttled || f.RetryAfter != 599*time.Second {
		t.Errorf("one more: %v, after %v", err, fault.Of(err).RetryAfter)
	}
	if err := start("other", 0, time.Minute); err != nil {
		t.Errorf("of another tenant: %v", err)
	}
	u.Update("acme", "7", "opened", now.Add(10*time.Minute))
	if err := start("acme", 1000, 10*time.Minute); !errors.Is(err, connect.ErrConnectionsLimit) {
		t.Errorf("after one was opened: %v", err)
	}
	for n, ended := range []string{"done", "failed"} {
		u.Update("acme", fmt.Sprint(n), ended, now)
		if err := start("acme", 1000+n, 10*time.Minute); err != nil {
			t.Errorf("after one is %s: %v", ended, err)
		}
	}
	now = now.Add(10 * time.Minute) // nothing but the last ones is left
	if err := start("acme", 1002, time.Minute); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"7", "1000", "1001", "1002"} {
		u.Update("acme", id, "done", now)
	}
	if connections, tenants := u.Len(); connections != 1 || tenants != 1 { // the other tenant's, which nobody has looked at
		t.Errorf("%d connections of %d tenants are remembered", connections, tenants)
	}
}
