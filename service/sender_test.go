package service_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
)

// A page of another origin, and who reads no answer, leave no fact in anybody's
// name: not by what shows a secret, not by a command, not by what they are denied.
func TestSenders(t *testing.T) {
	s := newStage(t)
	id := s.create("canary-1")
	audited := map[string]bool{}
	for _, r := range service.Routes() {
		if r.Audited || strings.HasSuffix(r.Name, ".reveal") {
			audited[r.Name] = true
		}
	}
	for _, name := range []string{"credential.resolve", "credential.reveal", "oauth_client.reveal", "auth_client.reveal"} {
		if !audited[name] {
			t.Errorf("%s shows a secret and says nothing of it in the route table", name)
		}
	}
	s.caughtUp()
	end, facts := must(s.store.End(t.Context()))(t), len(s.facts(service.ReplayAccess{}))
	all := s.admin
	for _, p := range service.Permissions() {
		all.Permissions = append(all.Permissions, p.Permission)
	}
	none := service.Principal{Actor: all.Actor, Home: "default", Tenants: []string{"default"}}
	body := fmt.Appendf(nil, `{"id":%q}`, id)
	for _, r := range service.Routes() {
		leaves := r.Command || r.Audited
		for _, who := range []service.Principal{all, none} {
			for code, call := range map[string]service.Call{
				"cross_origin_refused": {Tenant: "default", Principal: who, Via: "http", CrossSite: true},
				"method_not_allowed":   {Tenant: "default", Principal: who, Via: "http", Head: true},
			} {
				if call.Head && !leaves && len(who.Permissions) == 0 {
					continue // the refusal of a query is the caller's own
				}
				if _, err := s.svc.Serve(t.Context(), call, r.Name, body); (codeOf(err) == code) != leaves {
					t.Errorf("%s: %v", r.Name, err)
				}
			}
		}
	}
	if now := must(s.store.End(t.Context()))(t); now != end {
		t.Errorf("the log has %d commits more", now-end)
	}
	if now := len(s.facts(service.ReplayAccess{})); now != facts {
		t.Errorf("%d facts of what was given", now-facts)
	}
}
