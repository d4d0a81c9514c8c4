package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nats.go/micro"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/kv"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	components "github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/verify"
)

// raw sends a command and returns its answer to the byte.
func (a api) raw(t testing.TB, name, id string, in any) (status int, answer []byte) {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, a.base+"/v1/tenants/"+a.tenant+"/commands/"+name, bytes.NewReader(encode(t, in)))
	must(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", id)
	req.Header.Set("Authorization", "Bearer "+a.key)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, answer
}

// shownOnce are the members of answers that a repeat does not show again.
var shownOnce = map[string]string{
	"api_key.issue": "key", "credential.reveal": "keys", "oauth_client.reveal": "client_secret", "auth_client.reveal": "credentials",
	"connector_secret.reveal": "value", "webhook.define": "secret", "webhook.rotate-secret": "secret",
}

// Every command of the route table is answered the second time as the first, to the
// byte, and leaves nothing more behind: also when it changed nothing, when others have
// changed things since, and after a restart.
func TestEveryCommandTwice(t *testing.T) {
	provider := oauthtest.NewServer(t)
	told := newRevoker(t, nil)
	data := t.TempDir()
	u := bring(t, data)
	u.registerSheets(t, provider, told.in)
	registerPlain(t, u.base)
	registerAs(t, u.api, "one", sheets)
	registerAs(t, u.api, "two", sheets)
	type m = map[string]any
	keys := m{"apiKey": "k"}
	revealing := u.as(u.issue(t, m{"permissions": []string{"credentials.reveal", "read_connector_secrets", "webhooks.edit"}}))
	id := u.create(t)
	gone := u.create(t)
	oauthID, _ := u.connected(t, provider, "sheets")
	cut, _ := u.connected(t, provider, "sheets")
	endOAuth, _ := u.connected(t, provider, "sheets")
	var secret, secretOAuth, client, own, key done
	must(t, u.command("auth_secret.create", "", m{"workspace": "w", "component": "plain", "keys": keys}, &secret))
	must(t, u.command("auth_secret.create", "", m{"workspace": "w", "component": "sheets", "keys": m{"oauth": provider.Grant()}}, &secretOAuth))
	must(t, u.command("oauth_client.define", "", m{"component": "one", "client_id": "x", "client_secret": "y"}, &client))
	must(t, u.command("auth_client.create", "", m{"name": "Own", "type": "noauth", "components": []string{"plain"}}, &own))
	must(t, u.command("api_key.issue", "", m{"role": "AUDITOR"}, &key))
	link := u.start(t, nil)
	confirm := newBrowser(t).through(link.URL).confirm()
	poisoned := func() string {
		nc := u.connect(t, adminKey)
		_, err := nc.Request("credstream.cmdq.default.credential.delete", encode(t, m{"id": "no-such"}), 10*time.Second)
		must(t, err)
		var list struct{ Messages []struct{ ID string } }
		await(t, "the dead letter", func() (bool, error) {
			list.Messages = nil
			return true, u.query("queue.list", "", &list)
		})
		await(t, "the dead letter", func() (bool, error) {
			err := u.query("queue.list", "", &list)
			return len(list.Messages) > 0, err
		})
		return list.Messages[0].ID
	}
	receiver := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	t.Cleanup(receiver.Close)
	delivered := func() string {
		var list struct{ Deliveries []struct{ Event string } }
		must(t, u.command("credential.rename", "", m{"id": id, "name": "Delivered"}, nil))
		await(t, "a delivery", func() (bool, error) {
			err := u.query("webhook.deliveries", "id=w&status=delivered", &list)
			return len(list.Deliveries) > 0, err
		})
		return list.Deliveries[0].Event
	}
	flow := []any{m{"id": "s", "component": "plain", "credential": id}}
	type step struct {
		route string
		in    m
	}
	steps := []step{
		{"tenant.register", m{"id": "acme"}},
		{"tenant.erase", m{"id": "acme"}},
		{"encryption_key.rotate", m{}},
		{"encryption_key.rewrap", m{}},
		{"component.register", m{"id": "new", "descriptor": json.RawMessage(plain)}},
		{"component.update", m{"id": "new", "descriptor": json.RawMessage(sheets)}},
		{"component.set-env", m{"id": "new", "values": m{"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "b"}}},
		{"component.share", m{"id": "new"}},
		{"component.share", m{"id": "new"}}, // the other one finds nothing to change
		{"component.unshare", m{"id": "new"}},
		{"component.delete", m{"id": "new"}},
		{"credential.create", m{"component": "plain", "keys": keys}},
		{"credential.rename", m{"id": id, "name": "Another"}},
		{"credential.rename", m{"id": id, "name": "Another"}},
		{"credential.set-vpn-agent", m{"id": id, "vpn_agent": "v"}},
		{"role.define", m{"name": "BILLING", "permissions": []string{"flows.get", "credentials.get"}}},
		{"role.change", m{"name": "BILLING", "title": "Billing"}},
		{"api_key.issue", m{"role": "BILLING"}},
		{"role.define", m{"name": "UNUSED", "permissions": []string{"flows.get"}}},
		{"role.delete", m{"name": "UNUSED"}},
		{"throttle_policy.define", m{"tokens": 5, "per": "day"}},
		{"throttle_policy.define", m{"id": "p", "tokens": 5, "per": "day"}},
		{"throttle_policy.change", m{"id": "p", "tokens": 6}},
		{"credential.assign-throttle-policy", m{"id": id, "throttle_policy": "p"}},
		{"credential.assign-throttle-policy", m{"id": id, "throttle_policy": "p"}},
		{"credential.assign-throttle-policy", m{"id": id}},
		{"credential.create", m{"component": "plain", "keys": keys, "throttle_policy": "p"}},
		{"throttle_policy.define", m{"id": "q", "tokens": 5, "per": "day"}},
		{"throttle_policy.delete", m{"id": "q"}},
		{"webhook.define", m{"url": "https://hooks.example.org"}},
		{"webhook.define", m{"id": "w", "url": receiver.URL, "types": []string{"credential.*"}}},
		{"webhook.redeliver", m{"id": "w", "event": ""}},
		{"webhook.change", m{"id": "w", "enabled": false}},
		{"webhook.change", m{"id": "w", "enabled": false}},
		{"webhook.rotate-secret", m{"id": "w"}},
		{"webhook.test", m{"id": "w"}},
		{"webhook.delete", m{"id": "w"}},
		{"credential.set-description", m{"id": id, "description": "d"}},
		{"credential.update", m{"id": id, "description": "e", "keys": keys}},
		{"credential.create-many", m{"credentials": []m{{"id": "m1=", "type": "file system", "keys": m{"a": m{"b": "c"}}}, {"type": "t", "keys": m{}}}}},
		{"credential.update-many", m{"updates": []m{{"id": "m1=", "description": "d", "keys": m{"a": "b"}}}}},
		{"credential.delete-many", m{"ids": []string{"m1="}}},
		{"credential.replace-keys", m{"id": id, "keys": keys}},
		{"credential.revert", m{"id": id, "version": 1}},
		{"credential.verify", m{"id": id}},
		{"credential.reveal", m{"id": id}},
		{"credential.refresh", m{"id": oauthID}},
		{"credential.revoke", m{"id": cut}},
		{"credential.revoke", m{"id": cut}},
		{"flow.bind", m{"flow": "f", "steps": flow}},
		{"flow.release", m{"flow": "f"}},
		{"flow.release", m{"flow": "f"}},
		{"flow.report", m{"id": "g", "change": "created", "revision": 1, "steps": flow}},
		{"flow.report", m{"id": "g", "change": "deleted", "revision": 2}},
		{"credential.delete", m{"id": gone}},
		{"credential.delete", m{"id": endOAuth}},
		{"auth_secret.create", m{"workspace": "w", "component": "plain", "keys": keys}},
		{"auth_secret.rename", m{"workspace": "w", "id": secret.ID, "name": "Another"}},
		{"auth_secret.replace-keys", m{"workspace": "w", "id": secret.ID, "keys": keys}},
		{"auth_secret.refresh", m{"workspace": "w", "id": secretOAuth.ID}},
		{"auth_secret.delete", m{"workspace": "w", "id": secret.ID}},
		{"oauth_client.define", m{"component": "two", "client_id": "x", "client_secret": "y"}},
		{"oauth_client.change", m{"id": client.ID, "client_id": "z"}},
		{"oauth_client.change", m{"id": client.ID, "client_id": "z"}},
		{"oauth_client.reveal", m{"id": client.ID}},
		{"oauth_client.delete", m{"id": client.ID}},
		{"auth_client.create", m{"name": "All", "type": "oauth2", "components": []string{"one"}, "credentials": m{"client_id": "x", "client_secret": "y"}}},
		{"auth_client.change", m{"id": own.ID, "name": "Mine"}},
		{"auth_client.reveal", m{"id": own.ID}},
		{"auth_client.delete", m{"id": own.ID}},
		{"oauth.connect", m{"component": "sheets"}},
		{"oauth.complete", m{"connection": link.ID, "confirm": confirm}},
		{"connector_secret.put", m{"value": "s1"}},
		{"connector_secret.put", m{"id": "s", "value": "s1"}},
		{"connector_secret.put", m{"id": "s", "value": "s2"}},
		{"connector_secret.revert", m{"id": "s", "version": 1}},
		{"connector_secret.reveal", m{"id": "s"}},
		{"connector.put", m{"name": "Wiki"}},
		{"connector.put", m{"id": "wiki", "name": "Wiki", "api_key_secret_id": "s"}},
		{"connector.put", m{"id": "wiki", "name": "Wiki 2"}},
		{"connector.set-api-key", m{"id": "wiki", "api_key_id": "k"}},
		{"connector.set-api-key", m{"id": "wiki", "api_key_id": "k"}},
		{"connector.delete", m{"id": "wiki"}},
		{"connector_secret.delete", m{"id": "s"}},
		{"api_key.issue", m{"role": "AUDITOR", "expires": "9000h"}},
		{"api_key.revoke", m{"id": key.ID}},
		{"audit.rewind", m{"seq": 1}},
		{"views.rebuild", m{}},
		{"queue.retry", m{"id": ""}},
		{"queue.drop", m{"id": ""}},
		{"queue.retry-all", m{}},
		{"queue.drop-all", m{}},
		{"oauth.revoke", m{"all": true}},
	}
	type answered struct {
		as     api
		step   step
		answer []byte
	}
	answers := map[string]answered{}
	tried := map[string]bool{}
	repeat := func(id string, first answered, end uint64) {
		t.Helper()
		status, again := first.as.raw(t, first.step.route, id, first.step.in)
		want := first.answer
		if member := shownOnce[first.step.route]; member != "" {
			var members map[string]json.RawMessage
			must(t, json.Unmarshal(want, &members))
			if members[member] == nil {
				t.Errorf("%s does not show %s: %s", first.step.route, member, want)
			}
			delete(members, member)
			var answer map[string]json.RawMessage
			must(t, json.Unmarshal(again, &answer))
			want, again = encode(t, members), encode(t, answer)
		}
		if status != http.StatusOK || !bytes.Equal(want, again) {
			t.Errorf("%s is answered\n%s\nand again, %d\n%s", first.step.route, want, status, again)
		}
		if now := logEnd(t, u.program); now != end {
			last, err := u.store.Commit(t.Context(), now)
			t.Errorf("%s again: the log ends at %d with %+v, before at %d, %v", first.step.route, now, last, end, err)
		}
	}
	for i, step := range steps {
		as := u.api
		if shownOnce[step.route] != "" && step.route != "api_key.issue" {
			as = revealing
		}
		if step.in["id"] == "" {
			step.in = maps.Clone(step.in)
			step.in["id"] = poisoned()
		}
		if step.in["event"] == "" {
			step.in = maps.Clone(step.in)
			step.in["event"] = delivered()
		}
		id := fmt.Sprint("command-", i)
		status, answer := as.raw(t, step.route, id, step.in)
		if status != http.StatusOK {
			t.Fatalf("%s answers %d %s", step.route, status, answer)
		}
		tried[step.route] = true
		answers[id] = answered{as, step, answer}
		if step.route == "oauth.revoke" {
			await(t, "the end of the revocation", func() (bool, error) {
				var p progress
				err := u.query("oauth.revocation", "", &p)
				return !p.Running, err
			})
		}
		requests, revocations := provider.Requests(), told.count()
		repeat(id, answers[id], logEnd(t, u.program))
		if provider.Requests() != requests || told.count() != revocations {
			t.Errorf("%s again reaches the provider", step.route)
		}
	}
	for _, r := range application.Routes() {
		if r.Command && !tried[r.Name] {
			t.Errorf("%s is not tried", r.Name)
		}
	}
	u.stop()
	u = bring(t, data)
	for id, first := range answers {
		first.as.base = u.base
		if first.step.route == "oauth.connect" {
			continue // its link names the port, which is another one now
		}
		repeat(id, first, logEnd(t, u.program))
	}
}

// tapped is the log of a second process, which a test listens in on.
type tapped struct {
	events.Store
	before func(stream events.StreamID)             // called before an append
	after  func(stream events.StreamID, seq uint64) // called when it is stored
	end    func()                                   // called when the end of the log is asked for
}

func (s *tapped) Stage(ctx context.Context, stream events.StreamID, expected uint64, meta events.Meta, evs ...events.Event) (uint64, error) {
	if s.before != nil {
		s.before(stream)
	}
	seq, err := s.Store.Stage(ctx, stream, expected, meta, evs...)
	if err == nil && s.after != nil {
		s.after(stream, seq)
	}
	return seq, err
}

func (s *tapped) End(ctx context.Context) (uint64, error) {
	if s.end != nil {
		s.end()
	}
	return s.Store.End(ctx)
}

// second is another process over the same log, vault and claims, with read models of
// its own.
type second struct {
	*application.Application
	store *tapped
	views *projections.Views
	proj  *projections.Projector
	admin service.Principal
}

func (u *up) second(t testing.TB, claims service.Claims, change ...func(*application.Config)) *second {
	t.Helper()
	s := &second{store: &tapped{Store: u.store}}
	log := slog.New(slog.NewTextHandler(u.logs, nil))
	states, err := aggregates.NewLog(s.store, 100)
	must(t, err)
	s.views, err = projections.OpenViews(filepath.Join(t.TempDir(), "views.db"), projections.ViewsOptions{Logger: log})
	must(t, err)
	t.Cleanup(func() { must(t, s.views.Close()) })
	s.proj = projections.NewProjector(u.store, s.views, log)
	cfg := application.Config{
		Log: states, Views: s.views, Projector: s.proj, Vault: u.vault, Keyring: u.keyring, Logger: log, Claims: claims,
		OAuth: oauth.New(verify.NewClient(verify.Config{AllowPrivate: true})), RefreshTakeoverTimeout: time.Second,
		Poison: u.poison, Rewind: u.rewindAudit, Connections: u.connections(t), PublicURL: u.publicURL,
	}
	for _, c := range change {
		c(&cfg)
	}
	s.Application, err = application.New(cfg)
	must(t, err)
	t.Cleanup(s.Close)
	return s
}

// follow has the read models follow the log until the test ends.
func (s *second) follow(t testing.TB) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- s.proj.Run(ctx) }()
	t.Cleanup(func() { cancel(); must(t, <-ended) })
}

// ready is follow, and returns when the read models have reached the end of the log:
// before that they do not know the key.
func (s *second) ready(t testing.TB) {
	t.Helper()
	s.follow(t)
	end, err := s.store.Store.End(t.Context())
	must(t, err)
	must(t, s.proj.Wait(t.Context(), end))
}

// caughtUp brings them to the end of the log as it is now.
func (s *second) caughtUp(t testing.TB) {
	t.Helper()
	end, err := s.store.Store.End(t.Context())
	must(t, err)
	for seq := s.views.Position() + 1; seq <= end; seq++ {
		recs, err := s.store.Commit(t.Context(), seq)
		must(t, err)
		must(t, s.views.Apply(t.Context(), recs))
	}
}

func (s *second) command(ctx context.Context, t testing.TB, route, id string, in any) (any, error) {
	if s.admin.Actor.ID == "" {
		var err error
		s.admin, err = s.Access.Authenticate(t.Context(), adminKey, netip.Addr{})
		must(t, err)
	}
	return s.Serve(ctx, service.Call{Tenant: "default", Principal: s.admin, Via: "http", CommandID: id}, route, encode(t, in))
}

func (u *up) connections(t testing.TB) *kv.Connections {
	t.Helper()
	conn, err := u.node.Conn("other connections")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	connections, err := kv.OpenConnections(t.Context(), js, 1)
	must(t, err)
	return connections
}

func (u *up) claims(t testing.TB) *kv.Claims {
	t.Helper()
	conn, err := u.node.Conn("claims")
	must(t, err)
	js, err := jetstream.New(conn)
	must(t, err)
	claims, err := kv.OpenClaims(t.Context(), js, 1)
	must(t, err)
	return claims
}

// One attempt at a command hangs before its append. A repeat that finds another state
// is not refused for good while that one may be carried out; when it has come to
// nothing, it is.
func TestNoRefusalBesideAnotherAttempt(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	claims := u.claims(t)
	hung, other := u.second(t, claims), u.second(t, claims)
	hung.ready(t)
	other.ready(t)
	for _, carriedOut := range []bool{false, true} {
		id := u.create(t)
		rename := map[string]any{"id": id, "name": "Late", "expected_version": 1}
		command := fmt.Sprint("late-", carriedOut)
		reached, goOn := make(chan struct{}), make(chan struct{})
		hung.store.before = func(events.StreamID) {
			hung.store.before = nil
			close(reached)
			<-goOn
		}
		var first error
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, first = hung.command(context.WithoutCancel(t.Context()), t, "credential.rename", command, rename)
		}()
		select {
		case <-reached:
		case <-ended:
			t.Fatalf("the attempt has ended before its append: %v", first)
		}
		if !carriedOut {
			must(t, u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]any{"apiKey": "k2"}}, nil))
		}
		if carriedOut {
			close(goOn)
			<-ended
		} else if _, err := other.command(t.Context(), t, "credential.rename", command, rename); !errors.Is(err, events.ErrUnknownOutcome) {
			t.Errorf("a repeat beside an attempt that hangs is answered %v", err)
		}
		if !carriedOut {
			close(goOn)
			<-ended
		}
		_, again := other.command(t.Context(), t, "credential.rename", command, rename)
		if carriedOut && (first != nil || again != nil) {
			t.Errorf("carried out: %v, and again %v", first, again)
		}
		if !carriedOut && (!errors.Is(first, aggregates.ErrCredentialVersionStale) || !errors.Is(again, aggregates.ErrCredentialVersionStale)) {
			t.Errorf("it came to nothing: %v, and again %v", first, again)
		}
	}
}

// The read models of a process are behind, as after a kill, and the command's target has
// changed since: a repeat is answered, not refused.
func TestRepeatWithViewsBehind(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	replaced := u.create(t)
	var deleted, first done
	must(t, u.command("auth_secret.create", "", map[string]any{"workspace": "w", "component": "plain", "keys": map[string]any{"apiKey": "k"}}, &deleted))
	replace := map[string]any{"id": replaced, "keys": map[string]any{"apiKey": "k2"}, "expected_version": 1}
	remove := map[string]any{"workspace": "w", "id": deleted.ID}
	one, other := u.second(t, nil), u.second(t, nil)
	for _, late := range []*second{one, other} {
		late.caughtUp(t)
		late.store.end = sync.OnceFunc(func() { late.follow(t) }) // not before a refusal is due
	}
	must(t, u.command("credential.replace-keys", "r", replace, &first))
	must(t, u.command("credential.replace-keys", "", map[string]any{"id": replaced, "keys": map[string]any{"apiKey": "k3"}}, nil))
	must(t, u.command("auth_secret.delete", "d", remove, nil))
	again, err := one.command(t.Context(), t, "credential.replace-keys", "r", replace)
	if d, is := again.(flow.Tried); err != nil || !is || d.Seq != first.Seq || d.Version != 2 {
		t.Errorf("new keys again are answered %+v, %v", again, err)
	}
	if again, err := other.command(t.Context(), t, "auth_secret.delete", "d", remove); err != nil {
		t.Errorf("a delete again is answered %v, %v", again, err)
	}
	if _, err := one.command(t.Context(), t, "credential.replace-keys", "other", replace); !errors.Is(err, aggregates.ErrCredentialVersionStale) {
		t.Errorf("a new command is answered %v", err)
	}
}

// claimed are claims that a test listens in on.
type claimed struct {
	service.Claims
	begun func() // called when an attempt has been noted
}

func (c *claimed) Begin(ctx context.Context, key [32]byte, request, attempt string) (string, bool, error) {
	defer c.begun()
	return c.Claims.Begin(ctx, key, request, attempt)
}

// An attempt that broke off before it sent anything to the log takes its claim back:
// another process may refuse the repeat.
func TestBrokenOffAttemptTakesItsClaimBack(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	claims := &claimed{Claims: u.claims(t)}
	one, other := u.second(t, claims), u.second(t, u.claims(t))
	one.ready(t)
	other.ready(t)
	id := u.create(t)
	rename := map[string]any{"id": id, "name": "Another", "expected_version": 1}
	caller, hangUp := context.WithCancel(t.Context())
	claims.begun = hangUp
	if _, err := one.command(caller, t, "credential.rename", "r", rename); !errors.Is(err, context.Canceled) {
		t.Fatalf("an attempt that is hung up before its append ends with %v", err)
	}
	must(t, u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]any{"apiKey": "k2"}}, nil))
	await(t, "the refusal", func() (bool, error) {
		_, err := other.command(t.Context(), t, "credential.rename", "r", rename)
		if errors.Is(err, events.ErrUnknownOutcome) {
			return false, nil
		}
		if !errors.Is(err, aggregates.ErrCredentialVersionStale) {
			return false, fmt.Errorf("a repeat is answered %w", err)
		}
		return true, nil
	})
}

// The caller hangs up at each append of a command. What has begun is seen through: the
// commit is durable, what follows from it is done, and a repeat is answered.
func TestHangUpBetweenSteps(t *testing.T) {
	provider := oauthtest.NewServer(t)
	told := newRevoker(t, nil)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, told.in)
	registerAs(t, u.api, "one", sheets)
	registerAs(t, u.api, "two", sheets)
	s := u.second(t, u.claims(t))
	s.ready(t)
	var own done
	type m = map[string]any
	credentials := m{"client_id": "x", "client_secret": "y"}
	must(t, u.command("auth_client.create", "", m{"name": "Own", "type": "oauth2", "components": []string{"one"}, "credentials": credentials}, &own))
	for n := 1; n <= 3; n++ { // the append at which the caller hangs up
		id, refresh := u.connected(t, provider, "sheets")
		cut, cutRefresh := u.connected(t, provider, "sheets")
		for _, c := range []struct {
			route string
			in    m
			check func()
		}{
			{"credential.delete", m{"id": id}, func() {
				await(t, "the provider", func() (bool, error) { return slices.Contains(told.tokens(), refresh), nil })
				await(t, "the end of the secret", func() (bool, error) { return u.kept(t, id) == 0, nil })
			}},
			{"credential.revoke", m{"id": cut}, func() {
				// The program's process manager may be at it, too: it takes itself to be alone.
				await(t, "the provider", func() (bool, error) { return slices.Contains(told.tokens(), cutRefresh), nil })
				await(t, "the end of the secret", func() (bool, error) { return u.kept(t, cut) == 0, nil })
			}},
			{"auth_client.change", m{"id": own.ID, "name": fmt.Sprint("Own ", n), "components": []string{"one", "two"}[:1+n%2]}, func() {
				state, err := aggregates.AuthClient.Fresh(t.Context(), u.states, aggregates.AuthClient.Stream("default", own.ID))
				must(t, err)
				if !state.Value.Settled || len(state.Value.Components) != 1+n%2 {
					t.Errorf("the auth client is %+v", state.Value)
				}
			}},
		} {
			appends := 0
			caller, hangUp := context.WithCancel(t.Context())
			s.store.after = func(events.StreamID, uint64) {
				if appends++; appends == n {
					hangUp()
				}
			}
			first, err := s.command(caller, t, c.route, fmt.Sprint(c.route, n), c.in)
			hangUp()
			s.store.after = nil
			if err != nil {
				t.Errorf("%s, hung up at append %d: %v", c.route, n, err)
			}
			c.check()
			if again, err := s.command(t.Context(), t, c.route, fmt.Sprint(c.route, n), c.in); err != nil || !reflect.DeepEqual(first, again) {
				t.Errorf("%s, hung up at append %d, answers %+v, again %+v, %v", c.route, n, first, again, err)
			}
		}
	}
}

// What comes after its deadline is not carried out, on either surface.
func TestLateRequests(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	id := u.create(t)
	nc := u.connect(t, adminKey)
	late := time.Now().Add(-time.Second).UTC().Format(time.RFC3339Nano)
	soon := time.Now().Add(time.Minute).UTC().Format(time.RFC3339Nano)
	for _, c := range []struct{ deadline, want string }{{late, "request_late"}, {"tomorrow", "deadline_invalid"}, {soon, ""}} {
		end := logEnd(t, u.program)
		body := encode(t, map[string]any{"id": id, "name": "Name " + c.want})
		m := nats.NewMsg("credstream.cmd.default.credential.rename")
		m.Data = body
		m.Header.Set("X-Request-Deadline", c.deadline)
		answer, err := nc.RequestMsg(m, 10*time.Second)
		must(t, err)
		if got := answer.Header.Get(micro.ErrorCodeHeader); (got == "") != (c.want == "") || !strings.Contains(string(answer.Data), c.want) {
			t.Errorf("over NATS: %s %s", got, answer.Data)
		}
		req, err := http.NewRequest(http.MethodPost, u.base+"/v1/tenants/default/commands/credential.rename", bytes.NewReader(body))
		must(t, err)
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Request-Deadline", c.deadline)
		if err := u.do(req, nil); c.want != "" && code(t, err) != c.want || c.want == "" && err != nil {
			t.Errorf("over HTTP: %v", err)
		}
		if now := logEnd(t, u.program); (now == end) != (c.want != "") {
			t.Errorf("after %q the log ends at %d, before at %d", c.want, now, end)
		}
	}
}

// A view that refuses an event does not keep the service from starting: it is not
// ready and says at which event the views stand still, and what does not need them
// is carried out.
func TestStartsWithViewsThatStandStill(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	id := u.create(t)
	meta := events.Meta{Tenant: "other", Actor: events.Actor{Kind: "key", ID: "k"}, Time: time.Now().UTC(), Via: "http"}
	seq, err := u.store.Append(t.Context(), aggregates.Credential.Stream("other", "never-created"), 0, meta, events.CredentialRenamed{Name: "x"})
	must(t, err)
	u.stop()
	u = bring(t, data)
	must(t, u.command("credential.rename", "", map[string]any{"id": id, "name": "Goes on"}, nil))
	await(t, "the reason", func() (bool, error) {
		resp, err := http.Get(u.base + "/readyz")
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return resp.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(body), fmt.Sprint("commit ", seq)), err
	})
}

// A repeat beside an attempt that has ended a reservation, and not yet given back all of
// its credentials, is answered as that attempt is.
func TestRepeatBesideARelease(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	registerAs(t, u.api, "free", `{"title":"Free"}`)
	type m = map[string]any
	for route, in := range map[string]m{"flow.release": {"flow": "f"}, "flow.bind": {"flow": "f", "steps": []any{m{"id": "t", "component": "free"}}}} {
		steps := []any{m{"id": "s", "component": "plain", "credential": u.create(t)}, m{"id": "t", "component": "plain", "credential": u.create(t)}}
		must(t, u.command("flow.bind", "", m{"flow": "f", "steps": steps}, nil))
		first := u.second(t, u.claims(t))
		first.ready(t)
		reached, goOn := make(chan struct{}), make(chan struct{})
		first.store.after = func(stream events.StreamID, _ uint64) {
			if stream.Category == aggregates.Flow.Category {
				close(reached)
				<-goOn
			}
		}
		answered := make(chan any, 1)
		go func() {
			answer, err := first.command(context.WithoutCancel(t.Context()), t, route, route, in)
			if err != nil {
				t.Error(err)
			}
			answered <- answer
		}()
		<-reached
		status, again := u.raw(t, route, route, in)
		close(goOn)
		if want := encode(t, <-answered); status != http.StatusOK || !bytes.Equal(bytes.TrimSpace(again), want) {
			t.Errorf("%s is answered\n%s\nand beside it, %d\n%s", route, want, status, again)
		}
	}
}

// Two processes register ids that differ in case alone before their read models know of
// the other one: one of them is refused. A refused id can be had by the other.
func TestIDsOfOneMomentDifferInMoreThanCase(t *testing.T) {
	u := bring(t, t.TempDir())
	claims := u.claims(t)
	one, other := u.second(t, claims), u.second(t, claims)
	one.caughtUp(t)
	other.caughtUp(t)
	register := func(s *second, id string) error {
		_, err := s.command(t.Context(), t, "component.register", "", map[string]any{"id": id, "descriptor": json.RawMessage(plain)})
		return err
	}
	must(t, register(one, "Moment"))
	if err := register(other, "moment"); !errors.Is(err, components.ErrComponentIDCase) {
		t.Errorf("at the same moment: %v", err)
	}
	if err := register(other, "Moment"); !errors.Is(err, aggregates.ErrComponentIDTaken) {
		t.Errorf("the same id: %v", err)
	}
}
