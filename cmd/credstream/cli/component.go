package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/commands/presets"
	components "github.com/credstream/credstream/service/component"
)

func (a *invocation) componentCommand() *cobra.Command {
	return a.group("component", "Register, update and share components",
		a.componentRegister(), a.componentUpdate(), a.componentList(), a.componentShow(),
		a.componentChange("share", "Share a component with all tenants", "All tenants can use component %s.", (*client.API).ShareComponent),
		a.componentChange("unshare", "Stop sharing a component: only its owner can use it", "Only its owner can use component %s.", (*client.API).UnshareComponent),
		a.componentDelete(), a.componentSetEnv(), a.componentPresets(),
		a.whereUsed("List the flows that include a component", func(id string) client.FlowFilter { return client.FlowFilter{Component: id} }))
}

func (a *invocation) componentRegister() *cobra.Command {
	var file, preset, id string
	cmd := &cobra.Command{
		Use: "register {--file FILE | --preset NAME}", Short: "Register a component from its component.json, or from a preset", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var descriptor []byte
			if preset != "" {
				p, err := presets.Get(preset)
				if err != nil {
					return err
				}
				descriptor, file = p.Descriptor, p.Name
			} else {
				var err error
				if descriptor, err = a.jsonFile(file); err != nil {
					return err
				}
			}
			if id == "" {
				id = componentID(file, descriptor)
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.RegisterComponent(cmd.Context(), id, descriptor)
			if err != nil {
				return err
			}
			return a.answer(done, "Registered component %s, revision %d.", done.ID, done.Revision)
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`FILE` with the component.json; - for standard input")
	cmd.Flags().StringVar(&preset, "preset", "", "`NAME` of a preset, see component presets")
	cmd.Flags().StringVar(&id, "id", "", "component `ID`; derived from the name of the file or preset, or the title, when absent")
	cmd.MarkFlagsOneRequired("file", "preset")
	cmd.MarkFlagsMutuallyExclusive("file", "preset")
	return cmd
}

func (a *invocation) componentPresets() *cobra.Command {
	return &cobra.Command{
		Use: "presets [NAME]", Short: "List the component.json files of well-known APIs, or print one", Args: cobra.MaximumNArgs(1),
		Long: "List the component.json files of well-known APIs, or print one.\n\n" +
			"They follow the vendors' documentation and were not run against the vendors. Check one with your own keys before you rely on it.",
		Example: "  credstream component presets\n  credstream component presets slack",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				p, err := presets.Get(args[0])
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "%s\n", p.Descriptor)
				return err
			}
			if a.client.JSON {
				return a.json(presets.All())
			}
			var rows [][]string
			for _, p := range presets.All() {
				var d struct {
					Title string `json:"title"`
				}
				if err := json.Unmarshal(p.Descriptor, &d); err != nil {
					return fmt.Errorf("decode the preset %s: %w", p.Name, err)
				}
				rows = append(rows, []string{p.Name, d.Title, p.Sources.Request})
			}
			return a.list([]string{"NAME", "TITLE", "SOURCE OF THE DRY REQUEST"}, rows)
		},
	}
}

// componentID is the slug of the file's name, or of the title if the file is
// standard input or has the common name component.json.
func componentID(file string, descriptor []byte) string {
	name := strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))
	if file != "-" && name != "component" && name != "" {
		return components.Slug(name)
	}
	var d struct {
		Title string `json:"title"`
	}
	_ = json.Unmarshal(descriptor, &d) // the service validates it
	return components.Slug(d.Title)
}

func required(cmd *cobra.Command, flags ...string) {
	for _, f := range flags {
		if err := cmd.MarkFlagRequired(f); err != nil {
			panic(err) // a bug
		}
	}
}

func (a *invocation) componentUpdate() *cobra.Command {
	var file string
	var expected int
	cmd := &cobra.Command{
		Use: "update ID --file FILE", Short: "Update the component.json of a component, as a new revision", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			descriptor, err := a.jsonFile(file)
			if err != nil {
				return err
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.UpdateComponent(cmd.Context(), args[0], descriptor, client.ExpectRevision(expected))
			if err != nil {
				return err
			}
			return a.answer(done, "Updated component %s to revision %d.", done.ID, done.Revision)
		},
	}
	cmd.Flags().StringVar(&file, "file", "", "`FILE` with the component.json; - for standard input")
	bindRevision(cmd, &expected)
	required(cmd, "file")
	return cmd
}

func (a *invocation) componentList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the components that the tenant may use", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := client.ComponentList{Components: []client.Component{}}
			for c, err := range api.Components(cmd.Context(), client.ComponentFilter{Limit: 200}) {
				if err != nil {
					return err
				}
				list.Components = append(list.Components, c)
			}
			if a.client.JSON {
				return a.json(list)
			}
			var rows [][]string
			for _, c := range list.Components {
				rows = append(rows, []string{c.ID, c.Title, strconv.Itoa(c.Revision), visibility(c), strconv.Itoa(c.Credentials), when(c.UpdatedAt)})
			}
			return a.list([]string{"ID", "TITLE", "REVISION", "VISIBLE TO", "CREDENTIALS", "UPDATED"}, rows)
		},
	}
}

func visibility(c client.Component) string {
	switch {
	case c.Deleted:
		return "deleted"
	case c.Shared:
		return "all"
	}
	return "owner"
}

func (a *invocation) componentShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one component and its descriptor", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			c, err := api.GetComponent(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(c)
			}
			pairs := [][2]string{
				{"id", c.ID},
				{"title", c.Title},
				{"revision", strconv.Itoa(c.Revision)},
				{"visible to", visibility(c)},
				{"credentials", strconv.Itoa(c.Credentials)},
				{"created", when(c.CreatedAt)},
				{"updated", when(c.UpdatedAt)},
			}
			if c.CannotConnect != "" {
				pairs = append(pairs, [2]string{"cannot connect", c.CannotConnect})
			}
			if err := a.pairs(pairs); err != nil {
				return err
			}
			if err := c.Descriptor.Indent(); err != nil {
				return fmt.Errorf("indent the descriptor: %w", err)
			}
			_, err = fmt.Fprintf(a.stdout, "\n%s\n", c.Descriptor)
			return err
		},
	}
}

// componentCommand is a command that takes only a component's id.
type componentCommand = func(a *client.API, ctx context.Context, id string, opts ...client.CommandOption) (client.Done, error)

func (a *invocation) componentChange(verb, short, sentence string, change componentCommand) *cobra.Command {
	return &cobra.Command{
		Use: verb + " ID", Short: short, Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := change(&api.API, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(done, sentence, done.ID)
		},
	}
}

func (a *invocation) componentDelete() *cobra.Command {
	cmd := a.componentChange("delete", "Delete a component; its credentials remain", "Deleted component %s.", (*client.API).DeleteComponent)
	a.dryRun(cmd, func(ctx context.Context, api *client.Client, id string) (client.Impact, error) {
		return api.DeleteComponentDryRun(ctx, id)
	})
	return cmd
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}
