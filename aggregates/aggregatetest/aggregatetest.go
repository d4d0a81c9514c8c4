// Package aggregatetest runs given/when/then cases against a Decider: one line a case.
package aggregatetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
)

// Case is one test: after the events Given, the command When produces the events Then (none if
// there is nothing to change) or the error Err.
type Case[C commands.Command, E any] struct {
	Name  string
	Given []E
	When  C
	Then  []E
	Err   error
	Again bool // a repeated command may produce further events, such as a verification
}

// Run runs every case as a subtest. It also checks that a repeated command produces no
// further events (unless Again is set), and that a state does not change when it is encoded to a
// snapshot and decoded.
func Run[S any, C commands.Command, E any](t *testing.T, d aggregates.Decider[S, C, E], cases ...Case[C, E]) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			state := thaw[S](t, fold(d, c.Given))
			facts, err := d.Decide(state, c.When)
			if !errors.Is(err, c.Err) {
				t.Fatalf("Decide(%+v) answers %v, want %v", c.When, err, c.Err)
			}
			if diff := cmp.Diff(c.Then, facts, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("Decide(%+v) (-want +got):\n%s", c.When, diff)
			}
			if diff := cmp.Diff(fold(d, c.Given), state, cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("deciding changed the state (-before +after):\n%s", diff)
			}
			if c.Err != nil || c.Again {
				return
			}
			for _, f := range facts {
				state = d.Evolve(state, f)
			}
			if again, err := d.Decide(state, c.When); err == nil && len(again) > 0 {
				t.Errorf("the same command again gives %+v", again)
			}
		})
	}
}

// Unknown checks that the decider rejects an unknown command with an
// error that contains its type.
func Unknown[S any, C commands.Command, E any](t *testing.T, d aggregates.Decider[S, C, E], unknown C) {
	t.Helper()
	var nothing S
	facts, err := d.Decide(nothing, unknown)
	if err == nil || len(facts) > 0 || !strings.Contains(err.Error(), fmt.Sprintf("%T", unknown)) {
		t.Errorf("%s answers the unknown %T with %+v, %v", d.Category, unknown, facts, err)
	}
}

func fold[S any, C commands.Command, E any](d aggregates.Decider[S, C, E], facts []E) S {
	var state S
	for _, f := range facts {
		state = d.Evolve(state, f)
	}
	return state
}

// thaw encodes a state to a snapshot and decodes it.
func thaw[S any](t *testing.T, state S) S {
	t.Helper()
	b, err := json.Marshal(state)
	if err != nil {
		t.Fatalf("a state that no snapshot can hold: %v", err)
	}
	var back S
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatalf("a snapshot that cannot be read back: %v", err)
	}
	return back
}
