package elasticio

import (
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
)

// secretPointers maps members of the service's bodies to the document of an auth secret.
var secretPointers = map[string]string{
	"/id":          "/data/id",
	"/component":   "/data/relationships/component/data/id",
	"/auth_client": "/data/relationships/auth-client/data/id",
	"/name":        "/data/attributes/name",
	"/keys":        "/data/attributes/credentials",

	"/expected_revision": expectedRevision,
}

// toAuthClient is the name of a relationship in responses. Requests may also use the name in
// the vendor's table, auth_client.
const toAuthClient = "auth-client"

// secretTypes are the accepted types of an auth secret; the first one is used in responses.
var secretTypes = []string{"auth-secret", "secret"}

func (x *exchange) secretsPath() string {
	return "/v2/workspaces/" + url.PathEscape(x.workspace) + "/secrets"
}

func (x *exchange) secretResource(s credential.AuthSecret) resource {
	r := credentialResource(s.Credential)
	r.Type = secretTypes[0]
	r.Links = map[string]string{"self": x.secretsPath() + "/" + url.PathEscape(s.ID)}
	r.Attributes = map[string]any{"name": s.Name, "state": s.State, "credentials": r.Attributes["keys"]}
	if s.Error != "" {
		r.Attributes["error"] = s.Error
	}
	if s.AuthClient != "" {
		r.Relationships[toAuthClient] = to("auth-clients", "auth-client", s.AuthClient)
	}
	if s.Tokens != nil && s.Tokens.Problem == "" {
		r.Meta["expires_at"] = s.Tokens.Expires
	}
	return r
}

func (x *exchange) listSecrets() {
	p, err := readParameters(x.R.URL.RawQuery, slices.Concat(paging, sparse, []string{byComponent, sorted})...)
	if err != nil {
		x.Fail(err)
		return
	}
	by, err := p.order()
	if err != nil {
		x.Fail(err)
		return
	}
	var total int
	secrets, next, err := fetchPage(p, func(after string, limit int) ([]credential.AuthSecret, string, error) {
		page, err := ask[credential.AuthSecretList](x, "auth_secret.list", credential.ListAuthSecrets{
			Workspace: x.workspace, Component: p.component, Sort: by, Limit: limit, After: after,
		})
		total = page.Total
		return page.Secrets, page.Next, err
	})
	if err != nil {
		x.Fail(err)
		return
	}
	list, components := make([]resource, len(secrets)), make([]string, len(secrets))
	for i, s := range secrets {
		list[i], components[i] = p.trim(x.secretResource(s)), s.Component
	}
	x.giveList(p, list, components, next, total)
}

func (x *exchange) getSecret() {
	p, err := readParameters(x.R.URL.RawQuery, append(sparse, revealing)...)
	if err != nil {
		x.Fail(err)
		return
	}
	s, err := ask[credential.AuthSecret](x, "auth_secret.get", credential.GetAuthSecret{Workspace: x.workspace, ID: x.item})
	if err == nil && p.reveal { // it is in the workspace, which never changes
		var shown credential.Revealed
		shown, err = ask[credential.Revealed](x, "credential.reveal", credential.Reveal{ID: x.item})
		s.Keys = shown.Keys
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveOne(p, http.StatusOK, x.secretResource(s), s.Component)
}

// secretInput is a parsed document of an auth secret.
type secretInput struct {
	input
	name                  string
	keys                  jsontext.Value // nil when absent
	component, authClient string
}

// secretInput parses the document of an auth secret. The service determines state and error;
// values in a document are ignored after a type check.
func (x *exchange) secretInput() (in secretInput, err error) {
	x.pointers = secretPointers
	body, err := x.body()
	if err != nil {
		return in, err
	}
	if in.input, err = readDocument(body); err != nil {
		return in, err
	}
	if err := in.only("name", "credentials", "state", "error"); err != nil {
		return in, err
	}
	texts := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(in.Attributes)) {
		at, v := "/data/attributes/"+name, in.Attributes[name]
		if name == "credentials" {
			if v.Kind() != jsontext.KindBeginObject {
				return in, service.ErrBody.Withf("The credentials must be an object.").At(at)
			}
			in.keys = v
			continue
		}
		var text string
		if err := decodeText(v, &text); err != nil {
			return in, service.ErrBody.Withf("The attribute must be a string.").At(at)
		}
		texts[name] = text
	}
	in.name = texts["name"]
	if state := texts["state"]; state != "" && state != "ready" && state != "error" {
		return in, service.ErrBody.Withf("The state must be ready or error.").At("/data/attributes/state")
	}
	if in.component, err = in.related("component", "component"); err != nil {
		return in, err
	}
	for _, name := range []string{toAuthClient, "auth_client"} {
		id, err := in.related(name, "auth-client")
		if err != nil {
			return in, err
		}
		if id != "" {
			in.authClient = id
		}
	}
	workspace, err := in.related("workspace", "workspace")
	if err == nil && workspace != "" && workspace != x.workspace {
		err = ErrRelationshipFixed.Withf("The workspace must be the one in the path.").At("/data/relationships/workspace/data/id")
	}
	return in, err
}

func (x *exchange) createSecret() {
	in, err := x.secretInput()
	if err == nil {
		err = in.created(secretTypes...)
	}
	if err == nil && in.component == "" && in.authClient == "" {
		err = missing("/data/relationships/component/data/id")
	}
	if err == nil && in.keys == nil {
		err = missing("/data/attributes/credentials")
	}
	if err != nil {
		x.Fail(err)
		return
	}
	members := map[string]any{"workspace": x.workspace, "keys": in.keys}
	if in.component != "" {
		members["component"] = in.component
	}
	if in.authClient != "" {
		members["auth_client"] = in.authClient
	}
	if in.name != "" {
		members["name"] = in.name
	}
	if err := in.expect(members); err != nil {
		x.Fail(err)
		return
	}
	done, err := ask[service.Done](x, "auth_secret.create", members)
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveSecret(http.StatusCreated, done, in)
}

// giveSecret responds to a write: with the current auth secret or, if the caller may not read
// auth secrets, with the caller's own input.
func (x *exchange) giveSecret(status int, done service.Done, in secretInput) {
	if x.may(permission.AuthSecretsGet) {
		s, err := ask[credential.AuthSecret](x, "auth_secret.get", credential.GetAuthSecret{Workspace: x.workspace, ID: done.ID, MinSeq: done.Seq})
		if err != nil {
			x.Fail(err)
			return
		}
		x.giveOne(parameters{}, status, x.secretResource(s), s.Component)
		return
	}
	r := resource{
		ID: done.ID, Type: secretTypes[0], Links: map[string]string{"self": x.secretsPath() + "/" + url.PathEscape(done.ID)}, Attributes: map[string]any{},
		Relationships: map[string]relationship{"workspace": to("workspaces", "workspace", x.workspace)},
	}
	if in.name != "" {
		r.Attributes["name"] = in.name
	}
	if in.component != "" {
		r.Relationships["component"] = to("components", "component", in.component)
	}
	x.giveOne(parameters{}, status, r, in.component)
}

func (x *exchange) patchSecret() {
	in, err := x.secretInput()
	if err == nil {
		err = in.changed(x.item, secretTypes...)
	}
	replace := map[string]any{"workspace": x.workspace, "id": x.item, "keys": in.keys}
	if err == nil {
		err = in.expect(replace)
	}
	if err == nil && (in.component != "" || in.authClient != "") {
		err = x.secretStays(in)
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
		changes = append(changes, change{"/keys", "auth_secret.replace-keys", replace})
	}
	if in.name != "" {
		changes = append(changes, change{"/name", "auth_secret.rename", credential.RenameAuthSecret{Workspace: x.workspace, ID: x.item, Name: in.name}})
	}
	done, err := x.inTurn(changes)
	if err == nil && len(changes) == 0 { // nothing to change: check only that the secret exists
		err = x.cfg.Access.Require(x.R.Context(), x.call, "auth_secret.rename", permission.AuthSecretsEdit)
		x.SetTenant(x.call.Tenant, err)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveSecret(http.StatusOK, done, in)
}

// secretStays returns an error if the document changes the component or auth client of the
// secret. It does not reveal them to a caller who may not read auth secrets.
func (x *exchange) secretStays(in secretInput) error {
	s, err := ask[credential.AuthSecret](x, "auth_secret.get", credential.GetAuthSecret{Workspace: x.workspace, ID: x.item})
	switch {
	case err != nil:
		return err
	case in.component != "" && in.component != s.Component:
		return ErrRelationshipFixed.At("/component")
	case in.authClient != "" && in.authClient != s.AuthClient:
		return ErrRelationshipFixed.Withf("The auth client does not match the component's OAuth client.").At("/auth_client")
	}
	return nil
}

func (x *exchange) refreshSecret() {
	done, err := ask[service.Done](x, "auth_secret.refresh", credential.AuthSecretRef{Workspace: x.workspace, ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	x.giveSecret(http.StatusOK, done, secretInput{})
}

func (x *exchange) deleteSecret() {
	done, err := ask[service.Done](x, "auth_secret.delete", credential.AuthSecretRef{Workspace: x.workspace, ID: x.item})
	if err != nil {
		x.Fail(err)
		return
	}
	if x.may(permission.AuthSecretsGet) { // wait until the read models reflect the delete
		_, err = ask[credential.AuthSecret](x, "auth_secret.get", credential.GetAuthSecret{Workspace: x.workspace, ID: x.item, MinSeq: done.Seq})
	}
	x.gone(err)
}
