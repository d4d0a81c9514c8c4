// Package aspire is the edge that speaks the credentials API of Aspire 5. It owns no rule of
// its own but those of HTTP; every call goes through the service's route table.
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

// Access is what the edge needs of *access.Service.
type Access interface {
	edge.Identities
	// Require refuses a caller without the permission, and records that.
	Require(ctx context.Context, call service.Call, route string, perm permission.Permission) error
}

// Config is what the edge is made of. Service and Access are needed, the rest is optional.
type Config struct {
	Service edge.Service
	Access  Access
	Logger  *slog.Logger // takes one line per request; nil drops them
	// AllowCleartext takes clear values over plain HTTP from anywhere: for a service that
	// only a TLS terminating proxy can reach. Without it they pass over TLS and on the same
	// machine alone.
	AllowCleartext bool
}

// Prefix is where the paths of the edge begin.
const Prefix = "/aspire/_api/"

// ErrParameter refuses a parameter of the URL.
var ErrParameter = fault.New(fault.Invalid, "aspire_parameter_invalid", "Unknown parameter, or a parameter with a wrong value.")

// Handler returns the edge. The tenant is the home of the caller.
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

// operation is what a method does at a path, the route that it asks for, and the parameters
// that it takes.
type operation struct {
	do         func(*exchange)
	route      string
	parameters []string
}

type operations map[string]operation

var paging = []string{"from", "size", "sortBy", "sortMode", "sparse"}

// words are the names that stand in the place of an id.
var words = map[string]operations{
	"getAll":    {"POST": {(*exchange).getAll, "credential.search", paging}},
	"updateAll": {"POST": {do: (*exchange).updateAll, route: "credential.update-many"}},
	"delete":    {"POST": {do: (*exchange).deleteListed, route: "credential.delete-many"}},
	"deleteAll": {"POST": {do: (*exchange).deleteAll, route: "credential.delete-many"}},
	"export":    {"GET": {(*exchange).export, "credential.export", slices.Concat(paging, []string{"id"})}, "POST": {do: (*exchange).exportListed, route: "credential.export"}},
	"exportAll": {"POST": {(*exchange).exportAll, "credential.export", paging}},
}

// find returns what stands at the path, and its pattern.
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
		if at, word := policyWords[path[1]]; word {
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
		err = x.require(op.route) // before a body is read, which may be large
	}
	if err != nil {
		x.Fail(err)
		return
	}
	op.do(x)
}

// readParameters reads those of the URL; only ids may be repeated.
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

// ask serves a route with in as its body.
func ask[T any](x *exchange, route string, in any) (out T, err error) {
	if x.routes[route].Secrets && !x.call.Confidential {
		return out, credential.ErrCleartext
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, service.ErrBody
	}
	answer, err := x.cfg.Service.Serve(x.R.Context(), x.call, route, body)
	x.Accepted(x.call.Tenant, err)
	if err != nil {
		return out, err
	}
	switch v := answer.(type) {
	case T:
		return v, nil
	case *T: // a command that came again
		return *v, nil
	case interface{ Completed() service.Done }:
		if done, ok := any(v.Completed()).(T); ok {
			return done, nil
		}
	}
	return out, fmt.Errorf("%s answered %T", route, answer)
}

// require refuses a caller without the permission for a route. Who reads must be at least an
// operator, which is who may export.
func (x *exchange) require(route string) error {
	perm := x.routes[route].Permission
	if !x.routes[route].Command {
		perm = permission.CredentialsExport
	}
	err := x.cfg.Access.Require(x.R.Context(), x.call, route, perm)
	x.Accepted(x.call.Tenant, err)
	return err
}

// refusal is one thing that was refused.
type refusal struct {
	ID      string         `json:"id,omitzero"`
	Status  int            `json:"status"`
	Code    string         `json:"code"`
	Message string         `json:"message"`
	Details jsontext.Value `json:"details,omitzero"` // more for programs: the flows that hold a credential, say
}

// statusOf is the status of this API for one of HTTP: what cannot be accepted is 406.
func statusOf(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusConflict, http.StatusUnsupportedMediaType, http.StatusRequestEntityTooLarge:
		return http.StatusNotAcceptable
	}
	return status
}

// Problem implements edge.Dialect.
func (x *exchange) Problem(p fault.Problem) {
	if p.Kind != fault.Conflict { // a race that was lost may be run again
		p.Status = statusOf(p.Status)
	}
	x.Status = 0
	x.JSON(p.Status, edge.MediaJSON, map[string]any{
		"error":     []refusal{{x.item, p.Status, p.Code, p.Detail, jsontext.Value(p.Details)}},
		"requestId": x.ID,
	})
}

func (x *exchange) give(status int, document any) { x.JSON(status, edge.MediaJSON, document) }
