package stage

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// NPM copies the files of the paths (a folder stands for its files) to a folder of the test and
// installs the npm packages there at the exact versions of the package-lock.json among them. It
// returns the folder, or skips the test where npm or its registry are missing.
func NPM(t testing.TB, paths ...string) (dir string) {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed: apt-get install nodejs npm", tool)
		}
	}
	dir = t.TempDir()
	for _, path := range paths {
		if Must(os.Stat(path))(t).IsDir() {
			OK(t, os.CopyFS(dir, os.DirFS(path)))
			continue
		}
		OK(t, os.WriteFile(filepath.Join(dir, filepath.Base(path)), Must(os.ReadFile(path))(t), 0o600))
	}
	install := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	install.Dir = dir
	if out, err := install.CombinedOutput(); err != nil {
		t.Skipf("npm cannot install the packages of this test from here (%v): %s", err, out)
	}
	return dir
}
