package aggregates

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// Errors of a component.
var (
	ErrComponentNotFound = fault.New(fault.NotFound, "component_not_found", "Component not found.")
	ErrComponentIDTaken  = fault.New(fault.Exists, "component_id_taken",
		"This component id is taken. Ids are unique in the installation and are never reused.")
	ErrComponentNotOwner = fault.New(fault.Denied, "component_not_owner", "Only the component's owner can change it.")
	ErrComponentDeleted  = fault.New(fault.Precondition, "component_deleted",
		"The component was deleted. Its credentials remain, but none can be created or changed.")
	// ErrComponentChanged refuses secrets that were entered for another revision of the descriptor.
	// ErrComponentRevisionStale refuses an update that would overwrite another one.
	ErrComponentChanged = fault.New(fault.Precondition, "component_changed",
		"The component was changed since you read it. Nothing was sent or saved. Read it again, and repeat the command if its hosts are still correct.")
	ErrComponentRevisionStale = fault.New(fault.Precondition, "component_revision_stale",
		"Somebody else updated the component since you read it. Nothing was saved. Compare your changes with the current revision.")
)

// Component is the aggregate of one component.
var Component = Decider[ComponentState, commands.Component, events.Component]{
	Category: "component", Fold: 3, Decide: ComponentState.decide, Evolve: ComponentState.evolve,
}

// ComponentState is the state of a component. The descriptor
// itself is read from the log by its revision.
type ComponentState struct {
	Exists   bool
	Deleted  bool
	Owner    string
	Shared   bool
	Revision int    // of the descriptor: 1, 2, 3, ...
	SHA256   string // hex, of the current descriptor

	EnvNames    []string // variables of the descriptor that have a value
	EnvSecret   string   // id of the secret with their values, "" for none
	EnvRevision int      // revision of the descriptor when they were given
	Abandoned   []string // secret ids that no event may name from now on
}

// References reports whether the secret holds the values of the variables.
func (s ComponentState) References(secretID string) bool {
	return s.Exists && !s.Deleted && s.EnvSecret == secretID
}

// Secrets is the id of the secret that holds the component's variables.
func (s ComponentState) Secrets() []string { return []string{s.EnvSecret} }

// VisibleTo reports whether a tenant may see the component.
func (s ComponentState) VisibleTo(tenant string) bool {
	return s.Exists && (s.Shared || s.Owner == tenant)
}

// Terminal reports whether no further event can name a secret.
func (s ComponentState) Terminal() bool { return s.Deleted }

func (s ComponentState) decide(cmd commands.Component) ([]events.Component, error) {
	switch c := cmd.(type) {
	case commands.RegisterComponent:
		if s.Exists {
			return nil, ErrComponentIDTaken
		}
		return []events.Component{events.ComponentRegistered{Owner: c.Owner, Title: c.Title, Descriptor: c.Descriptor}}, nil
	case commands.UpdateComponent:
		if err := s.mayChange(c.Owner); err != nil {
			return nil, err
		}
		if digest(c.Descriptor) == s.SHA256 {
			return nil, nil
		}
		if c.Expected != 0 && c.Expected != s.Revision {
			return nil, ErrComponentRevisionStale
		}
		return []events.Component{events.ComponentUpdated{Title: c.Title, Descriptor: c.Descriptor, Revision: s.Revision + 1}}, nil
	case commands.ShareComponent:
		if err := s.mayChange(c.Owner); err != nil || s.Shared {
			return nil, err
		}
		return []events.Component{events.ComponentShared{}}, nil
	case commands.UnshareComponent:
		if err := s.mayChange(c.Owner); err != nil || !s.Shared {
			return nil, err
		}
		return []events.Component{events.ComponentUnshared{}}, nil
	case commands.SetComponentEnv:
		if err := s.mayChange(c.Owner); err != nil {
			return nil, err
		}
		switch {
		case c.Revision != s.Revision:
			return nil, ErrComponentChanged
		case slices.Contains(s.Abandoned, c.SecretID):
			return nil, ErrSecretAbandoned
		}
		return []events.Component{events.ComponentEnvSet{Names: c.Names, SecretID: c.SecretID}}, nil
	case commands.AbandonEnvSecret:
		if s.References(c.SecretID) || slices.Contains(s.Abandoned, c.SecretID) {
			return nil, nil
		}
		return []events.Component{events.SecretAbandoned{SecretID: c.SecretID}}, nil
	case commands.DeleteComponent:
		if err := s.mayChange(c.Owner); err != nil {
			return nil, err
		}
		return []events.Component{events.ComponentDeleted{}}, nil
	}
	return nil, unknownCommand(cmd)
}

// mayChange refuses everybody but the owner. A tenant that may not see the component
// gets "not found".
func (s ComponentState) mayChange(tenant string) error {
	switch {
	case !s.VisibleTo(tenant):
		return ErrComponentNotFound
	case s.Owner != tenant:
		return ErrComponentNotOwner
	case s.Deleted:
		return ErrComponentDeleted
	}
	return nil
}

func (s ComponentState) evolve(e events.Component) ComponentState {
	switch e := e.(type) {
	case events.ComponentRegistered:
		return ComponentState{Exists: true, Owner: e.Owner, Revision: 1, SHA256: digest(e.Descriptor), Abandoned: s.Abandoned}
	case events.ComponentUpdated:
		s.Revision, s.SHA256 = e.Revision, digest(e.Descriptor)
	case events.ComponentShared:
		s.Shared = true
	case events.ComponentUnshared:
		s.Shared = false
	case events.ComponentEnvSet:
		s.EnvNames, s.EnvSecret, s.EnvRevision = e.Names, e.SecretID, s.Revision
	case events.ComponentDeleted:
		s.Deleted, s.EnvNames, s.EnvSecret, s.EnvRevision = true, nil, "", 0
	case events.SecretAbandoned:
		s.Abandoned = append(slices.Clip(s.Abandoned), e.SecretID)
	}
	return s
}

func digest(descriptor string) string {
	sum := sha256.Sum256([]byte(descriptor))
	return hex.EncodeToString(sum[:])
}
