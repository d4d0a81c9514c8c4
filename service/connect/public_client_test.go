package connect_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/stage"
)

// A client without a secret approves new hosts by its id, and one whose component stops using the
// secret sends it to nobody.
func TestPublicClients(t *testing.T) {
	var requests []string
	provider := func() string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			dump, _ := httputil.DumpRequest(r, true)
			requests = append(requests, string(dump))
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token":"a","refresh_token":"r","expires_in":600}`)
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	first, second := provider(), provider()
	s := stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.PublicURL = "http://127.0.0.1:1" })
	serve := func(route, body string) (any, error) {
		s.CaughtUp()
		return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "nats", Confidential: true}, route, []byte(body))
	}
	descriptor := func(at, method string) string {
		return fmt.Sprintf(`{"title":"Books","useOAuthClient":true,"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}},
			"oauth2":{"auth_uri":"%[1]s/auth","token_uri":"%[1]s/token","token_endpoint_auth_method":%[2]q}}}`, at, method)
	}
	renew := func(component string) error {
		made, err := serve("credential.create", fmt.Sprintf(`{"component":%q,"keys":{"oauth":{"access_token":"a","refresh_token":"r","expires_in":600}}}`, component))
		if err != nil {
			return err
		}
		_, err = serve("credential.refresh", fmt.Sprintf(`{"id":%q}`, made.(interface{ Completed() service.Done }).Completed().ID))
		return err
	}
	for component, c := range map[string]struct{ before, after, secret, code string }{
		"public":       {"none", "none", "", ""},
		"confidential": {"client_secret_basic", "client_secret_basic", `,"client_secret":"canary-secret"`, "oauth_client_hosts_changed"},
		"changed":      {"client_secret_basic", "none", `,"client_secret":"canary-secret"`, "oauth_client_hosts_changed"},
	} {
		t.Run(component, func(t *testing.T) {
			s.Do("default", "component.register", fmt.Sprintf(`{"id":%q,"descriptor":%s}`, component, descriptor(first, c.before)))
			client := s.Do("default", "oauth_client.define", fmt.Sprintf(`{"component":%q,"client_id":"c"%s}`, component, c.secret))
			stage.OK(t, renew(component))
			s.Do("default", "component.update", fmt.Sprintf(`{"id":%q,"descriptor":%s}`, component, descriptor(second, c.after)))
			requests = nil
			if err := renew(component); stage.CodeOf(err) != "oauth_client_hosts_changed" || len(requests) != 0 {
				t.Fatalf("another host: %v, %d requests", err, len(requests))
			}
			stage.Must(serve("oauth_client.change", fmt.Sprintf(`{"id":%q,"client_id":"c"}`, client.ID)))(t)
			if err := renew(component); stage.CodeOf(err) != c.code {
				t.Errorf("after the id was entered again: %v, want %q", err, c.code)
			}
			if c.secret != "" {
				stage.Must(serve("oauth_client.change", fmt.Sprintf(`{"id":%q%s}`, client.ID, c.secret)))(t)
				stage.OK(t, renew(component))
			}
			if len(requests) == 0 {
				t.Fatal("no request came to the provider")
			}
			for _, r := range requests {
				if c.after == "none" && (strings.Contains(r, "canary-secret") || strings.Contains(r, "Authorization")) {
					t.Errorf("a public client sends a secret: %s", r)
				}
			}
		})
	}
}
