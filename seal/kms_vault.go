package seal

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/hashicorp/vault/api"
	"github.com/tink-crypto/tink-go-hcvault/v2/integration/hcvault"
	"github.com/tink-crypto/tink-go/v2/tink"
)

// openVault returns a key of the transit engine of Vault or OpenBao. The AEAD sends associated
// data in the parameter of that name, not in "context", which the engine ignores for keys that
// are not derived.
func openVault(u *url.URL, token Secret) (tink.AEAD, error) {
	opts, err := parseVaultURL(u)
	if err != nil {
		return nil, fmt.Errorf("opening the KMS key: %w", err)
	}
	if token.IsZero() {
		return nil, errors.New("opening the KMS key: Vault requires a token: set CREDSTREAM_KMS_TOKEN")
	}
	client, err := api.NewClient(&api.Config{
		Address: opts.scheme + "://" + u.Host,
		HttpClient: &http.Client{
			Transport: &http.Transport{ // no proxy from the environment: it could redirect the keys
				TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: opts.roots},
				TLSHandshakeTimeout: kmsTimeout,
				ForceAttemptHTTP2:   true,
			},
			Timeout: kmsTimeout,
			// No redirects: the token is for this address only.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Timeout:          kmsTimeout,
		MaxRetries:       2, // within the timeout
		DisableRedirects: true,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the KMS key: making the Vault client: %w", err)
	}
	// The client has read the environment; override it.
	client.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	client.SetToken(string(token.bytes()))
	if opts.namespace != "" {
		client.SetNamespace(opts.namespace)
	}
	kms, err := hcvault.NewAEAD(u.EscapedPath(), client.Logical())
	if err != nil {
		return nil, errors.New("opening the KMS key: a transit key is hcvault://host/<mount>/keys/<name>")
	}
	return kms, nil
}

type vaultOptions struct {
	scheme    string
	namespace string
	roots     *x509.CertPool // nil: those of the system
}

func parseVaultURL(u *url.URL) (vaultOptions, error) {
	opts := vaultOptions{scheme: "https"}
	if u.Host == "" || u.User != nil || u.Fragment != "" {
		return opts, errors.New("a transit key is hcvault://host/<mount>/keys/<name>")
	}
	for name, values := range u.Query() {
		value := values[0]
		switch name {
		case "namespace":
			opts.namespace = value
		case "ca_file":
			pem, err := os.ReadFile(value)
			if err != nil {
				return opts, fmt.Errorf("reading ca_file: %w", err)
			}
			opts.roots = x509.NewCertPool()
			if !opts.roots.AppendCertsFromPEM(pem) {
				return opts, fmt.Errorf("ca_file %s has no certificate", value)
			}
		case "tls":
			ip := net.ParseIP(u.Hostname())
			if value != "off" || u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
				return opts, errors.New("tls can only be \"off\", and only for a loopback address")
			}
			opts.scheme = "http"
		default:
			return opts, fmt.Errorf("%q is not an option of an hcvault URL", name)
		}
	}
	return opts, nil
}
