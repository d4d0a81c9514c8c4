package projections

import (
	"database/sql/driver"
	"fmt"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/events"
)

// lists are the non-empty lists of a scope as JSON, by the column of credentials that they
// restrict.
func lists(s events.Scope) (all []condition) {
	for _, list := range []struct {
		column string
		values []string
	}{{"component", s.Components}, {"workspace", s.Workspaces}, {"id", s.Credentials}} {
		if len(list.values) == 0 {
			continue
		}
		values, err := jsonv2.Marshal(list.values, jsontext.AllowInvalidUTF8(true))
		if err != nil {
			panic(fmt.Sprintf("projections: a scope cannot be written as JSON: %v", err)) // strings always can
		}
		all = append(all, condition{list.column, []driver.Value{string(values)}})
	}
	return all
}

// keysWithin is the condition for an API key to have a scope within another one.
func keysWithin(s events.Scope) (is condition) {
	member := map[string]string{"component": "components", "workspace": "workspaces", "id": "credentials"}
	for _, list := range lists(s) {
		own := "(scope, '$." + member[list.sql] + "')"
		is.sql += " AND json_array_length" + own + " > 0 AND NOT EXISTS (SELECT 1 FROM json_each" + own + " WHERE value NOT IN (SELECT value FROM json_each(?)))"
		is.args = append(is.args, list.args...)
	}
	return is
}

// within is the condition for a credential to be in a scope. alias is the alias of the table
// credentials with a dot, or "". The condition is empty if the scope does not restrict.
func within(s events.Scope, alias string) (is condition) {
	for _, list := range lists(s) {
		is.sql += " AND " + alias + list.sql + " IN (SELECT value FROM json_each(?))"
		is.args = append(is.args, list.args...)
	}
	return is
}

// credentialThing is the prefix of the resource names of credentials.
const credentialThing = kindCredential + "."

// usedIn is the condition for a row with the columns tenant and thing, by its alias, to belong to
// a credential in a scope. The condition is empty if the scope does not restrict.
func usedIn(s events.Scope, alias string) condition {
	is := within(s, "k.")
	if is.sql != "" {
		is.sql = fmt.Sprintf(" AND EXISTS (SELECT 1 FROM credentials k INDEXED BY credentials_id WHERE k.tenant = %[1]stenant"+
			" AND k.id = substr(%[1]sthing, %[2]d) AND %[1]sthing LIKE '%[3]s%%'%[4]s)", alias, len(credentialThing)+1, credentialThing, is.sql)
	}
	return is
}
