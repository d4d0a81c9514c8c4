package application_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/flow"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
)

// everything are the permissions of a key that a test binds to some credentials.
var everything = func() string {
	var all []permission.Permission
	for _, p := range permission.Permissions() {
		all = append(all, p.Permission)
	}
	text, _ := json.Marshal(all)
	return `"role":"ADMINISTRATOR","permissions":` + string(text)
}()

// scoped is a service with credentials inside and outside the scope of keys.
type scoped struct {
	*stage.Stage
	t             *testing.T
	inside        string   // of the component plain and the workspace sales
	outside       []string // of another component, of another workspace
	whole, narrow service.Principal
	hidden        []string // what the narrow key must not be told
	mixed, flow   string   // a flow with credentials inside and outside, one with that inside
	theirs        string   // a flow outside
}

func newScoped(t *testing.T, options ...func(*application.Config)) *scoped {
	s := &scoped{Stage: stage.New(t, options...), t: t, mixed: "flow-mixed", flow: "flow-inside", theirs: "hidden-flow"}
	s.Do("default", "component.register", `{"id":"other","descriptor":{"title":"Other","credentials":{"fields":{"apiKey":{"viewClass":"PasswordFieldView"}}}}}`)
	create := func(component, workspace, name string) string {
		keys := `{"apiKey":"k"}`
		if component == "plain" {
			keys = `{"apiKey":"k","region":"eu"}`
		}
		return s.Do("default", "credential.create", fmt.Sprintf(`{"component":%q,"workspace":%q,"name":%q,"description":%q,"keys":%s}`, component, workspace, name, name, keys)).ID
	}
	s.inside = create("plain", "sales", "visible")
	s.outside = []string{create("other", "sales", "hidden-1"), create("plain", "hr", "hidden-2")}
	s.whole = s.Issue("default", "{"+everything+`,"tenants":["*"]}`)
	s.narrow = s.Issue("default", "{"+everything+`,"tenants":["*"],"components":["plain"],"workspaces":["sales"]}`)
	step := func(credential, component string) string {
		return fmt.Sprintf(`{"id":"step-%s","component":%q,"credential":%q}`, credential, component, credential)
	}
	for name, steps := range map[string][]string{
		s.mixed: {step(s.inside, "plain"), step(s.outside[0], "other")}, s.flow: {step(s.inside, "plain")}, s.theirs: {step(s.outside[0], "other"), step(s.outside[1], "plain")},
	} {
		s.Do("default", "flow.bind", fmt.Sprintf(`{"flow":%q,"steps":[%s]}`, name, strings.Join(steps, ",")))
	}
	for _, id := range append([]string{s.inside}, s.outside...) {
		_, err := s.serve(s.whole, "credential.resolve", fmt.Sprintf(`{"id":%q,"cleartext":true}`, id))
		stage.OK(t, err)
	}
	s.CaughtUp()
	s.hidden = append([]string{"hidden-"}, s.outside...)
	return s
}

func (s *scoped) serve(who service.Principal, route, body string) (string, error) {
	answer, err := s.Service.Serve(s.t.Context(), service.Call{Tenant: "default", Principal: who, Via: "http", Confidential: true}, route, []byte(body))
	if err != nil {
		return "", err
	}
	text := stage.Must(json.Marshal(answer))(s.t)
	return string(text), nil
}

// refused is what a caller is told of a refusal.
func refused(err error) fault.Error {
	if err == nil {
		return fault.Error{}
	}
	f := *fault.Of(err)
	f.Details = nil
	return f
}

// Every route of the table, asked with a key that is bound to some credentials: what concerns
// the tenant is refused; a credential outside answers as one that does not exist; lists and
// answers hold nothing of what is outside. A route that is not named here fails the test.
func TestBoundKeyMatrix(t *testing.T) {
	s := newScoped(t)
	// The rest of requests that name one credential, and whether the one inside obeys.
	one := map[string]string{
		"credential.get": `{"id":%q}`, "credential.history": `{"id":%q}`, "credential.resolve": `{"id":%q,"cleartext":true}`, "throttle.take": `{"credential":%q,"tokens":1}`,
		"credential.rename": `{"id":%q,"name":"visible"}`, "credential.set-vpn-agent": `{"id":%q,"vpn_agent":"v"}`, "credential.set-description": `{"id":%q,"description":"d"}`,
		"credential.assign-throttle-policy": `{"id":%q}`, "credential.update": `{"id":%q,"description":"e"}`, "credential.verify": `{"id":%q}`, "credential.reveal": `{"id":%q}`,
		"credential.replace-keys": `{"id":%q,"keys":{"apiKey":"l","region":"eu"}}`, "credential.revert": `{"id":%q,"version":1}`,
		"credential.refresh": `{"id":%q}`, "credential.revoke": `{"id":%q}`, "oauth.connect": `{"credential":%q}`,
		"auth_secret.get": `{"workspace":"sales","id":%q}`, "auth_secret.rename": `{"workspace":"sales","id":%q,"name":"visible"}`, "auth_secret.refresh": `{"workspace":"sales","id":%q}`,
		"auth_secret.replace-keys": `{"workspace":"sales","id":%q,"keys":{"apiKey":"m","region":"eu"}}`,
		"auth_secret.delete":       `{"workspace":"sales","id":%q}`, "credential.delete": `{"id":%q}`,
	}
	// Requests of all that there is, and what the answer to a bound key has; "" for a refusal.
	bounded := map[string]struct{ body, has string }{
		"component.get": {`{"id":"plain"}`, `"credentials":1`}, "component.list": {`{}`, `"credentials":0`},
		"credential.list": {`{}`, s.inside}, "credential.search": {`{}`, `"total":1`}, "credential.export": {`{}`, `"total":1`}, "credential.counts": {`{}`, `"total":1`}, "expiry.list": {`{}`, `"expiries":[]`},
		"auth_secret.list": {`{"workspace":"sales"}`, `"total":1`}, "lease.list": {`{}`, s.inside}, "access.replay": {`{}`, s.inside},
		"flow.get": {`{"id":"flow-mixed"}`, s.inside}, "flow.list": {`{}`, s.flow}, "flow.in-use": {`{}`, s.inside},
		"events.changes": {`{"limit":1000}`, s.inside}, "events.replay": {`{"limit":1000}`, s.inside}, "api_key.list": {`{}`, s.narrow.Actor.ID},
		"flow.bind":    {fmt.Sprintf(`{"flow":"f","steps":[{"id":"s","component":"other","credential":%q}]}`, s.outside[0]), ""},
		"flow.report":  {`{"id":"hidden-flow","change":"deleted","revision":9}`, ""},
		"flow.release": {`{"flow":"hidden-flow"}`, ""}, "oauth.complete": {`{"connection":"c","confirm":"c"}`, ""}, "oauth.connection": {`{"id":"c"}`, ""},
		"credential.create": {`{"component":"other","workspace":"sales","keys":{"apiKey":"k"}}`, ""}, "auth_secret.create": {`{"component":"plain","workspace":"hr","keys":{"apiKey":"k","region":"eu"}}`, ""},
		"credential.create-many": {`{"credentials":[{"component":"other","workspace":"sales","keys":{"apiKey":"k"}}]}`, "key_scope_exceeded"},
		"credential.update-many": {`{"filter":{},"update":{"description":"touched"}}`, s.inside},
		"credential.delete-many": {`{"ids":["unknown"]}`, "credential_not_found"},
		"api_key.issue":          {`{"role":"OPERATOR","components":["other"]}`, ""}, "api_key.revoke": {fmt.Sprintf(`{"id":%q}`, s.whole.Actor.ID), ""},
	}
	open := []string{"oauth.redirect-uri", "throttle_policy.get", "throttle_policy.list", "role.list", "service.key"}

	var inside []func()
	for _, r := range application.Routes() {
		switch r.Reach {
		case service.TenantWide:
			if _, err := s.serve(s.narrow, r.Name, "{}"); stage.CodeOf(err) != "key_scope_tenantwide" || fault.Of(err).Kind != fault.Denied {
				t.Errorf("%s: %v", r.Name, err)
			}
		case service.OneCredential:
			body, known := one[r.Name]
			if !known {
				t.Errorf("%s: how does it answer a bound key that names a credential outside?", r.Name)
				continue
			}
			_, err := s.serve(s.narrow, r.Name, fmt.Sprintf(body, "unknown"))
			unknown := refused(err)
			if unknown.Code != "credential_not_found" {
				t.Errorf("%s: an unknown credential: %v", r.Name, err)
			}
			for _, id := range s.outside {
				if answer, err := s.serve(s.narrow, r.Name, fmt.Sprintf(body, id)); refused(err) != unknown {
					t.Errorf("%s: outside answers %s %v, unknown %v", r.Name, answer, err, unknown)
				}
			}
			inside = append(inside, func() { // last: it may be deleted
				_, err := s.serve(s.narrow, r.Name, fmt.Sprintf(body, s.inside))
				if code := stage.CodeOf(err); code == "credential_not_found" || strings.HasPrefix(code, "key_scope") || code == "permission_denied" || code == "internal" {
					t.Errorf("%s: inside: %v", r.Name, err)
				}
			})
		case service.Bounded:
			ask, known := bounded[r.Name]
			if !known {
				t.Errorf("%s: what does it tell a bound key?", r.Name)
				continue
			}
			answer, err := s.serve(s.narrow, r.Name, ask.body)
			if (err != nil) != (ask.has == "") || !strings.Contains(answer, ask.has) {
				t.Errorf("%s answers %s %v, without %q", r.Name, answer, err, ask.has)
			}
			for _, hidden := range s.hidden {
				if strings.Contains(answer, hidden) {
					t.Errorf("%s tells of %s: %s", r.Name, hidden, answer)
				}
			}
		case service.Open:
			if !slices.Contains(open, r.Name) {
				t.Errorf("%s: does it concern no credential?", r.Name)
			}
		}
	}
	for _, of := range inside {
		of()
	}
	for _, id := range s.outside { // nothing has touched them
		got, err := s.serve(s.whole, "credential.history", fmt.Sprintf(`{"id":%q}`, id))
		if err != nil || strings.Contains(got, "key:"+s.narrow.Actor.ID) {
			t.Errorf("the key has changed %s: %s %v", id, got, err)
		}
	}
}

// What is outside is not reached by a detour.
func TestBoundKeyDetours(t *testing.T) {
	s := newScoped(t)
	for _, tc := range []struct{ what, route, body, want string }{
		{"the id of another", "credential.create", fmt.Sprintf(`{"id":%q,"component":"plain","workspace":"sales","keys":{"apiKey":"k","region":"eu"}}`, s.outside[0]), "key_scope_exceeded"},
		{"an id that is free", "credential.create", `{"id":"free","component":"plain","workspace":"sales","keys":{"apiKey":"k","region":"eu"}}`, "key_scope_exceeded"},
		{"a free type named as the component", "credential.create", `{"type":"Plain","workspace":"sales","keys":{"apiKey":"k"}}`, "key_scope_exceeded"},
		{"for a step of a flow outside", "credential.create", `{"component":"plain","workspace":"sales","keys":{"apiKey":"k","region":"eu"},"for":{"flow":"hidden-flow","step":"x"}}`, "key_scope_exceeded"},
		{"binding one by a new step", "flow.bind", fmt.Sprintf(`{"flow":"new","steps":[{"id":"s","component":"other","credential":%q}]}`, s.outside[0]), "credential_not_found"},
		{"binding one that is unknown", "flow.bind", `{"flow":"new","steps":[{"id":"s","component":"other","credential":"unknown"}]}`, "credential_not_found"},
		{"binding a flow that uses others", "flow.bind", fmt.Sprintf(`{"flow":"flow-mixed","steps":[{"id":"s","component":"plain","credential":%q}]}`, s.inside), "key_scope_exceeded"},
		{"releasing a flow that uses others", "flow.release", `{"flow":"flow-mixed"}`, "flow_not_found"},
		{"a flow outside", "flow.get", `{"id":"hidden-flow"}`, "flow_not_found"},
		{"a wider key", "api_key.issue", `{"role":"OPERATOR","workspaces":["sales","hr"]}`, "api_key_exceeds_issuer"},
		{"a wider key than one's own, revoked", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, s.whole.Actor.ID), "api_key_not_found"},
	} {
		if answer, err := s.serve(s.narrow, tc.route, tc.body); stage.CodeOf(err) != tc.want {
			t.Errorf("%s: %s %v, want %s", tc.what, answer, err, tc.want)
		}
	}

	for what, body := range map[string]string{
		"flow.list": fmt.Sprintf(`{"credential":%q}`, s.outside[0]), "access.replay": fmt.Sprintf(`{"credential":%q}`, s.outside[0]),
		"events.replay": fmt.Sprintf(`{"stream":"credential.%s"}`, s.outside[0]), "credential.search": fmt.Sprintf(`{"ids":[%q]}`, s.outside[0]),
		"credential.list": `{"workspace":"hr"}`, "credential.counts": `{"component":"other"}`,
	} {
		got, err := s.serve(s.narrow, what, body)
		if err != nil || strings.Contains(got, s.outside[0]) || strings.Contains(got, s.mixed) || strings.Contains(got, `"component":"other"`) {
			t.Errorf("%s %s: %s %v", what, body, got, err)
		}
	}
	// A filter does not tell what the steps outside are of a flow that is seen.
	_, err := s.serve(s.whole, "flow.report", fmt.Sprintf(`{"change":"created","id":"reported","revision":1,"steps":[{"id":"a","component":"plain","credential":%q},{"id":"b","component":"other","credential":%q}]}`, s.inside, s.outside[0]))
	stage.OK(t, err)
	s.CaughtUp()
	for body, want := range map[string]bool{`{"component":"other"}`: false, `{"component":"plain"}`: true} {
		if got, err := s.serve(s.narrow, "flow.list", body); err != nil || strings.Contains(got, "reported") != want {
			t.Errorf("flow.list %s: %s %v", body, got, err)
		}
	}

	// Many at once: what is outside is refused as what does not exist, and a filter finds none of it.
	got, err := s.serve(s.narrow, "credential.update-many", fmt.Sprintf(`{"updates":[{"id":%q,"description":"x"},{"id":%q,"description":"x"},{"id":"unknown","description":"x"}]}`, s.outside[0], s.inside))
	if err != nil || strings.Count(got, "credential_not_found") != 2 || !strings.Contains(got, `"failed":2`) {
		t.Errorf("update-many: %s %v", got, err)
	}
	got, err = s.serve(s.narrow, "credential.delete-many", `{"filter":{}}`)
	if err != nil || strings.Count(got, `"error":`) != 1 || !strings.Contains(got, "credential_in_use") {
		t.Errorf("delete-many: %s %v", got, err)
	}

	// What a flow engine reports of flows.
	report := func(who service.Principal, ev flow.Event) string {
		call := service.Call{Tenant: "default", Principal: who, Via: "nats", CommandID: events.NewID()}
		early := stage.CodeOf(s.Service.Flows.CheckReached(t.Context(), call, ev))
		late := stage.CodeOf(s.Service.Flows.ObserveFlow(t.Context(), call, ev))
		if early != late {
			t.Errorf("%v: %q when it arrives, %q when it is processed", ev, early, late)
		}
		return late
	}
	use := func(credential, component string) []events.FlowStep {
		return []events.FlowStep{{ID: "s", Component: component, Credential: credential}}
	}
	for _, tc := range []struct {
		what, want string
		ev         flow.Event
	}{
		{"a step that names one outside", "credential_not_found", flow.Event{Change: events.FlowWasCreated, ID: "new", Revision: 1, Steps: use(s.outside[0], "other")}},
		{"a step that names an unknown one", "credential_not_found", flow.Event{Change: events.FlowWasCreated, ID: "new", Revision: 1, Steps: use("unknown", "other")}},
		{"the end of a flow outside", "key_scope_exceeded", flow.Event{Change: events.FlowWasDeleted, ID: s.theirs, Revision: 1}},
		{"a flow inside", "", flow.Event{Change: events.FlowWasStarted, ID: s.flow, Revision: 1, Steps: use(s.inside, "plain")}},
	} {
		if got := report(s.narrow, tc.ev); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.what, got, tc.want)
		}
	}
	if got, err := s.serve(s.narrow, "flow.get", fmt.Sprintf(`{"id":%q}`, s.mixed)); err != nil || strings.Contains(got, s.outside[0]) || !strings.Contains(got, s.inside) {
		t.Errorf("a flow with others: %s %v", got, err)
	}
}

// A key that a bound key issues is bound at least as much, also where its request says nothing.
func TestBoundKeysIssue(t *testing.T) {
	s := newScoped(t)
	issued, err := s.serve(s.narrow, "api_key.issue", fmt.Sprintf(`{"role":"OPERATOR","credentials":[%q]}`, s.inside))
	stage.OK(t, err)
	var key struct{ ID, Key string }
	stage.OK(t, json.Unmarshal([]byte(issued), &key))
	s.CaughtUp()
	p := stage.Must(s.Service.Access.FreshPrincipal(t.Context(), key.ID))(t)
	if want := (events.Scope{Components: []string{"plain"}, Workspaces: []string{"sales"}, Credentials: []string{s.inside}}); !p.Scope.Equal(want) {
		t.Errorf("the key has the scope %v, want %v", p.Scope, want)
	}
	list, err := s.serve(s.narrow, "api_key.list", `{}`)
	if err != nil || strings.Count(list, `"id":`) != 2 || !strings.Contains(list, key.ID) || !strings.Contains(list, `"workspaces":["sales"]`) {
		t.Errorf("the keys within the own scope: %s %v", list, err)
	}
	if _, err := s.serve(p, "credential.get", fmt.Sprintf(`{"id":%q}`, s.inside)); err != nil {
		t.Error(err)
	}
	if _, err := s.serve(s.narrow, "api_key.revoke", fmt.Sprintf(`{"id":%q}`, key.ID)); err != nil {
		t.Error(err)
	}
	for _, body := range []string{`{"role":"OPERATOR","components":["a.b"]}`, `{"role":"OPERATOR","workspaces":[""]}`, `{"role":"OPERATOR","credentials":["` + strings.Repeat("x", 200) + `"]}`} {
		if _, err := s.serve(s.whole, "api_key.issue", body); stage.CodeOf(err) != "api_key_scope_invalid" {
			t.Errorf("%s: %v", body, err)
		}
	}
	// A key of one id that is not taken yet may take it, and nothing else.
	one := s.Issue("default", "{"+everything+`,"credentials":["new"]}`)
	for id, want := range map[string]string{"new": "", "newer": "key_scope_exceeded"} {
		if _, err := s.serve(one, "credential.create", fmt.Sprintf(`{"id":%q,"component":"plain","keys":{"apiKey":"k","region":"eu"}}`, id)); stage.CodeOf(err) != want {
			t.Errorf("creating %s: %v", id, err)
		}
	}
	s.CaughtUp()
	if _, err := s.serve(one, "credential.get", `{"id":"new"}`); err != nil {
		t.Error(err)
	}
}
