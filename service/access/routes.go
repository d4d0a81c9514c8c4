package access

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("tenant.register", permission.TenantsManage, s.registerTenant,
			"Register a tenant. Its encryption keys are created with it."),
		service.Command("api_key.issue", permission.KeysManage, s.issueAPIKey,
			"Issue an API key. Only this response contains the key; a repeat answers without it.").WithSecrets().Unqueued().Recalling(recallIssued).Bounded(),
		service.Command("api_key.revoke", permission.KeysManage, s.revokeAPIKey,
			"Revoke an API key.").Bounded(),
		service.Query("api_key.list", permission.KeysManage, s.listAPIKeys, "The API keys of the tenant, without the keys themselves.").WithAltPermission(permission.AuditRead).Scan().Bounded(),
		service.Command("role.define", permission.KeysManage, s.defineRole,
			"Define a role of the tenant: a named set of permissions that the caller has. API keys can be issued with it."),
		service.Command("role.change", permission.KeysManage, s.changeRole,
			"Change the title of a role or, before a key is issued with it, its permissions."),
		service.Command("role.delete", permission.KeysManage, s.deleteRole,
			"Delete a role. Refused while API keys have it."),
		service.Query("role.list", permission.KeysManage, s.listRoles, "The tenant's own roles and their permissions, without the built-in roles.").WithAltPermission(permission.AuditRead).Scan().Open(),
		service.Query("tenant.list", permission.TenantsManage, s.listTenants, "The tenants of the installation.").Scan(),
	}
}
