package access

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/commands"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/projections"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Errors of an API key's input.
var (
	ErrRole       = fault.New(fault.Invalid, "role_invalid", "The role must be ADMINISTRATOR, OPERATOR, FLOW_ENGINE, AUDITOR, or a role of the tenant, which role.list shows.")
	ErrPermission = fault.New(fault.Invalid, "permission_invalid", "Unknown permission. Use one of docs/permissions.md, such as credentials.get.")
	ErrKeyRights  = fault.New(fault.Denied, "api_key_exceeds_issuer", "You cannot grant permissions, tenants or networks that your own key does not have.")
	ErrKeyExpires = fault.New(fault.Invalid, "api_key_expires_invalid",
		"The expiry must be a future time, such as \"2031-01-31T00:00:00Z\", or a duration, such as \"720h\".")
	ErrKeyScope = fault.New(fault.Invalid, "api_key_scope_invalid",
		"A key can be bound to at most 1000 components, 1000 workspaces and 1000 credentials, each by its id.")
	ErrKeyAddresses = fault.New(fault.Invalid, "api_key_addresses_invalid",
		"The addresses must be at most 32 IPv4 or IPv6 networks, such as \"192.0.2.0/24\".")
)

// ErrKeySelfRevoke prevents an installation from locking itself out.
var ErrKeySelfRevoke = fault.New(fault.Precondition, "api_key_own",
	"A key that is granted every tenant cannot revoke itself. Issue another key and revoke this one with it.")

// The bounds of a key.
const (
	maxKeyTenants   = 100 // in its list of tenants
	maxKeyAddresses = 32
	maxKeyScope     = 1000 // ids per kind
)

// covers reports whether the principal reaches every one of the tenants.
func covers(p service.Principal, tenants []string) bool {
	for _, t := range tenants {
		if t == service.AllTenants && !slices.Contains(p.Tenants, service.AllTenants) || !p.Reaches(t) {
			return false
		}
	}
	return true
}

// IssueAPIKey requests a new API key. It has a role, permissions, or both.
type IssueAPIKey struct {
	Role        permission.Role         `json:"role,omitzero"`        // a named set of permissions: built in, or a role of the tenant
	Permissions []permission.Permission `json:"permissions,omitzero"` // granted by name, in addition to those of the role
	Name        string                  `json:"name,omitzero"`        // display name
	Tenants     []string                `json:"tenants,omitzero"`     // tenants that it may use, "*" for all; the call's tenant when absent
	Expires     string                  `json:"expires,omitzero"`     // when it expires: a time (RFC 3339), or a duration such as "720h"; never when absent
	Addresses   []string                `json:"addresses,omitzero"`   // networks (CIDR) from which it may be used, up to 32; all networks when absent
	Components  []string                `json:"components,omitzero"`  // ids: only credentials of these components; all when absent
	Workspaces  []string                `json:"workspaces,omitzero"`  // only credentials created with these workspace ids; all when absent
	Credentials []string                `json:"credentials,omitzero"` // only the credentials with these ids; all when absent
	Certificate string                  `json:"certificate,omitzero"` // name in a client certificate that stands for the key, such as "dns:engine.example.org"; a secret key when absent
}

type IssuedAPIKey struct {
	service.Done
	Key     string    `json:"key,omitzero"`     // shown once; absent if a certificate stands for the key
	Expires time.Time `json:"expires,omitzero"` // when it expires
}

func (s *Service) issueAPIKey(ctx context.Context, call *service.Call, in IssueAPIKey) (IssuedAPIKey, error) {
	if in.Name != "" {
		if err := service.CheckName("/name", in.Name); err != nil {
			return IssuedAPIKey{}, err
		}
	}
	role, err := s.roleOf(ctx, call, in.Role)
	if err != nil {
		return IssuedAPIKey{}, err
	}
	permissions, err := grantable(call.Principal, in, role)
	if err != nil {
		return IssuedAPIKey{}, err
	}
	if len(in.Tenants) == 0 {
		in.Tenants = []string{call.Tenant}
	}
	if len(in.Tenants) > maxKeyTenants {
		return IssuedAPIKey{}, ErrKeyRights.Withf("A key can list at most %d tenants. Use \"*\" for every tenant.", maxKeyTenants).At("/tenants")
	}
	for _, t := range in.Tenants {
		if t != service.AllTenants && events.CheckName(t) != nil {
			return IssuedAPIKey{}, events.ErrID.At("/tenants")
		}
	}
	if !covers(call.Principal, in.Tenants) {
		return IssuedAPIKey{}, ErrKeyRights.At("/tenants")
	}
	expires, err := expiry(call.Principal, in.Expires, s.Kernel.Now())
	if err != nil {
		return IssuedAPIKey{}, err
	}
	addresses, err := networks(call.Principal, in.Addresses)
	if err != nil {
		return IssuedAPIKey{}, err
	}
	scope, err := scopeOf(call.Principal, in)
	if err != nil {
		return IssuedAPIKey{}, err
	}
	key, hash := "", ""
	if in.Certificate != "" {
		if hash, err = s.mapCertificate(ctx, call, in.Certificate); err != nil {
			return IssuedAPIKey{}, err
		}
	} else {
		key = string(NewKey().Reveal())
		hash = hashKey(key)
	}
	if err := s.grantRole(ctx, call, in, role); err != nil {
		return IssuedAPIKey{}, err
	}
	done, err := s.issueKey(ctx, call, commands.IssueAPIKey{
		ID:     call.DeriveID("api_key"),
		SHA256: hash, Name: in.Name, Home: call.Tenant, Tenants: in.Tenants, Role: role.stored,
		Permissions: permissions, Addresses: addresses, Expires: expires, Scope: scope, Certificate: in.Certificate,
	})
	if err != nil {
		return IssuedAPIKey{}, err
	}
	// Wait until the key can be used. If the views are late, return the key
	// anyway: it is never shown again.
	_ = s.Kernel.AtLeast(ctx, done.Seq)
	return IssuedAPIKey{done, key, expires}, nil
}

// grantable checks the requested permissions, and returns those that are stored with the key,
// sorted: the permissions granted by name and those of a role of the tenant, but not those of a
// built-in role.
func grantable(issuer service.Principal, in IssueAPIKey, role granted) ([]string, error) {
	if in.Role == "" && len(in.Permissions) == 0 {
		return nil, ErrRole.Withf("Give the key a role or permissions.").At("/role")
	}
	var names []string
	for _, perm := range role.permissions {
		if !issuer.MayGrant(perm) {
			return nil, ErrKeyRights.Withf("The role %s includes the permission %s, which your key lacks.", in.Role, perm).At("/role")
		}
		if role.own {
			names = append(names, string(perm))
		}
	}
	for i, perm := range in.Permissions {
		if err := checkGrant(issuer, perm, fmt.Sprintf("/permissions/%d", i)); err != nil {
			return nil, err
		}
		if !slices.Contains(role.permissions, perm) {
			names = append(names, string(perm))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// scopeOf returns the scope of the requested key, which must be within that of its issuer. A kind
// of ids that the request omits is inherited from the issuer.
func scopeOf(issuer service.Principal, in IssueAPIKey) (scope events.Scope, err error) {
	for _, kind := range []struct {
		at            string
		given, issuer []string
		check         func(string) error
		to            *[]string
	}{
		{"/components", in.Components, issuer.Scope.Components, events.CheckName, &scope.Components},
		{"/workspaces", in.Workspaces, issuer.Scope.Workspaces, events.CheckID, &scope.Workspaces},
		{"/credentials", in.Credentials, issuer.Scope.Credentials, events.CheckID, &scope.Credentials},
	} {
		if len(kind.given) > maxKeyScope {
			return scope, ErrKeyScope.At(kind.at)
		}
		for i, id := range kind.given {
			at := fmt.Sprintf("%s/%d", kind.at, i)
			switch {
			case kind.check(id) != nil:
				return scope, ErrKeyScope.At(at)
			case len(kind.issuer) > 0 && !slices.Contains(kind.issuer, id):
				return scope, ErrKeyRights.Withf("Your key is not bound to %s, so it cannot issue a key that is.", id).At(at)
			}
		}
		*kind.to = kind.issuer
		if len(kind.given) > 0 {
			*kind.to = slices.Compact(slices.Sorted(slices.Values(kind.given)))
		}
	}
	return scope, nil
}

// expiry parses the expiry of a key, which must not be later than that of its issuer. The zero
// time means that the key does not expire.
func expiry(issuer service.Principal, given string, now time.Time) (time.Time, error) {
	var end time.Time
	if given != "" {
		var err error
		if end, err = time.Parse(time.RFC3339, given); err != nil {
			after, err := time.ParseDuration(given)
			if err != nil {
				return time.Time{}, ErrKeyExpires.At("/expires")
			}
			end = now.Add(after)
		}
		end = end.UTC().Truncate(time.Microsecond)
		if !end.After(now) || end.Year() > 9999 { // the range of RFC 3339
			return time.Time{}, ErrKeyExpires.At("/expires")
		}
	}
	if !issuer.Expires.IsZero() && (end.IsZero() || end.After(issuer.Expires)) {
		return time.Time{}, ErrKeyRights.Withf("The key cannot outlive the key that issues it, which expires at %s.",
			issuer.Expires.Format(time.RFC3339)).At("/expires")
	}
	return end, nil
}

// networks parses the networks from which a key may be used, which must be within those of its
// issuer. A single address is accepted as a network with one address.
func networks(issuer service.Principal, given []string) ([]string, error) {
	if len(given) > maxKeyAddresses {
		return nil, ErrKeyAddresses.At("/addresses")
	}
	if len(given) == 0 && len(issuer.Addresses) > 0 {
		return nil, ErrKeyRights.Withf("Your key is restricted to some networks. Give the new key networks within those.").At("/addresses")
	}
	var list []string
	for i, text := range given {
		at := fmt.Sprintf("/addresses/%d", i)
		network, err := netip.ParsePrefix(text)
		if err != nil {
			address, err := netip.ParseAddr(text)
			if err != nil || address.Zone() != "" {
				return nil, ErrKeyAddresses.At(at)
			}
			network = netip.PrefixFrom(address, address.BitLen())
		}
		if network.Addr().Is4In6() { // such connections are identified by their IPv4 address
			return nil, ErrKeyAddresses.Withf("Write an IPv4 network in IPv4 form: \"192.0.2.0/24\".").At(at)
		}
		network = network.Masked()
		if len(issuer.Addresses) > 0 && !slices.ContainsFunc(issuer.Addresses, func(n netip.Prefix) bool {
			return n.Bits() <= network.Bits() && n.Contains(network.Addr())
		}) {
			return nil, ErrKeyRights.Withf("Your key may not be used from %s, so it cannot grant that network.", network).At(at)
		}
		list = append(list, network.String())
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

func (s *Service) issueKey(ctx context.Context, call *service.Call, cmd commands.IssueAPIKey) (service.Done, error) {
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.APIKey, events.System, commands.APIKey(cmd))
	if err != nil {
		return service.Done{}, err
	}
	return service.Done{Seq: state.Seq, ID: cmd.ID}, nil
}

// mayHold reports whether the principal could issue a key with the permissions of k. It
// ignores the expiry and the networks of k: a key that is valid for an hour can revoke one that
// never expires.
func mayHold(p service.Principal, k aggregates.APIKeyState) bool {
	permissions := slices.Clone(permission.Roles[permission.Role(k.Role)])
	for _, name := range k.Permissions {
		permissions = append(permissions, permission.Permission(name))
	}
	return !slices.ContainsFunc(permissions, func(perm permission.Permission) bool { return !p.MayGrant(perm) })
}

type RevokeAPIKey struct {
	ID string `json:"id"`
}

func (s *Service) revokeAPIKey(ctx context.Context, call *service.Call, in RevokeAPIKey) (service.Done, error) {
	if err := service.CheckTarget(in.ID, 0); err != nil {
		return service.Done{}, err
	}
	known, err := aggregates.APIKey.Fresh(ctx, s.Log, aggregates.APIKey.Stream(events.System, in.ID))
	switch {
	case err != nil:
		return service.Done{}, err
	case !known.Value.Exists || known.Value.Home != call.Tenant || !known.Value.Scope.Within(call.Principal.Scope): // the same keys as in api_key.list
		return service.Done{}, aggregates.ErrAPIKeyNotFound
	case !covers(call.Principal, known.Value.Tenants):
		return service.Done{}, ErrKeyRights.Withf("The key is granted more tenants than yours. Revoke it with a key that is granted those tenants too.")
	case in.ID != call.Principal.Actor.ID && !mayHold(call.Principal, known.Value):
		return service.Done{}, ErrKeyRights.Withf("The key has permissions that yours lacks. Revoke it with a key that has them.")
	case in.ID == call.Principal.Actor.ID && slices.Contains(known.Value.Tenants, service.AllTenants):
		return service.Done{}, ErrKeySelfRevoke
	}
	_, state, err := service.Execute(ctx, s.Kernel, call, aggregates.APIKey, events.System, commands.APIKey(commands.RevokeAPIKey(in)))
	if err != nil {
		return service.Done{}, err
	}
	// Once the views have it, the key is rejected everywhere in this process.
	if err := s.Kernel.AtLeast(ctx, state.Seq); err != nil {
		return service.Done{}, err
	}
	if s.KeyRevoked != nil {
		s.KeyRevoked(in.ID)
	}
	return service.Done{Seq: state.Seq, ID: in.ID}, nil
}

type ListAPIKeys struct {
	Limit  int    `json:"limit,omitzero"`   // 1 to 200; 50 when absent
	After  string `json:"after,omitzero"`   // cursor: next of the previous page
	MinSeq uint64 `json:"min_seq,omitzero"` // wait until the response reflects this log sequence
}

type APIKeyList struct {
	Keys []APIKeyInfo `json:"keys"`
	Next string       `json:"next,omitzero"` // cursor of the next page; absent on the last
}

// APIKeyInfo is the metadata of a key.
type APIKeyInfo struct {
	ID          string                  `json:"id"`
	Name        string                  `json:"name"`
	Role        permission.Role         `json:"role"`                 // built in, or a role of the tenant; "" when only permissions were granted
	Permissions []permission.Permission `json:"permissions,omitzero"` // permissions granted by name and those of a role of the tenant, but not those of a built-in role
	Tenants     []string                `json:"tenants"`
	Addresses   []string                `json:"addresses,omitzero"`   // networks from which it may be used; absent: all
	Components  []string                `json:"components,omitzero"`  // the components of the credentials that it reaches; absent: any
	Workspaces  []string                `json:"workspaces,omitzero"`  // the workspaces of the credentials that it reaches; absent: any
	Credentials []string                `json:"credentials,omitzero"` // the credentials that it reaches; absent: any
	Certificate string                  `json:"certificate,omitzero"` // name in the client certificate that stands for the key; absent: a secret key
	Expires     time.Time               `json:"expires,omitzero"`     // when it expires or expired; absent: never
	Expired     bool                    `json:"expired,omitzero"`     // the expiry has passed
	Revoked     bool                    `json:"revoked"`
	IssuedAt    time.Time               `json:"issued_at"`
	LastUsedAt  time.Time               `json:"last_used_at,omitzero"` // to the minute; absent when unknown
}

func (s *Service) listAPIKeys(ctx context.Context, call *service.Call, in ListAPIKeys) (APIKeyList, error) {
	limit, err := service.PageSize(in.Limit)
	if err != nil {
		return APIKeyList{}, err
	}
	if err := s.Kernel.AtLeast(ctx, in.MinSeq); err != nil {
		return APIKeyList{}, err
	}
	var used map[string]time.Time
	if s.LastUse != nil {
		if used, err = s.LastUse.LastUsed(ctx); err != nil { // the list is useful without it
			s.Logger.WarnContext(ctx, "cannot read when keys were last used", "err", err)
		}
	}
	page, next, err := s.Views.APIKeys(ctx, call.Tenant, call.Principal.Scope, in.After, limit)
	if err != nil {
		return APIKeyList{}, err
	}
	list := APIKeyList{Keys: make([]APIKeyInfo, len(page)), Next: next}
	for i, k := range page {
		list.Keys[i] = s.keyInfo(k, used[k.ID])
	}
	return list, nil
}

func (s *Service) keyInfo(k projections.APIKey, used time.Time) APIKeyInfo {
	info := APIKeyInfo{
		ID: k.ID, Name: k.Name, Role: shownRole(k.Role), Tenants: k.Tenants, Addresses: k.Addresses,
		Components: k.Scope.Components, Workspaces: k.Scope.Workspaces, Credentials: k.Scope.Credentials, Certificate: k.Certificate, Expires: k.Expires,
		Expired: !k.Expires.IsZero() && !s.Kernel.Now().Before(k.Expires), Revoked: k.Revoked, IssuedAt: k.CreatedAt, LastUsedAt: used,
	}
	for _, perm := range k.Permissions {
		info.Permissions = append(info.Permissions, permission.Permission(perm))
	}
	return info
}
