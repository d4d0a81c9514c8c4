package cli_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credstream/credstream/cmd/credstream/cli"
	"github.com/credstream/credstream/service/stage"
)

const tableAnswer = `{"credentials":[` +
	`{"id":"22971c67-05d5-8f48-a325-f1957e01b84c","name":"Pets of Acme, \"new\"","component":"petstore","status":"verified","version":2,"updated_at":"2026-01-02T03:04:05.123456Z"},` +
	`{"id":"9d3681e8-7ac8-8296-be19-e6743e7ea9bc","name":"Calendar","component":"calendar","status":"reauthorization_required","version":12,"updated_at":"2026-01-02T03:04:05Z"}]}`

// onTerminal runs a command line with its output on a terminal of this width.
func onTerminal(t *testing.T, c *terminal, width uint16, args ...string) string {
	t.Helper()
	keyboard, tty := pseudoTerminal(t)
	stage.OK(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: 24}))
	code := cli.Run(t.Context(), args, func(name string) string { return c.env[name] }, strings.NewReader(""), tty, &c.errOut)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, c.errOut.String())
	}
	if _, err := io.WriteString(tty, "END"); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	b := make([]byte, 4096)
	for !strings.HasSuffix(out.String(), "END") {
		stage.OK(t, keyboard.SetReadDeadline(time.Now().Add(5*time.Second)))
		n, err := keyboard.Read(b)
		if err != nil {
			t.Fatalf("after %q: %v", out.String(), err)
		}
		out.Write(b[:n])
	}
	return strings.TrimSuffix(strings.ReplaceAll(out.String(), "\r\n", "\n"), "END")
}

// A table omits columns and then becomes blocks, but no terminal is too narrow for an id.
func TestTableOnTerminal(t *testing.T) {
	_, c := newCLI(t, map[string]string{"credential.list": tableAnswer})
	c.env["NO_COLOR"] = "1"
	const first, second = "22971c67-05d5-8f48-a325-f1957e01b84c", "9d3681e8-7ac8-8296-be19-e6743e7ea9bc"
	for width, want := range map[uint16]string{
		140: "ID                                    NAME                 COMPONENT  STATUS                    VERSION  UPDATED\n",
		100: "ID                                    NAME                 COMPONENT  STATUS\n",
		90:  "ID                                    NAME                 STATUS\n",
		60:  "id         " + first + "\n",
	} {
		out := onTerminal(t, c, width, "credential", "list")
		if !strings.HasPrefix(out, want) || !strings.Contains(out, first) || !strings.Contains(out, second) || strings.Contains(out, "\033") {
			t.Errorf("%d columns:\n%s", width, out)
		}
		for line := range strings.Lines(out) {
			if len(strings.TrimSuffix(line, "\n")) > int(width) {
				t.Errorf("%d columns: the terminal wraps %q", width, line)
			}
		}
		if width == 140 && !strings.Contains(out, "d ago") {
			t.Errorf("exact times in a table:\n%s", out)
		}
	}
	if out := onTerminal(t, c, 60, "credential", "list", "--output", "wide"); !strings.Contains(out, "2026-01-02 03:04:05Z") {
		t.Errorf("wide:\n%s", out)
	}
	const blocks = "id      " + first + "\nstatus  verified\n\nid      " + second + "\nstatus  reauthorization_required\n"
	if out := onTerminal(t, c, 40, "credential", "list", "--columns", "id,status"); out != blocks {
		t.Errorf("blocks:\n%s", out)
	}
	delete(c.env, "NO_COLOR")
	if out := onTerminal(t, c, 140, "credential", "list", "--columns", "status", "--no-headers"); out != "\033[32mverified\033[m\n\033[31mreauthorization_required\033[m\n" {
		t.Errorf("colours: %q", out)
	}
}

func TestOutputForms(t *testing.T) {
	_, c := newCLI(t, map[string]string{"credential.list": tableAnswer, "credential.get": `{"id":"i","name":"1e3","component":"p","status":"verified","version":1,"verification":{},"created_at":"2026-01-02T03:04:05Z","created_by":"key:k","updated_at":"2026-01-02T03:04:05Z"}`})
	for args, want := range map[string]string{
		"list --output csv --columns id,name":                      "id,name\n22971c67-05d5-8f48-a325-f1957e01b84c,\"Pets of Acme, \"\"new\"\"\"\n9d3681e8-7ac8-8296-be19-e6743e7ea9bc,Calendar\n",
		"list --output csv --no-headers --columns updated,Version": "2026-01-02 03:04:05Z,2\n2026-01-02 03:04:05Z,12\n",
		"list --no-headers --columns status,name":                  "verified                  Pets of Acme, \"new\"\nreauthorization_required  Calendar\n",
		"list --columns owner":                                     "--columns: the columns of this list are id, name, component, status, version, updated. (usage)\n",
		"list --output xml":                                        "--output must be table, wide, json, yaml or csv. (usage)\n",
		"list --json --output yaml":                                `{"title":"Bad Request","status":400,"code":"usage","kind":"invalid","detail":"Give either --json or --output."}` + "\n",
		"list --output yaml --no-headers":                          `{"title":"Bad Request","status":400,"code":"usage","kind":"invalid","detail":"--columns and --no-headers are for tables and CSV, not for JSON or YAML."}` + "\n",
	} {
		code := c.run(context.Background(), append([]string{"credential"}, strings.Fields(args)...)...)
		if got := c.out.String() + c.errOut.String(); got != want || (code == 0) == strings.Contains(want, "usage") {
			t.Errorf("%s: %d\n%s", args, code, got)
		}
	}
	if code := c.run(context.Background(), "credential", "list", "--output", "yaml"); code != 0 || !strings.HasPrefix(c.out.String(), "credentials:\n    - id: 22971c67-05d5-8f48-a325-f1957e01b84c\n      component: petstore\n") ||
		!strings.Contains(c.out.String(), `updated_at: "2026-01-02T03:04:05.123456Z"`) {
		t.Errorf("%d\n%s", code, c.out.String())
	}
	if c.run(context.Background(), "credential", "show", "i", "--output", "yaml"); !strings.Contains(c.out.String(), "name: \"1e3\"\n") || !strings.Contains(c.out.String(), "\nversion: 1\n") {
		t.Errorf("a string or a number has another type in YAML:\n%s", c.out.String())
	}
	if c.run(context.Background(), "credential", "list", "--output", "json"); !strings.HasPrefix(c.out.String(), `{"credentials":[{`) {
		t.Errorf("%s", c.out.String())
	}
}
