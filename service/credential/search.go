package credential

import (
	"cmp"
	"context"
	"strings"

	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/secrets"
)

// Filter selects credentials. Absent members match all; members combine by AND.
type Filter struct {
	IDs         []string `json:"ids,omitzero"`             // up to 10000
	Type        string   `json:"type,omitzero"`            // a component, or a free type
	Description string   `json:"description,omitzero"`     // substring, case-insensitive
	Policy      string   `json:"throttle_policy,omitzero"` // id of a throttle policy
}

// Errors of a search.
var (
	ErrFilterIDs = fault.New(fault.Invalid, "filter_ids_invalid", "A filter takes up to 10000 ids of 1 to 128 bytes of UTF-8 without control characters.")
	ErrFrom      = fault.New(fault.Invalid, "from_invalid", "from is a number from 0 to 1000000000.")
)

// Check validates the form of the filter.
func (f Filter) Check() error {
	if len(f.IDs) > 10_000 {
		return ErrFilterIDs.At("/ids")
	}
	for _, id := range f.IDs {
		if events.CheckID(id) != nil {
			return ErrFilterIDs.At("/ids")
		}
	}
	if f.Type != "" {
		if err := commands.CheckType(f.Type); err != nil {
			return err
		}
	}
	return cmp.Or(commands.CheckDescription(f.Description), commands.CheckRef("/throttle_policy", f.Policy))
}

// in converts the filter for the views, within the tenant and scope of the call.
func (f Filter) in(call *service.Call) projections.CredentialSearch {
	return projections.CredentialSearch{Tenant: call.Tenant, Scope: call.Principal.Scope, IDs: f.IDs, Type: f.Type, Description: f.Description, Policy: f.Policy}
}

// Search requests a page of credentials, to list or export. Filters combine by AND.
type Search struct {
	IDs         []string `json:"ids,omitzero"`             // up to 10000
	Type        string   `json:"type,omitzero"`            // a component, or a free type
	Description string   `json:"description,omitzero"`     // substring, case-insensitive
	Policy      string   `json:"throttle_policy,omitzero"` // id of a throttle policy
	Sort        string   `json:"sort,omitzero"`            // id, type, description or throttle_policy, each also with - in front, for descending; id when absent
	From        int      `json:"from,omitzero"`            // credentials to skip before the page
	After       string   `json:"after,omitzero"`           // only ids after this one; requires the sort order id
	Limit       int      `json:"limit,omitzero"`           // 1 to 1000; 50 when absent
	MinSeq      uint64   `json:"min_seq,omitzero"`         // wait until the response reflects this log sequence
}

// Found is the response to Search.
type Found struct {
	Credentials []Credential `json:"credentials"` // with their keys, every value masked
	Total       int          `json:"total"`       // number of matching credentials
}

func (s *Service) searchCredentials(ctx context.Context, call *service.Call, in Search) (Found, error) {
	found := Found{Credentials: []Credential{}}
	page, total, err := s.search(ctx, call, in)
	if err != nil {
		return found, err
	}
	found.Total = total
	for _, c := range page {
		info := credentialInfo(c)
		info.Keys = secrets.Masked(c.Fields, c.Shape)
		found.Credentials = append(found.Credentials, info)
	}
	return found, nil
}

func (s *Service) search(ctx context.Context, call *service.Call, in Search) ([]projections.Credential, int, error) {
	f := Filter{IDs: in.IDs, Type: in.Type, Description: in.Description, Policy: in.Policy}
	if err := f.Check(); err != nil {
		return nil, 0, err
	}
	limit := cmp.Or(in.Limit, 50)
	switch {
	case limit < 0 || limit > maxMany:
		return nil, 0, service.ErrLimit.Withf("A page of a search holds 1 to %d items.", maxMany).At("/limit")
	case in.From < 0 || in.From > 1_000_000_000:
		return nil, 0, ErrFrom.At("/from")
	case in.After != "" && events.CheckID(in.After) != nil:
		return nil, 0, events.ErrID.At("/after")
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return nil, 0, err
	}
	by := f.in(call)
	by.From, by.After, by.Limit = in.From, in.After, limit
	by.Sort, by.Desc = strings.CutPrefix(in.Sort, "-")
	page, total, err := s.Views.SearchCredentials(ctx, by)
	return page, total, service.PointAt(err, "/sort")
}

// Exported is the response to an export. It holds no secrets.
type Exported struct {
	Credentials []ExportedCredential `json:"credentials"`
	Missing     []MissingSecret      `json:"missing"` // values that are not exported
	Total       int                  `json:"total"`   // number of matching credentials
}

// ExportedCredential is a credential without its secrets.
type ExportedCredential struct {
	ID             string `json:"id"`
	Component      string `json:"component,omitzero"` // absent if the credential has a free type
	Type           string `json:"type,omitzero"`      // the free type, instead of component
	Name           string `json:"name"`
	Description    string `json:"description"`
	Workspace      string `json:"workspace,omitzero"`
	ThrottlePolicy string `json:"throttle_policy,omitzero"` // id
}

// MissingSecret names the keys of a credential that are not exported.
type MissingSecret struct {
	Credential string   `json:"credential"`
	Properties []string `json:"properties"` // the names of its keys
	Says       string   `json:"says"`       // why, and what to do
}

func (s *Service) exportCredentials(ctx context.Context, call *service.Call, in Search) (Exported, error) {
	out := Exported{Credentials: []ExportedCredential{}, Missing: []MissingSecret{}}
	page, total, err := s.search(ctx, call, in)
	if err != nil {
		return out, err
	}
	out.Total = total
	for _, c := range page {
		out.Credentials = append(out.Credentials, ExportedCredential{
			ID: c.ID, Component: c.Component, Type: c.Type, Name: c.Name, Description: c.Description, Workspace: c.Workspace, ThrottlePolicy: c.ThrottlePolicy,
		})
		if len(c.Fields) > 0 {
			out.Missing = append(out.Missing, MissingSecret{c.ID, c.Fields, "Secrets are not exported in clear. Enter them again after the import."})
		}
	}
	return out, nil
}
