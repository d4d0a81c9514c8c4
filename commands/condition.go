package commands

import (
	"regexp"
	"regexp/syntax"

	"github.com/go-json-experiment/json/jsontext"
)

// Condition is a condition on one member of a JSON response: exactly one of Equals, OneOf,
// Matches and Exists is set.
type Condition struct {
	Pointer string           `json:"pointer"` // RFC 6901; "" is the whole response
	Equals  jsontext.Value   `json:"equals"`
	OneOf   []jsontext.Value `json:"one_of"`
	Matches string           `json:"matches"` // RE2: takes time linear in the response and in the pattern's steps
	Exists  *bool            `json:"exists"`
}

// maxSteps bounds the steps of a pattern after its repeats are expanded: "(.?){999}" has
// thousands, each of which may be tried at each character.
const maxSteps = 1000

// check makes the checks that a JSON Schema cannot express. at points to the condition.
func (c Condition) check(at string) error {
	if !jsontext.Pointer(c.Pointer).IsValid() {
		return invalidAt(at+"/pointer", "This is not a JSON pointer (RFC 6901).")
	}
	parsed, err := syntax.Parse(c.Matches, syntax.Perl)
	switch {
	case err != nil:
	case steps(parsed) > maxSteps:
		return invalidAt(at+"/matches", "The regular expression has more than %d steps when its repeats are written out. Repeat less.", maxSteps)
	default:
		_, err = regexp.Compile(c.Matches)
	}
	if err != nil {
		return invalidAt(at+"/matches", "This is not a regular expression in RE2 syntax.")
	}
	return nil
}

// steps estimates the number of instructions that an expression compiles to.
func steps(re *syntax.Regexp) int {
	n := 1
	if re.Op == syntax.OpLiteral {
		n = len(re.Rune)
	}
	for _, sub := range re.Sub {
		n += steps(sub)
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min+1, re.Max)
	}
	return n
}
