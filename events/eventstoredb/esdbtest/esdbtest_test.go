package esdbtest_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/events/eventstoredb/esdbtest"
)

// The official Node client uses the server as it uses the real one. It is not part of this
// repository: make esdb-node installs it.
func TestNodeClient(t *testing.T) {
	modules := os.Getenv("CREDSTREAM_NODE_MODULES")
	if modules == "" {
		t.Skip("CREDSTREAM_NODE_MODULES names no folder with @eventstore/db-client: make esdb-node")
	}
	script, err := filepath.Abs("client.test.cjs")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", script, esdbtest.Start(t, esdbtest.Options{}).URL())
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "node client: ok") {
		t.Errorf("%v\n%s", err, out)
	}
}
