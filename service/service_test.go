package service_test

import (
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
)

func TestSlug(t *testing.T) {
	for title, want := range map[string]string{
		"Pet Shop API (Node.js)":      "pet-shop-api-node-js",
		"sftp":                        "sftp",
		"  --Über  ":                  "ber",
		"日本":                          "component",
		"":                            "component",
		strings.Repeat("ab ", 40):     strings.Repeat("ab-", 21) + "a",
		"customers-component-v2.json": "customers-component-v2-json",
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
	if a == b || service.CheckKeyShape(a) != nil || service.CheckKeyShape(b) != nil || !keyForm.MatchString(a) {
		t.Error("new keys are alike or have the wrong shape")
	}
	for _, good := range []string{a[:len(a)-6], "cs_" + strings.Repeat("x", 32), "cs_" + strings.Repeat("9", 128), a + "x"} { // were given, or made before there was a checksum
		if err := service.CheckKeyShape(good); err != nil {
			t.Errorf("%d characters: %v", len(good), err)
		}
	}
	for _, bad := range []string{
		"", "cs_", "cs_short", strings.TrimPrefix(a, "cs_"), "CS_" + a[3:], a + " ", a[:20] + "-" + a[20:], "cs_" + strings.Repeat("x", 129),
		a[:20], strings.ToLower(a), a[:len(a)-6] + b[len(b)-6:],
	} {
		if err := service.CheckKeyShape(bad); !errors.Is(err, service.ErrKeyMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	// Whoever types a key wrong is told so, before anything is looked up.
	for i := len("cs_"); i < len(a); i++ {
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567az0" {
			mistyped := a[:i] + string(c) + a[i+1:]
			if mistyped != a && service.CheckKeyShape(mistyped) == nil {
				t.Errorf("a slip at %d is not noticed", i)
			}
		}
		if i+1 < len(a) && a[i] != a[i+1] && service.CheckKeyShape(a[:i]+a[i+1:i+2]+a[i:i+1]+a[i+2:]) == nil {
			t.Errorf("two letters swapped at %d are not noticed", i)
		}
	}
}

// keyForm is what a program that looks for lost keys would look for.
var keyForm = regexp.MustCompile(`^cs_[A-Z2-7]{58}$`)

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
		if !slices.Contains(service.Roles[service.Administrator], r.Permission) && r.Permission != service.CredentialsReveal && r.Permission != service.CredentialsResolve {
			t.Errorf("nobody may use %s", r.Name)
		}
		if !slices.ContainsFunc(service.Permissions(), func(p service.PermissionInfo) bool { return p.Permission == r.Permission }) {
			t.Errorf("%s takes %s, which is none of the list", r.Name, r.Permission)
		}
		if slices.Contains([]string{"credential.create", "credential.replace-keys", "oauth.connect", "auth_secret.create", "auth_secret.replace-keys"}, r.Name) != holdsKeys(r.In) || holdsKeys(r.In) && !r.Secrets {
			t.Errorf("%s holds secrets and does not say so", r.Name)
		}
	}
}

func holdsKeys(t reflect.Type) bool {
	f, ok := t.FieldByName("Keys")
	return ok && f.Type == reflect.TypeFor[service.Keys]()
}

// Who reads cannot change, a flow engine changes flows alone, and no role shows a
// person a secret.
func TestRoles(t *testing.T) {
	known := map[service.Permission]bool{}
	for _, p := range service.Permissions() {
		if known[p.Permission] || p.Allows == "" {
			t.Errorf("%s stands twice or says nothing", p.Permission)
		}
		known[p.Permission] = true
	}
	for role, permissions := range service.Roles {
		for _, p := range permissions {
			if !known[p] {
				t.Errorf("%s has %s, which is none of the list", role, p)
			}
			if p == service.CredentialsReveal || p == service.ConnectorSecretsRead || p == service.CredentialsResolve && role != service.FlowEngine {
				t.Errorf("%s sees secrets by %s", role, p)
			}
			if role == service.Administrator || role == service.FlowEngine && p == service.FlowsEdit {
				continue
			}
			for _, change := range []string{".create", ".edit", ".delete", ".manage", "write_"} {
				if strings.Contains(string(p), change) {
					t.Errorf("%s has %s", role, p)
				}
			}
		}
	}
	for p := range known {
		byName := p == service.CredentialsReveal || p == service.CredentialsResolve || p == service.ConnectorSecretsRead
		if slices.Contains(service.Roles[service.Administrator], p) == byName {
			t.Errorf("an administrator and %s", p)
		}
	}
}
