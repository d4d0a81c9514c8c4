package service

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// ItemByItem is for a command that carries out another one for each of many items, by Each.
// It records nothing itself. With a command id of its caller's each item has one of its own,
// so a repeat, also of a call that broke off, carries out what was left undone and answers
// the rest as it was answered.
func (r Route) ItemByItem() Route {
	r.itemByItem = true
	return r
}

// nameItems notes whether the caller gave the command id of a call whose items have theirs.
func (c *Call) nameItems() error {
	switch {
	case c.CommandID == "":
		c.CommandID = events.NewID()
	case len(c.CommandID) > maxID || !printable(c.CommandID):
		return ErrCommandID
	default:
		c.named = true
	}
	return nil
}

// Each carries out one of the many commands that a call asks for: a call of the route, with
// its JSON as the body. key tells it from the others of the same call, and is the same when
// the call is repeated. It is admitted like a call of its own, but waits where that would
// be refused for coming too soon.
func (k *Kernel) Each(ctx context.Context, call *Call, name, key string, body []byte) (answer any, err error) {
	route, ok := k.routes[name]
	if !ok || !route.Command {
		return nil, fmt.Errorf("service: %s is no command", name)
	}
	one := *call
	one.Correlation, one.Route, one.kernel = call.correlation(), name, k
	one.named, one.request, one.execution, one.CommandID = false, "", nil, ""
	if call.named {
		sum := sha256.Sum256(events.LengthPrefixed("credstream/each/1", call.CommandID, key))
		one.CommandID = "each-" + base64.RawURLEncoding.EncodeToString(sum[:24])
	}
	start := k.Now()
	defer func() {
		err = k.CheckIntegrity(err)
		k.metrics.served(route, k.Now().Sub(start), err)
	}()
	err = patiently(ctx, func() error { return k.gate.Admit(ctx, &one, route.permission(one.Principal), CommandCall) })
	if err == nil {
		err = k.checkReach(ctx, &one, route)
	}
	if err != nil {
		return nil, err
	}
	one.pass = nil
	inside, leave := ctx, func() {}
	err = patiently(ctx, func() error {
		inside, leave, err = k.Enter(ctx, &one, route.cost, int64(len(body)))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx = inside
	if err := k.assignCommandID(ctx, &one, name, body); err != nil {
		return nil, err
	}
	return k.execute(ctx, &one, route, body)
}

// patiently repeats what is refused for coming too soon, until ctx ends.
func patiently(ctx context.Context, try func() error) error {
	for {
		err := try()
		f, is := errors.AsType[*fault.Error](err)
		if !is || f.Kind != fault.Throttled {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(f.RetryAfter + time.Millisecond):
		}
	}
}
