package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

// beginning is a start on its way, of which only the HTTP address is known.
type beginning struct {
	*front
	logs  *bustest.LogBuffer
	ended chan error
	p     *program // once ended
}

// begin starts a program and does not wait for it. patience is for a start without progress.
func begin(t *testing.T, cfg Config, patience ...time.Duration) *beginning {
	t.Helper()
	b := &beginning{logs: &bustest.LogBuffer{}, ended: make(chan error, 1)}
	cfg.HTTP, cfg.LogFormat, cfg.LogLevel, cfg.Durability, cfg.AdminKey = "127.0.0.1:0", "json", "info", "group", adminKey
	log, err := newLogger(cfg, b.logs)
	must(t, err)
	b.front, err = listen(cfg.HTTP, nil, log)
	must(t, err)
	for _, d := range patience {
		b.endures(d)
	}
	b.look(t, false) // before anything is open
	go func() {
		p, err := b.start(t.Context(), cfg)
		b.p = p
		b.ended <- err
	}()
	return b
}

// finish returns when the start has succeeded.
func (b *beginning) finish(t *testing.T) {
	t.Helper()
	must(t, <-b.ended)
	t.Cleanup(b.p.close)
}

// look asks the three kinds of paths, which answer so unless the service may have started,
// and returns what readiness says.
func (b *beginning) look(t *testing.T, started bool) string {
	t.Helper()
	base := "http://" + b.listener.Addr().String()
	get := func(path string) (status int, body string, header http.Header) {
		t.Helper()
		resp, err := http.Get(base + path)
		must(t, err)
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		must(t, err)
		return resp.StatusCode, string(text), resp.Header
	}
	if status, body, _ := get("/healthz"); status != http.StatusOK {
		t.Errorf("/healthz is answered %d %s", status, body)
	}
	if status, body, header := get("/v1/tenants/default/credential.list"); !started &&
		(status != http.StatusServiceUnavailable || !strings.Contains(body, `"service_starting"`) || header.Get("Retry-After") == "") {
		t.Errorf("a query is answered %d %s %v", status, body, header)
	}
	status, body, _ := get("/readyz")
	var answer struct{ Reasons []string }
	must(t, json.Unmarshal([]byte(body), &answer))
	said := strings.Join(answer.Reasons, "; ")
	if !started && (status != http.StatusServiceUnavailable || !strings.HasPrefix(said, "starting: ")) {
		t.Errorf("/readyz is answered %d %s", status, body)
	}
	return said
}

// HTTP answers from the first moment on, and the NATS port is closed until keys can be checked.
func TestHTTPAnswersWhileTheServiceStarts(t *testing.T) {
	data := t.TempDir()
	bring(t, data).stop()
	port, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := port.Addr().String()
	must(t, port.Close())
	b := begin(t, Config{Data: data, NATSListen: address, fsyncDelay: 50 * time.Millisecond})
	for ended := false; !ended; {
		select {
		case err := <-b.ended:
			b.ended <- err
			ended = true
		default:
			b.look(t, true)
		}
		if nc, err := nats.Connect("nats://"+address, nats.UserInfo("x", adminKey)); err == nil {
			nc.Close()
		} else if errors.Is(err, nats.ErrAuthorization) {
			t.Error("the NATS port is open before keys can be checked")
		}
	}
	b.finish(t)
	within(t, "the service is ready", func() bool { return b.look(t, true) == "" })
	nc, err := nats.Connect("nats://"+address, nats.UserInfo("x", adminKey))
	must(t, err)
	nc.Close()
}

// A start on servers that have no leader waits, says so, and goes on when they have one.
func TestStartWithoutALeader(t *testing.T) {
	t.Parallel()
	servers := bustest.Start(t, bustest.Nodes(3))
	of := servers.Config()
	cfg := Config{
		Data: t.TempDir(), NATS: of.URL, NATSEndpoints: of.EndpointURL, NATSSystem: of.SystemURL, NATSCallout: of.CalloutURL,
		NATSCalloutSeed: of.CalloutSeedFile, NATSCalloutXKey: of.CalloutXKeyFile, NATSReplicas: of.Replicas, AttestSyncAlways: true, KMS: kmsFile(t),
	}
	b := begin(t, cfg)
	must(t, <-b.ended)
	b.p.close()
	servers.Kill(1)
	servers.Kill(2)
	b = begin(t, cfg)
	within(t, "readiness says that the start waits", func() bool { return strings.HasPrefix(b.look(t, false), "starting: waiting while ") })
	if !strings.Contains(b.logs.String(), "waiting for NATS") {
		t.Error("the log does not say that the start waits")
	}
	servers.StartNode(1)
	servers.StartNode(2)
	b.finish(t)
	within(t, "the service is ready", func() bool { return b.look(t, true) == "" })
}

// endures sets how long the start may make no progress.
func (b *beginning) endures(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.patience = d
}

// A start that stands still ends and says at what: here the KMS does not answer.
func TestStartStandsStill(t *testing.T) {
	t.Parallel()
	data, kms := t.TempDir(), silentVault(t)
	b := begin(t, Config{Data: data, NATSListen: "127.0.0.1:0", KMS: kms, kmsToken: seal.NewSecret([]byte("t"))}, time.Second)
	err := <-b.ended
	if !errors.Is(err, errStandstill) || fault.Of(err).Code != "start_standstill" || !strings.Contains(err.Error(), "opening the vault and the queues") {
		t.Errorf("the start ends with %v", err)
	}
}

// With an external NATS a start that stands still is tried again, and goes on when what it
// waits for is there.
func TestStartIsTriedAgain(t *testing.T) {
	t.Parallel()
	servers := bustest.Start(t)
	of := servers.Config()
	b := begin(t, Config{
		Data: t.TempDir(), NATS: of.URL, NATSEndpoints: of.EndpointURL, NATSSystem: of.SystemURL, NATSCallout: of.CalloutURL,
		NATSCalloutSeed: of.CalloutSeedFile, NATSCalloutXKey: of.CalloutXKeyFile, NATSReplicas: of.Replicas, AttestSyncAlways: true, KMS: kmsFile(t),
	}, time.Millisecond)
	within(t, "readiness says that the start waits", func() bool { return strings.Contains(b.look(t, false), "made no progress") })
	b.endures(time.Minute)
	b.finish(t)
	within(t, "the service is ready", func() bool { return b.look(t, true) == "" })
}

// Servers that are away are waited for.
func TestStartWithoutServers(t *testing.T) {
	t.Parallel()
	servers := bustest.Start(t)
	of := servers.Config()
	servers.Kill(0)
	b := begin(t, Config{
		Data: t.TempDir(), NATS: of.URL, NATSEndpoints: of.EndpointURL, NATSSystem: of.SystemURL, NATSCallout: of.CalloutURL,
		NATSCalloutSeed: of.CalloutSeedFile, NATSCalloutXKey: of.CalloutXKeyFile, NATSReplicas: of.Replicas, AttestSyncAlways: true, KMS: kmsFile(t),
	})
	within(t, "readiness says that the start waits", func() bool { return strings.HasPrefix(b.look(t, false), "starting: waiting while ") })
	servers.StartNode(0)
	b.finish(t)
	within(t, "the service is ready", func() bool { return b.look(t, true) == "" })
}

// Servers that do not answer the system account in time are waited for: what they answer
// then decides, here that one replica is weak.
func TestStartWithSilentSystemAccount(t *testing.T) {
	t.Parallel()
	servers := bustest.Start(t)
	of := servers.Config()
	system, err := url.Parse(of.SystemURL)
	must(t, err)
	relay := &muteRelay{to: system.Host}
	relay.mute.Store(true)
	system.Host = relay.listen(t)
	b := begin(t, Config{
		Data: t.TempDir(), NATS: of.URL, NATSEndpoints: of.EndpointURL, NATSSystem: system.String(), NATSCallout: of.CalloutURL,
		NATSCalloutSeed: of.CalloutSeedFile, NATSCalloutXKey: of.CalloutXKeyFile, NATSReplicas: of.Replicas, KMS: kmsFile(t),
	})
	var said string
	within(t, "readiness says that the start waits", func() bool { said = b.look(t, false); return strings.HasPrefix(said, "starting: waiting while ") })
	if !strings.Contains(said, "No JetStream server answered the system account") {
		t.Errorf("readiness says %q", said)
	}
	relay.mute.Store(false)
	if err := <-b.ended; !errors.Is(err, natsserver.ErrDurabilityWeak) || !strings.Contains(err.Error(), "one replica") {
		t.Errorf("the start ends with %v", err)
	}
}

// muteRelay carries connections to a NATS server, and while it is mute no message back.
type muteRelay struct {
	to   string
	mute atomic.Bool
}

// listen returns the address of the relay, which ends with the test.
func (r *muteRelay) listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", r.to)
			if err != nil {
				_ = client.Close()
				continue
			}
			both := func() { _, _ = client.Close(), server.Close() }
			work.Go(func() { _, _ = io.Copy(server, client); both() })
			work.Go(func() {
				defer both()
				for lines := make([]byte, 64<<10); ; {
					n, err := server.Read(lines)
					if err != nil {
						return
					}
					if r.mute.Load() && (bytes.HasPrefix(lines[:n], []byte("MSG ")) || bytes.HasPrefix(lines[:n], []byte("HMSG "))) {
						continue
					}
					if _, err := client.Write(lines[:n]); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); work.Wait() })
	return l.Addr().String()
}

// What servers answer that choose a leader, or have just met, passes; a wrong configuration does not.
func TestWhatPasses(t *testing.T) {
	for _, c := range []struct {
		code   int
		err    jetstream.ErrorCode
		passes bool
	}{
		{503, 10008, true},  // no leader
		{503, 10023, true},  // resources
		{500, 10009, true},  // not the leader
		{400, 10005, true},  // no suitable peers for placement, peer offline
		{500, 10074, false}, // replicas > 1 without a cluster
		{400, 10052, false}, // a stream's configuration
	} {
		err := fmt.Errorf("creating stream: %w", &jetstream.APIError{Code: c.code, ErrorCode: c.err})
		if isTransient(err) != c.passes {
			t.Errorf("%d %d passes: %t", c.code, c.err, isTransient(err))
		}
	}
}

// silentVault accepts connections and answers nothing. It returns the URL of a key there.
func silentVault(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var conns []net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return "hcvault://" + l.Addr().String() + "/transit/keys/k?tls=off"
}
