package flow

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("flow.bind", permission.FlowsEdit, s.bindFlow,
			"Reserve all credentials of a flow before it starts, or none.").Resumable().Bounded(),
		service.Command("flow.release", permission.FlowsEdit, s.releaseFlow,
			"Release the reservation of a flow.").Resumable().Bounded(),
		service.Command("flow.report", permission.FlowsEdit, s.reportFlow,
			"Report what happened to a flow, as the flow event of the same content does, and wait until its uses are recorded.").Unqueued().Bounded(),
		service.Query("flow.get", permission.FlowsGet, s.getFlow, "One flow: its steps, the credentials it uses, and the steps that cannot use theirs.").Bounded(),
		service.Query("flow.list", permission.FlowsGet, s.listFlows,
			"Flows by id, page by page: all, or those that use one credential or one component.").Scan().Bounded(),
		service.Query("flow.in-use", permission.FlowsGet, s.listInUse,
			"What flows use: the values of the in-use index, page by page.").Scan().Bounded(),
	}
}
