package importer

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/transfer"
)

func (im *Importer) component(ctx context.Context, id string, facts transfer.Component, seq uint64) (change, error) {
	now, err := im.API.GetComponent(ctx, id, seq)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	share := func(ctx context.Context, salt string) (client.Done, error) {
		if facts.Shared {
			return im.API.ShareComponent(ctx, id, im.commandID("component.share", id, salt, facts, client.Keys{}))
		}
		return im.API.UnshareComponent(ctx, id, im.commandID("component.unshare", id, salt, facts, client.Keys{}))
	}
	if err != nil {
		return change{action: Create, do: func(ctx context.Context, salt string) (client.Done, bool, error) {
			done, err := im.API.RegisterComponent(ctx, id, facts.Descriptor, im.commandID("component.register", id, salt, facts, client.Keys{}))
			if err == nil && facts.Shared {
				done, err = share(ctx, salt)
			}
			return done, true, err
		}}, nil
	}
	same := sameJSON(now.Descriptor, facts.Descriptor)
	switch {
	case now.Owner == "" && same:
		return change{action: Same, why: "It is shared by another tenant."}, nil
	case now.Owner == "":
		return change{action: Conflict, why: "It belongs to another tenant and has another descriptor. Map it to another id: --map component:" + id + "=NEW."}, nil
	case now.Deleted:
		return change{action: Conflict, why: "It was deleted, and ids are not used again. Map it to another id: --map component:" + id + "=NEW."}, nil
	case same && now.Shared == facts.Shared:
		return change{action: Same}, nil
	}
	at := now.UpdatedAt.Format(time.RFC3339Nano)
	return change{
		action: Update, why: differing([3]string{"descriptor", fmt.Sprint(same), "true"}, [3]string{"shared", fmt.Sprint(now.Shared), fmt.Sprint(facts.Shared)}),
		do: func(ctx context.Context, _ string) (done client.Done, _ bool, err error) {
			if !same {
				done, err = im.API.UpdateComponent(ctx, id, facts.Descriptor, im.commandID("component.update", id, at, facts, client.Keys{}))
			}
			if err == nil && now.Shared != facts.Shared {
				done, err = share(ctx, at)
			}
			return done, true, err
		},
	}, nil
}

func (im *Importer) policy(ctx context.Context, id string, facts transfer.ThrottlePolicy, seq uint64) (change, error) {
	now, err := im.API.GetThrottlePolicy(ctx, id, seq)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	settings := client.ThrottleSettings{Description: &facts.Description, Tokens: facts.Tokens, Per: string(facts.Per)}
	verb, do := "throttle_policy.define", im.API.DefineThrottlePolicy
	c := change{action: Create}
	if err == nil {
		verb, do = "throttle_policy.change", im.API.ChangeThrottlePolicy
		c.action = Update
		c.why = differing([3]string{"description", now.Description, facts.Description}, [3]string{"per", now.Per, string(facts.Per)},
			[3]string{"tokens", fmt.Sprint(now.Tokens), fmt.Sprint(facts.Tokens)})
		if c.why == "" {
			return change{action: Same}, nil
		}
	}
	c.do = func(ctx context.Context, salt string) (client.Done, bool, error) {
		done, err := do(ctx, id, settings, im.commandID(verb, id, salt+seqSalt(now.Seq), facts, client.Keys{}))
		return done, true, err
	}
	return c, nil
}

// seqSalt tells a change of what the service has from one of what it had before.
func seqSalt(seq uint64) string {
	if seq == 0 {
		return ""
	}
	return fmt.Sprint(" of ", seq)
}

// mapped are ids of a kind in the service.
func (im *Importer) mapped(kind string, ids []string) []string {
	now := make([]string, len(ids))
	for i, id := range ids {
		now[i] = im.target(kind, id)
	}
	return now
}

// withSecrets is what happens to an item that the service has: the facts that differ, if any,
// and whether its secrets are sent again.
func (im *Importer) withSecrets(item Item, why string) change {
	switch {
	case why == "" && item.HasKeys && im.OnConflict == "replace":
		return change{action: Update, why: "secrets"}
	case why == "":
		return change{action: Same}
	}
	return change{action: Update, why: why}
}

const whyMissing = "Its secrets are not in the file. Export with --to, or create it by hand under this id."

func (im *Importer) authClient(ctx context.Context, item Item, id string, facts transfer.AuthClient, seq uint64) (change, error) {
	now, err := im.API.GetAuthClient(ctx, id, seq)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	facts.Components = im.mapped(transfer.KindComponent, facts.Components)
	if err != nil {
		if len(facts.Fields) > 0 && len(item.Missing) > 0 {
			return change{action: Missing, why: whyMissing}, nil
		}
		return change{action: Create, do: func(ctx context.Context, salt string) (client.Done, bool, error) {
			done, err := im.API.CreateAuthClient(ctx, client.NewAuthClient{
				Name: facts.Name, Type: facts.Type, Scope: facts.Scope, ScopeID: facts.ScopeID, Components: facts.Components, Credentials: item.Keys, ID: id,
			}, im.commandID("auth_client.create", id, salt, facts, item.Keys))
			return done, true, err
		}}, nil
	}
	if now.Type != facts.Type || now.Scope != facts.Scope || now.ScopeID != facts.ScopeID {
		return change{action: Conflict, why: "It has another type or scope, which cannot be changed."}, nil
	}
	var has, fields []string
	for _, c := range now.Components {
		has = append(has, c.Component)
	}
	for name := range now.Credentials {
		fields = append(fields, name)
	}
	clientID, _ := now.Credentials["client_id"].(string)
	c := im.withSecrets(item, differing([3]string{"name", now.Name, facts.Name}, [3]string{"components", list(has), list(facts.Components)},
		[3]string{"fields", list(fields), list(facts.Fields)}, [3]string{"client_id", clientID, facts.ClientID}))
	c.do = func(ctx context.Context, salt string) (client.Done, bool, error) {
		done, err := im.API.ChangeAuthClient(ctx, id, client.AuthClientChange{Name: facts.Name, Components: facts.Components, Credentials: item.Keys},
			im.commandID("auth_client.change", id, salt+seqSalt(now.Seq), facts, item.Keys))
		return done, true, err
	}
	return c, nil
}

func (im *Importer) oauthClient(ctx context.Context, item Item, component string, facts transfer.OAuthClient, seq uint64) (change, error) {
	var now client.OAuthClient
	err := im.API.Query(ctx, "oauth_client.get", map[string]any{"component": component, "min_seq": seq}, &now)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	text, _ := item.Keys.Text("client_secret")
	secret := client.NewOAuthSecret(text)
	if err != nil {
		if len(item.Missing) > 0 {
			return change{action: Missing, why: "Its secret is not in the file. Export with --to, or define it by hand."}, nil
		}
		return change{action: Create, do: func(ctx context.Context, salt string) (client.Done, bool, error) {
			done, err := im.API.DefineOAuthClient(ctx, component, facts.ClientID, secret, im.commandID("oauth_client.define", component, salt, facts, item.Keys))
			return done, true, err
		}}, nil
	}
	c := im.withSecrets(item, differing([3]string{"client_id", now.ClientID, facts.ClientID}))
	c.do = func(ctx context.Context, salt string) (client.Done, bool, error) {
		done, err := im.API.ChangeOAuthClient(ctx, now.ID, facts.ClientID, secret,
			im.commandID("oauth_client.change", component, salt+seqSalt(now.Seq), facts, item.Keys))
		return done, true, err
	}
	return c, nil
}

// errGone says that a credential was imported before and is there no more.
var errGone = fault.New(fault.Precondition, "import_item_deleted",
	"It was imported before and deleted since. Ids are not used again: import it under another one, with --map or --new-ids.")

func (im *Importer) credential(ctx context.Context, item Item, id string, facts transfer.Credential, seq uint64) (change, error) {
	facts.Status, facts.Version, facts.VerifiedAt, facts.CreatedAt, facts.UpdatedAt = "", 0, time.Time{}, time.Time{}, time.Time{}
	if facts.Component != "" {
		facts.Component = im.target(transfer.KindComponent, facts.Component)
	}
	if facts.ThrottlePolicy != "" {
		facts.ThrottlePolicy = im.target(transfer.KindThrottlePolicy, facts.ThrottlePolicy)
	}
	now, err := im.API.GetCredential(ctx, id, seq)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	if err != nil {
		if len(item.Missing) > 0 {
			return change{action: Missing, why: whyMissing}, nil
		}
		return change{action: Create, do: func(ctx context.Context, salt string) (client.Done, bool, error) {
			if salt != "" {
				return client.Done{}, false, errGone
			}
			done, err := im.API.CreateCredential(ctx, client.CreateCredential{
				ID: id, Component: facts.Component, Type: facts.Type, Name: facts.Name, Description: facts.Description, Workspace: facts.Workspace,
				VPNAgent: facts.VPNAgent, ThrottlePolicy: facts.ThrottlePolicy, Keys: item.Keys, Hosts: facts.Hosts, Verification: facts.Verification,
			}, im.commandID("credential.create", id, salt, facts, item.Keys))
			return done, true, err
		}}, nil
	}
	// A type that is the name of an own component is that component.
	if cmp.Or(now.Component, now.Type) != cmp.Or(facts.Component, facts.Type) || facts.Component != "" && now.Type != "" || now.Workspace != facts.Workspace {
		return change{action: Conflict, why: "It has another component, type or workspace, which cannot be changed."}, nil
	}
	name := cmp.Or(facts.Name, now.Name)
	settings := differing([3]string{"description", now.Description, facts.Description}, [3]string{"throttle_policy", now.ThrottlePolicy, facts.ThrottlePolicy})
	c := im.withSecrets(item, differing([3]string{"name", now.Name, name}, [3]string{"description", now.Description, facts.Description},
		[3]string{"throttle_policy", now.ThrottlePolicy, facts.ThrottlePolicy}, [3]string{"vpn_agent", now.VPNAgent, facts.VPNAgent},
		[3]string{"fields", list(now.Fields), list(facts.Fields)}))
	c.do = func(ctx context.Context, _ string) (done client.Done, changed bool, err error) {
		salt := seqSalt(now.Seq)
		if item.HasKeys {
			// The same secrets of the same file are sent once, unless others came between.
			keys := client.CredentialUpdate{Keys: &item.Keys}
			done, err = im.API.UpdateCredential(ctx, id, keys, im.commandID("credential.update", id, "", facts, item.Keys))
			if err == nil && done.Version < now.Version {
				done, err = im.API.UpdateCredential(ctx, id, keys, im.commandID("credential.update", id, fmt.Sprint(now.Version), facts, item.Keys))
			}
			changed = done.Version > now.Version
		}
		if err == nil && settings != "" {
			changed = true
			done, err = im.API.UpdateCredential(ctx, id, client.CredentialUpdate{Description: &facts.Description, ThrottlePolicy: &facts.ThrottlePolicy},
				im.commandID("credential.update", id, salt, facts, client.Keys{}))
		}
		if err == nil && now.Name != name {
			changed = true
			done, err = im.API.RenameCredential(ctx, id, name, 0, im.commandID("credential.rename", id, salt, facts, client.Keys{}))
		}
		if err == nil && now.VPNAgent != facts.VPNAgent {
			changed = true
			done, err = im.API.SetVPNAgent(ctx, id, facts.VPNAgent, im.commandID("credential.set-vpn-agent", id, salt, facts, client.Keys{}))
		}
		return done, changed, err
	}
	return c, nil
}

func (im *Importer) role(ctx context.Context, id string, facts transfer.Role, seq uint64) (change, error) {
	var now *client.Role
	for r, err := range im.API.RolesAt(ctx, seq) {
		if err != nil {
			return change{}, err
		}
		if r.Name == id {
			now = &r
			break
		}
	}
	if now == nil {
		return change{action: Create, do: func(ctx context.Context, salt string) (client.Done, bool, error) {
			done, err := im.API.DefineRole(ctx, id, facts.Title, facts.Permissions, im.commandID("role.define", id, salt, facts, client.Keys{}))
			return done, true, err
		}}, nil
	}
	permissions := facts.Permissions
	same := list(now.Permissions) == list(permissions)
	if same {
		permissions = nil // those of a granted role cannot be changed
	}
	if same && now.Title == facts.Title {
		return change{action: Same}, nil
	}
	return change{
		action: Update, why: differing([3]string{"permissions", list(now.Permissions), list(facts.Permissions)}, [3]string{"title", now.Title, facts.Title}),
		do: func(ctx context.Context, _ string) (client.Done, bool, error) {
			done, err := im.API.ChangeRole(ctx, id, &facts.Title, permissions, im.commandID("role.change", id, seqSalt(now.Seq), facts, client.Keys{}))
			return done, true, err
		},
	}, nil
}

func (im *Importer) flow(ctx context.Context, id string, facts transfer.Flow, seq uint64) (change, error) {
	now, err := im.API.GetFlow(ctx, id, seq)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	e := client.FlowEvent{ID: id, Name: facts.Name, Revision: facts.Revision, Steps: []client.FlowStep{}, Change: client.FlowCreated}
	for _, s := range facts.Steps {
		step := client.FlowStep{ID: s.ID, Name: s.Name, Component: im.target(transfer.KindComponent, s.Component)}
		if s.Credential != "" {
			step.Credential = im.target(transfer.KindCredential, s.Credential)
		}
		e.Steps = append(e.Steps, step)
	}
	c := change{action: Create}
	if err == nil && now.Revision > 0 {
		c = change{action: Update, why: differing([3]string{"name", now.Name, facts.Name}, [3]string{"active", fmt.Sprint(now.Active), fmt.Sprint(facts.Active)},
			[3]string{"steps", fmt.Sprint(slices.Equal(now.Steps, e.Steps)), "true"}, [3]string{"revision", fmt.Sprint(now.Revision), fmt.Sprint(facts.Revision)})}
		switch {
		case c.why == "":
			return change{action: Same}, nil
		case now.Revision >= facts.Revision:
			return change{action: Conflict, why: "The flow engine has reported another state at the same or a later revision."}, nil
		}
		e.Change = client.FlowUpdated
	}
	switch {
	case facts.Active:
		e.Change = client.FlowStarted
	case now.Active:
		e.Change = client.FlowStopped
	}
	c.do = func(ctx context.Context, salt string) (client.Done, bool, error) {
		done, err := im.API.ReportFlow(ctx, e, im.commandID("flow.report", id, salt, e, client.Keys{}))
		return done, true, err
	}
	return c, nil
}
