package cli

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/credential"
)

var errKeysMissing = fault.New(fault.Invalid, "keys_missing",
	"Give the keys as a JSON object: --keys-file FILE, or --keys-file - for standard input. Without it, a terminal prompts for each field.")

var errTokensNotTyped = fault.New(fault.Invalid, "oauth_tokens_not_typed",
	"OAuth tokens cannot be entered at the prompt. Use credstream connect --component ID, or give them with --keys-file.")

func (a *invocation) credentialCommand() *cobra.Command {
	return a.group("credential", "Create, change and inspect credentials",
		a.credentialCreate(), a.credentialList(), a.credentialCounts(), a.credentialShow(), a.credentialRename(),
		a.credentialReplaceKeys(), a.credentialRevert(), a.credentialVerify(), a.credentialRefresh(), a.credentialRevoke(), a.credentialDelete(), a.credentialReveal(), a.credentialResolve(), a.credentialHistory(),
		a.credentialSearch(), a.credentialCreateMany(), a.credentialUpdateMany(), a.credentialDeleteMany(),
		a.whereUsed("List the flows that use a credential, active or not", func(id string) client.FlowFilter { return client.FlowFilter{Credential: id} }))
}

// changing holds the flags of every command on a credential.
type changing struct {
	commandID string
	expected  int
	revision  int
}

func (c *changing) bind(cmd *cobra.Command, expected bool) {
	cmd.Flags().StringVar(&c.commandID, "command-id", "", "command `ID` (idempotency key): a command that is repeated with the same id is executed only once")
	if expected {
		cmd.Flags().IntVar(&c.expected, "expected-version", 0, "refuse unless the current keys have this `VERSION`")
	}
}

// bindRevision adds the flag of commands that carry secrets.
func bindRevision(cmd *cobra.Command, revision *int) {
	cmd.Flags().IntVar(revision, "expected-revision", 0, "refuse unless the component has this `REVISION`")
}

func (c *changing) options() []client.CommandOption {
	opts := []client.CommandOption{client.ExpectRevision(c.revision)}
	if c.commandID != "" {
		opts = append(opts, client.CommandID(c.commandID))
	}
	return opts
}

func (a *invocation) credentialCreate() *cobra.Command {
	var in client.CreateCredential
	var keysFile, step, expires string
	var by changing
	cmd := &cobra.Command{
		Use: "create --component ID", Short: "Verify keys and save them as a new credential",
		Long: "Verify keys with the component's dry request and save them as a new credential.\n" +
			"If the verification fails, nothing is saved. Without --keys-file, the terminal prompts for each field.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if in.For, err = stepOfFlow(step); err != nil {
				return err
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			if in.Keys, err = a.keys(cmd.Context(), api, keysFile, in.Component, &by.revision); err != nil {
				return err
			}
			declared, err := expiry(expires)
			if err != nil {
				return err
			}
			done, err := api.CreateCredential(cmd.Context(), in, append(by.options(), declared...)...)
			if err != nil {
				return err
			}
			return a.answer(done, "Created credential %s, version %d, %s.", done.ID, done.Version, done.Status)
		},
	}
	cmd.Flags().StringVar(&in.Component, "component", "", "component `ID`")
	cmd.Flags().StringVar(&in.Name, "name", "", "display `NAME`; derived from the component's title when absent")
	cmd.Flags().StringVar(&step, "for", "", "`FLOW/STEP` that will use the credential; records the use")
	cmd.Flags().StringVar(&in.Workspace, "workspace", "", "workspace `ID`, stored as given")
	cmd.Flags().StringVar(&in.ThrottlePolicy, "throttle-policy", "", "`ID` of the throttle policy that limits its use")
	cmd.Flags().StringVar(&in.VPNAgent, "vpn-agent", "", "`ID` of the VPN agent through which a flow engine reaches the API; stored as given")
	bindKeysFile(cmd, &keysFile)
	bindExpires(cmd, &expires, "the keys expire")
	by.bind(cmd, false)
	bindRevision(cmd, &by.revision)
	required(cmd, "component")
	return cmd
}

func bindKeysFile(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "keys-file", "", "`FILE` with the keys as a JSON object; - for standard input")
}

// keys reads the keys from the file, or shows the target hosts and prompts for the
// component's fields: then revision is that of the displayed component.
func (a *invocation) keys(ctx context.Context, api *client.Client, file, component string, revision *int) (client.Keys, error) {
	if file != "" {
		b, err := a.secretJSON(file)
		if err != nil {
			return client.Keys{}, err
		}
		return client.KeysJSON(b)
	}
	tty, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(tty.Fd())) {
		return client.Keys{}, errKeysMissing
	}
	c, err := api.GetComponent(ctx, component, 0)
	if err != nil {
		return client.Keys{}, err
	}
	d, err := commands.ParseDescriptor(c.Descriptor)
	if err != nil {
		return client.Keys{}, err
	}
	if d.UsesOAuth {
		return client.Keys{}, errTokensNotTyped
	}
	*revision = cmp.Or(*revision, c.Revision)
	if len(d.Hosts) > 0 {
		fmt.Fprintf(a.stderr, "The values go to %s.\n", clean(strings.Join(d.Hosts, ", ")))
	}
	values := map[string]any{}
	for _, f := range d.Fields {
		v, err := a.ask(ctx, tty, f)
		if err != nil {
			return client.Keys{}, err
		}
		if v != "" {
			values[f.Name] = v
		}
	}
	return client.NewKeys(values)
}

// ask reads one field's value from the terminal, without echo unless the
// descriptor marks it as not secret. An interrupt restores the echo.
func (a *invocation) ask(ctx context.Context, tty *os.File, f commands.Field) (string, error) {
	label := f.Label
	if label == "" {
		label = f.Name
	}
	var hints []string
	if len(f.Options) > 0 {
		values := make([]string, len(f.Options))
		for i, o := range f.Options {
			values[i] = o.Value
		}
		hints = append(hints, "one of "+strings.Join(values, ", "))
	}
	if !f.Required {
		hints = append(hints, "may be empty")
	}
	if f.Secret {
		hints = append(hints, "not shown")
	}
	if f.Note != "" {
		fmt.Fprintf(a.stderr, "%s\n", clean(f.Note))
	}
	if len(hints) > 0 {
		label += " (" + strings.Join(hints, "; ") + ")"
	}
	fmt.Fprintf(a.stderr, "%s: ", clean(label))

	fd := int(tty.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read the terminal: %w", err)
	}
	type line struct {
		text string
		err  error
	}
	read := make(chan line, 1)
	go func() { // a read of the terminal cannot be cancelled: after an interrupt it ends with the process
		if !f.Secret {
			text, err := readLine(tty)
			read <- line{text, err}
			return
		}
		text, err := term.ReadPassword(fd)
		read <- line{string(text), err}
	}()
	select {
	case l := <-read:
		if f.Secret {
			fmt.Fprintln(a.stderr)
		}
		if l.err != nil {
			return "", fmt.Errorf("%w (%w)", errKeysMissing, l.err)
		}
		return l.text, nil
	case <-ctx.Done():
		fmt.Fprintln(a.stderr)
		if err := term.Restore(fd, before); err != nil {
			return "", fmt.Errorf("restore the terminal: %w", err)
		}
		return "", errStopped.Withf("Interrupted. Nothing was sent.")
	}
}

// readLine reads up to the end of the line and no further; the rest belongs to the
// next prompt.
func readLine(r io.Reader) (string, error) {
	text, err := bufio.NewReaderSize(oneByte{r}, 16).ReadString('\n')
	return strings.TrimRight(text, "\r\n"), err
}

// oneByte reads one byte at a time.
type oneByte struct{ io.Reader }

func (r oneByte) Read(p []byte) (int, error) { return r.Reader.Read(p[:min(1, len(p))]) }

func (a *invocation) credentialList() *cobra.Command {
	var filter client.CredentialFilter
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "List credentials", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := client.CredentialList{Credentials: []client.Credential{}}
			if all {
				for c, err := range api.Credentials(cmd.Context(), filter) {
					if err != nil {
						return err
					}
					list.Credentials = append(list.Credentials, c)
				}
			} else if list, err = api.ListCredentials(cmd.Context(), filter); err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(list)
			}
			var rows [][]string
			for _, c := range list.Credentials {
				row := []string{c.ID, c.Name, cmp.Or(c.Component, c.Type), c.Status, strconv.Itoa(c.Version), when(c.UpdatedAt)}
				if filter.LastUse {
					row = append(row, lastUse(c.LastUse))
				}
				rows = append(rows, row)
			}
			headers := []string{"ID", "NAME", "COMPONENT", "STATUS", "VERSION", "UPDATED"}
			if filter.LastUse {
				headers = append(headers, "LAST USED")
			}
			if err := a.list(headers, rows); err != nil {
				return err
			}
			if list.Next != "" {
				fmt.Fprintf(a.stderr, "More results: use --all, or --after %s\n", clean(list.Next))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&filter.Component, "component", "", "filter by component `ID`")
	f.StringVar(&filter.ThrottlePolicy, "throttle-policy", "", "filter by throttle policy `ID`")
	f.StringVar(&filter.Status, "status", "", "filter by `STATUS`: "+events.StatusChoice())
	f.StringVar(&filter.NameContains, "name-contains", "", "filter by a `TEXT` that the name contains")
	f.StringVar(&filter.Sort, "sort", "", "sort by `FIELD`: name, -name, created or -created")
	f.IntVar(&filter.Limit, "limit", 0, "`NUMBER` of credentials per page, up to 200")
	f.StringVar(&filter.After, "after", "", "continue after the page with this `CURSOR`")
	f.BoolVar(&filter.LastUse, "last-used", false, "show when each was last used: given under a new lease, or revealed")
	f.BoolVar(&all, "all", false, "list all pages")
	return cmd
}

// lastUse is a last use for people.
func lastUse(of *client.LastUse) string {
	switch {
	case of == nil || of.Unknown:
		return "unknown"
	case of.Time.IsZero():
		return "never"
	}
	return when(of.Time)
}

func (a *invocation) credentialCounts() *cobra.Command {
	return &cobra.Command{
		Use: "counts", Short: "Count credentials by component and status", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			counts, err := api.CountCredentials(cmd.Context(), 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(counts)
			}
			var rows [][]string
			for _, c := range counts.Components {
				rows = append(rows, []string{
					cmp.Or(c.Component, c.Type), strconv.Itoa(c.Total), strconv.Itoa(c.Status[client.StatusVerified]),
					strconv.Itoa(c.Status[client.StatusFailed]), strconv.Itoa(c.Status[client.StatusUnverified]),
				})
			}
			return a.list([]string{"COMPONENT", "TOTAL", "VERIFIED", "FAILED", "UNVERIFIED"}, rows)
		},
	}
}

func (a *invocation) credentialShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one credential; secret values are masked", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			c, err := api.GetCredential(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(c)
			}
			pairs := [][2]string{
				{"id", c.ID},
				{"name", c.Name},
				{"component", cmp.Or(c.Component, c.Type+" (free type)")},
				{"status", c.Status},
				{"version", strconv.Itoa(c.Version)},
				{"verified", lastVerification(c)},
				{"created", when(c.CreatedAt) + " by " + c.CreatedBy},
				{"updated", when(c.UpdatedAt)},
			}
			if c.Workspace != "" {
				pairs = append(pairs, [2]string{"workspace", c.Workspace})
			}
			if c.VPNAgent != "" {
				pairs = append(pairs, [2]string{"vpn agent", c.VPNAgent})
			}
			if c.ThrottlePolicy != "" {
				pairs = append(pairs, [2]string{"throttle policy", c.ThrottlePolicy})
			}
			for _, name := range slices.Sorted(maps.Keys(c.Keys)) {
				pairs = append(pairs, [2]string{"keys." + name, fmt.Sprint(c.Keys[name])})
			}
			return a.pairs(append(pairs, tokenPairs(c.Tokens)...))
		},
	}
}

// tokenPairs shows the state of a credential's tokens.
func tokenPairs(t *client.TokenInfo) (pairs [][2]string) {
	if t == nil {
		return nil
	}
	if t.Problem != "" {
		pairs = [][2]string{{"tokens.problem", t.Problem}}
		if !t.RetryAt.IsZero() {
			pairs = append(pairs, [2]string{"tokens.retried", when(t.RetryAt)})
		}
		return pairs
	}
	pairs = [][2]string{{"tokens.expire", when(t.Expires)}}
	if t.Expires.IsZero() {
		pairs = [][2]string{{"tokens.expire", "never, unless they are revoked"}}
	}
	if !t.Renewable {
		pairs = append(pairs, [2]string{"tokens.renewed", "never"})
	}
	if t.Failures > 0 {
		pairs = append(pairs, [2]string{"tokens.failures", fmt.Sprintf("%d in a row; next retry at %s", t.Failures, when(t.RetryAt))})
	}
	if len(t.Missing) > 0 {
		pairs = append(pairs, [2]string{"tokens.not granted", strings.Join(t.Missing, " ")})
	}
	if t.Odd != "" {
		pairs = append(pairs, [2]string{"tokens.odd", t.Odd})
	}
	return pairs
}

// lastVerification shows when and how the current keys were last verified.
func lastVerification(c client.Credential) string {
	how := "without a probe"
	if v := c.Verification; v.Probe != "" {
		how = fmt.Sprintf("by %s: %s in %d ms", v.Probe, v.Outcome, v.LatencyMS)
	}
	if c.HostKey != "" {
		how += ", host key " + c.HostKey
	}
	if c.VerifiedAt.IsZero() {
		return how
	}
	return when(c.VerifiedAt) + " " + how
}

// credentialVerb is a command on one credential.
func (a *invocation) credentialVerb(use, short string, names []string, sentence string,
	obey func(ctx context.Context, api *client.Client, args []string) (client.Done, error),
) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: arguments(names...),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := obey(cmd.Context(), api, args)
			if err != nil {
				return err
			}
			if done.Says != "" && !a.client.JSON {
				fmt.Fprintln(a.stderr, clean(done.Says))
			}
			said := strings.NewReplacer("{id}", done.ID, "{version}", strconv.Itoa(done.Version), "{status}", done.Status).Replace(sentence)
			return a.answer(done, "%s", said)
		},
	}
}

func (a *invocation) credentialRename() *cobra.Command {
	var by changing
	cmd := a.credentialVerb("rename ID NAME", "Rename a credential", []string{"ID", "NAME"}, "Renamed credential {id}.",
		func(ctx context.Context, api *client.Client, args []string) (client.Done, error) {
			return api.RenameCredential(ctx, args[0], args[1], by.expected, by.options()...)
		})
	by.bind(cmd, true)
	return cmd
}

func (a *invocation) credentialReplaceKeys() *cobra.Command {
	var by changing
	var keysFile, expires, hostKey string
	keys := func(ctx context.Context, api *client.Client, id string) (client.Keys, error) {
		component := ""
		if keysFile == "" {
			c, err := api.GetCredential(ctx, id, 0)
			if err != nil {
				return client.Keys{}, err
			}
			component = c.Component
		}
		return a.keys(ctx, api, keysFile, component, &by.revision)
	}
	cmd := a.credentialVerb("replace-keys ID", "Verify new keys and activate them as a new version", []string{"ID"}, "Credential {id} has version {version}, {status}.",
		func(ctx context.Context, api *client.Client, args []string) (client.Done, error) {
			k, err := keys(ctx, api, args[0])
			if err != nil {
				return client.Done{}, err
			}
			declared, err := expiry(expires)
			if err != nil {
				return client.Done{}, err
			}
			return api.ReplaceKeys(ctx, args[0], k, by.expected, append(append(by.options(), client.AcceptHostKey(hostKey)), declared...)...)
		})
	bindExpires(cmd, &expires, "the keys expire")
	bindHostKey(cmd, &hostKey)
	bindKeysFile(cmd, &keysFile)
	by.bind(cmd, true)
	bindRevision(cmd, &by.revision)
	a.dryRun(cmd, func(ctx context.Context, api *client.Client, id string) (client.Impact, error) {
		k, err := keys(ctx, api, id)
		if err != nil {
			return client.Impact{}, err
		}
		return api.ReplaceKeysDryRun(ctx, id, k, by.expected, by.options()...)
	})
	return cmd
}

func (a *invocation) credentialRevert() *cobra.Command {
	var by changing
	var to int
	cmd := a.credentialVerb("revert ID --to-version N", "Activate the keys of an earlier version again", []string{"ID"},
		"Credential {id} has version {version}, {status}.",
		func(ctx context.Context, api *client.Client, args []string) (client.Done, error) {
			return api.RevertCredential(ctx, args[0], to, by.expected, by.options()...)
		})
	cmd.Flags().IntVar(&to, "to-version", 0, "`VERSION` to revert to")
	by.bind(cmd, true)
	required(cmd, "to-version")
	return cmd
}

func (a *invocation) credentialRefresh() *cobra.Command {
	var by changing
	cmd := &cobra.Command{
		Use: "refresh ID", Short: "Renew the tokens of an OAuth credential now",
		Long: "Renew the tokens of an OAuth credential now, even if they are not due. The service renews tokens " +
			"itself before\nthey expire; after a failed renewal, this command retries at once.",
		Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.RefreshCredential(cmd.Context(), args[0], by.options()...)
			if err != nil {
				return err
			}
			return a.answer(done, "Credential %s has new tokens.", done.ID)
		},
	}
	by.bind(cmd, false)
	return cmd
}

func (a *invocation) credentialVerify() *cobra.Command {
	var by changing
	var hostKey string
	cmd := &cobra.Command{
		Use: "verify ID", Short: "Verify the current keys again with the dry request",
		Long: "Verify the current keys again with the dry request and record the outcome. The exit code is 2 if it fails.",
		Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.VerifyCredential(cmd.Context(), args[0], append(by.options(), client.AcceptHostKey(hostKey))...)
			if err != nil {
				return err
			}
			if err := a.answer(done, "Credential %s, version %d: %s.", done.ID, done.Version, done.Status); err != nil {
				return err
			}
			if done.Status == client.StatusFailed {
				if done.Says == "" {
					done.Says = "The dry request failed."
				}
				return credential.ErrVerificationFailed.Withf("%s", done.Says)
			}
			return nil
		},
	}
	by.bind(cmd, false)
	bindHostKey(cmd, &hostKey)
	return cmd
}

func bindHostKey(cmd *cobra.Command, key *string) {
	cmd.Flags().StringVar(key, "host-key", "", "accept this key of an SSH server in place of the recorded one: \"ssh-ed25519 SHA256:...\"")
}

func (a *invocation) credentialDelete() *cobra.Command {
	var by changing
	cmd := a.credentialVerb("delete ID", "Delete a credential and erase its secrets", []string{"ID"}, "Deleted credential {id}.",
		func(ctx context.Context, api *client.Client, args []string) (client.Done, error) {
			return api.DeleteCredential(ctx, args[0], by.expected, by.options()...)
		})
	by.bind(cmd, true)
	a.dryRun(cmd, func(ctx context.Context, api *client.Client, id string) (client.Impact, error) {
		return api.DeleteCredentialDryRun(ctx, id, by.expected)
	})
	return cmd
}

func (a *invocation) credentialHistory() *cobra.Command {
	return &cobra.Command{
		Use: "history ID", Short: "Show the history of a credential: who changed what, when, and which version", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			entries, err := api.CredentialHistory(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(struct {
					Events []client.HistoryEntry `json:"events"`
				}{entries})
			}
			var rows [][]string
			for _, e := range entries {
				rows = append(rows, []string{strconv.FormatUint(e.Seq, 10), when(e.Time), e.Type, strconv.Itoa(e.Version), e.Actor, e.Via})
			}
			return a.list([]string{"SEQ", "TIME", "EVENT", "VERSION", "ACTOR", "VIA"}, rows)
		},
	}
}
