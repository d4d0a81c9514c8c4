package esdbtest_test

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/events/eventstoredb/esdbtest"
	"github.com/credstream/credstream/service/stage"
)

// The official Node client uses the server as it uses the real one.
func TestNodeClient(t *testing.T) {
	dir := stage.NPM(t, "testdata/js")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", "client.cjs", esdbtest.Start(t, esdbtest.Options{}).URL())
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "node client: ok") {
		t.Errorf("%v\n%s", err, out)
	}
}
