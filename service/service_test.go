package service_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
)

func TestSlug(t *testing.T) {
	for title, want := range map[string]string{
		"Petstore API (Node.js)":       "petstore-api-node-js",
		"sftp":                         "sftp",
		"  --Über  ":                   "ber",
		"日本":                           "component",
		"":                             "component",
		strings.Repeat("ab ", 40):      strings.Repeat("ab-", 21) + "a",
		"salesforce-component-v2.json": "salesforce-component-v2-json",
	} {
		got := service.Slug(title)
		if got != want {
			t.Errorf("Slug(%q) = %q, want %q", title, got, want)
		}
		if events.CheckName(got) != nil {
			t.Errorf("Slug(%q) = %q is no component id", title, got)
		}
	}
}

func TestKeyShape(t *testing.T) {
	a, b := string(service.NewKey().Reveal()), string(service.NewKey().Reveal())
	if a == b || service.CheckKeyShape(a) != nil || service.CheckKeyShape(b) != nil {
		t.Error("new keys are alike or have the wrong shape")
	}
	for _, bad := range []string{
		"", "cs_", "cs_short", strings.TrimPrefix(a, "cs_"), "CS_" + a[3:], a + " ", a[:20] + "-" + a[20:], "cs_" + strings.Repeat("x", 129),
	} {
		if service.CheckKeyShape(bad) == nil {
			t.Errorf("%q passes for a key", bad)
		}
	}
}

// The table is what every edge serves and what the reference shows.
func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range service.Routes() {
		if seen[r.Name] {
			t.Errorf("%s stands twice", r.Name)
		}
		seen[r.Name] = true
		if r.In.Kind() != reflect.Struct || r.Out.Kind() != reflect.Struct || !strings.HasSuffix(r.Summary, ".") {
			t.Errorf("%s takes %s, answers %s, says %q", r.Name, r.In, r.Out, r.Summary)
		}
		if !slices.Contains(service.Roles[service.Administrator], r.Permission) {
			t.Errorf("nobody may use %s", r.Name)
		}
		if (r.Name == "credential.create" || r.Name == "credential.replace-keys") != holdsKeys(r.In) || holdsKeys(r.In) && !r.Secrets {
			t.Errorf("%s holds secrets and does not say so", r.Name)
		}
	}
}

func holdsKeys(t reflect.Type) bool {
	f, ok := t.FieldByName("Keys")
	return ok && f.Type == reflect.TypeFor[service.Keys]()
}

// Who reads cannot change, a flow engine changes flows alone, and no role reveals.
func TestRoles(t *testing.T) {
	for role, permissions := range service.Roles {
		if slices.Contains(permissions, service.CredentialsReveal) {
			t.Errorf("%s reveals secrets", role)
		}
		if role == service.Administrator {
			continue
		}
		for _, p := range permissions {
			if role == service.FlowEngine && p == service.FlowsEdit {
				continue
			}
			for _, change := range []string{".create", ".edit", ".delete", ".manage"} {
				if strings.HasSuffix(string(p), change) {
					t.Errorf("%s has %s", role, p)
				}
			}
		}
	}
}
