package component

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/credstream/credstream/commands"
)

// Compare returns what another descriptor would change for credentials that are entered under it, as
// sentences. It returns the errors of a descriptor that cannot be registered.
func Compare(now, next jsontext.Value) (changes []string, err error) {
	is, err := parseDescriptor(next)
	if err != nil {
		return nil, err
	}
	was, err := commands.ParseDescriptor(now)
	if err != nil {
		return nil, err
	}
	return compare(was, is), nil
}

// Variables returns the variables that the owner of a component sets, sorted.
func Variables(descriptor jsontext.Value) ([]string, error) {
	d, err := commands.ParseDescriptor(descriptor)
	return d.Env, err
}

func compare(now, next commands.Descriptor) (changes []string) {
	say := func(format string, args ...any) { changes = append(changes, fmt.Sprintf(format, args...)) }
	for _, f := range next.Fields {
		was, known := now.Field(f.Name)
		switch {
		case !known && f.Required:
			say("The field %s is added, and required: new keys need a value for it.", f.Name)
		case !known:
			say("The field %s is added.", f.Name)
		default:
			if was.Required != f.Required {
				say("The field %s becomes %s.", f.Name, map[bool]string{true: "required", false: "optional"}[f.Required])
			}
			if was.Secret != f.Secret {
				say("The field %s becomes %s.", f.Name, map[bool]string{true: "secret", false: "readable for everybody who sees the credential"}[f.Secret])
			}
			if was.ViewClass != f.ViewClass {
				say("The field %s is shown as %s instead of %s.", f.Name, orNone(f.ViewClass), orNone(was.ViewClass))
			}
		}
	}
	for _, f := range now.Fields {
		if _, kept := next.Field(f.Name); !kept {
			say("The field %s is removed: new keys must not contain it.", f.Name)
		}
	}
	for _, host := range next.Hosts {
		if !slices.Contains(now.Hosts, host) {
			say("Secrets may also be sent to %s.", host)
		}
	}
	for _, host := range now.Hosts {
		if !slices.Contains(next.Hosts, host) {
			say("Secrets may no longer be sent to %s.", host)
		}
	}
	switch was, is := probe(now), probe(next); {
	case was == is:
	case was == "":
		say("Keys are verified by a dry request.")
	case is == "":
		say("Keys are no longer verified.")
	default:
		say("The dry request is another one.")
	}
	if now.OAuth2 != nil && next.OAuth2 != nil {
		if hosts := next.OAuth2.Beyond(now.OAuth2); len(hosts) > 0 {
			say("The client secret goes to another host: %s. It must be entered again.", strings.Join(hosts, ", "))
		}
		if was, is := now.OAuth2.Scopes, next.OAuth2.Scopes; !slices.Equal(was, is) {
			say("Accounts are asked for the scopes %s instead of %s.", orNone(strings.Join(is, " ")), orNone(strings.Join(was, " ")))
		}
	} else if (now.OAuth2 == nil) != (next.OAuth2 == nil) {
		say("Accounts %s be connected at a provider.", map[bool]string{true: "can", false: "can no longer"}[next.OAuth2 != nil])
	}
	if next.OAuth2 != nil && !next.KeepsRules(now, commonFields(now, next)) {
		say("Whoever connects an account again has to enter the other fields again, because what is done with them changes.")
	}
	return changes
}

// commonFields returns the names of the fields of both that hold no tokens.
func commonFields(now, next commands.Descriptor) (names []string) {
	for _, f := range next.Fields {
		if was, known := now.Field(f.Name); known && !was.OAuth() && !f.OAuth() {
			names = append(names, f.Name)
		}
	}
	return names
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// probe is the dry request as text, to compare it; "" if there is none.
func probe(d commands.Descriptor) string {
	if d.Verification == nil {
		return ""
	}
	b, err := json.Marshal(d.Verification, json.Deterministic(true))
	if err != nil {
		return err.Error()
	}
	return string(b)
}
