package connect_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/component"
	"github.com/credstream/credstream/service/stage"
)

// Real files, where they are at hand, can all be registered. The table says what follows
// for a tenant without an OAuth client: the code of connecting an account, and of creating
// a credential with a value for each field; and whether the component says that no account
// can be connected.
func TestRealComponents(t *testing.T) {
	files, err := filepath.Glob("../../../shared/components/*.json")
	stage.OK(t, err)
	if len(files) == 0 {
		t.Skip("there are no real component descriptors beside the repository")
	}
	type answers struct {
		Connect, Create string
		CannotConnect   bool
	}
	plain := answers{"oauth_not_declared", "unverified", false}
	want := map[string]answers{
		"aws-s3-component.json":          plain,
		"google-calendar.json":           {"oauth_client_missing", "oauth_client_missing", false},
		"gspreadsheets.json":             {"oauth_client_missing", "oauth_client_missing", false},
		"hubspot.json":                   {"oauth_client_missing", "oauth_client_missing", false},
		"jira.json":                      plain,
		"magento2.json":                  plain,
		"mailchimp.json":                 plain,
		"open-api-component.json":        {"oauth_endpoints_missing", "oauth_endpoints_missing", true}, // a field that takes other means, too
		"outlook.json":                   {"oauth_endpoints_missing", "oauth_client_missing", true},
		"paylocity.json":                 {"oauth_connect_needless", "oauth_client_missing", false},
		"petstore-component-nodejs.json": plain,
		"pipedrive-component.json":       plain,
		"postgresql-component.json":      plain,
		"salesforce-component-v2.json":   {"oauth_endpoints_missing", "oauth_client_missing", true},
		"salesforce-component.json":      {"oauth_endpoints_missing", "oauth_client_missing", true},
		"sftp-component.json":            plain,
		"vimeo.json":                     {"oauth_endpoints_missing", "oauth_endpoints_missing", true},
	}
	s := stage.New(t, func(c *application.Config) { c.PublicURL = "http://127.0.0.1:1" })
	serve := func(route, body string) (any, error) {
		return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http", Confidential: true}, route, []byte(body))
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
		_, err := serve("oauth.connect", fmt.Sprintf(`{"component":%q}`, id))
		a.Connect = stage.CodeOf(err)
		var made any
		made, err = serve("credential.create", fmt.Sprintf(`{"component":%q,"keys":%s}`, id, values(t, raw)))
		if a.Create = stage.CodeOf(err); err == nil {
			a.Create = string(made.(interface{ Completed() service.Done }).Completed().Status)
		}
		got[filepath.Base(file)] = a
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// values has a value for each field of a descriptor.
func values(t *testing.T, raw []byte) []byte {
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
		if keys[name] = "x"; slices.Contains([]string{"OAuthFieldView", "HTTPAuthView"}, f.ViewClass) {
			keys[name] = map[string]any{"access_token": "a", "refresh_token": "r"}
		}
	}
	return stage.Must(json.Marshal(keys))(t)
}
