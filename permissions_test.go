package credstream_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/permission"
)

// docs/permissions.md is generated from the closed list, the roles and the route
// table: who may do what cannot drift from what is said of it.
func TestPermissionsPage(t *testing.T) {
	want := permissionsPage()
	const file = "docs/permissions.md"
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is out of date; update it: go test . -run TestPermissionsPage -update", file)
	}
}

func permissionsPage() []byte {
	var b bytes.Buffer
	b.WriteString(`# Permissions

This page lists the permissions, the roles that include them, and the permission of each command and query. It is generated from the code. There are no other permissions. A caller has the permissions of its role and its own list of permissions, in the tenants that it is granted; everything else is refused. A denied call gets 403 and the name of the missing permission. A tenant that the caller is not granted is answered with 404, whether it exists or not. Each denial is recorded as the event ` + "`access.denied`" + ` in the caller's home tenant; repeated denials are aggregated per minute.

An ADMINISTRATOR can issue keys with any role and any permission of the list. Other callers with ` + "`keys.manage`" + ` can only grant the permissions that they have themselves, with no later expiry and no more networks than their own. They can revoke their own key and all keys whose permissions they could grant, regardless of the expiry and networks of those keys. A caller with an OpenID Connect token loses access when the token expires, and so do the keys that it issues. Permissions without a role in the table must be granted by name: ` + "`credstream key issue --permission credentials.reveal`" + `.

## Roles

`)
	roles := slices.Sorted(keysOf(permission.Roles))
	fmt.Fprintf(&b, "| permission | allows to |")
	for _, role := range roles {
		fmt.Fprintf(&b, " %s |", role)
	}
	b.WriteString("\n|---|---|" + strings.Repeat(":-:|", len(roles)) + "\n")
	for _, p := range permission.Permissions() {
		fmt.Fprintf(&b, "| `%s` | %s |", p.Permission, p.Allows)
		for _, role := range roles {
			mark := ""
			if slices.Contains(permission.Roles[role], p.Permission) {
				mark = "yes"
			}
			fmt.Fprintf(&b, " %s |", mark)
		}
		b.WriteString("\n")
	}
	b.WriteString(`
### Roles of the tenant

A tenant can define roles of its own: ` + "`credstream role define BILLING --permission flows.get --permission credentials.get`" + `, then ` + "`credstream key issue --role BILLING`" + `. A name has 2 to 40 capital letters, digits and underscores. To define, change or delete a role, or to issue a key with it, the caller must have each of its permissions, or be an ADMINISTRATOR.

A key gets the permissions that its role has when it is issued. From then on the permissions of a role with this name can never be changed, so ` + "`key list`" + ` and ` + "`role list`" + ` always show the same permissions. To withdraw a permission, define a role with another name, issue keys with it, and revoke the current keys. A role can be deleted when no valid key has it. Roles of the tenant cannot be granted by OpenID Connect tokens, which can name built-in roles and permissions.

## Routes

The permissions are the same over NATS and HTTP. A route marked "for every tenant" acts on all tenants: the caller must be granted ` + "`*`" + `.

`)
	routes := map[permission.Permission][]service.Route{}
	for _, r := range application.Routes() {
		routes[r.Permission] = append(routes[r.Permission], r)
	}
	b.WriteString("| route | | permission |")
	for _, role := range roles {
		fmt.Fprintf(&b, " %s |", role)
	}
	b.WriteString("\n|---|---|---|" + strings.Repeat(":-:|", len(roles)) + "\n")
	var unused []string
	for _, p := range permission.Permissions() {
		if len(routes[p.Permission]) == 0 {
			unused = append(unused, fmt.Sprintf("`%s`", p.Permission))
		}
		for _, r := range routes[p.Permission] {
			kind := "query"
			if r.Command {
				kind = "command"
			}
			if p.Everywhere {
				kind += ", for every tenant"
			}
			perm := fmt.Sprintf("`%s`", r.Permission)
			if r.AltPermission != "" {
				perm += fmt.Sprintf(" or `%s`", r.AltPermission)
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |", r.Name, kind, perm)
			for _, role := range roles {
				mark := ""
				if slices.Contains(permission.Roles[role], r.Permission) {
					mark = "yes"
				}
				fmt.Fprintf(&b, " %s |", mark)
			}
			b.WriteString("\n")
		}
	}
	fmt.Fprintf(&b, "\nFlow events over NATS require `%s`, the feed (by subscription or consumer) and the in-use index `%s`, the audit stream `%s`.\n",
		permission.FlowsEdit, permission.CredentialsGet, permission.AuditRead)
	b.WriteString(`
## Bound keys

A key can be bound to components, workspaces and credentials: ` + "`credstream key issue --role FLOW_ENGINE --component petstore --workspace sales`" + `. The kinds combine by AND. A bound key reaches only the credentials of its scope, with the permissions that it has.

`)
	reaches := []struct {
		reach service.Reach
		says  string
	}{
		{service.OneCredential, "A credential outside the scope gets `credential_not_found`"},
		{service.Bounded, "Reads, counts and changes only what is in the scope"},
		{service.Open, "Concerns no credential"},
		{service.TenantWide, "Refused with `key_scope_tenantwide`: concerns the whole tenant"},
	}
	b.WriteString("| with a bound key | routes |\n|---|---|\n")
	for _, of := range reaches {
		var names []string
		for _, r := range application.Routes() {
			if r.Reach == of.reach {
				names = append(names, "`"+r.Name+"`")
			}
		}
		fmt.Fprintf(&b, "| %s | %s |\n", of.says, strings.Join(names, ", "))
	}
	b.WriteString("\nA new credential outside the scope is refused with `key_scope_exceeded`. The feed, the audit stream and the in-use index over NATS are closed to bound keys.\n")
	if len(unused) > 0 {
		fmt.Fprintf(&b, "%s is required only by the REST API v2.\n", strings.Join(unused, ", "))
	}
	return b.Bytes()
}
