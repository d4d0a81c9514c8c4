package aggregates_test

import (
	"testing"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/aggregates/aggregatetest"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
)

func TestAccess(t *testing.T) {
	type (
		facts = []events.Access
		tc    = aggregatetest.Case[commands.Access, events.Access]
	)
	one := events.AccessDenied{Principal: "key:k", Tenant: "other", Route: "credential.get", Permission: "credentials.get", Count: 1, Since: time.Unix(1, 0)}
	two := one
	two.Route, two.Count = "credential.list", 7
	later := two
	later.Since = time.Unix(70, 0)
	record := commands.RecordDenials{Principal: "k", Denials: []commands.Denial{commands.Denial(one), commands.Denial(two)}}
	abort := commands.RecordConnectAborted{
		Starter: "k", Principal: "key:k", Connection: "x", Component: "sheets", Credential: "c", User: "u", Reason: "connection_denied",
	}
	aborted := events.AccessConnectAborted{
		Principal: "key:k", Connection: "x", Component: "sheets", Credential: "c", User: "u", Reason: "connection_denied",
	}
	aggregatetest.Run(t, aggregates.Access,
		tc{Name: "record", When: record, Then: facts{one, two}},
		tc{Name: "record what is recorded", Given: facts{one, two}, When: record},
		tc{Name: "record what is new", Given: facts{one, later}, When: record, Then: facts{two}},
		tc{Name: "record nothing", Given: facts{one}, When: commands.RecordDenials{Principal: "k"}},
		tc{Name: "a connection ends", Given: facts{one}, When: abort, Then: facts{aborted}},
		tc{Name: "a connection has ended", Given: facts{aborted}, When: abort},
	)
}

// What bounds a key is part of what it is.
func TestBoundedAPIKey(t *testing.T) {
	type (
		facts = []events.APIKey
		tc    = aggregatetest.Case[commands.APIKey, events.APIKey]
	)
	end := time.Unix(1e9, 0).UTC()
	issue := commands.IssueAPIKey{
		ID: "k", SHA256: "ab", Home: "acme", Tenants: []string{"acme"}, Permissions: []string{"credentials.get"}, Addresses: []string{"192.0.2.0/24"}, Expires: end,
	}
	issued := events.APIKeyIssued{
		SHA256: "ab", Home: "acme", Tenants: []string{"acme"}, Permissions: []string{"credentials.get"}, Addresses: []string{"192.0.2.0/24"}, Expires: end,
	}
	more, longer, wider := issue, issue, issue
	more.Permissions = []string{"credentials.get", "credentials.reveal"}
	longer.Expires = time.Time{}
	wider.Addresses = nil
	unbounded := commands.IssueAPIKey{ID: "k", SHA256: "ab", Home: "acme", Tenants: []string{"acme"}, Role: "OPERATOR"}
	aggregatetest.Run(t, aggregates.APIKey,
		tc{Name: "issue", When: issue, Then: facts{issued}},
		tc{Name: "issue again", Given: facts{issued}, When: issue},
		tc{Name: "issue with more permissions", Given: facts{issued}, When: more, Err: aggregates.ErrAPIKeyExists},
		tc{Name: "issue for longer", Given: facts{issued}, When: longer, Err: aggregates.ErrAPIKeyExists},
		tc{Name: "issue for everywhere", Given: facts{issued}, When: wider, Err: aggregates.ErrAPIKeyExists},
		tc{Name: "issue without bounds", When: unbounded, Then: facts{events.APIKeyIssued{
			SHA256: "ab", Home: "acme", Tenants: []string{"acme"}, Role: "OPERATOR", Permissions: []string{}, Addresses: []string{},
		}}},
	)
}
