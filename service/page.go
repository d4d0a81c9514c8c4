package service

import (
	"bytes"
	"context"
	"errors"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// KeepAtOnce is how many things a keeper mends at one time.
const KeepAtOnce = 200

// ErrLimit refuses a page size out of range.
var ErrLimit = fault.New(fault.Invalid, "limit_invalid", "A page holds 1 to 200 items.")

// PageSize is the limit of a page, or ErrLimit: 1 to 200, 50 when 0.
func PageSize(limit int) (int, error) {
	switch {
	case limit == 0:
		return 50, nil
	case limit < 0 || limit > 200:
		return 0, ErrLimit.At("/limit")
	}
	return limit, nil
}

// maxWait bounds how long a query waits for the views to be as fresh as asked.
const maxWait = 5 * time.Second

// ErrNotYet is the answer of a query whose min_seq the views did not reach in time.
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

// ErrName refuses what people cannot call a thing.
var ErrName = fault.New(fault.Invalid, "name_invalid", "A name must have 1 to 200 characters and no control characters.")

// CheckName bounds what people call a thing.
func CheckName(pointer, name string) error {
	// Format characters turn text around or hide in it; two of them join letters.
	control := func(r rune) bool {
		return unicode.IsControl(r) || r == 0x2028 || r == 0x2029 || unicode.Is(unicode.Cf, r) && r != 0x200c && r != 0x200d
	}
	n := utf8.RuneCountInString(name)
	if n < 1 || n > 200 || bytes.ContainsFunc([]byte(name), control) {
		return ErrName.At(pointer)
	}
	return nil
}

// PointAt has an error of ours point at a member of the request.
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

// CheckTarget refuses what cannot be the id of a thing, or an expected version.
func CheckTarget(id string, expected int) error {
	if err := Required("/id", id); err != nil {
		return err
	}
	if err := events.CheckID(id); err != nil {
		return fault.Of(err).At("/id")
	}
	if expected < 0 {
		return ErrBody.Because("A version is a number from 1.").At("/expected_version")
	}
	return nil
}

// ErrRange refuses a range that is none.
var ErrRange = fault.New(fault.Invalid, "range_invalid", "from must be at least 1, and to must not be less than from.")
