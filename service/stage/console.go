package stage

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// Console runs the commands of the console blocks of a page of docs in a shell, one after the
// other, and compares what they print: "..." in the page is any text. The host of the page is
// replaced by url, and $KEY is key. It skips the test where there is no shell or curl.
func Console(t testing.TB, page, url, key string) {
	t.Helper()
	for _, program := range []string{"sh", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not on this machine, so the commands of the page are not tried.")
		}
	}
	text := string(Must(os.ReadFile(page))(t))
	commands := 0
	for i, block := range strings.Split(text, "```") {
		block, isConsole := strings.CutPrefix(block, "console\n")
		if i%2 == 0 || !isConsole {
			continue
		}
		for _, part := range strings.Split("\n"+block, "\n$ ")[1:] {
			var command, want []string
			for lines := strings.Split(part, "\n"); len(lines) > 0; lines = lines[1:] {
				if command = append(command, lines[0]); !strings.HasSuffix(lines[0], `\`) {
					want = lines[1:]
					break
				}
			}
			commands++
			line := strings.ReplaceAll(strings.Join(command, "\n"), "http://127.0.0.1:8080", url)
			cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line, "curl ", "curl -sS ", 1))
			cmd.Env = append(os.Environ(), "KEY="+key, "no_proxy=*")
			var failed bytes.Buffer
			cmd.Stderr = &failed
			got, err := cmd.Output()
			if err != nil {
				t.Errorf("%s: %v: %s", line, err, failed.String())
			}
			pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(strings.Join(want, "\n"))), regexp.QuoteMeta("..."), ".*")
			if !regexp.MustCompile("^" + pattern + "$").MatchString(strings.TrimSpace(string(got))) {
				t.Errorf("%s\nprints %s\nnot    %s", line, got, strings.Join(want, "\n"))
			}
		}
	}
	if commands == 0 {
		t.Errorf("%s has no console block with a command", page)
	}
}
