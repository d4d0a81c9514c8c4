package service

import (
	"net/netip"
	"slices"
	"time"

	"github.com/credstream/credstream/events"
	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service/permission"
)

// AllTenants in a key's tenants grants every tenant.
const AllTenants = "*"

// Principal is an authenticated caller.
type Principal struct {
	Actor       events.Actor
	Home        string                  // tenant used where a surface names none
	Tenants     []string                // tenants it may name, or AllTenants
	Role        permission.Role         // "" when it has permissions by name alone
	Permissions []permission.Permission // held by name, besides those of the role
	Addresses   []netip.Prefix          // networks that its key may be used from; none: from everywhere
	Expires     time.Time               // when its key ends by itself; zero: never
}

// Reaches reports whether the principal may name the tenant.
func (p Principal) Reaches(tenant string) bool {
	return slices.Contains(p.Tenants, tenant) || slices.Contains(p.Tenants, AllTenants)
}

// May reports whether the principal holds the permission, by its role or by name.
func (p Principal) May(perm permission.Permission) bool {
	return slices.Contains(p.Permissions, perm) || slices.Contains(permission.Roles[p.Role], perm)
}

// MayGrant reports whether the principal may issue a key with the permission:
// one it holds or, of an ADMINISTRATOR, any.
func (p Principal) MayGrant(perm permission.Permission) bool {
	return p.Role == permission.Administrator || p.May(perm)
}

// Expired reports whether the principal's key has ended by itself.
func (p Principal) Expired(now time.Time) bool { return !p.Expires.IsZero() && !now.Before(p.Expires) }

// UsableFrom reports whether the principal's key may be used from the address.
// One that is not known is in no network.
func (p Principal) UsableFrom(from netip.Addr) bool {
	from = from.Unmap().WithZone("")
	return len(p.Addresses) == 0 || slices.ContainsFunc(p.Addresses, func(n netip.Prefix) bool { return n.Contains(from) })
}

// Errors of a caller.
var (
	ErrUnauthenticated = fault.New(fault.Unauthenticated, "unauthenticated",
		"An API key is required: send it by HTTP Basic or Bearer, or as the password of the NATS connection.")
	// ErrKeyUnknown says one thing of every key that is not good, so that it tells
	// nothing to who guesses.
	ErrKeyUnknown = fault.New(fault.Unauthenticated, "api_key_unknown",
		"The API key is unknown, revoked or expired, or it may not be used from this address.")
	ErrDenied         = fault.New(fault.Denied, "permission_denied", "The key lacks the required permission.")
	ErrTenantNotFound = fault.New(fault.NotFound, "tenant_not_found", "Tenant not found.")
)
