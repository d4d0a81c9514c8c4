package kv_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
)

// openConnections opens the bucket as another process does.
func openConnections(t *testing.T, s *bustest.NATS) (*kv.Connections, jetstream.JetStream) {
	t.Helper()
	nc, err := bustest.StartCluster(t, s).Conn("connections")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c, err := kv.OpenConnections(t.Context(), js, 1)
	if err != nil {
		t.Fatal(err)
	}
	return c, js
}

// A connection is changed by who has seen it as it is, and by one of those.
func TestConnections(t *testing.T) {
	s := bustest.Start(t)
	one, js := openConnections(t, s)
	two, _ := openConnections(t, s)
	ctx := t.Context()
	if _, _, found, err := one.Get(ctx, "x1"); found || err != nil {
		t.Errorf("before there is one: %t, %v", found, err)
	}
	revision, err := one.Create(ctx, "x1", []byte("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.Create(ctx, "x1", []byte("b")); err == nil {
		t.Error("it is created twice")
	}
	value, seen, found, err := two.Get(ctx, "x1")
	if string(value) != "a" || seen != revision || !found || err != nil {
		t.Errorf("the other process has %q, %d, %t, %v", value, seen, found, err)
	}
	var wait sync.WaitGroup
	var won atomic.Int32
	for n := range 16 {
		wait.Go(func() {
			_, mine, err := []*kv.Connections{one, two}[n%2].Update(ctx, "x1", []byte{byte('A' + n)}, revision)
			if err != nil {
				t.Error(err)
			}
			if mine {
				won.Add(1)
			}
		})
	}
	wait.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of them have changed it", won.Load())
	}
	_, last, _, _ := one.Get(ctx, "x1")
	next, mine, err := one.Update(ctx, "x1", []byte("c"), last)
	if value, seen, _, _ := two.Get(ctx, "x1"); !mine || err != nil || string(value) != "c" || seen != next {
		t.Errorf("changed again: %t, %v, %q", mine, err, value)
	}
	// Reads go to the leader, and nothing stays for long.
	stream, err := js.Stream(ctx, "KV_"+kv.ConnectBucket)
	if err != nil {
		t.Fatal(err)
	}
	if cfg := stream.CachedInfo().Config; cfg.AllowDirect || cfg.MaxAge == 0 || cfg.MaxBytes <= 0 || cfg.MaxMsgsPerSubject != 1 {
		t.Errorf("the bucket is %+v", cfg)
	}
}
