package edge_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/jsapi"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	svc "github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// queuedCommand is a command for the queue.
func queuedCommand(tenant, command, id, body string) *nats.Msg {
	m := nats.NewMsg("credstream.cmdq." + tenant + "." + command)
	if id != "" {
		m.Header.Set(nats.MsgIdHdr, id)
	}
	m.Data = []byte(body)
	return m
}

// petstore registers a component whose credentials have one key.
func (w *whole) petstore() {
	w.t.Helper()
	descriptor := bustest.Must(os.ReadFile("../../commands/testdata/components/api-key.json"))(w.t)
	w.call("default", "component.register", fmt.Sprintf(`{"id":"petstore","descriptor":%s}`, descriptor))
}

// sealed seals keys to the tenant's service key, for one command.
func (w *whole) sealed(tenant, command, id, target, keys string) string {
	w.t.Helper()
	answer := bustest.Must(w.svc.Serve(w.t.Context(), svc.Call{Tenant: tenant, Principal: w.admin, Via: "nats"}, "service.key", nil))(w.t)
	public := bustest.Must(base64.RawURLEncoding.DecodeString(answer.(admin.SealingKey).PublicKey))(w.t)
	info := strings.Join([]string{"credstream/keys-sealed/1", tenant, command, id, target}, "\n")
	text := bustest.Must(seal.To(public, []byte(info), seal.NewSecret([]byte(keys))))(w.t)
	return base64.RawURLEncoding.EncodeToString(text)
}

// Commands left in the queue are obeyed once, on behalf of who left them there;
// their keys travel sealed, and clear ones are refused before anything is stored.
func TestQueuedCommands(t *testing.T) {
	w := startWhole(t)
	w.petstore()
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	const canary, secret = "hunter2-canary-9a3c", "sealed-canary-51d0"
	stop := w.read(edge.Commands)
	for _, c := range []struct {
		code string
		msg  *nats.Msg
	}{
		{"secret_in_queue", queuedCommand("default", "credential.create", "c1", `{"component":"petstore","keys":{"apiKey":"`+canary+`"}}`)},
		{"secret_in_queue", queuedCommand("default", "credential.replace-keys", "c1", `{"id":"x","keys":{"apiKey":"`+canary+`"}}`)},
		{"secret_in_queue", queuedCommand("default", "oauth_client.define", "c1", `{"component":"petstore","client_id":"i","client_secret":"`+canary+`"}`)},
		{"secret_in_queue", queuedCommand("default", "auth_client.create", "c1", `{"name":"n","type":"basic","components":["petstore"],"credentials":{"password":"`+canary+`"}}`)},
		{"secret_in_queue", queuedCommand("default", "component.set-env", "c1", `{"id":"petstore","values":{"V":"`+canary+`"}}`)},
		{"component_secret_in_descriptor", queuedCommand("default", "component.register", "c1", `{"id":"d","descriptor":{"title":"T","oauth2":{"client_secret":"`+canary+`"}}}`)},
		{"component_secret_in_descriptor", queuedCommand("default", "component.update", "c1", `{"id":"petstore","descriptor":{"title":"T","oauth2":{"auth_uri":"https://a.example/a",`+
			`"token_uri":"https://a.example/t","token_params":{"app_secret":"`+canary+`"}}}}`)},
		{"component_descriptor_invalid", queuedCommand("default", "component.register", "c1", `{"id":"d","descriptor":{"title":1,"apiKey":"`+canary+`"}}`)},
		{"keys_sealed_unopenable", queuedCommand("default", "credential.create", "c1",
			`{"component":"petstore","keys_sealed":"`+w.sealed("default", "credential.create", "c2", "petstore", `{"apiKey":"`+secret+`"}`)+`"}`)},
		{"body_invalid", queuedCommand("default", "credential.rename", "c1", canary)},
		{"body_invalid", queuedCommand("default", "credential.rename", "c1", `{"`+canary+`":1}`)},
		{"route_unknown", queuedCommand("default", "credential.get", "c1", `{}`)},
		{"route_unknown", queuedCommand("default", "credential.explode", "c1", `{}`)},
		{"command_not_queueable", queuedCommand("default", "api_key.issue", "c1", `{"role":"OPERATOR"}`)},
		{"tenant_not_found", queuedCommand("nobody", "credential.delete", "c1", `{"id":"x"}`)},
		{"command_id_invalid", queuedCommand("default", "credential.delete", "two words", `{"id":"x"}`)},
		{"body_too_large", queuedCommand("default", "credential.rename", "c1", `{"id":"x","name":"`+strings.Repeat("y", 700<<10)+`"}`)},
	} {
		_, err := js.PublishMsg(t.Context(), c.msg)
		if err == nil || !strings.HasSuffix(err.Error(), "("+c.code+")") {
			t.Errorf("%s is answered with %v", c.code, err)
		}
	}
	create := func() *nats.Msg {
		m := queuedCommand("default", "credential.create", "c3", fmt.Sprintf(`{"component": "petstore", "name":"Pets", "keys_sealed":%q}`,
			w.sealed("default", "credential.create", "c3", "petstore", `{"apiKey":"`+secret+`"}`)))
		m.Header.Set("X-Correlation-Id", "corr-1")
		return m
	}
	if ack := bustest.Must(js.PublishMsg(t.Context(), create()))(t); ack.Stream != edge.QueueStream {
		t.Errorf("acknowledged as %+v", ack)
	}
	made := w.until(func(r events.Record) bool { _, is := r.Event.(events.CredentialCreated); return is })
	if m := made.Meta; m.Command != "c3" || m.Causation != "c3" || m.Correlation != "corr-1" || m.Via != "nats" || m.Actor != w.admin.Actor {
		t.Errorf("obeyed as %+v", m)
	}
	// The same again is known, and the two after it are obeyed in their order.
	same := create()
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "credential.rename", "c4", fmt.Sprintf(`{"id":%q,"name":"First"}`, made.Stream.ID))))(t)
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "credential.delete", "", fmt.Sprintf(`{"id":%q}`, made.Stream.ID))))(t)
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "credential.rename", "c5", fmt.Sprintf(`{"id":%q,"name":"Late"}`, made.Stream.ID))))(t)
	list := w.poisoned("default", 1)
	if len(list) != 1 || list[0].CommandID != "c5" || list[0].Code != "credential_not_found" || !list[0].Kept || list[0].Name != "credential.rename" ||
		list[0].Queue != "commands" || list[0].Subject != "credstream.cmdq.default.credential.rename" || list[0].Content != nil {
		t.Errorf("the dead-letter queue holds %+v", list)
	}
	bustest.Must(js.PublishMsg(t.Context(), same))(t)
	stop()
	created := 0
	for rec, err := range w.store.Stream(t.Context(), made.Stream, 0) {
		bustest.OK(t, err)
		if _, is := rec.Event.(events.CredentialCreated); is {
			created++
		}
	}
	if created != 1 {
		t.Errorf("the credential was created %d times", created)
	}
	w.nowhere(canary, secret)
}

// The dead-letter queue shows to a tenant its own, and puts back or erases it.
func TestPoisonQueue(t *testing.T) {
	w := startWhole(t)
	w.call("default", "tenant.register", `{"id":"acme"}`)
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	w.read(edge.Flows)
	w.read(edge.Commands)
	ctx := t.Context()
	broken := `{"id":"f1","name":"Orders","revision":1,"steps":[{"id":"s1","component":"absent-canary"}]}`
	bustest.Must(js.PublishMsg(ctx, flowEvent("f1", "flow.started", "e1", broken)))(t)
	for i := range 4 {
		bustest.Must(js.PublishMsg(ctx, queuedCommand("acme", "credential.delete", fmt.Sprint("c", i), `{ "id":"gone\u0041" }`)))(t)
	}
	list := w.poisoned("default", 1)
	if len(list) != 1 || list[0].Code != "flow_use_refused" || list[0].EventID != "e1" || list[0].Name != "flow.started" || !list[0].Kept {
		t.Fatalf("the dead-letter queue of default holds %+v", list)
	}
	var details flow.Faults
	bustest.OK(t, json.Unmarshal(list[0].Details, &details))
	if d := cmp.Diff(flow.Faults{Steps: []flow.StepFault{{Step: "s1", Component: "absent-canary", Reason: "component_not_found"}}}, details); d != "" {
		t.Error(d)
	}
	id := list[0].ID
	one := bustest.Must(w.poison.Get(ctx, "default", id))(t)
	var content flow.Event
	bustest.OK(t, json.Unmarshal(one.Content, &content))
	want := flow.Event{ID: "f1", Name: "Orders", Revision: 1, Steps: []events.FlowStep{{ID: "s1", Component: "absent-canary"}}}
	if d := cmp.Diff(want, content); d != "" {
		t.Error(d)
	}

	// By pages, in order, and each tenant its own.
	w.poisoned("acme", 4)
	var ids []string
	after := ""
	for {
		page, next, err := w.poison.List(ctx, "acme", after, 3)
		bustest.OK(t, err)
		for _, m := range page {
			ids = append(ids, m.ID+" "+m.CommandID)
		}
		if after = next; next == "" {
			break
		}
	}
	if len(ids) != 4 || !strings.HasSuffix(ids[0], " c0") {
		t.Errorf("listed %v", ids)
	}
	theirs, _, _ := strings.Cut(ids[0], " ")
	for what, err := range map[string]error{
		"get": second(w.poison.Get(ctx, "default", theirs)), "retry": w.poison.Retry(ctx, "default", theirs), "drop": w.poison.Drop(ctx, "default", theirs),
		"no id": second(w.poison.Get(ctx, "default", "x")), "another spelling": second(w.poison.Get(ctx, "default", "0"+id)),
		"beyond": second(w.poison.Get(ctx, "default", "999")), "pattern": second(w.poison.Get(ctx, "*", id)),
	} {
		if !errors.Is(err, admin.ErrQueueNotFound) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := w.poison.List(ctx, "acme", "x", 3); !errors.Is(err, projections.ErrCursorInvalid) {
		t.Errorf("a cursor that is none: %v", err)
	}
	if page, _, err := w.poison.List(ctx, "*", "", 3); len(page) > 0 || err != nil {
		t.Errorf("a pattern for a tenant lists %v, %v", page, err)
	}

	// Mended, the same event is understood; what was refused again is there again.
	w.call("default", "component.register", `{"id":"absent-canary","descriptor":{"title":"There now"}}`)
	bustest.Must(js.PublishMsg(ctx, flowEvent("f1", "flow.updated", "e2", `{"id":"f1","revision":2,"steps":[]}`)))(t)
	w.observed("f1", 2)
	bustest.OK(t, w.poison.Retry(ctx, "default", id))
	bustest.OK(t, w.poison.Retry(ctx, "acme", theirs))
	again := w.poisoned("acme", 4)
	if len(again) != 4 || again[3].CommandID != "c0" || again[3].SHA256 == "" {
		t.Errorf("after another try: %+v", again)
	}
	if kept := bustest.Must(w.poison.Get(ctx, "acme", again[3].ID))(t); string(kept.Content) != `{"id":"gone\u0041"}` {
		t.Errorf("the content is now %s", kept.Content)
	}
	if !w.onDisk(`"command_id":"c0"`) {
		t.Error("the entry cannot be found on the disk")
	}
	for _, m := range again {
		bustest.OK(t, w.poison.Drop(ctx, "acme", m.ID))
	}
	if n := w.count(edge.DeadLetterStream); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	if w.onDisk(`"command_id":"c`) {
		t.Error("a dropped message is still on the disk")
	}
}

func second[T any](_ T, err error) error { return err }

// While the service can do nothing, messages wait without end, in their order,
// over any number of readers; then they are done.
func TestReaderWaitsForTheService(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	var asked atomic.Int64
	enough := make(chan struct{}, 1000)
	low := func() error {
		if asked.Add(1)%20 == 0 {
			enough <- struct{}{}
		}
		return fault.ErrUnavailable
	}
	w.writes.Store(&low)
	for i := range 10 {
		for _, flow := range []string{"a", "b"} {
			data := fmt.Sprintf(`{"id":%q,"name":"%d","revision":%d,"steps":[]}`, flow, i, i+1)
			bustest.Must(js.PublishMsg(t.Context(), flowEvent(flow, "flow.updated", fmt.Sprint(flow, i), data)))(t)
		}
	}
	for range 3 {
		stop := w.read(edge.Flows)
		<-enough
		stop()
	}
	if w.count(edge.DeadLetterStream) != 0 || w.count(edge.FlowsStream) != 20 {
		t.Errorf("%d messages wait and %d are poisoned", w.count(edge.FlowsStream), w.count(edge.DeadLetterStream))
	}
	w.writes.Store(nil)
	w.read(edge.Flows)
	revisions := map[string][]uint64{}
	w.until(func(r events.Record) bool {
		if e, is := r.Event.(events.FlowObserved); is {
			revisions[r.Stream.ID] = append(revisions[r.Stream.ID], e.Revision)
		}
		return len(revisions["a"]) == 10 && len(revisions["b"]) == 10
	})
	all := []uint64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	if d := cmp.Diff(map[string][]uint64{"a": all, "b": all}, revisions); d != "" {
		t.Error(d)
	}
}

// A handler that panics, or fails for a reason nobody knows, is tried for a
// while, and what it was handling is then put aside without what it said.
func TestReaderPutsAsideWhatFails(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	const canary = "panic-canary-4b77"
	var tries atomic.Int64
	bad := func() error {
		if tries.Add(1)%2 == 0 {
			panic(canary)
		}
		return errors.New("the machine is on fire")
	}
	w.writes.Store(&bad)
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "credential.delete", "c1", `{"id":"x"}`)))(t)
	w.read(edge.Commands)
	list := w.poisoned("default", 1)
	if len(list) != 1 || list[0].Code != "internal" || list[0].Reason != fault.ErrInternal.Msg || list[0].Details != nil || !list[0].Kept {
		t.Errorf("the dead-letter queue holds %+v", list)
	}
	if n := tries.Load(); n != 11 {
		t.Errorf("it was tried %d times", n)
	}
	w.nowhere(canary)
	if !strings.Contains(w.logs.String(), `edge_test.TestReaderPutsAsideWhatFails.func1:`) {
		t.Error("the log does not say where it panicked")
	}
}

// A message leaves its queue only when the dead-letter queue has it.
func TestReaderWithoutPoisonQueue(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "credential.delete", "c1", `{"id":"x"}`)))(t)
	bustest.OK(t, w.js.DeleteStream(t.Context(), edge.DeadLetterStream))
	tries := make(chan struct{}, 1000)
	count := func() error {
		tries <- struct{}{}
		return nil
	}
	w.writes.Store(&count)
	w.read(edge.Commands)
	for range 3 {
		<-tries
	}
	if n := w.count(edge.QueueStream); n != 1 {
		t.Errorf("%d messages wait", n)
	}
	bustest.Must(jsapi.EnsureStream(t.Context(), w.js, edge.DeadLetterConfig(1)))(t)
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "credential.delete", "c2", `{"id":"x"}`)))(t)
	if list := w.poisoned("default", 2); list[0].CommandID != "c1" || list[1].CommandID != "c2" { // c1 is done
		t.Errorf("the dead-letter queue holds %+v", list)
	}
	if n := w.metric("credstream_poison_total", "commands"); n < 1 {
		t.Errorf("%v messages are counted", n)
	}
}

// A key that was revoked meanwhile has nothing done for it.
func TestReaderRevokedKey(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	key := w.issue(permission.FlowEngine, "default")
	who := bustest.Must(w.svc.Access.Authenticate(t.Context(), key, netip.Addr{}))(t)
	js := bustest.Must(jetstream.New(w.client(key)))(t)
	bustest.Must(js.PublishMsg(t.Context(), flowEvent("f1", "flow.stopped", "e1", `{"id":"f1","revision":1}`)))(t)
	w.call("default", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, who.Actor.ID))
	w.read(edge.Flows)
	if list := w.poisoned("default", 1); list[0].Code != "api_key_unknown" || list[0].Actor != "key:"+who.Actor.ID {
		t.Errorf("the dead-letter queue holds %+v", list)
	}
}

// Messages that only the service's own user could put into the streams stop
// nothing and are kept nowhere.
func TestReaderForeignMessages(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	ours := nats.Header{"Cs-Actor": {"first-administrator"}, "Cs-Size": {"7"}, "Cs-Sha256": {strings.Repeat("0", 64)}, "Cs-Command": {"c1"}, "ce-id": {"e1"}}
	with := func(more ...string) nats.Header {
		h := maps.Clone(ours)
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = append(h[more[i]], more[i+1])
		}
		return h
	}
	n := 0
	put := func(subject string, h nats.Header, data string) {
		n++
		bustest.Must(w.js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Header: h, Data: []byte(data)}))(t)
	}
	put("credstream.in.flows.default.f1", nil, "not JSON")
	put("credstream.in.flows.default.f1", with("ce-type", "flow.exploded"), `{}`)
	put("credstream.in.flows.default.f1", with("ce-type", "flow.started"), `{"id":"f2","revision":1}`)
	put("credstream.in.flows.default.f1", with("ce-type", "flow.started", "Cs-Actor", "second", "Cs-Size", "x"), `nothing`)
	put("credstream.in.flows.default.f1.f2", with("ce-type", "flow.started"), `{"id":"f1","revision":1}`)
	put("credstream.in.cmdq.default.credential.delete", nil, "")
	put("credstream.in.cmdq.default.credential.delete", nats.Header{"Cs-Actor": {"", "x"}, "Cs-Command": {"a b"}}, "[[[")
	put("credstream.in.cmdq.default.credential.explode", with(), `{}`)
	put("credstream.in.cmdq.default", with(), `{}`)
	put("credstream.in.cmdq._x.credential.delete", with(), `{}`)
	w.read(edge.Flows)
	w.read(edge.Commands)
	list := append(w.poisoned("default", n-1), w.poisoned(events.System, 0)...)
	codes := map[string]int{}
	for _, m := range list {
		codes[m.Code]++
		if m.Kept && m.Code == "queue_message_foreign" {
			t.Errorf("kept: %+v", m)
		}
	}
	if d := cmp.Diff(map[string]int{"queue_message_foreign": n - 2, "route_unknown": 1}, codes); d != "" {
		t.Error(d)
	}
	// A message that says two things in one header is dropped and counted.
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	m := flowEvent("f1", "flow.started", "e8", `{"id":"f1","revision":8}`)
	m.Header["ce-type"] = []string{"flow.started", "flow.deleted"}
	bustest.Must(js.PublishMsgAsync(m))(t)
	bustest.Must(js.PublishMsg(t.Context(), flowEvent("f1", "flow.started", "e9", `{"id":"f1","revision":9}`)))(t)
	w.observed("f1", 9)
	if n := w.metric("credstream_intake_messages_total", "flows", "dropped", "headers"); n != 1 {
		t.Errorf("%v messages are counted as dropped for their headers", n)
	}
}

// A command that an earlier version has stored, and that would not be stored today, is
// refused, and nothing of it is kept in the dead-letter queue.
func TestReaderKeepsNoSecret(t *testing.T) {
	w := startWhole(t)
	w.serveIntake()
	const canary = "hunter2-canary-27b0"
	stored := map[string]string{
		"component.register":       `{"id":"d","descriptor":{"title":"T","oauth2":{"client_secret":"` + canary + `"}}}`,
		"component.update":         `{"id":"d","descriptor":{"title":"T","oauth2":{"auth_uri":"https://a.example/a","token_uri":"https://a.example/t","auth_params":{"app_secret":"` + canary + `"}}}}`,
		"credential.explode":       `{"keys":"` + canary + `"}`,
		"credential.rename":        `{"id":"x","name":"n","note":"` + canary + `"}`,
		"oauth_client.change":      `{"id":"x","client_secret":"` + canary + `"}`,
		"credential.set-vpn-agent": `{"id":"x"}`, // of which all may be kept
	}
	for command, body := range stored {
		h := nats.Header{"Cs-Actor": {w.admin.Actor.ID}, "Cs-Size": {"7"}, "Cs-Sha256": {strings.Repeat("0", 64)}, "Cs-Command": {"c-" + command}}
		bustest.Must(w.js.PublishMsg(t.Context(), &nats.Msg{Subject: "credstream.in.cmdq.default." + command, Header: h, Data: []byte(body)}))(t)
	}
	w.read(edge.Commands)
	stream := bustest.Must(w.js.Stream(t.Context(), edge.DeadLetterStream))(t)
	for _, m := range w.poisoned("default", len(stored)) {
		raw := bustest.Must(stream.GetMsg(t.Context(), bustest.Must(strconv.ParseUint(m.ID, 10, 64))(t)))(t)
		coded := base64.StdEncoding.EncodeToString([]byte(stored[m.Name]))
		if kept := m.Name == "credential.set-vpn-agent"; m.Kept != kept || strings.Contains(string(raw.Data), coded) != kept || strings.Contains(string(raw.Data), canary) {
			t.Errorf("%s is kept as %s", m.Name, raw.Data)
		}
		if m.Actor != "key:"+w.admin.Actor.ID || m.CommandID != "c-"+m.Name || m.Size != 7 {
			t.Errorf("%s is told of as %+v", m.Name, m)
		}
	}
	if strings.Contains(w.logs.String(), canary) {
		t.Error("it is in the log")
	}
}

// A request for a command or query that does not exist is refused, and one for an existing command
// is answered once.
func TestUnknownRoutes(t *testing.T) {
	w := startWhole(t)
	conn := bustest.Must(w.node.EndpointConn())(t)
	ends := bustest.Must(edge.ServeEndpoints(edge.EndpointsConfig{
		Conn: conn, Caller: w.node.Caller, Service: w.svc, Version: "0.0.1", Metrics: w.metrics, Logger: slog.New(slog.NewJSONHandler(w.logs, nil)),
	}))(t)
	t.Cleanup(ends.Close)
	nc := w.client(w.key)
	inbox := nc.NewRespInbox()
	answers := bustest.Must(nc.SubscribeSync(inbox))(t)
	for _, subject := range []string{
		"credstream.cmd.default.credential.craete", "credstream.query.default.credential.create", "credstream.cmd.default.credential",
		"credstream.query.default.a.b.c.d",
	} {
		m := bustest.Must(nc.Request(subject, nil, 10*time.Second))(t)
		var p fault.Problem
		bustest.OK(t, json.Unmarshal(m.Data, &p))
		if p.Code != "route_unknown" || p.RequestID == "" || m.Header.Get(micro.ErrorCodeHeader) != "404" {
			t.Errorf("%s: answered %s with %v", subject, m.Data, m.Header)
		}
	}
	bustest.OK(t, nc.PublishRequest("credstream.cmd.default.credential.delete", inbox, []byte(`{"id":"x"}`)))
	m := bustest.Must(answers.NextMsg(10 * time.Second))(t)
	if m.Header.Get(micro.ErrorCodeHeader) != "404" || !bytes.Contains(m.Data, []byte("credential_not_found")) {
		t.Errorf("answered %s", m.Data)
	}
	bustest.Must(nc.Request("credstream.cmd.default.nothing", nil, 10*time.Second))(t) // after it, a second answer would be there
	if m, err := answers.NextMsg(50 * time.Millisecond); err == nil {
		t.Errorf("answered twice, then %s", m.Data)
	}
}
