package jetstream_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
)

// created is a fact of the usual size: its commit has about 800 bytes.
func created(name string) events.Event {
	return events.CredentialCreated{
		Component: "petstore", Name: name, Workspace: "0198c1d2-0000-7000-8000-000000000000",
		Keys: events.KeysVersion{
			Version: 1, SecretID: "0198c1d2-0000-7000-8000-000000000001", Fields: []string{"apiKey"}, Revision: 1,
			Hosts: []string{"petstore.example.org"}, HostMAC: strings.Repeat("ab", 32),
			Verification: events.Verification{Status: events.Verified, Probe: "http", Outcome: "2xx", LatencyMS: 12},
		},
	}
}

// spread runs op b.N times on so many goroutines.
func spread(b *testing.B, goroutines int, op func(i int)) {
	b.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for range goroutines {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				op(int(i))
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// BenchmarkAppend appends the first commit of a new stream each time, durably by
// the group's fsync, on this disk and on one whose fsync takes 1 ms more.
// "publish" is the bare JetStream publish of the same bytes without any fsync,
// the limit that the group's fsync is measured against.
func BenchmarkAppend(b *testing.B) {
	for _, mode := range []string{"group", "group+1ms", "no sync", "publish", "publish async"} {
		for _, g := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", mode, g), func(b *testing.B) {
				n := startNode(b, b.TempDir())
				nc := n.connect(b)
				cfg := jetstream.Config{Conn: nc}
				if strings.HasPrefix(mode, "group") {
					syncer := n.syncer(b)
					if mode == "group+1ms" {
						syncer.Delay = time.Millisecond
					}
					cfg.Sync, cfg.SyncTree = syncer.Wait, syncer.SyncTree
					defer func() { b.ReportMetric(float64(b.N)/float64(syncer.Rounds()), "commits/fsync") }()
				}
				s := openStore(b, cfg)
				js, err := natsjs.New(nc)
				if err != nil {
					b.Fatal(err)
				}
				meta := storetest.Meta("acme", "0198c1d2-0000-7000-8000-000000000002")
				meta.Commit = events.NewID()
				body, err := events.All().EncodeCommit(meta, []events.Event{created("n")})
				if err != nil {
					b.Fatal(err)
				}
				message := func(i int) *nats.Msg {
					return &nats.Msg{
						Subject: fmt.Sprintf("credstream.log.acme.credential.%d", i), Data: body,
						Header: nats.Header{"Cs-Format": {"1"}, "Cs-Commit": {meta.Commit}, "Cs-Command": {meta.Command}, "Nats-Expected-Last-Subject-Sequence": {"0"}},
					}
				}
				spread(b, g, func(i int) {
					var err error
					switch mode {
					case "publish":
						_, err = js.PublishMsg(b.Context(), message(i))
					case "publish async":
						var f natsjs.PubAckFuture
						if f, err = js.PublishMsgAsync(message(i)); err == nil {
							select {
							case <-f.Ok():
							case err = <-f.Err():
							}
						}
					default:
						_, err = s.Append(b.Context(), storetest.Credential("acme", fmt.Sprint(i)), 0, meta, created("n"))
					}
					if err != nil {
						b.Error(err)
					}
				})
			})
		}
	}
}

// BenchmarkFollow reads a log of 100,000 commits from its start, through the
// in-process pipe and through TCP.
func BenchmarkFollow(b *testing.B) {
	const commits = 100_000
	n := startNodeAs(b, &node{dir: b.TempDir(), listen: true})
	fillRaw(b, n, commits)
	for _, conn := range []string{"pipe", "tcp"} {
		b.Run(conn, func(b *testing.B) {
			cfg := jetstream.Config{Conn: n.connect(b)}
			if conn == "tcp" {
				cfg.Follow = n.connectTCP(b)
			}
			s := openStore(b, cfg)
			b.ResetTimer()
			for range b.N {
				for r, err := range s.Follow(b.Context(), 0) {
					if err != nil {
						b.Fatal(err)
					}
					if r.Seq == commits {
						break
					}
				}
			}
			b.ReportMetric(float64(b.N)*commits/b.Elapsed().Seconds(), "events/s")
		})
	}
}

// BenchmarkDecode is the limit of Follow: one core decoding commits.
func BenchmarkDecode(b *testing.B) {
	reg := events.All()
	stream := storetest.Credential("acme", "1")
	meta := storetest.Meta("acme", "c")
	meta.Commit = events.NewID()
	body, err := reg.EncodeCommit(meta, []events.Event{created("n")})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := reg.DecodeCommit(stream, 1, body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLoad loads a stream of ten commits that lie far apart in a log of 100,000.
func BenchmarkLoad(b *testing.B) {
	n := startNode(b, b.TempDir())
	s := openStore(b, jetstream.Config{Conn: n.connect(b)})
	stream := storetest.Credential("acme", "loaded")
	var last uint64
	for range 10 {
		fillRaw(b, n, 10_000)
		var err error
		if last, err = s.Append(b.Context(), stream, last, storetest.Meta("acme", "c"), created("n")); err != nil {
			b.Fatal(err)
		}
	}
	for _, g := range []int{1, 16} {
		b.Run(fmt.Sprint(g), func(b *testing.B) {
			spread(b, g, func(int) {
				seen := 0
				for _, err := range s.Stream(b.Context(), stream, 0) {
					if err != nil {
						b.Error(err)
						return
					}
					seen++
				}
				if seen != 10 {
					b.Errorf("loaded %d", seen)
				}
			})
		})
	}
}

// fillRaw appends n commits, each the first of its stream, without waiting for each.
func fillRaw(b *testing.B, n *node, commits int) {
	b.Helper()
	s := openStore(b, jetstream.Config{Conn: n.connect(b)})
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			for i := w; i < commits; i += 64 {
				if _, err := s.Append(b.Context(), storetest.Credential("acme", events.NewID()), 0, storetest.Meta("acme", "c"), created("n")); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}
