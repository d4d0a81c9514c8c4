package component

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("component.register", permission.ComponentsCreate, s.registerComponent,
			"Register a component from its component.json, which is stored unchanged."),
		service.Command("component.update", permission.ComponentsEdit, s.updateComponent,
			"Update the descriptor of a component, which creates a new revision."),
		service.Command("component.share", permission.ComponentsEdit, s.shareComponent,
			"Make a component visible to every tenant."),
		service.Command("component.unshare", permission.ComponentsEdit, s.unshareComponent,
			"Make a component visible to its owner only."),
		service.Command("component.delete", permission.ComponentsDelete, s.deleteComponent,
			"Delete a component. Its credentials remain, but none can be created or changed.").Recalling(flow.RecallTried),
		service.Command("component.set-env", permission.ComponentsEdit, s.setComponentEnv,
			"Set the variables that a component's descriptor declares. They are encrypted and only used in the owner's tenant.").WithSecrets(),
		service.Query("component.get", permission.ComponentsGet, s.getComponent, "One component with its descriptor.").Bounded(),
		service.Query("component.list", permission.ComponentsGet, s.listComponents, "The components that the tenant may use, with counts of its credentials.").Scan().Bounded(),
	}
}
