package aggregates

import (
	"slices"
	"time"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of an API key.
var (
	ErrAPIKeyNotFound = fault.New(fault.NotFound, "api_key_not_found", "API key not found.")
	// ErrScopeExceeded refuses a change that concerns credentials to which the caller's key is
	// not bound.
	ErrScopeExceeded = fault.New(fault.Denied, "key_scope_exceeded",
		"Your key is bound to other credentials than this concerns. Use a key that reaches them.")
	ErrAPIKeyExists = fault.New(fault.Exists, "api_key_exists", "An API key with this id already exists.")
)

// APIKey is the aggregate of one API key.
var APIKey = Decider[APIKeyState, commands.APIKey, events.APIKey]{
	Category: "api_key", Fold: 4, Decide: APIKeyState.decide, Evolve: APIKeyState.evolve,
}

// APIKeyState is the state of an API key.
type APIKeyState struct {
	Exists      bool
	Revoked     bool
	SHA256      string
	Home        string
	Tenants     []string
	Role        string
	Permissions []string
	Addresses   []string
	Expires     time.Time // zero: never
	Scope       events.Scope
	Name        string
	Warned      Warning
	Certificate string
}

func (s APIKeyState) decide(cmd commands.APIKey) ([]events.APIKey, error) {
	switch c := cmd.(type) {
	case commands.IssueAPIKey:
		if s.Exists {
			if !s.Revoked && s.is(c) {
				return nil, nil
			}
			return nil, ErrAPIKeyExists
		}
		return []events.APIKey{events.APIKeyIssued{
			SHA256: c.SHA256, Name: c.Name, Home: c.Home, Tenants: c.Tenants, Role: c.Role,
			Permissions: listed(c.Permissions), Addresses: listed(c.Addresses), Expires: c.Expires,
			Scope:       events.Scope{Components: listed(c.Scope.Components), Workspaces: listed(c.Scope.Workspaces), Credentials: listed(c.Scope.Credentials)},
			Certificate: c.Certificate,
		}}, nil
	case commands.RevokeAPIKey:
		switch {
		case !s.Exists:
			return nil, ErrAPIKeyNotFound
		case s.Revoked:
			return nil, nil
		}
		return []events.APIKey{events.APIKeyRevoked{}}, nil
	case commands.WarnAPIKey:
		return s.warn(c), nil
	}
	return nil, unknownCommand(cmd)
}

// is reports whether the key equals the requested one.
func (s APIKeyState) is(c commands.IssueAPIKey) bool {
	return s.SHA256 == c.SHA256 && s.Home == c.Home && s.Role == c.Role && slices.Equal(s.Tenants, c.Tenants) &&
		slices.Equal(s.Permissions, c.Permissions) && slices.Equal(s.Addresses, c.Addresses) && s.Expires.Equal(c.Expires) && s.Scope.Equal(c.Scope) && s.Certificate == c.Certificate
}

// listed is the stored form of a list: "[]" when it is empty.
func listed(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (s APIKeyState) evolve(e events.APIKey) APIKeyState {
	switch e := e.(type) {
	case events.APIKeyIssued:
		return APIKeyState{
			Exists: true, SHA256: e.SHA256, Home: e.Home, Tenants: e.Tenants, Role: e.Role,
			Permissions: e.Permissions, Addresses: e.Addresses, Expires: e.Expires, Scope: e.Scope, Name: e.Name, Certificate: e.Certificate,
		}
	case events.APIKeyRevoked:
		s.Revoked = true
	case events.APIKeyExpiring:
		s.Warned = Warning{Expires: e.Expires, Days: e.Days}
	}
	return s
}
