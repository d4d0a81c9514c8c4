package edge_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/bus/feed"
	"github.com/credstream/credstream/bus/natsserver"
	"github.com/credstream/credstream/events"
	eventlog "github.com/credstream/credstream/events/jetstream"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	svc "github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// whole is a service with its queues on a node, all parts real.
type whole struct {
	t       *testing.T
	dir     string
	node    *natsserver.Node
	store   *eventlog.Store
	svc     *application.Application
	keyring *seal.Keyring
	queues  *edge.Queues
	poison  *edge.DeadLetters
	metrics *prometheus.Registry
	logs    *bustest.LogBuffer
	js      jetstream.JetStream // as the service
	admin   svc.Principal
	key     string
	writes  atomic.Pointer[func() error] // what WritesAllowed says; nil: nothing
}

// startWhole brings a service up, without intake and readers.
func startWhole(t *testing.T) *whole {
	t.Helper()
	w := &whole{t: t, dir: t.TempDir(), metrics: prometheus.NewRegistry(), logs: &bustest.LogBuffer{}}
	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	w.node = bustest.StartNode(t, func(c *natsserver.NodeConfig) { c.Dir, c.Logger, c.Authenticate = w.dir, log, nil })
	durable := func(stream string) func(context.Context) error { return w.node.Syncer(stream).Wait }
	conn := bustest.Must(w.node.Conn("service"))(t)
	w.js = bustest.Must(jetstream.New(conn))(t)
	w.store = bustest.Must(eventlog.Open(t.Context(), eventlog.Config{
		Conn: conn, Registry: events.All(), Logger: log, Sync: durable(eventlog.Stream), SyncTree: w.node.Syncer(eventlog.Stream).SyncTree,
	}))(t)
	t.Cleanup(w.store.Close)
	for _, cfg := range []jetstream.StreamConfig{
		vault.StreamConfig(1), feed.Config(1), feed.AuditConfig(1), edge.FlowsConfig(1), edge.QueueConfig(1), edge.DeadLetterConfig(1),
	} {
		bustest.Must(jsapi.EnsureStream(t.Context(), w.js, cfg))(t)
	}
	views := bustest.Must(projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{Logger: log}))(t)
	t.Cleanup(func() { _ = views.Close() })
	projector := projections.NewProjector(w.store, views, log)
	running, halt := context.WithCancel(context.WithoutCancel(t.Context()))
	var parts sync.WaitGroup
	t.Cleanup(func() { halt(); parts.Wait() })
	parts.Go(func() { _ = projector.Run(running) })
	keyFile := filepath.Join(t.TempDir(), "kms.key")
	bustest.OK(t, seal.CreateKeyFile(keyFile))
	kms := bustest.Must(seal.OpenKMS(t.Context(), seal.KMS{URL: "file://" + keyFile}))(t)
	kv := bustest.Must(w.js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "CREDSTREAM_KEYS", Storage: jetstream.FileStorage}))(t)
	w.keyring = seal.NewKeyring(kms, seal.NewKVKeysets(w.js, kv, nil))
	w.queues = bustest.Must(edge.NewQueues(conn, durable))(t)
	w.poison = edge.NewDeadLetters(w.queues, w.metrics, log)
	w.svc = bustest.Must(application.New(application.Config{
		Log: bustest.Must(aggregates.NewLog(w.store, 1000))(t), Views: views, Projector: projector, Keyring: w.keyring,
		Vault:  vault.New(w.js, w.keyring, durable(vault.Stream)),
		Verify: verify.NewClient(verify.Config{Logger: log}), Metrics: w.metrics, Logger: log,
		WritesAllowed: func() error {
			if f := w.writes.Load(); f != nil {
				return (*f)()
			}
			return nil
		},
		Poison: w.poison,
	}))(t)
	t.Cleanup(w.svc.Close)
	first := bustest.Must(w.svc.Access.Bootstrap(t.Context(), func() (seal.Secret, error) { return access.NewKey(), nil }))(t)
	w.key = string(first.Reveal())
	bustest.OK(w.t, w.node.SetAuthenticator(func(ctx context.Context, key string, from netip.Addr) (natsserver.Grant, error) {
		who, err := w.svc.Access.Authenticate(ctx, key, from)
		return natsserver.Grant{Principal: who.Actor.ID, Tenants: who.Tenants}, err
	}))
	end := bustest.Must(w.store.End(t.Context()))(t)
	bustest.OK(t, projector.Wait(t.Context(), end))
	w.admin = bustest.Must(w.svc.Access.Authenticate(t.Context(), w.key, netip.Addr{}))(t)
	w.call("default", "component.register", `{"id":"sheets","descriptor":{"title":"Sheets"}}`)
	return w
}

// call is a command of the administrator.
func (w *whole) call(tenant, command, body string) svc.Done {
	w.t.Helper()
	answer := bustest.Must(w.svc.Serve(w.t.Context(), svc.Call{Tenant: tenant, Principal: w.admin, Via: "http"}, command, []byte(body)))(w.t)
	done, _ := answer.(svc.Done)
	return done
}

// issue issues another key.
func (w *whole) issue(role permission.Role, tenants ...string) string {
	w.t.Helper()
	body := bustest.Must(json.Marshal(access.IssueAPIKey{Role: role, Tenants: tenants}))(w.t)
	answer := bustest.Must(w.svc.Serve(w.t.Context(), svc.Call{Tenant: "default", Principal: w.admin, Via: "http"}, "api_key.issue", body))(w.t)
	return answer.(access.IssuedAPIKey).Key
}

// serveIntake takes messages in until the test ends.
func (w *whole) serveIntake() *edge.Intake {
	w.t.Helper()
	conn := bustest.Must(w.node.EndpointConn())(w.t)
	in := bustest.Must(edge.ServeIntake(edge.IntakeConfig{
		Conn: conn, Caller: w.node.Caller, Service: w.svc, Queues: w.queues, DeadLetters: w.poison, Metrics: w.metrics,
		Logger: slog.New(slog.NewJSONHandler(w.logs, nil)),
	}))(w.t)
	w.t.Cleanup(in.Close)
	return in
}

// read runs the reader of a queue until stop, or the test's end.
func (w *whole) read(q edge.Queue) (stop func()) {
	w.t.Helper()
	r := edge.NewReader(edge.ReaderConfig{
		Queue: q, Queues: w.queues, DeadLetters: w.poison, Service: w.svc, Pause: soon,
		Logger: slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	ran := make(chan error, 1)
	go func() { ran <- r.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// client is a plain NATS client with a key.
func (w *whole) client(key string) *nats.Conn {
	nc, _ := bustest.Connect(w.t, w.node, key)
	return nc
}

// until follows the log until an event satisfies f.
func (w *whole) until(f func(events.Record) bool) events.Record {
	w.t.Helper()
	for rec, err := range w.store.Follow(w.t.Context(), 0) {
		bustest.OK(w.t, err)
		if f(rec) {
			return rec
		}
	}
	w.t.Fatal("the log ended")
	return events.Record{}
}

// observed waits until the flow's revision is in the log.
func (w *whole) observed(flow string, revision uint64) events.Record {
	w.t.Helper()
	return w.until(func(r events.Record) bool {
		e, is := r.Event.(events.FlowObserved)
		return is && r.Stream.ID == flow && e.Revision == revision
	})
}

// poisoned waits until n messages of the tenant have come to the dead-letter queue
// and lists them.
func (w *whole) poisoned(tenant string, n int) []admin.DeadLetter {
	w.t.Helper()
	c := bustest.Must(w.js.OrderedConsumer(w.t.Context(), edge.DeadLetterStream, jetstream.OrderedConsumerConfig{}))(w.t)
	messages := bustest.Must(c.Messages())(w.t)
	defer messages.Stop()
	for seen := 0; seen < n; {
		m := bustest.Must(messages.Next())(w.t)
		if strings.HasPrefix(m.Subject(), "credstream.in.poison."+tenant+".") {
			seen++
		}
	}
	page, next, err := w.poison.List(w.t.Context(), tenant, "", 200)
	bustest.OK(w.t, err)
	if next != "" {
		w.t.Fatal("there are more")
	}
	return page
}

// count is the number of messages in a stream.
func (w *whole) count(stream string) uint64 {
	w.t.Helper()
	s := bustest.Must(w.js.Stream(w.t.Context(), stream))(w.t)
	return s.CachedInfo().State.Msgs
}

// metric sums the samples of a metric whose labels hold all of these values.
func (w *whole) metric(name string, values ...string) float64 {
	w.t.Helper()
	sum := 0.0
	for _, family := range bustest.Must(w.metrics.Gather())(w.t) {
		if family.GetName() != name {
			continue
		}
	samples:
		for _, m := range family.GetMetric() {
			var have []string
			for _, l := range m.GetLabel() {
				have = append(have, l.GetValue())
			}
			for _, v := range values {
				if !slices.Contains(have, v) {
					continue samples
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// onDisk reports whether a file of the data folder holds the text.
func (w *whole) onDisk(text string) bool {
	w.t.Helper()
	found := false
	bustest.OK(w.t, filepath.WalkDir(w.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the server has removed a block of processed messages
		}
		found = found || bytes.Contains(b, []byte(text))
		return err
	}))
	return found
}

// nowhere looks for canaries in the data folder and in the logs.
func (w *whole) nowhere(canaries ...string) {
	w.t.Helper()
	for _, canary := range canaries {
		coded := base64.RawStdEncoding.EncodeToString([]byte(canary))
		if w.onDisk(canary) || w.onDisk(coded[:len(coded)-2]) {
			w.t.Errorf("%s is on the disk", canary)
		}
		if strings.Contains(w.logs.String(), canary) {
			w.t.Errorf("%s is in the log", canary)
		}
	}
}

// steps is n steps of a flow, each with a name of so many characters.
func steps(n, size int) string {
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`{"id":"s%d","component":"sheets","name":"%s"}`, i, strings.Repeat("🐟", size)))
	}
	return strings.Join(list, ",")
}

// flowEvent is a CloudEvent in binary mode.
func flowEvent(flow, kind, id, data string) *nats.Msg {
	m := nats.NewMsg("credstream.flows.default." + events.Token(flow))
	m.Header = nats.Header{
		"ce-specversion": {"1.0"}, "ce-type": {kind}, "ce-source": {"/engine"}, "ce-id": {id},
	}
	m.Data = []byte(data)
	return m
}

// Flow events as engines publish them are acknowledged as by a stream, when
// durable, and taken in with who said it and why.
func TestFlowEvents(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	key := w.issue(permission.FlowEngine, "default")
	nc := w.client(key)
	js := bustest.Must(jetstream.New(nc))(t)
	old := bustest.Must(nc.JetStream())(t)
	sheets := `"steps":[{"id":"s1","component":"sheets"}]`

	binary := flowEvent("f1", "flow.created", "e1", `{"id":"f1","name":"Orders","revision":1,`+sheets+`,"color":"red"}`)
	binary.Header["ce-subject"] = []string{"f1"}
	binary.Header["ce-some_thing"] = []string{"not a name of CloudEvents"}
	binary.Header["X-Correlation-Id"] = []string{"corr-1"}
	ack := bustest.Must(js.PublishMsg(t.Context(), binary))(t)
	if ack.Stream != edge.FlowsStream || ack.Sequence != 1 {
		t.Errorf("acknowledged as %+v", ack)
	}

	cased := nats.NewMsg("credstream.flows.default." + events.Token("f 2"))
	cased.Header = nats.Header{
		"Ce-Specversion": {"1.0"}, "CE-TYPE": {"flow.started"}, "Ce-Source": {"/engine"}, "Ce-Id": {"e%202%22"[:2]},
		"Ce-Subject": {"f%202"}, "Content-Type": {"application/json; charset=utf-8"}, "ce-datacontenttype": {"text/plain"},
	}
	cased.Data = []byte(`{"id":"f 2","revision":3,` + sheets + `}`)
	oldAck := bustest.Must(old.PublishMsg(cased))(t)
	if oldAck.Stream != edge.FlowsStream || oldAck.Sequence != 2 {
		t.Errorf("acknowledged as %+v", oldAck)
	}

	structured := nats.NewMsg("credstream.flows.default.f3")
	structured.Header = nats.Header{"content-type": {"application/cloudevents+json"}, "ce-id": {"misleading"}}
	structured.Data = []byte(`{"specversion":"1.0","id":"e3","type":"flow.updated","source":"/engine","subject":"f3","correlationid":"corr-3","trace-id":"not a name of CloudEvents",
		"data":{"id":"f3","revision":1,` + sheets + `}}`)
	bustest.Must(js.PublishMsg(t.Context(), structured))(t)
	bare := []byte(`{"specversion":"1.0","id":"e4","type":"flow.stopped","source":"/engine","data":{"id":"f4","revision":1}}`)
	answer := bustest.Must(nc.Request("credstream.flows.default.f4", bare, 10*time.Second))(t)
	if d := cmp.Diff(`{"stream":"CREDSTREAM_FLOWS","seq":4}`, string(answer.Data)); d != "" {
		t.Error(d)
	}

	w.read(edge.Flows)
	for _, want := range []struct {
		flow, cause, correlation string
		revision                 uint64
	}{
		{"f1", "e1", "corr-1", 1},
		{"f 2", "e%", "", 3},
		{"f3", "e3", "corr-3", 1},
		{"f4", "e4", "", 1},
	} {
		meta := w.observed(want.flow, want.revision).Meta
		if meta.Causation != want.cause || want.correlation != "" && meta.Correlation != want.correlation || meta.Via != "nats" || meta.Tenant != "default" ||
			meta.Actor.Kind != "key" || meta.Actor.ID == w.admin.Actor.ID {
			t.Errorf("flow %s was observed with %+v", want.flow, meta)
		}
	}
	if n := w.metric("credstream_intake_messages_total", "flows", "stored"); n != 4 {
		t.Errorf("%v messages are counted as stored", n)
	}
}

// Who may not tell of flows, or whose message cannot be stored, is told so, and
// nothing is stored.
func TestFlowEventsRefused(t *testing.T) {
	w := startWhole(t)
	key := w.issue(permission.FlowEngine, "default")
	event := func() *nats.Msg { return flowEvent("f1", "flow.stopped", "e1", `{"id":"f1","revision":1}`) }
	js := bustest.Must(jetstream.New(w.client(key)))(t)
	if _, err := js.PublishMsg(t.Context(), event()); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("without a service: %v", err)
	}
	in := w.serveIntake()
	operator := w.client(w.issue(permission.Operator, "default"))
	_, err := bustest.Must(jetstream.New(operator))(t).PublishMsg(t.Context(), event())
	refused, is := errors.AsType[*jetstream.APIError](err)
	if !is || refused.Code != 403 || refused.ErrorCode != 20403 || !strings.HasSuffix(refused.Description, " (permission_denied)") {
		t.Errorf("without the permission: %v", err)
	}
	answer := bustest.Must(operator.RequestMsg(event(), 10*time.Second))(t)
	var body struct {
		Stream  string        `json:"stream"`
		Problem fault.Problem `json:"problem"`
	}
	bustest.OK(t, json.Unmarshal(answer.Data, &body))
	if body.Stream != "" || body.Problem.Code != "permission_denied" || body.Problem.RequestID == "" ||
		answer.Header.Get(micro.ErrorCodeHeader) != "403" || answer.Header.Get(micro.ErrorHeader) != body.Problem.Detail {
		t.Errorf("answered %s with %v", answer.Data, answer.Header)
	}
	in.Close()
	if _, err := js.PublishMsg(t.Context(), event()); !errors.Is(err, jetstream.ErrNoStreamResponse) {
		t.Errorf("after the end: %v", err)
	}
	if w.count(edge.FlowsStream) != 0 || w.count(edge.DeadLetterStream) != 0 {
		t.Error("something was stored")
	}
}

// A plain publish is stored as a stream does it. A command is not: who sends one
// has to learn what became of it.
func TestPublishWithoutReply(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	nc := w.client(w.issue(permission.FlowEngine, "default"))
	bustest.OK(t, nc.PublishMsg(flowEvent("f1", "flow.stopped", "e1", `{"id":"f1","revision":1}`)))
	bustest.OK(t, nc.PublishMsg(flowEvent("f1", "flow.exploded", "e2", `{}`)))
	bustest.OK(t, nc.PublishMsg(queuedCommand("default", "credential.delete", "c1", `{"id":"x"}`)))
	ack := bustest.Must(bustest.Must(jetstream.New(nc))(t).PublishMsg(t.Context(), flowEvent("f1", "flow.stopped", "e3", `{"id":"f1","revision":2}`)))(t)
	if ack.Sequence != 2 || w.count(edge.DeadLetterStream) != 1 {
		t.Errorf("the next is acknowledged as %+v, %d messages are poisoned", ack, w.count(edge.DeadLetterStream))
	}
	w.read(edge.Flows)
	w.observed("f1", 2)
	for _, tc := range []struct {
		metric string
		labels []string
		want   float64
	}{
		{"credstream_intake_unanswered_total", []string{"flows"}, 2},
		{"credstream_intake_messages_total", []string{"flows", "stored"}, 2},
		{"credstream_intake_messages_total", []string{"flows", "poisoned"}, 1},
		{"credstream_intake_messages_total", []string{"commands", "dropped", "reply subject"}, 1},
	} {
		if n := w.metric(tc.metric, tc.labels...); n != tc.want {
			t.Errorf("%s %v: %v", tc.metric, tc.labels, n)
		}
	}
}

// What a stream would do for a header and a queue does not is refused, rather than
// acknowledged as if it were done.
func TestHeadersForAStream(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	event := func(name, value string) *nats.Msg {
		m := flowEvent("f1", "flow.stopped", "e1", `{"id":"f1","revision":1}`)
		m.Header[name] = []string{value}
		return m
	}
	command := queuedCommand("default", "credential.delete", "c1", `{"id":"x"}`)
	command.Header["Nats-TTL"] = []string{"1s"}
	refused := []*nats.Msg{command, event("nats-expected-last-sequence", "1"), event("Nats-Expected-Stream", "OTHER"), event("Nats-Batch-Id", "b")}
	for _, name := range []string{
		jetstream.ExpectedLastSeqHeader, jetstream.ExpectedLastSubjSeqHeader, jetstream.ExpectedLastMsgIDHeader, jetstream.MsgRollup, jetstream.MsgTTLHeader,
	} {
		refused = append(refused, event(name, "1"))
	}
	for _, m := range refused {
		_, err := js.PublishMsg(t.Context(), m)
		e, is := errors.AsType[*jetstream.APIError](err)
		if !is || e.Code != 400 || !strings.HasSuffix(e.Description, " (queue_header_unsupported)") {
			t.Errorf("%v: %v", m.Header, err)
		}
	}
	if w.count(edge.FlowsStream)+w.count(edge.DeadLetterStream)+w.count(edge.QueueStream) != 0 {
		t.Error("something was stored")
	}
	bustest.Must(js.PublishMsg(t.Context(), event(jetstream.ExpectedStreamHeader, edge.FlowsStream)))(t)
	bustest.Must(js.PublishMsg(t.Context(), event(jetstream.MsgIDHeader, "m1")))(t)
}

// A message that nobody understands is refused, and goes to the dead-letter queue without
// its content; the understood part of an event is stored without the rest.
func TestFlowEventsNotUnderstood(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	nc := w.client(w.key)
	js := bustest.Must(jetstream.New(nc))(t)
	const canary = "hunter2-canary-7e1f"
	event := func(change func(m *nats.Msg)) *nats.Msg {
		m := flowEvent("f1", "flow.created", "e1", `{"id":"f1","revision":1,"steps":[{"id":"s1","component":"sheets"}]}`)
		change(m)
		return m
	}
	data := func(s string) func(*nats.Msg) { return func(m *nats.Msg) { m.Data = []byte(s) } }
	for i, c := range []struct {
		code, name, event string
		msg               *nats.Msg
	}{
		{"flow_event_type_unknown", "flow.exploded", "e1", event(func(m *nats.Msg) { m.Header["ce-type"] = []string{"flow.exploded"} })},
		{"flow_event_type_unknown", "", "e1", event(func(m *nats.Msg) { m.Header["ce-type"] = []string{"A " + canary} })},
		{"flow_event_not_cloudevent", "", "", event(func(m *nats.Msg) { m.Header, m.Data = nil, []byte(canary+" is no JSON") })},
		{"flow_event_not_cloudevent", "", "", event(func(m *nats.Msg) { m.Header["ce-specversion"] = []string{"0.3"} })},
		{"flow_event_not_cloudevent", "", "", event(func(m *nats.Msg) { m.Header["ce-specversion"] = []string{"9"} })},
		{"flow_event_not_cloudevent", "flow.created", "", event(func(m *nats.Msg) { m.Header["ce-id"] = []string{"two words " + canary} })},
		{"flow_event_not_cloudevent", "", "", event(func(m *nats.Msg) { m.Header["ce-time"] = []string{"yesterday"} })},
		{"flow_event_not_cloudevent", "", "", event(func(m *nats.Msg) { delete(m.Header, "ce-source") })},
		{"flow_event_data_invalid", "flow.created", "e1", event(data(canary + ` is no JSON`))},
		{"flow_event_data_invalid", "flow.created", "e1", event(data(`{"id":"f1","revision":1,"` + canary + `":1,"` + canary + `":2,"steps":[]}`))},
		{"flow_event_data_invalid", "flow.created", "e1", event(data(`{"id":"f1","revision":"` + canary + `"}`))},
		{"flow_event_data_invalid", "flow.created", "e1", event(data(`{"id":"f1","revision":1,"note":"` + canary + `"}`))},
		{"flow_event_subject_mismatch", "flow.created", "e1", event(data(`{"id":"f2","revision":1,"steps":[],"note":"` + canary + `"}`))},
		{"flow_event_subject_mismatch", "flow.created", "e1", event(func(m *nats.Msg) { m.Subject += ".more" })},
		{"flow_event_subject_mismatch", "flow.created", "e1", event(func(m *nats.Msg) { m.Header["ce-subject"] = []string{"f2"} })},
		{"tenant_not_found", "flow.created", "e1", event(func(m *nats.Msg) { m.Subject = "credstream.flows.nobody.f1" })},
		{"tenant_not_found", "flow.created", "e1", event(func(m *nats.Msg) { m.Subject = "credstream.flows.f1" })},
		{"body_too_large", "flow.created", "e1", event(data(`{"id":"f1","revision":1,"steps":[` + steps(900, 190) + `]}`))},
	} {
		c.msg.Data = append(c.msg.Data, strings.Repeat(" ", i)...) // no message is a duplicate of an earlier one
		before := w.count(edge.DeadLetterStream)
		_, err := js.PublishMsg(t.Context(), c.msg)
		refused, is := errors.AsType[*jetstream.APIError](err)
		if !is || refused.Code < 400 || int(refused.ErrorCode) != 20_000+refused.Code || !strings.HasSuffix(refused.Description, " ("+c.code+")") {
			t.Errorf("%s: refused with %v", c.code, err)
		}
		// Published again, it is refused again and the entry stays the only one.
		answer := bustest.Must(nc.RequestMsg(c.msg, 10*time.Second))(t)
		var body struct {
			Stream  string `json:"stream"`
			Problem struct {
				Code    string `json:"code"`
				Details struct {
					DeadLetter string `json:"dead_letter"`
				} `json:"details"`
			} `json:"problem"`
		}
		bustest.OK(t, json.Unmarshal(answer.Data, &body))
		id := body.Problem.Details.DeadLetter
		if body.Stream != "" || body.Problem.Code != c.code || id != fmt.Sprint(before+1) || w.count(edge.DeadLetterStream) != before+1 {
			t.Errorf("%s: %d entries, answered %s", c.code, w.count(edge.DeadLetterStream)-before, answer.Data)
		}
		got := bustest.Must(w.poison.Get(t.Context(), "default", id))(t)
		if got.At.IsZero() || len(got.SHA256) != 64 || got.Reason == "" {
			t.Errorf("%s: %+v", c.code, got)
		}
		got.At, got.SHA256, got.Reason, got.ID = time.Time{}, "", "", ""
		want := admin.DeadLetter{
			Queue: "flows", Name: c.name, Subject: c.msg.Subject, EventID: c.event, Actor: "key:" + w.admin.Actor.ID, Code: c.code, Size: len(c.msg.Data),
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(c.code, d)
		}
		if err := w.poison.Retry(t.Context(), "default", id); !errors.Is(err, admin.ErrQueueNotKept) {
			t.Errorf("%s: trying again: %v", c.code, err)
		}
	}
	bustest.Must(js.PublishMsg(t.Context(), event(data(`{"id":"f1","revision":9,"`+canary+`":"`+canary+`","steps":[{"id":"s1","component":"sheets","token":"`+canary+`"}]}`))))(t)
	w.read(edge.Flows)
	w.observed("f1", 9)
	w.nowhere(canary)
	if n := w.metric("credstream_intake_messages_total", "flows", "poisoned", "flow_event_data_invalid"); n != 4 {
		t.Errorf("%v messages are counted as poisoned for their data", n)
	}
}

// An event that is published again with its Nats-Msg-Id is acknowledged as a duplicate and stored
// once. Another event with the same id is no duplicate, nor is that of another key.
func TestFlowEventTwice(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	other := bustest.Must(jetstream.New(w.client(w.issue(permission.FlowEngine, "default"))))(t)
	const latest = "9223372036854775807"
	event := func(flow, revision string) *nats.Msg {
		m := flowEvent(flow, "flow.stopped", "e1", `{"id":"`+flow+`","revision":`+revision+`,"steps":[{"id":"s","component":"sheets","credential":"gone"}]}`)
		m.Header.Set(jetstream.MsgIDHeader, "m1")
		return m
	}
	for _, c := range []struct {
		by        jetstream.JetStream
		msg       *nats.Msg
		seq       uint64
		duplicate bool
	}{
		{js, event("f1", "1"), 1, false},
		{js, event("f1", "1"), 1, true},
		{js, event("f2", "1"), 2, false},
		{js, event("f1", latest), 3, false},
		{other, event("f1", "1"), 4, false},
		{js, event("f1", latest), 3, true},
	} {
		ack := bustest.Must(c.by.PublishMsg(t.Context(), c.msg))(t)
		if ack.Stream != edge.FlowsStream || ack.Sequence != c.seq || ack.Duplicate != c.duplicate {
			t.Errorf("%s %s: acknowledged as %+v", c.msg.Subject, c.msg.Data, ack)
		}
	}
	if n := w.metric("credstream_intake_messages_total", "flows", "duplicate"); n != 2 {
		t.Errorf("%v messages are counted as duplicates", n)
	}
	_, err := js.PublishMsg(t.Context(), event("f1", "9223372036854775808"))
	if refused, is := errors.AsType[*jetstream.APIError](err); !is || !strings.Contains(refused.Description, "2^63-1") {
		t.Errorf("a revision beyond 2^63-1: %v", err)
	}

	// An entry of the dead-letter queue has the id too: its retry is no duplicate.
	stop := w.read(edge.Flows)
	w.observed("f1", 1<<63-1)
	kept := w.poisoned("default", 4)
	stop()
	for _, e := range kept {
		if e.Code != "flow_use_refused" {
			continue
		}
		before := w.count(edge.FlowsStream)
		bustest.OK(t, w.poison.Retry(t.Context(), "default", e.ID))
		if after := w.count(edge.FlowsStream); after != before+1 {
			t.Errorf("the retry of %s was swallowed", e.ID)
		}
		return
	}
	t.Errorf("no event was refused: %+v", kept)
}
