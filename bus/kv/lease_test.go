package kv_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/events"
)

const (
	leaseKey = "$KV." + kv.LeaseBucket + ".feed"
	shortTTL = 900 * time.Millisecond // a sixth of it is more than a busy machine is late
	forEver  = time.Hour
)

// candidate is a process that wants the role "feed".
type candidate struct {
	nc      *nats.Conn
	started chan context.Context // of each time that it had the role
	ended   chan error           // what RunLeased returned
	stop    context.CancelFunc
}

// connector is a bus.Node or a bus.Cluster.
type connector interface {
	Conn(name string) (*nats.Conn, error)
}

// stand starts a candidate. At most one of those that share active has the role.
func stand(t *testing.T, n connector, holder string, ttl time.Duration, active *atomic.Int32) *candidate {
	t.Helper()
	nc, err := n.Conn(holder)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	c := &candidate{nc: nc, started: make(chan context.Context, 10), ended: make(chan error, 1), stop: stop}
	go func() {
		c.ended <- kv.RunLeased(ctx, kv.LeaseConfig{JS: js, Role: "feed", Holder: holder, TTL: ttl}, func(ctx context.Context) error {
			if active.Add(1) > 1 {
				t.Errorf("%s has the role, and somebody else", holder)
			}
			c.started <- ctx
			<-ctx.Done()
			active.Add(-1)
			return ctx.Err()
		})
	}()
	t.Cleanup(stop)
	return c
}

// leases makes the bucket, with the role given back by somebody.
func leases(t *testing.T, n connector) jetstream.JetStream {
	t.Helper()
	nc, err := n.Conn("leases")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	err = kv.RunLeased(t.Context(), kv.LeaseConfig{JS: js, Role: "other", Holder: "x", TTL: 90 * time.Millisecond}, func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), leaseKey, []byte(`{"holder":"x","term":"y","released":true}`)); err != nil {
		t.Fatal(err)
	}
	return js
}

func TestLeaseIsHandedOver(t *testing.T) {
	n := bustest.StartNode(t)
	js := leases(t, n)
	var active atomic.Int32
	first := stand(t, n, "first", forEver, &active)
	bustest.Recv(t, first.started)
	second := stand(t, n, "second", forEver, &active)
	third := stand(t, n, "third", forEver, &active)
	bucket, err := js.KeyValue(t.Context(), kv.LeaseBucket) // people may look with any tool
	if err != nil {
		t.Fatal(err)
	}
	if e, err := bucket.Get(t.Context(), "feed"); err != nil || !strings.Contains(string(e.Value()), `"holder":"first"`) {
		t.Errorf("the bucket says %v, %v", e, err)
	}
	first.stop()
	if err := bustest.Recv(t, first.ended); err != nil {
		t.Error(err)
	}
	// An hour does not pass: somebody takes it because it was given back.
	select {
	case <-second.started:
		second.stop()
		if err := bustest.Recv(t, second.ended); err != nil {
			t.Error(err)
		}
		bustest.Recv(t, third.started)
	case <-third.started:
		third.stop()
		if err := bustest.Recv(t, third.ended); err != nil {
			t.Error(err)
		}
		bustest.Recv(t, second.started)
	case <-time.After(5 * time.Second): // only a failed test waits
		t.Fatal("nobody acquired lease")
	}
}

func TestLeaseOfTheSilent(t *testing.T) {
	t.Parallel()
	n := bustest.StartNode(t)
	js := leases(t, n)
	var active atomic.Int32
	first := stand(t, n, "first", shortTTL, &active)
	lease := bustest.Recv(t, first.started)
	second := stand(t, n, "second", shortTTL, &active)
	renewals, err := js.Conn().SubscribeSync(leaseKey)
	if err != nil {
		t.Fatal(err)
	}
	for range 6 { // for longer than the TTL
		if _, err := renewals.NextMsgWithContext(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(second.started) > 0 || lease.Err() != nil {
		t.Fatal("the role was taken from a holder that renews it")
	}
	first.nc.Close() // it is gone, or cut off: it gives nothing back
	bustest.Recv(t, second.started)
	if lease.Err() == nil {
		t.Error("the first still thinks that it has the role")
	}
	first.stop()
	if err := bustest.Recv(t, first.ended); err != nil {
		t.Error(err)
	}
}

// Whoever lost the role stops at once, and stands again.
func TestLeaseLost(t *testing.T) {
	for name, lose := range map[string]func(jetstream.JetStream) error{
		"taken": func(js jetstream.JetStream) error {
			_, err := js.Publish(context.Background(), leaseKey, []byte(`{"holder":"x","term":"z"}`))
			return err
		},
		"not understood": func(js jetstream.JetStream) error {
			_, err := js.Publish(context.Background(), leaseKey, []byte(`?`))
			return err
		},
		"gone with the servers' memory": func(js jetstream.JetStream) error {
			return js.DeleteStream(context.Background(), "KV_"+kv.LeaseBucket)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := bustest.StartNode(t)
			js := leases(t, n)
			var active atomic.Int32
			c := stand(t, n, "first", shortTTL, &active)
			lease := bustest.Recv(t, c.started)
			if err := lose(js); err != nil {
				t.Fatal(err)
			}
			bustest.Recv(t, lease.Done())
			if again := bustest.Recv(t, c.started); again.Err() != nil {
				t.Error(again.Err())
			}
			c.stop()
			if err := bustest.Recv(t, c.ended); err != nil {
				t.Error(err)
			}
		})
	}
}

// While no server answers nobody has the role for longer than the TTL; afterwards
// one has it again.
func TestLeaseWithoutServer(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	leases(t, c)
	var active atomic.Int32
	first := stand(t, c, "first", shortTTL, &active)
	lease := bustest.Recv(t, first.started)
	second := stand(t, c, "second", shortTTL, &active)
	s.Freeze(0)
	bustest.Recv(t, lease.Done())
	s.Thaw(0)
	select {
	case <-first.started:
	case <-second.started:
	case <-time.After(10 * time.Second): // only a failed test waits
		t.Fatal("nobody acquired lease")
	}
}

func TestLeaseEndsWithItsWork(t *testing.T) {
	n := bustest.StartNode(t)
	js := leases(t, n)
	errWork := errors.New("the work failed")
	for _, want := range []error{nil, errWork, nil} {
		err := kv.RunLeased(t.Context(), kv.LeaseConfig{JS: js, Role: "feed", Holder: "x", TTL: forEver}, func(context.Context) error { return want })
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	for _, role := range []string{"", "a.b", ">"} {
		if err := kv.RunLeased(t.Context(), kv.LeaseConfig{JS: js, Role: role, Holder: "x"}, nil); !errors.Is(err, events.ErrID) {
			t.Errorf("role %q: %v", role, err)
		}
	}
}

func TestLeaseBucketDiffers(t *testing.T) {
	n := bustest.StartNode(t)
	js := bustest.ServiceJS(t, n)
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: kv.LeaseBucket, Storage: jetstream.FileStorage}); err != nil {
		t.Fatal(err)
	}
	if err := kv.RunLeased(t.Context(), kv.LeaseConfig{JS: js, Role: "feed", Holder: "x"}, nil); !errors.Is(err, jsapi.ErrStreamConfig) {
		t.Error(err)
	}
}
