package verify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

var (
	errAddressDenied = errors.New("the address is denied")
	errPortDenied    = errors.New("the port is denied")
)

// metadataAddresses serve secrets to any caller, although the registries list them as public or
// private: Azure's wire server, and the IPv6 metadata services of AWS and Google Cloud. Other
// metadata services have link-local or reserved addresses, which the registries cover.
var metadataAddresses = []netip.Prefix{
	netip.MustParsePrefix("168.63.129.16/32"),
	netip.MustParsePrefix("fd00:ec2::/32"),
	netip.MustParsePrefix("fd20:ce::/32"),
}

// controlPorts are ports of cluster control planes: Docker, etcd, NATS, Kubernetes. 25 is for
// mail between servers, for which users have no credentials.
var controlPorts = []uint16{25, 2375, 2376, 2379, 2380, 4222, 6222, 6443, 8222, 10250}

// guard restricts connections by the address that is dialled, not by the name: the name could
// resolve to another address between the check and the connection.
type guard struct {
	public   *ssrf.Guardian // the IANA registries of special-purpose addresses
	denied   []netip.Prefix
	private  bool
	resolver *net.Resolver
}

func newGuard(cfg Config) *guard {
	return &guard{
		public:   ssrf.New(ssrf.WithAnyPort()),
		denied:   slices.Concat(metadataAddresses, cfg.Deny),
		private:  cfg.AllowPrivate,
		resolver: cfg.Resolver,
	}
}

// dial connects to host:port if the port and every address tried are allowed.
func (g *guard) dial(ctx context.Context, network, address string, allowed func(port uint16) bool) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dialling: %w", errAddressDenied)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || !allowed(uint16(n)) {
		return nil, fmt.Errorf("dialling: %w", errPortDenied)
	}
	d := net.Dialer{Control: g.control, Resolver: g.resolver, KeepAlive: -1}
	return d.DialContext(ctx, network, address)
}

// control implements net.Dialer.Control: it runs for each resolved address, before the socket
// connects.
func (g *guard) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !g.allows(ap.Addr()) {
		return errAddressDenied
	}
	return nil
}

func (g *guard) allows(ip netip.Addr) bool {
	bare := ip.Unmap().WithZone("")
	if slices.ContainsFunc(g.denied, func(p netip.Prefix) bool { return p.Contains(bare) }) {
		return false
	}
	if g.private && (bare.IsLoopback() || bare.IsPrivate()) {
		return true
	}
	return g.public.SafeAddr(ip) == nil
}

func (g *guard) httpPort(port uint16) bool {
	return port == 80 || port == 443 || g.private && port != 0
}

// webPort is for the base URLs that users enter: no port of another well-known service.
func (g *guard) webPort(port uint16) bool {
	return g.httpPort(port) || port >= 1024 && !slices.Contains(controlPorts, port)
}

func (g *guard) anyPort(port uint16) bool {
	return port != 0 && (g.private || !slices.Contains(controlPorts, port))
}

// slots limits the requests in flight of each holder: a tenant, or a tenant at one host. So the
// slow targets of one holder do not delay others. An idle holder uses no memory.
type slots struct {
	limit   int
	mu      sync.Mutex
	holders map[string]*slot
}

type slot struct {
	taken chan struct{}
	users int // that hold a slot or wait for one; guarded by slots.mu
}

func newSlots(limit int) *slots { return &slots{limit: limit, holders: map[string]*slot{}} }

// acquire waits up to timeout for a slot; the caller must release it.
func (s *slots) acquire(ctx context.Context, holder string, timeout time.Duration) (release func(), err error) {
	s.mu.Lock()
	t, ok := s.holders[holder]
	if !ok {
		t = &slot{taken: make(chan struct{}, s.limit)}
		s.holders[holder] = t
	}
	t.users++
	s.mu.Unlock()
	removeUser := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(s.holders, holder)
		}
	}

	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case t.taken <- struct{}{}:
		return func() { <-t.taken; removeUser() }, nil
	case <-ctx.Done():
		removeUser()
		return nil, fmt.Errorf("waiting for the tenant's other requests: %w", ctx.Err())
	case <-timer.C:
		removeUser()
		return nil, ErrBusy.WithRetryAfter(timeout)
	}
}
