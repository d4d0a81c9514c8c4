package aggregates_test

import (
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

func TestThrottlePolicy(t *testing.T) {
	type (
		facts = []events.ThrottlePolicy
		tc    = aggregatetest.Case[commands.ThrottlePolicy, events.ThrottlePolicy]
	)
	crm := events.ThrottleSettings{Description: "CRM", Tokens: 100, Per: events.PerMinute}
	fewer, none := events.ThrottleSettings{Description: "CRM", Tokens: 50, Per: events.PerMinute}, ""
	defined, deleted := events.ThrottlePolicyDefined{Policy: crm}, events.ThrottlePolicyDeleted{}
	used, released := events.ThrottlePolicyUsed{Credential: "c", Use: "u1"}, events.ThrottlePolicyReleased{Use: "u1"}
	define := commands.DefineThrottlePolicy{ID: "p", Policy: crm}
	aggregatetest.Run(t, aggregates.ThrottlePolicy,
		tc{Name: "define", When: define, Then: facts{defined}, Again: true},
		tc{Name: "define a taken id", Given: facts{defined}, When: define, Err: aggregates.ErrThrottlePolicyExists},
		tc{Name: "define anew", Given: facts{defined, deleted}, When: define, Then: facts{defined}, Again: true},
		tc{Name: "change the number", Given: facts{defined}, When: commands.ChangeThrottlePolicy{ID: "p", Tokens: 50}, Then: facts{events.ThrottlePolicyChanged{Policy: fewer}}},
		tc{Name: "change the description to none", Given: facts{defined}, When: commands.ChangeThrottlePolicy{ID: "p", Description: &none}, Then: facts{events.ThrottlePolicyChanged{Policy: events.ThrottleSettings{Tokens: 100, Per: events.PerMinute}}}},
		tc{Name: "change nothing", Given: facts{defined}, When: commands.ChangeThrottlePolicy{ID: "p", Tokens: 100, Per: events.PerMinute}},
		tc{Name: "change what is gone", Given: facts{defined, deleted}, When: commands.ChangeThrottlePolicy{ID: "p", Tokens: 50}, Err: aggregates.ErrThrottlePolicyNotFound},
		tc{Name: "use", Given: facts{defined}, When: commands.UseThrottlePolicy{ID: "p", Credential: "c", Use: "u1"}, Then: facts{used}},
		tc{Name: "use what is gone", Given: facts{defined, used, released, deleted}, When: commands.UseThrottlePolicy{ID: "p", Credential: "c", Use: "u2"}, Err: aggregates.ErrThrottlePolicyNotFound},
		tc{Name: "release", Given: facts{defined, used}, When: commands.ReleaseThrottlePolicy{ID: "p", Use: "u1"}, Then: facts{released}},
		tc{Name: "release another use", Given: facts{defined, used}, When: commands.ReleaseThrottlePolicy{ID: "p", Use: "u2"}},
		tc{Name: "release of what is gone", Given: facts{defined, deleted}, When: commands.ReleaseThrottlePolicy{ID: "p", Use: "u1"}},
		tc{Name: "delete what is used", Given: facts{defined, used}, When: commands.DeleteThrottlePolicy{ID: "p"}, Err: aggregates.ErrThrottlePolicyInUse},
		tc{Name: "delete", Given: facts{defined, used, released}, When: commands.DeleteThrottlePolicy{ID: "p"}, Then: facts{deleted}, Again: true},
		tc{Name: "delete nothing", When: commands.DeleteThrottlePolicy{ID: "p"}, Err: aggregates.ErrThrottlePolicyNotFound},
	)
}

func TestPolicyOfCredential(t *testing.T) {
	type (
		facts = []events.Credential
		tc    = aggregatetest.Case[commands.Credential, events.Credential]
	)
	keys := commands.NewKeys{SecretID: "s1", Fields: []string{"apiKey"}, Revision: 1, Verification: events.Verification{Status: events.Verified}}
	created := events.CredentialCreated{Component: "petstore", Name: "Pets", Keys: events.KeysVersion{
		Version: 1, SecretID: "s1", Fields: []string{"apiKey"}, Revision: 1, Verification: events.Verification{Status: events.Verified},
	}}
	assigned := events.CredentialThrottlePolicyAssigned{Policy: "p", Use: "u1"}
	abandoned := events.CredentialThrottlePolicyUseAbandoned{Use: "u2"}
	use := func(policy, use string) commands.UpdateCredential {
		return commands.UpdateCredential{ID: "c", CredentialSettings: commands.CredentialSettings{Policy: &commands.PolicyUse{Policy: policy, Use: use}}}
	}
	create := func(use string) commands.CreateCredential {
		return commands.CreateCredential{ID: "c", Component: "petstore", Name: "Pets", Keys: keys, Policy: commands.PolicyUse{Policy: "p", Use: use}}
	}
	aggregatetest.Run(t, aggregates.Credential,
		tc{Name: "create with a policy", When: create("u1"), Then: facts{created, assigned}},
		tc{Name: "create with a use that was abandoned", Given: facts{abandoned}, When: create("u2"), Err: aggregates.ErrPolicyUseStale},
		tc{Name: "assign", Given: facts{created}, When: use("p", "u1"), Then: facts{assigned}},
		tc{Name: "assign the same by another use", Given: facts{created, assigned}, When: use("p", "u2")},
		tc{Name: "assign another one", Given: facts{created, assigned}, When: use("q", "u3"), Then: facts{events.CredentialThrottlePolicyAssigned{Policy: "q", Use: "u3"}}},
		tc{Name: "assign a policy that records no use", Given: facts{created}, When: use("p", ""), Err: aggregates.ErrPolicyUseStale},
		tc{Name: "assign by a use that was abandoned", Given: facts{created, abandoned}, When: use("p", "u2"), Err: aggregates.ErrPolicyUseStale},
		tc{Name: "clear", Given: facts{created, assigned}, When: use("", ""), Then: facts{events.CredentialThrottlePolicyAssigned{}}},
		tc{Name: "clear nothing", Given: facts{created}, When: use("", "")},
		tc{Name: "assign to nothing", When: use("p", "u1"), Err: aggregates.ErrCredentialNotFound},
		tc{Name: "abandon a use that is made", Given: facts{created, assigned}, When: commands.AbandonPolicyUse{ID: "c", Use: "u1"}},
		tc{Name: "abandon a use that is not made", Given: facts{created, assigned}, When: commands.AbandonPolicyUse{ID: "c", Use: "u2"}, Then: facts{abandoned}},
		tc{Name: "abandon a use before the credential", When: commands.AbandonPolicyUse{ID: "c", Use: "u2"}, Then: facts{abandoned}},
		tc{Name: "abandon a use of what was deleted", Given: facts{created, assigned, events.CredentialDeleted{}}, When: commands.AbandonPolicyUse{ID: "c", Use: "u1"}},
	)
}
