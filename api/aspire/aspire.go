// Package aspire serves the credentials API of Aspire 5. It has no business rules; every call
// uses the service's route table.
package aspire

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
)

// Access is the part of *access.Service that the handler calls.
type Access interface {
	edge.Identities
	// Require returns an error if the caller lacks the permission, and records the denial.
	Require(ctx context.Context, call service.Call, route string, perm permission.Permission) error
}

// Config configures a handler. Service and Access are required.
type Config struct {
	Service edge.Service
	Access  Access
	Logger  *slog.Logger // one line per request; nil discards them
	// AllowCleartext accepts and returns secrets also over plain HTTP. Set it only if all connections
	// come from a TLS-terminating proxy, or the port accepts TLS only.
	AllowCleartext bool
}

// Prefix is the prefix of all paths of this API.
const Prefix = "/aspire/_api/"

// ErrParameter refuses an invalid URL parameter.
var ErrParameter = fault.New(fault.Invalid, "aspire_parameter_invalid", "Unknown parameter, or a parameter with a wrong value.")

// Handler returns the handler. The tenant is the home tenant of the caller.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg, routes: map[string]service.Route{}}
	for _, r := range application.Routes() {
		h.routes[r.Name] = r
	}
	return edge.Handler(cfg.Logger, func(x *edge.Exchange) edge.Dialect { return &exchange{Exchange: x, handler: h} })
}

type handler struct {
	cfg    Config
	routes map[string]service.Route
}

// exchange is one request and its response.
type exchange struct {
	*edge.Exchange
	*handler
	call  service.Call
	item  string // id from the path, or ""
	query url.Values
}

// operation is the handler of a method at a path, the route that it calls, and its URL
// parameters.
type operation struct {
	do         func(*exchange)
	route      string
	parameters []string
}

type operations map[string]operation

var paging = []string{"from", "size", "sortBy", "sortMode", "sparse"}

// words are the path segments that are names of operations instead of ids.
var words = map[string]operations{
	"getAll":    {"POST": {(*exchange).getAll, "credential.search", paging}},
	"updateAll": {"POST": {do: (*exchange).updateAll, route: "credential.update-many"}},
	"delete":    {"POST": {do: (*exchange).deleteListed, route: "credential.delete-many"}},
	"deleteAll": {"POST": {do: (*exchange).deleteAll, route: "credential.delete-many"}},
	"export":    {"GET": {(*exchange).export, "credential.export", slices.Concat(paging, []string{"id"})}, "POST": {do: (*exchange).exportListed, route: "credential.export"}},
	"exportAll": {"POST": {(*exchange).exportAll, "credential.export", paging}},
}

// find returns the operations of a path, and its pattern.
func (x *exchange) find() (operations, string, error) {
	rest, _ := strings.CutPrefix(x.R.URL.EscapedPath(), Prefix)
	var path []string
	for part := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		plain, err := url.PathUnescape(part)
		if err != nil || !utf8.ValidString(plain) {
			return nil, "", edge.ErrPathUnknown
		}
		path = append(path, plain)
	}
	if path[0] == "policies" && len(path) <= 2 {
		pattern := Prefix + "policies"
		switch {
		case len(path) == 1:
			return policyList, pattern, nil
		case path[1] == "":
			return nil, "", edge.ErrPathUnknown
		}
		if at, word := policyWords[path[1]]; word && at[x.R.Method].do != nil {
			return at, pattern + "/" + path[1], nil
		}
		x.item = path[1]
		return policyItem, pattern + "/{id}", nil
	}
	if path[0] != "credentials" || len(path) > 3 {
		return nil, "", edge.ErrPathUnknown
	}
	pattern := Prefix + "credentials"
	if len(path) == 1 {
		return operations{
			"GET": {(*exchange).list, "credential.search", paging}, "POST": {do: (*exchange).add, route: "credential.create-many"},
			"PUT": {do: (*exchange).updateListed, route: "credential.update-many"}, "DELETE": {(*exchange).deleteNamed, "credential.delete-many", []string{"id"}},
		}, pattern, nil
	}
	if at, word := words[path[1]]; word && len(path) == 2 {
		return at, pattern + "/" + path[1], nil
	}
	if len(path) == 3 && path[1] == "export" && path[2] != "" {
		x.item = path[2]
		return operations{"GET": {do: (*exchange).exportOne, route: "credential.export"}}, pattern + "/export/{id}", nil
	}
	if len(path) == 3 || path[1] == "" {
		return nil, "", edge.ErrPathUnknown
	}
	x.item = path[1]
	return operations{
		"GET": {do: (*exchange).get, route: "credential.get"}, "PUT": {do: (*exchange).update, route: "credential.update-many"},
		"DELETE": {do: (*exchange).delete, route: "credential.delete-many"},
	}, pattern + "/{id}", nil
}

// Serve implements edge.Dialect.
func (x *exchange) Serve() {
	if err := edge.CheckOrigin(x.R); err != nil {
		x.Fail(err)
		return
	}
	call, err := x.Authenticate(x.cfg.Access, x.cfg.AllowCleartext)
	if x.call = call; err == nil {
		err = x.ReadHeaders(&x.call)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.call.Tenant = x.call.Principal.Home
	at, pattern, err := x.find()
	if x.Pattern = pattern; err != nil {
		x.Fail(err)
		return
	}
	var methods []string
	for _, m := range []string{"GET", "POST", "PUT", "DELETE"} {
		if at[m].do != nil {
			methods = append(methods, m)
		}
	}
	if !x.Allows(strings.Join(methods, ", ")) {
		return
	}
	op := at[x.R.Method]
	err = x.readParameters(op.parameters)
	if err == nil {
		err = x.require(op.route) // before the body, which may be large, is read
	}
	if err != nil {
		x.Fail(err)
		return
	}
	op.do(x)
}

// readParameters parses the URL parameters. Only id may be repeated.
func (x *exchange) readParameters(known []string) (err error) {
	if x.query, err = url.ParseQuery(x.R.URL.RawQuery); err != nil {
		return ErrParameter
	}
	for name, values := range x.query {
		switch {
		case !slices.Contains(known, name):
			return ErrParameter.Withf("Unknown parameter. Supported parameters: %s.", cmp.Or(strings.Join(known, ", "), "none"))
		case len(values) > 1 && name != "id":
			return ErrParameter.Withf("The parameter %s appears more than once.", name)
		}
	}
	return nil
}

// ask calls a route with in as the body.
func ask[T any](x *exchange, route string, in any) (out T, err error) {
	if x.routes[route].Secrets && !x.call.Confidential {
		return out, credential.ErrCleartext
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, service.ErrBody
	}
	answer, err := x.cfg.Service.Serve(x.R.Context(), x.call, route, body)
	x.SetTenant(x.call.Tenant, err)
	if err != nil {
		return out, err
	}
	switch v := answer.(type) {
	case T:
		return v, nil
	case *T: // the response of a repeated command
		return *v, nil
	case interface{ Completed() service.Done }:
		if done, ok := any(v.Completed()).(T); ok {
			return done, nil
		}
	}
	return out, fmt.Errorf("%s answered %T", route, answer)
}

// require checks the permission of a route. Reading requires at least the role OPERATOR, the
// lowest one with the permission to export.
func (x *exchange) require(route string) error {
	perm := x.routes[route].Permission
	if !x.routes[route].Command {
		perm = permission.CredentialsExport
	}
	err := x.cfg.Access.Require(x.R.Context(), x.call, route, perm)
	x.SetTenant(x.call.Tenant, err)
	return err
}

// refusal is the error of one item.
type refusal struct {
	ID      string         `json:"id,omitzero"`
	Status  int            `json:"status"`
	Code    string         `json:"code"`
	Message string         `json:"message"`
	Details jsontext.Value `json:"details,omitzero"` // structured details, such as the flows that use a credential
}

// statusOf maps an HTTP status to one of this API: an item that cannot be accepted is a 406.
func statusOf(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusConflict, http.StatusUnsupportedMediaType, http.StatusRequestEntityTooLarge:
		return http.StatusNotAcceptable
	}
	return status
}

// Problem implements edge.Dialect.
func (x *exchange) Problem(p fault.Problem) {
	if p.Kind != fault.Conflict { // the caller can repeat the request after a lost race
		p.Status = statusOf(p.Status)
	}
	x.Status = 0
	x.JSON(p.Status, edge.MediaJSON, map[string]any{
		"error":     []refusal{{x.item, p.Status, p.Code, p.Detail, jsontext.Value(p.Details)}},
		"requestId": x.ID,
	})
}

func (x *exchange) give(status int, document any) { x.JSON(status, edge.MediaJSON, document) }
