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

// ErrKeyLast keeps an installation from being locked out.
var ErrKeyLast = fault.New(fault.Precondition, "api_key_own",
	"A key that reaches every tenant cannot revoke itself: issue another one and revoke this one with it.")

// maxKeyTenants bounds the tenants a key names one by one.
const maxKeyTenants = 100

// covers reports whether the principal reaches every one of the tenants.
func covers(p Principal, tenants []string) bool {
	for _, t := range tenants {
		if t == AllTenants && !slices.Contains(p.Tenants, AllTenants) || !p.Reaches(t) {
			return false
		}
	}
	return true
}

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
	if len(in.Tenants) > maxKeyTenants {
		return IssuedAPIKey{}, ErrKeyRights.Because("A key names at most %d tenants, or every one by \"*\".", maxKeyTenants).At("/tenants")
	}
	for _, t := range in.Tenants {
		if t != AllTenants && events.CheckName(t) != nil {
			return IssuedAPIKey{}, events.ErrID.At("/tenants")
		}
	}
	if !covers(call.Principal, in.Tenants) {
		return IssuedAPIKey{}, ErrKeyRights.At("/tenants")
	}
	key := string(NewKey().Reveal())
	done, err := s.issueKey(ctx, call, commands.IssueAPIKey{
		ID:     events.DeriveID(call.Tenant, call.Principal.Actor.ID, call.CommandID, 0),
		SHA256: hashKey(key), Name: in.Name, Home: call.Tenant, Tenants: in.Tenants, Role: string(in.Role),
	})
	if err != nil {
		return IssuedAPIKey{}, err
	}
	// The key works when its holder gets it, unless the views are late; it is
	// shown this once either way.
	_ = s.atLeast(ctx, done.Seq)
	return IssuedAPIKey{done, key}, nil
}

func (s *Service) issueKey(ctx context.Context, call *Call, cmd commands.IssueAPIKey) (Done, error) {
	_, state, err := execute(ctx, s, call, aggregates.APIKey, events.System, commands.APIKey(cmd))
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
	case !covers(call.Principal, known.Value.Tenants):
		return Done{}, ErrKeyRights.Because("A key that reaches more tenants than yours can only be revoked by one that reaches them too.")
	case in.ID == call.Principal.Actor.ID && slices.Contains(known.Value.Tenants, AllTenants):
		return Done{}, ErrKeyLast
	}
	_, state, err := execute(ctx, s, call, aggregates.APIKey, events.System, commands.APIKey(commands.RevokeAPIKey(in)))
	if err != nil {
		return Done{}, err
	}
	// Once the views know of it the key is refused everywhere in this process.
	if err := s.atLeast(ctx, state.Seq); err != nil {
		return Done{}, err
	}
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
