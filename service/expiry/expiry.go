// Package expiry warns of credentials, OAuth clients and API keys that are about to expire: with an
// event per threshold, and a list.
package expiry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Errors of the configuration and of a list.
var (
	ErrThresholds = fault.New(fault.Invalid, "config_expiry_warnings",
		`--expiry-warnings must list at most 10 numbers of days from 1 to 3650, such as "30,7,1", or be "none".`)
	ErrWithin = fault.New(fault.Invalid, "expiry_within_invalid", `within must be a number of days such as "30d", or a duration such as "12h", up to 3650d.`)
	ErrKind   = fault.New(fault.Invalid, "expiry_kind_invalid", `kind must be "credential", "oauth_client" or "api_key".`)
)

const (
	day           = 24 * time.Hour
	maxDays       = 3650
	maxThresholds = 10
	warnEvery     = 10 * time.Second
	flowsShown    = 20
	expiredFor    = 30 * day // an expiry is listed after it has passed
)

// DefaultThresholds are the days before an expiry at which an event warns of it.
const DefaultThresholds = "30,7,1"

// Thresholds parses numbers of days, separated by commas, and sorts them: the smallest first.
// "none" has none. It returns ErrThresholds.
func Thresholds(text string) (days []int, err error) {
	if text == "none" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || n < 1 || n > maxDays || len(days) == maxThresholds {
			return nil, ErrThresholds
		}
		days = append(days, n)
	}
	slices.Sort(days)
	return slices.Compact(days), nil
}

// Deps are the dependencies of a Service.
type Deps struct {
	Kernel *service.Kernel
	Log    *aggregates.Log
	Views  *projections.Views
	Logger *slog.Logger
	Days   []int // thresholds, as Thresholds returns them
}

// Service implements the routes of expiries. It is safe for concurrent use.
type Service struct{ Deps }

// New creates a Service.
func New(deps Deps) *Service { return &Service{deps} }

// Answers are none: the feature has no commands for callers.
func (s *Service) Answers() []service.Answer { return nil }

// Routes are the routes of the feature.
func (s *Service) Routes() []service.Route {
	return []service.Route{
		service.Query("expiry.list", permission.CredentialsGet, s.list,
			"What expires soon or has expired in the last 30 days, the earliest first: credentials, and the OAuth clients and API keys that the caller may list.").Scan().Bounded(),
	}
}

// Run records early warnings until ctx ends, and returns nil. One process of an installation should
// run it; several do no harm.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(warnEvery)
	defer tick.Stop()
	for {
		if err := s.Warn(ctx); err != nil && ctx.Err() == nil {
			s.Logger.WarnContext(ctx, "not all early warnings of expiries were recorded; will retry", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Warn is one round of Run. An expiry gets one event for the smallest threshold that it has
// reached: those that passed while no process ran are not made up for, nor is an expiry that has
// passed.
func (s *Service) Warn(ctx context.Context) error {
	if s.Kernel.WritesAllowed() != nil {
		return nil
	}
	var errs []error
	from := s.Kernel.Now()
	now := from
	for _, days := range s.Days {
		to := now.Add(time.Duration(days) * day)
		for after := (projections.Expiry{}); ; {
			page, err := s.Views.UnwarnedExpiries(ctx, from, to, days, after, service.BackgroundBatch)
			if err != nil {
				return errors.Join(append(errs, err)...)
			}
			for _, x := range page {
				if err := s.warn(ctx, x, days); err != nil {
					errs = append(errs, fmt.Errorf("%s %s of tenant %s: %w", x.Kind, x.ID, x.Tenant, err))
				}
			}
			if len(page) < service.BackgroundBatch || ctx.Err() != nil {
				break
			}
			after = page[len(page)-1]
		}
		from = to
	}
	return errors.Join(errs...)
}

// warn records a warning, unless the log has it, or something else expires by now.
func (s *Service) warn(ctx context.Context, x projections.Expiry, days int) (err error) {
	call := service.System(x.Tenant, "expiry-warner")
	switch x.Kind {
	case aggregates.Credential.Category:
		_, _, err = service.Execute(ctx, s.Kernel, call, aggregates.Credential, x.Tenant,
			commands.Credential(commands.WarnCredential{ID: x.ID, Expires: x.Expires, Days: days}))
	case aggregates.OAuthClient.Category:
		_, _, err = service.Execute(ctx, s.Kernel, call, aggregates.OAuthClient, x.Tenant,
			commands.OAuthClient(commands.WarnOAuthClient{Component: x.ID, Expires: x.Expires, Days: days}))
	case aggregates.APIKey.Category:
		_, _, err = service.Execute(ctx, s.Kernel, call, aggregates.APIKey, events.System,
			commands.APIKey(commands.WarnAPIKey{ID: x.ID, Days: days}))
	}
	return err
}

// List asks for what expires.
type List struct {
	Within string `json:"within,omitzero"`  // what expires in at most this time, such as "30d" or "12h"; "30d" when absent
	Kind   string `json:"kind,omitzero"`    // only "credential", "oauth_client" or "api_key"
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

// Page answers List: what has expired in the last 30 days or expires soon, the earliest first.
type Page struct {
	Expiries []Expiry `json:"expiries"`
	Next     string   `json:"next,omitzero"` // cursor of the next page; absent on the last
}

// Expiry is something that expires.
type Expiry struct {
	Kind        string    `json:"kind"`                 // "credential", "oauth_client" or "api_key"
	ID          string    `json:"id"`                   // of an OAuth client: its component
	Name        string    `json:"name,omitzero"`        // of a credential or API key
	Component   string    `json:"component,omitzero"`   // of a credential or OAuth client
	What        string    `json:"what"`                 // "keys" and "access_token" of a credential, "client_secret" or "api_key"
	Expires     time.Time `json:"expires"`              // when
	Expired     bool      `json:"expired,omitzero"`     // it has passed
	WarnedDays  int       `json:"warned_days,omitzero"` // threshold of the last event that warned of it; absent before the first
	Flows       []Flow    `json:"flows"`                // up to 20 flows that would break, those that are active first
	ActiveFlows int       `json:"active_flows"`         // how many active flows use it, shown or not
}

// Flow is a flow that would break.
type Flow struct {
	ID     string `json:"id"`
	Name   string `json:"name,omitzero"`
	Active bool   `json:"active"`
}

// within parses a time in days or as a duration.
func within(text string) (time.Duration, error) {
	if text == "" {
		return 30 * day, nil
	}
	if days, found := strings.CutSuffix(text, "d"); found {
		n, err := strconv.Atoi(days)
		if err != nil || n < 0 || n > maxDays {
			return 0, ErrWithin.At("/within")
		}
		return time.Duration(n) * day, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || d > maxDays*day {
		return 0, ErrWithin.At("/within")
	}
	return d, nil
}

// kinds are those that the caller may list; only one of them unless it is "".
func kinds(p service.Principal, only string) (list []string) {
	for _, kind := range []struct {
		name string
		perm permission.Permission
	}{
		{aggregates.Credential.Category, permission.CredentialsGet},
		{aggregates.OAuthClient.Category, permission.OAuthClientsGet},
		{aggregates.APIKey.Category, permission.KeysManage},
	} {
		// A key that is bound to some credentials lists nothing of the whole tenant.
		if (only == "" || only == kind.name) && p.May(kind.perm) && (kind.name == aggregates.Credential.Category || !p.Scope.Narrow()) {
			list = append(list, kind.name)
		}
	}
	return list
}

func (s *Service) list(ctx context.Context, call *service.Call, in List) (Page, error) {
	out := Page{Expiries: []Expiry{}}
	ahead, err := within(in.Within)
	if err != nil {
		return out, err
	}
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return out, err
	}
	switch in.Kind {
	case "", aggregates.Credential.Category, aggregates.OAuthClient.Category, aggregates.APIKey.Category:
	default:
		return out, ErrKind.At("/kind")
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return out, err
	}
	of := kinds(call.Principal, in.Kind)
	if len(of) == 0 {
		return out, nil
	}
	now := s.Kernel.Now()
	page, next, err := s.Views.Expiries(ctx, call.Tenant, of, call.Principal.Scope, now.Add(-expiredFor), now.Add(ahead), in.After, limit)
	if err != nil {
		return out, err
	}
	out.Next = next
	for _, x := range page {
		shown := Expiry{Kind: x.Kind, ID: x.ID, Name: x.Name, Expires: x.Expires, Expired: !now.Before(x.Expires), WarnedDays: x.Warned, Flows: []Flow{}}
		filter := projections.FlowFilter{Tenant: call.Tenant, Limit: flowsShown, Scope: call.Principal.Scope}
		switch x.Kind {
		case aggregates.Credential.Category:
			if x.Credential == nil {
				continue // it is in the same views
			}
			shown.Component, filter.Credential = x.Credential.Component, x.ID
			shown.What, _ = x.Credential.Expiry()
		case aggregates.OAuthClient.Category:
			shown.Component, filter.Component, shown.What = x.ID, x.ID, "client_secret"
		default:
			shown.What = "api_key"
		}
		if x.Kind != aggregates.APIKey.Category {
			if err := s.addFlows(ctx, &shown, filter); err != nil {
				return out, err
			}
		}
		out.Expiries = append(out.Expiries, shown)
	}
	return out, nil
}

// addFlows adds the flows that would break: those that are active first, each group by id.
func (s *Service) addFlows(ctx context.Context, x *Expiry, filter projections.FlowFilter) error {
	all := filter
	filter.Active = true
	active, more, err := s.Views.Flows(ctx, filter)
	if err != nil {
		return err
	}
	x.ActiveFlows = len(active)
	if more != "" {
		if _, x.ActiveFlows, err = s.Views.CountNaming(ctx, filter.Tenant, x.Kind, x.ID); err != nil {
			return err
		}
	}
	flows := active
	if len(active) < flowsShown {
		rest, _, err := s.Views.Flows(ctx, all)
		if err != nil {
			return err
		}
		flows = append(flows, slices.DeleteFunc(rest, func(f projections.Flow) bool { return f.Active })...)
	}
	for _, f := range flows[:min(len(flows), flowsShown)] {
		x.Flows = append(x.Flows, Flow{ID: f.ID, Name: f.Name, Active: f.Active})
	}
	return nil
}
