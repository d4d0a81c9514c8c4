package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/secrets"
	"github.com/credstream/credstream/vault"
)

// Errors of an OAuth client's input.
var (
	ErrOAuthNotDeclared = fault.New(fault.Unprocessable, "oauth_not_declared",
		"The component does not use an OAuth client of the tenant: its component.json has "+
			"neither \"useOAuthClient\": true nor \"oauth2\" among its authClientTypes.")
	ErrOAuthClientComponent = fault.New(fault.Unprocessable, "oauth_client_component_invalid",
		"The component does not exist in this tenant or was deleted.")
	ErrOAuthClientFixed = fault.New(fault.Unprocessable, "oauth_client_component_fixed",
		"The component of an OAuth client cannot be changed. Delete the client and define another one.")
	ErrOAuthClientMissing = fault.New(fault.Unprocessable, "oauth_client_missing",
		"The component requires an OAuth client, and this tenant has none. Define it with oauth_client.define.")
	ErrClientID = fault.New(fault.Invalid, "oauth_client_id_invalid", "A client id must have 1 to 512 printable ASCII characters.")
)

// Missing is ErrOAuthClientMissing with the remedy that the component allows: to define an OAuth
// client, or to set the component's variables.
func Missing(d commands.Descriptor) *fault.Error {
	if d.WantsClient {
		return ErrOAuthClientMissing
	}
	return ErrOAuthClientMissing.Withf("The component requires an OAuth client, and its variables have no values. "+
		"The component's owner sets %s and %s with component.set-env (credstream component set-env).", d.ClientIDVar, d.ClientSecretVar)
}

type DefineOAuthClient struct {
	Component    string         `json:"component"`
	ClientID     string         `json:"client_id"`                  // as issued by the provider
	ClientSecret secrets.Secret `json:"client_secret,omitzero"`     // returned only to callers who may reveal it; required unless the component declares public clients
	Expected     int            `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
	Expires      *time.Time     `json:"secret_expires_at,omitzero"` // when the secret expires at the provider, for early warnings; never when absent
	Endpoints                   // only if the component.json has none that are usable
}

// Endpoints are the endpoints of the provider, for a component.json without usable ones.
type Endpoints struct {
	AuthURI       string `json:"auth_uri,omitzero"`       // without it, the client requests tokens for itself (client credentials)
	TokenURI      string `json:"token_uri,omitzero"`      // needed if the component.json has no usable endpoints, else refused
	RefreshURI    string `json:"refresh_uri,omitzero"`    // if tokens are renewed elsewhere
	RevocationURI string `json:"revocation_uri,omitzero"` // RFC 7009
	Scopes        string `json:"scopes,omitzero"`         // separated by spaces; those of the component.json when absent
}

func (e Endpoints) stored() commands.Endpoints {
	return commands.Endpoints{AuthURI: e.AuthURI, TokenURI: e.TokenURI, RefreshURI: e.RefreshURI, RevocationURI: e.RevocationURI, Scopes: e.Scopes}
}

// ErrEndpointsDeclared refuses endpoints that would not be used.
var ErrEndpointsDeclared = fault.New(fault.Unprocessable, "oauth_client_endpoints_declared",
	"The component.json declares the endpoints of its provider, so the OAuth client cannot supply others. Omit them.")

// checkEndpoints validates the endpoints of a client for a component.
func checkEndpoints(d commands.Descriptor, e commands.Endpoints) error {
	if e != (commands.Endpoints{}) && !d.AcceptsEndpoints() {
		return ErrEndpointsDeclared.At("/token_uri")
	}
	_, err := d.WithEndpoints(e)
	return err
}

// ErrSecretExpires rejects a declared expiry that cannot be warned of.
var ErrSecretExpires = fault.New(fault.Invalid, "oauth_client_secret_expires_invalid", "secret_expires_at must be a time in the future, before the year 10000.")

// declaredExpiry is the stored form of a declared expiry; zero if none was declared.
func (s *Service) declaredExpiry(declared *time.Time) (at time.Time, err error) {
	if declared == nil {
		return at, nil
	}
	at = declared.UTC().Truncate(time.Microsecond)
	if !at.After(s.Kernel.Now()) || at.Year() > 9999 {
		return at, ErrSecretExpires.At("/secret_expires_at")
	}
	return at, nil
}

func (s *Service) defineOAuthClient(ctx context.Context, call *service.Call, in DefineOAuthClient) (service.Done, error) {
	if err := service.Required("/component", in.Component); err != nil {
		return service.Done{}, err
	}
	if err := checkClientID(in.ClientID); err != nil {
		return service.Done{}, err
	}
	expires, err := s.declaredExpiry(in.Expires)
	if err != nil {
		return service.Done{}, err
	}
	id := call.DeriveID("oauth_client/" + in.Component)
	return s.define(ctx, call, commands.DefineOAuthClient{Component: in.Component, ID: id, ClientID: in.ClientID, Expires: expires, Endpoints: in.stored()}, in.ClientSecret.Value(), in.Expected)
}

// define creates the OAuth client of a component from cmd, with this secret. Without a revision
// in cmd, the secret is approved for the current one, which must match expected unless that is
// 0.
func (s *Service) define(ctx context.Context, call *service.Call, cmd commands.DefineOAuthClient, secret seal.Secret, expected int) (service.Done, error) {
	d, revision, err := s.Components.UsableAt(ctx, call.Tenant, cmd.Component, "", expected)
	switch {
	case errors.Is(err, aggregates.ErrComponentNotFound), errors.Is(err, aggregates.ErrComponentDeleted):
		return service.Done{}, ErrOAuthClientComponent.Withf("%s", fault.Of(err).Msg).At("/component")
	case err != nil:
		return service.Done{}, err
	case !d.WantsClient && !d.AcceptsEndpoints():
		return service.Done{}, ErrOAuthNotDeclared.At("/component")
	case secret.IsZero() && !d.PublicClients():
		return service.Done{}, service.Required("/client_secret", "")
	}
	if err := checkEndpoints(d, cmd.Endpoints); err != nil {
		return service.Done{}, err
	}
	// Flows that were published before the component used OAuth use its client too.
	if err := s.Flows.RecordUses(ctx, call, cmd.Component); err != nil {
		return service.Done{}, err
	}
	if cmd.Revision == 0 {
		cmd.Revision = revision
	}
	var done service.Done
	err = s.Secrets.WithSecret(ctx, SecretRef(call.Tenant, cmd.Component, ""), secret, func(secretID string) error {
		cmd.SecretID = secretID
		done, err = s.changeClient(ctx, call, cmd)
		return err
	})
	return done, err
}

func checkClientID(id string) error {
	if id == "" {
		return service.Required("/client_id", "")
	}
	for i := range len(id) {
		if id[i] < 0x20 || id[i] > 0x7e {
			return ErrClientID.At("/client_id")
		}
	}
	if len(id) > 512 || id == secrets.Mask {
		return ErrClientID.At("/client_id")
	}
	return nil
}

// SecretRef is the vault reference of a client's secret.
func SecretRef(tenant, component, secretID string) vault.Ref {
	return vault.Ref{Tenant: tenant, Category: aggregates.OAuthClient.Category, Owner: component, SecretID: secretID}
}

// changeClient executes a command and erases the secret that the client no longer references.
func (s *Service) changeClient(ctx context.Context, call *service.Call, cmd commands.OAuthClient) (service.Done, error) {
	before, after, err := secrets.Change(ctx, s.Secrets, call, aggregates.OAuthClient, call.Tenant, cmd)
	if err != nil {
		if errors.Is(err, aggregates.ErrOAuthClientInUse) {
			return service.Done{}, s.clientInUse(ctx, call, cmd.Target(), before)
		}
		return service.Done{}, err
	}
	return s.Kernel.Answered(aggregates.OAuthClient.Stream(call.Tenant, cmd.Target()), before, after.Value, after.Seq), nil
}

// clientInUse returns ErrOAuthClientInUse with the flows that include the component.
func (s *Service) clientInUse(ctx context.Context, call *service.Call, component string, state aggregates.OAuthClientState) error {
	refs := flow.Refs{Total: state.Uses.Len(), Flows: []flow.Ref{}}
	page, _, err := s.Views.Flows(ctx, projections.FlowFilter{Tenant: call.Tenant, Component: component, Limit: flow.FlowsInDetail})
	if err != nil {
		s.Logger.WarnContext(ctx, "cannot read the names of flows; showing their ids", "err", err)
	}
	for _, f := range page {
		refs.Flows = append(refs.Flows, flow.Ref{ID: f.ID, Name: f.Name, Active: f.Active})
	}
	refs.Total = max(refs.Total, len(refs.Flows))
	// The wording of the last sentence is fixed: clients depend on it.
	return aggregates.ErrOAuthClientInUse.Withf("The OAuth client is in use: flows include its component: %s. Delete these flows first.", refs.List()).With(refs)
}

// OAuthClientRef identifies a client by its id or its component.
type OAuthClientRef struct {
	ID        string `json:"id,omitzero"`
	Component string `json:"component,omitzero"` // instead of the id
	MinSeq    uint64 `json:"min_seq,omitzero"`   // wait until the response reflects this log sequence
}

// Client returns the client that ref identifies, from the read models. Clients of other tenants
// are not found. fresh waits until the read models reflect the end of the log.
func (s *Service) Client(ctx context.Context, call *service.Call, ref OAuthClientRef, fresh bool) (projections.OAuthClient, error) {
	var none projections.OAuthClient
	switch {
	case (ref.ID == "") == (ref.Component == ""):
		return none, service.ErrMissing.Withf("Give the id of the client or its component.").At("/id")
	case ref.ID != "" && events.CheckID(ref.ID) != nil, ref.Component != "" && events.CheckName(ref.Component) != nil:
		return none, aggregates.ErrOAuthClientNotFound
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
	k, found, err := s.Views.OAuthClient(ctx, call.Tenant, ref.ID, ref.Component)
	switch {
	case err != nil:
		return none, err
	case !found:
		return none, aggregates.ErrOAuthClientNotFound
	}
	return k, nil
}

// ChangeOAuthClient requests another client id, another secret, or both. Including the secret,
// even unchanged, approves the component's current hosts for it. For a client without a secret,
// the client id does.
type ChangeOAuthClient struct {
	ID           string         `json:"id"`
	Component    string         `json:"component,omitzero"`         // if given, it must match: the component of a client cannot be changed
	ClientID     string         `json:"client_id,omitzero"`         // unchanged when absent
	ClientSecret secrets.Secret `json:"client_secret,omitzero"`     // unchanged when absent
	Expected     int            `json:"expected_revision,omitzero"` // refuse unless this is the revision of the component's current descriptor
	Expires      *time.Time     `json:"secret_expires_at,omitzero"` // when the secret expires at the provider; unchanged when absent, or never if the secret is another one
	Endpoints                   // they replace all earlier ones, and require client_secret; unchanged when absent
}

func (s *Service) changeOAuthClient(ctx context.Context, call *service.Call, in ChangeOAuthClient) (service.Done, error) {
	k, err := s.Client(ctx, call, OAuthClientRef{ID: in.ID}, true)
	switch {
	case err != nil:
		return service.Done{}, err
	case in.Component != "" && in.Component != k.Component:
		return service.Done{}, ErrOAuthClientFixed.At("/component")
	}
	if in.ClientID != "" {
		if err := checkClientID(in.ClientID); err != nil {
			return service.Done{}, err
		}
	}
	if err := s.checkNotManaged(ctx, k); err != nil {
		return service.Done{}, err
	}
	revision, err := s.currentRevision(ctx, call.Tenant, k.Component)
	if err == nil {
		err = component.CheckRevision("/expected_revision", in.Expected, revision)
	}
	if err != nil {
		return service.Done{}, err
	}
	cmd := commands.ChangeOAuthClient{Component: k.Component, ID: k.ID, ClientID: in.ClientID, Revision: revision}
	if in.Expires != nil {
		expires, err := s.declaredExpiry(in.Expires)
		if err != nil {
			return service.Done{}, err
		}
		cmd.Expires = &expires
	}
	if e := in.stored(); e != (commands.Endpoints{}) {
		d, err := s.Components.Descriptor(ctx, k.Component, max(revision, 1))
		if err != nil {
			return service.Done{}, err
		}
		if err := checkEndpoints(d, e); err != nil {
			return service.Done{}, err
		}
		cmd.Endpoints = &e
	}
	return s.changeDefined(ctx, call, cmd, in.ClientSecret.Value())
}

// currentRevision returns the current revision of a component, for which a secret is
// approved. It is 0 if the component is no longer visible to the tenant. Errors:
// aggregates.ErrOAuthClientUnusable.
func (s *Service) currentRevision(ctx context.Context, tenant, component string) (int, error) {
	of, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, component))
	switch {
	case err != nil:
		return 0, err
	case of.Value.Deleted:
		return 0, aggregates.ErrOAuthClientUnusable
	case !of.Value.VisibleTo(tenant):
		return 0, nil
	}
	return of.Value.Revision, nil
}

// changeDefined changes the OAuth client of a component. A secret is approved for the hosts of
// the command's revision. If it is unchanged, earlier revisions stay approved too. The client id
// of a client without a secret approves them in the same way.
func (s *Service) changeDefined(ctx context.Context, call *service.Call, cmd commands.ChangeOAuthClient, secret seal.Secret) (service.Done, error) {
	if secret.IsZero() && cmd.ClientID == "" {
		return s.changeClient(ctx, call, cmd)
	}
	now, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(call.Tenant, cmd.Component))
	if err != nil {
		return service.Done{}, err
	}
	if has := now.Value.SecretID; has != "" {
		old, err := s.Vault.Get(ctx, SecretRef(call.Tenant, cmd.Component, has))
		switch {
		case err != nil && !errors.Is(err, vault.ErrNoSecret):
			return service.Done{}, fmt.Errorf("open the secret of the OAuth client of %s: %w", cmd.Component, err)
		case err == nil && old.Equal(secret):
			// The id stands for the secret of a public client, which is empty.
			cmd.ReenteredSecretID = has
			return s.changeClient(ctx, call, cmd)
		}
	}
	if secret.IsZero() {
		return s.changeClient(ctx, call, cmd)
	}
	var done service.Done
	err = s.Secrets.WithSecret(ctx, SecretRef(call.Tenant, cmd.Component, ""), secret, func(secretID string) error {
		cmd.SecretID = secretID
		done, err = s.changeClient(ctx, call, cmd)
		return err
	})
	return done, err
}

// approvedProviders returns the descriptor blocks that the secret of a defined client is
// approved for. all means that every host is approved: if the revisions are unknown, the
// tenant's own component is trusted.
func (s *Service) approvedProviders(ctx context.Context, tenant, component string, client aggregates.OAuthClientState) (blocks []*commands.OAuth2, all bool, err error) {
	for _, revision := range client.Revisions {
		if revision == 0 {
			owner, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, component))
			if err != nil || owner.Value.Owner == tenant {
				return nil, true, err
			}
			continue
		}
		of, err := s.Components.Descriptor(ctx, component, revision)
		if err != nil {
			return nil, false, err
		}
		if of, err = of.WithEndpoints(client.Endpoints); err != nil {
			return nil, false, err
		}
		blocks = append(blocks, of.OAuth2)
	}
	return blocks, false, nil
}

// CheckSecretAudience returns aggregates.ErrOAuthClientHostsChanged if the secret of a defined
// client would be sent to an unapproved host. The owner of a shared component can change where
// the secrets of other tenants' clients are sent; so the secret is only sent to hosts of
// approved revisions.
func (s *Service) CheckSecretAudience(ctx context.Context, tenant, component string, client aggregates.OAuthClientState, d commands.Descriptor) error {
	blocks, all, err := s.approvedProviders(ctx, tenant, component, client)
	if err != nil || all {
		return err
	}
	return HostsChanged("the client secret", d.OAuth2.Beyond(blocks...), enterClientSecretAgain)
}

// CheckConsentAudience is CheckSecretAudience for the page where users consent: an attacker who
// redirects users to another page could make them connect an account of the attacker.
func (s *Service) CheckConsentAudience(ctx context.Context, tenant, component string, d commands.Descriptor) error {
	blocks, all, again, err := s.servingClient(ctx, tenant, component)
	if err != nil || all {
		return err
	}
	return HostsChanged("users who connect an account", d.OAuth2.ConsentBeyond(blocks...), again)
}

// servingClient returns the approved providers of the OAuth client that serves the component in
// the tenant, and how to enter its secret again. all is true if there is no client.
func (s *Service) servingClient(ctx context.Context, tenant, component string) (blocks []*commands.OAuth2, all bool, again string, err error) {
	client, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(tenant, component))
	if err != nil {
		return nil, false, "", err
	}
	if client.Value.ID != "" {
		blocks, all, err = s.approvedProviders(ctx, tenant, component, client.Value)
		return blocks, all || client.Value.Unusable, enterClientSecretAgain, err
	}
	owner, err := aggregates.Component.Fresh(ctx, s.Log, aggregates.Component.Stream(events.System, component))
	if err != nil || owner.Value.Owner != tenant || owner.Value.EnvSecret == "" {
		return nil, true, "", err
	}
	given, err := s.Components.Descriptor(ctx, component, owner.Value.EnvRevision)
	return []*commands.OAuth2{given.OAuth2}, false, EnterEnvAgain, err
}

// How to enter a secret again, to approve the current hosts.
const (
	enterClientSecretAgain = "enter the client secret again (of a public client, the client id) with oauth_client.change, or with auth_client.change if an auth client manages it"
	EnterEnvAgain          = "set the component's variables again with component.set-env"
)

// HostsChanged returns ErrOAuthClientHostsChanged with the unapproved hosts; nil if there are
// none.
func HostsChanged(what string, beyond []string, again string) error {
	if len(beyond) == 0 {
		return nil
	}
	return aggregates.ErrOAuthClientHostsChanged.Withf("The component now sends %s to another host: %s. If that host is correct, %s.",
		what, strings.Join(beyond, " and "), again)
}

// CheckRenewalAudience is CheckSecretAudience for tokens that will be renewed: it also checks
// the client that will renew them.
func (s *Service) CheckRenewalAudience(ctx context.Context, tenant, component string, d commands.Descriptor) error {
	blocks, all, again, err := s.servingClient(ctx, tenant, component)
	if err != nil || all {
		return err
	}
	return HostsChanged("the client secret", d.OAuth2.Beyond(blocks...), again)
}

func (s *Service) deleteOAuthClient(ctx context.Context, call *service.Call, in OAuthClientRef) (service.Done, error) {
	k, err := s.Client(ctx, call, in, true)
	if err != nil {
		return service.Done{}, err
	}
	if err := s.checkNotManaged(ctx, k); err != nil {
		return service.Done{}, err
	}
	return s.changeClient(ctx, call, commands.DeleteOAuthClient{Component: k.Component, ID: k.ID})
}

// OAuthClient is the public form of an OAuth client.
type OAuthClient struct {
	ID           string    `json:"id"`
	Component    string    `json:"component"`
	ClientID     string    `json:"client_id"`
	ClientSecret string    `json:"client_secret"` // "********"
	Unusable     bool      `json:"unusable"`      // the component was deleted: the client can only be deleted
	Used         bool      `json:"used"`          // a flow of the tenant includes the component, active or not
	CreatedAt    time.Time `json:"created_at"`
	CreatedBy    string    `json:"created_by"` // "key:<id>"
	UpdatedAt    time.Time `json:"updated_at"`
	Seq          uint64    `json:"seq"`                        // log sequence of the last change
	Expires      time.Time `json:"secret_expires_at,omitzero"` // as declared; absent: never

	Supplies Endpoints `json:"endpoints,omitzero"` // that the client supplies; only of one client, not in lists
}

func (s *Service) getOAuthClient(ctx context.Context, call *service.Call, in OAuthClientRef) (OAuthClient, error) {
	k, err := s.Client(ctx, call, in, false)
	if err != nil {
		return OAuthClient{}, err
	}
	state, err := aggregates.OAuthClient.Fresh(ctx, s.Log, aggregates.OAuthClient.Stream(call.Tenant, k.Component))
	if err != nil {
		return OAuthClient{}, err
	}
	shown := clientInfo(k)
	if e := state.Value.Endpoints; state.Value.ID == k.ID {
		shown.Supplies = Endpoints{AuthURI: e.AuthURI, TokenURI: e.TokenURI, RefreshURI: e.RefreshURI, RevocationURI: e.RevocationURI, Scopes: e.Scopes}
	}
	return shown, nil
}

func clientInfo(k projections.OAuthClient) OAuthClient {
	return OAuthClient{
		ID: k.ID, Component: k.Component, ClientID: k.ClientID, ClientSecret: secrets.Mask, Unusable: k.Unusable, Used: k.Used && !k.Unusable,
		CreatedAt: k.CreatedAt, CreatedBy: k.CreatedBy, UpdatedAt: k.UpdatedAt, Seq: k.Seq, Expires: k.SecretExpires,
	}
}

type ListOAuthClients struct {
	Component string `json:"component,omitzero"` // only that of this component
	Limit     int    `json:"limit,omitzero"`     // 1 to 200; 50 when absent
	After     string `json:"after,omitzero"`     // cursor of the previous page
	MinSeq    uint64 `json:"min_seq,omitzero"`   // wait until the response reflects this log sequence
}

// OAuthClientList is a page of OAuth clients, by component.
type OAuthClientList struct {
	Clients []OAuthClient `json:"clients"`
	Next    string        `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total   int           `json:"total"`         // number of OAuth clients on all pages
}

func (s *Service) listOAuthClients(ctx context.Context, call *service.Call, in ListOAuthClients) (OAuthClientList, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return OAuthClientList{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return OAuthClientList{}, err
	}
	list := OAuthClientList{Clients: []OAuthClient{}}
	var page []projections.OAuthClient
	if in.Component != "" {
		k, found, err := s.Views.OAuthClient(ctx, call.Tenant, "", in.Component)
		if err != nil {
			return list, err
		}
		if found {
			page, list.Total = append(page, k), 1
		}
	} else {
		if page, list.Next, err = s.Views.OAuthClients(ctx, call.Tenant, in.After, limit); err != nil {
			return list, err
		}
		if list.Total, err = s.Views.OAuthClientCount(ctx, call.Tenant); err != nil {
			return list, err
		}
	}
	for _, k := range page {
		list.Clients = append(list.Clients, clientInfo(k))
	}
	return list, nil
}

// RevealedClient is the response to a reveal, the only one with a clear client secret.
type RevealedClient struct {
	service.Done
	ClientSecret string `json:"client_secret"`
}

// revealOAuthClient returns the secret of one client. The audit event is committed first.
func (s *Service) revealOAuthClient(ctx context.Context, call *service.Call, in OAuthClientRef) (RevealedClient, error) {
	k, err := s.Client(ctx, call, in, true)
	if err != nil {
		return RevealedClient{}, err
	}
	secret, err := s.Vault.Get(ctx, SecretRef(call.Tenant, k.Component, k.SecretID))
	if err != nil {
		return RevealedClient{}, fmt.Errorf("open the secret of the OAuth client of %s: %w", k.Component, err)
	}
	done, err := s.changeClient(ctx, call, commands.RevealOAuthClient{Component: k.Component, ID: k.ID, SecretID: k.SecretID})
	if err != nil {
		return RevealedClient{}, err
	}
	return RevealedClient{done, string(secret.Reveal())}, nil
}

// MarkClients marks every tenant's client of a deleted component as unusable. The background
// job retries failures.
func (s *Service) MarkClients(ctx context.Context) error {
	clients, err := s.Views.ClientsOfDeletedComponents(ctx, service.BackgroundBatch)
	errs := []error{err}
	for _, k := range clients {
		_, err := s.changeClient(ctx, service.System(k.Tenant, "keeper"), commands.MarkOAuthClientUnusable{
			Component: k.Component, Reason: aggregates.ErrComponentDeleted.Code,
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
