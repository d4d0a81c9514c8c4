package natsserver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
)

func TestConnectToOneServer(t *testing.T) {
	s := bustest.Start(t)
	for _, tc := range []struct {
		name string
		with func(*natsserver.ClusterConfig)
		says string // of the refusal; "" for none
		want natsserver.Durability
	}{
		{
			"as it is",
			func(*natsserver.ClusterConfig) {},
			"Each stream would have one replica",
			natsserver.Durability{},
		},
		{
			"attested",
			func(c *natsserver.ClusterConfig) { c.AttestSyncAlways = true },
			"",
			natsserver.Durability{Replicas: 1, Servers: []string{"n1"}, SyncSeen: true, Attested: true, Why: "Each stream would have one replica: if its server loses data, the data is lost."},
		},
		{
			"unseen",
			func(c *natsserver.ClusterConfig) { c.SystemURL, c.Replicas = "", 3 },
			"Without a user of the NATS system account",
			natsserver.Durability{},
		},
		{
			"unseen and attested",
			func(c *natsserver.ClusterConfig) { c.SystemURL, c.Replicas, c.AttestSyncAlways = "", 3, true },
			"",
			natsserver.Durability{Replicas: 3, Attested: true, Why: "Without a user of the NATS system account, credstream cannot check whether the servers fsync before they acknowledge (sync_interval: always)."},
		},
	} {
		cfg := s.Config()
		tc.with(&cfg)
		c, err := natsserver.Connect(t.Context(), cfg)
		if tc.says != "" {
			if !errors.Is(err, natsserver.ErrDurabilityWeak) || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "--attest-sync-always") {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(tc.name, err)
		}
		if diff := cmp.Diff(tc.want, c.Durability(), cmpopts.IgnoreUnexported(tc.want)); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
		if err := errors.Join(c.Health(), c.WritesAllowed()); err != nil || c.Replicas() != tc.want.Replicas || c.ClientURL() != s.URL("") {
			t.Errorf("%s: %v, %d replicas, at %s", tc.name, err, c.Replicas(), c.ClientURL())
		}
		if err := c.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if nc, err := c.Conn("late"); err == nil {
			nc.Close()
			t.Error("connected after the shutdown")
		}
	}
}

func TestConnectToLazyServer(t *testing.T) {
	s := bustest.Start(t, bustest.LazySync())
	cfg := s.Config()
	if _, err := natsserver.Connect(t.Context(), cfg); !errors.Is(err, natsserver.ErrDurabilityWeak) || !strings.Contains(err.Error(), `(sync_interval is not "always"): n1.`) {
		t.Error(err)
	}
	if d := bustest.StartCluster(t, s).Durability(); d.SyncSeen || !d.Attested || !strings.Contains(d.Why, "n1") {
		t.Errorf("%+v", d)
	}
}

// An operator is told what servers do not limit, and what to set; those with the
// configuration of deploy/nats have nothing to be told.
func TestLimitsOfServers(t *testing.T) {
	for _, c := range []struct {
		name   string
		with   []bustest.Option
		change func(*natsserver.ClusterConfig)
		want   []string
	}{
		{"loose", []bustest.Option{bustest.LooseLimits()}, nil, []string{
			"settings of a NATS server differ", "n1", "max_connections: 16384", "max_subscriptions: 1000", "max_pending: 16MB", "write_deadline:", "ping_interval:",
		}},
		{"deploy/nats", nil, nil, nil},
		{"no system user", []bustest.Option{bustest.LooseLimits()}, func(c *natsserver.ClusterConfig) { c.SystemURL = "" }, []string{"cannot be checked"}},
	} {
		log := &bustest.LogBuffer{}
		bustest.StartCluster(t, bustest.Start(t, c.with...), func(cfg *natsserver.ClusterConfig) {
			cfg.Logger = log.Logger()
			if c.change != nil {
				c.change(cfg)
			}
		})
		said := log.String()
		for _, want := range c.want {
			if !strings.Contains(said, want) {
				t.Errorf("%s: %q is not in %s", c.name, want, said)
			}
		}
		if len(c.want) == 0 && strings.Contains(said, "limit") {
			t.Errorf("%s: %s", c.name, said)
		}
	}
}

// No message repeats what may hold a password.
func TestConnectRefusesConfigurations(t *testing.T) {
	s := bustest.Start(t)
	for _, tc := range []struct {
		name string
		with func(*natsserver.ClusterConfig)
		want error
	}{
		{"nothing", func(c *natsserver.ClusterConfig) { c.URL = "" }, natsserver.ErrNATSConfig},
		{"no URL", func(c *natsserver.ClusterConfig) { c.URL = "nats://x:canary@%zz" }, natsserver.ErrNATSConfig},
		{"another scheme", func(c *natsserver.ClusterConfig) { c.SystemURL = "http://x:canary@127.0.0.1" }, natsserver.ErrNATSConfig},
		{"no host", func(c *natsserver.ClusterConfig) { c.EndpointURL = "nats://x:canary@" }, natsserver.ErrNATSConfig},
		{"too many replicas", func(c *natsserver.ClusterConfig) { c.Replicas = 6 }, natsserver.ErrNATSConfig},
		{"a wrong password", func(c *natsserver.ClusterConfig) { c.URL = "nats://credstream:canary@" + s.Host(0) }, nats.ErrAuthorization},
		{"a wrong system password", func(c *natsserver.ClusterConfig) { c.SystemURL = "nats://credstream-system:canary@" + s.Host(0) }, nats.ErrAuthorization},
		{"no JetStream", func(c *natsserver.ClusterConfig) { c.URL = s.URL("credstream-callout") }, nil},
		{"no seed there", func(c *natsserver.ClusterConfig) { c.CalloutSeedFile = filepath.Join(t.TempDir(), "none") }, os.ErrNotExist},
		{"nobody there", func(c *natsserver.ClusterConfig) { c.URL = "nats://x:canary@127.0.0.1:1" }, nats.ErrNoServers},
	} {
		cfg := s.Config()
		cfg.AttestSyncAlways = true
		log := &bustest.LogBuffer{}
		cfg.Logger = log.Logger()
		tc.with(&cfg)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		c, err := natsserver.Connect(ctx, cfg)
		cancel()
		if err == nil {
			t.Errorf("%s: connected", tc.name)
			_ = c.Shutdown(t.Context())
			continue
		}
		if tc.want != nil && !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if strings.Contains(err.Error()+log.String(), "canary") {
			t.Errorf("%s: the password is told: %v\n%s", tc.name, err, log)
		}
	}
}

func TestConnectRefusesOldServers(t *testing.T) {
	for version, old := range map[string]bool{"2.11.9": true, "2.9.0": true, "1.20.0": true, "x": true, "2.12.0": false, "2.15.2-RC.1": false, "3.0.0": false} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { // greets as a server of this version, until the listener is closed
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(conn, `INFO {"server_id":"x","server_name":"old","version":%q,"headers":true,"max_payload":1000}`+"\r\n", version)
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					if lines.Text() == "PING" {
						fmt.Fprint(conn, "PONG\r\n")
					}
				}
				_ = conn.Close()
			}
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // nobody answers for JetStream there
		_, err = natsserver.Connect(ctx, natsserver.ClusterConfig{URL: l.Addr().String()})
		cancel()
		if errors.Is(err, natsserver.ErrServerTooOld) != old {
			t.Errorf("%s: %v", version, err)
		}
		_ = l.Close()
	}
}

func TestEnsureStream(t *testing.T) {
	n := bustest.StartNode(t)
	js := bustest.ServiceJS(t, n)
	configs := append([]jetstream.StreamConfig{feed.Config(1), feed.AuditConfig(1), kv.ClaimsConfig(1)}, bustest.Streams[:len(bustest.Streams)-2]...)
	for _, cfg := range configs {
		for _, want := range []bool{true, false} {
			if created, err := jsapi.EnsureStream(t.Context(), js, cfg); err != nil || created != want {
				t.Errorf("%s: %v, %v", cfg.Name, created, err)
			}
		}
	}
	for field, change := range map[string]func(*jetstream.StreamConfig){
		"subjects":             func(c *jetstream.StreamConfig) { c.Subjects = append(c.Subjects, "more") },
		"max_age":              func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"max_msgs":             func(c *jetstream.StreamConfig) { c.MaxMsgs = 1 },
		"max_msgs_per_subject": func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 1 },
		"storage":              func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage },
		"num_replicas":         func(c *jetstream.StreamConfig) { c.Replicas = 3 },
		"deny_purge":           func(c *jetstream.StreamConfig) { c.DenyPurge = true },
		"allow_direct":         func(c *jetstream.StreamConfig) { c.AllowDirect = false },
	} {
		cfg := bustest.Streams[0]
		cfg.Subjects = append([]string{}, cfg.Subjects...)
		change(&cfg)
		if _, err := jsapi.EnsureStream(t.Context(), js, cfg); !errors.Is(err, jsapi.ErrStreamConfig) || !strings.Contains(err.Error(), field+" is ") {
			t.Errorf("%s: %v", field, err)
		}
	}
}

// Three servers, as deploy/nats has them, with everything that the service does
// there: one of them may be away.
func TestThreeServers(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t, bustest.Nodes(3))
	c := bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) {
		c.AttestSyncAlways = false
	})
	want := natsserver.Durability{Replicas: 3, Servers: []string{"n1", "n2", "n3"}, SyncSeen: true}
	if diff := cmp.Diff(want, c.Durability(), cmpopts.IgnoreUnexported(want)); diff != "" {
		t.Error(diff)
	}
	nc, err := c.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []jetstream.StreamConfig{feed.Config(3), feed.AuditConfig(3), kv.ClaimsConfig(3)} {
		for _, want := range []bool{true, false} {
			if created, err := jsapi.EnsureStream(t.Context(), js, cfg); err != nil || created != want {
				t.Errorf("%s: %v, %v", cfg.Name, created, err)
			}
		}
	}
	if err := bustest.ServePulls(t, c).Ensure(t.Context(), "default", true, true); err != nil {
		t.Error(err)
	}
	calls := make(chan bustest.Call, 100)
	answerAll(t, c, calls)
	// A client of each server is known to the one process, and can be disconnected.
	closed := make(chan struct{}, 3)
	for i := range 3 {
		alice, err := nats.Connect("nats://"+s.Host(i), nats.UserInfo("x", "alice-key"), nats.CustomInboxPrefix(natsserver.InboxPrefix("alice-key")),
			nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { closed <- struct{}{} }))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := alice.RequestWithContext(t.Context(), "credstream.cmd.default.x", nil); err != nil {
			t.Fatal(err)
		}
		if got := bustest.Recv(t, calls); got.Caller != "alice" || !got.Answerable {
			t.Errorf("by server %d: %+v", i+1, got)
		}
	}
	c.DisconnectKey("alice")
	for range 3 {
		bustest.Recv(t, closed)
	}
	claims, err := kv.OpenClaims(t.Context(), js, 3)
	if err != nil {
		t.Fatal(err)
	}
	bustest.OneClaims(t, claims, claims)

	for i := range 3 {
		if nc.ConnectedAddr() == s.Host(i) { // the one that hurts most
			s.Stop(i)
			break
		}
	}
	second := bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) { c.AttestSyncAlways = false })
	if d := second.Durability(); len(d.Servers) != 2 || !d.SyncSeen || d.Why != "" {
		t.Errorf("with one server away: %+v", d)
	}
	dial(t, s, "alice-key")
	for {
		if claimed, _, err := claims.Begin(t.Context(), [32]byte{1}, "request", "attempt"); err == nil {
			if claimed != "request" {
				t.Error("a new id was claimed before")
			}
			break
		} else if t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	watching, stop := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- c.Watch(watching) }()
	for c.Health() != nil { // until its connections have found the other servers
		select {
		case err := <-watched:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	for i := range 3 { // one of two is no majority
		if nc.ConnectedAddr() != s.Host(i) {
			s.Kill(i)
		}
	}
	for c.Health() == nil {
		select {
		case err := <-watched:
			t.Fatal(err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := natsserver.Connect(ctx, s.Config()); err == nil {
		t.Error("connected to one of three")
	}
	stop()
	if err := bustest.Recv(t, watched); err != nil {
		t.Error(err)
	}
}

// Who keeps something in memory is told when the servers came back.
func TestRestarted(t *testing.T) {
	s := bustest.Start(t)
	restarted := make(chan struct{}, 100)
	bustest.StartCluster(t, s, func(c *natsserver.ClusterConfig) { c.Restarted = func() { restarted <- struct{}{} } })
	s.Kill(0)
	s.StartNode(0)
	bustest.Recv(t, restarted)
}

// A connection leaves a server that hangs, by the pings alone; and one that is cut off
// from the others, which answers pings and not for JetStream, by the probes of Watch.
func TestConnectionsLeaveASilentServer(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t, bustest.Nodes(3), bustest.Cuttable())
	c := bustest.StartCluster(t, s)
	nc, err := c.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	leaves := func(what string, begin, end func(node int)) {
		t.Helper()
		for !nc.IsConnected() {
			time.Sleep(10 * time.Millisecond)
		}
		node := 0
		for s.Host(node) != nc.ConnectedAddr() {
			node++
		}
		begin(node)
		defer end(node)
		for left := time.Now().Add(time.Minute); nc.ConnectedAddr() == s.Host(node) || !nc.IsConnected(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(left) {
				t.Fatalf("after a minute the connection is at the server that %s", what)
			}
		}
	}
	leaves("hangs", s.Freeze, s.Thaw)
	watching, stop := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- c.Watch(watching) }()
	leaves("is cut off", s.Cut, s.Heal)
	stop()
	if err := bustest.Recv(t, watched); err != nil {
		t.Error(err)
	}
}
