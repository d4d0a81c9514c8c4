package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *invocation) keyCommand() *cobra.Command {
	return a.group("key", "Issue and revoke API keys", a.keyIssue(), a.keyList(), a.keyRevoke())
}

func (a *invocation) keyIssue() *cobra.Command {
	var in client.IssueAPIKey
	cmd := &cobra.Command{
		Use: "issue --role ROLE | --permission PERMISSION...", Short: "Issue an API key; it is printed only once", Args: arguments(),
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
			if in.Certificate != "" {
				_, err = fmt.Fprintf(a.stdout, "Issued key %s. A client with a certificate for %s needs no other key.\n", clean(issued.ID), clean(in.Certificate))
				return err
			}
			fmt.Fprintf(a.stderr, "Issued key %s. It is shown only once:\n", clean(issued.ID))
			_, err = fmt.Fprintln(a.stdout, clean(issued.Key))
			return err
		},
	}
	cmd.Flags().StringVar(&in.Role, "role", "", "`ROLE`: ADMINISTRATOR, OPERATOR, FLOW_ENGINE, AUDITOR, or one of the tenant's own roles")
	cmd.Flags().StringSliceVar(&in.Permissions, "permission", nil, "`PERMISSION` of the key, in addition to those of --role if given, such as credentials.reveal; repeatable")
	cmd.Flags().StringVar(&in.Name, "name", "", "display `NAME`")
	cmd.Flags().StringVar(&in.Expires, "expires", "", "expiry `TIME`: 720h from now, or 2031-01-31T00:00:00Z; never when absent")
	cmd.Flags().StringSliceVar(&in.Addresses, "address", nil, "`CIDR` of a network from which the key may be used, such as 192.0.2.0/24; repeatable; every network when absent")
	cmd.Flags().StringSliceVar(&in.Tenants, "tenants", nil, "`TENANTS` that the key may use, separated by commas, or * for all; the tenant of this call when absent")
	cmd.Flags().StringArrayVar(&in.Components, "component", nil, "`ID` of a component: the key reaches only its credentials; repeatable")
	cmd.Flags().StringArrayVar(&in.Workspaces, "workspace", nil, "`ID` of a workspace: the key reaches only credentials created with it; repeatable")
	cmd.Flags().StringArrayVar(&in.Credentials, "credential", nil, "`ID` of a credential: the key reaches only this one; repeatable")
	cmd.Flags().StringVar(&in.Certificate, "certificate", "", "`NAME` in a client certificate that stands for the key, such as dns:engine.example.org, uri:spiffe://example.org/engine, email:ops@example.org or subject:CN=engine,O=Example; a secret key when absent")
	cmd.MarkFlagsOneRequired("role", "permission")
	return cmd
}

func (a *invocation) keyList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenant's API keys, without the keys themselves", Args: arguments(),
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
				rows = append(rows, []string{
					k.ID, k.Name, k.Role, strings.Join(k.Permissions, ","), strings.Join(k.Tenants, ","), keyState(k),
					when(k.IssuedAt), whenOr(k.Expires, "never"), strings.Join(k.Addresses, ","), keyScope(k), k.Certificate, whenOr(k.LastUsedAt, "-"),
				})
			}
			return a.list([]string{"ID", "NAME", "ROLE", "PERMISSIONS", "TENANTS", "STATE", "ISSUED", "EXPIRES", "ADDRESSES", "BOUND TO", "CERTIFICATE", "LAST USED"}, rows)
		},
	}
}

// keyScope lists what a key is bound to; "" when to nothing.
func keyScope(k client.APIKey) string {
	var bound []string
	for _, kind := range []struct {
		name string
		ids  []string
	}{{"component", k.Components}, {"workspace", k.Workspaces}, {"credential", k.Credentials}} {
		if len(kind.ids) > 0 {
			bound = append(bound, kind.name+"="+strings.Join(kind.ids, ","))
		}
	}
	return strings.Join(bound, " ")
}

func keyState(k client.APIKey) string {
	switch {
	case k.Revoked:
		return "revoked"
	case k.Expired:
		return "expired"
	}
	return "valid"
}

func whenOr(t time.Time, none string) string {
	if t.IsZero() {
		return none
	}
	return when(t)
}

func (a *invocation) keyRevoke() *cobra.Command {
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
