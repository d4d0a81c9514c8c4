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
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service/permission"
)

// Call is one request of an authenticated caller.
type Call struct {
	Tenant      string // from the path or subject; checked against the principal
	Principal   Principal
	Via         string // "nats", "http" or "system"
	CommandID   string // idempotency key from the caller, or ""
	Correlation string // from the caller, or ""
	Causation   string // id of the event or queued command that led to the call, or ""
	// Confidential means that the response may contain secrets: the caller is on the
	// same machine or connected over TLS. It is never set over NATS.
	Confidential bool
	// CrossSite means that a page of another origin has a browser send the call, and
	// Head that the sender does not read the response: see Route.CheckSender.
	CrossSite, Head bool

	// Deadline is when the caller stops waiting: work that has not started by then does not
	// start. None when zero.
	Deadline time.Time

	Route         string          // the command or query; Serve sets it
	kernel        *Kernel         // serves the call
	named         bool            // the caller gave the command id
	item          bool            // of an ItemByItem call
	request       string          // HMAC of the request, when named
	dedupPosition uint64          // log position up to which the views were searched for the command
	pass          *admission.Pass // nil until the call is admitted
	execution     *execution      // nil for calls of the service itself
}

// Route is one command or query: its name on every edge, its permission, and
// the types of its JSON.
type Route struct {
	Name          string // "credential.create"
	Command       bool   // a command changes state and returns a Done; a query reads
	Permission    permission.Permission
	AltPermission permission.Permission // accepted instead, or ""; then the request determines which one applies
	Summary       string                // one sentence, for the reference
	In, Out       reflect.Type          // structs
	Secrets       bool                  // the request holds clear text: refused on connections that others could read
	Audited       bool                  // a query that records an event in the name of the caller, as commands do
	Unqueueable   bool                  // a command that cannot be stored in a queue
	Reach         Reach                 // what it does for callers whose key is bound to some credentials
	names         []int                 // field of In that names the credential, with OneCredential
	cost          int                   // its cost, for admission
	resumable     bool                  // has several steps
	itemByItem    bool                  // see ItemByItem
	serve         func(context.Context, *Call, []byte) (any, error)
	recall        func(context.Context, *Call, Done, events.CommandCompleted) (any, error) // nil: the response is the Done
}

// Command makes the route of a command, which do executes.
func Command[In, Out any](name string, p permission.Permission, do func(context.Context, *Call, In) (Out, error), summary string) Route {
	r := Query(name, p, do, summary)
	r.Command = true
	return r
}

// AuditedQuery makes the route of a query that records an event in the name of its caller,
// as commands do. do calls Kernel.Charge before it records the event.
func AuditedQuery[In, Out any](name string, p permission.Permission, do func(context.Context, *Call, In) (Out, error), summary string) Route {
	r := Query(name, p, do, summary)
	r.Audited = true
	return r
}

// checker is a request that validates itself.
type checker interface{ Check() error }

// Query makes the route of a query, which do executes. Here and above, a request with a
// method Check() error has passed it before do gets it.
func Query[In, Out any](name string, p permission.Permission, do func(context.Context, *Call, In) (Out, error), summary string) Route {
	_, checked := any(*new(In)).(checker)
	return Route{
		Name: name, Permission: p, Summary: summary, cost: admission.Request, In: reflect.TypeFor[In](), Out: reflect.TypeFor[Out](),
		serve: func(ctx context.Context, call *Call, body []byte) (any, error) {
			var in In
			if err := Decode(body, &in); err != nil {
				return nil, err
			}
			if checked { // boxed only then
				if err := any(in).(checker).Check(); err != nil {
					return nil, err
				}
			}
			if call.Principal.Scope.Narrow() {
				if err := call.checkNamed(ctx, reflect.ValueOf(in)); err != nil {
					return nil, err
				}
			}
			return do(ctx, call, in)
		},
	}
}

// WithSecrets marks a route whose request holds clear text.
func (r Route) WithSecrets() Route {
	r.Secrets = true
	return r
}

// Scan marks a route that reads many items.
func (r Route) Scan() Route {
	r.cost = admission.Scan
	return r
}

// Resumable marks a command of several steps, which records its id with the first one. A
// repeat completes an interrupted command, unless its completion is recorded.
func (r Route) Resumable() Route {
	r.resumable = true
	return r
}

// Unqueued marks a command that cannot be queued: its caller needs the response, or its
// secrets would be stored in clear text.
func (r Route) Unqueued() Route {
	r.Unqueueable = true
	return r
}

// WithAltPermission admits callers that lack the route's permission but have the other one.
func (r Route) WithAltPermission(p permission.Permission) Route {
	r.AltPermission = p
	return r
}

// Recalling is for a command that returns more than a Done: recall rebuilds the response from
// its record.
func (r Route) Recalling(recall func(ctx context.Context, call *Call, done Done, c events.CommandCompleted) (any, error)) Route {
	r.recall = recall
	return r
}

// Errors of a call that would record an event in another user's name, or for nothing.
var (
	ErrCrossOrigin = fault.New(fault.Denied, "cross_origin_refused", "Cross-origin browser requests cannot send commands or audited queries.")
	ErrMethod      = fault.New(fault.Invalid, "method_not_allowed", "This path does not support this method.")
)

// Charge counts the event that an audited query is about to record against its caller's rate limit:
// it costs as much as a command.
func (k *Kernel) Charge(ctx context.Context, call *Call) error {
	return k.gate.Charge(ctx, call, CommandCall)
}

// CheckSender refuses a call that records an event if a page of another origin
// has a browser send it in the name of its user, or if the sender does not read the
// response (HEAD): the event would record a disclosure that did not happen.
func (r Route) CheckSender(crossSite, head bool) error {
	switch {
	case !r.Command && !r.Audited:
		return nil
	case crossSite:
		return ErrCrossOrigin
	case head:
		return ErrMethod.Withf("This query is audited, and HEAD would return nothing of it. Use GET.")
	}
	return nil
}

// permission is the one that the caller needs: AltPermission if it has only that one.
func (r *Route) permission(p Principal) permission.Permission {
	if r.AltPermission != "" && !p.May(r.Permission) && p.May(r.AltPermission) {
		return r.AltPermission
	}
	return r.Permission
}

// Errors of a request's form.
var (
	ErrRouteUnknown = fault.New(fault.NotFound, "route_unknown", "No such command or query.")
	ErrBody         = commands.ErrBody
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
	// MaxCall is the time limit of one call, including the dry request.
	MaxCall = 30 * time.Second
)

// Serve executes one call of the route with a JSON body, "" being an empty
// object. The response marshals to JSON; an error that is not a *fault.Error is
// internal and must not be shown to the caller.
//
// Once a command has begun to change something, it continues even if its caller hangs up.
func (k *Kernel) Serve(caller context.Context, call Call, name string, body []byte) (answer any, err error) {
	ctx, cancel := context.WithTimeout(caller, MaxCall)
	defer cancel()
	route, ok := k.routes[name]
	if !ok {
		return nil, ErrRouteUnknown
	}
	start := k.Now()
	defer func() {
		err = k.CheckIntegrity(err)
		k.metrics.served(route, k.Now().Sub(start), err)
	}()
	call.Route, call.kernel = name, k
	if err := route.CheckSender(call.CrossSite, call.Head); err != nil {
		return nil, err
	}
	if err := call.late(start); err != nil {
		return nil, err
	}
	if route.Command && k.cfg.Intact != nil { // before any lookup in a log that may have lost data
		if err := k.cfg.Intact(); err != nil {
			return nil, err
		}
	}
	ctx, leave, err := k.Enter(ctx, &call, route.cost, int64(len(body)))
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := k.gate.Admit(ctx, &call, route.permission(call.Principal), kindOf(route)); err != nil {
		return nil, err
	}
	if err := k.checkReach(ctx, &call, route); err != nil {
		return nil, err
	}
	if len(call.Correlation) > maxID || !printable(call.Correlation) {
		return nil, ErrCorrelation
	}
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("{}")
	}
	if err := CheckForm(body); err != nil {
		return nil, err
	}
	if route.Command || route.Audited {
		if err := k.WritesAllowed(); err != nil {
			return nil, err
		}
	}
	if !route.Command {
		return route.serve(ctx, &call, body)
	}
	if route.itemByItem {
		if err := call.nameItems(); err != nil {
			return nil, err
		}
		defer admission.Idle(ctx)() // each item is admitted by itself
		return route.serve(ctx, &call, body)
	}
	if err := k.assignCommandID(ctx, &call, route.Name, body); err != nil {
		return nil, err
	}
	return k.execute(ctx, &call, route, body)
}

// WritesAllowed refuses writes while nothing can be written.
func (k *Kernel) WritesAllowed() error {
	if k.cfg.WritesAllowed == nil {
		return nil
	}
	return k.cfg.WritesAllowed()
}

// CheckIntegrity replaces a refusal that may be caused by missing commits of a damaged log, or by views
// that wait for them, with the error of the damage.
func (k *Kernel) CheckIntegrity(err error) error {
	if err == nil || k.cfg.Intact == nil {
		return err
	}
	switch damage := k.cfg.Intact(); {
	case damage == nil:
	case fault.Of(err).Kind == fault.NotFound, errors.Is(err, ErrKeyUnknown), errors.Is(err, projections.ErrViewsBehind):
		return damage
	}
	return err
}

// CheckForm bounds a body before it is decoded.
func CheckForm(body []byte) error {
	switch {
	case len(body) > MaxBody:
		return ErrBodyTooLarge
	case !utf8.Valid(body):
		return ErrBody.Withf("The body is not UTF-8.")
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

// Decode reads exactly one JSON object without unknown or repeated members. The
// error names the member, never the value, which may be a secret.
func Decode(body []byte, in any) error { return DecodeWith(body, in, json.RejectUnknownMembers(true)) }

// DecodeWith is Decode with other rules for members.
func DecodeWith(body []byte, in any, how json.Options) error {
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
		return ErrBody.Withf("Unknown member: %s.", at).At(at)
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntactic):
		at := place(syntactic.JSONPointer)
		return ErrBody.Withf("The member %s appears more than once.", at).At(at)
	case errors.As(err, &semantic):
		if semantic.JSONPointer == "" {
			return ErrBody.Withf("The body is not a JSON object.")
		}
		at := place(semantic.JSONPointer)
		return ErrBody.Withf("The member %s has the wrong type.", at).At(at)
	}
	return ErrBody.Withf("The body must be one JSON document.")
}

// place is a JSON pointer in an error, truncated to the length of the longest known one, so that
// a caller's huge name is not sent back.
func place(p jsontext.Pointer) string {
	const most = 256
	if len(p) <= most {
		return string(p)
	}
	return strings.ToValidUTF8(string(p[:most]), "") + "..."
}

// GoodRequestID reports whether the request id of a sender is acceptable: 1
// to 64 ASCII letters, digits, '-', '_' and '.', because logs and responses repeat it.
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

// meta is the metadata of the call's commits.
func (k *Kernel) meta(call *Call) events.Meta {
	return events.Meta{
		Tenant: call.Tenant, Actor: call.Principal.Actor, Command: call.CommandID, Request: call.request,
		Causation: call.Causation, Correlation: call.correlation(), Time: k.Now().UTC(), Via: call.Via,
	}
}
