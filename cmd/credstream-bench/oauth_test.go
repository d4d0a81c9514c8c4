package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/client"
)

// The provider replaces a refresh token when it is used, and counts who sends it again.
func TestProvider(t *testing.T) {
	p, err := startProvider(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	renew := func(token string) (status int, answer map[string]any) {
		t.Helper()
		resp, err := http.PostForm(p.url+"/token", url.Values{"refresh_token": {token}})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer
	}
	first := p.grant(time.Hour)["refresh_token"].(string)
	status, answer := renew(first)
	second, _ := answer["refresh_token"].(string)
	if status != 200 || second == "" || second == first || answer["access_token"] == "" {
		t.Errorf("%d %v", status, answer)
	}
	if status, answer := renew(first); status != 400 || answer["error"] != "invalid_grant" {
		t.Errorf("the used token: %d %v", status, answer)
	}
	if asked, bad, _, _ := p.seen(); asked != 2 || bad != 1 {
		t.Errorf("%d requests, %d bad", asked, bad)
	}
	p.refuses.Store(true)
	if status, _ := renew(second); status != 400 {
		t.Errorf("refusing, it answers %d", status)
	}
	p.reset()
	if asked, _, first, _ := p.seen(); asked != 0 || !first.IsZero() {
		t.Errorf("after the reset: %d, %v", asked, first)
	}
}

// Only an answer with a lease, and with what was asked for, counts.
func TestGiven(t *testing.T) {
	p := &purpose{made: made{n: 7}}
	secret := string(appendSecret(nil, 7))
	for _, c := range []struct {
		answer  string
		clearly bool
		lease   string // "" where it does not count
	}{
		{`{"lease":"l1","sealed":"x"}`, false, "l1"},
		{`{"lease":"l2","keys":{"apiKey":"` + secret + `"}}`, true, "l2"},
		{`{"lease":"l3","keys":{"apiKey":"another"}}`, true, ""},
		{`{"lease":"l4","keys":{"apiKey":"` + secret + `"}}`, false, ""},
		{`{"sealed":"x"}`, false, ""},
		{`{"code":"permission_denied"}`, false, ""},
	} {
		lease, err := leaseOf(p, c.clearly, []byte(c.answer))
		if lease != c.lease || (err == nil) != (c.lease != "") {
			t.Errorf("%s: %q, %v", c.answer, lease, err)
		}
	}
}

// Every question of a flow engine that is to have a new lease names another flow.
func TestResolveRequest(t *testing.T) {
	key, err := client.NewResolveKey()
	if err != nil {
		t.Fatal(err)
	}
	e := &engineSite{sealTo: key}
	p := &purpose{made: made{tenant: "t01", id: "abc"}, engine: apiKey{"k", "t01"}}
	w := wireTo(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewEncoder(w).Encode([]any{r.URL.Path, r.URL.Query(), r.Header.Get("Authorization")})
	})
	for clearly, want := range map[bool]string{
		true:  `["/v1/tenants/t01/credential.resolve",{"cleartext":["true"],"flow":["f"],"id":["abc"],"step":["step_1"]},"Bearer k"]`,
		false: `["/v1/tenants/t01/credential.resolve",{"flow":["f"],"id":["abc"],"public_key":["` + key.Public() + `"],"step":["step_1"]},"Bearer k"]`,
	} {
		_, body, err := w.do(e.resolveRequest(nil, p, "f", clearly))
		if err != nil || string(body) != want+"\n" {
			t.Errorf("%s, %v; want %s", body, err, want)
		}
	}
}

// What came before the acknowledgement took no time.
func TestRevokedTimes(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	r := revoked{d: time.Second, of: []revokedOnce{
		{asked: at(0), acked: at(10), fed: at(8), dropped: at(9)},
		{asked: at(0), acked: at(10), fed: at(12), dropped: at(15)},
	}}
	if f := r.fed(); f.quantile(0) != 0 || f.quantile(1) != 2*time.Millisecond {
		t.Errorf("fed %v", f.took)
	}
	if d := r.dropped(); d.quantile(0) != 0 || d.quantile(1) != 5*time.Millisecond {
		t.Errorf("dropped %v", d.took)
	}
	h := &feedFollower{awaited: map[string]chan time.Time{}}
	fed := h.await("a")
	message := func(kind, subject string) *nats.Msg {
		return &nats.Msg{Header: nats.Header{"ce-type": {kind}, "ce-subject": {subject}}}
	}
	h.take(message("credstream.credential.created.v1", "credential.a"))
	h.take(message("credstream.credential.deleted.v1", "credential.b"))
	if len(fed) != 0 {
		t.Error("heard of another event")
	}
	h.take(message("credstream.credential.deleted.v1", "credential.a"))
	h.take(message("credstream.credential.deleted.v1", "credential.a"))
	if len(fed) != 1 {
		t.Error("not heard of the event")
	}
}
