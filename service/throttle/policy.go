package throttle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
)

// MaxTokens bounds the tokens of a policy.
const MaxTokens = 1_000_000_000

// Errors of a policy's input.
var (
	ErrTokens      = fault.New(fault.Invalid, "throttle_tokens_invalid", "tokens must be a whole number from 1 to 1000000000.")
	ErrPer         = fault.New(fault.Invalid, "throttle_period_invalid", `per must be "second", "minute", "hour" or "day".`)
	ErrDescription = fault.New(fault.Invalid, "throttle_description_invalid",
		"The description of a throttle policy must have at most 1024 bytes of UTF-8 and no control characters.")
)

// ErrNotFound is returned for a policy that does not exist; exported for the edges.
var ErrNotFound = aggregates.ErrThrottlePolicyNotFound

// races bounds the retries of a command that loses races.
const races = 10

// Define creates a throttle policy.
type Define struct {
	ID          string          `json:"id,omitzero"`          // generated when absent
	Description string          `json:"description,omitzero"` // for people
	Tokens      int64           `json:"tokens"`               // maximum for all flows of a credential together, in any period: 1 to 1000000000
	Per         events.TimeUnit `json:"per"`                  // the period: second, minute, hour or day
}

// Check validates the policy.
func (in Define) Check() error {
	return cmp.Or(commands.CheckRef("/id", in.ID), checkDescription(in.Description), checkTokens(in.Tokens), checkPer(in.Per))
}

func checkTokens(tokens int64) error {
	if tokens < 1 || tokens > MaxTokens {
		return ErrTokens.At("/tokens")
	}
	return nil
}

func checkPer(per events.TimeUnit) error {
	if per.Duration() == 0 {
		return ErrPer.At("/per")
	}
	return nil
}

func checkDescription(text string) error {
	if len(text) > 1024 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
		return ErrDescription.At("/description")
	}
	return nil
}

func (s *Service) define(ctx context.Context, call *service.Call, in Define) (service.Done, error) {
	if in.ID == "" {
		in.ID = call.DeriveID("throttle_policy")
	}
	return s.execute(ctx, call, commands.DefineThrottlePolicy{
		ID: in.ID, Policy: events.ThrottleSettings{Description: in.Description, Tokens: in.Tokens, Per: in.Per},
	})
}

func (s *Service) execute(ctx context.Context, call *service.Call, cmd commands.ThrottlePolicy) (service.Done, error) {
	before, after, err := service.Execute(ctx, s.Kernel, call, aggregates.ThrottlePolicy, call.Tenant, cmd)
	if err != nil {
		return service.Done{}, err
	}
	return s.Kernel.Answered(aggregates.ThrottlePolicy.Stream(call.Tenant, cmd.Target()), before, after.Value, after.Seq), nil
}

// Change changes the settings of a throttle policy. Absent members are unchanged.
type Change struct {
	ID          string          `json:"id"`
	Description *string         `json:"description,omitzero"` // for people
	Tokens      int64           `json:"tokens,omitzero"`      // maximum for all flows of a credential together, in any period: 1 to 1000000000
	Per         events.TimeUnit `json:"per,omitzero"`         // the period: second, minute, hour or day
}

// Check validates the settings.
func (in Change) Check() error {
	err := service.Required("/id", in.ID)
	if in.Description != nil {
		err = cmp.Or(err, checkDescription(*in.Description))
	}
	if in.Tokens != 0 {
		err = cmp.Or(err, checkTokens(in.Tokens))
	}
	if in.Per != "" {
		err = cmp.Or(err, checkPer(in.Per))
	}
	return err
}

func (s *Service) change(ctx context.Context, call *service.Call, in Change) (service.Done, error) {
	if events.CheckID(in.ID) != nil {
		return service.Done{}, aggregates.ErrThrottlePolicyNotFound
	}
	return s.execute(ctx, call, commands.ChangeThrottlePolicy{ID: in.ID, Description: in.Description, Tokens: in.Tokens, Per: in.Per})
}

// Delete deletes a throttle policy.
type Delete struct {
	ID string `json:"id"`
}

func (s *Service) delete(ctx context.Context, call *service.Call, in Delete) (service.Done, error) {
	if err := checkID(in.ID); err != nil {
		return service.Done{}, err
	}
	for range races {
		done, err := s.execute(ctx, call, commands.DeleteThrottlePolicy{ID: in.ID})
		if !errors.Is(err, aggregates.ErrThrottlePolicyInUse) {
			return done, err
		}
		if err := s.inUse(ctx, call, in.ID); err != nil {
			return service.Done{}, err
		}
	}
	return service.Done{}, fault.ErrConflict
}

// checkID rejects an invalid policy id.
func checkID(id string) error {
	if err := service.Required("/id", id); err != nil {
		return err
	}
	if events.CheckID(id) != nil {
		return aggregates.ErrThrottlePolicyNotFound
	}
	return nil
}

// InUse are the details of the error of deleting a policy in use.
type InUse struct {
	Credentials []string `json:"credentials"` // ids of the first ones that have the policy
	Total       int      `json:"total"`       // that have it, or are about to
}

// named bounds the credentials that the error lists.
const named = 10

// inUse returns the error of deleting the policy, or nil if it is no longer in use. It releases a
// use that its credential does not have, once the credential's own stream excludes that it will
// ever have it.
func (s *Service) inUse(ctx context.Context, call *service.Call, policy string) error {
	state, err := s.policy(ctx, call.Tenant, policy)
	if err != nil {
		return err
	}
	uses := state.Uses.All()
	details := InUse{Total: len(uses)}
	for _, use := range slices.SortedFunc(maps.Keys(uses), func(a, b string) int { return cmp.Or(cmp.Compare(uses[a], uses[b]), cmp.Compare(a, b)) }) {
		if len(details.Credentials) == named {
			break
		}
		_, after, err := service.Execute(ctx, s.Kernel, call.Step(0), aggregates.Credential, call.Tenant,
			commands.Credential(commands.AbandonPolicyUse{ID: uses[use], Use: use}))
		if err != nil {
			return err
		}
		if after.Value.PolicyUse == use {
			details.Credentials = append(details.Credentials, uses[use])
			continue
		}
		details.Total--
		s.Release(ctx, call, commands.PolicyUse{Policy: policy, Use: use})
	}
	if details.Total == 0 {
		return nil
	}
	text := strings.Join(details.Credentials, ", ")
	if more := details.Total - len(details.Credentials); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return aggregates.ErrThrottlePolicyInUse.Withf(
		"The throttle policy is assigned to credentials: %s. Assign another policy to them, or none, then delete it.", text).With(details)
}

// Use records in a policy that it is about to be assigned to a credential, so that it cannot
// be deleted meanwhile; it does nothing for policy "". A process that dies before the credential
// has the policy leaves a use, which the deletion of the policy recognizes as unused. Errors:
// aggregates.ErrThrottlePolicyUnknown.
func (s *Service) Use(ctx context.Context, call *service.Call, policy, credential string) (commands.PolicyUse, error) {
	use := commands.PolicyUse{Policy: policy}
	if policy == "" {
		return use, nil
	}
	use.Use = events.NewID()
	err := events.CheckID(policy)
	if err == nil {
		_, _, err = service.Execute(ctx, s.Kernel, call.Step(0), aggregates.ThrottlePolicy, call.Tenant,
			commands.ThrottlePolicy(commands.UseThrottlePolicy{ID: policy, Credential: credential, Use: use.Use}))
	}
	if errors.Is(err, events.ErrID) || errors.Is(err, aggregates.ErrThrottlePolicyNotFound) {
		err = aggregates.ErrThrottlePolicyUnknown.At("/throttle_policy")
	}
	return use, err
}

// Release ends a use that the credential no longer has. If that fails, the use stays
// until the policy is deleted, which releases it.
func (s *Service) Release(ctx context.Context, call *service.Call, use commands.PolicyUse) {
	if use.Use == "" {
		return
	}
	_, _, err := service.Execute(ctx, s.Kernel, call.Step(1), aggregates.ThrottlePolicy, call.Tenant,
		commands.ThrottlePolicy(commands.ReleaseThrottlePolicy{ID: use.Policy, Use: use.Use}))
	if err != nil {
		s.Logger.WarnContext(ctx, "use of a throttle policy not released; the policy's deletion will release it", "tenant", call.Tenant, "policy", use.Policy, "err", err)
	}
}

// Ref identifies a throttle policy.
type Ref struct {
	ID     string `json:"id"`
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// Policy is the public form of a throttle policy.
type Policy struct {
	ID          string          `json:"id"`
	Description string          `json:"description"`
	Tokens      int64           `json:"tokens"` // maximum for all flows of a credential together, in any period
	Per         events.TimeUnit `json:"per"`    // the period: second, minute, hour or day
	CreatedAt   time.Time       `json:"created_at"`
	CreatedBy   string          `json:"created_by"` // "key:<id>"
	UpdatedAt   time.Time       `json:"updated_at"`
	Seq         uint64          `json:"seq"` // log sequence of the last change
}

func shown(p projections.ThrottlePolicy) Policy {
	return Policy{
		ID: p.ID, Description: p.Settings.Description, Tokens: p.Settings.Tokens, Per: p.Settings.Per,
		CreatedAt: p.CreatedAt, CreatedBy: p.CreatedBy, UpdatedAt: p.UpdatedAt, Seq: p.Seq,
	}
}

func (s *Service) get(ctx context.Context, call *service.Call, in Ref) (Policy, error) {
	if err := checkID(in.ID); err != nil {
		return Policy{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return Policy{}, err
	}
	p, found, err := s.Views.ThrottlePolicy(ctx, call.Tenant, in.ID)
	if err == nil && !found {
		err = aggregates.ErrThrottlePolicyNotFound
	}
	return shown(p), err
}

// List requests the throttle policies of the tenant.
type List struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// Page is the response to List, by id.
type Page struct {
	Policies []Policy `json:"policies"`
	Next     string   `json:"next,omitzero"` // cursor of the next page; absent on the last
	Total    int      `json:"total"`         // of all pages
}

func (s *Service) list(ctx context.Context, call *service.Call, in List) (Page, error) {
	limit, err := service.PageSize(in.Limit)
	if err == nil {
		err = s.Kernel.AtLeast(ctx, in.MinSeq)
	}
	if err != nil {
		return Page{}, err
	}
	page := Page{Policies: []Policy{}}
	rows, next, total, err := s.Views.ThrottlePolicies(ctx, call.Tenant, in.After, limit)
	page.Next, page.Total = next, total
	for _, p := range rows {
		page.Policies = append(page.Policies, shown(p))
	}
	return page, err
}
