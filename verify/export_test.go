package verify

import (
	"net/http"
	"net/netip"
)

// Request is request, for tests of what values may do to it.
func Request(p *HTTP, hosts []string, values Values) (*http.Request, error) {
	return request(p, hosts, values)
}

// Allows tells whether a Client with this policy would connect to ip.
func Allows(cfg Config, ip netip.Addr) bool { return newGuard(cfg).allows(ip) }

// AllowsHTTPPort and AllowsPort tell the same of a port, for http probes and the others.
func AllowsHTTPPort(cfg Config, port uint16) bool { return newGuard(cfg).httpPort(port) }
func AllowsPort(cfg Config, port uint16) bool     { return newGuard(cfg).anyPort(port) }
