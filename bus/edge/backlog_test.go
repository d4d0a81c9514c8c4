package edge_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/edge"
	svc "github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
)

// What waits of a tenant, or failed, has a bound. Another tenant has its own, and
// whoever processes the dead-letter queue in bulk has room again.
func TestBacklogIsBounded(t *testing.T) {
	const most = 20
	w := startWhole(t)
	w.queues.SetBacklog(most)
	w.serveIntake().SetRefusalDelay(0)
	w.call("default", "tenant.register", `{"id":"other"}`)
	nc := w.client(w.key)
	js := bustest.Must(jetstream.New(nc))(t)
	flow := func(tenant, body string) *nats.Msg {
		m := nats.NewMsg("credstream.flows." + tenant + ".f1")
		for k, v := range map[string]string{"ce-specversion": "1.0", "ce-id": "e", "ce-type": "flow.updated", "ce-source": "/engine"} {
			m.Header[k] = []string{v}
		}
		m.Data = []byte(body)
		return m
	}
	different := 0
	rubbish := func(tenant string) *nats.Msg {
		different++ // a repeat would be no other entry
		return flow(tenant, fmt.Sprint("rubbish ", different))
	}
	stored := func(err error) error { // an event that cannot be parsed is refused when its entry is stored
		if err != nil && strings.HasSuffix(err.Error(), "(flow_event_data_invalid)") {
			return nil
		}
		return err
	}
	for _, c := range []struct {
		name, code string
		message    func(tenant string) *nats.Msg
	}{
		{"flow events", "queue_full", func(tenant string) *nats.Msg {
			return flow(tenant, `{"id":"f1","revision":1,"steps":[{"id":"s","component":"sheets"}]}`)
		}},
		{"commands", "queue_full", func(tenant string) *nats.Msg {
			return queuedCommand(tenant, "component.share", "", `{"id":"sheets"}`)
		}},
		{"rubbish", "poison_queue_full", rubbish},
	} {
		publish := func(tenant string) error {
			_, err := js.PublishMsg(t.Context(), c.message(tenant), jetstream.WithRetryAttempts(0))
			return stored(err)
		}
		for n := range most {
			if err := publish("default"); err != nil {
				t.Fatalf("%s: %d: %v", c.name, n, err)
			}
		}
		for range 3 {
			var refusal *jetstream.APIError
			if err := publish("default"); !errors.As(err, &refusal) || refusal.Code != 429 || !strings.Contains(refusal.Description, c.code) {
				t.Errorf("%s: one more: %v", c.name, err)
			}
		}
		if err := publish("other"); err != nil {
			t.Errorf("%s of the other tenant: %v", c.name, err)
		}
	}
	bulk := func(command, body string) admin.QueuedChanged {
		answer := bustest.Must(w.svc.Serve(t.Context(), svc.Call{Tenant: "default", Principal: w.admin, Via: "http"}, command, []byte(body)))(t)
		return answer.(admin.QueuedChanged)
	}
	if got := bulk("queue.retry-all", `{}`); got.Done != 0 || got.Skipped != most {
		t.Errorf("tried again: %+v", got)
	}
	if got := bulk("queue.drop-all", `{"queue":"commands"}`); got.Done != 0 {
		t.Errorf("of another queue: %+v", got)
	}
	if got := bulk("queue.drop-all", `{}`); got.Done != most || got.Next != "" {
		t.Errorf("dropped: %+v", got)
	}
	if left := w.count(edge.DeadLetterStream); left != 1 {
		t.Errorf("%d messages are left, want that of the other tenant", left)
	}
	bustest.Eventually(t, "room in the dead-letter queue", func() bool {
		_, err := js.PublishMsg(t.Context(), rubbish("default"), jetstream.WithRetryAttempts(0))
		return stored(err) == nil
	})
}

// What failed can be tried again in bulk, and large ones count by their size: three of 320 KiB are 18.
func TestRetryInBulk(t *testing.T) {
	w := startWhole(t)
	w.queues.SetBacklog(18)
	w.serveIntake()
	stop := w.read(edge.Commands)
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	for n := range 3 {
		body := fmt.Sprintf(`{"id":"none%d","descriptor":{"title":"x","logo":%q}}`, n, strings.Repeat("x", 240<<10))
		bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "component.update", "", body)))(t)
	}
	w.poisoned("default", 3)
	bustest.Eventually(t, "an empty queue", func() bool { return w.count(edge.QueueStream) == 0 })
	stop()
	w.queues.ForgetBacklog() // it would be looked at again within a second
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "component.update", "", `{"id":"none","descriptor":{"title":"x"}}`)))(t)
	answer := bustest.Must(w.svc.Serve(t.Context(), svc.Call{Tenant: "default", Principal: w.admin, Via: "http"}, "queue.retry-all", []byte(`{"queue":"commands"}`)))(t)
	if got := answer.(admin.QueuedChanged); got.Done != 3 || got.Skipped != 0 {
		t.Errorf("tried again: %+v", got)
	}
	if poisoned, waiting := w.count(edge.DeadLetterStream), w.count(edge.QueueStream); poisoned != 0 || waiting != 4 {
		t.Errorf("%d are poisoned and %d wait", poisoned, waiting)
	}
}

// What waits is bounded by bytes as well: a message with more than 64 KiB counts once
// for each. It is read as every other one is, in its order, beside those that an
// earlier version stored without their size.
func TestBacklogCountsBytes(t *testing.T) {
	w := startWhole(t)
	w.queues.SetBacklog(15)
	w.serveIntake().SetRefusalDelay(0)
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	publish := func(m *nats.Msg) error {
		_, err := js.PublishMsg(t.Context(), m, jetstream.WithRetryAttempts(0))
		return err
	}
	large := strings.Repeat("x", 240<<10)
	for _, c := range []struct {
		name    string
		message func(n int) *nats.Msg
	}{
		{"flow events", func(n int) *nats.Msg {
			return flowEvent("f1", "flow.updated", fmt.Sprint(n), fmt.Sprintf(`{"id":"f1","revision":%d,"steps":[%s]}`, n, steps(600, 100)))
		}},
		{"commands", func(n int) *nats.Msg {
			return queuedCommand("default", "component.update", "", fmt.Sprintf(`{"id":"sheets","descriptor":{"title":"%d","logo":%q}}`, n, large))
		}},
	} {
		for n := range 3 {
			if err := publish(c.message(n + 1)); err != nil {
				t.Fatalf("%s: %d: %v", c.name, n, err)
			}
		}
		for range 2 {
			var refusal *jetstream.APIError
			if err := publish(c.message(9)); !errors.As(err, &refusal) || refusal.Code != 429 || !strings.Contains(refusal.Description, "queue_full") {
				t.Fatalf("%s: one more: %v", c.name, err)
			}
			w.queues.ForgetBacklog()
		}
	}
	for _, stream := range []string{edge.FlowsStream, edge.QueueStream} {
		stored := bustest.Must(bustest.Must(w.js.Stream(t.Context(), stream))(t).GetMsg(t.Context(), 2))(t)
		old := nats.NewMsg(stored.Subject[:strings.LastIndexByte(stored.Subject, '.')])
		old.Header, old.Data = stored.Header, []byte(strings.ReplaceAll(string(stored.Data), `"revision":2`, `"revision":4`))
		bustest.Must(w.js.PublishMsg(t.Context(), old))(t)
	}
	w.read(edge.Flows)
	w.read(edge.Commands)
	for revision := range uint64(4) {
		w.observed("f1", revision+1)
	}
	bustest.Eventually(t, "an empty queue", func() bool { return w.count(edge.FlowsStream)+w.count(edge.QueueStream) == 0 })
	bustest.Eventually(t, "room in the queue", func() bool {
		return publish(flowEvent("f1", "flow.updated", "5", fmt.Sprintf(`{"id":"f1","revision":5,"steps":[%s]}`, steps(600, 100)))) == nil
	})
	if n := w.count(edge.DeadLetterStream); n != 0 {
		t.Errorf("%d messages failed: %v", n, w.poisoned("default", 1)[0])
	}
}

// A publisher that sends too much waits for its refusals, others do not wait for them,
// and it can have no more of them ahead than messages.
func TestRefusalsAreDelayed(t *testing.T) {
	w := startWhole(t)
	w.queues.SetBacklog(1)
	in := w.serveIntake()
	in.SetRefusalDelay(time.Hour)
	w.call("default", "tenant.register", `{"id":"other"}`)
	nc := w.client(w.key)
	inbox := nats.NewInbox()
	refusals := bustest.Must(nc.SubscribeSync(inbox))(t)
	send := func(n int) {
		m := queuedCommand("default", "component.share", "", `{"id":"sheets"}`)
		m.Reply = inbox
		for range n {
			bustest.OK(t, nc.PublishMsg(m))
		}
	}
	answered := func(code string) {
		t.Helper()
		m, err := refusals.NextMsg(time.Minute)
		if err != nil || !strings.Contains(string(m.Data), code) {
			t.Fatalf("want %q: %v, %v", code, m, err)
		}
	}
	send(1)
	answered(`"seq":1`)
	send(edge.MaxInbound - 1)
	bustest.Must(bustest.Must(jetstream.New(nc))(t).PublishMsg(t.Context(), queuedCommand("other", "component.share", "", `{"id":"none"}`)))(t)
	if n, _, err := refusals.Pending(); n != 0 || err != nil {
		t.Errorf("%d are refused at once: %v", n, err)
	}
	send(2)
	answered("too_many_requests")
	in.Close()
	for range edge.MaxInbound {
		answered("queue_full")
	}
}
