package elastic_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/credstream/credstream/service/stage"
)

// Elasticsearch's official JavaScript client.
func TestJavaScriptClient(t *testing.T) {
	dir := stage.NPM(t, "testdata/js")
	s := serve(t)
	run := exec.CommandContext(t.Context(), "node", "client.js")
	run.Dir, run.Env = dir, append(os.Environ(), "URL="+s.url, "KEY="+s.key)
	if out, err := run.CombinedOutput(); err != nil || !strings.Contains(string(out), "all calls answered as expected") {
		t.Errorf("%v: %s", err, out)
	}
}
