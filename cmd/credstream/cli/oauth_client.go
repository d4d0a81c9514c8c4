package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
)

var errSecretMissing = fault.New(fault.Invalid, "secret_missing",
	"Give the client secret with --secret-file FILE, or --secret-file - for standard input. Without it, a terminal prompts for it.")

func (a *invocation) oauthClientCommand() *cobra.Command {
	return a.group("oauth-client", "Manage the OAuth clients of components",
		a.clientDefine(), a.clientChange(), a.clientList(), a.clientShow(), a.clientDelete(), a.clientReveal())
}

func bindSecretFile(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "secret-file", "", "`FILE` with the client secret; - for standard input")
}

// clientSecret reads the secret from the file, or shows the target hosts and prompts for
// it: then revision is that of the displayed component.
func (a *invocation) clientSecret(ctx context.Context, api *client.Client, file, component string, revision *int) (client.OAuthSecret, error) {
	if file != "" {
		b, err := a.secretFile(file)
		return client.NewOAuthSecret(strings.TrimRight(string(b), "\r\n")), err
	}
	tty, ok := a.stdin.(*os.File)
	if !ok || !term.IsTerminal(int(tty.Fd())) {
		return client.OAuthSecret{}, errSecretMissing
	}
	// The caller may be allowed to define a client but not to see the component.
	if c, err := api.GetComponent(ctx, component, 0); err == nil {
		d, err := commands.ParseDescriptor(c.Descriptor)
		if err != nil {
			return client.OAuthSecret{}, err
		}
		*revision = cmp.Or(*revision, c.Revision)
		fmt.Fprintf(a.stderr, "The client secret goes to %s.\n", clean(strings.Join(d.OAuth2.SecretHosts(), ", ")))
	}
	s, err := a.ask(ctx, tty, commands.Field{Name: "client_secret", Label: "Client secret", Required: true, Secret: true})
	return client.NewOAuthSecret(s), err
}

func (a *invocation) clientDefine() *cobra.Command {
	var component, id, file, expires string
	var revision int
	var public bool
	var endpoints client.Endpoints
	cmd := &cobra.Command{
		Use: "define --component ID --client-id ID", Short: "Define the tenant's OAuth client of a component", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			var secret client.OAuthSecret
			if !public {
				if secret, err = a.clientSecret(cmd.Context(), api, file, component, &revision); err != nil {
					return err
				}
			}
			declared, err := expiry(expires)
			if err != nil {
				return err
			}
			done, err := api.DefineOAuthClient(cmd.Context(), component, id, secret, append(declared, client.ExpectRevision(revision), client.WithEndpoints(endpoints))...)
			if err != nil {
				return err
			}
			defined := struct {
				client.Done
				RedirectURI string `json:"redirect_uri,omitzero"`
			}{done, a.redirectURI(cmd.Context(), api, component)}
			if defined.RedirectURI == "" {
				return a.answer(defined, "Defined OAuth client %s of component %s.", done.ID, component)
			}
			return a.answer(defined, "Defined OAuth client %s of component %s. Register its redirect URI at the provider: %s",
				done.ID, component, defined.RedirectURI)
		},
	}
	cmd.Flags().StringVar(&component, "component", "", "component `ID`")
	cmd.Flags().StringVar(&id, "client-id", "", "client `ID` from the provider")
	cmd.Flags().BoolVar(&public, "public", false, "the client has no secret: the component declares token_endpoint_auth_method none")
	bindSecretFile(cmd, &file)
	bindExpires(cmd, &expires, "the secret expires")
	bindRevision(cmd, &revision)
	bindEndpoints(cmd, &endpoints)
	required(cmd, "component", "client-id")
	cmd.MarkFlagsMutuallyExclusive("public", "secret-file")
	return cmd
}

// bindEndpoints adds the flags for a component.json without usable endpoints.
func bindEndpoints(cmd *cobra.Command, e *client.Endpoints) {
	cmd.Flags().StringVar(&e.AuthURI, "auth-uri", "", "authorization endpoint `URI`, if component.json declares no usable endpoints")
	cmd.Flags().StringVar(&e.TokenURI, "token-uri", "", "token endpoint `URI`, if component.json declares no usable endpoints; to change endpoints, enter the client secret as well")
	cmd.Flags().StringVar(&e.RefreshURI, "refresh-uri", "", "`URI` of the endpoint that renews tokens, if it is not the token endpoint")
	cmd.Flags().StringVar(&e.RevocationURI, "revocation-uri", "", "revocation endpoint (`URI`)")
	cmd.Flags().StringVar(&e.Scopes, "scopes", "", "`SCOPES` to request, separated by spaces")
}

// redirectURI is the redirect URI of a component; "" when the caller may define a client
// but not see it.
func (a *invocation) redirectURI(ctx context.Context, api *client.Client, component string) string {
	uri, err := api.RedirectURI(ctx, component)
	if err != nil {
		return ""
	}
	return uri
}

func (a *invocation) clientChange() *cobra.Command {
	var id, file, expires string
	var ask bool
	var revision int
	var endpoints client.Endpoints
	cmd := &cobra.Command{
		Use: "change ID", Short: "Change the client id, the client secret, or both", Args: arguments("ID"),
		Long: "Change the client id, the client secret, or both. Entering the secret, even an unchanged one, approves\n" +
			"the current hosts of the component for it. Do this after the error oauth_client_hosts_changed, once you\n" +
			"have checked the host in its message.",
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			var secret client.OAuthSecret
			if file != "" || ask {
				var c client.OAuthClient
				if file == "" {
					if c, err = api.GetOAuthClient(cmd.Context(), args[0], 0); err != nil {
						return err
					}
				}
				if secret, err = a.clientSecret(cmd.Context(), api, file, c.Component, &revision); err != nil {
					return err
				}
			}
			declared, err := expiry(expires)
			if err != nil {
				return err
			}
			done, err := api.ChangeOAuthClient(cmd.Context(), args[0], id, secret, append(declared, client.ExpectRevision(revision), client.WithEndpoints(endpoints))...)
			if err != nil {
				return err
			}
			return a.answer(done, "Changed OAuth client %s.", done.ID)
		},
	}
	cmd.Flags().StringVar(&id, "client-id", "", "client `ID` from the provider; unchanged when absent")
	bindExpires(cmd, &expires, "the secret expires")
	cmd.Flags().BoolVar(&ask, "secret", false, "prompt for the client secret: a new one, or the same one again")
	bindSecretFile(cmd, &file)
	bindRevision(cmd, &revision)
	bindEndpoints(cmd, &endpoints)
	return cmd
}

func (a *invocation) clientList() *cobra.Command {
	var component string
	cmd := &cobra.Command{
		Use: "list", Short: "List the tenant's OAuth clients", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := []client.OAuthClient{}
			var rows [][]string
			for c, err := range api.OAuthClients(cmd.Context(), component) {
				if err != nil {
					return err
				}
				list = append(list, c)
				rows = append(rows, []string{c.ID, c.Component, c.ClientID, clientState(c), when(c.UpdatedAt)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"clients": list})
			}
			return a.list([]string{"ID", "COMPONENT", "CLIENT ID", "STATE", "UPDATED"}, rows)
		},
	}
	cmd.Flags().StringVar(&component, "component", "", "filter by component `ID`")
	return cmd
}

func clientState(c client.OAuthClient) string {
	switch {
	case c.Unusable:
		return "unusable: its component was deleted"
	case c.Used:
		return "used by flows"
	}
	return "not used"
}

func (a *invocation) clientShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one OAuth client; its secret is masked", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			c, err := api.GetOAuthClient(cmd.Context(), args[0], 0)
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(c)
			}
			return a.pairs(nonEmpty([][2]string{
				{"id", c.ID},
				{"component", c.Component},
				{"client id", c.ClientID},
				{"client secret", c.ClientSecret},
				{"redirect uri", a.redirectURI(cmd.Context(), api, c.Component)},
				{"state", clientState(c)},
				{"auth uri", c.Supplies.AuthURI},
				{"token uri", c.Supplies.TokenURI},
				{"refresh uri", c.Supplies.RefreshURI},
				{"revocation uri", c.Supplies.RevocationURI},
				{"scopes", c.Supplies.Scopes},
				{"created", when(c.CreatedAt) + " by " + c.CreatedBy},
				{"updated", when(c.UpdatedAt)},
			}))
		},
	}
}

func (a *invocation) clientDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Delete an OAuth client; refused while a flow includes the component", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.DeleteOAuthClient(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(done, "Deleted OAuth client %s.", done.ID)
		},
	}
}

func (a *invocation) clientReveal() *cobra.Command {
	return &cobra.Command{
		Use: "reveal ID", Short: "Reveal the secret of an OAuth client; the access is audited first", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			secret, err := api.RevealOAuthClient(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(map[string]string{"client_secret": secret}, "%s", secret)
		},
	}
}

func (a *invocation) credentialReveal() *cobra.Command {
	return &cobra.Command{
		Use: "reveal ID", Short: "Reveal the clear values of a credential; the access is audited first", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			keys, err := api.RevealCredential(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stdout, compact(keys))
			return err
		},
	}
}

func (a *invocation) componentSetEnv() *cobra.Command {
	var file string
	var revision int
	cmd := &cobra.Command{
		Use: "set-env ID --values-file FILE", Short: "Set the variables that a component's descriptor declares", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := a.secretFile(file)
			if err != nil {
				return err
			}
			values, err := client.KeysJSON(b)
			if err != nil {
				return err
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.SetComponentEnv(cmd.Context(), args[0], values, client.ExpectRevision(revision))
			if err != nil {
				return err
			}
			return a.answer(done, "The variables of component %s are set.", done.ID)
		},
	}
	cmd.Flags().StringVar(&file, "values-file", "", "`FILE` with a JSON object: variable name to string value; - for standard input")
	bindRevision(cmd, &revision)
	required(cmd, "values-file")
	return cmd
}
