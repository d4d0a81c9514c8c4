package access_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/access"
	"github.com/credstream/credstream/service/stage"
)

// certificate is one that a handshake has verified.
func certificate(change func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}
	change(c)
	if c.RawSubject == nil {
		c.RawSubject, _ = asn1.Marshal(c.Subject.ToRDNSequence())
	}
	return c
}

// A certificate stands for the key that is mapped to one of its names, as long as the key is
// valid.
func TestCertificates(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "tenant.register", `{"id":"other"}`)
	issue := func(tenant, name string) string {
		t.Helper()
		answer := stage.Must(s.Service.Serve(t.Context(), service.Call{Tenant: tenant, Principal: s.Admin, Via: "http"}, "api_key.issue",
			fmt.Appendf(nil, `{"role":"OPERATOR","certificate":%q}`, name)))(t).(access.IssuedAPIKey)
		if answer.Key != "" {
			t.Errorf("%s: a secret key was issued, too", name)
		}
		return answer.ID
	}
	dns, uri := issue("other", "dns:engine.example.org"), issue("default", "uri:spiffe://example.org/engine")
	subject := issue("default", "subject:CN=engine,O=Example\\, Ltd.")
	ask := func(c *x509.Certificate) (id, code string) {
		t.Helper()
		p, err := s.Service.Access.AuthenticateCertificate(t.Context(), c, netip.MustParseAddr("192.0.2.1"))
		return p.Actor.ID, stage.CodeOf(err)
	}
	spiffe := stage.Must(url.Parse("spiffe://example.org/engine"))(t)
	for name, tc := range map[string]struct {
		c        *x509.Certificate
		id, code string
	}{
		"host": {certificate(func(c *x509.Certificate) { c.DNSNames = []string{"a.example.org", "Engine.example.org"} }), dns, ""},
		"URI":  {certificate(func(c *x509.Certificate) { c.URIs = []*url.URL{spiffe} }), uri, ""},
		"subject": {certificate(func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "engine", Organization: []string{"Example, Ltd."}}
		}), subject, ""},
		"another subject with the same last common name": {certificate(func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "engine", Organization: []string{"Example, Ltd."}}
			rdns := c.Subject.ToRDNSequence()
			c.RawSubject, _ = asn1.Marshal(append(pkix.RDNSequence{rdns[1]}, rdns...))
		}), "", "certificate_unknown"},
		"common name like a host": {certificate(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "engine.example.org"} }), "", "certificate_unknown"},
		"address like a host":     {certificate(func(c *x509.Certificate) { c.EmailAddresses = []string{"engine.example.org"} }), "", "certificate_unknown"},
		"no name":                 {certificate(func(*x509.Certificate) {}), "", "certificate_unknown"},
		"wildcard":                {certificate(func(c *x509.Certificate) { c.DNSNames = []string{"*.example.org"} }), "", "certificate_unknown"},
		"names of two keys":       {certificate(func(c *x509.Certificate) { c.DNSNames, c.URIs = []string{"engine.example.org"}, []*url.URL{spiffe} }), "", "certificate_ambiguous"},
		"expired since the handshake": {certificate(func(c *x509.Certificate) {
			c.DNSNames, c.NotAfter = []string{"engine.example.org"}, time.Now().Add(-time.Second)
		}), "", "certificate_expired"},
	} {
		if id, code := ask(tc.c); id != tc.id || code != tc.code {
			t.Errorf("%s: key %q, %q; want %q, %q", name, id, code, tc.id, tc.code)
		}
	}
	engine := certificate(func(c *x509.Certificate) { c.DNSNames = []string{"engine.example.org"} })
	s.Do("other", "api_key.revoke", fmt.Sprintf(`{"id":%q}`, dns))
	if id, code := ask(engine); code != "certificate_unknown" {
		t.Errorf("after the revocation of its key: %q, %q", id, code)
	}
	again := issue("default", "dns:engine.example.org") // with other rights
	if id, code := ask(engine); id != again || code != "" {
		t.Errorf("after another key was mapped: %q, %q", id, code)
	}
	for _, guess := range []string{"certificate\ndns:engine.example.org", "dns:engine.example.org"} {
		if _, err := s.Service.Access.Authenticate(t.Context(), guess, netip.Addr{}); stage.CodeOf(err) != "api_key_malformed" {
			t.Errorf("the name as a key: %v", err)
		}
	}
}

// The names of certificates belong to the installation: nobody else maps one, and none twice.
func TestMapCertificate(t *testing.T) {
	s := stage.New(t)
	s.Do("default", "tenant.register", `{"id":"other"}`)
	issue := func(by service.Principal, tenant, name string) string {
		t.Helper()
		_, err := s.Service.Serve(t.Context(), service.Call{Tenant: tenant, Principal: by, Via: "http"}, "api_key.issue",
			fmt.Appendf(nil, `{"role":"OPERATOR","certificate":%q}`, name))
		return stage.CodeOf(err)
	}
	if got := issue(s.Issue("other", `{"role":"ADMINISTRATOR"}`), "other", "dns:engine.example.org"); got != "permission_denied" {
		t.Errorf("the administrator of one tenant: %q", got)
	}
	if got := issue(s.Admin, "default", "dns:engine.example.org"); got != "" {
		t.Errorf("the administrator of the installation: %q", got)
	}
	if got := issue(s.Admin, "other", "dns:engine.example.org"); got != "certificate_name_taken" {
		t.Errorf("a second key for the name: %q", got)
	}
	for _, name := range []string{
		"engine.example.org", "dns:", "dns:*.example.org", "dns:Engine.example.org", "dns:a b", "uri:engine", "uri:", "email:Ops <ops@example.org>",
		"email:ops", "subject:engine", "cn:engine", "uri:spiffe://" + strings.Repeat("a", 600),
	} {
		if got := issue(s.Admin, "default", name); got != "certificate_name_invalid" {
			t.Errorf("%q: %q", name, got)
		}
	}
}
