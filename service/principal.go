package service

import (
	"net/netip"
	"slices"
	"time"

	"github.com/credstream/credstream/aggregates"
	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/permission"
)

// AllTenants in a key's tenants grants every tenant.
const AllTenants = "*"

// Principal is an authenticated caller.
type Principal struct {
	Actor       events.Actor
	Home        string                  // tenant used where a request names none
	Tenants     []string                // tenants it may access, or AllTenants
	Role        permission.Role         // "" when it has only single permissions
	Permissions []permission.Permission // in addition to those of the role
	Addresses   []netip.Prefix          // networks from which its key may be used; empty: from everywhere
	Expires     time.Time               // expiry of its key; zero: never
	Scope       events.Scope            // the credentials that its key reaches
}

// Reaches reports whether the principal may access the tenant.
func (p Principal) Reaches(tenant string) bool {
	return slices.Contains(p.Tenants, tenant) || slices.Contains(p.Tenants, AllTenants)
}

// May reports whether the principal has the permission, by its role or individually.
func (p Principal) May(perm permission.Permission) bool {
	return slices.Contains(p.Permissions, perm) || slices.Contains(permission.Roles[p.Role], perm)
}

// MayGrant reports whether the principal may issue a key with the permission:
// one that it has or, for an ADMINISTRATOR, any.
func (p Principal) MayGrant(perm permission.Permission) bool {
	return p.Role == permission.Administrator || p.May(perm)
}

// Expired reports whether the principal's key has expired.
func (p Principal) Expired(now time.Time) bool { return !p.Expires.IsZero() && !now.Before(p.Expires) }

// UsableFrom reports whether the principal's key may be used from the address.
// An unknown address is in no network.
func (p Principal) UsableFrom(from netip.Addr) bool {
	from = from.Unmap().WithZone("")
	return len(p.Addresses) == 0 || slices.ContainsFunc(p.Addresses, func(n netip.Prefix) bool { return n.Contains(from) })
}

// Errors of a caller.
var (
	ErrUnauthenticated = fault.New(fault.Unauthenticated, "unauthenticated",
		"An API key is required: send it by HTTP Basic or Bearer, or as the password of the NATS connection.")
	// ErrKeyUnknown is the same for every invalid key, so that a guesser learns
	// nothing.
	ErrKeyUnknown = fault.New(fault.Unauthenticated, "api_key_unknown",
		"The API key is unknown, revoked or expired, or it may not be used from this address.")
	// ErrKeyEnded is the error of the remaining items of a call whose key ends meanwhile.
	ErrKeyEnded = fault.New(fault.Unauthenticated, "api_key_ended",
		"The API key or token was revoked or has expired while the call was running. This was not executed.")
	ErrDenied         = fault.New(fault.Denied, "permission_denied", "The key lacks the required permission.")
	ErrTenantNotFound = aggregates.ErrTenantNotFound
)

// Confidential reports whether a connection is encrypted or comes from this machine, so that
// secrets may be sent over it.
func Confidential(encrypted bool, other netip.Addr) bool {
	return encrypted || other.Unmap().IsLoopback()
}
