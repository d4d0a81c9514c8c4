package cli

import (
	"context"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

func (a *invocation) connectorCommand() *cobra.Command {
	return a.group("connector", "Manage connectors and the secrets of their API keys",
		a.connectorPut(), a.connectorSetAPIKey(), a.connectorList(), a.connectorShow(),
		a.one("delete ID", "Delete a connector; the secret of its API key remains", "Deleted connector %s.", (*client.Client).DeleteConnector),
		a.group("secret", "Manage the secrets of connectors",
			a.connectorSecretPut(), a.connectorSecretRevert(), a.connectorSecretList(), a.connectorSecretShow(), a.connectorSecretReveal(),
			a.one("delete ID", "Delete a connector secret; refused while a connector points to it", "Deleted connector secret %s.", (*client.Client).DeleteConnectorSecret)))
}

// one is a verb that takes only an id.
func (a *invocation) one(use, short, done string, do func(*client.Client, context.Context, string, ...client.CommandOption) (client.Done, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			answer, err := do(api, cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(answer, done, answer.ID)
		},
	}
}

func (a *invocation) connectorPut() *cobra.Command {
	var id string
	var settings client.ConnectorSettings
	cmd := &cobra.Command{
		Use: "put", Short: "Create a connector, or replace the settings of an existing one", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.PutConnector(cmd.Context(), id, settings)
			if err != nil {
				return err
			}
			return a.answer(done, "Connector %s: %s.", done.ID, done.Status)
		},
	}
	f := cmd.Flags()
	f.StringVar(&id, "id", "", "connector `ID`; generated when absent")
	f.StringVar(&settings.Name, "name", "", "display `NAME`")
	f.StringVar(&settings.Description, "description", "", "description `TEXT`")
	f.StringVar(&settings.IndexName, "index-name", "", "search `INDEX` that the connector fills")
	f.StringVar(&settings.ServiceType, "service-type", "", "`TYPE` of the data source")
	f.StringVar(&settings.Language, "language", "", "`LANGUAGE` of the data")
	f.BoolVar(&settings.Native, "native", false, "managed connector: it authenticates with its API key secret")
	bindAPIKey(cmd, &settings.APIKeyID, &settings.SecretID)
	return cmd
}

func bindAPIKey(cmd *cobra.Command, id, secret *string) {
	cmd.Flags().StringVar(id, "api-key-id", "", "`ID` of its API key; unchanged when absent")
	cmd.Flags().StringVar(secret, "api-key-secret-id", "", "`ID` of the connector secret that holds the key; unchanged when absent")
}

func (a *invocation) connectorSetAPIKey() *cobra.Command {
	var key, secret string
	cmd := &cobra.Command{
		Use: "set-api-key ID", Short: "Set the id of a connector's API key, the secret that holds the key, or both", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.SetConnectorAPIKey(cmd.Context(), args[0], key, secret)
			if err != nil {
				return err
			}
			return a.answer(done, "Connector %s: %s.", done.ID, done.Status)
		},
	}
	bindAPIKey(cmd, &key, &secret)
	return cmd
}

func (a *invocation) connectorList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenant's connectors", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := []client.Connector{}
			var rows [][]string
			for c, err := range api.Connectors(cmd.Context()) {
				if err != nil {
					return err
				}
				list = append(list, c)
				rows = append(rows, []string{c.ID, c.Name, c.ServiceType, c.IndexName, c.APIKeyID, c.SecretID, when(c.UpdatedAt)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"connectors": list})
			}
			return a.list([]string{"ID", "NAME", "SERVICE TYPE", "INDEX", "API KEY", "SECRET", "UPDATED"}, rows)
		},
	}
}

func (a *invocation) connectorShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one connector", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			c, err := api.GetConnector(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(c)
			}
			return a.pairs([][2]string{
				{"id", c.ID},
				{"name", c.Name},
				{"description", c.Description},
				{"index name", c.IndexName},
				{"service type", c.ServiceType},
				{"language", c.Language},
				{"native", strconv.FormatBool(c.Native)},
				{"api key id", c.APIKeyID},
				{"api key secret id", c.SecretID},
				{"created", when(c.CreatedAt) + " by " + c.CreatedBy},
				{"updated", when(c.UpdatedAt)},
			})
		},
	}
}

func (a *invocation) connectorSecretPut() *cobra.Command {
	var id, file string
	cmd := &cobra.Command{
		Use: "put --secret-file FILE", Short: "Create a connector secret, or set a new value for an existing one", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := a.secretFile(file)
			if err != nil {
				return err
			}
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.PutConnectorSecret(cmd.Context(), id, client.NewOAuthSecret(strings.TrimRight(string(b), "\r\n")))
			if err != nil {
				return err
			}
			return a.answer(done, "Connector secret %s: %s, version %d.", done.ID, done.Status, done.Version)
		},
	}
	cmd.Flags().StringVar(&id, "id", "", "connector secret `ID`; generated when absent")
	cmd.Flags().StringVar(&file, "secret-file", "", "`FILE` with the value; - for standard input")
	required(cmd, "secret-file")
	return cmd
}

func (a *invocation) connectorSecretRevert() *cobra.Command {
	var version int
	cmd := &cobra.Command{
		Use: "revert ID --to-version N", Short: "Activate the value of an earlier version as a new version", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			done, err := api.RevertConnectorSecret(cmd.Context(), args[0], version)
			if err != nil {
				return err
			}
			return a.answer(done, "Reverted connector secret %s to version %d; it is now version %d.", done.ID, version, done.Version)
		},
	}
	cmd.Flags().IntVar(&version, "to-version", 0, "version `N` to revert to")
	required(cmd, "to-version")
	return cmd
}

func (a *invocation) connectorSecretList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tenant's connector secrets, without their values", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			list := []client.ConnectorSecret{}
			var rows [][]string
			for s, err := range api.ConnectorSecrets(cmd.Context()) {
				if err != nil {
					return err
				}
				list = append(list, s)
				rows = append(rows, []string{s.ID, strconv.Itoa(s.Version), when(s.UpdatedAt)})
			}
			if a.client.JSON {
				return a.json(map[string]any{"secrets": list})
			}
			return a.list([]string{"ID", "VERSION", "UPDATED"}, rows)
		},
	}
}

func (a *invocation) connectorSecretShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one connector secret, without its value, and the connectors that use it", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			s, err := api.GetConnectorSecret(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(s)
			}
			return a.pairs([][2]string{
				{"id", s.ID},
				{"version", strconv.Itoa(s.Version)},
				{"oldest version", strconv.Itoa(s.Oldest)},
				{"connectors", strings.Join(s.Connectors, ", ")},
				{"created", when(s.CreatedAt) + " by " + s.CreatedBy},
				{"updated", when(s.UpdatedAt)},
			})
		},
	}
}

func (a *invocation) connectorSecretReveal() *cobra.Command {
	return &cobra.Command{
		Use: "reveal ID", Short: "Reveal the value of a connector secret; the access is audited first", Args: arguments("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			api, err := a.api()
			if err != nil {
				return err
			}
			value, err := api.RevealConnectorSecret(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.answer(map[string]string{"value": value}, "%s", value)
		},
	}
}
