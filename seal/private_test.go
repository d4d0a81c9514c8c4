//go:build unix

package seal_test

import (
	"io/fs"
	"testing"

	"github.com/credstream/credstream/seal"
)

func TestPrivate(t *testing.T) {
	for _, row := range []struct {
		mode        fs.FileMode
		owner, user int
		want        bool
	}{
		{0o600, 10001, 10001, true},
		{0o400, 0, 0, true},
		{0o640, 10001, 10001, false},
		{0o440, 0, 0, false},
		{0o440, 0, 10001, true},
		{0o640, 0, 10001, true}, // a secret of Kubernetes with fsGroup
		{0o660, 0, 10001, false},
		{0o444, 0, 10001, false},
		{0o441, 0, 10001, false},
		{0o440, -1, 10001, false},
	} {
		if got := seal.PrivateTo(row.mode, row.owner, row.user); got != row.want {
			t.Errorf("%04o of %d, as %d: %v", row.mode, row.owner, row.user, got)
		}
	}
}
