package commands

import "github.com/credstream/credstream/events"

// ThrottlePolicy is the set of commands on one throttle policy.
//
//sumtype:decl
type ThrottlePolicy interface {
	Command
	throttlePolicy()
}

// DefineThrottlePolicy creates a policy with an unused id.
type DefineThrottlePolicy struct {
	ID     string
	Policy events.ThrottleSettings
}

// ChangeThrottlePolicy changes the members that are set.
type ChangeThrottlePolicy struct {
	ID          string
	Description *string         // nil: unchanged
	Tokens      int64           // 0: unchanged
	Per         events.TimeUnit // "": unchanged
}

// UseThrottlePolicy records that the policy is about to be assigned to a credential.
type UseThrottlePolicy struct{ ID, Credential, Use string }

// ReleaseThrottlePolicy ends one use.
type ReleaseThrottlePolicy struct{ ID, Use string }

// DeleteThrottlePolicy deletes a policy that no credential has.
type DeleteThrottlePolicy struct{ ID string }

// Target implements Command.
func (c DefineThrottlePolicy) Target() string  { return c.ID }
func (c ChangeThrottlePolicy) Target() string  { return c.ID }
func (c UseThrottlePolicy) Target() string     { return c.ID }
func (c ReleaseThrottlePolicy) Target() string { return c.ID }
func (c DeleteThrottlePolicy) Target() string  { return c.ID }

func (DefineThrottlePolicy) throttlePolicy()  {}
func (ChangeThrottlePolicy) throttlePolicy()  {}
func (UseThrottlePolicy) throttlePolicy()     {}
func (ReleaseThrottlePolicy) throttlePolicy() {}
func (DeleteThrottlePolicy) throttlePolicy()  {}
