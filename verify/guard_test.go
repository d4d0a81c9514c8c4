package verify_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/credstream/credstream/verify"
)

// TestMain names a proxy where nobody listens, before anything reads the
// environment, which net/http does once only.
func TestMain(m *testing.M) {
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"} {
		if err := os.Setenv(name, "http://127.0.0.1:1"); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// canaryServer must never be reached: it counts who comes.
type canaryServer struct {
	port string
	came atomic.Int64
}

func newCanary(t *testing.T, address string) *canaryServer {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("needs a listener on %s: %v", address, err)
	}
	c := &canaryServer{}
	_, c.port, _ = net.SplitHostPort(l.Addr().String())
	var done sync.WaitGroup
	done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			c.came.Add(1)
			_ = conn.Close()
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		done.Wait()
		if n := c.came.Load(); n > 0 {
			t.Errorf("%d connections came to %s", n, l.Addr())
		}
	})
	return c
}

// names is a small DNS server, asked through Go's own resolver. answer gets the
// name and how often it was asked for, from 0.
func names(t *testing.T, answer func(name string, n int) []string) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		asked := map[string]int{}
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			name := strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			key := name + q.Type.String()
			owner := q.Name
			for _, a := range answer(name, asked[key]) {
				h := dnsmessage.ResourceHeader{Name: owner, Class: dnsmessage.ClassINET} // TTL 0
				ip, err := netip.ParseAddr(a)
				switch {
				case err != nil: // a name: the alias comes first
					owner = dnsmessage.MustNewName(a + ".")
					h.Type = dnsmessage.TypeCNAME
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: owner}})
				case ip.Is4() && q.Type == dnsmessage.TypeA:
					h.Type = dnsmessage.TypeA
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: ip.As4()}})
				case ip.Is6() && q.Type == dnsmessage.TypeAAAA:
					h.Type = dnsmessage.TypeAAAA
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}})
				}
			}
			asked[key]++
			if reply, err := m.Pack(); err == nil {
				_, _ = server.WriteTo(reply, from)
			}
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		done.Wait()
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

var private = []string{
	// loopback, in all its forms
	"127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "0.0.0.0", "0", "127.0.0.2", "127.255.255.254",
	"[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25eth0]",
	"[2001:0:7f00:1::]", "localhost", "localhost.", "LOCALHOST", "a.localhost", "ip6-localhost",
	// metadata
	"169.254.169.254", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "[fd20:ce::254]", "100.100.100.200", "192.0.0.192", "168.63.129.16",
	"metadata.google.internal", "metadata.google.internal.", "Metadata.Google.Internal", "１６９.254.169.254", "0251.0376.0251.0376", "0xa9fea9fe", "2852039166",
	// private, reserved, shared, multicast, broadcast
	"10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.0.1", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1",
	"224.0.0.1", "240.0.0.1", "255.255.255.255", "[fc00::1]", "[fd12:3456::1]", "[ff02::1]", "[2001:db8::1]", "[100::1]", "[fec0::1]",
	// names that resolve to such addresses
	"loop.test", "loop6.test", "private.test", "alias.test", "both.test", "mapped.test", "wire.test",
}

// TestNothingPrivateIsReached tries every way to name a private address, as each
// kind of probe, whatever hosts the component declares.
func TestNothingPrivateIsReached(t *testing.T) {
	server := newCanary(t, "127.0.0.1:0")
	resolver := names(t, func(name string, _ int) []string {
		return map[string][]string{
			"loop.test": {"127.0.0.1"}, "loop6.test": {"::1"}, "private.test": {"10.1.2.3", "fd00::1"},
			"alias.test": {"other.test", "last.test", "127.0.0.1"}, "both.test": {"127.0.0.1", "::1", "192.168.1.1"},
			"mapped.test": {"::ffff:127.0.0.1", "64:ff9b::7f00:1"}, "wire.test": {"168.63.129.16"},
			"metadata.google.internal": {"169.254.169.254"},
		}[name]
	})
	cfg := verify.Config{Resolver: resolver, Timeout: 5 * time.Second}
	denied := 0
	for _, host := range private {
		hosts := []string{strings.ToLower(host), host, "{{host}}"}
		v := values(map[string]string{"key": canary, "host": host})
		for _, p := range []verify.Probe{
			get("http://"+host+":"+server.port+"/?k={{key}}", ""), get("http://"+host+"/?k={{key}}", ""), get("https://"+host+"/?k={{key}}", ""),
			get("https://{{host}}/?k={{key}}", ""),
			{TCP: &verify.TCP{Address: host + ":" + server.port}},
			{TCP: &verify.TCP{Address: "{{host}}:" + server.port}},
			{TLS: &verify.TLS{TCP: verify.TCP{Address: host + ":" + server.port}}},
		} {
			r, err := run(t, cfg, within(p, hosts), v)
			if host == "loop6.test" && r.Outcome == verify.OutcomeUnreachable {
				continue // a machine without IPv6 has no socket to check
			}
			if r.OK || err == nil && r.Outcome != verify.OutcomeAddressDenied {
				t.Errorf("%s: %+v, %v", host, r, err)
			}
			if r.Outcome == verify.OutcomeAddressDenied {
				denied++
			}
		}
	}
	if denied < 100 {
		t.Errorf("only %d attempts came as far as the address check: the test has lost its point", denied)
	}
}

func TestURLsThatMeanAnotherHost(t *testing.T) {
	server := newCanary(t, "127.0.0.1:0")
	decoy := "127.0.0.1:" + server.port
	for _, url := range []string{
		"https://allowed.example@" + decoy + "/", "http://allowed.example:80@" + decoy + "/", "https://" + decoy + "#@allowed.example",
		`https://allowed.example\@` + decoy + "/", "https://allowed.example\t@" + decoy, "https://allowed.example\n.evil.net/", "http:" + decoy, "http:/" + decoy,
		"http:///" + decoy, "file:///etc/passwd", "gopher://" + decoy + "/", "ftp://" + decoy + "/", "unix:///run/docker.sock", "HTTP://" + decoy + "/",
		"javascript:alert(1)", "data:text/plain,x", "//" + decoy + "/", decoy, "", "https://", "https://?", "https://allowed.example:0/", "https://allowed.example:65536/",
		"https://allowed.example:" + server.port + "@" + decoy, "https://{{key}}/", "{{key}}://allowed.example/", "https://allowed.example:{{key}}/", "{{key}}",
		"https://allowed.example/{{key", "https://allowed.example/{{}}",
	} {
		for _, cfg := range []verify.Config{{}, development()} {
			if r, err := run(t, cfg, get(url, "allowed.example"), canaryKey); err == nil {
				t.Errorf("%q was tried: %+v", url, r)
			}
		}
	}
}

func TestRebinding(t *testing.T) {
	came := make(chan struct{}, 1000)
	base := serve(t, func(http.ResponseWriter, *http.Request) { came <- struct{}{} })
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(base, "http://"))
	newCanary(t, "127.0.0.2:"+port)
	resolver := names(t, func(name string, n int) []string {
		good, bad := "127.0.0.1", "127.0.0.2"
		switch {
		case name == "both.test" && n%2 == 0:
			return []string{bad, good}
		case name == "both.test":
			return []string{good, bad}
		case n%2 == 0:
			return []string{good}
		}
		return []string{bad}
	})
	cfg := verify.Config{AllowPrivate: true, Resolver: resolver, Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}
	outcomes := map[string]int{}
	for i := range 200 {
		name := []string{"turn.test", "both.test"}[i/100]
		r, err := run(t, cfg, get("http://"+name+":"+port+"/?k={{key}}", name), canaryKey)
		if err != nil {
			t.Fatal(err)
		}
		outcomes[name+" "+r.Outcome]++
	}
	want := map[string]int{"turn.test 2xx": 50, "turn.test address_denied": 50, "both.test 2xx": 100}
	if fmt.Sprint(outcomes) != fmt.Sprint(want) {
		t.Errorf("outcomes %v, want %v", outcomes, want)
	}
	if len(came) != 150 {
		t.Errorf("%d requests came, want 150", len(came))
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	server := newCanary(t, "127.0.0.1:0")
	var came atomic.Int64
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		came.Add(1)
		w.Header().Set("Location", r.Header.Get("X-To"))
		status := 0
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.WriteHeader(status)
	})
	tried := int64(0)
	for _, status := range []int{300, 301, 302, 303, 307, 308} {
		for _, to := range []string{
			"http://127.0.0.1:" + server.port + "/", "https://127.0.0.1:" + server.port + "/", "http://localhost:" + server.port, base + "/200", "/200", "//127.0.0.1:" + server.port,
		} {
			p := get(fmt.Sprintf("%s/%d?k={{key}}", base, status), "127.0.0.1")
			p.HTTP.Headers["X-To"] = to
			r, err := run(t, development(), p, canaryKey)
			if err != nil || r.OK || r.Outcome != verify.OutcomeRedirect {
				t.Errorf("%d to %s: %+v, %v", status, to, r, err)
			}
			tried++
		}
	}
	if came.Load() != tried {
		t.Errorf("%d requests for %d attempts", came.Load(), tried)
	}
}

func TestProxyVariablesAreIgnored(t *testing.T) {
	base := serve(t, func(http.ResponseWriter, *http.Request) {})
	cfg := development()
	cfg.Resolver = names(t, func(string, int) []string { return []string{"127.0.0.1"} })
	// By a name, because no proxy is ever used for loopback addresses.
	if r, err := run(t, cfg, get(strings.Replace(base, "127.0.0.1", "api.test", 1), "api.test"), canaryKey); err != nil || !r.OK {
		t.Errorf("%+v, %v", r, err)
	}
}

// Which names exist inside is told to nobody: one that is not found is answered like
// one with an address that is refused.
func TestNamesThatAreNotFound(t *testing.T) {
	cfg := verify.Config{Resolver: names(t, func(name string, _ int) []string {
		return map[string][]string{"inside.test": {"10.0.0.7"}, "loop.test": {"127.0.0.1"}, "link.test": {"169.254.169.254"}}[name]
	})}
	answer := func(p verify.Probe) verify.Result {
		r, err := run(t, cfg, p, canaryKey)
		if err != nil {
			t.Fatal(err)
		}
		r.Latency = 0
		return r
	}
	for _, name := range []string{"inside.test", "loop.test", "link.test"} {
		for _, probe := range []func(name string) verify.Probe{
			func(name string) verify.Probe { return get("https://"+name+"/?k={{key}}", name) },
			func(name string) verify.Probe {
				return verify.Probe{TCP: &verify.TCP{Address: name + ":443"}, Hosts: []string{name}}
			},
			func(name string) verify.Probe {
				return verify.Probe{TLS: &verify.TLS{TCP: verify.TCP{Address: name + ":443"}}, Hosts: []string{name}}
			},
		} {
			if there, not := answer(probe(name)), answer(probe("nobody.test")); there != not || not.Outcome != verify.OutcomeAddressDenied {
				t.Errorf("%s is answered with %+v, a name that does not exist with %+v", name, there, not)
			}
		}
	}
}

func TestAddressesAndPorts(t *testing.T) {
	own := verify.Config{Deny: []netip.Prefix{netip.MustParsePrefix("93.184.216.0/24")}}
	for _, c := range []struct {
		ip                  string
		strict, dev, denied bool // by the zero Config, for development, with Deny
	}{
		{"93.184.216.34", true, true, false},
		{"1.1.1.1", true, true, true},
		{"2606:4700:4700::1111", true, true, true},
		{"127.0.0.1", false, true, false},
		{"::1", false, true, false},
		{"::ffff:127.0.0.1", false, true, false},
		{"192.168.1.1", false, true, false},
		{"10.0.0.1", false, true, false},
		{"fd12::1", false, true, false},
		{"0.0.0.0", false, false, false},
		{"::", false, false, false},
		{"169.254.169.254", false, false, false},
		{"::ffff:169.254.169.254", false, false, false},
		{"fe80::1%eth0", false, false, false},
		{"fd00:ec2::254", false, false, false},
		{"fd00:ec2::254%eth0", false, false, false},
		{"fd20:ce::254", false, false, false},
		{"168.63.129.16", false, false, false},
		{"::ffff:168.63.129.16", false, false, false},
		{"100.100.100.200", false, false, false},
		{"192.0.0.192", false, false, false},
		{"224.0.0.1", false, false, false},
		{"2002:7f00:1::", false, false, false},
		{"64:ff9b::7f00:1", false, false, false},
	} {
		ip := netip.MustParseAddr(c.ip)
		for i, got := range []bool{verify.Allows(verify.Config{}, ip), verify.Allows(development(), ip), verify.Allows(own, ip)} {
			if want := []bool{c.strict, c.dev, c.denied}[i]; got != want {
				t.Errorf("%s under policy %d: %v, want %v", c.ip, i, got, want)
			}
		}
	}
	for _, c := range []struct {
		port           uint16
		http, any, dev bool
	}{
		{80, true, true, true},
		{443, true, true, true},
		{22, false, true, true},
		{5432, false, true, true},
		{8443, false, true, true},
		{25, false, false, true},
		{4222, false, false, true},
		{6222, false, false, true},
		{8222, false, false, true},
		{2379, false, false, true},
		{0, false, false, false},
	} {
		got := []bool{verify.AllowsHTTPPort(verify.Config{}, c.port), verify.AllowsPort(verify.Config{}, c.port), verify.AllowsHTTPPort(development(), c.port)}
		if want := []bool{c.http, c.any, c.dev}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("port %d: %v, want %v", c.port, got, want)
		}
	}
}

func TestDeniedPortsAreNotTried(t *testing.T) {
	server := newCanary(t, "127.0.0.1:0")
	r, err := run(t, verify.Config{}, get("http://127.0.0.1:"+server.port+"/?k={{key}}", "127.0.0.1"), canaryKey)
	if err != nil || r.Outcome != verify.OutcomeAddressDenied || !strings.Contains(r.Says, "port") {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = run(t, verify.Config{}, verify.Probe{TCP: &verify.TCP{Address: "127.0.0.1:4222"}, Hosts: []string{"127.0.0.1"}}, canaryKey)
	if err != nil || r.Outcome != verify.OutcomeAddressDenied {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestAnEmptyProbeIsAnError(t *testing.T) {
	if r, err := run(t, verify.Config{}, verify.Probe{}, canaryKey); err == nil || errors.Is(err, verify.ErrHostRefused) || r.OK {
		t.Errorf("%+v, %v", r, err)
	}
}
