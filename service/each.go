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

// ItemByItem marks a command that executes another command for each of many items, with Each. It
// records nothing itself. If the caller gave a command id, each item's id is derived from it: a
// repeat, also of an interrupted call, executes the remaining items and returns the first responses
// of the others.
func (r Route) ItemByItem() Route {
	r.itemByItem = true
	return r
}

// nameItems checks the command id of an ItemByItem call, or generates one.
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

// IsItem reports whether the call is one item of an ItemByItem call.
func (c *Call) IsItem() bool { return c.item }

// Each executes one of the commands of an ItemByItem call: name is the route, body its JSON. key is
// unique within the call, and the same in a repeat. The item is authorized and admitted like a
// separate call, but waits for the rate limit instead of being refused. Once the caller's key is
// revoked or expired, no further item is executed (ErrKeyEnded).
func (k *Kernel) Each(ctx context.Context, call *Call, name, key string, body []byte) (answer any, err error) {
	route, ok := k.routes[name]
	if !ok || !route.Command {
		return nil, fmt.Errorf("service: %s is not a command", name)
	}
	one := *call
	one.Correlation, one.Route, one.kernel = call.correlation(), name, k
	one.named, one.request, one.execution, one.CommandID, one.item = false, "", nil, "", true
	if call.named {
		sum := sha256.Sum256(events.LengthPrefixed("credstream/each/1", call.CommandID, key))
		one.CommandID = "each-" + base64.RawURLEncoding.EncodeToString(sum[:24])
	}
	start := k.Now()
	defer func() {
		err = k.CheckIntegrity(err)
		k.metrics.served(route, k.Now().Sub(start), err)
	}()
	err = retryThrottled(ctx, func() error { return k.gate.Admit(ctx, &one, route.permission(one.Principal), CommandCall) })
	if err == nil {
		err = k.checkReach(ctx, &one, route)
	}
	if err != nil {
		return nil, err
	}
	one.pass = nil
	admitted, leave := ctx, func() {}
	err = retryThrottled(ctx, func() error {
		admitted, leave, err = k.Enter(ctx, &one, route.cost, int64(len(body)))
		return err
	})
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx = admitted
	if err := k.gate.CheckCurrent(ctx, one.Principal); err != nil { // after the waits above
		return nil, err
	}
	if err := k.assignCommandID(ctx, &one, name, body); err != nil {
		return nil, err
	}
	return k.execute(ctx, &one, route, body)
}

// retryThrottled repeats try while it returns a fault.Throttled error, until ctx ends.
func retryThrottled(ctx context.Context, try func() error) error {
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
