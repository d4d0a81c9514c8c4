package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *invocation) roleCommand() *cobra.Command {
	remove := a.one("delete NAME", "Delete a role; refused while API keys have it", "Deleted role %s.", (*client.Client).DeleteRole)
	remove.Args = arguments("NAME")
	return a.group("role", "Define the tenant's own roles: named sets of permissions for API keys", a.roleDefine(), a.roleChange(), a.roleList(), remove)
}

func bindRole(cmd *cobra.Command) (title *string, permissions *[]string) {
	return cmd.Flags().String("title", "", "`TEXT` that describes the role"),
		cmd.Flags().StringSlice("permission", nil, "`PERMISSION` of the role, such as credentials.get; repeatable")
}

func (a *invocation) roleDefine() *cobra.Command {
	cmd := &cobra.Command{Use: "define NAME --permission PERMISSION...", Short: "Define a role; your key needs each of its permissions, or the role ADMINISTRATOR", Args: arguments("NAME")}
	title, permissions := bindRole(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := a.api()
		if err != nil {
			return err
		}
		done, err := api.DefineRole(cmd.Context(), args[0], *title, *permissions)
		if err != nil {
			return err
		}
		return a.answer(done, "Defined role %s. Issue a key with it: credstream key issue --role %s", done.ID, done.ID)
	}
	required(cmd, "permission")
	return cmd
}

func (a *invocation) roleChange() *cobra.Command {
	cmd := &cobra.Command{
		Use: "change NAME", Short: "Change a role", Args: arguments("NAME"),
		Long: "Change the title of a role, or its permissions: the given ones replace the current ones.\nAfter an API key was issued with the role, its permissions cannot be changed.",
	}
	title, permissions := bindRole(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		api, err := a.api()
		if err != nil {
			return err
		}
		if !cmd.Flags().Changed("title") {
			title = nil
		}
		done, err := api.ChangeRole(cmd.Context(), args[0], title, *permissions)
		if err != nil {
			return err
		}
		return a.answer(done, "Changed role %s.", done.ID)
	}
	cmd.MarkFlagsOneRequired("title", "permission")
	return cmd
}

func (a *invocation) roleList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenant's own roles", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := []client.Role{}
			var rows [][]string
			for r, err := range api.Roles(cmd.Context()) {
				if err != nil {
					return err
				}
				list = append(list, r)
				granted := "no"
				if r.Granted {
					granted = "yes"
				}
				rows = append(rows, []string{r.Name, r.Title, strings.Join(r.Permissions, ","), granted, when(r.UpdatedAt)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"roles": list})
			}
			return a.list([]string{"NAME", "TITLE", "PERMISSIONS", "KEYS ISSUED", "UPDATED"}, rows)
		},
	}
}
