package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/bus/streams"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service/flow"
)

func wireTo(t *testing.T, h http.HandlerFunc) *wire {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	w, err := dialWire(srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

func TestWire(t *testing.T) {
	w := wireTo(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method == http.MethodPost {
			w.WriteHeader(http.StatusConflict)
		}
		_, _ = io.WriteString(w, strings.Join([]string{
			r.Method, r.URL.String(), r.Header.Get("Authorization"), r.Header.Get("Idempotency-Key"), r.Header.Get("Content-Type"), string(body),
		}, "|"))
	})
	for range 3 { // over one connection
		status, body, err := w.do(getRequest(nil, "/a?b=c", "k"))
		if err != nil || status != http.StatusOK || string(body) != "GET|/a?b=c|Bearer k|||" {
			t.Fatalf("GET: %d %q %v", status, body, err)
		}
		status, body, err = w.do(postRequest(nil, "/p", "k", "id-1", []byte(`{"x":1}`)))
		if err != nil || status != http.StatusConflict || string(body) != `POST|/p|Bearer k|id-1|application/json|{"x":1}` {
			t.Fatalf("POST: %d %q %v", status, body, err)
		}
	}
}

func TestWireRefusesWhatItCannotRead(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "no HTTP at all\r\n\r\n",
	} {
		client, server := net.Pipe()
		go func() {
			_, _ = server.Read(make([]byte, 100))
			_, _ = io.WriteString(server, answer)
			_ = server.Close()
		}()
		w := &wire{conn: client}
		w.in = newReader(client)
		if status, _, err := w.do([]byte("x")); err == nil {
			t.Errorf("%q was read as %d", answer, status)
		}
		_ = client.Close()
	}
}

func TestClosed(t *testing.T) {
	var calls, closes atomic.Int64
	open := func(int) (caller, error) {
		return caller{
			call:  func() error { calls.Add(1); return nil },
			close: func() { closes.Add(1) },
		}, nil
	}
	l, err := closed(t.Context(), 8, size{calls: 1000}, open)
	if err != nil || l.n != 1000 || l.all != 1000 || calls.Load() != 1000 || closes.Load() != 8 {
		t.Errorf("by number: %d counted, %d in all, %d made, %d closed, %v", l.n, l.all, calls.Load(), closes.Load(), err)
	}
	broken := errors.New("broken")
	_, err = closed(t.Context(), 8, size{time: time.Hour}, func(int) (caller, error) {
		return caller{call: func() error { return broken }}, nil
	})
	if !errors.Is(err, broken) {
		t.Errorf("a failing call: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := closed(ctx, 1, size{time: time.Hour}, open); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// A call that is late because the one before it was slow counts from when it
// was due.
func TestPacedCountsTheWait(t *testing.T) {
	first := true
	l, err := paced(t.Context(), 1, 1000, 50*time.Millisecond, func(int) (caller, error) {
		return caller{call: func() error {
			if first {
				first = false
				time.Sleep(100 * time.Millisecond)
			}
			return nil
		}}, nil
	})
	if err != nil || l.n != 50 {
		t.Fatalf("%d calls, %v; want 50", l.n, err)
	}
	// The last was due at 49 ms and could not begin before 100 ms.
	if least := l.took[0]; least < 50*time.Millisecond {
		t.Errorf("a call that waited for the first took %v", least)
	}
}

func TestQuantile(t *testing.T) {
	var took []time.Duration
	for i := range 100 {
		took = append(took, time.Duration(99-i))
	}
	l := summed([][]time.Duration{took[:30], took[30:]}, time.Second)
	if l.rate != 100 || l.quantile(.5) != 50 || l.quantile(.99) != 99 || l.quantile(1) != 99 || (load{}).quantile(.5) != 0 {
		t.Errorf("rate %v, p50 %d, p99 %d", l.rate, l.quantile(.5), l.quantile(.99))
	}
	if m := median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("median %v", m)
	}
}

func TestCreateBody(t *testing.T) {
	for _, n := range []uint64{1, 7, 99_999, 1 << 40} {
		var in struct {
			Component, Name string
			Keys            struct{ APIKey string }
		}
		body := appendCreate(nil, n, "c1")
		if err := json.Unmarshal(body, &in); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		if in.Component != "c1" || in.Name != string(appendName(nil, n)) || in.Keys.APIKey != string(appendSecret(nil, n)) {
			t.Errorf("%s", body)
		}
		if numberOf(commandID(n)) != n {
			t.Errorf("%d does not come back from %s", n, commandID(n))
		}
	}
	if id, ok := idOf([]byte(`{"id":"abc","seq":1}`)); !ok || id != "abc" {
		t.Errorf("id %q, %v", id, ok)
	}
	if _, ok := idOf([]byte(`{"seq":1}`)); ok {
		t.Error("an answer without id has one")
	}
}

func TestCreateDocument(t *testing.T) {
	for _, n := range []uint64{1, 7, 99_999, 1 << 40} {
		type related struct{ Data struct{ ID, Type string } }
		var in struct {
			Data struct {
				Type       string
				Attributes struct {
					Name string
					Keys struct{ APIKey string }
				}
				Relationships struct{ Component, Workspace related }
			}
		}
		body := appendCreateV2(nil, n)
		if err := json.Unmarshal(body, &in); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		d := in.Data
		if d.Type != "credential" || d.Attributes.Name != string(appendName(nil, n)) || d.Attributes.Keys.APIKey != string(appendSecret(nil, n)) ||
			d.Relationships.Component.Data.ID != plain(n) || d.Relationships.Workspace.Data.Type != "workspace" {
			t.Errorf("%s", body)
		}
	}
}

// The cost of the authorization is measured on calls that are let through and on
// calls that are refused.
func TestAuthorize(t *testing.T) {
	var out bytes.Buffer
	if err := authorizeChild(t.Context(), &out, []string{t.TempDir(), "100"}); err != nil {
		t.Fatal(err)
	}
	var a authorized
	if err := json.Unmarshal(out.Bytes(), &a); err != nil || a.First <= 0 || a.Passed <= 0 || a.Refused <= 0 {
		t.Errorf("%s: %v", &out, err)
	}
}

// What the benchmark tells of a flow is what the service understands.
func TestFlowMessage(t *testing.T) {
	from := []made{{id: "a", n: 1}, {id: "b", n: 2}, {id: "c", n: 3}}
	for n := range uint64(100) {
		uses := pick(from, n)
		if len(uses) != flowUses || uses[0].id == uses[1].id {
			t.Fatalf("flow %d uses %v", n, uses)
		}
		m := flowMessage("flow.started", n, 7, uses)
		e, err := flow.ParseFlowEvent(m.Header["ce-type"][0], m.Header["ce-subject"][0], flowName(n), m.Data)
		if err != nil {
			t.Fatalf("%s: %v", m.Data, err)
		}
		if e.Change != events.FlowWasStarted || e.Revision != 7 || len(e.Steps) != flowUses ||
			e.Steps[1].Credential != uses[1].id || e.Steps[1].Component != plain(uses[1].n) || m.Subject != "credstream.flows.default."+e.ID {
			t.Errorf("%s: %s", m.Subject, m.Data)
		}
	}
}

func inUseMessage(t *testing.T, id string, seq uint64, flows ...projections.InUseFlow) *nats.Msg {
	t.Helper()
	v := projections.InUse{Seq: seq, Total: len(flows), Flows: flows}
	for _, f := range flows {
		if f.Active {
			v.Active++
		}
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return &nats.Msg{Subject: streams.InUseSubject + "." + inUseKey(made{id: id}), Data: data}
}

func TestInUseWatch(t *testing.T) {
	w := newInUseWatch(nil)
	seen := w.await("flow-2", []string{inUseKey(made{id: "a"}), inUseKey(made{id: "b"})})
	isSeen := func(want bool) {
		t.Helper()
		select {
		case <-seen:
			if !want {
				t.Error("seen too early")
			}
		default:
			if want {
				t.Error("not seen")
			}
		}
	}
	w.take(inUseMessage(t, "a", 1, projections.InUseFlow{ID: "flow-1", Active: true}))
	w.take(inUseMessage(t, "a", 2, projections.InUseFlow{ID: "flow-1"}, projections.InUseFlow{ID: "flow-2", Active: true}))
	isSeen(false)
	w.take(inUseMessage(t, "b", 3, projections.InUseFlow{ID: "flow-2"}))
	isSeen(false)
	w.take(inUseMessage(t, "b", 4, projections.InUseFlow{ID: "flow-2", Active: true}))
	isSeen(true)
	if err := w.reach(t.Context(), 3, 2); err != nil {
		t.Error(err)
	}
	a, err := w.value(inUseKey(made{id: "a"}))
	if err != nil || !shows(a, map[uint64]bool{1: false, 2: true}) {
		t.Errorf("a is %+v, %v", a, err)
	}
	for _, wrong := range []map[uint64]bool{{}, {1: false}, {1: true, 2: true}, {1: true, 2: false}, {1: false, 3: true}, {1: false, 2: true, 3: false}} {
		if shows(a, wrong) {
			t.Errorf("%+v shows %v", a, wrong)
		}
	}
	if _, err := w.value(inUseKey(made{id: "c"})); err == nil {
		t.Error("a key that never came has a value")
	}
	w.take(inUseMessage(t, "a", 1))
	if err := w.reach(t.Context(), 1, 1); err == nil {
		t.Error("a value that went back was not noticed")
	}
	w = newInUseWatch(nil)
	w.take(&nats.Msg{Subject: streams.InUseSubject + ".x", Data: []byte("{")})
	if err := w.reach(t.Context(), 0, 0); err == nil {
		t.Error("a value that cannot be read was not noticed")
	}
}

func TestRefused(t *testing.T) {
	const answer = `{"code":"credential_in_use","details":{"total":7,"flows":[]}}`
	if err := refused(409, []byte(answer), 7); err != nil {
		t.Error(err)
	}
	for _, c := range []struct {
		status, flows int
		answer        string
	}{
		{200, 7, answer}, {409, 8, answer}, {409, 7, `{"code":"other","details":{"total":7}}`}, {409, 7, ``},
	} {
		if err := refused(c.status, []byte(c.answer), c.flows); err == nil {
			t.Errorf("%d %s was taken for the refusal of %d", c.status, c.answer, c.flows)
		}
	}
}

func TestStored(t *testing.T) {
	if err := stored(&jetstream.PubAck{Stream: edge.FlowsStream}); err != nil {
		t.Error(err)
	}
	if err := stored(&jetstream.PubAck{Stream: edge.DeadLetterStream}); err == nil {
		t.Error("an event that was not understood counts as stored")
	}
}

func TestReport(t *testing.T) {
	r := &report{out: io.Discard, began: time.Now()}
	r.part("Rows")
	r.add("plain", "1/s", "")
	r.target("good", "2/s", "", "1/s", true)
	r.target("bad", "1/s", "", "2/s", false)
	r.note("noted")
	var out bytes.Buffer
	r.markdown(&out)
	for _, want := range []string{"Targets met: 1 of 2.", "| good | 2/s |  | 1/s | met |", "| bad | 1/s |  | 2/s | MISSED |", "- noted"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
	if got := thousands(1234567) + " " + thousands(999); got != "1,234,567 999" {
		t.Error(got)
	}
}

// Every row that -only knows is measured: by a run of its own, or by that of its part.
func TestRows(t *testing.T) {
	seen := map[string]bool{}
	var look func(rows []row, measured bool)
	look = func(rows []row, measured bool) {
		for _, r := range rows {
			if r.name != "" && (seen[r.name] || !measured && r.run == nil) {
				t.Errorf("%s stands twice, or nothing measures it", r.name)
			}
			seen[r.name] = true
			look(r.rows, r.run != nil)
		}
	}
	look((&bench{}).parts(), false)
	if len(names((&bench{}).parts())) < 20 {
		t.Error("rows are missing")
	}
}
