package connect_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/stage"
)

// Real files, where they are at hand, can all be registered. The table says what follows
// for a tenant without an OAuth client: the code of connecting an account, of creating
// a credential with a value for each field, and of verifying it again; whether the component
// says that no account can be connected; and the code of connecting once the tenant has defined an OAuth
// client, which supplies the endpoints if the file has none.
func TestRealComponents(t *testing.T) {
	files, err := filepath.Glob("../../../shared/components/*.json")
	stage.OK(t, err)
	if len(files) == 0 {
		t.Skip("there are no real component descriptors beside the repository")
	}
	type answers struct {
		Connect, Create, Verify string
		CannotConnect           bool
		WithClient              string
	}
	const noClient, noEndpoints = "oauth_client_missing", "oauth_endpoints_missing"
	plain := answers{"oauth_not_declared", "unverified", "unverified", false, "oauth_not_declared"}
	want := map[string]answers{
		"aws-s3-component.json":          plain,
		"google-calendar.json":           {noClient, noClient, "", false, ""},
		"gspreadsheets.json":             {noClient, noClient, "", false, ""},
		"hubspot.json":                   {noClient, noClient, "", false, ""},
		"jira.json":                      plain,
		"magento2.json":                  plain,
		"mailchimp.json":                 plain,
		"open-api-component.json":        {noEndpoints, noEndpoints, "", true, ""}, // a field that takes other means, too
		"outlook.json":                   {noEndpoints, noClient, "", true, ""},
		"paylocity.json":                 {"oauth_connect_needless", noClient, "", false, "oauth_connect_needless"},
		"petstore-component-nodejs.json": plain,
		"pipedrive-component.json":       plain,
		"postgresql-component.json":      plain,
		"salesforce-component-v2.json":   {noEndpoints, noClient, "", true, ""},
		"salesforce-component.json":      {noClient, noClient, "", false, ""},
		"sftp-component.json":            plain,
		"vimeo.json":                     {noEndpoints, noEndpoints, "", true, ""},
	}
	s := stage.New(t, func(c *application.Config) { c.PublicURL = "http://127.0.0.1:1" })
	serve := func(route, body string) (any, error) {
		return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http", Confidential: true}, route, []byte(body))
	}
	status := func(answer any, err error) string {
		if err != nil {
			return stage.CodeOf(err)
		}
		return string(answer.(interface{ Completed() service.Done }).Completed().Status)
	}
	got := map[string]answers{}
	for n, file := range files {
		raw := stage.Must(os.ReadFile(file))(t)
		id := fmt.Sprintf("real-%d", n)
		if _, err := serve("component.register", fmt.Sprintf(`{"id":%q,"descriptor":%s}`, id, raw)); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		s.CaughtUp()
		c := stage.Must(serve("component.get", fmt.Sprintf(`{"id":%q}`, id)))(t).(component.Component)
		var a answers
		a.CannotConnect = c.CannotConnect != ""
		// Those with other required fields, such as the environment of Salesforce, get a value for each.
		connect := fmt.Sprintf(`{"component":%q,"keys":%s}`, id, values(t, raw, false))
		_, err := serve("oauth.connect", connect)
		a.Connect = stage.CodeOf(err)
		made, err := serve("credential.create", fmt.Sprintf(`{"component":%q,"keys":%s}`, id, values(t, raw, true)))
		if a.Create = status(made, err); err == nil {
			a.Verify = status(serve("credential.verify", fmt.Sprintf(`{"id":%q}`, made.(interface{ Completed() service.Done }).Completed().ID)))
		}
		endpoints := ""
		if a.CannotConnect {
			endpoints = `,"auth_uri":"https://idp.example.org/auth","token_uri":"https://idp.example.org/token","scopes":"read"`
		}
		if _, err := serve("oauth_client.define", fmt.Sprintf(`{"component":%q,"client_id":"c","client_secret":"s"%s}`, id, endpoints)); err != nil {
			// A component whose file names the variables of its client needs their values instead.
			d := stage.Must(commands.ParseDescriptor(raw))(t)
			_, err = serve("component.set-env", fmt.Sprintf(`{"id":%q,"values":{%q:"c",%q:"s"}}`, id, d.ClientIDVar, d.ClientSecretVar))
			if a.Connect == noClient && err != nil {
				t.Errorf("%s: the remedy is refused: %v", file, err)
			}
		}
		s.CaughtUp()
		_, err = serve("oauth.connect", connect)
		a.WithClient = stage.CodeOf(err)
		if c := stage.Must(serve("component.get", fmt.Sprintf(`{"id":%q}`, id)))(t).(component.Component); c.CannotConnect != "" {
			t.Errorf("%s: cannot connect with an OAuth client either: %s", file, c.CannotConnect)
		}
		got[filepath.Base(file)] = a
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// values has a value for each field of a descriptor, those with tokens only if asked.
func values(t *testing.T, raw []byte, tokens bool) []byte {
	t.Helper()
	var file struct {
		Credentials struct {
			Fields map[string]struct {
				ViewClass string `json:"viewClass"`
			} `json:"fields"`
		} `json:"credentials"`
	}
	stage.OK(t, json.Unmarshal(raw, &file))
	keys := map[string]any{}
	for name, f := range file.Credentials.Fields {
		switch holds := slices.Contains([]string{"OAuthFieldView", "HTTPAuthView"}, f.ViewClass); {
		case !holds:
			keys[name] = "x"
		case tokens:
			keys[name] = map[string]any{"access_token": "a", "refresh_token": "r"}
		}
	}
	return stage.Must(json.Marshal(keys))(t)
}
