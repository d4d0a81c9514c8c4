package credstream_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
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
		t.Errorf("%s is not what the code says; write it anew: go test . -run TestPermissionsPage -update", file)
	}
}

func permissionsPage() []byte {
	var b bytes.Buffer
	b.WriteString(`# Permissions

Generated from the code. The list of permissions is closed, and a caller has what its role or its own list of permissions grants, in the tenants it is granted; everything else is refused. A refusal names the permission that is missing (403), and a tenant that is not the caller's is not found (404), whether it exists or not. Each refusal leaves the fact ` + "`access.denied`" + ` in the caller's home tenant; those that repeat within a minute are told of together.

An ADMINISTRATOR may issue keys with any role and any permission of the list; other callers with ` + "`keys.manage`" + ` only what they hold themselves, no longer and from no more addresses than they may be used. They revoke keys whose permissions they could grant, however long and from wherever those may be used, and themselves. A caller by a token of an OpenID Connect issuer ends with its token, and so do the keys that it issues. Permissions without a role in the table are granted by name: ` + "`credstream key issue --permission credentials.reveal`" + `.

## Roles

`)
	roles := slices.Sorted(keysOf(service.Roles))
	fmt.Fprintf(&b, "| permission | allows to |")
	for _, role := range roles {
		fmt.Fprintf(&b, " %s |", role)
	}
	b.WriteString("\n|---|---|" + strings.Repeat(":-:|", len(roles)) + "\n")
	for _, p := range service.Permissions() {
		fmt.Fprintf(&b, "| `%s` | %s |", p.Permission, p.Allows)
		for _, role := range roles {
			mark := ""
			if slices.Contains(service.Roles[role], p.Permission) {
				mark = "yes"
			}
			fmt.Fprintf(&b, " %s |", mark)
		}
		b.WriteString("\n")
	}
	b.WriteString(`
## Routes

The same on every edge. A route for every tenant takes a caller that is granted every tenant (` + "`*`" + `).

`)
	routes := map[service.Permission][]service.Route{}
	for _, r := range service.Routes() {
		routes[r.Permission] = append(routes[r.Permission], r)
	}
	b.WriteString("| route | | permission |")
	for _, role := range roles {
		fmt.Fprintf(&b, " %s |", role)
	}
	b.WriteString("\n|---|---|---|" + strings.Repeat(":-:|", len(roles)) + "\n")
	var unused []string
	for _, p := range service.Permissions() {
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
			if r.Or != "" {
				perm += fmt.Sprintf(", or `%s` for what exists", r.Or)
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |", r.Name, kind, perm)
			for _, role := range roles {
				mark := ""
				if slices.Contains(service.Roles[role], r.Permission) {
					mark = "yes"
				}
				fmt.Fprintf(&b, " %s |", mark)
			}
			b.WriteString("\n")
		}
	}
	fmt.Fprintf(&b, "\nFlow events on NATS take `%s`, the feed (by subscription or consumer) and the in-use index `%s`, the audit trail `%s`.\n",
		service.FlowsEdit, service.CredentialsGet, service.AuditRead)
	if len(unused) > 0 {
		fmt.Fprintf(&b, "No route of this table takes %s.\n", strings.Join(unused, ", "))
	}
	return b.Bytes()
}
