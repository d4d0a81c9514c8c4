package credstream_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// systemd itself reads the unit, and rates what the service may do (0 is nothing, 10 is all).
func TestSystemdUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed: apt-get install systemd")
	}
	text, err := os.ReadFile(filepath.Join("deploy", "systemd", "credstream.service"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program, unit := filepath.Join(dir, "credstream"), filepath.Join(dir, "credstream.service")
	for path, content := range map[string]string{
		program: "#!/bin/sh\n",
		unit:    strings.ReplaceAll(string(text), "/usr/local/bin/credstream", program),
	} {
		if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"verify", "--man=no", unit}, {"security", "--offline=true", "--threshold=15", unit}} { // 1.5
		if out, err := exec.CommandContext(t.Context(), analyze, args...).CombinedOutput(); err != nil {
			t.Errorf("systemd-analyze %s: %v\n%s", args[0], err, out)
		}
	}
}
