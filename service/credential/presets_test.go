package credential_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/commands/presets"
	"github.com/credstream/credstream/seal"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/stage"
	"github.com/credstream/credstream/verify"
)

// Each preset sends the documented request to the documented host, accepts what the documentation
// shows for keys that work, and refuses what it shows for others. The server is local: none of this
// was run against a vendor. KEY stands for the secret.
func TestPresets(t *testing.T) {
	basic := func(user string) string { return "Basic " + user }
	type documented struct {
		keys    string // besides the tokens; BASE is the server
		request string
		header  string // Authorization when empty
		value   string
	}
	const token = `"token":"KEY"`
	want := map[string]documented{
		"airtable":        {token, "GET api.airtable.com/v0/meta/whoami", "", "Bearer KEY"},
		"asana":           {token, "GET app.asana.com/api/1.0/users/me", "", "Bearer KEY"},
		"dropbox":         {"", "POST api.dropboxapi.com/2/check/user", "", "Bearer KEY"},
		"github":          {token, "GET api.github.com/user", "", "Bearer KEY"},
		"gitlab":          {token + `,"baseUrl":"BASE/gitlab/"`, "GET BASE/gitlab/api/v4/user", "PRIVATE-TOKEN", "KEY"},
		"google":          {"", "GET openidconnect.googleapis.com/v1/userinfo", "", "Bearer KEY"},
		"hubspot":         {token, "GET api.hubapi.com/account-info/v3/details", "", "Bearer KEY"},
		"intercom":        {token, "GET api.intercom.io/me", "", "Bearer KEY"},
		"jira":            {`"baseUrl":"BASE","email":"ann@example.org","apiToken":"KEY"`, "GET BASE/rest/api/2/myself", "", basic("ann@example.org:KEY")},
		"mailchimp":       {`"apiKey":"KEY-us6"`, "GET us6.api.mailchimp.com/3.0/ping", "", basic("credstream:KEY-us6")},
		"microsoft-graph": {"", "GET graph.microsoft.com/v1.0/me", "", "Bearer KEY"},
		"notion":          {token, "GET api.notion.com/v1/users/me", "", "Bearer KEY"},
		"pipedrive":       {`"companyDomain":"example","token":"KEY"`, "GET example.pipedrive.com/api/v1/users/me", "X-Api-Token", "KEY"},
		"quickbooks":      {`"realmId":"77"`, "GET quickbooks.api.intuit.com/v3/company/77/companyinfo/77", "", "Bearer KEY"},
		"salesforce":      {`"instanceUrl":"BASE"`, "GET BASE/services/oauth2/userinfo", "", "Bearer KEY"},
		"sendgrid":        {`"apiKey":"KEY"`, "GET api.sendgrid.com/v3/scopes", "", "Bearer KEY"},
		"shopify":         {`"shop":"example","accessToken":"KEY"`, "GET example.myshopify.com/admin/oauth/access_scopes.json", "X-Shopify-Access-Token", "KEY"},
		"slack":           {token, "POST slack.com/api/auth.test", "", "Bearer KEY"},
		"stripe":          {`"secretKey":"KEY"`, "GET api.stripe.com/v1/balance", "", "Bearer KEY"},
		"trello":          {`"apiKey":"abc","token":"KEY"`, "GET api.trello.com/1/members/me", "", `OAuth oauth_consumer_key="abc", oauth_token="KEY"`},
		"twilio":          {`"accountSid":"AC1","authToken":"KEY"`, "GET api.twilio.com/2010-04-01/Accounts/AC1.json", "", basic("AC1:KEY")},
		"xero":            {"", "GET api.xero.com/connections", "", "Bearer KEY"},
		"zendesk":         {`"subdomain":"example","email":"ann@example.org","apiToken":"KEY"`, "GET example.zendesk.com/api/v2/users/me.json", "", basic("ann@example.org/token:KEY")},
		"zoho":            {`"apiDomain":"BASE"`, "GET BASE/crm/v6/users?type=CurrentUser", "", "Zoho-oauthtoken KEY"},
		"zoom":            {"", "GET api.zoom.us/v2/users/me", "", "Bearer KEY"},
	}
	var names []string
	for _, p := range presets.All() {
		names = append(names, p.Name)
	}
	if !slices.Equal(names, slices.Sorted(maps.Keys(want))) {
		t.Fatalf("the table has other presets than the folder: %v", names)
	}
	s := stage.New(t, stage.AllowPrivate)
	for _, p := range presets.All() {
		t.Run(p.Name, func(t *testing.T) {
			c := want[p.Name]
			for part, source := range map[string]string{"request": p.Sources.Request, "authentication": p.Sources.Authentication, "refusal": p.Sources.Refusal} {
				if u, err := url.Parse(source); err != nil || u.Scheme != "https" || u.Host == "" {
					t.Errorf("the source of the %s is %q", part, source)
				}
			}
			s.Do("default", "component.register", fmt.Sprintf(`{"id":"real-%s","descriptor":%s}`, p.Name, p.Descriptor))

			var secret, got string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				if r.URL.Path == "/test/token" {
					fmt.Fprintf(w, `{"access_token":%q,"refresh_token":"canary-refresh","expires_in":3600}`, secret)
					return
				}
				header := "Authorization"
				if c.header != "" {
					header = c.header
				}
				value := r.Header.Get(header)
				if encoded, ok := strings.CutPrefix(value, "Basic "); ok {
					decoded, _ := base64.StdEncoding.DecodeString(encoded)
					value = "Basic " + string(decoded)
				}
				got = r.Method + " " + r.URL.RequestURI() + " " + strings.ReplaceAll(value, secret, "KEY")
				answer := p.Refused
				if secret == "canary-good" {
					answer = p.Accepted
				}
				w.WriteHeader(answer.Status)
				var text string
				if json.Unmarshal(answer.Body, &text) == nil {
					_, _ = io.WriteString(w, text)
					return
				}
				_, _ = w.Write(answer.Body)
			}))
			t.Cleanup(server.Close)

			// The same file with the local server in place of the vendor's.
			var file map[string]any
			stage.OK(t, json.Unmarshal(p.Descriptor, &file))
			probe := file["verification"].(map[string]any)["http"].(map[string]any)
			host, path := "BASE", ""
			if address := probe["url"].(string); strings.HasPrefix(address, "{{") {
				probe["allow_http"] = true
			} else {
				rest := strings.TrimPrefix(address, "https://")
				i := strings.IndexByte(rest, '/')
				host, path = rest[:i], rest[i:]
				probe["url"], file["hosts"] = server.URL+path, []string{"127.0.0.1"}
			}
			keys := "{" + strings.ReplaceAll(c.keys, "BASE", server.URL)
			if block, ok := file["oauth2"].(map[string]any); ok {
				for _, endpoint := range []string{"auth_uri", "token_uri", "revocation_uri"} {
					if p.Sources.OAuth2 == "" || block[endpoint] == nil && endpoint != "revocation_uri" {
						t.Errorf("%s or the source of the oauth2 block is missing", endpoint)
					}
					block[endpoint] = server.URL + "/test/token"
				}
				if c.keys != "" {
					keys += ","
				}
				keys += `"oauth":{"access_token":"KEY","refresh_token":"canary-old","expires_in":3600}`
			}
			keys += "}"
			id := "local-" + p.Name
			s.Do("default", "component.register", fmt.Sprintf(`{"id":%q,"descriptor":%s}`, id, stage.Must(json.Marshal(file))(t)))
			if file["oauth2"] != nil {
				s.Do("default", "oauth_client.define", fmt.Sprintf(`{"component":%q,"client_id":"c","client_secret":"s"}`, id))
			}
			create := func(key string) error {
				secret = key
				_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.create",
					fmt.Appendf(nil, `{"component":%q,"keys":%s}`, id, strings.ReplaceAll(keys, "KEY", key)))
				return err
			}
			stage.OK(t, create("canary-good"))
			filled := stage.Must(verify.Fill(host, func(name string) (seal.Secret, bool) {
				return stage.Must(seal.ParseFields([]byte(keys)))(t).Text(name)
			}))(t)
			method, rest, _ := strings.Cut(got, " ")
			sent := method + " " + filled + rest
			if wanted := c.request + " " + c.value; sent != wanted {
				t.Errorf("sent %s, want %s", sent, wanted)
			}
			err := create("canary-bad")
			if stage.CodeOf(err) != "credential_verification_failed" || strings.Contains(err.Error(), "canary") {
				t.Fatalf("keys that the vendor refuses: %v", err)
			}
			if strings.Contains(err.Error(), "(status") { // a person reads which keys were refused
				t.Errorf("the refusal has no sentence of its own: %v", err)
			}
		})
	}
	if _, err := presets.Get("nothing"); stage.CodeOf(err) != "component_preset_not_found" {
		t.Errorf("an unknown preset: %v", err)
	}
	if p, err := presets.Get("slack"); err != nil || !bytes.Contains(p.Descriptor, []byte("auth.test")) {
		t.Errorf("%+v, %v", p, err)
	}
}
