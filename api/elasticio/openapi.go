package elasticio

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/credstream/credstream/api/edge"
)

// Describe adds the paths of this API to the OpenAPI document, with an example of each request
// body.
func Describe(doc *huma.OpenAPI) {
	schemas := doc.Components.Schemas.Map()
	for name, s := range resourceSchemas() {
		schemas["v2."+name] = s
	}
	schemas["v2.errors"] = errorsSchema()
	doc.Components.Responses["v2.errors"] = &huma.Response{
		Description: "JSON:API error objects. Programs should use code.",
		Content:     media(&huma.MediaType{Schema: reference("v2.errors")}),
	}
	for _, o := range documented {
		item := doc.Paths[o.path]
		if item == nil {
			item = &huma.PathItem{}
			doc.Paths[o.path] = item
		}
		op := o.operation()
		switch o.method {
		case http.MethodGet:
			item.Get = op
		case http.MethodPost:
			item.Post = op
		case http.MethodPatch:
			item.Patch = op
		case http.MethodDelete:
			item.Delete = op
		}
	}
}

// described is an operation of the document.
type described struct {
	id, method, path, resource string
	summary                    string
	parameters                 []string // query parameters
	example                    string   // example of the body; "" if there is none
}

// Paths and ids of the examples.
const (
	pathClients     = "/v2/tenants/{tenant}/oauth-clients"
	pathCredentials = "/v2/credentials"
	pathSecrets     = "/v2/workspaces/{workspace}/secrets"
	pathAuthClients = "/v2/auth-clients"
	pathComponents  = "/v2/components"
	pathFlows       = "/v2/flows"
	item            = "/{id}"

	toComponent = `"relationships":{"component":{"data":{"id":"pet-shop","type":"component"}}}`
)

var (
	listed = []string{pageNumber, pageSize, pageAfter}
	shown  = []string{including, revealing}
)

var documented = []described{
	{
		"components.create", "POST", pathComponents, "component", "Register a component from its component.json, for this tenant or for every tenant.", nil,
		`{"data":{"type":"component","id":"pet-shop","attributes":{"access":"private","descriptor":{"title":"Pet shop","useOAuthClient":true,` +
			`"credentials":{"fields":{"apiKey":{"label":"API key","viewClass":"PasswordFieldView","required":true}}}}}}}`,
	},
	{"components.list", "GET", pathComponents, "component", "The components that the tenant may use, page by page.", listed, ""},
	{"components.get", "GET", pathComponents + item, "component", "One component with its descriptor.", nil, ""},
	{
		"components.update", "PATCH", pathComponents + item, "component", "Update the descriptor of a component, or who may use it.", nil,
		`{"data":{"type":"component","id":"pet-shop","attributes":{"access":"global"}}}`,
	},
	{"components.delete", "DELETE", pathComponents + item, "", "Delete a component. Its credentials and OAuth clients remain.", nil, ""},

	{
		"oauth-clients.create", "POST", pathClients, "oauth-client", "Define the tenant's OAuth client of a component. Each component has at most one.", nil,
		`{"data":{"type":"oauth-client","attributes":{"client_id":"a-client-id","client_secret":"a-client-secret"},` + toComponent + `}}`,
	},
	{"oauth-clients.list", "GET", pathClients, "oauth-client", "The OAuth clients of the tenant, page by page.", append([]string{byComponent, including}, listed...), ""},
	{"oauth-clients.get", "GET", pathClients + item, "oauth-client", "One OAuth client; the secret is masked unless it is revealed.", shown, ""},
	{
		"oauth-clients.update", "PATCH", pathClients + item, "oauth-client", "Change the client id, the client secret, or both.", nil,
		`{"data":{"type":"oauth-client","attributes":{"client_secret":"another-client-secret"},` + toComponent + `}}`,
	},
	{"oauth-clients.delete", "DELETE", pathClients + item, "", "Delete an OAuth client. Refused while a flow includes its component.", nil, ""},

	{
		"credentials.create", "POST", pathCredentials, "credential", "Verify keys by a dry request and save them as a new credential.", nil,
		`{"data":{"type":"credential","attributes":{"name":"Pet shop, production","keys":{"apiKey":"a-secret-key"}},` +
			`"relationships":{"component":{"data":{"id":"pet-shop","type":"component"}},"workspace":{"data":{"id":"sales","type":"workspace"}}}}}`,
	},
	{"credentials.list", "GET", pathCredentials, "credential", "Credentials by component and workspace, sorted, page by page.", append([]string{byWorkspace, byComponent, sorted, including}, listed...), ""},
	{"credentials.get", "GET", pathCredentials + item, "credential", "One credential; secret values are masked unless they are revealed.", shown, ""},
	{
		"credentials.update", "PATCH", pathCredentials + item, "credential", "Rename a credential, set its VPN agent, replace all of its keys, or several of these.", nil,
		`{"data":{"type":"credential","attributes":{"name":"Pet shop, test","keys":{"apiKey":"a-newer-key"}}}}`,
	},
	{"credentials.delete", "DELETE", pathCredentials + item, "", "Delete a credential that no active flow uses, and erase its keys.", nil, ""},

	{
		"secrets.create", "POST", pathSecrets, "auth-secret", "Verify credentials by a dry request and save them as a new auth secret of the workspace.", nil,
		`{"data":{"type":"auth-secret","attributes":{"name":"Pet shop of sales","credentials":{"apiKey":"a-secret-key"}},` + toComponent + `}}`,
	},
	{"secrets.list", "GET", pathSecrets, "auth-secret", "The auth secrets of the workspace, and whether they work, sorted, page by page.", append([]string{byComponent, sorted, including}, listed...), ""},
	{"secrets.get", "GET", pathSecrets + item, "auth-secret", "One auth secret; secret values are masked unless they are revealed.", shown, ""},
	{
		"secrets.update", "PATCH", pathSecrets + item, "auth-secret", "Rename an auth secret, replace all of its credentials, or both.", nil,
		`{"data":{"type":"auth-secret","attributes":{"name":"Pet shop, test","credentials":{"apiKey":"a-newer-key"}}}}`,
	},
	{"secrets.refresh", "POST", pathSecrets + item + "/refresh", "auth-secret", "Renew the tokens of an auth secret now, even if they are not due.", nil, ""},
	{"secrets.delete", "DELETE", pathSecrets + item, "", "Delete an auth secret that no active flow uses, and erase its credentials.", nil, ""},

	{
		"auth-clients.create", "POST", pathAuthClients, "auth-client",
		"Create an auth client for several components. With type oauth2 and a tenant, it also defines their OAuth clients: all of them, or none.", nil,
		`{"data":{"type":"auth-client","attributes":{"name":"Pet shops","type":"basic","credentials":{"username":"a-user","password":"a-secret-password"}},` +
			`"relationships":{"components":{"data":[{"id":"pet-shop","type":"component"}]},"workspace":{"data":{"id":"sales","type":"workspace"}}}}}`,
	},
	{
		"auth-clients.list", "GET", pathAuthClients, "auth-client", "The auth clients that are visible in a workspace, contract or tenant. Without one of these, only the global auth clients.",
		append([]string{byWorkspace, byContract, byTenant, byComponent, including}, listed...), "",
	},
	{"auth-clients.get", "GET", pathAuthClients + item, "auth-client", "One auth client; secrets are masked unless they are revealed.", append([]string{byWorkspace, byContract, byTenant}, shown...), ""},
	{
		"auth-clients.update", "PATCH", pathAuthClients + item, "auth-client", "Change the name, the components or members of the credentials. The OAuth clients of its components are updated with it.",
		[]string{byTenant},
		`{"data":{"type":"auth-client","attributes":{"name":"Pet shops, test","credentials":{"password":"another-secret-password"}}}}`,
	},
	{"auth-clients.delete", "DELETE", pathAuthClients + item, "", "Delete an auth client and the OAuth clients that it manages. Refused while a flow includes one of its components.", []string{byTenant}, ""},

	{
		"flows.create", "POST", pathFlows, "flow", "Create a flow: which components and credentials its nodes use.", nil,
		`{"data":{"type":"flow","id":"pet-orders","attributes":{"name":"Orders to the pet shop","graph":{"nodes":[{"id":"step_1","component_id":"pet-shop","credentials_id":"` + edge.ExampleID + `"}]}}}}`,
	},
	{"flows.get", "GET", pathFlows + item, "flow", "One flow.", nil, ""},
	{"flows.start", "POST", pathFlows + item + "/start", "flow", "Make a flow active.", nil, ""},
	{"flows.stop", "POST", pathFlows + item + "/stop", "flow", "Make a flow inactive.", nil, ""},
	{"flows.delete", "DELETE", pathFlows + item, "", "Delete a flow and release its credentials.", nil, ""},
}

// exampleItem has the id for the examples of each path: a generated one, or that of the create
// example.
var exampleItem = map[string]string{
	pathClients: edge.ExampleID, pathCredentials: edge.ExampleID, pathSecrets: edge.ExampleID, pathAuthClients: edge.ExampleID, pathComponents: "pet-shop", pathFlows: "pet-orders",
}

// queryParameters describes the parameters, which several operations share. A parameter has no
// example if a first request should not use it.
var queryParameters = map[string]huma.Param{
	byComponent: {Description: "Filter by component; empty means no filter.", Example: "pet-shop"},
	byWorkspace: {Description: "Filter by workspace.", Example: "sales"},
	byContract:  {Description: "The contract, instead of workspace_id."},
	byTenant:    {Description: "The tenant, instead of workspace_id; the key's home tenant when absent."},
	sorted:      {Description: "name or created_at, with - for descending, or name and then created_at.", Example: "name,-created_at"},
	including:   {Description: "component: include the components.", Example: "component"},
	revealing:   {Description: "true: return secrets in clear text. Requires credentials.reveal and is audited first."},
	pageNumber:  {Description: "Counted from 1.", Example: 1},
	pageSize:    {Description: "1 to 200; 50 when absent.", Example: 20},
	pageAfter:   {Description: "Cursor from links.next of the previous page."},
}

func (o described) operation() *huma.Operation {
	op := &huma.Operation{
		OperationID: "v2." + o.id, Summary: o.summary, Tags: []string{"elastic.io v2"},
		Responses: map[string]*huma.Response{"default": {Ref: "#/components/responses/v2.errors"}},
	}
	text := &huma.Schema{Type: huma.TypeString}
	collection := o.path
	for _, base := range []string{pathClients, pathCredentials, pathSecrets, pathAuthClients, pathComponents, pathFlows} {
		if len(o.path) > len(base) && o.path[:len(base)] == base {
			collection = base
			op.Parameters = append(op.Parameters, &huma.Param{
				Name: "id", In: "path", Required: true, Description: "The id of the " + base[len("/v2/"):] + ".", Schema: text, Example: exampleItem[base],
			})
		}
	}
	if collection == pathClients {
		op.Parameters = append(op.Parameters, &huma.Param{Name: "tenant", In: "path", Required: true, Description: "The tenant.", Schema: text, Example: "default"})
	}
	if collection == pathSecrets {
		op.Parameters = append(op.Parameters, &huma.Param{Name: "workspace", In: "path", Required: true, Description: "The workspace.", Schema: text, Example: "sales"})
	}
	for _, name := range o.parameters {
		p := queryParameters[name]
		p.Name, p.In, p.Schema = name, "query", text
		if _, number := p.Example.(int); number {
			p.Schema = &huma.Schema{Type: huma.TypeInteger}
		}
		op.Parameters = append(op.Parameters, &p)
	}
	switch {
	case o.resource == "":
		op.Responses["204"] = &huma.Response{Description: "Done, without a body."}
	case o.method == http.MethodGet && collection == o.path:
		op.Responses["200"] = o.answers("The list.", &huma.Schema{Type: huma.TypeArray, Items: reference("v2." + o.resource)})
	case o.method == http.MethodPost && collection == o.path:
		op.Responses[strconv.Itoa(http.StatusCreated)] = o.answers("Created.", reference("v2."+o.resource))
	default:
		op.Responses["200"] = o.answers("The resource after the change.", reference("v2."+o.resource))
	}
	if o.example != "" {
		body := map[string]*huma.Schema{"data": reference("v2." + o.resource)}
		if slices.Contains([]string{pathClients, pathCredentials, pathSecrets, pathAuthClients}, collection) {
			meta := map[string]*huma.Schema{"expected_revision": {
				Type: huma.TypeInteger, Description: "Reject the secrets unless the component has this revision.",
			}}
			if collection == pathAuthClients {
				meta["expected_revisions"] = &huma.Schema{
					Type: huma.TypeObject, AdditionalProperties: &huma.Schema{Type: huma.TypeInteger},
					Description: "Reject the secrets unless these components have these revisions.",
				}
			}
			body["meta"] = members("", meta)
		}
		op.RequestBody = &huma.RequestBody{Required: true, Content: media(&huma.MediaType{
			Schema: members("A JSON:API document.", body, "data"), Example: json.RawMessage(o.example),
		})}
	}
	return op
}

func (o described) answers(says string, data *huma.Schema) *huma.Response {
	return &huma.Response{Description: says, Content: media(&huma.MediaType{Schema: members("A JSON:API document.", map[string]*huma.Schema{
		"data": data, "included": anything("The components, if included."), "links": anything("Links to other pages."), "meta": anything("Totals."),
	}, "data")})}
}

// media returns a content in JSON:API's media type; application/json is accepted too.
func media(m *huma.MediaType) map[string]*huma.MediaType {
	return map[string]*huma.MediaType{mediaJSONAPI: m}
}

func reference(name string) *huma.Schema { return &huma.Schema{Ref: "#/components/schemas/" + name} }

func members(says string, properties map[string]*huma.Schema, required ...string) *huma.Schema {
	return &huma.Schema{Type: huma.TypeObject, Description: says, Properties: properties, Required: required}
}

func anything(says string) *huma.Schema { return &huma.Schema{Description: says} }

func words(says string) *huma.Schema { return &huma.Schema{Type: huma.TypeString, Description: says} }

// resourceSchemas returns the schemas of the resources, by type.
func resourceSchemas() map[string]*huma.Schema {
	one := func(typ, says string, attributes map[string]*huma.Schema, related ...string) *huma.Schema {
		relationships := map[string]*huma.Schema{}
		for _, name := range related {
			relationships[name] = members("", map[string]*huma.Schema{
				"data": members("", map[string]*huma.Schema{"id": words(""), "type": words("")}, "id", "type"),
			}, "data")
		}
		s := members(says, map[string]*huma.Schema{
			"id": words("Generated by the service unless a create gives it."), "type": words(typ + "."),
			"attributes": members("", attributes), "meta": anything("Attributes that the vendor's schema does not have; read-only."),
		}, "type")
		if len(related) > 0 {
			s.Properties["relationships"] = members("", relationships)
		}
		return s
	}
	return map[string]*huma.Schema{
		"credential": one("credential", "Keys for one account at one API.", map[string]*huma.Schema{
			"name": words("Display name; generated when absent."), "keys": anything("A value for each field of the component's descriptor; secret values are masked in responses."),
		}, "component", "workspace", "user", "vpn_agent"),
		"auth-secret": one("auth-secret", "A credential of a workspace.", map[string]*huma.Schema{
			"name": words("Display name; generated when absent."), "state": words("ready or error; set by the service."), "error": words("Why it is not ready; read-only."),
			"credentials": anything("A value for each field of the component's descriptor, or tokens; secret values are masked in responses."),
		}, "component", "workspace", "user", "auth-client"),
		"auth-client": authClientSchema(one("auth-client", "Credentials with which several components authenticate.", map[string]*huma.Schema{
			"name": words("Display name."), "type": words("oauth2, basic, api_key or noauth."), "credentials": anything("For oauth2: client_id, client_secret and more; secrets are masked in responses."),
		}, "workspace", "contract", "tenant")),
		"oauth-client": one("oauth-client", "The OAuth client with which this tenant is registered at a provider.", map[string]*huma.Schema{
			"client_id": words(""), "client_secret": words("Masked in responses."),
		}, "component"),
		"component": one("component", "The connector that a flow step runs.", map[string]*huma.Schema{
			"name": words("The title of the descriptor; read-only."), "access": words("private or global."), "descriptor": anything("The component.json."),
		}),
		"flow": one("flow", "A flow and the components and credentials that its steps use.", map[string]*huma.Schema{
			"name": words("Display name."), "status": words("active or inactive; read-only."),
			"graph": members("", map[string]*huma.Schema{"nodes": {Type: huma.TypeArray, Items: members("A step.", map[string]*huma.Schema{
				"id": words("Unique within the flow."), "name": words("Display name."), "component_id": words("The component that it runs."), "credentials_id": words("The credential that it uses."),
			}, "id", "component_id")}}, "nodes"),
		}),
	}
}

// authClientSchema adds the to-many relationship to the schema.
func authClientSchema(s *huma.Schema) *huma.Schema {
	s.Properties["relationships"].Properties["components"] = members("", map[string]*huma.Schema{
		"data": {Type: huma.TypeArray, Items: members("", map[string]*huma.Schema{"id": words(""), "type": words("")}, "id", "type")},
	}, "data")
	return s
}

func errorsSchema() *huma.Schema {
	return members("", map[string]*huma.Schema{"errors": {Type: huma.TypeArray, Items: members("", map[string]*huma.Schema{
		"id": words("Request id, for support."), "status": words("HTTP status."), "code": words("Stable error code, for programs."),
		"title": words("Status text."), "detail": words("Message for people."),
		"source": members("The invalid input.", map[string]*huma.Schema{"pointer": words("JSON pointer into the body (RFC 6901)."), "parameter": words("Parameter of the URL.")}),
		"meta":   anything("Further data for programs, such as the flows that use a credential."),
	}, "status", "code", "title", "detail")}}, "errors")
}
