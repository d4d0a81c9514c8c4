package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/vault"
)

var drill = flag.Int("revocation-drill", 200, "credentials of the drill that revokes all")

// revoker is a revocation endpoint that writes down what it is told to forget, and
// answers as it is told.
type revoker struct {
	*httptest.Server
	mu     sync.Mutex
	seen   []url.Values
	answer func(n int, w http.ResponseWriter, r *http.Request) // n from 1; nil: 200
}

func newRevoker(t testing.TB, answer func(n int, w http.ResponseWriter, r *http.Request)) *revoker {
	v := &revoker{answer: answer}
	v.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		v.mu.Lock()
		v.seen = append(v.seen, r.PostForm)
		n, answer := len(v.seen), v.answer
		v.mu.Unlock()
		if answer != nil {
			answer(n, w, r)
		}
	}))
	t.Cleanup(v.Close)
	return v
}

// then has the endpoint answer otherwise from now on.
func (v *revoker) then(answer func(n int, w http.ResponseWriter, r *http.Request)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.answer = answer
}

// in names the endpoint in a component's oauth2 block.
func (v *revoker) in(block map[string]any) { block["revocation_uri"] = v.URL + "/revoke" }

func (v *revoker) count() int { return len(v.forms()) }

func (v *revoker) forms() []url.Values {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.seen)
}

// tokens are those it was told to forget, sorted.
func (v *revoker) tokens() (all []string) {
	for _, form := range v.forms() {
		all = append(all, form.Get("token"))
	}
	slices.Sort(all)
	return all
}

// connected makes a credential of tokens that the provider has just granted.
func (a api) connected(t testing.TB, p *oauthtest.Server, component string) (id, refresh string) {
	t.Helper()
	tokens := p.Grant()
	var made done
	must(t, a.command("credential.create", "", map[string]any{"component": component, "keys": map[string]any{"oauth": tokens}}, &made))
	return made.ID, tokens["refresh_token"].(string)
}

// revokedAnswer is the answer to credential.revoke.
type revokedAnswer struct {
	Seq     uint64
	ID      string
	Status  string
	Outcome string
	Says    string
}

func (a api) revoke(t testing.TB, id string) (answer revokedAnswer) {
	t.Helper()
	must(t, a.command("credential.revoke", "", map[string]any{"id": id}, &answer))
	return answer
}

// since are the names of the facts about a credential after the first n.
func (u *up) since(t testing.TB, id string, n int) (names []string) {
	t.Helper()
	for _, e := range u.facts(t, id)[n:] {
		name := strings.TrimPrefix(fmt.Sprintf("%T", e), "events.Credential")
		switch e := e.(type) {
		case events.CredentialReauthorizationRequired:
			name += " " + e.Reason
		case events.CredentialRevokedAtProvider:
			name += " " + e.Outcome
		}
		names = append(names, name)
	}
	return names
}

// kept is the number of a credential's secrets in the vault.
func (u *up) kept(t testing.TB, id string) int {
	t.Helper()
	owned, err := u.vault.Owned(t.Context(), "default", aggregates.Credential.Category, id)
	must(t, err)
	return len(owned)
}

// Whatever the provider says, the tokens are given up here, and it is said and
// recorded what it said.
func TestRevoke(t *testing.T) {
	provider := oauthtest.NewServer(t)
	for name, c := range map[string]struct {
		block func(t *testing.T) func(map[string]any)
		want  string
		fact  bool
	}{
		"confirmed": {func(*testing.T) func(map[string]any) { return func(map[string]any) {} }, "revoked", true},
		"out of reach": {func(t *testing.T) func(map[string]any) {
			return newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) { oauthtest.Hangup(w, r) }).in
		}, "transient", true},
		"in trouble": {func(t *testing.T) func(map[string]any) {
			return newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) { oauthtest.Status(503, "")(w, r) }).in
		}, "transient", true},
		"the client is not accepted": {func(t *testing.T) func(map[string]any) {
			return newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) { oauthtest.Status(401, "invalid_client")(w, r) }).in
		}, "client_refused", true},
		"no endpoint": {func(*testing.T) func(map[string]any) {
			return func(block map[string]any) { delete(block, "revocation_uri") }
		}, "not_offered", false},
	} {
		t.Run(name, func(t *testing.T) {
			u := bring(t, t.TempDir())
			u.registerSheets(t, provider, c.block(t))
			id, refresh := u.connected(t, provider, "sheets")
			had := len(u.facts(t, id))
			answer := u.revoke(t, id)
			if answer.Outcome != c.want || answer.Status != "reauthorization_required" || answer.ID != id {
				t.Errorf("answered %+v", answer)
			}
			if (answer.Says == "") != (c.want == "revoked") || answer.Says != "" && !strings.HasSuffix(answer.Says, ".") && !strings.HasSuffix(answer.Says, ")") {
				t.Errorf("says %q", answer.Says)
			}
			want := []string{"ReauthorizationRequired revoked_here", "TokensRevoked"}
			if c.fact {
				want = append(want, "RevokedAtProvider "+c.want)
			}
			if diff := cmp.Diff(want, u.since(t, id, had)); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
			if provider.Live(refresh) != (c.want != "revoked") {
				t.Errorf("at the provider the token is good: %v", provider.Live(refresh))
			}
			if n := u.kept(t, id); n != 0 {
				t.Errorf("the vault keeps %d secrets", n)
			}
			for _, verb := range []string{"refresh", "verify"} {
				if err := u.command("credential."+verb, "", map[string]any{"id": id}, nil); code(t, err) != "reauthorization_required" {
					t.Errorf("%s afterwards: %v", verb, err)
				}
			}
			if again := u.revoke(t, id); again.Outcome != "" || again.Status != "reauthorization_required" {
				t.Errorf("again it is answered %+v", again)
			}
			metrics, err := http.Get(u.base + "/metrics")
			must(t, err)
			text, err := io.ReadAll(metrics.Body)
			must(t, err)
			_ = metrics.Body.Close()
			line := fmt.Sprintf("credstream_token_revocations_total{outcome=%q} 1\n", c.want)
			if c.fact != bytes.Contains(text, []byte(line)) {
				t.Errorf("the metrics say %s: %v", line, !c.fact)
			}
			// New tokens make it whole.
			must(t, u.command("credential.replace-keys", "", map[string]any{"id": id, "keys": map[string]any{"oauth": provider.Grant()}}, nil))
			if now := u.tokens(t, id); now.ReauthReason != "" || now.Field == "" {
				t.Errorf("connected again: %+v", now)
			}
		})
	}
}

// What holds no tokens is not revoked, and an access token is where that is all there is.
func TestRevokeWithoutRefreshToken(t *testing.T) {
	provider, told := oauthtest.NewServer(t), newRevoker(t, nil)
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	if err := u.command("credential.revoke", "", map[string]any{"id": u.create(t)}, nil); code(t, err) != "credential_not_oauth" {
		t.Errorf("a credential of a key: %v", err)
	}
	if err := u.command("credential.revoke", "", map[string]any{"id": "nobody"}, nil); code(t, err) != "credential_not_found" {
		t.Errorf("an unknown one: %v", err)
	}
	u.registerSheets(t, provider, told.in, func(block map[string]any) { block["grant_type"] = "client_credentials" })
	var made done
	must(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{}}, &made))
	if answer := u.revoke(t, made.ID); answer.Outcome != "revoked" {
		t.Errorf("answered %+v", answer)
	}
	forms := told.forms()
	if len(forms) != 1 || forms[0].Get("token_type_hint") != "access_token" || forms[0].Get("client_secret") != oauthtest.ClientSecret {
		t.Errorf("the provider was told %d times", len(forms))
	}
}

// issued writes down the refresh tokens that a provider gives from now on.
func issued(p *oauthtest.Server) func() []string {
	var mu sync.Mutex
	var all []string
	p.Mangle(func(answer map[string]any) {
		mu.Lock()
		defer mu.Unlock()
		if token, ok := answer["refresh_token"].(string); ok {
			all = append(all, token)
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// A renewal under way does not bring the tokens back, and what the provider gave in
// it is told to be forgotten, too: by whoever knows of it.
func TestRevokeDuringARenewal(t *testing.T) {
	for name, end := range map[string]string{"revoke": "credential.revoke", "delete": "credential.delete"} {
		t.Run(name, func(t *testing.T) {
			provider, told := oauthtest.NewServer(t), newRevoker(t, nil)
			u := bring(t, t.TempDir())
			u.registerSheets(t, provider, told.in)
			id, first := u.connected(t, provider, "sheets")
			given := issued(provider)
			reached, goOn := make(chan struct{}), make(chan struct{})
			provider.After(func(*http.Request) { close(reached); <-goOn })
			renewed := make(chan error, 1)
			go func() { renewed <- u.command("credential.refresh", "", map[string]any{"id": id}, nil) }()
			<-reached
			must(t, u.command(end, "", map[string]any{"id": id}, nil))
			if got := told.tokens(); !slices.Equal(got, []string{first}) {
				t.Errorf("told of %d tokens before the renewal has ended", len(got))
			}
			close(goOn)
			<-renewed
			want := append(given(), first)
			slices.Sort(want)
			if got := told.tokens(); len(want) != 2 || !slices.Equal(got, want) {
				t.Errorf("the provider was told of %d of %d tokens", len(got), len(want))
			}
			if n := u.kept(t, id); n != 0 {
				t.Errorf("the vault keeps %d secrets", n)
			}
			if now := u.tokens(t, id); now.Token.SecretID != "" || now.Refresh.Epoch != 0 {
				t.Errorf("tokens are %+v", now)
			}
		})
	}
}

// The answer that a dead process left in the vault is among what is forgotten.
func TestRevokeWhatADeadProcessLeft(t *testing.T) {
	t.Parallel()
	provider, told := oauthtest.NewServer(t), newRevoker(t, nil)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, told.in)
	id, first := u.connected(t, provider, "sheets")
	given := issued(provider)
	dead := make(chan struct{})
	dying := u.beside(t, "dying", func(step string) {
		if step == "stored" {
			close(dead)
			runtime.Goexit()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-dead; cancel() }()
	if err := refreshBy(ctx, t, dying, id); err == nil {
		t.Fatal("the dead answered")
	}
	u.revoke(t, id)
	want := append(given(), first)
	slices.Sort(want)
	if got := told.tokens(); len(want) != 2 || !slices.Equal(got, want) {
		t.Errorf("the provider was told of %d of %d tokens", len(got), len(want))
	}
	if n := u.kept(t, id); n != 0 {
		t.Errorf("the vault keeps %d secrets", n)
	}
}

// A revocation that broke off before the provider was told, without anybody who would
// repeat it, is completed by the process manager.
func TestRevocationIsCompletedAfterACrash(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	id, refresh := u.connected(t, provider, "sheets")
	had := len(u.facts(t, id))
	_, _, err := aggregates.Credential.Execute(t.Context(), u.states, "default", commands.RequireReauthorization{
		ID: id, Grant: 1, Reason: aggregates.ReasonRevokedHere, Says: aggregates.RevokedHere,
	}, events.Meta{Tenant: "default", Actor: events.Actor{Kind: "key", ID: "k"}, Command: "c", Via: "http"}, nil)
	must(t, err)
	await(t, "the end of the secret", func() (bool, error) { return u.kept(t, id) == 0, nil })
	if provider.Live(refresh) {
		t.Error("the provider was not told")
	}
	want := []string{"ReauthorizationRequired revoked_here", "TokensRevoked", "RevokedAtProvider revoked"}
	if diff := cmp.Diff(want, u.since(t, id, had)); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

// Deleting an OAuth credential tells its provider, behind the answer when that takes long.
func TestDeleteTellsTheProvider(t *testing.T) {
	provider := oauthtest.NewServer(t)
	hold, reached := make(chan struct{}), make(chan struct{}, 10)
	told := newRevoker(t, func(_ int, _ http.ResponseWriter, r *http.Request) {
		reached <- struct{}{}
		select {
		case <-hold:
		case <-r.Context().Done():
		}
	})
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, told.in)
	id, refresh := u.connected(t, provider, "sheets")
	must(t, u.command("flow.bind", "", map[string]any{"flow": "f", "steps": []any{map[string]any{"id": "s", "component": "sheets", "credential": id}}}, nil))
	if err := u.command("credential.delete", "", map[string]any{"id": id}, nil); code(t, err) != "credential_in_use" {
		t.Fatalf("a credential in use: %v", err)
	}
	must(t, u.command("flow.release", "", map[string]any{"flow": "f"}, nil))
	if told.count() != 0 {
		t.Error("a delete that was refused was told of")
	}
	must(t, u.command("credential.delete", "", map[string]any{"id": id}, nil)) // answers while the provider does not
	<-reached
	if u.kept(t, id) != 1 {
		t.Error("the secret is erased before the provider was told: a crash would leave nobody to tell it")
	}
	close(hold)
	last := func() string { facts := u.since(t, id, 0); return facts[len(facts)-1] }
	await(t, "the fact", func() (bool, error) { return last() == "RevokedAtProvider revoked", nil })
	await(t, "the end of the secret", func() (bool, error) { return u.kept(t, id) == 0, nil })
	if got := told.tokens(); !slices.Equal(got, []string{refresh}) {
		t.Errorf("told %d times", len(got))
	}

	// A provider that answers soon is in the answer, when there is something to say.
	quick, gone := u.connected(t, provider, "sheets")
	told.then(func(_ int, w http.ResponseWriter, r *http.Request) { oauthtest.Status(401, "invalid_client")(w, r) })
	var answer revokedAnswer
	must(t, u.command("credential.delete", "", map[string]any{"id": quick}, &answer))
	if !strings.Contains(answer.Says, "invalid_client") || !slices.Contains(told.tokens(), gone) {
		t.Errorf("answered %+v", answer)
	}
}

// progress is the answer of oauth.revocation.
type progress struct {
	ID          string
	Here        bool
	Running     bool
	Total, Done int
	Erased      int
	AtProvider  int `json:"at_provider"`
	NotOffered  int `json:"not_offered"`
	Failed      int
	Failures    []struct{ Credential, Outcome, Says string }
	Left        int

	givenUp time.Duration // from the start until all were
}

// revokeAll revokes in bulk and returns the progress at the end.
func (a api) revokeAll(t testing.TB, scope map[string]any) (p progress) {
	t.Helper()
	var started struct {
		ID    string
		Total int
	}
	must(t, a.command("oauth.revoke", "", scope, &started))
	begin := time.Now()
	for p.Running = true; p.Running; {
		before := p
		await(t, "progress of the revocation", func() (bool, error) {
			p = progress{}
			err := a.query("oauth.revocation", "id="+started.ID, &p)
			if p.givenUp = before.givenUp; p.givenUp == 0 && p.Done == p.Total {
				p.givenUp = time.Since(begin)
			}
			return !p.Running || p.Done+p.Erased > before.Done+before.Erased, err
		})
	}
	if p.ID != started.ID || p.Total != started.Total || !p.Here {
		t.Errorf("started %+v, ended %+v", started, p)
	}
	return p
}

// The drill: all tokens of a tenant are stolen.
func TestRevocationDrill(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	u.registerSheets(t, provider)
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, nil))
	other := u.in("other")
	must(t, other.command("oauth_client.define", "", map[string]any{"component": "sheets", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}, nil))
	registerPlain(t, u.base)
	plain := u.create(t)
	_, theirs := other.connected(t, provider, "sheets")

	refresh := make([]string, *drill)
	ids := make([]string, *drill)
	var makers sync.WaitGroup
	for w := range 8 {
		makers.Go(func() {
			for i := w; i < *drill; i += 8 {
				ids[i], refresh[i] = u.connected(t, provider, "sheets")
			}
		})
	}
	makers.Wait()
	if t.Failed() {
		return
	}
	var started struct{ Total int }
	must(t, u.command("oauth.revoke", "", map[string]any{"all": true, "dry_run": true}, &started))
	if started.Total != *drill {
		t.Fatalf("a dry run tells of %d", started.Total)
	}
	begin := time.Now()
	p := u.revokeAll(t, map[string]any{"all": true})
	took := time.Since(begin)
	if p.Done != *drill || p.AtProvider != *drill || p.Erased != *drill || p.Failed != 0 || len(p.Failures) != 0 {
		t.Errorf("revoked: %+v", p)
	}
	for i, token := range refresh {
		if provider.Live(token) {
			t.Fatalf("the tokens of %s are good at the provider", ids[i])
		}
	}
	if n := provider.Revocations(); n != *drill {
		t.Errorf("%d requests reached the provider", n)
	}
	if !provider.Live(theirs) {
		t.Error("another tenant's tokens are revoked")
	}
	if n := u.kept(t, ids[0]) + u.kept(t, ids[*drill-1]); n != 0 {
		t.Errorf("the vault keeps %d secrets", n)
	}
	if u.kept(t, plain) != 1 {
		t.Error("a credential without tokens has lost its keys")
	}
	var actor string
	for rec, err := range u.store.Stream(t.Context(), aggregates.Credential.Stream("default", ids[0]), 0) {
		must(t, err)
		actor = rec.Meta.Actor.Kind + ":" + rec.Meta.Actor.ID
	}
	if actor != "key:first-administrator" {
		t.Errorf("the last fact is of %s", actor)
	}
	// Again there is nothing left, here and in what the views know.
	if p := u.revokeAll(t, map[string]any{"all": true}); p.Total != 0 {
		t.Errorf("again: %+v", p)
	}
	await(t, "an empty list", func() (bool, error) {
		var p progress
		err := u.query("oauth.revocation", "", &p)
		return p.Left == 0, err
	})
	t.Logf("%d credentials: revoked after %v (%.0f a second), their secrets erased after %v", *drill,
		p.givenUp.Round(time.Millisecond), float64(*drill)/p.givenUp.Seconds(), took.Round(time.Millisecond))
}

// Whose tokens are revoked, what counts as failed, and that one is under way at a time.
func TestRevokeInBulk(t *testing.T) {
	provider := oauthtest.NewServer(t)
	hold, reached := make(chan struct{}), make(chan struct{}, 100)
	refusing := newRevoker(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1: // comes again, and is confirmed then
			oauthtest.Status(503, "")(w, r)
		case 2:
			oauthtest.Status(400, "unsupported_token_type")(w, r)
		}
	})
	holding := newRevoker(t, func(int, http.ResponseWriter, *http.Request) { reached <- struct{}{}; <-hold })
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, refusing.in)
	client := map[string]string{}
	for id, change := range map[string]func(map[string]any){
		"slow": holding.in, "mute": func(block map[string]any) { delete(block, "revocation_uri") },
	} {
		block := provider.Block()
		change(block)
		must(t, u.command("component.register", "", map[string]any{"id": id, "descriptor": map[string]any{
			"title": id, "useOAuthClient": true, "credentials": map[string]any{
				"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView"}}, "oauth2": block,
			},
		}}, nil))
		var made done
		must(t, u.command("oauth_client.define", "", map[string]any{"component": id, "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}, &made))
		client[id] = made.ID
	}
	for range 3 {
		for _, component := range []string{"sheets", "slow", "mute"} {
			u.connected(t, provider, component)
		}
	}
	for _, c := range []struct {
		scope map[string]any
		code  string
	}{
		{map[string]any{}, "revocation_scope_invalid"},
		{map[string]any{"all": true, "component": "sheets"}, "revocation_scope_invalid"},
		{map[string]any{"component": "nowhere"}, "component_not_found"},
		{map[string]any{"oauth_client": "nobody"}, "oauth_client_not_found"},
	} {
		if err := u.command("oauth.revoke", "", c.scope, nil); code(t, err) != c.code {
			t.Errorf("%v: %v", c.scope, err)
		}
	}

	if p := u.revokeAll(t, map[string]any{"component": "sheets"}); p.Total != 3 || p.Done != 3 || p.AtProvider != 2 || p.Failed != 1 ||
		len(p.Failures) != 1 || p.Failures[0].Outcome != "refused" || p.Failures[0].Says == "" {
		t.Errorf("of a component: %+v", p)
	}
	if p := u.revokeAll(t, map[string]any{"oauth_client": client["mute"]}); p.Total != 3 || p.Done != 3 || p.NotOffered != 3 || p.Failed != 0 {
		t.Errorf("of a client: %+v", p)
	}

	// While one is under way: a second one waits for its end, the same command is
	// the same, and another process tells what is left.
	var first, again struct {
		ID    string
		Total int
	}
	must(t, u.command("oauth.revoke", "drill-1", map[string]any{"all": true}, &first))
	<-reached
	if err := u.command("oauth.revoke", "", map[string]any{"all": true}, nil); code(t, err) != "revocation_under_way" {
		t.Errorf("a second one: %v", err)
	}
	must(t, u.command("oauth.revoke", "drill-1", map[string]any{"all": true}, &again))
	if first != again || first.Total != 3 {
		t.Errorf("the same command answers %+v, at first %+v", again, first)
	}
	elsewhere := u.beside(t, "elsewhere", nil)
	var p progress
	must(t, answerBy(t.Context(), elsewhere, "default", "oauth.revocation", map[string]any{"id": first.ID}, &p))
	if p.Here || p.Left != 3 || p.ID != first.ID {
		t.Errorf("another process tells %+v", p)
	}
	close(hold)
	await(t, "the end", func() (bool, error) {
		err := u.query("oauth.revocation", "", &p)
		return !p.Running && p.Left == 0, err
	})
	if p.Done != 3 || p.AtProvider != 3 {
		t.Errorf("at the end: %+v", p)
	}
}

// answerBy asks a service in the name of the administrator.
func answerBy(ctx context.Context, s *application.Application, tenant, route string, in, out any) error {
	admin, err := s.Access.Authenticate(ctx, adminKey, netip.Addr{})
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	answer, err := s.Serve(ctx, service.Call{Tenant: tenant, Principal: admin, Via: "http"}, route, body)
	if err != nil || out == nil {
		return err
	}
	if body, err = json.Marshal(answer); err != nil {
		return err
	}
	return json.Unmarshal(body, out)
}

// A process ends in the middle of a revocation. The same command goes on with what
// is left, beside the process manager, and the provider is told of every token.
func TestRevokeInBulkGoesOn(t *testing.T) {
	provider := oauthtest.NewServer(t)
	stop, reached := make(chan struct{}), make(chan struct{}, 100)
	told := newRevoker(t, func(n int, _ http.ResponseWriter, _ *http.Request) {
		if n > 5 {
			reached <- struct{}{}
			<-stop
		}
	})
	u := bring(t, t.TempDir())
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	u.registerSheets(t, provider, told.in)
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, nil))
	other := u.in("other")
	must(t, other.command("oauth_client.define", "", map[string]any{"component": "sheets", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}, nil))
	var want []string
	for range 30 {
		_, refresh := u.connected(t, provider, "sheets")
		want = append(want, refresh)
	}
	id, _ := other.connected(t, provider, "sheets")
	ending := u.beside(t, "ending", nil)
	must(t, answerBy(t.Context(), ending, "default", "oauth.revoke", map[string]any{"all": true}, nil))
	<-reached
	closed := make(chan struct{})
	go func() { ending.Close(); close(closed) }()
	await(t, "the end of the process", func() (bool, error) {
		err := answerBy(t.Context(), ending, "other", "credential.refresh", map[string]any{"id": id}, nil)
		if errors.Is(err, fault.ErrUnavailable) {
			return true, nil
		}
		return false, err
	})
	close(stop)
	<-closed
	told.then(nil)
	p := u.revokeAll(t, map[string]any{"all": true})
	if p.Total > 25 || p.Done != p.Total || p.Failed != 0 {
		t.Errorf("what was left: %+v", p)
	}
	await(t, "the end of all tokens", func() (bool, error) {
		var now progress
		err := u.query("oauth.revocation", "", &now)
		return now.Left == 0, err
	})
	slices.Sort(want)
	if got := slices.Compact(told.tokens()); !slices.Equal(got, want) {
		t.Errorf("told of %d of %d tokens", len(got), len(want))
	}
}

// The owner of a shared component has the secrets of other tenants' clients sent to
// himself: they do not go there until each has given its secret again.
func TestClientGoesWhereItWasMeant(t *testing.T) {
	provider := oauthtest.NewServer(t)
	evil := newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		oauthtest.JSON(`{"access_token":"a","refresh_token":"b","expires_in":3600}`)(w, r)
	})
	u := bring(t, t.TempDir())
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	must(t, u.command("tenant.register", "", map[string]any{"id": "old"}, nil))
	u.registerSheets(t, provider)
	var last done
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, &last))
	other, old := u.in("other"), u.in("old")
	define := func(a api) (d done) {
		must(t, a.command("oauth_client.define", "", map[string]any{"component": "sheets", "client_id": oauthtest.ClientID, "client_secret": oauthtest.ClientSecret}, &d))
		return d
	}
	client := define(other)
	// A client from the time when it was not recorded what it was meant for.
	ref := vault.Ref{Tenant: "old", Category: aggregates.OAuthClient.Category, Owner: "sheets", SecretID: events.NewID()}
	must(t, u.vault.Put(t.Context(), ref, provider.Client().Secret))
	_, after, err := aggregates.OAuthClient.Execute(t.Context(), u.states, "old", commands.DefineOAuthClient{
		Component: "sheets", ID: "old-client", ClientID: oauthtest.ClientID, SecretID: ref.SecretID,
	}, events.Meta{Tenant: "old", Command: "c", Via: "http"}, nil)
	must(t, err)

	create := func(a api) (id, refused string) {
		var d done
		err := a.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": provider.Grant()}}, &d)
		return d.ID, code(t, err)
	}
	refresh := func(a api, id string) string {
		return code(t, a.command("credential.refresh", "", map[string]any{"id": id}, nil))
	}
	if _, c := create(old); c != "oauth_client_hosts_changed" {
		t.Errorf("a client of which nothing is known: %q", c)
	}
	must(t, u.proj.Wait(t.Context(), after.Seq))
	must(t, old.command("oauth_client.change", "", map[string]any{"id": "old-client"}, nil))
	if _, c := create(old); c != "oauth_client_hosts_changed" {
		t.Errorf("after a change of nothing: %q", c)
	}
	must(t, old.command("oauth_client.change", "", map[string]any{"id": "old-client", "client_secret": oauthtest.ClientSecret}, nil))
	if id, c := create(old); c != "" || refresh(old, id) != "" {
		t.Errorf("a client whose secret was given again: %q", c)
	}

	first, c := create(other)
	mine, d := create(u.api)
	if c != "" || d != "" {
		t.Fatalf("refused: %q, %q", c, d)
	}
	block := provider.Block()
	block["token_uri"], block["revocation_uri"] = evil.URL+"/token", evil.URL+"/revoke"
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView", "required": true}}, "oauth2": block,
		},
	}}, nil))
	asked := provider.Requests()
	if c := refresh(other, first); c != "" || provider.Requests() != asked+1 {
		t.Errorf("an existing credential is renewed: %q, by %d requests", c, provider.Requests()-asked)
	}
	err = other.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": provider.Grant()}}, nil)
	if code(t, err) != "oauth_client_hosts_changed" || !strings.Contains(err.Error(), strings.TrimPrefix(evil.URL, "http://")) {
		t.Errorf("a new credential: %v", err)
	}
	if err := other.command("credential.replace-keys", "", map[string]any{"id": first, "keys": map[string]any{"oauth": provider.Grant()}}, nil); code(t, err) != "oauth_client_hosts_changed" {
		t.Errorf("new tokens: %v", err)
	}
	for _, a := range []api{u.api, old} { // who may edit components is not who may edit clients
		if _, c := create(a); c != "oauth_client_hosts_changed" {
			t.Errorf("a new credential of %s: %q", a.tenant, c)
		}
	}
	if n := evil.count(); n != 0 {
		t.Fatalf("%d requests reached the other host", n)
	}

	// Whoever may change a client need not know its secret.
	for _, change := range []map[string]any{{}, {"client_id": "another"}, {"client_id": oauthtest.ClientID}} {
		change["id"] = client.ID
		must(t, other.command("oauth_client.change", "", change, nil))
		if _, c := create(other); c != "oauth_client_hosts_changed" {
			t.Errorf("after a change without the secret, %v: %q", change, c)
		}
	}
	if n := evil.count(); n != 0 {
		t.Fatalf("%d requests reached the other host", n)
	}
	// Given again, it goes there; what was granted elsewhere is still renewed there.
	given := map[string]any{"id": client.ID, "client_secret": oauthtest.ClientSecret}
	must(t, other.command("oauth_client.change", "", given, &last))
	var twice done
	must(t, other.command("oauth_client.change", "", given, &twice))
	if last.Seq == client.Seq || twice.Seq != last.Seq {
		t.Errorf("given again at %d and, as it was, at %d", last.Seq, twice.Seq)
	}
	second, c := create(other)
	if c != "" || refresh(other, second) != "" || evil.count() != 1 {
		t.Errorf("a new credential after that: %q, %d requests", c, evil.count())
	}
	asked = provider.Requests()
	if c := refresh(other, first); c != "" || provider.Requests() != asked+1 || evil.count() != 1 {
		t.Errorf("the existing one after that: %q", c)
	}
	if answer := other.revoke(t, first); answer.Outcome != "revoked" || evil.count() != 1 || provider.Revocations() != 1 {
		t.Errorf("the existing one is revoked: %+v", answer)
	}
	// Another secret is for the present host alone.
	must(t, other.command("oauth_client.change", "", map[string]any{"id": client.ID, "client_secret": "canary-new-secret"}, nil))
	if c := refresh(u.api, mine); c != "" {
		t.Errorf("the owner's existing credential: %q", c)
	}
	asked = provider.Requests()
	third, _ := create(other)
	if c := refresh(other, third); c != "" || evil.count() != 2 || provider.Requests() != asked {
		t.Errorf("a credential of the new secret: %q", c)
	}
}

// The verbs, on the real service.
func TestRevokeOnTheCommandLine(t *testing.T) {
	provider := oauthtest.NewServer(t)
	mute := newRevoker(t, func(_ int, w http.ResponseWriter, r *http.Request) { oauthtest.Status(401, "invalid_client")(w, r) })
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	env := map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey}
	verb := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if got := CommandLine(t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(""), &out, &errs); got != want {
			t.Fatalf("%v ends with %d: %s%s", args, got, &out, &errs)
		}
		return out.String() + errs.String()
	}
	says := func(text, want string) {
		t.Helper()
		if !strings.Contains(text, want) {
			t.Errorf("said is %q, want %q", text, want)
		}
	}
	id, refresh := u.connected(t, provider, "sheets")
	says(verb(0, "credential", "revoke", id), "locally and at the provider")
	if provider.Live(refresh) {
		t.Error("the token is good")
	}
	says(verb(0, "credential", "revoke", id), "has no tokens")
	verb(5, "credential", "revoke", "nobody")
	for range 3 {
		u.connected(t, provider, "sheets")
	}
	verb(2, "oauth", "revoke")
	verb(2, "oauth", "revoke", "--all", "--component", "sheets")
	says(verb(0, "oauth", "revoke", "--all", "--dry-run"), "The tokens of 3 credentials would be revoked.")
	says(verb(0, "oauth", "revoke", "--component", "sheets", "--yes"), "Revoked the tokens of 3 credentials, 3 at the provider.")
	says(verb(0, "oauth", "revocation"), "Revoked the tokens of 3 credentials")
	var p progress
	must(t, json.Unmarshal([]byte(verb(0, "oauth", "revoke", "--all", "--json")), &p))
	if p.Total != 0 || !p.Here {
		t.Errorf("as JSON: %+v", p)
	}

	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView", "required": true}},
			"oauth2": map[string]any{"auth_uri": provider.URL + "/authorize", "token_uri": provider.URL + "/token", "revocation_uri": mute.URL},
		},
	}}, nil))
	var k struct{ ID string }
	must(t, u.query("oauth_client.get", "component=sheets", &k))
	secret := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte(oauthtest.ClientSecret), 0o600))
	verb(0, "oauth-client", "change", k.ID, "--secret-file", secret)
	id, _ = u.connected(t, provider, "sheets")
	says(verb(9, "credential", "revoke", id), "invalid_client")
	u.connected(t, provider, "sheets")
	says(verb(9, "oauth", "revoke", "--all"), "Providers did not confirm the revocation for 1 credential.")
	id, _ = u.connected(t, provider, "sheets")
	says(verb(0, "credential", "delete", id), "invalid_client")
}
