package credential

import (
	"context"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("credential.create", permission.CredentialsCreate, s.createCredential,
			"Verify keys by a dry request and save them as a new credential.").WithSecrets().Bounded(),
		change[commands.RenameCredential](s, "credential.rename", permission.CredentialsEdit, "Rename a credential.").OfCredential("id"),
		change[commands.SetVPNAgent](s, "credential.set-vpn-agent", permission.CredentialsEdit,
			"Set or clear the VPN agent through which a flow engine reaches the API of a credential.").OfCredential("id"),
		service.Command("credential.assign-throttle-policy", permission.CredentialsEdit, s.assignThrottlePolicy,
			"Assign a throttle policy to a credential in place of the one that it has, or clear it.").OfCredential("id"),
		change[commands.SetDescription](s, "credential.set-description", permission.CredentialsEdit, "Set or clear the description of a credential.").OfCredential("id"),
		service.Command("credential.update", permission.CredentialsEdit, s.updateCredential,
			"Change the description of a credential, its keys, or both together.").WithSecrets().Unqueued().OfCredential("id"),
		service.Command("credential.create-many", permission.CredentialsCreate, s.createMany,
			"Create up to 1000 credentials, one by one: a refused item does not affect the others.").WithSecrets().Unqueued().ItemByItem().Scan().Bounded(),
		service.Command("credential.update-many", permission.CredentialsEdit, s.updateMany,
			"Update up to 1000 credentials, one by one: those that are listed, or those of a filter.").WithSecrets().Unqueued().ItemByItem().Scan().Bounded(),
		service.Command("credential.delete-many", permission.CredentialsDelete, s.deleteMany,
			"Delete up to 1000 credentials, one by one: those that are listed, or those of a filter.").Unqueued().ItemByItem().Scan().Bounded(),
		service.Command("credential.replace-keys", permission.CredentialsEdit, s.replaceKeys,
			"Verify new keys by a dry request and activate them as a new version.").WithSecrets().Recalling(flow.RecallTried).OfCredential("id"),
		service.Command("credential.revert", permission.CredentialsEdit, s.revertCredential,
			"Verify the keys of an earlier version again and activate them as a new version. They are not shown.").OfCredential("id"),
		service.Command("credential.verify", permission.CredentialsEdit, s.verifyCredential,
			"Repeat the dry request with the current keys and record the outcome.").OfCredential("id"),
		service.Command("credential.delete", permission.CredentialsDelete, s.deleteCredential,
			"Delete a credential and erase its secrets.").Recalling(flow.RecallTried).OfCredential("id"),
		service.Command("auth_secret.create", permission.AuthSecretsCreate, s.createAuthSecret,
			"Verify keys by a dry request and save them as a new credential of a workspace.").WithSecrets().Unqueued().Bounded(),
		service.Command("auth_secret.rename", permission.AuthSecretsEdit, s.renameAuthSecret,
			"Rename a credential of a workspace.").OfCredential("id"),
		service.Command("auth_secret.replace-keys", permission.AuthSecretsEdit, s.replaceAuthSecretKeys,
			"Verify new keys for a credential of a workspace and activate them as a new version.").WithSecrets().Unqueued().OfCredential("id"),
		service.Command("auth_secret.refresh", permission.AuthSecretsRefresh, s.refreshAuthSecret,
			"Renew the tokens of a credential of a workspace now, even if they are not due.").OfCredential("id"),
		service.Command("auth_secret.delete", permission.AuthSecretsDelete, s.deleteAuthSecret,
			"Delete a credential of a workspace and erase its secrets.").OfCredential("id"),
		service.Query("auth_secret.get", permission.AuthSecretsGet, s.getAuthSecret,
			"One credential of a workspace and its state; secret values are masked.").OfCredential("id"),
		service.Query("auth_secret.list", permission.AuthSecretsGet, s.listAuthSecrets, "The credentials of a workspace, sorted, page by page.").Scan().Bounded(),
		service.Command("credential.reveal", permission.CredentialsReveal, s.revealCredential,
			"Reveal the clear values of one credential to a person. The access is audited first.").WithSecrets().Unqueued().OfCredential("id"),
		service.Query("credential.get", permission.CredentialsGet, s.getCredential, "One credential; secret values are masked.").OfCredential("id"),
		service.Query("credential.list", permission.CredentialsGet, s.listCredentials, "Credentials by filter, sorted, page by page.").Scan().Bounded(),
		service.Query("credential.search", permission.CredentialsGet, s.searchCredentials,
			"Credentials by ids, type and part of the description, from any offset, with masked keys.").Scan().Bounded(),
		service.Query("credential.export", permission.CredentialsExport, s.exportCredentials,
			"Credentials for another system, by ids or filter. Secrets are left out and listed as missing.").Scan().Bounded(),
		service.Query("credential.counts", permission.CredentialsGet, s.countCredentials, "Number of credentials by component and status.").Scan().Bounded(),
		service.Query("credential.history", permission.CredentialsGet, s.credentialHistory, "History of one credential: who changed what, when, and which version.").Scan().OfCredential("id"),
		service.AuditedQuery("credential.resolve", permission.CredentialsResolve, s.resolveCredential,
			"Resolve a credential for a flow engine: its values, encrypted to the engine's public key, under a lease. The access is audited first.").OfCredential("id"),
		service.Query("lease.list", permission.AuditRead, s.listLeases, "The active leases: who may still hold the values of which credential.").Scan().Bounded(),
		service.Query("access.replay", permission.AuditRead, s.replayAccess,
			"The access log: who got the values of which credential, and when, oldest first, page by page.").Scan().Bounded(),
	}
}

// change is the route of a command that is executed as the caller sent it.
func change[C commands.Credential](s *Service, name string, p permission.Permission, summary string) service.Route {
	return service.Command(name, p, func(ctx context.Context, call *service.Call, cmd C) (service.Done, error) {
		return s.Secrets.ChangeCredential(ctx, call, cmd)
	}, summary)
}
