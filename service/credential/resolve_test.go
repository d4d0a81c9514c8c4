package credential_test

import (
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"
	"github.com/nats-io/nkeys"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
)

// question, and in no other way.
func TestResolveSealed(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	mine, other := stage.NewRecipient(t), stage.NewRecipient(t)
	begin := time.Now()
	got, err := s.Resolve(fmt.Sprintf(`{"id":%q,"flow":"orders","step":"step_1","public_key":%q}`, id, mine.Public))
	stage.OK(t, err)
	want := credential.Resolved{
		Lease: got.Lease, Expires: got.Expires, Version: 1, Hosts: []string{"api.example.org", "{{region}}.example.org"}, Sealed: got.Sealed,
	}
	if diff := cmp.Diff(want, got); diff != "" || got.Lease == "" {
		t.Errorf("answers (-want +got):\n%s", diff)
	}
	if left := got.Expires.Sub(begin); left < 9*time.Minute || left > 10*time.Minute+time.Second || !got.Expires.Equal(got.Expires.Truncate(time.Second)) {
		t.Errorf("the lease ends in %v, at %v", left, got.Expires)
	}
	info := []string{"credstream/resolved/1", "default", id, got.Lease, "1", got.Expires.UTC().Format(time.RFC3339)}
	text, err := mine.Open(got.Sealed, info...)
	if err != nil || text != `{"keys":{"apiKey":"canary-1","region":"eu"}}` {
		t.Errorf("opens to %q, %v", text, err)
	}
	if _, err := other.Open(got.Sealed, info...); err == nil {
		t.Error("opens with another key")
	}
	plain := base64.RawURLEncoding.EncodeToString(mine.Private.PublicKey().Bytes())
	again, err := s.Resolve(fmt.Sprintf(`{"id":%q,"flow":"orders","step":"step_1","public_key":%q}`, id, plain))
	if err != nil || again.Lease != got.Lease {
		t.Errorf("the same key as base64url is answered %+v, %v", again, err)
	}
	zero := stage.Must(hpke.DHKEM(ecdh.X25519()).NewPrivateKey(make([]byte, 32)))(t)
	if _, err := (stage.Recipient{Private: zero}).Open(got.Sealed, info...); err == nil {
		t.Error("opens with the zero key")
	}
	for i := range info {
		changed := slices.Clone(info)
		changed[i] += "x"
		if _, err := mine.Open(got.Sealed, changed...); err == nil {
			t.Errorf("opens with %q for %q", changed[i], info[i])
		}
	}
	facts := s.Facts(credential.ReplayAccess{})
	if len(facts) != 1 {
		t.Fatalf("%d facts", len(facts))
	}
	wantFact := credential.Access{
		Seq: 1, Kind: "given", Time: facts[0].Time, Credential: id, Version: 1, Actor: "key:" + s.Engine.Actor.ID, Flow: "orders", Step: "step_1",
		Via: "http", Recipient: facts[0].Recipient, Lease: got.Lease, Expires: got.Expires,
	}
	if diff := cmp.Diff(wantFact, facts[0]); diff != "" || len(facts[0].Recipient) != 64 || facts[0].Time.Before(begin.Add(-time.Millisecond)) {
		t.Errorf("the fact (-want +got):\n%s", diff)
	}
}

func TestResolveCleartext(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	body := fmt.Sprintf(`{"id":%q,"cleartext":true}`, id)
	first, err := s.Resolve(body)
	stage.OK(t, err)
	for range 2 { // again within the lease
		again, err := s.Resolve(body)
		stage.OK(t, err)
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("again (-first +again):\n%s", diff)
		}
	}
	if got := string(first.Keys["apiKey"].(jsontext.Value)); got != `"canary-1"` || len(first.Keys) != 2 || first.Sealed != "" {
		t.Errorf("answers %+v", first)
	}
	if facts := s.Facts(credential.ReplayAccess{}); len(facts) != 1 || !facts[0].Cleartext || facts[0].Recipient != "" {
		t.Errorf("the facts are %+v", facts)
	}
}

// What is refused says why, and leaves no fact.
func TestResolveRefuses(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	gone := s.Create("canary-2")
	s.Do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, gone))
	s.Do("default", "tenant.register", `{"id":"ajax"}`)
	everywhere := s.Issue("default", `{"role":"FLOW_ENGINE","tenants":["*"]}`)
	key := stage.NewRecipient(t).Public
	zero := string(stage.Must(nkeys.Encode(nkeys.PrefixByteCurve, make([]byte, 32)))(t))
	account := string(stage.Must(nkeys.Encode(nkeys.PrefixByteAccount, make([]byte, 32)))(t))
	asked := func(format string, args ...any) string { return fmt.Sprintf(format, args...) }
	overNATS := func(c *service.Call) { c.Via, c.Confidential = "nats", false }
	for _, c := range []struct {
		name, body, code string
		change           func(*service.Call)
	}{
		{"nobody to seal to", asked(`{"id":%q}`, id), "recipient_invalid", nil},
		{"both", asked(`{"id":%q,"public_key":%q,"cleartext":true}`, id, key), "recipient_invalid", nil},
		{"clear text is not wanted", asked(`{"id":%q,"cleartext":false}`, id), "recipient_invalid", nil},
		{"no key", asked(`{"id":%q,"public_key":"X"}`, id), "recipient_invalid", nil},
		{"a key that was cut", asked(`{"id":%q,"public_key":%q}`, id, key[:55]), "recipient_invalid", nil},
		{"a key with a slip", asked(`{"id":%q,"public_key":%q}`, id, key[:54]+"77"), "recipient_invalid", nil},
		{"base64url of 31 bytes", asked(`{"id":%q,"public_key":%q}`, id, base64.RawURLEncoding.EncodeToString(make([]byte, 31))), "recipient_invalid", nil},
		{"another kind of key", asked(`{"id":%q,"public_key":%q}`, id, account), "recipient_invalid", nil},
		{"a key that makes no secret", asked(`{"id":%q,"public_key":%q}`, id, zero), "recipient_invalid", nil},
		{"clear text over NATS", asked(`{"id":%q,"cleartext":true}`, id), "cleartext_refused", overNATS},
		{"clear text where others listen", asked(`{"id":%q,"cleartext":true}`, id), "cleartext_refused", func(c *service.Call) { c.Confidential = false }},
		{"no id", asked(`{"public_key":%q}`, key), "member_missing", nil},
		{"an id that is none", asked(`{"id":"a\u0007","public_key":%q}`, key), "id_invalid", nil},
		{"a flow that is none", asked(`{"id":%q,"flow":"a\u0007","public_key":%q}`, id, key), "id_invalid", nil},
		{"a step that is none", asked(`{"id":%q,"step":"a\u0007","public_key":%q}`, id, key), "id_invalid", nil},
		{"an unknown member", asked(`{"id":%q,"key":%q}`, id, key), "body_invalid", nil},
		{"an unknown credential", asked(`{"id":"nope","public_key":%q}`, key), "credential_not_found", nil},
		{"a deleted one", asked(`{"id":%q,"public_key":%q}`, gone, key), "credential_not_found", nil},
		{"another tenant", asked(`{"id":%q,"public_key":%q}`, id, key), "tenant_not_found", func(c *service.Call) { c.Tenant = "ajax" }},
		{"one of another tenant", asked(`{"id":%q,"public_key":%q}`, id, key), "credential_not_found", func(c *service.Call) { c.Tenant, c.Principal = "ajax", everywhere }},
		{"an administrator", asked(`{"id":%q,"public_key":%q}`, id, key), "permission_denied", func(c *service.Call) { c.Principal = s.Admin }},
	} {
		change := c.change
		if change == nil {
			change = func(*service.Call) {}
		}
		got, err := s.Resolve(c.body, change)
		if stage.CodeOf(err) != c.code || got.Sealed != "" || got.Keys != nil {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	if told := s.Access.Told(); told != "" {
		t.Errorf("refusals are recorded as given: %s", told)
	}
	stage.OK(t, second(s.Resolve(asked(`{"id":%q,"public_key":%q}`, id, key), overNATS))) // sealed it may travel there
	low := errors.New("no space")
	s.Writes.Store(&low)
	if _, err := s.Resolve(asked(`{"id":%q,"public_key":%q}`, id, key), overNATS); !errors.Is(err, low) {
		t.Errorf("given while nothing may be written: %v", err)
	}
	s.Writes.Store(nil)
	s.CaughtUp()
	var denied []string
	answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "events.replay", []byte(`{"type":"access.denied"}`)))(t)
	for _, e := range answer.(admin.Replay).Events {
		var d struct{ Route, Principal string }
		stage.OK(t, json.Unmarshal(e.Data, &d, json.MatchCaseInsensitiveNames(true)))
		denied = append(denied, d.Route+" "+strings.TrimPrefix(d.Principal, "key:"))
	}
	slices.Sort(denied)
	want := []string{"credential.resolve " + everywhere.Actor.ID, "credential.resolve " + s.Admin.Actor.ID, "credential.resolve " + s.Engine.Actor.ID}
	slices.Sort(want)
	if diff := cmp.Diff(want, denied); diff != "" {
		t.Errorf("traces of refusals (-want +got):\n%s", diff)
	}
}

func second[T any](_ T, err error) error { return err }

// The fact is durable before there is an answer; without it there is none.
func TestResolveNeedsTheAccessLog(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	body := fmt.Sprintf(`{"id":%q,"cleartext":true}`, id)
	broken := errors.New("the disk says canary")
	s.Access.Before = func(credential.AccessFact) error { return broken }
	got, err := s.Resolve(body)
	if stage.CodeOf(err) != "access_log_unavailable" || fault.Of(err).Kind != fault.Unavailable || got.Keys != nil || got.Lease != "" {
		t.Errorf("without the access log: %+v, %v", got, err)
	}
	if strings.Contains(fault.Of(err).Msg, "canary") {
		t.Errorf("the caller is told %q", fault.Of(err).Msg)
	}
	s.Access.Before = nil
	answered := make(chan error, 1)
	stored, let := make(chan struct{}), make(chan struct{})
	s.Access.After = func(credential.AccessFact) { close(stored); <-let }
	go func() { answered <- second(s.Resolve(body)) }()
	<-stored
	select {
	case err := <-answered:
		t.Errorf("answered before the fact was: %v", err)
	default:
	}
	s.Access.After = nil
	close(let)
	stage.OK(t, <-answered)
	// Within a lease nothing is recorded, so the access log may be away.
	s.Access.Before = func(credential.AccessFact) error { return broken }
	stage.OK(t, second(s.Resolve(body)))
	if told := s.Access.Told(); told != "given 1" {
		t.Errorf("recorded: %s", told)
	}
}

// What changes while it is given away is not given: the fact is taken back, and
// the answer is what is in force by then, or that there is nothing.
func TestResolveLooksAgain(t *testing.T) {
	s := stage.New(t)
	body := func(id string) string { return fmt.Sprintf(`{"id":%q,"cleartext":true}`, id) }
	during := func(what func(credential.AccessFact)) {
		var once sync.Once
		s.Access.After = func(f credential.AccessFact) { once.Do(func() { what(f) }) }
	}
	deleted := s.Create("canary-1")
	during(func(f credential.AccessFact) {
		s.Do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, f.Credential))
	})
	if got, err := s.Resolve(body(deleted)); stage.CodeOf(err) != "credential_not_found" || got.Keys != nil {
		t.Errorf("deleted meanwhile: %+v, %v", got, err)
	}
	if told := s.Access.Told(); told != "given 1, withdrawn 1" {
		t.Errorf("deleted meanwhile: %s", told)
	}
	replaced := s.Create("canary-2")
	during(func(f credential.AccessFact) {
		s.Do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-3"}}`, f.Credential))
	})
	got, err := s.Resolve(body(replaced))
	if err != nil || got.Version != 2 || string(got.Keys["apiKey"].(jsontext.Value)) != `"canary-3"` {
		t.Errorf("replaced meanwhile: %+v, %v", got, err)
	}
	if told := s.Access.Told(); told != "given 1, withdrawn 1, given 2" {
		t.Errorf("replaced meanwhile: %s", told)
	}
	always := s.Create("canary-4")
	s.Access.After = func(f credential.AccessFact) {
		if f.Kind == credential.AccessGiven {
			s.Do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-5"}}`, f.Credential))
		}
	}
	if got, err := s.Resolve(body(always)); stage.CodeOf(err) != "conflict" || got.Keys != nil {
		t.Errorf("replaced again and again: %+v, %v", got, err)
	}
	// A change that leaves the values as they are is none.
	renamed := s.Create("canary-6")
	s.Access.Told()
	during(func(f credential.AccessFact) {
		s.Do("default", "credential.rename", fmt.Sprintf(`{"id":%q,"name":"n"}`, f.Credential))
	})
	stage.OK(t, second(s.Resolve(body(renamed))))
	if told := s.Access.Told(); told != "given 1" {
		t.Errorf("renamed meanwhile: %s", told)
	}
	s.Access.After = nil
	// The caller itself may be gone by then.
	doomed := s.Issue("default", `{"role":"FLOW_ENGINE"}`)
	during(func(credential.AccessFact) {
		s.Do("default", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, doomed.Actor.ID))
	})
	if got, err := s.Resolve(body(s.Create("canary-7")), func(c *service.Call) { c.Principal = doomed }); stage.CodeOf(err) != "api_key_unknown" || got.Keys != nil {
		t.Errorf("by a key that was revoked meanwhile: %+v, %v", got, err)
	}
}

// The same caller asking for the same thing gets the same lease, without another
// fact, as long as enough of it is left and nothing has changed.
func TestResolveWithinALease(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	one, two := stage.NewRecipient(t), stage.NewRecipient(t)
	another := s.Issue("default", `{"role":"FLOW_ENGINE"}`)
	ask := func(key stage.Recipient, flow, step string) string {
		return fmt.Sprintf(`{"id":%q,"flow":%q,"step":%q,"public_key":%q}`, id, flow, step, key.Public)
	}
	first, err := s.Resolve(ask(one, "f", "s"))
	stage.OK(t, err)
	s.Access.Told()
	same := func(why string) {
		t.Helper()
		got, err := s.Resolve(ask(one, "f", "s"))
		if diff := cmp.Diff(first, got); err != nil || diff != "" {
			t.Errorf("%s: %v, another answer (-first +got):\n%s", why, err, diff)
		}
		if told := s.Access.Told(); told != "" {
			t.Errorf("%s: recorded %s", why, told)
		}
	}
	fresh := func(why, told string, got credential.Resolved, err error) {
		t.Helper()
		if err != nil || got.Lease == first.Lease || got.Sealed == first.Sealed {
			t.Errorf("%s: %v, the same lease", why, err)
		}
		if got := s.Access.Told(); got != told {
			t.Errorf("%s: recorded %q, want %q", why, got, told)
		}
	}
	same("at once")
	got, err := s.Resolve(ask(one, "g", "s"))
	fresh("another flow", "given 1", got, err)
	got, err = s.Resolve(ask(one, "f", "t"))
	fresh("another step", "given 1", got, err)
	got, err = s.Resolve(ask(two, "f", "s"))
	fresh("another recipient", "given 1", got, err)
	got, err = s.Resolve(ask(one, "f", "s"), func(c *service.Call) { c.Principal = another })
	fresh("another caller", "given 1", got, err)
	s.Do("default", "credential.rename", fmt.Sprintf(`{"id":%q,"name":"n"}`, id))
	same("after a change of its name")
	s.Skew.Store(int64(8*time.Minute + 50*time.Second))
	same("with more than a tenth left")
	s.Skew.Store(int64(9*time.Minute + 10*time.Second))
	got, err = s.Resolve(ask(one, "f", "s"))
	fresh("with less than a tenth left", "given 1", got, err)
	first = got
	same("the next lease")
	s.Do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-2"}}`, id))
	got, err = s.Resolve(ask(one, "f", "s"))
	fresh("with other keys", "given 2", got, err)
	// Every answer within a lease is checked as the first one was.
	doomed := s.Issue("default", `{"permissions":["credentials.resolve"]}`)
	as := func(p service.Principal) func(*service.Call) { return func(c *service.Call) { c.Principal = p } }
	stage.OK(t, second(s.Resolve(ask(one, "f", "s"), as(doomed))))
	stage.OK(t, second(s.Resolve(ask(one, "f", "s"), as(doomed))))
	s.Do("default", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, doomed.Actor.ID))
	if _, err := s.Resolve(ask(one, "f", "s"), as(doomed)); stage.CodeOf(err) != "api_key_unknown" {
		t.Errorf("by a key that was revoked: %v", err)
	}
	less := s.Engine
	less.Role = permission.Operator
	if _, err := s.Resolve(ask(one, "f", "s"), as(less)); stage.CodeOf(err) != "permission_denied" {
		t.Errorf("without the permission: %v", err)
	}
	s.Do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, id))
	if _, err := s.Resolve(ask(one, "f", "s")); stage.CodeOf(err) != "credential_not_found" {
		t.Errorf("after its end: %v", err)
	}
}

// Of an OAuth credential the access token is given, never the refresh token, and no
// lease is longer than the token lives.
func TestResolveOAuth(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "component.register", `{"id":"sheets","descriptor":{"title":"Sheets","useOAuthClient":true,
		"oauth2":{"auth_uri":"https://provider.example.org/auth","token_uri":"https://provider.example.org/token"},
		"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}}}}}`)
	s.Do("default", "oauth_client.define", `{"component":"sheets","client_id":"c","client_secret":"s"}`)
	id := s.Do("default", "credential.create",
		`{"component":"sheets","keys":{"oauth":{"access_token":"canary-a","refresh_token":"canary-r","expires_in":300}}}`).ID
	begin := time.Now()
	got, err := s.Resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, id))
	stage.OK(t, err)
	if text := string(got.Keys["oauth"].(jsontext.Value)); !strings.Contains(text, "canary-a") || strings.Contains(text, "canary-r") || strings.Contains(text, "refresh_token") {
		t.Errorf("the values are %s", text)
	}
	if left := got.Expires.Sub(begin); left > 5*time.Minute || left < 4*time.Minute {
		t.Errorf("the lease ends in %v, the token in 5m", left)
	}
	if facts := s.Facts(credential.ReplayAccess{Credential: id}); len(facts) != 1 || facts[0].Grant != 1 {
		t.Errorf("the facts are %+v", facts)
	}
}

// Who had what, and who may still have it.
func TestAccessReplayAndLeases(t *testing.T) {
	s := stage.New(t)
	keep, change, remove := s.Create("canary-1"), s.Create("canary-2"), s.Create("canary-3")
	other := s.Issue("default", `{"role":"FLOW_ENGINE"}`)
	key := stage.NewRecipient(t).Public
	ask := func(id, flow string, p service.Principal) {
		t.Helper()
		stage.OK(t, second(s.Resolve(fmt.Sprintf(`{"id":%q,"flow":%q,"public_key":%q}`, id, flow, key), func(c *service.Call) { c.Principal = p })))
	}
	s.Skew.Store(int64(-time.Hour))
	ask(keep, "long ago", s.Engine)
	s.Skew.Store(0)
	for _, id := range []string{keep, change, remove} {
		ask(id, "now", s.Engine)
		ask(id, "now", other)
	}
	s.Do("default", "credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"apiKey":"canary-4"}}`, change))
	s.Do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, remove))
	withdrawn := s.Create("canary-5")
	s.Access.After = func(f credential.AccessFact) {
		if f.Kind == credential.AccessGiven {
			s.Do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, f.Credential))
		}
	}
	if _, err := s.Resolve(fmt.Sprintf(`{"id":%q,"public_key":%q}`, withdrawn, key)); stage.CodeOf(err) != "credential_not_found" {
		t.Fatal(err)
	}
	s.Access.After = nil
	names := map[string]string{keep: "keep", change: "change", remove: "remove", withdrawn: "withdrawn", "key:" + s.Engine.Actor.ID: "engine", "key:" + other.Actor.ID: "other"}
	accesses := func(body string) (list []string, next uint64) {
		t.Helper()
		answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "access.replay", []byte(body)))(t)
		page := answer.(credential.AccessReplay)
		for _, a := range page.Accesses {
			list = append(list, fmt.Sprint(a.Seq, " ", a.Kind, " ", names[a.Credential], " ", names[a.Actor]))
		}
		return list, page.Next
	}
	all := []string{
		"1 given keep engine", "2 given keep engine", "3 given keep other", "4 given change engine", "5 given change other",
		"6 given remove engine", "7 given remove other", "8 given withdrawn engine", "9 withdrawn withdrawn engine",
	}
	for _, c := range []struct {
		name, body string
		want       []string
		next       uint64
	}{
		{"all", `{}`, all, 0},
		{"a credential", fmt.Sprintf(`{"credential":%q}`, change), all[3:5], 0},
		{"one that is gone", fmt.Sprintf(`{"credential":%q}`, remove), all[5:7], 0},
		{"one that never was", `{"credential":"never"}`, nil, 0},
		{"an actor", fmt.Sprintf(`{"actor":"key:%s"}`, other.Actor.ID), []string{all[2], all[4], all[6]}, 0},
		{"an actor's first", fmt.Sprintf(`{"actor":"key:%s","limit":1}`, other.Actor.ID), all[2:3], 4},
		{"a time", fmt.Sprintf(`{"since":%q}`, time.Now().Add(-time.Minute).Format(time.RFC3339)), all[1:], 0},
		{"a page", `{"limit":4}`, all[:4], 5},
		{"the next", `{"limit":4,"from":5}`, all[4:8], 9},
		{"the last", `{"limit":4,"from":9}`, all[8:], 0},
		{"exactly all", `{"limit":9}`, all, 0},
	} {
		got, next := accesses(c.body)
		if diff := cmp.Diff(c.want, got); diff != "" || next != c.next {
			t.Errorf("%s: next %d, want %d (-want +got):\n%s", c.name, next, c.next, diff)
		}
	}
	leases := func(body string) (list []string) {
		t.Helper()
		answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "lease.list", []byte(body)))(t)
		for _, l := range answer.(credential.LeaseList).Leases {
			list = append(list, fmt.Sprint(names[l.Credential], " ", names[l.Actor], " ", l.Revoked))
		}
		return list
	}
	want := []string{"keep engine false", "keep other false", "change engine true", "change other true", "remove engine true", "remove other true"}
	if diff := cmp.Diff(want, leases(`{}`)); diff != "" {
		t.Errorf("leases (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[2:4], leases(fmt.Sprintf(`{"credential":%q}`, change))); diff != "" {
		t.Errorf("leases of one credential (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[3:4], leases(fmt.Sprintf(`{"credential":%q,"actor":"key:%s"}`, change, other.Actor.ID))); diff != "" {
		t.Errorf("leases of one caller (-want +got):\n%s", diff)
	}
	if n := gauge(t, s, "credstream_leases_outstanding"); n != 6 {
		t.Errorf("%v leases are outstanding, by the gauge", n)
	}
	s.Skew.Store(int64(11 * time.Minute))
	if left := leases(`{}`); left != nil {
		t.Errorf("leases after their time: %v", left)
	}
	if n := gauge(t, s, "credstream_leases_outstanding"); n != 0 {
		t.Errorf("%v leases are outstanding after their time, by the gauge", n)
	}
	for _, c := range []struct{ route, body, code string }{
		{"access.replay", `{"limit":1001}`, "limit_invalid"},
		{"access.replay", `{"credential":"a\u0007"}`, "id_invalid"},
		{"lease.list", `{"limit":-1}`, "limit_invalid"},
	} {
		if _, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, c.route, []byte(c.body)); stage.CodeOf(err) != c.code {
			t.Errorf("%s %s: %v", c.route, c.body, err)
		}
	}
	for _, route := range []string{"access.replay", "lease.list"} {
		if _, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Engine, Via: "http"}, route, []byte(`{}`)); stage.CodeOf(err) != "permission_denied" {
			t.Errorf("%s of an engine: %v", route, err)
		}
	}
	if strings.Contains(s.Logs.String(), "canary") {
		t.Error("a secret is in the log")
	}
}

// gauge is the value of a metric without labels.
func gauge(t testing.TB, s *stage.Stage, name string) float64 {
	t.Helper()
	for _, family := range stage.Must(s.Metrics.Gather())(t) {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

// BenchmarkResolve measures the service without an edge: within a lease, and with a
// new one each time.
func BenchmarkResolve(b *testing.B) {
	s := stage.New(b)
	id := s.Create("a-secret-key-of-some-length")
	key := stage.NewRecipient(b).Public
	call := service.Call{Tenant: "default", Principal: s.Engine, Via: "http", Confidential: true}
	run := func(name string, body func(n uint64) string) {
		b.Run(name, func(b *testing.B) {
			var n atomic.Uint64
			b.SetParallelism(32) // 64 clients on two cores
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.Service.Serve(b.Context(), call, "credential.resolve", []byte(body(n.Add(1)))); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "resolves/s")
		})
	}
	run("within a lease", func(uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"f","public_key":%q}`, id, key) })
	run("new lease", func(n uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"%d","public_key":%q}`, id, n, key) })
	run("clear text, within a lease", func(uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"f","cleartext":true}`, id) })
	run("clear text, new lease", func(n uint64) string { return fmt.Sprintf(`{"id":%q,"flow":"c%d","cleartext":true}`, id, n) })
}
