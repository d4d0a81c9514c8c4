package client

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("oauth_client.define", permission.OAuthClientsCreate, s.defineOAuthClient,
			"Define the tenant's OAuth client of a component. Each component has at most one.").WithSecrets(),
		service.Command("oauth_client.change", permission.OAuthClientsEdit, s.changeOAuthClient,
			"Change the client id, the client secret, or both.").WithSecrets(),
		service.Command("oauth_client.delete", permission.OAuthClientsDelete, s.deleteOAuthClient,
			"Delete an OAuth client. Refused while a flow, active or not, includes the component."),
		service.Command("oauth_client.reveal", permission.CredentialsReveal, s.revealOAuthClient,
			"Reveal the secret of one OAuth client to a person. The access is audited first.").WithSecrets().Unqueued(),
		service.Query("oauth_client.get", permission.OAuthClientsGet, s.getOAuthClient, "One OAuth client, by its id or its component; the secret is masked."),
		service.Query("oauth_client.list", permission.OAuthClientsGet, s.listOAuthClients, "The OAuth clients of the tenant.").Scan(),
		service.Command("auth_client.create", permission.OAuthClientsCreate, s.createAuthClient,
			"Create an auth client for several components. With type oauth2 and scope tenant, it also defines their OAuth clients: all of them, or none.").WithSecrets().Resumable(),
		service.Command("auth_client.change", permission.OAuthClientsEdit, s.changeAuthClient,
			"Change the name, components or credentials of an auth client. The OAuth clients of its components are updated with it.").WithSecrets().Resumable(),
		service.Command("auth_client.delete", permission.OAuthClientsDelete, s.deleteAuthClient,
			"Delete an auth client and the OAuth clients that it manages. Refused while a flow includes one of the components.").Resumable(),
		service.Command("auth_client.reveal", permission.CredentialsReveal, s.revealAuthClient,
			"Reveal the credentials of one auth client to a person. The access is audited first.").WithSecrets().Unqueued(),
		service.Query("auth_client.get", permission.OAuthClientsGet, s.getAuthClient, "One auth client; secrets are masked."),
		service.Query("auth_client.list", permission.OAuthClientsGet, s.listAuthClients, "The auth clients that are visible to the tenant, page by page.").Scan(),
	}
}
