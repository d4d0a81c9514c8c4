package component_test

import (
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/service/component"
)

// What an update changes for credentials is said before it is applied.
func TestCompare(t *testing.T) {
	const oauth = `"oauth2":{"auth_uri":"https://as.example.com/a","token_uri":"https://as.example.com/t"`
	descriptor := func(fields, more string) jsontext.Value {
		return jsontext.Value(`{"title":"T","credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}` + fields + `},` + more + `}}`)
	}
	now := descriptor(`,"plan":{},"old":{}`, oauth+`}`)
	for name, c := range map[string]struct {
		next jsontext.Value
		want []string
	}{
		"nothing": {now, nil},
		"fields": {descriptor(`,"plan":{"required":true},"new":{"required":true}`, oauth+`}`), []string{
			"The field plan becomes required.", "The field new is added, and required: new keys need a value for it.", "The field old is removed: new keys must not contain it.",
		}},
		"a field in a request to the provider": {descriptor(`,"plan":{},"old":{}`, oauth+`,"token_params":{"x":"{{plan}}"}}`), []string{
			"Whoever connects an account again has to enter the other fields again, because what is done with them changes.",
		}},
	} {
		got, err := component.Compare(now, c.next)
		if diff := cmp.Diff(c.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}
