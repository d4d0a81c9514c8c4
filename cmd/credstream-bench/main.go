// Command credstream-bench starts the service, measures it next to yardsticks that run on the same
// machine at the same time, and reports which of the project's targets were reached. It prints a
// table and writes docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "credstream-bench:", err)
		os.Exit(1)
	}
}

// config defines what to measure and how long.
type config struct {
	credentials int64         // in the large folder
	part        int64         // of them, after which memory is read for the first time
	flowCount   int64         // flows that are reported, and flows on one credential
	time        time.Duration // of one measurement
	rounds      int           // of rows that are compared with a yardstick
	settle      time.Duration // before memory is read
	short       bool
	only        []string
}

func (c config) wants(names ...string) bool {
	return len(c.only) == 0 || slices.ContainsFunc(names, func(n string) bool { return slices.Contains(c.only, n) })
}

// bench is one run.
type bench struct {
	config
	bin          string // the service
	dir          string // for everything, removed at the end
	hello, probe *child
	report       *report

	createRate float64 // the maximum over HTTP with 64 clients
	helloRate  float64
}

func run(ctx context.Context, args []string, stdout io.Writer) (err error) {
	if len(args) > 1 && args[0] == childArg {
		return runChild(ctx, args[1:], stdout)
	}
	flags := flag.NewFlagSet("credstream-bench", flag.ContinueOnError)
	short := flags.Bool("short", false, "under two minutes, with 10,000 credentials; writes no file unless -out is given")
	credentials := flags.Int64("credentials", 100_000, "credentials in the large folder")
	flowCount := flags.Int64("flows", 10_000, "flows that are reported, and flows on one credential")
	each := flags.Duration("time", 2*time.Second, "time of one measurement")
	rounds := flags.Int("rounds", 3, "rounds of the rows that are compared with a yardstick")
	settle := flags.Duration("settle", 15*time.Second, "quiet time before memory is read: caches of the embedded server expire after 10 s")
	only := flags.String("only", "", "rows to measure, of "+strings.Join(names((&bench{}).parts()), ",")+" (all)")
	out := flags.String("out", "docs/benchmarks.md", "file to write; \"\" writes none")
	bin := flags.String("bin", "", "credstream to measure (built from ./cmd/credstream)")
	where := flags.String("dir", "", "where to make the temporary folder; the disk that is measured")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	b := &bench{config: config{
		credentials: *credentials, part: *credentials / 10, flowCount: *flowCount, time: *each, rounds: *rounds, settle: *settle, short: *short,
	}}
	rows := names(b.parts())
	if *only != "" {
		b.only = strings.Split(*only, ",")
		for _, name := range b.only {
			if !slices.Contains(rows, name) {
				return fmt.Errorf("-only knows %s, not %q", strings.Join(rows, ", "), name)
			}
		}
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if *short {
		set := func(name string, apply func()) {
			if !given[name] {
				apply()
			}
		}
		set("credentials", func() { b.credentials, b.part = 10_000, 2_000 })
		set("flows", func() { b.flowCount = 2_000 })
		set("time", func() { b.time = time.Second })
		set("rounds", func() { b.rounds = 1 })
		set("settle", func() { b.settle = 3 * time.Second })
	}
	if (*short || *only != "") && !given["out"] {
		*out = "" // not the whole picture
	}
	if b.dir, err = os.MkdirTemp(*where, "credstream-bench-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.bin = *bin; b.bin == "" {
		b.bin = filepath.Join(b.dir, "credstream")
		build := exec.CommandContext(ctx, "go", "build", "-o", b.bin, "github.com/credstream/credstream/cmd/credstream")
		if output, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build the service: %w: %s", err, output)
		}
	}
	b.report = &report{out: stdout, began: time.Now(), busy: busy(), commit: commit(ctx), run: "make bench"}
	if len(args) > 0 {
		b.report.run = "go run ./cmd/credstream-bench " + strings.Join(args, " ")
	}
	if err := b.measure(ctx); err != nil {
		if ctx.Err() != nil {
			return errInterrupted
		}
		return err
	}
	fmt.Fprintln(stdout, "\n"+strings.Repeat("=", 80))
	b.report.table(stdout)
	fmt.Fprintln(stdout, "\n"+b.report.summary())
	if *out == "" {
		return nil
	}
	f, err := os.Create(*out)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	b.report.markdown(f)
	return f.Close()
}

// commit returns the commit of the working tree, with a mark if the tree has changes; "" if
// there is no Git here.
func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
