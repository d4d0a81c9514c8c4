package cli_test

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/cmd/credstream/cli"
)

// Every verb has an example, and every example of credstream is a command line that it accepts.
func TestExamples(t *testing.T) {
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, child := range cmd.Commands() {
			visit(child)
		}
		if cmd.HasSubCommands() && cmd.Example == "" {
			return
		}
		if cmd.Example == "" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			at := strings.LastIndex(line, "credstream ")
			if at < 0 {
				t.Errorf("%s: not a command line: %q", cmd.CommandPath(), line)
				continue
			}
			words := fields(strings.TrimSuffix(line[at+len("credstream "):], "\n"))
			root := cli.Root() // flags keep what was parsed
			found, rest, err := root.Find(words)
			if err != nil || found.CommandPath() != cmd.CommandPath() {
				t.Errorf("the example %q of %s names %v, %v", line, cmd.CommandPath(), found.CommandPath(), err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ValidateArgs(found.Flags().Args()); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			if err := found.ValidateRequiredFlags(); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
	}
	visit(cli.Root())
}

// fields splits a command line; double quotes hold words together.
func fields(line string) (words []string) {
	quoted, word := false, ""
	for _, r := range line + " " {
		switch {
		case r == '"':
			quoted = !quoted
		case r == ' ' && !quoted:
			if word != "" {
				words = append(words, word)
			}
			word = ""
		default:
			word += string(r)
		}
	}
	return words
}
