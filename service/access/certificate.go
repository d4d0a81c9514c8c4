package access

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/credstream/credstream/fault"
	"github.com/credstream/credstream/service"
	"github.com/credstream/credstream/service/permission"
)

// Errors of client certificates.
var (
	ErrCertificateName = fault.New(fault.Invalid, "certificate_name_invalid",
		"The name must be dns:HOST, uri:URI, email:ADDRESS or subject:DN, as it is in the certificate, with at most 512 characters.")
	ErrCertificateTaken = fault.New(fault.Exists, "certificate_name_taken",
		"Another API key is mapped to this name. Revoke that key first.")
	// ErrCertificateUnknown rejects a verified certificate without a valid key for its names.
	ErrCertificateUnknown = fault.New(fault.Unauthenticated, "certificate_unknown",
		"The client certificate is valid, but no API key is mapped to its names, or the key was revoked or has expired.")
	// ErrCertificateAmbiguous rejects a certificate whose names are mapped to several keys.
	ErrCertificateAmbiguous = fault.New(fault.Unauthenticated, "certificate_ambiguous",
		"Several API keys are mapped to names of the client certificate. Use an API key instead, or revoke all of these keys but one.")
	ErrCertificateExpired = fault.New(fault.Unauthenticated, "certificate_expired", "The client certificate has expired since it was verified.")
)

const (
	maxCertificateName  = 512 // bytes
	maxCertificateNames = 32  // names of a certificate that are looked up
)

// certificateNames returns the names of a certificate for which a key can be issued: subject
// alternative names, and the subject in the form of RFC 2253.
func certificateNames(c *x509.Certificate) []string {
	var names []string
	for _, name := range c.DNSNames {
		names = append(names, "dns:"+strings.ToLower(name))
	}
	for _, u := range c.URIs {
		names = append(names, "uri:"+u.String())
	}
	for _, address := range c.EmailAddresses {
		names = append(names, "email:"+address)
	}
	// Not c.Subject.String(), which omits repeated attributes: two subjects would have one name.
	var subject pkix.RDNSequence
	if rest, err := asn1.Unmarshal(c.RawSubject, &subject); err == nil && len(rest) == 0 && len(subject) > 0 {
		names = append(names, "subject:"+subject.String())
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return names[:min(len(names), maxCertificateNames)]
}

// checkCertificateName returns ErrCertificateName for a name that certificateNames cannot return.
func checkCertificateName(name string) error {
	kind, value, _ := strings.Cut(name, ":")
	ok := value != "" && len(name) <= maxCertificateName && !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f })
	switch kind {
	case "dns": // a certificate with a wildcard is for many hosts, not one identity
		ok = ok && value == strings.ToLower(value) && !strings.ContainsAny(value, "* /:@")
	case "uri":
		u, err := url.Parse(value)
		ok = ok && err == nil && u.Scheme != "" && u.String() == value
	case "email":
		a, err := mail.ParseAddress(value)
		ok = ok && err == nil && a.Address == value
	case "subject":
		ok = ok && strings.Contains(value, "=")
	default:
		ok = false
	}
	if !ok {
		return ErrCertificateName.At("/certificate")
	}
	return nil
}

// hashCertificate returns the hash that is stored for a certificate name, instead of the hash of a
// secret key. No secret key has the same hash, because CheckKeyShape refuses the hashed text.
func hashCertificate(name string) [sha256.Size]byte {
	return sha256.Sum256([]byte("certificate\n" + name))
}

// mapCertificate returns the hash under which a key for the name is stored. All tenants share the
// CAs of the installation, and thus the certified names. So the caller must be granted every
// tenant: otherwise an administrator of one tenant could take over the name of another tenant's
// client.
func (s *Service) mapCertificate(ctx context.Context, call *service.Call, name string) (string, error) {
	if err := checkCertificateName(name); err != nil {
		return "", err
	}
	if err := s.Authorize(ctx, call, permission.TenantsManage); err != nil {
		return "", err
	}
	end, err := s.Log.Store.End(ctx)
	if err != nil {
		return "", fmt.Errorf("reading the end of the log: %w", err)
	}
	if err := s.Kernel.AtLeast(ctx, end); err != nil {
		return "", err
	}
	hash := fmt.Sprintf("%x", hashCertificate(name))
	k, found, err := s.Views.APIKey(ctx, hash)
	switch {
	case err != nil:
		return "", err
	case found && !k.Revoked && k.ID != call.DeriveID("api_key"): // else it is this command, repeated
		return "", ErrCertificateTaken.Withf("The API key %s is mapped to this name. Revoke that key first.", k.ID).At("/certificate")
	}
	return hash, nil
}

// AuthenticateCertificate returns the principal of the key that is mapped to a name of a
// verified client certificate: the caller has checked that a trusted CA signed it. It returns
// ErrCertificateUnknown, ErrCertificateAmbiguous, ErrCertificateExpired, and ErrWrongKeys in
// their place when too many came from the address.
func (s *Service) AuthenticateCertificate(ctx context.Context, verified *x509.Certificate, from netip.Addr) (service.Principal, error) {
	p, err := s.authenticateCertificate(ctx, verified, from)
	return p, s.wrongKeys.refuse(from, s.Kernel.CheckIntegrity(err))
}

func (s *Service) authenticateCertificate(ctx context.Context, verified *x509.Certificate, from netip.Addr) (service.Principal, error) {
	now := s.Kernel.Now()
	if now.After(verified.NotAfter) { // a connection may be older than that
		return service.Principal{}, ErrCertificateExpired
	}
	var one service.Principal
	for _, name := range certificateNames(verified) {
		p, err := s.principal(ctx, hashCertificate(name))
		switch {
		case errors.Is(err, service.ErrKeyUnknown), err == nil && p.Expired(now):
			continue
		case err != nil:
			return service.Principal{}, err
		case one.Actor.ID != "" && one.Actor.ID != p.Actor.ID:
			return service.Principal{}, ErrCertificateAmbiguous
		}
		one = p
	}
	if one.Actor.ID == "" || !one.UsableFrom(from) {
		return service.Principal{}, ErrCertificateUnknown
	}
	s.noteUse(one)
	return one, nil
}
