package kv_test

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
)

func TestClaims(t *testing.T) {
	s := bustest.Start(t)
	var processes []*kv.Claims
	for range 2 {
		nc, err := bustest.StartCluster(t, s).Conn("claims")
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := kv.OpenClaims(t.Context(), js, 1)
		if err != nil {
			t.Fatal(err)
		}
		processes = append(processes, claims)
	}
	bustest.OneClaims(t, processes...)
	key := [32]byte{1, 2, 3}
	begin := func(process int, request, attempt, want string) {
		t.Helper()
		if claimed, _, err := processes[process].Begin(t.Context(), key, request, attempt); err != nil || claimed != want {
			t.Errorf("got %q, %v", claimed, err)
		}
	}
	refuse := func(process int, attempt string, want bool) {
		t.Helper()
		if others, err := processes[process].Refuse(t.Context(), key, attempt); err != nil || others != want {
			t.Errorf("got %t, %v", others, err)
		}
	}
	begin(0, "a", "1", "a")
	begin(1, "b", "2", "a")
	begin(1, "a", "3", "a")
	// Whoever is refused frees its own attempt, never another process's.
	refuse(1, "3", true)
	refuse(1, "3", true)
	refuse(1, "never begun", true)
	begin(1, "b", "4", "a")
	refuse(0, "1", false)
	begin(1, "b", "5", "b")
	begin(0, "a", "6", "b")
	refuse(0, "6", true)
	// More attempts than are told apart: the id stays claimed.
	key[0]++
	for n := range 40 {
		begin(n%2, "a", fmt.Sprint(n), "a")
	}
	for n := range 40 {
		refuse(n%2, fmt.Sprint(n), true)
	}
	begin(1, "b", "x", "a")
	// The claims are gone with the memory of a single server, the stream comes back.
	s.Stop(0)
	s.StartNode(0)
	s.Ready()
	begin(1, "c", "7", "c")
	begin(0, "d", "8", "c")
	refuse(1, "7", false)
}

// A server that hangs holds the publish of a claim whose caller has given up, and sends it on
// when it runs again. It claims nothing any more: its attempt is over, and nobody would free
// the id.
func TestLateClaim(t *testing.T) {
	s := bustest.Start(t)
	nc, err := bustest.StartCluster(t, s).Conn("claims")
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := kv.OpenClaims(t.Context(), js, 1)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), kv.ClaimsStream)
	if err != nil {
		t.Fatal(err)
	}
	prefix, _ := strings.CutSuffix(kv.ClaimsConfig(1).Subjects[0], "*")
	for name, others := range map[string][]string{"the first of its id": nil, "beside another one": {"1"}} {
		key := [32]byte{byte(len(others) + 1)}
		subject := prefix + hex.EncodeToString(key[:])
		var revision uint64
		for _, attempt := range others {
			if _, _, err := claims.Begin(t.Context(), key, "a", attempt); err != nil {
				t.Fatal(err)
			}
			m, err := stream.GetLastMsgForSubject(t.Context(), subject)
			if err != nil {
				t.Fatal(err)
			}
			revision = m.Sequence
		}
		if open, err := claims.Refuse(t.Context(), key, "late"); err != nil || open != (len(others) > 0) {
			t.Errorf("%s: %t, %v", name, open, err)
		}
		if _, err := js.Publish(t.Context(), subject, []byte(`{"request":"a","open":["1","late"]}`), jetstream.WithExpectLastSequencePerSubject(revision)); err == nil {
			t.Errorf("%s: the late claim stands", name)
		}
	}
}

func BenchmarkClaim(b *testing.B) {
	for _, nodes := range []int{1, 3} {
		b.Run(fmt.Sprint(nodes, " servers"), func(b *testing.B) {
			s := bustest.Start(b, bustest.Nodes(nodes))
			cfg := s.Config()
			cfg.AttestSyncAlways = true
			c, err := natsserver.Connect(b.Context(), cfg)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Shutdown(b.Context())
			nc, err := c.Conn("claims")
			if err != nil {
				b.Fatal(err)
			}
			js, err := jetstream.New(nc)
			if err != nil {
				b.Fatal(err)
			}
			claims, err := kv.OpenClaims(b.Context(), js, nodes)
			if err != nil {
				b.Fatal(err)
			}
			var n uint32
			for b.Loop() {
				n++
				if claimed, _, err := claims.Begin(b.Context(), [32]byte{byte(n), byte(n >> 8), byte(n >> 16)}, "request", "attempt"); err != nil || claimed != "request" {
					b.Fatal(claimed, err)
				}
			}
		})
	}
}
