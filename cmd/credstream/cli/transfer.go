package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/cmd/credstream/importer"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/transfer"
)

var (
	errOutExists  = fault.New(fault.Exists, "export_file_exists", "The file of --out exists already and was not changed. Choose another name.")
	errOutUnmade  = fault.New(fault.Invalid, "export_file_unmade", "The file of --out cannot be written.")
	errIdentities = fault.New(fault.Invalid, "import_identity_invalid", "The file of --identity contains no age identity: a line that begins with AGE-SECRET-KEY-1, as age-keygen writes it.")
)

// signerUnchecked follows the name of a key that signed a file, with --signed-by any.
const signerUnchecked = " The signer was not verified (--signed-by any)."

// The descriptions of --signed-by.
const (
	exportSignedBy = "public `KEY` that must have signed the export: credstream export key prints it at the exporting service; any accepts every signer"
	backupSignedBy = "public `KEY` that must have signed the backups: credstream export key prints it for the tenant that made the backup; any accepts every signer"
)

func (a *invocation) exportCommand() *cobra.Command {
	var to, out string
	cmd := &cobra.Command{
		Use:   "export [--to RECIPIENT] [--out FILE]",
		Short: "Export the tenant: components, throttle policies, clients, credentials, flows and roles",
		Long: "Export the tenant as one signed file: components, throttle policies, clients, credentials, flows and roles.\n" +
			"With --to, secrets are sealed to the recipient before they leave the service, and each access is audited; the key needs\n" +
			"the permission credentials.reveal. Without it, secrets are left out and listed.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.export(cmd.Context(), to, out) },
	}
	settings.Bind(cmd.PersistentFlags(), &a.client)
	cmd.Flags().StringVar(&to, "to", "", "age public key of the `RECIPIENT`, as age-keygen prints it: age1...")
	cmd.Flags().StringVar(&out, "out", "", "new `FILE` for the export; standard output when absent")
	cmd.AddCommand(&cobra.Command{
		Use: "key", Short: "Print the public key that verifies the tenant's exports", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			key, err := api.ExportKey(cmd.Context())
			if err != nil {
				return err
			}
			return a.answer(map[string]string{"key": key}, "%s", key)
		},
	})
	return cmd
}

// leftOut gathers the items of an export whose secrets are not in it.
type leftOut struct {
	lines  []string
	header transfer.Header
	rest   []byte
}

// Write takes the text of an export.
func (l *leftOut) Write(b []byte) (int, error) {
	n := len(b)
	for {
		line, rest, whole := bytes.Cut(b, []byte("\n"))
		if !whole {
			l.rest = append(l.rest, b...)
			return n, nil
		}
		line, b = append(l.rest, line...), rest
		l.rest = l.rest[:0]
		if l.header.Kind == "" {
			_ = json.Unmarshal(line, &l.header)
			continue
		}
		var item transfer.Item
		if json.Unmarshal(line, &item) == nil && len(item.Missing) > 0 {
			l.lines = append(l.lines, fmt.Sprintf("%s %s: %s", strings.ReplaceAll(item.Kind, "_", " "), item.ID, strings.Join(item.Missing, ", ")))
		}
	}
}

func (a *invocation) export(ctx context.Context, to, out string) (err error) {
	api, err := a.api()
	if err != nil {
		return err
	}
	w := io.Writer(a.stdout)
	keep := func() error { return nil }
	if out != "" {
		if _, err := os.Lstat(out); err == nil {
			return errOutExists
		}
		f, err := os.CreateTemp(filepath.Dir(out), ".export-*") // mode 0600
		if err != nil {
			return fmt.Errorf("%w (%w)", errOutUnmade, err)
		}
		defer func() { _ = f.Close(); _ = os.Remove(f.Name()) }()
		w = f
		keep = func() error { // the name never stands for half an export
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				return fmt.Errorf("%w (%w)", errOutUnmade, err)
			}
			if err := os.Link(f.Name(), out); errors.Is(err, fs.ErrExist) {
				return errOutExists
			} else if err != nil {
				return fmt.Errorf("%w (%w)", errOutUnmade, err)
			}
			return nil
		}
	}
	left := &leftOut{}
	shown := a.progress("Exported")
	defer shown.end()
	items, total := 0, 0
	for page, err := range api.Export(ctx, to) {
		if err != nil {
			return err
		}
		total = max(total, page.Total)
		shown.printing()
		if _, err := io.WriteString(io.MultiWriter(w, left), page.Text); err != nil {
			return fmt.Errorf("%w (%w)", errOutUnmade, err)
		}
		items = page.Items
		shown.at(items, max(items, total))
	}
	if err := keep(); err != nil {
		return err
	}
	shown.end()
	for _, line := range left.lines {
		fmt.Fprintln(a.stderr, "Left out: "+clean(line))
	}
	if len(left.header.LeftOut) > 0 {
		fmt.Fprintf(a.stderr, "Your key may not read these, so they are not in the file: %s.\n", strings.Join(left.header.LeftOut, ", "))
	}
	if out == "" {
		fmt.Fprintf(a.stderr, "Exported %d items, signed by %s.\n", items, left.header.Key)
		return nil
	}
	return a.answer(map[string]any{"id": left.header.ID, "items": items, "key": left.header.Key, "left_out": left.lines},
		"Exported %d items to %s, signed by %s.", items, out, left.header.Key)
}

// importFlags are the flags of an import.
type importFlags struct {
	plan, newIDs                   bool
	identity, signedBy, onConflict string
	maps                           []string

	from, component, mapping string // of other systems
	vault                    vaultConfig
}

func (a *invocation) importCommand() *cobra.Command {
	var in importFlags
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import an export of credstream, or credentials of another system",
		Long: "Import an export that was signed with the key of --signed-by. --plan shows what would change. Items that the service\n" +
			"already has are not changed, unless --on-conflict is replace. After an interruption, run the same command again to continue. The exit code is not 0 if\n" +
			"an item was not imported.\n" +
			"With --from, FILE is the export of another system (- is standard input), or a path in Vault: MOUNT/PATH.",
		Args: arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.from != "" {
				return a.importFrom(cmd.Context(), args[0], in)
			}
			return a.importFile(cmd.Context(), args[0], in)
		},
	}
	settings.Bind(cmd.Flags(), &a.client)
	settings.Bind(cmd.Flags(), &in.vault)
	f := cmd.Flags()
	f.BoolVar(&in.plan, "plan", false, "show what would be created, updated and skipped; change nothing")
	f.StringVar(&in.identity, "identity", "", "`FILE` with the age identity that decrypts the secrets, as age-keygen writes it")
	f.StringVar(&in.signedBy, "signed-by", "", exportSignedBy)
	f.StringVar(&in.onConflict, "on-conflict", "fail", "`HOW` to treat items that differ from those of the service: fail (import nothing), skip or replace")
	f.StringArrayVar(&in.maps, "map", nil, "import a credential under another id, `OLD=NEW`, or an item of another kind: KIND:OLD=NEW; repeatable")
	f.BoolVar(&in.newIDs, "new-ids", false, "give credentials and auth clients new ids; a repeated import generates the same ids")
	f.StringVar(&in.from, "from", "", "import from another `SYSTEM`: aspire, elasticio, n8n, vault or env")
	f.StringVar(&in.component, "component", "", "with --from: assign all credentials to the component with this `ID`; by their type when absent")
	f.StringVar(&in.mapping, "mapping", "", "with --from: `FILE` that assigns components, types, names and fields by id or type; see docs/import.md")
	return cmd
}

// importer makes an Importer of the flags.
func (a *invocation) importer(in importFlags) (*importer.Importer, error) {
	if !slices.Contains([]string{"fail", "skip", "replace"}, in.onConflict) {
		return nil, importer.ErrOnConflict
	}
	ids, err := importer.ParseMap(in.maps)
	if err != nil {
		return nil, err
	}
	key, err := a.key()
	switch {
	case err != nil:
		return nil, err
	case key == "": // it keys the command ids
		return nil, errNoKey.Withf("import requires an API key; it does not accept a client certificate.")
	}
	api, err := a.api()
	if err != nil {
		return nil, err
	}
	return &importer.Importer{API: &api.API, Secret: key, OnConflict: in.onConflict, NewIDs: in.newIDs, Map: ids}, nil
}

func (a *invocation) importFile(ctx context.Context, path string, in importFlags) error {
	im, err := a.importer(in)
	if err != nil {
		return err
	}
	var identities []age.Identity
	if in.identity != "" {
		b, err := a.secretFile(in.identity)
		if err != nil {
			return err
		}
		if identities, err = age.ParseIdentities(bytes.NewReader(b)); err != nil { // the error may quote the key
			return errIdentities
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%w (%w)", errFile, err)
	}
	defer func() { _ = f.Close() }()
	src, err := importer.Open(f, in.signedBy, identities)
	if err != nil {
		return err
	}
	if src.Sealed() > 0 && len(identities) == 0 && !in.plan {
		return importer.ErrIdentity
	}
	im.Origin = src.Header.ID
	signed := "Signed by " + src.Header.Key + ", tenant " + src.Header.Tenant + ", " + when(src.Header.Time) + "."
	if in.signedBy == transfer.AnySigner {
		signed += signerUnchecked
	}
	fmt.Fprintln(a.stderr, clean(signed))
	if len(src.Header.LeftOut) > 0 {
		fmt.Fprintf(a.stderr, "The exporting API key was not allowed to read these, so they are not in the file: %s.\n", clean(strings.Join(src.Header.LeftOut, ", ")))
	}
	return a.runImport(ctx, im, src, in.plan)
}

// importFrom imports credentials of another system.
func (a *invocation) importFrom(ctx context.Context, source string, in importFlags) error {
	if in.identity != "" || in.signedBy != "" {
		return errUsage.Withf("--identity and --signed-by are for exports of credstream. Omit them with --from.")
	}
	im, err := a.importer(in)
	if err != nil {
		return err
	}
	var m importer.Mapping
	if in.mapping != "" {
		b, err := a.file(in.mapping)
		if err == nil {
			m, err = importer.ParseMapping(b)
		}
		if err != nil {
			return err
		}
	}
	m.Component = in.component
	m.Fields = func(component string) ([]string, error) {
		c, err := im.API.GetComponent(ctx, component, 0)
		if err != nil {
			return nil, err
		}
		d, err := commands.ParseDescriptor(c.Descriptor)
		names := make([]string, len(d.Fields))
		for i, f := range d.Fields {
			names[i] = f.Name
		}
		return names, err
	}
	var src importer.Items
	if in.from == importer.FromVault {
		in.vault.token = a.getenv("VAULT_TOKEN")
		v := importer.Vault{Address: in.vault.Address, Namespace: in.vault.Namespace, Token: seal.NewSecret([]byte(in.vault.token))}
		if in.vault.TokenFile != "" {
			b, err := a.secretFile(in.vault.TokenFile)
			if err != nil {
				return err
			}
			v.Token = seal.NewSecret(b)
		}
		src, err = m.Vault(ctx, v, source)
	} else {
		var b []byte
		if b, err = a.fileUpTo(source, importer.MaxForeign); err == nil {
			src, err = m.Parse(in.from, source, b)
		}
	}
	if err != nil {
		return err
	}
	im.Origin = in.from
	return a.runImport(ctx, im, src, in.plan)
}

// runImport plans or applies an import, and prints what happens to each item.
func (a *invocation) runImport(ctx context.Context, im *importer.Importer, src importer.Source, plan bool) error {
	label, run := "Imported", im.Apply
	if plan {
		label, run = "Compared", im.Plan
	}
	shown := a.progress(label)
	defer shown.end()
	im.Progress = shown.at
	headed := false
	sum, err := run(ctx, src, func(r importer.Row) error {
		shown.printing()
		if a.client.JSON {
			return a.json(r)
		}
		if !headed {
			headed = true
			fmt.Fprintf(a.stdout, rowForm, "ACTION", "KIND", "ID", "NAME, REASON")
		}
		action := r.Action
		if r.Left && action != importer.Missing && action != importer.Conflict {
			action = "left"
		}
		id, says := r.ID, r.Name
		if r.From != "" {
			id = r.From + " as " + r.ID
		}
		if why := r.Why; why != "" {
			if r.Code != "" {
				why += " (" + r.Code + ")"
			}
			says = strings.TrimPrefix(says+": "+why, ": ")
		}
		_, err := fmt.Fprintf(a.stdout, rowForm, action, strings.ReplaceAll(r.Kind, "_", " "), clean(id), clean(says))
		return err
	})
	shown.end()
	if err != nil && !errors.Is(err, importer.ErrIncomplete) {
		if ctx.Err() != nil {
			return errStopped.Withf("Interrupted. Created %d, updated %d. Run the same command again to continue.", sum.Created, sum.Updated)
		}
		return err
	}
	said := "Created %d, updated %d, unchanged %d, left behind %d."
	if plan {
		said = "Nothing was changed. To create: %d, to update: %d, unchanged: %d, left behind: %d."
	}
	return errors.Join(a.answer(sum, said, sum.Created, sum.Updated, sum.Same, sum.Left), err)
}

// rowForm is one line of a plan.
const rowForm = "%-9s %-16s %s  %s\n"
