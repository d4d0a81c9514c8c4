package connector

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("connector.put", permission.ConnectorsManage, s.putConnector,
			"Create a connector, or replace the settings of the one with this id. The API key is unchanged unless the request sets it."),
		service.Command("connector.set-api-key", permission.ConnectorsManage, s.setAPIKey,
			"Set the id of a connector's API key, the connector secret that holds the key, or both."),
		service.Command("connector.delete", permission.ConnectorsManage, s.deleteConnector,
			"Delete a connector. The secret of its API key remains."),
		service.Query("connector.get", permission.ConnectorsManage, s.getConnector, "One connector."),
		service.Query("connector.list", permission.ConnectorsManage, s.listConnectors, "The connectors of the tenant by id, page by page.").Scan(),
		service.Command("connector_secret.put", permission.ConnectorSecretsWrite, s.putSecret,
			"Create a connector secret, or set a new value for an existing one, as a new version.").WithSecrets().Unqueued(),
		service.Command("connector_secret.revert", permission.ConnectorSecretsWrite, s.revertSecret,
			"Activate the value of an earlier version of a connector secret as a new version. It is not shown."),
		service.Command("connector_secret.delete", permission.ConnectorSecretsWrite, s.deleteSecret,
			"Delete a connector secret and erase its values. Refused while a connector points to it."),
		service.Command("connector_secret.reveal", permission.ConnectorSecretsRead, s.revealSecret,
			"Reveal the value of one connector secret. The access is audited first.").WithSecrets().Unqueued(),
		service.Query("connector_secret.get", permission.ConnectorSecretsWrite, s.getSecret,
			"One connector secret without its value.").WithAltPermission(permission.ConnectorSecretsRead),
		service.Query("connector_secret.list", permission.ConnectorSecretsWrite, s.listSecrets,
			"The connector secrets of the tenant by id, without their values, page by page.").WithAltPermission(permission.ConnectorSecretsRead).Scan(),
	}
}
