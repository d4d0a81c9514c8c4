package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// line is one row of the report.
type line struct {
	what, result, details string
	target, verdict       string // "" if the row has no target
}

// report collects the rows of a run and prints each at once.
type report struct {
	out    io.Writer
	began  time.Time
	busy   string // load average before the run
	commit string // of the working tree, or ""
	run    string // the command of this run
	parts  []part
	missed int
}

type part struct {
	title string
	lines []line
	notes []string
}

func (r *report) part(title string) {
	r.parts = append(r.parts, part{title: title})
	fmt.Fprintf(r.out, "\n%s (after %s)\n", title, time.Since(r.began).Round(time.Second))
}

func (r *report) add(what, result, details string) {
	r.put(line{what: what, result: result, details: details})
}

// target adds a row with a target; met reports whether the result meets it.
func (r *report) target(what, result, details, target string, met bool) {
	l := line{what, result, details, target, "met"}
	if !met {
		l.verdict = "MISSED"
		r.missed++
	}
	r.put(l)
}

func (r *report) note(format string, args ...any) {
	p := &r.parts[len(r.parts)-1]
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
	fmt.Fprintln(r.out, "  "+p.notes[len(p.notes)-1])
}

func (r *report) put(l line) {
	p := &r.parts[len(r.parts)-1]
	p.lines = append(p.lines, l)
	fmt.Fprintf(r.out, "  %-58s %-30s %s\n", l.what, l.result, strings.TrimSpace(l.details+"  "+l.targetAndVerdict()))
}

func (l line) targetAndVerdict() string {
	if l.target == "" {
		return ""
	}
	return "[" + l.target + ": " + l.verdict + "]"
}

// table prints the whole report again, as a table.
func (r *report) table(out io.Writer) {
	for _, p := range r.parts {
		fmt.Fprintf(out, "\n%s\n", p.title)
		w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, l := range p.lines {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", l.what, l.result, l.details, l.targetAndVerdict())
		}
		_ = w.Flush() // to a terminal or a buffer
		for _, n := range p.notes {
			fmt.Fprintln(out, "  "+n)
		}
	}
}

// markdown writes docs/benchmarks.md.
func (r *report) markdown(out io.Writer) {
	fmt.Fprintf(out, `# Benchmarks

The last run of `+"`%s`"+`, %s, commit %s, %s of measuring. %s

Machine: %s, load average %s before the run. The service, the
yardsticks and the load generator share it. Each benchmarked call is authenticated with one
of %d API keys, in one of %d tenants. Commands have a command id. A create encrypts the
keys and fsyncs the vault and the log before the response.
Flow engines have their own API keys. A new lease is an entry in the access log, which is
fsynced before the response. The time of a revocation starts with its acknowledgement:
0.00 ms means that the subscriber received the event before that.
All HTTP rows, hello-world included, use the same raw keep-alive client.
Plain NATS clients publish the flow events, and a plain subscription watches the in-use
index, which must list the right flows at the end of each row. Ratios compare values of one
round; each row shows the median of the rounds. Latencies "at half load" are measured at
half of the maximum rate, from the time when a call was due. A missed target is marked
MISSED. "CPU time" is that of the service, for one call of the row above.
`, r.run, r.began.UTC().Format("2006-01-02 15:04 UTC"), cmp.Or(r.commit, "unknown"), time.Since(r.began).Round(time.Second), r.summary(), machine(), r.busy, keys, tenants)
	for _, p := range r.parts {
		fmt.Fprintf(out, "\n## %s\n\n| | result | details | target | |\n|---|---|---|---|---|\n", p.title)
		for _, l := range p.lines {
			fmt.Fprintf(out, "| %s | %s | %s | %s | %s |\n", l.what, l.result, l.details, l.target, l.verdict)
		}
		if len(p.notes) > 0 {
			fmt.Fprintln(out)
		}
		for _, n := range p.notes {
			fmt.Fprintln(out, "- "+n)
		}
	}
}

func (r *report) summary() string {
	targets := 0
	for _, p := range r.parts {
		for _, l := range p.lines {
			if l.target != "" {
				targets++
			}
		}
	}
	return fmt.Sprintf("Targets met: %d of %d.", targets-r.missed, targets)
}

// perSecond, ms, and percent format numbers for people.
func perSecond(v float64) string { return thousands(int64(v+.5)) + "/s" }

func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func ms(d time.Duration) string {
	switch v := float64(d) / float64(time.Millisecond); {
	case v < 1:
		return fmt.Sprintf("%.2f ms", v)
	case v < 100:
		return fmt.Sprintf("%.1f ms", v)
	default:
		return fmt.Sprintf("%.0f ms", v)
	}
}

func micros(d time.Duration) string {
	return fmt.Sprintf("%.0f µs", float64(d)/float64(time.Microsecond))
}

func latencies(l load) string {
	return fmt.Sprintf("p50 %s, p99 %s", ms(l.quantile(.5)), ms(l.quantile(.99)))
}

func percent(v float64) string { return fmt.Sprintf("%.1f%%", 100*v) }

func megabytes(n int64) string { return fmt.Sprintf("%.0f MB", float64(n)/(1<<20)) }
