package verify

import (
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"regexp"
	"strings"
)

// function is one step of an expression. Package commands has the grammar of whole expressions.
var function = regexp.MustCompile(`^\|(base64|lower|trim|after\("([^"]+)"(?:,"([^"]+)")?\))`)

// derive returns the value of an expression: a field, and functions that are applied to its value
// in order. An absent field counts as empty.
func derive(expression string, values Values) (field, value string, err error) {
	field, rest, has := strings.Cut(expression, "|")
	if secret, ok := values(field); ok {
		value = string(secret.Reveal())
	}
	if !has {
		return field, value, nil
	}
	for rest = "|" + rest; rest != ""; {
		step := function.FindStringSubmatch(rest)
		if step == nil {
			return "", "", errTemplate
		}
		rest = rest[len(step[0]):]
		switch step[1] {
		case "base64":
			value = base64.StdEncoding.EncodeToString([]byte(value))
		case "lower":
			value = strings.ToLower(value)
		case "trim":
			value = strings.TrimSpace(value)
		default:
			i := strings.LastIndex(value, step[2])
			if i < 0 {
				return "", "", refuse(field, "has no "+step[2])
			}
			value = value[i+len(step[2]):]
			if step[3] == "" {
				continue
			}
			pattern, err := regexp.Compile("^(?:" + step[3] + ")$")
			if err != nil {
				return "", "", errTemplate
			}
			if !pattern.MatchString(value) {
				return "", "", refuse(field, "does not have what the component expects after "+step[2])
			}
		}
	}
	return field, value, nil
}

// maxPEM is the size of a file of certificates, in bytes.
const maxPEM = 64 << 10

// addTo adds the files to a configuration of TLS.
func (f TLSFiles) addTo(config *tls.Config, values Values) error {
	ca, field, err := file(f.CA, values)
	if err != nil {
		return err
	}
	if len(ca) > 0 {
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(ca) {
			return refuse(field, "has no certificate in PEM")
		}
		if oversizedCertificate(ca) {
			return refuse(field, "has a certificate with an RSA key of more than 8192 bits")
		}
	}
	certificate, field, err := file(f.Certificate, values)
	if err != nil {
		return err
	}
	key, keyField, err := file(f.Key, values)
	if err != nil || len(certificate)+len(key) == 0 {
		return err
	}
	if block, _ := pem.Decode(certificate); block == nil {
		return refuse(field, "has no certificate in PEM")
	}
	if oversizedCertificate(certificate) {
		return refuse(field, "has a certificate with an RSA key of more than 8192 bits")
	}
	for rest := key; len(rest) > 0; { // X509KeyPair looks for the first block of a private key
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if OversizedKey(block.Bytes) {
			return refuse(keyField, "is an RSA key of more than 8192 bits")
		}
	}
	pair, err := tls.X509KeyPair(certificate, key) // err repeats nothing, but does not name the field
	if err != nil {
		return refuse(keyField, "is not the private key of the certificate: PEM, not encrypted")
	}
	config.Certificates = []tls.Certificate{pair}
	return nil
}

// file returns the PEM in a field. Line breaks may have become "\n", as in a JSON file.
func file(template string, values Values) (content []byte, field string, err error) {
	if template == "" {
		return nil, "", nil
	}
	text, err := expand(template, values, func(name, value string) (string, error) {
		field = name
		if len(value) > maxPEM {
			return "", refuse(name, "is longer than 64 KiB")
		}
		return value, nil
	})
	return []byte(strings.TrimSpace(strings.ReplaceAll(text, `\n`, "\n"))), field, err
}

// oversizedCertificate reports whether a certificate in PEM has an RSA key of more than 8192 bits. Each
// signature that is checked against one takes the longer the larger it is, and package crypto/tls limits
// the keys of what a server sends, but not of the CAs.
func oversizedCertificate(text []byte) bool {
	for len(text) > 0 {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return false
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue // not used either
		}
		if key, is := c.PublicKey.(*rsa.PublicKey); is && key.N.BitLen() > maxRSA {
			return true
		}
	}
	return false
}

// maxRSA is the size of an RSA key, in bits.
const maxRSA = 8192

// OversizedKey reports whether der, a private key in PKCS #1 (RFC 8017) or PKCS #8 (RFC 5208), is
// an RSA key with a number of more than 8192 bits. Package crypto/rsa computes with the numbers
// before it compares them with each other, so a key made for that would occupy a processor for
// hours.
func OversizedKey(der []byte) bool {
	var wrapped struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}
	if _, err := asn1.Unmarshal(der, &wrapped); err == nil {
		der = wrapped.Key
	}
	var key struct {
		Version int
		N       *big.Int
		E       int
		D, P, Q *big.Int
	}
	if _, err := asn1.Unmarshal(der, &key); err != nil {
		return false // of another type, or refused by package x509 too
	}
	return max(key.N.BitLen(), key.D.BitLen(), key.P.BitLen(), key.Q.BitLen()) > maxRSA
}
