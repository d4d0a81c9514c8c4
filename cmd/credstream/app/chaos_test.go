package app

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"
)

var chaosFile = flag.String("chaos", "", "file to which the tests of faults append a line each; see make chaos")

// tally is what a test of faults reports.
type tally struct {
	faults, acked, unknown, lost, duplicates int
	quiet                                    time.Duration // longest time without an answer to a command; 0: not measured
}

// report writes one line, into the test's log and into the file of -chaos.
func (c tally) report(t *testing.T) {
	t.Helper()
	line := fmt.Sprintf("%-24s faults %3d  acked %6d  unknown %4d  lost %d  duplicates %d", t.Name(), c.faults, c.acked, c.unknown, c.lost, c.duplicates)
	if c.quiet > 0 {
		line += fmt.Sprintf("  longest without an answer %d ms", c.quiet.Milliseconds())
	}
	t.Log(line)
	if *chaosFile == "" {
		return
	}
	f, err := os.OpenFile(*chaosFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	_, err = fmt.Fprintln(f, line)
	must(t, err)
	must(t, f.Close())
}
