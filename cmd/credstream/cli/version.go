package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/cmd/credstream/app"
)

// build is what a program knows of how it was built.
type build struct {
	Version  string   `json:"version"`
	Go       string   `json:"go"`
	Platform string   `json:"platform"`           // such as linux/amd64
	Commit   string   `json:"commit,omitempty"`   // absent if it was not built from a Git work tree
	Time     string   `json:"time,omitempty"`     // of the commit
	Modified bool     `json:"modified,omitempty"` // the work tree had changes that are not in the commit
	Modules  []module `json:"modules"`            // that the program contains
}

type module struct {
	Path    string `json:"path"`
	Version string `json:"version"`
	Sum     string `json:"sum,omitempty"` // as in go.sum; absent for one from a folder
}

func buildOf(info *debug.BuildInfo) build {
	b := build{Version: app.Version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Modules: []module{}}
	if info == nil {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Modules = append(b.Modules, module{m.Path, m.Version, m.Sum})
	}
	return b
}

func (a *invocation) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: arguments(),
		Long: "Print the version. With --json also the commit, the version of Go, and the modules that the program contains.",
		RunE: func(*cobra.Command, []string) error {
			if a.client.JSON {
				info, _ := debug.ReadBuildInfo() // absent from a program that was built without modules
				return a.json(buildOf(info))
			}
			_, err := fmt.Fprintf(a.stdout, "credstream %s\n", app.Version)
			return err
		},
	}
	cmd.Flags().BoolVar(&a.client.JSON, "json", false, "print JSON")
	return cmd
}
