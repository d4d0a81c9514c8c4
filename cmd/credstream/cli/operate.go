package cli

import (
	"fmt"
	"strings"
	"time"

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
			conn, err := a.dial(cmd.Context(), cfg)
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

func (a *invocation) eventsReplay() *cobra.Command {
	filter := client.ReplayFilter{}
	var since string
	cmd := &cobra.Command{
		Use: "replay", Short: "Print the tenant's past events, in order", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since != "" {
				t, err := time.Parse(time.RFC3339, since)
				if err != nil {
					return errUsage.Withf("--since must be a time such as 2026-01-31T08:00:00Z.")
				}
				filter.Since = t
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			for e, err := range api.Replay(cmd.Context(), filter) {
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
	f := cmd.Flags()
	f.Uint64Var(&filter.From, "from", 1, "first log `SEQ`")
	f.Uint64Var(&filter.To, "to", 0, "last log `SEQ`; the end of the log when 0")
	f.StringVar(&filter.Stream, "stream", "", "filter by `STREAM`: credential.<id>")
	f.StringVar(&filter.Type, "type", "", "filter by event `TYPE`: credential.created")
	f.StringVar(&filter.Actor, "actor", "", "filter by `ACTOR`: key:<id>")
	f.StringVar(&since, "since", "", "only events from this `TIME` on")
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
		Use: "list", Short: "List the tenants that the key may use", Args: arguments(),
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
				rows = append(rows, []string{t.ID, t.Name})
			}
			return a.list([]string{"ID", "NAME"}, rows)
		},
	}
	return a.group("tenant", "Register and list tenants", register, list)
}
