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
		service.Query("api_key.list", permission.KeysManage, s.listAPIKeys, "The API keys of the tenant, without the keys themselves.").Scan().Bounded(),
		service.Query("tenant.list", permission.TenantsManage, s.listTenants, "The tenants of the installation.").Scan(),
	}
}
