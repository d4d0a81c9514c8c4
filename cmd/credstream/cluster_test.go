package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/seal"
)

var raceRounds = flag.Int("racerounds", 300, "rounds of each race between two processes")

// replica starts a process of the service on external servers that others share.
func replica(t testing.TB, servers *bustest.NATS, kms string, more ...string) *process {
	t.Helper()
	cfg := servers.Config()
	return spawn(t, t.TempDir(), append([]string{
		"--nats", cfg.URL, "--nats-endpoints", cfg.EndpointURL, "--nats-system", cfg.SystemURL, "--nats-callout", cfg.CalloutURL,
		"--nats-callout-seed", cfg.CalloutSeedFile, "--nats-callout-xkey", cfg.CalloutXKeyFile,
		"--nats-replicas", strconv.Itoa(cfg.Replicas), "--attest-sync-always", "--kms", kms,
	}, more...)...)
}

// kmsFile makes a key file that several processes share, and returns its URL.
func kmsFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kms.key")
	must(t, seal.CreateKeyFile(path))
	return "file://" + path
}

// client is an HTTP client that keeps enough connections open.
func caller(p *process) api {
	return api{
		base: p.http, key: adminKey, tenant: "default",
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	}
}

// connectCluster connects a plain NATS client to the external servers.
func connectCluster(t testing.TB, servers *bustest.NATS, key string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(servers.URL(""), nats.UserInfo("anything", key), nats.CustomInboxPrefix(bus.InboxPrefix(key)))
	must(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// codeOf is the code of a refusal; any other error ends the test's goroutine's round.
func codeOf(err error) (string, error) {
	var refused *apiError
	switch {
	case err == nil:
		return "", nil
	case errors.As(err, &refused):
		return refused.Code, nil
	}
	return "", err
}

// balance shifts the start of one side of a race so that both sides win about
// as often: by nature one is faster.
type balance struct {
	mu    sync.Mutex
	delay time.Duration // of the second side; below 0: of the first
	step  time.Duration
}

func (b *balance) now() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.delay
}

// won notes which side won and gives the other one a better start.
func (b *balance) won(second bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if second {
		b.delay += b.step
	} else {
		b.delay -= b.step
	}
}

// race runs both sides at about the same time.
func (b *balance) race(first, second func()) {
	delay := b.now()
	var both sync.WaitGroup
	both.Go(func() { time.Sleep(-delay); first() })
	both.Go(func() { time.Sleep(delay); second() })
	both.Wait()
}

// rounds runs n rounds, several at a time, until one fails.
func rounds(t *testing.T, n int, round func(i int) error) {
	t.Helper()
	const parallel = 6
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	next := make(chan int)
	var workers sync.WaitGroup
	for range parallel {
		workers.Go(func() {
			for i := range next {
				if err := round(i); err != nil {
					t.Errorf("round %d: %v", i, err)
					cancel()
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	workers.Wait()
}

// both fails the test unless each outcome was seen in at least 5% of the rounds.
func bothOutcomes(t *testing.T, first, second int) {
	t.Helper()
	t.Logf("%d rounds one way, %d the other", first, second)
	if least := (first + second) / 20; first < least || second < least {
		t.Errorf("one outcome was hardly seen: %d and %d", first, second)
	}
}

// A flow is bound on one process while its credential is deleted on the other:
// exactly one of them is done, and the other one is told why not.
func TestRaceOfBindAndDelete(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	registerPlain(t, a.http)
	callers := []api{caller(a), caller(b)}
	bal := &balance{step: 20 * time.Microsecond}
	var mu sync.Mutex
	deletes, binds := 0, 0
	rounds(t, *raceRounds, func(i int) error {
		binder, deleter := callers[i%2], callers[1-i%2]
		var made done
		if err := deleter.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, &made); err != nil {
			return err
		}
		flow := fmt.Sprintf("flow-%d", i)
		var bindErr, deleteErr error
		bal.race(
			func() {
				bindErr = binder.command("flow.bind", "", map[string]any{
					"flow": flow, "steps": []map[string]any{{"id": "s1", "component": "plain", "credential": made.ID}},
				}, nil)
			},
			func() { deleteErr = deleter.command("credential.delete", "", map[string]any{"id": made.ID}, nil) })
		bind, err := codeOf(bindErr)
		if err != nil {
			return err
		}
		del, err := codeOf(deleteErr)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case bind == "" && del == "credential_in_use":
			binds++
			bal.won(false)
		case bind == "flow_cannot_bind" && del == "":
			deletes++
			bal.won(true)
		default:
			return fmt.Errorf("bind answers %q, delete %q", bind, del)
		}
		return nil
	})
	bothOutcomes(t, binds, deletes)
}

// One process of two is killed: the other goes on within seconds, in every role,
// and nothing is lost.
func TestReplicaTakesOver(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	registerPlain(t, a.http)
	left := caller(b)
	var first done
	must(t, caller(a).command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, &first))
	var shown struct {
		Name string `json:"name"`
	}
	must(t, left.query("credential.get", fmt.Sprintf("id=%s&min_seq=%d", first.ID, first.Seq), &shown))
	_ = a.kill(syscall.SIGKILL)
	var renamed done
	must(t, left.command("credential.rename", "", map[string]any{"id": first.ID, "name": "Renamed"}, &renamed))
	nc := connectCluster(t, servers, adminKey)
	_ = nc
}
