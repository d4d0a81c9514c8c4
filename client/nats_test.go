package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

// bus is a real NATS server that lets one key in, with a micro service of one
// tenant behind it which tells of a log that the test appends to.
type bus struct {
	t    *testing.T
	port int
	key  string // that is let in
	srv  *natsd.Server
	nc   *nats.Conn

	caughtUp chan struct{} // closed once a replay has been asked for that begins after the first commit

	mu    sync.Mutex
	log   []uint64 // sequences of the tenant's commits, of two events each
	asked []nats.Msg
	once  sync.Once
}

func newBus(t *testing.T) *bus {
	t.Helper()
	b := &bus{t: t, port: -1, key: key, caughtUp: make(chan struct{})}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *bus) start() {
	b.t.Helper()
	// One user asks and the other listens, as the accounts of an external NATS have it.
	asks := &natsd.Permissions{
		Publish:   &natsd.SubjectPermission{Allow: []string{"credstream.*.acme.>"}},
		Subscribe: &natsd.SubjectPermission{Allow: []string{client.InboxPrefix(key) + ".>"}},
	}
	listens := &natsd.Permissions{
		Publish:   &natsd.SubjectPermission{Deny: []string{">"}},
		Subscribe: &natsd.SubjectPermission{Allow: []string{"credstream.events.acme.>", "$KV.credstream-in-use.acme.>"}},
	}
	var err error
	b.srv, err = natsd.NewServer(&natsd.Options{
		Host: "127.0.0.1", Port: b.port, NoLog: true, NoSigs: true,
		Users: []*natsd.User{{Username: "service", Password: "s"}, {Username: "key", Password: b.key, Permissions: asks}, {Username: "feed", Password: b.key, Permissions: listens}},
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.srv.Start()
	if !b.srv.ReadyForConnections(10 * time.Second) {
		b.t.Fatal("the NATS server does not start")
	}
	b.port = b.srv.Addr().(*net.TCPAddr).Port
	if b.nc, err = nats.Connect(b.srv.ClientURL(), nats.UserInfo("service", "s")); err != nil {
		b.t.Fatal(err)
	}
	svc, err := micro.AddService(b.nc, micro.Config{Name: "credstream", Version: "0.1.0"})
	if err != nil {
		b.t.Fatal(err)
	}
	for subject, serve := range map[string]micro.HandlerFunc{
		"credstream.cmd.*.credential.rename": func(r micro.Request) { _ = r.Respond([]byte(`{"seq":7,"id":"i"}`)) },
		"credstream.cmd.*.credential.delete": func(r micro.Request) {
			p, err := json.Marshal(fault.New(fault.Exists, "taken", "It is taken.").At("/id").Problem())
			if err != nil {
				b.t.Error(err)
			}
			_ = r.Error("409", "It is taken.", p)
		},
		"credstream.cmd.*.credential.verify": func(micro.Request) {}, // never answers
		"credstream.query.*.events.changes":  b.replay,
		"credstream.query.*.views.status":    func(r micro.Request) { _ = r.Respond(fmt.Appendf(nil, `{"end":%d}`, b.end())) },
	} {
		err := svc.AddEndpoint("e"+strconv.Itoa(len(subject)), micro.HandlerFunc(func(r micro.Request) {
			b.mu.Lock()
			b.asked = append(b.asked, nats.Msg{Subject: r.Subject(), Header: nats.Header(r.Headers()), Data: r.Data()})
			b.mu.Unlock()
			serve(r)
		}), micro.WithEndpointSubject(subject))
		if err != nil {
			b.t.Fatal(err)
		}
	}
	if err := b.nc.Flush(); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bus) stop() {
	b.nc.Close()
	b.srv.Shutdown()
	b.srv.WaitForShutdown()
}

func (b *bus) end() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.log) == 0 {
		return 0
	}
	return b.log[len(b.log)-1]
}

// replay answers pages of one commit.
func (b *bus) replay(r micro.Request) {
	var in struct{ From uint64 }
	if err := json.Unmarshal(r.Data(), &in); err != nil {
		b.t.Error(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if in.From > 1 && in.From <= 1000 {
		defer b.once.Do(func() { close(b.caughtUp) })
	}
	page := map[string]any{"events": []any{}}
	for i, seq := range b.log {
		if seq < in.From {
			continue
		}
		var events []map[string]any
		for index := range 2 {
			events = append(events, map[string]any{
				"specversion": "1.0", "id": fmt.Sprintf("%d-%d", seq, index), "type": "t", "logseq": seq, "logindex": index,
				"time": "2026-01-02T03:04:05Z",
			})
		}
		page["events"] = events
		if i+1 < len(b.log) {
			page["next"] = b.log[i+1]
		}
		break
	}
	answer, err := json.Marshal(page)
	if err != nil {
		b.t.Error(err)
	}
	_ = r.Respond(answer)
}

// happen appends a commit to the log and, if told, publishes it on the feed.
func (b *bus) happen(seq uint64, told bool) {
	b.t.Helper()
	b.mu.Lock()
	b.log = append(b.log, seq)
	b.mu.Unlock()
	if told {
		b.tell(seq)
	}
}

func (b *bus) tell(seq uint64) {
	b.t.Helper()
	for index := range 2 {
		m := nats.NewMsg("credstream.events.acme.credential.i")
		for name, value := range map[string]string{
			"specversion": "1.0", "id": fmt.Sprintf("%d-%d", seq, index), "type": "t", "source": "/credstream/acme",
			"subject": "credential.a%20%C3%A9", "time": "2026-01-02T03:04:05.123456Z", "datacontenttype": "application/json",
			"tenant": "acme", "actor": "key:k", "commandid": "c", "correlationid": "o",
			"logseq": strconv.FormatUint(seq, 10), "logindex": strconv.Itoa(index),
		} {
			m.Header["ce-"+name] = []string{value}
		}
		m.Data = []byte(`{"n":1}`)
		if err := b.nc.PublishMsg(m); err != nil {
			b.t.Error(err)
		}
	}
	if err := b.nc.Flush(); err != nil {
		b.t.Error(err)
	}
}

func (b *bus) dial(tenant string) *client.Conn {
	b.t.Helper()
	c, err := client.Dial(b.t.Context(), client.NATSConfig{URL: b.srv.ClientURL(), Key: key, Tenant: tenant})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(c.Close)
	return c
}

func TestNATSRequests(t *testing.T) {
	b := newBus(t)
	c := b.dial("acme")
	done, err := c.RenameCredential(t.Context(), "i", "n", 0, client.CommandID("mine"), client.Correlation("theirs"))
	if err != nil || done.Seq != 7 || done.ID != "i" {
		t.Errorf("%+v, %v", done, err)
	}
	if len(b.asked) != 1 || b.asked[0].Subject != "credstream.cmd.acme.credential.rename" || string(b.asked[0].Data) != `{"id":"i","name":"n"}` ||
		b.asked[0].Header.Get("Nats-Msg-Id") != "mine" || b.asked[0].Header.Get("X-Correlation-Id") != "theirs" {
		t.Errorf("asked %+v", b.asked)
	}
	var f *fault.Error
	if _, err := c.DeleteCredential(t.Context(), "i", 0); !errors.As(err, &f) || f.Kind != fault.Exists || f.Code != "taken" || f.Pointer != "/id" {
		t.Errorf("%#v", err)
	}
	if err := c.Query(t.Context(), "nobody.answers", nil, nil); !errors.Is(err, client.ErrUnreachable) {
		t.Error(err)
	}
	for _, name := range []string{"a.>", "a b", "", "a..b"} {
		if err := c.Query(t.Context(), name, nil, nil); !errors.Is(err, client.ErrConfig) {
			t.Errorf("%q: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.VerifyCredential(ctx, "i"); !errors.Is(err, fault.ErrTimeout) {
		t.Error(err)
	}
}

// What the port refuses comes back as an answer, not as a time-out.
func TestNATSRefusals(t *testing.T) {
	b := newBus(t)
	if _, err := client.Dial(t.Context(), client.NATSConfig{URL: b.srv.ClientURL(), Key: "cs_wrong"}); !errors.Is(err, client.ErrRefused) {
		t.Errorf("a wrong key: %v", err)
	}
	if _, err := client.Dial(t.Context(), client.NATSConfig{URL: b.srv.ClientURL(), Key: key, Tenant: "a.>"}); !errors.Is(err, client.ErrConfig) {
		t.Errorf("a tenant that is none: %v", err)
	}
	c := b.dial("other")
	var f *fault.Error
	if _, err := c.RenameCredential(t.Context(), "i", "n", 0); !errors.As(err, &f) || f.Code != "tenant_not_found" {
		t.Errorf("another tenant: %v", err)
	}
	for _, err := range c.Follow(t.Context(), 0) {
		if err == nil {
			t.Error("another tenant's feed is followed")
		}
	}
}

// gather follows until it has n events, then returns their ids.
func gather(t *testing.T, c *client.Conn, after uint64, n int, each func(i int, e client.Event)) (ids []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for e, err := range c.Follow(ctx, after) {
		if err != nil {
			t.Error(err)
			return ids
		}
		ids = append(ids, e.ID)
		if each != nil {
			each(len(ids), e)
		}
		if len(ids) == n {
			cancel()
		}
	}
	return ids
}

func idsOf(seqs ...uint64) (ids []string) {
	for _, s := range seqs {
		ids = append(ids, fmt.Sprintf("%d-0", s), fmt.Sprintf("%d-1", s))
	}
	return ids
}

// History first, then what happens, each event once: what was told already is
// dropped, what came late too.
func TestFollow(t *testing.T) {
	b := newBus(t)
	for _, seq := range []uint64{2, 5, 6} {
		b.happen(seq, false)
	}
	var live client.Event
	got := gather(t, b.dial("acme"), 2, 10, func(i int, e client.Event) {
		switch i {
		case 4: // the history is given
			b.tell(5)
			b.tell(6)
			b.happen(9, true)
			b.tell(9)
			b.happen(11, true)
			b.happen(12, true)
		case 5:
			live = e
		}
	})
	if d := cmp.Diff(idsOf(5, 6, 9, 11, 12), got); d != "" {
		t.Error(d)
	}
	want := client.Event{
		SpecVersion: "1.0", ID: "9-0", Source: "/credstream/acme", Type: "t", Subject: "credential.a é",
		Time: time.Date(2026, 1, 2, 3, 4, 5, 123456000, time.UTC), DataContentType: "application/json", Tenant: "acme",
		Actor: "key:k", CommandID: "c", CorrelationID: "o", LogSeq: 9, LogIndex: 0, Data: []byte(`{"n":1}`),
	}
	if d := cmp.Diff(want, live); d != "" {
		t.Error(d)
	}
}

// The connection is lost; what happened meanwhile was told to nobody, and what
// happens afterwards must not hide it.
func TestFollowAfterLoss(t *testing.T) {
	b := newBus(t)
	b.happen(1, false)
	got := gather(t, b.dial("acme"), 0, 12, func(i int, _ client.Event) {
		switch i {
		case 2:
			b.happen(2, true)
		case 4, 8:
			b.stop()
			b.happen(uint64(i)+1, false)
			b.start()
			b.happen(uint64(i)+2, true)
		}
	})
	if d := cmp.Diff(idsOf(1, 2, 5, 6, 9, 10), got); d != "" {
		t.Error(d)
	}
}

// A caller who is too slow for what comes in asks the log for the rest.
func TestFollowTooSlow(t *testing.T) {
	b := newBus(t)
	const n = 3000 // commits of two events: more than wait in memory
	want := []uint64{1}
	b.happen(1, false)
	for seq := uint64(2); seq <= n; seq++ {
		want = append(want, seq)
	}
	got := gather(t, b.dial("acme"), 0, 2*n, func(i int, _ client.Event) {
		if i == 2 { // the caller is busy while everything happens
			for _, seq := range want[1:] {
				b.happen(seq, true)
			}
		}
	})
	if d := cmp.Diff(idsOf(want...), got); d != "" {
		t.Error(d)
	}
}

// A key that is not known any more: who follows is told, and so is who asks, until
// the key is let in again.
func TestKeyNoLongerKnown(t *testing.T) {
	b := newBus(t)
	b.happen(1, false)
	c, err := client.Dial(t.Context(), client.NATSConfig{
		URL: b.srv.ClientURL(), Key: key, Tenant: "acme",
		Options: []nats.Option{nats.CustomReconnectDelay(func(int) time.Duration { return time.Millisecond })},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	restart := func(known string) {
		b.stop()
		b.key = known
		b.start()
	}
	n := 0
	for _, err = range c.Follow(t.Context(), 0) {
		if n++; err == nil && n == 2 { // the history is given
			restart("cs_other")
		}
	}
	if n != 3 || !errors.Is(err, client.ErrRefused) {
		t.Errorf("after %d: %v", n, err)
	}
	for _, err = range c.Follow(t.Context(), 0) {
		if !errors.Is(err, client.ErrRefused) {
			t.Error(err)
		}
	}
	for _, err = c.RenameCredential(t.Context(), "i", "n", 0); errors.Is(err, client.ErrUnreachable) && t.Context().Err() == nil; {
		_, err = c.RenameCredential(t.Context(), "i", "n", 0) // this connection may have been refused less often so far
	}
	if !errors.Is(err, client.ErrRefused) {
		t.Errorf("asking: %v", err)
	}
	restart(key)
	for errors.Is(err, client.ErrRefused) || errors.Is(err, client.ErrUnreachable) {
		_, err = c.RenameCredential(t.Context(), "i", "n", 0)
	}
	if err != nil {
		t.Errorf("let in again: %v", err)
	}
}

func TestTail(t *testing.T) {
	b := newBus(t)
	b.happen(1, false)
	b.happen(4, false)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := b.dial("acme")
	var other sync.WaitGroup
	other.Go(func() {
		select {
		case <-b.caughtUp: // the feed was subscribed to before the log was asked for what came before
			b.happen(6, true)
		case <-ctx.Done():
		}
	})
	var got []string
	for e, err := range c.Tail(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, e.ID); len(got) == 2 {
			cancel()
		}
	}
	other.Wait()
	if d := cmp.Diff(idsOf(6), got); d != "" {
		t.Error(d)
	}
}

// A client whose key is rejected waits longer before each reconnect.
func TestRejectedKeyBacksOff(t *testing.T) {
	b := newBus(t)
	dials := &dialCounter{}
	c, err := client.Dial(t.Context(), client.NATSConfig{
		URL: b.srv.ClientURL(), Key: key, Tenant: "acme", Options: []nats.Option{nats.SetCustomDialer(dials)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	b.stop()
	b.key = "cs_other"
	b.start()
	dials.n.Store(0)
	time.Sleep(2500 * time.Millisecond)
	// Reconnects follow after at least 125, 250, 500, 1000 and 2000 ms.
	if n := dials.n.Load(); n < 2 || n > 5 {
		t.Errorf("%d attempts in 2.5 s", n)
	}
	if _, err := client.Dial(t.Context(), client.NATSConfig{URL: b.srv.ClientURL(), Key: "e30.e30.c2ln"}); !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "OpenID Connect") {
		t.Errorf("a token in place of a key: %v", err)
	}
}

// dialCounter counts connections.
type dialCounter struct{ n atomic.Int32 }

func (d *dialCounter) Dial(network, address string) (net.Conn, error) {
	d.n.Add(1)
	return net.Dial(network, address)
}
