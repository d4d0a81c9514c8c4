package main

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
		"There is a file of this name already. It is left as it is, since what is sealed with a key opens with no other.")
	errKeyFileUnmade = fault.New(fault.Invalid, "kms_key_unmade", "The key file cannot be made.")
)

// kmsCommand makes what serve --kms takes. It talks to no service.
func (a *app) kmsCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "kms", Short: "Make the key that wraps the tenants' keys"}
	cmd.AddCommand(&cobra.Command{
		Use: "new FILE", Short: "Make a key file for serve --kms",
		Long: "Make a key file that only you can read, for serve --kms. A file that is there is never replaced.\n" +
			"Every process that serves the same data needs the same one.",
		Args: arguments("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("find the key file: %w", err)
			}
			err = seal.CreateKeyFile(path)
			switch {
			case errors.Is(err, fs.ErrExist):
				return errKeyFileExists.Because("There is a file %s already. It is left as it is, since what is sealed with a key opens with no other.", path)
			case err != nil:
				return fmt.Errorf("%w (%w)", errKeyFileUnmade, err)
			}
			_, err = fmt.Fprintf(a.stdout, "Made the key file %s. Back it up, apart from the data: without it no secret opens.\n"+
				"Give it to every process that serves the same data: --kms %s\n", clean(path), clean((&url.URL{Scheme: "file", Path: path}).String()))
			return err
		},
	})
	return cmd
}
