package natsserver_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
)

func TestOneWarningAMinuteForEachKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &bustest.LogBuffer{}
		log := natsserver.NewServerLog(out.Logger())
		const alice = `127.0.0.1:40000 - cid:7 - "v1.55.0:go" - "KEY_alice_ABCDEFGHIJKLMNOPQRSTUVWXYZ/user:alice" - `
		// A client calls itself as if it were another.
		const bob = `[::1]:40001 - cid:8 - "KEY_alice_ABCDEFGHIJKLMNOPQRSTUVWXYZ/user:alice" - "KEY_bob_x-y_ZBCDEFGHIJKLMNOPQRSTUVWXYZ/user:bob_x-y" - `
		provoke := func(n int) {
			for range n {
				log.Errorf(alice+"Publish Violation - Subject %q", "a")
				log.Errorf("%s", bob+`Client Error "KEY_alice_ABCDEFGHIJKLMNOPQRSTUVWXYZ/user:alice" - x`)
				log.Errorf("192.0.2.1:4000 - cid:9 - authentication error - User unknown")
			}
		}
		lines := func() (n int) {
			synctest.Wait()
			defer out.Reset()
			text := out.String()
			if strings.Contains(text, "ERROR") || strings.Contains(text, "KEY_alice_A") || strings.Contains(text, "KEY_bob_x-y_Z") {
				t.Errorf("an error, or the name of an account:\n%s", text)
			}
			return strings.Count(text, "level=WARN")
		}
		provoke(1000)
		if !strings.Contains(out.String(), "principal=bob_x-y count=1 from=[::1]") || strings.Count(out.String(), "principal=alice") != 1 {
			t.Errorf("the log:\n%s", out)
		}
		if n := lines(); n != 3 {
			t.Errorf("%d warnings at once", n)
		}
		provoke(1000)
		time.Sleep(time.Minute)
		if synctest.Wait(); strings.Count(out.String(), "count=1999") != 3 {
			t.Errorf("after a minute:\n%s", out)
		}
		if n := lines(); n != 3 {
			t.Errorf("%d warnings after a minute", n)
		}
		time.Sleep(time.Minute)
		if n := lines(); n != 0 {
			t.Errorf("%d warnings of nothing", n)
		}
		provoke(1)
		if n := lines(); n != 3 {
			t.Errorf("%d warnings after a quiet minute", n)
		}
		log.Errorf("pipe - cid:3 - \"v1:go\" - \"CREDSTREAM/user:endpoints\" - Publish Violation - Subject %q", "a")
		log.Warnf("JetStream is slow for KEY_alice_ABCDEFGHIJKLMNOPQRSTUVWXYZ")
		if text := out.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, "slow for KEY_alice\"") {
			t.Errorf("about the server itself:\n%s", text)
		}
		time.Sleep(2 * time.Minute)
	})
}

// What the server itself says of a client is recognised.
func TestViolationsOfAKey(t *testing.T) {
	out := &bustest.LogBuffer{}
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Logger = out.Logger() })
	nc, refused := bustest.Connect(t, n, "alice-key", nats.Name(`a "b" - c`))
	for range 20 {
		if err := nc.Publish("credstream.log.default.x", nil); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.SubscribeSync("credstream.log.>"); err != nil {
			t.Fatal(err)
		}
	}
	for range 40 {
		if err := bustest.Recv(t, refused); !errors.Is(err, nats.ErrPermissionViolation) {
			t.Fatal(err)
		}
	}
	for range 3 {
		if nc, err := nats.Connect(n.ClientURL(), nats.UserInfo("x", "wrong")); err == nil {
			nc.Close()
		}
	}
	text := out.String()
	if strings.Contains(text, "KEY_") || strings.Contains(text, "level=ERROR") || strings.Count(text, "level=WARN") != 2 ||
		strings.Count(text, "principal=alice") != 1 {
		t.Errorf("the log:\n%s", text)
	}
}
