package cli_test

import (
	"strings"
	"testing"
	"time"
)

// Values come from the service. What a shell would evaluate is not offered.
func TestCompletion(t *testing.T) {
	s, c := newCLI(t, map[string]string{
		"credential.list": `{"credentials":[{"id":"22971c67","name":"Pets $(touch x) of\tAcme"},{"id":"$(touch x)","name":"n"},{"id":"other","name":"n"}]}`,
		"component.list":  `{"components":[{"id":"petstore","title":"Pet shop"},{"id":"calendar","title":"Calendar"}]}`,
		"flow.list":       `{"flows":[{"id":"orders","name":"Orders"}]}`,
		"role.list":       `{"roles":[{"name":"BILLING","title":"Reads bills"}]}`,
	})
	for args, want := range map[string]string{
		"credential show |":                         "22971c67\tPets touch x ofAcme\nother\tn\n:4\n",
		"credential show 2":                         "22971c67\tPets touch x ofAcme\n:4\n",
		"credential show other |":                   ":4\n",
		"credential list --component pet":           "petstore\tPet shop\n:4\n",
		"credential list --status fa":               "failed\n:4\n",
		"flow show |":                               "orders\tOrders\n:4\n",
		"key issue --role B":                        "BILLING\tReads bills\n:4\n",
		"component list --output y":                 "yaml\n:4\n",
		"credential list --server :x --component p": ":4\n",
	} {
		words := strings.Fields(strings.Replace(args, "|", "EMPTY", 1))
		for i, w := range words {
			if w == "EMPTY" {
				words[i] = ""
			}
		}
		if code := c.run(t.Context(), append([]string{"__complete"}, words...)...); code != 0 || c.out.String() != want {
			t.Errorf("%s: %d %q, %s", args, code, c.out.String(), c.errOut.String())
		}
	}
	delete(c.env, "CREDSTREAM_KEY")
	if c.run(t.Context(), "__complete", "key", "issue", "--role", "A"); !strings.HasPrefix(c.out.String(), "ADMINISTRATOR\nAUDITOR\n") {
		t.Errorf("roles without a service: %q", c.out.String())
	}
	s.slow = time.Second
	c.env["CREDSTREAM_KEY"] = cliKey
	began := time.Now()
	if code := c.run(t.Context(), "__complete", "credential", "show", ""); code != 0 || c.out.String() != ":4\n" || time.Since(began) > 700*time.Millisecond {
		t.Errorf("a slow service: %d %q after %v", code, c.out.String(), time.Since(began))
	}
}
