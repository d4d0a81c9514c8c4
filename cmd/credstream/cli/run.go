// Package cli is the command line: verbs that call a service, and the verbs that run it.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
)

// Errors of the command line.
var (
	errUsage   = fault.New(fault.Invalid, "usage", "Invalid command line.")
	errNoKey   = fault.New(fault.Unauthenticated, "key_missing", "An API key is required: set CREDSTREAM_KEY, or give --key-file or --key.")
	errFile    = fault.New(fault.Invalid, "file_unreadable", "The file cannot be read.")
	errStopped = fault.New(fault.Unavailable, "interrupted", "Interrupted. It is unknown whether the command took effect.")
)

// exitCodes map the kind of an error to an exit code.
var exitCodes = map[fault.Kind]int{
	fault.Invalid:         2,
	fault.Unprocessable:   2,
	fault.Unauthenticated: 3,
	fault.Denied:          4,
	fault.NotFound:        5,
	fault.Exists:          6,
	fault.Precondition:    6,
	fault.Conflict:        7,
	fault.Throttled:       8,
	fault.Unavailable:     9,
	fault.Internal:        1,
}

// invocation is one run of the command line.
type invocation struct {
	client clientConfig
	getenv func(string) string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	parsed bool // the command line was parsed
}

// Run executes one command line and returns the exit code: 0, or one for
// the kind of the error.
func Run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &invocation{getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if !a.parsed && !isFault(err) {
		err = errUsage.Withf("%s. Try --help.", firstUpper(misread(err)))
	}
	a.report(err)
	var f *fault.Error
	if !errors.As(err, &f) {
		return exitCodes[fault.Internal]
	}
	code, known := exitCodes[f.Kind]
	if !known { // of a newer service
		return exitCodes[fault.Internal]
	}
	return code
}

func isFault(err error) bool {
	var f *fault.Error
	return errors.As(err, &f)
}

// misread says what is wrong with a command line, without quoting its values.
func misread(err error) string {
	var wrong *pflag.InvalidValueError
	if !errors.As(err, &wrong) {
		return beforeSecrets(err.Error())
	}
	f := wrong.GetFlag()
	if takes := settings.Takes(f); takes != "" {
		return "--" + f.Name + " must be " + takes
	}
	return "--" + f.Name + " does not accept this value"
}

// beforeSecrets removes the argument that pflag quotes in full after an unknown
// shorthand.
func beforeSecrets(s string) string {
	s, _, _ = strings.Cut(s, " in -")
	return strings.TrimRight(s, ".\n")
}

func firstUpper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// report prints the error: a sentence and its code, or a problem document as JSON.
func (a *invocation) report(err error) {
	var f *fault.Error
	known := errors.As(err, &f)
	if a.client.JSON {
		p := fault.Problem{Kind: fault.Internal, Code: fault.ErrInternal.Code, Status: fault.Internal.Status(), Detail: err.Error()}
		if known {
			p = f.Problem()
			p.Detail = err.Error()
		}
		if b, err := json.Marshal(p); err == nil {
			fmt.Fprintf(a.stderr, "%s\n", b)
			return
		}
	}
	if !known {
		fmt.Fprintln(a.stderr, clean(err.Error()))
		return
	}
	fmt.Fprintf(a.stderr, "%s (%s)\n", clean(err.Error()), f.Code)
	a.details(f)
}

// clean removes control characters of foreign text, which could control the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t':
			return ' '
		case unicode.IsControl(r), r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

func (a *invocation) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "credstream",
		Short:         "Manages the credentials of integration flows",
		Version:       app.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := cmd.ValidateRequiredFlags(); err != nil { // cobra would check them only later
				return err
			}
			a.parsed = true
			return settings.FromEnvironment(cmd.Flags(), a.getenv)
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	serve := app.Command(a.getenv)
	serve.Args = arguments()
	root.AddCommand(
		serve,
		a.componentCommand(),
		a.credentialCommand(),
		a.connectCommand(),
		a.oauthClientCommand(),
		a.authClientCommand(),
		a.connectorCommand(),
		a.throttleCommand(),
		a.webhookCommand(),
		a.exportCommand(),
		a.importCommand(),
		a.backupCommand(),
		a.restoreCommand(),
		a.oauthCommand(),
		a.flowCommand(),
		a.queueCommand(),
		a.accessCommand(),
		a.leaseCommand(),
		a.eventsCommand(),
		a.viewsCommand(),
		a.tenantCommand(),
		a.keyCommand(),
		a.roleCommand(),
		a.keysCommand(),
		a.kmsCommand(),
		a.healthCommand(),
		a.demoCommand(),
		a.versionCommand(),
	)
	return root
}

// group is a noun, which only groups its verbs. Verbs that call a
// service get its flags.
func (a *invocation) group(noun, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: noun, Short: short,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return errUsage.Withf("%s has no such command. Try credstream %s --help.", firstUpper(noun), noun)
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	settings.Bind(cmd.PersistentFlags(), &a.client)
	cmd.AddCommand(verbs...)
	return cmd
}

// arguments requires as many arguments as there are names.
func arguments(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(names) {
			return nil
		}
		takes := "no arguments"
		if len(names) > 0 {
			takes = strings.Join(names, " and ")
		}
		return errUsage.Withf("%s requires %s. Try --help.", cmd.CommandPath(), takes)
	}
}

// api is the client of the service that the flags name.
func (a *invocation) api() (*client.Client, error) {
	key, err := a.key()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{URL: a.client.Server, Key: key, Tenant: a.client.Tenant})
}

// key is the API key that the flags name.
func (a *invocation) key() (string, error) {
	if a.client.Key != "" {
		return a.client.Key, nil
	}
	if a.client.KeyFile == "" {
		return "", errNoKey
	}
	b, err := a.secretFile(a.client.KeyFile)
	if err != nil {
		return "", err
	}
	key := strings.TrimSpace(string(b))
	if key == "" || strings.ContainsAny(key, " \t\r\n") {
		return "", errFile.Withf("The file %s does not contain exactly one API key.", a.client.KeyFile)
	}
	return key, nil
}

// maxFile bounds the input from a file or standard input.
const maxFile = 1 << 20

// secretFile reads a file that holds secrets, or standard input for "-", and
// warns if other users of the machine can read it too.
func (a *invocation) secretFile(path string) ([]byte, error) {
	if path != "-" {
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			fmt.Fprintf(a.stderr, "Warning: other users of this machine can read %s. Run chmod 600 on it.\n", clean(path))
		}
	}
	return a.file(path)
}

// file reads a file, or standard input for "-".
func (a *invocation) file(path string) ([]byte, error) { return a.fileUpTo(path, maxFile) }

// fileUpTo is file with another bound, in bytes.
func (a *invocation) fileUpTo(path string, most int) ([]byte, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("%w (%w)", errFile, err)
		}
		defer func() { _ = f.Close() }() // only read
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, int64(most)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w (%w)", errFile, err)
	case len(b) > most:
		return nil, errFile.Withf("The file is larger than %d MiB.", most>>20)
	}
	return b, nil
}

func (a *invocation) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: arguments(),
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(a.stdout, "credstream %s\n", app.Version)
			return err
		},
	}
}
