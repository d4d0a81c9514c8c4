package application_test

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/secrets"
)

// The table is what every edge serves and what the reference shows.
func TestRoutes(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range application.Routes() {
		if seen[r.Name] {
			t.Errorf("%s stands twice", r.Name)
		}
		seen[r.Name] = true
		if r.In.Kind() != reflect.Struct || r.Out.Kind() != reflect.Struct || !strings.HasSuffix(r.Summary, ".") {
			t.Errorf("%s takes %s, answers %s, says %q", r.Name, r.In, r.Out, r.Summary)
		}
		if !slices.Contains(permission.Roles[permission.Administrator], r.Permission) && r.Permission != permission.CredentialsReveal && r.Permission != permission.CredentialsResolve && r.Permission != permission.ConnectorSecretsRead {
			t.Errorf("nobody may use %s", r.Name)
		}
		if !slices.ContainsFunc(permission.Permissions(), func(p permission.Info) bool { return p.Permission == r.Permission }) {
			t.Errorf("%s takes %s, which is none of the list", r.Name, r.Permission)
		}
		if slices.Contains([]string{"credential.create", "credential.replace-keys", "oauth.connect", "auth_secret.create", "auth_secret.replace-keys"}, r.Name) != holdsKeys(r.In) || holdsKeys(r.In) && !r.Secrets {
			t.Errorf("%s holds secrets and does not say so", r.Name)
		}
	}
}

func holdsKeys(t reflect.Type) bool {
	f, ok := t.FieldByName("Keys")
	return ok && f.Type == reflect.TypeFor[secrets.Keys]()
}

// Who reads cannot change, a flow engine changes flows alone, and no role shows a
// person a secret.
func TestRoles(t *testing.T) {
	known := map[permission.Permission]bool{}
	for _, p := range permission.Permissions() {
		if known[p.Permission] || p.Allows == "" {
			t.Errorf("%s stands twice or says nothing", p.Permission)
		}
		known[p.Permission] = true
	}
	for role, permissions := range permission.Roles {
		for _, p := range permissions {
			if !known[p] {
				t.Errorf("%s has %s, which is none of the list", role, p)
			}
			if p == permission.CredentialsReveal || p == permission.ConnectorSecretsRead || p == permission.CredentialsResolve && role != permission.FlowEngine {
				t.Errorf("%s sees secrets by %s", role, p)
			}
			if role == permission.Administrator || role == permission.FlowEngine && p == permission.FlowsEdit {
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
		byName := p == permission.CredentialsReveal || p == permission.CredentialsResolve || p == permission.ConnectorSecretsRead
		if slices.Contains(permission.Roles[permission.Administrator], p) == byName {
			t.Errorf("an administrator and %s", p)
		}
	}
}
