package erasure

import (
	"context"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service/admin"
)

// one is one thing of a tenant.
type one struct {
	id     string
	active bool // a flow that runs
}

// kind is a kind of things that tenants have.
type kind struct {
	name   string // plural, as in Left
	list   func(ctx context.Context, s *Service, tenant, after string) (page []one, next string, err error)
	delete func(ctx context.Context, s *Service, tenant string, o one) error
}

// by deletes with a route.
func by(route, member string) func(context.Context, *Service, string, one) error {
	return func(ctx context.Context, s *Service, tenant string, o one) error {
		return s.Kernel.Run(ctx, tenant, actor, route, map[string]string{member: o.id})
	}
}

// ids are the things of a page for which id is not "".
func ids[T any](page []T, next string, err error, id func(T) string) ([]one, string, error) {
	var list []one
	for _, t := range page {
		if id := id(t); id != "" {
			list = append(list, one{id: id})
		}
	}
	return list, next, err
}

// kinds are those of which tenants have things, users before what they use.
var kinds = []kind{
	{"flows", func(ctx context.Context, s *Service, tenant, after string) (list []one, next string, err error) {
		page, next, err := s.Views.Flows(ctx, projections.FlowFilter{Tenant: tenant, Limit: pageSize, After: after})
		for _, f := range page {
			list = append(list, one{f.ID, f.Active})
		}
		return list, next, err
	}, deleteFlow},
	{"credentials", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, err := s.Views.Credentials(ctx, projections.CredentialFilter{Tenant: tenant, Sort: "created", Limit: pageSize, After: after})
		return ids(page, next, err, func(c projections.Credential) string { return c.ID })
	}, by("credential.delete", "id")},
	{"auth_clients", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, _, err := s.Views.AuthClients(ctx, projections.AuthClientFilter{Tenant: tenant, Limit: pageSize, After: after})
		return ids(page, next, err, func(c projections.AuthClient) string {
			if c.Tenant != tenant { // a global one
				return ""
			}
			return c.ID
		})
	}, by("auth_client.delete", "id")},
	{"oauth_clients", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, err := s.Views.OAuthClients(ctx, tenant, after, pageSize)
		return ids(page, next, err, func(c projections.OAuthClient) string { return c.ID })
	}, by("oauth_client.delete", "id")},
	{"connectors", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, _, err := s.Views.Connectors(ctx, projections.ConnectorFilter{Tenant: tenant, Limit: pageSize, After: after})
		return ids(page, next, err, func(c projections.Connector) string { return c.ID })
	}, by("connector.delete", "id")},
	{"connector_secrets", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, _, err := s.Views.ConnectorSecrets(ctx, tenant, "", after, pageSize)
		return ids(page, next, err, func(c projections.ConnectorSecret) string { return c.ID })
	}, by("connector_secret.delete", "id")},
	{"webhooks", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, _, err := s.Views.Webhooks(ctx, tenant, after, pageSize)
		return ids(page, next, err, func(w projections.Webhook) string { return w.ID })
	}, by("webhook.delete", "id")},
	{"throttle_policies", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, _, err := s.Views.ThrottlePolicies(ctx, tenant, after, pageSize)
		return ids(page, next, err, func(p projections.ThrottlePolicy) string { return p.ID })
	}, by("throttle_policy.delete", "id")},
	{"components", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, err := s.Views.Components(ctx, tenant, after, pageSize)
		return ids(page, next, err, func(c projections.Component) string {
			if c.Owner != tenant { // a shared one
				return ""
			}
			return c.ID
		})
	}, by("component.delete", "id")},
	{"api_keys", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, err := s.Views.APIKeys(ctx, tenant, events.Scope{}, after, pageSize)
		return ids(page, next, err, func(k projections.APIKey) string {
			if k.Revoked {
				return ""
			}
			return k.ID
		})
	}, by("api_key.revoke", "id")},
	{"roles", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) {
		page, next, err := s.Views.Roles(ctx, tenant, after, pageSize)
		return ids(page, next, err, func(r projections.Role) string { return r.Name })
	}, by("role.delete", "name")},
	{"dead_letters", func(ctx context.Context, s *Service, tenant, after string) ([]one, string, error) { // they may hold keys that a client encrypted
		if s.DeadLetters == nil {
			return nil, "", nil
		}
		page, next, err := s.DeadLetters.List(ctx, tenant, after, pageSize)
		return ids(page, next, err, func(m admin.DeadLetter) string { return m.ID })
	}, func(ctx context.Context, s *Service, tenant string, o one) error {
		return s.DeadLetters.Drop(ctx, tenant, o.id)
	}},
}

// deleteFlow reports that a flow was deleted, which the flow engine can no longer do. That also ends
// its uses and reservations.
func deleteFlow(ctx context.Context, s *Service, tenant string, o one) error {
	state, err := aggregates.Flow.Fresh(ctx, s.Log, aggregates.Flow.Stream(tenant, o.id))
	if err != nil || state.Value.Deleted {
		return err
	}
	return s.Kernel.Run(ctx, tenant, actor, "flow.report", map[string]any{"id": o.id, "change": events.FlowWasDeleted, "revision": state.Value.Revision + 1})
}
