package jetstream_test

import (
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus/storage"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
)

// node is a real server in this process, as the service runs it: no port, no
// sync-always, files in dir.
type node struct {
	dir    string
	listen bool // on a loopback port, too

	mu  sync.Mutex
	srv *server.Server
}

func (n *node) server() *server.Server {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.srv
}

func startNode(t testing.TB, dir string) *node {
	t.Helper()
	return startNodeAs(t, &node{dir: dir})
}

func startNodeAs(t testing.TB, n *node) *node {
	t.Helper()
	n.start(t)
	t.Cleanup(n.stop)
	return n
}

func (n *node) start(t testing.TB) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		DontListen: !n.listen, Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: n.dir, NoLog: true, NoSigs: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(30 * time.Second) {
		t.Fatal("the server does not start")
	}
	n.mu.Lock()
	n.srv = srv
	n.mu.Unlock()
}

func (n *node) stop() {
	n.server().Shutdown()
	n.server().WaitForShutdown()
}

func (n *node) connect(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("", append([]nats.Option{nats.InProcessServer(n.server())}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// connectTCP connects through the loopback, on a port that the system chooses.
func (n *node) connectTCP(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(n.server().ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (n *node) syncer(t testing.TB) *storage.Syncer {
	t.Helper()
	s := storage.NewSyncer(filepath.Join(n.dir, "jetstream", "$G", "streams", jetstream.Stream, "msgs"), func(err error) { t.Errorf("fsync: %v", err) })
	t.Cleanup(s.Close)
	return s
}

func openStore(t testing.TB, cfg jetstream.Config) *jetstream.Store {
	t.Helper()
	cfg.Registry = events.All()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := jetstream.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func open(t *testing.T) storetest.Harness {
	n := startNode(t, t.TempDir())
	connect := func() events.Store {
		sync := n.syncer(t)
		return openStore(t, jetstream.Config{Conn: n.connect(t), Sync: sync.Wait, SyncTree: sync.SyncTree})
	}
	return storetest.Harness{
		Store: connect(),
		Restart: func(t *testing.T) events.Store {
			n.stop()
			n.start(t)
			return connect()
		},
	}
}

func TestStore(t *testing.T) { storetest.Run(t, open) }

// The plain mode: what the server acknowledges is durable.
func TestStoreWithoutSync(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Harness {
		n := startNode(t, t.TempDir())
		return storetest.Harness{Store: openStore(t, jetstream.Config{Conn: n.connect(t), Follow: n.connect(t)})}
	})
}
