package app

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
)

var (
	replicaKills = flag.Int("replicakills", 3, "processes that TestReplicasTakeOver kills")
	raceRounds   = flag.Int("racerounds", 300, "rounds of each race between two processes")
)

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
	nc, err := nats.Connect(servers.URL(""), nats.UserInfo("anything", key), nats.CustomInboxPrefix(natsserver.InboxPrefix(key)))
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

// join serves in this process, beside others, on external servers, so that a test
// can look at the parts.
func join(t testing.TB, servers *bustest.NATS, kms string) *program {
	t.Helper()
	c := servers.Config()
	p, err := start(t.Context(), Config{
		Data: t.TempDir(), HTTP: "127.0.0.1:0", AdminKey: adminKey, Durability: "group", KMS: kms,
		NATS: c.URL, NATSEndpoints: c.EndpointURL, NATSSystem: c.SystemURL, NATSCallout: c.CalloutURL,
		NATSCalloutSeed: c.CalloutSeedFile, NATSCalloutXKey: c.CalloutXKeyFile, NATSReplicas: c.Replicas, AttestSyncAlways: true,
		AllowPrivateTargets: true, LogFormat: "text", LogLevel: "error",
	}, testWriter{t})
	must(t, err)
	t.Cleanup(p.close)
	return p
}

// Processes are killed one after the other while flows and credentials change:
// the others go on in every role, nothing that was acknowledged is lost, every
// event stands once in the feed, and each key of the in-use index is right.
func TestReplicasTakeOver(t *testing.T) {
	t.Parallel()
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	registerPlain(t, a.http)
	e := newEngine(t, connectCluster(t, servers, adminKey))
	var credentials []string
	for range 4 {
		credentials = append(credentials, caller(a).create(t))
	}
	told := make([]flowTold, 6) // by flow: what was told last
	running, stop := context.WithCancel(t.Context())
	defer stop()
	var engines sync.WaitGroup
	for f := range told {
		engines.Go(func() { told[f] = e.keepTelling(running, fmt.Sprintf("flow-%d", f), credentials) })
	}
	alive := []*process{a, b}
	for kill := range *replicaKills {
		time.Sleep(time.Duration(300+rand.IntN(700)) * time.Millisecond) // the moment is meant to be any
		_ = alive[0].kill(syscall.SIGKILL)
		alive = []*process{alive[1], replica(t, servers, kms)}
		t.Logf("kill %d", kill+1)
	}
	stop()
	engines.Wait()
	p := join(t, servers, kms)
	left := caller(alive[0])
	for f, last := range told {
		if last.revision == 0 {
			t.Fatalf("flow-%d was never acknowledged", f)
		}
		await(t, fmt.Sprintf("flow-%d", f), func() (bool, error) {
			var shown flowShown
			err := left.query("flow.get", fmt.Sprintf("id=flow-%d", f), &shown)
			if err != nil && code(t, err) == "flow_not_found" { // its events wait in the queue
				return false, nil
			}
			return shown.Revision >= last.revision, err
		})
	}
	bucket, err := jetstream.New(mustConn(t, p))
	must(t, err)
	kv, err := bucket.KeyValue(t.Context(), streams.InUseBucket)
	must(t, err)
	// An event that was stored and not acknowledged may still be on its way, and
	// what a killed process left undone is completed within the keeper's next rounds.
	await(t, "the in-use index", func() (bool, error) {
		want := map[string]map[string]bool{}
		for f := range told {
			var shown flowShown
			if err := left.query("flow.get", fmt.Sprintf("id=flow-%d", f), &shown); err != nil {
				return false, err
			}
			for _, s := range shown.Steps {
				if want[s.Credential] == nil {
					want[s.Credential] = map[string]bool{}
				}
				want[s.Credential][shown.ID] = shown.Active
			}
		}
		for _, id := range credentials {
			got := map[string]bool{}
			entry, err := kv.Get(t.Context(), feed.InUseKey("default", "credential", id))
			switch {
			case errors.Is(err, jetstream.ErrKeyNotFound):
			case err != nil:
				return false, err
			default:
				var v projections.InUse
				if err := json.Unmarshal(entry.Value(), &v); err != nil {
					return false, err
				}
				for _, f := range v.Flows {
					got[f.ID] = f.Active
				}
			}
			if !maps.Equal(got, want[id]) {
				return false, nil
			}
		}
		return true, nil
	})
	for _, r := range alive { // nothing moves any more
		_ = r.kill(syscall.SIGTERM)
	}
	end := logEnd(t, p)
	p.checkViews(t, end)
	p.checkFeed(t, end)
}

func mustConn(t testing.TB, p *program) *nats.Conn {
	t.Helper()
	conn, err := p.nats.Conn("test")
	must(t, err)
	return conn
}

// flowTold is what a flow engine knows that the service knows.
type flowTold struct{ revision int }

// keepTelling tells of one flow, again and again, whether the service is there or
// not, and returns the last revision that was acknowledged.
func (e *engine) keepTelling(ctx context.Context, flow string, credentials []string) (last flowTold) {
	changes := []string{"updated", "started", "updated", "stopped"}
	for revision := 1; ctx.Err() == nil; revision++ {
		steps := []flowStep{{"s1", "plain", credentials[rand.IntN(len(credentials))]}, {"s2", "plain", credentials[rand.IntN(len(credentials))]}}
		for e.tell(changes[revision%len(changes)], flow, revision, steps...) != nil {
			if ctx.Err() != nil {
				return last
			}
			time.Sleep(10 * time.Millisecond) // as a flow engine would
		}
		last.revision = revision
	}
	return last
}

// What was changed on one process is never read in its old form on the other, by
// a reader that asks for the position the change was acknowledged with.
func TestReadYourWritesOnAnotherReplica(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	registerPlain(t, a.http)
	callers := []api{caller(a), caller(b)}
	id := callers[0].create(t)
	for i := range 200 {
		writer, reader := callers[i%2], callers[1-i%2]
		var renamed done
		name := fmt.Sprintf("name-%d", i)
		must(t, writer.command("credential.rename", "", map[string]any{"id": id, "name": name}, &renamed))
		var shown struct {
			Name string `json:"name"`
		}
		must(t, reader.query("credential.get", fmt.Sprintf("id=%s&min_seq=%d", id, renamed.Seq), &shown))
		if shown.Name != name {
			t.Fatalf("round %d: %q is read after %q was written", i, shown.Name, name)
		}
	}
	var removed done
	must(t, callers[0].command("credential.delete", "", map[string]any{"id": id}, &removed))
	err := callers[1].query("credential.get", fmt.Sprintf("id=%s&min_seq=%d", id, removed.Seq), nil)
	if code(t, err) != "credential_not_found" {
		t.Errorf("a deleted credential is read on the other process: %v", err)
	}
	// A component that was deleted on one is not used on the other any more.
	must(t, callers[0].command("component.delete", "", map[string]any{"id": "plain"}, &removed))
	must(t, callers[1].query("component.list", fmt.Sprintf("min_seq=%d", removed.Seq), nil))
	err = callers[1].command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, nil)
	if code(t, err) != "component_deleted" {
		t.Errorf("a credential for a component that was deleted on the other process: %v", err)
	}
}

// One command id is one command, whichever process is asked and whatever it is aimed at.
func TestOneCommandIDOnTwoProcesses(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	registerPlain(t, a.http)
	callers := []api{caller(a), caller(b)}
	one, two := callers[0].create(t), callers[0].create(t)
	for i := range 50 {
		id := fmt.Sprintf("command-%d", i)
		var codes [2]string
		var both sync.WaitGroup
		for n, target := range []string{one, two} {
			both.Go(func() {
				c, err := codeOf(callers[n].command("credential.rename", id, map[string]any{"id": target, "name": fmt.Sprintf("n%d", i)}, nil))
				if err != nil {
					c = err.Error()
				}
				codes[n] = c
			})
		}
		both.Wait()
		if codes != [2]string{"", "command_id_reused"} && codes != [2]string{"command_id_reused", ""} {
			t.Fatalf("round %d: one id for two commands gives %q", i, codes)
		}
	}
}

// The Go client works on external servers as it does on the embedded one: it
// asks, publishes, follows the feed and watches the in-use index.
func TestClientOnExternalServers(t *testing.T) {
	servers := bustest.Start(t)
	p := replica(t, servers, kmsFile(t))
	registerPlain(t, p.http)
	c, err := client.Dial(t.Context(), client.NATSConfig{URL: servers.URL(""), Key: adminKey})
	must(t, err)
	t.Cleanup(c.Close)
	keys, err := client.NewKeys(map[string]any{"apiKey": "k"})
	must(t, err)
	made, err := c.CreateCredential(t.Context(), client.CreateCredential{Component: "plain", Keys: keys})
	must(t, err)
	_, err = c.PublishFlow(t.Context(), client.FlowEvent{
		Change: "started", ID: "f", Revision: 1, Steps: []client.FlowStep{{ID: "s", Component: "plain", Credential: made.ID}},
	})
	must(t, err)
	for e, err := range c.WatchInUse(t.Context()) {
		must(t, err)
		if e.Kind == "credential" && e.ID == made.ID && e.Value.Active == 1 {
			break
		}
	}
	for e, err := range c.Follow(t.Context(), 0) {
		must(t, err)
		if e.Type == "credstream.credential.used.v1" {
			break
		}
	}
	sealed, err := c.SealKeys(t.Context(), "credential.replace-keys", "queued-1", made.ID, keys)
	must(t, err)
	_, err = c.Enqueue(t.Context(), "credential.replace-keys", map[string]any{"id": made.ID, "keys_sealed": sealed}, client.CommandID("queued-1"))
	must(t, err)
	for e, err := range c.Follow(t.Context(), made.Seq) {
		must(t, err)
		if e.Type == "credstream.credential.keys_replaced.v1" {
			if e.CausationID != "queued-1" {
				t.Errorf("the outcome of a queued command has the causation %q", e.CausationID)
			}
			break
		}
	}
}

// On external servers with the accounts of an earlier version, where the service may not
// serve the consumers, an engine's consumer is made when its key connects.
func TestConsumersWithEarlierAccounts(t *testing.T) {
	servers := bustest.Start(t, bustest.EarlierAccounts())
	p := replica(t, servers, kmsFile(t))
	registerPlain(t, p.http)
	a := caller(p)
	a.create(t)
	var issued struct{ Key string }
	must(t, a.command("api_key.issue", "", map[string]any{"role": "FLOW_ENGINE"}, &issued))
	js, err := jetstream.New(connectCluster(t, servers, issued.Key))
	must(t, err)
	consumer, err := js.Consumer(t.Context(), streams.FeedStream, streams.EngineConsumer("default"))
	must(t, err)
	m, err := consumer.Next(jetstream.FetchMaxWait(20 * time.Second))
	must(t, err)
	must(t, m.DoubleAck(t.Context()))
	if tenant := m.Headers().Get("ce-source"); tenant != "/credstream/default" {
		t.Errorf("the first event is of %q", tenant)
	}
	_ = p.kill(syscall.SIGTERM)
	if !strings.Contains(p.logs.String(), "accounts of an earlier credstream version") {
		t.Errorf("the service does not say that the accounts are earlier ones:\n%s", p.logs)
	}
}
