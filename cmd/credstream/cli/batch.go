package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"iter"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/importer"
	"github.com/credstream/credstream/fault"
)

// Errors of a batch.
var (
	errBatchInput      = fault.New(fault.Invalid, "batch_input_invalid", "The input must be JSON: one object per line, or an array of objects.")
	errBatchIncomplete = fault.New(fault.Unprocessable, "batch_incomplete", "Some items were refused. The others are done.")
	errBatchSelection  = fault.New(fault.Invalid, "batch_selection_missing",
		"Give either a file with the items, or flags that select credentials: --id, --type, --description or --throttle-policy.")
)

// batchFile says what the file of a batch holds.
const batchFile = "FILE holds JSON: one object per line, or an array of objects; - is standard input. It is read completely before the first item is sent.\n" +
	"Each item is executed independently: a refused item does not affect the others. The exit code is 2 if an item was refused.\n" +
	"With --json, the result of each item is one line."

// batchItem is one item of the input.
type batchItem struct {
	body jsontext.Value
	line int // where it begins, from 1
}

// parseBatch splits the input of a batch into its items. ids allows strings, and makes an id of
// each object. Its errors tell the line and column, and quote nothing of the input.
func parseBatch(input []byte, ids bool) ([]batchItem, error) {
	line, column, counted := 1, 1, 0
	place := func(offset int) { // offsets only grow
		for counted < min(offset, len(input)) {
			if input[counted] == '\n' {
				line, column, counted = line+1, 1, counted+1
				continue
			}
			_, n := utf8.DecodeRune(input[counted:])
			column, counted = column+1, counted+n
		}
	}
	wrong := func(offset int, what string) error {
		place(offset)
		return errBatchInput.Withf("Line %d, column %d: %s", line, column, what)
	}
	dec := jsontext.NewDecoder(bytes.NewReader(input))
	var items []batchItem
	inArray := dec.PeekKind() == '['
	if inArray {
		if _, err := dec.ReadToken(); err != nil {
			return nil, wrong(0, "this is not valid JSON.")
		}
	}
	for {
		if inArray && dec.PeekKind() == ']' {
			if _, err := dec.ReadToken(); err != nil {
				return nil, wrong(int(dec.InputOffset()), "this is not valid JSON.")
			}
			rest := input[dec.InputOffset():]
			if more := bytes.TrimLeft(rest, " \t\r\n"); len(more) > 0 {
				return nil, wrong(len(input)-len(more), "there is more input after the end of the array.")
			}
			return items, nil
		}
		value, err := dec.ReadValue()
		if errors.Is(err, io.EOF) && !inArray {
			return items, nil
		}
		if err != nil {
			offset := int64(len(input))
			if at, is := errors.AsType[*jsontext.SyntacticError](err); is {
				offset = at.ByteOffset
			}
			if offset >= int64(len(input)) {
				return nil, wrong(len(input), "the input ends in the middle of an item.")
			}
			if errors.Is(err, jsontext.ErrDuplicateName) {
				return nil, wrong(int(offset), "this name appears more than once in the same object.")
			}
			return nil, wrong(int(offset), "this is not valid JSON.")
		}
		start := int(dec.InputOffset()) - len(value)
		place(start)
		body := value.Clone()
		switch kind := value.Kind(); {
		case ids && kind == '{':
			var of struct {
				ID *string `json:"id"`
			}
			if json.Unmarshal(value, &of) != nil || of.ID == nil {
				return nil, wrong(start, "this object has no id.")
			}
			if body, err = json.Marshal(*of.ID); err != nil {
				return nil, wrong(start, "this id is not valid.")
			}
		case ids && kind == '"', !ids && kind == '{':
		case ids:
			return nil, wrong(start, "an item must be an id in quotes, or an object with an id.")
		default:
			return nil, wrong(start, "an item must be a JSON object.")
		}
		items = append(items, batchItem{body: body, line: line})
	}
}

// batchRun is one run of a batch command.
type batchRun struct {
	a         *invocation
	verb      string // "Created"
	commandID string
	items     []batchItem // nil for a selection
}

// batchLine is the result of one item with --json.
type batchLine struct {
	Item    int            `json:"item"`          // from 1
	Line    int            `json:"line,omitzero"` // of the input where the item begins
	ID      string         `json:"id,omitzero"`
	Version int            `json:"version,omitzero"`
	Status  string         `json:"status,omitzero"`
	Error   *fault.Problem `json:"error,omitzero"`
}

// bind adds the flag of the command id.
func (b *batchRun) bind(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.commandID, "command-id", "",
		"command `ID` (idempotency key) of the batch: after an interruption, repeat the command with the same id and items to continue")
}

// read reads the items from a file with secrets, or standard input.
func (b *batchRun) read(path string, ids bool) error {
	read := b.a.secretFileUpTo
	if ids {
		read = b.a.fileUpTo
	}
	input, err := read(path, importer.MaxForeign)
	if err != nil {
		return err
	}
	b.items, err = parseBatch(input, ids)
	return err
}

// run prints the result of each item. results starts the batch with its command id.
func (b *batchRun) run(ctx context.Context, results func(opts ...client.CommandOption) iter.Seq2[client.BatchResult, error]) error {
	id := cmp.Or(b.commandID, rand.Text())
	shown := b.a.progress(b.verb)
	defer shown.end()
	done, refused := 0, 0
	for r, err := range results(client.CommandID(id)) {
		if err != nil {
			shown.end()
			again := " Repeat the command with --command-id " + id + ": items that are done are not executed again."
			if ctx.Err() != nil {
				return errStopped.Withf("Interrupted. %s %d, refused %d; the outcome of the next items is unknown.%s", b.verb, done, refused, again)
			}
			if done+refused > 0 {
				fmt.Fprintf(b.a.stderr, "%s %d, refused %d, then the batch ended.%s\n", b.verb, done, refused, again)
			}
			return err
		}
		if r.Err == nil {
			done++
		} else {
			refused++
		}
		if err := b.print(shown, r); err != nil {
			return err
		}
		shown.at(done+refused, len(b.items))
	}
	shown.end()
	if !b.a.client.JSON {
		fmt.Fprintf(b.a.stdout, "%s %d, refused %d.\n", b.verb, done, refused)
	}
	if refused > 0 {
		return errBatchIncomplete.Withf("%d of %d items were refused. The others are done.", refused, done+refused)
	}
	return nil
}

// print prints the result of one item.
func (b *batchRun) print(shown *progress, r client.BatchResult) error {
	line := batchLine{Item: r.Item + 1, ID: r.ID, Version: r.Version, Status: r.Status}
	if b.items != nil {
		line.Line = b.items[r.Item].line
	}
	f := fault.Of(r.Err)
	if f == nil && shown.width > 0 && shown.mixed && !b.a.client.JSON { // a terminal shows the bar, and what was refused
		return nil
	}
	shown.printing()
	if b.a.client.JSON {
		if f != nil {
			p := f.Problem()
			line.Error = &p
		}
		return b.a.json(line)
	}
	if f == nil {
		_, err := fmt.Fprintf(b.a.stdout, "%-8s %s %s\n", "done", clean(line.ID), line.Status)
		return err
	}
	where := ""
	if line.Line > 0 {
		where = fmt.Sprintf("line %d: ", line.Line)
	}
	_, err := fmt.Fprintf(b.a.stdout, "%-8s %s %s%s (%s)\n", "refused", cmp.Or(clean(line.ID), "-"), where, clean(f.Msg), f.Code)
	return err
}

func (b *batchRun) bodies() []jsontext.Value {
	bodies := make([]jsontext.Value, len(b.items))
	for i, item := range b.items {
		bodies[i] = item.body
	}
	return bodies
}

func (a *invocation) credentialCreateMany() *cobra.Command {
	b := &batchRun{a: a, verb: "Created"}
	cmd := &cobra.Command{
		Use: "create-many FILE", Short: "Create many credentials from a file",
		Long: "Create many credentials. Keys are verified as by create.\n\n" + batchFile,
		Example: `  echo '{"component":"petstore","name":"Pets","keys":{"apiKey":"..."}}' | credstream credential create-many -
  credstream credential create-many new.ndjson --command-id import-7 --json`,
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return b.file(cmd.Context(), args[0], "credential.create-many", false)
		},
	}
	b.bind(cmd)
	return cmd
}

// file executes a batch of the items of a file.
func (b *batchRun) file(ctx context.Context, path, command string, ids bool) error {
	api, err := b.a.api()
	if err != nil {
		return err
	}
	if err := b.read(path, ids); err != nil {
		return err
	}
	return b.run(ctx, func(opts ...client.CommandOption) iter.Seq2[client.BatchResult, error] {
		return api.Batch(ctx, command, b.bodies(), opts...)
	})
}

// bindSelection adds the flags that select credentials.
func bindSelection(cmd *cobra.Command, by *client.Selection) {
	f := cmd.Flags()
	f.StringSliceVar(&by.IDs, "id", nil, "only the credential with this `ID`; repeatable")
	f.StringVar(&by.Type, "type", "", "only credentials of this component or free `TYPE`")
	f.StringVar(&by.Description, "description", "", "only credentials whose description contains this `TEXT`")
	f.StringVar(&by.ThrottlePolicy, "throttle-policy", "", "only credentials with this throttle policy `ID`")
}

// selects reports whether a batch is for a selection, and not for the items of a file.
func selects(args []string, by client.Selection) (bool, error) {
	selected := len(by.IDs) > 0 || by.Type != "" || by.Description != "" || by.ThrottlePolicy != ""
	if selected == (len(args) == 1) {
		return false, errBatchSelection
	}
	return selected, nil
}

func (a *invocation) credentialUpdateMany() *cobra.Command {
	b := &batchRun{a: a, verb: "Updated"}
	var by client.Selection
	var description, policy string
	cmd := &cobra.Command{
		Use: "update-many [FILE]", Short: "Change many credentials: those in a file, or those that match flags",
		Long: "Change the descriptions, keys or throttle policies of many credentials: either as FILE says for each, or, with\n" +
			"--set-description and --set-throttle-policy, all credentials that match --id, --type, --description and --throttle-policy.\n" +
			"To list the matching credentials first, run credstream credential search with the same flags.\n\n" + batchFile,
		Example: `  echo '{"id":"7f3c","keys":{"apiKey":"..."}}' | credstream credential update-many -
  credstream credential update-many --type petstore --set-throttle-policy crm`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var update client.CredentialUpdate
			if cmd.Flags().Changed("set-description") {
				update.Description = &description
			}
			if cmd.Flags().Changed("set-throttle-policy") {
				update.ThrottlePolicy = &policy
			}
			selected, err := selects(args, by)
			if err != nil {
				return err
			}
			if selected != (update.Description != nil || update.ThrottlePolicy != nil) {
				return errUsage.Withf("--set-description and --set-throttle-policy apply to credentials that flags select. Do not combine them with a file.")
			}
			if !selected {
				return b.file(cmd.Context(), args[0], "credential.update-many", false)
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			return b.run(cmd.Context(), func(opts ...client.CommandOption) iter.Seq2[client.BatchResult, error] {
				return api.UpdateSelected(cmd.Context(), by, update, opts...)
			})
		},
	}
	b.bind(cmd)
	bindSelection(cmd, &by)
	cmd.Flags().StringVar(&description, "set-description", "", "new description `TEXT` of the selected credentials; \"\" removes it")
	cmd.Flags().StringVar(&policy, "set-throttle-policy", "", "new throttle policy `ID` of the selected credentials; \"\" removes it")
	return cmd
}

func (a *invocation) credentialDeleteMany() *cobra.Command {
	b := &batchRun{a: a, verb: "Deleted"}
	var by client.Selection
	cmd := &cobra.Command{
		Use: "delete-many [FILE]", Short: "Delete many credentials: those in a file, or those that match flags",
		Long: "Delete many credentials and erase their secrets: either those in FILE (ids in quotes, or objects with an id), or all that\n" +
			"match --id, --type, --description and --throttle-policy. To list the matching credentials first, run credstream credential\n" +
			"search with the same flags. A credential that an active flow uses is not deleted.\n\n" + batchFile,
		Example: `  credstream credential search --type legacy --all --json | credstream credential delete-many -
  credstream credential delete-many --type legacy`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			selected, err := selects(args, by)
			if err != nil {
				return err
			}
			if !selected {
				return b.file(cmd.Context(), args[0], "credential.delete-many", true)
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			return b.run(cmd.Context(), func(opts ...client.CommandOption) iter.Seq2[client.BatchResult, error] {
				return api.DeleteSelected(cmd.Context(), by, opts...)
			})
		},
	}
	b.bind(cmd)
	bindSelection(cmd, &by)
	return cmd
}

func (a *invocation) credentialSearch() *cobra.Command {
	var in client.CredentialSearch
	var all bool
	cmd := &cobra.Command{
		Use: "search", Short: "Search credentials by id, type, description and throttle policy",
		Long: "List the credentials that match all flags. With --json, each is one line, the input format of credential delete-many.",
		Example: `  credstream credential search --type petstore --description staging
  credstream credential search --sort -description --from 200 --limit 100`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			if all {
				in.Limit = 1000
			}
			var rows [][]string
			shown, total := 0, 0
			for {
				found, err := api.SearchCredentials(cmd.Context(), in)
				if err != nil {
					return err
				}
				total = max(total, found.Total)
				for _, c := range found.Credentials {
					shown++
					if a.client.JSON {
						if err := a.json(c); err != nil {
							return err
						}
						continue
					}
					rows = append(rows, []string{c.ID, c.Name, cmp.Or(c.Component, c.Type), c.Status, c.Description, c.ThrottlePolicy})
				}
				if !all || len(found.Credentials) < in.Limit {
					break
				}
				if in.Sort == "" || in.Sort == "id" {
					in.From, in.After = 0, found.Credentials[len(found.Credentials)-1].ID
				} else {
					in.From += len(found.Credentials)
				}
			}
			if a.client.JSON {
				return nil
			}
			if err := a.list([]string{"ID", "NAME", "TYPE", "STATUS", "DESCRIPTION", "THROTTLE POLICY"}, rows); err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "%d of %d.\n", shown, total)
			return nil
		},
	}
	bindSelection(cmd, &in.Selection)
	f := cmd.Flags()
	f.StringVar(&in.Sort, "sort", "", "sort by `FIELD`: id, type, description or throttle_policy, with - in front for descending")
	f.IntVar(&in.From, "from", 0, "skip this `NUMBER` of credentials")
	f.IntVar(&in.Limit, "limit", 0, "`NUMBER` of credentials, up to 1000; 50 when absent")
	f.BoolVar(&all, "all", false, "list all, also more than one page")
	cmd.MarkFlagsMutuallyExclusive("limit", "all")
	return cmd
}
