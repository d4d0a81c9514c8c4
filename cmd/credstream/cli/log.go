package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/settings"
)

func (a *invocation) logCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "log", Short: "Check the log and the other stored data for damage, and move the log to another store",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage.Withf("Log has no such command. Try credstream log --help.")
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	cmd.AddCommand(a.logCheck(), a.logCopy(), a.logSum())
	return cmd
}

type logCopyFlags struct {
	From        string `flag:"from" arg:"LOG" env:"CREDSTREAM_LOG_FROM" help:"log to read: esdb://host:2113, nats://host:4222, or the data folder of a service that is not running"`
	To          string `flag:"to" arg:"LOG" env:"CREDSTREAM_LOG_TO" help:"log to append to: empty, or an earlier copy of the same log"`
	Credentials string `flag:"nats-credentials" arg:"FILE" env:"CREDSTREAM_NATS_CREDENTIALS" help:"credentials file of the NATS user, if the URL names no user"`
	Replicas    int    `flag:"nats-replicas" arg:"N" env:"CREDSTREAM_NATS_REPLICAS" default:"3" help:"replicas of the streams that are created on NATS"`
	Follow      bool   `flag:"follow" help:"follow the source until Ctrl-C or SIGTERM, then copy the rest and compare"`
	JSON        bool   `flag:"json" help:"print one JSON document"`
}

type logSumFlags struct {
	Credentials string `flag:"nats-credentials" arg:"FILE" env:"CREDSTREAM_NATS_CREDENTIALS" help:"credentials file of the NATS user, if the URL names no user"`
	JSON        bool   `flag:"json" help:"print one JSON document"`
}

func (in logCopyFlags) at(url string) app.LogLocation {
	return app.LogLocation{URL: url, Credentials: in.Credentials, Replicas: in.Replicas}
}

func (a *invocation) logCopy() *cobra.Command {
	var in logCopyFlags
	cmd := &cobra.Command{
		Use: "copy", Short: "Copy the log to another event store, and compare the two",
		Long: "Append to one log the commits of another that it does not have, then read the target and compare the number of commits\n" +
			"and the SHA-256 over all of them. An interrupted copy is resumed by the same command. The source is only read. While a\n" +
			"service uses the source, the copy ends where the log ended when it began: stop the service and copy once more before\n" +
			"the target is used. With --follow the copy goes on while the service runs: stop the service, then press Ctrl-C. Only the\n" +
			"last commits are left to copy and to compare then; a second Ctrl-C interrupts. A password in a URL belongs in\n" +
			"CREDSTREAM_LOG_FROM or CREDSTREAM_LOG_TO, because other users of the machine can see flags. See docs/event-store.md.",
		Example: "  credstream log copy --from /srv/credstream/data --to esdb://localhost:2113?tls=false",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.client.JSON = in.JSON
			shown := a.progress("Compared or copied")
			defer shown.end()
			ctx, finish := cmd.Context(), (<-chan struct{})(nil)
			if in.Follow {
				again, stop := afterFirstSignal(ctx)
				defer stop()
				ctx, finish = again, ctx.Done()
			}
			sum, err := app.CopyLog(ctx, in.at(in.From), in.at(in.To), finish, func(n, _ uint64) { shown.at(int(n), 0) })
			if err != nil {
				if ctx.Err() != nil {
					return errStopped.Withf("Interrupted. Run the same command again: it resumes the copy.")
				}
				return err
			}
			shown.end()
			return a.answer(sum, "The target is equal to the source: %d commits, SHA-256 %s.", sum.Commits, sum.SHA256)
		},
	}
	settings.Bind(cmd.Flags(), &in)
	return cmd
}

// afterFirstSignal returns a context for what still has to be done after the signal that ends ctx:
// the next signal ends it.
func afterFirstSignal(ctx context.Context) (rest context.Context, stop func()) {
	rest, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unwatch := context.AfterFunc(ctx, func() {
		again, stop := signal.NotifyContext(rest, os.Interrupt, syscall.SIGTERM)
		defer stop()
		<-again.Done()
		cancel()
	})
	return rest, func() { unwatch(); cancel() }
}

func (a *invocation) logSum() *cobra.Command {
	var in logSumFlags
	cmd := &cobra.Command{
		Use: "sum LOG", Short: "Print the number of commits of a log and the SHA-256 over them",
		Long: "Read a log from its start to its end and print the number of commits and the SHA-256 over all of them, which do not\n" +
			"depend on the event store. Nothing is changed, and no key is needed. LOG is named as in credstream log copy.",
		Example: "  credstream log sum /var/lib/credstream",
		Args:    arguments("LOG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.client.JSON = in.JSON
			sum, err := app.SumLog(cmd.Context(), app.LogLocation{URL: args[0], Credentials: in.Credentials})
			if err != nil {
				return err
			}
			return a.answer(sum, "%d commits, SHA-256 %s.", sum.Commits, sum.SHA256)
		},
	}
	settings.Bind(cmd.Flags(), &in)
	return cmd
}

type logCheckFlags struct {
	Data string `flag:"data" arg:"DIR" env:"CREDSTREAM_DATA" default:"./credstream-data" help:"data folder of the service"`
	JSON bool   `flag:"json" help:"print one JSON document"`
}

func (a *invocation) logCheck() *cobra.Command {
	var in logCheckFlags
	cmd := &cobra.Command{
		Use: "check", Short: "Find damage in a data folder, and what it affects",
		Long: "Read the log, the vault, the keysets, the access log and the queues in a data folder, and compare them with each other\n" +
			"and with the recorded positions. The folder may be in use by a running service; nothing is changed, and no key is needed.\n" +
			"If something is damaged, the command prints every damaged place, which credentials and other objects are affected, and\n" +
			"exits with code 6.",
		Example: "  credstream log check --data /var/lib/credstream",
		Args:    arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			a.client.JSON = in.JSON
			result, err := app.CheckFolder(cmd.Context(), in.Data)
			if err != nil {
				return err
			}
			if err := a.printCheck(result); err != nil {
				return err
			}
			return result.Err()
		},
	}
	settings.Bind(cmd.Flags(), &in)
	return cmd
}

func (a *invocation) printCheck(result app.FolderCheck) error {
	if a.client.JSON {
		return a.json(result)
	}
	var streams, places, affected [][]string
	for _, s := range result.Streams {
		streams = append(streams, []string{s.Stream, fmt.Sprint(s.Messages), fmt.Sprint(s.Last)})
	}
	for _, d := range result.Damages {
		places = append(places, []string{d.Stream, d.String()})
	}
	for _, x := range result.Affected {
		affected = append(affected, []string{x.Tenant, x.Category, x.ID, x.Reason})
	}
	for _, part := range []struct {
		headers []string
		rows    [][]string
	}{
		{[]string{"STREAM", "MESSAGES", "LAST"}, streams},
		{[]string{"DAMAGED", "WHAT"}, places},
		{[]string{"TENANT", "AFFECTED", "ID", "WHAT"}, affected},
	} {
		if len(part.rows) == 0 {
			continue
		}
		if err := a.list(part.headers, part.rows); err != nil {
			return err
		}
		fmt.Fprintln(a.stdout)
	}
	if result.Intact {
		fmt.Fprintf(a.stdout, "Intact: %s.\n", count(int(result.Commits), "commit"))
	}
	return nil
}
