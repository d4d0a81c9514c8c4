package application_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/application"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/permission"
	"github.com/credstream/credstream/service/stage"
)

// A page of another origin, and who reads no answer, leave no fact in anybody's
// name: not by what shows a secret, not by a command, not by what they are denied.
func TestSenders(t *testing.T) {
	s := stage.New(t)
	id := s.Create("canary-1")
	audited := map[string]bool{}
	for _, r := range application.Routes() {
		if r.Audited || strings.HasSuffix(r.Name, ".reveal") {
			audited[r.Name] = true
		}
	}
	for _, name := range []string{"credential.resolve", "credential.reveal", "oauth_client.reveal", "auth_client.reveal", "connector_secret.reveal"} {
		if !audited[name] {
			t.Errorf("%s shows a secret and says nothing of it in the route table", name)
		}
	}
	s.CaughtUp()
	end, facts := stage.Must(s.Store.End(t.Context()))(t), len(s.Facts(credential.ReplayAccess{}))
	all := s.Admin
	for _, p := range permission.Permissions() {
		all.Permissions = append(all.Permissions, p.Permission)
	}
	none := service.Principal{Actor: all.Actor, Home: "default", Tenants: []string{"default"}}
	body := fmt.Appendf(nil, `{"id":%q}`, id)
	for _, r := range application.Routes() {
		leaves := r.Command || r.Audited
		for _, who := range []service.Principal{all, none} {
			for code, call := range map[string]service.Call{
				"cross_origin_refused": {Tenant: "default", Principal: who, Via: "http", CrossSite: true},
				"method_not_allowed":   {Tenant: "default", Principal: who, Via: "http", Head: true},
			} {
				if call.Head && !leaves && len(who.Permissions) == 0 {
					continue // the refusal of a query is the caller's own
				}
				if _, err := s.Service.Serve(t.Context(), call, r.Name, body); (stage.CodeOf(err) == code) != leaves {
					t.Errorf("%s: %v", r.Name, err)
				}
			}
		}
	}
	if now := stage.Must(s.Store.End(t.Context()))(t); now != end {
		t.Errorf("the log has %d commits more", now-end)
	}
	if now := len(s.Facts(credential.ReplayAccess{})); now != facts {
		t.Errorf("%d facts of what was given", now-facts)
	}
}
