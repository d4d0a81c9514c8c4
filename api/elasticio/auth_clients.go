package elasticio

import (
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
)

const authClientType = "auth-client"

// authClientPointers maps members of the service's bodies to the document of an auth client.
// The target of scope_id depends on the scope.
func authClientPointers(scope string) map[string]string {
	return map[string]string{
		"/id":          "/data/id",
		"/name":        "/data/attributes/name",
		"/type":        "/data/attributes/type",
		"/credentials": "/data/attributes/credentials",
		"/keys":        "/data/attributes/credentials",
		"/components":  "/data/relationships/components/data",
		"/scope":       "/data/relationships",
		"/scope_id":    "/data/relationships/" + scope + "/data/id",

		"/expected_revision":  expectedRevision,
		"/expected_revisions": expectedRevisions,
	}
}

func (x *exchange) authClientResource(a client.AuthClient) resource {
	following := map[string]string{}
	for _, c := range a.Components {
		if c.OAuthClient != "" {
			following[c.Component] = c.OAuthClient
		}
	}
	r := resource{
		ID: a.ID, Type: authClientType,
		Links:         map[string]string{"self": "/v2/auth-clients/" + url.PathEscape(a.ID)},
		Attributes:    map[string]any{"name": a.Name, "type": a.Type, "credentials": a.Credentials},
		Relationships: map[string]relationship{"components": toAll("component", componentsOf(a))},
		Meta: map[string]any{
			"scope": a.Scope, "settled": a.Settled, "oauth_clients": following, "created_at": a.CreatedAt, "updated_at": a.UpdatedAt,
		},
	}
	switch a.Scope {
	case "workspace", "contract":
		r.Relationships[a.Scope] = to(a.Scope+"s", a.Scope, a.ScopeID)
	case "tenant":
		r.Relationships[a.Scope] = to("tenants", a.Scope, x.call.Tenant)
	}
	return r
}

func componentsOf(a client.AuthClient) (ids []string) {
	for _, c := range a.Components {
		ids = append(ids, c.Component)
	}
	return ids
}

// from returns the scope whose visible auth clients the parameters request; "" if there is
// none. A tenant_id must be the tenant of the request.
func (x *exchange) from(p parameters) (scope, id string, err error) {
	for name, given := range map[string]string{"workspace": p.workspace, "contract": p.contract, "tenant": p.tenant} {
		if given == "" {
			continue
		}
		if scope != "" {
			return "", "", badParameter(byWorkspace, "Give at most one of workspace_id, contract_id and tenant_id.")
		}
		scope, id = name, given
	}
	if scope == "tenant" {
		x.call.Tenant, id = id, ""
	}
	return scope, id, nil
}

func (x *exchange) listAuthClients() {
	p, err := readParameters(x.R.URL.RawQuery, slices.Concat(paging, sparse, []string{byComponent, byWorkspace, byContract, byTenant})...)
	if err != nil {
		x.Fail(err)
		return
	}
	scope, id, err := x.from(p)
	if err != nil {
		x.Fail(err)
		return
	}
	if scope == "" { // as in the vendor's API: without a parameter, only global auth clients
		scope = "global"
	}
	var total int
	clients, next, err := fetchPage(p, func(after string, limit int) ([]client.AuthClient, string, error) {
		page, err := ask[client.AuthClientList](x, "auth_client.list", client.ListAuthClients{
			Component: p.component, Scope: scope, ScopeID: id, Limit: limit, After: after,
		})
		total = page.Total
		return page.AuthClients, page.Next, err
	})
	if err != nil {
		x.Fail(err)
		return
	}
	list, components := make([]resource, len(clients)), []string{}
	for i, a := range clients {
		list[i], components = p.trim(x.authClientResource(a)), append(components, componentsOf(a)...)
	}
	x.giveList(p, list, components, next, total)
}

func (x *exchange) getAuthClient() {
	p, err := readParameters(x.R.URL.RawQuery, append(sparse, revealing, byWorkspace, byContract, byTenant)...)
	if err != nil {
		x.Fail(err)
		return
	}
	scope, id, err := x.from(p)
	if err != nil {
		x.Fail(err)
		return
	}
	a, err := ask[client.AuthClient](x, "auth_client.get", client.GetAuthClient{ID: x.item, Scope: scope, ScopeID: id})
	if err == nil && p.reveal {
		var shown client.RevealedAuthClient
		shown, err = ask[client.RevealedAuthClient](x, "auth_client.reveal", client.RevealAuthClient{ID: x.item})
		a.Credentials = shown.Credentials
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveAuthClient(p, http.StatusOK, a)
}

func (x *exchange) giveAuthClient(p parameters, status int, a client.AuthClient) {
	included, err := x.included(p, componentsOf(a))
	if err != nil {
		x.Fail(err)
		return
	}
	r := x.authClientResource(a)
	if status == http.StatusCreated {
		x.W.Header().Set("Location", r.Links["self"])
	}
	x.give(status, answer{Data: p.trim(r), Included: included})
}

// authClientInput is a parsed document of an auth client.
type authClientInput struct {
	input
	name, typ      string
	credentials    jsontext.Value // nil when absent
	components     []string       // nil when absent
	scope, scopeID string         // "" if the document has no such relationship
}

func (x *exchange) authClientInput() (in authClientInput, err error) {
	x.pointers = authClientPointers("")
	body, err := x.body()
	if err != nil {
		return in, err
	}
	if in.input, err = readDocument(body); err != nil {
		return in, err
	}
	if err := in.only("name", "type", "credentials"); err != nil {
		return in, err
	}
	for _, name := range slices.Sorted(maps.Keys(in.Attributes)) {
		at, v := "/data/attributes/"+name, in.Attributes[name]
		if name == "credentials" {
			if v.Kind() != jsontext.KindBeginObject {
				return in, service.ErrBody.Withf("The credentials must be an object.").At(at)
			}
			in.credentials = v
			continue
		}
		into := &in.name
		if name == "type" {
			into = &in.typ
		}
		if err := decodeText(v, into); err != nil {
			return in, service.ErrBody.Withf("The attribute must be a string.").At(at)
		}
	}
	if in.components, _, err = in.relatedAll("components", "component"); err != nil {
		return in, err
	}
	for _, scope := range []string{"workspace", "contract", "tenant"} {
		id, err := in.related(scope, scope)
		switch {
		case err != nil:
			return in, err
		case id != "" && in.scope != "":
			return in, client.ErrAuthClientScope.At("/data/relationships/" + scope)
		case id != "":
			in.scope, in.scopeID = scope, id
		}
	}
	x.pointers = authClientPointers(in.scope)
	return in, nil
}

// expectAll copies the expected revisions of components from the document's meta to the body:
// by component or, if the document names one component, as a number.
func (x *exchange) expectAll(in authClientInput, body map[string]any) error {
	e, err := in.expected()
	switch {
	case err != nil:
		return err
	case e.Revision == nil:
		if e.Revisions != nil {
			body["expected_revisions"] = e.Revisions
		}
		return nil
	case len(in.components) != 1 || e.Revisions != nil:
		return service.ErrBody.Withf("The expected revision is of one component, which the document must name in its relationships. " +
			"For several components use expected_revisions: an object with the revision by component.").At("/expected_revision")
	}
	delete(x.pointers, "/expected_revisions")
	x.pointers["/expected_revisions/"+service.EscapePointer(in.components[0])] = expectedRevision
	body["expected_revisions"] = map[string]int{in.components[0]: *e.Revision}
	return nil
}

func (x *exchange) createAuthClient() {
	in, err := x.authClientInput()
	if err == nil {
		err = in.created(authClientType)
	}
	if err == nil && in.components == nil {
		err = missing("/data/relationships/components/data")
	}
	if err == nil && in.name == "" {
		err = missing("/data/attributes/name")
	}
	if err == nil && in.typ == "" {
		err = missing("/data/attributes/type")
	}
	if err != nil {
		x.Fail(err)
		return
	}
	members := map[string]any{"name": in.name, "type": in.typ, "components": in.components, "scope": "global"}
	if in.credentials != nil {
		members["credentials"] = in.credentials
	}
	switch in.scope {
	case "workspace", "contract":
		members["scope"], members["scope_id"] = in.scope, in.scopeID
	case "tenant":
		members["scope"], x.call.Tenant = in.scope, in.scopeID
	}
	if err := x.expectAll(in, members); err != nil {
		x.Fail(err)
		return
	}
	done, err := ask[service.Done](x, "auth_client.create", members)
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveWritten(http.StatusCreated, done, in)
}

// giveWritten responds to a write: with the current auth client or, if the caller may not read
// auth clients, with the caller's own input.
func (x *exchange) giveWritten(status int, done service.Done, in authClientInput) {
	if x.may(permission.OAuthClientsGet) {
		a, err := ask[client.AuthClient](x, "auth_client.get", client.GetAuthClient{ID: done.ID, MinSeq: done.Seq})
		if err != nil {
			x.Fail(err)
			return
		}
		x.giveAuthClient(parameters{}, status, a)
		return
	}
	r := resource{ID: done.ID, Type: authClientType, Links: map[string]string{"self": "/v2/auth-clients/" + url.PathEscape(done.ID)}, Attributes: map[string]any{}}
	for name, text := range map[string]string{"name": in.name, "type": in.typ} {
		if text != "" {
			r.Attributes[name] = text
		}
	}
	if in.components != nil {
		r.Relationships = map[string]relationship{"components": toAll("component", in.components)}
	}
	x.giveOne(parameters{}, status, r, "")
}

// inTenant parses the parameters of a write, which may only name the tenant.
func (x *exchange) inTenant() error {
	p, err := readParameters(x.R.URL.RawQuery, byTenant)
	if err == nil && p.tenant != "" {
		x.call.Tenant = p.tenant
	}
	return err
}

func (x *exchange) patchAuthClient() {
	err := x.inTenant()
	var in authClientInput
	if err == nil {
		in, err = x.authClientInput()
	}
	if err == nil {
		err = in.changed(x.item, authClientType)
	}
	if err == nil && (in.typ != "" || in.scope != "") {
		err = x.authClientStays(in)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	members := map[string]any{"id": x.item}
	if _, named := in.Attributes["name"]; named {
		if err := credential.CheckName(in.name); err != nil {
			x.Fail(err)
			return
		}
		members["name"] = in.name
	}
	if in.credentials != nil {
		members["credentials"] = in.credentials
	}
	if in.components != nil {
		members["components"] = in.components
	}
	if err := x.expectAll(in, members); err != nil {
		x.Fail(err)
		return
	}
	done, err := ask[service.Done](x, "auth_client.change", members)
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveWritten(http.StatusOK, done, in)
}

// authClientStays returns an error if the document changes the type or the scope of the auth
// client.
func (x *exchange) authClientStays(in authClientInput) error {
	a, err := ask[client.AuthClient](x, "auth_client.get", client.GetAuthClient{ID: x.item})
	if err != nil {
		return err
	}
	id := a.ScopeID
	if a.Scope == "tenant" {
		id = x.call.Tenant
	}
	switch {
	case in.typ != "" && in.typ != a.Type:
		return ErrRelationshipFixed.Withf("The type of an auth client cannot be changed. Delete it and create another one.").At("/type")
	case in.scope != "" && (in.scope != a.Scope || in.scopeID != id):
		return ErrRelationshipFixed.Withf("The scope of an auth client cannot be changed. Delete it and create another one.").At("/scope_id")
	}
	return nil
}

func (x *exchange) deleteAuthClient() {
	if err := x.inTenant(); err != nil {
		x.Fail(err)
		return
	}
	done, err := ask[service.Done](x, "auth_client.delete", client.AuthClientRef{ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	if x.may(permission.OAuthClientsGet) { // wait until the read models reflect the delete
		_, err = ask[client.AuthClient](x, "auth_client.get", client.GetAuthClient{ID: x.item, MinSeq: done.Seq})
	}
	x.gone(err)
}
