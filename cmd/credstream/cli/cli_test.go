package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/cli"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/stage"
)

var update = flag.Bool("update", false, "write docs/config.md anew")

// terminal runs command lines against a server, in process.
type terminal struct {
	env         map[string]string
	stdin       io.Reader
	out, errOut bytes.Buffer
}

func (c *terminal) run(ctx context.Context, args ...string) int {
	c.out.Reset()
	c.errOut.Reset()
	if c.stdin == nil {
		c.stdin = strings.NewReader("")
	}
	return cli.Run(ctx, args, func(name string) string { return c.env[name] }, c.stdin, &c.out, &c.errOut)
}

const cliKey = "cs_clicanaryclicanaryclicanaryclicanary"

// cliServer is a real HTTP server that answers each path what it is told, and
// writes down what it was asked.
type cliServer struct {
	*httptest.Server
	asked   []string
	answers map[string]string
	refusal *fault.Error
	slow    time.Duration // before each answer
}

func newCLI(t *testing.T, answers map[string]string) (*cliServer, *terminal) {
	s := &cliServer{answers: answers}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Authorization") != "Bearer "+cliKey {
			t.Errorf("body %v, authorization %q", err, r.Header.Get("Authorization"))
		}
		select {
		case <-time.After(s.slow):
		case <-r.Context().Done():
			return
		}
		rest, _ := strings.CutPrefix(r.URL.RequestURI(), "/v1/tenants/")
		s.asked = append(s.asked, strings.TrimSpace(strings.Replace(rest, "commands/", "", 1)+" "+string(body)))
		if s.refusal != nil {
			p := s.refusal.Problem()
			w.WriteHeader(p.Status)
			_ = json.NewEncoder(w).Encode(p)
			return
		}
		answer, ok := s.answers[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]
		if !ok {
			answer = `{"seq":7,"id":"i","version":2,"status":"verified","revision":3}`
		}
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	return s, &terminal{env: map[string]string{"CREDSTREAM_URL": s.URL, "CREDSTREAM_KEY": cliKey}}
}

func writeFile(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	stage.OK(t, os.WriteFile(path, []byte(content), mode))
	return path
}

// Each verb asks what it should and says what came of it.
func TestVerbs(t *testing.T) {
	files := map[string]string{
		"DESCRIPTOR": writeFile(t, "Pet Store.json", `{"title":"P"}`, 0o644),
		"NAMELESS":   writeFile(t, "component.json", `{"title":"The Pets"}`, 0o644),
		"KEYS":       writeFile(t, "keys.json", `{"apiKey":"canary"}`, 0o600),
		"FLOW":       writeFile(t, "flow.json", `{"id":"f1","name":"Orders","revision":1,"steps":[{"id":"s1","component":"p","credential":"i"}],"engine":"x"}`, 0o644),
		"STEPS":      writeFile(t, "steps.json", `[{"id":"s1","component":"p"}]`, 0o644),
	}
	const c1 = `{"id":"i","name":"n\u001b[31m","component":"p","status":"failed","version":2,"keys":{"apiKey":"********"},` +
		`"verification":{"probe":"http","outcome":"4xx","latency_ms":5},"verified_at":"2026-01-02T03:04:05Z",` +
		`"created_at":"2026-01-02T03:04:05Z","created_by":"key:k","updated_at":"2026-01-02T03:04:05Z"}`
	const f1 = `{"id":"f1","name":"Orders","revision":3,"active":true,"broken":true,"updated_at":"2026-01-02T03:04:05Z","binding":"b1","until":"2026-01-02T03:14:05Z",` +
		`"steps":[{"id":"s1","component":"p","credential":"i"},{"id":"s2","name":"Sheet","component":"q"}],` +
		`"faults":[{"step":"s1","component":"p","credential":"i","reason":"credential_not_found"}]}`
	const flowTable = "ID  NAME    STATE                     REVISION  STEPS  UPDATED\nf1  Orders  active, reserved, broken  3         2      2026-01-02 03:04:05Z\n"
	const m1 = `{"id":"4","queue":"commands","name":"credential.rename","subject":"credstream.cmdq.default.credential.rename","command_id":"c1","actor":"key:k",` +
		`"code":"credential_not_found","reason":"It is not there.","at":"2026-01-02T03:04:05Z","size":12,"sha256":"ab","kept":true,"content":{ "id": "i" }}`
	answers := map[string]string{
		"component.list":     `{"components":[{"id":"p","title":"Pets","revision":1,"credentials":2,"updated_at":"2026-01-02T03:04:05Z"}]}`,
		"component.get":      `{"id":"p","title":"Pets","revision":1,"credentials":2,"descriptor":{"title":"Pets"}}`,
		"credential.list":    `{"credentials":[` + c1 + `],"next":"c2"}`,
		"credential.get":     c1,
		"expiry.list":        `{"expiries":[{"kind":"credential","id":"i","name":"n","what":"keys","expires":"2026-02-02T03:04:05Z","flows":[{"id":"f1","active":true}],"active_flows":1}]}`,
		"credential.counts":  `{"total":3,"components":[{"component":"p","total":3,"status":{"verified":2,"failed":1}}]}`,
		"credential.history": `{"events":[{"seq":4,"type":"credential.created","time":"2026-01-02T03:04:05Z","actor":"key:k","via":"http","version":1,"data":{}}]}`,
		"events.replay": `{"events":[{"specversion":"1.0","type":"credstream.credential.created.v1","subject":"credential.i","actor":"key:k",` +
			`"time":"2026-01-02T03:04:05Z","logseq":4,"logindex":0,"data":{ "id": "i" }}]}`,
		"encryption_key.status": `{"rotating":false,"keys":[{"id":"0a1b2c3d","secrets":9,"state":"active"}]}`,

		"views.status":   `{"position":9,"end":9,"rebuilt":9,"rebuild_end":9}`,
		"flow.list":      `{"flows":[` + f1 + `]}`,
		"flow.get":       f1,
		"flow.bind":      `{"seq":9,"id":"f1","binding":"b1","until":"2026-01-02T03:04:05Z"}`,
		"flow.release":   `{"seq":9,"id":"f1"}`,
		"queue.list":     `{"messages":[` + m1 + `]}`,
		"queue.get":      m1,
		"tenant.list":    `{"tenants":[{"id":"acme","name":"Acme"},{"id":"old","name":"","state":"erased"}]}`,
		"tenant.erasure": `{"id":"acme","state":"active","running_flows":1,"left":[{"kind":"flows","count":2},{"kind":"api_keys","count":1}],"secrets":3,"keys":true}`,
		"api_key.issue":  `{"seq":9,"id":"k2","key":"cs_new"}`,
		"api_key.list": `{"keys":[{"id":"k2","name":"n","role":"OPERATOR","tenants":["acme"],"issued_at":"2026-01-02T03:04:05Z"},` +
			`{"id":"k3","name":"","role":"","permissions":["credentials.reveal"],"tenants":["acme"],"addresses":["192.0.2.0/24"],"workspaces":["w"],"credentials":["c1","c2"],"expires":"2026-02-02T03:04:05Z","expired":true,` +
			`"issued_at":"2026-01-02T03:04:05Z","last_used_at":"2026-01-03T03:04:00Z"}]}`,
	}
	for _, c := range []struct {
		args  string
		asks  string // several with newlines between
		says  string
		notes string // on standard error
		stdin string
		code  int
	}{
		{args: "component register --file DESCRIPTOR", asks: `default/component.register {"id":"pet-store","descriptor":{"title":"P"}}`, says: "Registered component i, revision 3.\n"},
		{args: "component register --file NAMELESS", asks: `default/component.register {"id":"the-pets","descriptor":{"title":"The Pets"}}`, says: "Registered component i, revision 3.\n"},
		{args: "component register --file - --id x", stdin: `{"title":"P"}`, asks: `default/component.register {"id":"x","descriptor":{"title":"P"}}`, says: "Registered component i, revision 3.\n"},
		{args: "component update p --file DESCRIPTOR", asks: `default/component.update {"id":"p","descriptor":{"title":"P"}}`, says: "Updated component i to revision 3.\n"},
		{args: "component update p --file DESCRIPTOR --expected-revision 2", asks: `default/component.update {"id":"p","descriptor":{"title":"P"},"expected_revision":2}`, says: "Updated component i to revision 3.\n"},
		{args: "component list --tenant acme", asks: `acme/component.list?limit=200`, says: "ID  TITLE  REVISION  VISIBLE TO  CREDENTIALS  UPDATED\np   Pets   1         owner       2            2026-01-02 03:04:05Z\n"},
		{args: "component share p", asks: `default/component.share {"id":"p"}`, says: "All tenants can use component i.\n"},
		{args: "component unshare p --json", asks: `default/component.unshare {"id":"p"}`, says: `{"seq":7,"id":"i","version":2,"status":"verified","revision":3}` + "\n"},
		{args: "component delete p", asks: `default/component.delete {"id":"p"}`, says: "Deleted component i.\n"},
		{args: "component where-used p", asks: `default/flow.list?component=p&limit=200`, says: flowTable},
		{args: "credential create --component p --name n --keys-file KEYS", asks: `default/credential.create {"component":"p","name":"n","keys":{"apiKey":"canary"}}`, says: "Created credential i, version 2, verified.\n"},
		{
			args: "credential create --component p --keys-file KEYS --for a/f/s", says: "Created credential i, version 2, verified.\n",
			asks: `default/credential.create {"component":"p","keys":{"apiKey":"canary"},"for":{"flow":"a/f","step":"s"}}`,
		},
		{
			args: "credential create --component p --keys-file KEYS --expires 2031-01-31T00:00:00Z", says: "Created credential i, version 2, verified.\n",
			asks: `default/credential.create {"component":"p","keys":{"apiKey":"canary"},"expires_at":"2031-01-31T00:00:00Z"}`,
		},
		{args: "credential create --component p --keys-file KEYS --expires soon", code: 2, notes: "--expires must be a duration such as 2160h, or a time such as 2031-01-31T00:00:00Z. (expires_invalid)\n"},
		{
			args: "credential replace-keys i --keys-file KEYS --expires 2031-01-31T00:00:00Z", says: "Credential i has version 2, verified.\n",
			asks: `default/credential.replace-keys {"id":"i","keys":{"apiKey":"canary"},"expires_at":"2031-01-31T00:00:00Z"}`,
		},
		{
			args: "expiry list --within 7d", asks: `default/expiry.list?limit=200&within=7d`,
			says: "KIND        ID  NAME  WHAT  STATE    AT                    ACTIVE FLOWS\ncredential  i   n     keys  expires  2026-02-02 03:04:05Z  1\n",
		},
		{args: "credential create --component p --keys-file -", stdin: ` {"apiKey":"canary"}` + "\n", asks: `default/credential.create {"component":"p","keys":{"apiKey":"canary"}}`, says: "Created credential i, version 2, verified.\n"},
		{
			args: "credential list --component p --status failed --name-contains n --sort -created --limit 1", asks: `default/credential.list?component=p&limit=1&name_contains=n&sort=-created&status=failed`,
			says: "ID  NAME    COMPONENT  STATUS  VERSION  UPDATED\ni   n\uFFFD[31m  p          failed  2        2026-01-02 03:04:05Z\n", notes: "More results: use --all, or --after c2\n",
		},
		{args: "credential counts", asks: `default/credential.counts`, says: "COMPONENT  TOTAL  VERIFIED  FAILED  UNVERIFIED\np          3      2         1       0\n"},
		{
			args: "credential show i", asks: `default/credential.get?id=i`,
			says: "id           i\nname         n\uFFFD[31m\ncomponent    p\nstatus       failed\nversion      2\nverified     2026-01-02 03:04:05Z by http: 4xx in 5 ms\n" +
				"created      2026-01-02 03:04:05Z by key:k\nupdated      2026-01-02 03:04:05Z\nkeys.apiKey  ********\n",
		},
		{args: "credential rename i Pets --expected-version 2", asks: `default/credential.rename {"id":"i","name":"Pets","expected_version":2}`, says: "Renamed credential i.\n"},
		{args: "credential replace-keys i --keys-file KEYS", asks: `default/credential.replace-keys {"id":"i","keys":{"apiKey":"canary"}}`, says: "Credential i has version 2, verified.\n"},
		{args: "credential revert i --to-version 1", asks: `default/credential.revert {"id":"i","version":1}`, says: "Credential i has version 2, verified.\n"},
		{args: "credential verify i", asks: `default/credential.verify {"id":"i"}`, says: "Credential i, version 2: verified.\n"},
		{args: "credential delete i", asks: `default/credential.delete {"id":"i"}`, says: "Deleted credential i.\n"},
		{args: "credential where-used i", asks: `default/flow.list?credential=i&limit=200`, says: flowTable},
		{args: "flow list", asks: `default/flow.list`, says: flowTable},
		{
			args: "flow list --credential i --component p --active --broken --all", says: flowTable,
			asks: `default/flow.list?active=true&broken=true&component=p&credential=i&limit=200`,
		},
		{
			args: "flow show f1", asks: `default/flow.get?id=f1`,
			says: "id        f1\nname      Orders\nstate     active, reserved, broken\nrevision  3\nupdated   2026-01-02 03:04:05Z\n" +
				"reserved  until 2026-01-02 03:14:05Z, binding b1\n\n" +
				"STEP  NAME   COMPONENT  CREDENTIAL  WRONG\ns1           p          i           credential_not_found\ns2    Sheet  q                      \n",
		},
		{
			args: "flow bind f1 --steps-file FLOW --ttl 90s", asks: `default/flow.bind {"flow":"f1","name":"Orders","steps":[{"id":"s1","component":"p","credential":"i"}],"ttl":"1m30s"}`,
			says: "Reserved the credentials of flow f1 until 2026-01-02 03:04:05Z, binding b1.\n",
		},
		{
			args: "flow bind f1 --steps-file STEPS --name n", asks: `default/flow.bind {"flow":"f1","name":"n","steps":[{"id":"s1","component":"p"}]}`,
			says: "Reserved the credentials of flow f1 until 2026-01-02 03:04:05Z, binding b1.\n",
		},
		{args: "flow release f1 --binding b1", asks: `default/flow.release {"flow":"f1","binding":"b1"}`, says: "Flow f1 has no reservation.\n"},
		{
			args: "queue list", asks: `default/queue.list?limit=200`,
			says: "ID  TIME                  QUEUE     NAME               ACTOR  CODE                  REASON\n" +
				"4   2026-01-02 03:04:05Z  commands  credential.rename  key:k  credential_not_found  It is not there.\n",
		},
		{
			args: "queue show 4", asks: `default/queue.get?id=4`,
			says: "id       4\nqueue    commands\nname     credential.rename\nsubject  credstream.cmdq.default.credential.rename\ncommand  c1\nactor    key:k\ntime     2026-01-02 03:04:05Z\ncode     credential_not_found\nreason   It is not there.\nsize     12\nsha256   ab\nkept     yes: it can be retried\ncontent  {\"id\":\"i\"}\n",
		},
		{args: "queue retry 4", asks: `default/queue.retry {"id":"4"}`, says: "Message i is back in its queue.\n"},
		{args: "queue drop 4", asks: `default/queue.drop {"id":"4"}`, says: "Dropped message i.\n"},
		{args: "credential history i", asks: `default/credential.history?id=i`, says: "SEQ  TIME                  EVENT               VERSION  ACTOR  VIA\n4    2026-01-02 03:04:05Z  credential.created  1        key:k  http\n"},
		{args: "events replay --from 4 --type credential.created", asks: `default/events.replay?from=4&limit=1000&type=credential.created`, says: "2026-01-02 03:04:05Z  4.0  credential.created  credential.i  key:k  {\"id\":\"i\"}\n"},
		{args: "views rebuild", asks: "default/views.rebuild {}\ndefault/views.status", says: "Rebuilt the read models from 9 commits.\n", notes: "9 of 9\n"},
		{args: "views status", asks: "default/views.status", says: "The read models reflect 9 of 9 commits.\n"},
		{args: "keys rotate", asks: `default/encryption_key.rotate {}`, says: "The encryption key of tenant default is being rotated.\n"},
		{args: "keys rotate --all --wait", asks: "default/tenant.list\nacme/encryption_key.rotate {}\ndefault/tenant.list\nacme/encryption_key.status", says: "The encryption key of tenant acme is being rotated.\nThe encryption key of tenant acme was rotated.\n"},
		{args: "keys status", asks: `default/encryption_key.status`, says: "TENANT   KEY       STATE   SECRETS  KMS KEY\ndefault  0a1b2c3d  active  9        current\n"},
		{args: "keys rewrap", asks: `default/encryption_key.rewrap {}`, says: "The encryption keys of tenant default are wrapped with the current KMS key.\n"},
		{args: "tenant register acme --name Acme", asks: `default/tenant.register {"id":"acme","name":"Acme"}`, says: "Registered tenant i.\n"},
		{args: "tenant list", asks: `default/tenant.list`, says: "ID    NAME  STATE\nacme  Acme  \nold         erased\n"},
		{args: "tenant erase acme --dry-run", asks: `default/tenant.erasure?id=acme`, says: "The tenant acme would be erased: 2 flows, 1 api keys, 3 secrets, its encryption keys. Running flows: 1. Stop them first, or erase with --stop-flows.\n"},
		{args: "tenant erase acme --stop-flows", asks: `default/tenant.erase {"id":"acme","stop_flows":true}`, says: "Tenant acme is being erased: credstream tenant erase acme --dry-run shows the progress.\n"},
		{args: "key issue --role OPERATOR --tenants acme", asks: `default/api_key.issue {"role":"OPERATOR","tenants":["acme"]}`, says: "cs_new\n", notes: "Issued key k2. It is shown only once:\n"},
		{args: "key issue --role OPERATOR --json", asks: `default/api_key.issue {"role":"OPERATOR"}`, says: `{"seq":9,"id":"k2","key":"cs_new"}` + "\n"},
		{
			args: "key issue --permission credentials.get --permission credentials.reveal --expires 720h --address 192.0.2.0/24,2001:db8::/32 --name n",
			asks: `default/api_key.issue {"permissions":["credentials.get","credentials.reveal"],"name":"n","expires":"720h","addresses":["192.0.2.0/24","2001:db8::/32"]}`,
			says: "cs_new\n", notes: "Issued key k2. It is shown only once:\n",
		},
		{
			args: "key issue --role FLOW_ENGINE --component petstore --component sheets --workspace w --credential c1",
			asks: `default/api_key.issue {"role":"FLOW_ENGINE","components":["petstore","sheets"],"workspaces":["w"],"credentials":["c1"]}`,
			says: "cs_new\n", notes: "Issued key k2. It is shown only once:\n",
		},
		{
			args: "key list", asks: `default/api_key.list?limit=200`,
			says: "ID  NAME  ROLE      PERMISSIONS         TENANTS  STATE    ISSUED                EXPIRES               ADDRESSES     BOUND TO                      CERTIFICATE  LAST USED\n" +
				"k2  n     OPERATOR                      acme     valid    2026-01-02 03:04:05Z  never                                                                          -\n" +
				"k3                  credentials.reveal  acme     expired  2026-01-02 03:04:05Z  2026-02-02 03:04:05Z  192.0.2.0/24  workspace=w credential=c1,c2               2026-01-03 03:04:00Z\n",
		},
		{args: "key revoke k2", asks: `default/api_key.revoke {"id":"k2"}`, says: "Revoked key i.\n"},
		{args: "version", says: "credstream " + app.Version + "\n"},
	} {
		t.Run(c.args, func(t *testing.T) {
			s, term := newCLI(t, answers)
			term.stdin = strings.NewReader(c.stdin)
			args := strings.Fields(c.args)
			for i, a := range args {
				if path, ok := files[a]; ok {
					args[i] = path
				}
			}
			if got := term.run(t.Context(), args...); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			if d := cmp.Diff(c.asks, strings.Join(s.asked, "\n")); d != "" {
				t.Error("asked", d)
			}
			if d := cmp.Diff(c.says, term.out.String()); d != "" {
				t.Error("said", d)
			}
			if d := cmp.Diff(c.notes, term.errOut.String()); d != "" {
				t.Error("noted", d)
			}
			if strings.Contains(term.out.String()+term.errOut.String(), "canary") {
				t.Error("a secret was printed")
			}
		})
	}
}

// The kind of an error is the exit code; its sentence and code are on standard
// error, as a problem when JSON is asked for.
func TestExitCodes(t *testing.T) {
	for kind, want := range map[fault.Kind]int{
		fault.Invalid: 2, fault.Unauthenticated: 3, fault.Denied: 4, fault.NotFound: 5, fault.Exists: 6,
		fault.Precondition: 6, fault.Conflict: 7, fault.Throttled: 8, fault.Unavailable: 9, fault.Internal: 1,
	} {
		s, term := newCLI(t, nil)
		s.refusal = &fault.Error{Kind: kind, Code: "some_code", Msg: "It is\x1b[2J so.", Pointer: "/id"}
		if got := term.run(t.Context(), "credential", "show", "i"); got != want || term.out.Len() > 0 || term.errOut.String() != "It is\uFFFD[2J so. (some_code)\n" {
			t.Errorf("%s: exit code %d, want %d; %q %q", kind, got, want, term.out.String(), term.errOut.String())
		}
		if got := term.run(t.Context(), "credential", "show", "i", "--json"); got != want {
			t.Errorf("%s with --json: exit code %d, want %d", kind, got, want)
		}
		var p fault.Problem
		if err := json.Unmarshal(term.errOut.Bytes(), &p); err != nil || p.Code != "some_code" || p.Kind != kind || p.Pointer != "/id" {
			t.Errorf("%s with --json: %v %s", kind, err, term.errOut.String())
		}
	}
}

// A dry run shows the flows and says what would happen; when the command would
// be refused the exit code is that of the refusal.
func TestDryRun(t *testing.T) {
	keys := writeFile(t, "keys.json", `{"apiKey":"canary"}`, 0o600)
	const table = "ID  NAME    STATE   REVISION  STEPS  UPDATED\nf1  Orders  active  3         0      2026-01-02 03:04:05Z\n"
	const flows = `"flows":[{"id":"f1","name":"Orders","revision":3,"active":true,"updated_at":"2026-01-02T03:04:05Z"}],`
	for _, c := range []struct {
		args, asks string
	}{
		{"credential delete i --expected-version 2 --dry-run", `default/credential.delete {"id":"i","expected_version":2,"dry_run":true}`},
		{"credential replace-keys i --keys-file " + keys + " --dry-run", `default/credential.replace-keys {"id":"i","keys":{"apiKey":"canary"},"dry_run":true}`},
		{"component delete p --dry-run", `default/component.delete {"id":"p","dry_run":true}`},
	} {
		for _, r := range []struct {
			impact, says, notes string
			code                int
		}{
			{`{"allowed":true,"says":"It would be done.","flows":[],"total_flows":0,"active_flows":0}`, "It would be done.\n", "", 0},
			{`{"allowed":true,"says":"It would be done.",` + flows + `"total_flows":3,"active_flows":1}`, table + "... and 2 flows more.\nIt would be done.\n", "", 0},
			{
				`{"allowed":false,"code":"credential_in_use","says":"It is in use.",` + flows + `"total_flows":1,"active_flows":1}`,
				table, "It is in use. (credential_in_use)\n", 6,
			},
			{
				`{"allowed":false,"kind":"unprocessable","code":"credential_verification_failed","says":"It was not accepted.","flows":[],"total_flows":0,"active_flows":0}`,
				"", "It was not accepted. (credential_verification_failed)\n", 2,
			},
			{`{"allowed":false,"kind":"newer","code":"c","says":"No.","flows":[],"total_flows":0,"active_flows":0}`, "", "No. (c)\n", 1},
		} {
			verb, _, _ := strings.Cut(c.asks[len("default/"):], " ")
			s, term := newCLI(t, map[string]string{verb: `{"seq":1,"id":"i","dry_run":` + r.impact + `}`})
			if got := term.run(t.Context(), strings.Fields(c.args)...); got != r.code {
				t.Errorf("%s: exit code %d, want %d", c.args, got, r.code)
			}
			if d := cmp.Diff([]string{c.asks}, s.asked) + cmp.Diff(r.says, term.out.String()) + cmp.Diff(r.notes, term.errOut.String()); d != "" {
				t.Error(c.args, d)
			}
			if got := term.run(t.Context(), append(strings.Fields(c.args), "--json")...); got != r.code {
				t.Errorf("%s: exit code %d with --json, want %d", c.args, got, r.code)
			}
			var impact client.Impact
			if err := json.Unmarshal(term.out.Bytes(), &impact); err != nil || impact.Allowed != (r.code == 0) {
				t.Errorf("%s: %v %s", c.args, err, term.out.String())
			}
		}
	}
}

// What there is not is said in words.
func TestNothing(t *testing.T) {
	_, term := newCLI(t, map[string]string{
		"flow.list": `{"flows":[]}`, "flow.bind": `{"seq":9,"id":"f1"}`,
		"flow.get":       `{"id":"f1","revision":0,"steps":[]}`,
		"credential.get": `{"id":"i","component":"p","status":"unverified","version":1}`,
	})
	steps := writeFile(t, "steps.json", `[{"id":"s1","component":"p"}]`, 0o644)
	for _, c := range []struct{ args, says, notes string }{
		{"credential where-used i", "", "No flow uses it.\n"},
		{"component where-used p", "", "No flow uses it.\n"},
		{"credential where-used i --json", `{"flows":[]}` + "\n", ""},
		{"flow bind f1 --steps-file " + steps, "Flow f1 names no credential, so nothing was reserved.\n", ""},
		{"flow show f1", "id        f1\nrevision  0\nupdated   -\n\nSTEP  NAME  COMPONENT  CREDENTIAL  WRONG\n", ""},
		{
			"credential show i",
			"id         i\nname       \ncomponent  p\nstatus     unverified\nversion    1\nverified   without a probe\ncreated    - by \nupdated    -\n", "",
		},
	} {
		if got := term.run(t.Context(), strings.Fields(c.args)...); got != 0 {
			t.Errorf("%s: exit code %d", c.args, got)
		}
		if d := cmp.Diff(c.says, term.out.String()) + cmp.Diff(c.notes, term.errOut.String()); d != "" {
			t.Error(c.args, d)
		}
	}
}

// A key file is made once, for nobody else to read, and serve can use it.
func TestKMSNewCommand(t *testing.T) {
	_, term := newCLI(t, nil)
	path := filepath.Join(t.TempDir(), "a key")
	if got := term.run(t.Context(), "kms", "new", path); got != 0 || !strings.Contains(term.out.String(), "Back it up") {
		t.Fatalf("exit code %d: %s %s", got, term.out.String(), term.errOut.String())
	}
	_, kms, _ := strings.Cut(strings.TrimSpace(term.out.String()), "--kms ")
	if _, err := seal.OpenKMS(t.Context(), seal.KMS{URL: kms}); err != nil {
		t.Errorf("%q: %v", kms, err)
	}
	info, err := os.Stat(path)
	stage.OK(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the mode is %o", info.Mode().Perm())
	}
	before, err := os.ReadFile(path)
	stage.OK(t, err)
	if got := term.run(t.Context(), "kms", "new", path); got != 6 || !strings.HasSuffix(term.errOut.String(), " (kms_key_exists)\n") {
		t.Errorf("a second time: exit code %d: %s", got, term.errOut.String())
	}
	after, err := os.ReadFile(path)
	stage.OK(t, err)
	if !bytes.Equal(before, after) || strings.Contains(term.out.String(), string(before)) {
		t.Error("the key was replaced or printed")
	}
	if got := term.run(t.Context(), "kms", "new", filepath.Join(path, "below")); got != 2 || !strings.HasSuffix(term.errOut.String(), " (kms_key_unmade)\n") {
		t.Errorf("where no file can be: exit code %d: %s", got, term.errOut.String())
	}
}

// A refusal names the flows in the way, or the steps at fault.
func TestRefusalDetails(t *testing.T) {
	for _, c := range []struct {
		details any
		notes   string
	}{
		{client.FlowRefs{Total: 3, Flows: []client.FlowRef{{ID: "f1", Name: "Orders\x1b", Active: true}, {ID: "f2"}}}, "  f1  Orders\uFFFD\n  f2\n  ... and 1 more\n"},
		{
			map[string]any{"steps": []client.StepFault{{Step: "s1", Component: "p", Credential: "c1", Reason: "credential_not_found"}}},
			"  s1  p  credential_not_found  c1\n",
		},
		{"other", ""},
	} {
		s, term := newCLI(t, nil)
		s.refusal = fault.New(fault.Precondition, "some_code", "No.").With(c.details)
		if got := term.run(t.Context(), "credential", "delete", "i"); got != 6 || term.out.Len() > 0 {
			t.Errorf("exit code %d", got)
		}
		if d := cmp.Diff("No. (some_code)\n"+c.notes, term.errOut.String()); d != "" {
			t.Error(d)
		}
	}
}

func TestUsage(t *testing.T) {
	open := writeFile(t, "open.json", `{"apiKey":"x"}`, 0o644)
	for _, c := range []struct {
		args string
		code string
		exit int
	}{
		{"nonsense", "usage", 2},
		{"credential nonsense", "usage", 2},
		{"credential show", "usage", 2},
		{"credential show a b", "usage", 2},
		{"credential show a --nonsense", "usage", 2},
		{"credential show a -kcs_canary", "usage", 2},
		{"credential list --limit x", "usage", 2},
		{"credential create", "usage", 2},
		{"credential create --component p", "keys_missing", 2},
		{"credential create --component p --keys canary", "usage", 2},
		{"credential create --component p --keys-file /nowhere/keys.json", "file_unreadable", 2},
		{"credential create --component p --keys-file -", "file_not_json", 2},
		{"credential list --server nowhere", "client_config_invalid", 2},
		{"events replay --since yesterday", "usage", 2},
		{"credential create --component p --keys-file - --for step", "usage", 2},
		{"flow bind f", "usage", 2},
		{"flow bind f --steps-file -", "flow_file_invalid", 2},
		{"flow publish --event started --file -", "flow_file_invalid", 2},
		{"queue send credential.rename --file -", "command_file_invalid", 2},
		{"serve --nonsense", "usage", 2},
		{"serve --log-level loud", "config_log_level", 2},
		{"--help", "", 0},
		{"credential", "", 0},
	} {
		s, term := newCLI(t, nil)
		term.stdin = strings.NewReader(`{"apiKey":"canary"`)
		if got := term.run(t.Context(), strings.Fields(c.args)...); got != c.exit || c.code != "" && !strings.HasSuffix(term.errOut.String(), " ("+c.code+")\n") {
			t.Errorf("%s: exit code %d, %q", c.args, got, term.errOut.String())
		}
		if strings.Contains(term.out.String()+term.errOut.String(), "canary") || len(s.asked) > 0 {
			t.Errorf("%s: %q, asked %q", c.args, term.errOut.String(), s.asked)
		}
	}
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	stage.OK(t, err)
	defer func() { _ = busy.Close() }()
	place := strings.NewReplacer("BUSY", strconv.Itoa(busy.Addr().(*net.TCPAddr).Port), "DATA", t.TempDir())
	for args, want := range map[string]string{
		"flow publish --event started --file f --revision abc": "--revision must be a non-negative number. Try --help. (usage)\n",
		"credential list --limit abc":                          "--limit must be a number. Try --help. (usage)\n",
		"flow bind f --steps-file f --ttl abc":                 "--ttl must be a time such as 90s or 10m. Try --help. (usage)\n",
		"flow list --all=abc":                                  "--all must be true or false. Try --help. (usage)\n",
		"serve --nats-replicas abc":                            "--nats-replicas must be a number. Try --help. (usage)\n",
		"credential craete":                                    "Credential has no such command. Did you mean create? Try credstream credential --help. (usage)\n",
		"credentail list":                                      "Credstream has no such command. Did you mean credential? Try credstream --help. (usage)\n",
		"help credentail":                                      "Credstream has no such command. Did you mean credential? Try credstream --help. (usage)\n",
		"help credential show-canary":                          "Credential has no such command. Try credstream credential --help. (usage)\n",
		"kms nwe":                                              "Kms has no such command. Did you mean new? Try credstream kms --help. (usage)\n",
		"demo petstore --listen 127.0.0.1:BUSY":                "Cannot listen on \"127.0.0.1:BUSY\" of --listen: another program uses this port. Stop that program, or choose another port. (listen_address_unavailable)\n",
		"serve --data DATA --http 127.0.0.1:BUSY":              "Cannot listen on \"127.0.0.1:BUSY\" of --http: another program uses this port. Stop that program, or choose another port. (listen_address_unavailable)\n",
		"serve --data DATA --http nowhere":                     "Cannot listen on \"nowhere\" of --http: it is not a valid address, such as 127.0.0.1:8080. (listen_address_unavailable)\n",
		"credential list --key-file DATA":                      "DATA is a folder. Give a file, or - for standard input. (file_unreadable)\n",
	} {
		args, want = place.Replace(args), place.Replace(want)
		_, term := newCLI(t, nil)
		if got := term.run(t.Context(), strings.Fields(args)...); got != 2 || term.errOut.String() != want {
			t.Errorf("%s: exit code %d, %q", args, got, term.errOut.String())
		}
	}
	_, term := newCLI(t, nil)
	if got := term.run(t.Context(), "credential", "create", "--component", "p", "--keys-file", open); got != 0 || !strings.HasPrefix(term.errOut.String(), "Warning: other users of this machine can read ") {
		t.Errorf("exit code %d, %q", got, term.errOut.String())
	}
}

// The service answers for an unknown tenant as for one that is not granted: the error names it.
func TestUnknownTenant(t *testing.T) {
	s, term := newCLI(t, nil)
	s.refusal = service.ErrTenantNotFound
	const want = "The tenant acme does not exist, or your API key is not granted it. Choose a tenant with --tenant or CREDSTREAM_TENANT. (tenant_not_found)\n"
	if got := term.run(t.Context(), "credential", "list", "--tenant", "acme"); got != 5 || term.errOut.String() != want {
		t.Errorf("exit code %d, %q", got, term.errOut.String())
	}
}

// A flag goes before the environment, which goes before the default.
func TestConfiguration(t *testing.T) {
	s, term := newCLI(t, nil)
	asks := func(want string, args ...string) {
		t.Helper()
		s.asked = nil
		if got := term.run(t.Context(), append([]string{"tenant", "list"}, args...)...); got != 0 {
			t.Fatalf("exit code %d: %s", got, term.errOut.String())
		}
		if d := cmp.Diff([]string{want}, s.asked); d != "" {
			t.Error(d)
		}
	}
	asks("default/tenant.list")
	term.env["CREDSTREAM_TENANT"] = "acme"
	asks("acme/tenant.list")
	asks("other/tenant.list", "--tenant", "other")

	delete(term.env, "CREDSTREAM_KEY")
	if got := term.run(t.Context(), "tenant", "list"); got != 3 {
		t.Errorf("without a key the exit code is %d", got)
	}
	asks("acme/tenant.list", "--key", cliKey)
	file := writeFile(t, "key", cliKey+"\n", 0o600)
	asks("acme/tenant.list", "--key-file", file)
	term.env["CREDSTREAM_KEY_FILE"] = file
	asks("acme/tenant.list")

	// Help shows defaults, never what a variable holds.
	term.env["CREDSTREAM_KEY"], term.env["CREDSTREAM_ADMIN_KEY"] = cliKey, cliKey
	for _, args := range [][]string{{"tenant", "list", "--help"}, {"serve", "--help"}} {
		if got := term.run(t.Context(), args...); got != 0 || strings.Contains(term.out.String(), cliKey) || !strings.Contains(term.out.String(), "[$CREDSTREAM_") {
			t.Errorf("%v: exit code %d\n%s", args, got, term.out.String())
		}
	}
	term.env["CREDSTREAM_ALLOW_PRIVATE_TARGETS"] = "perhaps"
	if got := term.run(t.Context(), "serve"); got != 2 || !strings.Contains(term.errOut.String(), "(config_environment)") {
		t.Errorf("exit code %d: %s", got, term.errOut.String())
	}
}

func TestConfigReference(t *testing.T) {
	const path = "../../../docs/config.md"
	want := cli.ConfigReference()
	if *update {
		stage.OK(t, os.WriteFile(path, []byte(want), 0o644))
	}
	b, err := os.ReadFile(path)
	stage.OK(t, err)
	if d := cmp.Diff(want, string(b)); d != "" {
		t.Errorf("docs/config.md is not what the program says; go test ./cmd/credstream/cli -run TestConfigReference -update writes it anew\n%s", d)
	}
}

// The example is the descriptor of the tests with our two members added.
func TestDemoComponent(t *testing.T) {
	b, err := os.ReadFile("../../../docs/examples/petstore-component.json")
	stage.OK(t, err)
	d, err := commands.ParseDescriptor(b)
	stage.OK(t, err)
	if d.Verification == nil || d.Verification.HTTP.URL != "http://127.0.0.1:9090/v2/user/me" || !slices.Equal(d.Hosts, []string{"127.0.0.1"}) {
		t.Errorf("the example is %+v", d)
	}
	ofTests, err := os.ReadFile("../../../commands/testdata/components/api-key.json")
	stage.OK(t, err)
	var got, want map[string]any
	stage.OK(t, errors.Join(json.Unmarshal(b, &got), json.Unmarshal(ofTests, &want)))
	delete(got, "hosts")
	delete(got, "verification")
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestDemoPetstore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reader, writer := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Run(ctx, []string{"demo", "petstore", "--listen", "127.0.0.1:0"}, func(name string) string {
			return map[string]string{"CREDSTREAM_DEMO_KEY": "k"}[name]
		}, strings.NewReader(""), writer, io.Discard)
		_ = writer.Close()
	}()
	line := make([]byte, 200)
	n, err := reader.Read(line)
	stage.OK(t, err)
	url, found := strings.CutPrefix(strings.TrimSpace(string(line[:n])), "Petstore listens on ")
	if !found {
		t.Fatalf("it says %q", line[:n])
	}
	for key, want := range map[string]int{"k": 200, "": 401, "secret": 401} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", url+"/v2/user/me", nil)
		stage.OK(t, err)
		req.Header.Set("api-key", key)
		resp, err := http.DefaultClient.Do(req)
		stage.OK(t, err)
		if resp.StatusCode != want {
			t.Errorf("key %q is answered with %d", key, resp.StatusCode)
		}
		stage.OK(t, resp.Body.Close())
	}
	cancel()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// pseudoTerminal opens a terminal: what a person types goes into keyboard.
func pseudoTerminal(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal can be opened here: %v", err)
	}
	t.Cleanup(func() { _ = keyboard.Close() })
	n, err := unix.IoctlGetInt(int(keyboard.Fd()), unix.TIOCGPTN)
	stage.OK(t, err)
	stage.OK(t, unix.IoctlSetPointerInt(int(keyboard.Fd()), unix.TIOCSPTLCK, 0))
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal can be opened here: %v", err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return keyboard, tty
}

// promptly types each line when it is asked for, which is when an echo could be
// seen: the question says whether the echo is off.
type promptly struct {
	t        *testing.T
	keyboard *os.File
	tty      *os.File
	lines    []string
	said     bytes.Buffer
}

func (p *promptly) Write(b []byte) (int, error) {
	p.said.Write(b)
	if strings.HasSuffix(string(b), ": ") && len(p.lines) > 0 {
		line := p.lines[0]
		p.lines = p.lines[1:]
		hidden := strings.Contains(string(b), "not shown")
		go func() {
			for { // until the question is waited for in the right way
				state, err := unix.IoctlGetTermios(int(p.tty.Fd()), unix.TCGETS)
				if err != nil || (state.Lflag&unix.ECHO == 0) == hidden {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if _, err := p.keyboard.WriteString(line + "\n"); err != nil {
				p.t.Error(err)
			}
		}()
	}
	return len(b), nil
}

const cliDescriptor = `{"title":"D","credentials":{"fields":{` +
	`"url":{"label":"Address","required":true,"viewClass":"TextFieldView","secret":false},` +
	`"token":{"label":"Token","required":true,"viewClass":"PasswordFieldView"},` +
	`"region":{"viewClass":"SelectView","secret":false,"model":{"eu":"Europe","us":"USA"}}}}}`

// On a terminal the fields are asked for, secret ones without echo.
func TestPrompt(t *testing.T) {
	keyboard, tty := pseudoTerminal(t)
	s, _ := newCLI(t, map[string]string{"component.get": `{"id":"p","revision":7,"descriptor":` + strings.Replace(cliDescriptor, `{"title"`, `{"hosts":["x.example","y.example"],"title"`, 1) + `}`})
	screen := &promptly{t: t, keyboard: keyboard, tty: tty, lines: []string{"https://x", "canary", ""}}
	getenv := func(name string) string {
		return map[string]string{"CREDSTREAM_URL": s.URL, "CREDSTREAM_KEY": cliKey}[name]
	}
	var out bytes.Buffer
	if got := cli.Run(t.Context(), []string{"credential", "create", "--component", "p"}, getenv, tty, &out, screen); got != 0 {
		t.Fatalf("exit code %d: %s", got, screen.said.String())
	}
	want := []string{"default/component.get?id=p", `default/credential.create {"component":"p","keys":{"token":"canary","url":"https://x"},"expected_revision":7}`}
	if d := cmp.Diff(want, s.asked); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff("The values go to x.example, y.example.\nAddress: Token (not shown): \nregion (one of eu, us; may be empty): ", screen.said.String()); d != "" {
		t.Error(d)
	}
	stage.OK(t, tty.Close())
	echo, _ := io.ReadAll(keyboard) // ends with an error once nobody holds the terminal
	if !strings.Contains(string(echo), "https://x") {
		t.Errorf("what may be shown was not: %q", echo)
	}
	if strings.Contains(string(echo)+out.String(), "canary") {
		t.Error("the secret was shown")
	}
}

// Whoever interrupts the question gets the echo back and sends nothing.
func TestPromptInterrupted(t *testing.T) {
	keyboard, tty := pseudoTerminal(t)
	s, _ := newCLI(t, map[string]string{"component.get": `{"id":"p","descriptor":` + cliDescriptor + `}`})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	screen := &promptly{t: t, keyboard: keyboard, tty: tty, lines: []string{"https://x"}}
	getenv := func(name string) string {
		return map[string]string{"CREDSTREAM_URL": s.URL, "CREDSTREAM_KEY": cliKey}[name]
	}
	go func() {
		for ctx.Err() == nil {
			if state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS); err != nil || state.Lflag&unix.ECHO == 0 {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	var out bytes.Buffer
	if got := cli.Run(ctx, []string{"credential", "create", "--component", "p"}, getenv, tty, &out, screen); got != 9 {
		t.Errorf("exit code %d: %s", got, screen.said.String())
	}
	state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	stage.OK(t, err)
	if state.Lflag&unix.ECHO == 0 {
		t.Error("the terminal is left without echo")
	}
	if d := cmp.Diff([]string{"default/component.get?id=p"}, s.asked); d != "" {
		t.Error(d)
	}
	_, err = keyboard.WriteString("\n") // ends the read that is left
	stage.OK(t, err)
}

// Container health checks read the exit code.
func TestHealth(t *testing.T) {
	status, body := http.StatusOK, `{"ready":true,"reasons":[],"notes":["fsync is slow"]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || r.Header.Get("Authorization") != "" {
			t.Errorf("asked for %s with %q", r.URL.Path, r.Header.Get("Authorization"))
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	defer server.Close()
	for _, c := range []struct {
		status int
		body   string
		code   int
		says   string
	}{
		{http.StatusOK, body, 0, "ready\nnote: fsync is slow\n"},
		{http.StatusServiceUnavailable, `{"ready":false,"reasons":["log: cut short","disk: full"]}`, 9, "The service is not ready: log: cut short; disk: full. (service_not_ready)\n"},
		{http.StatusServiceUnavailable, `{"ready":true}`, 1, "(answer_not_understood)"},
		{http.StatusOK, `<html>`, 1, "(answer_not_understood)"},
		{http.StatusNotFound, `{"ready":true}`, 1, "(answer_not_understood)"},
	} {
		status, body = c.status, c.body
		sh := &terminal{}
		code := sh.run(t.Context(), "health", "--server", server.URL)
		if said := sh.out.String() + sh.errOut.String(); code != c.code || !strings.Contains(said, c.says) {
			t.Errorf("%d %s: exit code %d: %s", c.status, c.body, code, said)
		}
	}
	server.Close()
	gone := &terminal{}
	if code := gone.run(t.Context(), "health", "--server", server.URL); code != 9 || !strings.Contains(gone.errOut.String(), "service_unreachable") {
		t.Errorf("nothing answers: %d %s", code, gone.errOut.String())
	}
}

// The input of a batch is checked before anything is sent: what is wrong with it is said by line and
// column, without a word of it.
func TestBatchInput(t *testing.T) {
	s, c := newCLI(t, map[string]string{
		"credential.create-many": `{"results":[{"id":"a","version":1,"status":"verified"}],"failed":0,"seq":7}`,
		"credential.delete-many": `{"results":[{"id":"a"},{"id":"b"}],"failed":0,"seq":7}`,
	})
	for _, tc := range []struct{ verb, input, want string }{
		{"create-many", "{}\n{\"keys\":canary}", "Line 2, column 9: this is not valid JSON."},
		{"create-many", "{}\n\"ż\" {", "Line 2, column 1: an item must be a JSON object."},
		{"create-many", "[{\"a\":\"żółć\"},\n  7]", "Line 2, column 3: an item must be a JSON object."},
		{"create-many", "[{},{\"canary\":1,\"canary\":2}]", "Line 1, column 17: this name appears more than once in the same object."},
		{"create-many", "[{},{}", "Line 1, column 7: the input ends in the middle of an item."},
		{"create-many", "{\"keys\":\n{\"a\":", "Line 2, column 6: the input ends in the middle of an item."},
		{"create-many", "[{}]\n\n {\"b\":1}", "Line 3, column 2: there is more input after the end of the array."},
		{"create-many", "{},{}", "Line 1, column 3: this is not valid JSON."},
		{"create-many", "\xff", "Line 1, column 1: this is not valid JSON."},
		{"update-many", "[\"a\"]", "Line 1, column 2: an item must be a JSON object."},
		{"delete-many", "[\"a\",{\"name\":\"canary\"}]", "Line 1, column 6: this object has no id."},
		{"delete-many", "7", "Line 1, column 1: an item must be an id in quotes, or an object with an id."},
	} {
		c.stdin = strings.NewReader(tc.input)
		if got := c.run(t.Context(), "credential", tc.verb, "-"); got != 2 || c.errOut.String() != tc.want+" (batch_input_invalid)\n" {
			t.Errorf("%q: exit code %d, %s", tc.input, got, c.errOut.String())
		}
	}
	for _, args := range [][]string{{"delete-many"}, {"delete-many", "-", "--type", "t"}, {"update-many", "--type", "t"}, {"update-many", "-", "--set-description", "d"}} {
		if got := c.run(t.Context(), append([]string{"credential"}, args...)...); got != 2 {
			t.Errorf("%v: exit code %d, %s", args, got, c.errOut.String())
		}
	}
	if len(s.asked) > 0 {
		t.Errorf("the service was asked %q", s.asked)
	}
	for input, want := range map[string]string{
		"":                      "Deleted 0, refused 0.\n",
		" [ ] ":                 "Deleted 0, refused 0.\n",
		"\"a\"\n{\"id\":\"b\"}": "done     a \ndone     b \nDeleted 2, refused 0.\n",
	} {
		c.stdin = strings.NewReader(input)
		if got := c.run(t.Context(), "credential", "delete-many", "-"); got != 0 || c.out.String() != want {
			t.Errorf("%q: exit code %d, %q %q", input, got, c.out.String(), c.errOut.String())
		}
	}
	if want := []string{`acme/credential.delete-many {"ids":["a","b"]}`}; !slices.Equal(s.asked, want) && !strings.HasSuffix(s.asked[0], `credential.delete-many {"ids":["a","b"]}`) {
		t.Errorf("the service was asked %q", s.asked)
	}
}
