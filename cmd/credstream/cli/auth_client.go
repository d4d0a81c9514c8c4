package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *invocation) authClientCommand() *cobra.Command {
	return a.group("auth-client", "Manage auth clients, which hold the OAuth client of several components",
		a.authClientCreate(), a.authClientChange(), a.authClientList(), a.authClientShow(), a.authClientDelete(), a.authClientReveal())
}

func bindCredentialsFile(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "credentials-file", "", "`FILE` with the credentials as a JSON object; - for standard input")
}

// authCredentials reads credentials from the file; none without a file.
func (a *invocation) authCredentials(file string) (client.Keys, error) {
	if file == "" {
		return client.Keys{}, nil
	}
	b, err := a.secretFile(file)
	if err != nil {
		return client.Keys{}, err
	}
	return client.KeysJSON(b)
}

func (a *invocation) authClientCreate() *cobra.Command {
	var in client.NewAuthClient
	var file string
	cmd := &cobra.Command{
		Use: "create --name NAME --component ID...", Short: "Create an auth client for several components",
		Long: "Create an auth client for several components. With type oauth2 and scope tenant, it also defines the OAuth\n" +
			"clients of its components: all of them, or none. Other auth clients are stored but not used yet.",
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			api, err := a.api()
			if err != nil {
				return err
			}
			if in.Credentials, err = a.authCredentials(file); err != nil {
				return err
			}
			done, err := api.CreateAuthClient(cmd.Context(), in)
			if err != nil {
				return err
			}
			return a.answer(done, "Created auth client %s for %s.", done.ID, strings.Join(in.Components, ", "))
		},
	}
	f := cmd.Flags()
	f.StringVar(&in.Name, "name", "", "display `NAME`")
	f.StringVar(&in.Type, "type", "oauth2", "`TYPE`: oauth2, basic, api_key or noauth")
	f.StringSliceVar(&in.Components, "component", nil, "component `ID`; repeatable")
	f.StringVar(&in.Scope, "scope", client.ScopeTenant, "`SCOPE` of the auth client: workspace, contract, tenant or global")
	f.StringVar(&in.ScopeID, "scope-id", "", "`ID` of the workspace or contract")
	bindCredentialsFile(cmd, &file)
	required(cmd, "name", "component")
	return cmd
}

func (a *invocation) authClientChange() *cobra.Command {
	var in client.AuthClientChange
	var file string
	cmd := &cobra.Command{
		Use: "change ID", Short: "Change the name, the components, or individual credentials", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			api, err := a.api()
			if err != nil {
				return err
			}
			if in.Credentials, err = a.authCredentials(file); err != nil {
				return err
			}
			done, err := api.ChangeAuthClient(cmd.Context(), args[0], in)
			if err != nil {
				return err
			}
			return a.answer(done, "Changed auth client %s.", done.ID)
		},
	}
	cmd.Flags().StringVar(&in.Name, "name", "", "new `NAME`; unchanged when absent")
	cmd.Flags().StringSliceVar(&in.Components, "component", nil, "component `ID`, repeatable; replaces all components; unchanged when absent")
	bindCredentialsFile(cmd, &file)
	return cmd
}

func (a *invocation) authClientList() *cobra.Command {
	var filter client.AuthClientFilter
	cmd := &cobra.Command{
		Use: "list", Short: "List the auth clients that are visible to the tenant", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list, rows := []client.AuthClient{}, [][]string{}
			for c, err := range api.AuthClients(cmd.Context(), filter) {
				if err != nil {
					return err
				}
				list = append(list, c)
				rows = append(rows, []string{c.ID, c.Name, c.Type, scopeOf(c), strings.Join(componentsOf(c), " "), when(c.UpdatedAt)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"auth_clients": list})
			}
			return a.list([]string{"ID", "NAME", "TYPE", "SCOPE", "COMPONENTS", "UPDATED"}, rows)
		},
	}
	f := cmd.Flags()
	f.StringVar(&filter.Component, "component", "", "filter by component `ID`")
	f.StringVar(&filter.Scope, "scope", "", "only those visible in this `SCOPE`: workspace, contract, tenant or global")
	f.StringVar(&filter.ScopeID, "scope-id", "", "`ID` of the workspace or contract")
	return cmd
}

func scopeOf(c client.AuthClient) string { return strings.TrimSpace(c.Scope + " " + c.ScopeID) }

func componentsOf(c client.AuthClient) (ids []string) {
	for _, of := range c.Components {
		ids = append(ids, of.Component)
	}
	return ids
}

func (a *invocation) authClientShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one auth client; secrets are masked", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			c, err := api.GetAuthClient(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(c)
			}
			pairs := [][2]string{{"id", c.ID}, {"name", c.Name}, {"type", c.Type}, {"scope", scopeOf(c)}}
			for _, of := range c.Components {
				managed := "manages no OAuth client"
				if of.OAuthClient != "" {
					managed = "OAuth client " + of.OAuthClient
				}
				pairs = append(pairs, [2]string{"component", of.Component + ", " + managed})
			}
			for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
				pairs = append(pairs, [2]string{"credentials." + name, fmt.Sprint(c.Credentials[name])})
			}
			if !c.Settled {
				pairs = append(pairs, [2]string{"state", "the last change has not been applied to its OAuth clients yet"})
			}
			return a.pairs(append(pairs, [2]string{"created", when(c.CreatedAt)}, [2]string{"updated", when(c.UpdatedAt)}))
		},
	}
}

func (a *invocation) authClientDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Delete an auth client and the OAuth clients that it manages; refused while a flow includes one of its components", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.DeleteAuthClient(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(done, "Deleted auth client %s.", done.ID)
		},
	}
}

func (a *invocation) authClientReveal() *cobra.Command {
	return &cobra.Command{
		Use: "reveal ID", Short: "Reveal the clear credentials of an auth client; the access is audited first", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			credentials, err := api.RevealAuthClient(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, compact(credentials))
			return err
		},
	}
}
