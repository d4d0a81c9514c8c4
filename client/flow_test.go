package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

// serve answers requests on a subject, as the nth of them.
func (b *bus) serve(subject string, answer func(n int, m *nats.Msg) *nats.Msg) (asked func() []*nats.Msg) {
	b.t.Helper()
	var all []*nats.Msg
	_, err := b.nc.Subscribe(subject, func(m *nats.Msg) {
		b.mu.Lock()
		all = append(all, m)
		n := len(all)
		b.mu.Unlock()
		if a := answer(n, m); a != nil {
			if err := m.RespondMsg(a); err != nil {
				b.t.Error(err)
			}
		}
	})
	if err == nil {
		err = b.nc.Flush()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return func() []*nats.Msg {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Clone(all)
	}
}

func body(s string) *nats.Msg { return &nats.Msg{Data: []byte(s)} }

// refusal is an error answer in the shape of JetStream's, with our problem beside it.
func refusal(t *testing.T, f *fault.Error) *nats.Msg {
	t.Helper()
	p, err := json.Marshal(f.Problem())
	if err != nil {
		t.Fatal(err)
	}
	return body(fmt.Sprintf(`{"error":{"code":%d,"err_code":20001,"description":%q},"stream":"","seq":0,"problem":%s}`, f.Kind.Status(), f.Msg, p))
}

func TestPublishFlow(t *testing.T) {
	b := newBus(t)
	asked := b.serve("credstream.flows.acme.>", func(int, *nats.Msg) *nats.Msg { return body(`{"stream":"CREDSTREAM_FLOWS","seq":7}`) })
	c := b.dial("acme")
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, e := range []client.FlowEvent{
		{
			Change: client.FlowCreated, ID: "f1", Name: "Orders to CRM", Revision: 1, EventID: "e 1", Source: "/engine", Time: at,
			Steps: []client.FlowStep{{ID: "s1", Component: "petstore", Credential: "c1"}, {ID: "s2", Name: "Sheet", Component: "sheets"}},
		},
		{Change: client.FlowUpdated, ID: "f/1 é", Revision: 2, Steps: []client.FlowStep{}},
		{Change: client.FlowStarted, ID: "f1", Revision: 3},
	} {
		ack, err := c.PublishFlow(t.Context(), e, client.CommandID("given"), client.Correlation("theirs"))
		if err != nil || ack != (client.FlowAck{Stream: "CREDSTREAM_FLOWS", Seq: 7}) {
			t.Errorf("%+v, %v", ack, err)
		}
	}
	var got []string
	for i, m := range asked() {
		if at, err := time.Parse(time.RFC3339Nano, m.Header.Get("ce-time")); err != nil || i > 0 && time.Since(at) > time.Hour {
			t.Errorf("ce-time %v, %v", at, err)
		}
		m.Header.Del("ce-time")
		line := m.Subject
		for _, name := range []string{"specversion", "id", "type", "source", "subject", "datacontenttype", "correlationid"} {
			line += " " + m.Header.Get("ce-"+name)
			m.Header.Del("ce-" + name)
		}
		if got = append(got, line+" "+string(m.Data)); len(m.Header) > 0 {
			t.Errorf("more headers: %v", m.Header)
		}
	}
	want := []string{
		`credstream.flows.acme.f1 1.0 e%201 flow.created /engine f1 application/json theirs {"id":"f1","name":"Orders to CRM","revision":1,` +
			`"steps":[{"id":"s1","component":"petstore","credential":"c1"},{"id":"s2","name":"Sheet","component":"sheets"}]}`,
		`credstream.flows.acme.=Zi8xIMOp 1.0 given flow.updated /flow-engine f/1%20%C3%A9 application/json theirs {"id":"f/1 é","revision":2,"steps":[]}`,
		`credstream.flows.acme.f1 1.0 given flow.started /flow-engine f1 application/json theirs {"id":"f1","revision":3}`,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What may have been lost is published again as the same event; what was refused
// is not, and comes back as the service's error.
func TestPublishFlowAgain(t *testing.T) {
	b := newBus(t)
	asked := b.serve("credstream.flows.acme.f1", func(n int, _ *nats.Msg) *nats.Msg {
		if n < 3 {
			return refusal(t, fault.ErrUnavailable)
		}
		return refusal(t, fault.New(fault.Invalid, "flow_event_data_invalid", "No.").With(map[string]string{"dead_letter": "2"}))
	})
	b.serve("credstream.flows.acme.f2", func(int, *nats.Msg) *nats.Msg {
		return refusal(t, fault.New(fault.Denied, "permission_missing", "No.").At("/id"))
	})
	b.serve("credstream.flows.acme.f3", func(int, *nats.Msg) *nats.Msg { return body("what?") })
	c := b.dial("acme")
	ack, err := c.PublishFlow(t.Context(), client.FlowEvent{Change: client.FlowStarted, ID: "f1", Revision: 1})
	if id, kept := client.DeadLetterOf(err); !kept || id != "2" || ack != (client.FlowAck{}) {
		t.Errorf("%+v, %v", ack, err)
	}
	all := asked()
	if len(all) != 3 {
		t.Fatalf("%d attempts", len(all))
	}
	for _, m := range all {
		if id := m.Header.Get("ce-id"); id == "" || id != all[0].Header.Get("ce-id") {
			t.Errorf("the event ids are %q and %q", all[0].Header.Get("ce-id"), id)
		}
	}
	var f *fault.Error
	if _, err := c.PublishFlow(t.Context(), client.FlowEvent{ID: "f2"}); !errors.As(err, &f) || f.Kind != fault.Denied || f.Code != "permission_missing" || f.Msg != "No." {
		t.Errorf("%#v", err)
	}
	if _, err := c.PublishFlow(t.Context(), client.FlowEvent{ID: "f3"}); !errors.Is(err, client.ErrAnswer) {
		t.Error(err)
	}
	if _, err := c.PublishFlow(t.Context(), client.FlowEvent{ID: "nobody"}); !errors.Is(err, client.ErrUnreachable) {
		t.Error(err)
	}
	if _, err := b.dial("other").PublishFlow(t.Context(), client.FlowEvent{ID: "f1"}); !errors.As(err, &f) || f.Code != "tenant_not_found" {
		t.Errorf("another tenant: %v", err)
	}
}

// The details of a refusal come out as they went in.
func TestRefusalDetails(t *testing.T) {
	refs := client.FlowRefs{Total: 2, Flows: []client.FlowRef{{ID: "f1", Name: "Orders", Active: true}, {ID: "f2"}}}
	steps := []client.StepFault{{Step: "s1", Component: "p", Credential: "c1", Reason: "credential_not_found"}}
	_, api := newServer(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		problem(w, fault.New(fault.Precondition, "credential_in_use", "It is in use.").With([]any{refs, map[string]any{"steps": steps}, nil}[n-1]))
	})
	_, err := api.DeleteCredential(t.Context(), "i", 0)
	got, ok := client.FlowsOf(fmt.Errorf("x: %w", err))
	if _, also := client.StepFaultsOf(err); !ok || also {
		t.Errorf("%v, %v", ok, also)
	}
	if d := cmp.Diff(refs, got); d != "" {
		t.Error(d)
	}
	_, err = api.BindFlow(t.Context(), client.BindFlow{Flow: "f"})
	faults, ok := client.StepFaultsOf(err)
	if _, also := client.FlowsOf(err); !ok || also {
		t.Errorf("%v, %v", ok, also)
	}
	if d := cmp.Diff(steps, faults); d != "" {
		t.Error(d)
	}
	_, err = api.DeleteCredential(t.Context(), "i", 0)
	_, refsToo := client.FlowsOf(err)
	if _, too := client.StepFaultsOf(err); too || refsToo {
		t.Error("details where there are none")
	}
}

func TestDryRun(t *testing.T) {
	_, api := newServer(t, says(`{"seq":3,"id":"i","dry_run":{"allowed":false,"code":"credential_in_use","says":"No.","flows":[{"id":"f1","active":true}],"total_flows":2,"active_flows":1}}`))
	got, err := api.DeleteCredentialDryRun(t.Context(), "i", 0)
	if err != nil {
		t.Fatal(err)
	}
	want := client.Impact{Code: "credential_in_use", Says: "No.", Flows: []client.Flow{{ID: "f1", Active: true}}, TotalFlows: 2, ActiveFlows: 1}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	_, api = newServer(t, says(`{"seq":3,"id":"i"}`))
	if _, err := api.DeleteCredentialDryRun(t.Context(), "i", 0); !errors.Is(err, client.ErrAnswer) {
		t.Errorf("a service without dry runs: %v", err)
	}
}

// A page that does not fit into one message is asked for again in smaller ones.
func TestFlowPages(t *testing.T) {
	s, api := newServer(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 1 {
			problem(w, fault.New(fault.Invalid, "answer_too_large", "Too large."))
			return
		}
		fmt.Fprintf(w, `{"flows":[{"id":"%d"}],"next":%q}`, n, []string{2: "c2", 3: ""}[n])
	})
	var got []string
	for f, err := range api.WhereUsed(t.Context(), "c1") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, f.ID)
	}
	const path = "GET /v1/tenants/acme/flow.list?"
	want := []string{path + "credential=c1&limit=200", path + "credential=c1&limit=100", path + "after=c2&credential=c1&limit=100"}
	if d := cmp.Diff([]string{"2", "3"}, got) + cmp.Diff(want, s.asked); d != "" {
		t.Error(d)
	}
}

// index is an in-use index that the test writes to.
type index struct {
	b      *bus
	tell   bool // changes are published too
	values map[string]client.InUse
}

// newIndex answers flow.in-use in pages of one entry.
func newIndex(b *bus) *index {
	x := &index{b: b, tell: true, values: map[string]client.InUse{}}
	x.serve()
	return x
}

func (x *index) serve() {
	x.b.serve("credstream.query.acme.flow.in-use", func(_ int, m *nats.Msg) *nats.Msg {
		var in struct{ After string }
		if err := json.Unmarshal(m.Data, &in); err != nil {
			x.b.t.Error(err)
		}
		x.b.mu.Lock()
		defer x.b.mu.Unlock()
		page := client.InUseList{Entries: []client.InUseEntry{}}
		ids := []string{}
		for id := range x.values {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		at, _ := slices.BinarySearch(ids, in.After+"\x00")
		if at < len(ids) {
			page.Entries = append(page.Entries, client.InUseEntry{Kind: "credential", ID: ids[at], Value: x.values[ids[at]]})
		}
		if at+1 < len(ids) {
			page.Next = ids[at]
		}
		answer, err := json.Marshal(page)
		if err != nil {
			x.b.t.Error(err)
		}
		return &nats.Msg{Data: answer}
	})
}

func (x *index) put(id, token string, seq uint64) {
	x.b.t.Helper()
	v := client.InUse{Seq: seq, Flows: []client.InUseFlow{}}
	x.b.mu.Lock()
	if x.values[id].Seq < seq {
		x.values[id] = v
	}
	x.b.mu.Unlock()
	if x.tell {
		x.publish(token, v)
	}
}

func (x *index) publish(token string, v client.InUse) {
	x.b.t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = x.b.nc.Publish("$KV.credstream-in-use.acme.credential."+token, data)
	}
	if err == nil {
		err = x.b.nc.Flush()
	}
	if err != nil {
		x.b.t.Error(err)
	}
}

// watch watches until it has n entries.
func watch(t *testing.T, c *client.Conn, n int, each func(i int)) (got []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for e, err := range c.WatchInUse(ctx) {
		if err != nil {
			t.Error(err)
			return got
		}
		got = append(got, e.Kind+" "+e.ID+" "+strconv.FormatUint(e.Value.Seq, 10))
		each(len(got))
		if len(got) == n {
			cancel()
		}
	}
	return got
}

// What there is comes first, then what changes; what is older than what came
// before is left out.
func TestWatchInUse(t *testing.T) {
	b := newBus(t)
	x := newIndex(b)
	x.put("c1", "c1", 3)
	x.put("c 2", "=YyAy", 5)
	got := watch(t, b.dial("acme"), 5, func(i int) {
		if i == 2 { // the list is given
			x.publish("c1", client.InUse{Seq: 2})
			x.publish("c1", client.InUse{Seq: 3})
			x.put("c1", "c1", 6)
			x.publish("=YyAy", client.InUse{Seq: 4})
			x.put("c 2", "=YyAy", 8)
			x.put("c3", "c3", 7)
		}
	})
	if d := cmp.Diff([]string{"credential c 2 5", "credential c1 3", "credential c1 6", "credential c 2 8", "credential c3 7"}, got); d != "" {
		t.Error(d)
	}
}

// What changed while the connection was away is found out about.
func TestWatchInUseAfterLoss(t *testing.T) {
	b := newBus(t)
	x := newIndex(b)
	x.put("c1", "c1", 1)
	got := watch(t, b.dial("acme"), 4, func(i int) {
		switch i {
		case 1:
			x.put("c2", "c2", 2)
		case 2:
			b.stop()
			x.tell = false
			x.put("c1", "c1", 3)
			x.tell = true
			b.start()
			x.serve()
			x.put("c2", "c2", 4)
		}
	})
	slices.Sort(got[2:]) // the live one and the list may come in either order
	if d := cmp.Diff([]string{"credential c1 1", "credential c2 2", "credential c1 3", "credential c2 4"}, got); d != "" {
		t.Error(d)
	}
}

func TestWatchInUseRefused(t *testing.T) {
	b := newBus(t)
	for _, err := range b.dial("other").WatchInUse(t.Context()) {
		if err == nil {
			t.Error("another tenant's index is watched")
		}
	}
	x := newIndex(b)
	x.put("c1", "c1", 1)
	var got error
	for _, got = range b.dial("acme").WatchInUse(t.Context()) {
		if err := b.nc.Publish("$KV.credstream-in-use.acme.credential.c1", []byte("what?")); err != nil {
			t.Fatal(err)
		}
	}
	if !errors.Is(got, client.ErrAnswer) {
		t.Errorf("a value that is none: %v", got)
	}
}

func TestInboxPrefix(t *testing.T) {
	b := newBus(t)
	asked := b.serve("credstream.query.acme.flow.get", func(int, *nats.Msg) *nats.Msg { return body(`{"id":"f1"}`) })
	c := b.dial("acme")
	if f, err := c.GetFlow(t.Context(), "f1", 0); err != nil || f.ID != "f1" {
		t.Errorf("%+v, %v", f, err)
	}
	if reply := asked()[0].Reply; !strings.HasPrefix(reply, client.InboxPrefix(key)+".") {
		t.Errorf("the reply subject is %s", reply)
	}
	if p := client.InboxPrefix(key); p != "_INBOX_dc23182d441a6d98" {
		t.Errorf("the prefix is %s", p)
	}
}
