package verify_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/verify"
)

func TestBaseURL(t *testing.T) {
	const tail = "/rest/{{id}}?k={{key}}"
	for _, c := range []struct {
		base string
		want string // the URL; "" where the value is refused
		http bool   // the component allows it
	}{
		{"https://shop.example.com", "https://shop.example.com/rest/7%2F8?k=a%26b", false},
		{"https://Shop.Example.COM/", "https://shop.example.com/rest/7%2F8?k=a%26b", false},
		{"HTTPS://shop.example.com//", "https://shop.example.com/rest/7%2F8?k=a%26b", false},
		{"shop.example.com/store/de/", "https://shop.example.com/store/de/rest/7%2F8?k=a%26b", false},
		{"https://shop.example.com:8443/jira", "https://shop.example.com:8443/jira/rest/7%2F8?k=a%26b", false},
		{"shop.example.com:8443", "https://shop.example.com:8443/rest/7%2F8?k=a%26b", false},
		{"https://93.184.216.34/a%2Fb", "https://93.184.216.34/a%2Fb/rest/7%2F8?k=a%26b", false},
		{"https://shop.example.com/@me;v=1", "https://shop.example.com/@me;v=1/rest/7%2F8?k=a%26b", false},
		{"http://shop.example.com", "http://shop.example.com/rest/7%2F8?k=a%26b", true},
		{"http://shop.example.com", "", false},
	} {
		req, err := verify.Request(&verify.HTTP{URL: "{{base}}" + tail, AllowHTTP: c.http}, []string{"{{base}}"},
			values(map[string]string{"base": c.base, "id": "7/8", "key": "a&b"}))
		switch {
		case c.want == "" && !errors.Is(err, verify.ErrValueInvalid), c.want != "" && err != nil:
			t.Errorf("%s: %v", c.base, err)
		case err == nil && (req.URL.String() != c.want || req.Host != req.URL.Host):
			t.Errorf("%s: %s, want %s", c.base, req.URL, c.want)
		}
	}
}

// Whatever a base URL holds, its host is the one that a person reads, or it is refused.
func TestBaseURLThatMeansAnotherHost(t *testing.T) {
	for _, base := range []string{
		"", " ", "https://", "https:///evil.net", "https:shop.example.com", "https:/shop.example.com", "//shop.example.com", "/rest", "?", "#", "javascript:alert(1)", "data:text/plain,x", "file:///etc/passwd",
		"ftp://shop.example.com", "gopher://shop.example.com", "ws://shop.example.com",
		"https://shop.example.com@evil.net", "https://user:secret@shop.example.com", "https://@shop.example.com", "shop.example.com@evil.net", "https://shop.example.com:443@evil.net/",
		"https://evil.net#shop.example.com", "https://evil.net#", "https://evil.net?shop.example.com", "https://evil.net/?", "https://evil.net/x?a=b",
		`https://evil.net\@shop.example.com`, `https://evil.net\.shop.example.com`, `\\evil.net`, "https://shop.example.com\r\nHost: evil.net", "https://shop.example.com/\r\n", "https://shop.example.com\t", " https://shop.example.com", "https://shop.example.com ", "https://shop\x00.example.com",
		"https://münchen.example.com", "https://ｅvil.net", "https://evil。net", "https://shop.example.com\u202e", "https://sh%6fp.example.com", "https://evil.net%2f.example.com", "https://[::1]", "https://[::1]:443/", "https://[fe80::1%25eth0]/", "https://::1",
		"https://127.1", "https://0x7f.0.0.1", "https://0177.0.0.1", "https://2130706433", "https://1.2.3.4.5", "https://shop.example.com.", "https://.example.com", "https://shop..example.com", "https://-shop.example.com", "https://shop_x.example.com",
		"https://shop.example.com:", "https://shop.example.com:0", "https://shop.example.com:0443", "https://shop.example.com:65536", "https://shop.example.com:+443", "https://shop.example.com:443:443", "https://shop.example.com:a",
		"https://shop.example.com/../x", "https://shop.example.com/a/%2e%2e/x", "https://shop.example.com/a/..", "https://shop.example.com/./x", "https://shop.example.com/a%5c..%5cx", "https://shop.example.com/%0d%0a", "https://shop.example.com/%zz",
		"https://{{key}}.example.com", "{{key}}", "https://shop.example.com/<x>", "https://" + strings.Repeat("a.", 130) + "net", "https://shop.example.com/" + strings.Repeat("a", 17<<10),
	} {
		for _, hosts := range [][]string{{"{{base}}"}, {"shop.example.com"}} {
			vals := values(map[string]string{"base": base, "key": canary})
			r, err := run(t, development(), verify.Probe{HTTP: &verify.HTTP{URL: "{{base}}/{{key}}", AllowHTTP: true}, Hosts: hosts}, vals)
			if !errors.Is(err, verify.ErrValueInvalid) {
				t.Errorf("%q: %+v, %v", base, r, err)
			}
			if long := len(base) > 12; long && err != nil && strings.Contains(err.Error(), base) {
				t.Errorf("the error repeats the value: %v", err)
			}
		}
	}
	// The host has to be one of those that the component allows.
	for _, hosts := range [][]string{nil, {"shop.example.com"}, {"{{other}}"}, {"{{base}}.example.com"}, {"{{base|lower}}.net"}} {
		_, err := run(t, development(), verify.Probe{HTTP: &verify.HTTP{URL: "{{base}}/{{key}}"}, Hosts: hosts}, values(map[string]string{"base": "https://evil.net", "key": canary, "other": "https://other.net"}))
		if !errors.Is(err, verify.ErrHostRefused) {
			t.Errorf("%v: %v", hosts, err)
		}
	}
	// A base URL is no part of another address.
	vals := values(map[string]string{"base": "https://evil.net", "key": canary})
	for _, p := range []verify.Probe{
		{HTTP: &verify.HTTP{URL: "https://{{base}}/{{key}}"}}, {TCP: &verify.TCP{Address: "{{base}}:22"}}, {HTTP: &verify.HTTP{URL: "{{base}}.example.com/{{key}}"}}, {HTTP: &verify.HTTP{URL: "{{base}}@evil.net/{{key}}"}},
	} {
		if r, err := run(t, development(), within(p, []string{"{{base}}"}), vals); err == nil {
			t.Errorf("%+v was tried: %+v", p, r)
		}
	}
	if _, err := verify.FillURL("{{base}}/token", vals); err == nil {
		t.Error("an endpoint that gets the client's secret is chosen by a value")
	}
}

func FuzzBaseURL(f *testing.F) {
	for _, base := range []string{"https://shop.example.com:8443/a", "https://a@b", `https://a\b`, "a.b", "https://a.b/%2e%2e/", "//a", "https://a?b", "https://[::1]"} {
		f.Add(base)
	}
	f.Fuzz(func(t *testing.T, base string) {
		req, err := verify.Request(&verify.HTTP{URL: "{{base}}/x?y=1"}, []string{"{{base}}"}, values(map[string]string{"base": base}))
		if err != nil {
			return
		}
		u, err := url.Parse(req.URL.String())
		plain, _, _ := strings.Cut(strings.TrimPrefix(strings.ToLower(base), "https://"), "/")
		if err != nil || u.Scheme != "https" || u.User != nil || u.Fragment != "" || u.RawQuery != "y=1" || u.Host != plain || req.Host != u.Host || !strings.HasSuffix(u.Path, "/x") {
			t.Fatalf("%q became %q, %v", base, req.URL, err)
		}
	})
}

// A base URL may have another port, on public addresses only.
func TestBaseURLStaysGuarded(t *testing.T) {
	server := newCanary(t, "127.0.0.1:0")
	vals := values(map[string]string{"base": "http://127.0.0.1:" + server.port, "key": canary})
	r, err := run(t, verify.Config{}, verify.Probe{HTTP: &verify.HTTP{URL: "{{base}}/{{key}}", AllowHTTP: true}, Hosts: []string{"{{base}}"}}, vals)
	if err != nil || r.Outcome != verify.OutcomeAddressDenied || !strings.Contains(r.Says, "private or reserved") {
		t.Errorf("%+v, %v", r, err)
	}
	for port, want := range map[string]string{"22": "to this port", "4222": "to this port", "6443": "to this port", "8443": "private or reserved"} {
		vals := values(map[string]string{"base": "https://127.0.0.1:" + port, "key": canary})
		r, err := run(t, verify.Config{}, verify.Probe{HTTP: &verify.HTTP{URL: "{{base}}/{{key}}"}, Hosts: []string{"{{base}}"}}, vals)
		if err != nil || r.Outcome != verify.OutcomeAddressDenied || !strings.Contains(r.Says, want) {
			t.Errorf("port %s: %+v, %v", port, r, err)
		}
	}
	if n := server.came.Load(); n != 0 {
		t.Errorf("%d connections arrived", n)
	}
}

func TestDerivedValues(t *testing.T) {
	for _, c := range []struct{ template, value, want string }{
		{`{{v|after("-")}}`, "0123-us6", "us6"},
		{`{{v|after("-")}}`, "a-b-us6", "us6"},
		{`{{v|after("-")}}`, "us6", ""},
		{`{{v|after("-")}}`, "", ""},
		{`{{v|after("://")|lower}}`, "x://ABC", "abc"},
		{`{{v|after("-","us[0-9]+|eu")}}`, "a-us61", "us61"},
		{`{{v|after("-","us[0-9]+|eu")}}`, "sk-live0us6", ""},
		{`{{v|after("-","us[0-9]+|eu")}}`, "sk-us6x", ""},
		{`{{v|trim}}`, " a\n", "a"},
		{`{{v|lower}}`, "ÄB", "äb"},
		{`{{v|trim|base64}}`, " a:b ", "YTpi"},
		{`{{v|after("|")}}`, "a|b", "b"},
		{`{{v|after(")}")}}`, "a)}b", "b"},
		{`{{v|upper}}`, "a", ""},
		{`{{v|after(-)}}`, "a-b", ""},
		{`{{v|}}`, "a", ""},
	} {
		got, err := verify.Fill(c.template, values(map[string]string{"v": c.value}))
		if (err == nil) != (c.want != "") || got != c.want {
			t.Errorf("%s of %q: %q, %v, want %q", c.template, c.value, got, err, c.want)
		}
	}
	vals := values(map[string]string{"key": canary + "-us6"})
	req, err := verify.Request(&verify.HTTP{URL: `https://{{key|after("-")}}.api.example.com/3.0/`, Basic: &verify.Basic{Username: "any", Password: "{{key}}"}}, []string{`{{key|after("-")}}.api.example.com`}, vals)
	if err != nil || req.URL.String() != "https://us6.api.example.com/3.0/" {
		t.Errorf("%v, %v", req, err)
	}
	for _, value := range []string{canary + "-us6.evil.net/", canary + "-", canary + "-a@b", "x"} {
		_, err := run(t, development(), verify.Probe{HTTP: &verify.HTTP{URL: `https://{{key|after("-")}}.api.example.com/{{key}}`}, Hosts: []string{`{{key|after("-")}}.api.example.com`}}, values(map[string]string{"key": value}))
		if !errors.Is(err, verify.ErrValueInvalid) || fault.Of(err).Pointer != "/keys/key" {
			t.Errorf("%q: %v", value, err)
		}
	}
}

// identity makes a certificate for a client, signed by itself, in PEM.
func identity(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestCertificatesInFields(t *testing.T) {
	certificate, key := identity(t)
	_, otherKey := identity(t)
	other, _ := identity(t)
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM([]byte(certificate))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	files := verify.TLSFiles{CA: "{{ca}}", Certificate: "{{certificate}}", Key: "{{clientKey}}"}

	for name, c := range map[string]struct {
		ca, certificate, key string
		outcome, field       string // field: the refused one
	}{
		"all":                  {ca, certificate, key, "2xx", ""},
		"line breaks as \\n":   {strings.ReplaceAll(ca, "\n", `\n`), strings.ReplaceAll(certificate, "\n", `\n`), strings.ReplaceAll(key, "\n", `\n`), "2xx", ""},
		"no CA":                {"", certificate, key, verify.OutcomeTLS, ""},
		"another CA":           {other, certificate, key, verify.OutcomeTLS, ""},
		"no certificate":       {ca, "", "", verify.OutcomeTLS, ""},
		"a CA that is none":    {"canary", certificate, key, "", "ca"},
		"no PEM":               {ca, "canary", key, "", "certificate"},
		"another key":          {ca, certificate, otherKey, "", "clientKey"},
		"a key alone":          {ca, "", key, "", "certificate"},
		"a certificate alone":  {ca, certificate, "", "", "clientKey"},
		"a CA that is too big": {strings.Repeat("x", 65<<10), certificate, key, "", "ca"},
	} {
		t.Run(name, func(t *testing.T) {
			vals := values(map[string]string{"ca": c.ca, "certificate": c.certificate, "clientKey": c.key, "base": server.URL, "key": canary})
			for _, p := range []verify.Probe{
				{HTTP: &verify.HTTP{URL: "{{base}}/{{key}}", TLS: &files}, Hosts: []string{"{{base}}"}},
				{TLS: &verify.TLS{TCP: verify.TCP{Address: server.Listener.Addr().String()}, TLSFiles: files}, Hosts: []string{"127.0.0.1"}},
			} {
				r, err := run(t, development(), p, vals)
				want := c.outcome
				if p.TLS != nil && want == "2xx" {
					want = verify.OutcomeConnected
				}
				if p.TLS != nil && name == "no certificate" {
					continue // the handshake succeeds, and there is nothing to check
				}
				if c.field != "" && (!errors.Is(err, verify.ErrValueInvalid) || fault.Of(err).Pointer != "/keys/"+c.field) || c.field == "" && (err != nil || r.Outcome != want) {
					t.Errorf("%+v, %v, want %s %s", r, err, want, c.field)
				}
			}
		})
	}
}
