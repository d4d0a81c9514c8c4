package service

import (
	"context"

	"github.com/credstream/credstream/admission"
	"github.com/credstream/credstream/fault"
)

// Receive admits a call, reads its body, which
// has up to size bytes, and returns when it is the call's turn. leave ends the
// call. It returns admission.ErrBusy if the caller has too many calls in progress.
// An edge that has a body to read calls it before Serve, which then does not wait
// again. The call is not authorized yet.
func (k *Kernel) Receive(ctx context.Context, call *Call, size int64, read func() ([]byte, error)) (body []byte, leave func(), err error) {
	p, err := k.cfg.Admission.Reserve(k.payer(call), admission.Request, size)
	if err != nil {
		return nil, nil, err
	}
	body, err = read()
	if err != nil {
		p.Leave()
		return nil, nil, err
	}
	if err := p.Enter(ctx); err != nil {
		return nil, nil, err
	}
	call.pass = p
	return body, p.Leave, nil
}

// ReceiveMessage is Receive for a message of size bytes that will be stored in a queue.
func (k *Kernel) ReceiveMessage(ctx context.Context, call *Call, size int64) (leave func(), err error) {
	_, leave, err = k.Enter(ctx, call, admission.Message, size)
	return leave, err
}

// Enter admits a call, unless it is admitted already, and waits for its turn. inside is the
// context of the call's work; leave ends the call.
func (k *Kernel) Enter(ctx context.Context, call *Call, cost int, size int64) (inside context.Context, leave func(), err error) {
	if call.pass != nil {
		return call.pass.With(ctx), func() {}, nil
	}
	p, err := k.Pass(ctx, k.payer(call), cost, size)
	if err != nil {
		return ctx, nil, err
	}
	call.pass = p
	return p.With(ctx), p.Leave, nil
}

// Pass admits a caller and waits for its turn.
func (k *Kernel) Pass(ctx context.Context, who admission.Caller, cost int, size int64) (*admission.Pass, error) {
	p, err := k.cfg.Admission.Reserve(who, cost, size)
	if err != nil {
		return nil, err
	}
	return p, p.Enter(ctx)
}

// payer is the tenant whose share a call uses: the tenant that it names, if the caller
// has access and it is known to exist; else the caller's home tenant.
func (k *Kernel) payer(call *Call) admission.Caller {
	who := call.Principal.Actor
	tenant := call.Principal.Home
	if call.Principal.Reaches(call.Tenant) && k.gate.Knows(call.Tenant) {
		tenant = call.Tenant
	}
	return admission.Caller{Tenant: tenant, Key: who.Kind + ":" + who.ID}
}

// ErrNotQueueable refuses to store a command in a queue.
var ErrNotQueueable = fault.New(fault.Invalid, "command_not_queueable", "This command cannot be queued: its response is needed, or its body has secrets. Send it as a request.")

// Queue validates a command before it is stored in a queue: that the command exists, that
// its caller may send it, and that its ids are valid. The caller must validate the body.
func (k *Kernel) Queue(ctx context.Context, call *Call, command string) (*Route, error) {
	route, ok := k.routes[command]
	switch {
	case !ok || !route.Command:
		return nil, ErrRouteUnknown
	case route.Unqueueable:
		return nil, ErrNotQueueable
	}
	call.Route = command
	if err := k.gate.Admit(ctx, call, route.Permission, QueuedMessage); err != nil {
		return nil, err
	}
	if err := k.checkReach(ctx, call, route); err != nil {
		return nil, err
	}
	if len(call.CommandID) > maxID || !printable(call.CommandID) {
		return nil, ErrCommandID
	}
	if len(call.Correlation) > maxID || !printable(call.Correlation) {
		return nil, ErrCorrelation
	}
	call.named = call.CommandID != ""
	return route, nil
}
