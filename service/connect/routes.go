package connect

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("oauth.connect", permission.CredentialsCreate, s.connectOAuth,
			"Create a one-time link with which a person connects an account at the component's provider: for a new credential, or with credentials.edit for an existing one.").WithAltPermission(permission.CredentialsEdit).WithSecrets().Recalling(s.recall).Unqueued().OfCredential("credential"),
		service.Command("oauth.complete", permission.CredentialsCreate, s.completeConnection,
			"Confirm that the person who returned from the provider started the connection, and save the tokens.").WithAltPermission(permission.CredentialsEdit).Unqueued().Bounded(),
		service.Query("oauth.connection", permission.CredentialsGet, s.getConnection, "State of a connection.").Bounded(),
		service.Query("oauth.redirect-uri", permission.ComponentsGet, s.getRedirectURI,
			"The redirect URI of a component in this tenant, to be registered at the provider.").Open(),
	}
}
