package cli

import (
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Root returns all commands.
func Root() *cobra.Command {
	a := &invocation{getenv: func(string) string { return "" }, stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard}
	root := a.root()
	root.InitDefaultHelpCmd()
	return root
}
