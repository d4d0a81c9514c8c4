package events

import "slices"

// Scope restricts an API key to some of the credentials of its tenants. An empty list does not
// restrict; the others combine by AND. The compared properties of a credential never change, so
// neither does the result of Reaches.
type Scope struct {
	Components  []string `json:"components"`  // ids; credentials of free types belong to none
	Workspaces  []string `json:"workspaces"`  // the ids with which credentials were created
	Credentials []string `json:"credentials"` // ids
}

// PublicScope is the public form of a Scope.
type PublicScope struct {
	Components  []string `json:"components,omitempty"`
	Workspaces  []string `json:"workspaces,omitempty"`
	Credentials []string `json:"credentials,omitempty"`
}

// Public returns the public form of s.
func (s Scope) Public() any { return PublicScope(s) }

// Narrow reports whether the scope excludes any credential.
func (s Scope) Narrow() bool {
	return len(s.Components)+len(s.Workspaces)+len(s.Credentials) > 0
}

// Reaches reports whether a credential is in the scope. component is "" for a free type.
func (s Scope) Reaches(id, component, workspace string) bool {
	return allows(s.Credentials, id) && allows(s.Components, component) && allows(s.Workspaces, workspace)
}

func allows(list []string, one string) bool { return len(list) == 0 || slices.Contains(list, one) }

// Within reports whether the other scope reaches everything that this one reaches.
func (s Scope) Within(other Scope) bool {
	return inside(s.Components, other.Components) && inside(s.Workspaces, other.Workspaces) && inside(s.Credentials, other.Credentials)
}

func inside(list, other []string) bool {
	return len(other) == 0 || len(list) > 0 && !slices.ContainsFunc(list, func(one string) bool { return !slices.Contains(other, one) })
}

// Equal reports whether two scopes have the same lists.
func (s Scope) Equal(other Scope) bool {
	return slices.Equal(s.Components, other.Components) && slices.Equal(s.Workspaces, other.Workspaces) && slices.Equal(s.Credentials, other.Credentials)
}
