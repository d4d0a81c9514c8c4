package v1_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	v1 "github.com/credstream/credstream/api/v1"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/stage"
)

// feed is the HTTP API of a real service.
type feed struct {
	t *testing.T
	*stage.Stage
	url string
}

func newFeed(t *testing.T) *feed {
	s := stage.New(t)
	server := httptest.NewServer(v1.Handler(v1.Config{Service: s.Service, Access: s.Service.Access, Live: s.Live}))
	t.Cleanup(server.Close)
	t.Cleanup(s.Live.Close) // the server waits for its responses
	return &feed{t, s, server.URL}
}

func (f *feed) open(key, query string, header ...string) *http.Response {
	f.t.Helper()
	req := stage.Must(http.NewRequestWithContext(f.t.Context(), http.MethodGet, f.url+"/v1/tenants/"+query, nil))(f.t)
	req.Header.Set("Authorization", "Bearer "+key)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp := stage.Must(http.DefaultClient.Do(req))(f.t)
	f.t.Cleanup(func() { _ = resp.Body.Close() })
	return resp
}

// sent is one server-sent event with data.
type sent struct{ id, event, data string }

// stream reads the server-sent events of a response; it closes the channel at its end.
func (f *feed) stream(key string, header ...string) <-chan sent {
	f.t.Helper()
	resp := f.open(key, "default/events.changes", append(header, "Accept", "text/event-stream")...)
	if resp.StatusCode != http.StatusOK {
		f.t.Fatalf("%d %s", resp.StatusCode, stage.Must(io.ReadAll(resp.Body))(f.t))
	}
	got := make(chan sent, 100)
	go func() {
		defer close(got)
		var e sent
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "id":
				e.id = value
			case "event":
				e.event = value
			case "data":
				e.data = value
			case "":
				if e.data != "" {
					got <- e
				}
				e = sent{}
			}
		}
	}()
	return got
}

func (f *feed) next(from <-chan sent) (e admin.ReplayedEvent, id string) {
	f.t.Helper()
	select {
	case got, ok := <-from:
		if !ok || got.event != "" {
			f.t.Fatalf("the stream ended: %+v", got)
		}
		stage.OK(f.t, json.Unmarshal([]byte(got.data), &e))
		return e, got.id
	case <-time.After(5 * time.Second):
		f.t.Fatal("no event within 5 s")
	}
	return e, ""
}

func (f *feed) page(key, query string, header ...string) (page admin.Replay) {
	f.t.Helper()
	resp := f.open(key, query, header...)
	body := stage.Must(io.ReadAll(resp.Body))(f.t)
	if resp.StatusCode != http.StatusOK {
		f.t.Fatalf("%d %s", resp.StatusCode, body)
	}
	stage.OK(f.t, json.Unmarshal(body, &page))
	return page
}

// The feed over HTTP begins and resumes anywhere, has what the caller may read, and ends with its key.
func TestFeed(t *testing.T) {
	f := newFeed(t)
	engine, reader := f.Key("default", `{"role":"FLOW_ENGINE"}`), f.Key("default", `{"role":"OPERATOR"}`)
	for i := range 3 {
		f.Do("default", "credential.create", fmt.Sprintf(`{"id":"c%d","component":"plain","name":"C","keys":{"apiKey":"k","region":"eu"}}`, i))
	}
	f.Do("default", "tenant.register", `{"id":"ajax"}`)
	f.CaughtUp()
	all := f.page(engine, "default/events.changes?limit=1000").Events
	if len(all) < 4 {
		t.Fatalf("%d events", len(all))
	}

	// Each place gives what follows it.
	live := f.stream(engine)
	for i, want := range all {
		e, id := f.next(live)
		if e.ID != want.ID || id != fmt.Sprintf("%d.%d", want.LogSeq, want.LogIndex) {
			t.Fatalf("event %d is %s at %s, want %+v", i, e.ID, id, want)
		}
		if i+1 < len(all) && i%2 == 0 {
			if e, _ := f.next(f.stream(engine, "Last-Event-ID", id)); e.ID != all[i+1].ID {
				t.Errorf("after %s comes %s, want %s", id, e.ID, all[i+1].ID)
			}
		}
	}

	// Live events, to all and to a key that is bound to one credential; nothing of the audit stream.
	bound := f.Key("default", `{"role":"FLOW_ENGINE","credentials":["c1"]}`)
	f.CaughtUp()
	narrow := f.stream(bound)
	if e, _ := f.next(narrow); e.Subject != "credential.c1" {
		t.Errorf("a bound key gets %s", e.Subject)
	}
	f.Do("default", "credential.rename", `{"id":"c0","name":"D"}`)
	f.Do("default", "credential.rename", `{"id":"c1","name":"D"}`)
	_, last := f.next(live)
	if e, _ := f.next(live); e.Subject != "credential.c1" || e.Type != "credstream.credential.renamed.v1" {
		t.Errorf("live: %+v", e)
	}
	if e, _ := f.next(narrow); e.Subject != "credential.c1" || e.Type != "credstream.credential.renamed.v1" {
		t.Errorf("bound: %+v", e)
	}
	// A page is the same whether it comes from memory or from the log.
	f.CaughtUp()
	pages := func(end int) (all []admin.Replay) {
		for from := range end + 2 {
			all = append(all, f.page(reader, fmt.Sprintf("default/events.changes?limit=2&from=%d", from)))
		}
		return all
	}
	fromMemory := pages(int(stage.Must(f.Store.End(t.Context()))(t)))
	end := fmt.Sprint(len(fromMemory) - 2)

	// A long poll returns with the event, or at its end without one.
	polled := make(chan admin.Replay, 1)
	go func() { polled <- f.page(engine, "default/events.changes", "Last-Event-ID", last, "Prefer", "wait=20") }()
	if got := <-polled; len(got.Events) != 1 || got.Events[0].Subject != "credential.c1" {
		t.Errorf("long poll behind: %+v", got)
	}
	begin := time.Now()
	if got := f.page(engine, "default/events.changes", "Last-Event-ID", end, "Prefer", "wait=1"); len(got.Events) != 0 || time.Since(begin) < time.Second {
		t.Errorf("long poll without an event: %+v after %s", got, time.Since(begin))
	}
	go func() { polled <- f.page(engine, "default/events.changes", "Last-Event-ID", end, "Prefer", "wait=20") }()
	time.Sleep(50 * time.Millisecond)
	f.Do("default", "credential.rename", `{"id":"c2","name":"E"}`)
	if got := <-polled; len(got.Events) != 1 || got.Events[0].Subject != "credential.c2" {
		t.Errorf("long poll: %+v", got)
	}

	for _, c := range []struct {
		name, query string
		status      int
		code        string
		header      []string
	}{
		{"a bad position", "default/events.changes", 400, "last_event_id_invalid", []string{"Last-Event-ID", "01.2"}},
		{"a negative position", "default/events.changes", 400, "last_event_id_invalid", []string{"Last-Event-ID", "-1"}},
		{"two positions", "default/events.changes?from=3", 400, "last_event_id_invalid", []string{"Last-Event-ID", "1"}},
		{"a position ahead", "default/events.changes", 409, "feed_position_ahead", []string{"Last-Event-ID", "9999"}},
		{"a limit", "default/events.changes?limit=3", 400, "limit_invalid", nil},
		{"another tenant", "ajax/events.changes", 404, "tenant_not_found", nil},
	} {
		resp := f.open(engine, c.query, append(c.header, "Accept", "text/event-stream")...)
		if body := string(stage.Must(io.ReadAll(resp.Body))(t)); resp.StatusCode != c.status || !strings.Contains(body, c.code) {
			t.Errorf("%s: %d %s", c.name, resp.StatusCode, body)
		}
	}

	// Revoked: the stream ends at once, and a waiting poll too.
	who := stage.Must(f.Service.Access.Authenticate(t.Context(), engine, netip.Addr{}))(t)
	f.Do("default", "api_key.revoke", `{"id":"`+who.Actor.ID+`"}`)
	begin = time.Now()
	var closing sent
	for e := range live {
		closing = e
	}
	if took := time.Since(begin); closing.event != "end" || !strings.Contains(closing.data, `"unauthenticated"`) || took > time.Second {
		t.Errorf("revoked: %+v after %s", closing, took)
	}
	who = stage.Must(f.Service.Access.Authenticate(t.Context(), bound, netip.Addr{}))(t)
	f.Do("default", "api_key.revoke", `{"id":"`+who.Actor.ID+`"}`)
	for range narrow {
	}
	f.Live.Applied(nil) // nobody waits: nothing is kept
	for from, page := range pages(len(fromMemory) - 2) {
		fromMemory[from].End, fromMemory[from].Next = page.End, page.Next // the log has more now
		page.Events = page.Events[:min(len(page.Events), len(fromMemory[from].Events))]
		if diff := cmp.Diff(page, fromMemory[from]); diff != "" {
			t.Errorf("from %d, the log and the memory differ: %s", from, diff)
		}
	}
}

// One key, and one tenant, cannot take the places of the others.
func TestFeedReadersAreBounded(t *testing.T) {
	f := newFeed(t)
	one, other := f.Key("default", `{"role":"FLOW_ENGINE"}`), f.Key("default", `{"role":"FLOW_ENGINE"}`)
	f.CaughtUp()
	for range 100 {
		f.stream(one)
	}
	if resp := f.open(one, "default/events.changes", "Accept", "text/event-stream"); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("the 101st reader of a key: %d", resp.StatusCode)
	}
	f.stream(other)
	if page := f.page(one, "default/events.changes"); len(page.Events) == 0 {
		t.Error("a key with too many readers cannot poll")
	}
}
