package verify_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/credstream/credstream/verify"
)

// A key that package crypto/rsa would compute with for hours is refused before.
func TestOversizedKey(t *testing.T) {
	key := func(bits uint) []byte {
		huge := new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(1))
		der, err := asn1.Marshal(struct {
			Version       int
			N             *big.Int
			E             int
			D, P, Q, X, Y *big.Int
			Z             *big.Int
		}{0, big.NewInt(15), 65537, big.NewInt(3), huge, big.NewInt(3), big.NewInt(1), big.NewInt(1), big.NewInt(1)})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	wrapped, err := asn1.Marshal(struct {
		Version   int
		Algorithm struct{ ID asn1.ObjectIdentifier }
		Key       []byte
	}{0, struct{ ID asn1.ObjectIdentifier }{asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}}, key(300_000)})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		der  []byte
		want bool
	}{
		"a prime of 300,000 bits": {key(300_000), true}, "the same in PKCS #8": {wrapped, true},
		"a prime of 4096 bits": {key(4095), false}, "nothing": {nil, false}, "no key": {[]byte("no key"), false},
	} {
		if got := verify.OversizedKey(c.der); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// The same of a CA, of the certificate of a client, and of a key in the form of OpenSSH.
func TestOversizedFiles(t *testing.T) {
	certificate := func(bits uint) string {
		_, signer, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		huge := &rsa.PublicKey{N: new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(1)), E: 65537}
		c := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
		der, err := x509.CreateCertificate(rand.Reader, c, c, huge, signer)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	small := certificate(2047)
	openSSH := func(bits uint) string {
		field := func(b []byte) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...) }
		number := field(new(big.Int).Lsh(big.NewInt(1), bits).Bytes())
		private := slices.Concat([]byte("12341234"), field([]byte("ssh-rsa")), number, number, number, number, number, number, field(nil))
		der := slices.Concat([]byte("openssh-key-v1\x00"), field([]byte("none")), field([]byte("none")), field(nil), []byte{0, 0, 0, 1}, field(nil), field(private))
		return string(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: der}))
	}
	for name, c := range map[string]struct {
		field string
		file  string
	}{"a CA": {"ca", certificate(300_000)}, "the second CA": {"ca", small + certificate(9000)}, "of a client": {"certificate", certificate(9000)}, "OpenSSH": {"pem", openSSH(9000)}} {
		begin := time.Now()
		p := verify.Probe{TLS: &verify.TLS{TCP: verify.TCP{Address: "127.0.0.1:1"}, TLSFiles: verify.TLSFiles{CA: "{{ca}}", Certificate: "{{certificate}}", Key: "{{key}}"}}, Hosts: []string{"127.0.0.1"}}
		if c.field == "pem" {
			p = verify.Probe{Login: &verify.Login{Protocol: verify.ProtocolSSH, TCP: p.TLS.TCP, Username: "ann", PrivateKey: "{{pem}}"}, Hosts: p.Hosts}
		}
		_, err := run(t, development(), p, values(map[string]string{c.field: c.file}))
		if !errors.Is(err, verify.ErrValueInvalid) || !strings.Contains(err.Error(), "8192") || time.Since(begin) > 2*time.Second {
			t.Errorf("%s: %v after %v", name, err, time.Since(begin))
		}
	}
	if r, err := run(t, development(), verify.Probe{TLS: &verify.TLS{TCP: verify.TCP{Address: "127.0.0.1:1"}, TLSFiles: verify.TLSFiles{CA: "{{ca}}"}}, Hosts: []string{"127.0.0.1"}}, values(map[string]string{"ca": small})); err != nil || r.Outcome != verify.OutcomeRefused {
		t.Errorf("a small CA: %+v, %v", r, err)
	}
}
