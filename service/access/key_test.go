package access_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/credstream/credstream/service/access"
)

// keyForm is what a program that looks for lost keys would look for.
var keyForm = regexp.MustCompile(`^cs_[A-Z2-7]{58}$`)

func TestKeyShape(t *testing.T) {
	a, b := string(access.NewKey().Reveal()), string(access.NewKey().Reveal())
	if a == b || access.CheckKeyShape(a) != nil || access.CheckKeyShape(b) != nil || !keyForm.MatchString(a) {
		t.Error("new keys are alike or have the wrong shape")
	}
	for _, good := range []string{a[:len(a)-6], "cs_" + strings.Repeat("x", 32), "cs_" + strings.Repeat("9", 128), a + "x"} { // were given, or made before there was a checksum
		if err := access.CheckKeyShape(good); err != nil {
			t.Errorf("%d characters: %v", len(good), err)
		}
	}
	for _, bad := range []string{
		"", "cs_", "cs_short", strings.TrimPrefix(a, "cs_"), "CS_" + a[3:], a + " ", a[:20] + "-" + a[20:], "cs_" + strings.Repeat("x", 129),
		a[:20], strings.ToLower(a), a[:len(a)-6] + b[len(b)-6:],
	} {
		if err := access.CheckKeyShape(bad); !errors.Is(err, access.ErrKeyMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// Whoever types a key wrong is told so, before anything is looked up.
	for i := len("cs_"); i < len(a); i++ {
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567az0" {
			mistyped := a[:i] + string(c) + a[i+1:]
			if mistyped != a && access.CheckKeyShape(mistyped) == nil {
				t.Errorf("a slip at %d is not noticed", i)
			}
		}
		if i+1 < len(a) && a[i] != a[i+1] && access.CheckKeyShape(a[:i]+a[i+1:i+2]+a[i:i+1]+a[i+2:]) == nil {
			t.Errorf("two letters swapped at %d are not noticed", i)
		}
	}
}
