package events

import "time"

// ThrottlePolicy is the sum of the facts about one throttle policy, which limits how often
// flows use a credential: stream "throttle_policy.<id>" within its tenant.
//
//sumtype:decl
type ThrottlePolicy interface{ throttlePolicy() }

// TimeUnit is the period of a throttle policy.
type TimeUnit string

// The periods of a throttle policy.
const (
	PerSecond TimeUnit = "second"
	PerMinute TimeUnit = "minute"
	PerHour   TimeUnit = "hour"
	PerDay    TimeUnit = "day"
)

// Duration is the length of the period, 0 of one that is not known.
func (u TimeUnit) Duration() time.Duration {
	switch u {
	case PerSecond:
		return time.Second
	case PerMinute:
		return time.Minute
	case PerHour:
		return time.Hour
	case PerDay:
		return 24 * time.Hour
	}
	return 0
}

// ThrottleSettings are what a throttle policy says.
type ThrottleSettings struct {
	Description string   `json:"description"` // for people, or ""
	Tokens      int64    `json:"tokens"`      // granted to all flows of a credential in any period, at most
	Per         TimeUnit `json:"per"`         // the period: second, minute, hour or day
}

// Public implements formedPart: the settings hold no secret.
func (s ThrottleSettings) Public() any { return s }

// ThrottlePolicyDefined is the policy as it was defined.
type ThrottlePolicyDefined struct {
	Policy ThrottleSettings `json:"policy" feed:",embed"`
}

// ThrottlePolicyChanged is the policy as it is from here on.
type ThrottlePolicyChanged struct {
	Policy ThrottleSettings `json:"policy" feed:",embed"`
}

// ThrottlePolicyUsed says that the policy is assigned to a credential, or is about to be.
type ThrottlePolicyUsed struct {
	Credential string `json:"credential" feed:"-"`
	Use        string `json:"use" feed:"-"` // a new id for each attempt
}

// ThrottlePolicyReleased ends one use of the policy.
type ThrottlePolicyReleased struct {
	Use string `json:"use" feed:"-"`
}

// ThrottlePolicyDeleted ends the policy. No credential has it.
type ThrottlePolicyDeleted struct{}

func (ThrottlePolicyDefined) throttlePolicy()  {}
func (ThrottlePolicyChanged) throttlePolicy()  {}
func (ThrottlePolicyUsed) throttlePolicy()     {}
func (ThrottlePolicyReleased) throttlePolicy() {}
func (ThrottlePolicyDeleted) throttlePolicy()  {}

// credential.throttle_policy_assigned tells the feed and the audit trail who uses a policy.
var throttlePolicyTypes = []Type{
	Define[ThrottlePolicyDefined]("throttle_policy.defined", Changes),
	Define[ThrottlePolicyChanged]("throttle_policy.changed", Changes),
	Define[ThrottlePolicyUsed]("throttle_policy.used", Internal),
	Define[ThrottlePolicyReleased]("throttle_policy.released", Internal),
	Define[ThrottlePolicyDeleted]("throttle_policy.deleted", Changes),
}
