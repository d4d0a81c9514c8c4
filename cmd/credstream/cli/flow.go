package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
)

var errFlowFile = fault.New(fault.Invalid, "flow_file_invalid",
	"The file must contain a flow as JSON: {\"id\", \"name\", \"revision\", \"steps\": [{\"id\", \"component\", \"credential\"}]}.")

func (a *invocation) flowCommand() *cobra.Command {
	return a.group("flow", "List flows, publish flow events, and reserve credentials",
		a.flowList(), a.flowShow(), a.flowBind(), a.flowRelease(), a.flowPublish(), a.flowWatch())
}

// dial connects to the service over NATS, as configured by the flags.
func (a *invocation) dial(ctx context.Context, cfg natsConfig, options ...nats.Option) (*client.Conn, error) {
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	trust, err := a.tls()
	if err != nil {
		return nil, err
	}
	if trust != nil {
		options = append(options, nats.Secure(trust))
	}
	return client.Dial(ctx, client.NATSConfig{URL: cfg.NATS, Key: key, Tenant: a.client.Tenant, Options: options})
}

func (a *invocation) flowList() *cobra.Command {
	var filter client.FlowFilter
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List flows", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			if all {
				list, err := everyFlow(cmd.Context(), api, filter)
				if err != nil {
					return err
				}
				return a.flows(list)
			}
			list, err := api.ListFlows(cmd.Context(), filter)
			if err != nil {
				return err
			}
			return a.flows(list)
		},
	}
	f := cmd.Flags()
	f.StringVar(&filter.Credential, "credential", "", "only flows that name, use or have reserved the credential with this `ID`")
	f.StringVar(&filter.Component, "component", "", "only flows that include the component with this `ID`")
	f.BoolVar(&filter.Active, "active", false, "only active flows")
	f.BoolVar(&filter.Broken, "broken", false, "only flows with a step that cannot use its credential or component")
	f.IntVar(&filter.Limit, "limit", 0, "`NUMBER` of flows per page, up to 200")
	f.StringVar(&filter.After, "after", "", "continue after the page with this `CURSOR`")
	f.BoolVar(&all, "all", false, "list all pages")
	return cmd
}

// whereUsed is the verb that lists every flow that uses a resource.
func (a *invocation) whereUsed(short string, filter func(id string) client.FlowFilter) *cobra.Command {
	return &cobra.Command{
		Use: "where-used ID", Short: short, Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list, err := everyFlow(cmd.Context(), api, filter(args[0]))
			if err != nil {
				return err
			}
			if len(list.Flows) == 0 && !a.client.JSON {
				fmt.Fprintln(a.stderr, "No flow uses it.")
				return nil
			}
			return a.flows(list)
		},
	}
}

// everyFlow gathers the flows of every page.
func everyFlow(ctx context.Context, api *client.Client, filter client.FlowFilter) (client.FlowList, error) {
	if filter.Limit == 0 {
		filter.Limit = 200
	}
	list := client.FlowList{Flows: []client.Flow{}}
	for f, err := range api.Flows(ctx, filter) {
		if err != nil {
			return list, err
		}
		list.Flows = append(list.Flows, f)
	}
	return list, nil
}

func (a *invocation) flows(list client.FlowList) error {
	if a.client.JSON {
		return a.json(list)
	}
	if err := a.flowTable(list.Flows); err != nil {
		return err
	}
	if list.Next != "" {
		fmt.Fprintf(a.stderr, "More results: use --all, or --after %s\n", clean(list.Next))
	}
	return nil
}

func (a *invocation) flowTable(flows []client.Flow) error {
	var rows [][]string
	for _, f := range flows {
		rows = append(rows, []string{f.ID, f.Name, flowState(f), strconv.FormatUint(f.Revision, 10), strconv.Itoa(len(f.Steps)), when(f.UpdatedAt)})
	}
	return a.list([]string{"ID", "NAME", "STATE", "REVISION", "STEPS", "UPDATED"}, rows)
}

// flowState shows whether a flow is active, and what is wrong.
func flowState(f client.Flow) string {
	var words []string
	switch {
	case f.Active:
		words = append(words, "active")
	case f.Revision > 0:
		words = append(words, "stopped")
	}
	if f.Binding != "" {
		words = append(words, "reserved")
	}
	if f.Broken {
		words = append(words, "broken")
	}
	return strings.Join(words, ", ")
}

func (a *invocation) flowShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one flow: its steps, and which of them cannot use their credential or component", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			f, err := api.GetFlow(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(f)
			}
			pairs := [][2]string{
				{"id", f.ID},
				{"name", f.Name},
				{"state", flowState(f)},
				{"revision", strconv.FormatUint(f.Revision, 10)},
				{"updated", when(f.UpdatedAt)},
			}
			if f.Binding != "" {
				pairs = append(pairs, [2]string{"reserved", "until " + when(f.Until) + ", binding " + f.Binding})
			}
			if err := a.pairs(nonEmpty(pairs)); err != nil {
				return err
			}
			faults := map[string]string{}
			for _, s := range f.Faults {
				faults[s.Step] = s.Reason
			}
			var rows [][]string
			for _, s := range f.Steps {
				rows = append(rows, []string{s.ID, s.Name, s.Component, s.Credential, faults[s.ID]})
			}
			fmt.Fprintln(a.stdout)
			return a.list([]string{"STEP", "NAME", "COMPONENT", "CREDENTIAL", "WRONG"}, rows)
		},
	}
}

// flowFile reads a flow, or an array of steps.
func (a *invocation) flowFile(path string) (e client.FlowEvent, err error) {
	b, err := a.file(path)
	if err != nil {
		return e, err
	}
	if json.Unmarshal(b, &e) != nil && json.Unmarshal(b, &e.Steps) != nil {
		return e, errFlowFile
	}
	return e, nil
}

func (a *invocation) flowBind() *cobra.Command {
	var in client.BindFlow
	var file string
	var by changing
	cmd := &cobra.Command{
		Use: "bind ID --steps-file FILE", Short: "Reserve all credentials of a flow before it starts, or none", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := a.flowFile(file)
			if err != nil {
				return err
			}
			in.Flow, in.Steps = args[0], f.Steps
			if in.Name == "" {
				in.Name = f.Name
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.BindFlow(cmd.Context(), in, by.options()...)
			if err != nil {
				return err
			}
			if done.Until.IsZero() {
				said := "Flow %s names no credential, so nothing was reserved."
				if done.Binding != "" {
					said += " Its previous reservation was released."
				}
				return a.answer(done, said, done.ID)
			}
			return a.answer(done, "Reserved the credentials of flow %s until %s, binding %s.", done.ID, when(done.Until), done.Binding)
		},
	}
	cmd.Flags().StringVar(&file, "steps-file", "", "`FILE` with the steps as a JSON array, or a flow with its steps; - for standard input")
	cmd.Flags().DurationVar(&in.TTL, "ttl", 0, "`TIME` after which the reservation expires unless the flow has started; 10m when absent")
	cmd.Flags().StringVar(&in.Name, "name", "", "display `NAME` of the flow")
	by.bind(cmd, false)
	required(cmd, "steps-file")
	return cmd
}

func (a *invocation) flowRelease() *cobra.Command {
	var binding string
	var by changing
	cmd := &cobra.Command{
		Use: "release ID", Short: "Release the reservation of a flow", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.ReleaseFlow(cmd.Context(), args[0], binding, by.options()...)
			if err != nil {
				return err
			}
			if done.Binding == "" {
				return a.answer(done, "Flow %s has no reservation.", done.ID)
			}
			return a.answer(done, "Released the reservation of flow %s, binding %s.", done.ID, done.Binding)
		},
	}
	cmd.Flags().StringVar(&binding, "binding", "", "only the reservation with this `ID`; the current one when absent")
	by.bind(cmd, false)
	return cmd
}

func (a *invocation) flowPublish() *cobra.Command {
	var cfg natsConfig
	var event, file string
	var revision uint64
	cmd := &cobra.Command{
		Use: "publish --event EVENT --file FILE", Short: "Publish a flow event over NATS, as a flow engine does", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.flowFile(file)
			if err != nil {
				return err
			}
			if e.ID == "" {
				return errFlowFile
			}
			e.Change = client.FlowChange(strings.TrimPrefix(event, "flow."))
			if revision > 0 {
				e.Revision = revision
			}
			conn, err := a.dial(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer conn.Close()
			ack, err := conn.PublishFlow(cmd.Context(), e)
			if id, kept := client.DeadLetterOf(err); kept {
				f := fault.Of(err)
				return f.Withf("%s The dead-letter queue keeps the refusal: credstream queue show %s.", f.Msg, id)
			}
			if err != nil {
				return err
			}
			return a.answer(ack, "Published flow.%s for flow %s (stream %s, sequence %d).", e.Change, e.ID, ack.Stream, ack.Seq)
		},
	}
	settings.Bind(cmd.Flags(), &cfg)
	cmd.Flags().StringVar(&event, "event", "", "`EVENT`: created, updated, started, stopped or deleted")
	cmd.Flags().StringVar(&file, "file", "", "`FILE` with the flow as JSON: id, name, revision, steps; - for standard input")
	cmd.Flags().Uint64Var(&revision, "revision", 0, "revision `NUMBER`, instead of the one in the file; it must rise with every event of a flow")
	required(cmd, "event", "file")
	return cmd
}

func (a *invocation) flowWatch() *cobra.Command {
	var cfg natsConfig
	cmd := &cobra.Command{
		Use: "watch", Short: "Print the in-use index, then each change of it, until interrupted", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := a.dial(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer conn.Close()
			for e, err := range conn.WatchInUse(cmd.Context()) {
				if err != nil {
					return err
				}
				if err := a.inUse(e); err != nil {
					return err
				}
			}
			return nil
		},
	}
	settings.Bind(cmd.Flags(), &cfg)
	return cmd
}

// inUse prints one entry of the in-use index as a line.
func (a *invocation) inUse(e client.InUseEntry) error {
	if a.client.JSON {
		return a.json(e)
	}
	const shown = 10
	var flows []string
	for i, f := range e.Value.Flows {
		if i == shown {
			flows = append(flows, "...")
			break
		}
		state := "stopped"
		switch {
		case f.Active:
			state = "active"
		case f.Reserved:
			state = "reserved"
		}
		flows = append(flows, f.ID+" "+state)
	}
	line := fmt.Sprintf("%d  %s %s  %s, %d active  %s", e.Value.Seq, e.Kind, e.ID, count(e.Value.Total, "flow"), e.Value.Active, strings.Join(flows, ", "))
	_, err := fmt.Fprintln(a.stdout, strings.TrimRight(clean(line), " "))
	return err
}

// dryRun adds the flag --dry-run to a verb on one resource; it shows the impact instead of executing the command.
func (a *invocation) dryRun(cmd *cobra.Command, ask func(ctx context.Context, api *client.Client, id string) (client.Impact, error)) {
	dry := cmd.Flags().Bool("dry-run", false, "show the impact without changing anything; the exit code is that of the command")
	obey := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !*dry {
			return obey(cmd, args)
		}
		api, err := a.api()
		if err != nil {
			return err
		}
		i, err := ask(cmd.Context(), api, args[0])
		if err != nil {
			return err
		}
		return a.impact(i)
	}
}

// impact prints the result of a dry run: the flows in a table, and a sentence. If the
// command would be refused, the exit code is that of the refusal.
func (a *invocation) impact(i client.Impact) error {
	switch {
	case a.client.JSON:
		if err := a.json(i); err != nil {
			return err
		}
	case len(i.Flows) > 0:
		if err := a.flowTable(i.Flows); err != nil {
			return err
		}
		if n := i.TotalFlows - len(i.Flows); n > 0 {
			fmt.Fprintf(a.stdout, "... and %s more.\n", count(n, "flow"))
		}
	}
	if !i.Allowed {
		kind := i.Kind
		if kind == "" { // the service does not report it
			kind = fault.Precondition
		}
		return &fault.Error{Kind: kind, Code: i.Code, Msg: i.Says}
	}
	if a.client.JSON {
		return nil
	}
	return a.answer(nil, "%s", i.Says)
}

// details prints what an error names besides its sentence: the blocking flows,
// or the faulty steps.
func (a *invocation) details(err error) {
	line := func(words ...string) {
		fmt.Fprintln(a.stderr, strings.TrimRight("  "+clean(strings.Join(words, "  ")), " "))
	}
	if refs, ok := client.FlowsOf(err); ok {
		for _, f := range refs.Flows {
			line(f.ID, f.Name)
		}
		if n := refs.Total - len(refs.Flows); n > 0 {
			line("... and " + strconv.Itoa(n) + " more")
		}
	}
	if steps, ok := client.StepFaultsOf(err); ok {
		for _, s := range steps {
			line(s.Step, s.Component, s.Reason, s.Credential)
		}
	}
}

// stepOfFlow parses FLOW/STEP. The id of a flow may contain slashes, that of a step may not.
func stepOfFlow(s string) (*client.ForStep, error) {
	if s == "" {
		return nil, nil //nolint:nilnil // for no step
	}
	i := strings.LastIndexByte(s, '/')
	if i <= 0 || i == len(s)-1 {
		return nil, errUsage.Withf("--for must be FLOW/STEP.")
	}
	return &client.ForStep{Flow: s[:i], Step: s[i+1:]}, nil
}
