// Package elasticio serves the elastic.io REST API v2: OAuth clients, credentials, components
// and flows as JSON:API documents (https://jsonapi.org/format/1.1/). It has no business rules;
// every call uses the service's route table.
package elasticio

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/api/edge"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
)

// Access is the part of *access.Service that the handler calls.
type Access interface {
	edge.Identities
	// Require returns an error if the caller lacks the permission, and records the denial.
	Require(ctx context.Context, call service.Call, route string, perm permission.Permission) error
}

// Flows is the part of *flow.Service that the handler calls.
type Flows interface {
	// ChangeFlow creates, starts, stops or deletes a flow.
	ChangeFlow(ctx context.Context, call service.Call, ceType string, data []byte) (flow.Flow, error)
}

// Config configures a handler. Service, Access and Flows are required.
type Config struct {
	Service edge.Service
	Access  Access
	Flows   Flows
	Logger  *slog.Logger // one line per request; nil discards them
	// AllowCleartext accepts and returns secrets also over plain HTTP. Set it only if all connections
	// come from a TLS-terminating proxy, or the port accepts TLS only.
	AllowCleartext bool
}

// Handler returns the edge, for every path below /v2/:
//
//	GET, POST           /v2/tenants/{tenant}/oauth-clients
//	GET, PATCH, DELETE  /v2/tenants/{tenant}/oauth-clients/{id}
//	GET, POST           /v2/credentials
//	GET, PATCH, DELETE  /v2/credentials/{id}
//	GET, POST           /v2/workspaces/{workspace}/secrets
//	GET, PATCH, DELETE  /v2/workspaces/{workspace}/secrets/{id}
//	POST                /v2/workspaces/{workspace}/secrets/{id}/refresh
//	GET, POST           /v2/auth-clients
//	GET, PATCH, DELETE  /v2/auth-clients/{id}
//	GET, POST           /v2/components
//	GET, PATCH, DELETE  /v2/components/{id}
//	POST                /v2/flows
//	GET, DELETE         /v2/flows/{id}
//	POST                /v2/flows/{id}/start, /v2/flows/{id}/stop
//
// A trailing slash is ignored. If a path names no tenant, the tenant is the home tenant of the
// caller.
func Handler(cfg Config) http.Handler {
	h := &handler{cfg: cfg, secrets: map[string]bool{}}
	for _, r := range application.Routes() {
		h.secrets[r.Name] = r.Secrets
	}
	return edge.Handler(cfg.Logger, func(x *edge.Exchange) edge.Dialect {
		return &exchange{Exchange: x, handler: h, media: mediaJSONAPI}
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
	call      service.Call      // its tenant is that of the path, or the home tenant of the caller
	workspace string            // from the path, or ""
	item      string            // id from the path, or ""
	media     string            // media type of the response
	pointers  map[string]string // maps members of the service's body to the document
}

// operations are the handlers of a path, by method.
type operations map[string]func(*exchange)

// find returns the operations of a path, split at its slashes after /v2, and its pattern.
func (x *exchange) find(path []string) (operations, string) {
	if len(path) >= 3 && path[0] == "tenants" && path[2] == "oauth-clients" {
		x.call.Tenant = path[1]
		switch len(path) {
		case 3:
			return operations{"GET": (*exchange).listClients, "POST": (*exchange).createClient}, "/v2/tenants/{tenant}/oauth-clients"
		case 4:
			x.item = path[3]
			return operations{"GET": (*exchange).getClient, "PATCH": (*exchange).patchClient, "DELETE": (*exchange).deleteClient},
				"/v2/tenants/{tenant}/oauth-clients/{id}"
		}
		return nil, ""
	}
	if len(path) >= 3 && path[0] == "workspaces" && path[2] == "secrets" {
		return x.findSecret(path)
	}
	if len(path) > 1 {
		x.item = path[1]
	}
	switch {
	case len(path) == 1 && path[0] == "credentials":
		return operations{"GET": (*exchange).listCredentials, "POST": (*exchange).createCredential}, "/v2/credentials"
	case len(path) == 2 && path[0] == "credentials":
		return operations{"GET": (*exchange).getCredential, "PATCH": (*exchange).patchCredential, "DELETE": (*exchange).deleteCredential},
			"/v2/credentials/{id}"
	case len(path) == 1 && path[0] == "auth-clients":
		return operations{"GET": (*exchange).listAuthClients, "POST": (*exchange).createAuthClient}, "/v2/auth-clients"
	case len(path) == 2 && path[0] == "auth-clients":
		return operations{"GET": (*exchange).getAuthClient, "PATCH": (*exchange).patchAuthClient, "DELETE": (*exchange).deleteAuthClient},
			"/v2/auth-clients/{id}"
	case len(path) == 1 && path[0] == "components":
		return operations{"GET": (*exchange).listComponents, "POST": (*exchange).createComponent}, "/v2/components"
	case len(path) == 2 && path[0] == "components":
		return operations{"GET": (*exchange).getComponent, "PATCH": (*exchange).patchComponent, "DELETE": (*exchange).deleteComponent},
			"/v2/components/{id}"
	case len(path) == 1 && path[0] == "flows":
		return operations{"POST": (*exchange).createFlow}, "/v2/flows"
	case len(path) == 2 && path[0] == "flows":
		return operations{"GET": (*exchange).getFlow, "DELETE": (*exchange).deleteFlow}, "/v2/flows/{id}"
	case len(path) == 3 && path[0] == "flows" && path[2] == "start":
		return operations{"POST": (*exchange).startFlow}, "/v2/flows/{id}/start"
	case len(path) == 3 && path[0] == "flows" && path[2] == "stop":
		return operations{"POST": (*exchange).stopFlow}, "/v2/flows/{id}/stop"
	}
	return nil, ""
}

// findSecret is find for the secrets of a workspace.
func (x *exchange) findSecret(path []string) (operations, string) {
	const pattern = "/v2/workspaces/{workspace}/secrets"
	x.workspace = path[1]
	if len(path) > 3 {
		x.item = path[3]
	}
	switch {
	case len(path) == 3:
		return operations{"GET": (*exchange).listSecrets, "POST": (*exchange).createSecret}, pattern
	case len(path) == 4:
		return operations{"GET": (*exchange).getSecret, "PATCH": (*exchange).patchSecret, "DELETE": (*exchange).deleteSecret}, pattern + "/{id}"
	case len(path) == 5 && path[4] == "refresh":
		return operations{"POST": (*exchange).refreshSecret}, pattern + "/{id}/refresh"
	}
	return nil, ""
}

// Serve authenticates the caller and routes by path and method.
func (x *exchange) Serve() {
	if err := edge.CheckOrigin(x.R); err != nil {
		x.Fail(err)
		return
	}
	if !x.negotiate() {
		x.FailAs(http.StatusNotAcceptable, ErrAccept)
		return
	}
	path, ok := split(x.R.URL.EscapedPath())
	var at operations
	if ok {
		at, x.Pattern = x.find(path)
	}
	if at == nil {
		x.Fail(edge.ErrPathUnknown)
		return
	}
	if !x.Allows(at.allowed()) {
		return
	}
	tenant := x.call.Tenant
	var err error
	if x.call, err = x.Authenticate(x.cfg.Access, x.cfg.AllowCleartext); err == nil {
		err = x.ReadHeaders(&x.call)
	}
	if err != nil {
		x.Fail(err)
		return
	}
	x.call.Tenant = cmp.Or(tenant, x.call.Principal.Home)
	method := x.R.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	at[method](x)
}

// split splits a path at its slashes and removes one trailing slash. The path is not
// normalized.
func split(path string) (parts []string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return nil, false
	}
	for part := range strings.SplitSeq(strings.TrimSuffix(rest, "/"), "/") {
		plain, err := url.PathUnescape(part)
		if err != nil || plain == "" || !utf8.ValidString(plain) {
			return nil, false
		}
		parts = append(parts, plain)
	}
	return parts, true
}

// allowed returns the methods for the Allow header.
func (o operations) allowed() string {
	var list []string
	for _, m := range []string{"GET", "HEAD", "POST", "PATCH", "DELETE"} {
		if o[m] != nil || m == "HEAD" && o["GET"] != nil {
			list = append(list, m)
		}
	}
	return strings.Join(list, ", ")
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
	case interface{ Completed() service.Done }: // a response with more than a Done
		if done, ok := any(v.Completed()).(T); ok {
			return done, nil
		}
	}
	return out, fmt.Errorf("%s answered %T", route, answer)
}

// may reports whether the caller has the permission to read, so that the response of a write
// can show the whole resource.
func (x *exchange) may(perm permission.Permission) bool { return x.call.Principal.May(perm) }

func (x *exchange) body() ([]byte, error) {
	body, err := x.Receive(x.cfg.Service, &x.call, func(contentType []string) bool { return mediaOf(contentType) != "" })
	if errors.Is(err, edge.ErrMediaType) {
		err = edge.ErrMediaType.Withf("The body must be %s without parameters, or %s in UTF-8.", mediaJSONAPI, mediaJSON)
	}
	return body, err
}
