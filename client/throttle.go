package client

import (
	"context"
	"iter"
	"time"
)

// ThrottlePolicy is what the service shows of a throttle policy.
type ThrottlePolicy struct {
	ID          string    `json:"id"`
	Description string    `json:"description"`
	Tokens      int64     `json:"tokens"` // granted to all flows of a credential in any period, at most
	Per         string    `json:"per"`    // the period: second, minute, hour or day
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"` // "key:<id>"
	UpdatedAt   time.Time `json:"updated_at"`
	Seq         uint64    `json:"seq"` // log sequence of the last change
}

// ThrottleSettings are what a throttle policy says. Of a change, what is empty stays.
type ThrottleSettings struct {
	Description *string `json:"description,omitzero"`
	Tokens      int64   `json:"tokens,omitzero"` // 1 to 1000000000
	Per         string  `json:"per,omitzero"`    // second, minute, hour or day
}

type policySettings struct {
	ID string `json:"id,omitzero"`
	ThrottleSettings
}

// DefineThrottlePolicy makes a throttle policy; with id "" the service makes an id
// (throttle_policy_exists).
func (a *API) DefineThrottlePolicy(ctx context.Context, id string, settings ThrottleSettings, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "throttle_policy.define", policySettings{id, settings}, &done, opts...)
	return done, err
}

// ChangeThrottlePolicy changes a throttle policy for all credentials that have it.
func (a *API) ChangeThrottlePolicy(ctx context.Context, id string, settings ThrottleSettings, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "throttle_policy.change", policySettings{id, settings}, &done, opts...)
	return done, err
}

// DeleteThrottlePolicy deletes a throttle policy. It is refused while a credential has it
// (throttle_policy_in_use).
func (a *API) DeleteThrottlePolicy(ctx context.Context, id string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "throttle_policy.delete", change{ID: id}, &done, opts...)
	return done, err
}

// AssignThrottlePolicy gives a credential a throttle policy in place of the one it has; ""
// is none (throttle_policy_unknown).
func (a *API) AssignThrottlePolicy(ctx context.Context, credential, policy string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "credential.assign-throttle-policy", struct {
		ID     string `json:"id"`
		Policy string `json:"throttle_policy,omitzero"`
	}{credential, policy}, &done, opts...)
	return done, err
}

// GetThrottlePolicy returns one throttle policy; minSeq, when not 0, is the log sequence
// that the answer reflects at least.
func (a *API) GetThrottlePolicy(ctx context.Context, id string, minSeq uint64) (ThrottlePolicy, error) {
	var p ThrottlePolicy
	err := a.Query(ctx, "throttle_policy.get", struct {
		ID     string `json:"id"`
		MinSeq uint64 `json:"min_seq,omitzero"`
	}{id, minSeq}, &p)
	return p, err
}

// ThrottlePolicies yields the tenant's throttle policies by id.
func (a *API) ThrottlePolicies(ctx context.Context) iter.Seq2[ThrottlePolicy, error] {
	return listed(ctx, a, "throttle_policy.list", func(p idPage) []ThrottlePolicy { return p.Policies })
}

// Taken is the answer to TakeTokens.
type Taken struct {
	Granted        bool // make the call; when false, take again after RetryAfter
	RetryAfter     time.Duration
	Remaining      int64  // tokens that are left now, for all flows of the credential
	ThrottlePolicy string // id of the policy that applies; "" when the credential has none: then nothing is counted
}

// TakeTokens takes tokens from the limit of a credential before a call to its API, for a flow,
// which may be "". The client's key needs the permission credentials.resolve. A denial is no
// error. A call whose outcome is unknown may have taken the tokens.
func (a *API) TakeTokens(ctx context.Context, credential, flow string, tokens int64) (Taken, error) {
	var answer struct {
		Granted        bool   `json:"granted"`
		RetryAfter     int64  `json:"retry_after_ms"`
		Remaining      int64  `json:"remaining"`
		ThrottlePolicy string `json:"throttle_policy"`
	}
	err := a.Query(ctx, "throttle.take", struct {
		Credential string `json:"credential"`
		Tokens     int64  `json:"tokens"`
		Flow       string `json:"flow,omitzero"`
	}{credential, tokens, flow}, &answer)
	return Taken{answer.Granted, time.Duration(answer.RetryAfter) * time.Millisecond, answer.Remaining, answer.ThrottlePolicy}, err
}
