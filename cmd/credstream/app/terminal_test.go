//go:build linux

package app

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo terminal of 60 columns. shown ends it and returns what it was sent.
func terminal(t *testing.T) (tty *os.File, shown func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("No pseudo terminal, so the progress bar is not tried: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	must(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}))
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	done, text := make(chan struct{}), bytes.Buffer{}
	go func() {
		defer close(done)
		_, _ = text.ReadFrom(master) // ends with EIO when the last descriptor of tty is closed
	}()
	return tty, func() string {
		_ = tty.Close()
		<-done
		return strings.ReplaceAll(text.String(), "\r\n", "\n")
	}
}

// A batch shows its progress on a terminal, in one line that leaves nothing behind, and only
// what was refused. A file gets each item, whatever standard error is.
func TestProgressOnATerminal(t *testing.T) {
	u := bring(t, t.TempDir())
	var input strings.Builder
	for i := range 1500 { // two calls
		fmt.Fprintf(&input, "{\"id\":\"many-%04d\",\"type\":\"crm\",\"keys\":{\"k\":\"canary\"}}\n", i)
	}
	input.WriteString(`{"type":"crm","keyz":{}}`)
	env := func(name string) string {
		return map[string]string{"CREDSTREAM_URL": u.base, "CREDSTREAM_KEY": adminKey}[name]
	}
	bar := regexp.MustCompile(`\r\x1b\[KCreated \[[#.]+\] \d+/1501 +\d+%`)
	const refused = "refused  - line 1501: "

	tty, shown := terminal(t)
	if code := CommandLine(t.Context(), []string{"credential", "create-many", "-", "--command-id", "one"}, env, strings.NewReader(input.String()), tty, tty); code != 2 {
		t.Errorf("exit code %d", code)
	}
	text := shown()
	if bars := bar.FindAllString(text, -1); len(bars) < 2 || !strings.Contains(bars[len(bars)-1], " 100%") {
		t.Errorf("the bars are %q", bars)
	}
	for _, b := range bar.FindAllString(text, -1) {
		if columns := len(b) - len("\r\x1b[K"); columns > 60 {
			t.Errorf("%q has %d columns", b, columns)
		}
	}
	left := strings.ReplaceAll(bar.ReplaceAllString(text, ""), "\r\x1b[K", "")
	if lines := strings.Split(strings.TrimSpace(left), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], refused) || lines[1] != "Created 1500, refused 1." {
		t.Errorf("beside the bar it shows %q", left)
	}
	for i, line := range strings.Split(text, "\n") { // nothing is printed behind a bar
		if at := bar.FindAllStringIndex(line, -1); len(at) > 0 && !strings.HasPrefix(line[at[len(at)-1][1]:], "\r\x1b[K") {
			t.Errorf("line %d continues a bar: %q", i+1, line)
		}
	}

	for _, args := range [][]string{nil, {"--json"}} {
		tty, shown = terminal(t)
		var out bytes.Buffer
		CommandLine(t.Context(), append([]string{"credential", "create-many", "-", "--command-id", "one"}, args...), env, strings.NewReader(input.String()), &out, tty)
		if text := shown(); !bar.MatchString(text) || strings.Contains(text, "many-0000") {
			t.Errorf("%q: standard error shows %q", args, text)
		}
		if n := strings.Count(out.String(), "many-"); n != 1500 {
			t.Errorf("%q: the file has %d of 1500 items", args, n)
		}
	}
	tty, shown = terminal(t)
	CommandLine(t.Context(), []string{"credential", "create-many", "-", "--command-id", "one", "--json"}, env, strings.NewReader(input.String()), tty, tty)
	for _, line := range strings.Split(strings.TrimSpace(shown()), "\n")[:1501] {
		if _, after, cleared := strings.Cut(line[strings.LastIndexByte(line, '\r')+1:], "\x1b[K"); cleared && !strings.HasPrefix(after, "{") || !cleared && !strings.HasPrefix(line, "{") {
			t.Fatalf("a line of JSON is %q", line)
		}
	}
}
