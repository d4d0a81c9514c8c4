package credential

import "fmt"

// Held are leaseCache, of a tenant and a number each.
type Held struct{ h *leaseCache }

// NewHeld is newLeaseCache.
func NewHeld(most, ofTenant int) (Held, error) {
	h, err := newLeaseCache(most, ofTenant)
	return Held{h}, err
}

// Add is add.
func (h Held) Add(tenant string, n int) { h.h.add(heldKey(tenant, n), &lease{}) }

// Get is get.
func (h Held) Get(tenant string, n int) { h.h.get(heldKey(tenant, n)) }

// Has tells what get would find, and is no use of it.
func (h Held) Has(tenant string, n int) bool { return h.h.all.Contains(heldKey(tenant, n)) }

// Len is how many leases are held, and of how many tenants.
func (h Held) Len() (leases, tenants int) { return h.h.all.Len(), len(h.h.tenants) }

func heldKey(tenant string, n int) leaseKey {
	return leaseKey{tenant: tenant, id: fmt.Sprint(n)}
}
