package commands

import "github.com/credstream/credstream/events"

// ThrottlePolicy is the sum of the intents about one throttle policy.
//
//sumtype:decl
type ThrottlePolicy interface {
	Command
	throttlePolicy()
}

// DefineThrottlePolicy makes a policy of an id that no policy has.
type DefineThrottlePolicy struct {
	ID     string
	Policy events.ThrottleSettings
}

// ChangeThrottlePolicy changes what is given.
type ChangeThrottlePolicy struct {
	ID          string
	Description *string         // nil: stays
	Tokens      int64           // 0: stays
	Per         events.TimeUnit // "": stays
}

// UseThrottlePolicy records that the policy is about to be assigned to a credential.
type UseThrottlePolicy struct{ ID, Credential, Use string }

// ReleaseThrottlePolicy ends one use.
type ReleaseThrottlePolicy struct{ ID, Use string }

// DeleteThrottlePolicy ends a policy that no credential has.
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
