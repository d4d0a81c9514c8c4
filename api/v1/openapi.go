package v1

import (
	_ "embed" // the comments
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/connector"
	"github.com/credstream/credstream/service/secrets"
)

// comments has the source comments of the types in the document and of their members, by Go
// name. A test of the reference generates and checks it.
//
//go:embed comments.json
var comments []byte

// openAPI returns the OpenAPI 3.1 document: the route table, the paths that more adds (nil:
// none), and the other paths of this API. It panics if it cannot describe a type, which tests
// detect.
func openAPI(version string, more func(*huma.OpenAPI)) []byte {
	types := huma.NewMapRegistry("#/components/schemas/", schemaNames(application.Routes()))
	types.RegisterTypeAlias(reflect.TypeFor[jsontext.Value](), reflect.TypeFor[json.RawMessage]())
	types.RegisterTypeAlias(reflect.TypeFor[secrets.Keys](), reflect.TypeFor[map[string]json.RawMessage]())
	types.RegisterTypeAlias(reflect.TypeFor[secrets.Secret](), reflect.TypeFor[string]())
	types.RegisterTypeAlias(reflect.TypeFor[connector.Value](), reflect.TypeFor[string]())

	problem := &huma.Response{
		Description: "A problem document (RFC 9457). Programs should use code.",
		Content:     map[string]*huma.MediaType{edge.MediaProblem: {Schema: types.Schema(reflect.TypeFor[fault.Problem](), true, "")}},
	}
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "credstream", Version: version,
			Description: "Commands and queries of credstream. NATS serves the same ones with the same JSON. A command " +
				"answers with the log sequence of its change; a query with min_seq reflects at least that " +
				"sequence. A caller above its rate gets 429 with Retry-After.",
		},
		Paths:    map[string]*huma.PathItem{},
		Security: []map[string][]string{{"basic": {}}, {"bearer": {}}},
		Components: &huma.Components{
			Schemas:   types,
			Responses: map[string]*huma.Response{"problem": problem},
			SecuritySchemes: map[string]*huma.SecurityScheme{
				"basic":  {Type: "http", Scheme: "basic", Description: "Any user name, the API key as password."},
				"bearer": {Type: "http", Scheme: "bearer", Description: "The API key."},
			},
		},
	}
	said := readComments()
	for _, r := range application.Routes() {
		op := &huma.Operation{
			OperationID: r.Name, Summary: r.Summary, Description: needs(r),
			Parameters: []*huma.Param{text("tenant", "path", true, "The tenant.", exampleTenant)},
			Responses: map[string]*huma.Response{
				strconv.Itoa(http.StatusOK): {
					Description: "Done.",
					Content:     map[string]*huma.MediaType{edge.MediaJSON: {Schema: types.Schema(r.Out, true, "")}},
				},
				"default": {Ref: "#/components/responses/problem"},
			},
		}
		if r.Command {
			op.Tags = []string{"commands"}
			op.Parameters = append(op.Parameters,
				text("Idempotency-Key", "header", false, "Idempotency key: the service executes a command with this id once and answers a repeat with the first result.", nil),
				text("X-Correlation-Id", "header", false, "Correlation id: stored in the events of this command.", nil),
				text(service.DeadlineHeader, "header", false, "Deadline of the caller (RFC 3339). A command that arrives later is not executed.", nil))
			body := &huma.MediaType{Schema: types.Schema(r.In, true, "")}
			if example, ok := examples[r.Name]; ok {
				body.Example = json.RawMessage(example)
			}
			op.RequestBody = &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{edge.MediaJSON: body}}
			doc.Paths[commandPath+r.Name] = &huma.PathItem{Post: op}
			if r.Name == connectRoute {
				short := *op
				short.OperationID += ".short"
				doc.Paths[queryPath+connectPath] = &huma.PathItem{Post: &short}
			}
			if r.Name == flowEventsRoute {
				results := types.Schema(reflect.TypeFor[FlowEventResults](), true, "")
				doc.Paths[flowEventsPath] = describeFlowEvents(*op, types.Schema(r.Out, true, ""), results)
			}
			continue
		}
		op.Tags = []string{"queries"}
		op.Parameters = append(op.Parameters, queryParameters(types, said, r)...)
		if lines := replays[r.Name]; lines != "" {
			op.Responses["200"].Content[linesType] = &huma.MediaType{Schema: &huma.Schema{Type: huma.TypeString, Description: lines}}
		}
		if r.Name == changesRoute {
			describeChanges(op)
		}
		doc.Paths[queryPath+r.Name] = &huma.PathItem{Get: op}
	}
	for path, op := range edgePaths(types) {
		op.Tags, op.Security = []string{"service"}, []map[string][]string{} // no API key
		doc.Paths[path] = &huma.PathItem{Get: op}
	}
	if more != nil {
		more(doc)
	}
	for name, s := range types.Map() {
		notNull(s)
		said.describe(s, types.TypeFromRef("#/components/schemas/"+name))
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic("openapi document: " + err.Error())
	}
	return b
}

// needs is the sentence about the permission of a route.
func needs(r service.Route) string {
	if r.AltPermission != "" {
		return "Requires the permission " + string(r.Permission) + " or " + string(r.AltPermission) + "."
	}
	return "Requires the permission " + string(r.Permission) + "."
}

// queryParameters describes the members of a query's input that a URL can carry.
func queryParameters(types huma.Registry, said typeComments, r service.Route) (list []*huma.Param) {
	given := map[string]any{}
	if example, ok := examples[r.Name]; ok {
		if err := json.Unmarshal([]byte(example), &given); err != nil {
			panic("openapi example of " + r.Name + ": " + err.Error())
		}
	}
	for _, p := range parametersOf(r.In) {
		list = append(list, &huma.Param{
			Name: p.name, In: "query", Required: p.required, Schema: types.Schema(p.goType, true, ""),
			Description: said[r.In.String()][p.field], Example: given[p.name],
		})
	}
	return list
}

// edgePaths describes the paths outside the route table.
func edgePaths(types huma.Registry) map[string]*huma.Operation {
	answer := func(says, media string, schema *huma.Schema) *huma.Response {
		return &huma.Response{Description: says, Content: map[string]*huma.MediaType{media: {Schema: schema}}}
	}
	plain := &huma.Schema{Type: huma.TypeString}
	one := func(id, summary, media string, schema *huma.Schema) *huma.Operation {
		return &huma.Operation{
			OperationID: id, Summary: summary, Responses: map[string]*huma.Response{"200": answer("Done.", media, schema)},
		}
	}
	readiness := types.Schema(reflect.TypeFor[Readiness](), true, "")
	ready := one("readyz", "Readiness: whether every component of the service works, with the reasons if not.", edge.MediaJSON, readiness)
	ready.Responses["503"] = answer("Not ready.", edge.MediaJSON, readiness)
	return map[string]*huma.Operation{
		"/":             one("index", "Name, version and links.", edge.MediaJSON, &huma.Schema{Type: huma.TypeObject}),
		"/healthz":      one("healthz", "Liveness: whether the process answers.", "text/plain", plain),
		"/readyz":       ready,
		"/metrics":      one("metrics", "Metrics in the Prometheus text format.", "text/plain", plain),
		"/openapi.json": one("openapi", "This document.", edge.MediaJSON, &huma.Schema{Type: huma.TypeObject}),
		"/docs":         one("docs", "This document as a web page.", "text/html", plain),
	}
}

// typeComments are comments by type ("service.Done") and field; "" is the type itself.
type typeComments map[string]map[string]string

func readComments() (said typeComments) {
	if err := json.Unmarshal(comments, &said); err != nil {
		panic("openapi comments: " + err.Error())
	}
	return said
}

// describe sets the descriptions of a struct's schema and its members.
func (said typeComments) describe(s *huma.Schema, of reflect.Type) {
	if of == nil || of.Kind() != reflect.Struct {
		return
	}
	s.Description = said[of.String()][""]
	said.describeMembers(s, of)
}

func (said typeComments) describeMembers(s *huma.Schema, of reflect.Type) {
	for f := range of.Fields() {
		if f.Anonymous {
			said.describeMembers(s, f.Type)
			continue
		}
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if p := s.Properties[name]; p != nil {
			p.Description = said[of.String()][f.Name] // allowed next to $ref since OpenAPI 3.1
		}
	}
}

func text(name, in string, required bool, says string, example any) *huma.Param {
	return &huma.Param{
		Name: name, In: in, Required: required, Description: says, Schema: &huma.Schema{Type: huma.TypeString}, Example: example,
	}
}

// notNull removes null from arrays: huma assumes encoding/json, but our arrays are never null.
func notNull(s *huma.Schema) {
	if s == nil {
		return
	}
	if s.Type == huma.TypeArray {
		s.Nullable = false
	}
	notNull(s.Items)
	for _, p := range s.Properties {
		notNull(p)
	}
}

// schemaNames returns a function that names the schemas. Names of types in a feature begin with
// the feature, because two features can have types of the same name; names of commands end with
// the category.
func schemaNames(routes []service.Route) func(reflect.Type, string) string {
	category := map[reflect.Type]string{}
	for _, r := range routes {
		if strings.HasSuffix(r.In.PkgPath(), "/commands") {
			category[r.In], _, _ = strings.Cut(r.Name, ".")
		}
	}
	return func(t reflect.Type, hint string) string {
		name := huma.DefaultSchemaNamer(t, hint)
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
			t = t.Elem()
		}
		if of := category[t]; of != "" {
			of = strings.ToUpper(of[:1]) + of[1:]
			return of + strings.Replace(name, of, "", 1)
		}
		_, feature, ok := strings.Cut(t.PkgPath(), "/service/")
		if !ok || strings.Contains(strings.ToLower(name), feature) {
			return name
		}
		return strings.ToUpper(feature[:1]) + feature[1:] + name
	}
}
