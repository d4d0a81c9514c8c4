package service

import (
	"context"

	"github.com/credstream/credstream/admission"
)

// Receive gives a call its place among those under way, reads its body, which
// holds up to size bytes, and returns when it is the call's turn. leave ends the
// call. It returns admission.ErrBusy when too many of the caller's are under way.
// An edge that has a body to read calls it before Serve, which then does not wait
// again. The call is not authorized yet.
func (s *Service) Receive(ctx context.Context, call *Call, size int64, read func() ([]byte, error)) (body []byte, leave func(), err error) {
	p, err := s.cfg.Admission.Reserve(s.payer(call), admission.Request, size)
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

// ReceiveMessage is Receive for a message of a size in bytes that is to be stored in a queue.
func (s *Service) ReceiveMessage(ctx context.Context, call *Call, size int64) (leave func(), err error) {
	return s.enter(ctx, call, admission.Message, size)
}

// enter gives a call its place, if it has none yet, and waits for its turn.
func (s *Service) enter(ctx context.Context, call *Call, cost int, size int64) (leave func(), err error) {
	if call.pass != nil {
		return func() {}, nil
	}
	p, err := s.pass(ctx, s.payer(call), cost, size)
	if err != nil {
		return nil, err
	}
	call.pass = p
	return p.Leave, nil
}

// pass gives a caller a place and waits for its turn.
func (s *Service) pass(ctx context.Context, who admission.Caller, cost int, size int64) (*admission.Pass, error) {
	p, err := s.cfg.Admission.Reserve(who, cost, size)
	if err != nil {
		return nil, err
	}
	return p, p.Enter(ctx)
}

// payer is whose share a call takes: that of the tenant it names, if the caller
// may name it and it is known to exist; else that of the caller's home.
func (s *Service) payer(call *Call) admission.Caller {
	who := call.Principal.Actor
	tenant := call.Principal.Home
	if call.Principal.Reaches(call.Tenant) && s.tenants.Contains(call.Tenant) {
		tenant = call.Tenant
	}
	return admission.Caller{Tenant: tenant, Key: who.Kind + ":" + who.ID}
}
