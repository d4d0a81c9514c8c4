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
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
)

// ErrRelationshipFixed refuses to change the component or workspace of a credential.
var ErrRelationshipFixed = fault.New(fault.Unprocessable, "relationship_fixed",
	"The component and the workspace of a credential cannot be changed. Delete it and create another one.")

// credentialPointers maps members of the service's bodies to the document of a credential.
var credentialPointers = map[string]string{
	"/id":        "/data/id",
	"/component": "/data/relationships/component/data/id",
	"/workspace": "/data/relationships/workspace/data/id",
	"/vpn_agent": "/data/relationships/vpn_agent/data/id",
	"/name":      "/data/attributes/name",
	"/keys":      "/data/attributes/keys",

	"/expected_revision": expectedRevision,
}

func credentialResource(c credential.Credential) resource {
	r := resource{
		ID: c.ID, Type: "credential",
		Links:         map[string]string{"self": "/v2/credentials/" + url.PathEscape(c.ID)},
		Attributes:    map[string]any{"name": c.Name},
		Relationships: map[string]relationship{},
		Meta: map[string]any{
			"status": c.Status, "version": c.Version, "created_at": c.CreatedAt, "updated_at": c.UpdatedAt,
		},
	}
	if c.Component != "" {
		r.Relationships["component"] = to("components", "component", c.Component)
	} else {
		r.Meta["type"] = c.Type // a free type: the credential has no component
	}
	if c.Description != "" {
		r.Meta["description"] = c.Description
	}
	keys := c.Keys
	if keys == nil { // a list does not decrypt anything: every value is masked
		keys = map[string]any{}
		for _, name := range c.Fields {
			keys[name] = secrets.Mask
		}
	}
	r.Attributes["keys"] = keys
	if _, user, ok := strings.Cut(c.CreatedBy, ":"); ok {
		r.Relationships["user"] = to("users", "user", user)
	}
	if c.Workspace != "" {
		r.Relationships["workspace"] = to("workspaces", "workspace", c.Workspace)
	}
	if c.VPNAgent != "" {
		r.Relationships["vpn_agent"] = to("vpn_agents", "vpn-agent", c.VPNAgent)
	}
	return r
}

func (x *exchange) listCredentials() {
	p, err := readParameters(x.R.URL.RawQuery, slices.Concat(paging, sparse, []string{byComponent, byWorkspace, sorted})...)
	if err != nil {
		x.Fail(err)
		return
	}
	by, err := p.order()
	if err != nil {
		x.Fail(err)
		return
	}
	credentials, next, err := fetchPage(p, func(after string, limit int) ([]credential.Credential, string, error) {
		page, err := ask[credential.Page](x, "credential.list", credential.List{
			Component: p.component, Workspace: p.workspace, Sort: by, Limit: limit, After: after,
		})
		return page.Credentials, page.Next, err
	})
	var counts credential.Counts
	if err == nil {
		counts, err = ask[credential.Counts](x, "credential.counts", credential.Count{Component: p.component, Workspace: p.workspace})
	}
	if err != nil {
		x.Fail(err)
		return
	}
	list, components := make([]resource, len(credentials)), make([]string, len(credentials))
	for i, c := range credentials {
		list[i], components[i] = p.trim(credentialResource(c)), c.Component
	}
	x.giveList(p, list, components, next, counts.Total)
}

func (x *exchange) getCredential() {
	p, err := readParameters(x.R.URL.RawQuery, append(sparse, revealing)...)
	if err != nil {
		x.Fail(err)
		return
	}
	c, err := ask[credential.Credential](x, "credential.get", credential.Get{ID: x.item})
	if err == nil && p.reveal {
		var shown credential.Revealed
		shown, err = ask[credential.Revealed](x, "credential.reveal", credential.Reveal{ID: x.item})
		c.Keys = shown.Keys
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveOne(p, http.StatusOK, credentialResource(c), c.Component)
}

// require checks the permission that this API requires for writes of credentials. The service
// checks the permission of the route.
func (x *exchange) require(route string) error {
	err := x.cfg.Access.Require(x.R.Context(), x.call, route, permission.WorkspacesCredentialEdit)
	x.SetTenant(x.call.Tenant, err)
	return err
}

// credentialInput is a parsed document of a credential.
type credentialInput struct {
	input
	name                 string
	keys                 jsontext.Value // nil when absent
	component, workspace string
	vpnAgent             string
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
			return c, service.ErrBody.Withf("The attribute must be a string.").At("/data/attributes/name")
		}
	}
	if v, ok := c.Attributes["keys"]; ok {
		if v.Kind() != jsontext.KindBeginObject {
			return c, service.ErrBody.Withf("The keys must be an object.").At("/data/attributes/keys")
		}
		c.keys = v
	}
	if c.component, err = c.related("component", "component"); err != nil {
		return c, err
	}
	if c.workspace, err = c.related("workspace", ""); err != nil {
		return c, err
	}
	if c.vpnAgent, err = c.related("vpn_agent", ""); err != nil {
		return c, err
	}
	return c, credential.CheckVPNAgent(c.vpnAgent)
}

func decodeText(v jsontext.Value, into *string) error {
	return json.Unmarshal(v, into) //nolint:wrapcheck // the caller of this function names the member
}

func (x *exchange) createCredential() {
	if err := x.require("credential.create"); err != nil {
		x.Fail(err)
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
		x.Fail(err)
		return
	}
	members := map[string]any{"component": in.component, "keys": in.keys}
	if in.name != "" {
		members["name"] = in.name
	}
	if in.workspace != "" {
		members["workspace"] = in.workspace
	}
	if in.vpnAgent != "" {
		members["vpn_agent"] = in.vpnAgent
	}
	if err := in.expect(members); err != nil {
		x.Fail(err)
		return
	}
	done, err := ask[service.Done](x, "credential.create", members)
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveCredential(http.StatusCreated, done, in)
}

// giveCredential responds to a write: with the current credential or, if the caller may not
// read credentials, with the caller's own input.
func (x *exchange) giveCredential(status int, done service.Done, in credentialInput) {
	if x.may(permission.CredentialsGet) {
		c, err := ask[credential.Credential](x, "credential.get", credential.Get{ID: done.ID, MinSeq: done.Seq})
		if err != nil {
			x.Fail(err)
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
		x.Fail(err)
		return
	}
	in, err := x.credentialInput()
	if err == nil {
		err = in.changed(x.item, "credential")
	}
	replace := map[string]any{"id": x.item, "keys": in.keys}
	if err == nil {
		err = in.expect(replace)
	}
	if err == nil {
		err = x.stays(in)
	}
	if _, named := in.Attributes["name"]; err == nil && named {
		err = credential.CheckName(in.name)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	var changes []change
	if in.keys != nil { // first, because the service may reject them; the other members were validated
		changes = append(changes, change{"/keys", "credential.replace-keys", replace})
	}
	if in.name != "" {
		changes = append(changes, change{"/name", "credential.rename", credential.Rename{ID: x.item, Name: in.name}})
	}
	if in.vpnAgent != "" || in.unlinks("vpn_agent") {
		changes = append(changes, change{"/vpn_agent", "credential.set-vpn-agent", credential.SetVPNAgent{ID: x.item, VPNAgent: in.vpnAgent}})
	}
	done, err := x.inTurn(changes)
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveCredential(http.StatusOK, done, in)
}

// change is one of several commands of a request.
type change struct {
	step  string // suffix of the command id; "" for the first
	route string
	body  any
}

// inTurn executes the commands in order and stops at the first error. It returns the response
// of the last one.
func (x *exchange) inTurn(changes []change) (done service.Done, err error) {
	done.ID = x.item
	given := x.call.CommandID
	for n, c := range changes {
		if given != "" && n > 0 {
			x.call.CommandID = given + c.step
		}
		if done, err = ask[service.Done](x, c.route, c.body); err != nil {
			return done, err
		}
	}
	return done, nil
}

// stays returns an error if the document changes the component or workspace of the credential.
// It does not reveal them to a caller who may not read credentials.
func (x *exchange) stays(in credentialInput) error {
	if in.component == "" && in.workspace == "" {
		return nil
	}
	c, err := ask[credential.Credential](x, "credential.get", credential.Get{ID: x.item})
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
		done, err = ask[service.Done](x, "credential.delete", credential.Delete{ID: x.item})
	}
	if err != nil {
		x.Fail(err)
		return
	}
	if x.may(permission.CredentialsGet) { // wait until the read models reflect the delete
		_, err = ask[credential.Credential](x, "credential.get", credential.Get{ID: x.item, MinSeq: done.Seq})
	}
	x.gone(err)
}
