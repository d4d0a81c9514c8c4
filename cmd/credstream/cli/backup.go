package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/age"
	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service/backup"
	"github.com/credstream/credstream/service/transfer"
)

var (
	errBackupExists = fault.New(fault.Exists, "backup_file_exists", "The backup file exists already and was not changed. Choose another name.")
	errBackupUnmade = fault.New(fault.Invalid, "backup_file_unmade", "The backup file cannot be written.")
)

func (a *invocation) backupCommand() *cobra.Command {
	var to, keysets, since string
	var from uint64
	cmd := &cobra.Command{
		Use:   "backup FILE --to RECIPIENT",
		Short: "Back up the installation: log, encrypted secrets, wrapped keysets and access log of all tenants",
		Long: "Back up the installation while it runs: the log, the encrypted secrets, the wrapped keysets and the access log of all\n" +
			"tenants, as one signed file that is encrypted to an age recipient. The KMS key (kms.key, or that of --kms) is not in it:\n" +
			"without that key no secret of the backup can be decrypted. Back it up apart from this file.\n" +
			"With --since, the backup is incremental: it contains only what was written after the backup in that file.\n" +
			"The API key needs the permission backups.create.",
		Example: "  credstream backup full.backup --to age1...\n  credstream backup monday.backup --to age1... --since full.backup",
		Args:    arguments("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.backup(cmd.Context(), args[0], keysets, to, since, from)
		},
	}
	settings.Bind(cmd.Flags(), &a.client)
	f := cmd.Flags()
	f.StringVar(&to, "to", "", "age public key of the `RECIPIENT`, as age-keygen prints it: age1...")
	f.StringVar(&keysets, "keysets", "", "write the keysets to a second `FILE`, to store them separately")
	f.StringVar(&since, "since", "", "make an incremental backup after the one in this `FILE`, which is not decrypted")
	f.Uint64Var(&from, "from", 0, "begin the log at this commit `SEQ`; all other data is complete")
	_ = cmd.MarkFlagRequired("to")
	cmd.MarkFlagsMutuallyExclusive("since", "from")
	cmd.AddCommand(a.backupVerify())
	return cmd
}

// newFile is a file that gets its name when it is complete.
type newFile struct {
	*os.File
	name string
}

func createNew(name string) (*newFile, error) {
	if _, err := os.Lstat(name); err == nil {
		return nil, errBackupExists.Withf("The file %s exists already and was not changed. Choose another name.", name)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".backup-*") // mode 0600
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", errBackupUnmade, err)
	}
	return &newFile{f, name}, nil
}

// drop removes the incomplete file.
func (f *newFile) drop() { _ = f.Close(); _ = os.Remove(f.Name()) }

// keep gives the file its name.
func (f *newFile) keep() error {
	err := errors.Join(f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), f.name)
	}
	if errors.Is(err, fs.ErrExist) {
		return errBackupExists.Withf("The file %s exists already and was not changed. Choose another name.", f.name)
	}
	if err == nil {
		err = seal.SyncFolder(filepath.Dir(f.name))
	}
	if err != nil {
		return fmt.Errorf("%w (%w)", errBackupUnmade, err)
	}
	return nil
}

func (a *invocation) backup(ctx context.Context, name, keysets, to, since string, from uint64) error {
	recipient, err := backup.ParseRecipient(to)
	if err != nil {
		return err
	}
	var position string
	if since != "" {
		if position, err = a.position(since); err != nil {
			return err
		}
	}
	api, err := a.api()
	if err != nil {
		return err
	}
	file, err := createNew(name)
	if err != nil {
		return err
	}
	defer file.drop()
	files := []*newFile{file}
	var w *backup.Writer
	if keysets == "" {
		w, err = backup.NewWriter(recipient, file, nil)
	} else {
		var second *newFile
		if second, err = createNew(keysets); err != nil {
			return err
		}
		defer second.drop()
		files = []*newFile{second, file}
		w, err = backup.NewWriter(recipient, file, second)
	}
	if err != nil {
		return fmt.Errorf("%w (%w)", errBackupUnmade, err)
	}
	shown := a.progress("Backed up")
	defer shown.end()
	total := uint64(0)
	for page, err := range api.Backup(ctx, position, from) {
		if err != nil {
			if ctx.Err() != nil {
				return errStopped.Withf("Interrupted. There is no backup file. Start the backup again.")
			}
			return err
		}
		total = max(total, page.Total)
		if _, err := w.Write([]byte(page.Text)); err != nil {
			return fmt.Errorf("%w (%w)", errBackupUnmade, err)
		}
		shown.at(int(page.Done), int(max(total, page.Done)))
	}
	label, end, err := w.Close()
	if err != nil {
		return fmt.Errorf("%w (%w)", errBackupUnmade, err)
	}
	for _, f := range files {
		if err := f.keep(); err != nil {
			return err
		}
	}
	shown.end()
	first := uint64(1)
	if label.After != nil {
		first = label.After.Log + 1
	}
	return a.answer(map[string]any{"id": label.ID, "from": first, "to": end.To.Log, "commits": end.Commits, "secrets": end.Secrets, "accesses": end.Accesses, "key": w.Key()},
		"Backed up the log from commit %d to %d, %s and %s to %s, signed by %s. The KMS key is not in it: keep a copy of it elsewhere.",
		first, end.To.Log, count(int(end.Secrets), "secret"), count(int(end.Accesses), "access record"), name, w.Key())
}

// position is where the backup in a file ends.
func (a *invocation) position(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("%w (%w)", errFile, err)
	}
	defer func() { _ = f.Close() }()
	label, err := backup.ReadLabel(f)
	if err != nil {
		return "", err
	}
	text, err := json.Marshal(label.To)
	return string(text), err
}

// backupFlags select backup files for reading.
type backupFlags struct{ identity, keysets, signedBy string }

func (a *invocation) bindBackup(cmd *cobra.Command, b *backupFlags) {
	f := cmd.Flags()
	f.StringVar(&b.identity, "identity", "", "`FILE` with the age identity that decrypts the backups, as age-keygen writes it")
	f.StringVar(&b.keysets, "keysets", "", "`FILE` with the keysets of the last backup, if they were written to a second file")
	f.StringVar(&b.signedBy, "signed-by", "", backupSignedBy)
	f.BoolVar(&a.client.JSON, "json", false, "print JSON; errors too, on standard error")
	_ = cmd.MarkFlagRequired("identity")
}

// contents reads and checks backup files. close closes them.
func (a *invocation) contents(ctx context.Context, names []string, in backupFlags) (c *backup.Contents, closeAll func(), err error) {
	var files []*os.File
	closeAll = func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	key, err := a.secretFile(in.identity)
	if err != nil {
		return nil, closeAll, err
	}
	identities, err := age.ParseIdentities(bytes.NewReader(key))
	if err != nil { // the error may quote the key
		return nil, closeAll, errIdentities
	}
	open := func(name string) (*backup.File, error) {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", errFile, err)
		}
		files = append(files, f)
		return backup.Open(f, identities)
	}
	set := &backup.Set{}
	for _, name := range names {
		f, err := open(name)
		if err != nil {
			return nil, closeAll, fmt.Errorf("%s: %w", name, err)
		}
		set.Files = append(set.Files, f)
	}
	if in.keysets != "" {
		if set.Keysets, err = open(in.keysets); err != nil {
			return nil, closeAll, fmt.Errorf("%s: %w", in.keysets, err)
		}
	}
	shown := a.progress("Checked")
	defer shown.end()
	c, err = set.Inspect(ctx, in.signedBy, func(n int) { shown.at(n, 0) })
	if ctx.Err() != nil {
		err = errStopped.Withf("Interrupted. Nothing was restored.")
	}
	if err == nil && in.signedBy == transfer.AnySigner {
		fmt.Fprintln(a.stderr, clean("Signed by "+c.Key+"."+signerUnchecked))
	}
	return c, closeAll, err
}

func (a *invocation) backupVerify() *cobra.Command {
	var in backupFlags
	cmd := &cobra.Command{
		Use: "verify FILE...", Short: "Check backups without restoring them, and print what is in them",
		Long: "Check a full backup and its incremental backups, in order, without restoring them: hashes, signature, that no commit is\n" +
			"missing, and that they contain each secret that the log references. Then print what is in them.",
		Args: someFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, closeAll, err := a.contents(cmd.Context(), args, in)
			defer closeAll()
			if err != nil {
				return err
			}
			return errors.Join(a.describe(c), missing(c))
		},
	}
	a.bindBackup(cmd, &in)
	return cmd
}

func someFiles(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return nil
	}
	return errUsage.Withf("%s requires at least one FILE. Try --help.", cmd.CommandPath())
}

// missing is an error if secrets are missing in backups.
func missing(c *backup.Contents) error {
	if len(c.Missing) == 0 {
		return nil
	}
	return backup.ErrMissing.Withf("The log references secrets of %d owners that the backup does not contain: %s.", len(c.Missing), strings.Join(c.Missing[:min(len(c.Missing), 5)], "; "))
}

// describe prints what backups restore.
func (a *invocation) describe(c *backup.Contents) error {
	var counts []string
	for _, category := range slices.Sorted(maps.Keys(c.Counts)) {
		counts = append(counts, fmt.Sprintf("%s %d", strings.ReplaceAll(category, "_", " "), c.Counts[category]))
	}
	return a.answer(map[string]any{
		"time": c.Time, "key": c.Key, "tenant": c.Tenant, "from": c.From, "to": c.To, "secrets": c.Live, "dropped": c.Dropped, "keysets": c.Keysets,
		"accesses": c.Accesses, "streams": c.Counts, "missing": c.Missing,
	}, "Commits %d to %d, %s in use, %d deleted later and omitted, %s, %s.\nStreams of the log: %s.\nMade %s, signed by %s of tenant %s.",
		c.From, c.To, count(int(c.Live), "secret"), c.Dropped, count(c.Keysets, "keyset"), count(int(c.Accesses), "access record"),
		strings.Join(counts, ", "), when(c.Time), c.Key, c.Tenant)
}

func (a *invocation) restoreCommand() *cobra.Command {
	var in backupFlags
	var into string
	cmd := &cobra.Command{
		Use: "restore FILE... --into DATA_FOLDER", Short: "Restore backups into an empty data folder",
		Long: "Restore a full backup and its incremental backups, in order, into an empty data folder. All files are checked before\n" +
			"anything is stored. Secrets that were deleted before the last backup are not restored. serve refuses the folder until\n" +
			"the restore is complete; after an interruption, run the same command again.\n" +
			"The KMS key is not in a backup: copy kms.key into the folder, or start serve with the same --kms as before.",
		Args: someFiles,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, closeAll, err := a.contents(cmd.Context(), args, in)
			defer closeAll()
			if err != nil {
				return err
			}
			if err := missing(c); err != nil {
				fmt.Fprintf(a.stderr, "Warning: %s\n", clean(err.Error()))
			}
			shown := a.progress("Restored")
			defer shown.end()
			if err := app.Restore(cmd.Context(), into, c, func(n int) { shown.at(n, 0) }); err != nil {
				if cmd.Context().Err() != nil {
					return errStopped.Withf("Interrupted. The folder is incomplete and cannot be served. Run the same command again: it starts over.")
				}
				return err
			}
			shown.end()
			fmt.Fprintf(a.stderr, "Restored to %s. Before you start serve, copy kms.key there, or use the same --kms as before.\n", clean(into))
			return a.describe(c)
		},
	}
	a.bindBackup(cmd, &in)
	cmd.Flags().StringVar(&into, "into", "", "new or empty data `FOLDER`")
	_ = cmd.MarkFlagRequired("into")
	return cmd
}
