package token_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/service/token"
)

// A provider is waited for as long as it confirms something now and then. That it
// refuses something meanwhile is no reason to wait longer.
func TestPatienceOfARevocation(t *testing.T) {
	for name, c := range map[string]struct {
		outcomes []string
		want     []bool
	}{
		"down":     {[]string{"transient", "transient", "transient", "transient"}, []bool{true, true, true, false}},
		"refuses":  {[]string{"transient", "refused", "transient", "refused", "transient"}, []bool{true, false, true, false, false}},
		"confirms": {[]string{"transient", "transient", "revoked", "transient", "malformed"}, []bool{true, true, false, true, true}},
	} {
		synctest.Test(t, func(t *testing.T) {
			if diff := cmp.Diff(c.want, token.Patience(20*time.Second, c.outcomes...)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		})
	}
}

func TestRevocationsUnderWay(t *testing.T) {
	var got []bool
	for _, err := range token.BeginRevocations("a", "", "a", "b", "c", "d", "e", "f", "g", "h", "") {
		if err != nil && !errors.Is(err, token.ErrRevocationUnderWay) {
			t.Error(err)
		}
		got = append(got, err == nil)
	}
	if diff := cmp.Diff([]bool{true, true, false, true, true, true, true, true, true, false, false}, got); diff != "" {
		t.Errorf("begun (-want +got):\n%s", diff)
	}
}
