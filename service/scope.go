package service

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Reach is what a route does for a caller whose key is bound to some credentials. The zero
// value refuses such callers, so a route that says nothing discloses nothing.
type Reach string

// The kinds of reach.
const (
	TenantWide    Reach = ""               // it concerns more than single credentials: refused
	OneCredential Reach = "one credential" // a member of the request names the credential, which the kernel checks
	Bounded       Reach = "bounded"        // it reads, counts or changes only what the scope of the caller includes
	Open          Reach = "open"           // it concerns no credential
)

// Errors of a caller whose key is bound to some credentials. One that asks for a credential
// outside its scope gets the error of a credential that does not exist.
var (
	ErrScopeTenantWide = fault.New(fault.Denied, "key_scope_tenantwide",
		"This concerns the whole tenant, and your key is bound to some of its credentials. Use a key that is not bound.")
	ErrScopeExceeded = aggregates.ErrScopeExceeded
)

// OfCredential marks a route whose request has the id of its credential in the member with this JSON
// name. If a request omits the member, the
// handler must restrict itself to the scope, as for Bounded.
func (r Route) OfCredential(member string) Route {
	for f := range r.In.Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == member && f.Type.Kind() == reflect.String {
			r.Reach, r.names = OneCredential, f.Index
			return r
		}
	}
	panic(fmt.Sprintf("service: requests of %s have no member %s", r.Name, member))
}

// Bounded marks a route that reads, counts and changes only what the scope of its caller includes.
func (r Route) Bounded() Route {
	r.Reach = Bounded
	return r
}

// Open marks a route that concerns no credential.
func (r Route) Open() Route {
	r.Reach = Open
	return r
}

// checkReach refuses a route that concerns more than the scope of its caller may include.
func (k *Kernel) checkReach(ctx context.Context, call *Call, route *Route) error {
	if route.Reach != TenantWide || !call.Principal.Scope.Narrow() {
		return nil
	}
	k.gate.Denied(ctx, call, route.permission(call.Principal))
	return ErrScopeTenantWide
}

// checkNamed refuses a request that names a credential outside the scope of its caller.
func (c *Call) checkNamed(ctx context.Context, in reflect.Value) error {
	route := c.kernel.routes[c.Route]
	if route.Reach != OneCredential {
		return nil
	}
	id := in.FieldByIndex(route.names).String()
	if id == "" { // the handler requires it, or bounds what it does
		return nil
	}
	return c.kernel.CheckReached(ctx, c, id)
}

// Reaches reports whether the scope of the caller includes the credential, which may be a
// deleted one. It does not include one that does not exist, unless the scope names it.
func (k *Kernel) Reaches(ctx context.Context, call *Call, id string) (bool, error) {
	reached, _, err := k.reaches(ctx, call, id)
	return reached, err
}

func (k *Kernel) reaches(ctx context.Context, call *Call, id string) (reached, exists bool, err error) {
	scope := call.Principal.Scope
	switch {
	case !scope.Narrow():
		return true, true, nil
	case events.CheckID(id) != nil:
		return false, false, nil
	}
	stream := aggregates.Credential.Stream(call.Tenant, id)
	// What is compared never changes, so any state in which the credential exists decides.
	for _, read := range []func(context.Context, *aggregates.Log, events.StreamID) (aggregates.State[aggregates.CredentialState], error){
		aggregates.Credential.Load, aggregates.Credential.Fresh,
	} {
		state, err := read(ctx, k.cfg.Log, stream)
		if err != nil {
			return false, false, err
		}
		if c := state.Value; c.Exists {
			return scope.Reaches(id, c.Component, c.Workspace), true, nil
		}
	}
	return slices.Contains(scope.Credentials, id), false, nil
}

// CheckReached returns aggregates.ErrCredentialNotFound for a credential that the scope of
// the caller does not include, as for one that does not exist. An attempt at one that exists
// is recorded as a denial.
func (k *Kernel) CheckReached(ctx context.Context, call *Call, id string) error {
	reached, exists, err := k.reaches(ctx, call, id)
	switch {
	case err != nil:
		return err
	case reached:
		return nil
	case exists:
		k.deniedByScope(ctx, call)
	}
	return aggregates.ErrCredentialNotFound
}

func (k *Kernel) deniedByScope(ctx context.Context, call *Call) {
	if route, ok := k.routes[call.Route]; ok {
		k.gate.Denied(ctx, call, route.permission(call.Principal))
	}
}

// CheckNew returns ErrScopeExceeded unless the scope of the caller includes a new credential.
// id is the one that the caller has chosen, or "". A caller whose scope does not name
// credentials cannot choose the id: it would learn whether another credential has it.
func (k *Kernel) CheckNew(ctx context.Context, call *Call, id, component, workspace string) error {
	scope := call.Principal.Scope
	allowed := (id == "") == (len(scope.Credentials) == 0) && scope.Reaches(id, component, workspace)
	if !scope.Narrow() || allowed {
		return nil
	}
	k.deniedByScope(ctx, call)
	return ErrScopeExceeded.Withf("The new credential is outside the scope of your key. Use a key whose scope includes it%s.",
		map[bool]string{true: ", or omit the id"}[id != "" && len(scope.Credentials) == 0])
}

// Reached returns the items whose credential, returned by id, is in the scope of the caller.
func Reached[T any](ctx context.Context, k *Kernel, call *Call, items []T, id func(T) string) ([]T, error) {
	if !call.Principal.Scope.Narrow() {
		return items, nil
	}
	var reached []T
	for _, item := range items {
		is, err := k.Reaches(ctx, call, id(item))
		if err != nil {
			return nil, err
		}
		if is {
			reached = append(reached, item)
		}
	}
	return reached, nil
}
