package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/credstream/credstream/bus/bustest"
)

// sheets is a component that works with the OAuth client of each tenant.
const sheets = `{"title":"Sheets","useOAuthClient":true,
	"env":{"OAUTH_CLIENT_ID":{"required":true},"OAUTH_CLIENT_SECRET":{"required":true}},
	"credentials":{"fields":{"oauth":{"label":"Authentication","viewClass":"OAuthFieldView","required":true}},
		"oauth2":{"client_id":"{{OAUTH_CLIENT_ID}}","client_secret":"{{OAUTH_CLIENT_SECRET}}","auth_uri":"https://accounts.example.org/auth","token_uri":"https://accounts.example.org/token"}}}`

func (a api) in(tenant string) api {
	a.tenant = tenant
	return a
}

func registerAs(t testing.TB, a api, id, descriptor string) {
	t.Helper()
	must(t, a.command("component.register", "", map[string]any{"id": id, "descriptor": json.RawMessage(descriptor)}, nil))
}

type clientShown struct {
	ID           string `json:"id"`
	Component    string `json:"component"`
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	Unusable     bool   `json:"unusable"`
	Used         bool   `json:"used"`
	Seq          uint64 `json:"seq"`
}

func define(a api, component, secret string) (done, error) {
	var d done
	err := a.command("oauth_client.define", "", map[string]any{"component": component, "client_id": "id-of-" + component, "client_secret": secret}, &d)
	return d, err
}

// The rules of OAuth clients, each shown.
func TestOAuthClients(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	other := u.in("other")
	registerPlain(t, u.base)
	registerAs(t, u.api, "sheets", sheets)
	registerAs(t, other, "hidden", sheets)

	for component, want := range map[string]string{"nowhere": "oauth_client_component_invalid", "hidden": "oauth_client_component_invalid", "plain": "oauth_not_declared"} {
		if _, err := define(u.api, component, "s"); code(t, err) != want {
			t.Errorf("a client for %s: %v, want %s", component, err, want)
		}
	}
	var first, again done
	in := map[string]any{"component": "sheets", "client_id": "id-of-sheets", "client_secret": "canary-client-secret-1"}
	must(t, u.command("oauth_client.define", "define-1", in, &first))
	must(t, u.command("oauth_client.define", "define-1", in, &again))
	if first != again {
		t.Errorf("repeated, the command answers %+v, at first %+v", again, first)
	}
	if _, err := define(u.api, "sheets", "x"); code(t, err) != "oauth_client_exists" {
		t.Errorf("a second client: %v", err)
	}
	get := func(a api, params string) (clientShown, error) {
		var c clientShown
		err := a.query("oauth_client.get", params, &c)
		return c, err
	}
	c, err := get(u.api, fmt.Sprintf("id=%s&min_seq=%d", first.ID, first.Seq))
	if err != nil || c.ClientSecret != "********" || c.ClientID != "id-of-sheets" || c.Component != "sheets" || c.Used {
		t.Errorf("the client is shown as %+v, %v", c, err)
	}
	if _, err := get(other, "id="+first.ID); code(t, err) != "oauth_client_not_found" {
		t.Errorf("another tenant sees the client: %v", err)
	}
	if err := other.command("oauth_client.delete", "", map[string]any{"id": first.ID}, nil); code(t, err) != "oauth_client_not_found" {
		t.Errorf("another tenant deletes the client: %v", err)
	}
	for _, in := range []map[string]any{{"id": first.ID, "component": "plain"}} {
		if err := u.command("oauth_client.change", "", in, nil); code(t, err) != "oauth_client_component_fixed" {
			t.Errorf("the client moves: %v", err)
		}
	}
	if err := u.command("oauth_client.change", "", map[string]any{"id": first.ID, "client_secret": "********"}, nil); code(t, err) != "keys_masked" {
		t.Errorf("the mask is taken: %v", err)
	}
	must(t, u.command("oauth_client.change", "", map[string]any{"id": first.ID, "client_secret": "canary-client-secret-2"}, nil))

	// A shared component stays unusable, and unseen, in a tenant without its own client.
	var shared done
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, &shared))
	must(t, u.query("component.list", fmt.Sprintf("min_seq=%d", shared.Seq), nil))
	create := func(a api) string {
		return code(t, a.command("credential.create", "", map[string]any{"component": "sheets", "keys": map[string]any{"oauth": map[string]any{"refresh_token": "r"}}}, nil))
	}
	if c := create(other); c != "oauth_client_missing" {
		t.Errorf("a credential in a tenant without a client: %q", c)
	}
	if c := create(u.api); c == "oauth_client_missing" {
		t.Errorf("a credential in the tenant with the client: %q", c)
	}
	var issued struct {
		Key string `json:"key"`
	}
	must(t, other.command("api_key.issue", "", map[string]any{"role": "OPERATOR"}, &issued))
	user := other
	user.key = issued.Key
	if err := user.query("component.get", "id=sheets", nil); code(t, err) != "component_not_found" {
		t.Errorf("a user sees a component that needs a client: %v", err)
	}
	var shown struct {
		Needs bool `json:"needs_oauth_client"`
	}
	if err := other.query("component.get", "id=sheets", &shown); err != nil || !shown.Needs {
		t.Errorf("who may define the client sees %+v, %v", shown, err)
	}
	theirs, err := define(other, "sheets", "canary-client-secret-3")
	must(t, err)
	must(t, user.query("component.get", fmt.Sprintf("id=sheets&min_seq=%d", theirs.Seq), nil))

	// Any flow that includes the component holds the client, active or not.
	e := newEngine(t, u.connect(t, adminKey))
	must(t, e.tell("created", "f1", 1, flowStep{"s1", "sheets", ""}))
	await(t, "the use of the component", func() (bool, error) {
		c, err := get(u.api, "id="+first.ID)
		return c.Used, err
	})
	var refused *apiError
	err = u.command("oauth_client.delete", "", map[string]any{"id": first.ID}, nil)
	if !errors.As(err, &refused) || refused.Code != "oauth_client_in_use" || refused.Status != 409 || !strings.Contains(refused.Detail, `"The flow f1" (f1)`) ||
		!strings.HasSuffix(refused.Detail, "Delete these flows first.") {
		t.Errorf("a client that a flow uses is deleted: %v", err)
	}
	must(t, other.command("oauth_client.delete", "", map[string]any{"component": "sheets"}, nil)) // their flows are other flows

	// The component goes, its client stays, cannot be used and can be deleted.
	var gone done
	must(t, u.command("component.delete", "", map[string]any{"id": "sheets"}, &gone))
	await(t, "the mark", func() (bool, error) {
		c, err := get(u.api, "id="+first.ID)
		return c.Unusable && !c.Used, err
	})
	if err := u.command("oauth_client.change", "", map[string]any{"id": first.ID, "client_id": "x"}, nil); code(t, err) != "oauth_client_unusable" {
		t.Errorf("an unusable client is changed: %v", err)
	}
	must(t, u.command("oauth_client.delete", "", map[string]any{"id": first.ID}, &gone))
	if _, err := get(u.api, fmt.Sprintf("id=%s&min_seq=%d", first.ID, gone.Seq)); code(t, err) != "oauth_client_not_found" {
		t.Errorf("a deleted client is shown: %v", err)
	}
	u.stop()
	absent(t, data, u.logs.String(), "canary-client-secret")
}

// A component that comes to work with OAuth after flows include it has a client
// that these flows hold.
func TestClientOfAComponentThatFlowsIncludeAlready(t *testing.T) {
	u := bring(t, t.TempDir())
	registerAs(t, u.api, "late", `{"title":"Late"}`)
	nc := u.connect(t, adminKey)
	e := newEngine(t, nc)
	must(t, e.tell("created", "f1", 1, flowStep{"s1", "late", ""}))
	await(t, "the flow", func() (bool, error) { return u.query("flow.get", "id=f1", nil) == nil, nil })
	must(t, u.command("component.update", "", map[string]any{"id": "late", "descriptor": json.RawMessage(sheets)}, nil))
	made, err := define(u.api, "late", "s")
	must(t, err)
	if err := u.command("oauth_client.delete", "", map[string]any{"id": made.ID}, nil); code(t, err) != "oauth_client_in_use" {
		t.Errorf("the client of a component that a flow includes is deleted: %v", err)
	}
	must(t, e.tell("deleted", "f1", 2))
	await(t, "the delete", func() (bool, error) {
		c, err := codeOf(u.command("oauth_client.delete", "", map[string]any{"id": made.ID}, nil))
		return c == "", err
	})
}

// The variables of a component serve as the client in its owner's tenant only,
// until a client is defined.
func TestComponentEnv(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data)
	must(t, u.command("tenant.register", "", map[string]any{"id": "other"}, nil))
	registerAs(t, u.api, "sheets", sheets)
	var shared done
	must(t, u.command("component.share", "", map[string]any{"id": "sheets"}, &shared))
	kind := func(a api) string {
		var c struct {
			Client string `json:"oauth_client"`
		}
		must(t, a.query("component.get", fmt.Sprintf("id=sheets&min_seq=%d", shared.Seq), &c))
		return c.Client
	}
	if k := kind(u.api); k != "missing" {
		t.Errorf("without values the client is %q", k)
	}
	set := func(a api, values map[string]any) string {
		return code(t, a.command("component.set-env", "", map[string]any{"id": "sheets", "values": values}, nil))
	}
	if c := set(u.api, map[string]any{"NOT_DECLARED": "x"}); c != "component_env_unknown" {
		t.Errorf("a variable that is not declared: %q", c)
	}
	if c := set(u.in("other"), map[string]any{"OAUTH_CLIENT_ID": "x"}); c != "component_not_owner" {
		t.Errorf("another tenant sets the variables: %q", c)
	}
	if c := set(u.api, map[string]any{"OAUTH_CLIENT_ID": "x", "OAUTH_CLIENT_SECRET": "canary-env-secret"}); c != "" {
		t.Fatalf("the values are refused: %s", c)
	}
	if k, o := kind(u.api), kind(u.in("other")); k != "env" || o != "missing" {
		t.Errorf("with values the client is %q for the owner, %q for another tenant", k, o)
	}
	_, err := define(u.api, "sheets", "s")
	must(t, err)
	if k := kind(u.api); k != "defined" {
		t.Errorf("with a client of its own the client is %q", k)
	}
	u.stop()
	absent(t, data, u.logs.String(), "canary-env-secret")
}

// A reveal needs a permission that no role holds, and leaves a fact before the
// value leaves.
func TestReveal(t *testing.T) {
	u := bring(t, t.TempDir())
	registerPlain(t, u.base)
	id := u.create(t)
	if err := u.command("credential.reveal", "", map[string]any{"id": id}, nil); code(t, err) != "permission_denied" {
		t.Errorf("an administrator without the permission reveals: %v", err)
	}
	var issued struct {
		Key string `json:"key"`
	}
	must(t, u.command("api_key.issue", "", map[string]any{"permissions": []string{"credentials.reveal"}}, &issued))
	who := u.api
	who.key = issued.Key
	var shown struct {
		Seq  uint64         `json:"seq"`
		Keys map[string]any `json:"keys"`
	}
	must(t, who.command("credential.reveal", "", map[string]any{"id": id}, &shown))
	if shown.Keys["apiKey"] != "k" {
		t.Errorf("revealed are %v", shown.Keys)
	}
	recs, err := u.store.Commit(t.Context(), shown.Seq)
	must(t, err)
	if got := fmt.Sprintf("%T by %s", recs[0].Event, recs[0].Meta.Actor.Kind); got != "events.CredentialRevealed by key" {
		t.Errorf("the fact is %s", got)
	}
}

// Two parallel creates for one component, over two processes: exactly one wins.
func TestRaceOfDefines(t *testing.T) {
	servers := bustest.Start(t)
	kms := kmsFile(t)
	a, b := replica(t, servers, kms), replica(t, servers, kms)
	callers := []api{caller(a), caller(b)}
	var mu sync.Mutex
	wins := [2]int{}
	rounds(t, *raceRounds/3, func(i int) error {
		component := fmt.Sprintf("component-%d", i)
		var made done
		if err := callers[i%2].command("component.register", "", map[string]any{"id": component, "descriptor": json.RawMessage(sheets)}, &made); err != nil {
			return err
		}
		var codes [2]string
		var errs [2]error
		var both sync.WaitGroup
		for n := range callers {
			both.Go(func() {
				_, err := define(callers[n], component, "s")
				codes[n], errs[n] = codeOf(err)
			})
		}
		both.Wait()
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Join(errs[:]...) != nil:
			return errors.Join(errs[:]...)
		case codes == [2]string{"", "oauth_client_exists"}:
			wins[0]++
		case codes == [2]string{"oauth_client_exists", ""}:
			wins[1]++
		default:
			return fmt.Errorf("two defines answer %q", codes)
		}
		return nil
	})
	t.Logf("%d and %d rounds won", wins[0], wins[1])
}

// absent fails the test when a file of the data folder, or the logs, hold a secret.
func absent(t *testing.T, data, logs, secret string) {
	t.Helper()
	if strings.Contains(logs, secret) {
		t.Error("a secret is in the logs")
	}
	must(t, filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && bytes.Contains(b, []byte(secret)) {
			t.Errorf("a secret is in %s", path)
		}
		return err
	}))
}

// The verbs for OAuth clients, on the real service.
func TestOAuthClientsOnTheCommandLine(t *testing.T) {
	u := bring(t, t.TempDir())
	registerAs(t, u.api, "sheets", sheets)
	env := map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey}
	verb := func(stdin string, want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		code := CommandLine(t.Context(), args, func(k string) string { return env[k] }, strings.NewReader(stdin), &out, &errs)
		if code != want {
			t.Fatalf("%v ends with %d: %s%s", args, code, &out, &errs)
		}
		return out.String() + errs.String()
	}
	var defined done
	out := verb("canary-secret\n", 0, "oauth-client", "define", "--component", "sheets", "--client-id", "client-1", "--secret-file", "-", "--json")
	must(t, json.Unmarshal([]byte(out), &defined))
	must(t, u.query("oauth_client.list", fmt.Sprintf("min_seq=%d", defined.Seq), nil))
	if out := verb("", 0, "oauth-client", "show", defined.ID); !strings.Contains(out, "client-1") || !strings.Contains(out, "********") || strings.Contains(out, "canary") {
		t.Errorf("shown is %s", out)
	}
	verb("x", 6, "oauth-client", "define", "--component", "sheets", "--client-id", "client-2", "--secret-file", "-")
	must(t, json.Unmarshal([]byte(verb("", 0, "oauth-client", "change", defined.ID, "--client-id", "client-3", "--json")), &defined))
	must(t, u.query("oauth_client.list", fmt.Sprintf("min_seq=%d", defined.Seq), nil))
	if out := verb("", 0, "oauth-client", "list"); !strings.Contains(out, "client-3") || !strings.Contains(out, "not used") {
		t.Errorf("listed is %s", out)
	}
	verb("", 4, "oauth-client", "reveal", defined.ID)
	verb("", 0, "oauth-client", "delete", defined.ID)
	verb(`{"OAUTH_CLIENT_ID":"a","OAUTH_CLIENT_SECRET":"b"}`, 0, "component", "set-env", "sheets", "--values-file", "-")
	verb(`{"OTHER":"a"}`, 2, "component", "set-env", "sheets", "--values-file", "-")
	verb("", 2, "oauth-client", "define", "--component", "sheets", "--client-id", "x") // no terminal to ask on
}
