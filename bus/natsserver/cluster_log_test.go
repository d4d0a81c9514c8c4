package natsserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
)

// A server that led the log and is cut off from the others goes on answering as if
// it led. What it does not know is not taken for absent, nor what it knows for the last.
func TestLogLeaderThatIsCutOff(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t, bustest.Nodes(3), bustest.Cuttable())
	var conns [3]*nats.Conn
	var stores [3]*eventlog.Store
	for i := range 3 {
		conns[i] = bustest.Host(t, s, i)
		for stores[i] == nil { // the servers may not know of each other's disks yet
			store, err := eventlog.Open(t.Context(), eventlog.Config{Conn: conns[i], Registry: events.All(), Replicas: 3})
			switch {
			case err == nil:
				stores[i] = store
			case t.Context().Err() != nil:
				t.Fatal(err)
			}
		}
		t.Cleanup(stores[i].Close)
	}
	js, err := jetstream.New(conns[0])
	if err != nil {
		t.Fatal(err)
	}
	write := func(i int, id string, expected uint64) uint64 {
		t.Helper()
		stream := events.StreamID{Tenant: "default", Category: "credential", ID: id}
		for {
			seq, err := stores[i].Append(t.Context(), stream, expected, storetest.Meta("default", ""), events.CredentialRenamed{Name: "n"})
			if err == nil {
				return seq
			}
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
			if last, err := stores[i].Last(t.Context(), stream); err == nil && last > expected {
				return last // it was stored after all
			}
		}
	}
	old := s.Leader(js, eventlog.Stream)
	for ; old < 0; old = s.Leader(js, eventlog.Stream) {
		time.Sleep(10 * time.Millisecond)
	}
	other := (old + 1) % 3
	first := write(other, "known", 0)
	s.Cut(old)
	second := write(other, "known", first)
	fresh := write(other, "fresh", 0)

	answer, err := conns[old].Request("$JS.API.STREAM.MSG.GET."+eventlog.Stream, []byte(`{"last_by_subj":"credstream.log.default.credential.fresh"}`), time.Second)
	var said struct {
		Error struct {
			ErrCode int `json:"err_code"`
		} `json:"error"`
	}
	if err == nil {
		err = json.Unmarshal(answer.Data, &said)
	}
	t.Logf("the server that is cut off says %+v, %v", said.Error, err) // 10037 while it takes itself for the leader
	for id, want := range map[string]uint64{"known": second, "fresh": fresh} {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		seq, err := stores[old].Last(ctx, events.StreamID{Tenant: "default", Category: "credential", ID: id})
		cancel()
		if err == nil && seq != want {
			t.Errorf("by the server that is cut off the last commit of %s is %d, not %d", id, seq, want)
		}
	}
	s.Heal(old)
	for id, want := range map[string]uint64{"known": second, "fresh": fresh} {
		for {
			seq, err := stores[old].Last(t.Context(), events.StreamID{Tenant: "default", Category: "credential", ID: id})
			if err == nil {
				if seq != want {
					t.Errorf("the last commit of %s is %d, not %d", id, seq, want)
				}
				break
			}
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
		}
	}
}

// A server that hangs keeps a commit that its writer has given up. Settle finds out
// what becomes of it: it is stored, once, or it never will be.
func TestCommitWithoutAnswerIsSettled(t *testing.T) {
	t.Parallel()
	s := bustest.Start(t)
	store, err := eventlog.Open(t.Context(), eventlog.Config{Conn: bustest.Host(t, s, 0), Registry: events.All(), Replicas: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	meta := storetest.Meta("default", "")
	for _, lost := range []bool{false, true} {
		stream := events.StreamID{Tenant: "default", Category: "credential", ID: fmt.Sprint("lost-", lost)}
		s.Freeze(0)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := store.Append(ctx, stream, 0, meta, events.CredentialRenamed{Name: "given up"})
		cancel()
		unsettled, ok := errors.AsType[*events.UnsettledError](err)
		if !ok || !errors.Is(err, events.ErrUnknownOutcome) {
			t.Fatalf("an append to a server that hangs returns %v", err)
		}
		if lost { // with what was sent to it, and somebody else is faster
			s.Kill(0)
			s.StartNode(0)
			s.Ready()
			other, err := eventlog.Open(t.Context(), eventlog.Config{Conn: bustest.Host(t, s, 0), Registry: events.All(), Replicas: 1})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(other.Close)
			if _, err := other.Append(t.Context(), stream, 0, meta, events.CredentialRenamed{Name: "another"}); err != nil {
				t.Fatal(err)
			}
		} else {
			s.Thaw(0)
		}
		stored, err := unsettled.Settle(t.Context())
		if err != nil || stored == lost {
			t.Errorf("lost %t: stored %t, %v", lost, stored, err)
		}
		var names []string
		for rec, err := range store.Stream(t.Context(), stream, 0) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, rec.Event.(events.CredentialRenamed).Name)
		}
		if want := map[bool]string{false: "given up", true: "another"}[lost]; len(names) != 1 || names[0] != want {
			t.Errorf("lost %t: the stream holds %q", lost, names)
		}
	}
}
