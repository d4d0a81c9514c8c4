package admission

import "net/netip"

// Network is what one caller can have addresses of: an IPv4 address, or the /64
// of an IPv6 address.
func Network(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is4() {
		return a
	}
	p, _ := a.Prefix(64) // never more bits than it has
	return p.Addr()
}
