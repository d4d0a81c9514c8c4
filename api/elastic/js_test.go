package elastic_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/credstream/credstream/service/stage"
)

// Elasticsearch's official JavaScript client.
func TestJavaScriptClient(t *testing.T) {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed, so the JavaScript client of Elasticsearch is not tried", tool)
		}
	}
	s := serve(t)
	dir := t.TempDir()
	for _, file := range []string{"package.json", "package-lock.json", "client.js"} {
		b := stage.Must(os.ReadFile(filepath.Join("testdata", "js", file)))(t)
		stage.OK(t, os.WriteFile(filepath.Join(dir, file), b, 0o600))
	}
	install := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("npm cannot install @elastic/elasticsearch from here (%v), so it is not tried: %s", err, out)
	}
	run := exec.CommandContext(t.Context(), "node", "client.js")
	run.Dir, run.Env = dir, append(os.Environ(), "URL="+s.url, "KEY="+s.key)
	if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), "all calls answered as expected") {
		t.Errorf("%v: %s", err, out)
	}
}
