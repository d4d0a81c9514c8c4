package component_test

import (
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/stage"
)

// A new component's id differs from those of all others in more than case. Components
// that differ so from before this rule go on.
func TestComponentIDCase(t *testing.T) {
	s := stage.New(t)
	serve := func(command, body string) (any, error) {
		return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, command, []byte(body))
	}
	register := func(id string) string {
		t.Helper()
		_, err := serve("component.register", `{"id":"`+id+`","descriptor":{"title":"T"}}`)
		if err == nil {
			s.CaughtUp()
			return ""
		}
		return stage.CodeOf(err)
	}
	for _, c := range []struct{ id, code string }{
		{"Twice", ""},
		{"twice", "component_id_case"},
		{"TWICE", "component_id_case"},
		{"Twice", "component_id_taken"},
		{"twice-2", ""},
	} {
		if code := register(c.id); code != c.code {
			t.Errorf("registering %s: %q, want %q", c.id, code, c.code)
		}
	}
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
	stage.Must(s.Store.Append(t.Context(), aggregates.Component.Stream(events.System, "twice"), 0, meta,
		events.ComponentRegistered{Owner: "default", Title: "T", Descriptor: `{"title":"T"}`}))(t)
	s.CaughtUp()
	for _, id := range []string{"twice", "Twice"} {
		if code := register(id); code != "component_id_taken" {
			t.Errorf("registering %s where both exist: %q", id, code)
		}
		stage.Must(serve("component.update", `{"id":"`+id+`","descriptor":{"title":"Another"}}`))(t)
	}
}

// What another process wrote is looked at before a credential is refused for want of an
// OAuth client.
func TestClientOfAnotherProcess(t *testing.T) {
	s := stage.New(t)
	const descriptor = `{"title":"CRM","envVars":{"CLIENT":{},"SECRET":{}},"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}},
		"oauth2":{"client_id":"{{CLIENT}}","client_secret":"{{SECRET}}","auth_uri":"https://accounts.example.org/auth","token_uri":"https://accounts.example.org/token"}}}`
	s.Do("default", "component.register", `{"id":"crm","descriptor":`+descriptor+`}`)
	create := func() string {
		t.Helper()
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.create",
			[]byte(`{"component":"crm","keys":{}}`))
		return stage.CodeOf(err)
	}
	if code := create(); code != "oauth_client_missing" {
		t.Fatalf("without a client: %q", code)
	}
	stream := aggregates.Component.Stream(events.System, "crm")
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: events.NewID(), Time: time.Now(), Via: "system"}
	stage.Must(s.Store.Append(t.Context(), stream, stage.Must(s.Store.Last(t.Context(), stream))(t), meta,
		events.ComponentEnvSet{Names: []string{"CLIENT", "SECRET"}, SecretID: events.NewID()}))(t)
	if code := create(); code == "oauth_client_missing" {
		t.Error("a client of which another process was told is said to be missing")
	}
}
