package importer

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/transfer"
)

func (im *Importer) component(ctx context.Context, id string, facts transfer.Component) (change, error) {
	now, err := im.API.GetComponent(ctx, id, 0)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	command := func(verb string) (client.CommandOption, error) {
		return im.commandID("component."+verb, id, facts, client.Keys{})
	}
	share := func(ctx context.Context) error {
		verb, do := "share", im.API.ShareComponent
		if !facts.Shared {
			verb, do = "unshare", im.API.UnshareComponent
		}
		named, err := command(verb)
		if err == nil {
			_, err = do(ctx, id, named)
		}
		return err
	}
	if err != nil {
		return change{action: Create, do: func(ctx context.Context) error {
			named, err := command("register")
			if err == nil {
				_, err = im.API.RegisterComponent(ctx, id, facts.Descriptor, named)
			}
			if err != nil || !facts.Shared {
				return err
			}
			return share(ctx)
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
	return change{
		action: Update, why: differing([3]string{"descriptor", fmt.Sprint(same), "true"}, [3]string{"shared", fmt.Sprint(now.Shared), fmt.Sprint(facts.Shared)}),
		do: func(ctx context.Context) error {
			if !same {
				named, err := command("update")
				if err == nil {
					_, err = im.API.UpdateComponent(ctx, id, facts.Descriptor, named)
				}
				if err != nil {
					return err
				}
			}
			if now.Shared == facts.Shared {
				return nil
			}
			return share(ctx)
		},
	}, nil
}

func (im *Importer) policy(ctx context.Context, id string, facts transfer.ThrottlePolicy) (change, error) {
	now, err := im.API.GetThrottlePolicy(ctx, id, 0)
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
	c.do = func(ctx context.Context) error {
		named, err := im.commandID(verb, id, facts, client.Keys{})
		if err == nil {
			_, err = do(ctx, id, settings, named)
		}
		return err
	}
	return c, nil
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

func (im *Importer) authClient(ctx context.Context, item Item, id string, facts transfer.AuthClient) (change, error) {
	now, err := im.API.GetAuthClient(ctx, id, 0)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	facts.Components = im.mapped(transfer.KindComponent, facts.Components)
	if err != nil {
		if len(facts.Fields) > 0 && len(item.Missing) > 0 {
			return change{action: Missing, why: whyMissing}, nil
		}
		return change{action: Create, do: func(ctx context.Context) error {
			named, err := im.commandID("auth_client.create", id, facts, item.Keys)
			if err == nil {
				_, err = im.API.CreateAuthClient(ctx, client.NewAuthClient{
					Name: facts.Name, Type: facts.Type, Scope: facts.Scope, ScopeID: facts.ScopeID, Components: facts.Components, Credentials: item.Keys, ID: id,
				}, named)
			}
			return err
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
	c.do = func(ctx context.Context) error {
		named, err := im.commandID("auth_client.change", id, facts, item.Keys)
		if err == nil {
			_, err = im.API.ChangeAuthClient(ctx, id, client.AuthClientChange{Name: facts.Name, Components: facts.Components, Credentials: item.Keys}, named)
		}
		return err
	}
	return c, nil
}

func (im *Importer) oauthClient(ctx context.Context, item Item, component string, facts transfer.OAuthClient) (change, error) {
	var now client.OAuthClient
	for c, err := range im.API.OAuthClients(ctx, component) {
		if err != nil {
			return change{}, err
		}
		now = c
	}
	text, _ := item.Keys.Text("client_secret")
	secret := client.NewOAuthSecret(text)
	if now.ID == "" {
		if len(item.Missing) > 0 {
			return change{action: Missing, why: "Its secret is not in the file. Export with --to, or define it by hand."}, nil
		}
		return change{action: Create, do: func(ctx context.Context) error {
			named, err := im.commandID("oauth_client.define", component, facts, item.Keys)
			if err == nil {
				_, err = im.API.DefineOAuthClient(ctx, component, facts.ClientID, secret, named)
			}
			return err
		}}, nil
	}
	c := im.withSecrets(item, differing([3]string{"client_id", now.ClientID, facts.ClientID}))
	c.do = func(ctx context.Context) error {
		named, err := im.commandID("oauth_client.change", component, facts, item.Keys)
		if err == nil {
			_, err = im.API.ChangeOAuthClient(ctx, now.ID, facts.ClientID, secret, named)
		}
		return err
	}
	return c, nil
}

// errGone says that a credential was imported before and is there no more.
var errGone = fault.New(fault.Precondition, "import_item_deleted",
	"It was imported before and deleted since. Ids are not used again: import it under another one, with --map or --new-ids.")

func (im *Importer) credential(ctx context.Context, item Item, id string, facts transfer.Credential) (change, error) {
	facts.Status, facts.Version = "", 0
	facts.VerifiedAt, facts.CreatedAt, facts.UpdatedAt = transfer.Credential{}.VerifiedAt, transfer.Credential{}.CreatedAt, transfer.Credential{}.UpdatedAt
	if facts.Component != "" {
		facts.Component = im.target(transfer.KindComponent, facts.Component)
	}
	if facts.ThrottlePolicy != "" {
		facts.ThrottlePolicy = im.target(transfer.KindThrottlePolicy, facts.ThrottlePolicy)
	}
	now, err := im.API.GetCredential(ctx, id, 0)
	if err != nil && !notFound(err) {
		return change{}, err
	}
	if err != nil {
		if len(item.Missing) > 0 {
			return change{action: Missing, why: whyMissing}, nil
		}
		return change{action: Create, do: func(ctx context.Context) error {
			named, err := im.commandID("credential.create", id, facts, item.Keys)
			if err != nil {
				return err
			}
			done, err := im.API.CreateCredential(ctx, client.CreateCredential{
				ID: id, Component: facts.Component, Type: facts.Type, Name: facts.Name, Description: facts.Description, Workspace: facts.Workspace,
				VPNAgent: facts.VPNAgent, ThrottlePolicy: facts.ThrottlePolicy, Keys: item.Keys, Hosts: facts.Hosts, Verification: facts.Verification,
			}, named)
			if err != nil {
				return err
			}
			if _, err = im.API.GetCredential(ctx, id, done.Seq); notFound(err) { // the answer was that of an earlier attempt
				return errGone
			}
			return err
		}}, nil
	}
	if now.Component != facts.Component || now.Type != facts.Type || now.Workspace != facts.Workspace {
		return change{action: Conflict, why: "It has another component, type or workspace, which cannot be changed."}, nil
	}
	name := cmp.Or(facts.Name, now.Name)
	renamed, agent := now.Name != name, now.VPNAgent != facts.VPNAgent
	c := im.withSecrets(item, differing([3]string{"name", now.Name, name}, [3]string{"description", now.Description, facts.Description},
		[3]string{"vpn_agent", now.VPNAgent, facts.VPNAgent}, [3]string{"throttle_policy", now.ThrottlePolicy, facts.ThrottlePolicy},
		[3]string{"fields", list(now.Fields), list(facts.Fields)}))
	c.do = func(ctx context.Context) error {
		command := func(verb string) (client.CommandOption, error) { return im.commandID(verb, id, facts, item.Keys) }
		update := client.CredentialUpdate{Description: &facts.Description, ThrottlePolicy: &facts.ThrottlePolicy}
		if item.HasKeys {
			update.Keys = &item.Keys
		}
		named, err := command("credential.update")
		if err == nil {
			_, err = im.API.UpdateCredential(ctx, id, update, named)
		}
		if err == nil && renamed {
			if named, err = command("credential.rename"); err == nil {
				_, err = im.API.RenameCredential(ctx, id, name, 0, named)
			}
		}
		if err == nil && agent {
			if named, err = command("credential.set-vpn-agent"); err == nil {
				_, err = im.API.SetVPNAgent(ctx, id, facts.VPNAgent, named)
			}
		}
		return err
	}
	return c, nil
}

func (im *Importer) flow(ctx context.Context, id string, facts transfer.Flow) (change, error) {
	now, err := im.API.GetFlow(ctx, id, 0)
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
	c.do = func(ctx context.Context) error {
		named, err := im.commandID("flow.report", id, e, client.Keys{})
		if err == nil {
			_, err = im.API.ReportFlow(ctx, e, named)
		}
		return err
	}
	return c, nil
}
