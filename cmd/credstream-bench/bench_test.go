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

func TestReport(t *testing.T) {
	r := &report{out: io.Discard, began: time.Now()}
	r.part("Rows")
	r.add("plain", "1/s", "")
	r.bar("good", "2/s", "", "1/s", true)
	r.bar("bad", "1/s", "", "2/s", false)
	r.note("noted")
	var out bytes.Buffer
	r.markdown(&out)
	for _, want := range []string{"Bars: 1 of 2 reached.", "| good | 2/s |  | 1/s | reached |", "| bad | 1/s |  | 2/s | MISSED |", "- noted"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, out.String())
		}
	}
	if got := thousands(1234567) + " " + thousands(999); got != "1,234,567 999" {
		t.Error(got)
	}
}
