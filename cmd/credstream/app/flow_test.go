package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
)

// engine is a flow engine with nothing but a NATS client and the CloudEvents format.
type engine struct {
	t      testing.TB
	js     jetstream.JetStream
	tenant string
}

func newEngine(t testing.TB, nc *nats.Conn) *engine {
	t.Helper()
	js, err := jetstream.New(nc)
	must(t, err)
	return &engine{t, js, "default"}
}

type flowStep struct {
	ID         string `json:"id"`
	Component  string `json:"component"`
	Credential string `json:"credential,omitempty"`
}

// tell publishes a flow event and returns when it is acknowledged.
func (e *engine) tell(change, flow string, revision int, steps ...flowStep) error {
	if steps == nil {
		steps = []flowStep{}
	}
	data, err := json.Marshal(map[string]any{"id": flow, "name": "The flow " + flow, "revision": revision, "steps": steps, "owner": "not ours"})
	if err != nil {
		return err
	}
	m := nats.NewMsg("credstream.flows." + e.tenant + "." + flow)
	for k, v := range map[string]string{
		"ce-specversion": "1.0", "ce-id": fmt.Sprintf("%s-%d", flow, revision), "ce-type": "flow." + change, "ce-source": "/engine", "ce-subject": flow,
	} {
		m.Header[k] = []string{v}
	}
	m.Data = data
	_, err = e.js.PublishMsg(e.t.Context(), m)
	return err
}

// await polls until ok; the test's own time bounds it.
func await(t testing.TB, what string, ok func() (bool, error)) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(2 * time.Millisecond) {
		done, err := ok()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if done {
			return
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("%s: has not come about", what)
		}
	}
}

type flowShown struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	Revision int        `json:"revision"`
	Active   bool       `json:"active"`
	Broken   bool       `json:"broken"`
	Binding  string     `json:"binding"`
	Steps    []flowStep `json:"steps"`
	Faults   []struct{ Step, Reason string }
}

// whereUsed lists the flows of a credential or component.
func (a api) whereUsed(params string) ([]flowShown, error) {
	var list struct {
		Flows []flowShown `json:"flows"`
	}
	err := a.query("flow.list", params, &list)
	return list.Flows, err
}

// create saves a credential of the component "plain".
func (a api) create(t testing.TB) string {
	t.Helper()
	var made done
	must(t, a.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, &made))
	return made.ID
}

// inUseWatch follows the in-use bucket by a plain subscription.
type inUseWatch struct {
	mu   sync.Mutex
	last map[string]projections.InUse
	back []string // keys whose log position went backwards
}

func watchInUse(t testing.TB, nc *nats.Conn) *inUseWatch {
	t.Helper()
	w := &inUseWatch{last: map[string]projections.InUse{}}
	_, err := nc.Subscribe("$KV.credstream-in-use.default.>", func(m *nats.Msg) {
		w.mu.Lock()
		defer w.mu.Unlock()
		var v projections.InUse
		if err := json.Unmarshal(m.Data, &v); err != nil {
			w.back = append(w.back, err.Error())
		}
		if v.Seq < w.last[m.Subject].Seq {
			w.back = append(w.back, m.Subject)
		}
		w.last[m.Subject] = v
	})
	must(t, err)
	must(t, nc.Flush())
	return w
}

// holds reports whether the key's value lists exactly these flows, with "!" behind an active one.
func (w *inUseWatch) holds(kind, id string, flows ...string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.back) > 0 {
		return false, fmt.Errorf("went backwards: %v", w.back)
	}
	v, seen := w.last["$KV.credstream-in-use.default."+kind+"."+events.Token(id)]
	var got []string
	active := 0
	for _, f := range v.Flows {
		name := f.ID
		if f.Active {
			name += "!"
			active++
		}
		got = append(got, name)
	}
	slices.Sort(got)
	slices.Sort(flows)
	return seen && slices.Equal(got, flows) && v.Total == len(got) && v.Active == active, nil
}

// What a flow engine tells stands on the credentials' streams, in the views and
// in the in-use index; it decides what may be deleted.
func TestFlows(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	nc := u.connect(t, adminKey)
	e, index := newEngine(t, nc), watchInUse(t, nc)
	one, two := u.create(t), u.create(t)
	twice := []flowStep{{"s1", "plain", one}, {"s2", "plain", one}}
	inUse := func(what, id string, flows ...string) {
		t.Helper()
		await(t, what, func() (bool, error) { return index.holds("credential", id, flows...) })
	}

	must(t, e.tell("created", "f1", 1, twice...))
	inUse("a created flow uses its credential", one, "f1")
	must(t, e.tell("created", "f2", 1, flowStep{"a", "plain", one}, flowStep{"b", "plain", two}))
	inUse("a second flow", one, "f1", "f2")
	must(t, e.tell("started", "f1", 2, twice...))
	inUse("a start", one, "f1!", "f2")
	var refused *apiError
	err := u.command("credential.delete", "", map[string]any{"id": one}, nil)
	if !errors.As(err, &refused) || refused.Code != "credential_in_use" || refused.Status != 409 ||
		refused.Detail != `The credential is in use by the active flow "The flow f1" (f1). Stop or delete these flows first, or give them another credential.` {
		t.Fatalf("deleting what a running flow uses: %v", err)
	}
	if err := u.command("credential.delete", "", map[string]any{"id": two}, nil); err != nil {
		t.Fatalf("a flow that does not run holds nothing: %v", err)
	}
	await(t, "the flow of a deleted credential", func() (bool, error) {
		flows, err := u.whereUsed("credential=" + two)
		return len(flows) == 1 && flows[0].ID == "f2" && flows[0].Broken, err
	})

	// Repeats and what comes late change nothing.
	end := logEnd(t, u.program)
	must(t, e.tell("started", "f1", 2, twice...))
	must(t, e.tell("created", "f1", 1, twice...))
	must(t, e.tell("stopped", "f3", 5))
	await(t, "what came behind them", func() (bool, error) {
		var f flowShown
		return u.query("flow.get", "id=f3", &f) == nil && f.Revision == 5, nil
	})
	if now := logEnd(t, u.program); now != end+1 {
		t.Errorf("%d commits for a repeat, a late event and a new one", now-end)
	}

	// An update that swaps the credential gives the old one back.
	three := u.create(t)
	must(t, e.tell("updated", "f1", 3, flowStep{"s1", "plain", three}))
	inUse("the new one", three, "f1!")
	inUse("the old one", one, "f2")
	must(t, u.command("credential.delete", "", map[string]any{"id": one}, nil))
	must(t, e.tell("deleted", "f1", 9))
	inUse("a deleted flow", three)
	must(t, u.command("credential.delete", "", map[string]any{"id": three}, nil))
	must(t, e.tell("started", "f1", 8, flowStep{"s1", "plain", three}))
	must(t, e.tell("started", "f4", 1, flowStep{"s1", "plain", three}))
	await(t, "the start with a credential that is gone", func() (bool, error) {
		var f flowShown
		err := u.query("flow.get", "id=f4", &f)
		return err == nil && f.Broken && len(f.Faults) == 1 && f.Faults[0].Reason == "credential_not_found", nil
	})
	if flows, err := u.whereUsed("credential=" + three); err != nil || len(flows) != 1 || flows[0].ID != "f4" || !flows[0].Broken {
		t.Errorf("where the deleted credential is used: %+v, %v", flows, err)
	}
}

func logEnd(t testing.TB, p *program) uint64 {
	t.Helper()
	end, err := p.store.End(t.Context())
	must(t, err)
	return end
}

// A reservation takes all credentials of a flow or none, holds them until the
// flow starts, is given back or ends by itself, and never more than its time.
func TestBindings(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	must(t, u.command("component.register", "", map[string]any{"id": "free", "descriptor": json.RawMessage(`{"title":"Free"}`)}, nil))
	e := newEngine(t, u.connect(t, adminKey))
	one, two := u.create(t), u.create(t)
	bind := func(flow, ttl string, steps ...flowStep) (string, error) {
		var answer struct {
			Binding string    `json:"binding"`
			Until   time.Time `json:"until"`
		}
		err := u.command("flow.bind", "", map[string]any{"flow": flow, "name": "Orders", "steps": steps, "ttl": ttl}, &answer)
		return answer.Binding, err
	}
	remove := func(id string) string {
		return code(t, u.command("credential.delete", "", map[string]any{"id": id}, nil))
	}
	all := []flowStep{{"s1", "plain", one}, {"s2", "plain", two}, {"s3", "free", ""}}

	if _, err := bind("f", "10m", all...); err != nil {
		t.Fatal(err)
	}
	if c := remove(one) + remove(two); c != "credential_in_usecredential_in_use" {
		t.Fatalf("what is reserved is deleted: %s", c)
	}
	must(t, u.command("flow.release", "", map[string]any{"flow": "f"}, nil))
	must(t, u.command("flow.release", "", map[string]any{"flow": "f"}, nil))
	if c := remove(two); c != "" {
		t.Fatalf("what was given back is held: %s", c)
	}

	// All or none, and every step is told why.
	_, err := bind("f", "10m", append(all, flowStep{"s4", "plain", ""}, flowStep{"s5", "free", one}, flowStep{"s6", "nowhere", ""})...)
	if code(t, err) != "flow_cannot_bind" {
		t.Fatal(err)
	}
	if c := remove(one); c != "" {
		t.Fatalf("a refused reservation holds: %s", c)
	}
	for _, c := range []struct {
		want  string
		steps []flowStep
	}{
		{"credential_required", []flowStep{{"s1", "plain", ""}}},
		{"credential_component_mismatch", []flowStep{{"s1", "free", u.create(t)}}},
		{"flow_cannot_bind", []flowStep{{"s1", "plain", one}}},
		{"flow_steps_invalid", []flowStep{{"s1", "plain", two}, {"s1", "plain", two}}},
	} {
		_, err := bind("g", "", c.steps...)
		var refused *apiError
		if !errors.As(err, &refused) || refused.Code != c.want || c.want != "flow_steps_invalid" && refused.Status != 422 {
			t.Errorf("binding %+v: %v, want %s", c.steps, err, c.want)
		}
	}
	if _, err := bind("g", "0s", flowStep{"s1", "free", ""}); code(t, err) != "flow_ttl_invalid" {
		t.Error(err)
	}

	// A start confirms the reservation: its end takes nothing away.
	kept := u.create(t)
	if _, err := bind("h", "1s", flowStep{"s1", "plain", kept}); err != nil {
		t.Fatal(err)
	}
	must(t, e.tell("started", "h", 1, flowStep{"s1", "plain", kept}))
	left := u.create(t)
	if _, err := bind("i", "1s", flowStep{"s1", "plain", left}); err != nil {
		t.Fatal(err)
	}
	if c := remove(left); c != "credential_in_use" {
		t.Errorf("what is reserved for a second: %q", c)
	}
	await(t, "the end of a reservation", func() (bool, error) { return remove(left) == "", nil })
	if c := remove(kept); c != "credential_in_use" {
		t.Errorf("what a running flow uses, after the reservation's time: %s", c)
	}
}

// A credential that is made for a step is linked with it in the same commit.
func TestCredentialForAStep(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	e := newEngine(t, u.connect(t, adminKey))
	must(t, e.tell("created", "f", 1, flowStep{"s1", "plain", ""}))
	await(t, "the flow", func() (bool, error) {
		var f flowShown
		return u.query("flow.get", "id=f", &f) == nil && f.Broken, nil // its step needs a credential
	})
	var made done
	in := map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}, "for": map[string]any{"flow": "f", "step": "s1"}}
	must(t, u.command("credential.create", "", in, &made))
	recs, err := u.store.Commit(t.Context(), made.Seq)
	must(t, err)
	if len(recs) != 2 || recs[1].Event.(events.CredentialUsed).Flow != "f" {
		t.Fatalf("the commit holds %+v", recs)
	}
	flows, err := u.whereUsed(fmt.Sprintf("credential=%s&min_seq=%d", made.ID, made.Seq))
	if err != nil || len(flows) != 1 || flows[0].ID != "f" {
		t.Errorf("where the new credential is used: %+v, %v", flows, err)
	}
	must(t, e.tell("updated", "f", 2, flowStep{"s1", "plain", made.ID}))
	await(t, "the mended flow", func() (bool, error) {
		var f flowShown
		err := u.query("flow.get", "id=f", &f)
		return f.Revision == 2 && !f.Broken, err
	})
	in["for"] = map[string]any{"flow": "f", "step": "s1"}
	in["component"] = "other"
	must(t, u.command("component.register", "", map[string]any{"id": "other", "descriptor": json.RawMessage(plain)}, nil))
	if c := code(t, u.command("credential.create", "", in, nil)); c != "credential_component_mismatch" {
		t.Errorf("a credential for a step of another component: %s", c)
	}
}

// A dry run says what would break, and changes nothing.
func TestDryRuns(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	nc := u.connect(t, adminKey)
	e, index := newEngine(t, nc), watchInUse(t, nc)
	id := u.create(t)
	must(t, e.tell("started", "f", 1, flowStep{"s1", "plain", id}))
	await(t, "the start", func() (bool, error) { return index.holds("credential", id, "f!") })
	var answer struct {
		DryRun struct {
			Allowed     bool        `json:"allowed"`
			Code        string      `json:"code"`
			Says        string      `json:"says"`
			Flows       []flowShown `json:"flows"`
			ActiveFlows int         `json:"active_flows"`
			Credentials int         `json:"credentials"`
		} `json:"dry_run"`
	}
	end := logEnd(t, u.program)
	for _, c := range []struct {
		command string
		in      map[string]any
		allowed bool
		code    string
	}{
		{"credential.delete", map[string]any{"id": id, "dry_run": true}, false, "credential_in_use"},
		{"credential.replace-keys", map[string]any{"id": id, "keys": map[string]any{"apiKey": "k2"}, "dry_run": true}, true, ""},
		{"credential.replace-keys", map[string]any{"id": id, "keys": map[string]any{"other": "k2"}, "dry_run": true}, false, "keys_field_unknown"},
		{"component.delete", map[string]any{"id": "plain", "dry_run": true}, true, ""},
	} {
		answer.DryRun.Says = ""
		must(t, u.command(c.command, "", c.in, &answer))
		if got := answer.DryRun; got.Allowed != c.allowed || got.Code != c.code || got.Says == "" || len(got.Flows) != 1 || got.ActiveFlows != 1 {
			t.Errorf("%s %v: %+v", c.command, c.in, got)
		}
		answer.DryRun.Code = ""
	}
	if answer.DryRun.Credentials != 1 {
		t.Errorf("%d credentials would remain", answer.DryRun.Credentials)
	}
	if now := logEnd(t, u.program); now != end {
		t.Errorf("dry runs made %d commits", now-end)
	}
}

// eventually asks where a credential is used until it is by one flow that is as it should be.
func eventually(a api, credential string, is func(flowShown) bool) ([]flowShown, error) {
	for begin := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		flows, err := a.whereUsed("credential=" + credential)
		switch {
		case err != nil || len(flows) == 1 && is(flows[0]):
			return flows, err
		case time.Since(begin) > 20*time.Second:
			return nil, fmt.Errorf("where-used shows %+v", flows)
		}
	}
}

// A flow starts, told of on one process, while its credential is deleted on the
// other: either the use is recorded and the delete refused, or the delete is done
// and the flow is shown as broken, on the feed and where it is used.
func TestRaceOfStartAndDelete(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	registerPlain(t, a.http)
	callers := []api{caller(a), caller(b)}
	e := newEngine(t, connectCluster(t, servers, adminKey))
	var mu sync.Mutex
	refusals := map[string]time.Time{} // by flow, as the feed told of them
	feed, err := nats.Connect(servers.URL(""), nats.UserInfo("feed", adminKey))
	must(t, err)
	t.Cleanup(feed.Close)
	_, err = feed.Subscribe("credstream.events.default.flow.>", func(m *nats.Msg) {
		if m.Header.Get("ce-type") != "credstream.flow.use_refused.v1" {
			return
		}
		var data struct {
			Flow, Reason string
			Revision     int
		}
		if err := json.Unmarshal(m.Data, &data); err == nil && data.Reason == "credential_not_found" && data.Revision == 1 {
			mu.Lock()
			refusals[data.Flow] = time.Now()
			mu.Unlock()
		}
	})
	must(t, err)
	must(t, feed.Flush())
	must(t, e.tell("created", "first", 1)) // who has which role is agreed on by now
	await(t, "the first flow", func() (bool, error) {
		var f flowShown
		return callers[1].query("flow.get", "id=first", &f) == nil, nil
	})
	bal := &balance{step: 300 * time.Microsecond}
	starts, deletes := 0, 0
	var waits []time.Duration
	rounds(t, *raceRounds, func(i int) error {
		deleter, asker := callers[i%2], callers[1-i%2]
		var made done
		if err := deleter.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]any{"apiKey": "k"}}, &made); err != nil {
			return err
		}
		flow := fmt.Sprintf("flow-%d", i)
		var told, deleteErr error
		var removed done
		var at time.Time
		bal.race(
			func() { told = e.tell("started", flow, 1, flowStep{"s1", "plain", made.ID}); at = time.Now() },
			func() { deleteErr = deleter.command("credential.delete", "", map[string]any{"id": made.ID}, &removed) })
		if told != nil {
			return told
		}
		del, err := codeOf(deleteErr)
		switch {
		case err != nil:
			return err
		case del == "credential_in_use":
			flows, err := eventually(asker, made.ID, func(f flowShown) bool { return f.Active })
			mu.Lock()
			defer mu.Unlock()
			if _, refused := refusals[flow]; err == nil && (refused || flows[0].Broken) {
				err = fmt.Errorf("delete and use were both refused")
			}
			starts++
			bal.won(false)
			return err
		case del == "":
			var when time.Time
			for begin := time.Now(); when.IsZero(); time.Sleep(time.Millisecond) {
				if time.Since(begin) > 20*time.Second {
					return fmt.Errorf("the delete was done, and no use is refused")
				}
				mu.Lock()
				when = refusals[flow]
				mu.Unlock()
			}
			_, err := eventually(asker, made.ID, func(f flowShown) bool { return f.Broken })
			mu.Lock()
			defer mu.Unlock()
			deletes++
			waits = append(waits, when.Sub(at))
			bal.won(true)
			return err
		default:
			return fmt.Errorf("delete answers %q", del)
		}
	})
	bothOutcomes(t, starts, deletes)
	slices.Sort(waits)
	if n := len(waits); n > 0 {
		t.Logf("from the acknowledged start to the refusal on the feed: median %v, p99 %v, longest %v", waits[n/2], waits[n*99/100], waits[n-1])
	}
}
