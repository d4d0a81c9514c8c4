package bustest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/bus/streams"
)

// StartCluster connects a process of the service to servers of its own.
func StartCluster(t *testing.T, s *NATS, with ...func(*natsserver.ClusterConfig)) *natsserver.Cluster {
	t.Helper()
	cfg := s.Config()
	cfg.Authenticate, cfg.AttestSyncAlways = Authenticate, true
	for _, f := range with {
		f(&cfg)
	}
	c, err := natsserver.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// OneClaims claims the same ids concurrently in several processes, and verifies that all of
// them get the same winner.
func OneClaims(t *testing.T, processes ...*kv.Claims) {
	t.Helper()
	const ids, callers = 20, 8
	var claimed [ids][callers]string
	var work sync.WaitGroup
	for id := range ids {
		for n := range callers {
			work.Go(func() {
				var err error
				claimed[id][n], _, err = processes[n%len(processes)].Begin(t.Context(), [32]byte{9, byte(id)}, fmt.Sprint("request ", n), fmt.Sprint("attempt ", n))
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	work.Wait()
	for id, told := range claimed {
		var first int
		if n, err := fmt.Sscanf(told[0], "request %d", &first); n != 1 || err != nil || told[first] != told[0] {
			t.Errorf("id %d was claimed by %q, who is told of %q", id, told[0], told[first])
		}
		for n, holder := range told {
			if holder != told[0] {
				t.Errorf("id %d was claimed by %q, but %d is told of %q", id, told[0], n, holder)
			}
		}
	}
}

// Host connects to one server of several as the service.
func Host(t *testing.T, s *NATS, i int) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(s.HostURL(i, "credstream"), nats.IgnoreDiscoveredServers(), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Eventually polls a condition that cannot be waited for.
func Eventually(tb testing.TB, what string, is func() bool) {
	tb.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			tb.Fatalf("waited in vain for %s", what)
		}
	}
}

// Must fails the test with an error.
func Must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// OK fails the test with an error.
func OK(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// LogBuffer collects what is logged.
type LogBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *LogBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *LogBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Reset discards the log.
func (l *LogBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

// Logger logs into the buffer.
func (l *LogBuffer) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Grants are the keys of the tests.
var Grants = map[string]natsserver.Grant{
	"alice-key": {Principal: "alice", Tenants: []string{"default"}, Follow: true, Audit: true},
	"bob-key":   {Principal: "bob", Tenants: []string{"other"}, Follow: true, Audit: true},
	"admin-key": {Principal: "admin", Tenants: []string{"default", streams.AllTenants, "default"}, Follow: true, Audit: true},
	"quiet-key": {Principal: "quiet", Tenants: []string{"default"}},

	"engine-key":  {Principal: "engine", Tenants: []string{"default"}, Follow: true},
	"auditor-key": {Principal: "auditor", Tenants: []string{"default"}, Audit: true},
	"engines-key": {Principal: "engines", Tenants: []string{streams.AllTenants}, Follow: true},
	"audits-key":  {Principal: "audits", Tenants: []string{streams.AllTenants}, Audit: true},
	"nothing-key": {Principal: "nothing", Tenants: []string{streams.AllTenants}},
	"odd-key":     {Principal: "odd", Tenants: []string{"a.>"}},
}

// ErrUnknownKey is returned for keys that are not in Grants.
var ErrUnknownKey = errors.New("unknown key")

// Authenticate accepts the keys in Grants.
func Authenticate(_ context.Context, key string, _ netip.Addr) (natsserver.Grant, error) {
	if g, ok := Grants[key]; ok {
		return g, nil
	}
	return natsserver.Grant{}, ErrUnknownKey
}

// StartNode starts a node with the keys of Grants.
func StartNode(t *testing.T, with ...func(*natsserver.NodeConfig)) *natsserver.Node {
	t.Helper()
	cfg := natsserver.NodeConfig{Dir: t.TempDir(), Listen: "127.0.0.1:0", Authenticate: Authenticate, MinFree: 1}
	for _, f := range with {
		f(&cfg)
	}
	n, err := natsserver.StartNode(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// Connect opens a client connection. The channel has the errors of the server.
func Connect(t *testing.T, n *natsserver.Node, key string, opts ...nats.Option) (*nats.Conn, <-chan error) {
	t.Helper()
	refused := make(chan error, 100)
	nc, err := nats.Connect(n.ClientURL(), append([]nats.Option{
		nats.UserInfo("anything", key),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc, refused
}

// Service is a fake service: its streams, and endpoints that answer every request.
type Service struct {
	Js    jetstream.JetStream
	Calls chan Call // requests that reached an endpoint
}

// Call is a request that arrived at a Service.
type Call struct {
	Subject, Caller string
	Known           bool
	Answerable      bool
}

// Streams are the streams of a node.
var Streams = []jetstream.StreamConfig{
	{Name: "CREDSTREAM_LOG", Subjects: []string{"credstream.log.>"}, AllowDirect: true},
	{Name: "CREDSTREAM_VAULT", Subjects: []string{"credstream.vault.>"}, AllowDirect: true},
	{Name: "CREDSTREAM_ACCESS", Subjects: []string{"credstream.access.>"}},
	{Name: "CREDSTREAM_FLOWS", Subjects: []string{"credstream.in.flows.>"}},
	{Name: "KV_CREDSTREAM_KEYS", Subjects: []string{"$KV.CREDSTREAM_KEYS.>"}, AllowDirect: true},
	{Name: streams.FeedStream, Subjects: []string{streams.FeedSubject + ".>"}},
	{Name: streams.AuditStream, Subjects: []string{streams.AuditSubject + ".>"}},
}

// StartService answers every request on a node.
func StartService(t *testing.T, n *natsserver.Node) *Service {
	t.Helper()
	s := &Service{Js: ServiceJS(t, n), Calls: make(chan Call, 1000)}
	for _, cfg := range Streams {
		if _, err := s.Js.CreateStream(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	pulls := ServePulls(t, n)
	for _, tenant := range []string{"default", "other"} {
		if err := pulls.Ensure(t.Context(), tenant, true, true); err != nil {
			t.Fatal(err)
		}
		for _, stream := range []string{"log", "vault", "events", "audit"} {
			if _, err := s.Js.Publish(t.Context(), "credstream."+stream+"."+tenant+".credential.first", []byte(tenant)); err != nil {
				t.Fatal(err)
			}
		}
	}
	nc, err := n.EndpointConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"credstream.cmd.>", "credstream.query.>", "credstream.cmdq.>"} {
		_, err := nc.Subscribe(subject, func(m *nats.Msg) {
			c := Call{Subject: m.Subject, Answerable: natsserver.IsReplySubject(m.Reply)}
			c.Caller, c.Known = n.Caller(m.Header)
			s.Calls <- c
			if err := m.Respond([]byte("done")); err != nil && m.Reply != "" {
				t.Error(err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Server is a bus.Node or a bus.Cluster.
type Server interface {
	Conn(name string) (*nats.Conn, error)
	EndpointConn() (*nats.Conn, error)
	Caller(h nats.Header) (string, bool)
	DisconnectKey(principal string)
}

// ServePulls serves the consumers of the tenants "default" and "other", the only ones.
func ServePulls(t *testing.T, on Server) *natsserver.Pulls {
	t.Helper()
	pulls, err := natsserver.ServePulls(natsserver.PullsConfig{
		Conn: Must(on.Conn("pulls"))(t), Requests: Must(on.EndpointConn())(t), Caller: on.Caller, DisconnectKey: on.DisconnectKey,
		Logger: slog.New(slog.DiscardHandler),
		TenantExists: func(_ context.Context, tenant string) (bool, error) {
			return tenant == "default" || tenant == "other", nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pulls.Close)
	return pulls
}

// ServiceJS is JetStream as the service uses it.
func ServiceJS(t *testing.T, n *natsserver.Node) jetstream.JetStream {
	t.Helper()
	nc, err := n.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// State returns everything that an attacker could have changed.
func (s *Service) State(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	list := s.Js.ListStreams(t.Context())
	for info := range list.Info() {
		st, err := s.Js.Stream(t.Context(), info.Config.Name)
		if err != nil {
			t.Fatal(err)
		}
		all[info.Config.Name] = fmt.Sprint(info.Config, info.State.FirstSeq, info.State.LastSeq, info.State.Msgs)
		consumers := st.ListConsumers(t.Context())
		for c := range consumers.Info() {
			all[info.Config.Name+"/"+c.Name] = fmt.Sprint(c.Config, c.Delivered.Stream, c.AckFloor.Stream, c.NumAckPending) // pending messages are counted with a delay
		}
		if err := consumers.Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := list.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}

// Recv receives from a channel, with a timeout.
func Recv[T any](t *testing.T, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(5 * time.Second): // reached only in a failed test
		t.Fatal("nothing came")
	}
	return v
}
