package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/credstream/credstream/client"
)

// ofTenants has do run for the tenant of the invocation, or for all tenants.
func (a *invocation) ofTenants(ctx context.Context, all bool, do func(*client.Client, string) error) error {
	api, err := a.api()
	if err != nil {
		return err
	}
	if !all {
		return do(api, a.client.Tenant)
	}
	tenants, err := api.ListTenants(ctx)
	if err != nil {
		return err
	}
	defer func(tenant string) { a.client.Tenant = tenant }(a.client.Tenant)
	for _, t := range tenants {
		if t.State != "" { // erased
			continue
		}
		a.client.Tenant = t.ID
		if api, err = a.api(); err == nil {
			err = do(api, t.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func kms(keys client.EncryptionKeys) string {
	if keys.PreviousKMS {
		return "previous"
	}
	return "current"
}

func (a *invocation) keysCommand() *cobra.Command {
	return a.group("keys", "Rotate the encryption keys of tenants", a.keysRotate(), a.keysRewrap(), a.keysStatus())
}

func (a *invocation) keysRotate() *cobra.Command {
	var all, wait bool
	cmd := &cobra.Command{
		Use: "rotate", Short: "Replace the encryption key of a tenant", Args: arguments(),
		Long: "Replace the encryption key of a tenant: the service creates a new key, encrypts all secrets\n" +
			"again with it, and then destroys the earlier key. Secrets can be used meanwhile.",
		Example: "  credstream keys rotate --tenant acme\n  credstream keys rotate --all --wait",
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := a.ofTenants(cmd.Context(), all, func(api *client.Client, tenant string) error {
				done, err := api.RotateEncryptionKey(cmd.Context())
				if err != nil {
					return err
				}
				return a.answer(done, "The encryption key of tenant %s is being rotated.", tenant)
			})
			if err != nil || !wait {
				return err
			}
			return a.ofTenants(cmd.Context(), all, func(api *client.Client, tenant string) error {
				for {
					keys, err := api.EncryptionKeys(cmd.Context())
					if err != nil {
						return err
					}
					if !keys.Rotating {
						return a.answer(keys, "The encryption key of tenant %s was rotated.", tenant)
					}
					select {
					case <-time.After(time.Second):
					case <-cmd.Context().Done():
						return errStopped.Withf("Interrupted. The service continues the rotation: credstream keys status.")
					}
				}
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "rotate the keys of all tenants")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the earlier keys are destroyed")
	return cmd
}

func (a *invocation) keysRewrap() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "rewrap", Short: "Wrap the encryption keys of a tenant with another KMS key", Args: arguments(),
		Long: "Wrap the encryption keys of a tenant with the KMS key of serve --kms, if they are wrapped with that of\n" +
			"serve --kms-previous. Secrets are not encrypted again.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ofTenants(cmd.Context(), all, func(api *client.Client, tenant string) error {
				done, err := api.RewrapEncryptionKeys(cmd.Context())
				if err != nil {
					return err
				}
				return a.answer(done, "The encryption keys of tenant %s are wrapped with the current KMS key.", tenant)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "wrap the keys of all tenants")
	return cmd
}

func (a *invocation) keysStatus() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "status", Short: "List the encryption keys of a tenant and how many secrets each of them encrypts", Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, rows := map[string]client.EncryptionKeys{}, [][]string{}
			err := a.ofTenants(cmd.Context(), all, func(api *client.Client, tenant string) error {
				keys, err := api.EncryptionKeys(cmd.Context())
				status[tenant] = keys
				for _, k := range keys.Keys {
					rows = append(rows, []string{tenant, k.ID, k.State, strconv.Itoa(k.Secrets), kms(keys)})
				}
				return err
			})
			if err != nil {
				return err
			}
			if a.client.JSON {
				return a.json(status)
			}
			return a.list([]string{"TENANT", "KEY", "STATE", "SECRETS", "KMS KEY"}, rows)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list the keys of all tenants")
	return cmd
}
