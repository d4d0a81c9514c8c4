package token_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/stage"
)

// Credentials without a user go to another provider of the OAuth client only when their keys
// are entered again, and the refusal says so.
func TestClientCredentialsAtAnotherHost(t *testing.T) {
	provider := func() (base string, asked *int) {
		asked = new(int)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			*asked++
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, hour)
		}))
		t.Cleanup(server.Close)
		return server.URL, asked
	}
	before, askedBefore := provider()
	after, askedAfter := provider()
	s := stage.New(t, stage.AllowPrivate)
	serve := func(route, body string) error {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, route, []byte(body))
		return err
	}
	s.Do("default", "component.register", `{"id":"books","descriptor":{"title":"Books","useOAuthClient":true,"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"},"realm":{}},
		"oauth2":{"token_uri":"/token","grant_type":"client_credentials","token_params":{"realm":"{{realm}}"}}}}}`)
	client := s.Do("default", "oauth_client.define", fmt.Sprintf(`{"component":"books","client_id":"c","client_secret":"s","auth_uri":"%[1]s/auth","token_uri":"%[1]s/token"}`, before)).ID
	id := s.Do("default", "credential.create", `{"component":"books","keys":{"realm":"acme"}}`).ID
	// The renewal is recorded in the name of who asked for it.
	stage.Must(s.Service.Serve(t.Context(), service.Call{
		Tenant: "default", Principal: s.Admin, Via: "nats", CommandID: "r1", Correlation: "c1", Causation: "e1",
	}, "credential.refresh", fmt.Appendf(nil, `{"id":%q}`, id)))(t)
	s.CaughtUp()
	renewed := 0
	for _, e := range replay(t, s, `{"limit":1000}`) {
		if e.Type == "credstream.credential.refreshed.v1" {
			renewed++
			if e.Actor != "key:"+s.Admin.Actor.ID || e.CommandID != "r1/1" || e.CorrelationID != "c1" || e.CausationID != "e1" {
				t.Errorf("renewed by %+v", e)
			}
		}
	}
	if renewed == 0 {
		t.Error("no renewal is recorded")
	}
	stage.OK(t, serve("oauth_client.change", fmt.Sprintf(`{"id":%q,"client_secret":"s","auth_uri":"%[2]s/auth","token_uri":"%[2]s/token"}`, client, after)))
	asked := *askedBefore
	err := serve("credential.refresh", fmt.Sprintf(`{"id":%q}`, id))
	if stage.CodeOf(err) != "oauth_client_hosts_changed" || !strings.Contains(err.Error(), "Replace the keys") || *askedAfter != 0 || *askedBefore != asked {
		t.Errorf("renewed at another provider: %v, %d and %d requests", err, *askedBefore, *askedAfter)
	}
	stage.OK(t, serve("credential.replace-keys", fmt.Sprintf(`{"id":%q,"keys":{"realm":"acme"}}`, id)))
	stage.OK(t, serve("credential.refresh", fmt.Sprintf(`{"id":%q}`, id)))
	if *askedAfter == 0 || *askedBefore != asked {
		t.Errorf("after the keys were replaced: %d and %d requests", *askedBefore, *askedAfter)
	}
}

// replay returns a page of the tenant's events.
func replay(t *testing.T, s *stage.Stage, body string) []admin.ReplayedEvent {
	t.Helper()
	answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "events.replay", []byte(body)))(t)
	return answer.(admin.Replay).Events
}
