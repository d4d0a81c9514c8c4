package service

import (
	"context"
	"errors"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/fault"
)

// BackgroundBatch is the number of items that a background job processes at a time.
const BackgroundBatch = 200

// ErrLimit refuses a page size out of range.
var ErrLimit = fault.New(fault.Invalid, "limit_invalid", "A page holds 1 to 200 items.")

// PageSize returns the limit of a page, 1 to 200, 50 for 0; or ErrLimit.
func PageSize(limit int) (int, error) {
	switch {
	case limit == 0:
		return 50, nil
	case limit < 0 || limit > 200:
		return 0, ErrLimit.At("/limit")
	}
	return limit, nil
}

// maxWait bounds how long a query waits for the views to reach min_seq.
const maxWait = 5 * time.Second

// ErrNotYet is returned if the views did not reach min_seq in time.
var ErrNotYet = fault.New(fault.Unavailable, "min_seq_not_reached",
	"The service has not reached min_seq yet. Try again, or send the query without min_seq.")

// AtLeast waits until the views reflect the log sequence.
func (k *Kernel) AtLeast(ctx context.Context, seq uint64) error {
	if seq <= k.cfg.Views.Position() {
		return nil
	}
	if end, err := k.cfg.Log.Store.End(ctx); err != nil || seq > end {
		return errors.Join(err, ErrNotYet)
	}
	wait, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	err := k.cfg.Projector.Wait(wait, seq)
	if err != nil && wait.Err() != nil && ctx.Err() == nil {
		return ErrNotYet
	}
	return err
}

// The request validations, which commands share.
var (
	ErrName    = commands.ErrName
	ErrMissing = commands.ErrMissing
)

// Required is commands.Required.
func Required(pointer, value string) error { return commands.Required(pointer, value) }

// CheckName is commands.CheckName.
func CheckName(pointer, name string) error { return commands.CheckName(pointer, name) }

// CheckTarget is commands.CheckTarget.
func CheckTarget(id string, expected int) error { return commands.CheckTarget(id, expected) }

// PointAt sets the request member that an error of this service points at.
func PointAt(err error, pointer string) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f.At(pointer)
	}
	return err
}

// EscapePointer writes a name as a token of a JSON pointer (RFC 6901).
func EscapePointer(name string) string {
	return string(jsontext.Pointer("").AppendToken(name))[1:]
}

// ErrRange rejects an invalid range.
var ErrRange = fault.New(fault.Invalid, "range_invalid", "from must be at least 1, and to must not be less than from.")
