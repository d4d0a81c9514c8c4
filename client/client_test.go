package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

const (
	key    = "cs_abcdefghijklmnopqrstuvwxyz0123456789"
	canary = "canary-9b1"
)

// server is a real HTTP server that answers what it is told, and remembers what
// it was asked.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	asked  []string
	ids    []string
	answer func(n int, w http.ResponseWriter, r *http.Request)
}

func newServer(t *testing.T, answer func(n int, w http.ResponseWriter, r *http.Request)) (*server, *client.Client) {
	t.Helper()
	s := &server{answer: answer}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Authorization") != "Bearer "+key {
			t.Errorf("body %v, authorization %q", err, r.Header.Get("Authorization"))
		}
		s.mu.Lock()
		s.asked = append(s.asked, strings.TrimSpace(r.Method+" "+r.URL.RequestURI()+" "+string(body)))
		s.ids = append(s.ids, r.Header.Get("Idempotency-Key"))
		n := len(s.asked)
		s.mu.Unlock()
		s.answer(n, w, r)
	}))
	t.Cleanup(s.Close)
	c, err := client.New(client.Config{URL: s.URL, Key: key, Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func says(body string) func(int, http.ResponseWriter, *http.Request) {
	return func(_ int, w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }
}

func problem(w http.ResponseWriter, f *fault.Error) {
	p := f.Problem()
	p.RequestID = "r-1"
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

func keys(t *testing.T, object string) client.Keys {
	t.Helper()
	k, err := client.KeysJSON([]byte(object))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Each method asks what the service takes.
func TestRequests(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		want string
		do   func(c *client.Client) error
	}{
		{
			`POST /v1/tenants/acme/commands/credential.create {"component":"c","name":"n","keys":{"a":"b"},"workspace":"w"}`,
			func(c *client.Client) error {
				_, err := c.CreateCredential(ctx, client.CreateCredential{Component: "c", Name: "n", Keys: keys(t, `{"a":"b"}`), Workspace: "w"})
				return err
			},
		},
		{
			`POST /v1/tenants/acme/commands/credential.create {"component":"c","keys":{"a":"b"},"for":{"flow":"f","step":"s"}}`,
			func(c *client.Client) error {
				_, err := c.CreateCredential(ctx, client.CreateCredential{Component: "c", Keys: keys(t, `{"a":"b"}`), For: &client.ForStep{Flow: "f", Step: "s"}})
				return err
			},
		},
		{
			`POST /v1/tenants/acme/commands/flow.bind {"flow":"f","name":"n","steps":[{"id":"s","component":"c","credential":"i"}],"ttl":"1m30s"}`,
			func(c *client.Client) error {
				_, err := c.BindFlow(ctx, client.BindFlow{
					Flow: "f", Name: "n", Steps: []client.FlowStep{{ID: "s", Component: "c", Credential: "i"}}, TTL: 90 * time.Second,
				})
				return err
			},
		},
		{`POST /v1/tenants/acme/commands/flow.release {"flow":"f","binding":"b"}`, func(c *client.Client) error {
			_, err := c.ReleaseFlow(ctx, "f", "b")
			return err
		}},
		{`GET /v1/tenants/acme/flow.get?id=f&min_seq=7`, func(c *client.Client) error {
			_, err := c.GetFlow(ctx, "f", 7)
			return err
		}},
		{`GET /v1/tenants/acme/flow.list?active=true&broken=true&component=c&credential=i&limit=3`, func(c *client.Client) error {
			_, err := c.ListFlows(ctx, client.FlowFilter{Credential: "i", Component: "c", Active: true, Broken: true, Limit: 3})
			return err
		}},
		{`GET /v1/tenants/acme/flow.list?component=c&limit=200`, func(c *client.Client) error {
			for _, err := range c.WhereComponentUsed(ctx, "c") {
				return err
			}
			return nil
		}},
		{`GET /v1/tenants/acme/flow.in-use?after=x`, func(c *client.Client) error {
			_, err := c.ListInUse(ctx, client.InUseFilter{After: "x"})
			return err
		}},
		{`GET /v1/tenants/acme/queue.get?id=9`, func(c *client.Client) error {
			_, err := c.GetQueued(ctx, "9")
			return err
		}},
		{`POST /v1/tenants/acme/commands/queue.retry {"id":"9"}`, func(c *client.Client) error {
			_, err := c.RetryQueued(ctx, "9")
			return err
		}},
		{`POST /v1/tenants/acme/commands/queue.drop {"id":"9"}`, func(c *client.Client) error {
			_, err := c.DropQueued(ctx, "9")
			return err
		}},
		{`POST /v1/tenants/acme/commands/credential.rename {"id":"i","name":"n"}`, func(c *client.Client) error {
			_, err := c.RenameCredential(ctx, "i", "n", 0)
			return err
		}},
		{
			`POST /v1/tenants/acme/commands/credential.replace-keys {"id":"i","keys":{"a":"b"},"expected_version":2}`,
			func(c *client.Client) error {
				_, err := c.ReplaceKeys(ctx, "i", keys(t, `{"a":"b"}`), 2)
				return err
			},
		},
		{`POST /v1/tenants/acme/commands/credential.revert {"id":"i","version":1}`, func(c *client.Client) error {
			_, err := c.RevertCredential(ctx, "i", 1, 0)
			return err
		}},
		{`POST /v1/tenants/acme/commands/credential.verify {"id":"i"}`, func(c *client.Client) error {
			_, err := c.VerifyCredential(ctx, "i")
			return err
		}},
		{`POST /v1/tenants/acme/commands/credential.delete {"id":"i"}`, func(c *client.Client) error {
			_, err := c.DeleteCredential(ctx, "i", 0)
			return err
		}},
		{`GET /v1/tenants/acme/credential.get?id=a+b%2F%3F&min_seq=7`, func(c *client.Client) error {
			_, err := c.GetCredential(ctx, "a b/?", 7)
			return err
		}},
		{`GET /v1/tenants/acme/credential.list?component=c&limit=3&name_contains=%C3%A9&sort=-created`, func(c *client.Client) error {
			_, err := c.ListCredentials(ctx, client.CredentialFilter{Component: "c", NameContains: "é", Sort: "-created", Limit: 3})
			return err
		}},
		{`GET /v1/tenants/acme/credential.counts`, func(c *client.Client) error {
			_, err := c.CountCredentials(ctx, 0)
			return err
		}},
		{`GET /v1/tenants/acme/credential.history?id=i`, func(c *client.Client) error {
			_, err := c.CredentialHistory(ctx, "i")
			return err
		}},
		{`POST /v1/tenants/acme/commands/component.register {"id":"p","descriptor":{"title":"P"}}`, func(c *client.Client) error {
			_, err := c.RegisterComponent(ctx, "p", []byte(`{"title":"P"}`))
			return err
		}},
		{`POST /v1/tenants/acme/commands/component.share {"id":"p"}`, func(c *client.Client) error {
			_, err := c.ShareComponent(ctx, "p")
			return err
		}},
		{`GET /v1/tenants/acme/component.get?id=p`, func(c *client.Client) error {
			_, err := c.GetComponent(ctx, "p", 0)
			return err
		}},
		{`POST /v1/tenants/acme/commands/tenant.register {"id":"t","name":"T"}`, func(c *client.Client) error {
			_, err := c.RegisterTenant(ctx, client.Tenant{ID: "t", Name: "T"})
			return err
		}},
		{`POST /v1/tenants/acme/commands/tenant.erase {"id":"t","stop_flows":true}`, func(c *client.Client) error {
			_, err := c.EraseTenant(ctx, "t", true)
			return err
		}},
		{`GET /v1/tenants/acme/tenant.erasure?id=t`, func(c *client.Client) error {
			_, err := c.TenantErasure(ctx, "t")
			return err
		}},
		{`POST /v1/tenants/acme/commands/views.rebuild {}`, func(c *client.Client) error {
			_, err := c.RebuildViews(ctx)
			return err
		}},
		{`POST /v1/tenants/acme/commands/audit.rewind {"seq":1}`, func(c *client.Client) error {
			_, err := c.RewindAudit(ctx, 1)
			return err
		}},
		{`POST /v1/tenants/acme/commands/api_key.issue {"role":"OPERATOR","tenants":["a"]}`, func(c *client.Client) error {
			_, err := c.IssueAPIKey(ctx, client.IssueAPIKey{Role: "OPERATOR", Tenants: []string{"a"}})
			return err
		}},
		{`POST /v1/tenants/acme/commands/role.define {"name":"BILLING","title":"","permissions":["flows.get"]}`, func(c *client.Client) error {
			_, err := c.DefineRole(ctx, "BILLING", "", []string{"flows.get"})
			return err
		}},
		{`POST /v1/tenants/acme/commands/role.change {"name":"BILLING","title":"The team"}`, func(c *client.Client) error {
			title := "The team"
			_, err := c.ChangeRole(ctx, "BILLING", &title, nil)
			return err
		}},
		{`POST /v1/tenants/acme/commands/role.change {"name":"BILLING","permissions":["flows.get"]}`, func(c *client.Client) error {
			_, err := c.ChangeRole(ctx, "BILLING", nil, []string{"flows.get"})
			return err
		}},
		{`POST /v1/tenants/acme/commands/role.delete {"name":"BILLING"}`, func(c *client.Client) error {
			_, err := c.DeleteRole(ctx, "BILLING")
			return err
		}},
		{`POST /v1/tenants/acme/commands/throttle_policy.delete {"id":"p"}`, func(c *client.Client) error {
			_, err := c.DeleteThrottlePolicy(ctx, "p")
			return err
		}},
		{`POST /v1/tenants/acme/commands/credential.assign-throttle-policy {"id":"i","throttle_policy":"p"}`, func(c *client.Client) error {
			_, err := c.AssignThrottlePolicy(ctx, "i", "p")
			return err
		}},
		{`POST /v1/tenants/acme/commands/connector.delete {"id":"x"}`, func(c *client.Client) error {
			_, err := c.DeleteConnector(ctx, "x")
			return err
		}},
		{`POST /v1/tenants/acme/commands/connector_secret.delete {"id":"x"}`, func(c *client.Client) error {
			_, err := c.DeleteConnectorSecret(ctx, "x")
			return err
		}},
		{`POST /v1/tenants/acme/commands/credential.delete {"id":"i","expected_version":2,"dry_run":true}`, func(c *client.Client) error {
			_, err := c.DeleteCredentialDryRun(ctx, "i", 2)
			return err
		}},
		{`POST /v1/tenants/acme/commands/credential.replace-keys {"id":"i","keys":{"a":"b"},"dry_run":true}`, func(c *client.Client) error {
			_, err := c.ReplaceKeysDryRun(ctx, "i", keys(t, `{"a":"b"}`), 0)
			return err
		}},
		{`POST /v1/tenants/acme/commands/credential.replace-keys {"id":"i","keys":{"a":"b"},"expected_revision":3}`, func(c *client.Client) error {
			_, err := c.ReplaceKeys(ctx, "i", keys(t, `{"a":"b"}`), 0, client.ExpectRevision(3))
			return err
		}},
		{`POST /v1/tenants/acme/commands/oauth_client.define {"component":"p","client_id":"i","client_secret":"s","expected_revision":3}`, func(c *client.Client) error {
			_, err := c.DefineOAuthClient(ctx, "p", "i", client.NewOAuthSecret("s"), client.ExpectRevision(3))
			return err
		}},
		{`POST /v1/tenants/acme/commands/component.set-env {"id":"p","values":{"a":"b"},"expected_revision":3}`, func(c *client.Client) error {
			_, err := c.SetComponentEnv(ctx, "p", keys(t, `{"a":"b"}`), client.ExpectRevision(3))
			return err
		}},
		{`POST /v1/tenants/acme/commands/component.delete {"id":"p","dry_run":true}`, func(c *client.Client) error {
			_, err := c.DeleteComponentDryRun(ctx, "p")
			return err
		}},
	} {
		s, api := newServer(t, says(`{"dry_run":{}}`))
		if err := c.do(api); err != nil {
			t.Errorf("%s: %v", c.want, err)
		}
		if d := cmp.Diff([]string{c.want}, s.asked); d != "" {
			t.Error(d)
		}
		if isCommand := strings.HasPrefix(c.want, "POST"); isCommand != (s.ids[0] != "") {
			t.Errorf("%s has the command id %q", c.want, s.ids[0])
		}
	}
}

// An error comes out as it went in, but for an internal one, which is led back
// to by its request id.
func TestProblems(t *testing.T) {
	inUse := fault.New(fault.Precondition, "credential_in_use", "A flow uses it.").At("/id").With([]string{"f1"})
	_, api := newServer(t, func(_ int, w http.ResponseWriter, _ *http.Request) { problem(w, inUse) })
	_, err := api.DeleteCredential(t.Context(), "i", 0)
	var f *fault.Error
	if !errors.Is(err, inUse) || !errors.As(err, &f) || f.Kind != fault.Precondition || f.Msg != inUse.Msg || f.Pointer != "/id" ||
		fmt.Sprintf("%s", f.Details) != `["f1"]` {
		t.Errorf("%#v", err)
	}
	_, api = newServer(t, func(_ int, w http.ResponseWriter, _ *http.Request) { problem(w, fault.ErrInternal) })
	if _, err := api.DeleteCredential(t.Context(), "i", 0); !errors.Is(err, fault.ErrInternal) || !strings.Contains(err.Error(), "r-1") {
		t.Error(err)
	}
	_, api = newServer(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>"+canary, http.StatusNotFound)
	})
	if _, err := api.GetCredential(t.Context(), "i", 0); !errors.Is(err, client.ErrAnswer) || strings.Contains(err.Error(), canary) {
		t.Error(err)
	}
	_, api = newServer(t, says("<html>"))
	if _, err := api.GetCredential(t.Context(), "i", 0); !errors.Is(err, client.ErrAnswer) {
		t.Error(err)
	}
}

// What may have been lost is sent again with the same command id; what was
// refused is not.
func TestRetry(t *testing.T) {
	s, api := newServer(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		switch n {
		case 1:
			problem(w, fault.ErrUnavailable)
		case 2:
			w.WriteHeader(http.StatusBadGateway)
		case 3:
			panic(http.ErrAbortHandler)
		default:
			_, _ = io.WriteString(w, `{"seq":9}`)
		}
	})
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	done, err := api.RenameCredential(t.Context(), "i", "n", 0)
	if err != nil || done.Seq != 9 || len(s.ids) != 4 {
		t.Fatalf("%+v, %v after %d attempts", done, err, len(s.ids))
	}
	for _, id := range s.ids {
		if id == "" || id != s.ids[0] {
			t.Errorf("the command ids are %q", s.ids)
		}
	}

	for _, f := range []*fault.Error{
		fault.New(fault.Invalid, "a", "m"), fault.New(fault.Conflict, "a", "m"), fault.New(fault.Throttled, "a", "m"), fault.ErrInternal,
	} {
		s, api := newServer(t, func(_ int, w http.ResponseWriter, _ *http.Request) { problem(w, f) })
		if _, err := api.RenameCredential(t.Context(), "i", "n", 0); !errors.Is(err, f) || len(s.asked) != 1 {
			t.Errorf("%v after %d attempts", err, len(s.asked))
		}
	}

	spent := fault.New(fault.Unavailable, "token_refresh_failed", "The provider reports an error of its own.").WithRetryAfter(time.Second)
	s, api = newServer(t, func(_ int, w http.ResponseWriter, _ *http.Request) { problem(w, spent) })
	if _, err := api.RefreshCredential(t.Context(), "i"); !errors.Is(err, spent) || len(s.asked) != 1 {
		t.Errorf("a token that may be spent: %v after %d attempts", err, len(s.asked))
	}
	s, api = newServer(t, func(_ int, w http.ResponseWriter, _ *http.Request) {
		problem(w, fault.ErrUnavailable.WithRetryAfter(time.Minute))
	})
	if _, err := api.GetCredential(t.Context(), "i", 0); fault.Of(err).RetryAfter != time.Minute || len(s.asked) != 1 {
		t.Errorf("asked to wait for a minute: %v after %d attempts", err, len(s.asked))
	}

	s, api = newServer(t, func(_ int, w http.ResponseWriter, _ *http.Request) { problem(w, fault.ErrUnavailable) })
	if _, err := api.GetCredential(t.Context(), "i", 0); !errors.Is(err, fault.ErrUnavailable) || len(s.asked) < 2 || len(s.asked) > 10 {
		t.Errorf("%v after %d attempts", err, len(s.asked))
	}
}

func TestCommandOptions(t *testing.T) {
	var correlation string
	s, api := newServer(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		correlation = r.Header.Get("X-Correlation-Id")
		_, _ = io.WriteString(w, "{}")
	})
	if _, err := api.VerifyCredential(t.Context(), "i", client.CommandID("mine"), client.Correlation("theirs")); err != nil {
		t.Fatal(err)
	}
	if s.ids[0] != "mine" || correlation != "theirs" {
		t.Errorf("sent %q and %q", s.ids, correlation)
	}
}

func TestUnreachable(t *testing.T) {
	s, api := newServer(t, says("{}"))
	s.Close()
	_, err := api.ListCredentials(t.Context(), client.CredentialFilter{NameContains: canary})
	if !errors.Is(err, client.ErrUnreachable) || strings.Contains(err.Error(), canary) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := api.GetCredential(ctx, "i", 0); !errors.Is(err, context.Canceled) || !errors.Is(err, fault.ErrTimeout) {
		t.Error(err)
	}
}

// A redirect could lead the key to another host.
func TestRedirect(t *testing.T) {
	var lured int
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { lured++ }))
	defer other.Close()
	_, api := newServer(t, func(_ int, w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	if _, err := api.VerifyCredential(t.Context(), "i"); !errors.Is(err, client.ErrAnswer) || lured != 0 {
		t.Errorf("%v, %d requests", err, lured)
	}
}

func TestConfig(t *testing.T) {
	for _, u := range []string{"", "127.0.0.1:8080", "ftp://h", "http://", "http://u:p@h", "http://h?x=y", "http://h\x7f"} {
		if _, err := client.New(client.Config{URL: u, Key: key}); !errors.Is(err, client.ErrConfig) {
			t.Errorf("%q: %v", u, err)
		}
	}
}

func TestPages(t *testing.T) {
	s, api := newServer(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"credentials":[{"id":"%d"}],"next":%q,"events":[]}`, n, []string{"", "c1", "c2", ""}[n])
	})
	var got []string
	for c, err := range api.Credentials(t.Context(), client.CredentialFilter{Component: "x"}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, c.ID)
	}
	want := []string{
		"GET /v1/tenants/acme/credential.list?component=x",
		"GET /v1/tenants/acme/credential.list?after=c1&component=x",
		"GET /v1/tenants/acme/credential.list?after=c2&component=x",
	}
	if d := cmp.Diff([]string{"1", "2", "3"}, got) + cmp.Diff(want, s.asked); d != "" {
		t.Error(d)
	}
}

func TestReplay(t *testing.T) {
	s, api := newServer(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, []string{
			"", `{"events":[{"logseq":3},{"logseq":4}],"next":5}`, `{"events":[],"next":9}`, `{"events":[{"logseq":9}]}`,
		}[n])
	})
	var got []uint64
	for e, err := range api.Replay(t.Context(), client.ReplayFilter{From: 2, Type: "credential.created"}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.LogSeq)
	}
	const path = "GET /v1/tenants/acme/events.replay?"
	want := []string{
		path + "from=2&limit=1000&type=credential.created", path + "from=5&limit=1000&type=credential.created",
		path + "from=9&limit=1000&type=credential.created",
	}
	if d := cmp.Diff([]uint64{3, 4, 9}, got) + cmp.Diff(want, s.asked); d != "" {
		t.Error(d)
	}
}

// Neither clear values nor the API key can be printed by mistake.
func TestNothingPrintsSecrets(t *testing.T) {
	in := client.CreateCredential{Component: "c", Keys: keys(t, `{"apiKey":"`+canary+`"}`)}
	c, err := client.New(client.Config{URL: "http://127.0.0.1:1", Key: canary})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "in", in, "keys", in.Keys, "c", c)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "in", in, "keys", in.Keys, "c", c)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		fmt.Fprintf(&out, format+format+format, in, in.Keys, c)
		fmt.Fprintf(&out, format, *c)
	}
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(b)
	if s := out.String(); strings.Contains(s, canary) || strings.Contains(s, fmt.Sprintf("%x", canary)) {
		t.Error("a secret was printed")
	}
	if _, err := client.KeysJSON([]byte(`{"a":"` + canary + `"`)); err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("keys that are no JSON: %v", err)
	}
}
