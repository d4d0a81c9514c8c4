package expiry_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/expiry"
	"github.com/credstream/credstream/service/stage"
)

const day = 24 * time.Hour

func TestThresholds(t *testing.T) {
	for text, want := range map[string][]int{"30,7,1": {1, 7, 30}, " 7, 7": {7}, "none": nil, "3650": {3650}} {
		got, err := expiry.Thresholds(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%q: %v %s", text, err, diff)
		}
	}
	for _, text := range []string{"", "0", "-1", "3651", "1,", "x", "1,2,3,4,5,6,7,8,9,10,11", "1.5"} {
		if _, err := expiry.Thresholds(text); !errors.Is(err, expiry.ErrThresholds) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func start(t *testing.T) *stage.Stage {
	t.Helper()
	return stage.New(t, func(c *application.Config) { c.WarnDays = []int{1, 7, 30} })
}

// warned lists the warnings in the log: stream, what expires, threshold, flows.
func warned(t *testing.T, s *stage.Stage) (list []string) {
	t.Helper()
	end := stage.Must(s.Store.End(t.Context()))(t)
	for seq := uint64(1); seq <= end; seq++ {
		for _, rec := range stage.Must(s.Store.Commit(t.Context(), seq))(t) {
			switch e := rec.Event.(type) {
			case events.CredentialExpiring:
				list = append(list, fmt.Sprintf("credential %s v%d %d %s", e.What, e.Version, e.Days, strings.Join(e.Flows, ",")))
			case events.OAuthClientExpiring:
				list = append(list, fmt.Sprintf("client %d %s", e.Days, strings.Join(e.Flows, ",")))
			case events.APIKeyExpiring:
				if rec.Meta.Tenant != "default" || rec.Meta.Actor.Kind != "system" {
					t.Errorf("the warning is of tenant %s by %v", rec.Meta.Tenant, rec.Meta.Actor)
				}
				list = append(list, fmt.Sprintf("key %s %d", e.Name, e.Days))
			}
		}
	}
	return list
}

// round moves the clock, and runs one round of the warner.
func round(t *testing.T, s *stage.Stage, ahead time.Duration) {
	t.Helper()
	s.CaughtUp()
	s.Skew.Store(int64(ahead))
	stage.OK(t, s.Service.Expiries.Warn(t.Context()))
	s.CaughtUp()
}

func same(t *testing.T, s *stage.Stage, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, warned(t, s)); diff != "" {
		t.Fatal(diff)
	}
}

func at(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }

// Each threshold of an expiry has one event, whatever happens to the clock, whichever process looks,
// and however often.
func TestOneWarningForEachThreshold(t *testing.T) {
	s := start(t)
	id := s.Do("default", "credential.create", `{"component":"plain","keys":{"apiKey":"k"},"expires_at":"`+at(40*day)+`"}`).ID
	s.Do("default", "flow.report", `{"change":"started","id":"orders","name":"Orders","revision":1,"steps":[{"id":"s","component":"plain","credential":"`+id+`"}]}`)
	s.Create("never")
	round(t, s, 0)
	same(t, s)
	round(t, s, 11*day)
	month := "credential keys v1 30 orders"
	same(t, s, month)
	round(t, s, 11*day+time.Hour)
	round(t, s, 0) // a clock that went back
	round(t, s, 11*day)
	same(t, s, month)

	// Several processes at the same time, whose views do not have the event of another yet.
	s.Skew.Store(int64(34 * day))
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := s.Service.Expiries.Warn(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	week := "credential keys v1 7 orders"
	same(t, s, month, week)
	// The views say that nothing was recorded; the log decides.
	state := stage.Must(aggregates.Credential.Fresh(t.Context(), stage.Must(aggregates.NewLog(s.Store, 10))(t), aggregates.Credential.Stream("default", id)))(t)
	_, expires := state.Value.Expiry()
	for days, due := range map[int]bool{30: false, 7: false, 1: true} {
		if state.Value.Warned.Due(expires, days) != due {
			t.Errorf("%d days: due %v", days, !due)
		}
	}
	round(t, s, 39*day+time.Hour)
	same(t, s, month, week, "credential keys v1 1 orders")
	round(t, s, 41*day) // it has expired
	same(t, s, month, week, "credential keys v1 1 orders")
}

// What replaces the keys has an expiry of its own, or none; reverting restores that of the version.
func TestExpiryFollowsTheKeys(t *testing.T) {
	s := start(t)
	id := s.Do("default", "credential.create", `{"component":"plain","keys":{"apiKey":"k"},"expires_at":"`+at(5*day)+`"}`).ID
	round(t, s, 0)
	same(t, s, "credential keys v1 7 ")
	s.Do("default", "credential.replace-keys", `{"id":"`+id+`","keys":{"apiKey":"l"}}`)
	round(t, s, 4*day+time.Hour)
	same(t, s, "credential keys v1 7 ")
	s.Do("default", "credential.replace-keys", `{"id":"`+id+`","keys":{"apiKey":"m"},"expires_at":"`+at(20*day)+`"}`)
	round(t, s, 4*day+time.Hour)
	same(t, s, "credential keys v1 7 ", "credential keys v3 30 ")
	s.Do("default", "credential.revert", `{"id":"`+id+`","version":1}`)
	round(t, s, 4*day+time.Hour)
	same(t, s, "credential keys v1 7 ", "credential keys v3 30 ", "credential keys v4 1 ")
	s.Do("default", "credential.delete", `{"id":"`+id+`"}`)
	round(t, s, 4*day+2*time.Hour)
	same(t, s, "credential keys v1 7 ", "credential keys v3 30 ", "credential keys v4 1 ")
	if got := list(t, s, s.Admin, `{}`); len(got) != 0 {
		t.Error(got)
	}
	for _, body := range []string{`"expires_at":"0001-01-01T00:00:00Z"`, `"expires_at":"2001-01-01T00:00:00Z"`, `"expires_at":"` + at(-time.Hour) + `"`} {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.create",
			[]byte(`{"component":"plain","keys":{"apiKey":"k"},`+body+`}`))
		if stage.CodeOf(err) != "credential_expires_invalid" {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestWarningsOfClientsAndKeys(t *testing.T) {
	s := start(t)
	s.Do("default", "component.register", `{"id":"sheets","descriptor":{"title":"Sheets","useOAuthClient":true,
		"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}},"oauth2":{"auth_uri":"https://p.example.org/a","token_uri":"https://p.example.org/t"}}}}`)
	client := s.Do("default", "oauth_client.define", `{"component":"sheets","client_id":"c","client_secret":"one","secret_expires_at":"`+at(25*day)+`"}`).ID
	connected := s.Do("default", "credential.create", `{"component":"sheets","keys":{"oauth":{"access_token":"a","refresh_token":"r","expires_in":3600}}}`).ID
	s.Do("default", "flow.report", `{"change":"started","id":"f1","revision":1,"steps":[{"id":"s","component":"sheets","credential":"`+connected+`"}]}`)
	key := s.Do("default", "api_key.issue", `{"name":"ci","role":"OPERATOR","expires":"200h"}`).ID
	round(t, s, 0)
	same(t, s, "key ci 30", "client 30 f1")
	// Another secret has no expiry until it is declared.
	s.Do("default", "oauth_client.change", `{"id":"`+client+`","client_secret":"two"}`)
	round(t, s, 24*day+time.Hour)
	same(t, s, "key ci 30", "client 30 f1")
	for command, body := range map[string]string{
		"oauth_client.define": `{"component":"sheets","client_id":"c","client_secret":"one",`,
		"oauth_client.change": `{"id":"` + client + `",`,
	} {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, command, []byte(body+`"secret_expires_at":"0001-01-01T00:00:00Z"}`))
		if stage.CodeOf(err) != "oauth_client_secret_expires_invalid" {
			t.Errorf("%s: %v", command, err)
		}
	}
	s.Do("default", "oauth_client.change", `{"id":"`+client+`","secret_expires_at":"`+at(31*day)+`"}`)
	s.Skew.Store(0)
	s.Do("default", "api_key.revoke", `{"id":"`+key+`"}`)
	round(t, s, 24*day+time.Hour)
	same(t, s, "key ci 30", "client 30 f1", "client 7 f1")
	s.Skew.Store(0)
	round(t, s, 0)
	same(t, s, "key ci 30", "client 30 f1", "client 7 f1")
}

// A refresh token has an expiry if renewals do not extend it: because the component declares so, or
// the provider states the same end again.
func TestWarningsOfRefreshTokens(t *testing.T) {
	s := stage.New(t, stage.AllowPrivate, func(c *application.Config) { c.WarnDays = []int{1, 7, 30} })
	var states atomic.Value // what the provider states of the refresh token: func(now) seconds
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		seconds := int(states.Load().(time.Duration) / time.Second)
		w.Header().Set("Content-Type", "application/json")
		_, _ = fmt.Fprintf(w, `{"access_token":"a","refresh_token":"r2","expires_in":3600,"refresh_token_expires_in":%d}`, seconds)
	}))
	defer provider.Close()
	register := func(id, more string) {
		t.Helper()
		s.Do("default", "component.register", `{"id":"`+id+`","descriptor":{"title":"Sheets","credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}},
			"oauth2":{"client_id":"{{SHEETS_ID}}","client_secret":"{{SHEETS_SECRET}}","auth_uri":"`+provider.URL+`/a","token_uri":"`+provider.URL+`/t"`+more+`}},
			"envVars":{"SHEETS_ID":{},"SHEETS_SECRET":{}}}}`)
		s.Do("default", "component.set-env", `{"id":"`+id+`","values":{"SHEETS_ID":"i","SHEETS_SECRET":"s"}}`)
	}
	create := func(component, more string) string {
		t.Helper()
		return s.Do("default", "credential.create", `{"component":"`+component+`","keys":{"oauth":{"access_token":"a","refresh_token":"r","expires_in":3600`+more+`}}}`).ID
	}
	register("declared", `,"refresh_token_lifetime":`+strconv.Itoa(int(40*day/time.Second)))
	register("stated", ``)
	create("declared", ``)
	round(t, s, 0)
	same(t, s)
	round(t, s, 11*day)
	same(t, s, "credential refresh_token v1 30 ")
	if got := list(t, s, s.Admin, `{"within":"60d"}`); len(got) != 1 || !strings.Contains(got[0], "refresh_token") {
		t.Error(got)
	}

	s.Skew.Store(0)
	fixed := create("stated", `,"refresh_token_expires_in":`+strconv.Itoa(int(6*day/time.Second)))
	sliding := create("stated", `,"refresh_token_expires_in":`+strconv.Itoa(int(6*day/time.Second)))
	round(t, s, 0) // whether renewals extend them is not known yet
	same(t, s, "credential refresh_token v1 30 ")
	s.Skew.Store(int64(time.Hour))
	states.Store(6*day - time.Hour)
	s.Do("default", "credential.refresh", `{"id":"`+fixed+`"}`)
	states.Store(6 * day)
	s.Do("default", "credential.refresh", `{"id":"`+sliding+`"}`)
	round(t, s, time.Hour)
	same(t, s, "credential refresh_token v1 30 ", "credential refresh_token v1 7 ")
	for id, extended := range map[string]bool{fixed: false, sliding: true} {
		answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "credential.get", []byte(`{"id":"`+id+`"}`)))(t)
		shown := answer.(credential.Credential)
		if tokens := shown.Tokens; tokens.Extended != extended || tokens.Refresh.IsZero() || shown.Expires.IsZero() != extended {
			t.Errorf("%+v %v", tokens, shown.Expires)
		}
	}
}

func list(t *testing.T, s *stage.Stage, as service.Principal, body string) (names []string) {
	t.Helper()
	answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: as, Via: "http"}, "expiry.list", []byte(body))
	stage.OK(t, err)
	for _, x := range answer.(expiry.Page).Expiries {
		names = append(names, fmt.Sprint(x.Kind, " ", x.Name, x.Component, " ", x.What, " ", x.Expired, " ", x.ActiveFlows))
	}
	return names
}

func TestListOfExpiries(t *testing.T) {
	s := start(t)
	b := s.Do("default", "credential.create", `{"component":"plain","name":"b","keys":{"apiKey":"k"},"workspace":"w","expires_at":"`+at(2*day)+`"}`).ID
	s.Do("default", "credential.create", `{"component":"plain","name":"a","keys":{"apiKey":"k"},"expires_at":"`+at(day)+`"}`)
	s.Do("default", "credential.create", `{"component":"plain","name":"late","keys":{"apiKey":"k"},"expires_at":"`+at(90*day)+`"}`)
	s.Do("default", "flow.report", `{"change":"started","id":"orders","name":"Orders","revision":1,"steps":[{"id":"s","component":"plain","credential":"`+b+`"}]}`)
	bound := s.Issue("default", `{"role":"ADMINISTRATOR","workspaces":["w"],"expires":"30h"}`) // could list keys and clients
	reader := s.Issue("default", `{"role":"FLOW_ENGINE"}`)
	s.CaughtUp()
	a, bb, key := "credential aplain keys false 0", "credential bplain keys false 1", "api_key  api_key false 0"
	for _, c := range []struct {
		as   service.Principal
		body string
		want []string
	}{
		{s.Admin, `{}`, []string{a, key, bb}},
		{s.Admin, `{"within":"25h"}`, []string{a}},
		{s.Admin, `{"within":"100d","kind":"credential"}`, []string{a, bb, "credential lateplain keys false 0"}},
		{bound, `{}`, []string{bb}},
		{bound, `{"kind":"api_key"}`, nil},
		{reader, `{}`, []string{a, bb}},
	} {
		if diff := cmp.Diff(c.want, list(t, s, c.as, c.body)); diff != "" {
			t.Errorf("%s: %s", c.body, diff)
		}
	}
	// Page by page.
	var got []string
	for after := ""; ; {
		answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "expiry.list",
			[]byte(`{"limit":1,"after":"`+after+`"}`)))(t).(expiry.Page)
		for _, x := range answer.Expiries {
			got = append(got, x.Kind+" "+x.Name)
		}
		if after = answer.Next; after == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"credential a", "api_key ", "credential b"}, got); diff != "" {
		t.Error(diff)
	}
	s.Skew.Store(int64(3 * day))
	if got := list(t, s, s.Admin, `{"within":"0d","kind":"credential"}`); len(got) != 2 || !strings.Contains(got[0], "true") {
		t.Error(got)
	}
	for body, code := range map[string]string{
		`{"within":"x"}`: "expiry_within_invalid", `{"within":"-1d"}`: "expiry_within_invalid", `{"within":"9999d"}`: "expiry_within_invalid",
		`{"kind":"flow"}`: "expiry_kind_invalid", `{"after":"???"}`: "cursor_invalid", `{"after":"AAAA"}`: "cursor_invalid", `{"limit":201}`: "limit_invalid",
	} {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, "expiry.list", []byte(body))
		if fault.Of(err) == nil || stage.CodeOf(err) != code {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// Each kind is listed to those who may list it, with the flows that would break: by their ids and
// names, those that are active first, and only as the caller may see them.
func TestKindsAndFlowsOfExpiries(t *testing.T) {
	s := start(t)
	s.Do("default", "component.register", `{"id":"sheets","descriptor":{"title":"Sheets","useOAuthClient":true,
		"credentials":{"fields":{"oauth":{"viewClass":"OAuthFieldView"}},"oauth2":{"auth_uri":"https://p.example.org/a","token_uri":"https://p.example.org/t"}}}}`)
	s.Do("default", "oauth_client.define", `{"component":"sheets","client_id":"c","client_secret":"one","secret_expires_at":"`+at(3*day)+`"}`)
	account := s.Do("default", "credential.create", `{"component":"sheets","keys":{"oauth":{"access_token":"a","refresh_token":"r","expires_in":3600}}}`).ID
	soon := s.Do("default", "credential.create", `{"component":"plain","name":"soon","workspace":"w","keys":{"apiKey":"k"},"expires_at":"`+at(day)+`"}`).ID
	s.Issue("default", `{"name":"ci","role":"AUDITOR","expires":"120h"}`)
	for _, f := range []struct{ change, id, component, credential string }{
		{"started", "z-active", "plain", soon}, {"created", "a-idle", "plain", soon}, {"started", "sheet", "sheets", account},
	} {
		s.Do("default", "flow.report", fmt.Sprintf(`{"change":%q,"id":%q,"name":%q,"revision":1,"steps":[{"id":"s","component":%q,"credential":%q}]}`,
			f.change, f.id, "Flow "+f.id, f.component, f.credential))
	}
	permissions := func(list string) service.Principal {
		return s.Issue("default", `{"role":"AUDITOR","permissions":[`+list+`]}`)
	}
	clients, keys := permissions(`"credentials.get","tenants.oauth_clients.get"`), permissions(`"credentials.get","keys.manage"`)
	bound := s.Issue("default", `{"role":"ADMINISTRATOR","workspaces":["w"]}`)
	s.CaughtUp()
	credential, client, key := "credential soon: Flow z-active true, Flow a-idle false; 1 active", "oauth_client sheets: Flow sheet true; 1 active", "api_key ci: ; 0 active"
	for _, c := range []struct {
		as   service.Principal
		kind string
		want []string
	}{
		{s.Admin, "", []string{credential, client, key}},
		{s.Admin, "credential", []string{credential}},
		{s.Admin, "oauth_client", []string{client}},
		{s.Admin, "api_key", []string{key}},
		{clients, "", []string{credential, client}},
		{clients, "api_key", nil},
		{keys, "", []string{credential, key}},
		{keys, "oauth_client", nil},
		{bound, "", []string{credential}},
		{bound, "oauth_client", nil},
	} {
		answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: c.as, Via: "http"}, "expiry.list", []byte(`{"kind":"`+c.kind+`"}`)))(t).(expiry.Page)
		var got []string
		for _, x := range answer.Expiries {
			var flows []string
			for _, f := range x.Flows {
				if f.Name != "Flow "+f.ID {
					t.Errorf("the flow %s has the name %q", f.ID, f.Name)
				}
				flows = append(flows, fmt.Sprint(f.Name, " ", f.Active))
			}
			name := x.Name
			if name == "" {
				name = x.ID
			}
			got = append(got, fmt.Sprintf("%s %s: %s; %d active", x.Kind, name, strings.Join(flows, ", "), x.ActiveFlows))
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("kind %q: %s", c.kind, diff)
		}
	}
	// Of many flows 20 are shown, and all active ones are counted.
	for i := range 42 {
		s.Do("default", "flow.report", fmt.Sprintf(`{"change":%q,"id":"flow-%02d","revision":1,"steps":[{"id":"s","component":"plain","credential":%q}]}`,
			[]string{"created", "started"}[i%2], i, soon))
	}
	s.CaughtUp()
	answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: bound, Via: "http"}, "expiry.list", []byte(`{}`)))(t).(expiry.Page)
	if len(answer.Expiries) != 1 || len(answer.Expiries[0].Flows) != 20 || answer.Expiries[0].ActiveFlows != 22 || answer.Expiries[0].Flows[0].ID != "flow-01" || !answer.Expiries[0].Flows[19].Active {
		t.Errorf("%+v", answer)
	}
}
