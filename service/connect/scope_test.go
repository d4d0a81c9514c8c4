package connect_test

import (
	"fmt"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/connect"
	"github.com/credstream/credstream/service/stage"
)

// A key that is bound to a workspace connects accounts of that workspace alone, and finds only
// the connections that it started.
func TestBoundKeysConnect(t *testing.T) {
	s := stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.PublicURL = "http://127.0.0.1:1" })
	s.Do("default", "component.register", `{"id":"books","descriptor":{"title":"Books","hosts":["api.example.org"],"credentials":{
		"fields":{"oauth":{"viewClass":"OAuthFieldView"}},"oauth2":{"auth_uri":"http://127.0.0.1:1/auth","token_uri":"http://127.0.0.1:1/token"}}}}`)
	s.Do("default", "oauth_client.define", `{"component":"books","client_id":"c","client_secret":"s"}`)
	bound := s.Issue("default", `{"role":"ADMINISTRATOR","workspaces":["sales"]}`)
	s.CaughtUp()
	ask := func(who service.Principal, route, body, want string) string {
		t.Helper()
		answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: who, Via: "nats"}, route, []byte(body))
		if got := stage.CodeOf(err); got != want {
			t.Errorf("%s %s: %q %v, want %q", route, body, got, err, want)
		}
		started, _ := answer.(connect.Connected)
		return started.ID
	}
	theirs := ask(s.Admin, "oauth.connect", `{"component":"books","workspace":"sales"}`, "")
	own := ask(bound, "oauth.connect", `{"component":"books","workspace":"sales"}`, "")
	ask(bound, "oauth.connect", `{"component":"books","workspace":"hr"}`, "key_scope_exceeded")
	ask(bound, "oauth.connect", `{"component":"books"}`, "key_scope_exceeded")
	ask(bound, "oauth.connection", fmt.Sprintf(`{"id":%q}`, own), "")
	ask(bound, "oauth.connection", fmt.Sprintf(`{"id":%q}`, theirs), "connection_not_found")
	ask(s.Admin, "oauth.connection", fmt.Sprintf(`{"id":%q}`, own), "")
}
