package fault_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/credstream/credstream/fault"
)

var errInUse = fault.New(fault.Precondition, "test_in_use", "in use")

func TestIsComparesCodes(t *testing.T) {
	specific := errInUse.Withf("flow %q uses it", "f1").At("/id").With([]string{"f1"}).WithRetryAfter(time.Second)
	if !errors.Is(fmt.Errorf("deleting: %w", specific), errInUse) {
		t.Error("a wrapped, more specific error is not recognised")
	}
	if errors.Is(errInUse, fault.ErrConflict) {
		t.Error("two codes compare equal")
	}
	if errInUse.Msg != "in use" || errInUse.Pointer != "" || errInUse.Details != nil || errInUse.RetryAfter != 0 {
		t.Error("deriving an error changed the sentinel")
	}
}

func TestOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want *fault.Error
	}{
		{nil, nil},
		{fmt.Errorf("x: %w", errInUse), errInUse},
		{errors.New("dial 10.0.0.1: refused"), fault.ErrInternal},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), fault.ErrTimeout},
		{context.Canceled, fault.ErrTimeout},
	} {
		if got := fault.Of(c.err); got != c.want {
			t.Errorf("Of(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}
