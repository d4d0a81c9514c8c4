package servetls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	devCALife     = 10 * 365 * 24 * time.Hour
	devServerLife = 90 * 24 * time.Hour
	devRenew      = 30 * 24 * time.Hour // before the expiry of a server certificate
)

// The files of Dev.
const (
	devCA     = "ca.crt"
	devCAKey  = "ca.key"
	devServer = "server"
)

// Dev returns a certificate for localhost, the name of this machine and the hosts, signed by a CA
// in the folder dir, and the file of that CA. It creates what is missing, for the owner of the
// process alone, and renews a certificate that expires soon or lacks one of the hosts. It is for
// development: whoever can read the folder can impersonate the service.
func Dev(dir string, hosts []string) (files Files, ca string, err error) {
	files = Files{Cert: filepath.Join(dir, devServer+".crt"), Key: filepath.Join(dir, devServer+".key")}
	ca = filepath.Join(dir, devCA)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return files, "", fmt.Errorf("create the folder of the development CA: %w", err)
	}
	issuer, err := devIssuer(dir)
	if err != nil {
		return files, "", err
	}
	hosts = append([]string{"localhost", "127.0.0.1", "::1"}, hosts...)
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	if usable(files, issuer.Leaf, hosts) {
		return files, ca, nil
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "credstream development server"}, NotAfter: time.Now().Add(devServerLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if !slices.Contains(template.DNSNames, h) {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	_, err = create(template, &issuer, files.Cert, files.Key)
	return files, ca, err
}

// usable reports whether the server certificate can be used for a while, for all of the hosts.
func usable(files Files, ca *x509.Certificate, hosts []string) bool {
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil || pair.Leaf.CheckSignatureFrom(ca) != nil || time.Until(pair.Leaf.NotAfter) < devRenew {
		return false
	}
	return !slices.ContainsFunc(hosts, func(h string) bool { return pair.Leaf.VerifyHostname(h) != nil })
}

// devIssuer loads the CA of the folder, or creates one.
func devIssuer(dir string) (tls.Certificate, error) {
	cert, key := filepath.Join(dir, devCA), filepath.Join(dir, devCAKey)
	pair, err := tls.LoadX509KeyPair(cert, key)
	switch {
	case err == nil && time.Until(pair.Leaf.NotAfter) > devServerLife:
		return pair, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return pair, ErrFiles.Withf("The development CA in %s cannot be used: %v. Remove the folder, and the next start creates another CA.", dir, err)
	}
	return create(&x509.Certificate{
		Subject: pkix.Name{CommonName: "credstream development CA"}, NotAfter: time.Now().Add(devCALife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
	}, nil, cert, key)
}

// create writes a certificate with a new key, signed by issuer, or by itself. The key comes
// first: a start that is interrupted between the files creates both again.
func create(template *x509.Certificate, issuer *tls.Certificate, certFile, keyFile string) (pair tls.Certificate, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return pair, fmt.Errorf("create a TLS key: %w", err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return pair, fmt.Errorf("create a serial number: %w", err)
	}
	template.NotBefore = time.Now().Add(-time.Hour) // clocks differ
	parent, signer := template, any(key)
	if issuer != nil {
		parent, signer = issuer.Leaf, issuer.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return pair, fmt.Errorf("create a certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return pair, fmt.Errorf("encode a TLS key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for _, f := range []struct {
		path string
		data []byte
	}{{keyFile, keyPEM}, {certFile, certPEM}} {
		if err := os.WriteFile(f.path+".new", f.data, 0o600); err != nil {
			return pair, fmt.Errorf("write a TLS file: %w", err)
		}
		if err := os.Rename(f.path+".new", f.path); err != nil {
			return pair, fmt.Errorf("write a TLS file: %w", err)
		}
	}
	pair, err = tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return pair, fmt.Errorf("read a new certificate: %w", err)
	}
	return pair, nil
}
