package app

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// curls are calls of the elastic.io v2 surface about one kind of resource, as people
// type them. The shell puts in what stands behind $; ID is what the first call made.
type curls struct {
	resource string
	lines    []curlLine
}

type curlLine struct {
	line   string // for the shell
	status string
	holds  string // somewhere in the answer
	found  bool   // the resource is the one item of the list that is answered
	media  string // of the answer; that of $MEDIA when ""
}

// TestVendorCurls runs the calls with a real curl, in both media types.
func TestVendorCurls(t *testing.T) {
	for _, program := range []string{"sh", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skip(program + " is not on this machine, so the calls are not tried with it.")
		}
	}
	u := bring(t, t.TempDir())
	pets := newPetstore(t, "right-canary")
	must(t, u.command("component.register", "", map[string]any{"id": "petstore", "descriptor": verified(t, pets)}, nil))
	registerAs(t, u.api, "sheets", sheets)

	const api, login = "application/vnd.api+json", ` -u "$EMAIL:$APIKEY"`
	const accept, send = ` \
		-H "Accept: $MEDIA"`, ` \
		-H "Accept: $MEDIA" \
		-H "Content-Type: $MEDIA" -d '`
	const client = `{
		"data": {
			"type": "oauth-client",
			"attributes": { "client_id": "the-client", "client_secret": "canary-secret" },
			"relationships": { "component": { "data": { "id": "sheets", "type": "component" } } }
		}
	}'`
	const credential = `{
		"data": {
			"type": "credential",
			"attributes": { "name": "Pets", "keys": { "apiKey": "right-canary" } },
			"relationships": {
				"component": { "data": { "id": "petstore", "type": "component" } },
				"workspace": { "data": { "id": "573d", "type": "workspace" } },
				"vpn_agent": { "data": { "id": "5a09", "type": "vpn-agent" } }
			}
		}
	}'`
	all := []curls{{resource: "oauth-client", lines: []curlLine{
		{line: `curl -X POST "$HOST/v2/tenants/$TENANT_ID/oauth-clients"` + login + send + client, status: "201", holds: `"meta":{}`},
		{line: `curl "$HOST/v2/tenants/$TENANT_ID/oauth-clients"` + login + accept, status: "200", found: true},
		{line: `curl -g "$HOST/v2/tenants/$TENANT_ID/oauth-clients?filter[component]=sheets"` + login + accept, status: "200", found: true},
		{line: `curl -g "$HOST/v2/tenants/$TENANT_ID/oauth-clients?filter[component]="` + login + accept, status: "200", found: true},
		{line: `curl -g "$HOST/v2/tenants/$TENANT_ID/oauth-clients/?filter[component]=sheets"` + login + accept, status: "200", found: true},
		{line: `curl -g "$HOST/v2/tenants/$TENANT_ID/oauth-clients/?filter[component]="` + login, status: "200", found: true, media: api},
		{line: `curl "$HOST/v2/tenants/$TENANT_ID/oauth-clients?filter%5Bcomponent%5D=petstore"` + login + accept, status: "200", holds: `"data":[]`},
		{line: `curl "$HOST/v2/tenants/$TENANT_ID/oauth-clients/$ID"` + login + accept, status: "200", holds: `"client_secret":"********"`},
		{line: `curl -X PATCH "$HOST/v2/tenants/$TENANT_ID/oauth-clients/$ID"` + login + send + strings.Replace(client, "the-client", "another-client", 1), status: "200", holds: `"client_id":"another-client"`},
		{line: `curl -X DELETE "$HOST/v2/tenants/$TENANT_ID/oauth-clients/$ID"` + login, status: "204"},
		{line: `curl "$HOST/v2/tenants/$TENANT_ID/oauth-clients/$ID"` + login + accept, status: "404", holds: `"code":"oauth_client_not_found"`},
	}}, {resource: "credential", lines: []curlLine{
		{line: `curl -X POST "$HOST/v2/credentials"` + login + send + credential, status: "201", holds: `"vpn_agent":{"data":{"id":"5a09","type":"vpn-agent"}`},
		{line: `curl "$HOST/v2/credentials?workspace_id=573d"` + login + accept, status: "200", found: true, holds: `"keys":{"apiKey":"********"}`},
		{line: `curl -g "$HOST/v2/credentials?workspace_id=573d&filter[component]=petstore"` + login + accept, status: "200", found: true},
		{line: `curl -g "$HOST/v2/credentials?workspace_id=573d&filter[component]="` + login + accept, status: "200", found: true},
		{line: `curl -g "$HOST/v2/credentials/?workspace_id=573d&filter[component]=petstore"` + login, status: "200", found: true, media: api},
		{line: `curl "$HOST/v2/credentials?workspace_id=573d&filter%5Bcomponent%5D=sheets"` + login + accept, status: "200", holds: `"data":[]`},
		{line: `curl "$HOST/v2/credentials/$ID"` + login + accept, status: "200", holds: `"name":"Pets"`},
		{line: `curl -X PATCH "$HOST/v2/credentials/$ID"` + login + send + `{
			"data": {
				"id": "'$ID'",
				"type": "credential",
				"attributes": { "name": "More pets", "keys": { "apiKey": "right-canary" } }
			}
		}'`, status: "200", holds: `"name":"More pets"`},
		{line: `curl -X PATCH "$HOST/v2/credentials/$ID"` + login + send + `{ "data": { "attributes": { "keys": { "apiKey": "wrong-canary" } } } }'`, status: "422", holds: `"code":"credential_verification_failed"`},
		{line: `curl -X DELETE "$HOST/v2/credentials/$ID"` + login, status: "204"},
		{line: `curl "$HOST/v2/credentials/$ID"` + login + accept, status: "404", holds: `"code":"credential_not_found"`},
	}}}
	home := t.TempDir() // nobody's settings of curl
	for _, media := range []string{"application/json", api} {
		for _, c := range all {
			id := ""
			for _, l := range c.lines {
				cmd := exec.CommandContext(t.Context(), "sh", "-c", l.line+` -sS -w '\n%{http_code} %{content_type}'`)
				cmd.Env = []string{
					"PATH=" + os.Getenv("PATH"), "HOME=" + home, "HOST=" + u.base, "TENANT_ID=default", "EMAIL=somebody@example.com",
					"APIKEY=" + adminKey, "MEDIA=" + media, "ID=" + id,
				}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%s: %v: %s", l.line, err, out)
				}
				end := strings.LastIndexByte(string(out), '\n')
				body, said := string(out[:end]), strings.TrimSpace(string(out[end+1:]))
				want := l.status
				switch {
				case l.media != "":
					want += " " + l.media
				case l.status != "204":
					want += " " + media
				}
				if said != want || !strings.Contains(body, l.holds) || strings.Contains(body, "canary") {
					t.Errorf("%s\nanswers %s %s, want %s with %s", l.line, said, body, want, l.holds)
				}
				if id == "" {
					var made struct{ Data struct{ ID, Type string } }
					must(t, json.Unmarshal([]byte(body), &made))
					if id = made.Data.ID; id == "" || made.Data.Type != c.resource {
						t.Fatalf("the resource made is %s", body)
					}
				}
				if l.found {
					var list struct{ Data []struct{ ID, Type string } }
					if err := json.Unmarshal([]byte(body), &list); err != nil || len(list.Data) != 1 || list.Data[0].ID != id {
						t.Errorf("%s\nlists %s, want the one with id %s", l.line, body, id)
					}
				}
			}
		}
	}
}
