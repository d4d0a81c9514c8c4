package edge_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/bus/edge"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	svc "github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/vault"
	"github.com/credstream/credstream/verify"
)

// hooked calls before each Stage.
type hooked struct {
	events.Store
	before atomic.Pointer[func(events.StreamID, []events.Event) error]
}

func (h *hooked) Stage(ctx context.Context, s events.StreamID, expected uint64, m events.Meta, evs ...events.Event) (uint64, error) {
	if f := h.before.Load(); f != nil {
		if err := (*f)(s, evs); err != nil {
			return 0, err
		}
	}
	return h.Store.Stage(ctx, s, expected, m, evs...)
}

type peer struct {
	*whole
	svc   *application.Application
	hook  *hooked
	proj  *projections.Projector
	skew  atomic.Int64
	log   *aggregates.Log
	views *projections.Views
}

// another process over the same log.
func (w *whole) peer(t *testing.T, v verify.Config) *peer {
	p := &peer{whole: w, hook: &hooked{Store: w.store}}
	log := slog.New(slog.NewJSONHandler(w.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	p.views = bustest.Must(projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{Logger: log}))(t)
	t.Cleanup(func() { _ = p.views.Close() })
	p.proj = projections.NewProjector(p.hook, p.views, log)
	p.log = bustest.Must(aggregates.NewLog(p.hook, 1000))(t)
	p.proj.OnApplied(func(recs []events.Record) { // as cmd/credstream does
		for _, r := range recs {
			if r.Last() {
				p.log.Invalidate(r.Stream, r.Seq)
			}
		}
	})
	running, halt := context.WithCancel(context.WithoutCancel(t.Context()))
	var parts sync.WaitGroup
	t.Cleanup(func() { halt(); parts.Wait() })
	parts.Go(func() { _ = p.proj.Run(running) })
	v.Logger = log
	p.svc = bustest.Must(application.New(application.Config{
		Log: p.log, Views: p.views, Projector: p.proj, Keyring: w.keyring,
		Vault:  vault.New(w.js, w.keyring, w.node.Syncer(vault.Stream).Wait),
		Verify: verify.NewClient(v), Metrics: prometheus.NewRegistry(), Logger: log,
		Poison: w.poison,
		Now:    func() time.Time { return time.Now().Add(time.Duration(p.skew.Load())) },
	}))(t)
	t.Cleanup(p.svc.Close)
	p.sync(t)
	return p
}

func (p *peer) sync(t *testing.T) {
	end := bustest.Must(p.store.End(t.Context()))(t)
	bustest.OK(t, p.proj.Wait(t.Context(), end))
}

func (p *peer) do(id, command, body string) (svc.Done, error) {
	a, err := p.svc.Serve(p.t.Context(), svc.Call{Tenant: "default", Principal: p.admin, Via: "http", CommandID: id}, command, []byte(body))
	d, _ := a.(svc.Done)
	if p, is := a.(*svc.Done); is && p != nil {
		d = *p
	}
	return d, err
}

// cred makes a credential of the component sheets without a secret.
func (p *peer) cred(t *testing.T, id string) {
	_, _, err := aggregates.Credential.Execute(t.Context(), p.log, "default", commands.CreateCredential{
		ID: id, Component: "sheets", Name: id, Keys: commands.NewKeys{SecretID: events.NewID(), Fields: []string{}, Revision: 1, Verification: events.Verification{Status: "unverified"}},
	}, events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Correlation: "x", Time: time.Now().UTC(), Via: "system"}, nil)
	bustest.OK(t, err)
}

func bindBody(flow, ttl string, creds ...string) string {
	s := ""
	for i, c := range creds {
		if i > 0 {
			s += ","
		}
		s += fmt.Sprintf(`{"id":"s%d","component":"sheets","credential":%q}`, i, c)
	}
	return fmt.Sprintf(`{"flow":%q,"ttl":%q,"steps":[%s]}`, flow, ttl, s)
}

// What was reserved is held without a gap when the flow starts.
func TestReservedThenStarted(t *testing.T) {
	w := startWhole(t)
	p := w.peer(t, verify.Config{})
	lost, gap, n := 0, 0, 40
	for i := range n {
		c, f := fmt.Sprintf("c%d", i), fmt.Sprintf("f%d", i)
		p.cred(t, c)
		bustest.Must(p.do("", "flow.bind", bindBody(f, "10m", c)))(t)
		var both sync.WaitGroup
		var started, deleted error
		both.Go(func() {
			started = p.svc.Flows.ObserveFlow(t.Context(), svc.Call{Tenant: "default", Principal: p.admin, Via: "nats"}, flow.Event{
				Change: events.FlowWasStarted, ID: f, Revision: 1, Steps: []events.FlowStep{{ID: "s0", Component: "sheets", Credential: c}},
			})
		})
		both.Go(func() {
			for range 12 {
				if _, deleted = p.do("", "credential.delete", fmt.Sprintf(`{"id":%q}`, c)); deleted == nil {
					return
				}
			}
		})
		both.Wait()
		if deleted == nil {
			lost++
			_ = started
		}
		for r, err := range w.store.Stream(t.Context(), events.StreamID{Tenant: "default", Category: "credential", ID: c}, 0) {
			bustest.OK(t, err)
			if _, is := r.Event.(events.CredentialReleased); is {
				gap++
			}
		}
	}
	t.Logf("%d rounds: the reservation was let go before the use was recorded in %d, and the credential was deleted in %d", n, gap, lost)
	if gap+lost > 0 {
		t.Fail()
	}
}

// Another process finds no moment between a reservation and its start to delete in.
func TestDeleteInTheGap(t *testing.T) {
	w := startWhole(t)
	a, b := w.peer(t, verify.Config{}), w.peer(t, verify.Config{})
	for i := range 40 {
		c, f := fmt.Sprintf("c%d", i), fmt.Sprintf("f%d", i)
		a.cred(t, c)
		bustest.Must(a.do("", "flow.bind", bindBody(f, "10m", c)))(t)
		b.sync(t)
		var released atomic.Bool
		var deleted error
		tried := false
		hook := func(s events.StreamID, evs []events.Event) error {
			switch e := evs[0].(type) {
			case events.CredentialReleased:
				released.Store(true)
			case events.CredentialUsed:
				if e.Active && released.Load() && !tried {
					tried = true
					_, deleted = b.do("", "credential.delete", fmt.Sprintf(`{"id":%q}`, c))
				}
			}
			return nil
		}
		a.hook.before.Store(&hook)
		started := a.svc.Flows.ObserveFlow(t.Context(), svc.Call{Tenant: "default", Principal: a.admin, Via: "nats"}, flow.Event{
			Change: events.FlowWasStarted, ID: f, Revision: 1, Steps: []events.FlowStep{{ID: "s0", Component: "sheets", Credential: c}},
		})
		a.hook.before.Store(nil)
		if tried && deleted == nil {
			t.Fatalf("round %d: reserved for 10 minutes, started, and deleted in between; the start says %v", i, started)
		}
	}
}

// The same bind on two processes: the one that comes late takes nothing from the other.
func TestSameBindTwice(t *testing.T) {
	w := startWhole(t)
	a, b := w.peer(t, verify.Config{}), w.peer(t, verify.Config{})
	a.cred(t, "c1")
	b.sync(t)
	at, on := make(chan struct{}), make(chan struct{})
	var once sync.Once
	hook := func(s events.StreamID, evs []events.Event) error {
		if _, is := evs[0].(events.FlowBound); is {
			once.Do(func() { close(at); <-on })
		}
		return nil
	}
	a.hook.before.Store(&hook)
	first := make(chan error, 1)
	go func() { _, err := a.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1")); first <- err }()
	<-at
	done := bustest.Must(b.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1")))(t)
	a.sync(t)
	close(on)
	t.Logf("b is answered %+v; a is answered %v", done, <-first)
	if _, err := b.do("", "credential.delete", `{"id":"c1"}`); err == nil {
		t.Error("the credential of an acknowledged reservation that stands was deleted")
	}
}

// Nor when the engine tells of the flow in between.
func TestSameBindTwiceFlowTold(t *testing.T) {
	w := startWhole(t)
	a, b := w.peer(t, verify.Config{}), w.peer(t, verify.Config{})
	a.cred(t, "c1")
	a.cred(t, "c2")
	b.sync(t)
	var done svc.Done
	var once sync.Once
	hook := func(s events.StreamID, evs []events.Event) error {
		switch evs[0].(type) {
		case events.CredentialUsed:
			if s.ID == "c2" { // between two reservations the engine tells of the flow
				bustest.OK(t, b.svc.Flows.ObserveFlow(t.Context(), svc.Call{Tenant: "default", Principal: a.admin, Via: "nats"}, flow.Event{
					Change: events.FlowWasCreated, ID: "f1", Revision: 1, Steps: []events.FlowStep{},
				}))
				a.sync(t)
			}
		case events.FlowBound: // a stands still, its caller asks b
			once.Do(func() {
				b.sync(t)
				done = bustest.Must(b.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1", "c2")))(t)
				a.sync(t)
			})
		}
		return nil
	}
	a.hook.before.Store(&hook)
	late, err := a.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1", "c2"))
	t.Logf("b is answered %+v; a %+v, %v", done, late, err)
	if _, err := b.do("", "credential.delete", `{"id":"c1"}`); err == nil {
		t.Error("c1, of an acknowledged reservation that stands, was deleted")
	}
}

// A bind that is repeated after a crash holds as long as it says.
func TestBindRepeatedLater(t *testing.T) {
	w := startWhole(t)
	p := w.peer(t, verify.Config{})
	p.cred(t, "c1")
	crash := func(s events.StreamID, evs []events.Event) error {
		if _, is := evs[0].(events.FlowBound); is {
			return events.ErrUnknownOutcome
		}
		return nil
	}
	p.hook.before.Store(&crash)
	_, err := p.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1"))
	t.Log("first:", err)
	p.hook.before.Store(nil)
	p.skew.Store(int64(9*time.Minute + 50*time.Second))
	done := bustest.Must(p.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1")))(t)
	t.Log("again: reserved until", time.Until(done.Until))
	p.skew.Store(int64(10*time.Minute + time.Second))
	p.sync(t)
	bustest.OK(t, p.svc.Flows.ReconcileFlows(t.Context()))
	if _, err := p.do("", "credential.delete", `{"id":"c1"}`); err == nil {
		t.Errorf("deleted %v before the reservation was said to end", time.Until(done.Until)-time.Duration(p.skew.Load()))
	}
}

// Two binds of one flow at one time leave one of them, whole.
func TestTwoBindsOfOneFlow(t *testing.T) {
	w := startWhole(t)
	p := w.peer(t, verify.Config{})
	bad := 0
	for i := range 40 {
		c1, c2, f := fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i), fmt.Sprintf("f%d", i)
		p.cred(t, c1)
		p.cred(t, c2)
		var both sync.WaitGroup
		var d1, d2 svc.Done
		var e1, e2 error
		both.Go(func() { d1, e1 = p.do("", "flow.bind", bindBody(f, "2s", c1, c2)) })
		both.Go(func() { d2, e2 = p.do("", "flow.bind", bindBody(f, "24h", c1, c2)) })
		both.Wait()
		bustest.OK(t, errors.Join(e1, e2))
		st := bustest.Must(aggregates.Flow.Fresh(t.Context(), p.log, aggregates.Flow.Stream("default", f)))(t)
		for _, c := range []string{c1, c2} {
			cs := bustest.Must(aggregates.Credential.Fresh(t.Context(), p.log, aggregates.Credential.Stream("default", c)))(t)
			u, _ := cs.Value.Uses.Of(f)
			if u.Binding != st.Value.Binding.ID {
				bad++
			}
		}
		_, _ = d1, d2
	}
	if bad > 0 {
		t.Errorf("%d credentials are not held by the reservation that stands", bad)
	}
}

// A release that carries a command id gives back what has changed since.
func TestNamedRelease(t *testing.T) {
	w := startWhole(t)
	p := w.peer(t, verify.Config{})
	for i, id := range []string{"", "cmd-release"} {
		c, f := fmt.Sprint("c", i), fmt.Sprint("f", i)
		p.cred(t, c)
		bustest.Must(p.do("", "flow.bind", bindBody(f, "24h", c)))(t)
		bustest.Must(p.do("", "credential.rename", fmt.Sprintf(`{"id":%q,"name":"other"}`, c)))(t)
		done := bustest.Must(p.do(id, "flow.release", fmt.Sprintf(`{"flow":%q}`, f)))(t)
		if _, err := p.do("", "credential.delete", fmt.Sprintf(`{"id":%q}`, c)); err != nil {
			t.Errorf("released (command id %q, %+v), and yet: %v", id, done, err)
		}
	}
}

// A refused bind that gave something back is refused again when it is repeated.
func TestRefusedBindRepeated(t *testing.T) {
	w := startWhole(t)
	a, b := w.peer(t, verify.Config{}), w.peer(t, verify.Config{})
	a.cred(t, "c1")
	a.cred(t, "c2")
	b.sync(t)
	hook := func(s events.StreamID, evs []events.Event) error {
		if _, is := evs[0].(events.CredentialUsed); is && s.ID == "c1" {
			bustest.Must(b.do("", "credential.delete", `{"id":"c2"}`))(t)
		}
		return nil
	}
	a.hook.before.Store(&hook)
	_, err := a.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1", "c2"))
	a.hook.before.Store(nil)
	t.Log("first:", err)
	if err == nil {
		t.Fatal("bound")
	}
	for i, p := range []*peer{a, b} {
		p.sync(t)
		if done, err := p.do("cmd-1", "flow.bind", bindBody("f1", "10m", "c1", "c2")); err == nil {
			t.Errorf("process %d: the refused command, repeated, is answered as obeyed: %+v", i, done)
		}
	}
}

// A release is answered alike when it is repeated, but for the sequence.
func TestReleaseRepeated(t *testing.T) {
	w := startWhole(t)
	p := w.peer(t, verify.Config{})
	p.cred(t, "c1")
	bustest.Must(p.do("", "flow.bind", bindBody("f1", "10m", "c1")))(t)
	first := bustest.Must(p.do("cmd-1", "flow.release", `{"flow":"f1"}`))(t)
	p.sync(t)
	again := bustest.Must(p.do("cmd-1", "flow.release", `{"flow":"f1"}`))(t)
	if first.ID != again.ID || first.Binding != again.Binding {
		t.Errorf("first %+v\nagain %+v", first, again)
	}
}

// Whoever sees sealed keys cannot have them opened for a component of his own.
func TestSealedKeysElsewhere(t *testing.T) {
	w := startWhole(t)
	got := make(chan string, 1)
	evil := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.Header.Get("X") }))
	defer evil.Close()
	p := w.peer(t, verify.Config{AllowPrivate: true})
	w.petstore()
	w.serveIntake()
	js := bustest.Must(jetstream.New(w.client(w.key)))(t)
	sealedText := w.sealed("default", "credential.create", "c1", "petstroe", `{"apiKey":"the-secret-of-another"}`)
	// the command fails for good, and lies in the dead-letter queue, sealed
	bustest.Must(js.PublishMsg(t.Context(), queuedCommand("default", "credential.create", "c1", fmt.Sprintf(`{"component":"petstroe","keys_sealed":%q}`, sealedText))))(t)
	w.read(edge.Commands)
	list := w.poisoned("default", 1)
	other := w.issue(permission.Administrator, "default") // another key of the tenant, without reveal or resolve
	who := bustest.Must(w.svc.Access.Authenticate(t.Context(), other, netip.Addr{}))(t)
	p.sync(t)
	as := func(id, command, body string) (any, error) {
		return p.svc.Serve(t.Context(), svc.Call{Tenant: "default", Principal: who, Via: "http", CommandID: id}, command, []byte(body))
	}
	entry := bustest.Must(as("", "queue.get", fmt.Sprintf(`{"id":%q}`, list[0].ID)))(t).(admin.DeadLetter)
	var seen struct {
		KeysSealed string `json:"keys_sealed"`
	}
	bustest.OK(t, json.Unmarshal(entry.Content, &seen))
	bustest.Must(as("", "component.register", fmt.Sprintf(`{"id":"mine","descriptor":{"title":"m","credentials":{"fields":{"apiKey":{"viewClass":"TextFieldView"}}},"hosts":["127.0.0.1"],"verification":{"http":{"method":"GET","url":%q,"headers":{"X":"{{apiKey}}"},"expect":{"status":[200]}}}}}`, evil.URL)))(t)
	_, err := as(entry.CommandID, "credential.create", fmt.Sprintf(`{"component":"mine","keys_sealed":%q}`, seen.KeysSealed))
	select {
	case s := <-got:
		t.Errorf("a host of the other's choice was sent %q (%v)", s, err)
	default:
		t.Log("nothing was sent:", err)
	}
}
