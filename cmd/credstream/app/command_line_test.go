package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/client"
)

// CommandLine is the command line (package cli), which this package cannot import: it
// imports this one.
var CommandLine func(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int

// cli runs command lines against a server, in process.
type cli struct {
	env         map[string]string
	stdin       io.Reader
	out, errOut bytes.Buffer
}

func (c *cli) run(ctx context.Context, args ...string) int {
	c.out.Reset()
	c.errOut.Reset()
	if c.stdin == nil {
		c.stdin = strings.NewReader("")
	}
	return CommandLine(ctx, args, func(name string) string { return c.env[name] }, c.stdin, &c.out, &c.errOut)
}

// The command line on the real service: a tail in another terminal sees it all,
// in order, also across a restart of the NATS server.
func TestCommandLineOnRealParts(t *testing.T) {
	u := bring(t, t.TempDir())
	pets := newPetstore(t, "right-canary")
	env := map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey, "CREDSTREAM_NATS_URL": u.node.ClientURL()}
	descriptor, err := json.Marshal(verified(t, pets))
	must(t, err)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	lines, writer := io.Pipe()
	tailed := make(chan int, 1)
	go func() {
		tailed <- CommandLine(ctx, []string{"events", "tail", "--from", "1", "--json"}, func(n string) string { return env[n] }, strings.NewReader(""), writer, io.Discard)
		_ = writer.Close()
	}()
	defer time.AfterFunc(time.Minute, func() { _ = lines.CloseWithError(errors.New("the tail is silent")) }).Stop()
	told := json.NewDecoder(lines)
	next := func() (e struct{ Type, Subject string }) {
		t.Helper()
		must(t, told.Decode(&e))
		return e
	}
	expect := func(kind string) {
		t.Helper()
		for { // what came before, and what the installation says of itself
			e := next()
			if strings.HasPrefix(e.Type, "credstream.credential.") || kind == "component.registered" {
				if e.Type != "credstream."+kind+".v1" {
					t.Errorf("told of %s, want %s", e.Type, kind)
				}
				return
			}
		}
	}

	c := &cli{env: env}
	must2 := func(stdin string, args ...string) string {
		t.Helper()
		c.stdin = strings.NewReader(stdin)
		if got := c.run(t.Context(), args...); got != 0 {
			t.Fatalf("%v: exit code %d: %s", args, got, c.errOut.String())
		}
		return c.out.String()
	}
	must2(string(descriptor), "component", "register", "--file", "-", "--id", "petstore")
	c.stdin = strings.NewReader(`{"apiKey":"wrong-canary"}`)
	if got := c.run(t.Context(), "credential", "create", "--component", "petstore", "--keys-file", "-"); got != 2 ||
		c.errOut.String() != "Nothing was saved: The API key was not accepted. (credential_verification_failed)\n" {
		t.Errorf("a wrong key: exit code %d, %s", got, c.errOut.String())
	}
	var made struct{ ID string }
	must(t, json.Unmarshal([]byte(must2(`{"apiKey":"right-canary"}`, "credential", "create", "--component", "petstore", "--keys-file", "-", "--json")), &made))
	expect("credential.created")
	must2("", "credential", "rename", made.ID, "Pets")
	expect("credential.renamed")
	must(t, u.node.Restart(t.Context()))
	env["CREDSTREAM_NATS_URL"] = u.node.ClientURL()
	pets.accept("nobody")
	c.stdin = strings.NewReader("")
	got := 0
	bustest.Eventually(t, "the server is back", func() bool {
		got = c.run(t.Context(), "credential", "verify", made.ID)
		return !strings.Contains(c.errOut.String(), "(unavailable)")
	})
	if got != 2 || !strings.Contains(c.errOut.String(), "The API key was not accepted.") {
		t.Errorf("a key that no longer works: exit code %d, %s", got, c.errOut.String())
	}
	expect("credential.verified")
	must2("", "credential", "delete", made.ID)
	expect("credential.deleted")
	stop()
	if got := <-tailed; got != 0 {
		t.Errorf("the tail ends with %d", got)
	}
	if out := must2("", "events", "replay", "--type", "credential.renamed"); strings.Count(out, "\n") != 1 || !strings.Contains(out, made.ID) {
		t.Errorf("the replay says %s", out)
	}
	if out := must2("", "views", "rebuild"); !strings.HasPrefix(out, "Rebuilt the read models from ") {
		t.Errorf("the rebuild says %s", out)
	}
}

// Flows on the command line and the real service: what they use is watched in
// another terminal, guards the credential, and commands go by the queue.
func TestFlowsOnTheCommandLine(t *testing.T) {
	u := bring(t, t.TempDir())
	env := map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey, "CREDSTREAM_NATS_URL": u.node.ClientURL()}
	c := &cli{env: env}
	expect := func(code int, stdin string, args ...string) string {
		t.Helper()
		c.stdin = strings.NewReader(stdin)
		if got := c.run(t.Context(), args...); got != code {
			t.Fatalf("%v: exit code %d, want %d: %s%s", args, got, code, c.out.String(), c.errOut.String())
		}
		if strings.Contains(c.out.String()+c.errOut.String(), "canary") {
			t.Errorf("%v: a secret was printed", args)
		}
		return c.out.String()
	}
	keys := writeFile(t, "keys.json", `{"apiKey":"canary"}`, 0o600)
	expect(0, `{"title":"Plain","credentials":{"fields":{"apiKey":{"required":true,"viewClass":"PasswordFieldView"}}}}`, "component", "register", "--file", "-", "--id", "plain")
	var made struct{ ID string }
	must(t, json.Unmarshal([]byte(expect(0, "", "credential", "create", "--component", "plain", "--keys-file", keys, "--for", "f0/s1", "--json")), &made))

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	lines, writer := io.Pipe()
	watched := make(chan int, 1)
	go func() {
		watched <- CommandLine(ctx, []string{"flow", "watch", "--json"}, func(n string) string { return env[n] }, strings.NewReader(""), writer, writer)
		_ = writer.Close()
	}()
	defer time.AfterFunc(time.Minute, func() { _ = lines.CloseWithError(errors.New("the watch is silent")) }).Stop()
	told := json.NewDecoder(lines)
	until := func(flow string, active bool) { // reads what is watched until the credential is used so
		t.Helper()
		for {
			var e client.InUseEntry
			must(t, told.Decode(&e))
			if e.ID == made.ID && slices.ContainsFunc(e.Value.Flows, func(f client.InUseFlow) bool { return f.ID == flow && f.Active == active }) {
				return
			}
		}
	}
	until("f0", false) // was there before

	flow := writeFile(t, "flow.json", fmt.Sprintf(`{"id":"f1","name":"Orders","revision":1,"steps":[{"id":"s1","component":"plain","credential":%q}]}`, made.ID), 0o644)
	expect(0, "", "flow", "publish", "--event", "created", "--file", flow)
	expect(0, "", "flow", "publish", "--event", "started", "--file", flow, "--revision", "2")
	until("f1", true)
	if out := expect(0, "", "flow", "list", "--active"); !strings.Contains(out, "\nf1  Orders  active  2 ") {
		t.Errorf("the active flows are\n%s", out)
	}
	if out := expect(0, "", "credential", "where-used", made.ID); strings.Count(out, "\n") < 2 {
		t.Errorf("where-used says\n%s", out)
	}
	expect(6, "", "credential", "delete", made.ID)
	if said := c.errOut.String(); !strings.Contains(said, " (credential_in_use)\n  f1  Orders\n") {
		t.Errorf("the refusal says %s", said)
	}
	expect(6, "", "credential", "delete", made.ID, "--dry-run")
	if out := expect(0, "", "component", "delete", "plain", "--dry-run"); !strings.Contains(out, "f1  Orders  active") {
		t.Errorf("the dry run says %s", out)
	}
	expect(2, `[{"id":"a","component":"plain"},{"id":"b","component":"plain","credential":"gone"}]`, "flow", "bind", "f2", "--steps-file", "-")
	if d := cmp.Diff("  a  plain  credential_required\n  b  plain  credential_not_found  gone\n", c.errOut.String()[strings.Index(c.errOut.String(), "\n")+1:]); d != "" {
		t.Error(d)
	}
	expect(0, fmt.Sprintf(`[{"id":"a","component":"plain","credential":%q}]`, made.ID), "flow", "bind", "f2", "--steps-file", "-")
	until("f2", false)
	if out := expect(0, "", "flow", "release", "f2"); !strings.HasPrefix(out, "Released the reservation of flow f2, ") {
		t.Errorf("the release says %s", out)
	}
	expect(0, "", "flow", "publish", "--event", "stopped", "--file", flow, "--revision", "3")
	until("f1", false)
	expect(0, "", "credential", "delete", made.ID, "--dry-run")

	expect(2, "", "flow", "publish", "--event", "begun", "--file", flow)
	said := c.errOut.String()
	var queue client.QueuedList
	must(t, json.Unmarshal([]byte(expect(0, "", "queue", "list", "--json")), &queue))
	if len(queue.Messages) != 1 || queue.Messages[0].Code != "flow_event_type_unknown" {
		t.Fatalf("the dead-letter queue holds %+v", queue)
	}
	if !strings.Contains(said, "credstream queue show "+queue.Messages[0].ID+".") {
		t.Errorf("the poisoned event says %s", said)
	}
	expect(6, "", "queue", "retry", queue.Messages[0].ID)
	expect(0, "", "queue", "drop", queue.Messages[0].ID)

	expect(2, `{"component":"plain","name":"Clear","keys":{"apiKey":"canary"}}`, "queue", "send", "credential.create", "--file", "-")
	if said := c.errOut.String(); !strings.Contains(said, "--keys-file") || !strings.HasSuffix(said, " (secret_in_queue)\n") {
		t.Errorf("clear keys: %s", said)
	}
	expect(0, `{"component":"plain","name":"Sealed"}`, "queue", "send", "credential.create", "--file", "-", "--keys-file", keys)
	await(t, "the queued command", func() (bool, error) {
		return strings.Contains(expect(0, "", "credential", "list"), "Sealed"), nil
	})
	expect(0, `{"id":"nobody","name":"n"}`, "queue", "send", "credential.rename", "--file", "-", "--command-id", "mine")
	await(t, "the failed command", func() (bool, error) {
		return strings.Contains(expect(0, "", "queue", "list"), "credential_not_found"), nil
	})
	must(t, json.Unmarshal([]byte(expect(0, "", "queue", "list", "--json")), &queue))
	if m := queue.Messages[0]; m.CommandID != "mine" || !m.Kept {
		t.Errorf("the dead-letter queue holds %+v", m)
	}
	expect(0, "", "queue", "retry", queue.Messages[0].ID)
	stop()
	var rest sync.WaitGroup
	rest.Go(func() { _, _ = io.Copy(io.Discard, lines) }) // what it still has to say
	if got := <-watched; got != 0 {
		t.Errorf("the watch ends with %d", got)
	}
	rest.Wait()
}

func writeFile(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(content), mode))
	return path
}
