package aggregates

import (
	"maps"
	"slices"

	"github.com/benbjohnson/immutable"
	"github.com/go-json-experiment/json"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// The refusals of a throttle policy.
var (
	ErrThrottlePolicyNotFound = fault.New(fault.NotFound, "throttle_policy_not_found", "Throttle policy not found.")
	ErrThrottlePolicyExists   = fault.New(fault.Exists, "throttle_policy_exists", "A throttle policy with this id already exists.")
	// ErrThrottlePolicyInUse keeps a policy that credentials have. Its sentence names the credentials.
	ErrThrottlePolicyInUse = fault.New(fault.Precondition, "throttle_policy_in_use",
		"The throttle policy is assigned to credentials. Assign another policy to them, or none, then delete it.")
	// ErrThrottlePolicyUnknown refuses to assign a policy that does not exist.
	ErrThrottlePolicyUnknown = fault.New(fault.Unprocessable, "throttle_policy_unknown",
		"No throttle policy has this id. Define the policy first, or give the id of an existing one.")
	// ErrPolicyUseStale tells the service that what it knew of a credential's use of a policy
	// is old, or that the use was abandoned: it must use the policy anew. No caller sees it.
	ErrPolicyUseStale = fault.New(fault.Conflict, "throttle_policy_use_moved", "The credential was changed concurrently. Try again.")
)

// ThrottlePolicy decides what may happen to one throttle policy. Its id may be used again
// when it was deleted.
var ThrottlePolicy = Decider[ThrottlePolicyState, commands.ThrottlePolicy, events.ThrottlePolicy]{
	Category: "throttle_policy", Fold: 1, Decide: ThrottlePolicyState.decide, Evolve: ThrottlePolicyState.evolve,
	Weight: func(s ThrottlePolicyState) int { return s.Uses.Len() },
}

// ThrottlePolicyState is what decisions about a throttle policy rest on.
type ThrottlePolicyState struct {
	Live     bool
	Settings events.ThrottleSettings
	Uses     PolicyUses
}

func (s ThrottlePolicyState) decide(cmd commands.ThrottlePolicy) ([]events.ThrottlePolicy, error) {
	switch c := cmd.(type) {
	case commands.DefineThrottlePolicy:
		if s.Live {
			return nil, ErrThrottlePolicyExists
		}
		return []events.ThrottlePolicy{events.ThrottlePolicyDefined{Policy: c.Policy}}, nil
	case commands.ChangeThrottlePolicy:
		if !s.Live {
			return nil, ErrThrottlePolicyNotFound
		}
		next := s.Settings
		if c.Description != nil {
			next.Description = *c.Description
		}
		if c.Tokens != 0 {
			next.Tokens = c.Tokens
		}
		if c.Per != "" {
			next.Per = c.Per
		}
		if next == s.Settings {
			return nil, nil
		}
		return []events.ThrottlePolicy{events.ThrottlePolicyChanged{Policy: next}}, nil
	case commands.UseThrottlePolicy:
		switch {
		case !s.Live:
			return nil, ErrThrottlePolicyNotFound
		case s.Uses.Has(c.Use):
			return nil, nil
		}
		return []events.ThrottlePolicy{events.ThrottlePolicyUsed{Credential: c.Credential, Use: c.Use}}, nil
	case commands.ReleaseThrottlePolicy:
		if !s.Uses.Has(c.Use) {
			return nil, nil
		}
		return []events.ThrottlePolicy{events.ThrottlePolicyReleased{Use: c.Use}}, nil
	case commands.DeleteThrottlePolicy:
		switch {
		case !s.Live:
			return nil, ErrThrottlePolicyNotFound
		case s.Uses.Len() > 0:
			return nil, ErrThrottlePolicyInUse
		}
		return []events.ThrottlePolicy{events.ThrottlePolicyDeleted{}}, nil
	}
	return nil, unknownCommand(cmd)
}

func (s ThrottlePolicyState) evolve(e events.ThrottlePolicy) ThrottlePolicyState {
	switch e := e.(type) {
	case events.ThrottlePolicyDefined:
		s.Live, s.Settings = true, e.Policy
	case events.ThrottlePolicyChanged:
		s.Settings = e.Policy
	case events.ThrottlePolicyUsed:
		s.Uses = s.Uses.with(e.Credential, e.Use)
	case events.ThrottlePolicyReleased:
		s.Uses = s.Uses.without(e.Use)
	case events.ThrottlePolicyDeleted:
		return ThrottlePolicyState{}
	}
	return s
}

// PolicyUses are the uses of one policy by credentials that have it or are about to. It is a
// value like every state: folding an event costs the same with ten uses and with ten thousand.
type PolicyUses struct {
	of *immutable.Map[string, string] // credential by use; nil when there are none
}

// Len is the number of uses.
func (u PolicyUses) Len() int {
	if u.of == nil {
		return 0
	}
	return u.of.Len()
}

// Has reports whether the policy records a use.
func (u PolicyUses) Has(use string) bool {
	if u.of == nil {
		return false
	}
	_, has := u.of.Get(use)
	return has
}

// All are the credentials by use.
func (u PolicyUses) All() map[string]string {
	all := make(map[string]string, u.Len())
	if u.of != nil {
		for it := u.of.Iterator(); !it.Done(); {
			use, credential, _ := it.Next()
			all[use] = credential
		}
	}
	return all
}

// Equal reports whether both hold the same uses.
func (u PolicyUses) Equal(other PolicyUses) bool { return maps.Equal(u.All(), other.All()) }

func (u PolicyUses) with(credential, use string) PolicyUses {
	if u.of == nil {
		u.of = immutable.NewMap[string, string](nil)
	}
	return PolicyUses{u.of.Set(use, credential)}
}

func (u PolicyUses) without(use string) PolicyUses {
	if u.of == nil {
		return u
	}
	return PolicyUses{u.of.Delete(use)}
}

// MarshalJSON writes the uses into a snapshot.
func (u PolicyUses) MarshalJSON() ([]byte, error) { return json.Marshal(u.All()) }

// UnmarshalJSON reads the uses back from a snapshot.
func (u *PolicyUses) UnmarshalJSON(b []byte) error {
	var all map[string]string
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	*u = PolicyUses{}
	if len(all) == 0 {
		return nil
	}
	of := immutable.NewMapBuilder[string, string](nil)
	for use, credential := range all {
		of.Set(use, credential)
	}
	u.of = of.Map()
	return nil
}

func (s CredentialState) assigned(p commands.PolicyUse) (events.CredentialThrottlePolicyAssigned, error) {
	if p.Policy != "" && (p.Use == "" || slices.Contains(s.AbandonedUses, p.Use)) {
		return events.CredentialThrottlePolicyAssigned{}, ErrPolicyUseStale
	}
	return events.CredentialThrottlePolicyAssigned{Policy: p.Policy, Use: p.Use}, nil
}

// abandonPolicyUse forbids a use, also before the credential exists.
func (s CredentialState) abandonPolicyUse(c commands.AbandonPolicyUse) []events.Credential {
	if s.Deleted || s.PolicyUse == c.Use || slices.Contains(s.AbandonedUses, c.Use) {
		return nil
	}
	return []events.Credential{events.CredentialThrottlePolicyUseAbandoned{Use: c.Use}}
}
