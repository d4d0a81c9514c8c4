package app

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/oauth"
	"github.com/credstream/credstream/oauth/oauthtest"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/token"
	"github.com/credstream/credstream/verify"
)

// registerSheets registers a component that works with the provider, and defines
// the tenant's OAuth client of it.
func (a api) registerSheets(t testing.TB, p *oauthtest.Server, change ...func(block map[string]any)) {
	t.Helper()
	block := p.Block()
	for _, c := range change {
		c(block)
	}
	must(t, a.command("component.register", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView", "label": "Authentication", "required": true}},
			"oauth2": block,
		},
	}}, nil))
	must(t, a.command("oauth_client.define", "", map[string]any{
		"component": "sheets", "client_id": p.Client().ID, "client_secret": string(p.Client().Secret.Reveal()),
	}, nil))
}

// grant makes a credential of tokens that the provider has just granted, and
// returns its id and the refresh token. Its access token is over.
func (a api) grant(t testing.TB, p *oauthtest.Server) (id, refresh string) {
	t.Helper()
	tokens := p.Grant()
	delete(tokens, "expires_in")
	tokens["expires_at"] = "2020-01-01T00:00:00Z"
	return a.keep(t, tokens)
}

// keep makes a credential of tokens.
func (a api) keep(t testing.TB, tokens map[string]any) (id, refresh string) {
	t.Helper()
	var done struct{ ID string }
	must(t, a.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": tokens}}, &done))
	return done.ID, tokens["refresh_token"].(string)
}

// tokens is how a credential stands with its provider, as the log has it.
func (u *up) tokens(t testing.TB, id string) aggregates.Tokens {
	t.Helper()
	state, err := aggregates.Credential.Fresh(t.Context(), u.states, aggregates.Credential.Stream("default", id))
	must(t, err)
	return state.Value.Tokens
}

// facts are the facts about a credential, oldest first.
func (u *up) facts(t testing.TB, id string) (facts []events.Event) {
	t.Helper()
	for rec, err := range u.store.Stream(t.Context(), aggregates.Credential.Stream("default", id), 0) {
		must(t, err)
		facts = append(facts, rec.Event)
	}
	return facts
}

// beside makes another service over the same log and vault, as a second process
// has it. It takes over after a second.
func (u *up) beside(t testing.TB, holder string, step func(string), change ...func(*application.Config)) *application.Application {
	t.Helper()
	states, err := aggregates.NewLog(u.store, 100)
	must(t, err)
	cfg := application.Config{
		Log: states, Views: u.views, Projector: u.proj, Vault: u.vault, Keyring: u.keyring,
		Logger:     slog.New(slog.NewTextHandler(u.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		OAuth:      oauth.New(verify.NewClient(verify.Config{AllowPrivate: true})),
		InstanceID: holder, RefreshTakeoverTimeout: time.Second, RenewalStep: step,
	}
	for _, c := range change {
		c(&cfg)
	}
	svc, err := application.New(cfg)
	must(t, err)
	t.Cleanup(svc.Close)
	return svc
}

// patient is the clock of processes that have the usual patience. It passes over it
// when the test says so, so that none is lost for a slow machine.
type patient struct{ ahead atomic.Int64 }

func (p *patient) clock(c *application.Config) {
	c.RefreshTakeoverTimeout = 30 * time.Second
	c.Now = func() time.Time { return time.Now().Add(time.Duration(p.ahead.Load())) }
}

// takesOver is the step of a process that has no patience with the renewal it meets first.
func (p *patient) takesOver() func(string) {
	var once sync.Once
	return func(step string) {
		if step == "waiting" {
			once.Do(func() { p.ahead.Add(int64(31 * time.Second)) })
		}
	}
}

// refreshBy asks a service for new tokens now.
func refreshBy(ctx context.Context, t testing.TB, s *application.Application, id string) error {
	t.Helper()
	return serveBy(ctx, s, "credential.refresh", map[string]any{"id": id})
}

func serveBy(ctx context.Context, s *application.Application, route string, in any) error {
	admin, err := s.Access.Authenticate(ctx, adminKey, netip.Addr{})
	if err != nil {
		return err
	}
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	_, err = s.Serve(ctx, service.Call{Tenant: "default", Principal: admin, Via: "http"}, route, body)
	return err
}

// A process dies at one of the steps of a renewal. Another one completes it from
// the vault, or begins it anew; only what the provider answered and the vault did
// not hear of is lost, and that is counted and said.
func TestRenewalOutlivesADeadProcess(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	for _, c := range []struct {
		step     string
		requests int  // that reach the provider in all
		lost     bool // the provider has replaced the token, and nobody knows by what
	}{
		{"started", 1, false},
		{"answered", 2 + 1, true}, // refused, and refused once more
		{"stored", 1, false},
	} {
		t.Run(c.step, func(t *testing.T) {
			id, _ := u.keep(t, provider.Grant())
			before := provider.Requests()
			var p patient
			dead := make(chan struct{})
			dying := u.beside(t, "dying", func(step string) {
				if step == c.step {
					close(dead)
					runtime.Goexit() // no word to anybody, as kill -9 has it
				}
			}, p.clock)
			go func() { _ = refreshBy(t.Context(), t, dying, id) }() // which is not answered
			<-dead
			heir := u.beside(t, "heir", p.takesOver(), p.clock)
			err := refreshBy(t.Context(), t, heir, id)
			for errors.Is(err, token.ErrRefreshPending) {
				err = refreshBy(t.Context(), t, heir, id)
			}
			if n := provider.Requests() - before; n != c.requests {
				t.Errorf("%d requests reached the provider, want %d", n, c.requests)
			}
			now := u.tokens(t, id)
			if c.lost {
				if !errors.Is(err, aggregates.ErrReauthorizationRequired) || now.ReauthReason == "" {
					t.Errorf("a lost family: %v, %+v", err, now)
				}
				if !slices.ContainsFunc(u.facts(t, id), func(e events.Event) bool {
					f, failed := e.(events.CredentialRefreshFailed)
					return failed && f.Outcome == "unknown"
				}) {
					t.Error("that an outcome is unknown stands in no fact")
				}
				return
			}
			must(t, err)
			if now.Token.Epoch == 0 || now.ReauthReason != "" || now.Refresh.Epoch != 0 {
				t.Errorf("tokens are %+v", now)
			}
		})
	}
	if n := provider.Reused(); n != 2 {
		t.Errorf("%d tokens were sent twice, want those of the lost family alone", n)
	}
}

// A process stands still at one of the steps, is taken for dead, and goes on. What
// it then knows is not lost, and it sends nothing that another one may have sent.
func TestRenewalOutlivesAStalledProcess(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	for _, c := range []struct {
		step     string
		reused   int  // requests with a token that had been used
		forgives bool // the provider does not withdraw all for that
	}{
		{"started", 0, false},
		{"answered", 2, false},
		{"answered", 2, true},
		{"stored", 0, false},
	} {
		t.Run(fmt.Sprint(c.step, c.forgives), func(t *testing.T) {
			provider.Forgive(c.forgives)
			id, _ := u.keep(t, provider.Grant())
			reused := provider.Reused()
			var p patient
			reached, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			stalled := u.beside(t, "stalled", func(step string) {
				if step == c.step {
					once.Do(func() { close(reached); <-goOn })
				}
			}, p.clock)
			answered := make(chan error, 1)
			go func() { answered <- refreshBy(context.WithoutCancel(t.Context()), t, stalled, id) }()
			<-reached
			err := refreshBy(t.Context(), t, u.beside(t, "other", p.takesOver(), p.clock), id)
			if c.step == "answered" {
				// The provider knows the newer token alone, which the stalled process has.
				if !errors.Is(err, aggregates.ErrReauthorizationRequired) {
					t.Errorf("the other: %v", err)
				}
			} else {
				must(t, err)
			}
			close(goOn)
			if err := <-answered; err != nil && (c.step == "stored" || c.forgives) {
				t.Errorf("the stalled one: %v", err)
			}
			now := u.tokens(t, id)
			// A provider that saw a token twice has withdrawn all; what came late does not prove itself.
			if lost := c.step == "answered" && !c.forgives; (now.ReauthReason != "") != lost || now.Token.Epoch == 0 || now.Unverified {
				t.Errorf("tokens are %+v", now)
			}
			if n := provider.Reused() - reused; n != c.reused {
				t.Errorf("%d requests had a token that had been used", n)
			}
		})
	}
}

// What the provider answers decides what becomes of the credential.
func TestRenewalFails(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir(), func(c *Config) { c.RefreshPatience = time.Second })
	u.registerSheets(t, provider)
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		times  int
		code   string // of the refusal; "" for none
		broken bool
	}{
		"500":                         {oauthtest.Status(500, ""), 1, "token_refresh_failed", false},
		"502 with a page":             {oauthtest.HTML(502), 1, "token_refresh_failed", false},
		"200 with a page":             {oauthtest.HTML(200), 1, "token_refresh_failed", false},
		"429":                         {oauthtest.Later(429, "1"), 1, "token_refresh_failed", false},
		"no answer":                   {oauthtest.Hangup, 1, "token_refresh_failed", false},
		"truncated":                   {oauthtest.JSON(`{"access_token":"a`), 1, "token_refresh_failed", false},
		"an echo":                     {oauthtest.Echo(500, "server_error"), 1, "token_refresh_failed", false},
		"invalid_client":              {oauthtest.Status(401, "invalid_client"), 1, "token_refresh_failed", false},
		"invalid_grant once":          {oauthtest.Status(400, "invalid_grant"), 1, "", false},
		"invalid_grant, and again":    {oauthtest.Status(400, "invalid_grant"), 2, "reauthorization_required", true},
		"invalid_grant echoing all":   {oauthtest.Echo(400, "invalid_grant"), 2, "reauthorization_required", true},
		"invalid_grant, then a 500":   {nextAfter(oauthtest.Status(400, "invalid_grant"), oauthtest.Status(500, "")), 2, "token_refresh_failed", false},
		"an access token of a number": {oauthtest.JSON(`{"access_token":7,"expires_in":3600}`), 1, "token_refresh_failed", false},
	} {
		t.Run(name, func(t *testing.T) {
			id, _ := u.grant(t, provider)
			provider.AnswerNext(c.times, c.answer)
			t.Cleanup(provider.Recover)
			err := u.command("credential.refresh", "", map[string]any{"id": id}, nil)
			got, said := "", ""
			if refused, ok := errors.AsType[*apiError](err); ok {
				got, said = refused.Code, refused.Detail
			} else {
				must(t, err)
			}
			if got != c.code || got != "" && len(strings.Fields(said)) < 8 { // a code alone says nothing to a person
				t.Errorf("refused with %q: %q", got, said)
			}
			now := u.tokens(t, id)
			if (now.ReauthReason != "") != c.broken {
				t.Errorf("re-authorization is required: %q", now.ReauthReason)
			}
			if c.code != "token_refresh_failed" {
				return
			}
			if !now.RetryAt.After(time.Now()) || now.Failures != 1 {
				t.Errorf("it is tried again at %v, after %d failures", now.RetryAt, now.Failures)
			}
			provider.Recover()
			for { // the provider rests for a while, which a person's wish does not change
				err := u.command("credential.refresh", "", map[string]any{"id": id}, nil)
				if err == nil {
					break
				}
				if got := code(t, err); got != token.ErrRefreshFailed.Code {
					t.Fatalf("after the failure: %s", got)
				}
			}
			if now := u.tokens(t, id); now.Failures != 0 || now.Token.Epoch == 0 {
				t.Errorf("after a success tokens are %+v", now)
			}
		})
	}
}

// nextAfter answers the first request by one, and those after it by another.
func nextAfter(first, then http.HandlerFunc) http.HandlerFunc {
	var once sync.Once
	return func(w http.ResponseWriter, r *http.Request) {
		answer := then
		once.Do(func() { answer = first })
		answer(w, r)
	}
}

// Many ask for a credential whose token is over, of three processes at once: one
// request reaches the provider, and everybody has the new token.
func TestRefreshHerd(t *testing.T) {
	provider := oauthtest.NewServer(t)
	provider.Delay(100 * time.Millisecond)
	servers, kms := bustest.Start(t), kmsFile(t)
	var processes []api
	for range 3 {
		processes = append(processes, caller(replica(t, servers, kms, "--allow-private-targets")))
	}
	processes[0].registerSheets(t, provider)
	engine := processes[0].engine(t)
	for _, p := range processes {
		await(t, "the engine's key in each process", func() (bool, error) {
			return p.as(engine).query("credential.list", "", nil) == nil, nil
		})
	}
	for round := range 3 {
		id, _ := processes[0].grant(t, provider)
		before := provider.Requests()
		var resolvers errgroup.Group
		tokens := make([]string, 500)
		for i := range tokens {
			resolvers.Go(func() error {
				var got struct {
					Keys struct{ OAuth map[string]any }
				}
				err := processes[i%3].as(engine).query("credential.resolve", "cleartext=true&id="+id, &got)
				tokens[i], _ = got.Keys.OAuth["access_token"].(string)
				if _, leaks := got.Keys.OAuth["refresh_token"]; leaks {
					return errors.New("a flow engine sees a refresh token")
				}
				return err
			})
		}
		must(t, resolvers.Wait())
		if n := provider.Requests() - before; n != 1 {
			t.Errorf("round %d: %d requests reached the provider", round, n)
		}
		for _, token := range tokens {
			if token != tokens[0] || !provider.Accepts(token) {
				t.Fatal("somebody has another token than the new one")
			}
		}
	}
	if provider.Reused() != 0 {
		t.Error("a token was sent twice")
	}
}

// engine issues a key for a flow engine.
func (a api) engine(t testing.TB) string {
	t.Helper()
	var issued struct{ Key string }
	must(t, a.command("api_key.issue", "", map[string]any{"name": "engine", "role": "FLOW_ENGINE"}, &issued))
	return issued.Key
}

// Tokens are renewed before they end, without anybody asking, those of a client
// that may ask by itself too; the vault holds two of them, however often.
func TestTokensAreKeptFresh(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	id, _ := u.grant(t, provider)
	for u.tokens(t, id).Token.Epoch == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	if provider.Reused() != 0 || provider.Requests() != 1 {
		t.Errorf("%d requests, %d of them with a used token", provider.Requests(), provider.Reused())
	}
	for range 40 {
		must(t, u.command("credential.refresh", "", map[string]any{"id": id}, nil))
	}
	held, err := u.vault.Owned(t.Context(), "default", "credential", id)
	must(t, err)
	if len(held) != 2 {
		t.Errorf("the vault holds %d secrets of the credential", len(held))
	}
	erased, err := u.svc.Secrets.Collect(t.Context(), 0)
	must(t, err)
	if erased != 0 {
		t.Errorf("%d secrets were orphans", erased)
	}
	must(t, u.command("credential.delete", "", map[string]any{"id": id}, nil))
	held, err = u.vault.Owned(t.Context(), "default", "credential", id)
	must(t, err)
	if len(held) != 0 {
		t.Errorf("the vault holds %d secrets of a credential that is gone", len(held))
	}
}

// A client that may ask for itself is given a token when the credential is made.
func TestClientCredentials(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider, func(block map[string]any) {
		block["grant_type"] = "client_credentials"
		delete(block, "auth_uri")
	})
	var done struct{ ID string }
	must(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{}}, &done))
	access := func() string {
		var got struct {
			Keys struct{ OAuth map[string]any }
		}
		must(t, u.as(u.engine(t)).query("credential.resolve", "cleartext=true&id="+done.ID, &got))
		token, _ := got.Keys.OAuth["access_token"].(string)
		if !provider.Accepts(token) {
			t.Fatal("the provider does not take the token")
		}
		return token
	}
	first := access()
	must(t, u.command("credential.refresh", "", map[string]any{"id": done.ID}, nil))
	if access() == first {
		t.Error("the token was not renewed")
	}
	if n := provider.Count("client_credentials"); n != 2 || provider.Requests() != 2 {
		t.Errorf("%d of %d requests were by the client itself", n, provider.Requests())
	}
}

// What is not what a provider answers is refused before anything is stored.
func TestTokensGivenByHand(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	for name, c := range map[string]struct {
		oauth any
		code  string
	}{
		"a text":                {"ya29", "oauth_tokens_invalid"},
		"nothing":               {map[string]any{}, "oauth_tokens_invalid"},
		"an access token alone": {map[string]any{"access_token": "a"}, "oauth_refresh_token_missing"},
		"a number":              {map[string]any{"access_token": 7, "refresh_token": "r"}, "oauth_tokens_invalid"},
		"a line break":          {map[string]any{"access_token": "a\nb", "refresh_token": "r"}, "oauth_tokens_invalid"},
		"an empty one":          {map[string]any{"access_token": "", "refresh_token": "r"}, "oauth_tokens_invalid"},
		"a mask":                {map[string]any{"access_token": "********", "refresh_token": "r"}, "keys_masked"},
		"a refresh token alone": {map[string]any{"refresh_token": "r"}, ""},
		"odd times":             {map[string]any{"access_token": "a", "refresh_token": "r", "expires_in": "soon", "expires_at": true}, ""},
		"for ever":              {map[string]any{"access_token": "a", "refresh_token": "r", "expires_in": 1e12}, ""},
		"text of seconds":       {map[string]any{"access_token": "a", "refresh_token": "r", "expires_in": "3600"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			end, err := u.store.End(t.Context())
			must(t, err)
			err = u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": c.oauth}}, nil)
			if got := code(t, err); got != c.code {
				t.Errorf("code %q, want %q", got, c.code)
			}
			if now, _ := u.store.End(t.Context()); c.code != "" && now != end {
				t.Error("something was written")
			}
		})
	}
}

var churn = flag.Int("churn", 200, "renewals of one token in TestTokenChurn: 87600 are ten years of hourly ones")

// However often a token was renewed, its credential loads from a snapshot and the
// few commits since.
func TestTokenChurn(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	id, _ := u.grant(t, provider)
	for u.tokens(t, id).Token.Epoch == 0 { // the keeper's own renewal
		time.Sleep(10 * time.Millisecond)
	}
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "churn"}, Via: "system", Time: time.Now()}
	do := func(cmd commands.Credential) {
		_, _, err := aggregates.Credential.Execute(t.Context(), u.states, "default", cmd, meta, nil)
		must(t, err)
	}
	now := u.tokens(t, id)
	for n := range *churn {
		epoch := now.Epoch + n + 1
		secret := fmt.Sprint("churn-", n)
		do(commands.StartRefresh{ID: id, InstanceID: "h", SecretID: secret, Epoch: epoch - 1})
		do(commands.CompleteRefresh{
			ID: id, Epoch: epoch, Grant: now.Grant, SecretID: secret, Expires: time.Now().Add(time.Hour), Lifetime: time.Hour, Rotated: true,
		})
	}
	var loads []time.Duration
	for range 20 {
		cold, err := aggregates.NewLog(u.store, 10)
		must(t, err)
		begin := time.Now()
		state, err := aggregates.Credential.Fresh(t.Context(), cold, aggregates.Credential.Stream("default", id))
		must(t, err)
		loads = append(loads, time.Since(begin))
		if state.Value.Tokens.Epoch != now.Epoch+*churn || state.Value.Tokens.Refresh.Epoch != 0 {
			t.Fatalf("tokens are %+v", state.Value.Tokens)
		}
	}
	slices.Sort(loads)
	t.Logf("after %d renewals a cold load takes %v, at most %v", *churn, loads[len(loads)/2], loads[len(loads)-1])
}

var refreshKills = flag.Int("refreshkills", 4, "processes that TestRefreshKills kills or stops")

// The process that renews a token is killed, or stopped for a while, at any moment
// of it. Another one hands out a token that works; where it cannot, the answer of
// the provider was lost with the process, and that is a fact.
func TestRefreshKills(t *testing.T) {
	t.Parallel()
	provider := oauthtest.NewServer(t)
	servers, kms := bustest.Start(t), kmsFile(t)
	begin := func() *process {
		return replica(t, servers, kms, "--allow-private-targets", "--refresh-patience", "1s")
	}
	old, young := begin(), begin() // the older one has the role of renewing ahead
	caller(old).registerSheets(t, provider)
	engine := caller(old).engine(t)
	lost := 0
	for round := range *refreshKills {
		stopped := round%2 == 1
		signal := syscall.SIGKILL
		if stopped {
			signal = syscall.SIGSTOP
		}
		hit, reused := make(chan struct{}), provider.Reused()
		delay := time.Duration(rand.Int64N(int64(6 * time.Millisecond)))
		var once sync.Once
		provider.Before(func(*http.Request) {
			once.Do(func() {
				go func() {
					defer close(hit)
					time.Sleep(delay)
					_ = old.cmd.Process.Signal(signal)
				}()
			})
		})
		id, _ := caller(young).grant(t, provider)
		<-hit
		provider.Before(nil)
		var got struct {
			Keys struct{ OAuth map[string]any }
		}
		resolve := func() string {
			err := caller(young).as(engine).query("credential.resolve", "cleartext=true&id="+id, &got)
			if err == nil {
				return ""
			}
			return code(t, err)
		}
		said := resolve()
		for said == "token_refresh_pending" || said == "token_refresh_failed" || said == "unavailable" {
			said = resolve()
		}
		if stopped {
			_ = old.cmd.Process.Signal(syscall.SIGCONT)
			for range 200 { // what it knows it tells, and the credential recovers
				if said == "" {
					break
				}
				time.Sleep(10 * time.Millisecond)
				said = resolve()
			}
			_ = old.cmd.Process.Kill()
		}
		_ = old.cmd.Wait()
		switch said {
		case "":
			token, _ := got.Keys.OAuth["access_token"].(string)
			if !provider.Accepts(token) {
				t.Errorf("round %d: the provider does not take the token", round)
			}
		case "reauthorization_required":
			lost++
			var history struct {
				Events []struct {
					Type string
					Data map[string]any
				}
			}
			must(t, caller(young).query("credential.history", "id="+id, &history))
			counted := false
			for _, e := range history.Events {
				counted = counted || e.Type == "credential.refresh_failed" && e.Data["outcome"] == "unknown"
			}
			// A process that was stopped loses a grant only where the provider saw its token again.
			if !counted || stopped && provider.Reused() == reused {
				t.Errorf("round %d: tokens were lost, and that it may be so stands nowhere: %+v", round, history.Events)
			}
		default:
			t.Errorf("round %d: %s", round, said)
		}
		old, young = young, begin()
	}
	t.Logf("%d rounds, %d times the provider's answer was lost with the process", *refreshKills, lost)
}

// A provider that has replaced the refresh token and answers nonsense beside it
// takes nothing away: the new one is kept and used.
func TestRotatedTokenIsKeptWhateverElseIsWrong(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	for name, mangle := range map[string]func(map[string]any){
		"an access token of a number": func(a map[string]any) { a["access_token"] = 7 },
		"no access token":             func(a map[string]any) { delete(a, "access_token") },
		"times that are none":         func(a map[string]any) { a["expires_in"] = "soon" },
		"a life of no time":           func(a map[string]any) { a["expires_in"] = 0 },
		"a life before":               func(a map[string]any) { a["expires_in"] = -1 },
		"a life of 1e12":              func(a map[string]any) { a["expires_in"] = 1e12 },
		"another scope":               func(a map[string]any) { a["scope"] = "less" },
	} {
		t.Run(name, func(t *testing.T) {
			tokens := provider.Grant()
			var done struct{ ID string }
			must(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": tokens}}, &done))
			provider.Mangle(mangle)
			err := u.command("credential.refresh", "", map[string]any{"id": done.ID}, nil)
			provider.Mangle(nil)
			if got := code(t, err); got != "" && got != token.ErrRefreshFailed.Code {
				t.Errorf("the renewal: %s", got)
			}
			must(t, u.command("credential.refresh", "", map[string]any{"id": done.ID}, nil))
			if provider.Live(tokens["refresh_token"].(string)) {
				t.Error("the refresh token was not replaced")
			}
		})
	}
	if provider.Reused() != 0 {
		t.Error("a token was sent twice")
	}
}

// A refresh token alone, or beside an access token that is over, is used before the
// dry request, and the credential is verified with what it brings.
func TestRefreshTokenAloneIsTried(t *testing.T) {
	provider := oauthtest.NewServer(t)
	u := bring(t, t.TempDir())
	u.registerSheets(t, provider)
	must(t, u.command("component.update", "", map[string]any{"id": "sheets", "descriptor": map[string]any{
		"title": "Sheets", "useOAuthClient": true, "hosts": []string{"127.0.0.1"},
		"credentials": map[string]any{
			"fields": map[string]any{"oauth": map[string]any{"viewClass": "OAuthFieldView", "required": true}},
			"oauth2": provider.Block(),
		},
		"verification": map[string]any{"http": map[string]any{
			"method": "GET", "url": provider.URL + "/me", "headers": map[string]any{"Authorization": "Bearer {{oauth}}"},
		}},
	}}, nil))
	var made struct{ ID, Status string }
	tokens := provider.Grant()
	only := map[string]any{"refresh_token": tokens["refresh_token"]}
	must(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": only}}, &made))
	if made.Status != "verified" || provider.Live(tokens["refresh_token"].(string)) {
		t.Errorf("the credential is %s", made.Status)
	}
	must(t, u.command("credential.refresh", "", map[string]any{"id": made.ID}, nil))
	old := map[string]any{"access_token": "over", "refresh_token": "no such", "expires_at": "2020-01-01T00:00:00Z"}
	if got := code(t, u.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": old}}, nil)); got != "oauth_token_refused" {
		t.Errorf("a refresh token that is none: %q", got)
	}
	if provider.Reused() != 0 {
		t.Error("a token was sent twice")
	}
}
