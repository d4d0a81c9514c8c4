package natsserver_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/natsserver"
)

func TestOneProcessPerFolder(t *testing.T) {
	dir := t.TempDir()
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Dir = dir })
	second, err := natsserver.StartNode(t.Context(), natsserver.NodeConfig{Dir: dir})
	if !errors.Is(err, natsserver.ErrDataFolderLocked) || second != nil {
		t.Fatal(second, err)
	}
	for _, part := range []string{dir, fmt.Sprintf("pid %d)", os.Getpid())} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not name %q", err, part)
		}
	}
	if err := n.Health(); err != nil {
		t.Errorf("the first suffers: %v", err)
	}
	if err := n.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Dir = dir })
}

func TestStartFails(t *testing.T) {
	taken := bustest.StartNode(t)
	for name, listen := range map[string]string{"a taken port": taken.Addr().String(), "no port": "127.0.0.1", "not a port": "127.0.0.1:x"} {
		dir := t.TempDir()
		if n, err := natsserver.StartNode(t.Context(), natsserver.NodeConfig{Dir: dir, Listen: listen}); err == nil {
			t.Errorf("%s: started at %s", name, n.ClientURL())
		}
		bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Dir = dir }) // the folder is free again
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := natsserver.StartNode(ctx, natsserver.NodeConfig{Dir: t.TempDir()}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestNoPort(t *testing.T) {
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Listen = "" })
	if n.Addr() != nil || n.ClientURL() != "" {
		t.Errorf("listens on %v, %s", n.Addr(), n.ClientURL())
	}
	if _, err := bustest.ServiceJS(t, n).AccountInfo(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFolderIsPrivate(t *testing.T) {
	for _, always := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "data")
		n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Dir, c.SyncAlways = dir, always })
		bustest.StartService(t, n)
		for path, want := range map[string]os.FileMode{"": 0o700, "nats": 0o700, "LOCK": 0o600} {
			info, err := os.Stat(filepath.Join(dir, path))
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != want {
				t.Errorf("%s has mode %o, want %o", path, got, want)
			}
		}
	}
}

func TestSyncerFindsTheStream(t *testing.T) {
	n := bustest.StartNode(t)
	bustest.StartService(t, n)
	s := n.Syncer("CREDSTREAM_LOG")
	if s != n.Syncer("CREDSTREAM_LOG") || s == n.Syncer("CREDSTREAM_VAULT") {
		t.Error("not one syncer per stream")
	}
	if err := errors.Join(s.Wait(t.Context()), s.SyncTree()); err != nil {
		t.Error(err)
	}
}

func TestFullDisk(t *testing.T) {
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.MinFree = math.MaxUint64 })
	for name, err := range map[string]error{"WritesAllowed": n.WritesAllowed(), "Health": n.Health()} {
		if !errors.Is(err, natsserver.ErrStorageLow) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := bustest.ServiceJS(t, n).AccountInfo(t.Context()); err != nil {
		t.Errorf("reading: %v", err)
	}
	if err := bustest.StartNode(t).WritesAllowed(); err != nil {
		t.Errorf("with space: %v", err)
	}
}

func TestRestart(t *testing.T) {
	var restarts int
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Restarted = func() { restarts++ } })
	s := bustest.StartService(t, n)
	url := n.ClientURL()
	back := make(chan bool, 1)
	nc, _ := bustest.Connect(t, n, "alice-key", nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectHandler(func(*nats.Conn) { back <- true }))
	before := s.State(t)
	if err := n.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	bustest.Recv(t, back)
	if n.ClientURL() != url || restarts != 1 {
		t.Errorf("%d restarts; was at %s, is at %s", restarts, url, n.ClientURL())
	}
	own := bustest.ServiceJS(t, n) // a new connection
	for _, js := range []jetstream.JetStream{s.Js, own} {
		for { // the old one may still be on its way back
			if _, err := js.Publish(t.Context(), "credstream.log.default.credential.first", nil); err == nil {
				break
			} else if t.Context().Err() != nil {
				t.Fatal(err)
			}
		}
	}
	after := s.State(t)
	delete(before, "CREDSTREAM_LOG")
	for name := range before {
		if before[name] != after[name] {
			t.Errorf("%s was %s and is %s", name, before[name], after[name])
		}
	}
	for {
		_, err := nc.RequestWithContext(t.Context(), "credstream.cmd.default.x", nil)
		if err == nil {
			break
		}
		if !errors.Is(err, nats.ErrNoResponders) { // until the endpoints are back
			t.Fatal(err)
		}
	}
	if got := bustest.Recv(t, s.Calls); got.Caller != "alice" {
		t.Errorf("%+v", got)
	}
	if err := n.Health(); err != nil {
		t.Error(err)
	}
}

func TestShutdownTwice(t *testing.T) {
	n := bustest.StartNode(t)
	nc, err := n.Conn("test")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if !nc.IsClosed() {
		t.Error("a connection outlives the node")
	}
	if _, err := n.Conn("late"); err == nil {
		t.Error("connected to a node that is shut down")
	}
	if err := errors.Join(n.Restart(t.Context())); err == nil {
		t.Error("restarted a node that is shut down")
	}
	if err := n.Health(); err == nil {
		t.Error("a stopped node is healthy")
	}
}

// refusesWrites reports whether the server has met a write error.
func refusesWrites(n *natsserver.Node) bool {
	err := n.Health()
	return err != nil && !errors.Is(err, natsserver.ErrStorageLow)
}

// A disk that was full leaves JetStream refusing writes; Watch brings it back.
func TestWatchRestartsAfterFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
		t.Skip("needs the right to mount a small file system:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	restarted := make(chan bool, 10)
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) {
		c.Dir, c.MinFree, c.Restarted = dir, 4<<20, func() { restarted <- true }
	})
	js := bustest.ServiceJS(t, n)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "CREDSTREAM_LOG", Subjects: []string{"credstream.log.>"}}); err != nil {
		t.Fatal(err)
	}
	publish := func(size int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := js.Publish(ctx, "credstream.log.default.x", make([]byte, size))
		return err
	}
	if err := publish(10); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 28<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	acked := 1
	for !refusesWrites(n) { // an error alone may be a slow machine
		if publish(512<<10) == nil {
			acked++
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if err := publish(10); err == nil {
		t.Fatal("JetStream came back by itself: Watch has nothing to do")
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- n.Watch(ctx) }()
	bustest.Recv(t, restarted)
	for publish(10) != nil {
		if t.Context().Err() != nil {
			t.Fatal("no write after the restart")
		}
	}
	stream, err := js.Stream(t.Context(), "CREDSTREAM_LOG")
	if err != nil {
		t.Fatal(err)
	}
	if got := stream.CachedInfo().State.Msgs; got < uint64(acked)+1 {
		t.Errorf("%d messages are left of %d acknowledged", got, acked+1)
	}
	if err := n.Health(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := bustest.Recv(t, watched); err != nil {
		t.Error(err)
	}
}

// A disk without free inodes is low on storage: writes are refused, and the server
// that runs is kept for reading until files are gone.
func TestNodeReadsWithoutFreeInodes(t *testing.T) {
	dir := t.TempDir()
	if os.Getuid() != 0 {
		t.Skip("what used up inodes do is not tried: mounting a small file system needs root")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64m,nr_inodes=400"); err != nil {
		t.Skip("what used up inodes do is not tried: a small file system cannot be mounted here: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	restarted := make(chan bool, 10)
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) {
		c.Dir, c.MinFree, c.MinFreeInodes, c.Restarted = dir, 1<<20, 100, func() { restarted <- true }
	})
	js := bustest.ServiceJS(t, n)
	stream, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "CREDSTREAM_LOG", Subjects: []string{"credstream.log.>"}})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(size int) error {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		_, err := js.Publish(ctx, "credstream.log.default.x", make([]byte, size))
		return err
	}
	if err := errors.Join(publish(10), n.WritesAllowed()); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.Mkdir(ballast, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(ballast, strconv.Itoa(i)))
		if err != nil {
			break
		}
		f.Close()
	}
	for !refusesWrites(n) { // the next block cannot be made
		_ = publish(512 << 10)
	}
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- n.Watch(ctx) }()
	select {
	case <-restarted:
		t.Error("the server was restarted on a disk without inodes")
	case err := <-watched:
		t.Fatalf("the watch has ended: %v", err)
	case <-time.After(2500 * time.Millisecond): // more than two looks
	}
	if err := n.WritesAllowed(); !errors.Is(err, natsserver.ErrStorageLow) {
		t.Errorf("writes without free inodes: %v", err)
	}
	if _, err := stream.GetMsg(t.Context(), 1); err != nil {
		t.Errorf("reading without free inodes: %v", err)
	}
	if err := os.RemoveAll(ballast); err != nil {
		t.Fatal(err)
	}
	bustest.Recv(t, restarted)
	for publish(10) != nil {
		if t.Context().Err() != nil {
			t.Fatal("no write after the restart")
		}
	}
	cancel()
	if err := bustest.Recv(t, watched); err != nil {
		t.Error(err)
	}
}

// A server that does not start, here for want of its port, is tried again.
func TestWatchRetriesARestart(t *testing.T) {
	said := &bustest.LogBuffer{}
	n := bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Listen, c.Logger = "127.0.0.1:0", said.Logger() })
	address := n.Addr().String()
	n.StopServer()
	taken, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	ctx, cancel := context.WithCancel(t.Context())
	watched := make(chan error, 1)
	go func() { watched <- n.Watch(ctx) }()
	bustest.Eventually(t, "the first attempt", func() bool { return strings.Contains(said.String(), "did not start; will retry") })
	if err := n.Health(); err == nil {
		t.Error("a node without a server is healthy")
	}
	taken.Close()
	for deadline := time.Now().Add(30 * time.Second); n.Health() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server was not started again")
		}
	}
	cancel()
	if err := bustest.Recv(t, watched); err != nil {
		t.Error(err)
	}
}
