package credential_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/stage"
)

// APIs as they are: each row is the way in which one was seen to answer a dry request, with
// the conditions of a component, and what must follow.
func TestProbePersonalities(t *testing.T) {
	s := stage.New(t, stage.AllowPrivate)
	const slack = `"json":[{"pointer":"/ok","equals":true,"says":"Slack did not accept this token."}]`
	for n, c := range []struct {
		name, expect string
		status       int
		body         string
		says, kind   string // of the refusal and its outcome; "" where the credential is verified
	}{
		{"Slack: a token that is wrong", slack, 200, `{"ok":false,"error":"invalid_auth"}`, "Slack did not accept this token.", "content"},
		{"Slack: a token that is good", slack, 200, `{"ok":true}`, "", ""},
		{"the status comes first", slack, 401, `{"ok":true}`, "The API rejected the keys (status 401).", "4xx"},
		{"another status of success", `"status":[404],` + slack, 404, `{"ok":true}`, "", ""},
		{"one of", `"json":[{"pointer":"/user/role","one_of":["admin","owner"]}]`, 200, `{"user":{"role":"guest"}}`, "its response says that the keys do not work", "content"},
		{"matches", `"json":[{"pointer":"/scopes/0","matches":"^pets(:|$)"}]`, 200, `{"scopes":["pets:read"]}`, "", ""},
		{"exists", `"json":[{"pointer":"/errors","exists":false,"says":"The API reports an error."}]`, 200, `{"errors":[{}]}`, "The API reports an error.", "content"},
		{"the second of two", `"json":[{"pointer":"/a","equals":1},{"pointer":"/b","equals":null,"says":"B."}]`, 200, `{"a":1,"b":2}`, "B.", "content"},
		{"a page of login", slack, 200, `<html>Sign in`, "Slack did not accept this token.", "content"},
		{"a text", `"text":[{"contains":"<authenticated>true","says":"Not signed in."}]`, 200, `<r><authenticated>false</authenticated></r>`, "Not signed in.", "content"},
		{"a text that is there", `"text":[{"contains":"<authenticated>true"}]`, 200, `<r><authenticated>true</authenticated></r>`, "", ""},
		{"too long to be checked", slack, 200, `{"pad":"` + strings.Repeat("x", 64<<10) + `","ok":true}`, "larger than 64 KiB", "too_large"},
		{"the key itself in the answer", slack, 200, `{"ok":false,"error":"canary-key is wrong"}`, "Slack did not accept this token.", "content"},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				fmt.Fprint(w, c.body)
			}))
			t.Cleanup(server.Close)
			at := stage.Must(url.Parse(server.URL))(t)
			id := fmt.Sprintf("api-%d", n)
			s.Do("default", "component.register", fmt.Sprintf(`{"id":%q,"descriptor":{"title":"T","hosts":[%q],"credentials":{"fields":{"key":{}}},
				"verification":{"http":{"url":%q,"headers":{"Authorization":"Bearer {{key}}"},"expect":{%s}}}}}`, id, at.Hostname(), server.URL, c.expect))
			_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.create",
				fmt.Appendf(nil, `{"component":%q,"keys":{"key":"canary-key"}}`, id))
			if c.says == "" {
				stage.OK(t, err)
				return
			}
			outcome, _ := fault.Of(err).Details.(map[string]string)
			if stage.CodeOf(err) != "credential_verification_failed" || !strings.Contains(err.Error(), c.says) || outcome["outcome"] != c.kind {
				t.Errorf("%v, %v, want %q and %s", err, outcome, c.says, c.kind)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the refusal repeats the key: %v", err)
			}
		})
	}
	for expect, at := range map[string]string{
		`"json":[{"pointer":"ok","equals":true}]`:                                  "/verification/http/expect/json/0/pointer",
		`"json":[{"pointer":"/ok~2","equals":true}]`:                               "/verification/http/expect/json/0/pointer",
		`"json":[{"pointer":"/ok","matches":"(a"}]`:                                "/verification/http/expect/json/0/matches",
		`"json":[{"pointer":"/ok","matches":"` + strings.Repeat("a?", 101) + `"}]`: "/verification/http/expect/json/0/matches",
		`"json":[{"pointer":"/ok"}]`:                                               "/verification/http/expect/json/0",
		`"json":[{"pointer":"/ok","equals":1,"exists":true}]`:                      "/verification/http/expect/json/0",
		`"json":[{"pointer":"/ok","equals":1,"says":"{{key}}"}]`:                   "/verification/http/expect/json/0/says",
		`"json":[{"pointer":"/ok","equals":1,"Says":"typing error"}]`:              "/verification/http/expect/json/0",
		`"text":[{"contains":""}]`:                                                 "/verification/http/expect/text/0/contains",
	} {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "component.register",
			fmt.Appendf(nil, `{"id":"refused","descriptor":{"title":"T","hosts":["api.example.org"],"credentials":{"fields":{"key":{}}},
				"verification":{"http":{"url":"https://api.example.org/{{key}}","expect":{%s}}}}}`, expect))
		if got := fault.Of(err); stage.CodeOf(err) != "component_descriptor_invalid" || !strings.HasPrefix(got.Pointer, "/descriptor"+at) {
			t.Errorf("%s: %v at %q", expect, err, got)
		}
	}
}
