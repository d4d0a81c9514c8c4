package elasticio

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// ErrRelationshipFixed refuses to move a credential.
var ErrRelationshipFixed = fault.New(fault.Unprocessable, "relationship_fixed",
	"A credential stays with its component and its workspace. Delete it and create another one.")

// credentialPointers is where the members of the service's bodies stand in a
// document of a credential.
var credentialPointers = map[string]string{
	"/id":        "/data/id",
	"/component": "/data/relationships/component/data/id",
	"/workspace": "/data/relationships/workspace/data/id",
	"/name":      "/data/attributes/name",
	"/keys":      "/data/attributes/keys",
}

func credentialResource(c service.Credential) resource {
	r := resource{
		ID: c.ID, Type: "credential",
		Links:         map[string]string{"self": "/v2/credentials/" + url.PathEscape(c.ID)},
		Attributes:    map[string]any{"name": c.Name},
		Relationships: map[string]relationship{"component": to("components", "component", c.Component)},
		Meta: map[string]any{
			"status": c.Status, "version": c.Version, "created_at": c.CreatedAt, "updated_at": c.UpdatedAt,
		},
	}
	if c.Keys != nil {
		r.Attributes["keys"] = c.Keys
	}
	if _, user, ok := strings.Cut(c.CreatedBy, ":"); ok {
		r.Relationships["user"] = to("users", "user", user)
	}
	if c.Workspace != "" {
		r.Relationships["workspace"] = to("workspaces", "workspace", c.Workspace)
	}
	return r
}

func (x *exchange) listCredentials() {
	p, err := readParameters(x.r.URL.RawQuery, slices.Concat(paging, sparse, []string{byComponent, byWorkspace, sorted})...)
	if err != nil {
		x.fail(err)
		return
	}
	by, newest, err := p.order()
	if err != nil {
		x.fail(err)
		return
	}
	credentials, next, err := walk(p, func(after string, limit int) ([]service.Credential, string, error) {
		page, err := ask[service.CredentialList](x, "credential.list", service.ListCredentials{
			Component: p.component, Workspace: p.workspace, Sort: by, Limit: limit, After: after,
		})
		return page.Credentials, page.Next, err
	})
	total := -1 // nobody counts by workspace
	if err == nil && p.workspace == "" {
		var counts service.CredentialCounts
		counts, err = ask[service.CredentialCounts](x, "credential.counts", service.CountCredentials{Component: p.component})
		total = counts.Total
	}
	if err != nil {
		x.fail(err)
		return
	}
	if strings.HasSuffix(by, "name") && newest != (by == "-name") {
		turnEqual(credentials)
	}
	list, components := make([]resource, len(credentials)), make([]string, len(credentials))
	for i, c := range credentials {
		list[i], components[i] = p.trim(credentialResource(c)), c.Component
	}
	x.giveList(p, list, components, next, total)
}

// turnEqual turns the order of those that stand together under one name: they come
// by age in the direction of the names, and are wanted in the other one.
func turnEqual(list []service.Credential) {
	for start, i := 0, 1; i <= len(list); i++ {
		if i == len(list) || !strings.EqualFold(list[i].Name, list[start].Name) {
			slices.Reverse(list[start:i])
			start = i
		}
	}
}

func (x *exchange) getCredential() {
	p, err := readParameters(x.r.URL.RawQuery, append(sparse, revealing)...)
	if err != nil {
		x.fail(err)
		return
	}
	c, err := ask[service.Credential](x, "credential.get", service.GetCredential{ID: x.item})
	if err == nil && p.reveal {
		var shown service.RevealedCredential
		shown, err = ask[service.RevealedCredential](x, "credential.reveal", service.RevealCredential{ID: x.item})
		c.Keys = shown.Keys
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.giveOne(p, http.StatusOK, credentialResource(c), c.Component)
}

// require refuses a write of credentials to who lacks the permission of this
// surface. The route's own is asked for by the service.
func (x *exchange) require(route string) error {
	err := x.cfg.Service.Require(x.r.Context(), x.call(), route, service.WorkspacesCredentialEdit)
	x.accepted(err)
	return err
}

// credentialInput is what the document of a credential says.
type credentialInput struct {
	input
	name                 string
	keys                 jsontext.Value // nil when absent
	component, workspace string
}

func (x *exchange) credentialInput() (c credentialInput, err error) {
	x.pointers = credentialPointers
	body, err := x.body()
	if err != nil {
		return c, err
	}
	if c.input, err = readDocument(body); err != nil {
		return c, err
	}
	if err := c.only("name", "keys"); err != nil {
		return c, err
	}
	if v, ok := c.Attributes["name"]; ok {
		if err := decodeText(v, &c.name); err != nil {
			return c, service.ErrBody.Because("The attribute is a text.").At("/data/attributes/name")
		}
	}
	if v, ok := c.Attributes["keys"]; ok {
		if v.Kind() != jsontext.KindBeginObject {
			return c, service.ErrBody.Because("The keys are an object.").At("/data/attributes/keys")
		}
		c.keys = v
	}
	if c.component, err = c.related("component", "component"); err != nil {
		return c, err
	}
	if c.workspace, err = c.related("workspace", ""); err != nil {
		return c, err
	}
	_, err = c.related("vpn_agent", "") // there is no VPN here: its form alone is looked at
	return c, err
}

func decodeText(v jsontext.Value, into *string) error {
	return json.Unmarshal(v, into) //nolint:wrapcheck // the caller says what is wrong
}

func (x *exchange) createCredential() {
	if err := x.require("credential.create"); err != nil {
		x.fail(err)
		return
	}
	in, err := x.credentialInput()
	if err == nil {
		err = in.created("credential")
	}
	if err == nil && in.component == "" {
		err = missing("/data/relationships/component/data/id")
	}
	if err == nil && in.keys == nil {
		err = missing("/data/attributes/keys")
	}
	if err != nil {
		x.fail(err)
		return
	}
	members := map[string]any{"component": in.component, "keys": in.keys}
	if in.name != "" {
		members["name"] = in.name
	}
	if in.workspace != "" {
		members["workspace"] = in.workspace
	}
	done, err := ask[service.Done](x, "credential.create", members)
	if err != nil {
		x.fail(err)
		return
	}
	x.giveCredential(http.StatusCreated, done, in)
}

// giveCredential answers a write with the credential as it is now or, where the
// caller may not read credentials, with what the caller has written.
func (x *exchange) giveCredential(status int, done service.Done, in credentialInput) {
	if x.may(service.CredentialsGet) {
		c, err := ask[service.Credential](x, "credential.get", service.GetCredential{ID: done.ID, MinSeq: done.Seq})
		if err != nil {
			x.fail(err)
			return
		}
		x.giveOne(parameters{}, status, credentialResource(c), c.Component)
		return
	}
	r := resource{ID: done.ID, Type: "credential", Links: map[string]string{"self": "/v2/credentials/" + url.PathEscape(done.ID)}, Attributes: map[string]any{}}
	if in.name != "" {
		r.Attributes["name"] = in.name
	}
	if in.component != "" {
		r.Relationships = map[string]relationship{"component": to("components", "component", in.component)}
	}
	x.giveOne(parameters{}, status, r, in.component)
}

func (x *exchange) patchCredential() {
	if err := x.require("credential.replace-keys"); err != nil {
		x.fail(err)
		return
	}
	in, err := x.credentialInput()
	if err == nil {
		err = in.changed(x.item, "credential")
	}
	if err == nil {
		err = x.stays(in)
	}
	if _, named := in.Attributes["name"]; err == nil && named {
		err = service.CheckName(in.name)
	}
	if err != nil {
		x.fail(err)
		return
	}
	done := service.Done{ID: x.item}
	if in.keys != nil { // first, since they may be refused; the name was looked at
		done, err = ask[service.Done](x, "credential.replace-keys", map[string]any{"id": x.item, "keys": in.keys})
	}
	if err == nil && in.name != "" {
		if x.commandID != "" && in.keys != nil {
			x.commandID += "/name"
		}
		done, err = ask[service.Done](x, "credential.rename", service.RenameCredential{ID: x.item, Name: in.name})
	}
	if err != nil {
		x.fail(err)
		return
	}
	x.giveCredential(http.StatusOK, done, in)
}

// stays refuses to move a credential to another component or workspace. Without
// the permission to read credentials a caller is not told what they are.
func (x *exchange) stays(in credentialInput) error {
	if in.component == "" && in.workspace == "" {
		return nil
	}
	c, err := ask[service.Credential](x, "credential.get", service.GetCredential{ID: x.item})
	switch {
	case err != nil:
		return err
	case in.component != "" && in.component != c.Component:
		return ErrRelationshipFixed.At("/component")
	case in.workspace != "" && in.workspace != c.Workspace:
		return ErrRelationshipFixed.At("/workspace")
	}
	return nil
}

func (x *exchange) deleteCredential() {
	err := x.require("credential.delete")
	var done service.Done
	if err == nil {
		done, err = ask[service.Done](x, "credential.delete", service.DeleteCredential{ID: x.item})
	}
	if err != nil {
		x.fail(err)
		return
	}
	if x.may(service.CredentialsGet) { // what is deleted is not found from here on
		_, err = ask[service.Credential](x, "credential.get", service.GetCredential{ID: x.item, MinSeq: done.Seq})
	}
	x.gone(err)
}
