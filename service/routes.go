package service

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
)

// Call is one request of an authenticated caller.
type Call struct {
	Tenant      string // from the path or subject; authorize checks it against the principal
	Principal   Principal
	Via         string // "nats", "http" or "system"
	CommandID   string // given by the caller to make a repeat harmless, or ""
	Correlation string // given by the caller, or ""
	Causation   string // id of the event or queued command that led to the call, or ""
	// Confidential says that nobody on the way of the answer can read along: the
	// caller is on the same machine or came over TLS. Over NATS nobody is.
	Confidential bool
	// CrossSite says that a page of another origin has a browser send the call, and
	// Head that its sender does not read the answer: see Route.CheckSender.
	CrossSite, Head bool

	// Deadline is when the caller stops waiting: what has not begun by then does not
	// begin. None when zero.
	Deadline time.Time

	route         string          // the command or query
	named         bool            // the caller gave the command id
	request       string          // HMAC of the request, when named
	dedupPosition uint64          // log position up to which the views were asked for the command
	pass          *admission.Pass // nil until the call has entered
	execution     *execution      // nil for what the service does on its own account
}

// Route is one command or query: its name on every edge, who may use it, and
// the shapes of its JSON.
type Route struct {
	Name       string // "credential.create"
	Command    bool   // a command changes state and answers with Done; a query reads
	Permission Permission
	Or         Permission   // that will do in its place, or ""; then what is asked for decides which
	Summary    string       // one sentence, for the reference
	In, Out    reflect.Type // structs
	Secrets    bool         // the request holds clear text: refused where others could listen
	Audited    bool         // a query that leaves a fact in the name of the caller, as commands do
	cost       int          // of its work, for admission
	serve      func(*Service, context.Context, *Call, []byte) (any, error)
}

// Routes is the one route table: what the service can be asked on every edge.
func Routes() []Route {
	return []Route{
		command("tenant.register", TenantsManage, (*Service).registerTenant,
			"Register a tenant. Its encryption keys are created with it."),
		command("component.register", ComponentsCreate, (*Service).registerComponent,
			"Register a component from its component.json, which is stored unchanged."),
		command("component.update", ComponentsEdit, (*Service).updateComponent,
			"Update the descriptor of a component, which creates a new revision."),
		command("component.share", ComponentsEdit, (*Service).shareComponent,
			"Make a component visible to every tenant."),
		command("component.unshare", ComponentsEdit, (*Service).unshareComponent,
			"Make a component visible to its owner only."),
		command("component.delete", ComponentsDelete, (*Service).deleteComponent,
			"Delete a component. Its credentials remain, but none can be created or changed."),
		withSecrets(command("credential.create", CredentialsCreate, (*Service).createCredential,
			"Verify keys by a dry request and save them as a new credential.")),
		command("credential.rename", CredentialsEdit, (*Service).renameCredential,
			"Rename a credential."),
		command("credential.set-vpn-agent", CredentialsEdit, (*Service).setVPNAgent,
			"Set or clear the VPN agent through which a flow engine reaches the API of a credential."),
		withSecrets(command("credential.replace-keys", CredentialsEdit, (*Service).replaceKeys,
			"Verify new keys by a dry request and activate them as a new version.")),
		command("credential.revert", CredentialsEdit, (*Service).revertCredential,
			"Verify the keys of an earlier version again and activate them as a new version. They are not shown."),
		command("credential.verify", CredentialsEdit, (*Service).verifyCredential,
			"Repeat the dry request with the current keys and record the outcome."),
		command("credential.refresh", CredentialsEdit, (*Service).refreshCredential,
			"Renew the tokens of an OAuth credential now, even if they are not due."),
		command("credential.delete", CredentialsDelete, (*Service).deleteCredential,
			"Delete a credential and erase its secrets."),
		command("credential.revoke", CredentialsDelete, (*Service).revokeCredential,
			"Revoke the tokens of an OAuth credential locally and at its provider. The credential remains and can be connected again."),
		command("oauth.revoke", CredentialsDelete, (*Service).revokeOAuth,
			"Revoke the tokens of every OAuth credential of the tenant, of a component or of an OAuth client. Runs in the background and answers at once."),
		query("oauth.revocation", CredentialsGet, (*Service).oauthRevocation, "Progress of a bulk revocation."),
		withSecrets(command("auth_secret.create", AuthSecretsCreate, (*Service).createAuthSecret,
			"Verify keys by a dry request and save them as a new credential of a workspace.")),
		command("auth_secret.rename", AuthSecretsEdit, (*Service).renameAuthSecret,
			"Rename a credential of a workspace."),
		withSecrets(command("auth_secret.replace-keys", AuthSecretsEdit, (*Service).replaceAuthSecretKeys,
			"Verify new keys for a credential of a workspace and activate them as a new version.")),
		command("auth_secret.refresh", AuthSecretsRefresh, (*Service).refreshAuthSecret,
			"Renew the tokens of a credential of a workspace now, even if they are not due."),
		command("auth_secret.delete", AuthSecretsDelete, (*Service).deleteAuthSecret,
			"Delete a credential of a workspace and erase its secrets."),
		query("auth_secret.get", AuthSecretsGet, (*Service).getAuthSecret,
			"One credential of a workspace and its state; secret values are masked."),
		scan(query("auth_secret.list", AuthSecretsGet, (*Service).listAuthSecrets, "The credentials of a workspace, sorted, page by page.")),
		command("flow.bind", FlowsEdit, (*Service).bindFlow,
			"Reserve all credentials of a flow before it starts, or none."),
		command("flow.release", FlowsEdit, (*Service).releaseFlow,
			"Release the reservation of a flow."),
		query("flow.get", FlowsGet, (*Service).getFlow, "One flow: its steps, the credentials it uses, and the steps that cannot use theirs."),
		scan(query("flow.list", FlowsGet, (*Service).listFlows,
			"Flows by id, page by page: all, or those that use one credential or one component.")),
		scan(query("flow.in-use", FlowsGet, (*Service).listInUse,
			"What flows use: the values of the in-use index, page by page.")),
		command("queue.retry", QueueManage, (*Service).retryQueued,
			"Retry a message of the dead-letter queue: put it back into its queue."),
		command("queue.drop", QueueManage, (*Service).dropQueued,
			"Drop a message of the dead-letter queue: erase it."),
		command("queue.retry-all", QueueManage, (*Service).retryAllQueued,
			"Retry the tenant's messages of the dead-letter queue: all, or those of a queue or an error code. One "+
				"call examines at most 1,000 messages; next is the cursor for the following call."),
		command("queue.drop-all", QueueManage, (*Service).dropAllQueued,
			"Drop the tenant's messages of the dead-letter queue: all, or those of a queue or an error code. One "+
				"call examines at most 1,000 messages; next is the cursor for the following call."),
		scan(query("queue.list", QueueManage, (*Service).listQueued, "The tenant's messages in the dead-letter queue, page by page.")),
		query("queue.get", QueueManage, (*Service).getQueued, "One message of the dead-letter queue. Clear secrets are not included."),
		query("service.key", CredentialsCreate, (*Service).serviceKey,
			"The public key for sealing the keys of a queued command."),
		withSecrets(command("credential.reveal", CredentialsReveal, (*Service).revealCredential,
			"Reveal the clear values of one credential to a person. The access is audited first.")),
		withSecrets(command("oauth_client.define", OAuthClientsCreate, (*Service).defineOAuthClient,
			"Define the tenant's OAuth client of a component. Each component has at most one.")),
		withSecrets(command("oauth_client.change", OAuthClientsEdit, (*Service).changeOAuthClient,
			"Change the client id, the client secret, or both.")),
		command("oauth_client.delete", OAuthClientsDelete, (*Service).deleteOAuthClient,
			"Delete an OAuth client. Refused while a flow, active or not, includes the component."),
		withSecrets(command("oauth_client.reveal", CredentialsReveal, (*Service).revealOAuthClient,
			"Reveal the secret of one OAuth client to a person. The access is audited first.")),
		query("oauth_client.get", OAuthClientsGet, (*Service).getOAuthClient, "One OAuth client, by its id or its component; the secret is masked."),
		scan(query("oauth_client.list", OAuthClientsGet, (*Service).listOAuthClients, "The OAuth clients of the tenant.")),
		withSecrets(command("auth_client.create", OAuthClientsCreate, (*Service).createAuthClient,
			"Create an auth client for several components. With type oauth2 and scope tenant, it also defines their OAuth clients: all of them, or none.")),
		withSecrets(command("auth_client.change", OAuthClientsEdit, (*Service).reformAuthClient,
			"Change the name, components or credentials of an auth client. The OAuth clients of its components are updated with it.")),
		command("auth_client.delete", OAuthClientsDelete, (*Service).deleteAuthClient,
			"Delete an auth client and the OAuth clients that it manages. Refused while a flow includes one of the components."),
		withSecrets(command("auth_client.reveal", CredentialsReveal, (*Service).revealAuthClient,
			"Reveal the credentials of one auth client to a person. The access is audited first.")),
		query("auth_client.get", OAuthClientsGet, (*Service).getAuthClient, "One auth client; secrets are masked."),
		scan(query("auth_client.list", OAuthClientsGet, (*Service).listAuthClients, "The auth clients that are visible to the tenant, page by page.")),
		withSecrets(command("component.set-env", ComponentsEdit, (*Service).setComponentEnv,
			"Set the variables that a component's descriptor declares. They are encrypted and only used in the owner's tenant.")),
		command("audit.rewind", AuditRead, (*Service).rewindAudit,
			"Rewind the tenant's audit consumer to a log sequence."),
		command("views.rebuild", ViewsManage, (*Service).rebuildViews,
			"Rebuild the read models from the log, beside the ones in use."),
		withSecrets(command("api_key.issue", KeysManage, (*Service).issueAPIKey,
			"Issue an API key. Only this response contains the key; a repeat answers without it.")),
		command("api_key.revoke", KeysManage, (*Service).revokeAPIKey,
			"Revoke an API key."),
		scan(query("api_key.list", KeysManage, (*Service).listAPIKeys, "The API keys of the tenant, without the keys themselves.")),
		query("views.status", ViewsManage, (*Service).viewsStatus,
			"Position of the read models, and progress of a rebuild."),
		scan(query("tenant.list", TenantsManage, (*Service).listTenants, "The tenants of the installation.")),
		query("component.get", ComponentsGet, (*Service).getComponent, "One component with its descriptor."),
		scan(query("component.list", ComponentsGet, (*Service).listComponents, "The components that the tenant may use, with counts of its credentials.")),
		query("credential.get", CredentialsGet, (*Service).getCredential, "One credential; secret values are masked."),
		scan(query("credential.list", CredentialsGet, (*Service).listCredentials, "Credentials by filter, sorted, page by page.")),
		scan(query("credential.counts", CredentialsGet, (*Service).countCredentials, "Number of credentials by component and status.")),
		scan(query("credential.history", CredentialsGet, (*Service).credentialHistory, "History of one credential: who changed what, when, and which version.")),
		withSecrets(orElse(CredentialsEdit, command("oauth.connect", CredentialsCreate, (*Service).connectOAuth,
			"Create a one-time link with which a person connects an account at the component's provider, for a new or an existing credential."))),
		orElse(CredentialsEdit, command("oauth.complete", CredentialsCreate, (*Service).completeConnection,
			"Confirm that the person who returned from the provider started the connection, and save the tokens.")),
		query("oauth.connection", CredentialsGet, (*Service).getConnection, "State of a connection."),
		query("oauth.redirect-uri", ComponentsGet, (*Service).getRedirectURI,
			"The redirect URI of a component in this tenant, to be registered at the provider."),
		audited(query("credential.resolve", CredentialsResolve, (*Service).resolveCredential,
			"Resolve a credential for a flow engine: its values, encrypted to the engine's public key, under a lease. The access is audited first.")),
		scan(query("lease.list", AuditRead, (*Service).listLeases, "The active leases: who may still hold the values of which credential.")),
		scan(query("access.replay", AuditRead, (*Service).replayAccess,
			"The access log: who got the values of which credential, and when, oldest first, page by page.")),
		scan(query("events.changes", CredentialsGet, (*Service).eventChanges,
			"The tenant's feed events after a log position, page by page, for subscribers that were offline.")),
		scan(query("events.replay", AuditRead, (*Service).replayEvents, "The tenant's events in log order, page by page.")),
	}
}

func command[In, Out any](name string, p Permission, do func(*Service, context.Context, *Call, In) (Out, error), summary string) Route {
	r := query(name, p, do, summary)
	r.Command = true
	return r
}

func query[In, Out any](name string, p Permission, do func(*Service, context.Context, *Call, In) (Out, error), summary string) Route {
	return Route{
		Name: name, Permission: p, Summary: summary, cost: admission.Request, In: reflect.TypeFor[In](), Out: reflect.TypeFor[Out](),
		serve: func(s *Service, ctx context.Context, call *Call, body []byte) (any, error) {
			var in In
			if err := decode(body, &in); err != nil {
				return nil, err
			}
			return do(s, ctx, call, in)
		},
	}
}

func withSecrets(r Route) Route {
	r.Secrets = true
	return r
}

// scan is for what looks at many things.
func scan(r Route) Route {
	r.cost = admission.Scan
	return r
}

func audited(r Route) Route {
	r.Audited = true
	return r
}

// The refusals of who leaves a fact in somebody else's name, or for nothing.
var (
	ErrCrossOrigin = fault.New(fault.Denied, "cross_origin_refused", "Cross-origin browser requests cannot send commands or audited queries.")
	ErrMethod      = fault.New(fault.Invalid, "method_not_allowed", "This path does not support this method.")
)

// CheckSender refuses a call that leaves a fact to a page of another origin, which
// has a browser send it in the name of its user, and to who does not read the
// answer (HEAD): the fact would say that somebody was shown what nobody saw.
func (r Route) CheckSender(crossSite, head bool) error {
	switch {
	case !r.Command && !r.Audited:
		return nil
	case crossSite:
		return ErrCrossOrigin
	case head:
		return ErrMethod.Because("This query is audited, and HEAD would return nothing of it. Use GET.")
	}
	return nil
}

// orElse lets callers in that lack the route's permission but hold the other one.
func orElse(p Permission, r Route) Route {
	r.Or = p
	return r
}

// permission is the one that a caller needs: the other one when it holds that alone.
func (r *Route) permission(p Principal) Permission {
	if r.Or != "" && !p.May(r.Permission) && p.May(r.Or) {
		return r.Or
	}
	return r.Permission
}

// The refusals of a request's form.
var (
	ErrRouteUnknown = fault.New(fault.NotFound, "route_unknown", "No such command or query.")
	ErrBody         = fault.New(fault.Invalid, "body_invalid", "The body is not valid JSON for this command or query.")
	ErrBodyTooLarge = fault.New(fault.Invalid, "body_too_large", "The body is larger than 1 MiB.")
	ErrBodyTooDeep  = fault.New(fault.Invalid, "body_too_deep", "The body is nested deeper than 32 levels.")
	ErrCommandID    = fault.New(fault.Invalid, "command_id_invalid",
		"A command id must have 1 to 128 printable ASCII characters.")
	ErrCorrelation     = fault.New(fault.Invalid, "correlation_id_invalid", "A correlation id must have 1 to 128 printable ASCII characters.")
	ErrCommandIDReused = fault.New(fault.Precondition, "command_id_reused",
		"This command id was already used for another request. Use a new id for a new command.")
)

// The bounds of a request.
const (
	MaxBody  = 1 << 20 // bytes
	maxDepth = 32
	maxID    = 128
	// maxCall bounds one call in time, the dry request included.
	maxCall = 30 * time.Second
)

// Serve answers one call of the route with a JSON body, "" being an empty
// object. The answer marshals to JSON; an error that is no *fault.Error is
// internal and is not for the caller.
//
// A command goes on when its caller hangs up once it has begun to change something.
func (s *Service) Serve(caller context.Context, call Call, name string, body []byte) (answer any, err error) {
	ctx, cancel := context.WithTimeout(caller, maxCall)
	defer cancel()
	route, ok := s.routes[name]
	if !ok {
		return nil, ErrRouteUnknown
	}
	start := s.now()
	defer func() {
		err = s.believed(err)
		s.metrics.served(route, s.now().Sub(start), err)
	}()
	call.route = name
	if err := route.CheckSender(call.CrossSite, call.Head); err != nil {
		return nil, err
	}
	if err := call.late(start); err != nil {
		return nil, err
	}
	if route.Command && s.cfg.Intact != nil { // before anything is looked up that may be lost
		if err := s.cfg.Intact(); err != nil {
			return nil, err
		}
	}
	leave, err := s.enter(ctx, &call, route.cost, int64(len(body)))
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx = call.pass.With(ctx)
	if err := s.admit(ctx, &call, route.permission(call.Principal), kindOf(route)); err != nil {
		return nil, err
	}
	if len(call.Correlation) > maxID || !printable(call.Correlation) {
		return nil, ErrCorrelation
	}
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	if err := checkForm(body); err != nil {
		return nil, err
	}
	if !route.Command {
		return route.serve(s, ctx, &call, body)
	}
	if err := s.writesAllowed(); err != nil {
		return nil, err
	}
	if err := s.assignCommandID(ctx, &call, route.Name, body); err != nil {
		return nil, err
	}
	return s.obey(ctx, &call, route, body)
}

// writesAllowed refuses what would write while nothing can be written.
func (s *Service) writesAllowed() error {
	if s.cfg.WritesAllowed == nil {
		return nil
	}
	return s.cfg.WritesAllowed()
}

// believed replaces a refusal that rests on what a damaged log does not hold, or on views
// that wait for it, by the damage.
func (s *Service) believed(err error) error {
	if err == nil || s.cfg.Intact == nil {
		return err
	}
	switch damage := s.cfg.Intact(); {
	case damage == nil:
	case fault.Of(err).Kind == fault.NotFound, errors.Is(err, ErrKeyUnknown), errors.Is(err, projections.ErrViewsBehind):
		return damage
	}
	return err
}

// checkForm bounds a body before anything is decoded from it.
func checkForm(body []byte) error {
	switch {
	case len(body) > MaxBody:
		return ErrBodyTooLarge
	case !utf8.Valid(body):
		return ErrBody.Because("The body is not UTF-8.")
	case tooDeep(body):
		return ErrBodyTooDeep
	}
	return nil
}

// tooDeep counts brackets outside strings.
func tooDeep(body []byte) bool {
	depth, inString := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// decode reads exactly one JSON object without unknown or repeated members. The
// error names the place, never the value, which may be a secret.
func decode(body []byte, in any) error { return decodeWith(body, in, json.RejectUnknownMembers(true)) }

func decodeWith(body []byte, in any, how json.Options) error {
	err := json.Unmarshal(body, in, how)
	if err == nil {
		return nil
	}
	var own *fault.Error
	var semantic *json.SemanticError
	var syntactic *jsontext.SyntacticError
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &semantic):
		at := place(semantic.JSONPointer)
		return ErrBody.Because("Unknown member: %s.", at).At(at)
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntactic):
		at := place(syntactic.JSONPointer)
		return ErrBody.Because("The member %s appears more than once.", at).At(at)
	case errors.As(err, &semantic):
		if semantic.JSONPointer == "" {
			return ErrBody.Because("The body is not a JSON object.")
		}
		at := place(semantic.JSONPointer)
		return ErrBody.Because("The member %s has the wrong type.", at).At(at)
	}
	return ErrBody.Because("The body must be one JSON document.")
}

// place is a JSON pointer in an answer, cut when it is longer than any of ours: a
// caller's mistake of a mebibyte is not sent back.
func place(p jsontext.Pointer) string {
	const most = 256
	if len(p) <= most {
		return string(p)
	}
	return strings.ToValidUTF8(string(p[:most]), "") + "..."
}

// GoodRequestID reports whether a request may have the id that its sender gave it: 1
// to 64 ASCII letters, digits, '-', '_' and '.', since logs and answers repeat it.
func GoodRequestID(id string) bool {
	if len(id) < 1 || len(id) > 64 {
		return false
	}
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// meta says on whose behalf a commit is made.
func (s *Service) meta(call *Call) events.Meta {
	correlation := call.Correlation
	if correlation == "" {
		correlation = call.CommandID
	}
	return events.Meta{
		Tenant: call.Tenant, Actor: call.Principal.Actor, Command: call.CommandID, Request: call.request,
		Causation: call.Causation, Correlation: correlation, Time: s.now().UTC(), Via: call.Via,
	}
}

// required refuses an empty member.
func required(pointer, value string) error {
	if strings.TrimSpace(value) == "" {
		return ErrMissing.Because("The member %s is required.", strings.TrimPrefix(pointer, "/")).At(pointer)
	}
	return nil
}

// ErrMissing refuses a request without a member it needs.
var ErrMissing = fault.New(fault.Invalid, "member_missing", "A required member is missing.")
