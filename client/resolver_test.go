package client_test

import (
	"context"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

// resolveSubject is where the tenant's questions come in.
const resolveSubject = "credstream.query.acme.credential.resolve"

// giver answers credential.resolve as the service does, with as many versions as it
// was asked times, so that a test sees which answer it has.
type giver struct {
	t       *testing.T
	mu      sync.Mutex
	asked   []string // id, flow and step of each question
	life    time.Duration
	refuse  *fault.Error // in place of an answer
	forge   func(answer, info map[string]any)
	waiting func() // called before each answer
}

func (g *giver) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.asked)
}

func (g *giver) answer(question []byte) ([]byte, *fault.Error) {
	var in struct {
		ID, Flow, Step string
		PublicKey      string `json:"public_key"`
		Cleartext      bool
	}
	if err := json.Unmarshal(question, &in); err != nil {
		g.t.Error(err)
	}
	g.mu.Lock()
	g.asked = append(g.asked, strings.Trim(fmt.Sprint(in.ID, " ", in.Flow, " ", in.Step), " "))
	version, waiting, life, refuse, forge := len(g.asked), g.waiting, g.life, g.refuse, g.forge
	g.mu.Unlock()
	if waiting != nil {
		waiting()
	}
	if refuse != nil {
		return nil, refuse
	}
	if life == 0 {
		life = 10 * time.Minute
	}
	expires := time.Now().Add(life).UTC().Truncate(time.Second).Format(time.RFC3339)
	answer := map[string]any{"lease": fmt.Sprint("lease-", version), "expires": expires, "version": version, "hosts": []string{"api.example.org"}}
	keys := fmt.Sprintf(`{"apiKey":"%s","n":%d,"oauth":{"access_token":"a"}}`, canary, version)
	if in.Cleartext {
		answer["keys"] = json.RawMessage(keys)
	} else {
		info := map[string]any{"tenant": "acme", "id": in.ID, "lease": answer["lease"], "version": version, "expires": expires}
		if forge != nil {
			forge(answer, info)
		}
		raw, err := nkeys.Decode(nkeys.PrefixByteCurve, []byte(in.PublicKey))
		if err != nil {
			g.t.Error(err)
		}
		public, err := hpke.DHKEM(ecdh.X25519()).NewPublicKey(raw)
		if err != nil {
			g.t.Error(err)
		}
		lines := fmt.Sprintf("credstream/resolved/1\n%v\n%v\n%v\n%v\n%v", info["tenant"], info["id"], info["lease"], info["version"], info["expires"])
		sealed, err := hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), []byte(lines), []byte(`{"keys":`+keys+`}`))
		if err != nil {
			g.t.Error(err)
		}
		answer["sealed"] = base64.RawURLEncoding.EncodeToString(sealed)
	}
	b, err := json.Marshal(answer)
	if err != nil {
		g.t.Error(err)
	}
	return b, nil
}

// firstOnly does it at the first call; later calls do not wait for it.
func firstOnly(do func()) func() {
	var called atomic.Bool
	return func() {
		if called.CompareAndSwap(false, true) {
			do()
		}
	}
}

// give has the bus answer credential.resolve.
func (b *bus) give(g *giver) *giver {
	b.t.Helper()
	g.t = b.t
	_, err := b.nc.Subscribe(resolveSubject, func(m *nats.Msg) {
		go func() { // a slow answer holds up no other
			data, refused := g.answer(m.Data)
			answer := &nats.Msg{Data: data}
			if refused != nil {
				data, err := json.Marshal(refused.Problem())
				if err != nil {
					b.t.Error(err)
				}
				answer = &nats.Msg{Data: data, Header: nats.Header{"Nats-Service-Error-Code": {fmt.Sprint(refused.Kind.Status())}}}
			}
			_ = m.RespondMsg(answer) // fails when the test has stopped the server
		}()
	})
	if err == nil {
		err = b.nc.Flush()
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return g
}

// say tells of an event of a credential on the feed.
func (b *bus) say(what, id string) {
	b.t.Helper()
	m := nats.NewMsg("credstream.events.acme.credential.x")
	for name, value := range map[string]string{
		"specversion": "1.0", "id": "e", "type": "credstream.credential." + what + ".v1", "source": "/credstream/acme",
		"subject": "credential." + url.PathEscape(id), "time": "2026-01-02T03:04:05Z", "logseq": "1", "logindex": "0",
	} {
		m.Header["ce-"+name] = []string{value}
	}
	if err := b.nc.PublishMsg(m); err != nil {
		b.t.Error(err)
	}
	if err := b.nc.Flush(); err != nil {
		b.t.Error(err)
	}
}

// get resolves with a test's patience.
func get(t *testing.T, r *client.Resolver, id string) client.Resolved {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	v, err := r.Resolve(ctx, id, client.ResolveOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// until waits for what comes by itself.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// keeps waits until the resolver keeps what it gets, and returns what it has of id.
func keeps(t *testing.T, g *giver, r *client.Resolver, id string) client.Resolved {
	t.Helper()
	var v client.Resolved
	until(t, id+" is kept", func() bool {
		v = get(t, r, id)
		n := g.count()
		return get(t, r, id).Lease == v.Lease && g.count() == n
	})
	return v
}

func newResolver(t *testing.T, make func() (*client.Resolver, error)) *client.Resolver {
	t.Helper()
	r, err := make()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// An answer opens with the key that it was asked for, and as the answer to that
// question alone.
func TestResolve(t *testing.T) {
	b := newBus(t)
	g := b.give(&giver{})
	c := b.dial("acme")
	key, err := client.NewResolveKey()
	if err != nil {
		t.Fatal(err)
	}
	if p := key.Public(); len(p) != 56 || p[0] != 'X' {
		t.Errorf("the public key is %q", p)
	}
	got, err := c.Resolve(t.Context(), key, "c1", client.ResolveOptions{Flow: "f", Step: "s"})
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != "c1" || got.Lease != "lease-1" || got.Version != 1 || fmt.Sprint(got.Hosts) != "[api.example.org]" || time.Until(got.Expires) < 9*time.Minute {
		t.Errorf("resolved %+v", got)
	}
	if d := cmp.Diff([]string{"c1 f s"}, g.asked); d != "" {
		t.Error(d)
	}
	text, ok := got.Keys.Text("apiKey")
	n, isNumber := got.Keys.Text("n")
	_, isText := got.Keys.Text("oauth")
	_, there := got.Keys.Text("absent")
	if !ok || text != canary || !isNumber || n != "1" || isText || there {
		t.Errorf("the values read %q %v, %q %v, %v, %v", text, ok, n, isNumber, isText, there)
	}
	if d := cmp.Diff([]string{"apiKey", "n", "oauth"}, got.Keys.Names()); d != "" {
		t.Error(d)
	}
	if s := string(got.Keys.Reveal()); s != `{"apiKey":"`+canary+`","n":1,"oauth":{"access_token":"a"}}` {
		t.Errorf("revealed %s", s)
	}
	var out strings.Builder
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "got", got, "keys", got.Keys, "key", key)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		fmt.Fprintf(&out, format+format, got, key)
	}
	printed, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(printed)
	if strings.Contains(out.String(), canary) || strings.Contains(out.String(), fmt.Sprintf("%x", canary)) {
		t.Error("a value was printed")
	}
	for member, forged := range map[string]any{"tenant": "ajax", "id": "c2", "lease": "other", "version": 999, "expires": "2030-01-01T00:00:00Z"} {
		g.mu.Lock()
		g.forge = func(_, info map[string]any) { info[member] = forged }
		g.mu.Unlock()
		if _, err := c.Resolve(t.Context(), key, "c1", client.ResolveOptions{}); !errors.Is(err, client.ErrNotForUs) {
			t.Errorf("sealed for another %s: %v", member, err)
		}
		if member == "tenant" || member == "id" {
			continue
		}
		g.mu.Lock()
		g.forge = func(answer, _ map[string]any) { answer[member] = forged }
		g.mu.Unlock()
		if _, err := c.Resolve(t.Context(), key, "c1", client.ResolveOptions{}); !errors.Is(err, client.ErrNotForUs) {
			t.Errorf("another %s in the answer: %v", member, err)
		}
	}
	g.mu.Lock()
	g.forge = nil
	g.mu.Unlock()
	clearly, err := c.ResolveCleartext(t.Context(), "c1", client.ResolveOptions{})
	if v, _ := clearly.Keys.Text("apiKey"); err != nil || v != canary {
		t.Errorf("clear text: %q, %v", v, err)
	}
}

// A resolver asks once for what it may keep, and again as soon as the feed says
// that the values have changed.
func TestResolverFollowsTheFeed(t *testing.T) {
	b := newBus(t)
	g := b.give(&giver{})
	r := newResolver(t, b.dial("acme").NewResolver)
	const odd = "odd id é"
	keeps(t, g, r, "c1")
	other := keeps(t, g, r, odd)
	for _, what := range []string{
		"deleted", "keys_replaced", "reverted", "authorized", "reauthorization_required", "refreshed", "recovered", "tokens_revoked", "of_a_later_version",
	} {
		before := keeps(t, g, r, "c1")
		for _, harmless := range []string{"renamed", "verified", "used", "released", "revealed", "vpn_agent_set", "refresh_started", "refresh_failed"} {
			b.say(harmless, odd)
		}
		b.say(what, "c1")
		until(t, what+" has the values dropped", func() bool { return get(t, r, "c1").Lease != before.Lease })
	}
	if now := get(t, r, odd); now.Lease != other.Lease {
		t.Error("an event that changes no values has them dropped")
	}
	b.say("deleted", odd)
	until(t, "an id that is not plain is dropped", func() bool { return get(t, r, odd).Lease != other.Lease })
	n := g.count()
	for i := range 100 {
		if _, err := r.Resolve(t.Context(), odd, client.ResolveOptions{Flow: "f", Step: fmt.Sprint(i % 2)}); err != nil {
			t.Fatal(err)
		}
	}
	if asked := g.count() - n; asked != 2 {
		t.Errorf("two purposes were asked for %d times", asked)
	}
}

// What comes in after an event was asked for before it, perhaps: it is handed out,
// as the service gave it, and not kept.
func TestResolverKeepsNothingOld(t *testing.T) {
	b := newBus(t)
	g := b.give(&giver{})
	r := newResolver(t, b.dial("acme").NewResolver)
	marker := keeps(t, g, r, "marker")
	asked, let := make(chan struct{}), make(chan struct{})
	g.mu.Lock()
	g.waiting = firstOnly(func() { close(asked); <-let })
	g.mu.Unlock()
	answered := make(chan client.Resolved, 1)
	go func() { answered <- get(t, r, "c1") }()
	<-asked
	b.say("keys_replaced", "c1")
	b.say("deleted", "marker") // behind it
	until(t, "the events have come", func() bool { return get(t, r, "marker").Lease != marker.Lease })
	close(let)
	old := <-answered
	if now := get(t, r, "c1"); now.Lease == old.Lease {
		t.Error("values of before the event are kept")
	}
}

// Many callers at once are one question; their own time is theirs.
func TestResolverAsksOnce(t *testing.T) {
	b := newBus(t)
	g := b.give(&giver{})
	r := newResolver(t, b.dial("acme").NewResolver)
	keeps(t, g, r, "marker")
	n := g.count()
	asked, let := make(chan struct{}), make(chan struct{})
	g.mu.Lock()
	g.waiting = firstOnly(func() { close(asked); <-let })
	g.mu.Unlock()
	impatient, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() {
		_, err := r.Resolve(impatient, "c1", client.ResolveOptions{})
		first <- err
	}()
	<-asked
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() { get(t, r, "c1") })
	}
	cancel()
	if err := <-first; !errors.Is(err, fault.ErrTimeout) {
		t.Errorf("who has gone is told %v", err)
	}
	close(let)
	all.Wait()
	if asked := g.count() - n; asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// While the feed is not heard nothing is kept, and what was kept is not served.
func TestResolverWithoutTheFeed(t *testing.T) {
	b := newBus(t)
	g := b.give(&giver{})
	r := newResolver(t, b.dial("acme").NewResolver)
	before := keeps(t, g, r, "c1")
	b.stop()
	until(t, "the loss is noticed", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err := r.Resolve(ctx, "c1", client.ResolveOptions{})
		return err != nil
	})
	b.start()
	b.give(g)
	if now := get(t, r, "c1"); now.Lease == before.Lease {
		t.Error("what was kept before the loss is served after it")
	}
	keeps(t, g, r, "c1")
}

// Values are kept within their lease and no longer; a refusal is not kept.
func TestResolverLeases(t *testing.T) {
	b := newBus(t)
	g := b.give(&giver{})
	r := newResolver(t, b.dial("acme").NewResolver)
	keeps(t, g, r, "marker")
	g.mu.Lock()
	g.life = time.Nanosecond // over before it comes
	g.mu.Unlock()
	if first := get(t, r, "short"); first.Lease == get(t, r, "short").Lease {
		t.Error("values whose lease has ended are kept")
	}
	gone := fault.New(fault.NotFound, "credential_not_found", "Credential not found.")
	g.mu.Lock()
	g.refuse = gone
	g.mu.Unlock()
	for range 2 {
		n := g.count()
		if _, err := r.Resolve(t.Context(), "gone", client.ResolveOptions{}); !errors.Is(err, gone) || g.count() != n+1 {
			t.Errorf("a refusal: %v, after %d questions", err, g.count()-n)
		}
	}
	r.Close()
	if _, err := r.Resolve(t.Context(), "marker", client.ResolveOptions{}); !errors.Is(err, client.ErrResolverClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Over HTTP it asks for changes.
func TestResolverOverHTTP(t *testing.T) {
	g := &giver{t: t}
	var mu sync.Mutex
	var pending []map[string]any
	end, failing := 7, false
	s, c := newServer(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		query := map[string]any{}
		for name, values := range r.URL.Query() {
			query[name] = values[0]
		}
		question, err := json.Marshal(query)
		if err != nil {
			t.Error(err)
		}
		if strings.HasSuffix(r.URL.Path, "/credential.resolve") {
			answer, _ := g.answer(question)
			_, _ = w.Write(answer)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if failing {
			problem(w, fault.New(fault.Denied, "permission_denied", "no"))
			return
		}
		page := map[string]any{"events": []any{}, "end": end}
		if query["from"] == fmt.Sprint(end) && pending != nil {
			page["events"], pending = pending, nil
		}
		answer, err := json.Marshal(page)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(answer)
	})
	r := newResolver(t, c.NewResolver)
	before := keeps(t, g, r, "c1")
	other := keeps(t, g, r, "c2")
	mu.Lock()
	end++
	pending = []map[string]any{{
		"specversion": "1.0", "id": "e", "type": "credstream.credential.deleted.v1", "subject": "credential.c1", "time": "2026-01-02T03:04:05Z", "logseq": end,
	}}
	mu.Unlock()
	until(t, "the event has the values dropped", func() bool { return get(t, r, "c1").Lease != before.Lease })
	if get(t, r, "c2").Lease != other.Lease {
		t.Error("an event drops the values of another credential")
	}
	mu.Lock()
	failing = true
	mu.Unlock()
	until(t, "nothing is kept without changes", func() bool {
		first := get(t, r, "c2")
		return first.Lease != get(t, r, "c2").Lease
	})
	_ = s
}
