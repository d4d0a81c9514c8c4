package app

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// many is the number of credentials of the tests that may also be run with a large one:
// go test ./cmd/credstream/app -run "TestImportKilled|TestBatchOfMany" -many 10000 -v
var many = flag.Int("many", 400, "credentials of TestImportKilled and TestBatchOfMany")

// An import is killed at any moment, and run again: in the end everything is there once.
func TestImportKilled(t *testing.T) {
	t.Parallel()
	u := bring(t, t.TempDir())
	x := newTransferrer(t, u, adminKey)
	x.createMany(*many)
	identityFile, recipient, _ := identity(t)
	file := filepath.Join(t.TempDir(), "tenant.export")
	reveals := u.issue(t, map[string]any{"role": "ADMINISTRATOR", "permissions": []string{"credentials.reveal"}})
	newTransferrer(t, u, reveals).wants(0, "export", "--to", recipient, "--out", file)

	args := []string{"import", file, "--identity", identityFile, "--signed-by", "any", "--new-ids"}
	argv, err := json.Marshal(args)
	must(t, err)
	kills, partly := 0, 0
	for had := count(t, u); kills < 4; {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+string(argv), "CREDSTREAM_URL="+u.base, "CREDSTREAM_KEY="+adminKey)
		must(t, cmd.Start())
		for began := time.Now(); count(t, u) == had && time.Since(began) < time.Minute; { // verifying and comparing changes nothing
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond) // the moment of the kill is meant to be any
		_ = cmd.Process.Kill()
		if cmd.Wait() == nil {
			break
		}
		kills++
		if had = count(t, u); had > *many && had < 2**many {
			partly++
		}
		if had == 2**many {
			break
		}
	}
	t.Logf("%d kills, %d in the middle", kills, partly)
	if partly == 0 {
		t.Error("no kill was in the middle: the test shows nothing")
	}
	x.wants(0, args...)
	if got := count(t, u); got != 2**many {
		t.Errorf("there are %d credentials, want %d", got, 2**many)
	}
	end := logEnd(t, u.program)
	if out := x.wants(0, args...); !strings.Contains(out, fmt.Sprintf("\nCreated 0, updated 0, unchanged %d, left behind 0.\n", *many)) || logEnd(t, u.program) != end {
		t.Errorf("once more it says %s", out[max(0, len(out)-200):])
	}
}

// createMany creates credentials from a file, and waits until lists have them.
func (x *transferrer) createMany(n int) {
	x.t.Helper()
	var input bytes.Buffer
	for i := range n {
		fmt.Fprintf(&input, "{\"id\":\"many-%06d\",\"type\":\"crm\",\"name\":\"No. %d\",\"description\":\"No. %d\",\"keys\":{\"user\":\"u\",\"password\":\"canary-%d\"}}\n", i, i, i, i)
	}
	x.stdin = &input
	if out := x.wants(0, "credential", "create-many", "-"); !strings.HasSuffix(out, fmt.Sprintf("\nCreated %d, refused 0.\n", n)) {
		x.t.Fatalf("create-many ends %s", out[max(0, len(out)-200):])
	}
}

// How long batches take, with -many 10000 -v: the issue asks for less than 30 s each.
func TestBatchOfMany(t *testing.T) {
	u := bring(t, t.TempDir())
	x := newTransferrer(t, u, adminKey)
	took := func(what string, do func()) {
		began := time.Now()
		do()
		t.Logf("%s %d: %v", what, *many, time.Since(began).Round(time.Millisecond))
	}
	took("create", func() { x.createMany(*many) })
	took("update", func() {
		if out := x.wants(0, "credential", "update-many", "--type", "crm", "--set-description", "changed"); !strings.HasSuffix(out, fmt.Sprintf("Updated %d, refused 0.\n", *many)) {
			t.Errorf("update-many ends %s", out[max(0, len(out)-200):])
		}
	})
	took("delete", func() {
		if out := x.wants(0, "credential", "delete-many", "--type", "crm"); !strings.HasSuffix(out, fmt.Sprintf("Deleted %d, refused 0.\n", *many)) {
			t.Errorf("delete-many ends %s", out[max(0, len(out)-200):])
		}
	})
	if got := count(t, u); got != 0 {
		t.Errorf("%d credentials are left", got)
	}
	took("then erase", func() {
		for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			left := 0
			for _, err := range u.vault.All(t.Context(), 1) {
				must(t, err)
				left++
			}
			if left == 0 {
				return
			}
			if time.Since(began) > 10*time.Minute {
				t.Fatalf("%d secrets are not erased", left)
			}
		}
	})
}
