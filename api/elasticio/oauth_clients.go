package elasticio

import (
	"net/http"
	"net/url"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/client"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
)

// clientPointers maps members of the service's bodies to the document of an OAuth client.
var clientPointers = map[string]string{
	"/id":            "/data/id",
	"/component":     "/data/relationships/component/data/id",
	"/client_id":     "/data/attributes/client_id",
	"/client_secret": "/data/attributes/client_secret",

	"/expected_revision": expectedRevision,
}

func (x *exchange) clientResource(c client.OAuthClient) resource {
	r := resource{
		ID: c.ID, Type: "oauth-client",
		Links:         map[string]string{"self": "/v2/tenants/" + url.PathEscape(x.call.Tenant) + "/oauth-clients/" + url.PathEscape(c.ID)},
		Attributes:    map[string]any{"client_id": c.ClientID, "client_secret": c.ClientSecret},
		Relationships: map[string]relationship{"component": to("components", "component", c.Component)},
	}
	if !c.CreatedAt.IsZero() {
		r.Meta = map[string]any{"unusable": c.Unusable, "used": c.Used, "created_at": c.CreatedAt, "updated_at": c.UpdatedAt}
	}
	return r
}

func (x *exchange) listClients() {
	p, err := readParameters(x.R.URL.RawQuery, slices.Concat(paging, sparse, []string{byComponent})...)
	if err != nil {
		x.Fail(err)
		return
	}
	var total int
	clients, next, err := fetchPage(p, func(after string, limit int) ([]client.OAuthClient, string, error) {
		page, err := ask[client.OAuthClientList](x, "oauth_client.list", client.ListOAuthClients{Component: p.component, Limit: limit, After: after})
		total = page.Total
		return page.Clients, page.Next, err
	})
	if err != nil {
		x.Fail(err)
		return
	}
	list, components := make([]resource, len(clients)), make([]string, len(clients))
	for i, c := range clients {
		list[i], components[i] = p.trim(x.clientResource(c)), c.Component
	}
	x.giveList(p, list, components, next, total)
}

// giveList writes a page of resources, and their components if included.
func (x *exchange) giveList(p parameters, list []resource, components []string, next string, total int) {
	included, err := x.included(p, components)
	if err != nil {
		x.Fail(err)
		return
	}
	x.give(http.StatusOK, answer{Data: list, Included: included, Links: p.links(x.R.URL, next, total), Meta: p.meta(total)})
}

func (x *exchange) getClient() {
	p, err := readParameters(x.R.URL.RawQuery, append(sparse, revealing)...)
	if err != nil {
		x.Fail(err)
		return
	}
	c, err := ask[client.OAuthClient](x, "oauth_client.get", client.OAuthClientRef{ID: x.item})
	if err == nil && p.reveal {
		var shown client.RevealedClient
		shown, err = ask[client.RevealedClient](x, "oauth_client.reveal", client.OAuthClientRef{ID: x.item})
		c.ClientSecret = shown.ClientSecret
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveOne(p, http.StatusOK, x.clientResource(c), c.Component)
}

// giveOne writes one resource, and its component if included.
func (x *exchange) giveOne(p parameters, status int, r resource, component string) {
	included, err := x.included(p, []string{component})
	if err != nil {
		x.Fail(err)
		return
	}
	if status == http.StatusCreated {
		x.W.Header().Set("Location", r.Links["self"])
	}
	x.give(status, answer{Data: p.trim(r), Included: included})
}

// clientInput parses the document of an OAuth client. Absent attributes are not in the result.
func (x *exchange) clientInput() (input, map[string]any, error) {
	x.pointers = clientPointers
	body, err := x.body()
	if err != nil {
		return input{}, nil, err
	}
	in, err := readDocument(body)
	if err != nil {
		return in, nil, err
	}
	if err := in.only("client_id", "client_secret"); err != nil {
		return in, nil, err
	}
	members := map[string]any{}
	for name, v := range in.Attributes {
		if v.Kind() != jsontext.KindString {
			return in, nil, service.ErrBody.Withf("The attribute must be a string.").At("/data/attributes/" + name)
		}
		members[name] = v
	}
	return in, members, in.expect(members)
}

func (x *exchange) createClient() {
	in, members, err := x.clientInput()
	if err == nil {
		// The vendor's table names the type "flow", its examples "oauth-client".
		err = in.created("oauth-client", "flow")
	}
	var component string
	if err == nil {
		component, err = in.related("component", "component")
	}
	switch {
	case err != nil:
	case component == "":
		err = missing("/data/relationships/component/data/id")
	default:
		for _, name := range []string{"client_id", "client_secret"} {
			if members[name] == nil && err == nil {
				err = missing("/data/attributes/" + name)
			}
		}
	}
	if err != nil {
		x.Fail(err)
		return
	}
	members["component"] = component
	done, err := ask[service.Done](x, "oauth_client.define", members)
	if err != nil {
		x.Fail(atSecret(err))
		return
	}
	x.giveClient(http.StatusCreated, done, in, component)
}

// atSecret sets the pointer of an error to the client secret if the service has set none.
func atSecret(err error) error {
	if f := fault.Of(err); f.Pointer == "" && (f.Is(secrets.ErrKeysMasked) || f.Is(secrets.ErrClientSecret)) {
		return f.At("/client_secret")
	}
	return err
}

// giveClient responds to a write: with the current client or, if the caller may not read
// clients, with the caller's own input.
func (x *exchange) giveClient(status int, done service.Done, in input, component string) {
	c := client.OAuthClient{ID: done.ID, Component: component, ClientSecret: secrets.Mask}
	if x.may(permission.OAuthClientsGet) {
		// the response of a repeated define has no id
		ref := client.OAuthClientRef{ID: done.ID, MinSeq: done.Seq}
		if component != "" {
			ref.ID, ref.Component = "", component
		}
		var err error
		if c, err = ask[client.OAuthClient](x, "oauth_client.get", ref); err != nil {
			x.Fail(err)
			return
		}
	} else if v, ok := in.Attributes["client_id"]; ok {
		_ = decodeText(v, &c.ClientID) // validated as a string before
	}
	r := x.clientResource(c)
	if c.Component == "" {
		r.Relationships = nil
	}
	x.giveOne(parameters{}, status, r, c.Component)
}

func (x *exchange) patchClient() {
	in, members, err := x.clientInput()
	if err == nil {
		err = in.changed(x.item, "oauth-client", "flow")
	}
	var component string
	if err == nil {
		component, err = in.related("component", "component")
	}
	if err != nil {
		x.Fail(err)
		return
	}
	members["id"] = x.item
	if component != "" {
		members["component"] = component
	}
	done, err := ask[service.Done](x, "oauth_client.change", members)
	if err != nil {
		x.Fail(atSecret(err))
		return
	}
	done.ID = x.item
	x.giveClient(http.StatusOK, done, in, component)
}

func (x *exchange) deleteClient() {
	done, err := ask[service.Done](x, "oauth_client.delete", client.OAuthClientRef{ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	if x.may(permission.OAuthClientsGet) { // wait until the read models reflect the delete
		_, err = ask[client.OAuthClient](x, "oauth_client.get", client.OAuthClientRef{ID: x.item, MinSeq: done.Seq})
	}
	x.gone(err)
}
