package admin_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/admin"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
)

// An auditor can prove that a replay is complete, gets what a filter names, and no empty answer to
// a filter that matches nothing; who saw values stands in one list.
func TestAuditorsReplay(t *testing.T) {
	s := stage.New(t)
	auditor := s.Issue("default", `{"role":"AUDITOR"}`)
	ask := func(query, body string) (any, error) {
		return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: auditor, Via: "http"}, query, []byte(body))
	}
	replay := func(body string) admin.Replay {
		t.Helper()
		return stage.Must(ask("events.replay", body))(t).(admin.Replay)
	}
	s.Do("default", "component.register", `{"id":"other","descriptor":{"title":"Other","credentials":{"fields":{"apiKey":{"viewClass":"PasswordFieldView"}}}}}`)
	plain, other := s.Do("default", "credential.create", `{"component":"plain","name":"P","keys":{"apiKey":"k1","region":"eu"}}`).ID, s.Do("default", "credential.create", `{"component":"other","name":"O","keys":{"apiKey":"k2"}}`).ID
	s.Do("default", "tenant.register", `{"id":"ajax"}`)
	s.CaughtUp()
	for i := range 3 {
		s.Do("ajax", "component.register", fmt.Sprintf(`{"id":"p%d","descriptor":{"title":"P"}}`, i))
	}
	s.Do("default", "flow.report", fmt.Sprintf(`{"change":"created","id":"f1","revision":1,"steps":[{"id":"s","component":"plain","credential":%q}]}`, plain))
	stage.Must(s.Store.Append(t.Context(), events.StreamID{Tenant: "default", Category: "command", ID: "x"}, 0,
		events.Meta{Tenant: "default", Actor: events.Actor{Kind: "system", ID: "test"}, Command: "c", Time: time.Now(), Via: "system"}, events.CommandStarted{}))(t)
	middle := time.Now()
	time.Sleep(2 * time.Millisecond)
	s.Do("default", "credential.rename", `{"id":"`+plain+`","name":"N"}`)
	s.CaughtUp()

	// Every sequence of the log is accounted for, once and in order, in pages of any size.
	for _, limit := range []int{1, 3, 1000} {
		next, from := uint64(1), uint64(1)
		internal, others := 0, 0
		for from > 0 {
			page := replay(fmt.Sprintf(`{"complete":true,"limit":%d,"from":%d}`, limit, from))
			for _, e := range page.Events {
				if e.LogSeq != next && (e.LogSeq != next-1 || e.LogIndex == 0) {
					t.Fatalf("limit %d: after %d comes %d.%d", limit, next-1, e.LogSeq, e.LogIndex)
				}
				next = e.LogSeq + 1
				if e.Type == "credstream.withheld.v1" {
					var why struct {
						Reason, Type string
						From, To     uint64
					}
					stage.OK(t, json.Unmarshal(e.Data, &why))
					switch {
					case why.Reason == "other_tenants" && why.From == e.LogSeq && why.To >= why.From && why.Type == "":
						next = why.To + 1
						others += int(why.To - why.From + 1)
					case why.Reason == "internal" && strings.Contains(why.Type, "."):
						internal++
					default:
						t.Errorf("%+v: %+v", e, why)
					}
				}
			}
			from = page.Next
		}
		if end := stage.Must(s.Store.End(t.Context()))(t); next != end+1 || internal != 1 || others < 3 {
			t.Errorf("limit %d: up to %d of %d, %d internal events and %d commits of others", limit, next-1, end, internal, others)
		}
	}

	at := middle.UTC().Format(time.RFC3339Nano)
	types := func(body string) (list []string) {
		for _, e := range replay(body).Events {
			list = append(list, strings.TrimSuffix(strings.TrimPrefix(e.Type, "credstream."), ".v1")+" "+e.Subject)
		}
		return list
	}
	for body, want := range map[string]string{
		`{"component":"other"}`:                                      "component.registered component.other,credential.created credential." + other,
		`{"flow":"f1"}`:                                              "flow.observed flow.f1,credential.used credential." + plain,
		`{"type":"credential.renamed"}`:                              "credential.renamed credential." + plain,
		`{"type":"credential.renamed","until":"` + at + `"}`:         "",
		`{"stream":"credential.` + plain + `","since":"` + at + `"}`: "credential.renamed credential." + plain,
	} {
		if got := strings.Join(types(body), ","); got != want {
			t.Errorf("%s: %s", body, got)
		}
	}
	for _, c := range []struct{ query, body, pointer string }{
		{"events.replay", `{"type":"credential.creatd"}`, "/type"},
		{"events.replay", `{"type":"credential.created.v1"}`, "/type"},
		{"events.replay", `{"type":"command.started"}`, "/type"},
		{"events.replay", `{"actor":"` + auditor.Actor.ID + `"}`, "/actor"},
		{"events.replay", `{"actor":"key:"}`, "/actor"},
		{"events.replay", `{"stream":"credential"}`, "/stream"},
		{"events.replay", `{"stream":"credentials.a"}`, "/stream"},
		{"events.replay", `{"component":"a b"}`, "/component"},
		{"events.replay", `{"since":"2026-01-02T00:00:00Z","until":"2026-01-01T00:00:00Z"}`, "/until"},
		{"events.replay", `{"complete":true,"flow":"f1"}`, "/complete"},
		{"access.replay", `{"actor":"somebody"}`, "/actor"},
		{"access.replay", `{"component":"a b"}`, "/component"},
		{"lease.list", `{"actor":"somebody"}`, "/actor"},
	} {
		_, err := ask(c.query, c.body)
		if f := fault.Of(err); f == nil || f.Code != "filter_invalid" || f.Pointer != c.pointer {
			t.Errorf("%s %s: %v", c.query, c.body, err)
		}
	}
	if answer := stage.Must(ask("api_key.list", `{}`))(t); answer == nil {
		t.Error("no keys")
	}

	// Leases of flows and what people saw stand in one list.
	person := s.Issue("default", `{"role":"ADMINISTRATOR","permissions":["credentials.reveal"]}`)
	stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: person, Via: "http", Confidential: true}, "credential.reveal", []byte(`{"id":"`+plain+`"}`)))(t)
	stage.Must(s.Resolve(`{"id":"` + plain + `","flow":"f1","step":"s","cleartext":true}`))(t)
	stage.Must(s.Resolve(`{"id":"` + other + `","flow":"f2","cleartext":true}`))(t)
	list := func(body string) (list []string) {
		for _, a := range stage.Must(ask("access.replay", body))(t).(credential.AccessReplay).Accesses {
			list = append(list, fmt.Sprint(a.Kind, a.Version, a.Actor == "key:"+person.Actor.ID, a.Flow, a.Step, a.Lease == "", a.Expires.IsZero()))
		}
		return list
	}
	shown, given, elsewhere := "revealed1true"+"truetrue", "given1falsef1sfalsefalse", "given1falsef2falsefalse"
	for body, want := range map[string]string{
		`{}`:                     strings.Join([]string{shown, given, elsewhere}, ","),
		`{"component":"plain"}`:  strings.Join([]string{shown, given}, ","),
		`{"flow":"f1"}`:          given,
		`{"until":"` + at + `"}`: "",
		`{"actor":"key:` + person.Actor.ID + `"}`: shown,
	} {
		if got := strings.ReplaceAll(strings.Join(list(body), ","), " ", ""); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
}
