package v1

import (
	"encoding/json"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
)

// openAPI writes the OpenAPI 3.1 document of the route table. A type it cannot
// describe is a mistake of ours and panics at start; a test meets it first.
func openAPI(version string) []byte {
	types := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	types.RegisterTypeAlias(reflect.TypeFor[jsontext.Value](), reflect.TypeFor[json.RawMessage]())
	types.RegisterTypeAlias(reflect.TypeFor[service.Keys](), reflect.TypeFor[map[string]json.RawMessage]())

	problem := &huma.Response{
		Description: "A problem (RFC 9457). Tell problems apart by code.",
		Content:     map[string]*huma.MediaType{typeProblem[0]: {Schema: types.Schema(reflect.TypeFor[fault.Problem](), true, "")}},
	}
	doc := &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info: &huma.Info{
			Title: "credstream", Version: version,
			Description: "Commands and queries of credstream. The same are served over NATS with the same JSON. " +
				"A command answers with the log sequence of its change; a query with min_seq reflects at least that one.",
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
	for _, r := range service.Routes() {
		op := &huma.Operation{
			OperationID: r.Name, Summary: r.Summary, Description: "Needs the permission " + string(r.Permission) + ".",
			Parameters: []*huma.Param{text("tenant", "path", true, "The tenant.")},
			Responses: map[string]*huma.Response{
				strconv.Itoa(http.StatusOK): {
					Description: "Done.",
					Content:     map[string]*huma.MediaType{typeJSON[0]: {Schema: types.Schema(r.Out, true, "")}},
				},
				"default": {Ref: "#/components/responses/problem"},
			},
		}
		if r.Command {
			op.Tags = []string{"commands"}
			op.Parameters = append(op.Parameters,
				text("Idempotency-Key", "header", false, "The command's id: the same command sent again with it is obeyed once and answered as before."),
				text("X-Correlation-Id", "header", false, "Shared by all that one outside cause led to; stands in the events."))
			op.RequestBody = &huma.RequestBody{
				Required: true,
				Content:  map[string]*huma.MediaType{typeJSON[0]: {Schema: types.Schema(r.In, true, "")}},
			}
			doc.Paths[commandPath+r.Name] = &huma.PathItem{Post: op}
			continue
		}
		op.Tags = []string{"queries"}
		for _, p := range parametersOf(r.In) {
			op.Parameters = append(op.Parameters, &huma.Param{
				Name: p.name, In: "query", Required: p.required, Schema: types.Schema(p.goType, true, ""),
			})
		}
		if r.Name == replayRoute {
			op.Responses["200"].Content[linesType] = &huma.MediaType{Schema: &huma.Schema{
				Type: huma.TypeString, Description: "CloudEvents in JSON, one a line, up to limit or to the end.",
			}}
		}
		doc.Paths[queryPath+r.Name] = &huma.PathItem{Get: op}
	}
	for _, s := range types.Map() {
		notNull(s)
	}
	b, err := json.Marshal(doc)
	if err != nil {
		panic("openapi document: " + err.Error())
	}
	return b
}

func text(name, in string, required bool, says string) *huma.Param {
	return &huma.Param{Name: name, In: in, Required: required, Description: says, Schema: &huma.Schema{Type: huma.TypeString}}
}

// notNull takes back what huma assumes of encoding/json: our arrays are never null.
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
