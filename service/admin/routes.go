package admin

import (
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Command("queue.retry", permission.QueueManage, s.retryQueued,
			"Retry a message of the dead-letter queue: put it back into its queue.").Unqueued(),
		service.Command("queue.drop", permission.QueueManage, s.dropQueued,
			"Drop a message of the dead-letter queue: erase it.").Unqueued(),
		service.Command("queue.retry-all", permission.QueueManage, s.retryAllQueued,
			"Retry the tenant's messages of the dead-letter queue: all, or those of a queue or an error code. One "+
				"call examines at most 1,000 messages; next is the cursor for the following call.").Unqueued().Recalling(recallQueued),
		service.Command("queue.drop-all", permission.QueueManage, s.dropAllQueued,
			"Drop the tenant's messages of the dead-letter queue: all, or those of a queue or an error code. One "+
				"call examines at most 1,000 messages; next is the cursor for the following call.").Unqueued().Recalling(recallQueued),
		service.Query("queue.list", permission.QueueManage, s.listQueued, "The tenant's messages in the dead-letter queue, page by page.").Scan(),
		service.Query("queue.get", permission.QueueManage, s.getQueued, "One message of the dead-letter queue. Clear secrets are not included."),
		service.Query("service.key", permission.CredentialsCreate, s.serviceKey,
			"The public key for sealing the keys of a queued command.").Open(),
		service.Command("audit.rewind", permission.AuditRead, s.rewindAudit,
			"Rewind the tenant's audit consumer to a log sequence.").Unqueued(),
		service.Command("views.rebuild", permission.ViewsManage, s.rebuildViews,
			"Rebuild the read models from the log, beside the ones in use.").Unqueued(),
		service.Query("views.status", permission.ViewsManage, s.viewsStatus,
			"Position of the read models, and progress of a rebuild."),
		service.Query("events.changes", permission.CredentialsGet, s.eventChanges,
			"The tenant's feed events after a log position, page by page, for subscribers that were offline.").Scan().Bounded(),
		service.Query("events.replay", permission.AuditRead, s.replayEvents, "The tenant's events in log order, page by page.").Scan().Bounded(),
	}
}
