package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *app) keyCommand() *cobra.Command {
	return a.group("key", "Issue and revoke API keys", a.keyIssue(), a.keyList(), a.keyRevoke())
}

func (a *app) keyIssue() *cobra.Command {
	var in client.IssueAPIKey
	cmd := &cobra.Command{
		Use: "issue --role ROLE", Short: "Issue an API key, which is printed once", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			issued, err := api.IssueAPIKey(cmd.Context(), in)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(issued)
			}
			fmt.Fprintf(a.stderr, "Issued key %s. This is the only time it is shown:\n", clean(issued.ID))
			_, err = fmt.Fprintln(a.stdout, clean(issued.Key))
			return err
		},
	}
	cmd.Flags().StringVar(&in.Role, "role", "", "`ROLE`: ADMINISTRATOR, OPERATOR, FLOW_ENGINE or AUDITOR")
	cmd.Flags().StringVar(&in.Name, "name", "", "`NAME` for people")
	cmd.Flags().StringSliceVar(&in.Tenants, "tenants", nil, "`TENANTS` it may name, with commas between, or *; the tenant of this call when absent")
	required(cmd, "role")
	return cmd
}

func (a *app) keyList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenant's API keys, never the keys themselves", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			keys, err := api.ListAPIKeys(cmd.Context(), 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(struct {
					Keys []client.APIKey `json:"keys"`
				}{keys})
			}
			var rows [][]string
			for _, k := range keys {
				state := "valid"
				if k.Revoked {
					state = "revoked"
				}
				rows = append(rows, []string{k.ID, k.Name, k.Role, strings.Join(k.Tenants, ","), state, when(k.IssuedAt)})
			}
			return a.list([]string{"ID", "NAME", "ROLE", "TENANTS", "STATE", "ISSUED"}, rows)
		},
	}
}

func (a *app) keyRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Short: "Revoke an API key", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.RevokeAPIKey(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(done, "Revoked key %s.", done.ID)
		},
	}
}
