package app

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The served process writes no core file, and its memory is closed to others of the same user.
func TestServeForbidsDumps(t *testing.T) {
	p := spawn(t, t.TempDir())
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.cmd.Process.Pid))
	must(t, err)
	for line := range bytes.Lines(limits) {
		if rest, ok := bytes.CutPrefix(line, []byte("Max core file size")); ok && strings.Join(strings.Fields(string(rest)), " ") != "0 0 bytes" {
			t.Errorf("core files are limited to %s", rest)
		}
	}
	must(t, p.kill(syscall.SIGTERM))

	must(t, forbidDumps()) // of the test itself: no other process can ask for the flag
	if dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || dumpable != 0 {
		t.Errorf("the process is dumpable: %d, %v", dumpable, err)
	}
}
