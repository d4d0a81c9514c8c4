package app

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
)

// secretsOf are the ids of an owner's secrets in the vault.
func (u *up) secretsOf(t testing.TB, category, owner string) (ids []string) {
	t.Helper()
	owned, err := u.vault.Owned(t.Context(), "default", category, owner)
	must(t, err)
	for _, e := range owned {
		ids = append(ids, e.Ref.SecretID)
	}
	return ids
}

// deaths have the goroutines of a second process end at its nth append, before or
// after it is stored, and at every later one: it is as good as killed.
func (s *second) deaths(n int, stored bool) (dead <-chan struct{}) {
	died := make(chan struct{})
	var appends, over atomic.Int32
	die := func(now bool) {
		if now && over.CompareAndSwap(0, 1) {
			close(died)
		}
		if over.Load() == 1 {
			runtime.Goexit()
		}
	}
	s.store.before = func(events.StreamID) { die(int(appends.Add(1)) == n && !stored) }
	s.store.after = func(events.StreamID, uint64) { die(int(appends.Load()) == n && stored) }
	return died
}

// owing is a command that owes something outside the log when it is committed.
type owing struct {
	in              map[string]any
	category, owner string // whose secrets it drops
	token           string // that the provider is told to forget; "" when it is not told
	completed       bool   // the first commit alone owes nothing: the repeat completes the command
	check           func(where string)
}

var everyDeath = flag.Bool("everydeath", false, "TestDeathBetweenSteps dies before each append of every command, too")

// A process dies before or after any of the appends of a command. What was committed is
// completed by the process manager: the provider is told, the secrets are erased. The
// same command again is answered, and nothing is left then.
func TestDeathBetweenSteps(t *testing.T) {
	provider, told := oauthtest.NewServer(t), newRevoker(t, nil)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, told.in)
	registerPlain(t, u.base)
	claims := u.claims(t)
	type m = map[string]any
	client := m{"client_id": "x", "client_secret": "y"}
	fixtures := 0
	name := func() string { fixtures++; return fmt.Sprint("component-", fixtures) }
	for route, fixture := range map[string]func() owing{
		"credential.delete": func() owing {
			id, refresh := u.connected(t, provider, "sheets")
			return owing{in: m{"id": id}, category: "credential", owner: id, token: refresh}
		},
		"credential.revoke": func() owing {
			id, refresh := u.connected(t, provider, "sheets")
			return owing{in: m{"id": id}, category: "credential", owner: id, token: refresh}
		},
		"credential.replace-keys": func() owing {
			id, _ := u.connected(t, provider, "sheets")
			return owing{in: m{"id": id, "keys": m{"oauth": provider.Grant()}}, category: "credential", owner: id}
		},
		"oauth_client.change": func() owing {
			component, made := name(), done{}
			registerAs(t, u.api, component, sheets)
			must(t, u.command("oauth_client.define", "", m{"component": component, "client_id": "x", "client_secret": "y"}, &made))
			return owing{in: m{"id": made.ID, "client_id": "x", "client_secret": "z"}, category: "oauth_client", owner: component}
		},
		"oauth_client.delete": func() owing {
			component, made := name(), done{}
			registerAs(t, u.api, component, sheets)
			must(t, u.command("oauth_client.define", "", m{"component": component, "client_id": "x", "client_secret": "y"}, &made))
			return owing{in: m{"id": made.ID}, category: "oauth_client", owner: component}
		},
		"component.set-env": func() owing {
			component := name()
			registerAs(t, u.api, component, sheets)
			set := m{"id": component, "values": m{"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "b"}}
			must(t, u.command("component.set-env", "", set, nil))
			return owing{in: set, category: "component", owner: component}
		},
		"component.delete": func() owing {
			component := name()
			registerAs(t, u.api, component, sheets)
			must(t, u.command("component.set-env", "", m{"id": component, "values": m{"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "b"}}, nil))
			return owing{in: m{"id": component}, category: "component", owner: component}
		},
		"auth_client.change": func() owing {
			component, made := name(), done{}
			registerAs(t, u.api, component, sheets)
			must(t, u.command("auth_client.create", "", m{"name": component, "type": "oauth2", "components": []string{component}, "credentials": client}, &made))
			return owing{in: m{"id": made.ID, "credentials": m{"client_secret": "z"}}, category: "auth_client", owner: made.ID, completed: true}
		},
		"auth_client.delete": func() owing {
			component, made := name(), done{}
			registerAs(t, u.api, component, sheets)
			must(t, u.command("auth_client.create", "", m{"name": component, "type": "oauth2", "components": []string{component}, "credentials": client}, &made))
			return owing{in: m{"id": made.ID}, category: "auth_client", owner: made.ID, completed: true}
		},
		"flow.bind": func() owing {
			flow, one, other := name(), u.create(t), u.create(t)
			return owing{in: m{"flow": flow, "steps": []any{
				m{"id": "s", "component": "plain", "credential": one}, m{"id": "t", "component": "plain", "credential": other},
			}}, category: "flow", owner: flow, completed: true, check: func(where string) {
				for _, id := range []string{one, other} {
					if err := u.command("credential.delete", "", m{"id": id}, nil); code(t, err) != "credential_in_use" {
						t.Errorf("%s: credential %s is not held: %v", where, id, err)
					}
				}
			}}
		},
	} {
		t.Run(route, func(t *testing.T) {
			for n, reached := 1, true; reached; n++ {
				for _, stored := range []bool{false, true} {
					if told := route == "credential.delete" || route == "credential.revoke"; !stored && !told && !*everyDeath {
						continue // much the same as after the append before
					}
					c := fixture()
					old := u.secretsOf(t, c.category, c.owner)
					s := u.second(t, claims)
					s.ready(t)
					id := fmt.Sprintf("%s-%d-%v", route, n, stored)
					answered := make(chan struct{})
					dead := s.deaths(n, stored)
					go func() {
						defer close(answered)
						_, _ = s.command(context.WithoutCancel(t.Context()), t, route, id, c.in)
					}()
					select {
					case <-dead:
					case <-answered:
						select {
						case <-dead:
						default:
							reached = false
						}
					}
					settled := func() (bool, error) {
						left := slices.ContainsFunc(u.secretsOf(t, c.category, c.owner), func(id string) bool { return slices.Contains(old, id) })
						return !left && (c.token == "" || slices.Contains(told.tokens(), c.token)), nil
					}
					where := fmt.Sprintf("%s, dead at append %d, stored: %v", route, n, stored)
					if !c.completed && (n > 1 || stored) {
						await(t, where+": what the commit owes", settled)
					}
					status, first := u.raw(t, route, id, c.in)
					if status != http.StatusOK {
						t.Fatalf("%s: the same command again: %d %s", where, status, first)
					}
					await(t, where+": what is left after a repeat", settled)
					if _, again := u.raw(t, route, id, c.in); !bytes.Equal(first, again) || route == "credential.revoke" && !bytes.Contains(again, []byte(`"outcome":"revoked"`)) {
						t.Errorf("%s: the repeat is answered\n%s\nand again\n%s", where, first, again)
					}
					if c.check != nil {
						c.check(where)
					}
				}
			}
		})
	}
}

// A process dies when a command has acted outside the log, before that is recorded. The
// same command again does not act twice, and is answered.
func TestDeathBeforeTheRecord(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	claims := u.claims(t)
	type m = map[string]any
	dead := func() (ids []string) {
		var list struct{ Messages []struct{ ID string } }
		must(t, u.query("queue.list", "", &list))
		for _, e := range list.Messages {
			ids = append(ids, e.ID)
		}
		return ids
	}
	poison := func() string {
		_, err := u.connect(t, adminKey).Request("credstream.cmdq.default.credential.delete", encode(t, m{"id": "no-such"}), 10*time.Second)
		must(t, err)
		await(t, "the dead letter", func() (bool, error) { return len(dead()) == 1, nil })
		return dead()[0]
	}
	// came back waits until a message that was retried has failed again.
	cameBack := func(id string) {
		await(t, "the dead letter of the retry", func() (bool, error) { now := dead(); return len(now) == 1 && now[0] != id, nil })
	}
	for route, c := range map[string]struct {
		appends int // the last of them records how the command ended
		begin   func() (in m, acted func(), check func())
	}{
		"credential.refresh": {4, func() (m, func(), func()) {
			id, _ := u.connected(t, provider, "sheets")
			asked := provider.Requests()
			return m{"id": id}, func() {}, func() {
				if n := provider.Requests() - asked; n != 1 {
					t.Errorf("the provider was asked %d times", n)
				}
			}
		}},
		"queue.retry": {2, func() (m, func(), func()) {
			id := poison()
			return m{"id": id}, func() { cameBack(id) }, func() {}
		}},
		"queue.retry-all": {2, func() (m, func(), func()) {
			id := poison()
			return m{}, func() { cameBack(id) }, func() {}
		}},
		"queue.drop": {2, func() (m, func(), func()) {
			return m{"id": poison()}, func() {}, func() {}
		}},
		"queue.drop-all": {2, func() (m, func(), func()) {
			poison()
			return m{}, func() { poison() }, func() {}
		}},
		"oauth.connect": {2, func() (m, func(), func()) {
			return m{"component": "sheets"}, func() {}, func() {}
		}},
		"audit.rewind": {1, func() (m, func(), func()) { return m{"seq": 1}, func() {}, func() {} }},
	} {
		for _, behind := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/views behind=%v", route, behind), func(t *testing.T) {
				for _, id := range dead() {
					must(t, u.command("queue.drop", "", m{"id": id}, nil))
				}
				in, acted, check := c.begin()
				s := u.second(t, claims)
				s.ready(t)
				var late *second // whose views know nothing of the attempt until the repeat has looked
				late = u.second(t, noted{claims, func() { late.follow(t) }})
				late.caughtUp(t)
				died, id := s.deaths(c.appends, false), fmt.Sprint(route, behind)
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					_, _ = s.command(context.WithoutCancel(t.Context()), t, route, id, in)
				}()
				select {
				case <-died:
				case <-answered:
					select {
					case <-died:
					default:
						t.Fatal("the process did not die")
					}
				}
				acted()
				before := dead()
				if behind {
					_, err := late.command(t.Context(), t, route, id, in)
					must(t, err)
				}
				status, first := u.raw(t, route, id, in)
				if _, again := u.raw(t, route, id, in); status != http.StatusOK || !bytes.Equal(first, again) {
					t.Errorf("the repeat is answered %d %s, and again %s", status, first, again)
				}
				if now := dead(); !slices.Equal(before, now) {
					t.Errorf("dead letters before the repeat %v, after it %v", before, now)
				}
				check()
				if status, _ := u.raw(t, route, id, m{"another": 1}); status == http.StatusOK {
					t.Error("another request with the same command id is carried out")
				}
			})
		}
	}
}

// noted are claims that tell when an attempt is about to be claimed.
type noted struct {
	service.Claims
	begins func()
}

func (n noted) Begin(ctx context.Context, key [sha256.Size]byte, request, attempt string) (string, bool, error) {
	n.begins()
	return n.Claims.Begin(ctx, key, request, attempt)
}

// A provider that is down is told again for a while. Then that is a fact, and the
// secret goes; the service is ready all the time. One that comes back hears of it.
func TestProviderIsDownAtTheEnd(t *testing.T) {
	provider := oauthtest.NewServer(t)
	down := func(_ int, w http.ResponseWriter, r *http.Request) { oauthtest.Status(503, "")(w, r) }
	told := newRevoker(t, down)
	u := bring(t, t.TempDir(), func(cfg *Config) { cfg.RefreshPatience = time.Second })
	u.registerSheets(t, provider, told.in)
	last := func(id string) string { facts := u.since(t, id, 0); return facts[len(facts)-1] }
	id, refresh := u.connected(t, provider, "sheets")
	var answer revokedAnswer
	must(t, u.command("credential.delete", "", map[string]any{"id": id}, &answer))
	if !strings.Contains(answer.Says, "retries") || last(id) != "Deleted" || u.kept(t, id) != 1 {
		t.Errorf("answered %+v, the last fact is %s, %d secrets", answer, last(id), u.kept(t, id))
	}
	resp, err := http.Get(u.base + "/readyz")
	must(t, err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("readiness: %s", resp.Status)
	}
	await(t, "the end of the secret", func() (bool, error) { return u.kept(t, id) == 0, nil })
	if tokens := told.tokens(); last(id) != "RevokedAtProvider transient" || len(tokens) < 2 || tokens[0] != refresh {
		t.Errorf("told %d times, the last fact is %s", len(tokens), last(id))
	}

	again, _ := u.connected(t, provider, "sheets")
	must(t, u.command("credential.delete", "", map[string]any{"id": again}, nil))
	told.then(nil)
	await(t, "the end of the secret", func() (bool, error) { return u.kept(t, again) == 0, nil })
	if last(again) != "RevokedAtProvider revoked" {
		t.Errorf("the last fact is %s", last(again))
	}
}

// The process is killed while the provider is being told, and started again: the
// provider hears of the token, and the secret goes. The same command is answered.
func TestKilledWhileTheProviderIsTold(t *testing.T) {
	provider, hang := oauthtest.NewServer(t), make(chan struct{})
	reached := make(chan struct{}, 10)
	told := newRevoker(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		reached <- struct{}{}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	})
	defer close(hang)
	data := t.TempDir()
	p := spawn(t, data)
	caller(p).registerSheets(t, provider, told.in)
	type ending struct{ route, id, refresh string }
	var endings []ending
	for _, route := range []string{"credential.delete", "credential.revoke"} {
		id, refresh := caller(p).connected(t, provider, "sheets")
		endings = append(endings, ending{route, id, refresh})
		go func() { _ = caller(p).command(route, route, map[string]any{"id": id}, nil) }()
		<-reached
	}
	_ = p.kill(syscall.SIGKILL)
	told.then(nil)
	before := told.count()
	u := bring(t, data)
	for _, e := range endings {
		await(t, e.route+": the end of the secret", func() (bool, error) { return u.kept(t, e.id) == 0, nil })
		if facts := u.since(t, e.id, 0); facts[len(facts)-1] != "RevokedAtProvider revoked" || !slices.Contains(told.tokens()[before:], e.refresh) && told.count() == before {
			t.Errorf("%s: the facts are %v", e.route, facts)
		}
		var answer revokedAnswer
		if err := u.command(e.route, e.route, map[string]any{"id": e.id}, &answer); err != nil || e.route == "credential.revoke" && answer.Outcome != "revoked" {
			t.Errorf("%s again: %+v, %v", e.route, answer, err)
		}
	}
}

// Of two processes the one that gave the answer is killed. The other one completes what
// its commit owes.
func TestAnotherProcessFollowsUp(t *testing.T) {
	provider, hang := oauthtest.NewServer(t), make(chan struct{})
	reached := make(chan struct{}, 10)
	told := newRevoker(t, func(n int, _ http.ResponseWriter, r *http.Request) {
		if n > 1 {
			return
		}
		reached <- struct{}{}
		select {
		case <-hang:
		case <-r.Context().Done():
		}
	})
	defer close(hang)
	servers, kms := bustest.Start(t), kmsFile(t)
	begin := func() *process {
		return replica(t, servers, kms, "--allow-private-targets", "--refresh-patience", "1s")
	}
	leader, other := begin(), begin()
	caller(leader).registerSheets(t, provider, told.in)
	id, refresh := caller(leader).connected(t, provider, "sheets")
	go func() { _ = caller(leader).command("credential.delete", "", map[string]any{"id": id}, nil) }()
	<-reached
	_ = leader.kill(syscall.SIGKILL)
	await(t, "the fact", func() (bool, error) {
		var history struct {
			Events []struct {
				Type string
				Data map[string]json.RawMessage
			}
		}
		err := caller(other).query("credential.history", "id="+id, &history)
		return err == nil && slices.ContainsFunc(history.Events, func(e struct {
			Type string
			Data map[string]json.RawMessage
		},
		) bool {
			return e.Type == "credential.revoked_at_provider" && string(e.Data["outcome"]) == `"revoked"`
		}), nil
	})
	if tokens := told.tokens(); len(tokens) < 2 || tokens[0] != refresh {
		t.Errorf("the provider was told %d times", len(tokens))
	}
}

// What was followed up before a restart is not looked at again, and a checkpoint that
// the log does not bear out is none.
func TestFollowUpsGoOnFromTheCheckpoint(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	registerPlain(t, u.base)
	id := u.create(t)
	must(t, u.command("credential.delete", "", map[string]any{"id": id}, nil))
	end := logEnd(t, u.program)
	u.stop()
	u = bring(t, data)
	position, err := u.followed.Load(t.Context())
	must(t, err)
	if position.Seq < end {
		t.Errorf("the checkpoint is at %d, the log ended at %d", position.Seq, end)
	}
	must(t, u.followed.Save(t.Context(), secrets.Position{Seq: 1, Commit: "another"}))
	if got, err := u.followed.Load(t.Context()); err != nil || got != (secrets.Position{Seq: 1, Commit: "another"}) {
		t.Errorf("saved and loaded: %+v, %v", got, err)
	}
}

var stepKills = flag.Int("stepkills", 3, "processes that TestKilledBetweenSteps kills")

// The process is killed when the first of many commits of a command is on the feed, and
// started again. The same command again completes it and is answered, always alike.
func TestKilledBetweenSteps(t *testing.T) {
	type m = map[string]any
	data := t.TempDir()
	p := spawn(t, data)
	registerPlain(t, p.http)
	between := 0
	for round := range *stepKills {
		steps, ids := []any{}, []string{}
		for n := range 8 {
			ids = append(ids, caller(p).create(t))
			steps = append(steps, m{"id": fmt.Sprint("s", n), "component": "plain", "credential": ids[n]})
		}
		nc, err := nats.Connect(p.nats, nats.UserInfo("any", adminKey), nats.NoReconnect())
		must(t, err)
		begun := make(chan struct{}, 100)
		_, err = nc.Subscribe("credstream.events.default.credential.>", func(msg *nats.Msg) {
			if strings.Contains(msg.Header.Get("ce-type"), "credential.used") {
				begun <- struct{}{}
			}
		})
		must(t, err)
		must(t, nc.Flush())
		flow := fmt.Sprint("flow-", round)
		bind := m{"flow": flow, "steps": steps}
		go func(a api) { _ = a.command("flow.bind", flow, bind, nil) }(caller(p))
		select {
		case <-begun:
		case <-time.After(30 * time.Second):
			t.Fatal("no reservation is on the feed")
		}
		_ = p.kill(syscall.SIGKILL)
		nc.Close()
		p = spawn(t, data)
		var shown flowShown
		if err := caller(p).query("flow.get", "id="+flow, &shown); err != nil || shown.Binding == "" {
			between++
			// The claims died with the process: only the log knows the command id.
			other := m{"flow": "another", "steps": steps}
			if err := caller(p).command("flow.bind", flow, other, nil); code(t, err) != "command_id_reused" {
				t.Errorf("another request under the command id of the one that broke off: %v", err)
			}
		}
		status, first := caller(p).raw(t, "flow.bind", flow, bind)
		if _, again := caller(p).raw(t, "flow.bind", flow, bind); status != http.StatusOK || !bytes.Equal(first, again) {
			t.Errorf("the repeat is answered %d %s, and again %s", status, first, again)
		}
		for _, id := range ids {
			if err := caller(p).command("credential.delete", "", m{"id": id}, nil); code(t, err) != "credential_in_use" {
				t.Errorf("credential %s is not held: %v", id, err)
			}
		}
		if status, _ := caller(p).raw(t, "flow.bind", flow, m{"flow": "another", "steps": steps}); status == http.StatusOK {
			t.Error("another request with the same command id is carried out")
		}
	}
	t.Logf("%d of %d kills fell between two commits", between, *stepKills)
}

// A process dies when it has revoked tokens and the provider has not confirmed that. The
// repeat says what became of it, as the first answer would have.
func TestResumedRevocationSaysWhatBecameOfIt(t *testing.T) {
	provider := oauthtest.NewServer(t)
	refusing := newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) { oauthtest.Status(400, "invalid_client")(w, r) })
	for _, c := range []struct {
		change  func(map[string]any)
		appends int
		outcome string
		says    string
	}{
		{refusing.in, 3, "client_refused", "did not confirm"},
		{func(block map[string]any) { delete(block, "revocation_uri") }, 2, "not_offered", "no revocation_uri"},
	} {
		t.Run(c.outcome, func(t *testing.T) {
			u := bring(t, t.TempDir())
			u.registerSheets(t, provider, c.change)
			id, _ := u.connected(t, provider, "sheets")
			s := u.second(t, u.claims(t))
			s.ready(t)
			dead := s.deaths(c.appends, true)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				_, _ = s.command(context.WithoutCancel(t.Context()), t, "credential.revoke", c.outcome, map[string]any{"id": id})
			}()
			select {
			case <-dead:
			case <-answered: // the process manager was faster
			}
			await(t, "the end of the secret", func() (bool, error) { return u.kept(t, id) == 0, nil })
			var answer revokedAnswer
			must(t, u.command("credential.revoke", c.outcome, map[string]any{"id": id}, &answer))
			if answer.Outcome != c.outcome || !strings.Contains(answer.Says, c.says) {
				t.Errorf("answered %+v", answer)
			}
		})
	}
}

// A command was carried out to its end in one process. Another one, whose read models know
// nothing of it yet, finds nothing left to do, and repeats its answer nevertheless.
func TestRepeatBeyondTheViews(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, func(block map[string]any) { delete(block, "revocation_uri") })
	id, _ := u.connected(t, provider, "sheets")
	late := u.second(t, u.claims(t))
	late.caughtUp(t)
	in := map[string]any{"id": id}
	var first revokedAnswer
	must(t, u.command("credential.revoke", "once", in, &first))
	if first.Outcome != "not_offered" {
		t.Fatalf("revoked: %+v", first)
	}
	var follow sync.Once
	late.store.end = func() { follow.Do(func() { late.follow(t) }) }
	again, err := late.command(t.Context(), t, "credential.revoke", "once", in)
	must(t, err)
	var repeat revokedAnswer
	must(t, json.Unmarshal(encode(t, again), &repeat))
	if repeat.Outcome != first.Outcome || repeat.Says != first.Says {
		t.Errorf("answered %+v, and in another process %+v", first, repeat)
	}
}
