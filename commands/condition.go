package commands

import (
	"regexp"

	"github.com/go-json-experiment/json/jsontext"
)

// Condition is what one member of a JSON answer must be: exactly one of Equals, OneOf,
// Matches and Exists is set.
type Condition struct {
	Pointer string           `json:"pointer"` // RFC 6901; "" is the whole answer
	Equals  jsontext.Value   `json:"equals"`
	OneOf   []jsontext.Value `json:"one_of"`
	Matches string           `json:"matches"` // RE2, which takes time linear in the answer
	Exists  *bool            `json:"exists"`
}

// check checks what the schema cannot. at points to the condition.
func (c Condition) check(at string) error {
	if !jsontext.Pointer(c.Pointer).IsValid() {
		return invalidAt(at+"/pointer", "This is not a JSON pointer (RFC 6901).")
	}
	if _, err := regexp.Compile(c.Matches); err != nil {
		return invalidAt(at+"/matches", "This is not a regular expression in RE2 syntax.")
	}
	return nil
}
