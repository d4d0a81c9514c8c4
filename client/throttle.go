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
	Tokens      int64     `json:"tokens"` // maximum for all flows of one credential together, per period
	Per         string    `json:"per"`    // the period: second, minute, hour or day
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"` // "key:<id>"
	UpdatedAt   time.Time `json:"updated_at"`
	Seq         uint64    `json:"seq"` // log sequence of the last change
}

// ThrottleSettings are the settings of a throttle policy. A change leaves empty members unchanged.
type ThrottleSettings struct {
	Description *string `json:"description,omitzero"`
	Tokens      int64   `json:"tokens,omitzero"` // 1 to 1000000000
	Per         string  `json:"per,omitzero"`    // second, minute, hour or day
}

type policySettings struct {
	ID string `json:"id,omitzero"`
	ThrottleSettings
}

// DefineThrottlePolicy creates a throttle policy; an empty id is generated
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

// AssignThrottlePolicy assigns a throttle policy to a credential, instead of its current one; ""
// removes it (throttle_policy_unknown).
func (a *API) AssignThrottlePolicy(ctx context.Context, credential, policy string, opts ...CommandOption) (Done, error) {
	var done Done
	err := a.Command(ctx, "credential.assign-throttle-policy", struct {
		ID     string `json:"id"`
		Policy string `json:"throttle_policy,omitzero"`
	}{credential, policy}, &done, opts...)
	return done, err
}

// GetThrottlePolicy returns one throttle policy, no older than the log sequence minSeq.
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

// Taken is the response to TakeTokens.
type Taken struct {
	Granted        bool // the call may be made; if false, retry after RetryAfter
	RetryAfter     time.Duration
	Remaining      int64  // tokens that are left now, for all flows of the credential
	ThrottlePolicy string // id of the policy; "" if the credential has none, so nothing is counted
}

// TakeTokens takes tokens from the limit of a credential before a flow calls its API; the flow may
// be "". The key needs the permission credentials.resolve. A denial is not an error. If the outcome
// of a call is unknown, it may have taken the tokens.
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
