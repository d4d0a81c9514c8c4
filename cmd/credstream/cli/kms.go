package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/seal"
)

var (
	errKeyFileExists = fault.New(fault.Exists, "kms_key_exists",
		"The key file already exists. It was not overwritten: without it, data that is encrypted with it is lost.")
	errKeyFileNotCreated = fault.New(fault.Invalid, "kms_key_unmade", "The key file cannot be created.")
)

// kmsCommand creates key files for serve --kms. It does not call a service.
func (a *invocation) kmsCommand() *cobra.Command {
	cmd := noun(&cobra.Command{Use: "kms", Short: "Manage the KMS key, which wraps the tenants' encryption keys"})
	cmd.AddCommand(&cobra.Command{
		Use: "new FILE", Short: "Create a key file for serve --kms",
		Long: "Create a key file for serve --kms that only you can read. An existing file is never " +
			"replaced.\nAll processes that serve the same data need the same file.",
		Args: arguments("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("find the key file: %w", err)
			}
			err = seal.CreateKeyFile(path)
			switch {
			case errors.Is(err, fs.ErrExist):
				return errKeyFileExists.Withf("The key file %s already exists. It was not overwritten: without it, data that is encrypted with it is lost.", path)
			case err != nil:
				return fmt.Errorf("%w (%w)", errKeyFileNotCreated, err)
			}
			_, err = fmt.Fprintf(a.stdout, "Created the key file %s. Back it up, apart from the data: without it no secret can be "+
				"decrypted.\nUse it in all processes that serve the same data: --kms %s\n", clean(path), clean((&url.URL{Scheme: "file", Path: path}).String()))
			return err
		},
	})
	return cmd
}
