package app

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// spy is a server of an attacker: it answers every dry request and keeps what it got.
type spy struct {
	*httptest.Server
	mu        sync.Mutex
	got       []string
	connected int
}

func newSpy(t *testing.T) *spy {
	s := &spy{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.got = append(s.got, r.Header.Get("api-key"))
	}))
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.connected++
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// connections counts all that were made to the server, whatever was sent.
func (s *spy) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.connected
}

func (s *spy) saw(secret string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.got, " "), secret)
}

// probing is a descriptor whose dry request goes to a server under one of
// loopback's names.
func probing(server *httptest.Server, host string, shown bool) map[string]any {
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	return map[string]any{
		"title": "Probed",
		"credentials": map[string]any{"fields": map[string]any{
			"apiKey": map[string]any{"viewClass": "TextFieldView", "required": true, "secret": !shown},
		}},
		"hosts": []string{host},
		"verification": map[string]any{"http": map[string]any{
			"url": "http://" + host + ":" + port + "/", "headers": map[string]string{"api-key": "{{apiKey}}"},
		}},
	}
}

// The owner of a shared component moves its probe to a server of its own, or
// takes the mask off a field. Neither reaches keys that were entered before.
func TestComponentOwnerGetsNoOldSecret(t *testing.T) {
	u := bring(t, t.TempDir())
	honest, thief := newPetstore(t, "x"), newSpy(t)
	honest.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	must(t, u.command("tenant.register", "", map[string]any{"id": "victim"}, nil))
	must(t, u.command("component.register", "", map[string]any{"id": "c", "descriptor": probing(honest.Server, "127.0.0.1", false)}, nil))
	must(t, u.command("component.share", "", map[string]any{"id": "c"}, nil))
	victim := u.api
	victim.tenant = "victim"
	var d done
	must(t, victim.command("credential.create", "", map[string]any{"component": "c", "keys": map[string]string{"apiKey": "first-secret"}}, &d))
	must(t, victim.command("credential.replace-keys", "", map[string]any{"id": d.ID, "keys": map[string]string{"apiKey": "second-secret"}}, nil))
	must(t, u.command("component.update", "", map[string]any{"id": "c", "descriptor": probing(thief.Server, "localhost", true)}, nil))
	for _, version := range []int{2, 1} {
		_ = victim.command("credential.revert", "", map[string]any{"id": d.ID, "version": version}, &d) // may be refused, may not leak
	}
	must(t, victim.command("credential.verify", "", map[string]any{"id": d.ID}, &d))
	if thief.saw("secret") {
		t.Errorf("the thief's server got %q", thief.got)
	}
	var s shown
	must(t, victim.query("credential.get", fmt.Sprint("id=", d.ID, "&min_seq=", d.Seq), &s))
	if s.Keys["apiKey"] != "********" {
		t.Errorf("a value entered as a secret is shown: %v", s.Keys)
	}
}

// One command id is one command, whatever it is aimed at.
func TestCommandIDOnSeveralTargets(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	var ids []string
	for range 10 {
		var d done
		must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]string{"apiKey": "k"}}, &d))
		ids = append(ids, d.ID)
	}
	for round := range 10 {
		var mu sync.Mutex
		var all sync.WaitGroup
		obeyed := 0
		for _, id := range ids {
			all.Go(func() {
				err := u.command("credential.rename", fmt.Sprint("round-", round), map[string]any{"id": id, "name": fmt.Sprint("round ", round)}, nil)
				mu.Lock()
				defer mu.Unlock()
				if c := code(t, err); c == "" {
					obeyed++
				} else if c != "command_id_reused" {
					t.Errorf("answers %s", c)
				}
			})
		}
		all.Wait()
		if obeyed != 1 {
			t.Errorf("one command id was obeyed %d times", obeyed)
		}
	}
}

// Whatever races with a delete, no secret is left behind.
func TestDeleteLeavesNoSecret(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	for range 40 {
		var d done
		must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]string{"apiKey": "k"}}, &d))
		var all sync.WaitGroup
		for name, in := range map[string]map[string]any{
			"credential.replace-keys": {"id": d.ID, "keys": map[string]string{"apiKey": "l"}},
			"credential.revert":       {"id": d.ID, "version": 1},
			"credential.verify":       {"id": d.ID},
			"credential.delete":       {"id": d.ID},
		} {
			all.Go(func() {
				switch c := code(t, u.command(name, "", in, nil)); c {
				case "", "credential_not_found", "credential_version_stale":
				default:
					t.Errorf("%s answers %s", name, c)
				}
			})
		}
		all.Wait()
	}
	if n := vaultSize(t, u); n != 0 {
		t.Errorf("%d secrets of deleted credentials are left", n)
	}
}

// A tenant's administrator is none of the installation.
func TestTenantAdministrator(t *testing.T) {
	u := bring(t, t.TempDir())
	var issued struct{ Key string }
	must(t, u.command("api_key.issue", "", map[string]any{"role": "ADMINISTRATOR"}, &issued))
	small := u.api
	small.key = issued.Key
	for name, in := range map[string]map[string]any{
		"tenant.register": {"id": "mine"},
		"views.rebuild":   {},
	} {
		if got := code(t, small.command(name, "", in, nil)); got != "permission_denied" {
			t.Errorf("%s answers %s", name, got)
		}
	}
	if got := code(t, small.command("api_key.revoke", "", map[string]any{"id": "first-administrator"}, nil)); got != "api_key_exceeds_issuer" {
		t.Errorf("revoking the installation's key answers %s", got)
	}
	if got := code(t, u.command("api_key.revoke", "", map[string]any{"id": "first-administrator"}, nil)); got != "api_key_own" {
		t.Errorf("a key revoking itself answers %s", got)
	}
}

// With an administrator's key on plain NATS: what the port does not offer is
// refused, what a header or a reply subject smuggles in has no effect, and the log
// stands as it stood.
func TestAttacksOnNATS(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	var d done
	must(t, u.command("credential.create", "", map[string]any{"component": "plain", "keys": map[string]string{"apiKey": "k"}}, &d))
	nc, err := nats.Connect(u.node.ClientURL(), nats.UserInfo("x", adminKey), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	must(t, err)
	defer nc.Close()
	before, err := u.store.End(t.Context())
	must(t, err)
	ask := func(subject, body string) {
		t.Helper()
		if m, err := nc.Request(subject, []byte(body), 100*time.Millisecond); err == nil {
			t.Errorf("%s is answered: %s", subject, m.Data)
		}
	}
	for _, stream := range []string{"CREDSTREAM_LOG", "CREDSTREAM_VAULT", "CREDSTREAM_FEED", "CREDSTREAM_AUDIT", "KV_CREDSTREAM_KEYS"} {
		ask("$JS.API.STREAM.DELETE."+stream, "")
		ask("$JS.API.STREAM.UPDATE."+stream, `{"name":"`+stream+`","max_msgs":1}`)
		ask("$JS.API.STREAM.PURGE."+stream, "")
		ask("$JS.API.STREAM.MSG.GET."+stream, `{"seq":1}`)
		ask("$JS.API.DIRECT.GET."+stream, `{"seq":1}`)
		ask("$JS.API.CONSUMER.CREATE."+stream+".spy", `{"stream_name":"`+stream+`","config":{"name":"spy"}}`)
	}
	log := "credstream.log.default.credential." + d.ID
	ask(log, "{}")
	ask("credstream.vault.default.credential.x.y", "{}")
	ask("credstream.events.default.credential.x", "{}")

	// A query whose answer is directed into the log, the vault or the stream API.
	for _, reply := range []string{log, "credstream.vault.a.b.c.d", "$JS.API.STREAM.DELETE.CREDSTREAM_LOG", "$KV.CREDSTREAM_KEYS.default"} {
		must(t, nc.PublishRequest("credstream.query.default.credential.list", reply, []byte("{}")))
	}
	// Headers that would break what is made of them.
	for _, correlation := range []string{strings.Repeat("x", 70_000), "\x1b[31m", "\xff\xfe", "a b"} {
		msg := nats.NewMsg("credstream.cmd.default.credential.rename")
		msg.Header.Set("X-Correlation-Id", correlation)
		msg.Data = []byte(`{"id":"` + d.ID + `","name":"smuggled"}`)
		resp, err := nc.RequestMsg(msg, 10*time.Second)
		must(t, err)
		var problem apiError
		must(t, json.Unmarshal(resp.Data, &problem))
		if problem.Code != "correlation_id_invalid" {
			t.Errorf("a correlation id of %d bytes answers %q", len(correlation), problem.Code)
		}
	}
	must(t, nc.Flush())
	must(t, u.query("credential.get", "id="+d.ID, nil))
	after, err := u.store.End(t.Context())
	must(t, err)
	if after != before {
		t.Errorf("the log went from %d to %d", before, after)
	}
	own, err := u.node.Conn("test")
	must(t, err)
	js, err := jetstream.New(own)
	must(t, err)
	for name, want := range map[string]uint64{"CREDSTREAM_LOG": before, "CREDSTREAM_VAULT": 1} {
		s, err := js.Stream(t.Context(), name)
		must(t, err)
		if got := s.CachedInfo().State.Msgs; got != want {
			t.Errorf("%s holds %d messages, want %d", name, got, want)
		}
	}
}
