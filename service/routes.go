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

	Route         string          // the command or query; Serve sets it
	named         bool            // the caller gave the command id
	request       string          // HMAC of the request, when named
	dedupPosition uint64          // log position up to which the views were asked for the command
	pass          *admission.Pass // nil until the call has entered
	execution     *execution      // nil for what the service does on its own account
}

// Route is one command or query: its name on every edge, who may use it, and
// the shapes of its JSON.
type Route struct {
	Name          string // "credential.create"
	Command       bool   // a command changes state and answers with Done; a query reads
	Permission    permission.Permission
	AltPermission permission.Permission // that will do in its place, or ""; then what is asked for decides which
	Summary       string                // one sentence, for the reference
	In, Out       reflect.Type          // structs
	Secrets       bool                  // the request holds clear text: refused where others could listen
	Audited       bool                  // a query that leaves a fact in the name of the caller, as commands do
	Unqueueable   bool                  // a command that cannot be stored in a queue
	cost          int                   // of its work, for admission
	resumable     bool                  // of several steps
	serve         func(context.Context, *Call, []byte) (any, error)
	recall        func(context.Context, *Call, Done, events.CommandCompleted) (any, error) // nil: the answer is the Done
}

// Command makes the route of a command, which do carries out.
func Command[In, Out any](name string, p permission.Permission, do func(context.Context, *Call, In) (Out, error), summary string) Route {
	r := Query(name, p, do, summary)
	r.Command = true
	return r
}

// AuditedQuery makes the route of a query that leaves a fact in the name of its caller,
// as commands do. do calls Kernel.Charge before it records that.
func AuditedQuery[In, Out any](name string, p permission.Permission, do func(context.Context, *Call, In) (Out, error), summary string) Route {
	r := Query(name, p, do, summary)
	r.Audited = true
	return r
}

// checker is a request that checks its own form.
type checker interface{ Check() error }

// Query makes the route of a query, which do answers. Here and above, a request with a
// method Check() error has passed it before do sees it.
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
			return do(ctx, call, in)
		},
	}
}

// WithSecrets marks what holds clear text.
func (r Route) WithSecrets() Route {
	r.Secrets = true
	return r
}

// Scan is for what looks at many things.
func (r Route) Scan() Route {
	r.cost = admission.Scan
	return r
}

// Resumable is for a command of several steps, which records its id on the first one. A
// repeat completes what broke off, unless it is recorded that it was completed.
func (r Route) Resumable() Route {
	r.resumable = true
	return r
}

// Unqueued is for a command that cannot be queued: its answer is the point of it, or its
// secrets could only stand there in clear.
func (r Route) Unqueued() Route {
	r.Unqueueable = true
	return r
}

// WithAltPermission lets callers in that lack the route's permission but hold the other one.
func (r Route) WithAltPermission(p permission.Permission) Route {
	r.AltPermission = p
	return r
}

// Recalling is for a command whose answer is more than a Done: recall makes it again from what
// is remembered of it.
func (r Route) Recalling(recall func(ctx context.Context, call *Call, done Done, c events.CommandCompleted) (any, error)) Route {
	r.recall = recall
	return r
}

// The refusals of who leaves a fact in somebody else's name, or for nothing.
var (
	ErrCrossOrigin = fault.New(fault.Denied, "cross_origin_refused", "Cross-origin browser requests cannot send commands or audited queries.")
	ErrMethod      = fault.New(fault.Invalid, "method_not_allowed", "This path does not support this method.")
)

// Charge takes the fact that an audited query is about to record from its caller's rate:
// it costs as much as a command.
func (k *Kernel) Charge(ctx context.Context, call *Call) error {
	return k.gate.Charge(ctx, call, CommandCall)
}

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
		return ErrMethod.Withf("This query is audited, and HEAD would return nothing of it. Use GET.")
	}
	return nil
}

// permission is the one that a caller needs: the other one when it holds that alone.
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
	// MaxCall bounds one call in time, the dry request included.
	MaxCall = 30 * time.Second
)

// Serve answers one call of the route with a JSON body, "" being an empty
// object. The answer marshals to JSON; an error that is no *fault.Error is
// internal and is not for the caller.
//
// A command continues when its caller hangs up once it has begun to change something.
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
	call.Route = name
	if err := route.CheckSender(call.CrossSite, call.Head); err != nil {
		return nil, err
	}
	if err := call.late(start); err != nil {
		return nil, err
	}
	if route.Command && k.cfg.Intact != nil { // before anything is looked up that may be lost
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
	if err := k.assignCommandID(ctx, &call, route.Name, body); err != nil {
		return nil, err
	}
	return k.execute(ctx, &call, route, body)
}

// WritesAllowed refuses what would write while nothing can be written.
func (k *Kernel) WritesAllowed() error {
	if k.cfg.WritesAllowed == nil {
		return nil
	}
	return k.cfg.WritesAllowed()
}

// CheckIntegrity replaces a refusal that rests on what a damaged log does not hold, or on views
// that wait for it, by the damage.
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

// CheckForm bounds a body before anything is decoded from it.
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
// error names the place, never the value, which may be a secret.
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
func (k *Kernel) meta(call *Call) events.Meta {
	return events.Meta{
		Tenant: call.Tenant, Actor: call.Principal.Actor, Command: call.CommandID, Request: call.request,
		Causation: call.Causation, Correlation: call.correlation(), Time: k.Now().UTC(), Via: call.Via,
	}
}
