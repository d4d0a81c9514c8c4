package jetstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	natsjs "github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/events/storetest"
	"github.com/credstream/credstream/fault"
)

var update = flag.Bool("update", false, "write the golden files that are missing; existing ones are for ever")

func renamed(name string) events.Event { return events.CredentialRenamed{Name: name} }

func appendTo(t *testing.T, s events.Store, stream events.StreamID, expected uint64, name string) uint64 {
	t.Helper()
	seq, err := s.Append(t.Context(), stream, expected, storetest.Meta(stream.Tenant, "command-"+name), renamed(name))
	if err != nil {
		t.Fatalf("append %s: %v", name, err)
	}
	return seq
}

func js(t *testing.T, nc *nats.Conn) natsjs.JetStream {
	t.Helper()
	j, err := natsjs.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func stored(t *testing.T, nc *nats.Conn, stream string, seq uint64) *natsjs.RawStreamMsg {
	t.Helper()
	st, err := js(t, nc).Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := st.GetMsg(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// text writes a stored message as its golden file shows it. The commit's id is
// new each time and stands as <commit>.
func text(m *natsjs.RawStreamMsg, commit string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", m.Subject)
	for _, h := range []string{"Cs-Format", "Cs-Commit", "Cs-Command", "Cs-Prev", "Nats-Expected-Last-Subject-Sequence"} {
		if v, ok := m.Header[h]; ok {
			fmt.Fprintf(&b, "%s: %s\n", h, strings.Join(v, "|"))
			delete(m.Header, h)
		}
	}
	for _, h := range []string{"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"} { // of the answer, not of the message
		delete(m.Header, h)
	}
	for h, v := range m.Header { // none is expected
		fmt.Fprintf(&b, "%s: %s\n", h, v)
	}
	fmt.Fprintf(&b, "\n%s\n", m.Data)
	return strings.ReplaceAll(b.String(), commit, "<commit>")
}

// golden compares with a file that is written once, when it is absent, and never changed.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) && *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is for ever (-want +got):\n%s", name, diff)
	}
}

func TestStoredForm(t *testing.T) {
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	s := openStore(t, jetstream.Config{Conn: nc})
	commit := func(seq uint64) string {
		recs, err := s.Commit(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		return recs[0].Meta.Commit
	}
	stream := storetest.Credential("acme", "AAABcID5GBc=")
	first, err := s.Append(t.Context(), stream, 0, storetest.Meta("acme", "import/1 é"), created("Petstore"), renamed("Pets"))
	if err != nil {
		t.Fatal(err)
	}
	last := first
	for i := range 54 {
		last = appendTo(t, s, stream, last, fmt.Sprint(i))
	}
	golden(t, "first_commit.v1.txt", text(stored(t, nc, jetstream.Stream, first), commit(first)))
	golden(t, "later_commit.v1.txt", text(stored(t, nc, jetstream.Stream, last), commit(last)))

	if err := s.SaveSnapshot(t.Context(), stream, events.Snapshot{Seq: last, Commit: commit(last), Fold: 3, State: []byte(`{"name":"53"}`)}); err != nil {
		t.Fatal(err)
	}
	golden(t, "snapshot.v1.txt", text(stored(t, nc, jetstream.SnapshotStream, 1), commit(last)))
}

// A snapshot is believed only when the log bears it out, whatever wrote it.
func TestForeignSnapshots(t *testing.T) {
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	s := openStore(t, jetstream.Config{Conn: nc})
	stream := storetest.Credential("acme", "a")
	seq := appendTo(t, s, stream, 0, "1")
	recs, err := s.Commit(t.Context(), seq)
	if err != nil {
		t.Fatal(err)
	}
	good := fmt.Sprintf(`{"tenant":"acme","stream":"credential.a","seq":%d,"commit":%q,"fold":1,"state":{}}`, seq, recs[0].Meta.Commit)
	for _, c := range []struct {
		name, format, body string
		want               uint64
	}{
		{"good", "1", good, seq},
		{"ahead of the log", "1", strings.Replace(good, `"seq":1`, `"seq":2`, 1), 0},
		{"of another commit", "1", strings.Replace(good, recs[0].Meta.Commit, events.NewID(), 1), 0},
		{"of another stream", "1", strings.Replace(good, "credential.a", "credential.b", 1), 0},
		{"of another tenant", "1", strings.Replace(good, "acme", "other", 1), 0},
		{"in an unknown form", "2", good, 0},
		{"broken", "1", good[:20], 0},
		{"empty", "1", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			msg := &nats.Msg{Subject: stream.Subject(jetstream.SnapshotPrefix), Header: nats.Header{"Cs-Format": {c.format}}, Data: []byte(c.body)}
			if _, err := js(t, nc).PublishMsg(t.Context(), msg); err != nil {
				t.Fatal(err)
			}
			got, err := s.Snapshot(t.Context(), stream, 1)
			if err != nil || got.Seq != c.want {
				t.Errorf("got %+v, %v; want sequence %d", got, err, c.want)
			}
		})
	}
}

// What a reader does not fully understand stops it.
func TestUnknownForms(t *testing.T) {
	meta := storetest.Meta("acme", "c")
	meta.Commit = events.NewID()
	body, err := events.All().EncodeCommit(meta, []events.Event{renamed("n")})
	if err != nil {
		t.Fatal(err)
	}
	good := nats.Header{"Cs-Format": {"1"}, "Cs-Commit": {meta.Commit}}
	subject := storetest.Credential("acme", "a").Subject(jetstream.Prefix)
	for _, c := range []struct {
		name, subject string
		header        nats.Header
		body          []byte
	}{
		{"no format", subject, nats.Header{"Cs-Commit": {meta.Commit}}, body},
		{"a later format", subject, nats.Header{"Cs-Format": {"2"}, "Cs-Commit": {meta.Commit}}, body},
		{"another id", subject, nats.Header{"Cs-Format": {"1"}, "Cs-Commit": {events.NewID()}}, body},
		{"no number in Cs-Prev", subject, nats.Header{"Cs-Format": {"1"}, "Cs-Commit": {meta.Commit}, "Cs-Prev": {"x"}}, body},
		{"rising numbers in Cs-Prev", subject, nats.Header{"Cs-Format": {"1"}, "Cs-Commit": {meta.Commit}, "Cs-Prev": {"0,1"}}, body},
		{"another subject", jetstream.Prefix + ".acme.credential.a.b", good, body},
		{"another tenant", jetstream.Prefix + ".other.credential.a", good, body},
		{"an unknown event", subject, good, bytes.Replace(body, []byte("credential.renamed"), []byte("credential.exploded"), 1)},
		{"a later event", subject, good, bytes.Replace(body, []byte(`"v":1`), []byte(`"v":2`), 1)},
		{"half a body", subject, good, body[:len(body)/2]},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := startNode(t, t.TempDir())
			nc := n.connect(t)
			s := openStore(t, jetstream.Config{Conn: nc})
			before := storetest.Credential("acme", "before")
			appendTo(t, s, before, 0, "before")
			if _, err := js(t, nc).PublishMsg(t.Context(), &nats.Msg{Subject: c.subject, Header: c.header, Data: c.body}); err != nil {
				t.Fatal(err)
			}
			appendTo(t, s, storetest.Credential("acme", "after"), 0, "after")
			var seqs []uint64
			var last error
			for r, err := range s.Follow(t.Context(), 0) {
				if last = err; err == nil {
					seqs = append(seqs, r.Seq)
				}
			}
			if diff := cmp.Diff([]uint64{1}, seqs); diff != "" || last == nil {
				t.Errorf("followed %v to %v; want the first commit, then an error", seqs, last)
			}
			if _, err := s.Commit(t.Context(), 2); err == nil {
				t.Error("Commit understood it")
			}
		})
	}
}

func TestGap(t *testing.T) {
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	cfg := jetstream.StreamConfig(1)
	cfg.DenyDelete = false
	st, err := js(t, nc).CreateStream(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, err = jetstream.Open(t.Context(), jetstream.Config{Conn: nc, Registry: events.All()})
	if err == nil || !strings.Contains(err.Error(), "deny_delete") {
		t.Fatalf("opened a log that can be deleted from: %v", err)
	}
	meta := storetest.Meta("acme", "c")
	publish := func(id string) {
		meta.Commit = events.NewID()
		body, err := events.All().EncodeCommit(meta, []events.Event{renamed(id)})
		if err != nil {
			t.Fatal(err)
		}
		msg := &nats.Msg{Subject: jetstream.Prefix + ".acme.credential." + id, Header: nats.Header{"Cs-Format": {"1"}, "Cs-Commit": {meta.Commit}}, Data: body}
		if _, err := js(t, nc).PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		publish(fmt.Sprint(i))
	}
	if err := st.DeleteMsg(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if _, err := js(t, nc).UpdateStream(t.Context(), jetstream.StreamConfig(1)); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, jetstream.Config{Conn: nc})
	for after, want := range []int{2, 1, 0} {
		seen := 0
		var last error
		for _, err := range s.Follow(t.Context(), uint64(after)) {
			if last = err; err == nil {
				seen++
			}
		}
		if seen != want || !errors.Is(last, jetstream.ErrGap) {
			t.Errorf("after %d: %d records, then %v; want %d, then a gap", after, seen, last, want)
		}
	}
	if _, err := s.Commit(t.Context(), 3); !errors.Is(err, events.ErrNoSuchCommit) {
		t.Errorf("the lost commit: %v", err)
	}
}

// A server that cannot read a block sends nothing and says nothing: Follow finds out, where
// it waited for ever.
func TestFollowOfADamagedBlock(t *testing.T) {
	for _, damaged := range []struct {
		name  string
		place func(size int) int // of the flipped bit
	}{
		{"in its middle", func(size int) int { return size / 2 }},
		{"in its first commit", func(int) int { return 40 }},
		{"in its last commit", func(size int) int { return size - 20 }},
	} {
		t.Run(damaged.name, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, t.TempDir())
			s := openStore(t, jetstream.Config{Conn: n.connect(t)})
			const commits = 20
			for i := range commits {
				appendTo(t, s, storetest.Credential("acme", fmt.Sprint(i)), 0, "c")
			}
			n.stop()
			file := filepath.Join(n.dir, "jetstream", "$G", "streams", jetstream.Stream, "msgs", "1.blk")
			block, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			block[damaged.place(len(block))] ^= 1
			if err := os.WriteFile(file, block, 0o600); err != nil {
				t.Fatal(err)
			}
			n.start(t) // by what it has written of its state, without a look at the block
			s = openStore(t, jetstream.Config{Conn: n.connect(t)})
			end, err := s.End(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if end < commits { // the server has noticed, and cut the log
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // only a failing test waits for it
			defer cancel()
			var last error
			seen := 0
			for _, err := range s.Follow(ctx, 0) {
				if last = err; err == nil {
					if seen++; seen == commits {
						t.Fatal("the damage was read")
					}
				}
			}
			if !errors.Is(last, jetstream.ErrGap) && !errors.Is(last, jetstream.ErrLogCutShort) {
				t.Errorf("after %d commits: %v", seen, last)
			}
		})
	}
}

func TestFollowLeavesNoConsumer(t *testing.T) {
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	s := openStore(t, jetstream.Config{Conn: nc, Follow: n.connect(t)})
	appendTo(t, s, storetest.Credential("acme", "a"), 0, "1")
	for range 20 {
		for range s.Follow(t.Context(), 0) {
			break
		}
	}
	st, err := js(t, nc).Stream(t.Context(), jetstream.Stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := st.Info(t.Context())
	if err != nil || info.State.Consumers != 0 {
		t.Errorf("%d consumers are left, %v", info.State.Consumers, err)
	}
}

// Followers at the end of the log share one consumer, and a slow one, which the others leave
// behind, still gets every commit once and in order.
func TestFollowersShareOneReader(t *testing.T) {
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	s := openStore(t, jetstream.Config{Conn: nc, Follow: n.connect(t)})
	stream := storetest.Credential("acme", "a")
	last := appendTo(t, s, stream, 0, "0")
	const followers, more = 5, 2*jetstream.TailCommits + 100
	ctx, halt := context.WithCancel(t.Context())
	ready, goOn := make(chan int, followers), make(chan struct{})
	var got [followers][]uint64
	var reading sync.WaitGroup
	for i := range followers {
		reading.Go(func() {
			for rec, err := range s.Follow(ctx, 0) {
				if err != nil {
					t.Error(err)
					break
				}
				got[i] = append(got[i], rec.Seq)
				switch len(got[i]) {
				case 1:
					ready <- i
				case 2:
					if i == 0 {
						<-goOn // until the tail has forgotten what this one has not read
					}
				}
				if len(got[i]) == more+1 {
					ready <- i
					<-ctx.Done()
				}
			}
		})
	}
	for range followers {
		<-ready
	}
	for i := range more {
		last = appendTo(t, s, stream, last, strconv.Itoa(i))
	}
	for range followers - 1 {
		<-ready
	}
	st, err := js(t, nc).Stream(t.Context(), jetstream.Stream)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := st.Info(t.Context()); err != nil || info.State.Consumers != 1 {
		t.Errorf("%d consumers for %d followers, %v", info.State.Consumers, followers, err)
	}
	close(goOn)
	<-ready
	halt()
	reading.Wait()
	for i, seqs := range got {
		for k, seq := range seqs {
			if seq != uint64(k+1) {
				t.Fatalf("follower %d got commit %d as number %d", i, seq, k+1)
			}
		}
	}
	if info, err := st.Info(t.Context()); err != nil || info.State.Consumers != 0 {
		t.Errorf("%d consumers are left, %v", info.State.Consumers, err)
	}
}

// The log may be asked through its leader, as a cluster needs it.
func TestLeaderReads(t *testing.T) {
	n := startNode(t, t.TempDir())
	nc := n.connect(t)
	_ = openStore(t, jetstream.Config{Conn: nc}) // makes the streams
	s := openStore(t, jetstream.Config{Conn: nc, LeaderReads: true})
	stream := storetest.Credential("acme", "a")
	if last, err := s.Last(t.Context(), stream); err != nil || last != 0 {
		t.Errorf("Last of nothing is %d, %v", last, err)
	}
	first := appendTo(t, s, stream, 0, "1")
	second := appendTo(t, s, stream, first, "2")
	if last, err := s.Last(t.Context(), stream); err != nil || last != second {
		t.Errorf("Last is %d, %v; want %d", last, err, second)
	}
	seen := 0
	for r, err := range s.Stream(t.Context(), stream, 0) {
		if err != nil || r.Event != renamed(fmt.Sprint(seen+1)) {
			t.Errorf("got %v, %v", r, err)
		}
		seen++
	}
	if seen != 2 {
		t.Errorf("%d records", seen)
	}
	if _, err := s.Commit(t.Context(), second+1); !errors.Is(err, events.ErrNoSuchCommit) {
		t.Errorf("got %v", err)
	}
}

// wire is a connection to the node that a test can cut at a certain word.
type wire struct {
	n *node

	mu       sync.Mutex
	onRead   string // the connection breaks when this is about to be received,
	onWrite  string // or sent;
	meantime func() // and this is run before it does
}

func (w *wire) Dial(_, _ string) (net.Conn, error) {
	c, err := w.n.server().InProcessConn()
	if err != nil {
		return nil, err
	}
	return &wireConn{Conn: c, w: w}, nil
}

// cutAt arms the wire: for one time.
func (w *wire) cutAt(read, write string, meantime func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.onRead, w.onWrite, w.meantime = read, write, meantime
}

func (w *wire) cuts(word *string, data []byte) bool {
	w.mu.Lock()
	hit := *word != "" && bytes.Contains(data, []byte(*word))
	meantime := w.meantime
	if hit {
		w.onRead, w.onWrite, w.meantime = "", "", nil
	}
	w.mu.Unlock()
	if hit && meantime != nil {
		meantime()
	}
	return hit
}

type wireConn struct {
	net.Conn
	w *wire
}

func (c *wireConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.w.cuts(&c.w.onRead, p[:n]) {
		_ = c.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *wireConn) Write(p []byte) (int, error) {
	if c.w.cuts(&c.w.onWrite, p) {
		_ = c.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// connectWire connects through w and connects again by itself.
func (n *node) connectWire(t *testing.T, w *wire) *nats.Conn {
	t.Helper()
	w.n = n
	nc, err := nats.Connect("nats://node", nats.SetCustomDialer(w), nats.MaxReconnects(-1), nats.ReconnectWait(time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.SkipHostLookup(), nats.RetryOnFailedConnect(true))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// A commit whose answer is lost is looked for: what happened is told, and it
// happens once.
func TestLostAnswers(t *testing.T) {
	const ack, publish = `"stream":"CREDSTREAM_LOG"`, "HPUB credstream.log"
	stream := storetest.Credential("acme", "a")
	for _, c := range []struct {
		name        string
		read, write string
		other       bool // somebody else appends meanwhile
		err         error
		want        []string
	}{
		{"the answer is lost", ack, "", false, nil, []string{"1", "ours"}},
		{"the commit is lost", "", publish, false, nil, []string{"1", "ours"}},
		{"the answer is lost, another commit comes on top", ack, "", true, nil, []string{"1", "ours", "other"}},
		{"the commit is lost, another takes its place", "", publish, true, events.ErrConflict, []string{"1", "other"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := startNode(t, t.TempDir())
			w := &wire{}
			s := openStore(t, jetstream.Config{Conn: n.connectWire(t, w)})
			other := openStore(t, jetstream.Config{Conn: n.connect(t)})
			first := appendTo(t, s, stream, 0, "1")
			w.cutAt(c.read, c.write, func() {
				if !c.other {
					return
				}
				last, err := other.Last(t.Context(), stream)
				if err == nil {
					_, err = other.Append(t.Context(), stream, last, storetest.Meta("acme", "c"), renamed("other"))
				}
				if err != nil {
					t.Error(err)
				}
			})
			seq, err := s.Append(t.Context(), stream, first, storetest.Meta("acme", "c"), renamed("ours"))
			if !errors.Is(err, c.err) || err == nil && seq != first+1 {
				t.Errorf("Append gives %d, %v; want %v", seq, err, c.err)
			}
			var got []string
			for r, err := range other.Stream(t.Context(), stream, 0) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, r.Event.(events.CredentialRenamed).Name)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("the stream (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnknownOutcome(t *testing.T) {
	n := startNode(t, t.TempDir())
	w := &wire{}
	s := openStore(t, jetstream.Config{Conn: n.connectWire(t, w)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.cutAt(`"stream":"CREDSTREAM_LOG"`, "", func() {
		n.stop() // and it does not come back
		cancel()
	})
	_, err := s.Append(ctx, storetest.Credential("acme", "a"), 0, storetest.Meta("acme", "c"), renamed("n"))
	if !errors.Is(err, events.ErrUnknownOutcome) {
		t.Errorf("got %v, want an unknown outcome", err)
	}
	if _, err := s.Last(ctx, storetest.Credential("acme", "a")); !errors.Is(err, fault.ErrUnavailable) {
		t.Errorf("reading from nobody: %v", err)
	}
}

// The embedded server may be restarted under a store and a follower.
func TestRestartInProcess(t *testing.T) {
	n := startNode(t, t.TempDir())
	sync := n.syncer(t)
	s := openStore(t, jetstream.Config{Conn: n.connectWire(t, &wire{}), Follow: n.connectWire(t, &wire{}), Sync: sync.Wait, SyncTree: sync.SyncTree})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // only a failing test waits for it
	defer cancel()
	stream := storetest.Credential("acme", "a")
	last := appendTo(t, s, stream, 0, "1")
	var want uint64
	for r, err := range s.Follow(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if want++; r.Seq != want {
			t.Fatalf("commit %d where %d belongs", r.Seq, want)
		}
		switch want {
		case 3:
			n.stop()
			n.start(t)
			if err := s.Reload(ctx); err != nil {
				t.Fatal(err)
			}
		case 6:
			return
		}
		last = appendTo(t, s, stream, last, fmt.Sprint(want+1))
	}
	t.Fatal("the follower ended")
}

// slowDisk is a Config.Sync whose fsyncs end when the test says so.
type slowDisk struct {
	begun chan struct{} // gets a value when an fsync begins
	end   chan error    // ends it
}

func (d *slowDisk) sync(ctx context.Context) error {
	select {
	case d.begun <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-d.end:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Nothing is told of a commit before its fsync has ended, and never after one failed.
func TestNothingBeforeItIsDurable(t *testing.T) {
	n := startNode(t, t.TempDir())
	disk := &slowDisk{begun: make(chan struct{}), end: make(chan error)}
	go func() { // the fsync of Open
		<-disk.begun
		disk.end <- nil
	}()
	s := openStore(t, jetstream.Config{Conn: n.connect(t), Sync: disk.sync})

	type outcome struct {
		what string
		err  error
	}
	outcomes := make(chan outcome, 4)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var working sync.WaitGroup
	defer working.Wait()
	working.Go(func() {
		for _, err := range s.Follow(ctx, 0) {
			outcomes <- outcome{"follow", err}
		}
	})
	appending := func(id string) {
		working.Go(func() {
			_, err := s.Append(ctx, storetest.Credential("acme", id), 0, storetest.Meta("acme", "c"), renamed(id))
			outcomes <- outcome{"append", err}
		})
	}
	appending("a")
	<-disk.begun
	// While the first fsync runs the second commit is stored, so it needs another one.
	appending("b")
	for {
		if end, err := s.End(ctx); err != nil {
			t.Fatal(err)
		} else if end == 2 {
			break
		}
	}
	select {
	case o := <-outcomes:
		t.Errorf("%s ended before any fsync: %v", o.what, o.err)
	default:
	}
	if s.Durable() != 0 {
		t.Errorf("durable up to %d before any fsync", s.Durable())
	}
	disk.end <- nil
	got := map[string]int{}
	for range 2 { // of commit 1
		o := <-outcomes
		if o.err != nil {
			t.Errorf("%s: %v", o.what, o.err)
		}
		got[o.what]++
	}
	if diff := cmp.Diff(map[string]int{"append": 1, "follow": 1}, got); diff != "" {
		t.Errorf("after the first fsync (-want +got):\n%s", diff)
	}
	<-disk.begun
	select {
	case o := <-outcomes:
		t.Errorf("%s of the second commit ended before its fsync: %v", o.what, o.err)
	default:
	}
	disk.end <- errors.New("disk on fire")
	for range 2 {
		o := <-outcomes
		if o.err == nil || o.what == "append" && !errors.Is(o.err, events.ErrUnknownOutcome) {
			t.Errorf("%s after a failed fsync: %v", o.what, o.err)
		}
	}
	if err := s.WaitDurable(ctx, 2); err == nil {
		t.Error("commit 2 is durable after a failed fsync")
	}
}

// Who follows the log asks the server to show each second that it still serves it: a consumer
// that is lost with its server says nothing.
func TestFollowAsksForHeartbeats(t *testing.T) {
	n := startNode(t, t.TempDir())
	s := openStore(t, jetstream.Config{Conn: n.connect(t)})
	nc := n.connect(t)
	pulls, err := nc.SubscribeSync("$JS.API.CONSUMER.MSG.NEXT." + jetstream.Stream + ".>")
	if err := errors.Join(err, nc.Flush()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	followed := make(chan struct{})
	go func() {
		defer close(followed)
		for range s.Follow(ctx, 0) {
			t.Error("the log is empty")
		}
	}()
	m, err := pulls.NextMsg(time.Minute)
	cancel()
	<-followed
	if err != nil {
		t.Fatal(err)
	}
	var pull struct {
		Heartbeat time.Duration `json:"idle_heartbeat"`
	}
	if err := json.Unmarshal(m.Data, &pull); err != nil || pull.Heartbeat <= 0 || pull.Heartbeat > time.Second {
		t.Errorf("a pull asks for a heartbeat every %v, %v", pull.Heartbeat, err)
	}
}
