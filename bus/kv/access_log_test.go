package kv_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	credentials "github.com/credstream/credstream/service/credential"
)

var update = flag.Bool("update", false, "write the golden files that are missing; existing ones are for ever")

var accessDay = time.Date(2026, 1, 31, 8, 0, 0, 123456000, time.UTC)

// accessFact is the nth fact of a credential, a second after the one before it.
func accessFact(credential string, n int) credentials.AccessFact {
	at := accessDay.Add(time.Duration(n) * time.Second)
	return credentials.AccessFact{
		Lease: fmt.Sprintf("lease-%d", n), Credential: credential, Version: n, Actor: events.Actor{Kind: "key", ID: "engine"},
		Via: "nats", Recipient: strings.Repeat("ab", 32), Time: at, Expires: at.Add(10 * time.Minute).Truncate(time.Second), Kind: credentials.AccessGiven,
	}
}

// openAccess opens the access log of a node, durable by its syncer.
func openAccess(t *testing.T, n *natsserver.Node) (*kv.AccessLog, jetstream.JetStream) {
	t.Helper()
	js := bustest.ServiceJS(t, n)
	bustest.Must(kv.EnsureAccessLog(t.Context(), js, 1, kv.DefaultAccessRetention))(t)
	return bustest.Must(kv.NewAccessLog(bustest.Must(n.Conn("access"))(t), n.Syncer(kv.AccessStream).Wait))(t), js
}

// The stored form of a fact is for ever.
func TestAccessGolden(t *testing.T) {
	log, js := openAccess(t, bustest.StartNode(t))
	whole := accessFact("AAABcID5GBc=", 3)
	whole.Grant, whole.Flow, whole.Step, whole.Kind = 2, "orders", "step_1", credentials.AccessWithdrawn
	plain := accessFact("c1", 1)
	plain.Cleartext, plain.Recipient, plain.Via = true, "", "http"
	var got strings.Builder
	for i, fact := range []credentials.AccessFact{whole, plain} {
		bustest.OK(t, log.Append(t.Context(), "acme", fact))
		m := bustest.Must(bustest.Must(js.Stream(t.Context(), kv.AccessStream))(t).GetMsg(t.Context(), uint64(i+1)))(t)
		fmt.Fprintf(&got, "%s\n", m.Subject)
		for _, name := range []string{jetstream.StreamHeader, jetstream.SubjectHeader, jetstream.SequenceHeader, jetstream.TimeStampHeaer} {
			delete(m.Header, name) // of the answer, not of the message
		}
		for name, values := range m.Header { // one is expected
			fmt.Fprintf(&got, "%s: %s\n", name, strings.Join(values, "|"))
		}
		fmt.Fprintf(&got, "\n%s\n\n", m.Data)
	}
	path := filepath.Join("testdata", "access.v1.golden")
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		bustest.OK(t, os.MkdirAll("testdata", 0o755))
		bustest.OK(t, os.WriteFile(path, []byte(got.String()), 0o600))
		return
	}
	bustest.OK(t, err)
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s is for ever (-want +got):\n%s", path, diff)
	}
	page, next, err := log.Read(t.Context(), "acme", credentials.AccessRange{}, 10)
	bustest.OK(t, err)
	if diff := cmp.Diff([]credentials.AccessRecord{{Seq: 1, AccessFact: whole}, {Seq: 2, AccessFact: plain}}, page); diff != "" || next != 0 {
		t.Errorf("read back, next %d (-want +got):\n%s", next, diff)
	}
}

// seqs are the places of what was read, and where it goes on.
func seqs(page []credentials.AccessRecord, next uint64) string {
	var b strings.Builder
	for _, rec := range page {
		fmt.Fprint(&b, rec.Seq, " ")
	}
	return fmt.Sprint(b.String(), "next ", next)
}

func TestAccessRead(t *testing.T) {
	node := bustest.StartNode(t)
	log, js := openAccess(t, node)
	const other = "odd id ÿ" // not plain: it stands encoded in the subject
	for i := range 10 {
		tenant, credential := []string{"acme", "ajax"}[i/5], []string{"c1", other}[i%2]
		bustest.OK(t, log.Append(t.Context(), tenant, accessFact(credential, i)))
	}
	future := time.Now().Add(time.Hour)
	for _, c := range []struct {
		name   string
		tenant string
		of     credentials.AccessRange
		limit  int
		want   string
	}{
		{"a tenant", "acme", credentials.AccessRange{}, 100, "1 2 3 4 5 next 0"},
		{"another", "ajax", credentials.AccessRange{}, 100, "6 7 8 9 10 next 0"},
		{"nobody", "nobody", credentials.AccessRange{}, 100, "next 0"},
		{"a credential", "acme", credentials.AccessRange{Credential: "c1"}, 100, "1 3 5 next 0"},
		{"an id that is not plain", "ajax", credentials.AccessRange{Credential: other}, 100, "6 8 10 next 0"},
		{"the same id of another tenant", "acme", credentials.AccessRange{Credential: other}, 100, "2 4 next 0"},
		{"an id that nobody has", "acme", credentials.AccessRange{Credential: "c2"}, 100, "next 0"},
		{"the first page", "acme", credentials.AccessRange{}, 2, "1 2 next 3"},
		{"the second", "acme", credentials.AccessRange{From: 3}, 2, "3 4 next 5"},
		{"the last", "acme", credentials.AccessRange{From: 5}, 2, "5 next 0"},
		{"a full page that is the last", "acme", credentials.AccessRange{From: 4}, 2, "4 5 next 0"},
		{"from between two", "acme", credentials.AccessRange{Credential: "c1", From: 2}, 1, "3 next 4"},
		{"from behind the end", "acme", credentials.AccessRange{From: 6}, 2, "next 0"},
		{"since before all", "ajax", credentials.AccessRange{Since: time.Unix(0, 0)}, 100, "6 7 8 9 10 next 0"},
		{"since, and from", "ajax", credentials.AccessRange{Since: time.Now(), From: 9}, 100, "9 10 next 0"},
		{"since after all", "ajax", credentials.AccessRange{Since: future}, 100, "next 0"},
	} {
		page, next, err := log.Read(t.Context(), c.tenant, c.of, c.limit)
		if got := seqs(page, next); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	for _, tenant := range []string{"", "a.b", "*", ">", "a b"} {
		if _, _, err := log.Read(t.Context(), tenant, credentials.AccessRange{}, 1); !errors.Is(err, events.ErrID) {
			t.Errorf("tenant %q: %v", tenant, err)
		}
		if err := log.Append(t.Context(), tenant, accessFact("c1", 1)); !errors.Is(err, events.ErrID) {
			t.Errorf("a fact of tenant %q: %v", tenant, err)
		}
	}
	info := bustest.Must(bustest.Must(js.Stream(t.Context(), kv.AccessStream))(t).Info(t.Context()))(t)
	if info.State.Consumers != 0 || info.State.Msgs != 10 {
		t.Errorf("%d consumers are left behind, %d facts are there", info.State.Consumers, info.State.Msgs)
	}
}

// Two facts that look the same are two facts, and each was durable when Append
// returned: it waits for an fsync that begins after it was stored.
func TestAccessAppend(t *testing.T) {
	node := bustest.StartNode(t)
	js := bustest.ServiceJS(t, node)
	bustest.Must(kv.EnsureAccessLog(t.Context(), js, 1, kv.DefaultAccessRetention))(t)
	stream := bustest.Must(js.Stream(t.Context(), kv.AccessStream))(t)
	var stored []uint64 // messages in the stream when the sync was asked for
	var failure error
	log := bustest.Must(kv.NewAccessLog(bustest.Must(node.Conn("access"))(t), func(ctx context.Context) error {
		stored = append(stored, bustest.Must(stream.Info(ctx))(t).State.Msgs)
		return failure
	}))(t)
	for range 3 {
		bustest.OK(t, log.Append(t.Context(), "acme", accessFact("c1", 1)))
	}
	if fmt.Sprint(stored) != "[1 2 3]" {
		t.Errorf("synced after %v messages", stored)
	}
	failure = errors.New("the disk is gone")
	if err := log.Append(t.Context(), "acme", accessFact("c1", 1)); !errors.Is(err, failure) {
		t.Errorf("a sync that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := log.Append(ctx, "acme", accessFact("c1", 1)); err == nil {
		t.Error("stored for a caller who has gone")
	}
	failure = nil
	bustest.OK(t, js.DeleteStream(t.Context(), kv.AccessStream))
	if err := log.Append(t.Context(), "acme", accessFact("c1", 1)); err == nil {
		t.Error("stored where there is no stream")
	}
	if _, _, err := log.Read(t.Context(), "acme", credentials.AccessRange{}, 1); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("read where there is no stream: %v", err)
	}
}

// Nothing is taken away but by age, and the age may be changed.
func TestAccessRetention(t *testing.T) {
	node := bustest.StartNode(t)
	log, js := openAccess(t, node)
	bustest.OK(t, log.Append(t.Context(), "acme", accessFact("c1", 1)))
	if changed := bustest.Must(kv.EnsureAccessLog(t.Context(), js, 1, kv.DefaultAccessRetention))(t); changed {
		t.Error("what is there is changed")
	}
	if changed := bustest.Must(kv.EnsureAccessLog(t.Context(), js, 1, kv.MinAccessRetention))(t); !changed {
		t.Error("another retention is not taken over")
	}
	stream := bustest.Must(js.Stream(t.Context(), kv.AccessStream))(t)
	cfg := stream.CachedInfo().Config
	if cfg.MaxAge != kv.MinAccessRetention || stream.CachedInfo().State.Msgs != 1 {
		t.Errorf("keeps for %v, holds %d", cfg.MaxAge, stream.CachedInfo().State.Msgs)
	}
	if stream.Purge(t.Context()) == nil || stream.DeleteMsg(t.Context(), 1) == nil {
		t.Error("a fact can be deleted")
	}
	cfg.DenyPurge, cfg.DenyDelete = false, false
	if _, err := js.UpdateStream(t.Context(), cfg); err == nil {
		t.Error("deleting can be allowed")
	}
}

// A reader stops at what it does not understand.
func TestAccessUnknownForms(t *testing.T) {
	log, js := openAccess(t, bustest.StartNode(t))
	for tenant, m := range map[string]*nats.Msg{
		"format": {Header: nats.Header{"Cs-Format": {"2"}}, Data: []byte(`{"credential":"c1"}`)},
		"none":   {Data: []byte(`{"credential":"c1"}`)},
		"member": {Header: nats.Header{"Cs-Format": {"1"}}, Data: []byte(`{"credential":"c1","secret":"x"}`)},
		"text":   {Header: nats.Header{"Cs-Format": {"1"}}, Data: []byte(`hello`)},
		"place":  {Header: nats.Header{"Cs-Format": {"1"}}, Data: []byte(`{"credential":"c2"}`)},
	} {
		m.Subject = "credstream.access." + tenant + ".c1"
		bustest.Must(js.PublishMsg(t.Context(), m))(t)
		if page, _, err := log.Read(t.Context(), tenant, credentials.AccessRange{}, 10); err == nil {
			t.Errorf("%s is read as %+v", tenant, page)
		}
	}
}

// On external servers a fact is read as soon as it is acknowledged, also from a
// replica that is behind.
func TestAccessOnCluster(t *testing.T) {
	s := bustest.Start(t)
	c := bustest.StartCluster(t, s)
	conn := bustest.Must(c.Conn("access"))(t)
	js := bustest.Must(jetstream.New(conn))(t)
	bustest.Must(kv.EnsureAccessLog(t.Context(), js, 1, kv.DefaultAccessRetention))(t)
	log := bustest.Must(kv.NewAccessLog(conn, nil))(t)
	for i := range 50 {
		bustest.OK(t, log.Append(t.Context(), "acme", accessFact("c1", i)))
		page, _, err := log.Read(t.Context(), "acme", credentials.AccessRange{Credential: "c1", From: uint64(i + 1)}, 10)
		if err != nil || len(page) != 1 || page[0].Version != i {
			t.Fatalf("fact %d is read as %+v, %v", i, page, err)
		}
	}
}

// BenchmarkAccessAppend is what a new lease costs at least: one durable fact.
func BenchmarkAccessAppend(b *testing.B) {
	node, err := natsserver.StartNode(b.Context(), natsserver.NodeConfig{Dir: b.TempDir(), MinFree: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = node.Shutdown(context.WithoutCancel(b.Context())) })
	conn, err := node.Conn("access")
	if err != nil {
		b.Fatal(err)
	}
	js, err := jetstream.New(conn)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := kv.EnsureAccessLog(b.Context(), js, 1, kv.DefaultAccessRetention); err != nil {
		b.Fatal(err)
	}
	syncer := node.Syncer(kv.AccessStream)
	log, err := kv.NewAccessLog(conn, syncer.Wait)
	if err != nil {
		b.Fatal(err)
	}
	rounds := syncer.Rounds()
	b.SetParallelism(32) // 64 at a time on two cores
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := log.Append(b.Context(), "acme", accessFact("c1", 1)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "facts/s")
	b.ReportMetric(float64(b.N)/float64(syncer.Rounds()-rounds), "facts/fsync")
}
