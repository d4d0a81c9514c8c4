package throttle_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/credential"
	"github.com/credstream/credstream/service/stage"
	"github.com/credstream/credstream/service/throttle"
)

// ask serves one call of the administrator.
func ask(t *testing.T, s *stage.Stage, route, body string) (any, error) {
	t.Helper()
	return s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Admin, Via: "http"}, route, []byte(body))
}

// refused wants the code of a refusal, and something of what it says.
func refused(t *testing.T, s *stage.Stage, route, body, code, says string) *fault.Error {
	t.Helper()
	_, err := ask(t, s, route, body)
	if stage.CodeOf(err) != code || !strings.Contains(fault.Of(err).Msg, says) {
		t.Errorf("%s %s: %v, want %s: %s", route, body, err, code, says)
	}
	return fault.Of(err)
}

// A policy is not deleted while a credential has it, and the refusal names the credentials:
// whichever way they came to it, and however they lose it.
func TestPolicyOfCredentials(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "throttle_policy.define", `{"id":"crm","tokens":100,"per":"minute","description":"CRM"}`)
	s.Do("default", "throttle_policy.define", `{"id":"erp","tokens":5,"per":"second"}`)
	refused(t, s, "throttle_policy.define", `{"id":"crm","tokens":1,"per":"day"}`, "throttle_policy_exists", "")
	first := s.Do("default", "credential.create", `{"component":"plain","keys":{"apiKey":"k","region":"eu"},"throttle_policy":"crm"}`).ID
	second := s.Create("k")
	refused(t, s, "credential.assign-throttle-policy", fmt.Sprintf(`{"id":%q,"throttle_policy":"none"}`, second), "throttle_policy_unknown", "Define the policy first")
	refused(t, s, "credential.create", `{"component":"plain","keys":{"apiKey":"k","region":"eu"},"throttle_policy":"none"}`, "throttle_policy_unknown", "")
	s.Do("default", "credential.assign-throttle-policy", fmt.Sprintf(`{"id":%q,"throttle_policy":"crm"}`, second))
	f := refused(t, s, "throttle_policy.delete", `{"id":"crm"}`, "throttle_policy_in_use", first)
	if d, ok := f.Details.(throttle.InUse); !ok || d.Total != 2 || len(d.Credentials) != 2 || !strings.Contains(f.Msg, second) || f.Kind.Status() != 409 {
		t.Errorf("the refusal is %+v", f)
	}
	s.CaughtUp()
	list := func(filter string) (ids []string) {
		page := stage.Must(ask(t, s, "credential.list", filter))(t).(credential.Page)
		for _, c := range page.Credentials {
			ids = append(ids, c.ID+" "+c.ThrottlePolicy)
		}
		return ids
	}
	if got := list(`{"throttle_policy":"crm"}`); len(got) != 2 || !strings.HasSuffix(got[0], " crm") {
		t.Errorf("credentials of the policy: %q", got)
	}
	resolved := stage.Must(s.Resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, second)))(t)
	s.Do("default", "credential.assign-throttle-policy", fmt.Sprintf(`{"id":%q,"throttle_policy":"erp"}`, second))
	again := stage.Must(s.Resolve(fmt.Sprintf(`{"id":%q,"cleartext":true}`, second)))(t)
	if resolved.ThrottlePolicy != "crm" || again.ThrottlePolicy != "erp" || again.Lease == resolved.Lease {
		t.Errorf("resolved under %+v and %+v", resolved, again)
	}
	// An update sets the policy in the commit of the keys, and what is refused leaves nothing.
	refused(t, s, "credential.update", fmt.Sprintf(`{"id":%q,"keys":{"nothing":"x"},"throttle_policy":"crm"}`, second), "keys_field_unknown", "")
	refused(t, s, "credential.update", fmt.Sprintf(`{"id":%q,"description":"d","throttle_policy":"none"}`, second), "throttle_policy_unknown", "")
	updated := s.Do("default", "credential.update", fmt.Sprintf(`{"id":%q,"description":"d","keys":{"apiKey":"k2","region":"eu"},"throttle_policy":"crm"}`, second))
	s.CaughtUp()
	if c := stage.Must(ask(t, s, "credential.get", fmt.Sprintf(`{"id":%q}`, second)))(t).(credential.Credential); c.ThrottlePolicy != "crm" || c.Version != 2 || c.Description != "d" || c.Seq != updated.Seq {
		t.Errorf("after the update it is %+v", c)
	}
	s.Do("default", "credential.update", fmt.Sprintf(`{"id":%q,"throttle_policy":"erp"}`, second))
	s.Do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, first))
	s.Do("default", "throttle_policy.delete", `{"id":"crm"}`)
	s.Do("default", "credential.assign-throttle-policy", fmt.Sprintf(`{"id":%q}`, second))
	s.Do("default", "throttle_policy.delete", `{"id":"erp"}`)
	s.CaughtUp()
	if page := stage.Must(ask(t, s, "throttle_policy.list", `{}`))(t).(throttle.Page); page.Total != 0 {
		t.Errorf("the policies that are left: %+v", page)
	}
	// Each use that a policy recorded was released: none is left for its deletion to find out.
	for _, id := range []string{"crm", "erp"} {
		uses, releases := 0, 0
		for rec, err := range s.Store.Stream(t.Context(), aggregates.ThrottlePolicy.Stream("default", id), 0) {
			stage.OK(t, err)
			switch rec.Event.(type) {
			case events.ThrottlePolicyUsed:
				uses++
			case events.ThrottlePolicyReleased:
				releases++
			}
		}
		if uses == 0 || uses != releases {
			t.Errorf("policy %s: %d uses, %d releases", id, uses, releases)
		}
	}
}

// An attempt to assign a policy that broke off after the policy had recorded it does not
// keep the policy, and cannot be completed once the policy is gone: neither for a credential
// that exists nor for one that was to be created.
func TestBrokenOffAssignment(t *testing.T) {
	s := stage.New(t)
	id := s.Create("k")
	s.Do("default", "throttle_policy.define", `{"id":"crm","tokens":100,"per":"minute"}`)
	log := stage.Must(aggregates.NewLog(s.Store, 10))(t)
	meta := events.Meta{Tenant: "default", Actor: events.Actor{Kind: "key", ID: "another"}, Time: time.Now(), Via: "http"}
	for use, of := range map[string]string{"u1": id, "u2": "to-be-created"} {
		_, _, err := aggregates.ThrottlePolicy.Execute(t.Context(), log, "default",
			commands.ThrottlePolicy(commands.UseThrottlePolicy{ID: "crm", Credential: of, Use: use}), meta, nil)
		stage.OK(t, err)
	}
	s.Do("default", "throttle_policy.delete", `{"id":"crm"}`)
	for _, cmd := range []commands.Credential{
		commands.UpdateCredential{ID: id, CredentialSettings: commands.CredentialSettings{Policy: &commands.PolicyUse{Policy: "crm", Use: "u1"}}},
		commands.CreateCredential{ID: "to-be-created", Component: "plain", Name: "n", Keys: commands.NewKeys{SecretID: "s"}, Policy: commands.PolicyUse{Policy: "crm", Use: "u2"}},
	} {
		if _, _, err := aggregates.Credential.Execute(t.Context(), log, "default", cmd, meta, nil); !errors.Is(err, aggregates.ErrPolicyUseStale) {
			t.Errorf("%T: a credential comes to have a policy that is gone: %v", cmd, err)
		}
	}
}

func TestPolicyInput(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "throttle_policy.define", `{"id":"AAABcID5GBc=","tokens":1000000000,"per":"day"}`)
	for _, c := range [][3]string{
		{"throttle_policy.define", `{"tokens":0,"per":"day"}`, "throttle_tokens_invalid"},
		{"throttle_policy.define", `{"tokens":-1,"per":"day"}`, "throttle_tokens_invalid"},
		{"throttle_policy.define", `{"tokens":1000000001,"per":"day"}`, "throttle_tokens_invalid"},
		{"throttle_policy.define", `{"tokens":99999999999999999999,"per":"day"}`, "body_invalid"},
		{"throttle_policy.define", `{"tokens":1.5,"per":"day"}`, "body_invalid"},
		{"throttle_policy.define", `{"tokens":1,"per":"week"}`, "throttle_period_invalid"},
		{"throttle_policy.define", `{"tokens":1}`, "throttle_period_invalid"},
		{"throttle_policy.define", `{"tokens":1,"per":"day","description":"\u0007"}`, "throttle_description_invalid"},
		{"throttle_policy.define", `{"id":"\u0007","tokens":1,"per":"day"}`, "id_invalid"},
		{"throttle_policy.change", `{"id":"AAABcID5GBc","tokens":1}`, "throttle_policy_not_found"},
		{"throttle_policy.change", `{"id":"AAABcID5GBc=","tokens":-1}`, "throttle_tokens_invalid"},
		{"throttle_policy.change", `{"tokens":1}`, "member_missing"},
		{"throttle_policy.delete", `{"id":"\u0007"}`, "throttle_policy_not_found"},
		{"throttle_policy.get", `{"id":"AAABcID5GBc"}`, "throttle_policy_not_found"},
		{"throttle_policy.list", `{"limit":-1}`, "limit_invalid"},
	} {
		refused(t, s, c[0], c[1], c[2], "")
	}
	done := s.Do("default", "throttle_policy.change", `{"id":"AAABcID5GBc=","description":"d"}`)
	s.CaughtUp()
	p := stage.Must(ask(t, s, "throttle_policy.get", `{"id":"AAABcID5GBc="}`))(t).(throttle.Policy)
	if p.Description != "d" || p.Tokens != 1000000000 || p.Per != events.PerDay || p.Seq != done.Seq {
		t.Errorf("the policy is %+v", p)
	}
}

// What a flow engine takes, over the route: with and without a policy, more than there is,
// what cannot be taken, and after the policy has changed.
func TestTake(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "throttle_policy.define", `{"id":"crm","tokens":3,"per":"day"}`)
	id := s.Create("k")
	take := func(more string) (throttle.Taken, error) {
		body := fmt.Sprintf(`{"credential":%q%s}`, id, more)
		answer, err := s.Service.Serve(t.Context(), service.Call{Tenant: "default", Principal: s.Engine, Via: "nats"}, "throttle.take", []byte(body))
		taken, _ := answer.(throttle.Taken)
		return taken, err
	}
	want := func(more string, granted bool, remaining int64) throttle.Taken {
		t.Helper()
		taken, err := take(more)
		if err != nil || taken.Granted != granted || taken.Remaining != remaining || !granted && taken.RetryAfter <= 0 {
			t.Errorf("take%s: %+v, %v, want %t and %d left", more, taken, err, granted, remaining)
		}
		return taken
	}
	if free := want("", true, 0); free.ThrottlePolicy != "" {
		t.Errorf("without a policy: %+v", free)
	}
	s.Do("default", "credential.assign-throttle-policy", fmt.Sprintf(`{"id":%q,"throttle_policy":"crm"}`, id))
	if first := want(`,"flow":"f1"`, true, 2); first.ThrottlePolicy != "crm" {
		t.Errorf("with a policy: %+v", first)
	}
	want(`,"tokens":2,"flow":"f1"`, true, 0)
	if denied := want(`,"flow":"f2"`, false, 0); denied.RetryAfter > (25 * time.Hour).Milliseconds() {
		t.Errorf("denied for %d ms", denied.RetryAfter)
	}
	for more, code := range map[string]string{
		`,"tokens":0`: "throttle_take_invalid", `,"tokens":-5`: "throttle_take_invalid", `,"tokens":1000000001`: "throttle_take_invalid",
		`,"tokens":9223372036854775808`: "body_invalid", `,"tokens":4`: "throttle_take_too_many", `,"flow":"\u0007"`: "id_invalid",
		`,"credential":"x"`: "body_invalid",
	} {
		if _, err := take(more); stage.CodeOf(err) != code {
			t.Errorf("take%s: %v, want %s", more, err, code)
		}
	}
	s.Do("default", "throttle_policy.change", `{"id":"crm","tokens":5}`)
	want("", true, 1)
	s.Do("default", "tenant.register", `{"id":"other"}`)
	s.CaughtUp()
	engine := s.Issue("other", `{"role":"FLOW_ENGINE"}`)
	for tenant, p := range map[string]service.Principal{"other": engine, "default": s.Issue("default", `{"role":"AUDITOR"}`)} {
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: tenant, Principal: p, Via: "http"}, "throttle.take", fmt.Appendf(nil, `{"credential":%q}`, id))
		if code := stage.CodeOf(err); code != map[string]string{"other": "credential_not_found", "default": "permission_denied"}[tenant] {
			t.Errorf("a caller of %s: %v", tenant, err)
		}
	}
	s.Do("default", "credential.delete", fmt.Sprintf(`{"id":%q}`, id))
	if _, err := take(""); stage.CodeOf(err) != "credential_not_found" {
		t.Errorf("of a credential that was deleted: %v", err)
	}
}
