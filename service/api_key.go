package service

import (
	"context"
	"slices"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
)

// The refusals of an API key's input.
var (
	ErrRole      = fault.New(fault.Invalid, "role_invalid", "A role is ADMINISTRATOR, OPERATOR, FLOW_ENGINE or AUDITOR.")
	ErrKeyRights = fault.New(fault.Denied, "api_key_exceeds_issuer", "A key cannot be given more than its issuer has.")
)

// IssueAPIKey asks for a new API key.
type IssueAPIKey struct {
	Role    Role     `json:"role"`
	Name    string   `json:"name,omitzero"`    // for people
	Tenants []string `json:"tenants,omitzero"` // tenants it may name, "*" is every one; the call's tenant when absent
}

// IssuedAPIKey answers IssueAPIKey.
type IssuedAPIKey struct {
	Done
	Key string `json:"key,omitzero"` // shown once
}

func (s *Service) issueAPIKey(ctx context.Context, call *Call, in IssueAPIKey) (IssuedAPIKey, error) {
	if _, known := Roles[in.Role]; !known {
		return IssuedAPIKey{}, ErrRole.At("/role")
	}
	if in.Name != "" {
		if err := checkName("/name", in.Name); err != nil {
			return IssuedAPIKey{}, err
		}
	}
	if len(in.Tenants) == 0 {
		in.Tenants = []string{call.Tenant}
	}
	for _, t := range in.Tenants {
		if t != AllTenants && events.CheckName(t) != nil {
			return IssuedAPIKey{}, events.ErrID.At("/tenants")
		}
		if !call.Principal.Reaches(t) || t == AllTenants && !slices.Contains(call.Principal.Tenants, AllTenants) {
			return IssuedAPIKey{}, ErrKeyRights.At("/tenants")
		}
	}
	key := string(NewKey().Reveal())
	done, err := s.issueKey(ctx, call, commands.IssueAPIKey{
		ID:     events.DeriveID(call.Tenant, call.Principal.Actor.ID, call.CommandID, 0),
		SHA256: hashKey(key), Name: in.Name, Home: call.Tenant, Tenants: in.Tenants, Role: string(in.Role),
	})
	if err != nil {
		return IssuedAPIKey{}, err
	}
	// The key works when its holder gets it.
	return IssuedAPIKey{done, key}, s.atLeast(ctx, done.Seq)
}

func (s *Service) issueKey(ctx context.Context, call *Call, cmd commands.IssueAPIKey) (Done, error) {
	state, err := execute(ctx, s, call, aggregates.APIKey, events.System, commands.APIKey(cmd))
	if err != nil {
		return Done{}, err
	}
	return Done{Seq: state.Seq, ID: cmd.ID}, nil
}

// RevokeAPIKey asks for a key's end.
type RevokeAPIKey struct {
	ID string `json:"id"`
}

func (s *Service) revokeAPIKey(ctx context.Context, call *Call, in RevokeAPIKey) (Done, error) {
	if err := checkCredential(in.ID, 0); err != nil {
		return Done{}, err
	}
	known, err := aggregates.APIKey.Fresh(ctx, s.cfg.Log, aggregates.APIKey.Stream(events.System, in.ID))
	switch {
	case err != nil:
		return Done{}, err
	case !known.Value.Exists || known.Value.Home != call.Tenant:
		return Done{}, aggregates.ErrAPIKeyNotFound
	}
	state, err := execute(ctx, s, call, aggregates.APIKey, events.System, commands.APIKey(commands.RevokeAPIKey(in)))
	if err != nil {
		return Done{}, err
	}
	if err := s.atLeast(ctx, state.Seq); err != nil {
		return Done{}, err
	}
	s.keys.Purge() // revocations are rare, and the cache knows keys by their hash
	s.keyIDs.Remove(in.ID)
	if s.cfg.KeyRevoked != nil {
		s.cfg.KeyRevoked(in.ID)
	}
	return Done{Seq: state.Seq, ID: in.ID}, nil
}

// ListAPIKeys asks for the keys whose home is the call's tenant.
type ListAPIKeys struct {
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the answer reflects this log sequence
}

// APIKeyList answers ListAPIKeys.
type APIKeyList struct {
	Keys []APIKeyInfo `json:"keys"`
}

// APIKeyInfo is what is shown of a key.
type APIKeyInfo struct {
	ID       string    `json:"id"`
	Name     string    `json:"name"`
	Role     Role      `json:"role"`
	Tenants  []string  `json:"tenants"`
	Revoked  bool      `json:"revoked"`
	IssuedAt time.Time `json:"issued_at"`
}

func (s *Service) listAPIKeys(ctx context.Context, call *Call, in ListAPIKeys) (APIKeyList, error) {
	if err := s.atLeast(ctx, in.MinSeq); err != nil {
		return APIKeyList{}, err
	}
	list := APIKeyList{Keys: []APIKeyInfo{}}
	for after := ""; ; {
		page, next, err := s.cfg.Views.APIKeys(ctx, after, 200)
		if err != nil {
			return APIKeyList{}, err
		}
		for _, k := range page {
			if k.Home == call.Tenant {
				list.Keys = append(list.Keys, APIKeyInfo{
					ID: k.ID, Name: k.Name, Role: Role(k.Role), Tenants: k.Tenants, Revoked: k.Revoked, IssuedAt: k.CreatedAt,
				})
			}
		}
		if next == "" {
			return list, nil
		}
		after = next
	}
}
