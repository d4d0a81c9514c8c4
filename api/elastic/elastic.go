// Package elastic serves Elasticsearch's connector API: connectors, their API keys and their
// secrets, in the formats that Elasticsearch's official clients expect. It has no business
// rules; every call uses the service's route table.
package elastic

import (
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
)

// Config configures a handler. Service and Access are required.
type Config struct {
	Service edge.Service
	Access  edge.Identities
	Logger  *slog.Logger // one line per request; nil discards them
	// AllowCleartext accepts and returns secrets also over plain HTTP. Set it only if all connections
	// come from a TLS-terminating proxy, or the port accepts TLS only.
	AllowCleartext bool
}

// Errors that this API adds to those of the service.
var (
	ErrConnectorIDMissing = fault.New(fault.Invalid, "connector_id_missing", `[connector_id] cannot be [null] or [""].`)
	ErrSecretIDMissing    = fault.New(fault.Invalid, "connector_secret_id_missing", `[id] of the connector secret cannot be [null] or [""].`)
	ErrBodyRequired       = fault.New(fault.Invalid, "body_required", "request body is required")
	ErrNoHandler          = fault.New(fault.Invalid, "handler_not_found", "no handler found for this uri and method")
	ErrParameter          = fault.New(fault.Invalid, "parameter_unrecognized", "The request contains an unrecognized parameter.")
	ErrAccept             = fault.New(fault.Invalid, "accept_unsupported",
		"The Accept header must allow application/json, or application/vnd.elasticsearch+json with compatible-with=8 or 9.")
)

const prefix = "/_connector"

// Serves reports whether a request is for this API: below /_connector, or to / from an
// Elasticsearch client, which requests the version there. Requests of browsers to / are not.
func Serves(r *http.Request) bool {
	path := r.URL.EscapedPath()
	if path != "/" {
		rest, below := strings.CutPrefix(path, prefix)
		return below && (rest == "" || rest[0] == '/')
	}
	accept := strings.Join(r.Header["Accept"], ",")
	if r.Method != http.MethodGet && r.Method != http.MethodHead || strings.Contains(accept, "text/html") {
		return false
	}
	scheme, _, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.EqualFold(scheme, "Basic") || strings.EqualFold(scheme, "ApiKey") ||
		r.Header["X-Elastic-Client-Meta"] != nil || strings.Contains(accept, mediaElastic)
}

// Handler returns the handler for the requests that Serves reports:
//
//	GET, HEAD         /
//	GET, POST         /_connector
//	GET, PUT, DELETE  /_connector/{id}
//	PUT               /_connector/{id}/_api_key_id
//	POST              /_connector/_secret
//	GET, PUT, DELETE  /_connector/_secret/{id}
//
// The tenant is the home tenant of the caller.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg, secrets: map[string]bool{}}
	for _, r := range application.Routes() {
		h.secrets[r.Name] = r.Secrets
	}
	return edge.Handler(cfg.Logger, func(x *edge.Exchange) edge.Dialect {
		return &exchange{Exchange: x, handler: h, media: edge.MediaJSON}
	})
}

type handler struct {
	cfg     Config
	secrets map[string]bool // routes with clear-text secrets
}

// exchange is one request and its response.
type exchange struct {
	*edge.Exchange
	*handler
	call   service.Call
	item   string // id from the path, or ""
	media  string // media type of the response
	pretty bool
}

// operation is the handler of a method at a path, and the parameters that it accepts in
// addition to those in everywhere.
type operation struct {
	do         func(*exchange)
	parameters []string
}

type operations map[string]operation

// find returns the operations of a path below /_connector, and its pattern. Ids cannot start
// with '_', which is reserved for names of the API.
func (x *exchange) find(rest string) (operations, string, error) {
	var path []string
	for part := range strings.SplitSeq(strings.TrimPrefix(rest, "/"), "/") {
		plain, err := url.PathUnescape(part)
		if err != nil || !utf8.ValidString(plain) {
			return nil, "", ErrNoHandler
		}
		path = append(path, plain)
	}
	if len(path) > 1 && path[len(path)-1] == "" { // ignore a trailing slash
		path = path[:len(path)-1]
	}
	x.item = path[0]
	switch {
	case len(path) == 1 && path[0] == "" && x.R.Method != http.MethodPut && x.R.Method != http.MethodDelete:
		return operations{"GET": {(*exchange).listConnectors, listParameters}, "POST": {do: (*exchange).postConnector}}, prefix, nil
	case len(path) <= 2 && (path[0] == "" || path[0] == "_api_key_id"):
		return nil, prefix + "/{id}", ErrConnectorIDMissing
	case path[0] == "_secret" && len(path) <= 2:
		return x.findSecret(path[1:])
	case len(path) == 1 && path[0][0] != '_':
		return operations{
			"GET": {(*exchange).getConnector, []string{"include_deleted"}}, "PUT": {do: (*exchange).putConnector},
			"DELETE": {(*exchange).deleteConnector, []string{"delete_sync_jobs", "hard"}},
		}, prefix + "/{id}", nil
	case len(path) == 2 && path[1] == "_api_key_id" && path[0][0] != '_':
		return operations{"PUT": {do: (*exchange).setAPIKey}}, prefix + "/{id}/_api_key_id", nil
	}
	return nil, "", ErrNoHandler
}

// findSecret is find below /_connector/_secret.
func (x *exchange) findSecret(path []string) (operations, string, error) {
	const pattern = prefix + "/_secret"
	if len(path) == 0 || path[0] == "" {
		if x.R.Method == http.MethodGet || x.R.Method == http.MethodPut || x.R.Method == http.MethodDelete {
			return nil, pattern + "/{id}", ErrSecretIDMissing
		}
		return operations{"POST": {do: (*exchange).postSecret}}, pattern, nil
	}
	x.item = path[0]
	return operations{"GET": {do: (*exchange).getSecret}, "PUT": {do: (*exchange).putSecret}, "DELETE": {do: (*exchange).deleteSecret}}, pattern + "/{id}", nil
}

// Serve authenticates the caller and routes by path and method.
func (x *exchange) Serve() {
	x.W.Header()["X-Elastic-Product"] = []string{"Elasticsearch"} // the official clients require it
	ok := x.negotiate()
	if err := edge.CheckOrigin(x.R); err != nil {
		x.Fail(err)
		return
	}
	if !ok {
		x.FailAs(http.StatusNotAcceptable, ErrAccept)
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
	at, pattern, err := operations{"GET": {do: (*exchange).info}, "HEAD": {do: (*exchange).info}}, "/", error(nil)
	if path := x.R.URL.EscapedPath(); path != "/" {
		at, pattern, err = x.find(strings.TrimPrefix(path, prefix))
	}
	x.Pattern = pattern
	if err != nil {
		x.Fail(err)
		return
	}
	if !x.Allows(at.allowed()) {
		return
	}
	op := at[x.R.Method]
	if err := x.readParameters(op.parameters); err != nil {
		x.Fail(err)
		return
	}
	op.do(x)
}

// allowed returns the methods for the Allow header.
func (o operations) allowed() string {
	var list []string
	for _, m := range []string{"GET", "HEAD", "POST", "PUT", "DELETE"} {
		if o[m].do != nil {
			list = append(list, m)
		}
	}
	return strings.Join(list, ", ")
}

// everywhere are the parameters that every operation accepts. Those that only change the format
// of a response are ignored, except pretty.
var everywhere = []string{"pretty", "human", "error_trace", "filter_path", "format"}

func (x *exchange) readParameters(own []string) error {
	query, err := url.ParseQuery(x.R.URL.RawQuery)
	if err != nil {
		return ErrParameter
	}
	for name, values := range query {
		if !slices.Contains(own, name) && !slices.Contains(everywhere, name) {
			return ErrParameter.Withf("The request contains an unrecognized parameter: [%s].", cut(name))
		}
		if len(values) > 1 {
			return ErrParameter.Withf("The parameter [%s] appears more than once.", name)
		}
	}
	x.pretty = query.Has("pretty") && query.Get("pretty") != "false"
	return nil
}

// cut limits the length of a caller's text that a response repeats.
func cut(text string) string {
	const most = 128
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// members reads the body: an object with only these members. The service checks their values.
// With optional, the body may be absent.
func (x *exchange) members(optional bool, known ...string) (map[string]jsontext.Value, error) {
	body, err := x.Receive(x.cfg.Service, &x.call, func(contentType []string) bool {
		_, ok := bodyMedia(contentType)
		return ok
	})
	switch {
	case err != nil:
		return nil, err
	case len(body) == 0 && !optional:
		return nil, ErrBodyRequired
	case len(body) == 0:
		return map[string]jsontext.Value{}, nil
	}
	if err := service.CheckForm(body); err != nil {
		return nil, err
	}
	var given map[string]jsontext.Value
	if err := service.Decode(body, &given); err != nil {
		return nil, err
	}
	if given == nil {
		return nil, service.ErrBody.Withf("The body is not a JSON object.")
	}
	for name := range given {
		if !slices.Contains(known, name) {
			return nil, service.ErrBody.Withf("unknown field [%s]", cut(name)).At("/" + service.EscapePointer(cut(name)))
		}
	}
	return given, nil
}

// ask calls a route with in as the body.
func ask[T any](x *exchange, route string, in any) (out T, err error) {
	if x.secrets[route] && !x.call.Confidential {
		return out, credential.ErrCleartext
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, fmt.Errorf("write the body of %s: %w", route, err)
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
	}
	return out, fmt.Errorf("%s answered %T", route, answer)
}

// give writes a document in the negotiated media type.
func (x *exchange) give(status int, document any) {
	b, err := json.Marshal(document, json.Deterministic(true))
	if err != nil {
		x.Fail(err)
		return
	}
	if text := jsontext.Value(b); x.pretty && text.Indent(jsontext.WithIndent("  ")) == nil {
		b = text
	}
	x.Write(status, x.media, append(b, '\n'))
}
