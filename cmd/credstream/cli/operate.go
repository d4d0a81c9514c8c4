package cli

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
)

func (a *invocation) eventsCommand() *cobra.Command {
	return a.group("events", "Follow and replay events", a.eventsTail(), a.eventsReplay())
}

func (a *invocation) eventsTail() *cobra.Command {
	var cfg natsConfig
	var from uint64
	cmd := &cobra.Command{
		Use: "tail", Short: "Print events as they happen, until interrupted",
		Long: "Print the tenant's events as they happen, in order and without gaps, until interrupted.\n" +
			"With --from, the events from that log sequence on are printed first.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := a.dial(cmd.Context(), cfg, a.connectionNotes()...)
			if err != nil {
				return err
			}
			defer conn.Close()
			events := conn.Tail(cmd.Context())
			if from > 0 {
				events = conn.Follow(cmd.Context(), from-1)
			}
			for e, err := range events {
				if err != nil {
					return err
				}
				if err := a.event(e); err != nil {
					return err
				}
			}
			return nil
		},
	}
	settings.Bind(cmd.Flags(), &cfg)
	cmd.Flags().Uint64Var(&from, "from", 0, "start at this log `SEQ`; 1 is the first")
	return cmd
}

// connectionNotes are options that print when the connection is lost and regained. The client uses
// a second connection for subscriptions: the first loss and the last return are printed.
func (a *invocation) connectionNotes() []nats.Option {
	var mu sync.Mutex
	lost := map[*nats.Conn]bool{}
	return []nats.Option{
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err == nil { // the verb closes the connection
				return
			}
			if lost[nc] = true; len(lost) == 1 {
				fmt.Fprintln(a.stderr, "The connection to NATS was lost. Reconnecting.")
			}
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			mu.Lock()
			defer mu.Unlock()
			if !lost[nc] {
				return
			}
			if delete(lost, nc); len(lost) == 0 {
				fmt.Fprintln(a.stderr, "Connected again. Missed events follow.")
			}
		}),
	}
}

func (a *invocation) eventsReplay() *cobra.Command {
	filter := client.ReplayFilter{}
	var since, until string
	cmd := &cobra.Command{
		Use: "replay", Short: "Print the tenant's past events, in order", Args: arguments(),
		Long: "Print the tenant's past events, in the order of the log. With --complete, lines of the type withheld stand for what is not\n" +
			"printed: internal events, with their type, and commits of other tenants. Then no log sequence is missing.",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if filter.Since, err = pastTime("since", since); err != nil {
				return err
			}
			if filter.Until, err = pastTime("until", until); err != nil {
				return err
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			var rows [][]string
			for e, err := range api.Replay(cmd.Context(), filter) {
				if err != nil {
					return err
				}
				if a.client.Output == formCSV {
					rows = append(rows, []string{
						when(e.Time), strconv.FormatUint(e.LogSeq, 10), strconv.Itoa(e.LogIndex), shortType(e.Type), e.Subject, e.Actor,
						e.CommandID, e.CorrelationID, e.CausationID, compact(e.Data),
					})
					continue
				}
				if err := a.event(e); err != nil {
					return err
				}
			}
			if a.client.Output == formCSV {
				return a.list([]string{"TIME", "SEQ", "INDEX", "TYPE", "SUBJECT", "ACTOR", "COMMAND", "CORRELATION", "CAUSATION", "DATA"}, rows)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&filter.From, "from", 1, "first log `SEQ`")
	f.Uint64Var(&filter.To, "to", 0, "last log `SEQ`; the end of the log when 0")
	f.StringVar(&filter.Stream, "stream", "", "filter by `STREAM`: credential.<id>")
	f.StringVar(&filter.Type, "type", "", "filter by event `TYPE`: credential.created")
	f.StringVar(&filter.Actor, "actor", "", "filter by `ACTOR`: key:<id>, user:<id> or system:<name>")
	f.StringVar(&filter.Component, "component", "", "filter by the `ID` of a component: its events, and those of its credentials and its OAuth client")
	f.StringVar(&filter.Flow, "flow", "", "filter by the `ID` of a flow: its events, and those that name it")
	f.BoolVar(&filter.Complete, "complete", false, "account for every log sequence; without other filters")
	periodFlags(cmd, &since, &until)
	return cmd
}

// event prints one event as a line: time, position in the log, type, subject, actor.
func (a *invocation) event(e client.Event) error {
	if a.client.JSON {
		return a.json(e)
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %d.%d  %s  %s  %s  %s\n", when(e.Time), e.LogSeq, e.LogIndex,
		clean(shortType(e.Type)), clean(e.Subject), clean(e.Actor), clean(compact(e.Data)))
	return err
}

// shortType is the event's stored name: "credential.created" of
// "credstream.credential.created.v1".
func shortType(t string) string {
	t = strings.TrimPrefix(t, "credstream.")
	if i := strings.LastIndex(t, ".v"); i > 0 {
		t = t[:i]
	}
	return t
}

func (a *invocation) viewsCommand() *cobra.Command {
	return a.group("views", "Manage read models", a.viewsRebuild(), a.viewsStatus())
}

const progressEvery = 200 * time.Millisecond

var errRebuild = fault.New(fault.Unavailable, "views_rebuild_failed", "The rebuild was not completed.")

func (a *invocation) viewsRebuild() *cobra.Command {
	return &cobra.Command{
		Use: "rebuild", Short: "Rebuild the read models from the log", Args: arguments(),
		Long: "Rebuild the read models from the log in a second file, and show the progress on standard " +
			"error.\nIf you interrupt this command, the service continues the rebuild.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			if _, err := api.RebuildViews(cmd.Context()); err != nil {
				return err
			}
			tick := time.NewTicker(progressEvery)
			defer tick.Stop()
			live := terminalWidth(a.stderr) > 0
			for {
				s, err := api.ViewsStatus(cmd.Context())
				if err != nil {
					return err
				}
				if live {
					fmt.Fprintf(a.stderr, "\r%d of %d", s.Rebuilt, s.RebuildEnd)
				} else if !a.client.JSON {
					fmt.Fprintf(a.stderr, "%d of %d\n", s.Rebuilt, s.RebuildEnd)
				}
				if !s.Rebuilding {
					if live {
						fmt.Fprintln(a.stderr)
					}
					if s.Error != "" {
						return errRebuild.Withf("The rebuild was not completed: %s", s.Error)
					}
					return a.answer(s, "Rebuilt the read models from %s.", count(int(s.Rebuilt), "commit"))
				}
				select {
				case <-tick.C:
				case <-cmd.Context().Done():
					return errStopped.Withf("Interrupted. The service continues the rebuild: credstream views status.")
				}
			}
		},
	}
}

func (a *invocation) viewsStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the position of the read models", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			s, err := api.ViewsStatus(cmd.Context())
			if err != nil {
				return err
			}
			sentence := fmt.Sprintf("The read models reflect %d of %s.", s.Position, count(int(s.End), "commit"))
			if s.Rebuilding {
				sentence += fmt.Sprintf(" A rebuild has reached %d of %d.", s.Rebuilt, s.RebuildEnd)
			}
			if s.Stopped != "" {
				sentence += " They have stopped: " + s.Stopped
			}
			return a.answer(s, "%s", sentence)
		},
	}
}

func (a *invocation) tenantCommand() *cobra.Command {
	var t client.Tenant
	register := &cobra.Command{
		Use: "register ID", Short: "Register a tenant", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			t.ID = args[0]
			done, err := api.RegisterTenant(cmd.Context(), t)
			if err != nil {
				return err
			}
			return a.answer(done, "Registered tenant %s.", done.ID)
		},
	}
	register.Flags().StringVar(&t.Name, "name", "", "display `NAME`")
	list := &cobra.Command{
		Use: "list", Short: "List all tenants; the key must be granted every tenant", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			tenants, err := api.ListTenants(cmd.Context())
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(struct {
					Tenants []client.Tenant `json:"tenants"`
				}{tenants})
			}
			var rows [][]string
			for _, t := range tenants {
				rows = append(rows, []string{t.ID, t.Name, t.State})
			}
			return a.list([]string{"ID", "NAME", "STATE"}, rows)
		},
	}
	return a.group("tenant", "Register, list and erase tenants", register, list, a.tenantErase())
}

func (a *invocation) tenantErase() *cobra.Command {
	var dryRun, stopFlows, wait bool
	cmd := &cobra.Command{
		Use: "erase ID", Short: "Erase a tenant for good, with all its secrets and encryption keys", Args: arguments("ID"),
		Long: "Erase a tenant for good. Its calls are refused at once. The service deletes everything that the tenant\n" +
			"has, revokes its tokens at their providers, erases its secrets, and destroys its encryption keys at the\n" +
			"earliest after serve --key-retire-after. Its events stay in the log, and its id cannot be used again.",
		Example: "  credstream tenant erase acme --dry-run\n  credstream tenant erase acme --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			id := args[0]
			a.otherTenant = id
			if dryRun {
				e, err := api.TenantErasure(cmd.Context(), id)
				if err != nil {
					return err
				}
				return a.answer(e, "%s", erasureSentence(e))
			}
			done, err := api.EraseTenant(cmd.Context(), id, stopFlows)
			if err != nil {
				return err
			}
			if !wait {
				return a.answer(done, "Tenant %s is being erased: credstream tenant erase %s --dry-run shows the progress.", id, id)
			}
			for {
				e, err := api.TenantErasure(cmd.Context(), id)
				if err != nil {
					return err
				}
				if e.State == "erased" {
					return a.answer(e, "%s", erasureSentence(e))
				}
				select {
				case <-time.After(time.Second):
				case <-cmd.Context().Done():
					return errStopped.Withf("Interrupted. The service continues the erasure: credstream tenant erase %s --dry-run.", id)
				}
			}
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show what the tenant has, or what is left of it")
	cmd.Flags().BoolVar(&stopFlows, "stop-flows", false, "erase although flows of the tenant are active; they lose their credentials, and credstream does not stop them at their engine")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the keys are destroyed")
	return cmd
}

// erasureSentence says what a tenant still has.
func erasureSentence(e client.Erasure) string {
	var has []string
	for _, l := range e.Left {
		has = append(has, fmt.Sprintf("%d %s", l.Count, strings.ReplaceAll(l.Kind, "_", " ")))
	}
	if e.Secrets > 0 {
		has = append(has, fmt.Sprintf("%d secrets", e.Secrets))
	}
	if e.Keys {
		has = append(has, "its encryption keys")
	}
	list := strings.Join(has, ", ")
	switch e.State {
	case "erased":
		return fmt.Sprintf("Tenant %s is erased.", e.ID)
	case "erasing":
		return fmt.Sprintf("Tenant %s is being erased. Left: %s.", e.ID, list)
	}
	sentence := fmt.Sprintf("The tenant %s would be erased: %s.", e.ID, list)
	if e.RunningFlows > 0 {
		sentence += fmt.Sprintf(" Running flows: %d. Stop them first, or erase with --stop-flows.", e.RunningFlows)
	}
	return sentence
}
