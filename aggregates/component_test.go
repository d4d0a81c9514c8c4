package aggregates_test

import (
	"testing"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

func TestComponent(t *testing.T) {
	type (
		facts = []events.Component
		tc    = aggregatetest.Case[commands.Component, events.Component]
	)
	registered := events.ComponentRegistered{Owner: "acme", Title: "Pets", Descriptor: `{"title":"Pets"}`}
	updated := events.ComponentUpdated{Title: "Pets 2", Descriptor: `{"title":"Pets 2"}`, Revision: 2}
	register := commands.RegisterComponent{ID: "p", Owner: "acme", Title: "Pets", Descriptor: `{"title":"Pets"}`}
	update := commands.UpdateComponent{ID: "p", Owner: "acme", Title: "Pets 2", Descriptor: `{"title":"Pets 2"}`}

	expecting := func(revision int) commands.UpdateComponent {
		c := update
		c.Expected = revision
		return c
	}

	aggregatetest.Run(t, aggregates.Component,
		tc{Name: "register", When: register, Then: facts{registered}},
		tc{Name: "register a taken id", Given: facts{registered}, When: register, Err: aggregates.ErrComponentIDTaken},
		tc{Name: "register revives nothing", Given: facts{registered, events.ComponentDeleted{}}, When: register, Err: aggregates.ErrComponentIDTaken},
		tc{Name: "update", Given: facts{registered}, When: update, Then: facts{updated}},
		tc{Name: "update to what it is", Given: facts{registered, updated}, When: update},
		tc{Name: "update nothing", When: update, Err: aggregates.ErrComponentNotFound},
		tc{Name: "update what was deleted", Given: facts{registered, events.ComponentDeleted{}}, When: update, Err: aggregates.ErrComponentDeleted},
		tc{Name: "update a revision", Given: facts{registered}, When: expecting(1), Then: facts{updated}},
		tc{Name: "update a revision that was replaced", Given: facts{registered, events.ComponentUpdated{Title: "Pets 3", Descriptor: `{"title":"Pets 3"}`, Revision: 2}}, When: expecting(1), Err: aggregates.ErrComponentRevisionStale},
		tc{Name: "update to what is current", Given: facts{registered, updated}, When: expecting(1)},
		tc{Name: "update another's, unseen", Given: facts{registered}, When: commands.UpdateComponent{ID: "p", Owner: "other"}, Err: aggregates.ErrComponentNotFound},
		tc{Name: "update another's, shared", Given: facts{registered, events.ComponentShared{}}, When: commands.UpdateComponent{ID: "p", Owner: "other"}, Err: aggregates.ErrComponentNotOwner},
		tc{Name: "share", Given: facts{registered}, When: commands.ShareComponent{ID: "p", Owner: "acme"}, Then: facts{events.ComponentShared{}}},
		tc{Name: "share what is shared", Given: facts{registered, events.ComponentShared{}}, When: commands.ShareComponent{ID: "p", Owner: "acme"}},
		tc{Name: "unshare", Given: facts{registered, events.ComponentShared{}}, When: commands.UnshareComponent{ID: "p", Owner: "acme"}, Then: facts{events.ComponentUnshared{}}},
		tc{Name: "unshare what is not", Given: facts{registered}, When: commands.UnshareComponent{ID: "p", Owner: "acme"}},
		tc{Name: "delete", Given: facts{registered}, When: commands.DeleteComponent{ID: "p", Owner: "acme"}, Then: facts{events.ComponentDeleted{}}},
		tc{Name: "delete twice", Given: facts{registered, events.ComponentDeleted{}}, When: commands.DeleteComponent{ID: "p", Owner: "acme"}, Err: aggregates.ErrComponentDeleted},
	)
}

func TestAPIKey(t *testing.T) {
	type (
		facts = []events.APIKey
		tc    = aggregatetest.Case[commands.APIKey, events.APIKey]
	)
	issued := events.APIKeyIssued{SHA256: "ab", Home: "acme", Tenants: []string{"acme"}, Role: "OPERATOR"}
	issue := commands.IssueAPIKey{ID: "k", SHA256: "ab", Home: "acme", Tenants: []string{"acme"}, Role: "OPERATOR"}
	other := issue
	other.SHA256 = "cd"

	aggregatetest.Run(t, aggregates.APIKey,
		tc{Name: "issue", When: issue, Then: facts{issued}},
		tc{Name: "issue the same", Given: facts{issued}, When: issue},
		tc{Name: "issue another under the id", Given: facts{issued}, When: other, Err: aggregates.ErrAPIKeyExists},
		tc{Name: "issue what was revoked", Given: facts{issued, events.APIKeyRevoked{}}, When: issue, Err: aggregates.ErrAPIKeyExists},
		tc{Name: "revoke", Given: facts{issued}, When: commands.RevokeAPIKey{ID: "k"}, Then: facts{events.APIKeyRevoked{}}},
		tc{Name: "revoke twice", Given: facts{issued, events.APIKeyRevoked{}}, When: commands.RevokeAPIKey{ID: "k"}},
		tc{Name: "revoke nothing", When: commands.RevokeAPIKey{ID: "k"}, Err: aggregates.ErrAPIKeyNotFound},
	)
}

func TestTenant(t *testing.T) {
	type (
		facts = []events.Tenant
		tc    = aggregatetest.Case[commands.Tenant, events.Tenant]
	)
	registered, started := events.TenantRegistered{Name: "Acme"}, events.TenantErasureStarted{}
	erase, complete := commands.StartTenantErasure{ID: "acme"}, commands.CompleteTenantErasure{ID: "acme"}
	aggregatetest.Run(t, aggregates.Tenant,
		tc{Name: "register", When: commands.RegisterTenant{ID: "acme", Name: "Acme"}, Then: facts{registered}},
		tc{Name: "register again", Given: facts{registered}, When: commands.RegisterTenant{ID: "acme", Name: "Acme"}},
		tc{Name: "register under another name", Given: facts{registered}, When: commands.RegisterTenant{ID: "acme", Name: "Ajax"}, Err: aggregates.ErrTenantExists},
		tc{Name: "erase", Given: facts{registered}, When: erase, Then: facts{started}},
		tc{Name: "erase what does not exist", When: erase, Err: aggregates.ErrTenantNotFound},
		tc{Name: "erase again", Given: facts{registered, started}, When: erase},
		tc{Name: "complete an erasure", Given: facts{registered, started}, When: complete, Then: facts{events.TenantErased{}}},
		tc{Name: "complete it again", Given: facts{registered, started, events.TenantErased{}}, When: complete},
		tc{Name: "complete what was not requested", Given: facts{registered}, When: complete},
		tc{Name: "register what is erased", Given: facts{registered, started}, When: commands.RegisterTenant{ID: "acme", Name: "Acme"}, Err: aggregates.ErrTenantErased},
		tc{Name: "rotate what is erased", Given: facts{registered, started}, When: commands.StartKeyRotation{ID: "acme"}, Err: aggregates.ErrTenantErased},
		tc{Name: "rewrap what is erased", Given: facts{registered, started}, When: commands.RecordRewrap{ID: "acme"}, Err: aggregates.ErrTenantErased},
	)
}
