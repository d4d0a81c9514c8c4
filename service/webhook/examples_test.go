package webhook_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/service/stage"
)

// example is the code of a language in the documentation.
func example(t *testing.T, language string) string {
	t.Helper()
	page := string(stage.Must(os.ReadFile("../../docs/webhooks.md"))(t))
	_, code, found := strings.Cut(page, "```"+language+"\n")
	code, _, closed := strings.Cut(code, "```")
	if !found || !closed {
		t.Fatalf("docs/webhooks.md has no example in %s", language)
	}
	return code
}

// The examples of the documentation accept what a webhook sends, and nothing else.
func TestDocumentedVerifiers(t *testing.T) {
	runners := map[string]struct{ language, file, run string }{
		"node": {"js", "verify.mjs", `
const input = JSON.parse(process.argv[2]);
console.log(JSON.stringify(input.map((i) => verify(i.secret, i.headers, Buffer.from(i.body)))));
`},
		"python3": {"python", "verify.py", `
import json, sys
print(json.dumps([verify(i["secret"], i["headers"], i["body"].encode()) for i in json.loads(sys.argv[1])]))
`},
	}
	s := start(t)
	deliver(t, s)
	r := listen(t)
	id := s.Create("k")
	secret := define(t, s, "default", "w", r.URL, `,"types":["credential.renamed"]`)
	rename(s, "default", id, "Ünïcode")
	bustest.Eventually(t, "an event", func() bool { return len(r.all()) == 1 })
	rotated := s.Do("default", "webhook.rotate-secret", `{"id":"w"}`)
	rename(s, "default", id, "during a rotation")
	bustest.Eventually(t, "another event", func() bool { return rotated.Seq > 0 && len(r.all()) == 2 })
	type input struct {
		Secret  string            `json:"secret"`
		Headers map[string]string `json:"headers"`
		Body    string            `json:"body"`
	}
	of := func(i int, change func(*input)) input {
		m := r.all()[i]
		in := input{secret, map[string]string{}, string(m.body)}
		for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
			in.Headers[name] = m.header.Get(name)
		}
		change(&in)
		return in
	}
	given := []input{
		of(0, func(*input) {}), of(1, func(*input) {}),
		of(0, func(in *input) { in.Body += " " }),
		of(0, func(in *input) { in.Headers["webhook-id"] += "0" }),
		of(0, func(in *input) { in.Headers["webhook-timestamp"] = "1700000000" }),
		of(0, func(in *input) { in.Secret = "whsec_b3RoZXI=" }),
		of(0, func(in *input) { in.Headers["webhook-signature"] = "v1,AAAA" }),
	}
	const want = "[true,true,false,false,false,false,false]"
	argument := string(stage.Must(json.Marshal(given))(t))
	for program, runner := range runners {
		t.Run(program, func(t *testing.T) {
			path, err := exec.LookPath(program)
			if err != nil {
				t.Skipf("%s is not installed here", program)
			}
			file := filepath.Join(t.TempDir(), runner.file)
			stage.OK(t, os.WriteFile(file, []byte(example(t, runner.language)+runner.run), 0o600))
			out, err := exec.CommandContext(t.Context(), path, file, argument).CombinedOutput()
			if got := strings.ReplaceAll(strings.TrimSpace(string(out)), " ", ""); err != nil || got != want {
				t.Errorf("%v: %s, want %s", err, out, want)
			}
		})
	}
}
