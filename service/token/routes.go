package token

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("credential.refresh", permission.CredentialsEdit, s.RefreshCredential,
			"Renew the tokens of an OAuth credential now, even if they are not due.").OfCredential("id"),
		service.Command("credential.revoke", permission.CredentialsDelete, s.revokeCredential,
			"Revoke the tokens of an OAuth credential locally and at its provider. The credential remains and can be connected again.").Resumable().Recalling(recallRevoked).OfCredential("id"),
		service.Command("oauth.revoke", permission.CredentialsDelete, s.revokeOAuth,
			"Revoke the tokens of every OAuth credential of the tenant, of a component or of an OAuth client. Runs in the background and answers at once.").Recalling(recallRevocation),
		service.Query("oauth.revocation", permission.CredentialsGet, s.oauthRevocation, "Progress of a bulk revocation."),
	}
}
