package events

import "time"

// ThrottlePolicy is the set of events about one throttle policy, which limits how often flows use
// a credential: stream "throttle_policy.<id>" within its tenant.
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

// Duration returns the length of the period, 0 for an unknown unit.
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

// ThrottleSettings are the settings of a throttle policy.
type ThrottleSettings struct {
	Description string   `json:"description"` // for people, or ""
	Tokens      int64    `json:"tokens"`      // maximum for all flows of one credential together, per period
	Per         TimeUnit `json:"per"`         // the period: second, minute, hour or day
}

// Public implements fieldPublisher: the settings contain no secret.
func (s ThrottleSettings) Public() any { return s }

// ThrottlePolicyDefined records: The policy was created.
type ThrottlePolicyDefined struct {
	Policy ThrottleSettings `json:"policy" feed:",embed"`
}

// ThrottlePolicyChanged records: The policy was changed. The event contains all settings.
type ThrottlePolicyChanged struct {
	Policy ThrottleSettings `json:"policy" feed:",embed"`
}

// ThrottlePolicyUsed records: The policy is assigned to a credential, or is about to be.
type ThrottlePolicyUsed struct {
	Credential string `json:"credential" feed:"-"`
	Use        string `json:"use" feed:"-"` // a new id for each attempt
}

// ThrottlePolicyReleased records: One use of the policy ended.
type ThrottlePolicyReleased struct {
	Use string `json:"use" feed:"-"`
}

// ThrottlePolicyDeleted records: The policy was deleted. No credential has it.
type ThrottlePolicyDeleted struct{}

func (ThrottlePolicyDefined) throttlePolicy()  {}
func (ThrottlePolicyChanged) throttlePolicy()  {}
func (ThrottlePolicyUsed) throttlePolicy()     {}
func (ThrottlePolicyReleased) throttlePolicy() {}
func (ThrottlePolicyDeleted) throttlePolicy()  {}

// For the feed and the audit stream, credential.throttle_policy_assigned shows who uses a policy.
var throttlePolicyTypes = []Type{
	Define[ThrottlePolicyDefined]("throttle_policy.defined", Changes),
	Define[ThrottlePolicyChanged]("throttle_policy.changed", Changes),
	Define[ThrottlePolicyUsed]("throttle_policy.used", Internal),
	Define[ThrottlePolicyReleased]("throttle_policy.released", Internal),
	Define[ThrottlePolicyDeleted]("throttle_policy.deleted", Changes),
}
