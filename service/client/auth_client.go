package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Errors of an auth client's input.
var (
	ErrAuthClientType       = fault.New(fault.Invalid, "auth_client_type_invalid", "The type of an auth client must be oauth2, basic, api_key or noauth.")
	ErrAuthClientScope      = fault.New(fault.Invalid, "auth_client_scope_invalid", "scope must be workspace, contract, tenant or global. Give scope_id only with workspace and contract.")
	ErrAuthClientComponents = fault.New(fault.Invalid, "auth_client_components_invalid", "An auth client needs 1 to 50 components, without duplicates.")
	// ErrAuthClientNotUsable refuses to create a credential with an auth client that manages no OAuth clients.
	ErrAuthClientNotUsable = fault.New(fault.Unprocessable, "auth_client_idle",
		"No credential can be created with this auth client: only auth clients of type oauth2 "+
			"that belong to the tenant are used. Omit it, or name one of those.")
	ErrAuthClientOther = fault.New(fault.Unprocessable, "auth_client_component_mismatch", "The auth client does not include this component.")
	// ErrOAuthClientSecretNeeded keeps the stored secret from the hosts of an added component.
	ErrOAuthClientSecretNeeded = fault.New(fault.Unprocessable, "oauth_client_secret_needed",
		"The component sends the client secret to a host that is not approved for it. To approve the host, include client_secret in the change.")
	// ErrOAuthClientFollows refuses to change an OAuth client that is managed by an auth
	// client.
	ErrOAuthClientFollows = fault.New(fault.Precondition, "oauth_client_follows", "An auth client manages this OAuth client. Change or delete the auth client.")
)

// maxAuthComponents bounds the components of an auth client.
const maxAuthComponents = 50

// typeOAuth2 is the type of auth clients whose components use OAuth. If such an auth client
// belongs to the tenant, it manages the OAuth clients of its components: they are defined,
// changed and deleted with it. All others are only stored.
const typeOAuth2 = "oauth2"

var authClientTypes = []string{typeOAuth2, "basic", "api_key", "noauth"}

// The members of an oauth2 auth client's credentials. All but the secret are returned to
// callers who may read the auth client. The endpoints are for components whose component.json
// has no usable ones.
const (
	clientIDMember     = "client_id"
	clientSecretMember = "client_secret"
)

var endpointMembers = []string{"auth_uri", "token_uri", "refresh_token_uri", "token_expires_in"}

var shownMembers = append([]string{clientIDMember}, endpointMembers...)

// endpointsOf returns the endpoints that an auth client supplies; zero without a token_uri.
func endpointsOf(credentials seal.Fields) commands.Endpoints {
	text := func(name string) string {
		v, _ := credentials.Text(name)
		return string(v.Reveal())
	}
	e := commands.Endpoints{AuthURI: text("auth_uri"), TokenURI: text("token_uri")}
	if e.TokenURI == "" {
		return commands.Endpoints{}
	}
	if renewed := text("refresh_token_uri"); renewed != e.TokenURI {
		e.RefreshURI = renewed
	}
	if seconds, err := strconv.Atoi(text("token_expires_in")); err == nil && seconds > 0 {
		e.Lifetime = seconds
	}
	return e
}

type CreateAuthClient struct {
	Name        string         `json:"name"`                        // display name
	Type        string         `json:"type"`                        // oauth2, basic, api_key or noauth
	Scope       string         `json:"scope,omitzero"`              // workspace, contract, tenant or global, which requires a key for every tenant; tenant when absent
	ScopeID     string         `json:"scope_id,omitzero"`           // of the workspace or contract: an id of the caller, stored as given
	Components  []string       `json:"components"`                  // ids, 1 to 50
	Credentials secrets.Keys   `json:"credentials,omitzero"`        // of type oauth2: client_id, client_secret, and optionally auth_uri, token_uri, refresh_token_uri and token_expires_in; else any
	Expected    map[string]int `json:"expected_revisions,omitzero"` // by component: refuse unless this is the revision of its current descriptor
	ID          string         `json:"id,omitzero"`                 // of an auth client that another system knows: 1 to 128 bytes of UTF-8 without control characters; generated when absent
}

func (s *Service) createAuthClient(ctx context.Context, call *service.Call, in CreateAuthClient) (service.Done, error) {
	if call.Resumed() != nil {
		return s.resumeAuthClient(ctx, call)
	}
	if in.Scope == "" {
		in.Scope = projections.ScopeTenant
	}
	if err := s.checkAuthClient(ctx, call, in); err != nil {
		return service.Done{}, err
	}
	id := cmp.Or(in.ID, call.DeriveID("auth_client"))
	created := events.AuthClientCreated{
		Name: in.Name, Type: in.Type, Scope: in.Scope, ScopeID: in.ScopeID, Fields: in.Credentials.Names(), ClientID: clientIDOf(in.Type, in.Credentials.Fields),
	}
	manages := ManagesOAuthClients(in.Type, in.Scope)
	var err error
	var revisions map[string]int
	if created.Components, revisions, err = s.authComponents(ctx, call, in.Type, manages, nil, in.Components, secretScope{now: true, expected: in.Expected, endpoints: endpointsOf(in.Credentials.Fields)}); err != nil {
		return service.Done{}, err
	}
	if manages {
		created.Revisions = aggregates.AuthClientState{Revisions: revisions}.RevisionsOf(created.Components)
	}
	before, err := aggregates.AuthClient.Fresh(ctx, s.Log, aggregates.AuthClient.Stream(call.Tenant, id))
	if err != nil {
		return service.Done{}, err
	}
	if in.ID != "" && before.Value.Exists { // unless it has the same credentials, no earlier attempt of this command created it
		has, err := s.authCredentials(ctx, call.Tenant, id, before.Value.SecretID)
		if err != nil {
			return service.Done{}, err
		}
		if !has.Marshal().Equal(in.Credentials.Marshal()) {
			return service.Done{}, aggregates.ErrAuthClientExists.At("/id")
		}
	}
	var done service.Done
	create := func(secretID string) error {
		created.SecretID = secretID
		done, err = s.executeAuthClient(ctx, call, commands.CreateAuthClient{ID: id, Created: created})
		return err
	}
	if before.Value.Exists || len(created.Fields) == 0 { // a repeat needs no other secret
		err = create("")
	} else {
		err = s.Secrets.WithSecret(ctx, authClientRef(call.Tenant, id, ""), in.Credentials.Marshal(), create)
	}
	if err != nil || !manages {
		return done, err
	}
	return s.settleCreated(ctx, call, id)
}

// settleCreated completes the creation of an auth client, or rolls it back.
func (s *Service) settleCreated(ctx context.Context, call *service.Call, id string) (service.Done, error) {
	done, err := s.settleAuthClient(ctx, call.Step(1), id)
	if isUpdateRejected(err) {
		return service.Done{}, errors.Join(err, s.dropAuthClient(ctx, call, id))
	}
	return done, err
}

// settleChanged completes the change of an auth client, or rolls it back.
func (s *Service) settleChanged(ctx context.Context, call *service.Call, id string, before aggregates.AuthClientState) (service.Done, error) {
	done, err := s.settleAuthClient(ctx, call.Step(1), id)
	if isUpdateRejected(err) {
		return service.Done{}, errors.Join(err, s.restoreAuthClient(ctx, call, id, asChange(before)))
	}
	return done, err
}

// settleDeleted completes the deletion of an auth client, or rolls it back.
func (s *Service) settleDeleted(ctx context.Context, call *service.Call, id string, before aggregates.AuthClientState) (service.Done, error) {
	if done, err := s.settleChanged(ctx, call, id, before); err != nil {
		return done, err
	}
	return s.executeAuthClient(ctx, call.Step(2), commands.DeleteAuthClient{ID: id})
}

// resumeAuthClient completes a command whose first commit is in the log, unless another command
// has changed the auth client since.
func (s *Service) resumeAuthClient(ctx context.Context, call *service.Call) (service.Done, error) {
	recs := call.Resumed()
	id := recs[0].Stream.ID
	before, after, err := aggregates.AuthClient.Around(ctx, s.Log, recs)
	if err != nil {
		return service.Done{}, err
	}
	if !after.Exists || after.Settled { // one commit was sufficient
		return s.Kernel.Answered(recs[0].Stream, before, after, recs[0].Seq), nil
	}
	now, err := aggregates.AuthClient.Fresh(ctx, s.Log, recs[0].Stream)
	switch {
	case err != nil:
		return service.Done{}, err
	case !now.Value.Exists && call.Route == "auth_client.delete":
		return s.Kernel.Answered(recs[0].Stream, before, now.Value, now.Seq), nil
	case now.Value.Changes != after.Changes:
		return service.Done{}, aggregates.ErrAuthClientChanged
	}
	switch call.Route {
	case "auth_client.create":
		return s.settleCreated(ctx, call, id)
	case "auth_client.delete":
		return s.settleDeleted(ctx, call, id, before)
	}
	return s.settleChanged(ctx, call, id, before)
}

// checkAuthClient validates a new auth client, except its components.
func (s *Service) checkAuthClient(ctx context.Context, call *service.Call, in CreateAuthClient) error {
	if err := cmp.Or(service.CheckName("/name", in.Name), commands.CheckRef("/id", in.ID)); err != nil {
		return err
	}
	if !slices.Contains(authClientTypes, in.Type) {
		return ErrAuthClientType.At("/type")
	}
	if err := checkScopeFilter(in.Scope, in.ScopeID); err != nil {
		return err
	}
	if err := s.mayScope(ctx, call, in.Scope, permission.OAuthClientsCreate); err != nil {
		return err
	}
	return checkAuthCredentials(in.Type, in.Credentials.Fields)
}

// checkScopeFilter validates a scope filter ("" matches all) and its id, which workspace and
// contract require.
func checkScopeFilter(scope, id string) error {
	switch scope {
	case projections.ScopeWorkspace, projections.ScopeContract:
		if err := service.Required("/scope_id", id); err != nil {
			return err
		}
		return service.PointAt(events.CheckID(id), "/scope_id")
	case "", projections.ScopeTenant, projections.ScopeGlobal:
		if id != "" {
			return ErrAuthClientScope.At("/scope_id")
		}
		return nil
	}
	return ErrAuthClientScope.At("/scope")
}

// mayScope returns an error for a global auth client if the caller is not granted all tenants.
func (s *Service) mayScope(ctx context.Context, call *service.Call, scope string, perm permission.Permission) error {
	if scope != projections.ScopeGlobal || slices.Contains(call.Principal.Tenants, service.AllTenants) {
		return nil
	}
	s.Access.Denied(ctx, call, perm)
	return service.ErrDenied.Withf("A global auth client requires the permission %s and a key for all tenants (*).", perm)
}

func checkAuthCredentials(typ string, credentials seal.Fields) error {
	const at = "/credentials"
	if err := secrets.CheckMask(credentials); err != nil {
		return repoint(err, "/keys", at)
	}
	if typ != typeOAuth2 {
		return nil
	}
	for _, name := range credentials.Names() {
		if name != clientSecretMember && !slices.Contains(shownMembers, name) {
			return service.ErrBody.Withf("Unknown member of the credentials of an oauth2 auth client.").At(at + "/" + service.EscapePointer(name))
		}
		if v, text := credentials.Text(name); !text || len(v.Reveal()) > 4096 {
			return service.ErrBody.Withf("The member must be a string of at most 4096 characters.").At(at + "/" + service.EscapePointer(name))
		}
	}
	id, _ := credentials.Text(clientIDMember)
	if err := checkClientID(string(id.Reveal())); err != nil {
		return repoint(err, "/client_id", at+"/"+clientIDMember)
	}
	if secret, _ := credentials.Text(clientSecretMember); len(secret.Reveal()) == 0 {
		return service.Required(at+"/"+clientSecretMember, "")
	}
	return nil
}

// repoint replaces the pointer prefix place by other.
func repoint(err error, place, other string) error {
	f := fault.Of(err)
	if f == nil || len(f.Pointer) < len(place) || f.Pointer[:len(place)] != place {
		return err
	}
	return f.At(other + f.Pointer[len(place):])
}

func clientIDOf(typ string, credentials seal.Fields) string {
	if typ != typeOAuth2 {
		return ""
	}
	id, _ := credentials.Text(clientIDMember)
	return string(id.Reveal())
}

// ManagesOAuthClients reports whether an auth client manages the OAuth clients of its components.
func ManagesOAuthClients(typ, scope string) bool {
	return typ == typeOAuth2 && scope == projections.ScopeTenant
}

// authComponents validates the components of an auth client. Components in before are accepted
// unchanged. Each other one must exist, match the type, have no OAuth client if the auth client
// would manage it, and not send the secret to an unapproved host. It returns the components and
// the revisions that it checked.
func (s *Service) authComponents(ctx context.Context, call *service.Call, typ string, manages bool, before []events.AuthClientComponent, ids []string, secret secretScope) (now []events.AuthClientComponent, revisions map[string]int, err error) {
	if len(ids) == 0 || len(ids) > maxAuthComponents {
		return nil, nil, ErrAuthClientComponents.At("/components")
	}
	revisions = map[string]int{}
	for i, id := range ids {
		at := "/components/" + strconv.Itoa(i)
		if slices.Contains(ids[:i], id) {
			return nil, nil, ErrAuthClientComponents.At(at)
		}
		if n := slices.IndexFunc(before, func(c events.AuthClientComponent) bool { return c.Component == id }); n >= 0 {
			now = append(now, before[n])
			continue
		}
		d, revision, err := s.Components.UsableAt(ctx, call.Tenant, id, "", secret.expected[id])
		switch {
		case errors.Is(err, aggregates.ErrComponentChanged):
			return nil, nil, service.PointAt(err, expectedOf(id))
		case errors.Is(err, aggregates.ErrComponentNotFound), errors.Is(err, aggregates.ErrComponentDeleted):
			return nil, nil, ErrOAuthClientComponent.Withf("%s", fault.Of(err).Msg).At(at)
		case err != nil:
			return nil, nil, err
		case typ == typeOAuth2 && !d.WantsClient && !d.AcceptsEndpoints():
			return nil, nil, ErrOAuthNotDeclared.At(at)
		}
		c := events.AuthClientComponent{Component: id}
		if manages {
			c.OAuthClient = call.DeriveID("oauth_client/" + id)
			client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(call.Tenant, id))
			if err != nil {
				return nil, nil, err
			}
			if other := client.Value.ID; other != "" && other != c.OAuthClient {
				return nil, nil, aggregates.ErrOAuthClientExists.At(at)
			}
			if d, err = d.WithEndpoints(secret.endpoints); err != nil {
				return nil, nil, repoint(err, "", "/credentials")
			}
			if beyond := append(d.OAuth2.Beyond(secret.blocks...), d.OAuth2.ConsentBeyond(secret.blocks...)...); len(beyond) > 0 && !secret.now {
				return nil, nil, ErrOAuthClientSecretNeeded.Withf("The component has hosts for tokens or for the consent of users that are not approved for the client secret: %s. "+
					"To approve them, include client_secret in the change.", strings.Join(beyond, " and ")).At(at)
			}
			revisions[id] = revision
		}
		now = append(now, c)
	}
	return now, revisions, nil
}

// secretScope is what the secret of an auth client is approved for.
type secretScope struct {
	now    bool               // the request contains the secret, so all hosts of the components are approved
	known  map[string]int     // by component: descriptor revision that the secret was last approved for
	blocks []*commands.OAuth2 // OAuth blocks of all approved revisions

	endpoints commands.Endpoints // that the auth client supplies

	expected map[string]int // by component: the revision that the caller has reviewed
}

// expectedOf returns the pointer to the expected revision of a component.
func expectedOf(component string) string {
	return "/expected_revisions/" + service.EscapePointer(component)
}

// secretOf returns what the stored secret of an auth client is approved for.
func (s *Service) secretOf(ctx context.Context, tenant string, a aggregates.AuthClientState) (secretScope, error) {
	secret := secretScope{known: map[string]int{}}
	for _, c := range a.Components {
		client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(tenant, c.Component))
		switch {
		case err != nil:
			return secret, err
		case client.Value.ID != c.OAuthClient || client.Value.Unusable:
			continue
		}
		if secret.known[c.Component] = a.Revisions[c.Component]; secret.known[c.Component] == 0 {
			secret.known[c.Component] = client.Value.Revision()
		}
		blocks, _, err := s.approvedProviders(ctx, tenant, c.Component, client.Value)
		if err != nil {
			return secret, err
		}
		secret.blocks = append(secret.blocks, blocks...)
	}
	return secret, nil
}

// revisions returns, per component, the descriptor revision that the secret is approved for
// after the change. added has those of new components.
func (s *Service) revisions(ctx context.Context, tenant string, components []events.AuthClientComponent, added map[string]int, secret secretScope) ([]int, error) {
	all := make([]int, len(components))
	for i, c := range components {
		all[i] = cmp.Or(added[c.Component], secret.known[c.Component])
		if !secret.now || added[c.Component] != 0 {
			continue
		}
		revision, err := s.currentRevision(ctx, tenant, c.Component)
		if err == nil {
			err = component.CheckRevision(expectedOf(c.Component), secret.expected[c.Component], revision)
		}
		if err != nil && !errors.Is(err, aggregates.ErrOAuthClientUnusable) {
			return nil, err
		}
		all[i] = cmp.Or(revision, all[i]) // a deleted or no longer shared component keeps its revision
	}
	return all, nil
}

// checkExpected refuses expected revisions that are not the current ones.
func (s *Service) checkExpected(ctx context.Context, tenant string, components []events.AuthClientComponent, expected map[string]int) error {
	for _, c := range components {
		if expected[c.Component] == 0 {
			continue
		}
		revision, err := s.currentRevision(ctx, tenant, c.Component)
		if err == nil {
			err = component.CheckRevision(expectedOf(c.Component), expected[c.Component], revision)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// authClientRef is the vault reference of an auth client's credentials.
func authClientRef(tenant, id, secretID string) vault.Ref {
	return vault.Ref{Tenant: tenant, Category: aggregates.AuthClient.Category, Owner: id, SecretID: secretID}
}

// executeAuthClient executes a command, and erases the secrets that neither the auth client nor
// a rollback needs.
func (s *Service) executeAuthClient(ctx context.Context, call *service.Call, cmd commands.AuthClient) (service.Done, error) {
	before, after, err := secrets.Change(ctx, s.Secrets, call, aggregates.AuthClient, call.Tenant, cmd)
	if err != nil {
		return service.Done{}, err
	}
	return s.Kernel.Answered(aggregates.AuthClient.Stream(call.Tenant, cmd.Target()), before, after.Value, after.Seq), nil
}

// settleAuthClient updates the OAuth clients of the components and records that they are up to
// date. It is idempotent. After an error, some may be updated and others not.
func (s *Service) settleAuthClient(ctx context.Context, call *service.Call, id string) (service.Done, error) {
	now, err := aggregates.AuthClient.Fresh(ctx, s.Log, aggregates.AuthClient.Stream(call.Tenant, id))
	if err != nil {
		return service.Done{}, err
	}
	if !now.Value.Settled {
		if err := s.updateOAuthClients(ctx, call, id, now.Value); err != nil {
			return service.Done{}, err
		}
	}
	return s.executeAuthClient(ctx, call, commands.SettleAuthClient{ID: id, Expected: now.Value.Changes})
}

// isUpdateRejected reports whether the update of an OAuth client was rejected for good. A concurrent
// change and a repeat do not count.
func isUpdateRejected(err error) bool {
	_, repeated := errors.AsType[*service.Repeat](err)
	return err != nil && !repeated && service.IsRejected(err) && !errors.Is(err, aggregates.ErrAuthClientChanged) && !errors.Is(err, aggregates.ErrOAuthClientMoved)
}

// updateOAuthClients updates the OAuth clients of the components, but does not record that they are up to
// date.
func (s *Service) updateOAuthClients(ctx context.Context, call *service.Call, id string, a aggregates.AuthClientState) error {
	for i, c := range a.Leaving {
		client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(call.Tenant, c.Component))
		if err == nil && client.Value.ID == c.OAuthClient {
			_, err = s.changeClient(ctx, call.Step(100+i), commands.DeleteOAuthClient{Component: c.Component, ID: c.OAuthClient})
		}
		if err != nil && !errors.Is(err, aggregates.ErrOAuthClientNotFound) {
			return err
		}
	}
	var credentials seal.Fields
	for i, c := range a.Components {
		client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(call.Tenant, c.Component))
		own := client.Value.ID == c.OAuthClient
		if err != nil {
			return err
		}
		if own && (!a.Renew || client.Value.Unusable) { // an unusable client is not updated
			continue
		}
		if len(credentials.Names()) == 0 {
			if credentials, err = s.authCredentials(ctx, call.Tenant, id, a.SecretID); err != nil {
				return err
			}
		}
		secret, _ := credentials.Text(clientSecretMember)
		step := call.Step(200 + i)
		endpoints, err := s.endpointsFor(ctx, c.Component, append(slices.Clone(client.Value.Revisions), a.Revisions[c.Component]), endpointsOf(credentials))
		if err != nil {
			return err
		}
		if own {
			cmd := commands.ChangeOAuthClient{Endpoints: &endpoints, Component: c.Component, ID: c.OAuthClient, ClientID: a.ClientID, Revision: a.Revisions[c.Component]}
			_, err = s.changeDefined(ctx, step, cmd, secret)
		} else {
			cmd := commands.DefineOAuthClient{Endpoints: endpoints, Component: c.Component, ID: c.OAuthClient, ClientID: a.ClientID, Revision: a.Revisions[c.Component]}
			_, err = s.define(ctx, step, cmd, secret, 0)
		}
		switch {
		case errors.Is(err, aggregates.ErrOAuthClientUnusable): // the component was deleted
		case err != nil:
			return service.PointAt(err, "/components/"+strconv.Itoa(i))
		}
	}
	return nil
}

// endpointsFor returns the endpoints for one component: none if all of these revisions of its
// component.json have usable ones. Credentials of an older revision may still need them.
func (s *Service) endpointsFor(ctx context.Context, component string, revisions []int, e commands.Endpoints) (commands.Endpoints, error) {
	if e == (commands.Endpoints{}) {
		return e, nil
	}
	for _, revision := range revisions {
		if revision == 0 {
			continue
		}
		if d, err := s.Components.Descriptor(ctx, component, revision); err != nil || d.AcceptsEndpoints() {
			return e, err
		}
	}
	return commands.Endpoints{}, nil
}

// authCredentials decrypts the credentials of an auth client.
func (s *Service) authCredentials(ctx context.Context, tenant, id, secretID string) (seal.Fields, error) {
	if secretID == "" {
		return seal.Fields{}, nil
	}
	secret, err := s.Vault.Get(ctx, authClientRef(tenant, id, secretID))
	if err != nil {
		return seal.Fields{}, fmt.Errorf("open the credentials of auth client %s: %w", id, err)
	}
	return seal.ParseFields(secret.Reveal())
}

// asChange returns the state of an auth client as the event that restores it.
func asChange(a aggregates.AuthClientState) events.AuthClientChanged {
	changed := events.AuthClientChanged{Name: a.Name, Components: a.Components, Fields: a.Fields, ClientID: a.ClientID, SecretID: a.SecretID}
	if ManagesOAuthClients(a.Type, a.Scope) {
		changed.Revisions = a.RevisionsOf(a.Components)
	}
	return changed
}

// restoreAuthClient restores an earlier state. Its OAuth clients exist, so updating them cannot
// be rejected.
func (s *Service) restoreAuthClient(ctx context.Context, call *service.Call, id string, to events.AuthClientChanged) error {
	now, err := aggregates.AuthClient.Fresh(ctx, s.Log, aggregates.AuthClient.Stream(call.Tenant, id))
	if err != nil {
		return err
	}
	if _, err := s.executeAuthClient(ctx, call.Step(300), commands.ChangeAuthClient{ID: id, Expected: now.Value.Changes, Changed: to}); err != nil {
		return err
	}
	_, err = s.settleAuthClient(ctx, call.Step(301), id)
	return err
}

// dropAuthClient deletes an auth client whose creation could not be completed.
func (s *Service) dropAuthClient(ctx context.Context, call *service.Call, id string) error {
	now, err := aggregates.AuthClient.Fresh(ctx, s.Log, aggregates.AuthClient.Stream(call.Tenant, id))
	if err != nil {
		return err
	}
	to := asChange(now.Value)
	to.Components, to.Revisions = []events.AuthClientComponent{}, nil
	if err := s.restoreAuthClient(ctx, call, id, to); err != nil {
		return err
	}
	_, err = s.executeAuthClient(ctx, call.Step(302), commands.DeleteAuthClient{ID: id})
	return err
}

// AuthClientRef identifies an auth client.
type AuthClientRef struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// AuthClient returns an auth client that is visible to the tenant, from the read models. fresh
// waits until they reflect the end of the log.
func (s *Service) AuthClient(ctx context.Context, call *service.Call, ref AuthClientRef, fresh bool) (projections.AuthClient, error) {
	var none projections.AuthClient
	if err := service.Required("/id", ref.ID); err != nil {
		return none, err
	}
	if events.CheckID(ref.ID) != nil {
		return none, aggregates.ErrAuthClientNotFound
	}
	seq := ref.MinSeq
	if fresh { // include everything that any process has acknowledged
		end, err := s.Log.Store.End(ctx)
		if err != nil {
			return none, err
		}
		seq = max(seq, end)
	}
	if err := s.Kernel.AtLeast(ctx, seq); err != nil {
		return none, err
	}
	k, found, err := s.Views.AuthClient(ctx, call.Tenant, ref.ID)
	switch {
	case err != nil:
		return none, err
	case !found:
		return none, aggregates.ErrAuthClientNotFound
	}
	return k, nil
}

// findWritable returns an auth client that the caller may change: a call in the owning tenant,
// and the state.
func (s *Service) findWritable(ctx context.Context, call *service.Call, id string, perm permission.Permission) (*service.Call, aggregates.AuthClientState, error) {
	var none aggregates.AuthClientState
	k, err := s.AuthClient(ctx, call, AuthClientRef{ID: id}, true)
	if err != nil {
		return nil, none, err
	}
	if err := s.mayScope(ctx, call, k.Scope, perm); err != nil {
		return nil, none, err
	}
	home := call
	if k.Tenant != call.Tenant { // a global auth client: the command id stays in the caller's tenant
		home = call.Step(1)
		home.Tenant = k.Tenant
	}
	state, err := aggregates.AuthClient.Fresh(ctx, s.Log, aggregates.AuthClient.Stream(k.Tenant, id))
	switch {
	case err != nil:
		return nil, none, err
	case !state.Value.Exists:
		return nil, none, aggregates.ErrAuthClientNotFound
	case !state.Value.Settled:
		return nil, none, aggregates.ErrAuthClientUnsettled
	}
	return home, state.Value, nil
}

// ChangeAuthClient requests a change of an auth client. Absent members are unchanged.
type ChangeAuthClient struct {
	ID          string         `json:"id"`
	Name        string         `json:"name,omitzero"`
	Components  []string       `json:"components,omitzero"`         // ids; they replace all
	Credentials secrets.Keys   `json:"credentials,omitzero"`        // replace the members of the same name; null removes one
	Expected    map[string]int `json:"expected_revisions,omitzero"` // by component: refuse unless this is the revision of its current descriptor
}

func (s *Service) changeAuthClient(ctx context.Context, call *service.Call, in ChangeAuthClient) (service.Done, error) {
	if call.Resumed() != nil {
		return s.resumeAuthClient(ctx, call)
	}
	home, before, err := s.findWritable(ctx, call, in.ID, permission.OAuthClientsEdit)
	if err != nil {
		return service.Done{}, err
	}
	manages := ManagesOAuthClients(before.Type, before.Scope)
	var secret secretScope
	if manages {
		if secret, err = s.secretOf(ctx, home.Tenant, before); err != nil {
			return service.Done{}, err
		}
		before.Revisions, secret.now = secret.known, slices.Contains(in.Credentials.Names(), clientSecretMember)
		credentials, err := s.mergeCredentials(ctx, home, in, before)
		if err != nil {
			return service.Done{}, err
		}
		secret.endpoints = endpointsOf(credentials)
	}
	secret.expected = in.Expected
	next := asChange(before)
	if in.Name != "" {
		if err := service.CheckName("/name", in.Name); err != nil {
			return service.Done{}, err
		}
		next.Name = in.Name
	}
	var added map[string]int
	if in.Components != nil {
		if next.Components, added, err = s.authComponents(ctx, home, before.Type, manages, before.Components, in.Components, secret); err != nil {
			return service.Done{}, err
		}
		if err := s.checkNotInUse(ctx, home, before, next.Components); err != nil {
			return service.Done{}, err
		}
	}
	if manages {
		if next.Revisions, err = s.revisions(ctx, home.Tenant, next.Components, added, secret); err != nil {
			return service.Done{}, err
		}
	} else if len(in.Credentials.Names()) > 0 {
		if err := s.checkExpected(ctx, home.Tenant, next.Components, in.Expected); err != nil {
			return service.Done{}, err
		}
	}
	var done service.Done
	change := func(secretID string) error {
		next.SecretID = secretID
		done, err = s.executeAuthClient(ctx, home, commands.ChangeAuthClient{ID: in.ID, Expected: before.Changes, Changed: next})
		return err
	}
	if len(in.Credentials.Names()) == 0 {
		err = change(before.SecretID)
	} else {
		var credentials seal.Fields
		if credentials, err = s.mergeCredentials(ctx, home, in, before); err != nil {
			return service.Done{}, err
		}
		next.Fields, next.ClientID = credentials.Names(), clientIDOf(before.Type, credentials)
		if manages {
			if err := s.checkNewEndpoints(ctx, home, in, before, next.Components, credentials); err != nil {
				return service.Done{}, err
			}
		}
		err = s.Secrets.WithSecret(ctx, authClientRef(home.Tenant, in.ID, ""), credentials.Marshal(), change)
	}
	if err != nil || !manages {
		return done, err
	}
	return s.settleChanged(ctx, home, in.ID, before)
}

// checkNewEndpoints validates endpoints that a change adds or replaces. The secret goes to them, so
// the caller must enter it.
func (s *Service) checkNewEndpoints(ctx context.Context, call *service.Call, in ChangeAuthClient, before aggregates.AuthClientState, components []events.AuthClientComponent, merged seal.Fields) error {
	if !slices.ContainsFunc(in.Credentials.Names(), func(name string) bool { return slices.Contains(endpointMembers, name) }) {
		return nil
	}
	old, err := s.authCredentials(ctx, call.Tenant, in.ID, before.SecretID)
	if err != nil || endpointsOf(old) == endpointsOf(merged) {
		return err
	}
	if !slices.Contains(in.Credentials.Names(), clientSecretMember) {
		return aggregates.ErrOAuthEndpointsSecret.At("/credentials/" + clientSecretMember)
	}
	for _, c := range components {
		d, _, err := s.Components.UsableAt(ctx, call.Tenant, c.Component, "", 0)
		if errors.Is(err, aggregates.ErrComponentNotFound) || errors.Is(err, aggregates.ErrComponentDeleted) {
			continue
		}
		if err == nil {
			_, err = d.WithEndpoints(endpointsOf(merged))
		}
		if err != nil {
			return repoint(err, "", "/credentials")
		}
	}
	return nil
}

// mergeCredentials returns the stored credentials, updated with those of a change.
func (s *Service) mergeCredentials(ctx context.Context, call *service.Call, in ChangeAuthClient, before aggregates.AuthClientState) (seal.Fields, error) {
	old, err := s.authCredentials(ctx, call.Tenant, in.ID, before.SecretID)
	if err != nil {
		return old, err
	}
	merged := in.Credentials.Over(old)
	for _, name := range in.Credentials.Names() {
		if v, _ := in.Credentials.Get(name); string(v.Reveal()) == "null" {
			merged = merged.Without(name)
		}
	}
	return merged, checkAuthCredentials(before.Type, merged)
}

// checkNotInUse returns an error with the flows if an OAuth client to be dropped is in use. The
// OAuth client's aggregate enforces this too; this check adds the flows to the error.
func (s *Service) checkNotInUse(ctx context.Context, call *service.Call, before aggregates.AuthClientState, now []events.AuthClientComponent) error {
	for _, c := range before.Components {
		if c.OAuthClient == "" || slices.Contains(now, c) {
			continue
		}
		client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(call.Tenant, c.Component))
		switch k := client.Value; {
		case err != nil:
			return err
		case k.ID == c.OAuthClient && k.Uses.Len() > 0 && !k.Unusable:
			return s.clientInUse(ctx, call, c.Component, k)
		}
	}
	return nil
}

func (s *Service) deleteAuthClient(ctx context.Context, call *service.Call, in AuthClientRef) (service.Done, error) {
	if call.Resumed() != nil {
		return s.resumeAuthClient(ctx, call)
	}
	home, before, err := s.findWritable(ctx, call, in.ID, permission.OAuthClientsDelete)
	if err != nil {
		return service.Done{}, err
	}
	if err := s.checkNotInUse(ctx, home, before, nil); err != nil {
		return service.Done{}, err
	}
	if ManagesOAuthClients(before.Type, before.Scope) && len(before.Components) > 0 {
		empty := asChange(before)
		empty.Components, empty.Revisions = []events.AuthClientComponent{}, nil
		if _, err := s.executeAuthClient(ctx, home, commands.ChangeAuthClient{ID: in.ID, Expected: before.Changes, Changed: empty}); err != nil {
			return service.Done{}, err
		}
		return s.settleDeleted(ctx, home, in.ID, before)
	}
	return s.executeAuthClient(ctx, home, commands.DeleteAuthClient{ID: in.ID})
}

// ReconcileAuthClients completes changes that a crash interrupted. If an update is rejected,
// the auth client keeps only the components whose OAuth clients it manages.
func (s *Service) ReconcileAuthClients(ctx context.Context) error {
	const since = time.Minute // by then, no command is still changing it
	list, err := s.Views.UnsettledAuthClients(ctx, s.Kernel.Now().Add(-since), service.BackgroundBatch)
	errs := []error{err}
	for _, k := range list {
		call := service.System(k.Tenant, "keeper")
		_, err := s.settleAuthClient(ctx, call, k.ID)
		if isUpdateRejected(err) {
			err = s.rollBackToActual(ctx, call, k.ID)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (s *Service) rollBackToActual(ctx context.Context, call *service.Call, id string) error {
	state, err := aggregates.AuthClient.Fresh(ctx, s.Log, aggregates.AuthClient.Stream(call.Tenant, id))
	if err != nil || !state.Value.Exists {
		return err
	}
	to := asChange(state.Value)
	to.Components = []events.AuthClientComponent{}
	for _, c := range slices.Concat(state.Value.Components, state.Value.Leaving) {
		client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(call.Tenant, c.Component))
		if err != nil {
			return err
		}
		if client.Value.ID == c.OAuthClient && !slices.Contains(to.Components, c) {
			to.Components = append(to.Components, c)
		}
	}
	to.Revisions = state.Value.RevisionsOf(to.Components)
	return s.restoreAuthClient(ctx, call, id, to)
}

// checkNotManaged returns ErrOAuthClientFollows for an OAuth client that an auth client manages.
func (s *Service) checkNotManaged(ctx context.Context, k projections.OAuthClient) error {
	a, found, err := s.Views.AuthClientFollowed(ctx, k.Tenant, k.Component)
	if err != nil || !found || !slices.Contains(a.Components, events.AuthClientComponent{Component: k.Component, OAuthClient: k.ID}) {
		return err
	}
	return ErrOAuthClientFollows.Withf("The auth client %s manages this OAuth client. Change or delete the auth client.", a.ID)
}

// AuthClient is the public form of an auth client.
type AuthClient struct {
	ID          string                `json:"id"`
	Name        string                `json:"name"`
	Type        string                `json:"type"`              // oauth2, basic, api_key or noauth
	Scope       string                `json:"scope"`             // workspace, contract, tenant or global
	ScopeID     string                `json:"scope_id,omitzero"` // of the workspace or contract
	Components  []AuthClientComponent `json:"components"`
	Credentials map[string]any        `json:"credentials"` // by member: "********", or the value if it is not secret; all masked in a global auth client, unless the caller is granted all tenants
	Settled     bool                  `json:"settled"`     // whether the last change has reached the OAuth clients of its components
	CreatedAt   time.Time             `json:"created_at"`
	CreatedBy   string                `json:"created_by,omitzero"` // "key:<id>"; absent if it belongs to another tenant
	UpdatedAt   time.Time             `json:"updated_at"`
	Seq         uint64                `json:"seq"` // log sequence of the last change
}

// AuthClientComponent is a component of an auth client.
type AuthClientComponent struct {
	Component   string `json:"component"`
	OAuthClient string `json:"oauth_client,omitzero"` // id of the OAuth client that the auth client manages; absent if there is none
}

// authClientInfo returns the public form, without decrypting anything.
func authClientInfo(call *service.Call, k projections.AuthClient) AuthClient {
	a := AuthClient{
		ID: k.ID, Name: k.Name, Type: k.Type, Scope: k.Scope, ScopeID: k.ScopeID, Components: make([]AuthClientComponent, len(k.Components)),
		Credentials: map[string]any{}, Settled: k.Settled, CreatedAt: k.CreatedAt, UpdatedAt: k.UpdatedAt, Seq: k.Seq,
	}
	for i, c := range k.Components {
		a.Components[i] = AuthClientComponent(c)
	}
	for _, name := range k.Fields {
		a.Credentials[name] = secrets.Mask
	}
	if call.Tenant == k.Tenant {
		a.CreatedBy = k.CreatedBy
	}
	if k.ClientID != "" && seesCredentials(call, k) {
		a.Credentials[clientIDMember] = k.ClientID
	}
	return a
}

// seesCredentials reports whether the caller may see the unmasked members.
func seesCredentials(call *service.Call, k projections.AuthClient) bool {
	return k.Scope != projections.ScopeGlobal || slices.Contains(call.Principal.Tenants, service.AllTenants)
}

type GetAuthClient struct {
	ID      string `json:"id"`
	Scope   string `json:"scope,omitzero"`    // only if it is visible in this scope, as in ListAuthClients
	ScopeID string `json:"scope_id,omitzero"` // of the workspace or contract
	MinSeq  uint64 `json:"min_seq,omitzero"`  // wait until the response reflects this log sequence
}

func (s *Service) getAuthClient(ctx context.Context, call *service.Call, in GetAuthClient) (AuthClient, error) {
	if err := checkScopeFilter(in.Scope, in.ScopeID); err != nil {
		return AuthClient{}, err
	}
	k, err := s.AuthClient(ctx, call, AuthClientRef{ID: in.ID, MinSeq: in.MinSeq}, false)
	switch {
	case err != nil:
		return AuthClient{}, err
	case in.Scope == "", k.Scope == projections.ScopeGlobal, k.Scope == projections.ScopeTenant && in.Scope != projections.ScopeGlobal,
		k.Scope == in.Scope && k.ScopeID == in.ScopeID:
	default:
		return AuthClient{}, aggregates.ErrAuthClientNotFound
	}
	a := authClientInfo(call, k)
	if k.Type != typeOAuth2 || !seesCredentials(call, k) {
		return a, nil
	}
	credentials, err := s.authCredentials(ctx, k.Tenant, k.ID, k.SecretID)
	if errors.Is(err, vault.ErrNoSecret) { // it was changed concurrently
		return a, nil
	}
	for _, name := range shownMembers {
		if v, ok := credentials.Get(name); ok {
			a.Credentials[name] = jsontext.Value(v.Reveal())
		}
	}
	return a, err
}

// ListAuthClients requests the auth clients that are visible to the tenant: its own and the
// global ones. Filters combine by AND.
type ListAuthClients struct {
	Component string `json:"component,omitzero"` // only those that include this component
	Scope     string `json:"scope,omitzero"`     // only those visible in this scope: workspace and contract include tenant and global; tenant includes global
	ScopeID   string `json:"scope_id,omitzero"`  // of the workspace or contract
	Limit     int    `json:"limit,omitzero"`     // 1 to 200; 50 when absent
	After     string `json:"after,omitzero"`     // cursor of the previous page, with the same filter
	MinSeq    uint64 `json:"min_seq,omitzero"`   // wait until the response reflects this log sequence
}

// AuthClientList is a page of auth clients, oldest first.
type AuthClientList struct {
	AuthClients []AuthClient `json:"auth_clients"`
	Next        string       `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total       int          `json:"total"`         // number of auth clients on all pages
}

func (s *Service) listAuthClients(ctx context.Context, call *service.Call, in ListAuthClients) (AuthClientList, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return AuthClientList{}, err
	}
	if err := checkScopeFilter(in.Scope, in.ScopeID); err != nil {
		return AuthClientList{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return AuthClientList{}, err
	}
	list := AuthClientList{AuthClients: []AuthClient{}}
	page, next, total, err := s.Views.AuthClients(ctx, projections.AuthClientFilter{
		Tenant: call.Tenant, Component: in.Component, Scope: in.Scope, ScopeID: in.ScopeID, Limit: limit, After: in.After,
	})
	list.Next, list.Total = next, total
	for _, k := range page {
		list.AuthClients = append(list.AuthClients, authClientInfo(call, k))
	}
	return list, err
}

// RevealedAuthClient is the response to a reveal of an auth client.
type RevealedAuthClient struct {
	service.Done
	Credentials map[string]any `json:"credentials"` // the clear values, by member
}

type RevealAuthClient struct {
	ID string `json:"id"`
}

// revealAuthClient returns the clear credentials of one auth client. The audit event is
// committed first.
func (s *Service) revealAuthClient(ctx context.Context, call *service.Call, in RevealAuthClient) (RevealedAuthClient, error) {
	home, state, err := s.findWritable(ctx, call, in.ID, permission.CredentialsReveal)
	if err != nil {
		return RevealedAuthClient{}, err
	}
	credentials, err := s.authCredentials(ctx, home.Tenant, in.ID, state.SecretID)
	if err != nil {
		return RevealedAuthClient{}, err
	}
	done, err := s.executeAuthClient(ctx, home, commands.RevealAuthClient{ID: in.ID, SecretID: state.SecretID})
	if err != nil {
		return RevealedAuthClient{}, err
	}
	shown := RevealedAuthClient{done, map[string]any{}}
	for _, name := range credentials.Names() {
		if v, ok := credentials.Get(name); ok {
			shown.Credentials[name] = jsontext.Value(v.Reveal())
		}
	}
	return shown, nil
}
