package app

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/credstream/credstream/bus/bustest"
	"github.com/credstream/credstream/client"
	"github.com/credstream/credstream/fault"
)

// authority is a CA that signs certificates of clients and servers.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	var pair tls.Certificate
	pair, a.pem, _ = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour),
	})
	a.cert = pair.Leaf
	a.key = pair.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

func (a *authority) sign(template *x509.Certificate) (pair tls.Certificate, cert, key []byte) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	template.SerialNumber, template.NotBefore = big.NewInt(time.Now().UnixNano()), time.Now().Add(-2*time.Hour)
	parent, signer := template, private
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, signer)
	must(a.t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(a.t, err)
	cert, key = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	pair, err = tls.X509KeyPair(cert, key)
	must(a.t, err)
	return pair, cert, key
}

// server signs a certificate for this machine.
func (a *authority) server(name string, end time.Time) (cert, key []byte) {
	_, cert, key = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return cert, key
}

// client signs a certificate of a client.
func (a *authority) client(host string, end time.Time) tls.Certificate {
	pair, _, _ := a.sign(&x509.Certificate{DNSNames: []string{host}, NotAfter: end, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return pair
}

// trusts is how a client with these certificates connects.
func (a *authority) trusts(own ...tls.Certificate) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, Certificates: own}
}

// secured is a service with TLS.
type secured struct {
	*up
	ca, clients     *authority
	cert, key, base string
}

func bringSecured(t *testing.T) *secured {
	t.Helper()
	s := &secured{ca: newAuthority(t), clients: newAuthority(t)}
	dir := t.TempDir()
	s.cert, s.key = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	clientCA := filepath.Join(dir, "clients.crt")
	must(t, os.WriteFile(clientCA, s.clients.pem, 0o600))
	s.install(t, "first")
	s.up = bring(t, t.TempDir(), func(c *Config) { c.TLSCert, c.TLSKey, c.TLSClientCA = s.cert, s.key, clientCA })
	s.base = "https://" + s.front.listener.Addr().String()
	return s
}

func (s *secured) install(t *testing.T, name string) {
	t.Helper()
	cert, key := s.ca.server(name, time.Now().Add(time.Hour))
	must(t, os.WriteFile(s.key, key, 0o600))
	must(t, os.WriteFile(s.cert, cert, 0o600))
}

func (s *secured) http(t *testing.T, cfg *tls.Config, key string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{URL: s.base, Key: key, TLS: cfg})
	must(t, err)
	return c
}

func (s *secured) nats(cfg *tls.Config, key string, options ...nats.Option) (*client.Conn, error) {
	return client.Dial(context.Background(), client.NATSConfig{URL: s.node.ClientURL(), Key: key, Options: append(options, nats.Secure(cfg))})
}

// Both ports accept TLS only, of clients that trust the CA, and say so to others.
func TestTLS(t *testing.T) {
	s := bringSecured(t)
	ctx := t.Context()
	if !strings.HasPrefix(s.node.ClientURL(), "tls://") || s.publicURL != s.base {
		t.Errorf("NATS is at %s, browsers are sent to %s", s.node.ClientURL(), s.publicURL)
	}
	if _, err := s.http(t, s.ca.trusts(), adminKey).ListAPIKeys(ctx, 0); err != nil {
		t.Errorf("HTTP: %v", err)
	}
	for name, options := range map[string][]nats.Option{"upgrade": nil, "TLS first": {nats.TLSHandshakeFirst()}} {
		nc, err := s.nats(s.ca.trusts(), adminKey, options...)
		must(t, err)
		if _, err := nc.ListAPIKeys(ctx, 0); err != nil {
			t.Errorf("NATS, %s: %v", name, err)
		}
		nc.Close()
	}
	// Clients that trust another CA.
	other := newAuthority(t).trusts()
	if _, err := s.http(t, other, adminKey).ListAPIKeys(ctx, 0); !unknownCA(err) {
		t.Errorf("HTTP, wrong CA: %v", err)
	}
	if _, err := s.nats(other, adminKey); !unknownCA(err) {
		t.Errorf("NATS, wrong CA: %v", err)
	}
	// Old versions of TLS.
	for _, addr := range []string{s.front.listener.Addr().String(), s.node.Addr().String()} {
		for _, version := range []uint16{tls.VersionTLS11, tls.VersionTLS12} {
			cfg := s.ca.trusts()
			cfg.MinVersion, cfg.MaxVersion, cfg.ServerName = version, version, "localhost"
			if c, err := tls.Dial("tcp", addr, cfg); err == nil {
				t.Errorf("%s accepts %s", addr, tls.VersionName(version))
				_ = c.Close()
			} else if alert := (*tls.AlertError)(nil); !strings.Contains(err.Error(), "protocol version") && !errors.As(err, &alert) {
				t.Errorf("%s: %v", tls.VersionName(version), err)
			}
		}
	}
	// Without TLS.
	resp, err := http.Get(strings.Replace(s.base, "https:", "http:", 1) + "/readyz")
	must(t, err)
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "HTTP request to an HTTPS server") {
		t.Errorf("plain HTTP: %d %s", resp.StatusCode, text)
	}
	plain, err := net.Dial("tcp", s.node.Addr().String())
	must(t, err)
	defer plain.Close()
	must(t, plain.SetDeadline(time.Now().Add(10*time.Second)))
	lines := bufio.NewReader(plain)
	info, err := lines.ReadString('\n')
	must(t, err)
	if !strings.Contains(info, `"tls_required":true`) {
		t.Errorf("NATS says %s", info)
	}
	_, _ = io.WriteString(plain, "CONNECT {\"user\":\"x\",\"pass\":\""+adminKey+"\"}\r\nPING\r\n")
	if answer, _ := lines.ReadString('\n'); strings.HasPrefix(answer, "PONG") || strings.HasPrefix(answer, "INFO") {
		t.Errorf("NATS without TLS: %s", answer)
	}
}

func unknownCA(err error) bool {
	var unknown x509.UnknownAuthorityError
	return errors.As(err, &unknown)
}

// A client certificate stands for the key that is mapped to it, over HTTP and NATS, and no longer
// than that key is valid.
func TestClientCertificates(t *testing.T) {
	s := bringSecured(t)
	ctx := t.Context()
	admin := s.http(t, s.ca.trusts(), adminKey)
	issued, err := admin.IssueAPIKey(ctx, client.IssueAPIKey{Role: "FLOW_ENGINE", Certificate: "dns:engine.example.org"})
	must(t, err)
	hour := time.Now().Add(time.Hour)
	engine := s.ca.trusts(s.clients.client("engine.example.org", hour))
	overHTTP := s.http(t, engine, "")
	if _, err := overHTTP.ListFlows(ctx, client.FlowFilter{}); err != nil {
		t.Errorf("HTTP: %v", err)
	}
	if _, err := overHTTP.ListAPIKeys(ctx, 0); fault.Of(err).Code != "permission_denied" {
		t.Errorf("HTTP, beyond the rights of its key: %v", err)
	}
	overNATS, err := s.nats(engine, "")
	must(t, err)
	defer overNATS.Close()
	if _, err := overNATS.ListFlows(ctx, client.FlowFilter{}); err != nil {
		t.Errorf("NATS: %v", err)
	}
	for name, c := range map[string]struct {
		cert tls.Certificate
		code string // of HTTP; "": the handshake fails
	}{
		"name without a key": {s.clients.client("other.example.org", hour), "certificate_unknown"},
		"another CA":         {newAuthority(t).client("engine.example.org", hour), ""},
		"CA of the servers":  {s.ca.client("engine.example.org", hour), ""},
		"expired":            {s.clients.client("engine.example.org", time.Now().Add(-time.Hour)), ""},
	} {
		cfg := s.ca.trusts()
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &c.cert, nil } // whatever the server asks for
		_, err := s.http(t, cfg, "").ListFlows(ctx, client.FlowFilter{})
		if want := c.code; want == "" && !handshakeFailed(err) || want != "" && fault.Of(err).Code != want {
			t.Errorf("HTTP, %s: %v", name, err)
		}
		if nc, err := s.nats(cfg, ""); err == nil {
			t.Errorf("NATS, %s: accepted", name)
			nc.Close()
		}
	}
	if _, err := s.http(t, s.ca.trusts(), "").ListFlows(ctx, client.FlowFilter{}); fault.Of(err).Kind != fault.Unauthenticated {
		t.Errorf("no certificate: %v", err)
	}
	// A header is not a certificate, and a key in the request goes before the certificate.
	if keys, err := s.http(t, engine, adminKey).ListAPIKeys(ctx, 0); err != nil || len(keys) == 0 {
		t.Errorf("a key beside the certificate: %v", err)
	}
	if _, err := s.http(t, engine, "cs_"+strings.Repeat("a", 40)).ListFlows(ctx, client.FlowFilter{}); fault.Of(err).Code != "api_key_unknown" {
		t.Errorf("an unknown key beside the certificate: %v", err)
	}
	// The end of the key is that of both.
	_, err = admin.RevokeAPIKey(ctx, issued.ID)
	must(t, err)
	if _, err := overHTTP.ListFlows(ctx, client.FlowFilter{}); fault.Of(err).Code != "certificate_unknown" {
		t.Errorf("HTTP, after the revocation: %v", err)
	}
	if _, err := overNATS.ListFlows(ctx, client.FlowFilter{}); err == nil {
		t.Error("NATS, after the revocation: answered")
	}
	if nc, err := s.nats(engine, ""); err == nil {
		t.Error("NATS, after the revocation: accepted")
		nc.Close()
	}
}

// The certificate changes under open connections; a broken one is noted in readiness and
// counted, and changes nothing.
func TestReloadTLS(t *testing.T) {
	s := bringSecured(t)
	ctx := t.Context()
	open := s.http(t, s.ca.trusts(), adminKey)
	nc, err := s.nats(s.ca.trusts(), adminKey)
	must(t, err)
	defer nc.Close()
	name := func(addr string, options ...string) string {
		cfg := s.ca.trusts()
		cfg.ServerName = "localhost"
		c, err := tls.Dial("tcp", addr, cfg)
		must(t, err)
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	health := func() client.Health {
		h, err := client.CheckHealth(ctx, client.Config{URL: s.base, TLS: s.ca.trusts()})
		must(t, err)
		return h
	}
	must(t, os.WriteFile(s.cert, []byte("broken"), 0o600))
	bustest.Eventually(t, "readiness notes it", func() bool { return strings.Contains(strings.Join(health().Notes, "\n"), "TLS: ") })
	if h := health(); !h.Ready || name(s.node.Addr().String()) != "first" {
		t.Errorf("with a broken certificate: %+v", h)
	}
	metrics, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"/metrics", nil)
	must(t, err)
	resp, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: s.ca.trusts()}}).Do(metrics)
	must(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	must(t, err)
	if !strings.Contains(string(text), `credstream_tls_reloads_total{outcome="failed"} 1`) {
		t.Error("the failure is not counted")
	}
	s.install(t, "second")
	bustest.Eventually(t, "the new certificate is used", func() bool {
		return name(s.front.listener.Addr().String()) == "second" && name(s.node.Addr().String()) == "second"
	})
	if h := health(); !h.Ready || len(h.Notes) > 0 {
		t.Errorf("afterwards: %+v", h)
	}
	if _, err := open.ListAPIKeys(ctx, 0); err != nil {
		t.Errorf("HTTP connection from before: %v", err)
	}
	if _, err := nc.ListAPIKeys(ctx, 0); err != nil {
		t.Errorf("NATS connection from before: %v", err)
	}
}

// A start with --dev-tls prints what its clients need.
func TestDevTLS(t *testing.T) {
	data := t.TempDir()
	u := bring(t, data, func(c *Config) { c.DevTLS = true })
	var told strings.Builder
	u.announce(&told)
	ca := filepath.Join(data, "dev-tls", "ca.crt")
	for _, want := range []string{"HTTP  https://", "NATS  tls://", "CREDSTREAM_CA=" + ca} {
		if !strings.Contains(told.String(), want) {
			t.Errorf("%q is missing in %s", want, told.String())
		}
	}
	base := "https://" + u.front.listener.Addr().String()
	c := &cli{env: map[string]string{"CREDSTREAM_URL": base, "CREDSTREAM_KEY": adminKey, "CREDSTREAM_NATS_URL": u.node.ClientURL()}}
	if code := c.run(t.Context(), "health"); code != 9 || !strings.Contains(c.errOut.String(), "certificate") {
		t.Errorf("without the CA: exit code %d: %s", code, c.errOut.String())
	}
	c.env["CREDSTREAM_CA"] = ca
	for _, args := range [][]string{{"health"}, {"key", "list"}, {"queue", "send", "credential.rename", "--data", `{}`}} {
		if code := c.run(t.Context(), args...); code != 0 && args[0] != "queue" || strings.Contains(c.errOut.String(), "unreachable") {
			t.Errorf("%v: exit code %d: %s", args, code, c.errOut.String())
		}
	}
	u.stop()
	for _, change := range []func(*Config){
		func(c *Config) { c.TLSCert = ca },
		func(c *Config) { c.TLSKey = ca },
		func(c *Config) { c.TLSClientCA = ca },
		func(c *Config) { c.DevTLS, c.TLSCert, c.TLSKey = true, ca, ca },
		func(c *Config) { c.DevTLS, c.PublicURL = true, "http://localhost:8080" },
		func(c *Config) { c.DevTLS, c.TLSMinVersion = true, "1.1" },
	} {
		cfg := Config{Data: t.TempDir(), HTTP: "127.0.0.1:0", NATSListen: "127.0.0.1:0", AdminKey: adminKey, Durability: "group", LogFormat: "text", LogLevel: "error"}
		change(&cfg)
		if p, err := start(t.Context(), cfg, io.Discard); err == nil {
			t.Errorf("%+v: started", cfg)
			p.close()
		} else if !strings.HasPrefix(fault.Of(err).Code, "config_") {
			t.Errorf("%v", err)
		}
	}
}

// handshakeFailed reports whether a server refused a client's certificate, so that the client has no
// response. In TLS 1.3 it hears of it after its own handshake, when HTTP/2 may already have begun, so
// the reason differs.
func handshakeFailed(err error) bool {
	return err != nil && strings.Contains(err.Error(), "The service cannot be reached.")
}
