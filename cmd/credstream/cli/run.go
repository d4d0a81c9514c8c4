// Package cli is the command line: verbs that call a service, and the verbs that run it.
package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/cmd/credstream/app"
	"github.com/credstream/credstream/cmd/credstream/settings"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// Errors of the command line.
var (
	errUsage      = fault.New(fault.Invalid, "usage", "Invalid command line.")
	errNoKey      = fault.New(fault.Unauthenticated, "key_missing", "An API key is required: set CREDSTREAM_KEY, or give --key-file, --key or --client-cert.")
	errFile       = fault.New(fault.Invalid, "file_unreadable", "The file cannot be read.")
	errCA         = fault.New(fault.Invalid, "ca_invalid", "The CA file cannot be used.")
	errClientCert = fault.New(fault.Invalid, "client_certificate_invalid", "The client certificate cannot be used.")
	errStopped    = fault.New(fault.Unavailable, "interrupted", "Interrupted. It is unknown whether the command took effect.")
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
	otherTenant string // that a command is about, besides --tenant
	client      clientConfig
	getenv      func(string) string
	stdin       io.Reader
	stdout      io.Writer
	stderr      io.Writer
	parsed      bool // the command line was parsed

	documents int // printed with --output yaml
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
	if errors.Is(err, service.ErrTenantNotFound) && a.otherTenant != "" {
		err = service.ErrTenantNotFound.Withf("The tenant %s does not exist, or your API key is not granted the tenant %s of --tenant.", clean(a.otherTenant), clean(a.client.Tenant))
	} else if errors.Is(err, service.ErrTenantNotFound) && a.client.Tenant != "" {
		err = service.ErrTenantNotFound.Withf("The tenant %s does not exist, or your API key is not granted it. Choose a tenant with --tenant or CREDSTREAM_TENANT.", clean(a.client.Tenant))
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
			if err := settings.FromEnvironment(cmd.Flags(), a.getenv); err != nil {
				return err
			}
			return a.chooseOutput()
		},
	}
	noun(root)
	root.SetHelpCommand(helpCommand())
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
		a.expiryCommand(),
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
		a.logCommand(),
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
	a.complete(root)
	addExamples(root)
	return root
}

// noun makes cmd a command that only groups its verbs.
func noun(cmd *cobra.Command) *cobra.Command {
	cmd.SuggestionsMinimumDistance = 2 // one pair of letters in the wrong order
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return cmd.Help()
	}
	return cmd
}

// unknownCommand returns the error for a name that no verb of cmd has. It suggests similar names,
// but does not quote the name, which may be a secret in the wrong place.
func unknownCommand(cmd *cobra.Command, name string) error {
	similar := ""
	if names := cmd.SuggestionsFor(name); len(names) > 0 {
		similar = " Did you mean " + strings.Join(names, " or ") + "?"
	}
	return errUsage.Withf("%s has no such command.%s Try %s --help.", firstUpper(cmd.Name()), similar, cmd.CommandPath())
}

// helpCommand is the verb help. Unlike cobra's own, it fails for an unknown command.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND...]", Short: "Print the help of a command", Example: "  credstream help credential create", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, rest, err := cmd.Root().Find(args)
			if err != nil {
				return err
			}
			if len(rest) > 0 {
				return unknownCommand(target, rest[0])
			}
			target.InitDefaultHelpFlag()
			return target.Help()
		},
	}
}

// group is a noun whose verbs call a service: they get its flags.
func (a *invocation) group(name, short string, verbs ...*cobra.Command) *cobra.Command {
	cmd := noun(&cobra.Command{Use: name, Short: short})
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
	trust, err := a.tls()
	if err != nil {
		return nil, err
	}
	return client.New(client.Config{URL: a.client.Server, Key: key, Tenant: a.client.Tenant, TLS: trust})
}

// tls is the configuration of encrypted connections to the service; nil for the default.
func (a *invocation) tls() (*tls.Config, error) {
	c := a.client
	if c.CA == "" && c.ClientCert == "" && c.ClientKey == "" {
		return nil, nil
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CA != "" {
		pem, err := a.file(c.CA)
		if err != nil {
			return nil, err
		}
		if cfg.RootCAs, err = x509.SystemCertPool(); err != nil {
			cfg.RootCAs = x509.NewCertPool()
		}
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errCA.Withf("The file %s of --ca contains no certificate in PEM form.", c.CA)
		}
	}
	if c.ClientCert != "" || c.ClientKey != "" {
		pair, err := tls.LoadX509KeyPair(c.ClientCert, c.ClientKey)
		if err != nil {
			return nil, errClientCert.Withf("--client-cert and --client-key are not a certificate and its key: %v.", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// key is the API key that the flags name.
func (a *invocation) key() (string, error) {
	if a.client.Key != "" {
		return a.client.Key, nil
	}
	if a.client.KeyFile == "" {
		if a.client.ClientCert != "" {
			return "", nil // the certificate stands for a key
		}
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
	return a.secretFileUpTo(path, maxFile)
}

// secretFileUpTo is secretFile with another bound, in bytes.
func (a *invocation) secretFileUpTo(path string, most int) ([]byte, error) {
	if path != "-" {
		info, err := os.Stat(path)
		if err == nil && info.IsDir() {
			return nil, errFile.Withf("%s is a folder. Give a file, or - for standard input.", clean(path))
		}
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			fmt.Fprintf(a.stderr, "Warning: other users of this machine can read %s. Run chmod 600 on it.\n", clean(path))
		}
	}
	return a.fileUpTo(path, most)
}

// jsonFile is file for a JSON document. Errors: errFileNotJSON, which says where, but does not quote
// the file, which may hold secrets.
func (a *invocation) jsonFile(path string) ([]byte, error) {
	b, err := a.file(path)
	if err != nil {
		return nil, err
	}
	return b, checkJSON(path, b)
}

// secretJSON is jsonFile for a file with secrets.
func (a *invocation) secretJSON(path string) ([]byte, error) {
	b, err := a.secretFile(path)
	if err != nil {
		return nil, err
	}
	return b, checkJSON(path, b)
}

// errFileNotJSON refuses a file that is not one JSON document in UTF-8.
var errFileNotJSON = fault.New(fault.Invalid, "file_not_json", "The file is not JSON in UTF-8.")

func checkJSON(path string, b []byte) error {
	refused := func(format string, args ...any) error {
		name := "The file " + clean(path)
		if path == "-" {
			name = "The standard input"
		}
		return errFileNotJSON.Withf("%s %s", name, fmt.Sprintf(format, args...))
	}
	switch {
	case bytes.HasPrefix(b, []byte("\xef\xbb\xbf")):
		return refused("begins with a byte order mark. Save it as UTF-8 without one.")
	case bytes.HasPrefix(b, []byte("\xff\xfe")), bytes.HasPrefix(b, []byte("\xfe\xff")), bytes.IndexByte(b[:min(len(b), 4)], 0) >= 0:
		return refused("is in UTF-16. Save it as UTF-8.")
	case len(bytes.TrimSpace(b)) == 0:
		return refused("is empty.")
	}
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return refused("is not in UTF-8 at %s: perhaps it is in Latin-1. Save it as UTF-8.", place(b, i))
		}
		i += size
	}
	// A name that appears twice is left to the service, which points to it.
	var value jsontext.Value
	err := jsonv2.Unmarshal(b, &value, jsontext.AllowDuplicateNames(true))
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return refused("is not JSON: it is malformed at %s.", place(b, int(syntax.ByteOffset)))
	}
	if err != nil {
		return refused("is not JSON.")
	}
	return nil
}

// place returns the line and column of a byte, both from 1; columns count characters.
func place(b []byte, offset int) string {
	before := b[:min(offset, len(b))]
	start := bytes.LastIndexByte(before, '\n') + 1
	return fmt.Sprintf("line %d, column %d", bytes.Count(before, []byte("\n"))+1, utf8.RuneCount(before[start:])+1)
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
