package credential

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/service/token"
)

// An auth secret is a credential of a workspace with its own permissions: they replace
// those for credentials. A credential of another workspace, or of none, is not found.

// AuthSecretRef names a credential within its workspace.
type AuthSecretRef struct {
	Workspace string `json:"workspace"`
	ID        string `json:"id"`
}

// checkWorkspaceOf returns aggregates.ErrCredentialNotFound for a credential that is not in
// the workspace. A credential never changes its workspace.
func (s *Service) checkWorkspaceOf(ctx context.Context, call *service.Call, workspace, id string) error {
	if err := checkWorkspace(workspace); err != nil {
		return err
	}
	state, err := s.Secrets.Live(ctx, call.Tenant, id, 0)
	switch {
	case err != nil:
		return err
	case state.Workspace != workspace:
		return aggregates.ErrCredentialNotFound
	}
	return nil
}

func checkWorkspace(workspace string) error {
	if err := service.Required("/workspace", workspace); err != nil {
		return err
	}
	return commands.CheckRef("/workspace", workspace)
}

type CreateAuthSecret struct {
	Workspace  string       `json:"workspace"`
	Component  string       `json:"component,omitzero"`         // required unless the auth client has exactly one component
	AuthClient string       `json:"auth_client,omitzero"`       // id of the auth client that manages the component's OAuth client
	Name       string       `json:"name,omitzero"`              // display name; made from the component's title when absent
	Keys       secrets.Keys `json:"keys"`                       // a value for each field of the component's descriptor; tokens may be given at the top level, without their field
	Expected   int          `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
}

func (s *Service) createAuthSecret(ctx context.Context, call *service.Call, in CreateAuthSecret) (service.Done, error) {
	if err := checkWorkspace(in.Workspace); err != nil {
		return service.Done{}, err
	}
	if err := s.byAuthClient(ctx, call, &in); err != nil {
		return service.Done{}, err
	}
	if err := service.Required("/component", in.Component); err != nil {
		return service.Done{}, err
	}
	d, _, err := s.Components.UsableAt(ctx, call.Tenant, in.Component, "/component", in.Expected)
	if err != nil {
		return service.Done{}, err
	}
	keys, field := tokensInField(d, in.Keys.Fields)
	done, err := s.createCredential(ctx, call, Create{
		Component: in.Component, Name: in.Name, Workspace: in.Workspace, Keys: secrets.Keys{Fields: keys}, Expected: in.Expected,
	})
	return done, outOfField(err, field)
}

// byAuthClient checks that the auth client of a new credential serves its
// component, and sets the component if the auth client has exactly one.
func (s *Service) byAuthClient(ctx context.Context, call *service.Call, in *CreateAuthSecret) error {
	const at = "/auth_client"
	if in.AuthClient == "" {
		return nil
	}
	k, err := s.Clients.AuthClient(ctx, call, client.AuthClientRef{ID: in.AuthClient}, true)
	switch {
	case err != nil:
		return service.PointAt(err, at)
	case !client.ManagesOAuthClients(k.Type, k.Scope):
		return client.ErrAuthClientNotUsable.At(at)
	case in.Component == "" && len(k.Components) == 1:
		in.Component = k.Components[0].Component
	case in.Component != "" && !slices.ContainsFunc(k.Components, func(c events.AuthClientComponent) bool { return c.Component == in.Component }):
		return client.ErrAuthClientOther.At(at)
	}
	return nil
}

// tokensInField moves top-level tokens, in the form of an authorization server's response, into
// the component's OAuth field, and returns the name of the field. It leaves the fields of the
// descriptor as they are.
func tokensInField(d commands.Descriptor, keys seal.Fields) (in seal.Fields, field string) {
	for _, f := range d.Fields {
		_, given := keys.Get(f.Name)
		if f.OAuth() && !given {
			field = f.Name
			break
		}
	}
	tokens := keys
	for _, name := range keys.Names() {
		if _, known := d.Field(name); known {
			tokens = tokens.Without(name)
		}
	}
	_, access := tokens.Get(token.AccessToken)
	_, refresh := tokens.Get(token.RefreshToken)
	if field == "" || !access && !refresh {
		return keys, ""
	}
	return keys.Without(tokens.Names()...).With(field, tokens.Marshal()), field
}

// outOfField makes an error point at the tokens in the caller's request.
func outOfField(err error, field string) error {
	if err == nil || field == "" {
		return err
	}
	f := fault.Of(err)
	rest, inside := strings.CutPrefix(f.Pointer, "/keys/"+service.EscapePointer(field))
	if !inside {
		return err
	}
	return f.At("/keys" + rest)
}

type RenameAuthSecret struct {
	Workspace string `json:"workspace"`
	ID        string `json:"id"`
	Name      string `json:"name"`
}

func (s *Service) renameAuthSecret(ctx context.Context, call *service.Call, in RenameAuthSecret) (service.Done, error) {
	if err := s.checkWorkspaceOf(ctx, call, in.Workspace, in.ID); err != nil {
		return service.Done{}, err
	}
	cmd := commands.RenameCredential{ID: in.ID, Name: in.Name}
	if err := cmd.Check(); err != nil {
		return service.Done{}, err
	}
	return s.Secrets.ChangeCredential(ctx, call, cmd)
}

type ReplaceAuthSecretKeys struct {
	Workspace string       `json:"workspace"`
	ID        string       `json:"id"`
	Keys      secrets.Keys `json:"keys"`                       // replaces all values; tokens may be given at the top level, without their field
	Expected  int          `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
}

func (s *Service) replaceAuthSecretKeys(ctx context.Context, call *service.Call, in ReplaceAuthSecretKeys) (service.Done, error) {
	if err := s.checkWorkspaceOf(ctx, call, in.Workspace, in.ID); err != nil {
		return service.Done{}, err
	}
	state, err := s.Secrets.Live(ctx, call.Tenant, in.ID, 0)
	if err != nil {
		return service.Done{}, err
	}
	d, _, err := s.Components.UsableAt(ctx, call.Tenant, state.Component, "", in.Expected)
	if err != nil {
		return service.Done{}, err
	}
	keys, field := tokensInField(d, in.Keys.Fields)
	done, err := s.replaceKeys(ctx, call, ReplaceKeys{ID: in.ID, Keys: secrets.Keys{Fields: keys}, Revision: in.Expected})
	return done.Done, outOfField(err, field)
}

func (s *Service) refreshAuthSecret(ctx context.Context, call *service.Call, in AuthSecretRef) (service.Done, error) {
	if err := s.checkWorkspaceOf(ctx, call, in.Workspace, in.ID); err != nil {
		return service.Done{}, err
	}
	return s.Grants.RefreshCredential(ctx, call, token.Refresh{ID: in.ID})
}

func (s *Service) deleteAuthSecret(ctx context.Context, call *service.Call, in AuthSecretRef) (service.Done, error) {
	if err := s.checkWorkspaceOf(ctx, call, in.Workspace, in.ID); err != nil {
		return service.Done{}, err
	}
	done, err := s.deleteCredential(ctx, call, Delete{ID: in.ID})
	return done.Done, err
}

type GetAuthSecret struct {
	Workspace string `json:"workspace"`
	ID        string `json:"id"`
	MinSeq    uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// AuthSecret is what the service shows of a credential of a workspace.
type AuthSecret struct {
	Credential
	State      string `json:"state"`                // ready or error
	Error      string `json:"error,omitzero"`       // why it is not ready, a sentence
	AuthClient string `json:"auth_client,omitzero"` // id of the auth client that manages the component's OAuth client
}

func (s *Service) getAuthSecret(ctx context.Context, call *service.Call, in GetAuthSecret) (AuthSecret, error) {
	if err := checkWorkspace(in.Workspace); err != nil {
		return AuthSecret{}, err
	}
	c, err := s.getCredential(ctx, call, Get{ID: in.ID, MinSeq: in.MinSeq})
	switch {
	case err != nil:
		return AuthSecret{}, err
	case c.Workspace != in.Workspace:
		return AuthSecret{}, aggregates.ErrCredentialNotFound
	}
	secret, err := s.authSecret(ctx, call, c)
	if err != nil {
		return secret, err
	}
	k, _, err := s.Views.AuthClientFollowed(ctx, call.Tenant, c.Component)
	secret.AuthClient = k.ID
	return secret, err
}

// authSecret reports whether a credential works and, if not, why.
func (s *Service) authSecret(ctx context.Context, call *service.Call, c Credential) (AuthSecret, error) {
	secret := AuthSecret{Credential: c, State: "ready"}
	switch c.Status {
	case events.Verified, events.Unverified:
		return secret, nil
	case events.Failed:
		secret.Error = saysOf(c.Verification)
	case events.ReauthorizationRequired:
		tokens := c.Tokens
		if tokens == nil { // in a list
			var err error
			if tokens, err = s.tokenInfo(ctx, call.Tenant, c.ID, commands.Descriptor{}); err != nil {
				return secret, err
			}
		}
		if tokens != nil {
			secret.Error = tokens.Problem
		}
	}
	secret.State = "error"
	if secret.Error == "" { // it was connected again in the meantime
		secret.Error = aggregates.ErrReauthorizationRequired.Msg
	}
	return secret, nil
}

// saysOf describes a dry request that failed some time ago.
func saysOf(v events.Verification) string {
	if strings.HasSuffix(v.Outcome, "xx") {
		return fmt.Sprintf("The API rejected the keys at the last verification: it answered with a %s status.", v.Outcome)
	}
	return fmt.Sprintf("The API could not be reached at the last verification (%s).", v.Outcome)
}

type ListAuthSecrets struct {
	Workspace string `json:"workspace"`
	Component string `json:"component,omitzero"` // only those of this component
	Sort      string `json:"sort,omitzero"`      // as in credential.list
	Limit     int    `json:"limit,omitzero"`     // 1 to 200; 50 when absent
	After     string `json:"after,omitzero"`     // cursor of the previous page, with the same filter and sort
	MinSeq    uint64 `json:"min_seq,omitzero"`   // wait until the response reflects this log sequence
}

type AuthSecretList struct {
	Secrets []AuthSecret `json:"secrets"`
	Next    string       `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total   int          `json:"total"`         // of all pages
}

func (s *Service) listAuthSecrets(ctx context.Context, call *service.Call, in ListAuthSecrets) (AuthSecretList, error) {
	if err := checkWorkspace(in.Workspace); err != nil {
		return AuthSecretList{}, err
	}
	page, err := s.listCredentials(ctx, call, List{
		Component: in.Component, Workspace: in.Workspace, Sort: in.Sort, Limit: in.Limit, After: in.After, MinSeq: in.MinSeq,
	})
	if err != nil {
		return AuthSecretList{}, err
	}
	list := AuthSecretList{Secrets: make([]AuthSecret, len(page.Credentials)), Next: page.Next}
	clients := map[string]string{} // by component
	for i, c := range page.Credentials {
		if list.Secrets[i], err = s.authSecret(ctx, call, c); err != nil {
			return list, err
		}
		id, known := clients[c.Component]
		if !known {
			k, _, err := s.Views.AuthClientFollowed(ctx, call.Tenant, c.Component)
			if err != nil {
				return list, err
			}
			id = k.ID
			clients[c.Component] = id
		}
		list.Secrets[i].AuthClient = id
	}
	rows, err := s.Views.CredentialCounts(ctx, call.Tenant, projections.CredentialFilter{Component: in.Component, Workspace: in.Workspace, Scope: call.Principal.Scope})
	for _, r := range rows {
		list.Total += r.N
	}
	return list, err
}
