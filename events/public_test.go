package events_test

import (
	"strings"
	"testing"

	"github.com/credstream/credstream/events"
)

type (
	untagged struct {
		Name  string `json:"name" feed:"name"`
		Extra string `json:"extra"`
	}
	part struct {
		Shown  string `json:"shown" feed:"shown"`
		Hidden string `json:"hidden"`
	}
	leaky struct {
		Parts []part `json:"parts" feed:"parts"`
	}
)

// Nothing becomes public by omission: each field says whether it is, and so does each
// field of what a public field holds.
func TestEachFieldSaysWhetherItIsPublic(t *testing.T) {
	for want, define := range map[string]func(){
		"untagged.Extra": func() { events.Define[untagged]("a", events.Changes) },
		"part.Hidden":    func() { events.Define[leaky]("a", events.Audit) },
		"":               func() { events.Define[untagged]("a", events.Internal) },
	} {
		func() {
			defer func() {
				said, _ := recover().(string)
				if !strings.Contains(said, want) || (said == "") != (want == "") {
					t.Errorf("%q panics with %q", want, said)
				}
			}()
			define()
		}()
	}
}
