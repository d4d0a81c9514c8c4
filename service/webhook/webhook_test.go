package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/stage"
	"github.com/credstream/credstream/service/webhook"
	"github.com/credstream/credstream/verify"
)

// received is one request that a receiver accepted.
type received struct {
	header http.Header
	body   []byte
}

// receiver is an HTTP server that keeps what it accepts.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	accepted []received
	tries    int
	answer   func(r received) int // status; nil accepts all
}

func listen(t *testing.T) *receiver {
	t.Helper()
	r := &receiver{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		got := received{req.Header.Clone(), body}
		r.mu.Lock()
		r.tries++
		answer := r.answer
		r.mu.Unlock()
		status := http.StatusNoContent
		if answer != nil {
			status = answer(got)
		}
		if status == http.StatusNoContent {
			r.mu.Lock()
			r.accepted = append(r.accepted, got)
			r.mu.Unlock()
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) set(answer func(received) int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *receiver) all() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.accepted)
}

func (r *receiver) tried() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tries
}

// signed reports whether one of the signatures is that of the secret, computed as Standard
// Webhooks says.
func (m received) signed(t *testing.T, secret string) bool {
	t.Helper()
	key := stage.Must(base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_")))(t)
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", m.header.Get("webhook-id"), m.header.Get("webhook-timestamp"), m.body)
	return slices.Contains(strings.Split(m.header.Get("webhook-signature"), " "), "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// event is what a receiver reads in structured mode.
type event struct {
	SpecVersion, ID, Type, Source, Subject string
	Data                                   json.RawMessage
}

func (m received) event(t *testing.T) (e event) {
	t.Helper()
	stage.OK(t, json.Unmarshal(m.body, &e))
	return e
}

func start(t *testing.T) *stage.Stage {
	t.Helper()
	return stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.WebhookRetry = 20 * time.Millisecond })
}

// deliver runs the deliverer until stop is called, or the test ends.
func deliver(t *testing.T, s *stage.Stage) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Service.Webhooks.RunDeliveries(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

func ask[T any](t *testing.T, s *stage.Stage, tenant, route, body string) T {
	t.Helper()
	return stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: tenant, Principal: s.Admin, Via: "http"}, route, []byte(body)))(t).(T)
}

func define(t *testing.T, s *stage.Stage, tenant, id, url, more string) (secret string) {
	t.Helper()
	made := ask[webhook.Signing](t, s, tenant, "webhook.define", fmt.Sprintf(`{"id":%q,"url":%q%s}`, id, url, more))
	s.CaughtUp()
	return made.Secret
}

func rename(s *stage.Stage, tenant, id, name string) {
	s.Do(tenant, "credential.rename", fmt.Sprintf(`{"id":%q,"name":%q}`, id, name))
}

// names are the names that renamed events told of a credential, in order of their first arrival.
func names(t *testing.T, all []received, id string) (names []string) {
	t.Helper()
	seen := map[string]bool{}
	for _, m := range all {
		e := m.event(t)
		var data struct{ Name string }
		stage.OK(t, json.Unmarshal(e.Data, &data))
		if e.Type == "credstream.credential.renamed.v1" && e.Subject == "credential."+id && !seen[e.ID] {
			seen[e.ID] = true
			names = append(names, data.Name)
		}
	}
	return names
}

// A receiver gets what the feed publishes, signed, by type and component; a rotation signs with
// both secrets until the previous one ends.
func TestDelivery(t *testing.T) {
	s := start(t)
	deliver(t, s)
	s.Do("default", "component.register", `{"id":"other","descriptor":{"title":"Other","credentials":{"fields":{"apiKey":{"viewClass":"PasswordFieldView"}}}}}`)
	all, some, raw := listen(t), listen(t), listen(t)
	secret := define(t, s, "default", "all", all.URL, "")
	define(t, s, "default", "some", some.URL, `,"types":["credential.*"],"component":"plain"`)
	define(t, s, "default", "raw", raw.URL, `,"types":["credential.renamed"],"mode":"binary"`)
	const canary = "canary-webhook-value"
	id := s.Create(canary)
	other := s.Do("default", "credential.create", `{"component":"other","keys":{"apiKey":"k"}}`).ID
	rename(s, "default", id, "Ünïcode \"name\"")
	rename(s, "default", other, "Other")
	s.Do("default", "flow.bind", fmt.Sprintf(`{"flow":"f","steps":[{"id":"s","component":"plain","credential":%q}]}`, id))
	var want []projections.Message
	for seq := uint64(1); seq <= stage.Must(s.Store.End(t.Context()))(t); seq++ {
		for _, rec := range stage.Must(s.Store.Commit(t.Context(), seq))(t) {
			if m, ok := projections.Public(rec); ok && m.Audience == events.Changes && slices.ContainsFunc([]string{id, other, "f"}, func(of string) bool { return strings.HasSuffix(m.EventSubject, "."+of) }) {
				want = append(want, m)
			}
		}
	}
	bustest.Eventually(t, "all events to be delivered", func() bool { return len(all.all()) >= len(want) })
	got := map[string]received{}
	for _, m := range all.all() {
		if m.header.Get("content-type") != "application/cloudevents+json" || !m.signed(t, secret) || m.signed(t, "whsec_c29tZXRoaW5n") {
			t.Errorf("content type %q, signature %q", m.header.Get("content-type"), m.header.Get("webhook-signature"))
		}
		if strings.Contains(string(m.body), canary) {
			t.Error("an event tells a secret")
		}
		got[m.header.Get("webhook-id")] = m
	}
	for _, m := range want {
		e := got[m.ID].event(t)
		if e.SpecVersion != "1.0" || e.ID != m.ID || e.Type != m.Type || e.Source != m.Source || e.Subject != m.EventSubject || string(e.Data) != string(m.Data) {
			t.Errorf("delivered %+v, published %+v", e, m)
		}
	}
	bustest.Eventually(t, "the renames in binary mode", func() bool { return len(raw.all()) == 2 })
	for _, m := range raw.all() {
		var data struct{ ID, Name string }
		stage.OK(t, json.Unmarshal(m.body, &data))
		if m.header.Get("ce-type") != "credstream.credential.renamed.v1" || m.header.Get("ce-specversion") != "1.0" || m.header.Get("content-type") != "application/json" ||
			m.header.Get("ce-id") != m.header.Get("webhook-id") || data.Name == "" || data.ID == "" {
			t.Errorf("binary mode: %v %s", m.header, m.body)
		}
	}
	bustest.Eventually(t, "the events of one component", func() bool { return len(names(t, some.all(), id)) == 1 })
	for _, m := range some.all() {
		if e := m.event(t); e.Subject != "credential."+id {
			t.Errorf("the webhook of a component sends %+v", e)
		}
	}

	rotated := ask[webhook.Signing](t, s, "default", "webhook.rotate-secret", `{"id":"all"}`).Secret
	rename(s, "default", id, "both")
	last := func() received { list := all.all(); return list[len(list)-1] }
	bustest.Eventually(t, "an event after the rotation", func() bool { return len(names(t, all.all(), id)) == 2 })
	if m := last(); !m.signed(t, secret) || !m.signed(t, rotated) {
		t.Errorf("during a rotation: %q", m.header.Get("webhook-signature"))
	}
	s.Do("default", "webhook.change", `{"id":"all","end_rotation":true}`)
	rename(s, "default", id, "one")
	bustest.Eventually(t, "an event after the end of the rotation", func() bool { return len(names(t, all.all(), id)) == 3 })
	if m := last(); m.signed(t, secret) || !m.signed(t, rotated) {
		t.Errorf("after a rotation: %q", m.header.Get("webhook-signature"))
	}
	if strings.Contains(s.Logs.String(), "webhook interrupted") {
		t.Errorf("a webhook was interrupted: %s", s.Logs.String())
	}
	for _, text := range []string{secret, rotated, strings.TrimPrefix(secret, "whsec_")} {
		if strings.Contains(s.Logs.String(), text) {
			t.Error("a signing secret is in the logs")
		}
		for seq := uint64(1); seq <= stage.Must(s.Store.End(t.Context()))(t); seq++ {
			for _, rec := range stage.Must(s.Store.Commit(t.Context(), seq))(t) {
				if strings.Contains(fmt.Sprintf("%+v", rec.Event), text) {
					t.Errorf("%T holds a signing secret", rec.Event)
				}
			}
		}
	}
}

// What fails is tried again, in order per credential; a receiver that hangs holds up neither
// another webhook nor another tenant.
func TestRetries(t *testing.T) {
	s := start(t)
	s.Do("default", "tenant.register", `{"id":"acme"}`)
	s.CaughtUp()
	deliver(t, s)
	flaky, slow := listen(t), listen(t)
	release := make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() { close(release) }))
	slow.set(func(received) int { <-release; return http.StatusNoContent })
	define(t, s, "acme", "slow", slow.URL, "")
	s.Do("acme", "component.register", `{"id":"theirs","descriptor":{"title":"T","credentials":{"fields":{"apiKey":{"viewClass":"PasswordFieldView"}}}}}`)
	define(t, s, "default", "flaky", flaky.URL, `,"types":["credential.renamed"]`)
	n := 0
	flaky.set(func(received) int {
		flaky.mu.Lock()
		defer flaky.mu.Unlock()
		if n++; n%3 != 0 {
			return http.StatusServiceUnavailable
		}
		return http.StatusNoContent
	})
	a, b := s.Create("a"), s.Create("b")
	var want []string
	for i := range 6 {
		want = append(want, fmt.Sprint("name ", i))
		rename(s, "default", a, want[i])
		rename(s, "default", b, want[i])
	}
	bustest.Eventually(t, "the events of both credentials", func() bool {
		return len(names(t, flaky.all(), a)) == len(want) && len(names(t, flaky.all(), b)) == len(want)
	})
	for _, id := range []string{a, b} {
		if got := names(t, flaky.all(), id); !slices.Equal(got, want) {
			t.Errorf("the names of %s arrive as %v", id, got)
		}
	}
	if slow.tried() == 0 || len(slow.all()) > 0 {
		t.Errorf("the slow receiver was asked %d times", slow.tried())
	}
}

// A deliverer that ends between a store and its answer leaves the event to the next one, which
// loses nothing and repeats only that.
func TestRestart(t *testing.T) {
	s := start(t)
	stop := deliver(t, s)
	r := listen(t)
	define(t, s, "default", "w", r.URL, `,"types":["credential.renamed"]`)
	id := s.Create("k")
	rename(s, "default", id, "first")
	bustest.Eventually(t, "the first event", func() bool { return len(r.all()) == 1 })
	down := make(chan struct{})
	r.set(func(received) int { <-down; return http.StatusServiceUnavailable })
	t.Cleanup(sync.OnceFunc(func() { close(down) }))
	rename(s, "default", id, "second")
	bustest.Eventually(t, "the second attempt", func() bool { return r.tried() == 2 })
	stop()
	rename(s, "default", id, "third")
	r.set(nil)
	deliver(t, s)
	bustest.Eventually(t, "the events after the restart", func() bool { return len(r.all()) >= 3 })
	if got := names(t, r.all(), id); !slices.Equal(got, []string{"first", "second", "third"}) || len(r.all()) != 3 {
		t.Errorf("%d deliveries, of %v", len(r.all()), got)
	}
}

// A receiver that wants no more disables its webhook, which continues there when it is enabled;
// after 24 hours a delivery is a dead letter, which is sent again by hand.
func TestGoneAndDead(t *testing.T) {
	s := start(t)
	deliver(t, s)
	r := listen(t)
	define(t, s, "default", "w", r.URL, `,"types":["credential.renamed"]`)
	id := s.Create("k")
	r.set(func(received) int { return http.StatusGone })
	rename(s, "default", id, "gone")
	bustest.Eventually(t, "the webhook to be disabled", func() bool {
		s.CaughtUp()
		w := ask[webhook.Webhook](t, s, "default", "webhook.show", `{"id":"w"}`)
		return !w.Enabled && w.Reason == "gone"
	})
	tried := r.tried()
	rename(s, "default", id, "later")
	r.set(nil)
	s.Do("default", "webhook.change", `{"id":"w","enabled":true}`)
	bustest.Eventually(t, "both events", func() bool { return slices.Equal(names(t, r.all(), id), []string{"gone", "later"}) })
	if tried != 1 {
		t.Errorf("a receiver that is gone was asked %d times", tried)
	}

	r.set(func(received) int { return http.StatusBadRequest })
	rename(s, "default", id, "dead")
	list := func(status string) []webhook.Delivery {
		return ask[webhook.DeliveryList](t, s, "default", "webhook.deliveries", `{"id":"w","status":"`+status+`"}`).Deliveries
	}
	bustest.Eventually(t, "a pending delivery", func() bool { p := list("pending"); return len(p) == 1 && p[0].HTTP == 400 })
	s.Skew.Store(int64(25 * time.Hour))
	bustest.Eventually(t, "a dead letter", func() bool { return len(list("dead")) == 1 && len(list("pending")) == 0 })
	dead := list("dead")[0]
	if delivered := list("delivered"); len(delivered) != 2 || delivered[0].HTTP != 204 || dead.HTTP != 400 || dead.Type != "credential.renamed" {
		t.Errorf("deliveries %+v, dead %+v", delivered, dead)
	}
	again := fmt.Sprintf(`{"id":"w","event":%q}`, dead.Event)
	if sent := ask[webhook.Sent](t, s, "default", "webhook.redeliver", again); sent.Outcome != "failed" || len(list("dead")) != 1 {
		t.Errorf("a redelivery that is refused: %+v", sent)
	}
	r.set(nil)
	if sent := ask[webhook.Sent](t, s, "default", "webhook.redeliver", again); sent.Outcome != "delivered" || len(list("dead")) != 0 {
		t.Errorf("a redelivery: %+v", sent)
	}
	if got := names(t, r.all(), id); !slices.Equal(got, []string{"gone", "later", "dead"}) {
		t.Errorf("delivered in the end: %v", got)
	}
	if sent := ask[webhook.Sent](t, s, "default", "webhook.test", `{"id":"w"}`); sent.Outcome != "delivered" {
		t.Errorf("a test: %+v", sent)
	}

	// Deleted, it sends nothing more, and one of the same id begins anew.
	s.Do("default", "webhook.delete", `{"id":"w"}`)
	tried = r.tried()
	rename(s, "default", id, "unseen")
	secret := define(t, s, "default", "w", r.URL, `,"types":["credential.renamed"]`)
	rename(s, "default", id, "anew")
	bustest.Eventually(t, "the event of the new webhook", func() bool { return r.tried() > tried })
	if all := r.all(); !all[len(all)-1].signed(t, secret) || slices.Contains(names(t, all, id), "unseen") {
		t.Errorf("after a deletion: %v", names(t, all, id))
	}
	secrets := 0
	for entry, err := range s.Vault.All(t.Context(), 1) {
		stage.OK(t, err)
		if entry.Ref.Category == "webhook" {
			secrets++
		}
	}
	if secrets != 1 {
		t.Errorf("the vault keeps %d secrets of one webhook", secrets)
	}
}

// What is no webhook is refused by name, and nothing is sent to a private address.
func TestRefusals(t *testing.T) {
	s := stage.New(t)
	refused := map[string]string{
		`{"url":"https://h.example.org","types":["credential.created","credential.nothing"]}`: "webhook_type_unknown /types/1",
		`{"url":"https://h.example.org","types":["webhook.*"]}`:                               "webhook_type_unknown /types/0",
		`{"url":"https://h.example.org","types":["credential"]}`:                              "webhook_type_unknown /types/0",
		`{"url":"http://h.example.org"}`:                                                      "webhook_url_invalid /url",
		`{"url":"https://u:p@h.example.org"}`:                                                 "webhook_url_invalid /url",
		`{"url":"ftp://h.example.org"}`:                                                       "webhook_url_invalid /url",
		`{"url":"https:///x"}`:                                                                "webhook_url_invalid /url",
		`{"url":"https://h.example.org","mode":"batch"}`:                                      "webhook_mode_invalid /mode",
	}
	for _, body := range slices.Sorted(maps.Keys(refused)) {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "webhook.define", []byte(body))
		if got := stage.CodeOf(err) + " " + fault.Of(err).Pointer; got != refused[body] {
			t.Errorf("%s: %s, want %s", body, got, refused[body])
		}
	}
	define(t, s, "default", "w", "https://127.0.0.1:443", "")
	if sent := ask[webhook.Sent](t, s, "default", "webhook.test", `{"id":"w"}`); sent.Outcome != "failed" || !strings.Contains(sent.Says, "does not connect") {
		t.Errorf("a private address: %+v, want %s", sent, verify.OutcomeAddressDenied)
	}
	reader := s.Issue("default", `{"role":"AUDITOR"}`)
	for route, want := range map[string]string{"webhook.list": "", "webhook.deliveries": "", "webhook.delete": "permission_denied", "webhook.test": "permission_denied"} {
		body := `{"id":"w"}`
		if route == "webhook.list" {
			body = `{}`
		}
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: reader, Via: "http"}, route, []byte(body))
		if stage.CodeOf(err) != want {
			t.Errorf("%s as an auditor: %v", route, err)
		}
	}
}

// A receiver that refuses the events of one credential, however many, gets those of the others, and
// in the end all of it in order, also over a restart.
func TestOneRefusedCredentialHoldsNoOther(t *testing.T) {
	s := start(t)
	stop := deliver(t, s)
	r := listen(t)
	refused, other := s.Create("k"), s.Create("k")
	define(t, s, "default", "w", r.URL, `,"types":["credential.renamed"]`)
	r.set(func(m received) int {
		if strings.Contains(string(m.body), "credential."+refused) {
			return http.StatusInternalServerError
		}
		return http.StatusNoContent
	})
	var want []string
	for i := range 300 {
		want = append(want, fmt.Sprint("n", i))
		rename(s, "default", refused, want[i])
	}
	rename(s, "default", other, "first")
	bustest.Eventually(t, "the event of the other credential", func() bool { return len(names(t, r.all(), other)) == 1 })
	bustest.Eventually(t, "an attempt at the refused one", func() bool { return r.tried() > 1 })
	for _, outcome := range []string{"delivered", "failed"} {
		bustest.Eventually(t, "a counted attempt: "+outcome, func() bool {
			return gathered(t, s, `credstream_webhook_attempts_total{outcome="`+outcome+`"}`) >= 1
		})
	}
	if pending := gathered(t, s, "credstream_webhook_pending"); pending < 1 || pending > 8 {
		t.Errorf("%v pending", pending)
	}
	stop()
	rename(s, "default", refused, "while it was off")
	rename(s, "default", other, "second")
	deliver(t, s)
	bustest.Eventually(t, "another event of the other credential", func() bool { return len(names(t, r.all(), other)) == 2 })
	rename(s, "default", refused, "last")
	want = append(want, "while it was off", "last")
	r.set(nil)
	bustest.Eventually(t, "all events of the refused credential", func() bool { return len(names(t, r.all(), refused)) >= len(want) })
	if got := names(t, r.all(), refused); !slices.Equal(got, want) {
		t.Errorf("not in order: %v", got)
	}
}

// A receiver that asks to wait is not tried before.
func TestRetryAfter(t *testing.T) {
	s := start(t)
	var asked atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) == 1 {
			w.Header().Set("Retry-After", "2")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(server.Close)
	deliver(t, s)
	id := s.Create("k")
	define(t, s, "default", "w", server.URL, `,"types":["credential.renamed"]`)
	rename(s, "default", id, "x")
	bustest.Eventually(t, "the first attempt", func() bool { return asked.Load() == 1 })
	begin := time.Now()
	bustest.Eventually(t, "the second attempt", func() bool { return asked.Load() == 2 })
	if waited := time.Since(begin); waited < 1500*time.Millisecond {
		t.Errorf("the second attempt came after %v", waited)
	}
}

// gathered is the value of a metric of the service.
func gathered(t *testing.T, s *stage.Stage, name string) float64 {
	t.Helper()
	families := stage.Must(s.Metrics.Gather())(t)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			text := f.GetName()
			for _, l := range m.GetLabel() {
				text += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
			}
			if text == name {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// The previous secret signs until its time, and is erased then.
func TestRotationEndsByTime(t *testing.T) {
	s := start(t)
	deliver(t, s)
	r := listen(t)
	id := s.Create("k")
	first := define(t, s, "default", "w", r.URL, `,"types":["credential.renamed"]`)
	second := ask[webhook.Signing](t, s, "default", "webhook.rotate-secret", `{"id":"w","keep_previous":"1h"}`).Secret
	rename(s, "default", id, "both")
	bustest.Eventually(t, "an event during the rotation", func() bool { return len(r.all()) == 1 })
	if m := r.all()[0]; !m.signed(t, first) || !m.signed(t, second) {
		t.Errorf("during a rotation: %q", m.header.Get("webhook-signature"))
	}
	s.Skew.Store(int64(time.Hour + time.Minute))
	rename(s, "default", id, "one")
	bustest.Eventually(t, "an event after the rotation", func() bool { return len(r.all()) == 2 })
	if m := r.all()[1]; m.signed(t, first) || !m.signed(t, second) {
		t.Errorf("after a rotation: %q", m.header.Get("webhook-signature"))
	}
	bustest.Eventually(t, "the end of the rotation to be recorded", func() bool {
		s.CaughtUp()
		return ask[webhook.Webhook](t, s, "default", "webhook.show", `{"id":"w"}`).PreviousUntil.IsZero()
	})
}

// All webhooks that a tenant may have are served, and one more is refused.
func TestMostWebhooksOfATenant(t *testing.T) {
	s := start(t)
	const most = 100
	receivers := make([]*receiver, most)
	for i := range receivers {
		receivers[i] = listen(t)
		define(t, s, "default", fmt.Sprintf("w%d", i), receivers[i].URL, `,"types":["credential.renamed"]`)
	}
	s.CaughtUp()
	_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "webhook.define", []byte(`{"id":"more","url":"https://hooks.example.org/"}`))
	if stage.CodeOf(err) != "webhook_limit_reached" {
		t.Errorf("one more: %v", err)
	}
	deliver(t, s)
	id := s.Create("k")
	want := []string{"one", "two", "three"}
	for _, name := range want {
		rename(s, "default", id, name)
	}
	begun := time.Now()
	for i, r := range receivers {
		bustest.Eventually(t, fmt.Sprintf("webhook %d to be served", i), func() bool { return slices.Equal(names(t, r.all(), id), want) })
	}
	t.Logf("%d deliveries in %v", most*len(want), time.Since(begun))
}

// A list of deliveries has pages, in the order dead, pending, delivered.
func TestDeliveriesInPages(t *testing.T) {
	s := start(t)
	deliver(t, s)
	r := listen(t)
	define(t, s, "default", "w", r.URL, `,"types":["credential.renamed"]`)
	dead, pending, done := s.Create("a"), s.Create("b"), s.Create("c")
	all := func(body string) (list []string) {
		for after := ""; ; {
			page := ask[webhook.DeliveryList](t, s, "default", "webhook.deliveries", `{"id":"w","limit":2,"after":"`+after+`"`+body+`}`)
			if len(page.Deliveries) > 2 {
				t.Fatalf("a page of %d", len(page.Deliveries))
			}
			for _, d := range page.Deliveries {
				list = append(list, d.Status+" "+d.Subject)
			}
			if after = page.Next; after == "" {
				return list
			}
		}
	}
	r.set(func(got received) int {
		if strings.Contains(string(got.body), done) {
			return http.StatusNoContent
		}
		return http.StatusBadRequest
	})
	for range 3 {
		rename(s, "default", done, events.NewID())
	}
	rename(s, "default", dead, "one")
	bustest.Eventually(t, "a refused delivery", func() bool { return len(all(`,"status":"pending"`)) == 1 && len(all(`,"status":"delivered"`)) == 3 })
	s.Skew.Store(int64(25 * time.Hour))
	bustest.Eventually(t, "a dead letter", func() bool { return len(all(`,"status":"dead"`)) == 1 })
	rename(s, "default", pending, "one")
	bustest.Eventually(t, "a pending delivery", func() bool { return len(all(`,"status":"pending"`)) == 1 })
	want := []string{"dead credential." + dead, "pending credential." + pending}
	for range 3 {
		want = append(want, "delivered credential."+done)
	}
	if got := all(``); !slices.Equal(got, want) {
		t.Errorf("pages %v", got)
	}
	for _, after := range []string{"x", "1", "1.2", "01.2.3", "1.2.3 "} {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "webhook.deliveries", []byte(`{"id":"w","after":"`+after+`"}`))
		if stage.CodeOf(err) != "cursor_invalid" {
			t.Errorf("%q: %v", after, err)
		}
	}
}
